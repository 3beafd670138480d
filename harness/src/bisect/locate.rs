//! From the first differing hash to the element: both sides are replayed once more and the row's values compared.

use crate::bisect::finding::{Element, Located};
use crate::bisect::nodes;
use crate::bisect::side::Side;
use crate::bisect::tape::{Capturer, First, Slice};
use crate::compare::{Shown, ulp_distance};
use crate::error::{HarnessError, Result};
use crate::subject::own::script::Script;
use engine::model::tap::Op;
use std::sync::Arc;

/// Takes the values around `first` on both sides and finds the element.
pub fn locate(
    (trusted, trial): (&Side<'_>, &Side<'_>),
    script: &Script,
    first: &First,
    ranks: &[usize],
) -> Result<Located> {
    let key = first.key;
    let (mut ops, row) = (vec![key.op], (key.case, key.position, key.layer));
    ops.extend(nodes::inputs_of(key.op));
    let capture = |side: &Side<'_>, script: Arc<Script>, step| {
        let listener = Capturer { row, ops: ops.clone(), step, slices: Vec::new() };
        side.replay(script, listener).map(|(_, heard)| heard.slices)
    };
    let expected = capture(trusted, Arc::default(), None)?;
    let found = capture(trial, Arc::new(script.again()), Some(first.step))?;
    let lost = || {
        let why = format!("{} of layer {} does not differ when it is replayed", key.op, key.layer);
        HarnessError::subject(trial.name.as_str(), why, "the side is not deterministic: run it again")
    };
    let of_rank = |slice: &&Slice| slice.op == key.op && slice.rank == first.rank && slice.first <= key.piece;
    let mine = found.iter().find(of_rank).ok_or_else(lost)?;
    let whole = assemble(&expected, key.op);
    let pairs = || mine.values.iter().zip(whole.get(mine.first..).unwrap_or(&[]));
    let differing: Vec<usize> =
        pairs().enumerate().filter(|(_, (a, b))| a.to_bits() != b.to_bits()).map(|(i, _)| i).collect();
    let at = *differing.first().ok_or_else(lost)?;
    let column = mine.first + at;
    let distances: Option<Vec<u64>> = pairs().map(|(a, b)| ulp_distance(*a, *b)).collect();
    let case = &trusted.suite.cases[key.case];
    let spec = trusted.deployment.checkpoint.spec();
    let mut located = Located {
        step: first.step,
        case: case.id.clone(),
        position: key.position,
        token: match key.position.checked_sub(case.prompt_ids.len()) {
            None => format!("prompt token {}", key.position),
            Some(generated) => format!("generated token {generated}"),
        },
        layer: key.layer,
        layers: spec.layers.len(),
        op: key.op,
        rank: first.rank,
        ranks: ranks.to_vec(),
        shard: (mine.first, mine.first + mine.values.len()),
        element: Element {
            column,
            meaning: meaning(trusted, key.op, column),
            expected: Shown::from(whole[column]),
            found: Shown::from(mine.values[at]),
            ulp: ulp_distance(whole[column], mine.values[at]),
        },
        differing: differing.len(),
        max_ulp: distances.and_then(|distances| distances.into_iter().max()),
        nodes: Vec::new(),
        cause: String::new(),
    };
    nodes::explain(trial, (&expected, &found), &mut located, &mine.values)?;
    Ok(located)
}

/// The whole row of an operator from the slices of its ranks.
pub fn assemble(slices: &[Slice], op: Op) -> Vec<f32> {
    let mine = || slices.iter().filter(|slice| slice.op == op);
    let width = mine().map(|slice| slice.first + slice.values.len()).max().unwrap_or(0);
    let mut row = vec![f32::NAN; width];
    for slice in mine() {
        row[slice.first..slice.first + slice.values.len()].copy_from_slice(&slice.values);
    }
    row
}

/// A column in the words of its operator.
fn meaning(side: &Side<'_>, op: Op, column: usize) -> String {
    let spec = side.deployment.checkpoint.spec();
    match op {
        Op::Query | Op::Key | Op::Value | Op::Heads => {
            format!("head {}, element {}", column / spec.head_dim, column % spec.head_dim)
        }
        Op::Router => format!("expert {column}"),
        Op::Chosen | Op::Gates => format!("choice {column}"),
        Op::Experts => format!("choice {}, element {}", column / spec.hidden, column % spec.hidden),
        Op::Logits => format!("token id {column}"),
        Op::LogSum => "the whole vocabulary".into(),
        _ => format!("element {column}"),
    }
}
