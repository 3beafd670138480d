//! Reading `config.json` so that nothing in it is overlooked: every key is taken by a family, known to be inert, or
//! refused by name.

use super::json;
use crate::error::{EngineError, Result};
use crate::model::files::{CONFIG_LIMIT, FileBytes};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Largest size that a configuration may state; keeps products of two sizes within 64 bits.
const SIZE_LIMIT: u64 = (1 << 31) - 1;

/// Keys that cannot change an answer: bookkeeping, training, and defaults of the publisher's own tools.
const INERT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_from_model_config",
    "_model_name_or_path",
    "_name_or_path",
    "_sliding_window_pattern",
    "attention_dropout",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// An object of a JSON configuration file, with a record of which keys were read.
pub(crate) struct ConfigJson {
    file: PathBuf,
    prefix: String,
    map: Map<String, Value>,
    taken: RefCell<BTreeSet<String>>,
}

impl ConfigJson {
    /// Parses a whole file.
    pub(crate) fn parse(file: &FileBytes) -> Result<Self> {
        let map = json::object(file.bounded(CONFIG_LIMIT)?)
            .map_err(|reason| EngineError::model(file.path(), reason, "download the file again"))?;
        Ok(Self::new(file.path().into(), String::new(), map))
    }

    fn new(file: PathBuf, prefix: String, map: Map<String, Value>) -> Self {
        Self { file, prefix, map, taken: RefCell::default() }
    }

    /// A refusal that names the key.
    pub(crate) fn refuse(&self, key: &str, reason: impl std::fmt::Display, hint: &str) -> EngineError {
        EngineError::model(&self.file, format!("key `{}{key}` {reason}", self.prefix), hint)
    }

    /// The value of a key; `None` when it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.taken.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is written, be it as null.
    pub(crate) fn is_written(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn wrong_type(&self, key: &str, value: &Value, expected: &str) -> EngineError {
        let mut shown = value.to_string();
        if let Some((cut, _)) = shown.char_indices().nth(60) {
            shown.truncate(cut);
            shown.push_str("...");
        }
        self.refuse(key, format!("is {shown}, expected {expected}"), "correct the configuration file")
    }

    fn missing(&self, key: &str) -> EngineError {
        self.refuse(key, "is missing", "the file is incomplete; take it from the model's publisher")
    }

    /// A positive size.
    pub(crate) fn opt_size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n @ 1..=SIZE_LIMIT) => Ok(Some(n as usize)),
            _ => Err(self.wrong_type(key, value, &format!("a whole number from 1 to {SIZE_LIMIT}"))),
        }
    }

    /// A positive size that must be there.
    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        self.opt_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A finite positive number.
    pub(crate) fn opt_positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.wrong_type(key, value, "a positive number")),
        }
    }

    /// A finite positive number that must be there.
    pub(crate) fn positive(&self, key: &str) -> Result<f64> {
        self.opt_positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(value) => Err(self.wrong_type(key, value, "true or false")),
        }
    }

    /// A text.
    pub(crate) fn opt_text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(value) => Err(self.wrong_type(key, value, "a text")),
        }
    }

    /// A list of texts.
    pub(crate) fn opt_texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.wrong_type(key, value, "a list of texts"))
    }

    /// A list of layer numbers.
    pub(crate) fn opt_indices(&self, key: &str) -> Result<Option<Vec<u64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let indices = value.as_array().and_then(|items| items.iter().map(Value::as_u64).collect());
        indices.map(Some).ok_or_else(|| self.wrong_type(key, value, "a list of layer numbers"))
    }

    /// One token id or a list of them.
    pub(crate) fn opt_ids(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match value {
            Value::Array(items) => items.iter().map(id).collect(),
            one => id(one).map(|n| vec![n]),
        };
        ids.map(Some).ok_or_else(|| self.wrong_type(key, value, "a token id or a list of token ids"))
    }

    /// An object inside this one.
    pub(crate) fn opt_object(&self, key: &str) -> Result<Option<ConfigJson>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Self::new(self.file.clone(), format!("{}{key}.", self.prefix), map.clone())))
            }
            Some(value) => Err(self.wrong_type(key, value, "an object")),
        }
    }

    /// Refuses anything but null, false or absence.
    pub(crate) fn must_be_off(&self, key: &str, what: &str, hint: &str) -> Result<()> {
        match self.get(key) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(_) => Err(self.refuse(key, format!("asks for {what}, which is not supported"), hint)),
        }
    }

    /// Refuses the first key that nobody took and that is not known to be inert. Null says nothing, so it passes.
    pub(crate) fn finish(&self) -> Result<()> {
        let taken = self.taken.borrow();
        let inert = |key: &str| self.prefix.is_empty() && INERT.contains(&key);
        let overlooked =
            |key: &String, value: &Value| !value.is_null() && !taken.contains(key) && !inert(key);
        let unknown = self.map.iter().find(|(key, value)| overlooked(key, value));
        match unknown {
            None => Ok(()),
            Some((key, _)) => Err(self.refuse(
                key,
                "is not understood",
                "it may change the arithmetic; if you know that it does not, remove it from the file",
            )),
        }
    }
}
