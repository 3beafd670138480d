//! `parity list` and `parity schema`: what would be run, at which cost, on what; and what would not.

use crate::cli::args::{ListArgs, Parity, Select};
use crate::error::{Exit, HarnessError, Result};
use crate::golden::Store;
use crate::matrix::{Cell, Filter, Layout, Matrix, Shard};
use crate::subject::endpoint::{Address, AnyFleet};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The store that the command line means.
pub fn store(parity: &Parity) -> Result<Store> {
    match &parity.goldens {
        Some(dir) if dir.is_dir() => Ok(Store::new(dir)),
        Some(dir) => Err(HarnessError::file(dir, "it is not a directory")),
        None => Store::find(&std::env::current_dir().map_err(|error| HarnessError::file(".", error))?),
    }
}

/// The matrix file that the command line means.
pub fn matrix_file(store: &Store, given: Option<&PathBuf>, default: &str) -> PathBuf {
    given.cloned().unwrap_or_else(|| store.root().join("matrix").join(default))
}

/// Cells of a matrix, selected.
#[derive(Debug)]
pub struct Selection {
    /// The matrix.
    pub matrix: Matrix,
    /// The selected cells.
    pub cells: Vec<Cell>,
    /// The selection as text; empty for everything.
    pub text: String,
}

/// Reads the matrix and selects cells. Selecting nothing is an error.
pub fn select(store: &Store, select: &Select, default: &str) -> Result<Selection> {
    let default = if select.endpoint.is_some() { "endpoint.yaml" } else { default };
    let mut matrix = Matrix::read(&matrix_file(store, select.matrix.as_ref(), default))?;
    select.model.iter().try_for_each(|text| place_model(&mut matrix, text))?;
    let mut words = Vec::new();
    let filter = select.filter.as_deref().map(Filter::parse).transpose()?;
    words.extend(select.filter.clone());
    let layouts = select.layout.iter().map(|text| layout(text)).collect::<Result<Vec<Layout>>>()?;
    words.extend(select.layout.iter().map(|layout| format!("layout {layout}")));
    let shard: Option<Shard> = select.shard.as_deref().map(str::parse).transpose()?;
    let fits = |cell: &&Cell| filter.as_ref().is_none_or(|filter| filter.matches(cell));
    let cells: Vec<&Cell> = matrix.expansion.cells.iter().filter(fits).collect();
    if let Some(absent) = layouts.iter().find(|layout| !cells.iter().any(|cell| cell.layout == **layout)) {
        return Err(no_such_layout(*absent, &cells, select.filter.as_deref()));
    }
    let served = served(select)?;
    let wanted = |cell: &&Cell| {
        (layouts.is_empty() || layouts.contains(&cell.layout))
            && (served.is_empty() || served.contains(&cell.model.as_str()))
    };
    let cells: Vec<Cell> = cells.into_iter().filter(wanted).cloned().collect();
    let taken = |(i, cell): &(usize, Cell)| shard.is_none_or(|shard| shard.takes(*i, cell));
    let cells: Vec<Cell> = cells.into_iter().enumerate().filter(taken).map(|(_, cell)| cell).collect();
    words.extend(select.shard.as_ref().map(|shard| format!("shard {shard}")));
    if cells.is_empty() {
        let reason = format!("`{}` selects none of {} cells", words.join(", "), matrix.expansion.cells.len());
        return Err(HarnessError::NothingSelected { reason });
    }
    Ok(Selection { matrix, cells, text: words.join(", ") })
}

/// Models that the endpoint serves: those that the command line places. Another model's cells would be no question to it.
fn served(select: &Select) -> Result<Vec<&str>> {
    match (&select.endpoint, select.model.is_empty()) {
        (None, _) => Ok(Vec::new()),
        (Some(url), true) => Err(HarnessError::usage(
            format!("--endpoint {url}: which model does it serve?"),
            "add --model NAME=PATH, with the name that the matrix gives the model",
        )),
        (Some(_), false) => {
            Ok(select.model.iter().filter_map(|text| Some(text.split_once('=')?.0)).collect())
        }
    }
}

/// Puts a model where the command line says it lies.
fn place_model(matrix: &mut Matrix, text: &str) -> Result<()> {
    let refuse =
        |why: String| HarnessError::usage(format!("--model {text}: {why}"), "write --model NAME=PATH");
    let (name, path) = text.split_once('=').ok_or_else(|| refuse("there is no `=`".into()))?;
    let names = matrix.spec.models.keys().cloned().collect::<Vec<_>>().join(", ");
    let model = matrix.spec.models.get_mut(name);
    let model = model.ok_or_else(|| refuse(format!("the matrix has {names}")))?;
    let path = std::path::absolute(path).map_err(|error| HarnessError::file(path, error))?;
    model.path = path.to_string_lossy().into_owned();
    Ok(())
}

/// The subjects that a command line names.
pub fn fleet(select: &Select) -> AnyFleet {
    AnyFleet::new(select.endpoint.as_ref().map(|url| Address {
        url: url.clone(),
        key: std::env::var(crate::subject::endpoint::KEY).ok(),
        deadline: Duration::from_secs(select.endpoint_deadline),
    }))
}

/// A layout that no cell has: a run that leaves it out would not be what was asked for.
fn no_such_layout(layout: Layout, cells: &[&Cell], filter: Option<&str>) -> HarnessError {
    let of = filter.map_or("the matrix".to_owned(), |filter| format!("`{filter}`"));
    let there: BTreeSet<String> = cells.iter().map(|cell| cell.layout.to_string()).collect();
    let there: Vec<String> = there.into_iter().collect();
    HarnessError::NothingSelected {
        reason: format!("--layout {layout}: no cell of {of} has it; there are {}", there.join(" | ")),
    }
}

/// A layout of the command line.
fn layout(text: &str) -> Result<Layout> {
    text.parse().map_err(|why: String| HarnessError::usage(why, "write --layout tp=2,pp=2,dp=1,ep=1"))
}

/// What a matrix leaves out, one sentence each.
pub fn not_covered(selection: &Selection) -> Vec<String> {
    let excluded = &selection.matrix.expansion.excluded;
    let line = |e: &crate::matrix::Excluded| {
        format!("{} cells of block {} ({}): {}", e.count, e.block, e.cells, e.reason)
    };
    let mut lines: Vec<String> = excluded.iter().map(line).collect();
    let rest = selection.matrix.expansion.cells.len() - selection.cells.len();
    if rest > 0 {
        lines.push(format!("{rest} cells that the selection `{}` leaves out", selection.text));
    }
    lines
}

/// Relative cost of a cell: the tokens that its suite puts through the model, times its ranks. A guide for sharding.
fn cost(store: &Store, matrix: &Matrix, cell: &Cell) -> u64 {
    let suite = &matrix.spec.suites[&cell.suite];
    let name = suite.golden.as_deref().unwrap_or(&cell.suite);
    let Ok(stored) = store.load(&cell.model, name) else { return 0 };
    let asked =
        |case: &&crate::golden::GoldenCase| suite.cases.as_ref().is_none_or(|cases| cases.contains(&case.id));
    let budget = suite.tokens.map_or(usize::MAX, |tokens| tokens as usize);
    let tokens =
        |case: &crate::golden::GoldenCase| case.prompt_ids.len() + case.generated_ids.len().min(budget);
    stored.golden.cases.iter().filter(asked).map(tokens).sum::<usize>() as u64 * cell.layout.ranks() as u64
}

/// `parity list`.
pub fn list(parity: &Parity, args: &ListArgs) -> Result<Exit> {
    let store = store(parity)?;
    let selection = select(&store, &args.select, "pr.yaml")?;
    let mut total = 0;
    let mut costs = std::collections::BTreeMap::new();
    for cell in &selection.cells {
        let key = (cell.model.clone(), cell.suite.clone(), cell.layout.ranks());
        let cost = *costs.entry(key).or_insert_with(|| cost(&store, &selection.matrix, cell));
        total += cost;
        if args.ids {
            println!("{}", cell.id);
        } else if args.json {
            let mut value = serde_json::to_value(cell).unwrap_or_default();
            value["cost"] = cost.into();
            value["ranks"] = cell.layout.ranks().into();
            println!("{value}");
        } else {
            println!(
                "{:<72} {:<9} {:<16} {:>2} ranks {:<4} {cost:>8}",
                cell.id,
                cell.relation,
                cell.required,
                cell.layout.ranks(),
                cell.device
            );
        }
    }
    let ranks = selection.cells.iter().map(|cell| cell.layout.ranks()).max().unwrap_or(0);
    eprintln!("{} cells, up to {ranks} ranks, cost {total} (tokens x ranks)", selection.cells.len());
    not_covered(&selection).iter().for_each(|line| eprintln!("not covered: {line}"));
    Ok(Exit::Passed)
}

/// `parity schema`.
pub fn schema() -> Result<Exit> {
    let text = serde_json::to_string_pretty(&crate::matrix::schema::schema());
    println!("{}", text.map_err(|error| HarnessError::file(Path::new("-"), error))?);
    Ok(Exit::Passed)
}
