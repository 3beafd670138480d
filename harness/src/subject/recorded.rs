//! A recorded subject: answers read from a file. It can be compared, not asked again.

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::error::{HarnessError, Result};
use crate::golden::GoldenCase;
use crate::subject::{AnswerFile, Answered, Ask, Info, Subject};
use std::path::Path;

/// Answers from a file, as a subject.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    file: AnswerFile,
    witnesses: Witnesses,
}

impl Recorded {
    /// Wraps answers; `witnesses` are what the recording claims about itself.
    pub fn new(file: AnswerFile, witnesses: Witnesses) -> Self {
        Self { file, witnesses }
    }

    /// Reads an answers file, a golden, or a Megatron `golden_values` file.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).map_err(|error| HarnessError::file(file, error))?;
        if super::megatron_file::looks_like(&bytes) {
            let mut answers = super::megatron_file::LegacyFile::parse(file, &bytes)?.as_answers();
            if let Some(sidecar) = super::sidecar::Sidecar::beside(file)? {
                sidecar.dress(&mut answers);
            }
            return Ok(Self::new(answers, Witnesses::new()));
        }
        Ok(Self::new(AnswerFile::parse(file, &bytes)?, Witnesses::new()))
    }

    /// The answers.
    pub fn file(&self) -> &AnswerFile {
        &self.file
    }
}

impl Subject for Recorded {
    fn info(&self) -> Info {
        let mut info = self.file.subject.clone();
        info.cannot.push("it is a recording: it cannot be teacher-forced or asked again".into());
        info
    }

    fn answer(&mut self, ask: &Ask<'_>) -> Result<Answered> {
        let named = |id: &str| ask.suite.case(id).is_some();
        let answers = self.file.answers.iter().filter(|answer| named(&answer.case)).cloned().collect();
        Ok(Answered { answers, witnesses: self.witnesses.clone() })
    }

    fn force(&mut self, _case: &GoldenCase) -> std::result::Result<Forced, String> {
        Err("a recording cannot be teacher-forced".into())
    }
}
