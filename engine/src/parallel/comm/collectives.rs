//! Collectives: built once, on [`Transport`] alone, so every transport gives the same result. They move, they never add.
//!
//! Each rank sends to the members after it in turn and receives from the members before it in turn; results stand in
//! member order whatever the order of arrival. Every message carries the name and number of its collective, so members
//! that disagree about what comes next get an error that says so.

use super::Transport;
use crate::error::{EngineError, Result};
use std::sync::Arc;

/// Bytes of the mark that follows each message's content.
const MARK_BYTES: usize = 8;

/// The collectives, as marked in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    AllGather = 1,
    AllToAll = 2,
    Broadcast = 3,
    Barrier = 4,
    Gather = 5,
    Point = 6,
}

impl Op {
    const fn name(self) -> &'static str {
        match self {
            Self::AllGather => "all_gather",
            Self::AllToAll => "all_to_all",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::Gather => "gather",
            Self::Point => "send",
        }
    }

    fn named(code: u32) -> &'static str {
        let all =
            [Self::AllGather, Self::AllToAll, Self::Broadcast, Self::Barrier, Self::Gather, Self::Point];
        all.into_iter().find(|op| *op as u32 == code).map_or("something unknown", Self::name)
    }
}

/// Ranks that act together, seen by one of them. All members make the same calls in the same order.
///
/// Mirrors a Megatron process group. Buffers are kept from call to call: the steady state allocates nothing.
pub struct Group {
    transport: Arc<dyn Transport>,
    members: Vec<usize>,
    me: usize,
    /// Collectives so far, marked in each message.
    calls: u32,
    scratch: Vec<u8>,
}

impl Group {
    /// The group of `members` (world ranks, all different, this rank among them), in the order in which results stand.
    ///
    /// # Errors
    /// [`EngineError::Internal`] when the members are not such a list.
    pub fn new(transport: Arc<dyn Transport>, members: Vec<usize>) -> Result<Self> {
        let rank = transport.rank();
        let Some(me) = members.iter().position(|m| *m == rank) else {
            return Err(EngineError::internal(format!("rank {rank} is not a member of group {members:?}")));
        };
        for (at, member) in members.iter().enumerate() {
            if *member >= transport.world() || members[..at].contains(member) {
                return Err(EngineError::internal(format!(
                    "rank {member} of group {members:?} is twice a member, or not of this world"
                )));
            }
        }
        Ok(Self { transport, members, me, calls: 0, scratch: Vec::new() })
    }

    /// The group of all ranks.
    ///
    /// # Errors
    /// None in practice: as [`Group::new`].
    pub fn world(transport: Arc<dyn Transport>) -> Result<Self> {
        let members = (0..transport.world()).collect();
        Self::new(transport, members)
    }

    /// World ranks of the members, in order.
    pub fn members(&self) -> &[usize] {
        &self.members
    }

    /// Number of members.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never true: a group has at least its own rank.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// This rank's place among the members.
    pub fn me(&self) -> usize {
        self.me
    }

    /// The transport underneath.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    /// Concatenates every member's slice in member order: `out` has `sum(counts)` elements. `counts[i]` is the length
    /// of member `i`'s slice and the same on all.
    ///
    /// # Errors
    /// [`EngineError::Comm`] for a length that contradicts `counts`, here or at a peer, and for what transports report.
    pub fn all_gather_v(&mut self, mine: &[f32], counts: &[usize], out: &mut Vec<f32>) -> Result<()> {
        self.expect((Op::AllGather, 0), self.me, counts.len(), self.len(), "counts")?;
        self.all_gather_by(mine, |i| counts[i], out)
    }

    /// As [`Group::all_gather_v`], with the lengths as a function of the member, so that no list has to be kept.
    ///
    /// # Errors
    /// As [`Group::all_gather_v`].
    pub fn all_gather_by(
        &mut self,
        mine: &[f32],
        count: impl Fn(usize) -> usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = self.begin(Op::AllGather);
        self.expect(op, self.me, mine.len(), count(self.me), "own elements")?;
        out.resize((0..self.len()).map(&count).sum(), 0.0);
        for i in self.after() {
            self.put(op, i, bytemuck::cast_slice(mine))?;
        }
        let start = |i: usize| (0..i).map(&count).sum::<usize>();
        let own = start(self.me);
        out[own..own + mine.len()].copy_from_slice(mine);
        for i in self.before() {
            let at = start(i);
            self.take(op, i, &mut out[at..at + count(i)])?;
        }
        self.transport.flush()
    }

    /// Sends to each member its part of `send` and concatenates what the members sent here, in member order.
    /// `send` is cut by `send_counts`; member `i` sends `recv_counts[i]` elements here.
    ///
    /// # Errors
    /// As [`Group::all_gather_v`].
    pub fn all_to_all_v(
        &mut self,
        send: &[f32],
        send_counts: &[usize],
        recv_counts: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = self.begin(Op::AllToAll);
        self.expect(op, self.me, send_counts.len(), self.len(), "send counts")?;
        self.expect(op, self.me, recv_counts.len(), self.len(), "receive counts")?;
        self.expect(op, self.me, send.len(), send_counts.iter().sum(), "own elements")?;
        self.expect(op, self.me, send_counts[self.me], recv_counts[self.me], "elements to itself")?;
        let start = |counts: &[usize], i: usize| counts[..i].iter().sum::<usize>();
        let part = |i: usize| &send[start(send_counts, i)..start(send_counts, i) + send_counts[i]];
        out.resize(recv_counts.iter().sum(), 0.0);
        for i in self.after() {
            self.put(op, i, bytemuck::cast_slice(part(i)))?;
        }
        let own = start(recv_counts, self.me);
        out[own..own + recv_counts[self.me]].copy_from_slice(part(self.me));
        for i in self.before() {
            let at = start(recv_counts, i);
            self.take(op, i, &mut out[at..at + recv_counts[i]])?;
        }
        self.transport.flush()
    }

    /// Copies member `root`'s bytes to all members.
    ///
    /// # Errors
    /// What transports report; [`EngineError::Comm`] when members disagree about the collective.
    pub fn broadcast(&mut self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let op = self.begin(Op::Broadcast);
        if self.me == root {
            for i in self.after() {
                self.put(op, i, bytes)?;
            }
            return self.transport.flush();
        }
        self.take_bytes(op, root, bytes)
    }

    /// Returns when every member has called it.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn barrier(&mut self) -> Result<()> {
        let op = self.begin(Op::Barrier);
        // In round k each member hears, through others, of 2^(k+1) members: log n rounds.
        let n = self.len();
        let mut reach = 1;
        while reach < n {
            self.put(op, (self.me + reach) % n, &[])?;
            self.take(op, (self.me + n - reach) % n, &mut [0u8; 0])?;
            reach *= 2;
        }
        Ok(())
    }

    /// The largest of the members' values, on all members.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn all_reduce_max_u64(&mut self, value: u64) -> Result<u64> {
        let op = self.begin(Op::AllGather);
        for i in self.after() {
            self.put(op, i, &value.to_le_bytes())?;
        }
        let mut most = value;
        for i in self.before() {
            let mut theirs = [0u8; 8];
            self.take(op, i, &mut theirs)?;
            most = most.max(u64::from_le_bytes(theirs));
        }
        Ok(most)
    }

    /// As [`Group::all_gather_v`], but only member `root` receives; on the others `out` is cleared.
    ///
    /// # Errors
    /// As [`Group::all_gather_v`].
    pub fn gather_v(
        &mut self,
        root: usize,
        mine: &[f32],
        counts: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let op = self.begin(Op::Gather);
        self.expect(op, self.me, counts.len(), self.len(), "counts")?;
        self.expect(op, self.me, mine.len(), counts[self.me], "own elements")?;
        if self.me != root {
            out.clear();
            self.put(op, root, bytemuck::cast_slice(mine))?;
            return self.transport.flush();
        }
        out.resize(counts.iter().sum(), 0.0);
        let mut at = 0;
        for (i, count) in counts.iter().enumerate() {
            let part = &mut out[at..at + count];
            at += count;
            if i == self.me {
                part.copy_from_slice(mine);
            } else {
                self.take(op, i, part)?;
            }
        }
        Ok(())
    }

    /// Every member's bytes, of any length, on all members; `out[i]` is member `i`'s.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn all_gather_bytes(&mut self, mine: &[u8], out: &mut Vec<Vec<u8>>) -> Result<()> {
        let op = self.begin(Op::AllGather);
        out.resize_with(self.len(), Vec::new);
        for i in self.after() {
            self.put(op, i, mine)?;
        }
        out[self.me].clear();
        out[self.me].extend_from_slice(mine);
        for i in self.before() {
            self.take_bytes(op, i, &mut out[i])?;
        }
        self.transport.flush()
    }

    /// Every member's bytes on member `root`; on the others `out` is cleared.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn gather_bytes(&mut self, root: usize, mine: &[u8], out: &mut Vec<Vec<u8>>) -> Result<()> {
        let op = self.begin(Op::Gather);
        if self.me != root {
            out.clear();
            self.put(op, root, mine)?;
            return self.transport.flush();
        }
        out.resize_with(self.len(), Vec::new);
        for (i, bytes) in out.iter_mut().enumerate() {
            if i == self.me {
                bytes.clear();
                bytes.extend_from_slice(mine);
            } else {
                self.take_bytes(op, i, bytes)?;
            }
        }
        Ok(())
    }

    /// Sends values to one member, who calls [`Group::recv_values`] (pipeline stages).
    ///
    /// # Errors
    /// What transports report.
    pub fn send_values(&mut self, to: usize, values: &[f32]) -> Result<()> {
        // Not a collective: only two members take part, so it is marked but not counted.
        self.put((Op::Point, 0), to, bytemuck::cast_slice(values))?;
        self.transport.flush()
    }

    /// Receives exactly `out.len()` values that member `from` sent with [`Group::send_values`].
    ///
    /// # Errors
    /// As [`Group::all_gather_v`].
    pub fn recv_values(&mut self, from: usize, out: &mut [f32]) -> Result<()> {
        self.take((Op::Point, 0), from, out)
    }

    /// Members after this one, then those before it: the order of sending.
    fn after(&self) -> impl Iterator<Item = usize> + use<> {
        let (n, me) = (self.len(), self.me);
        (1..n).map(move |d| (me + d) % n)
    }

    /// Members before this one, then those after it: the order of receiving.
    fn before(&self) -> impl Iterator<Item = usize> + use<> {
        let (n, me) = (self.len(), self.me);
        (1..n).map(move |d| (me + n - d) % n)
    }

    fn begin(&mut self, op: Op) -> (Op, u32) {
        self.calls = self.calls.wrapping_add(1);
        (op, self.calls)
    }

    fn error(&self, op: Op, member: usize, reason: String) -> EngineError {
        let peer = self.members.get(member).copied().unwrap_or(member);
        EngineError::Comm { rank: self.transport.rank(), peer, op: op.name(), reason }
    }

    fn expect(&self, op: (Op, u32), member: usize, got: usize, want: usize, what: &str) -> Result<()> {
        if got == want {
            Ok(())
        } else {
            Err(self.error(op.0, member, format!("{got} {what} where {want} belong")))
        }
    }

    /// Sends content and mark. A member outside the group is refused.
    fn put(&self, (op, call): (Op, u32), member: usize, content: &[u8]) -> Result<()> {
        let Some(to) = self.members.get(member) else {
            return Err(self.error(op, member, format!("no member {member} in a group of {}", self.len())));
        };
        let mark = (u64::from(op as u32) << 32 | u64::from(call)).to_le_bytes();
        self.transport.send_parts(*to, &[content, &mark])
    }

    /// Receives content into `bytes` and checks the mark.
    fn take_bytes(&self, (op, call): (Op, u32), member: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let Some(from) = self.members.get(member) else {
            return Err(self.error(op, member, format!("no member {member} in a group of {}", self.len())));
        };
        self.transport.recv(*from, bytes)?;
        let mut mark = [0; MARK_BYTES];
        let Some(content) = bytes.len().checked_sub(MARK_BYTES) else {
            return Err(self.error(op, member, "a message that no collective sent".to_owned()));
        };
        mark.copy_from_slice(&bytes[content..]);
        let mark = u64::from_le_bytes(mark);
        let (their_op, their_call) = ((mark >> 32) as u32, mark as u32);
        if (their_op, their_call) != (op as u32, call) {
            let reason = format!(
                "the peer is in {} (call {their_call}) while this rank is in {} (call {call})",
                Op::named(their_op),
                op.name()
            );
            return Err(self.error(op, member, reason));
        }
        bytes.truncate(content);
        Ok(())
    }

    /// Receives exactly `into.len()` elements.
    fn take<T: bytemuck::Pod>(&mut self, op: (Op, u32), member: usize, into: &mut [T]) -> Result<()> {
        let mut bytes = std::mem::take(&mut self.scratch);
        let taken = self.take_bytes(op, member, &mut bytes);
        let into: &mut [u8] = bytemuck::cast_slice_mut(into);
        let fits = taken.and_then(|()| self.expect(op, member, bytes.len(), into.len(), "bytes"));
        if fits.is_ok() {
            into.copy_from_slice(&bytes);
        }
        self.scratch = bytes;
        fits
    }
}

#[cfg(test)]
#[path = "collectives_tests.rs"]
mod tests;
