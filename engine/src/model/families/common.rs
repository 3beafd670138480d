//! What the families share: the keys that all of them have, windows, and the usual names of weights.

use super::rotary;
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::inventory::{Shape, Source};
use crate::model::spec::{Activation, Family, Ffn, LayerSpec, ModelSpec, QkNorm};
use crate::model::tensor::{LayerTensor, Tensor};

/// More layers than any model has; bounds what a small file can make us allocate.
const LAYERS_LIMIT: usize = 4096;
/// Wider heads than any model has.
const HEAD_DIM_LIMIT: usize = 16_384;

/// What a family takes when a key is absent: the defaults of its configuration class in transformers.
pub(super) struct Defaults {
    /// `rms_norm_eps`.
    pub norm_eps: f64,
    /// `rope_theta`.
    pub theta: f64,
    /// `head_dim`; `None` derives it from `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `tie_word_embeddings`.
    pub tied: bool,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
}

impl Defaults {
    /// The most frequent values.
    pub(super) const USUAL: Self =
        Self { norm_eps: 1e-6, theta: 10_000.0, head_dim: None, tied: false, bos: None, eos: None };
}

/// Reads the keys that all families have into the description of a plain Llama; the family then changes what differs.
pub(super) fn base(config: &ConfigJson, family: Family, defaults: &Defaults) -> Result<ModelSpec> {
    refuse_variants(config)?;
    let hidden = config.size("hidden_size")?;
    let heads = config.size("num_attention_heads")?;
    let kv_heads = kv_heads(config, heads)?;
    let head_dim = head_dim(config, hidden, heads, defaults)?;
    let layers = config.size("num_hidden_layers")?;
    if layers > LAYERS_LIMIT {
        let reason = format!("is {layers}, more than the {LAYERS_LIMIT} that are supported");
        return Err(config.refuse("num_hidden_layers", reason, "check the configuration"));
    }
    let vocab = config.size("vocab_size")?;
    let norm_eps = config.opt_positive("rms_norm_eps")?.unwrap_or(defaults.norm_eps) as f32;
    Ok(ModelSpec {
        family,
        vocab,
        hidden,
        heads,
        kv_heads,
        head_dim,
        norm_eps,
        norm_one_plus: false,
        sandwich: false,
        qkv_bias: false,
        qk_norm: QkNorm::None,
        attn_scale: inverse_root(head_dim as f64),
        embed_scale: None,
        activation: Activation::Silu,
        tied: config.flag("tie_word_embeddings", defaults.tied)?,
        max_positions: config.size("max_position_embeddings")?,
        eos: eos(config, defaults, vocab)?,
        bos: bos(config, defaults, vocab)?,
        ropes: Vec::new(),
        layers: vec![LayerSpec { window: None, rope: 0, ffn: Ffn::Dense { inner: 0 } }; layers],
    })
}

/// `1 / sqrt(x)`, rounded once to f32.
pub(super) fn inverse_root(x: f64) -> f32 {
    x.sqrt().recip() as f32
}

/// A dense Llama-like model with one rotary table: the base, a SiLU, and `intermediate_size`.
pub(super) fn dense(config: &ConfigJson, family: Family, defaults: &Defaults) -> Result<ModelSpec> {
    let mut spec = base(config, family, defaults)?;
    activation(config, "hidden_act", &mut spec)?;
    spec.ropes = vec![rotary::single(config, spec.head_dim, defaults.theta)?];
    let inner = config.size("intermediate_size")?;
    spec.layers.iter_mut().for_each(|layer| layer.ffn = Ffn::Dense { inner });
    Ok(spec)
}

/// The routed block of a mixture of experts.
pub(super) fn experts(
    config: &ConfigJson,
    experts_key: &str,
    inner_key: &str,
    normalise: bool,
) -> Result<Ffn> {
    let experts = config.size(experts_key)?;
    let top_k = config.size("num_experts_per_tok")?;
    if top_k > experts {
        return Err(config.refuse(
            "num_experts_per_tok",
            format!("is {top_k}, more than `{experts_key}` = {experts}"),
            "a token can be sent to each expert once",
        ));
    }
    Ok(Ffn::Moe { experts, top_k, inner: config.size(inner_key)?, normalise })
}

/// Reads the activation under `key`.
pub(super) fn activation(config: &ConfigJson, key: &str, spec: &mut ModelSpec) -> Result<()> {
    spec.activation = match config.opt_text(key)? {
        None => spec.activation,
        Some("silu") => Activation::Silu,
        Some("gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(other) => {
            return Err(config.refuse(
                key,
                format!("is `{other}`, which is not supported"),
                "supported are silu and gelu_pytorch_tanh",
            ));
        }
    };
    Ok(())
}

/// `sliding_window` for all layers (Mistral, Mixtral); null switches it off.
pub(super) fn window_everywhere(
    config: &ConfigJson,
    default: Option<usize>,
    spec: &mut ModelSpec,
) -> Result<()> {
    let window = match config.opt_size("sliding_window")? {
        None if config.is_written("sliding_window") => None,
        None => default,
        some => some,
    };
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(())
}

/// The windows of Qwen2 and Qwen3: `layer_types`, or the layers from `max_window_layers` on, when
/// `use_sliding_window` says so.
pub(super) fn window_by_layer(config: &ConfigJson, spec: &mut ModelSpec) -> Result<()> {
    let on = config.flag("use_sliding_window", false)?;
    let default = if config.is_written("sliding_window") { None } else { Some(4096) };
    let window = config.opt_size("sliding_window")?.or(default).filter(|_| on);
    let first = config.get("max_window_layers").and_then(serde_json::Value::as_u64);
    let kinds = layer_kinds(config, spec.layers.len())?;
    if on && kinds.is_none() && first.is_none() {
        return Err(config.refuse(
            "max_window_layers",
            "is missing while `use_sliding_window` is true",
            "name the first layer that has a window, or give `layer_types`",
        ));
    }
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let sliding = match &kinds {
            Some(kinds) => kinds[index],
            None => window.is_some() && first.is_some_and(|first| index as u64 >= first),
        };
        if sliding && window.is_none() {
            return Err(config.refuse(
                "layer_types",
                format!("makes layer {index} sliding, but no window is in force"),
                "set `use_sliding_window` to true and give `sliding_window`",
            ));
        }
        layer.window = window.filter(|_| sliding);
    }
    Ok(())
}

/// `layer_types`: whether each layer slides. `None` when the key is absent.
pub(super) fn layer_kinds(config: &ConfigJson, layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(kinds) = config.opt_texts("layer_types")? else { return Ok(None) };
    if kinds.len() != layers {
        return Err(config.refuse(
            "layer_types",
            format!("has {} entries for {layers} layers", kinds.len()),
            "give one entry for each layer",
        ));
    }
    let kind = |name: &&str| match *name {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(config.refuse(
            "layer_types",
            format!("has `{other}`, which is not supported"),
            "supported are full_attention and sliding_attention",
        )),
    };
    kinds.iter().map(kind).collect::<Result<Vec<bool>>>().map(Some)
}

/// Switches that change the arithmetic in ways that no family here has.
fn refuse_variants(config: &ConfigJson) -> Result<()> {
    if let Some(quantisation) = config.opt_object("quantization_config")? {
        let method = quantisation.opt_text("quant_method")?.unwrap_or("unnamed").to_owned();
        return Err(config.refuse(
            "quantization_config",
            format!("asks for quantisation `{method}`, which is not supported"),
            "use the f32, bf16 or f16 weights of the model, or a GGUF file",
        ));
    }
    for (key, what) in [
        ("attention_bias", "a bias on the attention projections"),
        ("mlp_bias", "a bias in the feed-forward block"),
        ("attn_logit_softcapping", "soft-capped attention scores"),
        ("final_logit_softcapping", "soft-capped logits"),
        ("clip_qkv", "clipped queries, keys and values"),
        ("use_bidirectional_attention", "bidirectional attention"),
        ("is_encoder_decoder", "an encoder"),
        ("add_cross_attention", "cross-attention"),
        ("rope_interleaved", "interleaved rotary pairs"),
        ("use_mrope", "rotary positions of several dimensions"),
    ] {
        config.must_be_off(key, what, "use a model of this family without it")?;
    }
    Ok(())
}

fn kv_heads(config: &ConfigJson, heads: usize) -> Result<usize> {
    let kv_heads = config.opt_size("num_key_value_heads")?.unwrap_or(heads);
    if kv_heads > heads || !heads.is_multiple_of(kv_heads) {
        return Err(config.refuse(
            "num_key_value_heads",
            format!("is {kv_heads}, which does not divide `num_attention_heads` = {heads}"),
            "each key head serves the same number of query heads",
        ));
    }
    Ok(kv_heads)
}

fn head_dim(config: &ConfigJson, hidden: usize, heads: usize, defaults: &Defaults) -> Result<usize> {
    let explicit = config.opt_size("head_dim")?.or(defaults.head_dim);
    let (key, head_dim) = match explicit {
        Some(head_dim) => ("head_dim", head_dim),
        None if hidden.is_multiple_of(heads) => ("hidden_size", hidden / heads),
        None => {
            let reason = format!(
                "is {hidden}, no multiple of `num_attention_heads` = {heads}, and `head_dim` is missing"
            );
            return Err(config.refuse("hidden_size", reason, "give `head_dim`"));
        }
    };
    if head_dim % 2 != 0 || head_dim > HEAD_DIM_LIMIT {
        let reason = format!("makes heads {head_dim} wide, which is odd or more than {HEAD_DIM_LIMIT}");
        return Err(config.refuse(key, reason, "rotary positions turn pairs of elements"));
    }
    Ok(head_dim)
}

fn eos(config: &ConfigJson, defaults: &Defaults, vocab: usize) -> Result<Vec<u32>> {
    let ids = match config.opt_ids("eos_token_id")? {
        Some(ids) => ids,
        None if config.is_written("eos_token_id") => Vec::new(),
        None => defaults.eos.into_iter().collect(),
    };
    within(config, "eos_token_id", ids, vocab)
}

fn bos(config: &ConfigJson, defaults: &Defaults, vocab: usize) -> Result<Option<u32>> {
    let ids = match config.opt_ids("bos_token_id")? {
        Some(ids) => ids,
        None if config.is_written("bos_token_id") => Vec::new(),
        None => defaults.bos.into_iter().collect(),
    };
    Ok(within(config, "bos_token_id", ids, vocab)?.first().copied())
}

/// Refuses ids that no row of the embedding has.
pub(crate) fn within(config: &ConfigJson, key: &str, ids: Vec<u32>, vocab: usize) -> Result<Vec<u32>> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(ids),
        Some(id) => Err(config.refuse(
            key,
            format!("is {id}, outside the vocabulary of {vocab}"),
            "the file does not belong to this model",
        )),
    }
}

/// The usual names: `model.layers.N.self_attn.q_proj.weight` and so on.
pub(super) fn sources(_: &ModelSpec, tensor: Tensor, shape: Shape) -> Vec<Source> {
    vec![Source::whole(name(tensor, "post_attention_layernorm", "mlp"), shape)]
}

/// The name of a weight; families differ in the norm before the feed-forward block and in that block's own name.
pub(super) fn name(tensor: Tensor, ffn_norm: &str, block: &str) -> String {
    let (layer, tensor) = match tensor {
        Tensor::Embedding => return "model.embed_tokens.weight".into(),
        Tensor::Head => return "lm_head.weight".into(),
        Tensor::FinalNorm => return "model.norm.weight".into(),
        Tensor::Layer(layer, tensor) => (layer, tensor),
    };
    let rest = match tensor {
        LayerTensor::AttnNorm => "input_layernorm.weight".into(),
        LayerTensor::Q => "self_attn.q_proj.weight".into(),
        LayerTensor::K => "self_attn.k_proj.weight".into(),
        LayerTensor::V => "self_attn.v_proj.weight".into(),
        LayerTensor::QBias => "self_attn.q_proj.bias".into(),
        LayerTensor::KBias => "self_attn.k_proj.bias".into(),
        LayerTensor::VBias => "self_attn.v_proj.bias".into(),
        LayerTensor::QNorm => "self_attn.q_norm.weight".into(),
        LayerTensor::KNorm => "self_attn.k_norm.weight".into(),
        LayerTensor::O => "self_attn.o_proj.weight".into(),
        LayerTensor::PostAttnNorm => "post_attention_layernorm.weight".into(),
        LayerTensor::FfnNorm => format!("{ffn_norm}.weight"),
        LayerTensor::PostFfnNorm => "post_feedforward_layernorm.weight".into(),
        LayerTensor::Gate => format!("{block}.gate_proj.weight"),
        LayerTensor::Up => format!("{block}.up_proj.weight"),
        LayerTensor::Down => format!("{block}.down_proj.weight"),
        LayerTensor::Router => format!("{block}.gate.weight"),
        LayerTensor::ExpertGate(e) => format!("{block}.experts.{e}.gate_proj.weight"),
        LayerTensor::ExpertUp(e) => format!("{block}.experts.{e}.up_proj.weight"),
        LayerTensor::ExpertDown(e) => format!("{block}.experts.{e}.down_proj.weight"),
    };
    format!("model.layers.{layer}.{rest}")
}

/// Experts of all families: one tensor each, or fused over experts (`experts.gate_up_proj [experts, 2 inner, hidden]`,
/// `experts.down_proj [experts, hidden, inner]`), as transformers 5 keeps them in memory.
pub(super) fn expert_sources(
    spec: &ModelSpec,
    tensor: Tensor,
    shape: Shape,
    separate: String,
) -> Vec<Source> {
    let mut sources = vec![Source::whole(separate, shape)];
    if let Tensor::Layer(layer, part) = tensor
        && let Some(Ffn::Moe { experts, inner, .. }) = spec.layers.get(layer).map(|l| &l.ffn)
    {
        let (experts, inner, hidden) = (*experts, *inner, spec.hidden);
        let gate_up = format!("model.layers.{layer}.mlp.experts.gate_up_proj");
        let down = format!("model.layers.{layer}.mlp.experts.down_proj");
        sources.extend(match part {
            LayerTensor::ExpertGate(e) => Source::fused(gate_up, [experts, 2 * inner, hidden], e, 0),
            LayerTensor::ExpertUp(e) => Source::fused(gate_up, [experts, 2 * inner, hidden], e, inner),
            LayerTensor::ExpertDown(e) => Source::fused(down, [experts, hidden, inner], e, 0),
            LayerTensor::Router => {
                Some(Source::whole(format!("model.layers.{layer}.mlp.gate.weight"), shape))
            }
            _ => None,
        });
    }
    sources
}
