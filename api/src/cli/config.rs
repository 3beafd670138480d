//! One configuration from four places: flag > `MEGATRON_*` environment > YAML file > default. Each value knows where it
//! came from.

use crate::error::{ApiError, Result};
use crate::nearest;
use crate::params::SamplingParams;
use crate::serve::ServeConfig;
use engine::config::InferenceConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything that can be configured. The YAML file has this shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Model directory, GGUF file, or `embedded:dense` / `embedded:moe`.
    pub model: String,
    /// Parallel layout, `tp=2,pp=2,dp=1,ep=1`; omitted sizes are 1.
    pub layout: String,
    /// `cpu`, `cuda`, `cuda:N` or `auto`.
    pub device: String,
    /// Puts a coordinator in front of the engines: a life cycle, and replicas that finish each other's requests.
    pub use_coordinator: bool,
    /// Address on which other processes reach the coordinator; none: they do not.
    pub coordinator_host: Option<String>,
    /// Port of the coordinator; 0 takes any that is free.
    pub coordinator_port: Option<u16>,
    /// A file with a chat template that replaces the model's own.
    pub chat_template: Option<PathBuf>,
    /// The engine's settings.
    pub engine: InferenceConfig,
    /// Sampling parameters of requests that bring none of their own.
    pub sampling: SamplingParams,
    /// The server's settings.
    pub serve: ServeConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: crate::embedded::NAMES[0].to_owned(),
            layout: "tp=1,pp=1,dp=1,ep=1".to_owned(),
            device: "cpu".to_owned(),
            use_coordinator: false,
            coordinator_host: None,
            coordinator_port: None,
            chat_template: None,
            engine: InferenceConfig::default(),
            sampling: SamplingParams::default(),
            serve: ServeConfig::default(),
        }
    }
}

/// Environment variables that begin with `MEGATRON_` and are no configuration keys.
const RESERVED: [&str; 7] = [
    "MEGATRON_CONFIG",
    "MEGATRON_HOST",
    "MEGATRON_ISA",
    "MEGATRON_KERNELS",
    "MEGATRON_KERNEL_CACHE",
    "MEGATRON_MODELS",
    "MEGATRON_WRITE_COEFFICIENTS",
];

/// A value from a flag: key, text or typed value, and the flag's name.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Dotted key, `engine.threads`.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Where it came from, as errors and `--print-config` say it.
    pub origin: String,
}

/// A configuration with the origin of every value that is not a default.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The values.
    pub config: Config,
    tree: Value,
    origins: BTreeMap<String, String>,
}

impl Resolved {
    /// Merges the places. `environment` is the process environment, `file` the YAML file, if one was named.
    pub fn new(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
        flags: Vec<Setting>,
    ) -> Result<Self> {
        let tree = serde_json::to_value(Config::default())
            .map_err(|e| engine::EngineError::internal(format!("default configuration: {e}")))?;
        let mut this = Self { config: Config::default(), tree, origins: BTreeMap::new() };
        if let Some(path) = file {
            for setting in read_yaml(path, &this.tree)? {
                this.apply(setting)?;
            }
        }
        for setting in read_environment(environment, &this.tree)? {
            this.apply(setting)?;
        }
        for setting in flags {
            this.apply(setting)?;
        }
        this.config.engine.validate()?;
        this.config.serve.validate()?;
        Ok(this)
    }

    /// Sets one value; a wrong type or an unknown key is refused with its path and origin.
    fn apply(&mut self, setting: Setting) -> Result<()> {
        let Setting { key, value, origin } = setting;
        let mut tree = self.tree.clone();
        match leaf(&mut tree, &key) {
            Some(place) => *place = value,
            None => return Err(unknown(&key, &origin, &self.tree)),
        }
        match Config::deserialize(&tree) {
            Ok(config) => (self.config, self.tree) = (config, tree),
            Err(e) => {
                let hint = "`megatron generate --print-config` shows every key with its type's default";
                return Err(ApiError::usage(format!("`{key}` ({origin})"), e.to_string(), hint));
            }
        }
        self.origins.insert(key, origin);
        Ok(())
    }

    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> &str {
        self.origins.get(key).map_or("default", String::as_str)
    }

    /// The resolved configuration as YAML, each value with its origin as a comment.
    pub fn render(&self) -> String {
        let mut out = String::new();
        if let Value::Object(tree) = &self.tree {
            self.render_into(&mut out, tree, "", 0);
        }
        out
    }

    fn render_into(&self, out: &mut String, tree: &Map<String, Value>, prefix: &str, depth: usize) {
        for (name, value) in tree {
            let key = join(prefix, name);
            let indent = "  ".repeat(depth);
            match value {
                Value::Object(inner) if !is_leaf(&key, value) => {
                    out.push_str(&format!("{indent}{name}:\n"));
                    self.render_into(out, inner, &key, depth + 1);
                }
                value => {
                    let value = if SECRET.contains(&key.as_str()) { &masked(value) } else { value };
                    let line = format!("{indent}{name}: {value}");
                    out.push_str(&format!("{line:<56} # {}\n", self.origin(&key)));
                }
            }
        }
    }
}

/// Keys whose values are never printed.
const SECRET: [&str; 1] = ["serve.api_keys"];

/// A list of secrets with stars in their places.
fn masked(value: &Value) -> Value {
    Value::Array(value.as_array().into_iter().flatten().map(|_| Value::from("***")).collect())
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// Keys whose value is a map of the user's own making.
fn is_leaf(key: &str, value: &Value) -> bool {
    key == "sampling.logit_bias" || !value.is_object()
}

/// The place of a dotted key, if the key exists and is a value.
fn leaf<'a>(tree: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let mut place = tree;
    for name in key.split('.') {
        place = place.as_object_mut()?.get_mut(name)?;
    }
    is_leaf(key, place).then_some(place)
}

/// Every key that has a value, in order.
fn keys(tree: &Value) -> Vec<String> {
    fn walk(tree: &Value, prefix: &str, into: &mut Vec<String>) {
        for (name, value) in tree.as_object().into_iter().flatten() {
            let key = join(prefix, name);
            if is_leaf(&key, value) { into.push(key) } else { walk(value, &key, into) }
        }
    }
    let mut all = Vec::new();
    walk(tree, "", &mut all);
    all
}

/// The environment variable of a key: `engine.threads` is `MEGATRON_ENGINE_THREADS`.
pub fn variable(key: &str) -> String {
    format!("MEGATRON_{}", key.replace('.', "_").to_uppercase())
}

/// The error for a key that does not exist, with the nearest one that does.
fn unknown(key: &str, origin: &str, tree: &Value) -> ApiError {
    let known = keys(tree);
    if known.iter().any(|k| k.starts_with(&format!("{key}."))) {
        return ApiError::usage(
            format!("`{key}` ({origin})"),
            "is a group of keys, not a value",
            format!("set one of its keys, for example `{key}.{}`", first_below(key, &known)),
        );
    }
    let best = nearest::of(key, known.iter().map(String::as_str)).unwrap_or_default();
    ApiError::usage(format!("`{key}` ({origin})"), "unknown key", format!("did you mean `{best}`?"))
}

fn first_below<'a>(key: &str, known: &'a [String]) -> &'a str {
    known.iter().find_map(|k| k.strip_prefix(key)?.strip_prefix('.')).unwrap_or_default()
}

/// The values of a YAML file, each with `file:` as its origin.
fn read_yaml(path: &Path, defaults: &Value) -> Result<Vec<Setting>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ApiError::file(path, &e, "check the path given with --config"))?;
    let origin = format!("file {}", path.display());
    let refuse = |reason: String| {
        ApiError::usage(&origin, reason, "the file is YAML; see --print-config for its shape")
    };
    // Through YAML's own value first: it refuses keys that occur twice.
    let yaml: serde_yaml::Value =
        serde_yaml::from_str(&text).map_err(|e| refuse(format!("not valid YAML: {e}")))?;
    let json: Value = serde_yaml::from_value(yaml).map_err(|e| refuse(format!("keys must be text: {e}")))?;
    let mut settings = Vec::new();
    match json {
        Value::Null => {}
        Value::Object(tree) => flatten(tree, "", defaults, &origin, &mut settings)?,
        _ => return Err(refuse("not a mapping of keys to values".to_owned())),
    }
    Ok(settings)
}

fn flatten(
    tree: Map<String, Value>,
    prefix: &str,
    defaults: &Value,
    origin: &str,
    into: &mut Vec<Setting>,
) -> Result<()> {
    for (name, value) in tree {
        let key = join(prefix, &name);
        let group = defaults.get(&name).filter(|d| d.is_object() && !is_leaf(&key, d));
        match (group, value) {
            (Some(_), Value::Null) => {}
            (Some(defaults), Value::Object(inner)) => flatten(inner, &key, defaults, origin, into)?,
            (_, value) => into.push(Setting { key, value, origin: origin.to_owned() }),
        }
    }
    Ok(())
}

/// The values of `MEGATRON_*` variables; one that belongs to no key is refused.
fn read_environment(
    environment: impl Iterator<Item = (String, String)>,
    tree: &Value,
) -> Result<Vec<Setting>> {
    let names: BTreeMap<String, String> = keys(tree).into_iter().map(|key| (variable(&key), key)).collect();
    let mut settings = Vec::new();
    for (name, text) in environment {
        if !name.starts_with("MEGATRON_") || RESERVED.contains(&name.as_str()) {
            continue;
        }
        match names.get(&name) {
            Some(key) => {
                settings.push(Setting { key: key.clone(), value: parse(key, &text, tree), origin: name })
            }
            None => {
                let best = nearest::of(&name, names.keys().map(String::as_str)).unwrap_or_default();
                let hint = format!("did you mean {best}? Unset {name} otherwise");
                return Err(ApiError::usage(
                    format!("environment variable {name}"),
                    "belongs to no key",
                    hint,
                ));
            }
        }
    }
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(settings)
}

/// A value from text: keys that hold text take it as it is, all others read it as YAML.
pub fn parse(key: &str, text: &str, tree: &Value) -> Value {
    let mut place = tree;
    for name in key.split('.') {
        place = place.get(name).unwrap_or(&Value::Null);
    }
    if place.is_string() {
        return Value::String(text.to_owned());
    }
    serde_yaml::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// A `--set key=value` flag.
pub fn parse_set(text: &str) -> Result<Setting> {
    let Some((key, value)) = text.split_once('=') else {
        let hint = "for example --set engine.block_size_tokens=64";
        return Err(ApiError::usage(format!("--set {text}"), "has no `=`", hint));
    };
    let tree = serde_json::to_value(Config::default()).unwrap_or_default();
    Ok(Setting { key: key.to_owned(), value: parse(key, value, &tree), origin: "flag --set".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn flag(key: &str, value: Value) -> Setting {
        Setting { key: key.into(), value, origin: format!("flag --{key}") }
    }

    fn resolve(yaml: &str, environment: &[(&str, &str)], flags: Vec<Setting>) -> Result<Resolved> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.yaml");
        std::fs::write(&path, yaml).unwrap();
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Resolved::new(Some(&path), environment, flags)
    }

    #[test]
    fn flags_beat_the_environment_beats_the_file_beats_defaults() {
        let yaml =
            "layout: tp=2\nengine: {threads: 1, max_requests: 5, max_tokens: 100}\nsampling:\n  seed: 1\n";
        let environment =
            [("MEGATRON_ENGINE_THREADS", "2"), ("MEGATRON_ENGINE_MAX_REQUESTS", "6"), ("PATH", "x")];
        let resolved = resolve(yaml, &environment, vec![flag("engine.threads", json!(3))]).unwrap();
        let engine = &resolved.config.engine;
        assert_eq!((engine.threads, engine.max_requests, engine.max_tokens), (Some(3), 6, 100));
        assert_eq!(engine.block_size_tokens, InferenceConfig::default().block_size_tokens);
        assert_eq!(resolved.origin("engine.threads"), "flag --engine.threads");
        assert_eq!(resolved.origin("engine.max_requests"), "MEGATRON_ENGINE_MAX_REQUESTS");
        assert!(resolved.origin("engine.max_tokens").ends_with("run.yaml"));
        assert_eq!(resolved.origin("engine.block_size_tokens"), "default");
        let printed = resolved.render();
        assert!(
            printed.contains("  threads: 3") && printed.contains("# MEGATRON_ENGINE_MAX_REQUESTS"),
            "{printed}"
        );
        let again: Config = serde_yaml::from_str(&printed).unwrap();
        assert_eq!(again, resolved.config);
    }

    #[test]
    fn mistakes_are_refused_with_their_path() {
        let message = |yaml: &str, environment: &[(&str, &str)], flags| {
            let error = resolve(yaml, environment, flags).unwrap_err();
            let text = format!("{error} | {}", error.hint().unwrap_or("-"));
            match text
                .split_once("file ")
                .and_then(|(a, b)| Some((a.to_owned(), b.split_once("run.yaml")?.1)))
            {
                Some((before, after)) => format!("{before}file{after}"),
                None => text,
            }
        };
        assert_eq!(
            message("engine: {thread: 2}", &[], vec![]),
            "`engine.thread` (file): unknown key | did you mean `engine.threads`?"
        );
        assert_eq!(
            message("", &[], vec![flag("engine", json!(1))]),
            "`engine` (flag --engine): is a group of keys, not a value | set one of its keys, for example `engine.block_size_tokens`"
        );
        assert!(
            message("engine: {threads: two}", &[], vec![])
                .starts_with("`engine.threads` (file): invalid type: string \"two\"")
        );
        assert!(message("engine: {threads: 1, threads: 2}", &[], vec![]).contains("duplicate entry"));
        assert_eq!(
            message("", &[("MEGATRON_MODLE", "x")], vec![]),
            "environment variable MEGATRON_MODLE: belongs to no key | did you mean MEGATRON_MODEL? Unset MEGATRON_MODLE otherwise"
        );
        assert_eq!(
            message("engine: {block_size_tokens: 48}", &[], vec![]),
            "configuration field `block_size_tokens`: 48 is not a power of two up to 65536 | use 16, 32, 64, 128 or 256"
        );
        assert!(message("- a\n- b", &[], vec![]).starts_with("file: not a mapping"));
    }

    #[test]
    fn text_keys_take_text_as_it_is() {
        let environment = [("MEGATRON_MODEL", "123"), ("MEGATRON_SAMPLING_STOP_WORDS", "['a', 'b']")];
        let config = resolve("", &environment, vec![]).unwrap().config;
        assert_eq!((config.model.as_str(), config.sampling.stop_words.len()), ("123", 2));
    }
}
