//! One file of the Container Device Interface: its fields as the specification has them, and what makes a file wrong.
//!
//! Versions 0.1.0 to 1.1.0 are read. As with the reference implementation an unknown field is an error, and so is one
//! that is newer than the version that the file claims. What the fields do to a container is in [`super::inject`].

use super::name;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Every version that there is, oldest first.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// Bytes of a class of service's name: the kernel makes a directory of it.
const CLOS_ID_BYTES_MAX: usize = 255;

/// In place of permissions: the node is there, and its use is not allowed by it.
pub(super) const NO_PERMISSIONS: &str = "none";

/// When hooks run, by their names in both specifications.
pub(super) const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SpecFile {
    cdi_version: String,
    /// vendor/class
    pub(super) kind: String,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) devices: Vec<Device>,
    /// For every container that gets any device of this file.
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) container_edits: Edits,
}

/// One device of a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) container_edits: Edits,
}

/// What is changed in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// NAME=value
    #[serde(deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) net_devices: Vec<NetDevice>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) hooks: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IntelRdt>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DeviceNode {
    /// in the container
    pub(super) path: String,
    /// on the host; empty for the same
    pub(super) host_path: String,
    /// "b", "c", "u", "p", or empty for what the host has
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) major: i64,
    pub(super) minor: i64,
    #[serde(deserialize_with = "mode")]
    pub(super) file_mode: Option<u32>,
    /// some of "rwm", "none", or empty for all
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Hook {
    /// one of [`HOOKS`]
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    /// seconds
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) options: Vec<String>,
    /// Empty for a bind mount.
    #[serde(rename = "type")]
    pub(super) kind: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub(super) clos_id: String,
    pub(super) l3_cache_schema: String,
    pub(super) mem_bw_schema: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) schemata: Vec<String>,
    pub(super) enable_monitoring: bool,
}

/// A field that is there without a value, as YAML writes empty lists, is as good as absent.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Permission bits. YAML's `0666` is a number in version 1.1, by which these files are written, and a text in 1.2.
fn mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u32),
        Text(String),
    }
    match Option::deserialize(from)? {
        None => Ok(None),
        Some(Written::Number(bits)) => Ok(Some(bits)),
        Some(Written::Text(text)) => {
            let digits = text.strip_prefix("0o").or(text.strip_prefix('0')).unwrap_or_default();
            let bits = u32::from_str_radix(digits, 8);
            bits.map(Some).map_err(|_| serde::de::Error::custom(format!("{text:?} is no file mode like 0666")))
        }
    }
}

impl SpecFile {
    /// Reads a file of either format: JSON is YAML too. The error names the field, and the line where YAML knows it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let file: Self = yaml_serde::from_str(text).map_err(|error| error.to_string())?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        let claimed = VERSIONS.iter().position(|known| *known == self.cdi_version.trim_start_matches('v'));
        let claimed =
            claimed.ok_or_else(|| format!("cdiVersion: {:?} is no version that is known", self.cdi_version))?;
        if let Some((needed, field)) = self.newest_feature().filter(|(needed, _)| at(needed) > claimed) {
            return Err(format!("cdiVersion: is {}, and {field} needs {needed}", VERSIONS[claimed]));
        }
        name::check_kind(&self.kind).map_err(|why| format!("kind: {why}"))?;
        self.container_edits.check("containerEdits")?;
        if self.devices.is_empty() {
            return Err("devices: there is none".into());
        }
        let mut seen = BTreeSet::new();
        for (number, device) in self.devices.iter().enumerate() {
            let field = format!("devices[{number}]");
            name::check_device(&device.name).map_err(|why| format!("{field}.name: {why}"))?;
            if !seen.insert(&device.name) {
                return Err(format!("{field}.name: {:?} is there twice", device.name));
            }
            if device.container_edits == Edits::default() {
                return Err(format!("{field}.containerEdits: is empty"));
            }
            device.container_edits.check(&format!("{field}.containerEdits"))?;
        }
        Ok(())
    }

    /// The field that asks for the highest version, with that version.
    fn newest_feature(&self) -> Option<(&'static str, &'static str)> {
        let all = || self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits]);
        let rdt = || all().filter_map(|edits| edits.intel_rdt.as_ref());
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
        let features = [
            ("1.1.0", "netDevices", all().any(|edits| !edits.net_devices.is_empty())),
            ("1.1.0", "intelRdt.schemata", rdt().any(|rdt| !rdt.schemata.is_empty())),
            ("1.1.0", "intelRdt.enableMonitoring", rdt().any(|rdt| rdt.enable_monitoring)),
            ("0.7.0", "intelRdt", rdt().next().is_some()),
            ("0.7.0", "additionalGids", all().any(|edits| !edits.additional_gids.is_empty())),
            ("0.6.0", "annotations", !self.annotations.is_empty()),
            ("0.6.0", "annotations of a device", self.devices.iter().any(|device| !device.annotations.is_empty())),
            ("0.6.0", "a dot in the class of kind", class.contains('.')),
            ("0.5.0", "a device's name that begins with a digit", self.devices.iter().any(digit)),
            (
                "0.5.0",
                "hostPath of a device node",
                all().any(|e| e.device_nodes.iter().any(|n| !n.host_path.is_empty())),
            ),
            ("0.4.0", "type of a mount", all().any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty()))),
        ];
        features.into_iter().find(|(.., used)| *used).map(|(version, field, _)| (version, field))
    }
}

fn at(version: &str) -> usize {
    VERSIONS.iter().position(|known| *known == version).unwrap_or(VERSIONS.len())
}

impl Edits {
    /// Adds what other edits say; of two classes of service the later counts.
    pub(super) fn append(&mut self, other: &Self) {
        self.env.extend_from_slice(&other.env);
        self.device_nodes.extend_from_slice(&other.device_nodes);
        self.net_devices.extend_from_slice(&other.net_devices);
        self.hooks.extend_from_slice(&other.hooks);
        self.mounts.extend_from_slice(&other.mounts);
        self.intel_rdt = other.intel_rdt.clone().or(self.intel_rdt.take());
        self.additional_gids.extend_from_slice(&other.additional_gids);
    }

    fn check(&self, field: &str) -> Result<(), String> {
        check_env(&self.env).map_err(|why| format!("{field}.env{why}"))?;
        each(&self.device_nodes, &format!("{field}.deviceNodes"), DeviceNode::check)?;
        each(&self.hooks, &format!("{field}.hooks"), Hook::check)?;
        each(&self.mounts, &format!("{field}.mounts"), Mount::check)?;
        each(&self.net_devices, &format!("{field}.netDevices"), NetDevice::check)?;
        let mut seen = BTreeSet::new();
        let names = self.net_devices.iter().flat_map(|one| [("host", &one.host_interface_name), ("", &one.name)]);
        if let Some((_, twice)) = names.into_iter().find(|name| !seen.insert(*name)) {
            return Err(format!("{field}.netDevices: {twice:?} is there twice"));
        }
        let rdt = self.intel_rdt.as_ref().map_or(Ok(()), IntelRdt::check);
        rdt.map_err(|why| format!("{field}.intelRdt{why}"))
    }
}

/// Checks all of a list; an error begins with what follows the list's name: "[1].path: …".
fn each<T>(list: &[T], field: &str, check: impl Fn(&T) -> Result<(), String>) -> Result<(), String> {
    let mut numbered = list.iter().enumerate();
    numbered.try_for_each(|(number, one)| check(one).map_err(|why| format!("{field}[{number}]{why}")))
}

fn check_env(env: &[String]) -> Result<(), String> {
    let bad = |entry: &&String| entry.find('=').is_none_or(|place| place == 0) || entry.contains('\0');
    match env.iter().find(bad) {
        Some(entry) => Err(format!(": {entry:?} is not like NAME=value")),
        None => Ok(()),
    }
}

fn check_path(field: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(format!(".{field}: {path:?} is not an absolute path"))
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        check_path("path", &self.path)?;
        if !self.host_path.is_empty() {
            check_path("hostPath", &self.host_path)?;
        }
        if !["", "b", "c", "u", "p"].contains(&self.kind.as_str()) {
            return Err(format!(".type: {:?} is none of b, c, u and p", self.kind));
        }
        for (field, number) in [("major", self.major), ("minor", self.minor)] {
            if u32::try_from(number).is_err() {
                return Err(format!(".{field}: {number} is no device number"));
            }
        }
        let made_of = self.permissions.chars().all(|c| matches!(c, 'r' | 'w' | 'm'));
        if !made_of && self.permissions != NO_PERMISSIONS {
            return Err(format!(".permissions: {:?} is neither made of r, w and m nor \"none\"", self.permissions));
        }
        Ok(())
    }
}

impl NetDevice {
    fn check(&self) -> Result<(), String> {
        for (field, name) in [("hostInterfaceName", &self.host_interface_name), ("name", &self.name)] {
            if name.is_empty() {
                return Err(format!(".{field}: is empty"));
            }
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        if !HOOKS.contains(&self.hook_name.as_str()) {
            return Err(format!(".hookName: {:?} is none of {}", self.hook_name, HOOKS.join(", ")));
        }
        check_path("path", &self.path)?;
        check_env(&self.env).map_err(|why| format!(".env{why}"))?;
        match self.timeout {
            Some(seconds @ ..=0) => Err(format!(".timeout: {seconds} is not above 0")),
            _ => Ok(()),
        }
    }
}

impl Mount {
    fn check(&self) -> Result<(), String> {
        if self.host_path.is_empty() {
            return Err(".hostPath: is empty".into());
        }
        check_path("containerPath", &self.container_path)
    }
}

impl IntelRdt {
    fn check(&self) -> Result<(), String> {
        let id = &self.clos_id;
        let bad = id.len() > CLOS_ID_BYTES_MAX || id.contains(['/', '\n', '\0']) || matches!(id.as_str(), "." | "..");
        if bad { Err(format!(".closID: {id:?} is no name of a class")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A file of version `version` whose one device has these edits.
    fn with(version: &str, edits: &str) -> String {
        format!("cdiVersion: {version}\nkind: vendor.com/gpu\ndevices:\n- name: one\n  containerEdits:\n    {edits}\n")
    }

    #[test]
    fn a_file_as_vendors_write_it_is_read_in_both_formats() {
        let yaml = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/nvidiactl
    fileMode: 0666
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-ldcache]
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, rbind, rprivate]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      hostPath: /dev/nvidia3
- name: all
  containerEdits:
    deviceNodes:
    - {path: /dev/nvidia0, major: 195, type: c, permissions: rw, uid: 0, gid: 44}
"#;
        let file = SpecFile::parse(yaml).unwrap();
        assert_eq!((file.kind.as_str(), file.devices.len()), ("nvidia.com/gpu", 2));
        assert_eq!(file.container_edits.device_nodes[0].file_mode, Some(0o666));
        assert_eq!(file.container_edits.hooks[0].args, ["nvidia-cdi-hook", "update-ldcache"]);
        assert_eq!(file.devices[1].container_edits.device_nodes[0].gid, Some(44));

        let json = r#"{"cdiVersion":"0.3.0","kind":"vendor.com/net","annotations":null,
            "devices":[{"name":"x","containerEdits":{"env":["A=\"b\""],"deviceNodes":null}}]}"#;
        let file = SpecFile::parse(json).unwrap();
        assert_eq!(file.devices[0].container_edits.env, ["A=\"b\""]);
    }

    #[test]
    fn a_mode_is_octal_however_it_is_written() {
        for (written, mode) in [("0666", Some(0o666)), ("0o640", Some(0o640)), ("438", Some(438)), ("null", None)] {
            let file = SpecFile::parse(&with("0.3.0", &format!("deviceNodes: [{{path: /d, fileMode: {written}}}]")));
            assert_eq!(file.unwrap().devices[0].container_edits.device_nodes[0].file_mode, mode, "{written}");
        }
        assert!(SpecFile::parse(&with("0.3.0", "deviceNodes: [{path: /d, fileMode: rw-}]")).is_err());
    }

    #[test]
    fn a_newer_field_than_the_version_is_named() {
        for (oldest, edits, field) in [
            ("0.4.0", "mounts: [{hostPath: /a, containerPath: /b, type: bind}]", "type of a mount"),
            ("0.5.0", "deviceNodes: [{path: /dev/a, hostPath: /dev/b}]", "hostPath"),
            ("0.7.0", "additionalGids: [4]", "additionalGids"),
            ("0.7.0", "intelRdt: {closID: gold}", "intelRdt"),
            ("1.1.0", "intelRdt: {schemata: [\"MB:0=10\"]}", "schemata"),
            ("1.1.0", "netDevices: [{hostInterfaceName: eth1, name: net1}]", "netDevices"),
        ] {
            SpecFile::parse(&with(oldest, edits)).unwrap();
            let error = SpecFile::parse(&with(VERSIONS[at(oldest) - 1], edits)).unwrap_err();
            assert!(error.starts_with("cdiVersion: ") && error.contains(field) && error.contains(oldest), "{error}");
        }
        let dotted = with("0.5.0", "env: [A=b]").replace("vendor.com/gpu", "vendor.com/gpu.large");
        assert!(SpecFile::parse(&dotted).unwrap_err().contains("0.6.0"));
        let digit = with("0.4.0", "env: [A=b]").replace("name: one", "name: 1one");
        assert!(SpecFile::parse(&digit).unwrap_err().contains("0.5.0"));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_name_of_the_field() {
        let good = with("1.1.0", "env: [A=b]");
        for (from, to, field) in [
            ("1.1.0", "2.0.0", "cdiVersion: "),
            ("vendor.com/gpu", "gpu", "kind: "),
            ("vendor.com/gpu", "1vendor/gpu", "kind: "),
            ("name: one", "name: -one", "devices[0].name: "),
            ("name: one", "nome: one", "devices[0]"),
            ("- name: one", "- name: one\n  containerEdits: {env: [A=b]}\n- name: one", "devices[1].name: "),
            ("    env: [A=b]", "    env: []", "devices[0].containerEdits: "),
            ("env: [A=b]", "env: [A]", "devices[0].containerEdits.env: "),
            ("env: [A=b]", "env: 7", "devices[0].containerEdits.env"),
            ("env: [A=b]", "enf: [A=b]", "devices[0].containerEdits"),
            ("env: [A=b]", "deviceNodes: [{path: ''}]", "devices[0].containerEdits.deviceNodes[0].path: "),
            ("env: [A=b]", "deviceNodes: [{path: /d, type: x}]", "devices[0].containerEdits.deviceNodes[0].type: "),
            ("env: [A=b]", "deviceNodes: [{path: /d, major: -1}]", "devices[0].containerEdits.deviceNodes[0].major: "),
            (
                "env: [A=b]",
                "deviceNodes: [{path: /d, permissions: rx}]",
                "devices[0].containerEdits.deviceNodes[0].permissions: ",
            ),
            ("env: [A=b]", "hooks: [{hookName: x, path: /h}]", "devices[0].containerEdits.hooks[0].hookName: "),
            ("env: [A=b]", "hooks: [{hookName: poststop, path: h}]", "devices[0].containerEdits.hooks[0].path: "),
            ("env: [A=b]", "mounts: [{containerPath: /a}]", "devices[0].containerEdits.mounts[0].hostPath: "),
            ("env: [A=b]", "mounts: [{hostPath: /a}]", "devices[0].containerEdits.mounts[0].containerPath: "),
            ("env: [A=b]", "intelRdt: {closID: ../x}", "devices[0].containerEdits.intelRdt.closID: "),
            ("env: [A=b]", "netDevices: [{name: a}]", "devices[0].containerEdits.netDevices[0].hostInterfaceName: "),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from}");
            let error = SpecFile::parse(&text).expect_err(&text);
            assert!(error.starts_with(field), "{field} is not the beginning of {error:?}");
        }
        for text in ["", "---\n", "[]", "{", "\t", "cdiVersion: 1.0.0\nkind: a/b\n"] {
            SpecFile::parse(text).expect_err(text);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = SpecFile::parse(&text);
        }

        #[test]
        fn cut_or_changed_files_are_read_or_refused(at in 0usize..600, with in any::<char>()) {
            let good = include_str!("testdata/vendor.yaml");
            let at = good.char_indices().map(|(place, _)| place).nth(at % good.len()).unwrap_or(0);
            let _ = SpecFile::parse(&good[..at]);
            let mut changed = good.to_owned();
            changed.replace_range(at..at + good[at..].chars().next().map_or(0, char::len_utf8), &with.to_string());
            let _ = SpecFile::parse(&changed);
        }
    }
}
