//! CNI network configurations: which files count, what is in them, and which are refused.
//!
//! Files are administrators' and plugins' installers'; yet everything that becomes a path or an argument is checked
//! here. Nothing is executed.

use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Bytes of one configuration file; real ones have a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Files looked at in one folder.
const FILES_MAX: usize = 1024;
/// Plugins in one list.
const PLUGINS_MAX: usize = 64;

/// A version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::network) struct Version(u16, u16, u16);

impl Version {
    /// Those whose results can be read here.
    pub const KNOWN: [Self; 7] =
        [Self(0, 1, 0), Self(0, 2, 0), Self(0, 3, 0), Self(0, 3, 1), Self(0, 4, 0), Self(1, 0, 0), Self(1, 1, 0)];
    /// A configuration without a version.
    const UNSAID: Self = Self(0, 1, 0);
    /// CHECK, and prevResult for DEL, came with this one.
    pub const CHECKS: Self = Self(0, 4, 0);
    /// GC and STATUS came with this one.
    pub const COLLECTS: Self = Self(1, 1, 0);

    /// Takes `major.minor.patch`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse::<u16>().ok());
        let version = Self(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::network) struct Plugin {
    /// Name of its executable; no path.
    pub kind: String,
    /// Capabilities that it declares.
    pub capabilities: BTreeSet<String>,
    /// What it is given, but for what is filled in per call.
    pub config: Map<String, Value>,
}

/// A network: plugins that are called one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::network) struct NetworkList {
    pub name: String,
    /// The highest version that the file and we know.
    pub version: Version,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Plugin>,
}

impl NetworkList {
    /// Reads a list, or a single plugin's configuration, which is a list of one.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
        let Value::Object(mut file) = value else { return Err("not a JSON object".to_owned()) };
        let name = text(&file, "name")?.ok_or("no name")?.to_owned();
        if !is_plain_name(&name) {
            return Err(format!("name {name:?}: letters, digits, '_', '.' and '-' only, first a letter or digit"));
        }
        let version = choose_version(&file)?;
        let (disable_check, disable_gc) = (flag(&file, "disableCheck")?, flag(&file, "disableGC")?);
        let raw = match file.remove("plugins") {
            Some(Value::Array(plugins)) => plugins,
            Some(_) => return Err("plugins is no list".to_owned()),
            None => vec![Value::Object(file)],
        };
        if raw.is_empty() || raw.len() > PLUGINS_MAX {
            return Err(format!("{} plugins; 1 to {PLUGINS_MAX} are possible", raw.len()));
        }
        let plugins = raw.into_iter().map(Plugin::parse).collect::<Result<_, _>>()?;
        Ok(Self { name, version, disable_check, disable_gc, plugins })
    }

    /// The list as it is written down beside a result, to undo it whatever becomes of the file.
    pub fn to_value(&self) -> Value {
        serde_json::json!({
            "name": self.name,
            "cniVersion": self.version.to_string(),
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "plugins": self.plugins.iter().map(|plugin| &plugin.config).collect::<Vec<_>>(),
        })
    }
}

impl Plugin {
    fn parse(value: Value) -> Result<Self, String> {
        let Value::Object(config) = value else { return Err("a plugin is no JSON object".to_owned()) };
        let kind = text(&config, "type")?.ok_or("a plugin without type")?.to_owned();
        // The type is looked for in the plugin folders: with a slash in it, any program could be meant.
        if kind.is_empty() || kind == "." || kind == ".." || kind.contains('/') || kind.contains('\0') {
            return Err(format!("plugin type {kind:?} is no file name"));
        }
        let mut capabilities = BTreeSet::new();
        if let Some(declared) = config.get("capabilities") {
            let declared = declared.as_object().ok_or_else(|| format!("capabilities of {kind} is no object"))?;
            capabilities
                .extend(declared.iter().filter(|(_, on)| on.as_bool() == Some(true)).map(|(name, _)| name.clone()));
        }
        Ok(Self { kind, capabilities, config })
    }
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("{key} is no text")),
    }
}

/// A flag as libcni takes it: true, false, or those words in quotes.
fn flag(map: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} is neither true nor false but {other}")),
    }
}

fn choose_version(file: &Map<String, Value>) -> Result<Version, String> {
    let mut offered: Vec<&str> = text(file, "cniVersion")?.into_iter().collect();
    if let Some(several) = file.get("cniVersions") {
        let several = several.as_array().ok_or("cniVersions is no list")?;
        offered.extend(several.iter().filter_map(Value::as_str));
    }
    if offered.is_empty() {
        return Ok(Version::UNSAID);
    }
    let known = offered.iter().filter_map(|text| Version::parse(text)).filter(|v| Version::KNOWN.contains(v)).max();
    known.ok_or_else(|| format!("cniVersion {} is none of those known here", offered.join(", ")))
}

/// Whether a name can be part of a file's name and of a plugin's arguments.
pub(in crate::network) fn is_plain_name(name: &str) -> bool {
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// What a folder's state is known by: names, sizes and times of its configuration files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::network) struct Signature(Vec<(PathBuf, Option<SystemTime>, u64, u64)>);

/// What was found in a folder.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::network) struct Loaded {
    /// Valid configurations in lexical order of their files, at most as many as asked for.
    pub lists: Vec<Arc<NetworkList>>,
    /// "file: why" of those that were skipped on the way.
    pub invalid: Vec<String>,
    /// Whether there is any configuration file at all.
    pub any_file: bool,
}

/// The folder's configuration files in lexical order. A folder that is not there has none.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let path = entry?.path();
        if path.extension().and_then(|e| e.to_str()).is_some_and(|e| ["conf", "conflist", "json"].contains(&e)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The folder's state now; blocks.
pub(in crate::network) fn signature(folder: &Path) -> io::Result<Signature> {
    use std::os::unix::fs::MetadataExt;
    let mut parts = Vec::new();
    for file in files(folder)? {
        // A link without a target is a file that is about to be written.
        let Ok(metadata) = fs::metadata(&file) else { continue };
        parts.push((file, metadata.modified().ok(), metadata.len(), metadata.ino()));
    }
    Ok(Signature(parts))
}

/// Reads up to `networks` valid configurations; blocks.
pub(in crate::network) fn load(folder: &Path, networks: usize) -> io::Result<Loaded> {
    let mut loaded = Loaded::default();
    for file in files(folder)? {
        loaded.any_file = true;
        if loaded.lists.len() >= networks {
            break;
        }
        match read(&file).and_then(|bytes| NetworkList::parse(&bytes)) {
            Ok(list) if loaded.lists.iter().any(|earlier| earlier.name == list.name) => {
                loaded.invalid.push(format!("{}: network {:?} is there already", file.display(), list.name));
            }
            Ok(list) => loaded.lists.push(Arc::new(list)),
            Err(why) => loaded.invalid.push(format!("{}: {why}", file.display())),
        }
    }
    Ok(loaded)
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let opened = fs::File::open(file).map_err(|e| e.to_string())?;
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let list = NetworkList::parse(br#"{"cniVersion":"0.4.0","name":"n","type":"bridge","mtu":9000}"#).unwrap();
        assert_eq!(list.plugins[0].kind, "bridge");
        assert_eq!(list.plugins[0].config["mtu"], 9000);
        assert_eq!(list.version, Version(0, 4, 0));
    }

    #[test]
    fn what_is_written_down_reads_the_same() {
        let text = br#"{"cniVersions":["1.0.0","1.1.0","9.0.0"],"cniVersion":"0.4.0","name":"n","disableCheck":"true",
            "plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true,"dns":false}}]}"#;
        let list = NetworkList::parse(text).unwrap();
        assert_eq!(list.version, Version(1, 1, 0));
        assert!(list.plugins[1].capabilities.contains("portMappings") && !list.plugins[1].capabilities.contains("dns"));
        let again = NetworkList::parse(list.to_value().to_string().as_bytes()).unwrap();
        assert_eq!(again, list);
    }

    #[test]
    fn a_plugin_type_cannot_leave_the_plugin_folders() {
        for kind in ["", ".", "..", "../../bin/sh", "/bin/sh", "a/b", "a\\u0000b"] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"{kind}"}}]}}"#);
            assert!(NetworkList::parse(text.as_bytes()).is_err(), "{kind}");
        }
    }

    #[test]
    fn names_that_would_be_paths_are_refused() {
        for name in ["", "../x", "a/b", "-x", "a;b", "a b", ".hidden"] {
            let text = serde_json::json!({"cniVersion": "1.0.0", "name": name, "type": "bridge"}).to_string();
            assert!(NetworkList::parse(text.as_bytes()).is_err(), "{name}");
        }
    }

    #[test]
    fn a_broken_file_is_skipped_and_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("10-a.conflist"), "{").unwrap();
        fs::write(dir.path().join("20-b.conf"), r#"{"cniVersion":"1.0.0","name":"b","type":"bridge"}"#).unwrap();
        fs::write(dir.path().join("05-ignored.txt"), "x").unwrap();
        let loaded = load(dir.path(), 1).unwrap();
        assert_eq!(loaded.lists[0].name, "b");
        assert!(loaded.invalid[0].contains("10-a.conflist"));
    }

    #[test]
    fn a_folder_that_is_not_there_has_no_configuration() {
        assert_eq!(load(Path::new("/nonexistent/net.d"), 1).unwrap(), Loaded::default());
    }

    proptest! {
        #[test]
        fn hostile_files_are_refused_or_safe(text in "\\PC*", name in "\\PC{0,12}", kind in "\\PC{0,12}") {
            let _ = NetworkList::parse(text.as_bytes());
            let file = serde_json::json!({"cniVersion": "1.0.0", "name": name, "type": kind}).to_string();
            if let Ok(list) = NetworkList::parse(file.as_bytes()) {
                prop_assert!(is_plain_name(&list.name) && !list.plugins[0].kind.contains('/'));
            }
        }
    }
}
