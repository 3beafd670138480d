//! The record of a run: its events as JSON lines, from which every report, rerun and certificate can be made again.

use crate::error::{HarnessError, Result};
use crate::run::event::{CellResult, Event, Header, Outcome, Sink, Summary};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A finished (or broken off) run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// Inputs and circumstances.
    pub header: Header,
    /// The cells, sorted by id, whatever order they ended in.
    pub cells: Vec<CellResult>,
    /// Totals; `None` when the run was broken off.
    pub summary: Option<Summary>,
}

impl Record {
    /// Reads a file of JSON lines.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|error| HarnessError::file(file, error))?;
        let mut record = Self::default();
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let event: Event = serde_json::from_str(line)
                .map_err(|error| HarnessError::file(file, format!("line {}: {error}", i + 1)))?;
            record.event(&event)?;
        }
        record.finish();
        Ok(record)
    }

    /// Sorts the cells, so that everything made from a record is independent of the order in which workers ended.
    pub fn finish(&mut self) {
        self.cells.sort_by(|a, b| a.cell.id.cmp(&b.cell.id));
    }

    /// Joins the records of several shards of one and the same matrix.
    pub fn merge(records: Vec<Self>) -> Result<Self> {
        let refuse =
            |reason: String| HarnessError::usage(reason, "merge the shards of one run of one matrix");
        let mut records = records.into_iter();
        let mut merged = records.next().ok_or_else(|| refuse("there is nothing to merge".into()))?;
        for record in records {
            let same = |f: fn(&Header) -> &str| f(&merged.header) == f(&record.header);
            if !same(|h| &h.matrix_sha256)
                || merged
                    .header
                    .goldens
                    .iter()
                    .any(|(k, v)| record.header.goldens.get(k).is_some_and(|w| w != v))
            {
                return Err(refuse("the records are of different matrices or goldens".into()));
            }
            merged.header.cells += record.header.cells;
            merged.header.selection = format!("{} + {}", merged.header.selection, record.header.selection);
            merged.header.weights.extend(record.header.weights);
            merged.header.tokenizers.extend(record.header.tokenizers);
            merged.header.goldens.extend(record.header.goldens);
            merged.header.witnesses.extend(record.header.witnesses);
            merged.cells.extend(record.cells);
            merged.summary = merged.summary.zip(record.summary).map(|(a, _)| a);
        }
        merged.finish();
        if let Some(pair) = merged.cells.windows(2).find(|pair| pair[0].cell.id == pair[1].cell.id) {
            return Err(refuse(format!("cell `{}` is in two records", pair[0].cell.id)));
        }
        let complete = merged.summary.is_some();
        let mut summary = Summary::default();
        merged.cells.iter().for_each(|cell| summary.add(cell));
        summary.interrupted = !complete || summary.cells != merged.header.cells;
        merged.summary = Some(summary);
        Ok(merged)
    }

    /// Ids of the cells that did not pass.
    pub fn failed(&self) -> Vec<String> {
        let failed = self.cells.iter().filter(|result| result.outcome != Outcome::Passed);
        failed.map(|result| result.cell.id.clone()).collect()
    }
}

impl Sink for Record {
    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::RunStarted { header } => self.header = header.clone(),
            Event::CellFinished { result } => self.cells.push((**result).clone()),
            Event::RunFinished { summary } => {
                self.summary = Some(summary.clone());
                self.finish();
            }
            Event::SubjectReady { .. } | Event::AnchorFinished { .. } | Event::CellStarted { .. } => {}
        }
        Ok(())
    }
}

/// Writes events as JSON lines. The last line is flushed with the last event, so that a broken-off run can be read.
#[derive(Debug)]
pub struct JsonLines {
    file: PathBuf,
    out: BufWriter<std::fs::File>,
}

impl JsonLines {
    /// Creates (or empties) `file`.
    pub fn create(file: &Path) -> Result<Self> {
        let out = std::fs::File::create(file).map_err(|error| HarnessError::file(file, error))?;
        Ok(Self { file: file.into(), out: BufWriter::new(out) })
    }
}

impl Sink for JsonLines {
    fn event(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event).map_err(|error| HarnessError::file(&self.file, error))?;
        let written = writeln!(self.out, "{line}").and_then(|()| match event {
            Event::CellStarted { .. } => Ok(()),
            _ => self.out.flush(),
        });
        written.map_err(|error| HarnessError::file(&self.file, error))
    }
}
