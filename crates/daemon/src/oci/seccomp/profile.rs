//! Profiles as values: the format that Docker, containerd, CRI-O and kubelet's users write as JSON, and what is left
//! of one for a container on this machine.
//!
//! Whoever can write below kubelet's profile directory is trusted to say what a container may call, but not to be
//! free of mistakes: every refusal says where.

use super::bad_profile;
use crate::oci::capability;
use knarr_model::Error;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompBuilder, LinuxSyscall, LinuxSyscallBuilder,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use serde::Deserialize;
use std::fs::File;
use std::io::Read as _;

/// Bytes of a profile. Docker's own has 20 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Names of system calls in a profile, repetitions included. No machine has more than 500 calls.
const NAMES_MAX: usize = 20_000;
/// System call arguments are numbered from 0 to 5.
const ARGUMENTS: usize = 6;
/// The kernel's largest errno.
const ERRNO_MAX: u32 = 4095;

/// A kernel's first two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl KernelVersion {
    /// "6.1", "6.1.0-56-cloud-amd64"; `None` for what does not begin with two numbers.
    pub fn parse(release: &str) -> Option<Self> {
        let mut parts = release.split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?;
        let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
        Some(Self(major, minor[..digits].parse().ok()?))
    }
}

/// A profile for any container.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// For what no rule is about.
    pub(super) default_action: LinuxSeccompAction,
    /// For a default action of Errno; `None` is EPERM, and ENOSYS for calls newer than all that are named.
    pub(super) default_errno: Option<u32>,
    /// For which machines' programs; the machine's own is always among them.
    pub(super) architectures: Vec<Arch>,
    /// Instead of `architectures`: which others' programs go with a machine.
    pub(super) families: Vec<(Arch, Vec<Arch>)>,
    /// In any order.
    pub(super) rules: Vec<Rule>,
}

/// What is done about some system calls, if the container is one that the rule is for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rule {
    pub names: Vec<String>,
    pub action: LinuxSeccompAction,
    pub errno: Option<u32>,
    pub arguments: Vec<LinuxSeccompArg>,
    /// Must hold.
    pub includes: Condition,
    /// Must not hold, in any part.
    pub excludes: Condition,
}

/// When a rule counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Condition {
    /// Capabilities by name without "CAP_".
    pub capabilities: Vec<String>,
    /// Machines in Go's names.
    pub machines: Vec<String>,
    /// This kernel or a newer one.
    pub min_kernel: Option<KernelVersion>,
}

impl Condition {
    /// Holds with a capability.
    pub fn having(capability: &str) -> Self {
        Self { capabilities: vec![capability.to_owned()], ..Self::default() }
    }

    /// Holds on some machines, separated by spaces.
    pub fn on(machines: &str) -> Self {
        Self { machines: words(machines), ..Self::default() }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl Rule {
    /// Allows some calls, whatever their arguments; names are separated by spaces.
    pub fn allow(names: &str) -> Self {
        Self {
            names: words(names),
            action: LinuxSeccompAction::ScmpActAllow,
            errno: None,
            arguments: Vec::new(),
            includes: Condition::default(),
            excludes: Condition::default(),
        }
    }

    /// Only with this argument too.
    pub fn with(mut self, argument: LinuxSeccompArg) -> Self {
        self.arguments.push(argument);
        self
    }

    /// Only when this holds.
    pub fn only(self, includes: Condition) -> Self {
        Self { includes, ..self }
    }

    /// Not when any of this holds.
    pub fn unless(self, excludes: Condition) -> Self {
        Self { excludes, ..self }
    }

    /// Not on this machine either, besides what excludes it already.
    pub fn not_on(mut self, machine: &str) -> Self {
        self.excludes.machines.push(machine.to_owned());
        self
    }

    fn counts(&self, bounding: u64, kernel: KernelVersion, machine: &str) -> bool {
        let has = |name: &String| capability::mask([name.as_str()]) & bounding != 0;
        let (yes, no) = (&self.includes, &self.excludes);
        yes.capabilities.iter().all(has)
            && (yes.machines.is_empty() || yes.machines.iter().any(|name| name == machine))
            && yes.min_kernel.is_none_or(|min| kernel >= min)
            && !no.capabilities.iter().any(has)
            && !no.machines.iter().any(|name| name == machine)
            && no.min_kernel.is_none_or(|min| kernel < min)
    }
}

impl Profile {
    /// What of the profile holds for a container with these capabilities in its bounding set on this kernel.
    pub fn resolve(&self, bounding: u64, kernel: KernelVersion) -> Result<LinuxSeccomp, Error> {
        self.resolve_on(bounding, kernel, this_machine())
    }

    fn resolve_on(&self, bounding: u64, kernel: KernelVersion, machine: &str) -> Result<LinuxSeccomp, Error> {
        let counting =
            self.rules.iter().filter(|rule| !rule.names.is_empty() && rule.counts(bounding, kernel, machine));
        let syscalls = counting.map(syscall).collect::<Result<Vec<_>, _>>()?;
        let mut builder = LinuxSeccompBuilder::default()
            .default_action(self.default_action)
            .architectures(self.architectures_on(machine))
            .syscalls(syscalls);
        if let Some(errno) = self.default_errno {
            builder = builder.default_errno_ret(errno);
        }
        builder.build().map_err(bad_profile)
    }

    fn architectures_on(&self, machine: &str) -> Vec<Arch> {
        let family = self.families.iter().find(|(head, _)| go_name(*head) == Some(machine));
        match family {
            Some((head, others)) => std::iter::once(*head).chain(others.iter().copied()).collect(),
            None => self.architectures.clone(),
        }
    }
}

fn syscall(rule: &Rule) -> Result<LinuxSyscall, Error> {
    let mut builder = LinuxSyscallBuilder::default().names(rule.names.clone()).action(rule.action);
    if !rule.arguments.is_empty() {
        builder = builder.args(rule.arguments.clone());
    }
    if let Some(errno) = rule.errno {
        builder = builder.errno_ret(errno);
    }
    builder.build().map_err(bad_profile)
}

/// This machine in Go's names, which profiles use.
fn this_machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    }
}

/// The name that profiles use for a machine whose kernel has this architecture.
fn go_name(arch: Arch) -> Option<&'static str> {
    match arch {
        Arch::ScmpArchX86_64 => Some("amd64"),
        Arch::ScmpArchX86 => Some("386"),
        Arch::ScmpArchAarch64 => Some("arm64"),
        Arch::ScmpArchArm => Some("arm"),
        Arch::ScmpArchPpc64le => Some("ppc64le"),
        Arch::ScmpArchS390x => Some("s390x"),
        Arch::ScmpArchRiscv64 => Some("riscv64"),
        Arch::ScmpArchLoongarch64 => Some("loong64"),
        Arch::ScmpArchMips64 => Some("mips64"),
        Arch::ScmpArchMipsel64 => Some("mips64le"),
        _ => None,
    }
}

/// Reads a profile from an absolute path of the host.
pub fn load(path: &str) -> Result<Profile, Error> {
    let failed = |why: &dyn std::fmt::Display| bad_profile(format!("{path}: {why}"));
    // Opening a FIFO must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = openat(CWD, path, flags, Mode::empty()).map_err(|errno| failed(&std::io::Error::from(errno)))?;
    let stat = fstat(&file).map_err(|errno| failed(&std::io::Error::from(errno)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(&"is no regular file"));
    }
    let mut json = Vec::new();
    File::from(file).take(FILE_BYTES_MAX + 1).read_to_end(&mut json).map_err(|error| failed(&error))?;
    if json.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(&format!("has more than {FILE_BYTES_MAX} bytes")));
    }
    parse(&json).map_err(|error| error.context(path))
}

/// Parses a profile.
pub fn parse(json: &[u8]) -> Result<Profile, Error> {
    let file: ProfileFile = serde_json::from_slice(json).map_err(bad_profile)?;
    if file.listener_path.is_some_and(|path| !path.is_empty())
        || file.default_action == LinuxSeccompAction::ScmpActNotify
    {
        return Err(bad_profile("SCMP_ACT_NOTIFY and listenerPath are not supported"));
    }
    let (architectures, arch_map) = (file.architectures.unwrap_or_default(), file.arch_map.unwrap_or_default());
    if !architectures.is_empty() && !arch_map.is_empty() {
        return Err(bad_profile("architectures and archMap are both given"));
    }
    let rules = file.syscalls.unwrap_or_default();
    let names: usize = rules.iter().map(|rule| rule.names.as_ref().map_or(1, Vec::len)).sum();
    if names > NAMES_MAX {
        return Err(bad_profile(format!("names {names} system calls, at most {NAMES_MAX} are possible")));
    }
    let rules = rules
        .into_iter()
        .enumerate()
        .map(|(at, rule)| rule.parse().map_err(|error| error.context(format!("syscalls[{at}]"))));
    Ok(Profile {
        default_action: file.default_action,
        default_errno: checked_errno(file.default_errno_ret)?,
        architectures,
        families: arch_map
            .into_iter()
            .map(|entry| (entry.architecture, entry.sub_architectures.unwrap_or_default()))
            .collect(),
        rules: rules.collect::<Result<_, _>>()?,
    })
}

fn checked_errno(errno: Option<u32>) -> Result<Option<u32>, Error> {
    match errno {
        Some(errno) if errno > ERRNO_MAX => Err(bad_profile(format!("{errno} is no errno"))),
        _ => Ok(errno),
    }
}

/// The file as it is written. Unknown fields are passed over: profiles are full of comments.
///
/// `flags` are among them: they change what is logged and how fast it is, never what is allowed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileFile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMapEntry>>,
    listener_path: Option<String>,
    syscalls: Option<Vec<RuleFile>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMapEntry {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleFile {
    /// The way of 2014.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<ConditionFile>,
    excludes: Option<ConditionFile>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ConditionFile {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl RuleFile {
    fn parse(self) -> Result<Rule, Error> {
        if self.action == LinuxSeccompAction::ScmpActNotify {
            return Err(bad_profile("SCMP_ACT_NOTIFY is not supported"));
        }
        let arguments = self.args.unwrap_or_default();
        if let Some(argument) = arguments.iter().find(|argument| argument.index() >= ARGUMENTS) {
            return Err(bad_profile(format!("there is no argument {}", argument.index())));
        }
        Ok(Rule {
            names: self.names.unwrap_or_default().into_iter().chain(self.name).collect(),
            action: self.action,
            errno: checked_errno(self.errno_ret)?,
            arguments,
            includes: self.includes.unwrap_or_default().parse()?,
            excludes: self.excludes.unwrap_or_default().parse()?,
        })
    }
}

impl ConditionFile {
    fn parse(self) -> Result<Condition, Error> {
        let bare = |name: String| {
            let upper = name.to_ascii_uppercase();
            upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
        };
        let min_kernel = self.min_kernel.map(|text| {
            KernelVersion::parse(&text).ok_or_else(|| bad_profile(format!("minKernel {text:?} is no version")))
        });
        Ok(Condition {
            capabilities: self.caps.unwrap_or_default().into_iter().map(bare).collect(),
            machines: self.arches.unwrap_or_default(),
            min_kernel: min_kernel.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: KernelVersion = KernelVersion(6, 1);

    const DOCKER_STYLE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "comment": "passed over",
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": ""},
            {"name": "mkdir", "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_SYSLOG"]}},
            {"names": ["umount"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_SYSLOG"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390x"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}
        ]}"#;

    fn names(seccomp: &LinuxSeccomp) -> Vec<String> {
        seccomp.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn conditions_decide_which_rules_are_left() {
        let profile = parse(DOCKER_STYLE.as_bytes()).unwrap();
        let (admin, syslog) = (1 << 21, 1 << 34);
        for (bounding, kernel, machine, expected) in [
            (0, KERNEL, "amd64", "read write mkdir umount bpf clone"),
            (admin, KERNEL, "amd64", "read write mkdir bpf clone"),
            (admin | syslog, KERNEL, "amd64", "read write mkdir mount bpf clone"),
            (0, KernelVersion(6, 2), "amd64", "read write mkdir umount ptrace bpf clone"),
            (0, KernelVersion(7, 0), "s390x", "read write mkdir umount ptrace clone"),
        ] {
            let resolved = profile.resolve_on(bounding, kernel, machine).unwrap();
            assert_eq!(names(&resolved).join(" "), expected, "{bounding:x} {kernel:?} {machine}");
        }
        let resolved = profile.resolve_on(0, KERNEL, "amd64").unwrap();
        assert_eq!(resolved.architectures().as_deref(), Some(&[Arch::ScmpArchX86_64, Arch::ScmpArchX86][..]));
        assert_eq!(resolved.default_errno_ret(), Some(38));
    }

    #[test]
    fn a_bad_profile_says_what_is_wrong() {
        for (json, part) in [
            ("", "EOF"),
            ("[]", "invalid length"),
            (r#"{"syscalls": []}"#, "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "SCMP_ACT_MAYBE"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "NOTIFY"),
            (r#"{"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 5000}"#, "5000"),
            (
                r#"{"defaultAction": "SCMP_ACT_KILL", "architectures": ["SCMP_ARCH_X86"],
                "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#,
                "both",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
                "syscalls[0]",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_KILL", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW",
                "includes": {"minKernel": "new"}}]}"#,
                "minKernel",
            ),
        ] {
            let error = parse(json.as_bytes()).unwrap_err();
            assert!(error.message.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn a_profile_file_is_read_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("good.json"), DOCKER_STYLE).unwrap();
        assert_eq!(load(&path("good.json")).unwrap(), parse(DOCKER_STYLE.as_bytes()).unwrap());
        std::os::unix::fs::symlink("good.json", path("link.json")).unwrap();
        assert!(load(&path("link.json")).is_ok());
        rustix::fs::mkfifoat(CWD, path("fifo.json"), Mode::RUSR).unwrap();
        File::create(path("big.json")).unwrap().set_len(1 << 40).unwrap();
        for name in ["missing.json", "fifo.json", "big.json", "."] {
            let error = load(&path(name)).unwrap_err();
            assert!(error.message.contains(&path(name)), "{error}");
        }
    }

    #[test]
    fn kernel_releases_are_read_as_far_as_they_are_numbers() {
        assert_eq!(KernelVersion::parse("6.1.0-56-cloud-amd64"), Some(KernelVersion(6, 1)));
        assert_eq!(KernelVersion::parse("4.8"), Some(KernelVersion(4, 8)));
        assert_eq!(KernelVersion::parse("6.18-rc1"), Some(KernelVersion(6, 18)));
        assert_eq!(KernelVersion::parse("six"), None);
        assert!(KernelVersion(6, 9) < KernelVersion(6, 18));
    }
}
