//! Layouts that the repository's own models do not have: fused experts, older names, factors, sharded files.

use super::build::{Blob, Directory, Gguf, Meta, message};
use crate::model::checkpoint::{Checkpoint, LayerTensor, Tensor};
use crate::model::spec::{Family, Ffn, QkNorm};
use serde_json::json;

fn rows(checkpoint: &Checkpoint, tensor: LayerTensor) -> Vec<f32> {
    let m = checkpoint.matrix(Tensor::Layer(0, tensor)).unwrap();
    (0..m.rows).flat_map(|r| (0..m.cols).map(move |c| (r, c))).map(|(r, c)| m.get(r, c)).collect()
}

/// The numbers `first, first + 1, ...` over eight, which is what the builders write.
fn ascending(first: usize, n: usize) -> Vec<f32> {
    (first..first + n).map(|i| i as f32 / 8.0).collect()
}

#[test]
fn fused_experts_are_cut_without_copies() {
    let mut directory = Directory::mixtral();
    directory.put("model.layers.0.mlp.gate.weight", Blob::f32(&[2, 8]));
    directory.put("model.layers.0.mlp.experts.gate_up_proj", Blob::f32(&[2, 12, 8]));
    directory.put("model.layers.0.mlp.experts.down_proj", Blob::f32(&[2, 8, 6]));
    let checkpoint = directory.open().unwrap();
    assert_eq!(checkpoint.spec().family, Family::Mixtral);
    assert_eq!(rows(&checkpoint, LayerTensor::ExpertGate(0)), ascending(0, 48));
    assert_eq!(rows(&checkpoint, LayerTensor::ExpertUp(0)), ascending(48, 48));
    assert_eq!(rows(&checkpoint, LayerTensor::ExpertGate(1)), ascending(96, 48));
    assert_eq!(rows(&checkpoint, LayerTensor::ExpertUp(1)), ascending(144, 48));
    assert_eq!(rows(&checkpoint, LayerTensor::ExpertDown(1)), ascending(48, 48));
    assert_eq!(checkpoint.dequantised_bytes(), 0);
    directory.put("model.layers.0.mlp.experts.gate_up_proj", Blob::f32(&[2, 6, 8]));
    assert_eq!(
        message(directory.open()),
        "model file `m/model.safetensors`, tensor `model.layers.0.mlp.experts.gate_up_proj`: has shape [2, 6, 8], \
         expected [2, 12, 8]"
    );
}

#[test]
fn shards_give_what_one_file_gives() {
    let whole = Directory::llama().open().unwrap();
    let mut directory = Directory::llama();
    directory.shard();
    let cut = directory.open().unwrap();
    assert_eq!(cut.spec(), whole.spec());
    for part in [LayerTensor::Q, LayerTensor::K, LayerTensor::Gate, LayerTensor::Down] {
        assert_eq!(rows(&cut, part), rows(&whole, part));
    }
    let names: Vec<_> = cut.files().iter().map(|f| f.name()).collect();
    assert_eq!(names, ["part-0.safetensors", "part-1.safetensors"]);
    let digest = cut.digest();
    assert_eq!(digest.files.len(), 2);
    assert!(digest.files.iter().all(|f| f.sha256 != digest.combined));
    assert_ne!(digest.combined, whole.digest().combined);
}

/// The combined digest is that of `sha256sum`'s output; the expected one was computed with the shell.
#[test]
fn combined_digest_is_that_of_the_listing() {
    use crate::model::files::FileBytes;
    let file = |name: &str, text: &'static [u8]| {
        std::sync::Arc::new(FileBytes::memory(
            std::path::Path::new("m").join(name),
            std::borrow::Cow::Borrowed(text),
        ))
    };
    let digest = crate::model::digest::digest(&[file("a", b"one"), file("b", b"two"), file("c", b"three")]);
    assert_eq!(digest.files[2].sha256, "8b5b9db0c13db24256c829aa364aa90c6d2eba318b9232a4ab9313b954d3555f");
    assert_eq!(digest.combined, COMBINED);
}

const COMBINED: &str = "9f0272baa255208898962279576c2638bf0835656d8e840cf99ddc94234379f4";

#[test]
fn older_and_newer_rotary_keys_agree() {
    let freq = |edit: fn(&mut Directory)| {
        let mut directory = Directory::llama();
        edit(&mut directory);
        directory.open().unwrap().spec().ropes[0].inv_freq.clone()
    };
    let plain = freq(|_| ());
    let newer = freq(|d| {
        d.unset("rope_theta");
        d.set("rope_parameters", json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}));
    });
    let older = freq(|d| d.set("rope_scaling", json!({"type": "linear", "factor": 4.0})));
    assert_eq!(newer, older);
    assert_eq!(older, plain.iter().map(|f| f / 4.0).collect::<Vec<_>>());
    let null = freq(|d| d.set("rope_scaling", json!(null)));
    assert_eq!(null, plain);
    let other = freq(|d| d.unset("rope_theta"));
    assert_eq!(other, plain, "the default of the family");
}

#[test]
fn qwen_windows_follow_the_switch() {
    let windows = |edit: fn(&mut Directory)| {
        let mut directory = Directory::family("qwen2", "Qwen2ForCausalLM");
        for (name, n) in [("q", 8), ("k", 4), ("v", 4)] {
            directory.put(&format!("model.layers.0.self_attn.{name}_proj.bias"), Blob::f32(&[n]));
        }
        edit(&mut directory);
        directory.open().unwrap().spec().layers[0].window
    };
    assert_eq!(windows(|d| d.set("sliding_window", json!(4))), None);
    assert_eq!(
        windows(|d| {
            d.set("use_sliding_window", json!(true));
            d.set("sliding_window", json!(4));
            d.set("max_window_layers", json!(0));
        }),
        Some(4)
    );
    assert_eq!(
        windows(|d| {
            d.set("use_sliding_window", json!(true));
            d.set("sliding_window", json!(4));
            d.set("max_window_layers", json!(1));
        }),
        None
    );
    assert_eq!(
        windows(|d| {
            d.set("use_sliding_window", json!(true));
            d.set("layer_types", json!(["sliding_attention"]));
        }),
        Some(4096),
        "the default of the family"
    );
}

#[test]
fn gguf_frequency_factors_divide() {
    let mut file = Gguf::llama();
    let plain = file.open().unwrap().spec().ropes[0].inv_freq.clone();
    file.put("rope_freqs.weight", &[2]);
    file.tensor("rope_freqs.weight").bytes = [1f32, 8f32].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(file.open().unwrap().spec().ropes[0].inv_freq, [plain[0], plain[1] / 8.0]);
    let mut linear = Gguf::llama();
    linear.set("llama.rope.scaling.type", Meta::text("linear"));
    linear.set("llama.rope.scaling.factor", Meta::f32(2.0));
    assert_eq!(linear.open().unwrap().spec().ropes[0].inv_freq, [plain[0] / 2.0, plain[1] / 2.0]);
}

/// The Llama file renamed to another architecture.
fn renamed(arch: &str) -> Gguf {
    let mut file = Gguf::llama();
    for (key, _) in &mut file.meta {
        *key = key.replace("llama.", &format!("{arch}."));
    }
    file.set("general.architecture", Meta::text(arch));
    file
}

#[test]
fn gguf_mixtral_fused_and_separate() {
    let mut fused = Gguf::llama();
    fused.set("llama.expert_count", Meta::u32(2));
    fused.set("llama.expert_used_count", Meta::u32(1));
    fused
        .tensors
        .retain(|t| !["ffn_gate", "ffn_up", "ffn_down"].iter().any(|n| t.name.contains(&format!("{n}."))));
    fused.put("blk.0.ffn_gate_inp.weight", &[8, 2]);
    let mut separate = fused.clone();
    for (name, dims) in [("gate", [8, 6]), ("up", [8, 6]), ("down", [6, 8])] {
        fused.put(&format!("blk.0.ffn_{name}_exps.weight"), &[dims[0], dims[1], 2]);
        for expert in 0..2 {
            separate.put(&format!("blk.0.ffn_{name}.{expert}.weight"), &dims);
        }
    }
    let (fused, separate) = (fused.open().unwrap(), separate.open().unwrap());
    assert_eq!(fused.spec(), separate.spec());
    assert_eq!(fused.spec().family, Family::Mixtral);
    assert_eq!(fused.spec().layers[0].ffn, Ffn::Moe { experts: 2, top_k: 1, inner: 6, normalise: true });
    assert_eq!(rows(&fused, LayerTensor::ExpertUp(1)), ascending(48, 48));
    assert_eq!(rows(&separate, LayerTensor::ExpertUp(1)), ascending(0, 48));
}

#[test]
fn gguf_families_differ_from_llama_as_they_should() {
    let mut qwen2 = renamed("qwen2");
    for (name, n) in [("q", 8), ("k", 4), ("v", 4)] {
        qwen2.put(&format!("blk.0.attn_{name}.bias"), &[n]);
    }
    let qwen2 = qwen2.open().unwrap();
    assert_eq!((qwen2.spec().family, qwen2.spec().qkv_bias), (Family::Qwen2, true));
    assert_eq!(rows(&qwen2, LayerTensor::Q), ascending(0, 64), "rows of Qwen are not permuted");
    let llama = Gguf::llama().open().unwrap();
    let q = rows(&llama, LayerTensor::Q);
    // head of width 4: stored rows 0 2 1 3
    assert_eq!(q[..8], ascending(0, 8));
    assert_eq!(q[8..16], ascending(16, 8));
    assert_eq!(q[16..24], ascending(8, 8));
    assert_eq!(q[24..32], ascending(24, 8));
    let mut qwen3 = renamed("qwen3");
    qwen3.put("blk.0.attn_q_norm.weight", &[4]);
    qwen3.put("blk.0.attn_k_norm.weight", &[4]);
    assert_eq!(qwen3.open().unwrap().spec().qk_norm, QkNorm::Head);
    let mut experts = renamed("qwen3moe");
    experts.set("qwen3moe.expert_count", Meta::u32(2));
    experts.set("qwen3moe.expert_used_count", Meta::u32(2));
    experts.set("qwen3moe.expert_feed_forward_length", Meta::u32(4));
    assert_eq!(
        message(experts.open()),
        "model file `m/x.gguf`, tensor `blk.0.attn_q_norm.weight`: is missing"
    );
}

#[test]
fn gguf_gemma3() {
    let mut file = renamed("gemma3");
    file.set("gemma3.attention.sliding_window", Meta::u32(4));
    for (name, n) in
        [("attn_q_norm", 4), ("attn_k_norm", 4), ("post_attention_norm", 8), ("post_ffw_norm", 8)]
    {
        file.put(&format!("blk.0.{name}.weight"), &[n]);
    }
    let checkpoint = file.open().unwrap();
    let spec = checkpoint.spec();
    assert_eq!((spec.layers[0].window, spec.layers[0].rope, spec.sandwich), (Some(4), 1, true));
    assert_eq!((spec.attn_scale, spec.embed_scale), (0.5, Some(8f32.sqrt())));
    // the converter of llama.cpp has added the one already
    assert_eq!(checkpoint.vector(Tensor::FinalNorm).unwrap(), ascending(0, 8));
    file.set("gemma3.attention.sliding_window_pattern", Meta::u32(1));
    assert_eq!(file.open().unwrap().spec().layers[0].window, None);
    file.set("gemma3.final_logit_softcapping", Meta::f32(30.0));
    assert_eq!(
        message(file.open()),
        "model file `m/x.gguf`: key `gemma3.final_logit_softcapping` asks for soft-capping, which is not supported"
    );
}
