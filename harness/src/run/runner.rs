//! The runner: groups cells by the subject they share, runs anchors first, then every cell; one thread tells it all.

use crate::compare::cell::Requirement;
use crate::compare::{
    CaseFinding, CellFinding, Relation, Rules, Verdict, Witnesses, compare_bitwise, compare_reference, judge,
};
use crate::error::{HarnessError, Result};
use crate::golden::quarantine::Quarantine;
use crate::matrix::{Cell, Matrix};
use crate::run::event::{CellResult, Event, Header, Outcome, Sink, Summary};
use crate::run::inputs::{Inputs, ModelInput, SuiteInput};
use crate::subject::{Answer, Answered, Ask, Subject};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

/// Builds subjects. Shared by the workers.
pub trait Fleet: Sync {
    /// Cells with equal keys are answered by one and the same subject, one after another.
    fn key(&self, matrix: &Matrix, cell: &Cell) -> String;

    /// Builds the subject of such a group. An error means that none of its cells runs.
    fn build(&self, matrix: &Matrix, cell: &Cell, model: &ModelInput) -> Result<Box<dyn Subject>>;
}

/// How to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Workers; each holds one subject at a time. At least 1.
    pub workers: usize,
    /// Known failures.
    pub quarantine: Quarantine,
    /// Today, `YYYY-MM-DD`, for the quarantine.
    pub today: String,
}

/// Events that may wait for the sinks before a worker waits for them.
const MOST_EVENTS: usize = 256;

type Anchors = BTreeMap<String, std::result::Result<Vec<Answer>, String>>;

/// What the workers share.
struct Shared<'a> {
    matrix: &'a Matrix,
    inputs: &'a Inputs,
    fleet: &'a dyn Fleet,
    options: &'a Options,
    stop: &'a AtomicBool,
}

/// Cells that share a subject.
struct Group<'a> {
    key: String,
    cells: Vec<&'a Cell>,
}

/// What a worker hands over: an event for the sinks, or an anchor's answers for the other workers.
enum Told {
    Event(Box<Event>),
    Anchor(String, std::result::Result<Vec<Answer>, String>),
}

/// Runs `cells` and tells `sinks` everything. Returns the totals. A sink that fails stops the run.
pub fn run(
    (matrix, inputs, cells): (&Matrix, &Inputs, &[Cell]),
    header: Header,
    fleet: &dyn Fleet,
    options: &Options,
    sinks: &mut [&mut dyn Sink],
) -> Result<Summary> {
    if cells.is_empty() {
        return Err(HarnessError::NothingSelected { reason: "no cell of the matrix is left".into() });
    }
    let stop = AtomicBool::new(false);
    let shared = Shared { matrix, inputs, fleet, options, stop: &stop };
    let mut summary = Summary::default();
    tell(sinks, &Event::RunStarted { header })?;
    let needed: BTreeMap<String, Cell> = cells
        .iter()
        .filter(|cell| cell.relation == Relation::Bitwise)
        .map(|cell| matrix.anchor_of(cell))
        .map(|anchor| (anchor.id.clone(), anchor))
        .collect();
    let mut anchors = Anchors::new();
    let anchor_cells: Vec<Cell> = needed.into_values().collect();
    pool(&shared, &groups(&shared, anchor_cells.iter()), &Anchors::new(), &mut |told| match told {
        Told::Event(event) => tell(sinks, &event),
        Told::Anchor(id, answers) => {
            anchors.insert(id, answers);
            Ok(())
        }
    })?;
    pool(&shared, &groups(&shared, cells.iter()), &anchors, &mut |told| {
        let Told::Event(event) = told else { return Ok(()) };
        if let Event::CellFinished { result } = event.as_ref() {
            summary.add(result);
        }
        tell(sinks, &event)
    })?;
    summary.interrupted = summary.cells != cells.len();
    tell(sinks, &Event::RunFinished { summary: summary.clone() })?;
    Ok(summary)
}

/// Tells every sink.
fn tell(sinks: &mut [&mut dyn Sink], event: &Event) -> Result<()> {
    sinks.iter_mut().try_for_each(|sink| sink.event(event))
}

/// Groups cells by subject, in order of first appearance, the largest groups first so that workers end together.
fn groups<'a>(shared: &Shared<'_>, cells: impl Iterator<Item = &'a Cell>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut index = BTreeMap::new();
    for cell in cells {
        let key = shared.fleet.key(shared.matrix, cell);
        let at = *index.entry(key.clone()).or_insert(groups.len());
        if at == groups.len() {
            groups.push(Group { key, cells: Vec::new() });
        }
        groups[at].cells.push(cell);
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.cells.len()));
    groups
}

/// Lets the workers take groups until none is left; hands what they tell to `hear`, on this thread.
fn pool(
    shared: &Shared<'_>,
    groups: &[Group<'_>],
    anchors: &Anchors,
    hear: &mut dyn FnMut(Told) -> Result<()>,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let workers = shared.options.workers.clamp(1, groups.len().max(1));
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(MOST_EVENTS);
        for _ in 0..workers {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if shared.stop.load(Ordering::Relaxed) || work(shared, group, anchors, &sender).is_none()
                    {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut heard = Ok(());
        for told in receiver {
            if heard.is_ok() {
                heard = hear(told);
                shared.stop.store(heard.is_err(), Ordering::Relaxed);
            }
        }
        heard
    })
}

/// Builds a group's subject and runs its cells. `None` when nobody listens any more.
fn work(shared: &Shared<'_>, group: &Group<'_>, anchors: &Anchors, sender: &SyncSender<Told>) -> Option<()> {
    let first = group.cells.first()?;
    let start = Instant::now();
    let built = match shared.inputs.models.get(&first.model) {
        Some(Ok(model)) => shared.fleet.build(shared.matrix, first, model).map_err(|error| error.to_string()),
        Some(Err(why)) => Err(why.clone()),
        None => Err("its model was not gathered".into()),
    };
    let mut subject = match built {
        Ok(subject) => {
            let (info, millis) = (subject.info(), millis(start));
            sender
                .send(Told::Event(Box::new(Event::SubjectReady { group: group.key.clone(), info, millis })))
                .ok()?;
            Ok(subject)
        }
        Err(why) => Err(why),
    };
    for cell in &group.cells {
        if shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        let start = Instant::now();
        if cell.block == "anchor" {
            let answered = ask(shared, cell, &mut subject).map(|(answered, _)| answered.answers);
            let digest = answered.as_deref().map(crate::digest::answers_sha256).unwrap_or_default();
            let why = answered.as_ref().err().cloned().unwrap_or_default();
            let (id, millis) = (cell.id.clone(), millis(start));
            let event = Event::AnchorFinished { id: id.clone(), answers_sha256: digest, why, millis };
            sender.send(Told::Event(Box::new(event))).ok()?;
            sender.send(Told::Anchor(id, answered)).ok()?;
            continue;
        }
        sender.send(Told::Event(Box::new(Event::CellStarted { id: cell.id.clone() }))).ok()?;
        let result = Box::new(run_cell(shared, cell, &mut subject, anchors));
        sender.send(Told::Event(Box::new(Event::CellFinished { result }))).ok()?;
    }
    Some(())
}

/// Whole milliseconds since `start`.
fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

type Built = std::result::Result<Box<dyn Subject>, String>;

/// Puts a cell's question.
fn ask<'a>(
    shared: &Shared<'a>,
    cell: &Cell,
    subject: &mut Built,
) -> std::result::Result<(Answered, &'a SuiteInput), String> {
    let subject = subject.as_mut().map_err(|why| why.clone())?;
    let suite = shared.inputs.suite(cell)?;
    let feature = shared.matrix.spec.features.get(&cell.feature).ok_or("its feature set is not defined")?;
    let fault = shared.matrix.spec.faults.get(&cell.fault);
    let question = Ask { suite: &suite.golden, feature, fault, cell: Some(cell) };
    let answered = subject.answer(&question).map_err(|error| error.to_string())?;
    Ok((answered, suite))
}

/// Runs one cell and judges it.
fn run_cell(shared: &Shared<'_>, cell: &Cell, subject: &mut Built, anchors: &Anchors) -> CellResult {
    let start = Instant::now();
    let asked = ask(shared, cell, subject);
    let (finding, golden, witnesses, answers_sha256) = match asked {
        Err(why) => {
            let none = CaseFinding::new("(all)", Verdict::NotRun);
            let none = none.fail(Verdict::NotRun, crate::compare::Place::Case, why);
            (
                judge(&requirement(cell, 1), vec![none], &Witnesses::new()),
                None,
                Witnesses::new(),
                String::new(),
            )
        }
        Ok((answered, suite)) => {
            let (finding, golden) = compare(shared, (cell, suite), &answered, subject, anchors);
            let digest = crate::digest::answers_sha256(&answered.answers);
            (finding, golden, answered.witnesses, digest)
        }
    };
    let passed = finding.passed && golden.as_ref().is_none_or(|golden| golden.passed);
    let quarantine = shared.options.quarantine.covering(cell, &shared.options.today).cloned();
    let outcome = match (passed, &quarantine) {
        (true, _) => Outcome::Passed,
        (false, Some(_)) => Outcome::Quarantined,
        (false, None) => Outcome::Failed,
    };
    let cell = cell.clone();
    CellResult {
        cell,
        outcome,
        finding,
        golden,
        witnesses,
        answers_sha256,
        millis: millis(start),
        quarantine,
    }
}

/// What the cell needs under its own relation.
fn requirement(cell: &Cell, cases: usize) -> Requirement {
    Requirement { relation: cell.relation, verdict: cell.required, demands: cell.demands.clone(), cases }
}

/// Compares a cell's answers under its relation, and a `bitwise` cell's with the golden too when it names a bound.
fn compare(
    shared: &Shared<'_>,
    (cell, suite): (&Cell, &SuiteInput),
    answered: &Answered,
    subject: &mut Built,
    anchors: &Anchors,
) -> (CellFinding, Option<CellFinding>) {
    let sampled =
        shared.matrix.spec.features.get(&cell.feature).is_some_and(|feature| feature.sampling.is_some());
    let bound = cell.bound.as_ref().and_then(|name| shared.matrix.spec.bounds.get(name));
    let cases = suite.golden.cases.len();
    let mut with_golden = |requirement: &Requirement| {
        let bound = bound?.clone();
        let findings = reference_findings(suite, answered, &Rules { bound, logprobs: true }, subject);
        Some(judge(requirement, findings, &answered.witnesses))
    };
    let own = requirement(cell, cases);
    if cell.relation == Relation::Reference {
        let nothing = || judge(&own, Vec::new(), &answered.witnesses);
        return (with_golden(&own).unwrap_or_else(nothing), None);
    }
    let anchor = anchors.get(&shared.matrix.anchor_of(cell).id);
    let findings = bitwise_findings(suite, answered, anchor);
    // A golden is greedy; sampled answers are another question.
    let verdict = Verdict::IdenticalTokens;
    let golden = Requirement { relation: Relation::Reference, verdict, demands: BTreeMap::new(), cases };
    let golden = if sampled { None } else { with_golden(&golden) };
    (judge(&own, findings, &answered.witnesses), golden)
}

/// The answer to a case. Two answers to one case, or an answer to no case, spoil the whole comparison.
fn answer_to<'a>(answers: &'a [Answer], case: &str) -> std::result::Result<Option<&'a Answer>, String> {
    let mut to_case = answers.iter().filter(|answer| answer.case == case);
    let first = to_case.next();
    if to_case.next().is_some() { Err("the subject answered twice".into()) } else { Ok(first) }
}

/// A finding for each answer that nobody asked for.
fn unasked(suite: &SuiteInput, answers: &[Answer]) -> Vec<CaseFinding> {
    let known: BTreeSet<&str> = suite.golden.cases.iter().map(|case| case.id.as_str()).collect();
    let foreign = answers.iter().filter(|answer| !known.contains(answer.case.as_str()));
    let place = crate::compare::Place::Case;
    let why = "the subject answered a case that was not asked";
    foreign
        .map(|a| CaseFinding::new(&a.case, Verdict::Diverged).fail(Verdict::Diverged, place.clone(), why))
        .collect()
}

/// Findings against the golden.
pub fn reference_findings(
    suite: &SuiteInput,
    answered: &Answered,
    rules: &Rules,
    subject: &mut Built,
) -> Vec<CaseFinding> {
    let mut force = |case: &crate::golden::GoldenCase| match subject {
        Ok(subject) => subject.force(case),
        Err(why) => Err(why.clone()),
    };
    let one = |case: &crate::golden::GoldenCase| match answer_to(&answered.answers, &case.id) {
        Ok(answer) => compare_reference(case, answer, rules, &mut force),
        Err(why) => CaseFinding::new(&case.id, Verdict::Diverged).fail(
            Verdict::Diverged,
            crate::compare::Place::Case,
            why,
        ),
    };
    let mut findings: Vec<CaseFinding> = suite.golden.cases.iter().map(one).collect();
    findings.extend(unasked(suite, &answered.answers));
    findings
}

/// Findings against the anchor.
fn bitwise_findings(
    suite: &SuiteInput,
    answered: &Answered,
    anchor: Option<&std::result::Result<Vec<Answer>, String>>,
) -> Vec<CaseFinding> {
    let place = || crate::compare::Place::Case;
    let fail = |case: &str, verdict, why: String| CaseFinding::new(case, verdict).fail(verdict, place(), why);
    let anchor = match anchor {
        Some(Ok(anchor)) => anchor,
        Some(Err(why)) => {
            return vec![fail("(all)", Verdict::NotComparable, format!("the anchor did not run: {why}"))];
        }
        None => return vec![fail("(all)", Verdict::NotComparable, "the anchor did not run".into())],
    };
    let one = |case: &crate::golden::GoldenCase| match (
        answer_to(anchor, &case.id),
        answer_to(&answered.answers, &case.id),
    ) {
        (Ok(expected), Ok(actual)) => compare_bitwise(&case.id, expected, actual),
        (_, Err(why)) | (Err(why), _) => fail(&case.id, Verdict::Diverged, why),
    };
    let mut findings: Vec<CaseFinding> = suite.golden.cases.iter().map(one).collect();
    findings.extend(unasked(suite, &answered.answers));
    findings
}
