//! The doors that programs use: `MegatronLLM` and `MegatronAsyncLLM`, asked as a program asks them, and looked at through
//! their accessors.

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::error::{HarnessError, Result};
use crate::golden::GoldenCase;
use crate::matrix::file::Arrival;
use crate::matrix::{Action, Api};
use crate::subject::own::Plan;
use crate::subject::own::facade::{Facade, refused};
use crate::subject::own::question::{self, Question, Said, Scores};
use crate::subject::{Answered, Ask, Info, Subject};
use api::Builder;
use engine::step::witness::Witness;
use std::collections::BTreeMap;

/// A façade in one layout.
pub(crate) struct FacadeDoor {
    facade: Facade,
    name: String,
    /// Positions that the model has: one more is too long a prompt.
    max_positions: usize,
}

impl FacadeDoor {
    /// Starts the engines behind the façade that the cell names.
    pub fn new(plan: Plan) -> Result<Self> {
        let cell = &plan.cell;
        let max_positions = plan.model.spec().max_positions;
        let builder = Builder::opened(plan.model)
            .config(plan.config)
            .layout(cell.layout.full())
            .device(cell.device.clone());
        let facade = match cell.api {
            Api::AsyncDirect | Api::AsyncCoordinator | Api::Serve => {
                Facade::Asynchronous(builder.build_async().map_err(refused)?)
            }
            _ => Facade::Blocking(builder.build().map_err(refused)?),
        };
        let class = if matches!(facade, Facade::Blocking(_)) { "MegatronLLM" } else { "MegatronAsyncLLM" };
        Ok(Self {
            facade,
            name: format!("{class} {}, {} on {}", cell.api, cell.layout, cell.device),
            max_positions,
        })
    }

    /// The façade.
    pub fn facade(&self) -> &Facade {
        &self.facade
    }

    /// Counters and caches start afresh: what is witnessed belongs to this cell. Returns what does not start afresh.
    pub fn begin(&self) -> Result<Vec<Witness>> {
        self.facade.reset()?;
        self.facade.witnesses()
    }

    /// Adds what was witnessed since [`Self::begin`].
    pub fn end(&self, before: &[Witness], witnesses: &mut Witnesses) -> Result<()> {
        for (after, before) in self.facade.witnesses()?.iter().zip(before) {
            question::add_witness(witnesses, after, &before.executor.rank_steps);
        }
        Ok(())
    }

    /// Puts the questions while what the cell's fault plan says goes wrong. Adds what of it was seen to `witnesses`.
    fn disturbed(
        &self,
        ask: &Ask<'_>,
        questions: &[Question],
        witnesses: &mut Witnesses,
    ) -> Result<Vec<Said>> {
        match ask.fault.map(|fault| fault.action) {
            Some(Action::Abandon) => {
                let strangers = self.facade.strangers(&question::strangers(ask))?;
                std::thread::scope(|scope| {
                    let ours = scope.spawn(|| self.run(ask, questions));
                    drop(strangers);
                    ours.join().map_err(|_| {
                        HarnessError::subject(&self.name, "the thread that asked has died", "none")
                    })?
                })
            }
            Some(Action::Overlong) => {
                let overlong = question::overlong(ask, self.max_positions);
                let refused = std::thread::scope(|scope| {
                    let ours = scope.spawn(|| self.run(ask, questions));
                    let refused = self.facade.outputs(&[overlong]).is_err();
                    (refused, ours.join())
                });
                witnesses.insert("refused".into(), u64::from(refused.0));
                refused.1.map_err(|_| {
                    HarnessError::subject(&self.name, "the thread that asked has died", "none")
                })?
            }
            _ => self.run(ask, questions),
        }
    }

    /// Puts the questions as the arrival plan says.
    fn run(&self, ask: &Ask<'_>, questions: &[Question]) -> Result<Vec<Said>> {
        let one = |question: &Question| {
            let question = std::slice::from_ref(question);
            if ask.feature.stream {
                self.facade.streamed(question, &|_| {})
            } else {
                self.facade.together(question)
            }
        };
        match ask.feature.arrival {
            Arrival::OneByOne => {
                questions.iter().map(one).collect::<Result<Vec<_>>>().map(|all| all.concat())
            }
            _ if ask.feature.stream => self.facade.streamed(questions, &|_| {}),
            Arrival::Together | Arrival::Twins => self.facade.together(questions),
            Arrival::Concurrent => self.facade.concurrently(questions),
        }
    }
}

impl Subject for FacadeDoor {
    fn info(&self) -> Info {
        let card = self.facade.card();
        let none = || "none".to_owned();
        let details = BTreeMap::from([
            ("model digest".to_owned(), card.model_digest.clone()),
            ("tokenizer digest".to_owned(), card.tokenizer_digest.clone().unwrap_or_else(none)),
            ("layout".to_owned(), card.layout.clone()),
            ("numerics".to_owned(), card.numerics.clone()),
        ]);
        Info { name: self.name.clone(), details, cannot: Vec::new() }
    }

    fn answer(&mut self, ask: &Ask<'_>) -> Result<Answered> {
        let before = self.begin()?;
        let questions = question::questions(ask);
        let mut witnesses = Witnesses::new();
        let said = self.disturbed(ask, &questions, &mut witnesses)?;
        self.end(&before, &mut witnesses)?;
        let said = questions.iter().map(|question| question.case).zip(said).collect();
        Ok(Answered { answers: question::answers(ask, said), witnesses })
    }

    fn force(&mut self, case: &GoldenCase) -> std::result::Result<Forced, String> {
        let question = question::forced_question(case);
        let output = self.facade.outputs(&[question]).map_err(|error| error.to_string())?.pop();
        let output = output.ok_or("no answer to the forced prompt")?;
        let scores = Scores {
            prompt: output.prompt_logprobs.unwrap_or_default(),
            prompt_top: output.prompt_top_logprobs.unwrap_or_default(),
            last_top: output.top_logprobs.and_then(|mut top| top.pop()).unwrap_or_default(),
        };
        question::forced(case, &scores)
    }
}
