//! Builders of small model files.

use crate::error::Result;
use crate::model::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A stored tensor: type name, shape, bytes.
#[derive(Clone)]
pub(super) struct Blob {
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Ascending small numbers in f32.
    pub(super) fn f32(shape: &[usize]) -> Self {
        let n: usize = shape.iter().product();
        let bytes = (0..n).flat_map(|i| (i as f32 / 8.0).to_le_bytes()).collect();
        Self { dtype: "F32", shape: shape.into(), bytes }
    }

    /// Zeros of another type.
    pub(super) fn zeros(dtype: &'static str, shape: &[usize], width: usize) -> Self {
        Self { dtype, shape: shape.into(), bytes: vec![0; shape.iter().product::<usize>() * width] }
    }
}

/// Writes a safetensors file.
pub(super) fn safetensors(tensors: &BTreeMap<String, Blob>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, blob) in tensors {
        let at = data.len();
        data.extend(&blob.bytes);
        header.insert(
            name.clone(),
            json!({"dtype": blob.dtype, "shape": blob.shape, "data_offsets": [at, data.len()]}),
        );
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// A safetensors file with the header given as text.
pub(super) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// A Hugging Face directory in memory: one Llama layer, 10 tokens, hidden 8, two query heads of 4 over one key head.
pub(super) struct Directory {
    pub config: Value,
    pub tensors: BTreeMap<String, Blob>,
    /// Files that replace or join `config.json` and `model.safetensors`; `None` takes a file away.
    pub files: BTreeMap<String, Option<Vec<u8>>>,
}

impl Directory {
    pub(super) fn llama() -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10, "hidden_size": 8,
            "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
            "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
        });
        let mut tensors = BTreeMap::new();
        for (name, shape) in [
            ("model.embed_tokens.weight", vec![10, 8]),
            ("lm_head.weight", vec![10, 8]),
            ("model.norm.weight", vec![8]),
            ("model.layers.0.input_layernorm.weight", vec![8]),
            ("model.layers.0.post_attention_layernorm.weight", vec![8]),
            ("model.layers.0.self_attn.q_proj.weight", vec![8, 8]),
            ("model.layers.0.self_attn.k_proj.weight", vec![4, 8]),
            ("model.layers.0.self_attn.v_proj.weight", vec![4, 8]),
            ("model.layers.0.self_attn.o_proj.weight", vec![8, 8]),
            ("model.layers.0.mlp.gate_proj.weight", vec![6, 8]),
            ("model.layers.0.mlp.up_proj.weight", vec![6, 8]),
            ("model.layers.0.mlp.down_proj.weight", vec![8, 6]),
        ] {
            tensors.insert(name.to_owned(), Blob::f32(&shape));
        }
        Self { config, tensors, files: BTreeMap::new() }
    }

    /// Another family's configuration, without the tensors that would belong to it.
    pub(super) fn family(model_type: &str, architecture: &str) -> Self {
        let mut directory = Self::llama();
        directory.set("model_type", json!(model_type));
        directory.set("architectures", json!([architecture]));
        directory
    }

    /// The Llama turned into a Mixtral of two experts without its expert tensors.
    pub(super) fn mixtral() -> Self {
        let mut directory = Self::family("mixtral", "MixtralForCausalLM");
        directory.set("num_local_experts", json!(2));
        directory.set("num_experts_per_tok", json!(1));
        directory.tensors.retain(|name, _| !name.contains(".mlp."));
        directory
    }

    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    pub(super) fn unset(&mut self, key: &str) {
        self.config.as_object_mut().unwrap().remove(key);
    }

    pub(super) fn put(&mut self, tensor: &str, blob: Blob) {
        self.tensors.insert(tensor.to_owned(), blob);
    }

    pub(super) fn file(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.files.insert(name.to_owned(), Some(bytes.into()));
    }

    /// Cuts the weights into two shards with an index; returns the map of the index.
    pub(super) fn shard(&mut self) -> serde_json::Map<String, Value> {
        let mut map = serde_json::Map::new();
        let mut parts = [BTreeMap::new(), BTreeMap::new()];
        for (i, (name, blob)) in self.tensors.iter().enumerate() {
            map.insert(name.clone(), json!(format!("part-{}.safetensors", i % 2)));
            parts[i % 2].insert(name.clone(), blob.clone());
        }
        for (i, part) in parts.iter().enumerate() {
            self.file(&format!("part-{i}.safetensors"), safetensors(part));
        }
        self.files.insert("model.safetensors".into(), None);
        self.index(&map);
        map
    }

    pub(super) fn index(&mut self, map: &serde_json::Map<String, Value>) {
        self.file("model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
    }

    /// All files by name.
    pub(super) fn files(&self) -> Vec<(String, Cow<'static, [u8]>)> {
        let mut files = BTreeMap::new();
        files.insert("config.json".to_owned(), Some(self.config.to_string().into_bytes()));
        files.insert("model.safetensors".to_owned(), Some(safetensors(&self.tensors)));
        files.extend(self.files.clone());
        files.into_iter().filter_map(|(name, bytes)| Some((name, Cow::Owned(bytes?)))).collect()
    }

    pub(super) fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open_memory("m", self.files())
    }
}

/// A value of GGUF metadata as it lies in a file: type number and bytes.
#[derive(Clone)]
pub(super) struct Meta(pub u32, pub Vec<u8>);

impl Meta {
    pub(super) fn u32(n: u32) -> Self {
        Self(4, n.to_le_bytes().into())
    }

    pub(super) fn f32(x: f32) -> Self {
        Self(6, x.to_le_bytes().into())
    }

    pub(super) fn text(s: &str) -> Self {
        Self(8, text(s))
    }

    pub(super) fn texts(items: &[&str]) -> Self {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((items.len() as u64).to_le_bytes());
        bytes.extend(items.iter().flat_map(|s| text(s)));
        Self(9, bytes)
    }
}

fn text(s: &str) -> Vec<u8> {
    let mut bytes = (s.len() as u64).to_le_bytes().to_vec();
    bytes.extend(s.as_bytes());
    bytes
}

/// A tensor of a GGUF file: dimensions innermost first, type number, bytes, and its offset when it is not the next.
#[derive(Clone)]
pub(super) struct GgufTensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    pub offset: Option<u64>,
}

/// A GGUF file: one Llama layer of the shape of [`Directory::llama`], tied.
#[derive(Clone)]
pub(super) struct Gguf {
    pub version: u32,
    pub counts: Option<(u64, u64)>,
    pub meta: Vec<(String, Meta)>,
    pub tensors: Vec<GgufTensor>,
    pub tail: Vec<u8>,
}

impl Gguf {
    pub(super) fn llama() -> Self {
        let meta = [
            ("general.architecture", Meta::text("llama")),
            ("llama.block_count", Meta::u32(1)),
            ("llama.context_length", Meta::u32(32)),
            ("llama.embedding_length", Meta::u32(8)),
            ("llama.feed_forward_length", Meta::u32(6)),
            ("llama.attention.head_count", Meta::u32(2)),
            ("llama.attention.head_count_kv", Meta::u32(1)),
            ("llama.attention.layer_norm_rms_epsilon", Meta::f32(1e-5)),
            ("llama.rope.freq_base", Meta::f32(10_000.0)),
            ("tokenizer.ggml.eos_token_id", Meta::u32(2)),
        ];
        let mut file = Self {
            version: 3,
            counts: None,
            meta: meta.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            tensors: Vec::new(),
            tail: Vec::new(),
        };
        for (name, dims) in [
            ("token_embd.weight", vec![8, 10]),
            ("output_norm.weight", vec![8]),
            ("blk.0.attn_norm.weight", vec![8]),
            ("blk.0.ffn_norm.weight", vec![8]),
            ("blk.0.attn_q.weight", vec![8, 8]),
            ("blk.0.attn_k.weight", vec![8, 4]),
            ("blk.0.attn_v.weight", vec![8, 4]),
            ("blk.0.attn_output.weight", vec![8, 8]),
            ("blk.0.ffn_gate.weight", vec![8, 6]),
            ("blk.0.ffn_up.weight", vec![8, 6]),
            ("blk.0.ffn_down.weight", vec![6, 8]),
        ] {
            file.put(name, &dims);
        }
        file
    }

    /// Adds an f32 tensor of ascending small numbers.
    pub(super) fn put(&mut self, name: &str, dims: &[u64]) {
        let shape: Vec<usize> = dims.iter().map(|n| *n as usize).collect();
        let bytes = Blob::f32(&shape).bytes;
        self.tensors.push(GgufTensor { name: name.into(), dims: dims.into(), kind: 0, bytes, offset: None });
    }

    pub(super) fn set(&mut self, key: &str, value: Meta) {
        match self.meta.iter_mut().find(|(k, _)| k == key) {
            Some(pair) => pair.1 = value,
            None => self.meta.push((key.into(), value)),
        }
    }

    pub(super) fn unset(&mut self, key: &str) {
        self.meta.retain(|(k, _)| k != key);
    }

    pub(super) fn tensor(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        let (tensors, pairs) = self.counts.unwrap_or((self.tensors.len() as u64, self.meta.len() as u64));
        out.extend(tensors.to_le_bytes());
        out.extend(pairs.to_le_bytes());
        for (key, Meta(kind, bytes)) in &self.meta {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            out.extend(text(&tensor.name));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|n| n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out.extend(&self.tail);
        out
    }

    pub(super) fn open(&self) -> Result<Checkpoint> {
        open_gguf(self.bytes())
    }
}

pub(super) fn open_gguf(bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::open_memory("m", vec![("x.gguf".into(), Cow::Owned(bytes))])
}

/// The message of a refusal.
pub(super) fn message(result: Result<Checkpoint>) -> String {
    match result {
        Ok(checkpoint) => format!("opened: {:?}", checkpoint.spec()),
        Err(error) => {
            assert!(error.hint().is_some_and(|h| !h.is_empty()), "no hint: {error}");
            error.to_string()
        }
    }
}
