//! The aligned tree: the one order in which every sum of the engine is taken.
//!
//! A reduction over `n` leaves uses the binary tree over slots `[0, 2^ceil(log2 n))`. A missing child passes its
//! sibling through unchanged; an inner node is one f32 addition `left + right`. The tree is a function of the
//! logical indices alone, so whoever computes which node (rank, thread, SIMD lane) cannot change a bit.

/// An aligned subtree: it covers the slots `[index << level, (index + 1) << level)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    /// Height above the leaves; a leaf has level 0.
    pub level: u32,
    /// Position among the nodes of this level.
    pub index: usize,
}

impl Node {
    /// The leaf in slot `slot`.
    pub const fn leaf(slot: usize) -> Self {
        Self { level: 0, index: slot }
    }

    /// First slot that this node covers.
    pub const fn start(self) -> usize {
        self.index << self.level
    }

    /// One past the last slot that this node covers (it may lie beyond the last existing leaf).
    pub const fn end(self) -> usize {
        (self.index + 1) << self.level
    }
}

/// The maximal aligned subtrees inside the leaf interval `[lo, hi)` of a reduction over `n` leaves, left to right.
///
/// Slots from `n` on do not exist and pass through, so an interval that ends at `n` is taken to the end of the
/// slot space. An empty interval has an empty cover; the whole interval has one node.
pub fn cover(lo: usize, hi: usize, n: usize) -> Vec<Node> {
    debug_assert!(lo <= hi && hi <= n);
    if lo == hi {
        return Vec::new();
    }
    let end = if hi == n { n.next_power_of_two() } else { hi };
    let mut nodes = Vec::new();
    let mut at = lo;
    while at < end {
        let aligned = if at == 0 { usize::BITS - 1 } else { at.trailing_zeros() };
        let fits = (end - at).ilog2();
        let level = aligned.min(fits);
        nodes.push(Node { level, index: at >> level });
        at += 1 << level;
    }
    // The tail of the slot space may hold no leaf at all: such nodes do not exist.
    nodes.retain(|node| node.start() < n);
    nodes
}

/// One step of a fold: `value[left] = value[left] + value[right]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Accumulates, and stays the left operand.
    pub left: usize,
    /// Is added, and is dead afterwards.
    pub right: usize,
}

/// The additions that finish a reduction from the nodes that exist, in an order that respects the tree.
///
/// `nodes` are disjoint and ascending; absent slots pass through. The result of the fold stands in position 0.
/// Executing the steps in order on any element type evaluates exactly the aligned tree.
pub fn fold_plan(nodes: &[Node]) -> Vec<Step> {
    let mut steps = Vec::with_capacity(nodes.len().saturating_sub(1));
    let mut stack: Vec<usize> = Vec::new();
    for right in 0..nodes.len() {
        while let [.., below, top] = stack[..] {
            if meet(nodes[below], nodes[top]) > meet(nodes[top], nodes[right]) {
                break;
            }
            steps.push(Step { left: below, right: top });
            stack.pop();
        }
        stack.push(right);
    }
    while let [.., below, top] = stack[..] {
        steps.push(Step { left: below, right: top });
        stack.pop();
    }
    steps
}

/// The level at which two disjoint nodes meet.
fn meet(a: Node, b: Node) -> u32 {
    usize::BITS - (a.start() ^ b.start()).leading_zeros()
}

/// Folds scalar node values by the aligned tree. `None` when there are none.
pub fn fold(nodes: &[Node], values: &mut [f32]) -> Option<f32> {
    for step in fold_plan(nodes) {
        values[step.left] += values[step.right];
    }
    values.first().copied()
}

/// The tree sum of `leaves` in slots `0..leaves.len()`: the definition, for references and tests.
pub fn sum(leaves: &[f32]) -> f32 {
    fn go(leaves: &[f32], width: usize) -> f32 {
        if leaves.len() == 1 {
            return leaves[0];
        }
        let half = width / 2;
        if leaves.len() <= half {
            return go(leaves, half);
        }
        go(&leaves[..half], half) + go(&leaves[half..], half)
    }
    if leaves.is_empty() { 0.0 } else { go(leaves, leaves.len().next_power_of_two()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 1013) as f32 * 0.37 - 150.0 + 1.0e-4 * i as f32).collect()
    }

    #[test]
    fn any_split_gives_the_bits_of_the_whole() {
        for n in 1..40 {
            let v = values(n);
            for a in 0..=n {
                for b in a..=n {
                    let mut nodes = Vec::new();
                    let mut partial = Vec::new();
                    for (lo, hi) in [(0, a), (a, b), (b, n)] {
                        for node in cover(lo, hi, n) {
                            nodes.push(node);
                            partial.push(sum(&v[node.start()..node.end().min(n)]));
                        }
                    }
                    assert_eq!(fold(&nodes, &mut partial).map(f32::to_bits), Some(sum(&v).to_bits()));
                }
            }
        }
    }

    #[test]
    fn a_rank_order_sum_drifts() {
        let drift = (2..40).any(|n| {
            let v = values(n);
            let split = n / 3;
            sum(&v[..split]) + sum(&v[split..]) != sum(&v) || v.iter().sum::<f32>() != sum(&v)
        });
        assert!(drift, "the unprotected sum must differ somewhere, or the test above proves nothing");
    }

    #[test]
    fn absent_leaves_pass_through() {
        let nodes = [Node::leaf(1), Node::leaf(6)];
        assert_eq!(fold(&nodes, &mut [1.5, 2.5]), Some(4.0));
        let mut three = [1.0e8_f32, 1.0, -1.0e8];
        // Slots 0, 2, 3: (2 + 3) joins first, then 0.
        assert_eq!(fold(&[Node::leaf(0), Node::leaf(2), Node::leaf(3)], &mut three), Some(0.0));
    }

    #[test]
    fn a_power_of_two_split_has_one_node_per_rank() {
        for rank in 0..4 {
            assert_eq!(cover(rank * 4, rank * 4 + 4, 16).len(), 1);
        }
        assert_eq!(cover(0, 9, 9), vec![Node { level: 4, index: 0 }]);
    }
}
