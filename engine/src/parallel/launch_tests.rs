//! A rank that panics, fails, leaves or hangs ends the others' waits, and the launch names it.

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn layout(text: &str) -> Layout {
    text.parse().unwrap()
}

#[test]
fn results_come_back_by_rank() {
    let got = launch(layout("tp=2,pp=2"), LONG, |context| {
        context.replica_group()?.barrier()?;
        assert_eq!(context.expert_group()?.len(), 2);
        Ok((context.coord.rank, context.coord.tp, context.coord.pp))
    });
    assert_eq!(got.unwrap(), [(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]);
}

/// Runs four ranks of which rank 2 goes wrong while the others wait; returns the launch's error.
fn with_rank_2(deadline: Duration, wrong: fn() -> Result<()>) -> EngineError {
    launch(layout("tp=4"), deadline, move |context| {
        if context.coord.rank == 2 {
            return wrong();
        }
        context.tp_group()?.barrier()
    })
    .unwrap_err()
}

#[test]
fn a_panic_names_its_rank_and_text() {
    let before = Instant::now();
    let error = with_rank_2(LONG, || panic!("planted {}", 7));
    let want = EngineError::Comm { rank: 2, peer: 2, op: "run", reason: "it panicked: planted 7".into() };
    assert_eq!(error, want);
    assert!(before.elapsed() < LONG, "nobody waited for the deadline");
}

#[test]
fn an_error_of_one_rank_is_the_launchs_error() {
    let error = with_rank_2(LONG, || Err(EngineError::model("w.safetensors", "truncated", "")));
    assert!(matches!(error, EngineError::Model { .. }), "{error}");
}

#[test]
fn the_others_are_told_at_once_and_by_name() {
    // Results, so that each rank's own view comes back.
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let outcome = launch(layout("tp=4"), LONG, move |context| {
        if context.coord.rank == 2 {
            return Err(EngineError::internal("planted"));
        }
        let error = context.tp_group()?.barrier().unwrap_err();
        sink.lock().unwrap().push(error.to_string());
        Ok(())
    });
    assert_eq!(outcome.unwrap_err(), EngineError::internal("planted"));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    for text in seen.iter() {
        assert!(text.contains("rank 2 failed: internal error: planted"), "{text}");
    }
}

#[test]
fn a_hung_rank_is_named_at_the_deadline() {
    // The rank waits for a message that never comes, longer than the others' deadline: a hang without a sleep.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let outcome = launch(layout("tp=3"), Duration::from_millis(200), move |context| {
        if context.coord.rank == 1 {
            let _ = held.lock().unwrap().recv();
            return Ok(());
        }
        context.tp_group()?.barrier()
    });
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("rank 1") && error.contains("hangs"), "{error}");
    drop(hold);
}

#[test]
fn a_rank_that_has_left_is_not_waited_for() {
    let error = with_rank_2(LONG, || Ok(())).to_string();
    assert!(error.contains("rank 2 has left"), "{error}");
}

#[test]
fn a_world_of_another_size_is_refused() {
    let worlds = || ThreadWorld::new(3, LONG);
    let error = launch_on(layout("tp=2"), worlds(), worlds(), |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("it has 2 ranks, but 3 were started"), "{error}");
}

#[test]
fn an_mpi_job_is_known_by_its_environment() {
    let open_mpi = |name: &str| (name == "OMPI_COMM_WORLD_SIZE").then(|| "4".to_owned());
    assert_eq!(mpi_job_size(open_mpi), Some(4));
    assert_eq!(mpi_job_size(|_| None), None);
    assert_eq!(mpi_job_size(|_| Some("many".to_owned())), None);
}
