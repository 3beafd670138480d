//! The JSON schema of a matrix, for editors. A test holds it against what the parser accepts.

use crate::matrix::{Action, Api};
use serde_json::{Value, json};

/// An object with these properties and no others.
fn object(about: &str, required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object",
        "description": about,
        "required": required,
        "additionalProperties": false,
        "properties": properties,
    })
}

/// A map from names to values of one kind.
fn map_of(about: &str, value: Value) -> Value {
    json!({"type": "object", "description": about, "additionalProperties": value})
}

/// A list of values of one kind, at least one.
fn list_of(about: &str, item: Value) -> Value {
    json!({"type": "array", "description": about, "minItems": 1, "items": item})
}

/// Text with a description.
fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

/// A whole number with a description.
fn number(about: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": about})
}

/// One of these words.
fn word(about: &str, words: &[&str]) -> Value {
    json!({"type": "string", "description": about, "enum": words})
}

/// The JSON schema (draft 2020-12) of a matrix file.
pub fn schema() -> Value {
    let demand = json!({"type": "string", "pattern": "^\\s*(==|>=|<=|>|<)\\s*[0-9]+\\s*$"});
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "parity matrix",
        "type": "object",
        "required": ["schema", "name", "about", "blocks"],
        "additionalProperties": false,
        "properties": {
            "schema": word("version of this schema", &[super::file::SCHEMA]),
            "name": text("name of the matrix"),
            "about": text("what it is for"),
            "include": list_of("files with shared definitions, relative to this one", json!({"type": "string"})),
            "bounds": map_of("bounds by name", json!({"$ref": "#/$defs/bound"})),
            "models": map_of("models by name", json!({"$ref": "#/$defs/model"})),
            "suites": map_of("suites by name", json!({"$ref": "#/$defs/suite"})),
            "features": map_of("feature sets by name", json!({"$ref": "#/$defs/feature"})),
            "faults": map_of("fault plans by name", json!({"$ref": "#/$defs/fault"})),
            "anchor": json!({"$ref": "#/$defs/anchor"}),
            "blocks": list_of("blocks of cells", json!({"$ref": "#/$defs/block"})),
        },
        "$defs": {
            "demand": demand,
            "api": word("front door", &Api::ALL.map(Api::name)),
            "layout": json!({"type": "string", "pattern": "^(tp|pp|dp|ep|etp)=[0-9]+(,(tp|pp|dp|ep|etp)=[0-9]+)*$"}),
            "bound": bound(),
            "model": model(),
            "suite": suite(),
            "suspend": suspend(),
            "sampling": sampling(),
            "feature": feature(),
            "fault": fault(),
            "anchor": anchor(),
            "axes": axes(),
            "exclude": exclude(),
            "block": block(),
            "part": part(),
        },
    })
}

fn part() -> Value {
    let named = |about: &str, def: &str| map_of(about, json!({"$ref": format!("#/$defs/{def}")}));
    let properties = json!({
        "schema": word("version of this schema", &[super::include::SCHEMA]),
        "about": text("what it holds"),
        "bounds": named("bounds by name", "bound"),
        "models": named("models by name", "model"),
        "suites": named("suites by name", "suite"),
        "features": named("feature sets by name", "feature"),
        "faults": named("fault plans by name", "fault"),
        "anchor": {"$ref": "#/$defs/anchor"},
    });
    object("definitions that matrices include", &["schema", "about"], properties)
}

fn bound() -> Value {
    let properties = json!({
        "logprob": {"type": "number", "minimum": 0, "maximum": 1, "description": "allowed difference, in nats"},
        "reason": text("why this much is allowed"),
        "origin": text("where the number comes from"),
    });
    object("a bound with its reason", &["logprob", "reason", "origin"], properties)
}

fn model() -> Value {
    let properties = json!({
        "path": text("directory or GGUF file, relative to goldens/; $MODELS/ stands for the package models"),
        "config": map_of("engine settings, keys of InferenceConfig", json!({})),
    });
    object("a model under test", &["path"], properties)
}

fn suite() -> Value {
    let properties = json!({
        "golden": text("name of the golden; the suite's own name when left out"),
        "cases": list_of("names of the cases; all when left out", json!({"type": "string"})),
        "tokens": number("compare only this many tokens of each case"),
    });
    object("a suite: a golden or a part of one", &[], properties)
}

fn suspend() -> Value {
    object(
        "suspend and resume in mid-run",
        &["after_tokens"],
        json!({"after_tokens": number("streamed tokens before it")}),
    )
}

fn sampling() -> Value {
    let properties = json!({
        "temperature": {"type": "number", "exclusiveMinimum": 0},
        "top_k": number("keeps the best so many; 0 is off"),
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "seed": number("seed of the first case"),
    });
    object("sampling; greedy when left out", &["temperature", "seed"], properties)
}

fn feature() -> Value {
    let properties = json!({
        "about": text("what it is"),
        "config": map_of("engine settings, keys of InferenceConfig", json!({})),
        "arrival": word("when requests arrive", &["together", "one-by-one", "concurrent", "twins"]),
        "stream": {"type": "boolean", "description": "answers are taken from the stream"},
        "suspend": {"$ref": "#/$defs/suspend"},
        "sampling": {"$ref": "#/$defs/sampling"},
        "anchor": text("feature set whose bits this one repeats"),
        "witness": map_of("what must have happened", json!({"$ref": "#/$defs/demand"})),
    });
    object("a feature set", &["about"], properties)
}

fn fault() -> Value {
    let properties = json!({
        "about": text("what goes wrong, in words"),
        "action": word("what goes wrong", &Action::ALL.map(Action::name)),
        "replica": number("replica that it happens to; for what happens to replicas"),
        "step": number("report of that replica; for what happens to replicas"),
        "witness": map_of("what must have happened", json!({"$ref": "#/$defs/demand"})),
    });
    object("a fault plan", &["about", "action"], properties)
}

fn anchor() -> Value {
    let properties = json!({
        "api": {"$ref": "#/$defs/api"},
        "layout": {"$ref": "#/$defs/layout"},
        "transport": word("how ranks talk", &["threads", "mpi", "nccl"]),
        "device": word("where kernels run", &["cpu", "reference", "cuda"]),
        "feature": text("feature set"),
    });
    object("the anchor of `bitwise`", &["api", "layout", "transport", "device", "feature"], properties)
}

fn axes() -> Value {
    let names = |about: &str| list_of(about, json!({"type": "string"}));
    let properties = json!({
        "model": names("models"),
        "suite": names("suites"),
        "api": list_of("front doors", json!({"$ref": "#/$defs/api"})),
        "layout": list_of("layouts", json!({"$ref": "#/$defs/layout"})),
        "transport": list_of("transports", word("", &["threads", "mpi", "nccl"])),
        "device": list_of("devices", word("", &["cpu", "reference", "cuda"])),
        "feature": names("feature sets"),
        "fault": names("fault plans; none when left out"),
    });
    object("axes", &["model", "suite", "api", "layout", "transport", "device", "feature"], properties)
}

fn exclude() -> Value {
    let properties = json!({"cells": text("filter expression"), "reason": text("why they are left out")});
    object("cells that are left out", &["cells", "reason"], properties)
}

fn block() -> Value {
    let properties = json!({
        "name": text("name of the block"),
        "about": text("what it shows"),
        "relation": word("what is compared with what", &["bitwise", "reference"]),
        "required": word("weakest verdict that suffices", &["identical-bits", "identical-tokens", "near-tie"]),
        "bound": text("bound for the comparison with the golden"),
        "axes": {"$ref": "#/$defs/axes"},
        "cover": word("how much of the product is run", &["full", "pairs", "triples"]),
        "exclude": {"type": "array", "items": {"$ref": "#/$defs/exclude"}},
        "witness": map_of("what must have happened", json!({"$ref": "#/$defs/demand"})),
    });
    object("a block of cells", &["name", "about", "relation", "required", "axes"], properties)
}
