//! The innermost door: `DynamicInferenceEngine`, its requests added and its steps taken by hand.

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::error::{HarnessError, Result};
use crate::golden::GoldenCase;
use crate::matrix::file::Arrival;
use crate::subject::own::question::{self, Question, Said, Scores};
use crate::subject::own::{Plan, refused};
use crate::subject::{Answered, Ask, Info, Subject};
use engine::request::RequestOutput;
use engine::schedule::ModelFacts;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::engine::DynamicInferenceEngine;
use engine::step::rank::Deployment;
use engine::step::report::StepReport;
use std::collections::{BTreeMap, VecDeque};

/// Steps between two arrivals when requests arrive while others run.
const STEPS_BETWEEN: u64 = 3;
/// Steps after which a run is surely stuck.
const MOST_STEPS: u64 = 1_000_000;

/// One engine of one replica, worked by hand.
pub(crate) struct EngineDoor {
    engine: DynamicInferenceEngine,
    name: String,
}

impl EngineDoor {
    /// Starts the ranks and the engine.
    pub fn new(plan: Plan) -> Result<Self> {
        let layout = plan.cell.layout;
        if layout.replicas() != 1 {
            return Err(HarnessError::subject(
                "our engine",
                format!("layout {layout} has several replicas, and this door works one engine"),
                "go through a front door that routes between replicas",
            ));
        }
        let device: DeviceKind = plan.cell.device.parse().map_err(refused)?;
        let spec = plan.checkpoint.spec();
        let (eos, max_positions) = (spec.eos.clone(), spec.max_positions);
        let deployment = Deployment::new(plan.checkpoint, plan.config, layout.0).map_err(refused)?;
        let facts = ModelFacts { eos, max_positions, num_blocks: deployment.blocks().map_err(refused)? };
        let executor = executors(&deployment, device).map_err(refused)?.pop();
        let none = || HarnessError::subject("our engine", "the deployment has no replica", "report this");
        let engine = DynamicInferenceEngine::new(executor.ok_or_else(none)?, &deployment.config, &facts);
        Ok(Self { engine: engine.map_err(refused)?, name: format!("engine {layout} on {device}") })
    }

    /// Runs questions to their end, adding them as the arrival plan says.
    fn run(&mut self, ask: &Ask<'_>, questions: Vec<Question>) -> Result<Vec<(usize, Said)>> {
        let mut waiting: VecDeque<Question> = questions.into();
        let mut running: BTreeMap<u64, usize> = BTreeMap::new();
        let mut streamed: BTreeMap<u64, (Vec<u32>, Vec<f32>)> = BTreeMap::new();
        let mut said = Vec::new();
        let (mut seen, mut suspended) = (0, ask.feature.suspend.is_none());
        let mut report = StepReport::default();
        for step in 0..MOST_STEPS {
            let arrive = match ask.feature.arrival {
                Arrival::Together | Arrival::Twins => waiting.len(),
                Arrival::OneByOne => usize::from(running.is_empty()),
                Arrival::Concurrent => usize::from(running.is_empty() || step.is_multiple_of(STEPS_BETWEEN)),
            };
            for question in waiting.drain(..arrive.min(waiting.len())) {
                running.insert(self.engine.add_request(question.spec()).map_err(refused)?, question.case);
            }
            if running.is_empty() {
                return Ok(said);
            }
            self.engine.step_into(&mut report).map_err(refused)?;
            for update in &report.updates {
                let (tokens, logprobs) = streamed.entry(update.request).or_default();
                tokens.extend_from_slice(report.tokens(update));
                logprobs.extend_from_slice(report.logprobs(update));
                seen += report.tokens(update).len();
            }
            for output in report.finished.drain(..) {
                let Some(case) = running.remove(&output.id) else { continue };
                let stream = streamed.remove(&output.id).filter(|_| ask.feature.stream);
                said.push((case, said_of(output, stream)));
            }
            if !suspended && ask.feature.suspend.is_some_and(|suspend| seen >= suspend.after_tokens) {
                suspended = true;
                self.engine.suspend().map_err(refused)?;
                self.engine.resume().map_err(refused)?;
            }
        }
        Err(HarnessError::subject(
            self.name.clone(),
            "requests do not end",
            "report this: the scheduler is stuck",
        ))
    }
}

/// An output, with tokens taken from the stream where that is asked for.
fn said_of(output: RequestOutput, stream: Option<(Vec<u32>, Vec<f32>)>) -> Said {
    let (tokens, logprobs) = match stream {
        Some((tokens, logprobs)) => (tokens, Some(logprobs)),
        None => (output.generated, output.logprobs),
    };
    Said { prompt: output.prompt, tokens, logprobs, finish: output.finish, error: output.error }
}

impl Subject for EngineDoor {
    fn info(&self) -> Info {
        Info { name: self.name.clone(), ..Info::default() }
    }

    fn answer(&mut self, ask: &Ask<'_>) -> Result<Answered> {
        // Counters and caches start afresh: what is witnessed belongs to this cell.
        self.engine.reset().map_err(refused)?;
        let before = self.engine.witness().executor.rank_steps;
        let said = self.run(ask, question::questions(ask))?;
        let mut witnesses = Witnesses::new();
        question::add_witness(&mut witnesses, &self.engine.witness(), &before);
        Ok(Answered { answers: question::answers(ask, said), witnesses })
    }

    fn force(&mut self, case: &GoldenCase) -> std::result::Result<Forced, String> {
        self.engine.reset().map_err(|error| error.to_string())?;
        let spec = question::forced_question(case).spec();
        let output = self.engine.generate(vec![spec]).map_err(|error| error.to_string())?.pop();
        let output = output.ok_or("no answer to the forced prompt")?;
        let scores = Scores {
            prompt: output.prompt_logprobs.unwrap_or_default(),
            prompt_top: output.prompt_top_logprobs.unwrap_or_default(),
            last_top: output.top_logprobs.and_then(|mut top| top.pop()).unwrap_or_default(),
        };
        question::forced(case, &scores)
    }
}
