//! The mixture-of-experts block across ranks: tokens of all replicas that share experts, experts wherever they live,
//! contributions combined by the aligned tree over global expert id. Placement never changes a bit.

use crate::error::{EngineError, Result};
use crate::kernels::device::{Device, Experts, RouteArgs, Routing};
use crate::model::probe::{Part, Probe};
use crate::model::spec::{Ffn, ModelSpec};
use crate::model::tap::Op;
use crate::model::workspace::Workspace;
use crate::parallel::comm::Transport;
use crate::parallel::comm::collectives::Group;
use crate::parallel::layout::Layout;
use crate::parallel::reduce::NodeExchange;
use crate::parallel::shard::{FfnShard, Shard};
use std::ops::Range;
use std::sync::Arc;

/// A member of the expert group.
#[derive(Debug, Clone, Copy)]
struct Member {
    /// Which of the group's replicas its tokens come from.
    replica: usize,
    /// Expert-parallel coordinate.
    ep: usize,
    /// Expert-tensor-parallel coordinate.
    etp: usize,
}

/// A rank's view of the ranks that together hold all experts.
pub struct MoeLink {
    group: Group,
    members: Vec<Member>,
    /// For each replica of the group, the member that sends its tokens.
    speakers: Vec<usize>,
    /// Data-parallel coordinate of each replica of the group.
    replicas: Vec<usize>,
    /// For each expert, the expert-parallel coordinate that answers for it.
    owner: Vec<usize>,
    /// For each expert-tensor-parallel coordinate, its range in the list of all nodes of an expert's down projection.
    nodes: Vec<Range<usize>>,
    exchange: NodeExchange,
    route: RouteArgs,
    hidden: usize,
    routing: Routing,
    send: Vec<f32>,
    recv: Vec<f32>,
    host: Vec<f32>,
}

impl MoeLink {
    /// Connects the rank that holds `shard` to its expert group; `None` when its stage has no experts.
    pub fn new(
        spec: &ModelSpec,
        layout: &Layout,
        shard: &Shard,
        transport: Arc<dyn Transport>,
    ) -> Result<Option<Self>> {
        let part = shard.ffn.iter().find_map(|ffn| match ffn {
            FfnShard::Moe(part) => Some(part),
            FfnShard::Dense(_) => None,
        });
        let routed = spec.layers[shard.layers.clone()].iter().find_map(|layer| match layer.ffn {
            Ffn::Moe { top_k, normalise, .. } => Some((top_k, normalise)),
            Ffn::Dense { .. } => None,
        });
        let (Some(part), Some((top_k, normalise))) = (part, routed) else { return Ok(None) };
        let ranks = layout.expert_group(shard.coord);
        let (mut members, mut speakers, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
        for (position, &rank) in ranks.iter().enumerate() {
            let at = layout.coord(rank);
            if !replicas.contains(&at.dp) {
                replicas.push(at.dp);
                speakers.push(position);
            }
            let replica = replicas.iter().position(|dp| *dp == at.dp).unwrap_or(0);
            members.push(Member { replica, ep: at.ep, etp: at.etp });
        }
        let exchange = part.down.exchange()?;
        let nodes = (0..layout.etp())
            .scan(0, |at, etp| {
                let first = *at;
                *at += exchange.nodes_of(etp);
                Some(first..*at)
            })
            .collect();
        Ok(Some(Self {
            group: Group::new(transport, ranks)?,
            members,
            speakers,
            replicas,
            owner: part.answers.clone(),
            nodes,
            exchange,
            route: RouteArgs { rows: 0, experts: part.experts, top_k, normalise },
            hidden: spec.hidden,
            routing: Routing::default(),
            send: Vec::new(),
            recv: Vec::new(),
            host: Vec::new(),
        }))
    }

    /// Nodes of an expert's output that this rank computes.
    pub fn own_nodes(&self) -> usize {
        self.nodes[self.me().etp].len()
    }

    /// Nodes of an expert's output over all ranks.
    pub fn total_nodes(&self) -> usize {
        if self.group.len() == 1 { 0 } else { self.exchange.len() }
    }

    /// Data-parallel coordinates of the replicas that share experts with this one, itself included.
    pub fn replicas(&self) -> &[usize] {
        &self.replicas
    }

    /// Position of this rank's replica among them.
    pub fn replica(&self) -> usize {
        self.me().replica
    }

    fn me(&self) -> Member {
        self.members[self.group.me()]
    }

    /// Runs the block on `ws.x`, leaving `[rows, hidden]` at the start of `ws.nodes`.
    /// `rows_of` are the rows of each replica in the group; `probe` sees the results of this layer.
    pub(crate) fn run<D: Device>(
        &mut self,
        (dev, ws): (&mut D, &mut Workspace<D>),
        router: &D::Weight,
        experts: Experts<'_, D::Weight>,
        rows_of: &[usize],
        (probe, layer): (&mut Probe, usize),
    ) -> Result<()> {
        if rows_of.len() != self.replicas.len() {
            return Err(EngineError::internal(format!(
                "row counts of {} replicas where {} share experts",
                rows_of.len(),
                self.replicas.len()
            )));
        }
        let total: usize = rows_of.iter().sum();
        if total == 0 {
            return Ok(());
        }
        let alone = self.replicas.len() == 1;
        if !alone {
            self.gather_tokens(dev, ws, rows_of)?;
        }
        let x = if alone { &ws.x } else { &ws.expert_x };
        dev.linear((&mut ws.router, 0), x, (self.hidden, 0), router, total)?;
        let first: usize = rows_of[..self.replica()].iter().sum();
        let mine = first..first + rows_of[self.replica()];
        let width = self.route.experts;
        let part = Part { offset: first * width, ..Part::whole(width) };
        if !mine.is_empty() {
            probe.look(dev, &mut ws.router, (layer, Op::Router), part)?;
        }
        self.route.rows = total;
        dev.route(&mut self.routing, &ws.router, self.route)?;
        #[cfg(feature = "faults")]
        self.swap_gates(probe);
        self.show_choice(probe, layer, mine.clone());
        dev.experts(&mut ws.contributions, x, &self.routing, total, experts)?;
        let outputs = Part::whole(self.route.top_k * self.hidden);
        if self.group.len() == 1 {
            probe.look(dev, &mut ws.contributions, (layer, Op::Experts), outputs)?;
            return self.combine((dev, &mut ws.nodes), &ws.contributions, mine, probe);
        }
        self.exchange_contributions(dev, ws, rows_of)?;
        if mine.is_empty() {
            return Ok(());
        }
        let block = mine.len() * self.route.top_k * self.hidden;
        dev.fold(&mut ws.exchanged, block, self.exchange.steps())?;
        probe.look(dev, &mut ws.exchanged, (layer, Op::Experts), outputs)?;
        self.combine((dev, &mut ws.nodes), &ws.exchanged, mine, probe)
    }

    /// Joins the contributions of this replica's rows by the tree over experts.
    #[cfg_attr(
        not(feature = "faults"),
        expect(unused_variables, reason = "the probe carries a planted fault")
    )]
    fn combine<D: Device>(
        &self,
        (dev, out): (&mut D, &mut D::Buf),
        y: &D::Buf,
        rows: Range<usize>,
        probe: &Probe,
    ) -> Result<()> {
        #[cfg(feature = "faults")]
        if probe.fault == Some(crate::faults::Fault::ExpertsByRank) {
            return self.combine_by_half((dev, out), y, rows);
        }
        dev.combine(out, y, &self.routing, rows, self.hidden)
    }

    /// Shows which experts this replica's rows chose, and with which weights.
    fn show_choice(&self, probe: &mut Probe, layer: usize, rows: Range<usize>) {
        if !probe.wants(layer, Op::Chosen) && !probe.wants(layer, Op::Gates) {
            return;
        }
        let chosen = rows.start * self.route.top_k..rows.end * self.route.top_k;
        let ids: Vec<f32> = self.routing.ids[chosen.clone()].iter().map(|id| *id as f32).collect();
        probe.show((layer, Op::Chosen), &ids);
        probe.show((layer, Op::Gates), &self.routing.weights[chosen]);
    }

    /// Brings the tokens of all replicas to every rank of the group, in replica order.
    fn gather_tokens<D: Device>(
        &mut self,
        dev: &mut D,
        ws: &mut Workspace<D>,
        rows_of: &[usize],
    ) -> Result<()> {
        let mut counts = vec![0; self.members.len()];
        for (replica, &speaker) in self.speakers.iter().enumerate() {
            counts[speaker] = rows_of[replica] * self.hidden;
        }
        self.send.resize(counts[self.group.me()], 0.0);
        dev.read(&ws.x, 0, &mut self.send)?;
        self.group.all_gather_v(&self.send, &counts, &mut self.recv)?;
        dev.write(&mut ws.expert_x, 0, &self.recv)
    }

    /// Sends each replica the outputs of its tokens, and places what arrives as `[node][row][chosen][hidden]`.
    fn exchange_contributions<D: Device>(
        &mut self,
        dev: &mut D,
        ws: &mut Workspace<D>,
        rows_of: &[usize],
    ) -> Result<()> {
        let (hidden, top_k, me) = (self.hidden, self.route.top_k, self.me());
        let total = self.route.rows;
        let starts: Vec<usize> = (0..=rows_of.len()).map(|r| rows_of[..r].iter().sum()).collect();
        self.host.resize(self.own_nodes() * total * top_k * hidden, 0.0);
        dev.read(&ws.contributions, 0, &mut self.host)?;
        self.send.clear();
        let mut send_counts = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let before = self.send.len();
            for slot in starts[member.replica] * top_k..starts[member.replica + 1] * top_k {
                if self.owner[self.routing.ids[slot] as usize] == me.ep {
                    for node in 0..self.nodes[me.etp].len() {
                        let at = (node * total * top_k + slot) * hidden;
                        self.send.extend_from_slice(&self.host[at..at + hidden]);
                    }
                }
            }
            send_counts.push(self.send.len() - before);
        }
        let slots = starts[me.replica] * top_k..starts[me.replica + 1] * top_k;
        let answered =
            |ep: usize| slots.clone().filter(|s| self.owner[self.routing.ids[*s] as usize] == ep).count();
        let recv_counts: Vec<usize> =
            self.members.iter().map(|m| answered(m.ep) * self.nodes[m.etp].len() * hidden).collect();
        self.group.all_to_all_v(&self.send, &send_counts, &recv_counts, &mut self.recv)?;
        self.host.resize(self.exchange.len() * slots.len() * hidden, 0.0);
        let mut next = 0;
        for member in &self.members {
            for (local, slot) in slots.clone().enumerate() {
                if self.owner[self.routing.ids[slot] as usize] == member.ep {
                    for node in self.nodes[member.etp].clone() {
                        let at = (node * slots.len() + local) * hidden;
                        self.host[at..at + hidden].copy_from_slice(&self.recv[next..next + hidden]);
                        next += hidden;
                    }
                }
            }
        }
        dev.write(&mut ws.exchanged, 0, &self.host)
    }
}

/// Planted faults.
#[cfg(feature = "faults")]
impl MoeLink {
    /// Gives the first two chosen experts of each row each other's weight.
    fn swap_gates(&mut self, probe: &Probe) {
        let top_k = self.route.top_k;
        if probe.fault == Some(crate::faults::Fault::ExpertOrder) && top_k > 1 {
            self.routing.weights.chunks_exact_mut(top_k).for_each(|row| row.swap(0, 1));
        }
    }

    /// Combines with partial sums per half of the experts.
    fn combine_by_half<D: Device>(
        &self,
        (dev, out): (&mut D, &mut D::Buf),
        y: &D::Buf,
        rows: Range<usize>,
    ) -> Result<()> {
        let (top_k, hidden) = (self.route.top_k, self.hidden);
        let (mut ys, mut joined) = (vec![0.0; top_k * hidden], vec![0.0; hidden]);
        for (to, row) in rows.enumerate() {
            dev.read(y, to * top_k * hidden, &mut ys)?;
            for (column, sum) in joined.iter_mut().enumerate() {
                let term = |j: usize| {
                    let chosen = row * top_k + j;
                    (self.routing.ids[chosen], self.routing.weights[chosen] * ys[j * hidden + column])
                };
                let terms: Vec<(u32, f32)> = (0..top_k).map(term).collect();
                *sum = crate::faults::by_half(&terms, self.route.experts);
            }
            dev.write(out, to * hidden, &joined)?;
        }
        Ok(())
    }
}
