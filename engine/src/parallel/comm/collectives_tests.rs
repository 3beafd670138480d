//! Collectives against their definitions, and what members get when they disagree.

use super::*;
use crate::parallel::launch::{RankContext, launch};
use crate::parallel::layout::Layout;
use std::time::Duration;

fn ranks<T: Send + 'static>(
    n: usize,
    run: impl Fn(RankContext) -> Result<T> + Send + Sync + 'static,
) -> Result<Vec<T>> {
    launch(Layout::new(n, 1, 1, 1)?, Duration::from_secs(30), run)
}

#[test]
fn all_gather_keeps_member_order_with_uneven_and_empty_parts() {
    for n in [1, 2, 3, 5, 8] {
        let counts: Vec<usize> = (0..n).map(|i| (i * 3) % 4).collect();
        let want: Vec<f32> = (0..n).flat_map(|i| vec![i as f32 - 0.5; (i * 3) % 4]).collect();
        let got = ranks(n, move |context| {
            let mut group = context.tp_group()?;
            let mut out = vec![9.0; 50];
            for _ in 0..3 {
                group.all_gather_v(&vec![group.me() as f32 - 0.5; counts[group.me()]], &counts, &mut out)?;
            }
            Ok(out)
        });
        assert!(got.unwrap().iter().all(|out| *out == want));
    }
}

#[test]
fn bits_travel_unchanged() {
    let odd = [0x7fc0_1234u32, 0x8000_0000, 1, 0xff80_0000, 0x7f7f_ffff].map(f32::from_bits);
    let got = ranks(2, move |context| {
        let mut out = Vec::new();
        context.tp_group()?.all_gather_v(&odd, &[5, 5], &mut out)?;
        Ok(out.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    });
    let want: Vec<u32> = odd.iter().chain(&odd).map(|v| v.to_bits()).collect();
    assert!(got.unwrap().iter().all(|bits| *bits == want));
}

#[test]
fn all_to_all_transposes() {
    for n in [1, 2, 3, 6] {
        // Member a sends (a + b) % 3 elements of value 10 a + b to member b.
        let got = ranks(n, move |context| {
            let mut group = context.tp_group()?;
            let me = group.me();
            let to: Vec<usize> = (0..n).map(|b| (me + b) % 3).collect();
            let send: Vec<f32> = (0..n).flat_map(|b| vec![(10 * me + b) as f32; (me + b) % 3]).collect();
            let mut out = Vec::new();
            group.all_to_all_v(&send, &to, &to, &mut out)?;
            Ok(out)
        });
        for (b, out) in got.unwrap().into_iter().enumerate() {
            let want: Vec<f32> = (0..n).flat_map(|a| vec![(10 * a + b) as f32; (a + b) % 3]).collect();
            assert_eq!(out, want);
        }
    }
}

#[test]
fn subgroups_act_independently_in_their_own_order() {
    // Groups {0, 3} (in the order 3, 0) and {1, 2} of one world.
    let got = ranks(4, |context| {
        let members = if context.coord.rank % 3 == 0 { vec![3, 0] } else { vec![1, 2] };
        let mut group = context.group(members)?;
        let mut out = Vec::new();
        group.all_gather_v(&[context.coord.rank as f32], &[1, 1], &mut out)?;
        group.barrier()?;
        Ok(out)
    });
    assert_eq!(got.unwrap(), [[3.0, 0.0], [1.0, 2.0], [1.0, 2.0], [3.0, 0.0]]);
}

#[test]
fn the_byte_and_scalar_collectives() {
    for n in [1, 2, 5] {
        let got = ranks(n, move |context| {
            let mut group = context.tp_group()?;
            let me = group.me();
            let mut news = if me == n - 1 { b"plan".to_vec() } else { Vec::new() };
            group.broadcast(n - 1, &mut news)?;
            let most = group.all_reduce_max_u64(if me == 0 { u64::MAX - 1 } else { me as u64 })?;
            let (mut everywhere, mut at_root, mut values) = (Vec::new(), vec![vec![1]; 9], vec![0.0]);
            group.all_gather_bytes(&vec![me as u8; me], &mut everywhere)?;
            group.gather_bytes(0, &[me as u8], &mut at_root)?;
            let counts: Vec<usize> = (0..n).collect();
            group.gather_v(0, &vec![me as f32; me], &counts, &mut values)?;
            Ok((news, most, everywhere, at_root, values))
        });
        for (me, (news, most, everywhere, at_root, values)) in got.unwrap().into_iter().enumerate() {
            assert_eq!((news.as_slice(), most), (b"plan".as_slice(), u64::MAX - 1));
            assert_eq!(everywhere, (0..n).map(|i| vec![i as u8; i]).collect::<Vec<_>>());
            let root: Vec<Vec<u8>> = (0..n).map(|i| vec![i as u8]).collect();
            let gathered: Vec<f32> = (0..n).flat_map(|i| vec![i as f32; i]).collect();
            assert_eq!(at_root, if me == 0 { root } else { Vec::new() });
            assert_eq!(values, if me == 0 { gathered } else { Vec::new() });
        }
    }
}

#[test]
fn stages_pass_values_on() {
    let got = launch(Layout::new(1, 3, 1, 1).unwrap(), Duration::from_secs(30), |context| {
        let mut group = context.pp_group()?;
        let mut stream = [0.5f32, -0.0];
        if group.me() > 0 {
            group.recv_values(group.me() - 1, &mut stream)?;
        }
        stream[0] += 1.0;
        if group.me() + 1 < group.len() {
            group.send_values(group.me() + 1, &stream)?;
        }
        Ok(stream.map(f32::to_bits))
    });
    let bits = |x: f32| [x.to_bits(), (-0.0f32).to_bits()];
    assert_eq!(got.unwrap(), [bits(1.5), bits(2.5), bits(3.5)]);
}

#[test]
fn members_that_disagree_are_told() {
    let different = ranks(2, |context| {
        let mut group = context.tp_group()?;
        if group.me() == 0 { group.barrier() } else { group.all_gather_v(&[1.0], &[1, 1], &mut Vec::new()) }
    });
    let error = different.unwrap_err().to_string();
    assert!(error.contains("the peer is in") && error.contains("while this rank is in"), "{error}");
    let lengths = ranks(2, |context| {
        let mut group = context.tp_group()?;
        let counts = if group.me() == 0 { [2, 2] } else { [2, 3] };
        let mine = vec![0.0; counts[group.me()]];
        group.all_gather_v(&mine, &counts, &mut Vec::new())
    });
    let error = lengths.unwrap_err().to_string();
    assert!(error.contains("12 bytes where 8 belong"), "{error}");
    let itself = ranks(1, |context| context.tp_group()?.all_to_all_v(&[1.0], &[1], &[2], &mut Vec::new()));
    assert!(itself.unwrap_err().to_string().contains("1 elements to itself where 2 belong"));
}

#[test]
fn impossible_groups_are_refused() {
    let got = ranks(2, |context| {
        let errors = [vec![1 - context.coord.rank], vec![0, 1, 0], vec![0, 1, 2]];
        Ok(errors.map(|members| context.group(members).is_err()))
    });
    assert_eq!(got.unwrap(), [[true; 3]; 2]);
    let got = ranks(1, |context| context.tp_group()?.send_values(3, &[1.0]));
    assert!(got.unwrap_err().to_string().contains("no member 3 in a group of 1"));
}
