//! Streams over https: whom `--tls-ca` trusts, whose name is checked, what is shown of ourselves.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::Fixture;
use crate::lists::node;

/// A server with the certificate of host node-1, which asks its clients for theirs.
pub fn server_config() -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(AUTHORITY.as_bytes()).unwrap()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(SERVER_CERTIFICATE.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_client_cert_verifier(clients).with_single_cert(chain, key).unwrap())
}

struct Files {
    node: Fixture,
    ca: String,
    certificate: String,
    key: String,
}

fn files() -> Files {
    let node = node();
    node.tables.lock().unwrap().over_tls = true;
    let (ca, certificate) = (node.file("ca.pem", AUTHORITY), node.file("client.pem", CLIENT_CERTIFICATE));
    let key = node.file("client.key", CLIENT_KEY);
    Files { node, ca, certificate, key }
}

#[test]
fn streams_over_https_come_through() {
    let Files { node, ca, certificate, key } = files();
    for transport in ["spdy", "websocket"] {
        let options =
            ["exec", "--transport", transport, "--tls-ca", &ca, "--tls-cert", &certificate, "--tls-key", &key];
        let outcome =
            node.knarr(&[&options[..], &["--tls-server-name", "node-1", "log", "both", "out", "err"]].concat());
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.code), ("out", "err", 0), "{transport}");
    }
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let Files { node, ca, certificate, key } = files();
    let options = ["exec", "--tls-ca", &ca, "--tls-cert", &certificate, "--tls-key", &key];
    // The URL's host is 127.0.0.1, and the certificate is for node-1.
    for name in [&[][..], &["--tls-server-name", "node-2"]] {
        let outcome = node.knarr(&[&options[..], name, &["log", "both", "out", "err"]].concat());
        assert_eq!((outcome.stdout.as_str(), outcome.code), ("", 125), "{outcome:?}");
        assert!(outcome.stderr.contains("certificate"), "{outcome:?}");
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let Files { node, certificate, key, .. } = files();
    // A server's certificate is no authority of its own.
    let ca = node.file("other.pem", CLIENT_CERTIFICATE);
    let options = ["exec", "--tls-ca", &ca, "--tls-cert", &certificate, "--tls-key", &key];
    let outcome = node.knarr(&[&options[..], &["--tls-server-name", "node-1", "log", "both", "out", "err"]].concat());
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", 125), "{outcome:?}");
    assert!(outcome.stderr.contains("certificate"), "{outcome:?}");
}

#[test]
fn a_client_without_a_certificate_is_refused_where_one_is_asked_for() {
    let Files { node, ca, .. } = files();
    let outcome = node.knarr(&["exec", "--tls-ca", &ca, "--tls-server-name", "node-1", "log", "both", "out", "err"]);
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("", 125), "{outcome:?}");
    assert!(outcome.stderr.starts_with("error: cannot run \"both\" in container log: "), "{outcome:?}");
}

// `openssl req` and `openssl x509` with EC keys, for a hundred years.

const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiDCCAS+gAwIBAgIUFxdnH0HipeC1f97wViL8B1H5phUwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIxMTY1NDAxWhgPMjEy
NjEwMjgxNjU0MDFaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAE3phvlHY1HKmWvmGDNQSQqET1P0dJ4NXkZ8Ekb3SG
WaqEdP28J9jmK3F9EeyTeG2AMiRZgsx2A3BrMJarDd7KNaNTMFEwHQYDVR0OBBYE
FBcE1GAj7nliNEZRBmmULr8GvE6SMB8GA1UdIwQYMBaAFBcE1GAj7nliNEZRBmmU
Lr8GvE6SMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDRwAwRAIgb5iaVeVD
m/6dLLd8ZVaPpwUeC+yJz1KHJ8z8P8ZLq5QCIFXqTVgI+/ILuLBZUNHqK+6TnQLM
iXDYxO9s6y6b1Okb
-----END CERTIFICATE-----
";

const SERVER_CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBmDCCAT6gAwIBAgIUdXVeDKnKYstmWCfPd6i0RJd7XhswCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIxMTY1NDAxWhgPMjEy
NjEwMjgxNjU0MDFaMBExDzANBgNVBAMMBm5vZGUtMTBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABEvdEcHdeOyp3SM6+cCKY/sMH4B8E7yhomc04cFO5KGkA/mW+BQ2
8XpBwGl0vvJmTcWv9CpsZLZsu4gSo/J00KCjajBoMBEGA1UdEQQKMAiCBm5vZGUt
MTATBgNVHSUEDDAKBggrBgEFBQcDATAdBgNVHQ4EFgQUsTjcm5SzNHv98CmlhwwV
F32u+0QwHwYDVR0jBBgwFoAUFwTUYCPueWI0RlEGaZQuvwa8TpIwCgYIKoZIzj0E
AwIDSAAwRQIgR51yam0Q2/EBiJdlEdIEwy5OZbu9T1s35rXXLxJs40cCIQCHDGt3
SMWY4aYKWIYY5GXYwPGRJugPm52fYkEyp3TZOw==
-----END CERTIFICATE-----
";

const SERVER_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg710MOK53fyYZKW+X
3V9j2YHglFmT29QIId8PmExllAGhRANCAARL3RHB3Xjsqd0jOvnAimP7DB+AfBO8
oaJnNOHBTuShpAP5lvgUNvF6QcBpdL7yZk3Fr/QqbGS2bLuIEqPydNCg
-----END PRIVATE KEY-----
";

const CLIENT_CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBhTCCASugAwIBAgIUdXVeDKnKYstmWCfPd6i0RJd7XhwwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIxMTY1NDAxWhgPMjEy
NjEwMjgxNjU0MDFaMBExDzANBgNVBAMMBmNsaWVudDBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABM+dnfTW5iR3eCyGY/R7aRFZrAx40SdH/TFdfm3aaIdwmWYHxiRG
pJ0D9/ltC5AO4dYx5NWiUUVHeF0owidpYiGjVzBVMBMGA1UdJQQMMAoGCCsGAQUF
BwMCMB0GA1UdDgQWBBQePzYtoeAJZakuRS/pJjQGu1bLrTAfBgNVHSMEGDAWgBQX
BNRgI+55YjRGUQZplC6/BrxOkjAKBggqhkjOPQQDAgNIADBFAiAlfQrxe1bHKt4N
565NCC5kSwMyoOrN8kSXo0Ij6T526QIhAPuQdGZkP1t5azutlaKDggw3sBYQcy+t
AYwEavkz6OOC
-----END CERTIFICATE-----
";

const CLIENT_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgyi0CdlfncGm1eisY
zZlX522IsFN5pttww5KSCklJM3qhRANCAATPnZ301uYkd3gshmP0e2kRWawMeNEn
R/0xXX5t2miHcJlmB8YkRqSdA/f5bQuQDuHWMeTVolFFR3hdKMInaWIh
-----END PRIVATE KEY-----
";
