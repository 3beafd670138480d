//! The text layer against files that other programs wrote: goldens' prompt ids, and texts decoded by `tokenizers`.

use super::chat::{Message, RenderOptions};
use super::gguf::GgufVocabulary;
use super::{StopStrings, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::LazyLock;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../goldens")
}

pub(crate) static DENSE: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_dir(&goldens().join("models/dense")).unwrap());

/// Every text and chat prompt of a golden suite gives the ids that transformers recorded, and every generated
/// sequence its text. Returns the number of comparisons.
pub(crate) fn check_golden(tokenizer: &Tokenizer, model: &str, suite: &str) -> usize {
    let path = goldens().join(model).join(suite).with_extension("json");
    let golden: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let ids = |case: &Value, key: &str| serde_json::from_value::<Vec<u32>>(case[key].clone()).unwrap();
    let mut compared = 0;
    for case in golden["cases"].as_array().unwrap() {
        let prompt = match case["kind"].as_str().unwrap() {
            "ids" => None,
            "chat" => {
                let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
                let text =
                    tokenizer.chat_template().unwrap().render(&messages, &RenderOptions::prompt()).unwrap();
                Some(tokenizer.encode(&text, false).unwrap())
            }
            _ => Some(tokenizer.encode(case["prompt"].as_str().unwrap(), true).unwrap()),
        };
        if let Some(prompt) = prompt {
            assert_eq!(prompt, ids(case, "prompt_ids"), "{model}/{suite}/{}", case["id"]);
            compared += 1;
        }
        let generated = ids(case, "generated_ids");
        assert_eq!(
            tokenizer.decode(&generated, true).unwrap(),
            case["text"],
            "{model}/{suite}/{}",
            case["id"]
        );
        assert_eq!(streamed(tokenizer, &generated, true), case["text"].as_str().unwrap());
        compared += 1;
    }
    compared
}

/// What the incremental detokenizer makes of `ids`, joined.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut detokenizer = tokenizer.detokenizer(skip_special);
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[test]
fn hf_directories_give_the_ids_of_the_goldens() {
    for model in ["dense", "moe"] {
        let tokenizer = Tokenizer::from_dir(&goldens().join("models").join(model)).unwrap();
        assert!(check_golden(&tokenizer, model, "core") > 20, "{model}");
        assert!(check_golden(&tokenizer, model, "stops") >= 8, "{model}");
    }
}

#[test]
fn digests_are_those_of_the_golden() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(goldens().join("dense/core.json")).unwrap()).unwrap();
    assert_eq!(golden["provenance"]["tokenizer_sha256"], DENSE.digest());
    assert!(DENSE.template_digest().is_some());
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let error = DENSE.decode(&[1, 512], true).unwrap_err();
    assert_eq!(
        error.to_string(),
        "request field `token_ids`: token id 512 is not in the tokenizer's vocabulary of 512"
    );
}

/// A SentencePiece vocabulary with byte pieces, scores and a first space.
fn tiny_sentence_piece() -> GgufVocabulary {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut token_types = vec![2, 3, 3];
    tokens.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
    token_types.extend([6; 256]);
    let pieces = ["▁", "a", "b", "é", "▁a", "ab", "▁ab", "ba", "aba"].map(str::to_owned);
    token_types.extend([1; 9]);
    tokens.extend(pieces);
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    GgufVocabulary {
        architecture: "llama".into(),
        model: "llama".into(),
        scores,
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocabulary::default()
    }
}

/// Expected ids by hand: neighbours join by best score (`▁a` -263, then `▁ab` -265; `ba` -266 comes too late), bytes
/// for the rest.
#[test]
fn sentence_piece_from_gguf_merges_by_score() {
    let tokenizer = Tokenizer::from_gguf(&tiny_sentence_piece()).unwrap();
    let id = |piece: &str| tokenizer.token_id(piece).unwrap();
    assert_eq!(tokenizer.encode("aba", true).unwrap(), [1, id("▁ab"), id("a")]);
    assert_eq!(tokenizer.encode("xé", false).unwrap(), [id("▁"), id("<0x78>"), id("é")]);
    assert_eq!(tokenizer.encode("</s>ab", false).unwrap()[0], 2);
    assert_eq!(tokenizer.decode(&tokenizer.encode("aba é日", true).unwrap(), true).unwrap(), "aba é日");
}

#[test]
fn unknown_gguf_tokenizers_are_refused_by_name() {
    let refused = |edit: fn(&mut GgufVocabulary)| {
        let mut vocabulary = tiny_sentence_piece();
        edit(&mut vocabulary);
        Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string()
    };
    let byte_level = |v: &mut GgufVocabulary| {
        v.model = "gpt2".into();
        v.merges = vec!["a b".into()];
        v.pre = Some("chatglm-bpe".into());
    };
    assert_eq!(refused(byte_level), "GGUF tokenizer: tokenizer.ggml.pre `chatglm-bpe` is not supported");
    assert_eq!(
        refused(|v| v.model = "rwkv".into()),
        "GGUF tokenizer: tokenizer.ggml.model `rwkv` is not supported"
    );
    assert_eq!(
        refused(|v| v.scores.truncate(3)),
        "GGUF tokenizer: tokenizer.ggml.scores has 3 entries for 268 tokens"
    );
    assert_eq!(refused(|v| v.tokens[5] = "a".into()), "GGUF tokenizer: token \"a\" is both id 5 and id 260");
    assert_eq!(refused(|v| v.bos = Some(999)), "GGUF tokenizer: bos token is id 999, outside 268 tokens");
    assert_eq!(refused(|v| v.tokens.clear()), "GGUF tokenizer: tokenizer.ggml.tokens has 0 entries");
}

static SENTENCE_PIECE: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_gguf(&tiny_sentence_piece()).unwrap());

proptest! {
    /// Any ids at all, broken characters and special tokens included: streamed text equals the whole decode, which
    /// `tokenizers` computes.
    #[test]
    fn streamed_text_equals_whole_decode(ids in prop::collection::vec(0u32..512, 0..60), skip in any::<bool>()) {
        prop_assert_eq!(streamed(&DENSE, &ids, skip), DENSE.decode(&ids, skip).unwrap());
        let ids: Vec<u32> = ids.into_iter().filter(|&id| (id as usize) < SENTENCE_PIECE.id_space()).collect();
        prop_assert_eq!(streamed(&SENTENCE_PIECE, &ids, skip), SENTENCE_PIECE.decode(&ids, skip).unwrap());
    }

    /// Any text comes back from its ids.
    #[test]
    fn text_survives_the_round_trip(text in "\\PC{0,40}[é日🙂\n\t ]{0,6}") {
        let ids = DENSE.encode(&text, false).unwrap();
        prop_assert_eq!(DENSE.decode(&ids, false).unwrap(), text.clone());
        prop_assert_eq!(streamed(&DENSE, &ids, false), text);
    }

    /// Over a small alphabet matches are frequent: any cutting of the text into pieces gives the verdict that a plain
    /// search over the whole text gives.
    #[test]
    fn stop_strings_do_not_depend_on_the_cut(
        text in "[abé]{0,24}",
        stops in prop::collection::vec("[abé]{1,4}", 1..4),
        cuts in prop::collection::vec(1usize..5, 1..24),
        keep in any::<bool>(),
    ) {
        // The definition: grow the text character by character until a stop string is its end.
        let ends = text.char_indices().map(|(i, c)| i + c.len_utf8());
        let matched = |end: &usize| {
            stops.iter().filter(|s| text[..*end].ends_with(s.as_str())).max_by_key(|s| s.len())
        };
        let expected = match ends.clone().find_map(|end| matched(&end).map(|s| (end, s.clone()))) {
            Some((end, stop)) => (text[..if keep { end } else { end - stop.len() }].to_owned(), Some(stop)),
            None => (text.clone(), None),
        };
        let mut filter = StopStrings::new(&stops, keep).unwrap();
        let (mut got, mut stop) = (String::new(), None);
        let mut characters = text.chars().peekable();
        for size in cuts.iter().cycle() {
            if characters.peek().is_none() || stop.is_some() {
                break;
            }
            let piece: String = characters.by_ref().take(*size).collect();
            let released = filter.push(&piece);
            got += &released.text;
            stop = released.stop;
        }
        if stop.is_none() {
            got += &filter.finish();
        }
        prop_assert_eq!(filter.released(), got.len());
        prop_assert_eq!((got, stop), expected);
    }
}

/// The tokenizer of a GGUF file that somebody else's writer made gives the ids that transformers makes of it.
#[test]
fn gguf_files_give_the_ids_of_the_goldens() {
    let model = crate::Model::open(goldens().join("models/tiny-gguf").to_str().unwrap()).unwrap();
    assert!(check_golden(model.tokenizer().unwrap(), "tiny-gguf", "core") > 10);
}
