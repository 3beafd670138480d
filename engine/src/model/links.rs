//! A rank's connections: which groups it belongs to, and how the nodes of its row-parallel products are finished.

use crate::error::Result;
#[cfg(feature = "faults")]
use crate::faults::Fault;
use crate::kernels::device::Device;
use crate::parallel::comm::Transport;
use crate::parallel::comm::collectives::Group;
use crate::parallel::layout::Layout;
use crate::parallel::reduce::{ExchangePath, NodeExchange, OwnerBuffers};
use crate::parallel::shard::{FfnShard, Shard};
use std::sync::Arc;

/// Groups and exchange plans of one rank.
pub struct Links {
    /// Data world.
    pub transport: Arc<dyn Transport>,
    /// Tensor-parallel group, by shard.
    pub tp: Group,
    /// Attention output.
    pub attn_out: Reducer,
    /// Down projection of dense feed-forward blocks, if this stage has any.
    pub ffn_out: Option<Reducer>,
    /// World rank of the previous pipeline stage.
    pub prev: Option<usize>,
    /// World rank of the next pipeline stage.
    pub next: Option<usize>,
}

impl Links {
    /// Connects the rank that holds `shard`.
    pub fn new(layout: Layout, shard: &Shard, transport: Arc<dyn Transport>) -> Result<Self> {
        let at = shard.coord;
        let chain = layout.pp_chain(at);
        let dense = shard.ffn.iter().find_map(|ffn| match ffn {
            FfnShard::Dense(part) => Some(part.exchange()),
            FfnShard::Moe(_) => None,
        });
        Ok(Self {
            attn_out: Reducer::new(shard.attn_out.exchange()?),
            ffn_out: dense.transpose()?.map(Reducer::new),
            prev: at.pp.checked_sub(1).map(|pp| chain[pp]),
            next: chain.get(at.pp + 1).copied(),
            tp: Group::new(transport.clone(), layout.tp_group(at))?,
            transport,
        })
    }
}

#[cfg(feature = "faults")]
impl Links {
    /// Plants a fault in the sums of this rank.
    pub fn with_fault(mut self, fault: Option<Fault>) -> Self {
        self.attn_out.fault = fault;
        if let Some(ffn_out) = &mut self.ffn_out {
            ffn_out.fault = fault;
        }
        self
    }
}

/// Faults that belong to the sums.
#[cfg(feature = "faults")]
fn plants_in_sums(fault: Fault) -> bool {
    matches!(fault, Fault::RankOrderSum | Fault::Bf16Nodes | Fault::DroppedNode | Fault::SwappedNodes)
}

#[cfg(feature = "faults")]
impl Reducer {
    /// The gather path with one thing wrong.
    fn finish_wrongly<D: Device>(
        &mut self,
        dev: &mut D,
        group: &mut Group,
        nodes: &mut D::Buf,
        (rows, width): (usize, usize),
        fault: Fault,
    ) -> Result<()> {
        let len = rows * width;
        if fault == Fault::Bf16Nodes {
            self.mine.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
        self.exchange.exchange(group, &self.mine, rows, width, &mut self.all)?;
        let blocks = self.exchange.len();
        if fault == Fault::SwappedNodes && blocks > 1 {
            let (first, rest) = self.all.split_at_mut(len);
            first.swap_with_slice(&mut rest[..len]);
        }
        let mut steps = self.exchange.steps().to_vec();
        match fault {
            Fault::RankOrderSum => {
                steps = (1..blocks).map(|right| crate::parallel::tree::Step { left: 0, right }).collect();
            }
            Fault::DroppedNode => {
                steps.pop();
            }
            _ => {}
        }
        dev.write(nodes, 0, &self.all)?;
        dev.fold(nodes, len, &steps)
    }
}

/// Finishes a row-parallel product whose nodes lie on the ranks of a group.
pub struct Reducer {
    exchange: NodeExchange,
    mine: Vec<f32>,
    all: Vec<f32>,
    counts: Vec<usize>,
    owner: OwnerBuffers,
    #[cfg(feature = "faults")]
    fault: Option<Fault>,
}

impl Reducer {
    /// For a product whose nodes are brought together by `exchange`.
    pub fn new(exchange: NodeExchange) -> Self {
        Self {
            exchange,
            mine: Vec::new(),
            all: Vec::new(),
            counts: Vec::new(),
            owner: OwnerBuffers::default(),
            #[cfg(feature = "faults")]
            fault: None,
        }
    }

    /// Blocks of `[rows, width]` that the buffer given to [`Reducer::finish`] must hold: the nodes of all ranks.
    pub fn blocks(&self) -> usize {
        self.exchange.len()
    }

    /// Turns this rank's nodes `[own, rows, width]`, in `nodes`, into the finished `[rows, width]` at the start of it.
    pub fn finish<D: Device>(
        &mut self,
        dev: &mut D,
        group: &mut Group,
        nodes: &mut D::Buf,
        (rows, width): (usize, usize),
    ) -> Result<()> {
        let len = rows * width;
        if group.len() == 1 {
            return dev.fold(nodes, len, self.exchange.steps());
        }
        #[cfg(feature = "faults")]
        let faulty = self.fault.is_some_and(plants_in_sums);
        #[cfg(not(feature = "faults"))]
        let faulty = false;
        self.counts.clear();
        self.counts.extend((0..group.len()).map(|m| self.exchange.nodes_of(m) * len));
        if !faulty && dev.gather_blocks(nodes, group, &self.counts)? {
            return dev.fold(nodes, len, self.exchange.steps());
        }
        self.mine.resize(self.exchange.nodes_of(group.me()) * len, 0.0);
        dev.read(nodes, 0, &mut self.mine)?;
        #[cfg(feature = "faults")]
        if let Some(fault) = self.fault.filter(|fault| plants_in_sums(*fault)) {
            return self.finish_wrongly(dev, group, nodes, (rows, width), fault);
        }
        match self.exchange.path(rows) {
            ExchangePath::Owner => {
                let (owner, all) = (&mut self.owner, &mut self.all);
                self.exchange.reduce_by_owner(group, &self.mine, (rows, width), owner, all)?;
                dev.write(nodes, 0, all)
            }
            ExchangePath::Gather => {
                self.exchange.exchange(group, &self.mine, rows, width, &mut self.all)?;
                dev.write(nodes, 0, &self.all)?;
                dev.fold(nodes, len, self.exchange.steps())
            }
        }
    }
}
