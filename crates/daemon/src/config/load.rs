//! Reads configuration files, merges them, and says what is wrong by file, line and key.
//!
//! Each file is checked alone first, so that an error names the file and line that a person must edit; then they
//! are merged key by key, later files winning, and the whole is checked for what only the whole can show.

use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::section::{Entry, Section};
use super::{CgroupDriver, Config, Streaming, VERSION, suggest};

/// The file that is read when none is named and no root is given.
pub const SYSTEM_FILE: &str = "/etc/knarr/config.toml";

/// A configuration file larger than this is a mistake, not a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What a Unix socket's address holds (`sun_path`), less the final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// An interface name of Linux (IFNAMSIZ), less the final NUL.
const MAX_INTERFACE_NAME_BYTES: usize = 15;

/// Most sessions of the streaming server: each takes up to five descriptors, and a process has half a million at best.
const MAX_SESSIONS: u32 = 65_536;

/// Everything that is wrong with the configuration; never empty.
#[derive(Debug)]
pub struct ConfigError(pub Vec<Problem>);

/// One thing that is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, if a file is to blame.
    pub file: Option<PathBuf>,
    /// Counted from 1.
    pub line: Option<usize>,
    /// Dotted, `network.cni.conf_dir`; empty if no single key is to blame.
    pub key: String,
    /// What is wrong, with a suggestion where there is one.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One file as read.
struct Source {
    file: PathBuf,
    text: String,
}

impl Config {
    /// Reads the configuration of one instance.
    ///
    /// `path` names the file, which must then exist. Without it, it is `config.toml` below `root` where a root is
    /// given and /etc/knarr/config.toml otherwise, and may be missing. Beside a file `config.toml` the files
    /// `config.d/*.toml` are merged in lexical order. `root` takes the place of the key `root`.
    ///
    /// # Errors
    /// Every problem of every file, not just the first one.
    pub fn load(path: Option<&Path>, root: Option<&Path>) -> Result<Config, ConfigError> {
        let sources = read_sources(path, root)?;
        let mut config = parse(&sources)?;
        if let Some(root) = root {
            config.root = std::path::absolute(root).map_err(|error| {
                ConfigError(vec![Problem::general(format!("cannot make the root absolute: {error}"))])
            })?;
        }
        let problems: Vec<Problem> =
            check(&config).into_iter().map(|(key, message)| blame(&sources, key, message)).collect();
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    /// Which files [`Config::load`] reads with these arguments, in the order in which they are merged.
    ///
    /// # Errors
    /// A directory or file that exists and cannot be read.
    pub fn files(path: Option<&Path>, root: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
        Ok(read_sources(path, root)?.into_iter().map(|source| source.file).collect())
    }
}

impl Problem {
    fn general(message: String) -> Self {
        Self { file: None, line: None, key: String::new(), message }
    }

    fn of_file(file: &Path, message: String) -> Self {
        Self { file: Some(file.to_owned()), line: None, key: String::new(), message }
    }
}

fn read_sources(path: Option<&Path>, root: Option<&Path>) -> Result<Vec<Source>, ConfigError> {
    let main = match (path, root) {
        (Some(path), _) => path.to_owned(),
        (None, Some(root)) => root.join("config.toml"),
        (None, None) => SYSTEM_FILE.into(),
    };
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    match read(&main) {
        Ok(text) => sources.push(Source { file: main.clone(), text }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => {}
        Err(error) => problems.push(Problem::of_file(&main, format!("cannot be read: {error}"))),
    }
    let drop_ins = main.with_extension("d");
    match drop_in_files(&drop_ins) {
        Err(error) => problems.push(Problem::of_file(&drop_ins, format!("cannot be read: {error}"))),
        Ok(files) => {
            for file in files {
                match read(&file) {
                    Ok(text) => sources.push(Source { file, text }),
                    Err(error) => problems.push(Problem::of_file(&file, format!("cannot be read: {error}"))),
                }
            }
        }
    }
    if problems.is_empty() { Ok(sources) } else { Err(ConfigError(problems)) }
}

fn read(file: &Path) -> std::io::Result<String> {
    if std::fs::metadata(file)?.len() > MAX_FILE_BYTES {
        return Err(std::io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    std::fs::read_to_string(file)
}

/// `*.toml` of a directory in lexical order; none where the directory does not exist.
fn drop_in_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry?.path();
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn parse(sources: &[Source]) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let mut merged = toml::Table::new();
    for source in sources {
        if let Err(error) = toml::from_str::<Config>(&source.text) {
            problems.push(explain(source, &error));
            continue;
        }
        match source.text.parse::<toml::Table>() {
            Ok(table) => merge(&mut merged, table),
            Err(error) => problems.push(explain(source, &error)),
        }
    }
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    merged.try_into().map_err(|error: toml::de::Error| {
        ConfigError(vec![Problem::general(format!("the merged configuration is invalid: {}", error.message()))])
    })
}

/// Later files win key by key; a list is replaced as a whole, because half of another file's list is never meant.
fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Turns the parser's error into one that names line, key and what was probably meant.
fn explain(source: &Source, error: &toml::de::Error) -> Problem {
    let span = error.span();
    let line = span.as_ref().map(|span| line_of(&source.text, span.start));
    let key = span.map(|span| key_at(&source.text, &span)).unwrap_or_default();
    let message = with_suggestion(error.message(), &key);
    Problem { file: Some(source.file.clone()), line, key, message }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The dotted name of the key whose name or value the span lies in; empty where the file is no TOML at all.
fn key_at(text: &str, span: &Range<usize>) -> String {
    fn search(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            let inside = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
            if inside(key.span()) {
                return true;
            }
            match value.get_ref() {
                DeValue::Table(inner) if search(inner, span, path) => return true,
                _ if inside(value.span()) => return true,
                _ => {}
            }
            path.pop();
        }
        false
    }
    let Ok(document) = DeTable::parse(text) else { return String::new() };
    let mut path = Vec::new();
    search(document.get_ref(), span, &mut path);
    path.join(".")
}

/// serde says ``unknown field `x`, expected one of `a`, `b` ``: the first name is the wrong one, the others are known.
fn with_suggestion(message: &str, key: &str) -> String {
    let names: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((wrong, known)) = names.split_first() else { return message.to_owned() };
    if message.starts_with("unknown field") {
        if let Some(near) = suggest::nearest(wrong, known.iter().copied()) {
            return format!("there is no such key; did you mean `{near}`?");
        }
        let elsewhere = places_of(wrong, "", Config::ENTRIES);
        if let Some(place) = elsewhere.iter().find(|place| place.as_str() != key) {
            return format!("there is no such key here; did you mean `{place}`?");
        }
        return format!("there is no such key; known here are {}", known.join(", "));
    }
    if message.starts_with("unknown variant") {
        let guess = suggest::nearest(wrong, known.iter().copied());
        let guess = guess.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
        return format!("\"{wrong}\" is none of {}{guess}", known.join(", "));
    }
    message.to_owned()
}

/// The dotted names of all keys and sections with this last part.
fn places_of(name: &str, prefix: &str, entries: &[Entry]) -> Vec<String> {
    let mut places = Vec::new();
    for entry in entries {
        let place = if prefix.is_empty() { entry.name.to_owned() } else { format!("{prefix}.{}", entry.name) };
        places.extend(entry.section.map(|below| places_of(name, &place, below)).unwrap_or_default());
        if entry.name == name {
            places.push(place);
        }
    }
    places
}

/// Finds the last file that sets the key, since that one counts.
fn blame(sources: &[Source], key: &str, message: String) -> Problem {
    for source in sources.iter().rev() {
        let Ok(document) = DeTable::parse(&source.text) else { continue };
        if let Some(span) = span_of(document.get_ref(), key) {
            let line = Some(line_of(&source.text, span.start));
            return Problem { file: Some(source.file.clone()), line, key: key.to_owned(), message };
        }
    }
    Problem { file: None, line: None, key: key.to_owned(), message }
}

fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let (name, value) = table.iter().find(|(name, _)| name.get_ref() == first)?;
    match (rest, value.get_ref()) {
        (None, _) => Some(name.span()),
        (Some(rest), DeValue::Table(inner)) => span_of(inner, rest),
        (Some(_), _) => None,
    }
}

/// Collects what is wrong: the key to blame, and why.
#[derive(Default)]
struct Complaints(Vec<(&'static str, String)>);

impl Complaints {
    fn refuse_if(&mut self, wrong: bool, key: &'static str, message: impl FnOnce() -> String) {
        if wrong {
            self.0.push((key, message()));
        }
    }
}

/// What types alone cannot refuse: (key, message).
fn check(config: &Config) -> Vec<(&'static str, String)> {
    let mut complaints = Complaints::default();
    complaints.refuse_if(config.version != VERSION, "version", || {
        format!("this file is of version {}, and this knarr reads version {VERSION} only", config.version)
    });
    check_paths(config, &mut complaints);
    check_cgroup(config, &mut complaints);
    check_builtin_network(config, &mut complaints);
    check_streaming(&config.streaming, &mut complaints);
    check_amounts(config, &mut complaints);
    for name in &config.security.default_capabilities {
        let shaped = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        complaints.refuse_if(!shaped || name.starts_with("CAP_"), "security.default_capabilities", || {
            format!("{name:?}: write capabilities in capitals and without CAP_, for example \"NET_RAW\"")
        });
    }
    complaints.0
}

fn check_paths(config: &Config, complaints: &mut Complaints) {
    let optional = [
        ("root", &config.root),
        ("state_dir", &config.state_dir),
        ("run_dir", &config.run_dir),
        ("socket.path", &config.socket.path),
        ("shim.path", &config.shim.path),
        ("network.netns_dir", &config.network.netns_dir),
        ("security.seccomp_profile", &config.security.seccomp_profile),
        ("streaming.tls_cert", &config.streaming.tls_cert),
        ("streaming.tls_key", &config.streaming.tls_key),
        ("streaming.tls_client_ca", &config.streaming.tls_client_ca),
    ];
    let bin_dirs = config.network.cni.bin_dirs.iter().map(|path| ("network.cni.bin_dirs", path));
    let registries = config.image.registry.config_path.iter().map(|path| ("image.registry.config_path", path));
    let cdi = config.devices.cdi_spec_dirs.iter().map(|path| ("devices.cdi_spec_dirs", path));
    let required =
        bin_dirs.chain(registries).chain(cdi).chain([("network.cni.conf_dir", &config.network.cni.conf_dir)]);
    let optional = optional.into_iter().filter(|(_, path)| !path.as_os_str().is_empty());
    for (key, path) in optional.chain(required) {
        complaints.refuse_if(!path.is_absolute(), key, || format!("{:?} is not an absolute path", path.display()));
    }
    let socket = config.paths().socket;
    let key = if config.socket.path.as_os_str().is_empty() { "root" } else { "socket.path" };
    complaints.refuse_if(socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES, key, || {
        format!("{} is longer than the {MAX_SOCKET_PATH_BYTES} bytes of a socket's address", socket.display())
    });
}

fn check_cgroup(config: &Config, complaints: &mut Complaints) {
    let parent = &config.cgroup.parent;
    let is_slice = parent.ends_with(".slice");
    let from_root = parent.strip_prefix('/');
    let mut parts = from_root.unwrap_or(if is_slice { parent } else { "" }).split('/');
    complaints.refuse_if(
        !parent.is_empty() && parts.any(|part| matches!(part, "" | "." | "..")),
        "cgroup.parent",
        || format!("{parent:?} is no cgroup path: write for example \"/knarr\", or \"knarr.slice\" for systemd"),
    );
    let driver = config.cgroup.driver;
    let wrong = driver == CgroupDriver::Systemd && !is_slice || driver == CgroupDriver::Cgroupfs && is_slice;
    complaints.refuse_if(!parent.is_empty() && wrong, "cgroup.parent", || {
        let is = if is_slice { "is a slice of systemd" } else { "is no slice of systemd" };
        format!("{parent:?} {is}, but cgroup.driver is {:?}", driver.as_str())
    });
}

fn check_builtin_network(config: &Config, complaints: &mut Complaints) {
    let builtin = &config.network.builtin;
    let bridge = &builtin.bridge;
    let bridge_good = !matches!(bridge.as_str(), "" | "." | "..")
        && bridge.len() <= MAX_INTERFACE_NAME_BYTES
        && bridge.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    complaints
        .refuse_if(!bridge_good, "network.builtin.bridge", || format!("{bridge:?} is no name of a network interface"));
    let subnets = [
        ("network.builtin.subnet_v4", &builtin.subnet_v4, true),
        ("network.builtin.subnet_v6", &builtin.subnet_v6, false),
    ];
    for (key, subnet, is_v4) in subnets {
        if let Err(message) = check_subnet(subnet, is_v4) {
            complaints.refuse_if(true, key, || message);
        }
    }
    let none = builtin.subnet_v4.is_empty() && builtin.subnet_v6.is_empty();
    complaints.refuse_if(none, "network.builtin.subnet_v4", || {
        "the built-in network needs a subnet of IPv4 or of IPv6".to_owned()
    });
}

fn check_streaming(streaming: &Streaming, complaints: &mut Complaints) {
    let address = &streaming.address;
    complaints.refuse_if(address.parse::<IpAddr>().is_err(), "streaming.address", || {
        format!("{address:?} is no IP address: write for example \"127.0.0.1\" or \"::1\"")
    });
    let url = &streaming.base_url;
    let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = authority.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let printable = url.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>".contains(&byte));
    let good = url.is_empty() || (!host.is_empty() && printable && !url.ends_with('/'));
    complaints.refuse_if(!good, "streaming.base_url", || {
        format!("{url:?} is no base URL: write for example \"https://node1:10010\", without a slash at its end")
    });
    complaints.refuse_if(streaming.max_sessions > MAX_SESSIONS, "streaming.max_sessions", || {
        format!("must be at most {MAX_SESSIONS}")
    });
    let (cert, key) = (&streaming.tls_cert, &streaming.tls_key);
    let (no_cert, no_key) = (cert.as_os_str().is_empty(), key.as_os_str().is_empty());
    complaints.refuse_if(no_cert && !no_key, "streaming.tls_key", || {
        "needs streaming.tls_cert, and that is empty".to_owned()
    });
    complaints.refuse_if(no_key && !no_cert, "streaming.tls_cert", || {
        "needs streaming.tls_key, and that is empty".to_owned()
    });
    let asks_without_tls = no_cert && no_key && !streaming.tls_client_ca.as_os_str().is_empty();
    complaints.refuse_if(asks_without_tls, "streaming.tls_client_ca", || {
        "asks clients for certificates, for which the server needs tls_cert and tls_key".to_owned()
    });
}

fn check_amounts(config: &Config, complaints: &mut Complaints) {
    for (key, count) in [
        ("network.cni.max_networks", config.network.cni.max_networks),
        ("image.max_concurrent_layers", config.image.max_concurrent_layers),
        ("streaming.max_sessions", config.streaming.max_sessions),
    ] {
        complaints.refuse_if(count == 0, key, || "must be at least 1".to_owned());
    }
    for (key, span) in [
        ("network.cni.plugin_timeout", config.network.cni.plugin_timeout),
        ("image.pull_progress_timeout", config.image.pull_progress_timeout),
        ("limits.request_deadline", config.limits.request_deadline),
        ("limits.run_pod_deadline", config.limits.run_pod_deadline),
        ("streaming.idle_timeout", config.streaming.idle_timeout),
        ("streaming.creation_timeout", config.streaming.creation_timeout),
    ] {
        complaints.refuse_if(span.is_zero(), key, || "must be longer than 0".to_owned());
    }
}

/// Smallest host part in bits: with fewer there is no room for the bridge and one pod.
const MIN_HOST_BITS: u8 = 2;

fn check_subnet(subnet: &str, is_v4: bool) -> Result<(), String> {
    if subnet.is_empty() {
        return Ok(());
    }
    let example = if is_v4 { "10.92.0.0/16" } else { "fd00:1::/64" };
    let bad = || format!("{subnet:?} is no subnet: write for example {example:?}");
    let (address, length) = subnet.split_once('/').ok_or_else(bad)?;
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let length: u8 = length.parse().map_err(|_| bad())?;
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    if address.is_ipv4() != is_v4 {
        return Err(format!("{subnet:?} is of the other address family"));
    }
    if length == 0 || length > width - MIN_HOST_BITS {
        return Err(format!("a prefix of {length} bits leaves no sensible number of addresses"));
    }
    let host_part = bits << length;
    if host_part != 0 {
        return Err(format!("{subnet:?} has bits set beyond its prefix of {length}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
