//! `parity certify`, `verify` and `keygen`.

use crate::certificate::{self, Checked, Keys, public_key_of};
use crate::cli::args::{CertifyArgs, KeygenArgs, Output, Parity, Select, VerifyArgs};
use crate::cli::list::{fleet, select, store};
use crate::cli::run::{conclude, execute};
use crate::error::{Exit, HarnessError, Result};
use crate::subject::own::OwnFleet;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `parity certify`.
pub fn certify(parity: &Parity, args: &CertifyArgs) -> Result<Exit> {
    // The key first: a mistyped path must not cost a run.
    let keys = args.sign.as_deref().map(Keys::read).transpose()?;
    let store = store(parity)?;
    let selection = select(&store, &args.select, "certify.yaml")?;
    let record = execute(&store, &selection, &fleet(&args.select), &args.output)?;
    let file = args
        .certificate
        .clone()
        .unwrap_or_else(|| args.output.report.clone().unwrap_or_default().join("parity-certificate.json"));
    let text = certificate::certify(&record, keys.as_ref())?;
    std::fs::write(&file, &text).map_err(|error| HarnessError::file(&file, error))?;
    let exit = conclude(&record, &args.output)?;
    let signed = keys.map_or_else(|| "not signed".to_owned(), |keys| format!("signed by {}", keys.public()));
    eprintln!("certificate: {} ({signed})", file.display());
    Ok(exit)
}

/// `parity keygen`.
pub fn keygen(args: &KeygenArgs) -> Result<Exit> {
    let keys = Keys::generate();
    keys.write(&args.file)?;
    println!("{}", keys.public());
    eprintln!("secret key: {}; the line above is the public key", args.file.display());
    Ok(Exit::Passed)
}

/// `parity verify`. A certificate that truthfully says that cells failed holds, but does not exit with 0.
pub fn verify(parity: &Parity, args: &VerifyArgs) -> Result<Exit> {
    let bytes =
        std::fs::read(&args.certificate).map_err(|error| HarnessError::file(&args.certificate, error))?;
    let key = args.key.as_deref().map(public_key_of).transpose()?;
    let checked = certificate::verify(&args.certificate, &bytes, key.as_deref())?;
    let signed = checked.signed_by.as_ref().map_or("not signed".to_owned(), |key| format!("signed by {key}"));
    let trust = if key.is_some() { ", the key that was given" } else { "" };
    println!("the certificate holds: {} cells, {} failed; {signed}{trust}", checked.cells, checked.failed);
    if checked.signed_by.is_none() {
        println!("note: without a signature anybody could have made it; --rerun executes cells again");
    }
    if let Some(count) = args.rerun {
        rerun(parity, args, &checked, count)?;
    }
    Ok(if checked.failed == 0 { Exit::Passed } else { Exit::Failed })
}

/// Re-executes a random sample of the certificate's cells; every digest of answers must come out again.
fn rerun(parity: &Parity, args: &VerifyArgs, checked: &Checked, count: usize) -> Result<()> {
    let refuse =
        |reason: String| HarnessError::Certificate { file: PathBuf::from(&args.certificate), reason };
    let store = store(parity)?;
    let everything = Select { matrix: args.matrix.clone(), ..Select::default() };
    let mut selection = select(&store, &everything, "certify.yaml")?;
    let stated = checked.document["matrix"]["sha256"].as_str().unwrap_or_default();
    if stated != selection.matrix.sha256 {
        return Err(refuse(format!(
            "it was made with another matrix (digest {stated}); give it with --matrix"
        )));
    }
    let mut digests: BTreeMap<&str, &str> = BTreeMap::new();
    for cell in checked.document["cells"].as_array().into_iter().flatten() {
        let text = |key: &str| cell[key].as_str().unwrap_or_default();
        if !text("answers_sha256").is_empty() {
            digests.insert(text("id"), text("answers_sha256"));
        }
    }
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    let mut ids: Vec<&str> = digests.keys().copied().collect();
    ids.shuffle(&mut StdRng::seed_from_u64(seed));
    ids.truncate(count.max(1));
    selection.cells.retain(|cell| ids.contains(&cell.id.as_str()));
    if selection.cells.len() != ids.len() || ids.is_empty() {
        return Err(refuse(format!(
            "the matrix has {} of the {} chosen cells",
            selection.cells.len(),
            ids.len()
        )));
    }
    eprintln!("re-executing {} cells, seed {seed}", ids.len());
    let record = execute(&store, &selection, &OwnFleet::default(), &Output::default())?;
    for result in &record.cells {
        let id = result.cell.id.as_str();
        if digests.get(id) != Some(&result.answers_sha256.as_str()) {
            return Err(refuse(format!("cell `{id}` gives other answers than the certificate states")));
        }
    }
    println!("{} cells re-executed: every digest of answers came out again", record.cells.len());
    Ok(())
}
