//! The names of Linux' capabilities, and who gets which.
//!
//! Whether the kernel or this process has them is not known here; a mask of what can be given is an input.

use knarr_model::spec::Security;

/// Every capability by its number, without "CAP_".
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Every capability there is.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// What a container has that asks for nothing: the same fourteen as with containerd and Docker.
pub const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The capabilities of a container's first process, as bit masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySets {
    /// bounding, effective and permitted
    pub bounding: u64,
    /// Kept by a process that is not root.
    pub ambient: u64,
}

/// The number of a capability by its upper-case name without "CAP_".
pub fn number(name: &str) -> Option<u8> {
    NAMES.iter().position(|known| *known == name).and_then(|at| u8::try_from(at).ok())
}

/// The names in a mask, lowest number first, without "CAP_".
pub fn names(mask: u64) -> impl Iterator<Item = &'static str> {
    NAMES.iter().enumerate().filter(move |(at, _)| mask & (1 << at) != 0).map(|(_, name)| *name)
}

/// The mask of some names; what is no capability does not count.
pub fn mask<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    names.into_iter().filter_map(number).fold(0, |mask, at| mask | 1 << at)
}

/// What a container gets, from `default` on, of what is `possible` at all: ALL is added first and dropped second, then single ones are
/// added and dropped, so that "drop ALL, add NET_BIND_SERVICE" leaves one and "add ALL, drop NET_RAW" all but one.
///
/// What cannot be given is left out without an error: on a host that lacks a capability every privileged pod would
/// fail otherwise.
pub fn sets(security: &Security, default: u64, possible: u64) -> CapabilitySets {
    if security.privileged {
        return CapabilitySets { bounding: ALL & possible, ambient: 0 };
    }
    let has_all = |list: &[String]| list.iter().any(|name| name == "ALL");
    let of = |list: &[String]| mask(list.iter().map(String::as_str));
    let mut bounding = default;
    if has_all(&security.add_capabilities) {
        bounding = ALL;
    }
    if has_all(&security.drop_capabilities) {
        bounding = 0;
    }
    bounding |= of(&security.add_capabilities);
    let mut ambient = of(&security.add_ambient_capabilities);
    if has_all(&security.add_ambient_capabilities) {
        ambient = ALL;
    }
    // Added ambient ones are in every set; what is dropped is in none.
    let dropped = of(&security.drop_capabilities);
    bounding = (bounding | ambient) & !dropped & possible;
    CapabilitySets { bounding, ambient: ambient & bounding }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(add: &[&str], drop: &[&str], ambient: &[&str]) -> Security {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Security {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            add_ambient_capabilities: owned(ambient),
            ..Security::default()
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        for (name, at) in
            [("CHOWN", 0), ("NET_ADMIN", 12), ("SYS_ADMIN", 21), ("MKNOD", 27), ("CHECKPOINT_RESTORE", 40)]
        {
            assert_eq!(number(name), Some(at), "{name}");
        }
        assert_eq!(number("CAP_CHOWN"), None);
        assert_eq!(number("chown"), None);
        assert_eq!(mask(DEFAULT), 0xa804_25fb, "the mask that containerd's containers show in /proc/self/status");
    }

    #[test]
    fn all_goes_first_and_single_names_count_after_it() {
        assert_eq!(sets(&security(&[], &[], &[]), mask(DEFAULT), ALL).bounding, mask(DEFAULT));
        assert_eq!(sets(&security(&["ALL"], &[], &[]), mask(DEFAULT), ALL).bounding, ALL);
        assert_eq!(sets(&security(&[], &["ALL"], &[]), mask(DEFAULT), ALL).bounding, 0);
        assert_eq!(sets(&security(&["NET_BIND_SERVICE"], &["ALL"], &[]), mask(DEFAULT), ALL).bounding, 1 << 10);
        assert_eq!(sets(&security(&["ALL"], &["NET_RAW"], &[]), mask(DEFAULT), ALL).bounding, ALL & !(1 << 13));
        assert_eq!(sets(&security(&["ALL"], &["ALL"], &[]), mask(DEFAULT), ALL).bounding, 0);
        assert_eq!(sets(&security(&["SYS_TIME"], &["SYS_TIME"], &[]), mask(DEFAULT), ALL).bounding, mask(DEFAULT));
    }

    #[test]
    fn ambient_ones_are_in_every_set_unless_dropped() {
        let got = sets(&security(&[], &["ALL"], &["NET_ADMIN"]), mask(DEFAULT), ALL);
        assert_eq!(got, CapabilitySets { bounding: 1 << 12, ambient: 1 << 12 });
        let got = sets(&security(&[], &["NET_ADMIN"], &["NET_ADMIN"]), mask(DEFAULT), ALL);
        assert_eq!(got.ambient, 0);
    }

    #[test]
    fn nobody_gets_what_cannot_be_given() {
        let privileged = Security { privileged: true, ..Security::default() };
        assert_eq!(sets(&privileged, mask(DEFAULT), 0b111).bounding, 0b111);
        assert_eq!(
            sets(&security(&["ALL"], &[], &["ALL"]), mask(DEFAULT), 0b11),
            CapabilitySets { bounding: 0b11, ambient: 0b11 }
        );
    }
}
