//! Checking a certificate offline: spelling, digest, signature, and whether it agrees with itself.

use crate::certificate::canonical::canonical;
use crate::certificate::sign;
use crate::certificate::statement::SCHEMA;
use crate::compare::{Demand, Verdict, Witnesses};
use crate::digest::sha256_hex;
use crate::error::{HarnessError, Result};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A certificate that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The whole document.
    pub document: Map<String, Value>,
    /// The public key that signed it, if one did.
    pub signed_by: Option<String>,
    /// Number of cells.
    pub cells: u64,
    /// Number of failed cells: a certificate may truthfully say that something differs.
    pub failed: u64,
}

/// Checks the bytes of a certificate. `trusted`, when given, must be the key that signed it. `file` is only named in errors.
pub fn verify(file: &Path, bytes: &[u8], trusted: Option<&str>) -> Result<Checked> {
    check(bytes, trusted).map_err(|reason| HarnessError::Certificate { file: file.into(), reason })
}

fn check(bytes: &[u8], trusted: Option<&str>) -> std::result::Result<Checked, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
    if canonical(&value)
        .map(|mut text| {
            text.push('\n');
            text
        })
        .as_deref()
        != Ok(text)
    {
        return Err("it is not canonically written, so it was changed after it was made".into());
    }
    let Value::Object(document) = value else { return Err("it is not an object".into()) };
    if document.get("schema").and_then(Value::as_str) != Some(SCHEMA) {
        return Err(format!("its schema is not {SCHEMA}"));
    }
    let mut content = document.clone();
    let digest = content.remove("content_sha256").ok_or("it has no content_sha256")?;
    let signature = content.remove("signature").ok_or("it has no signature field")?;
    let computed = sha256_hex(canonical(&Value::Object(content))?.as_bytes());
    if digest.as_str() != Some(&computed) {
        return Err("its content does not have the digest that it states".into());
    }
    let signed_by = check_signature(&signature, &computed)?;
    if let Some(trusted) = trusted {
        match &signed_by {
            None => return Err("it is not signed, and a key was given".into()),
            Some(key) if key != trusted => return Err(format!("it is signed by another key, {key}")),
            Some(_) => {}
        }
    }
    let (cells, failed) = check_cells(&document)?;
    Ok(Checked { document, signed_by, cells, failed })
}

/// Checks the signature, if there is one; returns the key.
fn check_signature(signature: &Value, digest: &str) -> std::result::Result<Option<String>, String> {
    if signature.is_null() {
        return Ok(None);
    }
    let fields =
        signature.as_object().filter(|fields| fields.len() == 3).ok_or("its signature is malformed")?;
    let text =
        |key: &str| fields.get(key).and_then(Value::as_str).ok_or(format!("its signature has no `{key}`"));
    if text("algorithm")? != "ed25519" {
        return Err("its signature is not ed25519".into());
    }
    sign::check(text("public_key")?, digest, text("value")?)?;
    Ok(Some(text("public_key")?.to_owned()))
}

/// A number of an object.
fn number(object: &Value, key: &str) -> std::result::Result<u64, String> {
    object.get(key).and_then(Value::as_u64).ok_or(format!("`{key}` is missing or not a number"))
}

/// The verdict of this name.
fn verdict(name: &Value) -> Option<Verdict> {
    Verdict::ALL.into_iter().find(|verdict| Some(verdict.name()) == name.as_str())
}

/// Recounts the cells and re-derives each outcome from verdict, requirement, counts and witnesses.
fn check_cells(document: &Map<String, Value>) -> std::result::Result<(u64, u64), String> {
    let cells = document.get("cells").and_then(Value::as_array).ok_or("it has no cells")?;
    let summary = document.get("summary").ok_or("it has no summary")?;
    if cells.is_empty() {
        return Err("it has no cell, so it states nothing".into());
    }
    let mut seen = BTreeSet::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for cell in cells {
        let id = cell.get("id").and_then(Value::as_str).ok_or("a cell has no id")?;
        if !seen.insert(id) {
            return Err(format!("cell `{id}` appears twice"));
        }
        let outcome = check_cell(cell).map_err(|why| format!("cell `{id}`: {why}"))?;
        *counts.entry(outcome).or_default() += 1;
    }
    let total = cells.len() as u64;
    for (key, count) in [("cells", total)].into_iter().chain(
        ["passed", "failed", "quarantined"]
            .map(|outcome| (outcome, counts.get(outcome).copied().unwrap_or(0))),
    ) {
        if number(summary, key)? != count {
            return Err(format!("its summary says {} {key}, its cells say {count}", number(summary, key)?));
        }
    }
    Ok((total, counts.get("failed").copied().unwrap_or(0)))
}

/// Re-derives one cell's outcome; returns it.
fn check_cell(cell: &Value) -> std::result::Result<&'static str, String> {
    let get = |key: &str| cell.get(key).ok_or(format!("it has no `{key}`"));
    let found = verdict(get("verdict")?).ok_or("its verdict is none")?;
    let required = verdict(get("required")?).ok_or("its requirement is none")?;
    let golden = get("golden")?;
    let golden_ok = golden.is_null()
        || verdict(golden).is_some_and(|golden| golden >= Verdict::IdenticalTokens || found == golden);
    let compared = get("compared")?;
    let witnesses: Witnesses =
        serde_json::from_value(get("witnesses")?.clone()).map_err(|error| error.to_string())?;
    let demands: BTreeMap<String, Demand> =
        serde_json::from_value(get("demands")?.clone()).map_err(|error| error.to_string())?;
    let met = crate::compare::witness::unmet(&demands, &witnesses).is_empty();
    let why = get("why")?.as_str().ok_or("`why` is not text")?;
    let could_pass = required.may_be_required()
        && found >= required
        && golden_ok
        && met
        && number(compared, "tokens")? > 0;
    match get("outcome")?.as_str() {
        Some("passed") if !could_pass => Err("it says that it passed, but its own figures deny it".into()),
        Some("passed") if !why.is_empty() => Err("it says that it passed, and why it did not".into()),
        Some("passed") => Ok("passed"),
        Some("failed" | "quarantined") if why.is_empty() => {
            Err("it did not pass and does not say why".into())
        }
        Some("failed") => Ok("failed"),
        Some("quarantined") if get("quarantine")?.is_null() => {
            Err("it is quarantined without an entry".into())
        }
        Some("quarantined") => Ok("quarantined"),
        _ => Err("its outcome is none".into()),
    }
}
