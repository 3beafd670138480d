//! The innermost door: `DynamicInferenceEngine`, its requests added and its steps taken by hand. A layout with several
//! replicas has one engine for each; a case always goes to the same one, so that its twin finds its prefix there.

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::error::{HarnessError, Result};
use crate::golden::GoldenCase;
use crate::matrix::file::Arrival;
use crate::subject::own::question::{self, Question, Said, Scores};
use crate::subject::own::script::{Directed, Script};
use crate::subject::own::{Instruments, Plan, refused, transport};
use crate::subject::{Answered, Ask, Info, Subject};
use engine::request::RequestOutput;
use engine::schedule::ModelFacts;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::engine::DynamicInferenceEngine;
use engine::step::job;
use engine::step::rank::Deployment;
use engine::step::report::StepReport;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Steps between two arrivals when requests arrive while others run.
const STEPS_BETWEEN: u64 = 3;
/// Steps after which a run is surely stuck.
const MOST_STEPS: u64 = 1_000_000;

/// One engine for each replica, worked by hand.
pub(crate) struct EngineDoor {
    engines: Vec<DynamicInferenceEngine>,
    name: String,
    script: Option<Arc<Script>>,
}

impl EngineDoor {
    /// Starts the ranks and the engine, watched and disturbed by `instruments`.
    pub fn new(plan: Plan, instruments: &Instruments) -> Result<Self> {
        let layout = plan.cell.layout;
        let device: DeviceKind = plan.cell.device.parse().map_err(refused)?;
        let checkpoint = std::sync::Arc::clone(plan.model.checkpoint());
        let spec = checkpoint.spec();
        let (eos, max_positions) = (spec.eos.clone(), spec.max_positions);
        let deployment = Deployment::new(checkpoint, plan.config, layout.0).map_err(refused)?;
        let mut deployment = Deployment { source: Some(plan.source), ..deployment };
        instruments.fit(&mut deployment);
        let facts = ModelFacts { eos, max_positions, num_blocks: deployment.blocks().map_err(refused)? };
        let engine = |(replica, inner)| {
            let executor = match instruments.script.clone() {
                Some(script) => Box::new(Directed { inner, script, replica }),
                None => inner,
            };
            let engine = DynamicInferenceEngine::new(executor, &deployment.config, &facts);
            #[cfg(feature = "faults")]
            let engine = engine.map(|mut engine| {
                instruments.fault.into_iter().for_each(|fault| engine.plant(fault, replica as u64));
                engine
            });
            engine
        };
        let executors = match plan.cell.transport.as_str() {
            transport::MPI => job::executors(&deployment, device),
            _ => executors(&deployment, device),
        };
        let executors = executors.map_err(refused)?;
        let engines = executors.into_iter().enumerate().map(engine).collect::<engine::Result<Vec<_>>>();
        Ok(Self {
            engines: engines.map_err(refused)?,
            name: format!("engine {layout} on {device}, {}", plan.cell.transport),
            script: instruments.script.clone(),
        })
    }

    /// Runs questions to their end, adding them as the arrival plan says.
    fn run(&mut self, ask: &Ask<'_>, questions: Vec<Question>) -> Result<Vec<(usize, Said)>> {
        let mut waiting: VecDeque<Question> = questions.into();
        let mut running: BTreeMap<(usize, u64), usize> = BTreeMap::new();
        let mut streamed: BTreeMap<(usize, u64), (Vec<u32>, Vec<f32>)> = BTreeMap::new();
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
                let replica = question.case % self.engines.len();
                let id = self.engines[replica].add_request(question.spec()).map_err(refused)?;
                if let Some(script) = &self.script {
                    script.assign((replica, id), question.case);
                }
                running.insert((replica, id), question.case);
            }
            if running.is_empty() {
                return Ok(said);
            }
            for (replica, engine) in self.engines.iter_mut().enumerate() {
                engine.step_into(&mut report).map_err(refused)?;
                for update in &report.updates {
                    let (tokens, logprobs) = streamed.entry((replica, update.request)).or_default();
                    tokens.extend_from_slice(report.tokens(update));
                    logprobs.extend_from_slice(report.logprobs(update));
                    seen += report.tokens(update).len();
                }
                for output in report.finished.drain(..) {
                    let key = (replica, output.id);
                    let Some(case) = running.remove(&key) else { continue };
                    let stream = streamed.remove(&key).filter(|_| ask.feature.stream);
                    said.push((case, said_of(output, stream)));
                }
            }
            if !suspended && ask.feature.suspend.is_some_and(|suspend| seen >= suspend.after_tokens) {
                suspended = true;
                for engine in &mut self.engines {
                    engine.suspend().map_err(refused)?;
                    engine.resume().map_err(refused)?;
                }
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
        let mut before = Vec::new();
        for engine in &mut self.engines {
            engine.reset().map_err(refused)?;
            before.push(engine.witness().executor.rank_steps);
        }
        let said = self.run(ask, question::questions(ask))?;
        let mut witnesses = Witnesses::new();
        for (engine, before) in self.engines.iter().zip(&before) {
            question::add_witness(&mut witnesses, &engine.witness(), before);
        }
        Ok(Answered { answers: question::answers(ask, said), witnesses })
    }

    fn force(&mut self, case: &GoldenCase) -> std::result::Result<Forced, String> {
        let engine = self.engines.first_mut().ok_or("the deployment has no replica")?;
        engine.reset().map_err(|error| error.to_string())?;
        let spec = question::forced_question(case).spec();
        let output = engine.generate(vec![spec]).map_err(|error| error.to_string())?.pop();
        let output = output.ok_or("no answer to the forced prompt")?;
        let scores = Scores {
            prompt: output.prompt_logprobs.unwrap_or_default(),
            prompt_top: output.prompt_top_logprobs.unwrap_or_default(),
            last_top: output.top_logprobs.and_then(|mut top| top.pop()).unwrap_or_default(),
        };
        question::forced(case, &scores)
    }
}
