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
use engine::parallel::tree::{Node, fold};

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

/// Lists the nodes of the located element and says what they tell.
pub fn explain(
    side: &Side<'_>,
    (expected, found): (&[Slice], &[Slice]),
    located: &mut Located,
    sum: f32,
) -> Result<()> {
    let [input, partial] = inputs_of(located.op)[..] else { return Ok(()) };
    let x = assemble(expected, input);
    let column = located.element.column;
    let mut parts: Vec<(Node, f32)> = Vec::new();
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
        let found = slice.values[column];
        parts.push((node, found));
        located.nodes.push(NodeLine {
            rank: slice.rank,
            leaves,
            level: node.level,
            expected: Shown::from(right[0]),
            found: Shown::from(found),
        });
    }
    located.nodes.sort_by_key(|line| line.leaves);
    parts.sort_by_key(|(node, _)| node.start());
    located.cause = cause(located, &parts, sum);
    Ok(())
}

/// What the nodes tell about a wrong sum.
fn cause(located: &Located, parts: &[(Node, f32)], sum: f32) -> String {
    if parts.is_empty() {
        return String::new();
    }
    let wrong = located.nodes.iter().filter(|line| line.expected != line.found);
    let wrong: Vec<String> =
        wrong.map(|line| format!("{}..{} of rank {}", line.leaves.0, line.leaves.1, line.rank)).collect();
    if !wrong.is_empty() {
        return format!("the node over leaves {} is wrong: the product, not the sum", wrong.join(", "));
    }
    match mistake(parts, sum) {
        Some(mistake) => format!("every node is right, their sum is not: {mistake} gives exactly this value"),
        None => "every node is right, their sum is not".into(),
    }
}

/// Rounds to bf16, to nearest even.
fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let round = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(round) & 0xffff_0000)
}

/// The known mistake of addition whose result is `sum`.
pub fn mistake(parts: &[(Node, f32)], sum: f32) -> Option<String> {
    let nodes: Vec<Node> = parts.iter().map(|(node, _)| *node).collect();
    let values: Vec<f32> = parts.iter().map(|(_, value)| *value).collect();
    let is = |value: Option<f32>| value.is_some_and(|value| value.to_bits() == sum.to_bits());
    let folded = |nodes: &[Node], mut values: Vec<f32>| fold(nodes, &mut values);
    if is(folded(&nodes, values.clone())) {
        return None;
    }
    if is(values.iter().copied().reduce(|a, b| a + b)) {
        return Some("adding them in rank order".into());
    }
    if is(folded(&nodes, values.iter().map(|x| bf16(*x)).collect())) {
        return Some("rounding them to bf16 on the way".into());
    }
    let (steps, dropped) = (engine::parallel::tree::fold_plan(&nodes), |last: usize| {
        let mut values = values.clone();
        steps[..last].iter().for_each(|step| values[step.left] += values[step.right]);
        values.first().copied()
    });
    if let Some(kept) = (0..steps.len()).rev().find(|kept| is(dropped(*kept))) {
        return Some(format!("leaving out the last {} of {} additions", steps.len() - kept, steps.len()));
    }
    for i in 0..nodes.len() {
        let (mut fewer, mut rest) = (nodes.clone(), values.clone());
        (fewer.remove(i), rest.remove(i));
        if is(folded(&fewer, rest)) {
            return Some(format!("losing the node over slots {}..{}", nodes[i].start(), nodes[i].end()));
        }
        for j in 0..i {
            let mut swapped = values.clone();
            swapped.swap(i, j);
            if is(folded(&nodes, swapped)) {
                return Some(format!("exchanging nodes {j} and {i}"));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_from_their_result() {
        let nodes: Vec<Node> = engine::parallel::tree::cover(0, 3, 8);
        let nodes: Vec<Node> = [nodes, engine::parallel::tree::cover(3, 6, 8), engine::parallel::tree::cover(6, 8, 8)].concat();
        let values = [0.1_f32, 0.7, -3.3, 2.9, 1.0e-3];
        assert_eq!(nodes.len(), values.len());
        let parts: Vec<(Node, f32)> = nodes.iter().copied().zip(values).collect();
        let right = fold(&nodes, &mut values.clone()).unwrap();
        assert_eq!(mistake(&parts, right), None);
        let in_order = values.iter().copied().reduce(|a, b| a + b).unwrap();
        assert_ne!(in_order.to_bits(), right.to_bits(), "the example must tell the orders apart");
        assert_eq!(mistake(&parts, in_order).unwrap(), "adding them in rank order");
        let rounded: Vec<f32> = values.iter().map(|x| bf16(*x)).collect();
        let rounded = fold(&nodes, &mut rounded.clone()).unwrap();
        assert_eq!(mistake(&parts, rounded).unwrap(), "rounding them to bf16 on the way");
        let lost = fold(&nodes[1..], &mut values[1..].to_vec()).unwrap();
        assert_eq!(mistake(&parts, lost).unwrap(), "losing the node over slots 0..2");
        let mut swapped = values;
        swapped.swap(0, 2);
        let swapped = fold(&nodes, &mut swapped).unwrap();
        assert_eq!(mistake(&parts, swapped).unwrap(), "exchanging nodes 0 and 2");
        assert_eq!(mistake(&parts, 12.5), None);
    }
}
