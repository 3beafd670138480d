//! Faults in files: certificates and goldens that were tampered with must be refused.

use crate::certificate::statement::{content, seal};
use crate::certificate::{Keys, verify};
use crate::error::Result;
use crate::golden::Golden;
use crate::selftest::Trial;
use crate::selftest::stage;
use crate::subject::scripted::ScriptedFleet;
use serde_json::Value;
use std::path::Path;

/// A trial that expects `result` to be refused with a reason that contains `because`.
fn refused<T>(name: &'static str, about: &'static str, because: &str, result: Result<T>) -> Trial {
    let found = match result {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string(),
    };
    let caught = found.contains(because);
    Trial { name, about, expected: format!("refused: {because}"), found, caught }
}

/// Certificates.
#[expect(clippy::too_many_lines, reason = "a table: one entry for each planted fault")]
fn certificates() -> Result<Vec<Trial>> {
    let record = stage::play(&ScriptedFleet::honest(), &stage::inputs())?;
    let (keys, stranger) = (Keys::generate(), Keys::generate());
    let honest = content(&record)?;
    let sealed = seal(honest.clone(), Some(&keys))?;
    let file = Path::new("certificate.json");
    let check = |text: &str, key: Option<&str>| verify(file, text.as_bytes(), key);
    let mut trials = Vec::new();
    let accepted = check(&sealed, Some(&keys.public())).is_ok();
    let found = if accepted { "accepted" } else { "refused" }.to_owned();
    let about = "control: an honest certificate holds";
    trials.push(Trial {
        name: "honest-certificate",
        about,
        expected: "accepted".into(),
        found,
        caught: accepted,
    });

    // Every byte, two flips each: the lowest bit, and the one that turns lower case to upper case.
    let mut survived = 0;
    for at in 0..sealed.len() {
        for mask in [0x01, 0x20] {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] ^= mask;
            survived += usize::from(verify(file, &bytes, None).is_ok());
        }
    }
    let about = "any single byte of a certificate flipped";
    let (expected, found) = ("0 accepted".to_owned(), format!("{survived} accepted"));
    trials.push(Trial { name: "flipped-byte", about, expected, found, caught: survived == 0 });

    let forge = |change: fn(&mut Value)| {
        let mut content = honest.clone();
        change(&mut content);
        seal(content, None)
    };
    let vacuous = forge(|content| content["cells"][0]["witnesses"] = serde_json::json!({}))?;
    trials.push(refused(
        "forged-witness",
        "witnesses taken out, digest made anew",
        "figures deny it",
        check(&vacuous, None),
    ));
    let better = forge(|content| content["cells"][0]["verdict"] = "diverged".into())?;
    trials.push(refused(
        "forged-verdict",
        "a failure that says it passed, digest made anew",
        "figures deny it",
        check(&better, None),
    ));
    let fewer = forge(|content| content["summary"]["cells"] = 1.into())?;
    trials.push(refused(
        "forged-summary",
        "a summary that does not fit the cells",
        "its cells say 2",
        check(&fewer, None),
    ));
    let none = forge(|content| content["cells"] = serde_json::json!([]))?;
    trials.push(refused(
        "empty-certificate",
        "a certificate of nothing",
        "states nothing",
        check(&none, None),
    ));
    let unsigned = seal(honest.clone(), None)?;
    trials.push(refused(
        "unsigned",
        "no signature where a key is trusted",
        "not signed",
        check(&unsigned, Some(&keys.public())),
    ));
    let other = seal(honest, Some(&stranger))?;
    trials.push(refused(
        "other-key",
        "signed by a stranger",
        "another key",
        check(&other, Some(&keys.public())),
    ));
    Ok(trials)
}

/// Goldens.
fn goldens() -> Vec<Trial> {
    let spoiled = |change: fn(&mut Golden)| {
        let mut golden = stage::golden();
        change(&mut golden);
        let bytes = serde_json::to_vec(&golden).unwrap_or_default();
        Golden::parse(Path::new("golden.json"), &bytes)
    };
    let mut nameless = serde_json::to_value(stage::golden()).unwrap_or_default();
    if let Some(fields) = nameless.as_object_mut() {
        fields.remove("provenance");
    }
    let nameless = Golden::parse(Path::new("golden.json"), nameless.to_string().as_bytes());
    vec![
        refused(
            "golden-without-cases",
            "a golden that asks nothing",
            "no case",
            spoiled(|g| g.cases.clear()),
        ),
        refused("golden-without-provenance", "a golden from nowhere", "provenance", nameless),
        refused(
            "golden-case-twice",
            "a golden with a case twice",
            "twice",
            spoiled(|g| g.cases[1].id = "alpha".into()),
        ),
        refused(
            "golden-lost-logprob",
            "a golden with too few numbers",
            "entries for 8 tokens",
            spoiled(|g| {
                g.cases[0].logprobs.pop();
            }),
        ),
        refused(
            "golden-not-greedy",
            "a golden whose token was not among the best",
            "not among the two best",
            spoiled(|g| g.cases[0].top2[3] = [7, 8]),
        ),
    ]
}

/// Plants every fault of this file.
pub fn run() -> Result<Vec<Trial>> {
    let mut trials = certificates()?;
    trials.extend(goldens());
    Ok(trials)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_fault_is_caught() {
        let trials = crate::selftest::run().unwrap();
        assert!(trials.len() >= 40, "{} trials", trials.len());
        for trial in trials {
            assert!(
                trial.caught,
                "{} ({}): expected {}, found {}",
                trial.name, trial.about, trial.expected, trial.found
            );
        }
    }
}
