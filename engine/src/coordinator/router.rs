//! Which replica serves a request: pure state, no clock, no channel. Mirrors the policies of Megatron's
//! `DataParallelInferenceCoordinator`, with a bounded memory of prefixes that a weight update clears.

use crate::config::RoutingPolicy;
use std::collections::{BTreeMap, HashMap};

/// Prefix blocks remembered over all replicas; the least recently assigned ones are forgotten first.
const MEMORY: usize = 65_536;

/// A replica as the router sees it.
#[derive(Debug, Clone)]
struct Load {
    in_flight: usize,
    alive: bool,
}

/// Settings of the router.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterConfig {
    /// How to choose.
    pub policy: RoutingPolicy,
    /// Weight of the prefix match against load, within `[0, 1]`.
    pub alpha: f64,
    /// Requests that a replica can take; the load term is measured against it.
    pub max_requests: usize,
}

/// Chooses replicas and remembers who was given which prefix.
#[derive(Debug)]
pub struct Router {
    config: RouterConfig,
    loads: Vec<Load>,
    /// For each block hash, the replicas that were given it and when.
    owners: HashMap<u64, BTreeMap<usize, u64>>,
    /// Assignments in order of their stamp, so that the oldest can be forgotten.
    by_age: BTreeMap<u64, (u64, usize)>,
    clock: u64,
}

impl Router {
    /// A router over `replicas` living replicas.
    pub fn new(config: RouterConfig, replicas: usize) -> Self {
        Self {
            config,
            loads: vec![Load { in_flight: 0, alive: true }; replicas],
            owners: HashMap::new(),
            by_age: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Picks a living replica for a request whose complete prompt blocks have these chained hashes, and counts the
    /// request as in flight there. `None` when no replica lives.
    pub fn assign(&mut self, hashes: &[u64]) -> Option<usize> {
        let hashes = match self.config.policy {
            RoutingPolicy::LoadBalanced => &[],
            RoutingPolicy::LongestPrefix => hashes,
            RoutingPolicy::FirstPrefixBlock => &hashes[..hashes.len().min(1)],
        };
        let chosen = if hashes.is_empty() { self.least_loaded() } else { self.best_match(hashes) }?;
        self.loads[chosen].in_flight += 1;
        hashes.iter().for_each(|hash| self.remember(*hash, chosen));
        Some(chosen)
    }

    /// A request left `replica`: finished, failed or moved.
    pub fn release(&mut self, replica: usize) {
        if let Some(load) = self.loads.get_mut(replica) {
            load.in_flight = load.in_flight.saturating_sub(1);
        }
    }

    /// Marks a replica as dead or, after it rejoined, as living again. Either way what it cached and what was in
    /// flight there is forgotten.
    pub fn set_alive(&mut self, replica: usize, alive: bool) {
        if let Some(load) = self.loads.get_mut(replica) {
            *load = Load { in_flight: 0, alive };
            self.forget(|owner| owner == replica);
        }
    }

    /// Forgets all prefixes: the weights changed, so no cached block is worth anything.
    pub fn clear_prefixes(&mut self) {
        self.forget(|_| true);
    }

    /// Requests in flight on each replica.
    pub fn in_flight(&self) -> Vec<usize> {
        self.loads.iter().map(|load| load.in_flight).collect()
    }

    /// Whether each replica lives.
    pub fn alive(&self) -> Vec<bool> {
        self.loads.iter().map(|load| load.alive).collect()
    }

    fn living(&self) -> impl Iterator<Item = (usize, &Load)> {
        self.loads.iter().enumerate().filter(|(_, load)| load.alive)
    }

    fn least_loaded(&self) -> Option<usize> {
        self.living().min_by_key(|(index, load)| (load.in_flight, *index)).map(|(index, _)| index)
    }

    /// Highest `alpha * match + (1 - alpha) * free`; ties go to the most recent owner, then to the lowest index.
    fn best_match(&self, hashes: &[u64]) -> Option<usize> {
        let depth = hashes.iter().rposition(|hash| self.owners.contains_key(hash));
        let owners = depth.and_then(|d| self.owners.get(&hashes[d]));
        let capacity = self.config.max_requests.max(1) as f64;
        let score = |index: usize, load: &Load| {
            let stamp = owners.and_then(|owners| owners.get(&index)).copied();
            let matched = stamp.map_or(0.0, |_| (depth.unwrap_or(0) + 1) as f64 / hashes.len() as f64);
            let free = ((capacity - load.in_flight as f64) / capacity).max(0.0);
            (self.config.alpha * matched + (1.0 - self.config.alpha) * free, stamp.unwrap_or(0))
        };
        self.living()
            .map(|(index, load)| (index, score(index, load)))
            .reduce(
                |best, next| if next.1.partial_cmp(&best.1).is_some_and(|o| o.is_gt()) { next } else { best },
            )
            .map(|(index, _)| index)
    }

    fn remember(&mut self, hash: u64, replica: usize) {
        self.clock += 1;
        if let Some(old) = self.owners.entry(hash).or_default().insert(replica, self.clock) {
            self.by_age.remove(&old);
        }
        self.by_age.insert(self.clock, (hash, replica));
        while self.by_age.len() > MEMORY {
            let Some((_, (hash, replica))) = self.by_age.pop_first() else { break };
            self.drop_owner(hash, replica);
        }
    }

    fn forget(&mut self, gone: impl Fn(usize) -> bool) {
        let stale: Vec<_> =
            self.by_age.iter().filter(|(_, (_, r))| gone(*r)).map(|(s, v)| (*s, *v)).collect();
        for (stamp, (hash, replica)) in stale {
            self.by_age.remove(&stamp);
            self.drop_owner(hash, replica);
        }
    }

    fn drop_owner(&mut self, hash: u64, replica: usize) {
        if let Some(owners) = self.owners.get_mut(&hash) {
            owners.remove(&replica);
            if owners.is_empty() {
                self.owners.remove(&hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(policy: RoutingPolicy, replicas: usize) -> Router {
        Router::new(RouterConfig { policy, alpha: 0.5, max_requests: 8 }, replicas)
    }

    #[test]
    fn load_balanced_takes_the_least_loaded_lowest_index() {
        let mut router = router(RoutingPolicy::LoadBalanced, 3);
        assert_eq!((0..6).map(|_| router.assign(&[])).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2].map(Some));
        router.release(1);
        assert_eq!(router.assign(&[7]), Some(1));
    }

    #[test]
    fn the_longest_prefix_wins_until_load_outweighs_it() {
        let config = RouterConfig { policy: RoutingPolicy::LongestPrefix, alpha: 0.3, max_requests: 8 };
        let mut router = Router::new(config, 2);
        assert_eq!(router.assign(&[1, 2]), Some(0));
        assert_eq!(router.assign(&[9]), Some(1));
        assert_eq!(router.assign(&[1, 2, 3]), Some(0), "owner of two of three blocks");
        for _ in 0..8 {
            router.assign(&[1, 2, 3]);
        }
        assert!(router.in_flight()[1] > 1, "a saturated owner gives way: {:?}", router.in_flight());
    }

    #[test]
    fn dead_replicas_are_never_chosen_and_forgotten() {
        let mut router = router(RoutingPolicy::FirstPrefixBlock, 2);
        assert_eq!(router.assign(&[5, 6]), Some(0));
        router.set_alive(0, false);
        assert_eq!(router.assign(&[5, 6]), Some(1));
        router.set_alive(1, false);
        assert_eq!(router.assign(&[5]), None);
        router.set_alive(0, true);
        assert_eq!(router.assign(&[5]), Some(0));
    }

    #[test]
    fn memory_is_bounded_and_cleared_by_new_weights() {
        let mut router = router(RoutingPolicy::LongestPrefix, 2);
        for hash in 0..(MEMORY as u64 + 500) {
            router.assign(&[hash]);
            router.release(0);
            router.release(1);
        }
        assert!(router.by_age.len() <= MEMORY && router.owners.len() <= MEMORY);
        router.clear_prefixes();
        assert!(router.owners.is_empty());
    }
}
