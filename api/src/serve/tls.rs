//! TLS with rustls and ring: certificate chain and key in PEM files.

use super::config::{ServeConfig, refuse};
use crate::error::Result;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// What accepts TLS connections, if certificates are configured.
///
/// # Errors
/// One file without the other; a file that cannot be read, or holds no certificate or key; a key of another certificate.
pub(crate) fn acceptor(config: &ServeConfig) -> Result<Option<TlsAcceptor>> {
    let (certificate, key) = match (&config.tls_certificate, &config.tls_key) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) => return Err(refuse("tls_key", "is missing", "tls_certificate needs its key")),
        (None, Some(_)) => {
            return Err(refuse("tls_certificate", "is missing", "tls_key needs its certificate"));
        }
    };
    let bad = |field: &str, path: &std::path::Path, why: String| {
        refuse(field, format!("{}: {why}", path.display()), "name a PEM file")
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(|chain| chain.collect::<std::result::Result<Vec<_>, _>>())
        .map_err(|e| bad("tls_certificate", certificate, e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("tls_key", key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|e| bad("tls_certificate", certificate, e.to_string()))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}
