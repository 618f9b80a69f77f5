//! Which hosts to ask for a registry's images, in order, by containerd's `certs.d` directories.
//!
//! For `registry.example:5000` each directory of `config_path` is looked through for `registry.example_5000_`,
//! `registry.example:5000` and `_default`; the first that exists decides. In it `hosts.toml` says everything, or, where
//! there is none, Docker's `*.crt`, `*.cert` and `*.key` files say how to reach the registry itself. The files are
//! looked at anew for every request, and read anew when one of them changed, so that nothing has to be restarted.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;

use super::RegistryConfig;
use super::hosts_toml::{self, Capabilities, ClientPair, HostEntry};
use super::tls::{Clients, TlsSettings, is_loopback, system_bundle};
use crate::credentials::DEFAULT_REGISTRY_HOST;
use crate::reference::DEFAULT_REGISTRY;

/// For registries without a directory of their own.
const DEFAULT_DIRECTORY: &str = "_default";
/// Bytes of a hosts.toml.
const HOSTS_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Registries whose hosts are remembered; beyond, all are read anew.
const REMEMBERED_MAX: usize = 256;

/// One host to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// What comes before `/<repository>/manifests/…`, without a slash at its end.
    pub base: Url,
    pub capabilities: Capabilities,
    /// Shown to this host only.
    pub headers: HeaderMap,
    pub tls: TlsSettings,
    pub dial_timeout: Option<Duration>,
    /// HTTPS is tried first, and HTTP when the host does not speak TLS.
    pub plain_fallback: bool,
    /// The registry that this host stands for, when it is not the registry itself; sent as `?ns=`.
    pub namespace: Option<String>,
}

/// A host and the clients that reach it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub host: Host,
    pub clients: Clients,
}

/// Finds the hosts of registries and remembers them while their files stay the same.
#[derive(Debug)]
pub(super) struct HostDirectory {
    config: RegistryConfig,
    remembered: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    registries: HashMap<String, HostSet>,
    /// Hosts without certificates of their own share clients, and so connections.
    shared: HashMap<(bool, Duration), (Stamps, Clients)>,
}

#[derive(Debug, Clone)]
struct HostSet {
    stamps: Stamps,
    endpoints: Vec<Arc<Endpoint>>,
}

/// Files that were looked at, and how they were; `None` for one that was not there.
type Stamps = Vec<(PathBuf, Option<Stamp>)>;

/// Changes whenever a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Host {
    /// `host:port` as a person would write it.
    pub fn name(&self) -> &str {
        self.base.authority()
    }
}

impl HostDirectory {
    pub fn new(config: RegistryConfig) -> Self {
        Self { config, remembered: Mutex::default() }
    }

    /// The hosts for `registry`, in order. Blocks on files.
    pub fn endpoints(&self, registry: &str) -> Result<Vec<Arc<Endpoint>>, String> {
        let remembered = self.lock().registries.get(registry).cloned();
        if let Some(set) = remembered
            && set.stamps.iter().all(|(path, stamp)| stamp_of(path) == *stamp)
        {
            return Ok(set.endpoints);
        }
        let set = self.read(registry)?;
        let mut remembered = self.lock();
        if remembered.registries.len() >= REMEMBERED_MAX {
            remembered.registries.clear();
        }
        remembered.registries.insert(registry.to_owned(), set.clone());
        Ok(set.endpoints)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, registry: &str) -> Result<HostSet, String> {
        // Stamps are taken before reading: a change in between is then seen the next time.
        let mut stamps: Stamps = Vec::new();
        let entries = match self.find_directory(registry, &mut stamps) {
            Some(directory) => read_directory(&directory, &mut stamps)?,
            None => vec![HostEntry::default()],
        };
        if let Some(bundle) = system_bundle() {
            stamps.push((bundle.clone(), stamp_of(&bundle)));
        }
        let mut endpoints = Vec::with_capacity(entries.len());
        for entry in entries {
            let host = resolve_entry(registry, entry, &self.config.insecure_registries)?;
            for path in files_of(&host.tls) {
                stamps.push((path.clone(), stamp_of(path)));
            }
            let clients = self.clients(&host)?;
            endpoints.push(Arc::new(Endpoint { host, clients }));
        }
        Ok(HostSet { stamps, endpoints })
    }

    fn find_directory(&self, registry: &str, stamps: &mut Stamps) -> Option<PathBuf> {
        for root in &self.config.config_path {
            for name in directory_names(registry) {
                let directory = root.join(name);
                let stamp = stamp_of(&directory);
                stamps.push((directory.clone(), stamp));
                if stamp.is_some() {
                    return Some(directory);
                }
            }
        }
        None
    }

    fn clients(&self, host: &Host) -> Result<Clients, String> {
        let connect_timeout = host.dial_timeout.unwrap_or(self.config.connect_timeout);
        if !host.tls.ca.is_empty() || !host.tls.client.is_empty() {
            return Clients::new(&host.tls, connect_timeout);
        }
        let bundle: Stamps = system_bundle().map(|path| (path.clone(), stamp_of(&path))).into_iter().collect();
        let key = (host.tls.skip_verify, connect_timeout);
        if let Some((stamps, clients)) = self.lock().shared.get(&key)
            && *stamps == bundle
        {
            return Ok(clients.clone());
        }
        let clients = Clients::new(&host.tls, connect_timeout)?;
        let mut remembered = self.lock();
        if remembered.shared.len() >= REMEMBERED_MAX {
            remembered.shared.clear();
        }
        remembered.shared.insert(key, (bundle, clients.clone()));
        Ok(clients)
    }
}

/// `registry:5000` → `registry_5000_`, `registry:5000`, `_default`.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let (host, Some(port)) = split_port(registry) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push(DEFAULT_DIRECTORY.to_owned());
    names
}

/// `host:port` → both; the colons of a bare `[::1]` are no port's.
fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

fn read_directory(directory: &Path, stamps: &mut Stamps) -> Result<Vec<HostEntry>, String> {
    let path = directory.join("hosts.toml");
    let stamp = stamp_of(&path);
    stamps.push((path.clone(), stamp));
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = match stamp {
        Some(stamp) if stamp.bytes > HOSTS_FILE_BYTES_MAX => {
            return Err(format!("{}: more than {HOSTS_FILE_BYTES_MAX} bytes", path.display()));
        }
        Some(_) => std::fs::read_to_string(&path).map_err(failed)?,
        None => String::new(),
    };
    // As with containerd, an empty file is no file.
    if text.is_empty() {
        return Ok(vec![read_docker_files(directory)?]);
    }
    let file = hosts_toml::parse(&text, directory).map_err(|why| format!("{}: {why}", path.display()))?;
    if !file.unknown.is_empty() {
        tracing::warn!(file = %path.display(), keys = file.unknown.join(", "), "keys that mean nothing are ignored");
    }
    Ok(file.entries)
}

/// Docker's layout: every `*.crt` is an authority, every `*.cert` a certificate to show, its key in the `*.key` of the
/// same name.
fn read_docker_files(directory: &Path) -> Result<HostEntry, String> {
    let mut entry = HostEntry::default();
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    let mut paths = Vec::new();
    for file in std::fs::read_dir(directory).map_err(failed)? {
        paths.push(file.map_err(failed)?.path());
    }
    paths.sort();
    for path in paths.into_iter().filter(|path| path.is_file()) {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => entry.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                entry.client.push(ClientPair { certificate: path, key: key.exists().then_some(key) });
            }
            _ => {}
        }
    }
    Ok(entry)
}

fn files_of(tls: &TlsSettings) -> impl Iterator<Item = &PathBuf> {
    let pairs = tls.client.iter().flat_map(|pair| [Some(&pair.certificate), pair.key.as_ref()]);
    tls.ca.iter().chain(pairs.flatten())
}

fn stamp_of(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        bytes: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Fills in what the entry leaves open, by containerd's rules.
fn resolve_entry(registry: &str, entry: HostEntry, insecure: &[String]) -> Result<Host, String> {
    let both = Capabilities { pull: true, resolve: true };
    let is_unnamed = entry.url.is_none();
    let (mut base, capabilities) = match entry.url {
        Some(url) => (url, entry.capabilities.unwrap_or(both)),
        // The registry itself can always do both.
        None => (registry_url(registry)?, both),
    };
    // Docker Hub's own name leads to its web site, and is often written where its registry is meant.
    if base.host_str() == Some(DEFAULT_REGISTRY) && base.port().is_none() {
        base.set_host(Some(DEFAULT_REGISTRY_HOST)).map_err(|error| format!("{registry}: {error}"))?;
    }
    let mut host = Host {
        capabilities,
        headers: entry.headers,
        tls: TlsSettings { ca: entry.ca, client: entry.client, skip_verify: entry.skip_verify.unwrap_or(false) },
        dial_timeout: entry.dial_timeout,
        plain_fallback: false,
        namespace: None,
        base,
    };
    // On loopback there is nobody in between, and certificates for it are rare. Port 80 is HTTP without a question, no
    // port or 443 is HTTPS; any other may be either.
    let local = host.base.host_str().is_some_and(is_loopback);
    let is_itself = host.name() == registry_url(registry)?.authority();
    let is_insecure = insecure.iter().any(|name| name.eq_ignore_ascii_case(host.name()))
        || (is_itself && insecure.iter().any(|name| name.eq_ignore_ascii_case(registry)));
    if host.base.scheme() == "https" && is_insecure {
        host.tls.skip_verify = true;
        host.plain_fallback = true;
    }
    if local && is_unnamed && host.base.scheme() == "https" && entry.skip_verify.is_none() && host.tls.ca.is_empty() {
        host.tls.skip_verify = true;
        host.plain_fallback |= host.base.port().is_some();
    }
    let tls_is_set = !host.tls.ca.is_empty() || !host.tls.client.is_empty() || entry.skip_verify.is_some();
    if host.base.scheme() == "http" && tls_is_set && host.base.port().is_some() {
        host.base.set_scheme("https").map_err(|()| format!("{registry}: cannot be reached over https"))?;
        host.plain_fallback = true;
    }
    if !is_itself {
        host.namespace = Some(registry.to_owned());
    }
    Ok(host)
}

/// The API of the registry itself.
fn registry_url(registry: &str) -> Result<Url, String> {
    let host = if registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { registry };
    let (name, port) = split_port(host);
    let scheme = if is_loopback(name) && port == Some("80") { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{host}/v2")).map_err(|error| format!("registry {registry:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(roots: &[&Path]) -> RegistryConfig {
        RegistryConfig {
            config_path: roots.iter().map(|root| root.to_path_buf()).collect(),
            ..RegistryConfig::default()
        }
    }

    fn bases(directory: &HostDirectory, registry: &str) -> Vec<String> {
        let endpoints = directory.endpoints(registry).unwrap_or_else(|error| panic!("{error}"));
        endpoints.iter().map(|endpoint| endpoint.host.base.to_string()).collect()
    }

    fn write(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("making a directory");
        std::fs::write(path, text).expect("writing a file");
    }

    #[test]
    fn a_registry_without_configuration_is_asked_itself() {
        let cases = [
            ("docker.io", "https://registry-1.docker.io/v2", false, false),
            ("quay.io", "https://quay.io/v2", false, false),
            ("quay.io:8443", "https://quay.io:8443/v2", false, false),
            ("localhost", "https://localhost/v2", true, false),
            ("localhost:443", "https://localhost/v2", true, false),
            ("localhost:80", "http://localhost/v2", false, false),
            ("localhost:5000", "https://localhost:5000/v2", true, true),
            ("127.0.0.1:5000", "https://127.0.0.1:5000/v2", true, true),
            ("[::1]:5000", "https://[::1]:5000/v2", true, true),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2", false, false),
        ];
        for (registry, base, skip_verify, plain_fallback) in cases {
            let host = resolve_entry(registry, HostEntry::default(), &[]).expect("valid");
            assert_eq!(host.base.as_str(), base);
            assert_eq!((host.tls.skip_verify, host.plain_fallback), (skip_verify, plain_fallback), "{registry}");
            assert_eq!((host.namespace, host.capabilities.resolve), (None, true), "{registry}");
        }
    }

    #[test]
    fn insecure_registries_are_reached_without_checks_and_no_others() {
        let insecure = vec!["Reg.example:5000".to_owned()];
        let host = resolve_entry("reg.example:5000", HostEntry::default(), &insecure).expect("valid");
        assert!(host.tls.skip_verify && host.plain_fallback);
        for registry in ["reg.example", "reg.example:5001", "evil.example:5000"] {
            let host = resolve_entry(registry, HostEntry::default(), &insecure).expect("valid");
            assert!(!host.tls.skip_verify && !host.plain_fallback, "{registry}");
        }
    }

    #[test]
    fn mirrors_are_told_whom_they_stand_for() {
        let mirror = |url: &str| HostEntry { url: Some(Url::parse(url).expect("a URL")), ..HostEntry::default() };
        let host = resolve_entry("docker.io", mirror("http://m.example:5000/v2"), &[]).expect("valid");
        assert_eq!((host.base.scheme(), host.namespace.as_deref()), ("http", Some("docker.io")));
        for url in ["https://registry-1.docker.io/v2", "https://docker.io/v2"] {
            let host = resolve_entry("docker.io", mirror(url), &[]).expect("valid");
            assert_eq!((host.name(), &host.namespace), ("registry-1.docker.io", &None));
        }
    }

    #[test]
    fn http_with_certificates_means_https_first() {
        let mut entry =
            HostEntry { url: Some(Url::parse("http://m.example:5000/v2").expect("a URL")), ..HostEntry::default() };
        entry.skip_verify = Some(false);
        let host = resolve_entry("docker.io", entry.clone(), &[]).expect("valid");
        assert_eq!((host.base.scheme(), host.plain_fallback, host.tls.skip_verify), ("https", true, false));
        entry.url = Some(Url::parse("http://m.example/v2").expect("a URL"));
        let host = resolve_entry("docker.io", entry, &[]).expect("valid");
        assert_eq!((host.base.scheme(), host.plain_fallback), ("http", false));
    }

    #[test]
    fn an_administrator_s_word_on_loopback_certificates_is_kept() {
        let entry = HostEntry { skip_verify: Some(false), ..HostEntry::default() };
        let host = resolve_entry("localhost:5000", entry, &[]).expect("valid");
        assert!(!host.tls.skip_verify && !host.plain_fallback);
        let entry = HostEntry { ca: vec!["/ca.crt".into()], ..HostEntry::default() };
        assert!(!resolve_entry("localhost:5000", entry, &[]).expect("valid").tls.skip_verify);
    }

    #[test]
    fn the_first_directory_that_exists_decides() {
        let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let missing = Path::new("/nonexistent/certs.d");
        let directory = HostDirectory::new(config(&[missing, one.path(), two.path()]));
        let server = |name: &str| format!("server = \"https://{name}.example\"");

        assert_eq!(bases(&directory, "reg:5000"), ["https://reg:5000/v2"]);
        write(&two.path().join("_default/hosts.toml"), &server("two-default"));
        assert_eq!(bases(&directory, "reg:5000"), ["https://two-default.example/v2"]);
        write(&two.path().join("reg:5000/hosts.toml"), &server("two-colon"));
        assert_eq!(bases(&directory, "reg:5000"), ["https://two-colon.example/v2"]);
        write(&two.path().join("reg_5000_/hosts.toml"), &server("two-underscore"));
        assert_eq!(bases(&directory, "reg:5000"), ["https://two-underscore.example/v2"]);
        write(&one.path().join("_default/hosts.toml"), &server("one-default"));
        assert_eq!(bases(&directory, "reg:5000"), ["https://one-default.example/v2"]);
        assert_eq!(bases(&directory, "other"), ["https://one-default.example/v2"]);
    }

    #[test]
    fn a_changed_file_is_seen_and_an_unchanged_one_is_not_read_again() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("quay.io/hosts.toml");
        write(&path, "server = \"https://a.example\"");
        let directory = HostDirectory::new(config(&[root.path()]));
        assert_eq!(bases(&directory, "quay.io"), ["https://a.example/v2"]);
        let first = directory.endpoints("quay.io").expect("valid");
        let second = directory.endpoints("quay.io").expect("valid");
        assert!(Arc::ptr_eq(&first[0], &second[0]));

        // As editors do: the same length, by rename.
        let fresh = root.path().join("fresh");
        write(&fresh, "server = \"https://b.example\"");
        std::fs::rename(&fresh, &path).expect("renaming");
        assert_eq!(bases(&directory, "quay.io"), ["https://b.example/v2"]);
        std::fs::remove_dir_all(root.path().join("quay.io")).expect("removing");
        assert_eq!(bases(&directory, "quay.io"), ["https://quay.io/v2"]);
    }

    #[test]
    fn a_broken_file_stops_the_pull_and_is_named() {
        let root = tempfile::tempdir().expect("a directory");
        write(&root.path().join("quay.io/hosts.toml"), "server = [");
        let directory = HostDirectory::new(config(&[root.path()]));
        let error = directory.endpoints("quay.io").expect_err("broken");
        assert!(error.contains("quay.io/hosts.toml"), "{error}");
        write(&root.path().join("quay.io/hosts.toml"), "server = \"https://a.example\"\nca = \"gone.crt\"");
        let error = directory.endpoints("quay.io").expect_err("broken");
        assert!(error.contains("quay.io/gone.crt"), "{error}");
    }

    #[test]
    fn docker_s_certificate_files_are_found() {
        let root = tempfile::tempdir().expect("a directory");
        let directory = root.path().join("reg.example");
        for name in ["b.crt", "a.crt", "one.cert", "one.key", "two.cert", "README"] {
            write(&directory.join(name), "");
        }
        let entry = read_docker_files(&directory).expect("readable");
        assert_eq!(entry.ca, [directory.join("a.crt"), directory.join("b.crt")]);
        let pair = |certificate: &str, key: Option<&str>| ClientPair {
            certificate: directory.join(certificate),
            key: key.map(|key| directory.join(key)),
        };
        assert_eq!(entry.client, [pair("one.cert", Some("one.key")), pair("two.cert", None)]);
    }

    #[test]
    fn ports_are_told_from_addresses() {
        assert_eq!(directory_names("[::1]"), ["[::1]", "_default"]);
        assert_eq!(directory_names("[::1]:5000"), ["[::1]_5000_", "[::1]:5000", "_default"]);
        assert_eq!(directory_names("quay.io"), ["quay.io", "_default"]);
    }
}
