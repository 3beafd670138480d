//! Hugging Face directories: `config.json` beside one or many `*.safetensors`.

pub(crate) mod config_json;
pub(crate) mod json;
mod shards;

use crate::error::{EngineError, Result};
use crate::model::assets::{HuggingFaceAssets, TokenizerAssets};
use crate::model::checkpoint::Parts;
use crate::model::families;
use crate::model::families::FamilyFiles;
use crate::model::files::Directory;
use crate::model::inventory::{self, Naming};
use crate::model::spec::ModelSpec;
use crate::model::stored::{Table, Transform};
use crate::model::tensor::{LayerTensor, Tensor};
use config_json::ConfigJson;

/// Whether the directory holds safetensors.
pub(crate) fn is_one(names: &[String]) -> bool {
    names.iter().any(|n| n == shards::INDEX || n.ends_with(".safetensors"))
}

/// Opens the directory; `names` are its entries.
pub(crate) fn open(directory: &Directory, names: &[String]) -> Result<Parts> {
    let Some(file) = directory.open("config.json")? else {
        return Err(EngineError::model(
            directory.path("config.json"),
            "is missing",
            "a Hugging Face directory needs config.json beside its weights",
        ));
    };
    let config = ConfigJson::parse(&file)?;
    let family = families::of(&config)?;
    let mut spec = (family.spec)(&config)?;
    config.finish()?;
    end_ids(directory, &mut spec)?;
    let shards = shards::open(directory, names)?;
    if spec.tied {
        same_head(&shards.table, family, &spec)?;
    }
    let tensors = inventory::resolve(
        &spec,
        &shards.table,
        &Naming {
            file: &shards.source,
            sources: &|tensor, shape| (family.sources)(&spec, tensor, shape),
            transform: &|tensor| Transform {
                unpermute: None,
                plus_one: spec.norm_one_plus && is_norm(tensor),
            },
            inert: &|name| is_inert(name, spec.tied),
            head_hint: "`tie_word_embeddings` is false, so the model has a head of its own: complete the download, or \
                        set it to true if the model shares the embedding",
        },
    )?;
    Ok(Parts { spec, files: shards.files, tensors, assets: assets(directory)? })
}

/// Buffers that older tools saved, and the copy of the embedding that [`same_head`] has compared.
fn is_inert(name: &str, tied: bool) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
}

fn is_norm(tensor: Tensor) -> bool {
    use LayerTensor::{AttnNorm, FfnNorm, KNorm, PostAttnNorm, PostFfnNorm, QNorm};
    matches!(
        tensor,
        Tensor::FinalNorm | Tensor::Layer(_, AttnNorm | PostAttnNorm | FfnNorm | PostFfnNorm | QNorm | KNorm)
    )
}

/// A tied model may carry a head only if it is the embedding, bit for bit.
fn same_head(table: &Table, family: &FamilyFiles, spec: &ModelSpec) -> Result<()> {
    let shape = inventory::Shape::Matrix(spec.vocab, spec.hidden);
    let name =
        |tensor| (family.sources)(spec, tensor, shape).into_iter().next().and_then(|s| table.get(&s.name));
    let (Some(head), Some(embedding)) = (name(Tensor::Head), name(Tensor::Embedding)) else { return Ok(()) };
    let same = head.encoding == embedding.encoding && head.shape == embedding.shape;
    if same && head.bytes() == embedding.bytes() {
        return Ok(());
    }
    Err(EngineError::tensor(
        head.file.path(),
        "lm_head.weight",
        "differs from the embedding although `tie_word_embeddings` is true",
        "set `tie_word_embeddings` to false if the model has a head of its own",
    ))
}

/// `generation_config.json` has the last word on the ids that begin and end a text.
fn end_ids(directory: &Directory, spec: &mut ModelSpec) -> Result<()> {
    let Some(file) = directory.open("generation_config.json")? else { return Ok(()) };
    let config = ConfigJson::parse(&file)?;
    if let Some(ids) = config.opt_ids("eos_token_id")? {
        spec.eos = families::within(&config, "eos_token_id", ids, spec.vocab)?;
    }
    if let Some(ids) = config.opt_ids("bos_token_id")? {
        spec.bos = families::within(&config, "bos_token_id", ids, spec.vocab)?.first().copied();
    }
    Ok(())
}

fn assets(directory: &Directory) -> Result<TokenizerAssets> {
    Ok(TokenizerAssets::HuggingFace(HuggingFaceAssets {
        tokenizer: directory.open("tokenizer.json")?,
        tokenizer_config: directory.open("tokenizer_config.json")?,
        chat_template: directory.open("chat_template.jinja")?,
        special_tokens_map: directory.open("special_tokens_map.json")?,
        generation_config: directory.open("generation_config.json")?,
    }))
}
