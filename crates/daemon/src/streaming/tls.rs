//! The streaming server's TLS: its certificate, and whose certificates it asks of clients.

use crate::config::Streaming;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a certificate file; a device or a log named by mistake is not read to its end.
const PEM_BYTES_MAX: u64 = 16 << 20;

/// What the configuration asks for; `None` is plain HTTP. An error names the key. Blocks on files.
pub(super) fn server_config(streaming: &Streaming) -> Result<Option<Arc<ServerConfig>>, String> {
    if streaming.tls_cert.as_os_str().is_empty() {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("streaming.tls_cert", &streaming.tls_cert)?;
    let key = private_key("streaming.tls_key", &streaming.tls_key)?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let builder = if streaming.tls_client_ca.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let named = |error: &dyn std::fmt::Display| {
            format!("streaming.tls_client_ca: {}: {error}", streaming.tls_client_ca.display())
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("streaming.tls_client_ca", &streaming.tls_client_ca)? {
            roots.add(certificate).map_err(|error| named(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build().map_err(|error| named(&error))?)
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        let (cert, key) = (streaming.tls_cert.display(), streaming.tls_key.display());
        format!("streaming.tls_cert, streaming.tls_key: {cert} with {key}: {error}")
    })?;
    // Both protocols are upgrades of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(config)))
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_limited(key, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| format!("{key}: {}: {error}", path.display()))?;
    if certificates.is_empty() {
        Err(format!("{key}: {} holds no certificate", path.display()))
    } else {
        Ok(certificates)
    }
}

fn private_key(key: &str, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read_limited(key, path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| format!("{key}: {}: {error}", path.display()))
}

fn read_limited(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(PEM_BYTES_MAX).read_to_end(&mut content)?;
        Ok(content)
    };
    read().map_err(|error: std::io::Error| format!("{key}: {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_certificate_there_is_no_tls() {
        assert!(server_config(&Streaming::default()).unwrap().is_none());
    }

    #[test]
    fn a_file_that_is_missing_or_wrong_is_named_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let streaming = Streaming { tls_cert: cert.clone(), tls_key: key, ..Streaming::default() };
        let error = server_config(&streaming).unwrap_err();
        assert!(error.starts_with("streaming.tls_cert: ") && error.contains("cert.pem"), "{error}");
        std::fs::write(cert, "no certificate").unwrap();
        let error = server_config(&streaming).unwrap_err();
        assert!(error.contains("holds no certificate"), "{error}");
    }
}
