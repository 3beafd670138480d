//! Shares partition, covers fold to the whole, and known models are cut as expected.

use super::*;
use crate::parallel::fixtures;
use crate::parallel::tree;
use proptest::prelude::*;

fn table<'a>(spec: &'a ModelSpec, layout: &str, placement: &'a ExpertPlacement) -> Result<ShardTable<'a>> {
    ShardTable::new(spec, layout.parse().unwrap(), placement)
}

fn shards(spec: &ModelSpec, layout: &str) -> Vec<Shard> {
    let table = table(spec, layout, &ExpertPlacement::Contiguous).unwrap();
    (0..table.layout().world()).map(|rank| table.shard(rank).unwrap()).collect()
}

fn dense_down(shard: &Shard) -> &RowShard {
    match &shard.ffn[0] {
        FfnShard::Dense(down) => down,
        FfnShard::Moe(_) => panic!("a dense model has dense blocks"),
    }
}

fn experts(shard: &Shard) -> &ExpertShard {
    match &shard.ffn[0] {
        FfnShard::Moe(experts) => experts,
        FfnShard::Dense(_) => panic!("a mixture has experts"),
    }
}

#[test]
fn nine_heads_over_two_ranks() {
    let spec = fixtures::smollm2();
    let shards = shards(&spec, "tp=2,pp=4");
    let (a, b) = (&shards[0], &shards[1]);
    assert_eq!((a.q_heads.clone(), b.q_heads.clone()), (0..5, 5..9));
    assert_eq!((a.kv_heads.clone(), b.kv_heads.clone()), (0..2, 1..3));
    assert_eq!(a.heads.kv_of_q, [0, 0, 0, 1, 1]);
    assert_eq!(b.heads.kv_of_q, [0, 1, 1, 1]);
    assert_eq!((a.heads.width(), b.heads.width()), ((5 + 4) * 64, (4 + 4) * 64));
    // One leaf is one head here: heads 0..5 are the nodes 0..4 and 4; heads 5..9 are 5, 6..8 and 8.
    assert_eq!(a.attn_out.leaf, 64);
    let nodes =
        |s: &Shard| s.attn_out.nodes().iter().map(|n| (n.node.start(), n.k.clone())).collect::<Vec<_>>();
    assert_eq!(nodes(a), [(0, 0..256), (4, 256..320)]);
    assert_eq!(nodes(b), [(5, 0..64), (6, 64..192), (8, 192..256)]);
    // 30 layers over 4 stages: the earlier stages take the remainder.
    let stages: Vec<_> = [0, 2, 4, 6].map(|r| shards[r].layers.clone()).into();
    assert_eq!(stages, [0..8, 8..16, 16..23, 23..30]);
    assert_eq!((a.vocab(), b.vocab()), (0..24_576, 24_576..49_152));
}

#[test]
fn key_heads_replicate_beyond_their_number() {
    let spec = fixtures::smollm2();
    let shards = shards(&spec, "tp=9");
    for (rank, shard) in shards.iter().enumerate() {
        assert_eq!(shard.q_heads, rank..rank + 1);
        assert_eq!(shard.kv_heads, rank / 3..rank / 3 + 1);
        assert_eq!(shard.heads.kv_of_q, [0]);
    }
}

#[test]
fn more_ranks_than_leaves_leave_some_empty() {
    // Inner width 24 has leaves of 8: three leaves for five ranks.
    let spec = fixtures::shape(5, 5, 8, 1, Ffn::Dense { inner: 24 });
    let shards = shards(&spec, "tp=5");
    let inputs: Vec<_> = shards.iter().map(|s| dense_down(s).inputs()).collect();
    assert_eq!(inputs, [0..8, 8..16, 16..24, 24..24, 24..24]);
    assert!(dense_down(&shards[4]).nodes().is_empty());
    let odd = fixtures::shape(3, 1, 5, 1, Ffn::Dense { inner: 7 });
    let odd = ShardTable::new(&odd, "tp=3".parse().unwrap(), &ExpertPlacement::Contiguous)
        .and_then(|t| t.shard(1))
        .unwrap();
    assert_eq!((odd.attn_out.leaf, odd.attn_out.inputs()), (1, 5..10));
}

#[test]
fn experts_are_dealt_out_contiguously_or_as_told() {
    let spec = fixtures::moe();
    let ids: Vec<_> = shards(&spec, "ep=3").iter().map(|s| experts(s).ids.clone()).collect();
    assert_eq!(ids, [vec![0, 1, 2], vec![3, 4, 5], vec![6, 7]]);
    let told = ExpertPlacement::Explicit(vec![vec![7, 0, 3], vec![1, 2, 3, 4, 5, 6, 0]]);
    let table = table(&spec, "ep=2", &told).unwrap();
    let second = table.shard(1).unwrap();
    assert_eq!(experts(&second).ids, [0, 1, 2, 3, 4, 5, 6]);
    // 0 and 3 are replicated: the lowest owner answers.
    assert_eq!(experts(&second).answers, [0, 1, 1, 0, 1, 1, 1, 0]);
}

#[test]
fn a_bad_placement_is_refused_by_name() {
    let spec = fixtures::moe();
    for (lists, words) in [
        (vec![vec![0, 1, 2, 3, 4, 5, 6, 7]], "1 lists for ep=2"),
        (vec![vec![0, 1, 2, 3], vec![4, 5, 6]], "expert 7 is in no share"),
        (vec![vec![0, 1, 2, 3, 8], vec![4, 5, 6, 7]], "share 0 names expert 8 of 8"),
        (vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7, 5]], "share 1 names expert 5 twice"),
    ] {
        let error = table(&spec, "ep=2", &ExpertPlacement::Explicit(lists)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_rank_beyond_the_world_is_refused() {
    let spec = fixtures::dense();
    let error = table(&spec, "tp=2", &ExpertPlacement::Contiguous).unwrap().shard(2).unwrap_err();
    assert!(error.to_string().contains("rank 2 of 2 ranks"), "{error}");
}

/// The runs partition the leaves and the nodes of all members fold to the sum of the whole.
fn check_row(mut row: RowShard, width: usize) {
    assert_eq!(row.leaves * row.leaf, width);
    let leaves: Vec<f32> = (0..row.leaves).map(|i| (i as f32 * 1.7 - 3.1).sin() * 1.0e3).collect();
    let (mut nodes, mut values, mut at) = (Vec::new(), Vec::new(), 0);
    for me in 0..row.cuts.len() {
        row.me = me;
        assert_eq!(row.mine().start, at);
        at = row.mine().end;
        let mut k = 0;
        for node in row.nodes() {
            assert_eq!(node.k.start, k, "nodes tile the rank's inputs");
            k = node.k.end;
            let first = row.mine().start + node.k.start / row.leaf;
            values.push(tree::sum(&leaves[first..first + node.k.len() / row.leaf]));
            nodes.push(node.node);
        }
        assert_eq!(k, row.inputs().len());
    }
    assert_eq!(at, row.leaves);
    assert_eq!(tree::fold(&nodes, &mut values).map(f32::to_bits), Some(tree::sum(&leaves).to_bits()));
}

proptest! {
    #[test]
    fn every_shard_partitions(
        heads in prop::sample::select(vec![(8usize, 8usize), (9, 3), (12, 2), (6, 1), (16, 4)]),
        head_dim in prop::sample::select(vec![8usize, 16, 20, 64, 5]),
        inner in 1usize..300, vocab in 20usize..3000, layers in 2usize..9,
        tp in 1usize..17, pp in 1usize..9, ep in 1usize..9, etp in 1usize..4,
    ) {
        let (tp, pp) = (tp.min(heads.0), pp.min(layers));
        let experts = Ffn::Moe { experts: 8, top_k: 2, inner, normalise: true };
        let mut spec = fixtures::shape(heads.0, heads.1, head_dim, layers, experts);
        spec.vocab = vocab;
        spec.layers[0].ffn = Ffn::Dense { inner };
        let layout = Layout::new(tp, pp, 1, ep).unwrap().with_etp(etp).unwrap();
        let placement = ExpertPlacement::Contiguous;
        let table = ShardTable::new(&spec, layout, &placement).unwrap();
        let (mut heads_at, mut vocab_at, mut layer_at) = (0, 0, 0);
        for tp in 0..tp {
            let shard = table.shard(layout.rank_at(tp, 0, 0, 0)).unwrap();
            prop_assert_eq!(shard.q_heads.start, heads_at);
            heads_at = shard.q_heads.end;
            prop_assert_eq!(shard.vocab().start, vocab_at);
            vocab_at = shard.vocab().end;
            prop_assert!(vocab_at == vocab || vocab_at.is_multiple_of(shard.vocab_leaf));
            for (local, q) in shard.q_heads.clone().enumerate() {
                prop_assert_eq!(shard.kv_heads.start + shard.heads.kv_of_q[local], q / spec.group());
            }
            for id in shard.vocab() {
                prop_assert_eq!(shard.vocab_owner(id as u32), Some(tp));
            }
            prop_assert_eq!(shard.vocab_owner(vocab as u32), None);
            check_row(shard.attn_out.clone(), spec.heads * head_dim);
            check_row(dense_down(&shard).clone(), inner);
        }
        prop_assert_eq!((heads_at, vocab_at), (spec.heads, vocab));
        let mut owned = Vec::new();
        for pp in 0..pp {
            let shard = table.shard(layout.rank_at(0, 0, 0, pp)).unwrap();
            prop_assert_eq!(shard.layers.start, layer_at);
            layer_at = shard.layers.end;
            prop_assert_eq!(shard.ffn.len(), shard.layers.len());
        }
        prop_assert_eq!(layer_at, layers);
        let last = layers - 1;
        let stage = (0..pp).find(|pp| table.layers(*pp).contains(&last)).unwrap();
        for ep in 0..ep {
            let shard = table.shard(layout.expert_rank_at(0, ep, 0, stage)).unwrap();
            let FfnShard::Moe(moe) = &shard.ffn[last - shard.layers.start] else { panic!("a mixture") };
            for id in &moe.ids {
                prop_assert_eq!(moe.answers[*id as usize], ep);
            }
            owned.extend(moe.ids.clone());
            check_row(moe.down.clone(), inner);
        }
        prop_assert_eq!(owned, (0..8).collect::<Vec<u32>>());
    }
}
