//! Loaders meet damaged and malicious files: whatever the bytes, they answer with a checkpoint or a named error, never
//! panic, and never hold more memory than a fixed multiple of the file's size.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of a test may panic; the lint only exempts the tests themselves"
)]

use engine::EngineError;
use engine::model::checkpoint::{Checkpoint, LayerTensor, Tensor};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::cell::Cell;
use std::path::Path;
use std::sync::LazyLock;

/// Counts what the current thread holds, and the most that it has held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(by: isize) {
    // a thread that is being torn down has no counter left, and nothing to measure
    let _ = HELD.try_with(|held| {
        held.set(held.get() + by);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a file may cost: fixed tables (layers, rotary frequencies), and a multiple of its bytes (parsed JSON is the
/// worst: an object of two bytes becomes a map).
const FIXED: isize = 2 << 20;
const PER_BYTE: isize = 100;

type Files = Vec<(String, Cow<'static, [u8]>)>;

/// Opens the files, touches every kind of tensor, and checks the memory that this took.
fn open(files: Files) -> Result<(), EngineError> {
    let bytes: usize = files.iter().map(|(_, b)| b.len()).sum();
    let before = HELD.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    let result = Checkpoint::open_memory("m", files).map(|checkpoint| touch(&checkpoint));
    let peak = PEAK.with(Cell::get) - before;
    assert!(peak <= FIXED + PER_BYTE * bytes as isize, "{peak} bytes held for a file of {bytes} bytes");
    if let Err(error) = &result {
        assert!(matches!(error, EngineError::Model { .. }), "{error:?}");
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error:?}");
    }
    result
}

fn touch(checkpoint: &Checkpoint) {
    let every = [
        LayerTensor::Q,
        LayerTensor::K,
        LayerTensor::V,
        LayerTensor::O,
        LayerTensor::Gate,
        LayerTensor::Up,
        LayerTensor::Down,
    ];
    let layers = (0..checkpoint.spec().layers.len()).flat_map(|l| every.map(|t| Tensor::Layer(l, t)));
    for tensor in [Tensor::Embedding, Tensor::Head].into_iter().chain(layers) {
        if checkpoint.has(tensor) {
            let m = checkpoint.matrix(tensor).unwrap();
            assert_eq!(m.row_bytes(m.rows - 1).len(), m.cols * m.dtype.size());
        }
    }
    assert_eq!(checkpoint.vector(Tensor::FinalNorm).unwrap().len(), checkpoint.spec().hidden);
}

fn model(name: &str, file: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/models").join(name).join(file))
        .unwrap()
}

static CONFIG: LazyLock<Vec<u8>> = LazyLock::new(|| model("tiny-qwen3-moe", "config.json"));
static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| model("tiny-qwen3-moe", "model.safetensors"));
static GEMMA: LazyLock<Vec<u8>> = LazyLock::new(|| model("tiny-gemma3", "config.json"));
static GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| model("tiny-gguf-quant", "model.gguf"));

fn directory(config: Vec<u8>, weights: Vec<u8>) -> Files {
    vec![("config.json".into(), config.into()), ("model.safetensors".into(), weights.into())]
}

fn gguf(bytes: Vec<u8>) -> Files {
    vec![("model.gguf".into(), bytes.into())]
}

/// One way to damage a file. Positions are fractions of its length.
#[derive(Debug, Clone)]
enum Damage {
    Byte(f64, u8),
    Word(f64, u32),
    Long(f64, u64),
    Cut(f64),
    Grow(Vec<u8>),
    Repeat(f64, usize),
    Remove(f64, usize),
}

fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(u64::MAX - 31),
        Just(i64::MAX as u64),
        Just(1 << 32),
        Just(u64::from(u32::MAX)),
        Just(1 << 62),
        any::<u64>(),
        0u64..300,
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = || 0f64..1f64;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(p, b)| Damage::Byte(p, b)),
        (at(), extreme()).prop_map(|(p, n)| Damage::Word(p, n as u32)),
        (at(), extreme()).prop_map(|(p, n)| Damage::Long(p, n)),
        at().prop_map(Damage::Cut),
        prop::collection::vec(any::<u8>(), 1..80).prop_map(Damage::Grow),
        (at(), 1usize..200).prop_map(|(p, n)| Damage::Repeat(p, n)),
        (at(), 1usize..200).prop_map(|(p, n)| Damage::Remove(p, n)),
    ]
}

/// Applies the damage inside the first `head` bytes, where the structure lies; growth and cuts are anywhere.
fn apply(bytes: &mut Vec<u8>, head: usize, damage: &Damage) {
    let place = |len: usize, p: f64| ((len.min(head) as f64 * p) as usize).min(len);
    let len = bytes.len();
    let overwrite = |bytes: &mut Vec<u8>, p: f64, new: &[u8]| {
        let at = place(len, p);
        let end = (at + new.len()).min(len);
        bytes[at..end].copy_from_slice(&new[..end - at]);
    };
    match damage {
        Damage::Byte(p, b) => overwrite(bytes, *p, &[*b]),
        Damage::Word(p, n) => overwrite(bytes, *p, &n.to_le_bytes()),
        Damage::Long(p, n) => overwrite(bytes, *p, &n.to_le_bytes()),
        Damage::Cut(p) => bytes.truncate((len as f64 * p) as usize),
        Damage::Grow(more) => bytes.extend(more),
        Damage::Repeat(p, n) => {
            let at = place(len, *p);
            let part = bytes[at..(at + n).min(len)].to_vec();
            bytes.splice(at..at, part);
        }
        Damage::Remove(p, n) => {
            let at = place(len, *p);
            bytes.drain(at..(at + n).min(len));
        }
    }
}

fn damaged(original: &[u8], head: usize, list: &[Damage]) -> Vec<u8> {
    let mut bytes = original.to_vec();
    list.iter().for_each(|d| apply(&mut bytes, head, d));
    bytes
}

/// A value that a configuration might hold, sensible or not.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        extreme().prop_map(|n| json!(n)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|x| json!(x)),
        prop_oneof![Just("silu"), Just("linear"), Just("llama"), Just("yarn"), Just("")]
            .prop_map(|s| json!(s)),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map("(rope_type|type|factor|rope_theta|full_attention|x)", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Replaces values of a configuration, by position or by name.
fn edited(config: &[u8], edits: &[(usize, Value)], added: &[(String, Value)]) -> Vec<u8> {
    let mut map: serde_json::Map<String, Value> = serde_json::from_slice(config).unwrap();
    let keys: Vec<String> = map.keys().cloned().collect();
    for (at, value) in edits {
        map.insert(keys[at % keys.len()].clone(), value.clone());
    }
    map.extend(added.iter().cloned());
    serde_json::to_vec(&map).unwrap()
}

/// The bound can fail: a buffer that no file asked for is counted.
#[test]
fn held_memory_is_counted() {
    let before = HELD.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    drop(std::hint::black_box(vec![1u8; 5 << 20]));
    assert!(PEAK.with(Cell::get) - before >= 5 << 20);
    assert_eq!(HELD.with(Cell::get), before);
}

#[test]
fn the_undamaged_files_open() {
    open(directory(CONFIG.clone(), WEIGHTS.clone())).unwrap();
    open(gguf(GGUF.clone())).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_gguf(list in prop::collection::vec(damage(), 1..4)) {
        let _ = open(gguf(damaged(&GGUF, 16_000, &list)));
    }

    #[test]
    fn damaged_gguf_header(list in prop::collection::vec(damage(), 1..3)) {
        let _ = open(gguf(damaged(&GGUF, 700, &list)));
    }

    #[test]
    fn random_gguf(bytes in prop::collection::vec(any::<u8>(), 0..400), counts in any::<(u8, u8)>()) {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(u64::from(counts.0).to_le_bytes());
        file.extend(u64::from(counts.1 % 8).to_le_bytes());
        file.extend(bytes);
        prop_assert!(open(gguf(file)).is_err());
    }

    #[test]
    fn damaged_safetensors(list in prop::collection::vec(damage(), 1..4)) {
        let header = u64::from_le_bytes(WEIGHTS[..8].try_into().unwrap()) as usize;
        let _ = open(directory(CONFIG.clone(), damaged(&WEIGHTS, header + 8, &list)));
    }

    #[test]
    fn random_safetensors(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(open(directory(CONFIG.clone(), bytes)).is_err());
    }

    #[test]
    fn damaged_config(list in prop::collection::vec(damage(), 1..4)) {
        let _ = open(directory(damaged(&CONFIG, usize::MAX, &list), WEIGHTS.clone()));
    }

    #[test]
    fn edited_configs(
        edits in prop::collection::vec((any::<usize>(), value()), 0..3),
        added in prop::collection::vec(
            ("(rope_scaling|rope_theta|sliding_window|head_dim|layer_types|num_experts|eos_token_id|x)", value()),
            0..3,
        ),
        gemma: bool,
    ) {
        let config: &[u8] = if gemma { &GEMMA } else { &CONFIG };
        let _ = open(directory(edited(config, &edits, &added), WEIGHTS.clone()));
    }

    #[test]
    fn random_configs(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(open(directory(bytes, WEIGHTS.clone())).is_err());
    }

    #[test]
    fn random_indices(
        map in prop::collection::btree_map("[a-z./]{0,12}", value(), 0..6),
        list in prop::collection::vec(damage(), 0..2),
    ) {
        let text = json!({"weight_map": map}).to_string().into_bytes();
        let index = damaged(&text, usize::MAX, &list);
        let mut files = directory(CONFIG.clone(), WEIGHTS.clone());
        files[1].0 = "model-1.safetensors".into();
        files.push(("model.safetensors.index.json".into(), index.into()));
        prop_assert!(open(files).is_err());
    }
}

/// Files that are small and claim to be huge, and JSON that grows most when parsed.
#[test]
fn greedy_files() {
    let huge = edited(
        &CONFIG,
        &[],
        &[
            ("num_hidden_layers".into(), json!(4096)),
            ("num_local_experts".into(), json!(i32::MAX)),
            ("num_experts_per_tok".into(), json!(i32::MAX)),
            ("vocab_size".into(), json!(i32::MAX)),
            ("head_dim".into(), json!(16_384)),
        ],
    );
    assert!(open(directory(huge, WEIGHTS.clone())).is_err());
    for filler in ["{},", "[],", "0,", "\"\",", "{\"\":0},", "[[[[[[]]]]]],"] {
        let config = format!("{{\"a\":[{}0]}}", filler.repeat(200_000 / filler.len()));
        assert!(open(directory(config.into_bytes(), WEIGHTS.clone())).is_err());
    }
    let header = format!("{{\"__metadata__\":{{{}\"x\":\"\"}}}}", "\"y\":\"\",".repeat(20_000));
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header.as_bytes());
    assert!(open(directory(CONFIG.clone(), weights)).is_err());
}
