//! `parity selftest`.

use crate::error::{Exit, Result};

/// Plants every fault and prints what became of it.
pub fn selftest() -> Result<Exit> {
    let trials = crate::selftest::run()?;
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "fault", "what is wrong", "expected", "found"]);
    for trial in &trials {
        let mark = if trial.caught { "caught" } else { "MISSED" };
        table.add_row([mark, trial.name, trial.about, &trial.expected, &trial.found]);
    }
    println!("{table}");
    let missed = trials.iter().filter(|trial| !trial.caught).count();
    println!("{} of {} trials as expected", trials.len() - missed, trials.len());
    Ok(if missed == 0 { Exit::Passed } else { Exit::Failed })
}
