//! The nodes behind a sum: which rank brought what, what the scalar reference gives for the same leaves, and which mistake
//! of addition would explain the result.

use crate::bisect::finding::{Located, NodeLine};
use crate::bisect::locate::assemble;
use crate::bisect::side::Side;
use crate::bisect::tape::Slice;
use crate::compare::Shown;
use crate::error::Result;
use crate::subject::own::refused;
use engine::model::tap::Op;
use engine::model::tensor::{LayerTensor, Tensor};
use engine::numerics::reference;
use engine::parallel::shard::{FfnShard, RowShard};
use engine::parallel::tree::{Node, fold, fold_plan};

/// What must be known of a row to take a sum apart: its input and its nodes. Empty for what is no sum.
pub fn inputs_of(op: Op) -> Vec<Op> {
    match op {
        Op::AttentionSum => vec![Op::Heads, Op::AttentionNode],
        Op::FfnSum => vec![Op::Activation, Op::FfnNode],
        _ => Vec::new(),
    }
}

/// The shard that `rank` multiplies in this layer, and the weight's name.
fn product(side: &Side<'_>, located: &Located, rank: usize) -> Result<Option<(RowShard, Tensor)>> {
    let shard = side.deployment.shard(rank).map_err(refused)?;
    if !shard.layers.contains(&located.layer) {
        return Ok(None);
    }
    let name = |tensor| Tensor::Layer(located.layer, tensor);
    if located.op == Op::AttentionSum {
        return Ok(Some((shard.attn_out, name(LayerTensor::O))));
    }
    Ok(match &shard.ffn[located.layer - shard.layers.start] {
        FfnShard::Dense(part) => Some((part.clone(), name(LayerTensor::Down))),
        FfnShard::Moe(_) => None,
    })
}

/// Lists the nodes of the located element and says what they tell. `sums` is the wrong row.
pub fn explain(
    side: &Side<'_>,
    (expected, found): (&[Slice], &[Slice]),
    located: &mut Located,
    sums: &[f32],
) -> Result<()> {
    let [input, partial] = inputs_of(located.op)[..] else { return Ok(()) };
    let x = assemble(expected, input);
    let column = located.element.column;
    let mut parts: Vec<(Node, &[f32])> = Vec::new();
    for slice in found.iter().filter(|slice| slice.op == partial) {
        let (Some(node), Some((part, tensor))) = (slice.node, product(side, located, slice.rank)?) else {
            continue;
        };
        if parts.iter().any(|(known, _)| *known == node) {
            continue;
        }
        let leaves = (node.start(), node.end().min(part.leaves));
        let inputs = leaves.0 * part.leaf..leaves.1 * part.leaf;
        let weight = side.deployment.checkpoint.matrix(tensor).map_err(refused)?;
        let weight = weight.rows(column, column + 1).cols(inputs.start, inputs.end);
        let mut right = [0.0];
        reference::linear(&x[inputs], &weight, part.leaf, &mut right);
        parts.push((node, &slice.values));
        located.nodes.push(NodeLine {
            rank: slice.rank,
            leaves,
            level: node.level,
            expected: Shown::from(right[0]),
            found: Shown::from(slice.values[column]),
        });
    }
    located.nodes.sort_by_key(|line| line.leaves);
    parts.sort_by_key(|(node, _)| node.start());
    located.cause = cause(located, &parts, sums);
    Ok(())
}

/// What the nodes tell about a wrong sum.
fn cause(located: &Located, parts: &[(Node, &[f32])], sums: &[f32]) -> String {
    if parts.is_empty() {
        return String::new();
    }
    let wrong = located.nodes.iter().filter(|line| line.expected != line.found);
    let wrong: Vec<String> =
        wrong.map(|line| format!("{}..{} of rank {}", line.leaves.0, line.leaves.1, line.rank)).collect();
    if !wrong.is_empty() {
        return format!("the node over leaves {} is wrong: the product, not the sum", wrong.join(", "));
    }
    match mistake(parts, sums) {
        Some(mistake) => format!("every node is right, their sum is not: {mistake} gives exactly this row"),
        None => "every node is right, their sum is not".into(),
    }
}

/// Rounds to bf16, to nearest even.
fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let round = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(round) & 0xffff_0000)
}

/// How one column's nodes might be added.
type Addition<'a> = dyn Fn(Vec<f32>) -> Option<f32> + 'a;

/// The known mistake of addition that gives every one of `sums`, column by column.
pub fn mistake(parts: &[(Node, &[f32])], sums: &[f32]) -> Option<String> {
    let nodes: Vec<Node> = parts.iter().map(|(node, _)| *node).collect();
    let column = |c: usize| parts.iter().map(|(_, values)| values[c]).collect::<Vec<f32>>();
    let gives = |add: &Addition<'_>| {
        let same = |(c, sum): (usize, &f32)| add(column(c)).map(f32::to_bits) == Some(sum.to_bits());
        sums.iter().enumerate().all(same)
    };
    if gives(&|mut values| fold(&nodes, &mut values)) {
        return None;
    }
    if gives(&|values| values.into_iter().reduce(|a, b| a + b)) {
        return Some("adding them in rank order".into());
    }
    if gives(&|values| fold(&nodes, &mut values.into_iter().map(bf16).collect::<Vec<_>>())) {
        return Some("rounding them to bf16 on the way".into());
    }
    let steps = fold_plan(&nodes);
    let first_steps = |mut values: Vec<f32>, kept: usize| {
        steps[..kept].iter().for_each(|step| values[step.left] += values[step.right]);
        values.first().copied()
    };
    if let Some(kept) = (0..steps.len()).rev().find(|kept| gives(&|values| first_steps(values, *kept))) {
        return Some(format!("leaving out the last {} of {} additions", steps.len() - kept, steps.len()));
    }
    for i in 0..nodes.len() {
        let mut fewer = nodes.clone();
        let lost = fewer.remove(i);
        let without = |mut values: Vec<f32>| {
            values.remove(i);
            fold(&fewer, &mut values)
        };
        if gives(&without) {
            return Some(format!("losing the node over slots {}..{}", lost.start(), lost.end()));
        }
        let swapped = |mut values: Vec<f32>, j: usize| {
            values.swap(i, j);
            fold(&nodes, &mut values)
        };
        if let Some(j) = (0..i).find(|j| gives(&|values| swapped(values, *j))) {
            return Some(format!("exchanging nodes {j} and {i}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::parallel::tree::cover;

    #[test]
    fn mistakes_are_told_from_their_results() {
        let nodes = [cover(0, 3, 8), cover(3, 6, 8), cover(6, 8, 8)].concat();
        let value = |n: usize, c: usize| ((n * 7919 + c * 104_729 + 13) % 1013) as f32 / 7.0 - 70.1;
        let rows: Vec<Vec<f32>> = (0..nodes.len()).map(|n| (0..9).map(|c| value(n, c)).collect()).collect();
        let parts: Vec<(Node, &[f32])> = nodes.iter().copied().zip(rows.iter().map(Vec::as_slice)).collect();
        let sums = |add: &Addition<'_>| -> Vec<f32> {
            (0..9).map(|c| add(rows.iter().map(|row| row[c]).collect()).unwrap()).collect()
        };
        let told = |add: &Addition<'_>| mistake(&parts, &sums(add));
        assert_eq!(told(&|mut values| fold(&nodes, &mut values)), None);
        let in_order = told(&|values| values.into_iter().reduce(|a, b| a + b));
        assert_eq!(in_order.as_deref(), Some("adding them in rank order"));
        let rounded = told(&|values| fold(&nodes, &mut values.into_iter().map(bf16).collect::<Vec<_>>()));
        assert_eq!(rounded.as_deref(), Some("rounding them to bf16 on the way"));
        let lost = told(&|values| fold(&nodes[1..], &mut values[1..].to_vec()));
        assert_eq!(lost.as_deref(), Some("losing the node over slots 0..2"));
        let swapped = told(&|mut values| {
            values.swap(0, 2);
            fold(&nodes, &mut values)
        });
        assert_eq!(swapped.as_deref(), Some("exchanging nodes 0 and 2"));
        assert_eq!(told(&|_| Some(12.5)), None, "nothing known explains it");
    }
}
