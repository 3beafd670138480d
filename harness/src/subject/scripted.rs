//! A scripted subject: answers from a golden, with witnesses as demanded. It stands in for an engine where the harness
//! itself is on trial; a script may then spoil what it says.

use crate::compare::Verdict;
use crate::compare::near_tie::Forced;
use crate::compare::witness::Op;
use crate::error::{HarnessError, Result};
use crate::golden::{Golden, GoldenCase};
use crate::matrix::{Cell, Matrix};
use crate::run::Fleet;
use crate::run::inputs::ModelInput;
use crate::subject::{Answer, Answered, Ask, Info, Subject};
use std::sync::Arc;

/// Spoils what the scripted subject is about to say about a cell.
pub type Spoil = Arc<dyn Fn(&Cell, &mut Answered) + Send + Sync>;
/// Spoils what it says when it is teacher-forced.
pub type SpoilForced = Arc<dyn Fn(&GoldenCase) -> std::result::Result<Forced, String> + Send + Sync>;

/// Builds scripted subjects.
#[derive(Clone)]
pub struct ScriptedFleet {
    /// Spoils answers.
    pub spoil: Spoil,
    /// Answers teacher forcing.
    pub forced: SpoilForced,
    /// Cells whose subject cannot be built.
    pub unavailable: Option<fn(&Cell) -> bool>,
}

/// An honest answer: the golden's own tokens, its log-probabilities one unit in the last place off, as another
/// implementation's would be.
pub fn honest(suite: &Golden) -> Vec<Answer> {
    let off_by_one = |value: &f32| f32::from_bits(value.to_bits() + 1);
    let one = |case: &GoldenCase| {
        let logprobs = case.logprobs.iter().map(off_by_one).collect();
        Answer { logprobs: Some(logprobs), ..Answer::of_golden(case) }
    };
    suite.cases.iter().map(one).collect()
}

/// The least number that meets each demand of a cell.
fn obliging(cell: &Cell) -> crate::compare::Witnesses {
    let least = |op: Op, number: u64| match op {
        Op::Eq | Op::Ge | Op::Le => number,
        Op::Gt => number + 1,
        Op::Lt => number.saturating_sub(1),
    };
    cell.demands.iter().map(|(name, demand)| (name.clone(), least(demand.op, demand.number))).collect()
}

impl ScriptedFleet {
    /// A fleet of honest subjects.
    pub fn honest() -> Self {
        Self {
            spoil: Arc::new(|_, _| {}),
            forced: Arc::new(|_| {
                Err(format!("an honest subject never gets below {}", Verdict::IdenticalTokens))
            }),
            unavailable: None,
        }
    }
}

impl Fleet for ScriptedFleet {
    fn key(&self, _matrix: &Matrix, cell: &Cell) -> String {
        format!("{} {} {}", cell.model, cell.layout, cell.api)
    }

    fn build(&self, _matrix: &Matrix, cell: &Cell, _model: &ModelInput) -> Result<Box<dyn Subject>> {
        if self.unavailable.is_some_and(|unavailable| unavailable(cell)) {
            return Err(HarnessError::subject("scripted", "it is not there", "nothing: this is a test"));
        }
        Ok(Box::new(Scripted { fleet: self.clone() }))
    }
}

struct Scripted {
    fleet: ScriptedFleet,
}

impl Subject for Scripted {
    fn info(&self) -> Info {
        Info { name: "scripted".into(), ..Info::default() }
    }

    fn answer(&mut self, ask: &Ask<'_>) -> Result<Answered> {
        let mut answered = Answered { answers: honest(ask.suite), ..Answered::default() };
        if let Some(cell) = ask.cell {
            answered.witnesses = obliging(cell);
            (self.fleet.spoil)(cell, &mut answered);
        }
        Ok(answered)
    }

    fn force(&mut self, case: &GoldenCase) -> std::result::Result<Forced, String> {
        (self.fleet.forced)(case)
    }
}
