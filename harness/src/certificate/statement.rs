//! From the record of a run to the bytes of a certificate.

use crate::certificate::canonical::canonical;
use crate::certificate::sign::Keys;
use crate::digest::sha256_hex;
use crate::error::{HarnessError, Result};
use crate::run::{CellResult, Record, Summary};
use serde_json::{Map, Value, json};

/// Name of the schema.
pub const SCHEMA: &str = "parity-certificate/1";

/// What every certificate says about itself.
const STATEMENT: &str = "On the digested inputs, the named program gave answers of these digests; compared as stated, \
    they had these verdicts. Cells under not_covered were not run and nothing is said about them.";

/// One cell.
fn cell(result: &CellResult) -> Value {
    let cell = &result.cell;
    let demands: Map<String, Value> =
        cell.demands.iter().map(|(name, demand)| (name.clone(), Value::from(demand.to_string()))).collect();
    let golden = result.golden.as_ref().map(|golden| golden.verdict.name());
    let difference = result.golden.as_ref().map_or(0.0, |g| g.max_logprob_difference);
    json!({
        "id": cell.id,
        "relation": cell.relation.name(),
        "required": cell.required.name(),
        "verdict": result.verdict().name(),
        "golden": golden,
        "bound": cell.bound,
        "outcome": result.outcome,
        "witnesses": result.witnesses,
        "demands": demands,
        "compared": result.finding.compared,
        "max_logprob_difference": format!("{:.7e}", result.finding.max_logprob_difference.max(difference)),
        "answers_sha256": result.answers_sha256,
        "why": result.why(),
        "quarantine": result.quarantine,
    })
}

/// The content of a certificate: everything but the digest and the signature.
pub fn content(record: &Record) -> Result<Value> {
    let incomplete = || {
        HarnessError::usage(
            "the run was broken off, so there is nothing to certify",
            "run it again to its end",
        )
    };
    let summary: &Summary =
        record.summary.as_ref().filter(|summary| !summary.interrupted).ok_or_else(incomplete)?;
    let header = &record.header;
    Ok(json!({
        "schema": SCHEMA,
        "statement": STATEMENT,
        "created": header.started,
        "profile": header.profile,
        "matrix": {"name": header.matrix, "sha256": header.matrix_sha256, "selection": header.selection},
        "goldens": header.goldens,
        "witnesses": header.witnesses,
        "weights": header.weights,
        "tokenizers": header.tokenizers,
        "bounds": header.bounds,
        "environment": header.environment,
        "not_covered": header.not_covered,
        "cells": record.cells.iter().map(cell).collect::<Vec<_>>(),
        "summary": summary,
    }))
}

/// Adds digest and, with keys, signature; returns the bytes of the certificate.
pub fn seal(content: Value, keys: Option<&Keys>) -> Result<String> {
    let broken =
        |why: String| HarnessError::usage(format!("the certificate cannot be written: {why}"), "report this");
    let Value::Object(mut fields) = content else { return Err(broken("it is no object".into())) };
    let digest = sha256_hex(canonical(&Value::Object(fields.clone())).map_err(broken)?.as_bytes());
    let signature = keys.map(
        |keys| json!({"algorithm": "ed25519", "public_key": keys.public(), "value": keys.sign(&digest)}),
    );
    fields.insert("content_sha256".into(), Value::from(digest));
    fields.insert("signature".into(), Value::from(signature));
    let mut text = canonical(&Value::Object(fields)).map_err(broken)?;
    text.push('\n');
    Ok(text)
}

/// Makes the certificate of a run.
pub fn certify(record: &Record, keys: Option<&Keys>) -> Result<String> {
    seal(content(record)?, keys)
}
