//! Gemma 3, text: norms before and after each block, weights stored as `w - 1`, a scaled embedding, QK-norm, and two
//! kinds of layers (sliding and full) with a rotary table each.

use super::common::{self, Defaults};
use super::{FamilyFiles, rotary};
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::inventory::{Shape, Source};
use crate::model::spec::{Activation, Family, Ffn, ModelSpec, QkNorm};
use crate::model::tensor::Tensor;

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "gemma3_text", architecture: "Gemma3ForCausalLM", spec, sources };

/// Index of the table of full layers.
const FULL: usize = 0;
/// Index of the table of sliding layers.
const SLIDING: usize = 1;

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    let defaults =
        Defaults { head_dim: Some(256), tied: true, bos: Some(2), eos: Some(1), ..Defaults::USUAL };
    let mut spec = common::base(config, Family::Gemma3, &defaults)?;
    spec.activation = Activation::GeluTanh;
    common::activation(config, "hidden_activation", &mut spec)?;
    spec.norm_one_plus = true;
    spec.sandwich = true;
    spec.qk_norm = QkNorm::Head;
    spec.attn_scale = common::inverse_root(config.opt_positive("query_pre_attn_scalar")?.unwrap_or(256.0));
    spec.embed_scale = Some((spec.hidden as f64).sqrt() as f32);
    spec.ropes = rotary::by_layer_type(config, spec.head_dim, (1_000_000.0, 10_000.0))?;
    let inner = config.size("intermediate_size")?;
    let window = match config.opt_size("sliding_window")? {
        None if config.is_written("sliding_window") => config.size("sliding_window")?,
        window => window.unwrap_or(4096),
    };
    let pattern = config.opt_size("sliding_window_pattern")?.unwrap_or(6);
    let kinds = common::layer_kinds(config, spec.layers.len())?;
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let sliding = kinds.as_ref().map_or((index + 1) % pattern != 0, |kinds| kinds[index]);
        layer.window = sliding.then_some(window);
        layer.rope = if sliding { SLIDING } else { FULL };
        layer.ffn = Ffn::Dense { inner };
    }
    Ok(spec)
}

fn sources(_: &ModelSpec, tensor: Tensor, shape: Shape) -> Vec<Source> {
    vec![Source::whole(common::name(tensor, "pre_feedforward_layernorm", "mlp"), shape)]
}
