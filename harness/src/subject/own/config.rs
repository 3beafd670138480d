//! Engine settings of a cell: the defaults of the harness, the model's, the feature set's, in this order.

use crate::matrix::{Cell, MatrixFile};
use engine::config::InferenceConfig;
use serde_yaml::{Mapping, Value};
use std::collections::BTreeMap;

/// What went wrong: the path in the matrix and the reason.
pub type Refusal = (String, String);

/// Threads per rank: one, because cells run side by side. A feature set may ask for more.
const DEFAULTS: [(&str, u64); 1] = [("threads", 1)];

/// Lays settings over each other; refuses what `InferenceConfig` does not know or does not accept.
pub fn merge(layers: &[(&str, &BTreeMap<String, Value>)]) -> Result<InferenceConfig, Refusal> {
    let mut merged = Mapping::new();
    for (key, value) in DEFAULTS {
        merged.insert(Value::from(key), Value::from(value));
    }
    let mut last = "document".to_owned();
    for (path, layer) in layers {
        for (key, value) in *layer {
            merged.insert(Value::from(key.as_str()), value.clone());
        }
        // Each layer is tried when it is added, so that the path of the offending one is known.
        last = format!("{path}.config");
        try_parse(&merged).map_err(|why| (last.clone(), why))?;
    }
    try_parse(&merged).map_err(|why| (last, why))
}

fn try_parse(merged: &Mapping) -> Result<InferenceConfig, String> {
    let config: InferenceConfig = serde_path_to_error::deserialize(Value::Mapping(merged.clone()))
        .map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    Ok(config)
}

/// The settings of a cell.
pub fn of_cell(spec: &MatrixFile, cell: &Cell) -> Result<InferenceConfig, Refusal> {
    let none = BTreeMap::new();
    let model = spec.models.get(&cell.model).map_or(&none, |model| &model.config);
    let feature = spec.features.get(&cell.feature).map_or(&none, |feature| &feature.config);
    merge(&[(&format!("models.{}", cell.model), model), (&format!("features.{}", cell.feature), feature)])
}

/// Checks the settings of every model under every feature set.
pub fn check(spec: &MatrixFile) -> Result<(), Refusal> {
    for (name, model) in &spec.models {
        for (feature_name, feature) in &spec.features {
            let (model_path, feature_path) = (format!("models.{name}"), format!("features.{feature_name}"));
            merge(&[(&model_path, &model.config), (&feature_path, &feature.config)])?;
        }
    }
    Ok(())
}
