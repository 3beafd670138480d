//! A bisection as a person reads it: a path from the run to the element.

use crate::bisect::finding::{Explanation, Finding, Located};
use std::fmt::Write;

/// Columns before a value.
const NAME: usize = 10;

/// Draws the path.
pub fn draw(explanation: &Explanation) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "trusted   {}", explanation.trusted);
    let _ = writeln!(out, "on trial  {}", explanation.trial);
    for note in &explanation.notes {
        let _ = writeln!(out, "note      {note}");
    }
    let unmatched = match explanation.unmatched {
        0 => String::new(),
        n => format!("; {n} results have no counterpart"),
    };
    let _ = writeln!(
        out,
        "compared  {} results of operators in {} replays, {} differ{unmatched}\n",
        explanation.compared, explanation.replays, explanation.differing
    );
    match &explanation.finding {
        Finding::Same => out.push_str("the same: no operator, no choice and no answer differs\n"),
        Finding::Operator(located) => path(&mut out, located),
        Finding::Choice(chosen) => {
            let _ = writeln!(out, "step {}", chosen.step);
            let _ = writeln!(out, "└─ every operator agrees");
            let _ = writeln!(out, "   └─ case `{}`, generated token {}", chosen.case, chosen.token);
            let _ = writeln!(
                out,
                "      └─ token {} was chosen, {} is right: the same logits, another choice",
                chosen.found, chosen.expected
            );
        }
        Finding::Delivery(case) => {
            let place = case.place.as_ref().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(out, "every operator agrees, and every greedy choice");
            let _ = writeln!(out, "└─ case `{}`, {place}", case.case);
            let _ = writeln!(out, "   └─ {}: drawn, ended or delivered otherwise", case.why);
        }
        Finding::Failed { why } => {
            let _ = writeln!(out, "every operator agrees, but there is no answer\n└─ {why}");
        }
    }
    if explanation.tokens_turned > 0 {
        let _ = writeln!(
            out,
            "\n{} tokens along the trusted continuation would have been chosen otherwise",
            explanation.tokens_turned
        );
    }
    out
}

/// The path to an element.
fn path(out: &mut String, at: &Located) {
    let layer = match at.layer == at.layers {
        true => "after the last layer".to_owned(),
        false => format!("layer {} of {}", at.layer, at.layers),
    };
    let mut ranks: Vec<String> = at.ranks.iter().map(ToString::to_string).collect();
    if ranks.len() == 1 {
        ranks.clear();
    }
    let also = match ranks.is_empty() {
        true => String::new(),
        false => format!(" (ranks {} hold a copy that differs)", ranks.join(", ")),
    };
    let steps = [
        format!("step {}", at.step),
        layer,
        at.op.name().to_owned(),
        format!("case `{}`, {} (position {})", at.case, at.token, at.position),
        format!("rank {}, columns {}..{}{also}", at.rank, at.shard.0, at.shard.1),
        format!("column {}: {}", at.element.column, at.element.meaning),
    ];
    for (depth, step) in steps.iter().enumerate() {
        let arm = if depth == 0 { String::new() } else { format!("{}└─ ", "   ".repeat(depth - 1)) };
        let _ = writeln!(out, "{arm}{step}");
    }
    let indent = "   ".repeat(steps.len() - 1);
    for (name, value) in [("expected", &at.element.expected), ("found", &at.element.found)] {
        let _ = writeln!(out, "{indent}{name:<NAME$}{:<16} 0x{}", value.value, value.bits);
    }
    let apart = at.element.ulp.map_or("not comparable: NaN".to_owned(), |ulp| format!("{ulp} ULP"));
    let most = at.max_ulp.map_or(String::new(), |ulp| format!(", at most {ulp} ULP"));
    let _ = writeln!(
        out,
        "{indent}{:<NAME$}{apart}; {} of {} columns of this row differ{most}",
        "apart",
        at.differing,
        at.shard.1 - at.shard.0
    );
    if at.nodes.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nthe nodes of this element:");
    for node in &at.nodes {
        let mark = if node.expected == node.found { " " } else { "!" };
        let _ = writeln!(
            out,
            " {mark} leaves {:>4}..{:<4} level {:<2} rank {:<3} {:<16} 0x{}  reference 0x{}",
            node.leaves.0,
            node.leaves.1,
            node.level,
            node.rank,
            node.found.value,
            node.found.bits,
            node.expected.bits
        );
    }
    let _ = writeln!(out, "{}", at.cause);
}
