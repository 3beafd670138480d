//! Tapes: what hears the results of operators during a replay. The first side's tape keeps hashes, the second's compares
//! with them, a third kind takes the values of one row.

use crate::bisect::cuts::Cuts;
use crate::subject::own::script::Script;
use engine::model::tap::{Op, Tap, TapPoint, TapRow, Taps};
use engine::parallel::tree::Node;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A result, whoever computed it: one piece of one row of one operator. Ordered so that what can have caused another
/// difference of its step comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Layer of the whole model.
    pub layer: usize,
    /// Operator.
    pub op: Op,
    /// Index of the case.
    pub case: usize,
    /// Absolute position of the token.
    pub position: usize,
    /// First column of the piece.
    pub piece: usize,
}

/// One row as it is heard.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'a> {
    /// Where it was computed.
    pub at: TapPoint,
    /// Index of the case.
    pub case: usize,
    /// Absolute position of the token.
    pub position: usize,
    /// Logical column of the first value.
    pub first: usize,
    /// The values.
    pub values: &'a [f32],
}

/// Hears rows.
pub trait Listener: Send + 'static {
    /// Whether results of this operator are to be heard.
    fn wants(&self, layer: usize, op: Op) -> bool;
    /// Hears one row.
    fn hear(&mut self, row: Heard<'_>);
}

/// FNV-1a over bit patterns: every bit counts.
fn hash(values: &[f32]) -> u64 {
    let mix = |hash: u64, x: &f32| (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3);
    values.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

/// The pieces of a row with their hashes.
fn hashes<'a>(cuts: &'a Cuts, row: Heard<'a>) -> impl Iterator<Item = (Key, u64)> + 'a {
    let Heard { at, case, position, first, values } = row;
    cuts.pieces(at.op, first..first + values.len()).map(move |piece| {
        let key = Key { case, position, layer: at.layer, op: at.op, piece: piece.start };
        (key, hash(&values[piece.start - first..piece.end - first]))
    })
}

/// Keeps the hash of everything.
pub struct Recorder {
    cuts: Arc<Cuts>,
    /// Hash of each result, as it was computed first.
    pub known: HashMap<Key, u64>,
    /// Results that were computed twice with different bits.
    pub contradictions: u64,
}

impl Recorder {
    /// An empty tape.
    pub fn new(cuts: &Arc<Cuts>) -> Self {
        Self { cuts: Arc::clone(cuts), known: HashMap::new(), contradictions: 0 }
    }
}

impl Listener for Recorder {
    fn wants(&self, _: usize, op: Op) -> bool {
        !op.is_node()
    }

    fn hear(&mut self, row: Heard<'_>) {
        for (key, hash) in hashes(&self.cuts, row) {
            let first = *self.known.entry(key).or_insert(hash);
            self.contradictions += u64::from(first != hash);
        }
    }
}

/// Where two sides differ; the least one is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct First {
    /// Step of the side on trial.
    pub step: u64,
    /// The result.
    pub key: Key,
    /// World rank, on the side on trial, that holds the differing copy.
    pub rank: usize,
}

/// Compares with what another side computed.
pub struct Comparer {
    cuts: Arc<Cuts>,
    known: Arc<HashMap<Key, u64>>,
    found: Vec<First>,
    /// Results that were compared.
    pub compared: u64,
    /// Results that differ.
    pub differing: u64,
    /// Results that the other side never computed.
    pub unmatched: u64,
}

/// Differences that are kept between two clean-ups; only the earliest matter.
const KEPT: usize = 1 << 16;

impl Comparer {
    /// Compares with `known`.
    pub fn new(cuts: &Arc<Cuts>, known: Arc<HashMap<Key, u64>>) -> Self {
        let found = Vec::new();
        Self { cuts: Arc::clone(cuts), known, found, compared: 0, differing: 0, unmatched: 0 }
    }

    /// The difference that no other one can have caused.
    pub fn first(&mut self) -> Option<First> {
        self.found.sort_unstable();
        self.found.first().copied()
    }

    /// The ranks whose copies of the same result differ.
    pub fn ranks_of(&self, first: &First) -> Vec<usize> {
        let same = self.found.iter().filter(|other| (other.step, other.key) == (first.step, first.key));
        let mut ranks: Vec<usize> = same.map(|other| other.rank).collect();
        ranks.dedup();
        ranks
    }
}

impl Listener for Comparer {
    fn wants(&self, _: usize, op: Op) -> bool {
        !op.is_node()
    }

    fn hear(&mut self, row: Heard<'_>) {
        for (key, hash) in hashes(&self.cuts, row) {
            match self.known.get(&key) {
                None => self.unmatched += 1,
                Some(known) => {
                    self.compared += 1;
                    if *known != hash {
                        self.differing += 1;
                        self.found.push(First { step: row.at.step, key, rank: row.at.rank });
                    }
                }
            }
        }
        if self.found.len() > 2 * KEPT {
            self.found.sort_unstable();
            self.found.truncate(KEPT);
        }
    }
}

/// One slice of the row that is looked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Slice {
    /// Operator.
    pub op: Op,
    /// World rank.
    pub rank: usize,
    /// The node, for partial sums.
    pub node: Option<Node>,
    /// Logical column of the first value.
    pub first: usize,
    /// The values.
    pub values: Vec<f32>,
}

/// Takes the values of one row of one layer.
pub struct Capturer {
    /// Case, position and layer.
    pub row: (usize, usize, usize),
    /// Operators.
    pub ops: Vec<Op>,
    /// Only in this step; the first time that the row is computed when `None`.
    pub step: Option<u64>,
    /// What was taken.
    pub slices: Vec<Slice>,
}

impl Listener for Capturer {
    fn wants(&self, layer: usize, op: Op) -> bool {
        layer == self.row.2 && self.ops.contains(&op)
    }

    fn hear(&mut self, row: Heard<'_>) {
        let here = (row.case, row.position) == (self.row.0, self.row.1);
        if here && *self.step.get_or_insert(row.at.step) == row.at.step {
            let TapPoint { op, rank, node, .. } = row.at;
            self.slices.push(Slice { op, rank, node, first: row.first, values: row.values.to_vec() });
        }
    }
}

/// Hears nothing.
pub struct Deaf;

impl Listener for Deaf {
    fn wants(&self, _: usize, _: Op) -> bool {
        false
    }

    fn hear(&mut self, _: Heard<'_>) {}
}

/// The taps of all ranks of a replay, with one listener behind them.
pub struct Reel<L> {
    listener: Mutex<L>,
    script: Arc<Script>,
    /// Replica of each world rank.
    replicas: Vec<usize>,
}

impl<L: Listener> Reel<L> {
    /// A reel for ranks of these replicas.
    pub fn new(listener: L, script: Arc<Script>, replicas: Vec<usize>) -> Self {
        Self { listener: Mutex::new(listener), script, replicas }
    }

    /// The listener, when the replay is over.
    pub fn into_listener(self) -> L {
        self.listener.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The taps of a reel.
pub struct Threaded<L>(pub Arc<Reel<L>>);

impl<L: Listener> Taps for Threaded<L> {
    fn of_rank(&self, rank: usize) -> Box<dyn Tap> {
        Box::new(RankTap { reel: Arc::clone(&self.0), replica: self.0.replicas[rank] })
    }
}

/// The tap of one rank.
struct RankTap<L> {
    reel: Arc<Reel<L>>,
    replica: usize,
}

impl<L: Listener> Tap for RankTap<L> {
    fn wants(&self, layer: usize, op: Op) -> bool {
        self.reel.listener.lock().unwrap_or_else(PoisonError::into_inner).wants(layer, op)
    }

    fn tap(&mut self, at: TapPoint, rows: &[TapRow], first: usize, values: &[f32]) {
        let width = values.len() / rows.len().max(1);
        if width == 0 {
            return;
        }
        let mut listener = self.reel.listener.lock().unwrap_or_else(PoisonError::into_inner);
        for (row, values) in rows.iter().zip(values.chunks_exact(width)) {
            let Some(case) = self.reel.script.case_of((self.replica, row.request)) else { continue };
            listener.hear(Heard { at, case, position: row.position as usize, first, values });
        }
    }
}
