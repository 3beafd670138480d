//! The heat map: cells of one (model, suite) as a grid of layouts against front doors and features.

use crate::run::{CellResult, Outcome, Record};
use std::collections::{BTreeMap, BTreeSet};

/// One square.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Square {
    /// Id of the cell; empty where there is none.
    pub id: String,
    /// CSS class: the verdict, or `failed-...`, or `none`.
    pub class: String,
    /// Text on hovering.
    pub title: String,
}

/// One row: a layout, transport and device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridRow {
    /// Its name.
    pub name: String,
    /// Its squares, one for each column.
    pub squares: Vec<Square>,
}

/// The grid of one (model, suite).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    /// `model/suite`.
    pub name: String,
    /// Columns: front door, feature and fault.
    pub columns: Vec<String>,
    /// Rows.
    pub rows: Vec<GridRow>,
}

/// The column of a cell.
fn column(result: &CellResult) -> String {
    let cell = &result.cell;
    let fault = if cell.fault == crate::matrix::cell::NO_FAULT { "" } else { &cell.fault };
    [cell.api.name(), &cell.feature, fault]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" / ")
}

/// Sorts layouts by number of ranks, then by name.
fn row_key(result: &CellResult) -> (usize, String) {
    let cell = &result.cell;
    (cell.layout.ranks(), format!("{} {} {}", cell.layout, cell.transport, cell.device))
}

/// A cell as a square.
fn square(result: Option<&&CellResult>) -> Square {
    let Some(result) = result else {
        return Square { id: String::new(), class: "none".into(), title: "not covered".into() };
    };
    let verdict = result.verdict();
    let class = match result.outcome {
        Outcome::Passed => verdict.name().to_owned(),
        Outcome::Failed => format!("failed {verdict}"),
        Outcome::Quarantined => "quarantined".to_owned(),
    };
    let title = format!("{}: {verdict} {}", result.cell.id, result.why());
    Square { id: result.cell.id.clone(), class, title }
}

/// Lays the cells of a record out, one grid for each (model, suite).
pub fn grids(record: &Record) -> Vec<Grid> {
    let mut by_suite: BTreeMap<String, Vec<&CellResult>> = BTreeMap::new();
    for result in &record.cells {
        by_suite.entry(format!("{}/{}", result.cell.model, result.cell.suite)).or_default().push(result);
    }
    let grid = |(name, results): (String, Vec<&CellResult>)| {
        let columns: Vec<String> =
            results.iter().map(|r| column(r)).collect::<BTreeSet<_>>().into_iter().collect();
        let keys: BTreeSet<(usize, String)> = results.iter().map(|r| row_key(r)).collect();
        let rows = keys.into_iter().map(|key| {
            let here: BTreeMap<String, &CellResult> =
                results.iter().filter(|r| row_key(r) == key).map(|r| (column(r), *r)).collect();
            GridRow { name: key.1, squares: columns.iter().map(|c| square(here.get(c))).collect() }
        });
        let rows = rows.collect();
        Grid { name, columns, rows }
    };
    by_suite.into_iter().map(grid).collect()
}
