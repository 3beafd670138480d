//! Every refusal of `config.json` and `generation_config.json`, by its exact message.

use super::build::{Directory, message};
use serde_json::{Value, json};

/// Sets one key of the Llama and compares the message.
fn check(cases: &[(&str, Value, &str)]) {
    for (key, value, expected) in cases {
        let mut directory = Directory::llama();
        directory.set(key, value.clone());
        assert_eq!(
            message(directory.open()),
            format!("model file `m/config.json`: {expected}"),
            "{key}: {value}"
        );
    }
}

#[test]
fn the_unchanged_model_opens() {
    assert!(Directory::llama().open().is_ok());
}

#[test]
fn architectures() {
    check(&[
        ("model_type", json!("gpt2"), "key `model_type` is `gpt2`, which is not supported"),
        ("model_type", json!(null), "key `model_type` is missing"),
        ("model_type", json!(7), "key `model_type` is 7, expected a text"),
        (
            "architectures",
            json!(["LlamaForSequenceClassification"]),
            "key `architectures` is [\"LlamaForSequenceClassification\"], which is not supported for `llama`",
        ),
        ("architectures", json!([]), "key `architectures` is [], which is not supported for `llama`"),
        (
            "architectures",
            json!("LlamaForCausalLM"),
            "key `architectures` is \"LlamaForCausalLM\", expected a list of texts",
        ),
    ]);
}

#[test]
fn variants_of_the_arithmetic() {
    let unsupported = |key: &str, what: &str| format!("key `{key}` asks for {what}, which is not supported");
    check(&[
        ("hidden_act", json!("relu"), "key `hidden_act` is `relu`, which is not supported"),
        ("hidden_act", json!("gelu"), "key `hidden_act` is `gelu`, which is not supported"),
        (
            "attention_bias",
            json!(true),
            &unsupported("attention_bias", "a bias on the attention projections"),
        ),
        ("mlp_bias", json!(true), &unsupported("mlp_bias", "a bias in the feed-forward block")),
        ("clip_qkv", json!(8.0), &unsupported("clip_qkv", "clipped queries, keys and values")),
        (
            "attn_logit_softcapping",
            json!(50.0),
            &unsupported("attn_logit_softcapping", "soft-capped attention scores"),
        ),
        (
            "final_logit_softcapping",
            json!(30.0),
            &unsupported("final_logit_softcapping", "soft-capped logits"),
        ),
        (
            "use_bidirectional_attention",
            json!(true),
            &unsupported("use_bidirectional_attention", "bidirectional attention"),
        ),
        ("rope_interleaved", json!(true), &unsupported("rope_interleaved", "interleaved rotary pairs")),
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4}),
            "key `quantization_config` asks for quantisation `gptq`, which is not supported",
        ),
        ("partial_rotary_factor", json!(0.5), "key `partial_rotary_factor` is 0.5, which is not supported"),
        ("embedding_multiplier", json!(12.0), "key `embedding_multiplier` is not understood"),
        ("sliding_window", json!(16), "key `sliding_window` is not understood"),
        ("auto_map", json!({"AutoModel": "x.py"}), "key `auto_map` is not understood"),
    ]);
}

#[test]
fn sizes() {
    let whole = "expected a whole number from 1 to 2147483647";
    check(&[
        ("hidden_size", json!(null), "key `hidden_size` is missing"),
        ("hidden_size", json!(0), &format!("key `hidden_size` is 0, {whole}")),
        ("hidden_size", json!(-8), &format!("key `hidden_size` is -8, {whole}")),
        ("hidden_size", json!(8.5), &format!("key `hidden_size` is 8.5, {whole}")),
        ("vocab_size", json!(1u64 << 40), &format!("key `vocab_size` is 1099511627776, {whole}")),
        ("vocab_size", json!("ten"), &format!("key `vocab_size` is \"ten\", {whole}")),
        (
            "num_hidden_layers",
            json!(1_000_000),
            "key `num_hidden_layers` is 1000000, more than the 4096 that are supported",
        ),
        (
            "num_key_value_heads",
            json!(3),
            "key `num_key_value_heads` is 3, which does not divide `num_attention_heads` = 2",
        ),
        ("head_dim", json!(3), "key `head_dim` makes heads 3 wide, which is odd or more than 16384"),
        ("head_dim", json!(65_536), "key `head_dim` makes heads 65536 wide, which is odd or more than 16384"),
        ("rms_norm_eps", json!(-1.0), "key `rms_norm_eps` is -1.0, expected a positive number"),
        ("tie_word_embeddings", json!("no"), "key `tie_word_embeddings` is \"no\", expected true or false"),
        ("eos_token_id", json!(10), "key `eos_token_id` is 10, outside the vocabulary of 10"),
        ("eos_token_id", json!([2, 99]), "key `eos_token_id` is 99, outside the vocabulary of 10"),
        ("eos_token_id", json!(-1), "key `eos_token_id` is -1, expected a token id or a list of token ids"),
        ("bos_token_id", json!(10), "key `bos_token_id` is 10, outside the vocabulary of 10"),
    ]);
}

#[test]
fn heads_that_do_not_divide_the_hidden_size() {
    let mut directory = Directory::llama();
    directory.set("num_attention_heads", json!(3));
    directory.set("num_key_value_heads", json!(3));
    assert_eq!(
        message(directory.open()),
        "model file `m/config.json`: key `hidden_size` is 8, no multiple of `num_attention_heads` = 3, and \
         `head_dim` is missing"
    );
}

#[test]
fn rotary_parameters() {
    let llama3 = |low: f64| {
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": low, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 16})
    };
    check(&[
        ("rope_theta", json!(0), "key `rope_theta` is 0, expected a positive number"),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "factor": 4.0}),
            "key `rope_parameters.rope_type` is `yarn`, which is not supported",
        ),
        (
            "rope_scaling",
            json!({"type": "dynamic", "factor": 2.0}),
            "key `rope_scaling.type` is `dynamic`, which is not supported",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "longrope", "factor": 2.0}),
            "key `rope_scaling.rope_type` is `longrope`, which is not supported",
        ),
        (
            "rope_scaling",
            json!({"type": "linear", "rope_type": "llama3", "factor": 2.0}),
            "key `rope_scaling.type` is `linear`, but `rope_type` is `llama3`",
        ),
        ("rope_scaling", json!({"type": "linear"}), "key `rope_scaling.factor` is missing"),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": -2.0}),
            "key `rope_scaling.factor` is -2.0, expected a positive number",
        ),
        (
            "rope_scaling",
            json!({"type": "linear", "factor": 2.0, "beta_fast": 32}),
            "key `rope_scaling.beta_fast` is not understood",
        ),
        (
            "rope_scaling",
            llama3(4.0),
            "key `rope_scaling.low_freq_factor` is 4, not below `high_freq_factor` = 4",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "default", "rope_theta": 500000.0}),
            "key `rope_theta` is 10000, but `rope_parameters` says 500000",
        ),
        (
            "rope_parameters",
            json!({"rope_type": "default", "partial_rotary_factor": 0.25}),
            "key `rope_parameters.partial_rotary_factor` is 0.25, which is not supported",
        ),
        ("rope_parameters", json!([1]), "key `rope_parameters` is [1], expected an object"),
    ]);
    let mut directory = Directory::llama();
    directory.set("rope_parameters", json!({"rope_type": "default"}));
    directory.set("rope_scaling", json!({"type": "linear", "factor": 2.0}));
    let expected = "model file `m/config.json`: key `rope_scaling` is given beside `rope_parameters`";
    assert_eq!(message(directory.open()), expected);
}

/// Edits of a family's configuration, and the message.
fn check_family(of: (&str, &str), edits: &[(&str, Value)], expected: &str) {
    let mut directory = Directory::family(of.0, of.1);
    for (key, value) in edits {
        directory.set(key, value.clone());
    }
    assert_eq!(message(directory.open()), format!("model file `m/config.json`: {expected}"));
}

#[test]
fn families() {
    let qwen2 = ("qwen2", "Qwen2ForCausalLM");
    let kinds = |kind: &str| ("layer_types", json!([kind]));
    check_family(
        qwen2,
        &[kinds("sliding_attention")],
        "key `layer_types` makes layer 0 sliding, but no window is in force",
    );
    check_family(
        qwen2,
        &[kinds("chunked_attention")],
        "key `layer_types` has `chunked_attention`, which is not supported",
    );
    check_family(
        qwen2,
        &[("layer_types", json!(["full_attention", "full_attention"]))],
        "key `layer_types` has 2 entries for 1 layers",
    );
    check_family(
        qwen2,
        &[("use_sliding_window", json!(true)), ("sliding_window", json!(4))],
        "key `max_window_layers` is missing while `use_sliding_window` is true",
    );
    let gemma = ("gemma3_text", "Gemma3ForCausalLM");
    check_family(
        gemma,
        &[("hidden_activation", json!("relu2"))],
        "key `hidden_activation` is `relu2`, which is not supported",
    );
    check_family(
        ("gemma3", "Gemma3ForConditionalGeneration"),
        &[],
        "key `model_type` is `gemma3`, which is not supported",
    );
    check_family(
        gemma,
        &[("rope_parameters", json!({"full_attention": {"rope_type": "yarn"}})), ("hidden_act", json!(null))],
        "key `rope_parameters.full_attention.rope_type` is `yarn`, which is not supported",
    );
    let moe = |experts: u64, top_k: u64| {
        vec![
            ("num_experts", json!(experts)),
            ("num_experts_per_tok", json!(top_k)),
            ("moe_intermediate_size", json!(4)),
        ]
    };
    let qwen3 = ("qwen3_moe", "Qwen3MoeForCausalLM");
    check_family(qwen3, &moe(4, 5), "key `num_experts_per_tok` is 5, more than `num_experts` = 4");
    let mut edits = moe(4, 2);
    edits.push(("mlp_only_layers", json!([1])));
    check_family(qwen3, &edits, "key `mlp_only_layers` names layer 1 of 1");
    let mut edits = moe(4, 2);
    edits.push(("use_sliding_window", json!(true)));
    check_family(qwen3, &edits, "key `use_sliding_window` asks for sliding windows, which is not supported");
    let mut edits = moe(4, 2);
    edits.push(("shared_expert_intermediate_size", json!(4)));
    check_family(qwen3, &edits, "key `shared_expert_intermediate_size` is not understood");
    check_family(("mixtral", "MixtralForCausalLM"), &[], "key `num_local_experts` is missing");
    check_family(("olmoe", "OlmoeForCausalLM"), &moe(4, 2), "key `moe_intermediate_size` is not understood");
}

#[test]
fn files_that_are_no_configuration() {
    let case = |bytes: &[u8]| {
        let mut directory = Directory::llama();
        directory.file("config.json", bytes);
        message(directory.open())
    };
    let at = "model file `m/config.json`: ";
    assert_eq!(case(b"[]"), format!("{at}is not a JSON object"));
    assert_eq!(case(b""), format!("{at}is not valid JSON: EOF while parsing a value at line 1 column 0"));
    assert_eq!(
        case(b"{\"a\":1,"),
        format!("{at}is not valid JSON: EOF while parsing a value at line 1 column 7")
    );
    assert_eq!(
        case(b"{\"a\":1,\"a\":2}"),
        format!("{at}is not valid JSON: key `a` is given twice at line 1 column 13")
    );
    let deep = "[".repeat(100_000);
    assert_eq!(
        case(format!("{{\"a\":{deep}").as_bytes()),
        format!("{at}is not valid JSON: recursion limit exceeded at line 1 column 132")
    );
    assert_eq!(
        case(&vec![b' '; (16 << 20) + 1]),
        format!("{at}has 16777217 bytes, more than the 16777216 that such a file may have")
    );
}

#[test]
fn generation_config_has_the_last_word_on_end_ids() {
    let mut directory = Directory::llama();
    directory
        .file("generation_config.json", r#"{"eos_token_id": [3, 4], "bos_token_id": 5, "temperature": 0.6}"#);
    let spec = directory.open().unwrap().spec().clone();
    assert_eq!((spec.eos, spec.bos), (vec![3, 4], Some(5)));
    directory.file("generation_config.json", r#"{"eos_token_id": 10}"#);
    assert_eq!(
        message(directory.open()),
        "model file `m/generation_config.json`: key `eos_token_id` is 10, outside the vocabulary of 10"
    );
    directory.unset("eos_token_id");
    directory.file("generation_config.json", "{}");
    assert_eq!(directory.open().unwrap().spec().eos, [2], "the default of the family");
    directory.set("eos_token_id", Value::Null);
    assert!(directory.open().unwrap().spec().eos.is_empty(), "null means none");
}
