//! The two small trained models inside the binary, so that the first command works on any machine.

use engine::error::EngineError;
use engine::model::checkpoint::Checkpoint;
use std::borrow::Cow;
use std::path::Path;

/// Names of the embedded models, as `--model` takes them. The first is the default.
pub const NAMES: [&str; 2] = ["embedded:dense", "embedded:moe"];

/// The files of an embedded model by name, or `None` for another name.
pub fn files(name: &str) -> Option<Vec<(String, Cow<'static, [u8]>)>> {
    let chosen = match name {
        "embedded:dense" => DENSE,
        "embedded:moe" => MOE,
        _ => return None,
    };
    Some(chosen.iter().map(|(name, bytes)| ((*name).to_owned(), Cow::Borrowed(*bytes))).collect())
}

/// Opens the weights of a model by its path, or of an embedded one by its name.
///
/// # Errors
/// As [`Checkpoint::open`]; a name that no embedded model has.
pub fn open(path: &Path) -> engine::Result<Checkpoint> {
    let name = path.to_string_lossy();
    match files(&name) {
        Some(files) => Checkpoint::open_memory(&name, files),
        None if name.starts_with("embedded:") => {
            let reason = format!("there is no embedded model `{name}`");
            Err(EngineError::model(path, reason, format!("embedded models: {}", NAMES.join(", "))))
        }
        None => Checkpoint::open(path),
    }
}

/// A file's name and content.
type File = (&'static str, &'static [u8]);

const DENSE: &[File] = &[
    ("config.json", include_bytes!("../../goldens/models/dense/config.json")),
    ("generation_config.json", include_bytes!("../../goldens/models/dense/generation_config.json")),
    ("model.safetensors", include_bytes!("../../goldens/models/dense/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../goldens/models/dense/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../goldens/models/dense/tokenizer_config.json")),
];

const MOE: &[File] = &[
    ("chat_template.jinja", include_bytes!("../../goldens/models/moe/chat_template.jinja")),
    ("config.json", include_bytes!("../../goldens/models/moe/config.json")),
    ("generation_config.json", include_bytes!("../../goldens/models/moe/generation_config.json")),
    ("model.safetensors", include_bytes!("../../goldens/models/moe/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../goldens/models/moe/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../goldens/models/moe/tokenizer_config.json")),
];
