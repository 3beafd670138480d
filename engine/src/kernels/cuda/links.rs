//! Exchanges from device to device: nodes move, nothing is added on the way. The result is that of the host's exchange.

use super::backend::{Backend, Part};
use super::check::{Buffer, require};
use super::device::KernelDevice;
use crate::error::Result;
use crate::parallel::comm::collectives::Group;

impl<B: Backend> KernelDevice<B> {
    /// All members' blocks in member order; own ones lie at the start of `nodes`, and are sent from the workspace because
    /// others may come to their place.
    pub(super) fn gather_linked(
        &mut self,
        nodes: &mut Buffer<B>,
        group: &Group,
        counts: &[usize],
    ) -> Result<bool> {
        if !self.linked {
            return Ok(false);
        }
        require("gather", counts.len() == group.len(), || {
            format!("{} counts for a group of {}", counts.len(), group.len())
        })?;
        let (me, total) = (group.me(), counts.iter().sum::<usize>());
        let base = nodes.span("gather", 0, total)?;
        let bytes = 4 * counts[me];
        let own = self.work.span("gather", 0, counts[me])?;
        let place = |member: usize| base + 4 * counts[..member].iter().sum::<usize>() as u64;
        if bytes > 0 {
            self.backend.copy(own, base, bytes)?;
        }
        let others = || group.members().iter().enumerate().filter(move |(member, _)| *member != me);
        let sends = others().filter(|_| bytes > 0).map(|(_, rank)| Part { peer: *rank, address: own, bytes });
        let receives = others().filter(|(member, _)| counts[*member] > 0).map(|(member, rank)| Part {
            peer: *rank,
            address: place(member),
            bytes: 4 * counts[member],
        });
        let (sends, receives): (Vec<Part>, Vec<Part>) = (sends.collect(), receives.collect());
        self.backend.exchange(&sends, &receives)?;
        if me > 0 && bytes > 0 {
            self.backend.copy(place(me), own, bytes)?;
        }
        Ok(true)
    }
}
