//! Rank order against Megatron's examples, legality, and the text form.

use super::*;
use crate::parallel::fixtures;
use proptest::prelude::*;

fn layout(text: &str) -> Layout {
    text.parse().unwrap()
}

#[test]
fn the_examples_take_the_fewest_ranks() {
    for (text, world, etp, mirror) in [
        ("tp=1", 1, 1, 1),
        ("tp=2,pp=2,dp=1,ep=1", 4, 2, 1),
        ("dp=8,ep=8", 8, 1, 1),
        ("tp=8,ep=8", 8, 1, 1),
        ("tp=2,dp=2,ep=2", 4, 2, 1),
        ("ep=2", 2, 1, 2),
        ("ep=3", 3, 1, 3),
        ("tp=2,ep=2", 2, 1, 1),
        ("dp=2,ep=2", 2, 1, 1),
        ("tp=2,ep=3", 6, 1, 3),
        ("dp=2,ep=4,pp=2", 8, 1, 2),
        ("tp=4,etp=2", 4, 2, 1),
        ("etp=2", 2, 2, 2),
    ] {
        let l = layout(text);
        assert_eq!((l.world(), l.etp(), l.mirror()), (world, etp, mirror), "{text}");
    }
}

#[test]
fn megatron_examples_of_the_two_grids() {
    // World 8, TP4 PP1 EP8 ETP1: dense tp = r % 4, dp = r / 4; expert ep = r.
    let l = layout("tp=4,dp=2,ep=8,etp=1");
    for rank in 0..8 {
        let at = l.coord(rank);
        assert_eq!((at.tp, at.dp, at.ep, at.etp, at.edp), (rank % 4, rank / 4, rank, 0, 0));
    }
    // TP2 PP2 DP2: r = tp + 2 dp + 4 pp, so replica 0 is {0, 1, 4, 5}.
    let l = layout("tp=2,pp=2,dp=2");
    assert_eq!(l.replica(0), [0, 1, 4, 5]);
    assert_eq!(l.replica(1), [2, 3, 6, 7]);
    assert_eq!((l.leader(0), l.leader(1)), (0, 2));
    assert_eq!(l.tp_group(l.coord(7)), [6, 7]);
    assert_eq!(l.pp_chain(l.coord(3)), [3, 7]);
}

#[test]
fn mirrors_stay_inside_their_replica() {
    let l = layout("dp=2,ep=4,pp=2");
    assert_eq!(l.replica(1), [2, 3, 6, 7]);
    assert_eq!(l.expert_group(l.coord(2)), [0, 1, 2, 3]);
    assert_eq!(l.coupled(0), 0..2);
    let alone = layout("dp=2,ep=3");
    assert_eq!(alone.expert_group(alone.coord(4)), [3, 4, 5]);
    assert_eq!((alone.coupled(0), alone.coupled(1)), (0..1, 1..2));
    // Expert groups that straddle replicas chain them: {dp0, half of dp1}, {half of dp1, dp2}.
    assert_eq!(layout("tp=4,dp=3,ep=6").coupled(1), 0..3);
    assert_eq!(layout("tp=2,dp=4,ep=2").coupled(2), 2..4);
}

#[test]
fn text_is_refused_by_name() {
    for (text, words) in [
        ("", "is not `axis=size`"),
        ("tp", "`tp` is not `axis=size`"),
        ("tp=2,xp=1", "unknown axis `xp`"),
        ("tp=2,tp=2", "axis `tp` is given twice"),
        ("pp=0", "`pp=0`: the size must be a whole number from 1 on"),
        ("pp=-1", "`pp=-1`"),
        ("dp=two", "`dp=two`"),
        ("tp=2,", "is not `axis=size`"),
        ("tp=70000", "more than 65536 ranks"),
        ("tp=18446744073709551615,pp=3,dp=3", "more than 65536 ranks"),
        ("ep=18446744073709551615,etp=3", "more than 65536 ranks"),
        ("dp=257,ep=256", "more than 65536 ranks"),
    ] {
        let error = text.parse::<Layout>().unwrap_err();
        assert!(matches!(&error, EngineError::Layout { hint, .. } if !hint.is_empty()), "{error}");
        assert!(error.to_string().contains(words), "{text}: {error}");
    }
    assert!(Layout::new(1, 0, 1, 1).unwrap_err().to_string().contains("pp=0 is not a size"));
    assert!(Layout::new(1, 1, 1, 0).unwrap_err().to_string().contains("ep=0 is not a size"));
    assert!(Layout::SINGLE.with_etp(0).is_err());
}

#[test]
fn models_are_refused_by_name() {
    let dense = fixtures::dense();
    let moe = fixtures::moe();
    for (text, spec, words) in [
        ("tp=9", &dense, "tp=9 exceeds the model's 8 query heads"),
        ("pp=9", &dense, "pp=9 exceeds the model's 8 layers"),
        ("ep=2", &dense, "ep=2 on a dense model"),
        ("tp=4,etp=2", &dense, "etp=2 on a dense model"),
        ("ep=9", &moe, "ep=9 exceeds the model's 8 experts"),
        ("pp=5", &moe, "pp=5 exceeds the model's 4 layers"),
    ] {
        let error = layout(text).validate(spec).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
    for text in ["tp=8", "tp=5,pp=8", "dp=8", "tp=3,pp=3"] {
        layout(text).validate(&dense).unwrap();
    }
    for text in ["ep=8", "tp=8,ep=8", "tp=4,etp=2", "ep=3,tp=2", "dp=8,ep=8", "etp=3"] {
        layout(text).validate(&moe).unwrap();
    }
    let mut broken = fixtures::dense();
    broken.kv_heads = 3;
    assert!(Layout::SINGLE.validate(&broken).unwrap_err().to_string().contains("not shared by 3 key heads"));
    broken.kv_heads = 0;
    assert!(Layout::SINGLE.validate(&broken).unwrap_err().to_string().contains("no key heads"));
    let mut tiny = fixtures::dense();
    tiny.vocab = 3;
    assert!(layout("tp=4").validate(&tiny).unwrap_err().to_string().contains("3 vocabulary rows"));
}

#[test]
fn serde_speaks_the_text_form() {
    let l = layout("dp=2, tp=2");
    assert_eq!(serde_json::to_string(&l).unwrap(), "\"tp=2,pp=1,dp=2,ep=1\"");
    assert_eq!(
        serde_json::from_str::<Layout>("\"etp=1,tp=2\"").unwrap().to_string(),
        "tp=2,pp=1,dp=1,ep=1,etp=1"
    );
    assert!(serde_json::from_str::<Layout>("\"tp=0\"").unwrap_err().to_string().contains("tp=0"));
}

/// The groups partition the world, and `at` is a member of its own.
fn partitions(l: Layout, group: impl Fn(Coord) -> Vec<usize>) {
    for rank in 0..l.world() {
        let members = group(l.coord(rank));
        assert!(members.contains(&rank), "{l}: rank {rank} in {members:?}");
        assert!(members.is_sorted());
        assert!(members.iter().all(|m| group(l.coord(*m)) == members), "{l}: {members:?}");
    }
}

proptest! {
    #[test]
    fn grids_agree(tp in 1usize..6, pp in 1usize..4, dp in 1usize..5, ep in 1usize..7, etp in 0usize..4) {
        let mut l = Layout::new(tp, pp, dp, ep).unwrap();
        if etp > 0 {
            l = l.with_etp(etp).unwrap();
        }
        prop_assert_eq!(l.to_string().parse::<Layout>().unwrap(), l);
        // The least mirror that lets the expert grid fit.
        let fits = |m: usize| (l.tp() * l.dp() * m).is_multiple_of(l.ep() * l.etp());
        prop_assert_eq!((1..).find(|m| fits(*m)), Some(l.mirror()));
        prop_assert_eq!(l.world(), tp * pp * dp * l.mirror());
        for rank in 0..l.world() {
            let at = l.coord(rank);
            prop_assert_eq!(l.rank_at(at.tp, at.mirror, at.dp, at.pp), rank);
            prop_assert_eq!(l.expert_rank_at(at.etp, at.ep, at.edp, at.pp), rank);
            prop_assert!(l.replica(at.dp).contains(&rank));
            prop_assert!(l.coupled(at.dp).contains(&at.dp));
            // Sharing experts is what couples replicas.
            for peer in l.expert_group(at) {
                prop_assert!(l.coupled(at.dp).contains(&l.coord(peer).dp));
            }
        }
        partitions(l, |at| l.tp_group(at));
        partitions(l, |at| l.pp_chain(at));
        partitions(l, |at| l.replica(at.dp));
        partitions(l, |at| l.expert_group(at));
        partitions(l, |at| l.etp_group(at));
        partitions(l, |at| l.ep_group(at));
        partitions(l, |at| l.edp_group(at));
    }
}
