//! Safetensors files: one, or many under `model.safetensors.index.json`.

use super::json;
use crate::dtype::DType;
use crate::error::{EngineError, Result};
use crate::model::files::{Directory, FileBytes, INDEX_LIMIT};
use crate::model::gguf::types::Encoding;
use crate::model::stored::{Entry, Table};
use safetensors::tensor::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// The index of a checkpoint that is cut in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const WHOLE: &str = "model.safetensors";
const DOWNLOAD_AGAIN: &str = "the download is incomplete or damaged; download the file again";

/// All tensors of a directory.
pub(crate) struct Shards {
    /// The weights files, ascending by name.
    pub files: Vec<Arc<FileBytes>>,
    /// Every tensor.
    pub table: Table,
    /// The file that says which tensors there are: the only weights file, or the index.
    pub source: PathBuf,
}

/// Opens the weights of a directory whose entries are `names`.
pub(crate) fn open(directory: &Directory, names: &[String]) -> Result<Shards> {
    let has = |name: &str| names.iter().any(|n| n == name);
    match (has(WHOLE), has(INDEX)) {
        (true, true) => Err(EngineError::model(
            directory.path(INDEX),
            format!("is given beside `{WHOLE}`"),
            "keep the one that belongs to the model",
        )),
        (_, true) => open_indexed(directory),
        (true, false) => open_single(directory, WHOLE),
        (false, false) => {
            match names.iter().filter(|n| n.ends_with(".safetensors")).collect::<Vec<_>>()[..] {
                [only] => open_single(directory, only),
                _ => Err(EngineError::model(
                    directory.path(INDEX),
                    "is missing, and there are several *.safetensors files",
                    "download the index of the model; it says which tensor is in which file",
                )),
            }
        }
    }
}

fn open_single(directory: &Directory, name: &str) -> Result<Shards> {
    let file = directory.open(name)?.ok_or_else(|| missing_shard(directory, name, WHOLE))?;
    let mut table = Table::new();
    read(&file, &mut table)?;
    Ok(Shards { source: file.path().into(), files: vec![file], table })
}

fn missing_shard(directory: &Directory, name: &str, by: &str) -> EngineError {
    EngineError::model(directory.path(name), format!("is missing, but `{by}` names it"), DOWNLOAD_AGAIN)
}

fn open_indexed(directory: &Directory) -> Result<Shards> {
    let source = directory.path(INDEX);
    let refuse = |reason: String, hint: &str| EngineError::model(&source, reason, hint);
    let file = directory.open(INDEX)?.ok_or_else(|| refuse("is missing".into(), DOWNLOAD_AGAIN))?;
    let index = json::object(file.bounded(INDEX_LIMIT)?).map_err(|reason| refuse(reason, DOWNLOAD_AGAIN))?;
    let Some(Value::Object(weight_map)) = index.get("weight_map") else {
        return Err(refuse("has no object `weight_map`".into(), DOWNLOAD_AGAIN));
    };
    let mut by_shard: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in weight_map {
        let plain = |s: &&str| s.ends_with(".safetensors") && !s.contains(['/', '\\', '\0']);
        let Some(shard) = shard.as_str().filter(plain) else {
            let reason =
                format!("puts the tensor in {shard}, which is no *.safetensors file of this directory");
            return Err(EngineError::tensor(&source, tensor, reason, "every shard lies beside its index"));
        };
        by_shard.entry(shard).or_default().insert(tensor);
    }
    let mut files = Vec::new();
    let mut table = Table::new();
    for (shard, listed) in &by_shard {
        let file = directory.open(shard)?.ok_or_else(|| missing_shard(directory, shard, INDEX))?;
        let held = read(&file, &mut table)?;
        let held: BTreeSet<&str> = held.iter().map(String::as_str).collect();
        if let Some(tensor) = listed.difference(&held).next() {
            let reason = format!("is missing, but `{INDEX}` says that it is here");
            return Err(EngineError::tensor(file.path(), *tensor, reason, DOWNLOAD_AGAIN));
        }
        if let Some(tensor) = held.difference(listed).next() {
            let reason = format!("is here, but `{INDEX}` does not say so");
            return Err(EngineError::tensor(
                file.path(),
                *tensor,
                reason,
                "take index and files from one source",
            ));
        }
        files.push(file);
    }
    Ok(Shards { files, table, source })
}

/// Adds the tensors of one file; returns their names.
fn read(file: &Arc<FileBytes>, table: &mut Table) -> Result<Vec<String>> {
    let bytes = file.bytes();
    let refuse = |reason: String| EngineError::model(file.path(), reason, DOWNLOAD_AGAIN);
    let (header, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| refuse(format!("is not a complete safetensors file: {e}")))?;
    let start = 8 + header;
    json::object(bytes.get(8..start).unwrap_or_default())
        .map_err(|reason| refuse(format!("header {reason}")))?;
    let mut names = Vec::new();
    for (name, info) in metadata.tensors() {
        let encoding = Encoding::Plain(dtype(info.dtype).ok_or_else(|| {
            EngineError::tensor(
                file.path(),
                &name,
                format!("is stored as {:?}, which is not supported", info.dtype),
                "supported are F32, F16 and BF16; take the unquantised weights, or a GGUF file",
            )
        })?);
        let entry = Entry {
            file: file.clone(),
            encoding,
            shape: info.shape.clone(),
            range: start + info.data_offsets.0..start + info.data_offsets.1,
        };
        if let Some(other) = table.insert(name.clone(), entry) {
            let reason = format!("is also in `{}`", other.file.name());
            return Err(EngineError::tensor(file.path(), name, reason, "every tensor has one place"));
        }
        names.push(name);
    }
    Ok(names)
}

fn dtype(stored: Dtype) -> Option<DType> {
    match stored {
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}
