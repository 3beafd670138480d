//! `mpirun -n N mpi_layouts`: every layout of N ranks, one MPI process each, against one rank. Prints a line for each
//! and exits with 1 when any differs.

use engine::model::checkpoint::Checkpoint;
use engine::parallel::layout::Layout;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::mpi::Host;
use engine::step::plan::Executor;
use std::process::ExitCode;
use tests::{layouts, models, suite};

fn check(host: &Host, model: &str, layout: Layout) -> Result<(), String> {
    let text = |e: engine::EngineError| e.to_string();
    let prompts = suite::prompts(model);
    let path = models::path(model);
    let single = suite::deployment_at(&path, Layout::SINGLE).map_err(text)?;
    let (_, single) = suite::run(executors(&single, DeviceKind::Cpu).map_err(text)?, &prompts);
    let deployment = suite::deployment_at(&path, layout).map_err(text)?;
    let replicas = host.executors(&deployment).map_err(text)?;
    let replicas = replicas.into_iter().map(|r| Box::new(r) as Box<dyn Executor>).collect();
    suite::compare(&prompts, &suite::run(replicas, &prompts), &single)
}

fn run() -> Result<bool, String> {
    let host = Host::init().map_err(|e| e.to_string())?;
    if host.rank() != 0 {
        return host.serve(Checkpoint::open).map(|()| true).map_err(|e| e.to_string());
    }
    let mut all = true;
    for model in ["dense", "moe"] {
        let fitting =
            layouts::all(models::open(model).spec(), 8).into_iter().filter(|l| l.world() == host.world());
        for layout in fitting {
            let outcome = check(&host, model, layout);
            all &= outcome.is_ok();
            println!(
                "{model} {layout}: {}",
                outcome.map_or_else(|e| format!("FAILED: {e}"), |()| "same bits".to_owned())
            );
        }
    }
    host.leave().map_err(|e| e.to_string())?;
    Ok(all)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
