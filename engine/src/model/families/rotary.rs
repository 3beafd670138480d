//! Rotary parameters of `config.json`, in the form of transformers 5 (`rope_parameters`) and in the older one
//! (`rope_theta`, `rope_scaling`).

use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::rope::{Scaling, rope};
use crate::model::spec::Rope;

/// The one rotary table of a model whose layers all turn alike.
pub(super) fn single(config: &ConfigJson, head_dim: usize, default_theta: f64) -> Result<Rope> {
    let old_theta = config.opt_positive("rope_theta")?;
    whole_heads(config)?;
    let new = config.opt_object("rope_parameters")?;
    let old = config.opt_object("rope_scaling")?;
    let theta = old_theta.unwrap_or(default_theta);
    match (new, old) {
        (Some(_), Some(_)) => Err(both(config)),
        (Some(parameters), None) => {
            agree(config, &parameters, "rope_theta", old_theta)?;
            entry(config, &parameters, head_dim, theta)
        }
        (None, Some(scaling)) => entry(config, &scaling, head_dim, theta),
        (None, None) => Ok(rope(theta, head_dim, &Scaling::None)),
    }
}

/// Gemma 3: tables of the full and of the sliding layers, in this order.
pub(super) fn by_layer_type(config: &ConfigJson, head_dim: usize, defaults: (f64, f64)) -> Result<Vec<Rope>> {
    let full_theta = config.opt_positive("rope_theta")?;
    let sliding_theta = config.opt_positive("rope_local_base_freq")?;
    whole_heads(config)?;
    let new = config.opt_object("rope_parameters")?;
    let old = config.opt_object("rope_scaling")?;
    if new.is_some() && old.is_some() {
        return Err(both(config));
    }
    let nested = |kind| new.as_ref().map_or(Ok(None), |p| p.opt_object(kind));
    let (full, sliding) = (nested("full_attention")?, nested("sliding_attention")?);
    if let Some(parameters) = &new {
        parameters.finish()?;
    }
    let full = match (&full, &old) {
        (Some(parameters), _) => {
            agree(config, parameters, "rope_theta", full_theta)?;
            entry(config, parameters, head_dim, full_theta.unwrap_or(defaults.0))?
        }
        (None, Some(scaling)) => entry(config, scaling, head_dim, full_theta.unwrap_or(defaults.0))?,
        (None, None) => rope(full_theta.unwrap_or(defaults.0), head_dim, &Scaling::None),
    };
    let sliding = match &sliding {
        Some(parameters) => {
            agree(config, parameters, "rope_local_base_freq", sliding_theta)?;
            entry(config, parameters, head_dim, sliding_theta.unwrap_or(defaults.1))?
        }
        None => rope(sliding_theta.unwrap_or(defaults.1), head_dim, &Scaling::None),
    };
    Ok(vec![full, sliding])
}

fn both(config: &ConfigJson) -> crate::error::EngineError {
    config.refuse("rope_scaling", "is given beside `rope_parameters`", "keep one of the two")
}

/// `partial_rotary_factor` other than 1 would turn a part of each head only.
fn whole_heads(config: &ConfigJson) -> Result<()> {
    match config.opt_positive("partial_rotary_factor")? {
        None | Some(1.0) => Ok(()),
        Some(part) => Err(config.refuse(
            "partial_rotary_factor",
            format!("is {part}, which is not supported"),
            "only models that turn whole heads are supported",
        )),
    }
}

/// The same quantity given in two places must be the same.
fn agree(config: &ConfigJson, parameters: &ConfigJson, key: &str, outer: Option<f64>) -> Result<()> {
    match (outer, parameters.opt_positive("rope_theta")?) {
        (Some(outer), Some(inner)) if outer != inner => Err(config.refuse(
            key,
            format!("is {outer}, but `rope_parameters` says {inner}"),
            "keep one of the two",
        )),
        _ => Ok(()),
    }
}

/// One set of rotary parameters.
fn entry(config: &ConfigJson, parameters: &ConfigJson, head_dim: usize, default_theta: f64) -> Result<Rope> {
    let theta = parameters.opt_positive("rope_theta")?.unwrap_or(default_theta);
    whole_heads(parameters)?;
    let (newer, older) = (parameters.opt_text("rope_type")?, parameters.opt_text("type")?);
    if let (Some(a), Some(b)) = (newer, older)
        && a != b
    {
        return Err(parameters.refuse(
            "type",
            format!("is `{b}`, but `rope_type` is `{a}`"),
            "keep one of the two",
        ));
    }
    let key = if newer.is_some() { "rope_type" } else { "type" };
    let scaling = match newer.or(older).unwrap_or("default") {
        "default" => Scaling::None,
        "linear" => Scaling::Linear(parameters.positive("factor")?),
        "llama3" => llama3(config, parameters)?,
        other => {
            return Err(parameters.refuse(
                key,
                format!("is `{other}`, which is not supported"),
                "supported are default, linear and llama3",
            ));
        }
    };
    parameters.finish()?;
    Ok(rope(theta, head_dim, &scaling))
}

fn llama3(config: &ConfigJson, parameters: &ConfigJson) -> Result<Scaling> {
    let low = parameters.positive("low_freq_factor")?;
    let high = parameters.positive("high_freq_factor")?;
    if low >= high {
        return Err(parameters.refuse(
            "low_freq_factor",
            format!("is {low}, not below `high_freq_factor` = {high}"),
            "the passage from long to short wavelengths would be empty",
        ));
    }
    let original = match parameters.opt_positive("original_max_position_embeddings")? {
        Some(positions) => positions,
        None => config.positive("max_position_embeddings")?,
    };
    Ok(Scaling::Llama3 { factor: parameters.positive("factor")?, low, high, original })
}
