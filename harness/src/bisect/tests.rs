//! A planted change of one unit in the last place is found exactly where it was planted: layer, operator, rank, element.

use crate::bisect::{Finding, Side, bisect};
use crate::golden::Store;
use crate::matrix::{Cell, Filter, Matrix};
use crate::run::Inputs;
use crate::subject::own::OwnFleet;
use engine::faults::{Fault, OneUlp};
use engine::model::tap::Op;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;

/// What the tests bisect.
struct Stage {
    matrix: Matrix,
    inputs: Inputs,
    fleet: OwnFleet,
}

impl Stage {
    fn open() -> Self {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
        let store = Store::new(Path::new(&manifest).join("../goldens"));
        let matrix = Matrix::read(&store.root().join("matrix/pr.yaml")).unwrap();
        let inputs = Inputs::gather(&matrix, &store, &matrix.expansion.cells);
        Self { matrix, inputs, fleet: OwnFleet::default() }
    }

    /// The one cell of the engine's own door that a filter selects.
    fn cell(&self, filter: &str) -> Cell {
        let filter = Filter::parse(&format!("api(engine) & {filter}")).unwrap();
        let mut cells = self.matrix.expansion.cells.iter().filter(|cell| filter.matches(cell));
        let cell = cells.next().unwrap().clone();
        assert_eq!(cells.next(), None, "the filter selects one cell");
        cell
    }

    fn side(&self, cell: &Cell, fault: Option<Fault>) -> Side<'_> {
        let cases = ["short-english".to_owned(), "one-token".to_owned()];
        let side = Side::new((&self.fleet, &self.matrix), &self.inputs, cell, &cases).unwrap();
        side.with_fault(fault)
    }

    /// Bisects a cell with a fault against its anchor without one.
    fn bisect(&self, filter: &str, fault: Option<Fault>) -> super::Explanation {
        let cell = self.cell(filter);
        let anchor = self.matrix.anchor_of(&cell);
        bisect(&self.side(&anchor, None), &self.side(&cell, fault)).unwrap()
    }
}

#[test]
fn sound_layouts_have_nothing_to_find() {
    let stage = Stage::open();
    for filter in [
        "model(dense) & layout(tp=3,pp=2*) & feature(chunked)",
        "model(moe) & layout(tp=2,pp=2,dp=1,ep=2) & feature(plain)",
    ] {
        let explanation = stage.bisect(filter, None);
        assert_eq!(explanation.finding, Finding::Same, "{filter}");
        assert_eq!((explanation.differing, explanation.unmatched), (0, 0), "{filter}");
        assert!(explanation.compared > 1000, "{filter}: {} compared", explanation.compared);
    }
}

/// The rank that holds `column` of `op` in `layer`, drawn among those that do, and the element of it.
fn draw(stage: &Stage, cell: &Cell, rng: &mut StdRng) -> OneUlp {
    let side = stage.side(cell, None);
    let spec = side.deployment.checkpoint.spec();
    let experts = spec.has_experts();
    loop {
        let rank = rng.random_range(0..side.deployment.layout.world());
        let shard = side.deployment.shard(rank).unwrap();
        let layer = rng.random_range(shard.layers.clone());
        let dim = shard.heads.head_dim;
        let op = Op::ALL[rng.random_range(0..Op::ALL.len())];
        let columns = match op {
            Op::Query | Op::Heads => shard.q_heads.start * dim..shard.q_heads.end * dim,
            Op::Key | Op::Value => shard.kv_heads.start * dim..shard.kv_heads.end * dim,
            Op::Activation if !experts => match &shard.ffn[layer - shard.layers.start] {
                engine::parallel::shard::FfnShard::Dense(part) => part.inputs(),
                engine::parallel::shard::FfnShard::Moe(_) => continue,
            },
            Op::Router | Op::Experts if experts => 0..8,
            Op::AttentionNorm | Op::AttentionSum | Op::AttentionResidual => 0..spec.hidden,
            Op::FfnNorm | Op::FfnSum | Op::FfnResidual => 0..spec.hidden,
            _ => continue,
        };
        if !columns.is_empty() {
            return OneUlp { layer, op, rank: Some(rank), column: rng.random_range(columns) };
        }
    }
}

#[test]
fn one_unit_in_the_last_place_is_located_exactly() {
    let stage = Stage::open();
    let mut rng = StdRng::seed_from_u64(0x0E1E);
    let mut ops = std::collections::BTreeSet::new();
    for filter in [
        "model(dense) & layout(tp=2,pp=2*) & feature(plain)",
        "model(dense) & layout(tp=3,pp=1*) & feature(chunked)",
        "model(moe) & layout(tp=2,pp=1,dp=1,ep=2) & feature(plain)",
    ] {
        let cell = stage.cell(filter);
        for _ in 0..6 {
            let planted = draw(&stage, &cell, &mut rng);
            let explanation = stage.bisect(filter, Some(Fault::OneUlp(planted)));
            let Finding::Operator(at) = &explanation.finding else {
                panic!("{filter}, {planted:?}: {:?}", explanation.finding)
            };
            let found = (at.step, at.layer, at.op, at.rank, at.element.column);
            let wanted = (1, planted.layer, planted.op, planted.rank.unwrap(), planted.column);
            assert_eq!(found, wanted, "{filter}: {at:?}");
            assert_eq!((at.element.ulp, at.differing), (Some(1), 1), "{filter}: {at:?}");
            assert!(at.shard.0 <= planted.column && planted.column < at.shard.1);
            ops.insert(planted.op);
        }
    }
    assert!(ops.len() >= 7, "the draws should vary: {ops:?}");
}

#[test]
fn a_wrong_sum_is_told_from_a_wrong_product() {
    let stage = Stage::open();
    let filter = "model(dense) & layout(tp=3,pp=1*) & feature(plain)";
    for (fault, cause) in [
        (Fault::RankOrderSum, "adding them in rank order"),
        (Fault::Bf16Nodes, "rounding them to bf16"),
        (Fault::DroppedNode, "leaving out the last"),
        (Fault::SwappedNodes, "exchanging nodes 0 and 1"),
    ] {
        let explanation = stage.bisect(filter, Some(fault));
        let Finding::Operator(at) = &explanation.finding else {
            panic!("{fault}: {:?}", explanation.finding)
        };
        assert!(matches!(at.op, Op::AttentionSum | Op::FfnSum), "{fault}: {at:?}");
        assert!(at.nodes.len() >= 3 && at.cause.contains(cause), "{fault}: {at:?}");
        let drawn = super::draw::draw(&explanation);
        assert!(drawn.contains(&at.cause) && drawn.contains("leaves"), "{drawn}");
    }
}
