//! TLS and HTTP clients: whom to trust, what to show, and which of two clients to use.
//!
//! Every client speaks HTTP/1.1. With HTTP/2 all blobs of a host would share one connection and its flow-control
//! window: layers that wait for the disk would stop those that do not, and each other for good when the window is
//! full. Separate connections are also faster through most proxies.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts_toml::ClientPair;

/// Sent with every request.
const USER_AGENT: &str = concat!("knarr/", env!("CARGO_PKG_VERSION"));
/// Idle connections kept for the next blob or pull.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// How long an idle connection is kept: over the pauses of one pull, not between pulls.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Certificate files are small; a device or a log named by mistake is not read to its end.
const PEM_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Names the system's bundle of authorities instead of the places below.
const BUNDLE_VARIABLE: &str = "SSL_CERT_FILE";
/// Where distributions keep their bundle: Debian, Red Hat, SUSE, and others after them.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What is particular to one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TlsSettings {
    /// Trusted beside the system's authorities.
    pub ca: Vec<PathBuf>,
    /// Shown when the host asks.
    pub client: Vec<ClientPair>,
    /// Takes any certificate.
    pub skip_verify: bool,
}

/// Two clients with the same TLS: loopback is never reached through a proxy, whatever the environment says.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    proxied: reqwest::Client,
    direct: reqwest::Client,
}

impl Clients {
    /// Reads the certificates and makes the clients. Blocks on files.
    pub fn new(settings: &TlsSettings, connect_timeout: Duration) -> Result<Self, String> {
        let config = client_config(settings)?;
        let build = |builder: reqwest::ClientBuilder| {
            builder
                .tls_backend_preconfigured(config.clone())
                .user_agent(USER_AGENT)
                .http1_only()
                // Redirects are followed by hand: what is shown to the registry must not reach another host.
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(connect_timeout)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .build()
                .map_err(|error| format!("HTTP client: {error}"))
        };
        Ok(Self { proxied: build(reqwest::Client::builder())?, direct: build(reqwest::Client::builder().no_proxy())? })
    }

    /// The client that goes to `url`.
    pub fn for_url(&self, url: &Url) -> &reqwest::Client {
        if url.host_str().is_some_and(is_loopback) { &self.direct } else { &self.proxied }
    }
}

/// Whether a host, without port, is this machine itself.
pub(super) fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The system's bundle of authorities, if there is one.
pub(super) fn system_bundle() -> Option<PathBuf> {
    match std::env::var_os(BUNDLE_VARIABLE) {
        Some(path) if !path.is_empty() => Some(path.into()),
        _ => BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()),
    }
}

fn client_config(settings: &TlsSettings) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?;
    let builder = if settings.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider.clone())))
    } else {
        builder.with_root_certificates(roots(&settings.ca)?)
    };
    let mut config = if settings.client.is_empty() {
        builder.with_no_client_auth()
    } else {
        let keys = settings.client.iter().map(|pair| certified_key(pair, &provider)).collect::<Result<_, _>>()?;
        builder.with_client_cert_resolver(Arc::new(ClientKeys(keys)))
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(extra: &[PathBuf]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(bundle) = system_bundle() {
        // A bundle may hold certificates too old to be understood; the others still count.
        let (_added, ignored) = roots.add_parsable_certificates(certificates(&bundle)?);
        if ignored > 0 {
            tracing::debug!(bundle = %bundle.display(), ignored, "some authorities of the system were not understood");
        }
    }
    for path in extra {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_limited(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| format!("{}: {error}", path.display()))?;
    if certificates.is_empty() { Err(format!("{}: holds no certificate", path.display())) } else { Ok(certificates) }
}

fn certified_key(pair: &ClientPair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let key_path = pair.key.as_ref().unwrap_or(&pair.certificate);
    let chain = certificates(&pair.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read_limited(key_path)?)
        .map_err(|error| format!("{}: private key: {error}", key_path.display()))?;
    CertifiedKey::from_der(chain, key, provider)
        .map(Arc::new)
        .map_err(|error| format!("{} with {}: {error}", pair.certificate.display(), key_path.display()))
}

fn read_limited(path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read as _;
    let read = || {
        let mut content = Vec::new();
        std::fs::File::open(path)?.take(PEM_BYTES_MAX).read_to_end(&mut content)?;
        Ok(content)
    };
    read().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
}

/// Shows the first certificate whose key can sign what the host accepts.
#[derive(Debug)]
struct ClientKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientKeys {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.iter().find(|key| key.key.choose_scheme(schemes).is_some()).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// For hosts whose certificate the administrator chose not to check; signatures are still checked, because an error
/// there is a broken peer.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in ["localhost", "127.0.0.1", "127.8.9.1", "[::1]", "::1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1", "[::2]", "[2001:db8::1]", "127.0.0.1.example", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_file_without_a_certificate_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("empty.crt");
        std::fs::write(&path, "no certificate").expect("writing");
        for ca in [path.clone(), directory.path().join("missing.crt")] {
            let settings = TlsSettings { ca: vec![ca.clone()], ..TlsSettings::default() };
            let error = Clients::new(&settings, Duration::from_secs(1)).expect_err("no certificate");
            assert!(error.contains(&ca.display().to_string()), "{error}");
        }
        let pair = ClientPair { certificate: path.clone(), key: None };
        let settings = TlsSettings { client: vec![pair], ..TlsSettings::default() };
        assert!(Clients::new(&settings, Duration::from_secs(1)).is_err());
    }
}
