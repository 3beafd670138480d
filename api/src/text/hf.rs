//! A tokenizer from the files of a Hugging Face directory.

use crate::error::{ApiError, Result};
use crate::text::chat::ChatTemplate;
use crate::text::tokenizer::{Special, Specials, Tokenizer, set_template, sha256};
use serde_json::Value;
use std::path::Path;
use tokenizers::AddedToken;

/// The bytes of the files that describe a tokenizer.
#[derive(Debug, Clone, Default)]
pub struct HfFiles {
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`.
    pub config: Option<Vec<u8>>,
    /// `special_tokens_map.json` of older directories: roles that the configuration does not name.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `chat_template.jinja`; stronger than the template in the configuration.
    pub chat_template: Option<String>,
}

impl HfFiles {
    /// Reads them from `dir`; only `tokenizer.json` must be there.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let tokenizer = std::fs::read(&path).map_err(|e| {
            ApiError::file(
                &path,
                &e,
                "a model directory needs tokenizer.json; or send token ids with --prompt-ids",
            )
        })?;
        let config = optional(&dir.join("tokenizer_config.json"))?;
        let special_tokens_map = optional(&dir.join("special_tokens_map.json"))?;
        let chat_template = match optional(&dir.join("chat_template.jinja"))? {
            None => None,
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|e| {
                ApiError::text("chat_template.jinja", format!("not UTF-8: {e}"), "save it as UTF-8")
            })?),
        };
        Ok(Self { tokenizer, config, special_tokens_map, chat_template })
    }
}

/// The content of a file that need not exist.
fn optional(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ApiError::file(path, &e, "make the file readable, or remove it")),
    }
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face directory.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_hf(&HfFiles::read(dir)?)
    }

    /// The tokenizer that the files describe. `add_bos_token` and `add_eos_token` of the configuration, when given,
    /// replace what `tokenizer.json` puts around a prompt, as in transformers.
    pub fn from_hf(files: &HfFiles) -> Result<Self> {
        const SOURCE: &str = "tokenizer.json";
        let mut inner = tokenizers::Tokenizer::from_bytes(&files.tokenizer).map_err(|e| {
            ApiError::text(SOURCE, format!("not understood: {e}"), "save it with a recent `tokenizers`")
        })?;
        inner
            .with_truncation(None)
            .map_err(|e| ApiError::text(SOURCE, e.to_string(), "remove `truncation`"))?;
        inner.with_padding(None);
        let config = config_of(files)?;
        add_missing_tokens(&mut inner, &config)?;
        let role = |key: &str| role(&inner, &config, key);
        let specials = Specials {
            bos: role("bos_token")?,
            eos: role("eos_token")?,
            unk: role("unk_token")?,
            pad: role("pad_token")?,
        };
        let wants = |key: &str| config.get(key).and_then(Value::as_bool);
        if let (bos, eos) = (wants("add_bos_token"), wants("add_eos_token"))
            && (bos.is_some() || eos.is_some())
        {
            let bos = specials.bos.as_ref().filter(|_| bos == Some(true));
            let eos = specials.eos.as_ref().filter(|_| eos == Some(true));
            set_template(SOURCE, &mut inner, bos, eos)?;
        }
        let source = files.chat_template.clone().or(template_of(&config)?);
        let template = source.map(|source| ChatTemplate::new(&source, &specials)).transpose()?;
        Self::assemble(SOURCE, inner, specials, template, sha256(&files.tokenizer))
    }
}

/// `tokenizer_config.json` as an object, with the roles of `special_tokens_map.json` that it lacks.
fn config_of(files: &HfFiles) -> Result<serde_json::Map<String, Value>> {
    let mut config = object("tokenizer_config.json", files.config.as_deref())?;
    for (role, token) in object("special_tokens_map.json", files.special_tokens_map.as_deref())? {
        config.entry(role).or_insert(token);
    }
    Ok(config)
}

/// A JSON object from the bytes of a file; empty when there is no such file.
fn object(what: &str, bytes: Option<&[u8]>) -> Result<serde_json::Map<String, Value>> {
    const HINT: &str = "restore the file from the model's source";
    match bytes.map(serde_json::from_slice) {
        None => Ok(serde_json::Map::new()),
        Some(Ok(Value::Object(object))) => Ok(object),
        Some(Ok(_)) => Err(ApiError::text(what, "not a JSON object", HINT)),
        Some(Err(e)) => Err(ApiError::text(what, format!("not JSON: {e}"), HINT)),
    }
}

/// The token that `key` of the configuration names: a string, or an object with `content`.
fn role(
    inner: &tokenizers::Tokenizer,
    config: &serde_json::Map<String, Value>,
    key: &str,
) -> Result<Option<Special>> {
    let text = match config.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.as_str(),
        Some(Value::Object(token)) => token.get("content").and_then(Value::as_str).unwrap_or_default(),
        Some(_) => "",
    };
    match inner.token_to_id(text) {
        Some(id) => Ok(Some(Special { id, text: text.to_owned() })),
        None => Err(ApiError::text(
            "tokenizer_config.json",
            format!("`{key}` names {text:?}, which tokenizer.json does not have"),
            "the two files belong to different models; take both from one",
        )),
    }
}

/// Tokens that only the configuration lists are added, if their ids come out as listed.
fn add_missing_tokens(
    inner: &mut tokenizers::Tokenizer,
    config: &serde_json::Map<String, Value>,
) -> Result<()> {
    let Some(Value::Object(listed)) = config.get("added_tokens_decoder") else { return Ok(()) };
    let refuse = |reason: String| {
        ApiError::text(
            "tokenizer_config.json",
            reason,
            "the file does not fit tokenizer.json; take both from one model",
        )
    };
    let mut missing = Vec::new();
    for (id, token) in listed {
        let number: u32 = id
            .parse()
            .map_err(|_| refuse(format!("`added_tokens_decoder` has the key {id:?}, not a token id")))?;
        let token: AddedToken = serde_json::from_value(token.clone())
            .map_err(|e| refuse(format!("`added_tokens_decoder` entry {id}: {e}")))?;
        match inner.token_to_id(&token.content) {
            Some(found) if found == number => {}
            Some(found) => {
                let reason = format!("{:?} is id {number} here and {found} in tokenizer.json", token.content);
                return Err(refuse(reason));
            }
            None => missing.push((number, token)),
        }
    }
    missing.sort_by_key(|(id, _)| *id);
    for (id, token) in missing {
        let content = token.content.clone();
        inner.add_tokens([token]).map_err(|e| refuse(format!("cannot add {content:?}: {e}")))?;
        if inner.token_to_id(&content) != Some(id) {
            return Err(refuse(format!("{content:?} cannot get id {id}")));
        }
    }
    Ok(())
}

/// The template of the configuration: a string, or the `default` one of a list of named templates.
fn template_of(config: &serde_json::Map<String, Value>) -> Result<Option<String>> {
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(named)) => {
            let default = named.iter().find(|entry| entry["name"] == "default");
            match default.and_then(|entry| entry["template"].as_str()) {
                Some(source) => Ok(Some(source.to_owned())),
                None => Err(ApiError::text(
                    "tokenizer_config.json",
                    "`chat_template` is a list without one named `default`",
                    "give a template with --chat-template FILE",
                )),
            }
        }
        Some(_) => Err(ApiError::text(
            "tokenizer_config.json",
            "`chat_template` is neither text nor a list",
            "restore the file from the model's source",
        )),
    }
}
