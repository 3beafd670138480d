//! The models of the repository open and are described as their makers configured them.

use crate::dtype::DType;
use crate::model::assets::TokenizerAssets;
use crate::model::checkpoint::{Checkpoint, LayerTensor, Tensor};
use crate::model::spec::{Activation, Family, Ffn, QkNorm};
use std::path::{Path, PathBuf};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens")
}

fn open(name: &str) -> Checkpoint {
    let path = goldens().join("models").join(name);
    Checkpoint::open(&path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn dense_story_model() {
    let checkpoint = open("dense");
    let spec = checkpoint.spec();
    assert_eq!((spec.family, spec.vocab, spec.hidden), (Family::Llama, 512, 64));
    assert_eq!((spec.heads, spec.kv_heads, spec.head_dim), (8, 8, 8));
    assert_eq!((spec.layers.len(), spec.max_positions), (8, 512));
    assert_eq!((spec.eos.as_slice(), spec.bos, spec.tied), ([2].as_slice(), Some(1), true));
    assert_eq!((spec.norm_eps, spec.activation, spec.qk_norm), (1e-5, Activation::Silu, QkNorm::None));
    assert!(spec.layers.iter().all(|l| l.ffn == Ffn::Dense { inner: 192 } && l.window.is_none()));
    assert_eq!(spec.ropes.len(), 1);
    let head = checkpoint.matrix(Tensor::Head).unwrap();
    let embedding = checkpoint.matrix(Tensor::Embedding).unwrap();
    assert_eq!((head.rows, head.cols, head.bytes.as_ptr()), (512, 64, embedding.bytes.as_ptr()));
    assert!(!checkpoint.has(Tensor::Layer(0, LayerTensor::QBias)) && checkpoint.has(Tensor::Head));
    assert!(!checkpoint.has(Tensor::Layer(8, LayerTensor::Q)));
    let TokenizerAssets::HuggingFace(assets) = checkpoint.tokenizer_assets() else {
        panic!("not a directory")
    };
    assert!(
        assets.tokenizer.is_some() && assets.tokenizer_config.is_some() && assets.chat_template.is_none()
    );
    assert_eq!(checkpoint.dequantised_bytes(), 0);
}

#[test]
fn moe_story_model() {
    let checkpoint = open("moe");
    let spec = checkpoint.spec();
    assert_eq!((spec.family, spec.layers.len()), (Family::Mixtral, 4));
    let ffn = Ffn::Moe { experts: 8, top_k: 2, inner: 64, normalise: true };
    assert!(spec.layers.iter().all(|l| l.ffn == ffn && l.window.is_none()));
    let down = checkpoint.matrix(Tensor::Layer(3, LayerTensor::ExpertDown(7))).unwrap();
    assert_eq!((down.dtype, down.rows, down.cols), (DType::F32, 64, 64));
    assert!(!checkpoint.has(Tensor::Layer(0, LayerTensor::ExpertUp(8))));
    assert!(checkpoint.matrix(Tensor::FinalNorm).is_err() && checkpoint.vector(Tensor::Embedding).is_err());
}

/// Expected digests are those that `sha256sum` prints.
#[test]
fn digests() {
    let digest = open("dense").digest().clone();
    assert_eq!(digest.files[0].file, "model.safetensors");
    assert_eq!(digest.files[0].sha256, DENSE_SHA256);
    assert_eq!(digest.combined, DENSE_SHA256);
}

const DENSE_SHA256: &str = "fd3124c6002c3cf7ac488cc786baddf94056de862f7fbd5d11f3450b582a5752";

/// What `goldens/generate/tiny.py` says about each tiny model: family, heads, key heads, head width, layers, tied.
#[test]
fn tiny_models_are_described_as_they_were_made() {
    let table = [
        ("tiny-llama", Family::Llama, (6, 3, 8, 2, false)),
        ("tiny-llama3-rope", Family::Llama, (4, 2, 8, 2, false)),
        ("tiny-llama-bf16", Family::Llama, (4, 2, 8, 2, true)),
        ("tiny-llama-f16", Family::Llama, (4, 1, 8, 2, false)),
        ("tiny-mistral", Family::Mistral, (4, 2, 8, 2, false)),
        ("tiny-qwen2", Family::Qwen2, (4, 2, 8, 2, true)),
        ("tiny-qwen3", Family::Qwen3, (4, 2, 16, 2, false)),
        ("tiny-gemma3", Family::Gemma3, (4, 1, 16, 3, true)),
        ("tiny-mixtral", Family::Mixtral, (4, 2, 8, 2, false)),
        ("tiny-qwen3-moe", Family::Qwen3Moe, (4, 2, 8, 2, false)),
        ("tiny-qwen3-moe-unnormalised", Family::Qwen3Moe, (4, 2, 8, 2, false)),
        ("tiny-olmoe", Family::Olmoe, (4, 2, 8, 2, false)),
        ("tiny-gguf", Family::Llama, (6, 3, 8, 2, false)),
        ("tiny-gguf-quant", Family::Llama, (4, 1, 8, 2, false)),
    ];
    for (name, family, expected) in table {
        let checkpoint = open(name);
        let spec = checkpoint.spec();
        let got = (spec.heads, spec.kv_heads, spec.head_dim, spec.layers.len(), spec.tied);
        assert_eq!((spec.family, got), (family, expected), "{name}");
        assert_eq!((spec.eos.as_slice(), spec.bos), ([2].as_slice(), Some(1)), "{name}");
        assert!(spec.ropes.iter().all(|r| r.inv_freq.len() == spec.head_dim / 2), "{name}");
    }
}

#[test]
fn special_features_of_families() {
    let windows = |name: &str| open(name).spec().layers.iter().map(|l| l.window).collect::<Vec<_>>();
    assert_eq!(windows("tiny-mistral"), [Some(16); 2]);
    assert_eq!(windows("tiny-gemma3"), [Some(16), Some(16), None]);
    assert_eq!(windows("tiny-qwen2"), [None; 2]);
    assert_eq!(windows("tiny-mixtral"), [None; 2]);
    let gemma = open("tiny-gemma3");
    let spec = gemma.spec();
    assert_eq!((spec.qk_norm, spec.sandwich, spec.norm_one_plus), (QkNorm::Head, true, true));
    assert_eq!((spec.attn_scale, spec.embed_scale), ((1.0 / 24f64.sqrt()) as f32, Some(32f32.sqrt())));
    assert_eq!(spec.activation, Activation::GeluTanh);
    let second = |layer: usize| spec.ropes[spec.layers[layer].rope].inv_freq[1];
    assert!((second(0) / 10_000f64.powf(-0.125) - 1.0).abs() < 1e-12);
    assert!((second(2) / 1_000_000f64.powf(-0.125) - 1.0).abs() < 1e-12);
    assert!(open("tiny-qwen2").spec().qkv_bias && !open("tiny-qwen3").spec().qkv_bias);
    assert_eq!(open("tiny-qwen3").spec().qk_norm, QkNorm::Head);
    assert_eq!(open("tiny-olmoe").spec().qk_norm, QkNorm::Full);
    let ffn = |name: &str| open(name).spec().layers.iter().map(|l| l.ffn.clone()).collect::<Vec<_>>();
    let moe = |experts, top_k, normalise| Ffn::Moe { experts, top_k, inner: 16, normalise };
    assert_eq!(ffn("tiny-mixtral"), [moe(8, 2, true), moe(8, 2, true)]);
    assert_eq!(ffn("tiny-qwen3-moe"), [moe(8, 2, true), moe(8, 2, true)]);
    assert_eq!(ffn("tiny-qwen3-moe-unnormalised"), [Ffn::Dense { inner: 48 }, moe(6, 3, false)]);
    assert_eq!(ffn("tiny-olmoe"), [moe(8, 2, false), moe(8, 2, false)]);
}

/// Bits of a safetensors file, read without the loader: f32 only.
fn raw_f32(model: &str, tensor: &str) -> Vec<f32> {
    let bytes = std::fs::read(goldens().join("models").join(model).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = |i: usize| 8 + header + json[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    assert_eq!(json[tensor]["dtype"], "F32");
    bytes[at(0)..at(1)].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn gemma_norms_come_with_the_one_added() {
    let checkpoint = open("tiny-gemma3");
    for (tensor, name) in [
        (Tensor::FinalNorm, "model.norm.weight"),
        (Tensor::Layer(1, LayerTensor::FfnNorm), "model.layers.1.pre_feedforward_layernorm.weight"),
        (Tensor::Layer(1, LayerTensor::PostFfnNorm), "model.layers.1.post_feedforward_layernorm.weight"),
        (Tensor::Layer(2, LayerTensor::PostAttnNorm), "model.layers.2.post_attention_layernorm.weight"),
        (Tensor::Layer(2, LayerTensor::KNorm), "model.layers.2.self_attn.k_norm.weight"),
    ] {
        let stored = raw_f32("tiny-gemma3", name);
        let expected: Vec<f32> = stored.iter().map(|w| 1.0 + w).collect();
        assert_eq!(checkpoint.vector(tensor).unwrap(), expected, "{name}");
        assert_ne!(expected, stored);
    }
    let bias = open("tiny-qwen2").vector(Tensor::Layer(0, LayerTensor::VBias)).unwrap();
    assert_eq!(bias, raw_f32("tiny-qwen2", "model.layers.0.self_attn.v_proj.bias"));
}

/// tiny-gguf is tiny-llama written by the `gguf` package with llama.cpp's row order: reading it gives the same bits.
#[test]
fn gguf_gives_back_the_rows_that_were_permuted() {
    let (gguf, hf) = (open("tiny-gguf"), open("tiny-llama"));
    let mut same = gguf.spec().clone();
    same.norm_eps = hf.spec().norm_eps;
    assert_eq!(&same, hf.spec());
    assert!((gguf.spec().norm_eps / hf.spec().norm_eps - 1.0).abs() < 1e-6);
    let elements = |c: &Checkpoint, t| {
        let m = c.matrix(t).unwrap();
        (0..m.rows).flat_map(|r| m.row_bytes(r).to_vec()).collect::<Vec<u8>>()
    };
    for part in [LayerTensor::Q, LayerTensor::K, LayerTensor::V, LayerTensor::O, LayerTensor::Down] {
        let tensor = Tensor::Layer(1, part);
        assert_eq!(elements(&gguf, tensor), elements(&hf, tensor), "{part:?}");
    }
    assert_eq!(elements(&gguf, Tensor::Head), elements(&hf, Tensor::Head));
    assert_eq!(gguf.vector(Tensor::FinalNorm).unwrap(), hf.vector(Tensor::FinalNorm).unwrap());
    // only the two permuted matrices needed copies: (6 + 3) * 8 rows of 48
    assert_eq!(gguf.dequantised_bytes(), 9 * 8 * 48 * 4);
    let slim = gguf.without_copies(&[Tensor::Layer(1, LayerTensor::Q)]);
    assert_eq!(slim.dequantised_bytes(), 6 * 8 * 48 * 4);
    assert_eq!(
        elements(&slim, Tensor::Layer(1, LayerTensor::K)),
        elements(&hf, Tensor::Layer(1, LayerTensor::K))
    );
}

#[test]
fn quantised_and_narrow_gguf_tensors_keep_or_widen() {
    let checkpoint = open("tiny-gguf-quant");
    let dtype = |t| checkpoint.matrix(t).unwrap().dtype;
    assert_eq!(dtype(Tensor::Head), DType::BF16);
    assert_eq!(dtype(Tensor::Layer(0, LayerTensor::Down)), DType::F16);
    assert_eq!(dtype(Tensor::Layer(0, LayerTensor::Gate)), DType::F32);
    let TokenizerAssets::Gguf(metadata) = checkpoint.tokenizer_assets() else { panic!("not GGUF") };
    assert_eq!(metadata.text("tokenizer.ggml.model").unwrap(), Some("gpt2"));
    assert_eq!(metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap().len(), checkpoint.spec().vocab);
}

#[test]
fn checkpoints_are_shared_between_threads() {
    fn shared<T: Send + Sync>(value: T) -> T {
        value
    }
    let checkpoint = std::sync::Arc::new(shared(open("tiny-gguf-quant")));
    let place = |c: &Checkpoint| c.matrix(Tensor::Embedding).unwrap().bytes.as_ptr() as usize;
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let checkpoint = checkpoint.clone();
            std::thread::spawn(move || place(&checkpoint))
        })
        .collect();
    let here = place(&checkpoint);
    assert!(threads.into_iter().all(|t| t.join().unwrap() == here));
}
