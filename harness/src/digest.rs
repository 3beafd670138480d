//! Digests: of files, of text, and of the exact bits of answers.

use crate::error::{HarnessError, Result};
use crate::subject::Answer;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::path::Path;

/// Lower-case hexadecimal of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// Reads lower-case hexadecimal; anything else, upper case included, is `None`: one value has one spelling.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| if let [hi, lo] = *pair { Some(digit(hi)? << 4 | digit(lo)?) } else { None }).collect()
}

/// SHA-256 of `bytes`, in hexadecimal.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, in hexadecimal, read in pieces.
pub fn sha256_file(file: &Path) -> Result<String> {
    let mut reader = std::fs::File::open(file).map_err(|error| HarnessError::file(file, error))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = reader.read(&mut buffer).map_err(|error| HarnessError::file(file, error))?;
        if read == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..read]);
    }
}

/// SHA-256 over the exact content of answers: case, prompt ids, tokens, log-probability bits, finish reason.
///
/// Order of the answers does not matter (they are taken by case name), text does not enter (it is a function of the
/// tokens), and every variable-length part is preceded by its length, so no two contents share an encoding.
pub fn answers_sha256(answers: &[Answer]) -> String {
    let mut sorted: Vec<&Answer> = answers.iter().collect();
    sorted.sort_by(|a, b| a.case.cmp(&b.case));
    let mut digest = Sha256::new();
    let number = |n: usize, digest: &mut Sha256| digest.update((n as u64).to_le_bytes());
    for answer in sorted {
        number(answer.case.len(), &mut digest);
        digest.update(answer.case.as_bytes());
        for ids in [&answer.prompt_ids, &answer.tokens] {
            match ids {
                None => digest.update([0]),
                Some(ids) => {
                    digest.update([1]);
                    number(ids.len(), &mut digest);
                    ids.iter().for_each(|id| digest.update(id.to_le_bytes()));
                }
            }
        }
        match &answer.logprobs {
            None => digest.update([0]),
            Some(values) => {
                digest.update([1]);
                number(values.len(), &mut digest);
                values.iter().for_each(|value| digest.update(value.to_bits().to_le_bytes()));
            }
        }
        digest.update([answer.finish.map_or(255, |finish| finish as u8)]);
    }
    hex(&digest.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_has_one_spelling() {
        assert_eq!(hex(&[0, 15, 255]), "000fff");
        assert_eq!(unhex("000fff"), Some(vec![0, 15, 255]));
        assert_eq!(unhex("000fFf"), None);
        assert_eq!(unhex("000"), None);
    }

    #[test]
    fn a_known_digest() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn bits_count_and_order_of_cases_does_not() {
        let answer = |case: &str, logprob: f32| Answer {
            tokens: Some(vec![1]),
            logprobs: Some(vec![logprob]),
            ..Answer::empty(case)
        };
        let forward = answers_sha256(&[answer("a", -0.5), answer("b", -0.0)]);
        assert_eq!(forward, answers_sha256(&[answer("b", -0.0), answer("a", -0.5)]));
        assert_ne!(forward, answers_sha256(&[answer("a", -0.5), answer("b", 0.0)]));
        assert_ne!(forward, answers_sha256(&[answer("a", -0.5)]));
    }
}
