//! Live progress: a bar where somebody looks, plain lines where nobody does. Says failures as they happen.

use crate::run::{CellResult, Event, Outcome, Sink};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Cells between two plain lines.
const PLAIN_EVERY: u64 = 100;

/// Shows a run while it runs, on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    live: bool,
    failed: usize,
}

impl Progress {
    /// Shows progress on standard error; `quiet` shows nothing.
    pub fn new(quiet: bool) -> Self {
        let live = std::io::stderr().is_terminal() && !quiet;
        let target = if live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = "{elapsed_precise} [{bar:32}] {pos}/{len} cells, {msg}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        if live {
            bar.enable_steady_tick(std::time::Duration::from_millis(250));
        }
        Self { bar, live: live || quiet, failed: 0 }
    }

    /// A line above the bar.
    fn say(&self, line: &str) {
        if self.bar.is_hidden() && !self.live {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    fn finished(&mut self, result: &CellResult) {
        self.bar.inc(1);
        if result.outcome != Outcome::Passed {
            self.failed += 1;
            let word = if result.outcome == Outcome::Quarantined { "QUARANTINED" } else { "FAILED" };
            self.say(&format!("{word} {}: {}", result.cell.id, result.why()));
        }
        let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if position.is_multiple_of(PLAIN_EVERY) && !self.live {
            eprintln!("{position} of {length} cells, {} failed", self.failed);
        }
    }
}

impl Sink for Progress {
    fn event(&mut self, event: &Event) -> crate::Result<()> {
        match event {
            Event::RunStarted { header } => {
                self.bar.set_length(header.cells as u64);
                self.say(&format!("{}: {} cells", header.matrix, header.cells));
            }
            Event::SubjectReady { .. } => {}
            Event::AnchorFinished { id, why, .. } => {
                self.bar.set_message(format!("anchor {id}"));
                if !why.is_empty() {
                    self.say(&format!("anchor {id} failed: {why}"));
                }
            }
            Event::CellStarted { id } => self.bar.set_message(format!("{} failed; {id}", self.failed)),
            Event::CellFinished { result } => self.finished(result),
            Event::RunFinished { .. } => self.bar.finish_and_clear(),
        }
        Ok(())
    }
}
