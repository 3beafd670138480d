//! Every refusal of weights files of Hugging Face directories, by its exact message.

use super::build::{Blob, Directory, message, safetensors, with_header};
use crate::model::checkpoint::Checkpoint;
use serde_json::{Value, json};
use std::path::Path;

const WEIGHTS: &str = "model file `m/model.safetensors`";
const INDEX: &str = "model file `m/model.safetensors.index.json`";
const Q: &str = "model.layers.0.self_attn.q_proj.weight";

/// Edits the Llama and compares the message.
fn check(edit: impl FnOnce(&mut Directory), expected: &str) {
    let mut directory = Directory::llama();
    edit(&mut directory);
    assert_eq!(message(directory.open()), expected);
}

#[test]
fn tensors() {
    check(|d| drop(d.tensors.remove(Q)), &format!("{WEIGHTS}, tensor `{Q}`: is missing"));
    check(
        |d| drop(d.tensors.remove("lm_head.weight")),
        &format!("{WEIGHTS}, tensor `lm_head.weight`: is missing"),
    );
    check(
        |d| d.put(Q, Blob::f32(&[8, 4])),
        &format!("{WEIGHTS}, tensor `{Q}`: has shape [8, 4], expected [8, 8]"),
    );
    check(
        |d| d.put("model.norm.weight", Blob::f32(&[8, 1])),
        &format!("{WEIGHTS}, tensor `model.norm.weight`: has shape [8, 1], expected [8]"),
    );
    for (dtype, width) in [("F64", 8), ("I8", 1), ("F8_E4M3", 1), ("U8", 1)] {
        check(
            |d| d.put(Q, Blob::zeros(dtype, &[8, 8], width)),
            &format!("{WEIGHTS}, tensor `{Q}`: is stored as {dtype}, which is not supported"),
        );
    }
    for extra in
        ["model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.bias", "vision.weight"]
    {
        check(
            |d| d.put(extra, Blob::f32(&[8])),
            &format!(
                "{WEIGHTS}, tensor `{extra}`: is not part of the architecture that the configuration describes"
            ),
        );
    }
}

#[test]
fn a_missing_head_is_explained() {
    let mut directory = Directory::llama();
    directory.tensors.remove("lm_head.weight");
    let error = directory.open().unwrap_err();
    assert!(error.hint().unwrap().starts_with("`tie_word_embeddings` is false"), "{:?}", error.hint());
}

#[test]
fn inert_buffers_and_equal_heads_are_left_alone() {
    let mut directory = Directory::llama();
    directory.put("model.layers.0.self_attn.rotary_emb.inv_freq", Blob::f32(&[2]));
    assert!(directory.open().is_ok());
    directory.set("tie_word_embeddings", json!(true));
    assert!(directory.open().is_ok(), "the head is the embedding, bit for bit");
    directory.tensors.get_mut("lm_head.weight").unwrap().bytes[0] ^= 1;
    assert_eq!(
        message(directory.open()),
        format!(
            "{WEIGHTS}, tensor `lm_head.weight`: differs from the embedding although `tie_word_embeddings` is true"
        )
    );
}

#[test]
fn damaged_safetensors() {
    let whole = safetensors(&Directory::llama().tensors);
    let case = |bytes: &[u8]| {
        let mut directory = Directory::llama();
        directory.file("model.safetensors", bytes);
        message(directory.open())
    };
    let broken = |why: &str| format!("{WEIGHTS}: is not a complete safetensors file: {why}");
    assert_eq!(case(b""), broken("header too small"));
    assert_eq!(case(&whole[..40]), broken("invalid header length"));
    assert_eq!(case(&whole[..whole.len() - 1]), broken("incomplete metadata, file not fully covered"));
    assert_eq!(case(&[&whole[..], b"x"].concat()), broken("incomplete metadata, file not fully covered"));
    assert_eq!(case(&u64::MAX.to_le_bytes()), broken("header too large"));
    let entry = |shape: &str, lo: u64, hi: u64| {
        format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":[{lo},{hi}]}}}}"#)
    };
    assert_eq!(case(&with_header(&entry("[2]", 4, 12), &[0; 12])), broken("invalid offset for tensor `t`"));
    assert_eq!(
        case(&with_header(&entry("[3]", 0, 8), &[0; 8])),
        broken("invalid shape, data type, or offset for tensor")
    );
    assert_eq!(
        case(&with_header(&entry("[4611686018427387904,4]", 0, 8), &[0; 8])),
        broken("overflow computing buffer size from shape and/or element type")
    );
    assert_eq!(
        case(&with_header(&entry("[2]", 0, u64::MAX / 2), &[0; 8])),
        broken("invalid shape, data type, or offset for tensor")
    );
    let twice = r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert_eq!(
        case(&with_header(twice, &[0; 4])),
        format!(
            "{WEIGHTS}: header is not valid JSON: key `t` is given twice at line 1 column {}",
            twice.len()
        )
    );
}

/// Shards the Llama, edits the index, and compares the message.
fn check_index(edit: impl FnOnce(&mut Directory, &mut serde_json::Map<String, Value>), expected: &str) {
    let mut directory = Directory::llama();
    let mut map = directory.shard();
    assert!(directory.open().is_ok());
    let before = map.clone();
    edit(&mut directory, &mut map);
    if map != before {
        directory.index(&map);
    }
    assert_eq!(message(directory.open()), expected);
}

#[test]
fn sharded_weights() {
    let norm = "model.norm.weight";
    check_index(
        |d, _| drop(d.files.insert("part-1.safetensors".into(), None)),
        "model file `m/part-1.safetensors`: is missing, but `model.safetensors.index.json` names it",
    );
    check_index(
        |_, map| drop(map.insert("extra".into(), json!("part-0.safetensors"))),
        "model file `m/part-0.safetensors`, tensor `extra`: is missing, but `model.safetensors.index.json` says that it is here",
    );
    check_index(
        |_, map| drop(map.remove(norm)),
        "model file `m/part-1.safetensors`, tensor `model.norm.weight`: is here, but `model.safetensors.index.json` does not say so",
    );
    for outside in ["../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "part-0.bin"] {
        check_index(
            |_, map| drop(map.insert(norm.into(), json!(outside))),
            &format!(
                "{INDEX}, tensor `{norm}`: puts the tensor in {}, which is no *.safetensors file of this directory",
                json!(outside)
            ),
        );
    }
    check_index(
        |_, map| drop(map.insert(norm.into(), json!(7))),
        &format!(
            "{INDEX}, tensor `{norm}`: puts the tensor in 7, which is no *.safetensors file of this directory"
        ),
    );
    check_index(
        |d, _| d.file("model.safetensors.index.json", "{}"),
        &format!("{INDEX}: has no object `weight_map`"),
    );
    check_index(
        |d, _| d.file("model.safetensors.index.json", "nul"),
        &format!("{INDEX}: is not valid JSON: EOF while parsing a value at line 1 column 3"),
    );
    check_index(
        |d, _| drop(d.files.remove("model.safetensors")),
        &format!("{INDEX}: is given beside `model.safetensors`"),
    );
    check_index(
        |d, _| drop(d.files.insert("model.safetensors.index.json".into(), None)),
        &format!("{INDEX}: is missing, and there are several *.safetensors files"),
    );
    check_index(
        |d, _| {
            let mut part = Directory::llama().tensors;
            part.retain(|name, _| {
                name == norm || name == "model.embed_tokens.weight" || name.contains("mlp")
            });
            d.file("part-0.safetensors", safetensors(&part));
        },
        "model file `m/part-0.safetensors`, tensor `lm_head.weight`: is missing, but `model.safetensors.index.json` says that it is here",
    );
}

#[test]
fn one_tensor_in_two_shards() {
    let mut directory = Directory::llama();
    let map = directory.shard();
    let all = Directory::llama().tensors;
    let mut part = all.clone();
    part.retain(|name, _| map[name] == "part-1.safetensors" || name == "lm_head.weight");
    directory.file("part-1.safetensors", safetensors(&part));
    assert_eq!(
        message(directory.open()),
        "model file `m/part-1.safetensors`, tensor `lm_head.weight`: is also in `part-0.safetensors`"
    );
}

#[test]
fn directories() {
    check(|d| drop(d.files.insert("config.json".into(), None)), "model file `m/config.json`: is missing");
    check(
        |d| drop(d.files.insert("model.safetensors".into(), None)),
        "model file `m`: holds neither *.safetensors nor a *.gguf file",
    );
    check(
        |d| {
            d.files.insert("model.safetensors".into(), None);
            d.file("a.gguf", "");
            d.file("b.gguf", "");
        },
        "model file `m`: holds several GGUF files (`a.gguf`, `b.gguf`, ...)",
    );
}

#[test]
fn paths_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let open = |path: &Path| {
        let text = message(Checkpoint::open(path));
        text.replace(&folder.path().display().to_string(), "DIR")
    };
    assert_eq!(
        open(&at("none")),
        "model file `DIR/none`: cannot be read: No such file or directory (os error 2)"
    );
    std::fs::write(at("readme.md"), "hello").unwrap();
    assert_eq!(open(&at("readme.md")), "model file `DIR/readme.md`: is not a GGUF file");
    assert_eq!(open(folder.path()), "model file `DIR`: holds neither *.safetensors nor a *.gguf file");
    std::fs::create_dir(at("model.safetensors")).unwrap();
    std::fs::write(at("config.json"), Directory::llama().config.to_string()).unwrap();
    assert_eq!(open(folder.path()), "model file `DIR/model.safetensors`: is not a regular file");
    std::fs::remove_dir(at("model.safetensors")).unwrap();
    std::os::unix::fs::symlink(at("gone"), at("model.safetensors")).unwrap();
    assert_eq!(
        open(folder.path()),
        "model file `DIR/model.safetensors`: cannot be read: No such file or directory (os error 2)"
    );
    std::fs::remove_file(at("model.safetensors")).unwrap();
    for (name, bytes) in Directory::llama().files() {
        std::fs::write(at(&name), bytes).unwrap();
    }
    assert!(Checkpoint::open(folder.path()).is_ok());
}
