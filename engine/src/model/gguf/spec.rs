//! GGUF metadata to [`ModelSpec`]: the architectures of llama.cpp that are understood. Every key of the architecture is
//! honoured or refused by name, as with `config.json`.

use super::metadata::{Metadata, Value};
use super::names::{EMBEDDING, HEAD, ROPE_FREQS};
use super::types::Encoding;
use crate::dtype::DType;
use crate::error::{EngineError, Result};
use crate::model::rope::{Scaling, rope};
use crate::model::spec::{Activation, Family, Ffn, LayerSpec, ModelSpec, QkNorm, Rope};
use crate::model::stored::Table;
use std::cell::RefCell;
use std::collections::BTreeSet;

const LAYERS_LIMIT: usize = 4096;
const HEAD_DIM_LIMIT: usize = 16_384;
const SIZE_LIMIT: u64 = (1 << 31) - 1;
/// Every this-many-th layer of Gemma 3 is full, the others slide.
const GEMMA3_PATTERN: usize = 6;
/// Rotary base of Gemma 3's sliding layers, which older files do not state.
const GEMMA3_SLIDING_THETA: f64 = 10_000.0;
/// Gemma 3 27B scales scores by its embedding's share of a head instead of the head's width; llama.cpp, too, knows it
/// by its number of layers.
const GEMMA3_27B_LAYERS: usize = 62;
const SUPPORTED: &str = "supported are llama, qwen2, qwen3, qwen3moe, gemma3 and olmoe";

/// What the metadata says.
pub(crate) struct GgufModel {
    /// The model.
    pub spec: ModelSpec,
    /// Rows of queries and keys are permuted (architecture `llama`).
    pub permuted: bool,
    /// `rope_freqs.weight` has been honoured.
    pub rope_freqs: bool,
}

/// The keys of one architecture, with a record of which were read.
struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'a str,
    taken: RefCell<BTreeSet<String>>,
}

impl Keys<'_> {
    fn full(&self, key: &str) -> String {
        let full = format!("{}.{key}", self.arch);
        self.taken.borrow_mut().insert(full.clone());
        full
    }

    fn refuse(&self, key: &str, reason: impl std::fmt::Display, hint: &str) -> EngineError {
        self.metadata.refuse(&self.full(key), reason, hint)
    }

    fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        match self.metadata.unsigned(&self.full(key))? {
            None => Ok(None),
            Some(n @ 1..=SIZE_LIMIT) => Ok(Some(n as usize)),
            Some(n) => {
                Err(self.refuse(key, format!("is {n}, outside 1 to {SIZE_LIMIT}"), "convert the model again"))
            }
        }
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| self.refuse(key, "is missing", "convert the model again"))
    }

    fn opt_positive(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.float(&self.full(key))? {
            Some(x) if !(x.is_finite() && x > 0.0) => {
                Err(self.refuse(key, format!("is {x}, not a positive number"), "convert the model again"))
            }
            value => Ok(value),
        }
    }

    /// Refuses the first key of the architecture that nobody took.
    fn finish(&self) -> Result<()> {
        let taken = self.taken.borrow();
        let prefix = format!("{}.", self.arch);
        match self.metadata.keys().find(|k| k.starts_with(&prefix) && !taken.contains(*k)) {
            None => Ok(()),
            Some(key) => Err(self.metadata.refuse(
                key,
                "is not understood",
                "it may change the arithmetic; convert the model without it",
            )),
        }
    }
}

/// Reads the description of the model.
pub(crate) fn read(metadata: &Metadata, table: &Table) -> Result<GgufModel> {
    let arch = match metadata.text("general.architecture")? {
        Some(arch @ ("llama" | "qwen2" | "qwen3" | "qwen3moe" | "gemma3" | "olmoe")) => arch,
        Some(other) => {
            let reason = format!("is `{other}`, which is not supported");
            return Err(metadata.refuse("general.architecture", reason, SUPPORTED));
        }
        None => return Err(metadata.refuse("general.architecture", "is missing", SUPPORTED)),
    };
    if metadata.unsigned("split.count")?.is_some_and(|n| n > 1) {
        let reason = "says that this is one part of a split model, which is not supported";
        return Err(metadata.refuse("split.count", reason, "join the parts with llama-gguf-split --merge"));
    }
    let keys = Keys { metadata, arch, taken: RefCell::default() };
    let mut spec = base(&keys, table)?;
    let factors = rope_factors(table, spec.head_dim, arch)?;
    let rope_freqs = factors.is_some();
    let theta = keys.opt_positive("rope.freq_base")?;
    let scaling = match factors {
        Some(factors) => Scaling::PerPair(factors),
        None => scaling(&keys)?,
    };
    feed_forward(&keys, &mut spec)?;
    match arch {
        "gemma3" => gemma3(&keys, &mut spec, theta.unwrap_or(1_000_000.0), &scaling)?,
        _ => {
            spec.ropes = vec![rope(theta.unwrap_or(10_000.0), spec.head_dim, &scaling)];
            spec.qkv_bias = arch == "qwen2";
            spec.qk_norm = match arch {
                "qwen3" | "qwen3moe" => QkNorm::Head,
                "olmoe" => QkNorm::Full,
                _ => QkNorm::None,
            };
        }
    }
    keys.finish()?;
    Ok(GgufModel { spec, permuted: arch == "llama", rope_freqs })
}

/// What all architectures have in common.
fn base(keys: &Keys<'_>, table: &Table) -> Result<ModelSpec> {
    let hidden = keys.size("embedding_length")?;
    let heads = keys.size("attention.head_count")?;
    let kv_heads = keys.opt_size("attention.head_count_kv")?.unwrap_or(heads);
    if kv_heads > heads || !heads.is_multiple_of(kv_heads) {
        let reason = format!("is {kv_heads}, which does not divide the {heads} query heads");
        return Err(keys.refuse("attention.head_count_kv", reason, "convert the model again"));
    }
    let layers = keys.size("block_count")?;
    if layers > LAYERS_LIMIT {
        let reason = format!("is {layers}, more than the {LAYERS_LIMIT} that are supported");
        return Err(keys.refuse("block_count", reason, "convert the model again"));
    }
    let head_dim = head_dim(keys, hidden, heads)?;
    let vocab = vocabulary(keys, table)?;
    let eps_key = "attention.layer_norm_rms_epsilon";
    let norm_eps = keys
        .opt_positive(eps_key)?
        .ok_or_else(|| keys.refuse(eps_key, "is missing", "convert the model again"))?;
    Ok(ModelSpec {
        family: Family::Llama,
        vocab,
        hidden,
        heads,
        kv_heads,
        head_dim,
        norm_eps: norm_eps as f32,
        norm_one_plus: false,
        sandwich: false,
        qkv_bias: false,
        qk_norm: QkNorm::None,
        attn_scale: (head_dim as f64).sqrt().recip() as f32,
        embed_scale: None,
        activation: Activation::Silu,
        tied: !table.contains_key(HEAD),
        max_positions: keys.size("context_length")?,
        eos: end_ids(keys, vocab)?,
        bos: special(keys, "tokenizer.ggml.bos_token_id", vocab)?,
        ropes: Vec::new(),
        layers: vec![LayerSpec { window: None, rope: 0, ffn: Ffn::Dense { inner: 0 } }; layers],
    })
}

/// Explicit widths of keys and values must agree with one another and with the rotated part.
fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize) -> Result<usize> {
    let head_dim = match keys.opt_size("attention.key_length")? {
        Some(n) => n,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let reason = format!("is missing, and {hidden} is no multiple of {heads} heads");
            return Err(keys.refuse("attention.key_length", reason, "convert the model again"));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(n) = keys.opt_size(key)?
            && n != head_dim
        {
            let reason = format!("is {n}, other than the {head_dim} of the keys, which is not supported");
            return Err(keys.refuse(key, reason, "use a model whose heads are turned as a whole"));
        }
    }
    if head_dim % 2 != 0 || head_dim > HEAD_DIM_LIMIT {
        let reason = format!("makes heads {head_dim} wide, which is odd or more than {HEAD_DIM_LIMIT}");
        return Err(keys.refuse("attention.key_length", reason, "rotary positions turn pairs of elements"));
    }
    Ok(head_dim)
}

/// Rows of the embedding; `vocab_size` and the list of tokens, where present, must say the same.
fn vocabulary(keys: &Keys<'_>, table: &Table) -> Result<usize> {
    let rows = match table.get(EMBEDDING).map(|e| e.shape.as_slice()) {
        Some([rows, _]) => *rows,
        _ => {
            let hint = "the file is incomplete";
            return Err(EngineError::tensor(
                keys.metadata.file(),
                EMBEDDING,
                "is missing or not a matrix",
                hint,
            ));
        }
    };
    let tokens = keys.metadata.texts("tokenizer.ggml.tokens")?.map(<[String]>::len);
    for (key, n) in [
        (keys.full("vocab_size"), keys.opt_size("vocab_size")?),
        ("tokenizer.ggml.tokens".to_owned(), tokens),
    ] {
        if let Some(n) = n
            && n != rows
        {
            let reason = format!("counts {n} tokens, but the embedding has {rows} rows");
            return Err(keys.metadata.refuse(&key, reason, "convert the model again"));
        }
    }
    Ok(rows)
}

/// The end of a text, of a turn, and of a message.
fn end_ids(keys: &Keys<'_>, vocab: usize) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if let Some(id) = special(keys, key, vocab)?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

fn special(keys: &Keys<'_>, key: &str, vocab: usize) -> Result<Option<u32>> {
    match keys.metadata.unsigned(key)? {
        None => Ok(None),
        Some(id) if (id as usize) < vocab && id <= u64::from(u32::MAX) => Ok(Some(id as u32)),
        Some(id) => {
            let reason = format!("is {id}, outside the vocabulary of {vocab}");
            Err(keys.metadata.refuse(key, reason, "convert the model again"))
        }
    }
}

/// `rope_freqs.weight` of the `llama` architecture: one factor for each pair.
fn rope_factors(table: &Table, head_dim: usize, arch: &str) -> Result<Option<Vec<f32>>> {
    let Some(entry) = table.get(ROPE_FREQS).filter(|_| arch == "llama") else { return Ok(None) };
    let refuse = |reason: String| {
        Err(EngineError::tensor(entry.file.path(), ROPE_FREQS, reason, "convert the model again"))
    };
    if entry.shape != [head_dim / 2] || entry.encoding != Encoding::Plain(DType::F32) {
        return refuse(format!("has shape {:?}, expected [{}] in F32", entry.shape, head_dim / 2));
    }
    let bytes = entry.bytes().unwrap_or_default();
    let factors: Vec<f32> = (0..head_dim / 2).map(|i| DType::F32.read(bytes, i)).collect();
    match factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
        None => Ok(Some(factors)),
        Some(bad) => refuse(format!("has the factor {bad}, which is not positive")),
    }
}

fn scaling(keys: &Keys<'_>) -> Result<Scaling> {
    // says where the factor comes from, not how to apply it
    keys.full("rope.scaling.finetuned");
    let key = keys.full("rope.scaling.type");
    match keys.metadata.text(&key)? {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => match keys.opt_positive("rope.scaling.factor")? {
            Some(factor) => Ok(Scaling::Linear(factor)),
            None => Err(keys.refuse("rope.scaling.factor", "is missing", "convert the model again")),
        },
        Some(other) => {
            let reason = format!("is `{other}`, which is not supported");
            Err(keys.refuse("rope.scaling.type", reason, "supported are none and linear"))
        }
    }
}

/// Dense or routed, and the family that follows from it.
fn feed_forward(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<()> {
    let routed = match keys.opt_size("expert_count")? {
        None => None,
        Some(experts) => {
            let top_k = keys.size("expert_used_count")?;
            if top_k > experts {
                let reason = format!("is {top_k}, more than the {experts} experts");
                return Err(keys.refuse("expert_used_count", reason, "convert the model again"));
            }
            Some((experts, top_k))
        }
    };
    let (family, normalise) = match (keys.arch, routed) {
        ("llama", None) => (Family::Llama, false),
        ("llama", Some(_)) => (Family::Mixtral, true),
        ("qwen2", None) => (Family::Qwen2, false),
        ("qwen3", None) => (Family::Qwen3, false),
        ("gemma3", None) => (Family::Gemma3, false),
        ("qwen3moe", Some(_)) => (Family::Qwen3Moe, true),
        ("olmoe", Some(_)) => (Family::Olmoe, false),
        (arch, routed) => {
            let reason = format!(
                "is {} for architecture `{arch}`",
                if routed.is_some() { "given" } else { "missing" }
            );
            return Err(keys.refuse("expert_count", reason, "convert the model again"));
        }
    };
    spec.family = family;
    let inner = keys.opt_size("feed_forward_length")?;
    let expert_inner = keys.opt_size("expert_feed_forward_length")?;
    let inner = match routed {
        Some(_) => expert_inner.or(inner),
        None => inner,
    }
    .ok_or_else(|| keys.refuse("feed_forward_length", "is missing", "convert the model again"))?;
    let ffn = match routed {
        None => Ffn::Dense { inner },
        Some((experts, top_k)) => Ffn::Moe { experts, top_k, inner, normalise },
    };
    spec.layers.iter_mut().for_each(|layer| layer.ffn = ffn.clone());
    Ok(())
}

fn gemma3(keys: &Keys<'_>, spec: &mut ModelSpec, theta: f64, scaling: &Scaling) -> Result<()> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(Value::F32(_) | Value::F64(_)) = keys.metadata.get(&keys.full(key)) {
            return Err(keys.refuse(
                key,
                "asks for soft-capping, which is not supported",
                "Gemma 3 has none",
            ));
        }
    }
    let pattern = keys.opt_size("attention.sliding_window_pattern")?.unwrap_or(GEMMA3_PATTERN);
    let sliding_theta = keys.opt_positive("rope.freq_base_swa")?.unwrap_or(GEMMA3_SLIDING_THETA);
    let window = keys.size("attention.sliding_window")?;
    let sliding: Rope = rope(sliding_theta, spec.head_dim, &Scaling::None);
    spec.ropes = vec![rope(theta, spec.head_dim, scaling), sliding];
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let slides = (index + 1) % pattern != 0;
        layer.window = slides.then_some(window);
        layer.rope = usize::from(slides);
    }
    let scalar = match spec.layers.len() {
        GEMMA3_27B_LAYERS => spec.hidden as f64 / spec.heads as f64,
        _ => spec.head_dim as f64,
    };
    spec.attn_scale = scalar.sqrt().recip() as f32;
    spec.norm_one_plus = true;
    spec.sandwich = true;
    spec.qk_norm = QkNorm::Head;
    spec.activation = Activation::GeluTanh;
    spec.embed_scale = Some((spec.hidden as f64).sqrt() as f32);
    Ok(())
}
