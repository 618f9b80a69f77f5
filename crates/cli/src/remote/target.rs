//! How to connect to the URL that a runtime gives for a stream: the transport and, for https, whom to trust.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use knarr_streaming::client::{Target, Transport};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::failure::Failure;

/// Certificates and keys are small; a device or a log named by mistake is not read to its end.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// The options that exec, attach and port-forward share; named as crictl names them.
#[derive(Debug, Args)]
#[command(next_help_heading = "Streams")]
pub struct StreamArgs {
    /// How the streams travel; where a runtime's WebSocket is older than v5, a command is not told the end of its input
    #[arg(long, value_enum, default_value = "spdy")]
    transport: TransportName,
    /// For a runtime whose streams are https: the authorities that may have signed its certificate
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The certificate to show to it
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of this certificate
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The name that its certificate must be for, where that is not the URL's host
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    tls_server_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TransportName {
    /// SPDY/3.1, which every runtime speaks
    Spdy,
    /// WebSocket, for runtimes that speak it
    Websocket,
}

impl StreamArgs {
    /// What can be wrong with the options, found before anything is asked of the runtime.
    pub fn prepare(&self) -> Result<Streams, Failure> {
        let transport = match self.transport {
            TransportName::Spdy => Transport::Spdy,
            TransportName::Websocket => Transport::WebSocket,
        };
        let tls = match &self.tls_ca {
            Some(ca) => Some(Arc::new(self.client_config(ca)?)),
            // Without an authority nothing can be checked, and a certificate is shown to nobody in particular.
            None if self.tls_cert.is_some() => {
                return Err(Failure::usage("--tls-cert is of no use without --tls-ca"));
            }
            None => None,
        };
        Ok(Streams { transport, tls })
    }

    fn client_config(&self, ca: &Path) -> Result<ClientConfig, Failure> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates("--tls-ca", ca)? {
            roots.add(certificate).map_err(|error| in_file("--tls-ca", ca, error))?;
        }
        let roots = Arc::new(roots);
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::new(format!("cannot set up TLS: {error}")))?;
        let builder = match &self.tls_server_name {
            None => builder.with_root_certificates(roots),
            Some(name) => {
                let name = ServerName::try_from(name.clone())
                    .map_err(|_| Failure::usage(format!("--tls-server-name: {name:?} is no host name or address")))?;
                let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| in_file("--tls-ca", ca, error))?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(ServerNamed { inner, name }))
            }
        };
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates("--tls-cert", certificate)?;
                let private = PrivateKeyDer::from_pem_slice(&read("--tls-key", key)?);
                let private = private.map_err(|error| in_file("--tls-key", key, error))?;
                builder.with_client_auth_cert(chain, private).map_err(|error| in_file("--tls-cert", certificate, error))
            }
            _ => Ok(builder.with_no_client_auth()),
        }
    }
}

fn in_file(option: &str, path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{option}: {}: {error}", path.display()))
}

fn read(option: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut content));
    read.map(|_| content).map_err(|error| in_file(option, path, error))
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = read(option, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| in_file(option, path, error))?;
    if certificates.is_empty() {
        return Err(in_file(option, path, "holds no certificate"));
    }
    Ok(certificates)
}

/// Checks everything as usual, but for a name that was given: a runtime on 127.0.0.1 often shows its node's certificate.
#[derive(Debug)]
struct ServerNamed {
    inner: Arc<WebPkiServerVerifier>,
    name: ServerName<'static>,
}

impl ServerCertVerifier for ServerNamed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _asked_for: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The options, checked.
#[derive(Debug, Clone)]
pub struct Streams {
    transport: Transport,
    tls: Option<Arc<ClientConfig>>,
}

impl Streams {
    /// Where to connect to for the URL of a runtime's answer.
    ///
    /// # Errors
    /// It is https and nobody said whom to trust, or it is no URL of a stream.
    pub fn target(&self, url: &str) -> Result<Target, Failure> {
        let tls = match url.split_once("://") {
            Some(("http", rest)) if !rest.is_empty() => None,
            Some(("https", rest)) if !rest.is_empty() => Some(self.tls.clone().ok_or_else(|| {
                Failure::new("the runtime's streams are https, and nothing says which authority to trust")
                    .with_hint("name the file of its certificate authority with --tls-ca")
            })?),
            _ => return Err(Failure::new(format!("the runtime gave {url:?} for the stream, which is no URL of one"))),
        };
        Ok(Target { url: url.to_owned(), transport: self.transport, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        streams: StreamArgs,
    }

    fn prepare(words: &[&str]) -> Result<Streams, String> {
        let line = Line::try_parse_from([&["x"], words].concat()).map_err(|error| error.to_string())?;
        line.streams.prepare().map_err(|failure| failure.to_string())
    }

    fn file(content: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pem");
        std::fs::write(&path, content).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn spdy_is_used_unless_asked_otherwise() {
        let target = |words: &[&str]| prepare(words).unwrap().target("http://127.0.0.1:1/exec/x").unwrap();
        assert_eq!(target(&[]).transport, Transport::Spdy);
        assert_eq!(target(&["--transport", "websocket"]).transport, Transport::WebSocket);
        assert_eq!(target(&[]).url, "http://127.0.0.1:1/exec/x");
        assert!(prepare(&["--transport", "pigeon"]).is_err());
    }

    #[test]
    fn what_is_no_url_of_a_stream_is_shown() {
        for bad in ["", "/exec/x", "ftp://x", "http://", "HTTP:x"] {
            let failure = prepare(&[]).unwrap().target(bad).unwrap_err();
            assert!(failure.to_string().contains(&format!("{bad:?}")), "{failure}");
        }
    }

    #[test]
    fn https_takes_an_authority() {
        let failure = prepare(&[]).unwrap().target("https://127.0.0.1:1/exec/x").unwrap_err();
        assert!(failure.hint().is_some_and(|hint| hint.contains("--tls-ca")), "{failure}");
        let (_dir, ca) = file(AUTHORITY);
        let streams = prepare(&["--tls-ca", &ca]).unwrap();
        assert!(streams.target("https://127.0.0.1:1/exec/x").unwrap().tls.is_some());
        assert!(streams.target("http://127.0.0.1:1/exec/x").unwrap().tls.is_none());
        assert!(prepare(&["--tls-ca", &ca, "--tls-server-name", "node-1"]).is_ok());
        let wrong = prepare(&["--tls-ca", &ca, "--tls-server-name", "no host"]).unwrap_err();
        assert!(wrong.starts_with("--tls-server-name: "), "{wrong}");
    }

    #[test]
    fn a_wrong_file_is_named_with_its_option() {
        let (_dir, text) = file("no certificate at all");
        assert_eq!(prepare(&["--tls-ca", &text]).unwrap_err(), format!("--tls-ca: {text}: holds no certificate"));
        let missing = prepare(&["--tls-ca", "/nowhere/ca.pem"]).unwrap_err();
        assert!(missing.starts_with("--tls-ca: /nowhere/ca.pem: No such file"), "{missing}");
        let (_dir, ca) = file(AUTHORITY);
        let no_key = prepare(&["--tls-ca", &ca, "--tls-cert", &ca, "--tls-key", &ca]).unwrap_err();
        assert!(no_key.starts_with(&format!("--tls-key: {ca}: ")), "{no_key}");
        assert!(prepare(&["--tls-ca", &ca, "--tls-cert", &ca]).unwrap_err().contains("--tls-key"));
        let alone = prepare(&["--tls-cert", &ca, "--tls-key", &ca]).unwrap_err();
        assert_eq!(alone, "--tls-cert is of no use without --tls-ca");
    }

    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -subj "/CN=test authority" -days 36500`
    const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBiTCCAS+gAwIBAgIUDeAPkZeod+ku38WaVqCTmG3uVzgwCgYIKoZIzj0EAwIw
GTEXMBUGA1UEAwwOdGVzdCBhdXRob3JpdHkwIBcNMjYxMTIxMTYwMjQxWhgPMjEy
NjEwMjgxNjAyNDFaMBkxFzAVBgNVBAMMDnRlc3QgYXV0aG9yaXR5MFkwEwYHKoZI
zj0CAQYIKoZIzj0DAQcDQgAEILF+LrxEkY1eNVmu8ncIWUMwq8ufHuhTVpR9wR3n
bU8mjvxhvON34FUhdA1876aWDjp7F1GC4CnCO0c0H4SlUKNTMFEwHQYDVR0OBBYE
FJjC39ObrVwu++TpJkWa6mCWc5rbMB8GA1UdIwQYMBaAFJjC39ObrVwu++TpJkWa
6mCWc5rbMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgZs2GbwdU
9ImsVsMR9NRFgtmik8OONshedMABf59AmWwCIQC9g2WC4DFrAO0QDmGc7KNZXUVT
Pz071x4a0P3drlbH1Q==
-----END CERTIFICATE-----
";
}
