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
