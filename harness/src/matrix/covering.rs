//! Covering arrays: a small choice of cells in which every pair (or triple) of axis values occurs.

use std::collections::{BinaryHeap, HashSet};

/// Chooses rows of `rows` so that every `strength`-tuple of values that occurs in `rows` at all occurs in the choice.
///
/// Greedy, always taking the row that covers most new tuples, the earliest among equals: the choice depends on the input
/// alone. Only rows that exist are chosen, so constraints hold by construction. Returns ascending indices.
/// `rows[i][k]` is the value of axis `k`; all rows have the same length. A strength of the number of axes or more
/// returns every row.
pub fn cover(rows: &[Vec<u32>], strength: usize) -> Vec<usize> {
    let axes = rows.first().map_or(0, Vec::len);
    if strength >= axes {
        return (0..rows.len()).collect();
    }
    let choices = combinations(axes, strength);
    let mut covered: HashSet<(u32, Vec<u32>)> = HashSet::new();
    let tuples = |row: &[u32]| -> Vec<(u32, Vec<u32>)> {
        let pick = |axes: &Vec<usize>| axes.iter().map(|axis| row[*axis]).collect();
        choices.iter().enumerate().map(|(i, axes)| (i as u32, pick(axes))).collect()
    };
    // Gains only shrink as tuples get covered, so a stale gain is an upper bound: re-evaluate the top until it is fresh.
    let mut heap: BinaryHeap<(usize, std::cmp::Reverse<usize>)> =
        (0..rows.len()).map(|i| (choices.len(), std::cmp::Reverse(i))).collect();
    let mut chosen = Vec::new();
    while let Some((stale, std::cmp::Reverse(i))) = heap.pop() {
        let fresh = tuples(&rows[i]);
        let gain = fresh.iter().filter(|tuple| !covered.contains(*tuple)).count();
        if gain == 0 {
            continue;
        }
        if gain < stale {
            heap.push((gain, std::cmp::Reverse(i)));
            continue;
        }
        covered.extend(fresh);
        chosen.push(i);
    }
    chosen.sort_unstable();
    chosen
}

/// All ascending choices of `k` numbers below `n`.
fn combinations(n: usize, k: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..k {
        let grow = |choice: Vec<usize>| {
            let from = choice.last().map_or(0, |last| last + 1);
            (from..n).map(move |next| choice.iter().copied().chain([next]).collect())
        };
        all = all.into_iter().flat_map(grow).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(sizes: &[u32]) -> Vec<Vec<u32>> {
        let mut rows = vec![Vec::new()];
        for size in sizes {
            let grow =
                |row: Vec<u32>| (0..*size).map(move |v| row.iter().copied().chain([v]).collect::<Vec<_>>());
            rows = rows.into_iter().flat_map(grow).collect();
        }
        rows
    }

    fn check(rows: &[Vec<u32>], chosen: &[usize], strength: usize) {
        let tuples = |rows: &mut dyn Iterator<Item = &Vec<u32>>| -> HashSet<Vec<(usize, u32)>> {
            let choices = combinations(4, strength);
            rows.flat_map(|row| {
                let usable = choices.iter().filter(|axes| axes.iter().all(|axis| *axis < row.len()));
                usable.map(|axes| axes.iter().map(|axis| (*axis, row[*axis])).collect()).collect::<Vec<_>>()
            })
            .collect()
        };
        let all = tuples(&mut rows.iter());
        let got = tuples(&mut chosen.iter().map(|i| &rows[*i]));
        assert_eq!(all, got);
    }

    #[test]
    fn every_pair_and_every_triple_occurs() {
        let rows = product(&[3, 4, 2, 3]);
        let pairs = cover(&rows, 2);
        check(&rows, &pairs, 2);
        assert!((12..=18).contains(&pairs.len()), "{} rows for a lower bound of 12", pairs.len());
        let triples = cover(&rows, 3);
        check(&rows, &triples, 3);
        assert!((36..=50).contains(&triples.len()), "{} rows for a lower bound of 36", triples.len());
        assert_eq!(cover(&rows, 4).len(), rows.len());
    }

    #[test]
    fn constraints_hold_by_construction() {
        let rows: Vec<_> = product(&[3, 3, 3, 3]).into_iter().filter(|row| row[0] != row[1]).collect();
        check(&rows, &cover(&rows, 2), 2);
        assert!(cover(&[], 2).is_empty());
    }
}
