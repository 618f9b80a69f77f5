//! What the host has, as far as containers' specifications depend on it. Looked at once, when the daemon starts.
//!
//! What cannot be found out counts as not there: a container that needs it is then refused with the reason, and no
//! other is.

use super::seccomp::KernelVersion;
use super::{HostFacts, capability};
use rustix::fs::statfs;
use std::fs;
use std::path::Path;

/// statfs(2)'s type of a cgroup2 file system.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

impl HostFacts {
    /// Looks. The runtime's own AppArmor profile is not loaded here; whoever loads it sets `apparmor_default`.
    pub fn probe() -> Self {
        let uname = rustix::system::uname();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel: KernelVersion::parse(&uname.release().to_string_lossy()).unwrap_or(KernelVersion(0, 0)),
            cgroup_v2: statfs("/sys/fs/cgroup").is_ok_and(|found| u64::try_from(found.f_type) == Ok(CGROUP2_MAGIC)),
            capabilities: bounding_set(&status),
            default_capabilities: capability::mask(capability::DEFAULT),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y")),
            apparmor_default: None,
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }
}

/// CapBnd of /proc/self/status, of the capabilities that have a name here: one of a newer kernel is nobody's to ask for.
fn bounding_set(status: &str) -> u64 {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or_default();
    u64::from_str_radix(hex.trim(), 16).unwrap_or(0) & capability::ALL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_is_read_as_far_as_it_is_known() {
        assert_eq!(bounding_set("Name:\tx\nCapEff:\t0\nCapBnd:\t00000000a80425fb\n"), 0xa804_25fb);
        assert_eq!(bounding_set("CapBnd:\tffffffffffffffff\n"), capability::ALL);
        assert_eq!(bounding_set(""), 0);
        assert_eq!(bounding_set("CapBnd:\tnonsense\n"), 0);
    }

    #[test]
    fn this_host_has_a_kernel_and_a_name() {
        let facts = HostFacts::probe();
        assert!(facts.kernel >= KernelVersion(4, 0), "{facts:?}");
        assert!(!facts.hostname.is_empty(), "{facts:?}");
    }
}
