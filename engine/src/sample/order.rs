//! The one order of candidates: larger logit first, lower token id first among equals.

use super::constraint::TokenMask;

/// A candidate as one integer whose ascending order is the order of candidates. `-0.0` counts as `0.0`.
pub fn key(logit: f32, id: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(id)
}

/// The token of a candidate.
pub fn id(key: u64) -> u32 {
    key as u32
}

/// The logit of a candidate.
pub fn logit(key: u64) -> f32 {
    let ascending = !((key >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
}

/// Fills `keys` with the candidates of `row`, the first `n` of them the best in order; all when `n` is not smaller.
pub fn best(row: &[f32], n: usize, keys: &mut Vec<u64>) {
    best_of(row, None, n, keys);
}

/// As [`best`], of the candidates that `mask` allows.
pub fn best_of(row: &[f32], mask: Option<&TokenMask>, n: usize, keys: &mut Vec<u64>) {
    keys.clear();
    keys.extend(candidates(row, mask));
    if n == 0 || n >= keys.len() {
        keys.sort_unstable();
        return;
    }
    keys.select_nth_unstable(n - 1);
    keys.truncate(n);
    keys.sort_unstable();
}

/// The best candidate of `row`: the lowest id among those with the largest logit.
pub fn winner(row: &[f32]) -> Option<u32> {
    winner_of(row, None)
}

/// As [`winner`], of the candidates that `mask` allows.
pub fn winner_of(row: &[f32], mask: Option<&TokenMask>) -> Option<u32> {
    candidates(row, mask).min().map(id)
}

fn candidates(row: &[f32], mask: Option<&TokenMask>) -> impl Iterator<Item = u64> {
    let all = (0u32..).zip(row).filter(move |(id, _)| mask.is_none_or(|mask| mask.allows(*id)));
    all.map(|(id, &logit)| key(logit, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lowest_id_and_zeros_are_equal() {
        assert_eq!(winner(&[-1.0, 0.0, -0.0, 0.0]), Some(1));
        assert_eq!(winner(&[-0.0, 0.0]), Some(0));
        assert_eq!(winner(&[f32::MIN, -f32::MIN_POSITIVE, -3.0]), Some(1));
        assert_eq!(winner(&[]), None);
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_a_plain_comparison(
            row in prop::collection::vec(prop_oneof![Just(0.0f32), Just(-0.0), Just(1.5), -1.0e30f32..1.0e30], 1..50),
            n in 1usize..60,
        ) {
            let mut keys = Vec::new();
            best(&row, n, &mut keys);
            let mut want: Vec<u32> = (0..row.len() as u32).collect();
            want.sort_by(|&a, &b| {
                row[b as usize].partial_cmp(&row[a as usize]).unwrap().then(a.cmp(&b))
            });
            want.truncate(n);
            prop_assert_eq!(keys.iter().map(|&k| id(k)).collect::<Vec<_>>(), want.clone());
            prop_assert_eq!(winner(&row), Some(want[0]));
            for &key in &keys {
                prop_assert_eq!(logit(key), row[id(key) as usize]);
            }
        }
    }
}
