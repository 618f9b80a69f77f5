//! Over TLS.

use std::sync::Arc;
use std::time::Duration;

use knarr_streaming::CommandEnd;
use knarr_streaming::client::{self, Target, Transport};
use knarr_testkit::registry::{CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::AsyncReadExt;

use crate::command::TRANSPORTS;
use crate::support::{ALL, TestServer, all, local, pattern, send_odd, settings, soon};

fn server_config() -> Arc<ServerConfig> {
    let certificate = CertificateDer::from_pem_slice(SERVER_CERTIFICATE.as_bytes()).expect("our own certificate");
    let key = PrivateKeyDer::from_pem_slice(SERVER_KEY.as_bytes()).expect("our own key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they fit");
    Arc::new(config)
}

fn client_config(trusts: bool) -> Option<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    if trusts {
        roots.add(CertificateDer::from_pem_slice(CA_CERTIFICATE.as_bytes()).expect("our own")).expect("a root");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Some(Arc::new(config))
}

fn target(url: String, transport: Transport) -> Target {
    Target { url, transport, tls: client_config(true) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_ports_work_over_tls() {
    let mut settings = settings();
    settings.tls = Some(server_config());
    let server = TestServer::start(settings).await;
    for transport in TRANSPORTS {
        const LENGTH: usize = 5 << 20;
        let url = server.exec(ALL, |session| async move {
            let (mut stdin, mut stdout, mut stderr) =
                (session.stdin.unwrap(), session.stdout.unwrap(), session.stderr.unwrap());
            let came = all(&mut stdin).await;
            stderr.send("x".into()).await.unwrap();
            stderr.finish().await.unwrap();
            send_odd(&mut stdout, came.into()).await.unwrap();
            CommandEnd::Exited(6)
        });
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let mut client = soon(client::command(&target(url, transport), ALL)).await.unwrap();
        let (mut stdin, mut stdout, mut stderr) =
            (client.stdin.take().unwrap(), client.stdout.take().unwrap(), client.stderr.take().unwrap());
        let (out, err, ()) = soon(async {
            tokio::join!(all(&mut stdout), all(&mut stderr), async {
                send_odd(&mut stdin, pattern(LENGTH, 4)).await.unwrap();
                stdin.finish().await.unwrap();
            })
        })
        .await;
        assert!(out == pattern(LENGTH, 4) && err == b"x", "{transport:?}: {} bytes", out.len());
        assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Exited(6));

        let port = crate::inside::echo().await;
        let client = soon(client::port_forward(&target(server.forward(&[], local()), transport))).await.unwrap();
        let mut one = soon(client.open(port)).await.unwrap();
        send_odd(&mut one.sender, pattern(100_000, 8)).await.unwrap();
        one.sender.finish().await.unwrap();
        assert!(soon(all(&mut one.receiver)).await == pattern(100_000, 8));
        assert_eq!(soon(one.error.wait()).await, None);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_without_tls_or_trust_is_told_so() {
    let mut settings = settings();
    settings.tls = Some(server_config());
    settings.creation_timeout = Duration::from_millis(500);
    let server = TestServer::start(settings).await;
    let url = server.exec(ALL, |_| async { CommandEnd::Success });
    for (tls, text) in [(None, "https needs TLS"), (client_config(false), "TLS handshake with 127.0.0.1")] {
        let target = Target { url: url.clone(), transport: Transport::Spdy, tls };
        let error = soon(client::command(&target, ALL)).await.unwrap_err();
        assert!(error.0.contains(text), "{error}");
    }
    let plain = Target { url: url.replace("https", "http"), transport: Transport::Spdy, tls: None };
    assert!(soon(client::command(&plain, ALL)).await.is_err());
    // One that never begins its handshake.
    let mut silent = tokio::net::TcpStream::connect(server.server.address()).await.unwrap();
    assert_eq!(soon(silent.read(&mut [0; 16])).await.unwrap(), 0);
    // None of them has used up the token.
    let client = soon(client::command(&target(url, Transport::Spdy), ALL)).await.unwrap();
    assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Success);
    server.stop().await;
}
