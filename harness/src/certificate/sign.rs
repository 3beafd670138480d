//! Signatures: ed25519 over the digest of the content. Keys are 64 hexadecimal digits in a file.

use crate::digest::{hex, unhex};
use crate::error::{HarnessError, Result};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::path::Path;

/// Put before the digest, so that a signature made for something else never fits.
const DOMAIN: &str = "parity-certificate/1\n";

/// A key pair that signs certificates.
#[derive(Debug)]
pub struct Keys {
    signing: SigningKey,
}

impl Keys {
    /// Draws a new key pair from the system's random source.
    pub fn generate() -> Self {
        Self { signing: SigningKey::from_bytes(&rand::random()) }
    }

    /// Reads a secret key file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|error| HarnessError::file(file, error))?;
        let bytes = unhex(text.trim()).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let wrong =
            || HarnessError::file(file, "a secret key is 64 lower-case hexadecimal digits (`parity keygen`)");
        Ok(Self { signing: SigningKey::from_bytes(&bytes.ok_or_else(wrong)?) })
    }

    /// Writes the secret key to `file`, readable by its owner alone; refuses to overwrite one.
    pub fn write(&self, file: &Path) -> Result<()> {
        use std::io::Write;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written =
            options.open(file).and_then(|mut out| writeln!(out, "{}", hex(self.signing.as_bytes())));
        written.map_err(|error| HarnessError::file(file, error))
    }

    /// The public key, in hexadecimal.
    pub fn public(&self) -> String {
        hex(self.signing.verifying_key().as_bytes())
    }

    /// Signs the digest of a content; returns the signature in hexadecimal.
    pub fn sign(&self, content_sha256: &str) -> String {
        hex(&self.signing.sign(format!("{DOMAIN}{content_sha256}").as_bytes()).to_bytes())
    }
}

/// The public key that a text (or the file that it names) holds.
pub fn public_key_of(text: &str) -> Result<String> {
    let content = if Path::new(text).is_file() {
        std::fs::read_to_string(text).map_err(|error| HarnessError::file(text, error))?
    } else {
        text.to_owned()
    };
    let key = content.trim().to_owned();
    if unhex(&key).is_some_and(|bytes| bytes.len() == 32) {
        return Ok(key);
    }
    Err(HarnessError::usage(
        format!("`{text}` is not a public key"),
        "give 64 lower-case hexadecimal digits or a file that holds them; `parity keygen` prints them",
    ))
}

/// Checks a signature over the digest of a content.
pub fn check(public: &str, content_sha256: &str, signature: &str) -> std::result::Result<(), &'static str> {
    let key = unhex(public)
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .ok_or("the public key is malformed")?;
    let bytes = unhex(signature)
        .and_then(|bytes| <[u8; 64]>::try_from(bytes).ok())
        .ok_or("the signature is malformed")?;
    let key = VerifyingKey::from_bytes(&key).map_err(|_| "the public key is no point of the curve")?;
    // Strict: rejects weak keys and malleable signatures, so that one signature has one spelling.
    key.verify_strict(format!("{DOMAIN}{content_sha256}").as_bytes(), &Signature::from_bytes(&bytes))
        .map_err(|_| "the signature is not of this content and key")
}
