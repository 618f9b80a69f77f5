//! The whole client against a registry on loopback that misbehaves on demand.

mod access;
mod blobs;
mod images;
mod mirrors;
mod tls;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use knarr_testkit::image::{Image, Layer, OCI_INDEX, OCI_MANIFEST, index_of, tar_of};
use knarr_testkit::registry::{
    Access, CA_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, FakeRegistry, Fault, SERVER_CERTIFICATE,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Long enough for a slow machine, short enough to wait for in a test.
const SHORT: Duration = Duration::from_millis(700);
/// A test that takes longer than this has hung.
const HUNG: Duration = Duration::from_secs(60);

struct Setup {
    root: tempfile::TempDir,
    registry: Registry,
}

impl Setup {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut RegistryConfig)) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut config = RegistryConfig {
            config_path: vec![root.path().into()],
            connect_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(20),
            ..RegistryConfig::default()
        };
        change(&mut config);
        Self { registry: Registry::new(config).expect("a valid configuration"), root }
    }

    fn hosts(&self, registry: &str, text: &str) {
        write(&self.root.path().join(registry).join("hosts.toml"), text);
    }

    async fn resolve(&self, name: &str) -> Result<ResolvedImage, RegistryError> {
        self.resolve_as(name, &Credentials::anonymous()).await
    }

    async fn resolve_as(&self, name: &str, credentials: &Credentials) -> Result<ResolvedImage, RegistryError> {
        let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let reference = reference(name);
        let resolving = self.registry.resolve(&reference, credentials, &platform);
        tokio::time::timeout(HUNG, resolving).await.expect("the resolver hangs")
    }

    async fn open(&self, name: &str, layer: &Layer, offset: u64) -> Result<BlobStream, RegistryError> {
        let (reference, descriptor, nobody) = (reference(name), descriptor(&layer.blob), Credentials::anonymous());
        let opening = self.registry.blob(&reference, &nobody, &descriptor, offset);
        tokio::time::timeout(HUNG, opening).await.expect("opening a blob hangs")
    }

    async fn download(&self, name: &str, layer: &Layer, offset: u64) -> Result<Came, RegistryError> {
        let mut stream = self.open(name, layer, offset).await?;
        drain(&mut stream).await
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("making a directory");
    std::fs::write(path, text).expect("writing a file");
}

fn reference(name: &str) -> Reference {
    Reference::parse(name).unwrap_or_else(|error| panic!("{error}"))
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: Digest::sha256_of(bytes),
        size: bytes.len() as u64,
        urls: Vec::new(),
        annotations: Default::default(),
        platform: None,
    }
}

/// What came; a failed assertion shows how much it was, not a megabyte of numbers.
#[derive(PartialEq, Eq)]
struct Came(Vec<u8>);

impl std::fmt::Debug for Came {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of digest {}", self.0.len(), Digest::sha256_of(&self.0))
    }
}

fn came(bytes: &[u8]) -> Came {
    Came(bytes.to_vec())
}

async fn drain(stream: &mut BlobStream) -> Result<Came, RegistryError> {
    let draining = async {
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(Came(bytes))
    };
    tokio::time::timeout(HUNG, draining).await.expect("the stream hangs")
}

fn image() -> Image {
    Image::new(vec![Layer::gzip(tar_of(&[("etc/os-release", b"ID=test\n")]))])
}

/// A layer of more bytes than any buffer on the way holds, none of them like its neighbour.
fn big_layer() -> Layer {
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Layer::plain(bytes)
}

/// Another address for the same registry, until the test ends.
async fn forward(from: &str, to: String) -> SocketAddr {
    let listener = TcpListener::bind(from).await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.expect("the registry is there");
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    address
}

fn login(username: &str, password: &str) -> Credentials {
    Credentials { username: username.into(), password: password.into(), ..Credentials::default() }
}
