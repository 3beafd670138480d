//! Every refusal of GGUF files, by its exact message.

use super::build::{Gguf, GgufTensor, Meta, message, open_gguf};

/// Edits the Llama and compares the message.
fn check(edit: impl FnOnce(&mut Gguf), expected: &str) {
    let mut file = Gguf::llama();
    edit(&mut file);
    assert_eq!(message(file.open()), format!("model file `m/x.gguf`{expected}"));
}

#[test]
fn the_unchanged_file_opens() {
    let checkpoint = Gguf::llama().open().unwrap();
    assert!(checkpoint.spec().tied);
    let mut second = Gguf::llama();
    second.version = 2;
    assert!(second.open().is_ok());
}

#[test]
fn containers() {
    assert_eq!(
        message(open_gguf(b"".into())),
        "model file `m/x.gguf`: ends at byte 0 inside the magic number, which needs 4 bytes from byte 0 on"
    );
    assert_eq!(message(open_gguf(b"GGML....".into())), "model file `m/x.gguf`: does not start with GGUF");
    check(|f| f.version = 1, ": has GGUF version 1; supported are 2 and 3");
    check(|f| f.version = 3u32.swap_bytes(), ": is big-endian, which is not supported");
    let length = Gguf::llama().bytes().len() - 24;
    check(
        |f| f.counts = Some((11, u64::MAX)),
        &format!(
            ": announces 18446744073709551615 key-value pairs, more than its {length} remaining bytes can hold"
        ),
    );
    check(
        |f| f.counts = Some((1 << 40, 10)),
        &format!(": announces 1099511627776 tensors, more than its {length} remaining bytes can hold"),
    );
    let whole = Gguf::llama().bytes();
    assert_eq!(
        message(open_gguf(whole[..30].into())),
        "model file `m/x.gguf`: announces 10 key-value pairs, more than its 6 remaining bytes can hold"
    );
    check(|f| f.tail = vec![0; 32], ": has 32 bytes after its last tensor");
}

#[test]
fn metadata() {
    check(|f| f.meta.push(f.meta[1].clone()), ": key `llama.block_count` is given twice");
    check(|f| f.set("a", Meta(13, vec![])), ": key `a` has the unknown type 13");
    check(
        |f| f.set("a", Meta(7, vec![2])),
        ": has the value of key `a` as the truth value 2; 0 and 1 are legal",
    );
    check(
        |f| f.set("a", Meta(8, [1u64.to_le_bytes().as_slice(), b"\xff"].concat())),
        ": has the value of key `a` that is not UTF-8, at byte 458",
    );
    let list =
        |kind: u32, count: u64| Meta(9, [kind.to_le_bytes().as_slice(), &count.to_le_bytes()].concat());
    check(
        |f| f.set("a", list(9, 1)),
        ": has the value of key `a` as a list of type 9, which is not supported",
    );
    let mut big = Gguf::llama();
    big.set("a", list(8, u64::MAX / 2));
    assert!(
        message(big.open()).starts_with(
            "model file `m/x.gguf`: announces 9223372036854775807 elements in the value of key `a`, more than its"
        ),
        "{}",
        message(big.open())
    );
    check(
        |f| f.set("general.alignment", Meta::u32(3)),
        ": key `general.alignment` is 3, not a power of two from 8 to 65536",
    );
    check(
        |f| f.set("general.alignment", Meta::text("x")),
        ": key `general.alignment` is not an integer that is not negative",
    );
}

#[test]
fn architectures_and_keys() {
    check(|f| f.unset("general.architecture"), ": key `general.architecture` is missing");
    check(
        |f| f.set("general.architecture", Meta::text("mamba")),
        ": key `general.architecture` is `mamba`, which is not supported",
    );
    check(
        |f| f.set("split.count", Meta::u32(3)),
        ": key `split.count` says that this is one part of a split model, which is not supported",
    );
    check(|f| f.unset("llama.block_count"), ": key `llama.block_count` is missing");
    check(
        |f| f.set("llama.block_count", Meta::u32(0)),
        ": key `llama.block_count` is 0, outside 1 to 2147483647",
    );
    check(
        |f| f.set("llama.block_count", Meta::f32(1.0)),
        ": key `llama.block_count` is not an integer that is not negative",
    );
    check(
        |f| f.set("llama.block_count", Meta::u32(1_000_000)),
        ": key `llama.block_count` is 1000000, more than the 4096 that are supported",
    );
    check(|f| f.set("llama.logit_scale", Meta::f32(0.5)), ": key `llama.logit_scale` is not understood");
    check(
        |f| f.set("llama.attention.sliding_window", Meta::u32(4)),
        ": key `llama.attention.sliding_window` is not understood",
    );
    check(
        |f| f.set("llama.attention.head_count_kv", Meta::u32(3)),
        ": key `llama.attention.head_count_kv` is 3, which does not divide the 2 query heads",
    );
    check(
        |f| f.set("llama.rope.dimension_count", Meta::u32(2)),
        ": key `llama.rope.dimension_count` is 2, other than the 4 of the keys, which is not supported",
    );
    check(
        |f| f.set("llama.rope.scaling.type", Meta::text("yarn")),
        ": key `llama.rope.scaling.type` is `yarn`, which is not supported",
    );
    check(
        |f| f.set("llama.rope.scaling.type", Meta::text("linear")),
        ": key `llama.rope.scaling.factor` is missing",
    );
    check(
        |f| f.set("llama.rope.freq_base", Meta::f32(f32::NAN)),
        ": key `llama.rope.freq_base` is NaN, not a positive number",
    );
    check(
        |f| f.set("llama.vocab_size", Meta::u32(11)),
        ": key `llama.vocab_size` counts 11 tokens, but the embedding has 10 rows",
    );
    check(
        |f| f.set("tokenizer.ggml.tokens", Meta::texts(&["a", "b"])),
        ": key `tokenizer.ggml.tokens` counts 2 tokens, but the embedding has 10 rows",
    );
    check(
        |f| f.set("tokenizer.ggml.eos_token_id", Meta::u32(10)),
        ": key `tokenizer.ggml.eos_token_id` is 10, outside the vocabulary of 10",
    );
    check(
        |f| {
            f.set("llama.expert_count", Meta::u32(2));
            f.set("llama.expert_used_count", Meta::u32(3));
        },
        ": key `llama.expert_used_count` is 3, more than the 2 experts",
    );
}

#[test]
fn tensors() {
    let q = "blk.0.attn_q.weight";
    let at = |f: &mut Gguf, edit: fn(&mut GgufTensor)| edit(f.tensor("blk.0.attn_q.weight"));
    check(|f| f.tensors.retain(|t| t.name != q), &format!(", tensor `{q}`: is missing"));
    check(
        |f| f.tensors.retain(|t| t.name != "token_embd.weight"),
        ", tensor `token_embd.weight`: is missing or not a matrix",
    );
    check(
        |f| f.put("blk.0.attn_q.bias", &[8]),
        ", tensor `blk.0.attn_q.bias`: is not part of the architecture that the configuration describes",
    );
    check(|f| f.put(q, &[8, 8]), &format!(", tensor `{q}`: is given twice"));
    check(|f| at(f, |t| t.dims = vec![4, 8]), &format!(", tensor `{q}`: has shape [8, 4], expected [8, 8]"));
    check(|f| at(f, |t| t.dims = vec![]), &format!(", tensor `{q}`: has 0 dimensions; 1 to 4 are legal"));
    check(|f| at(f, |t| t.dims = vec![1; 5]), &format!(", tensor `{q}`: has 5 dimensions; 1 to 4 are legal"));
    check(
        |f| at(f, |t| t.dims = vec![8, u64::MAX]),
        &format!(", tensor `{q}`: has a dimension of 18446744073709551615; 1 to 2147483647 are legal"),
    );
    check(
        |f| at(f, |t| t.dims = vec![0x7fff_ffff; 4]),
        &format!(
            ", tensor `{q}`: has shape {:?}, which is not a whole number of blocks in memory",
            [0x7fff_ffff; 4]
        ),
    );
    check(|f| at(f, |t| t.kind = 11), &format!(", tensor `{q}`: is stored as Q3_K, which is not supported"));
    check(|f| at(f, |t| t.kind = 28), &format!(", tensor `{q}`: is stored as F64, which is not supported"));
    check(
        |f| at(f, |t| t.kind = 99),
        &format!(", tensor `{q}`: is stored as type number 99, which is not supported"),
    );
    check(
        |f| at(f, |t| t.kind = 12),
        &format!(", tensor `{q}`: has shape [8, 8], which is not a whole number of blocks in memory"),
    );
    check(
        |f| at(f, |t| t.offset = Some(7)),
        &format!(", tensor `{q}`: starts at offset 7, which is not a multiple of 32"),
    );
    let len = Gguf::llama().bytes().len();
    check(
        |f| at(f, |t| t.offset = Some(1 << 20)),
        &format!(
            ", tensor `{q}`: lies outside the file: offset 1048576, 256 bytes, in a file of {len} bytes"
        ),
    );
    check(
        |f| at(f, |t| t.offset = Some(u64::MAX - 31)),
        &format!(
            ", tensor `{q}`: lies outside the file: offset 18446744073709551584, 256 bytes, in a file of {len} bytes"
        ),
    );
    check(|f| at(f, |t| t.offset = Some(0)), ", tensor `token_embd.weight`: overlaps `blk.0.attn_q.weight`");
}

#[test]
fn rotary_factors() {
    let name = "rope_freqs.weight";
    check(|f| f.put(name, &[4]), &format!(", tensor `{name}`: has shape [4], expected [2] in F32"));
    // the builder's first number is zero
    check(|f| f.put(name, &[2]), &format!(", tensor `{name}`: has the factor 0, which is not positive"));
}
