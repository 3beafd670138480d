//! Every layout gives the bits of one rank: one test for each (model, layout), on threads, compared logit by logit at
//! every step, and with the golden's tokens.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]

use engine::parallel::layout::Layout;
use engine::step::deploy::{DeviceKind, executors};
use libtest_mimic::{Arguments, Failed, Trial};
use tests::{layouts, models, suite};

fn check(model: &str, layout: Layout) -> Result<(), Failed> {
    let checkpoint = models::open(model);
    let prompts = suite::prompts(model);
    let start = |layout| executors(&suite::deployment(&checkpoint, layout)?, DeviceKind::Cpu);
    let (_, single) = suite::run(start(Layout::SINGLE)?, &prompts);
    Ok(suite::compare(&prompts, &suite::run(start(layout)?, &prompts), &single)?)
}

/// The same check, with a fault planted, must fail.
#[cfg(feature = "faults")]
fn must_fail(model: &str, layout: Layout, fault: engine::faults::Fault) -> Result<(), Failed> {
    let checkpoint = models::open(model);
    let prompts = suite::prompts(model);
    let (_, single) =
        suite::run(executors(&suite::deployment(&checkpoint, Layout::SINGLE)?, DeviceKind::Cpu)?, &prompts);
    let mut deployment = suite::deployment(&checkpoint, layout)?;
    deployment.fault = Some(fault);
    match suite::compare(&prompts, &suite::run(executors(&deployment, DeviceKind::Cpu)?, &prompts), &single) {
        Err(_) => Ok(()),
        Ok(()) => Err(format!("{fault:?} went unnoticed in {layout}").into()),
    }
}

#[cfg(feature = "faults")]
fn twins(trials: &mut Vec<Trial>) {
    use engine::faults::{Fault, OneUlp};
    use engine::model::tap::Op;
    for (fault, layout) in [
        (Fault::RankOrderSum, "tp=3"),
        (Fault::Bf16Nodes, "tp=2"),
        (Fault::DroppedNode, "tp=2"),
        (Fault::SwappedNodes, "tp=3"),
        (Fault::OneUlp(OneUlp { layer: 3, op: Op::AttentionResidual, rank: None, column: 5 }), "tp=2,pp=2"),
    ] {
        let Ok(layout) = layout.parse::<Layout>() else { continue };
        trials.push(Trial::test(format!("twin::{fault:?}"), move || must_fail("dense", layout, fault)));
    }
}

#[cfg(not(feature = "faults"))]
fn twins(_: &mut Vec<Trial>) {}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let mut count = 0;
    for model in ["dense", "moe"] {
        for layout in layouts::all(models::open(model).spec(), 8) {
            count += 1;
            trials.push(Trial::test(format!("{model}::{layout}"), move || check(model, layout)));
        }
    }
    trials.push(Trial::test("at_least_60_layouts", move || {
        if count >= 60 { Ok(()) } else { Err(format!("only {count} layouts").into()) }
    }));
    for tp in [1, 2, 3, 4, 9] {
        if let Ok(layout) = Layout::new(tp, 1, 1, 1) {
            trials
                .push(Trial::test(format!("smollm2-135m::{layout}"), move || check("smollm2-135m", layout)));
        }
    }
    twins(&mut trials);
    libtest_mimic::run(&arguments, trials).exit();
}
