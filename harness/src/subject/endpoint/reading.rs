//! From a choice of a completion to tokens and log-probabilities, in the spellings of several servers.

use crate::golden::{Finish, GoldenCase};
use crate::subject::Answer;
use serde_json::{Map, Value};
use std::collections::HashMap;

/// Ids by the text of the token; `None` for a text that several tokens have, which therefore names none.
pub(crate) type Vocabulary = HashMap<String, Option<u32>>;

/// Where token ids were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// In a field of ids.
    Field(&'static str),
    /// Told from the token strings of the log-probabilities, by the model's own vocabulary.
    Strings,
}

impl Ids {
    /// For reports.
    pub fn describe(self) -> String {
        match self {
            Self::Field(name) => format!("field `{name}`"),
            Self::Strings => "token strings of the log-probabilities, through the model's vocabulary".into(),
        }
    }
}

/// A list of ids.
fn ids(value: Option<&Value>) -> Option<Vec<u32>> {
    value?.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Generated token ids of a choice, and where they were found; the error says why there are none.
pub(crate) fn tokens(choice: &Value, vocabulary: &Vocabulary) -> Result<(Vec<u32>, Ids), String> {
    for name in ["token_ids", "generation_token_ids"] {
        if let Some(ids) = ids(choice.get(name)) {
            return Ok((ids, Ids::Field(name)));
        }
    }
    if let Some(ids) = ids(choice.pointer("/logprobs/token_ids")) {
        return Ok((ids, Ids::Field("logprobs.token_ids")));
    }
    let strings = choice.pointer("/logprobs/tokens").and_then(Value::as_array);
    let strings = strings.ok_or("it returns neither token ids nor token strings")?;
    let id = |(at, string): (usize, &Value)| {
        let text = string.as_str().ok_or_else(|| format!("token {at} is no string"))?;
        match vocabulary.get(text) {
            Some(Some(id)) => Ok(*id),
            Some(None) => {
                Err(format!("token {at}, `{text}`, is the text of several tokens, so its id is unknown"))
            }
            None => Err(format!("token {at}, `{text}`, is the text of no token of the model")),
        }
    };
    let ids = strings.iter().enumerate().map(id).collect::<Result<Vec<u32>, String>>()?;
    Ok((ids, Ids::Strings))
}

/// Prompt token ids of a choice or, where older servers put them, of the whole reply.
pub(crate) fn prompt(choice: &Value, reply: &Value) -> Option<Vec<u32>> {
    ids(choice.get("prompt_token_ids")).or_else(|| ids(reply.get("prompt_token_ids")))
}

/// Log-probabilities of `count` generated tokens. Some servers put others in front: the tail is what was generated.
pub(crate) fn logprobs(choice: &Value, count: usize) -> Option<Vec<f32>> {
    let list = choice.get("generation_log_probs").or_else(|| choice.pointer("/logprobs/token_logprobs"))?;
    let list = list.as_array()?;
    let tail = list.get(list.len().checked_sub(count)?..)?;
    Some(tail.iter().map(|value| value.as_f64().map_or(f32::NAN, |value| value as f32)).collect())
}

/// Joins the chunks of a stream into one choice: texts and lists are appended, of other fields the last one stands.
pub(crate) fn joined(chunks: &[Value]) -> Value {
    let mut whole = Map::new();
    for choice in chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0")?.as_object()) {
        join(&mut whole, choice);
    }
    Value::Object(whole)
}

fn join(whole: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (key, value) in more {
        match (whole.get_mut(key), value) {
            (_, Value::Null) => {}
            (Some(Value::String(all)), Value::String(text)) if key == "text" => all.push_str(text),
            (Some(Value::Array(all)), Value::Array(items)) => all.extend(items.iter().cloned()),
            (Some(Value::Object(all)), Value::Object(fields)) => join(all, fields),
            _ => {
                whole.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The answer to a case.
pub(crate) fn answer(case: &GoldenCase, choice: &Value, reply: &Value, vocabulary: &Vocabulary) -> Answer {
    let tokens = match tokens(choice, vocabulary) {
        Ok((tokens, _)) => tokens,
        Err(why) => return Answer::failed(&case.id, why),
    };
    let finish = match choice.get("finish_reason").and_then(Value::as_str) {
        Some("stop") => Some(Finish::Stop),
        Some("length") => Some(Finish::Length),
        Some(other) => return Answer::failed(&case.id, format!("it ended by `{other}`")),
        None => return Answer::failed(&case.id, "it did not say why it ended"),
    };
    Answer {
        prompt_ids: prompt(choice, reply),
        logprobs: logprobs(choice, tokens.len()),
        tokens: Some(tokens),
        text: choice.get("text").and_then(Value::as_str).map(str::to_owned),
        finish,
        ..Answer::empty(&case.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vocabulary() -> Vocabulary {
        HashMap::from([("a".to_owned(), Some(1)), ("b".to_owned(), Some(2)), ("?".to_owned(), None)])
    }

    #[test]
    fn every_spelling_of_ids_is_read_and_ambiguity_is_no_id() {
        let read = |choice: Value| tokens(&choice, &vocabulary());
        assert_eq!(read(json!({"token_ids": [3, 4]})), Ok((vec![3, 4], Ids::Field("token_ids"))));
        assert_eq!(
            read(json!({"generation_token_ids": [3]})),
            Ok((vec![3], Ids::Field("generation_token_ids")))
        );
        assert_eq!(read(json!({"logprobs": {"tokens": ["b", "a"]}})), Ok((vec![2, 1], Ids::Strings)));
        assert!(read(json!({"logprobs": {"tokens": ["a", "?"]}})).unwrap_err().contains("several tokens"));
        assert!(read(json!({"logprobs": {"tokens": ["z"]}})).unwrap_err().contains("no token of the model"));
        assert!(read(json!({"text": "ab"})).unwrap_err().contains("neither"));
    }

    #[test]
    fn the_leading_null_of_the_legacy_front_end_is_not_a_generated_token() {
        let choice = json!({"logprobs": {"token_logprobs": [null, -0.5, -0.25]}});
        assert_eq!(logprobs(&choice, 2), Some(vec![-0.5, -0.25]));
        assert!(logprobs(&choice, 3).unwrap()[0].is_nan(), "a null where a number must be never passes");
        assert_eq!(logprobs(&choice, 4), None);
    }

    #[test]
    fn chunks_join_to_one_choice() {
        let chunk = |text: &str, id: u32| json!({"choices": [{"text": text, "logprobs": {"tokens": [text], "token_ids": [id]}, "finish_reason": null}]});
        let end = json!({"choices": [{"text": "", "finish_reason": "length"}]});
        let choice = joined(&[chunk("a", 1), chunk("b", 2), end, json!({"choices": [], "usage": {}})]);
        assert_eq!(choice["text"], "ab");
        assert_eq!(tokens(&choice, &vocabulary()), Ok((vec![1, 2], Ids::Field("logprobs.token_ids"))));
        assert_eq!(choice["finish_reason"], "length");
    }
}
