//! The loop of a rank. A leader takes commands from the driver and orders its replica; the others follow.
//! Replicas that share experts step together: their leaders ring each other before each step, and one without work
//! takes an empty step.

use crate::error::Result;
use crate::kernels::device::Device;
use crate::parallel::comm::Transport;
use crate::step::order::{Command, Doorbell, KvVerb, Order, Reply, decode, encode};
use crate::step::plan::{StepOutput, StepPlan};
use crate::step::rank::{Deployment, Rank};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

/// How long an idle rank listens at a time before it looks around.
const IDLE: Duration = Duration::from_millis(200);
/// How long an idle leader in lockstep listens to its driver between looks at the doorbells.
const GLANCE: Duration = Duration::from_micros(200);

/// The three worlds of a rank: data between ranks, commands down from the driver, replies up to it.
#[derive(Clone)]
pub struct Wires {
    /// Plans, nodes, residual streams.
    pub data: Arc<dyn Transport>,
    /// Driver (rank 0) to leaders.
    pub down: Arc<dyn Transport>,
    /// Leaders to driver (rank 0).
    pub up: Arc<dyn Transport>,
}

/// A rank that obeys.
pub struct Worker<D: Device> {
    rank: Rank<D>,
    wires: Wires,
    me: usize,
    dp: usize,
    leader: usize,
    /// World ranks of this replica, the leader first.
    replica: Vec<usize>,
    /// World rank that holds the answers of the last stage.
    answers: usize,
    /// Other replicas in lockstep.
    peers: Vec<Peer>,
    stages: usize,
    bytes: Vec<u8>,
    out: StepOutput,
}

/// Another replica that shares experts with this one.
struct Peer {
    dp: usize,
    leader: usize,
    /// Its ring for the next round, if it has rung already.
    ring: Option<Doorbell>,
}

/// What an idle leader wakes up to.
enum Wake {
    Command(Command<'static>),
    Ring,
}

impl<D: Device> Worker<D> {
    /// A worker around a loaded rank.
    pub fn new(deployment: &Deployment, rank: Rank<D>, wires: Wires) -> Self {
        let layout = &deployment.layout;
        let me = wires.data.rank();
        let dp = layout.coord(me).dp;
        let replica = layout.replica(dp);
        let leader = replica[0];
        let others = deployment.lockstep_of(dp).filter(|other| *other != dp);
        Self {
            peers: others.map(|dp| Peer { dp, leader: layout.leader(dp), ring: None }).collect(),
            rank,
            me,
            dp,
            leader,
            answers: layout.rank_at(0, 0, dp, layout.pp() - 1),
            replica,
            stages: layout.pp(),
            wires,
            bytes: Vec::new(),
            out: StepOutput::default(),
        }
    }

    /// Works until told to stop. An error has already been announced to all ranks when it is returned.
    pub fn run(mut self) -> Result<()> {
        let linked = self.rank.connect(self.wires.data.clone());
        let result = linked.and_then(|()| if self.me == self.leader { self.lead() } else { self.follow() });
        if let Err(error) = &result {
            let reason = error.to_string();
            for world in [&self.wires.data, &self.wires.up, &self.wires.down] {
                world.abort(&reason);
            }
        }
        result
    }

    fn follow(&mut self) -> Result<()> {
        loop {
            while !self.wires.data.recv_timeout(self.leader, &mut self.bytes, IDLE)? {}
            match decode::<Order>(&self.bytes)? {
                Order::Step { micro, rows } => self.step(&micro, &rows)?,
                Order::Kv(verb) => {
                    self.kv(verb)?;
                    self.report()?;
                }
                Order::Report => self.report()?,
                Order::Stop => return Ok(()),
            }
        }
    }

    fn lead(&mut self) -> Result<()> {
        let mut stopping = false;
        loop {
            let last = match self.wake()? {
                Wake::Command(Command::Step(plan)) => {
                    self.round(Some(plan.into_owned()), stopping)?;
                    self.reply_output()?;
                    false
                }
                Wake::Command(Command::Kv(verb)) => {
                    self.order(&Order::Kv(verb))?;
                    self.kv(verb)?;
                    let held = self.collect()?.iter().map(|(_, _, kv)| kv).sum();
                    self.reply(&Reply::Done(held))?;
                    false
                }
                Wake::Command(Command::Witness) => {
                    self.order(&Order::Report)?;
                    let all = self.collect()?;
                    self.reply(&Reply::Witness(all))?;
                    false
                }
                Wake::Command(Command::Stop) => {
                    stopping = true;
                    self.round(None, true)?
                }
                Wake::Ring => self.round(None, stopping)?,
            };
            if last {
                // Nobody waits for an answer to a stop: the driver has gone.
                return self.order(&Order::Stop);
            }
        }
    }

    /// Waits for the driver's next command or a peer's ring.
    fn wake(&mut self) -> Result<Wake> {
        let wait = if self.peers.is_empty() { IDLE } else { GLANCE };
        loop {
            if self.wires.down.recv_timeout(0, &mut self.bytes, wait)? {
                let command: Command<'_> = decode(&self.bytes)?;
                return Ok(Wake::Command(match command {
                    Command::Step(plan) => Command::Step(Cow::Owned(plan.into_owned())),
                    Command::Kv(verb) => Command::Kv(verb),
                    Command::Witness => Command::Witness,
                    Command::Stop => Command::Stop,
                }));
            }
            for peer in &mut self.peers {
                if self.wires.data.recv_timeout(peer.leader, &mut self.bytes, Duration::ZERO)? {
                    peer.ring = Some(decode(&self.bytes)?);
                    return Ok(Wake::Ring);
                }
            }
        }
    }

    /// One step together with the peers. True when every replica in lockstep is stopping: the loop is over.
    fn round(&mut self, plan: Option<StepPlan>, stopping: bool) -> Result<bool> {
        let micro = split(plan.unwrap_or_default(), self.stages, !self.peers.is_empty());
        let mine = Doorbell { rows: micro.iter().map(StepPlan::rows).collect(), stopping };
        encode(&mine, &mut self.bytes)?;
        for peer in &self.peers {
            self.wires.data.send(peer.leader, &self.bytes)?;
        }
        let mut rings = vec![(self.dp, mine)];
        for peer in &mut self.peers {
            let ring = match peer.ring.take() {
                Some(ring) => ring,
                None => {
                    self.wires.data.recv_patiently(peer.leader, &mut self.bytes, 1 + self.stages)?;
                    decode(&self.bytes)?
                }
            };
            rings.push((peer.dp, ring));
        }
        let rows: Vec<Vec<(usize, usize)>> = (0..micro.len())
            .map(|m| rings.iter().map(|(dp, ring)| (*dp, ring.rows.get(m).copied().unwrap_or(0))).collect())
            .collect();
        if rows.iter().flatten().any(|(_, n)| *n > 0) {
            self.order(&Order::Step { micro: micro.clone(), rows: rows.clone() })?;
            self.step(&micro, &rows)?;
        } else {
            self.out.clear();
        }
        Ok(rings.iter().all(|(_, ring)| ring.stopping))
    }

    /// Computes the micro-batches of a step; the answers end up in the leader's `out`.
    fn step(&mut self, micro: &[StepPlan], rows: &[Vec<(usize, usize)>]) -> Result<()> {
        self.out.clear();
        let mut first_row = 0;
        for (plan, rows) in micro.iter().zip(rows) {
            let from = self.out.rows.len();
            let rows_of = |dp| rows.iter().find(|(other, _)| *other == dp).map_or(0, |(_, n)| *n);
            self.rank.run(plan, rows_of, &mut self.out)?;
            self.out.rows[from..].iter_mut().for_each(|row| *row += first_row);
            first_row += plan.rows() as u32;
        }
        self.rank.count_step();
        if self.answers == self.leader || first_row == 0 {
            return Ok(());
        }
        if self.me == self.answers {
            encode(&self.out, &mut self.bytes)?;
            self.wires.data.send(self.leader, &self.bytes)?;
        } else if self.me == self.leader {
            self.wires.data.recv_patiently(self.answers, &mut self.bytes, 1 + self.stages)?;
            self.out = decode(&self.bytes)?;
        }
        Ok(())
    }

    fn kv(&mut self, verb: KvVerb) -> Result<()> {
        match verb {
            KvVerb::Release => {
                self.rank.release_kv();
                Ok(())
            }
            KvVerb::Allocate => self.rank.allocate_kv(),
            KvVerb::Offload => self.rank.offload_kv(),
            KvVerb::Restore => self.rank.restore_kv(),
        }
    }

    fn own_report(&self) -> (u64, u64, u64) {
        let (steps, weights) = self.rank.witness();
        (steps, weights, self.rank.kv_bytes())
    }

    fn report(&mut self) -> Result<()> {
        encode(&self.own_report(), &mut self.bytes)?;
        self.wires.data.send(self.leader, &self.bytes)
    }

    /// Reports of all ranks of the replica, this one first.
    fn collect(&mut self) -> Result<Vec<(u64, u64, u64)>> {
        let mut all = vec![self.own_report()];
        for &rank in &self.replica[1..] {
            self.wires.data.recv(rank, &mut self.bytes)?;
            all.push(decode(&self.bytes)?);
        }
        Ok(all)
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        if self.replica.len() > 1 {
            encode(order, &mut self.bytes)?;
        }
        self.replica[1..].iter().try_for_each(|&rank| self.wires.data.send(rank, &self.bytes))
    }

    fn reply(&mut self, reply: &Reply) -> Result<()> {
        encode(reply, &mut self.bytes)?;
        self.wires.up.send(0, &self.bytes)
    }

    fn reply_output(&mut self) -> Result<()> {
        let reply = Reply::Output(std::mem::take(&mut self.out));
        let sent = self.reply(&reply);
        if let Reply::Output(out) = reply {
            self.out = out;
        }
        sent
    }
}

/// Cuts a plan into micro-batches that fill the pipeline: whole chunks, about equally many rows each. In lockstep
/// every replica has exactly `stages` of them, empty ones included, so that all agree on the number of exchanges.
fn split(plan: StepPlan, stages: usize, lockstep: bool) -> Vec<StepPlan> {
    let parts = if lockstep { stages } else { stages.min(plan.chunks.len()).max(1) };
    if parts == 1 {
        return vec![plan];
    }
    let mut micro: Vec<StepPlan> =
        (0..parts).map(|_| StepPlan { step: plan.step, ..StepPlan::default() }).collect();
    let share = plan.rows().div_ceil(parts).max(1);
    let mut target = plan.targets.iter();
    for chunk in &plan.chunks {
        let part = (chunk.first_token as usize / share).min(parts - 1);
        let into = &mut micro[part];
        let (tokens, blocks) = (chunk.first_token as usize, chunk.first_block as usize);
        let moved = crate::step::plan::Chunk {
            first_token: into.tokens.len() as u32,
            first_block: into.blocks.len() as u32,
            ..chunk.clone()
        };
        into.tokens.extend_from_slice(&plan.tokens[tokens..tokens + chunk.len as usize]);
        into.blocks.extend_from_slice(&plan.blocks[blocks..blocks + chunk.num_blocks as usize]);
        let wanted = usize::from(chunk.last != crate::step::plan::Want::Nothing)
            + if chunk.inner == crate::step::plan::Want::Nothing { 0 } else { chunk.len as usize - 1 };
        into.targets.extend(target.by_ref().take(wanted));
        into.chunks.push(moved);
    }
    micro
}
