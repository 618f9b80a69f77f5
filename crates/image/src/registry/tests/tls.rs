//! Certificates, and when to do without.

use super::*;

#[tokio::test]
async fn certificates_are_checked_unless_the_file_says_otherwise() {
    let fake = FakeRegistry::start_tls(false).await;
    fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let hosts = |more: &str| format!("server = {:?}\n{more}", fake.url());
    setup.hosts("reg.example", &hosts(""));
    let error = setup.resolve("reg.example/app:v1").await.expect_err("nobody knows this authority");
    assert_eq!(error.kind, RegistryErrorKind::Unavailable);
    assert!(error.to_string().contains("certificate"), "{error}");

    setup.hosts("reg.example", &hosts("skip_verify = true"));
    setup.resolve("reg.example/app:v1").await.expect("any certificate will do");
    write(&setup.root.path().join("reg.example/ca.crt"), CA_CERTIFICATE);
    setup.hosts("reg.example", &hosts("ca = \"ca.crt\""));
    setup.resolve("reg.example/app:v1").await.expect("the authority is known");
    // The certificate is checked against the name, too.
    let elsewhere = forward("127.0.0.2:0", fake.host()).await;
    setup.hosts("reg.example", &format!("server = \"https://{elsewhere}\"\nca = \"ca.crt\""));
    let error = setup.resolve("reg.example/app:v1").await.expect_err("the certificate is for another name");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn docker_s_certificate_files_work_and_so_does_a_client_certificate() {
    let fake = FakeRegistry::start_tls(true).await;
    fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let directory = setup.root.path().join(fake.host());
    let name = format!("{}/app:v1", fake.host());
    write(&directory.join("ca.crt"), CA_CERTIFICATE);
    assert!(setup.resolve(&name).await.is_err(), "the host asks for a certificate");
    write(&directory.join("me.cert"), CLIENT_CERTIFICATE);
    write(&directory.join("me.key"), CLIENT_KEY);
    setup.resolve(&name).await.expect("the certificate is shown");
    write(&directory.join("me.cert"), SERVER_CERTIFICATE);
    let error = setup.resolve(&name).await.expect_err("the key is another's");
    assert!(error.to_string().contains("me.cert"), "{error}");
    write(
        &directory.join("hosts.toml"),
        &format!("server = {:?}\nca = \"ca.crt\"\nclient = [[\"both.pem\"]]", fake.url()),
    );
    assert!(setup.resolve(&name).await.is_err());
    write(&directory.join("both.pem"), &format!("{CLIENT_CERTIFICATE}{CLIENT_KEY}"));
    write(&directory.join("hosts.toml"), &format!("server = {:?}\nca = \"ca.crt\"\nclient = \"both.pem\"", fake.url()));
    setup.resolve(&name).await.expect("certificate and key are in one file");
}

#[tokio::test]
async fn loopback_is_reached_with_and_without_tls_and_nothing_else_is_downgraded() {
    let secure = FakeRegistry::start_tls(false).await;
    secure.put_image("app", "v1", &image());
    Setup::new().resolve(&format!("{}/app:v1", secure.host())).await.expect("any certificate will do on loopback");
    let plain = FakeRegistry::start().await;
    plain.put_image("app", "v1", &image());
    Setup::new().resolve(&format!("{}/app:v1", plain.host())).await.expect("HTTP will do on loopback");

    // Named as a server, over https, a host without TLS is not spoken to in clear.
    let setup = Setup::new();
    setup.hosts("reg.example", &format!("server = \"https://{}\"", plain.host()));
    plain.clear_seen();
    assert!(setup.resolve("reg.example/app:v1").await.is_err());
    assert!(plain.seen().is_empty());
    // Unless it is named insecure.
    let insecure = plain.host();
    let setup = Setup::with(|config| config.insecure_registries = vec![insecure]);
    setup.hosts("reg.example", &format!("server = \"https://{}\"", plain.host()));
    setup.resolve("reg.example/app:v1").await.expect("it is insecure, and said to be");
}

#[tokio::test]
async fn a_failed_handshake_is_no_reason_to_speak_in_clear() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let (sender, mut first_bytes) = tokio::sync::mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 1024];
            let _ = stream.read(&mut hello).await;
            let _ = sender.send(hello[0]);
            // The alert "handshake failure": TLS is spoken here, but not with everybody.
            let _ = stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40]).await;
        }
    });
    let setup = Setup::new();
    let error = setup.resolve(&format!("{address}/app:v1")).await.expect_err("it does not want to talk");
    assert_eq!(error.kind, RegistryErrorKind::Unavailable, "{error}");
    serving.abort();
    let _ = serving.await;
    let mut connections = 0;
    while let Some(first) = first_bytes.recv().await {
        assert_eq!(first, 0x16, "every connection begins with a TLS handshake");
        connections += 1;
    }
    assert_eq!(connections, 1);
}
