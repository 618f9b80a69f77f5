//! Where a test's pods are in the tree of cgroups, and who makes their cgroups.

use std::path::Path;

/// The variable that names the driver.
pub const DRIVER: &str = "KNARR_TEST_CGROUP_DRIVER";

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The daemon itself: works everywhere.
    Cgroupfs,
    /// systemd, which must be this machine's init, with cgroup v2.
    Systemd,
}

impl Driver {
    /// The one that this run is for.
    pub fn current() -> Self {
        match std::env::var(DRIVER).as_deref() {
            Ok("systemd") => Self::Systemd,
            _ => Self::Cgroupfs,
        }
    }

    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// A word that stands for a test with this directory and no other, without dashes: those mean something in slices.
pub fn word(directory: &Path) -> String {
    directory.file_name().and_then(|n| n.to_str()).unwrap_or("knarr-node").replace('-', "_")
}

/// The default parent of a test's pods: an absolute cgroup path, and what the daemon's configuration names.
pub fn parent(directory: &Path) -> String {
    match Driver::current() {
        Driver::Cgroupfs => format!("/{}", word(directory)),
        Driver::Systemd => format!("/{}.slice", word(directory)),
    }
}

/// The cgroup of a pod that came without a parent.
pub fn pod(directory: &Path, pod: &str) -> String {
    match Driver::current() {
        Driver::Cgroupfs => format!("{}/{pod}", parent(directory)),
        Driver::Systemd => format!("{}/{}-{pod}.slice", parent(directory), word(directory)),
    }
}

/// A parent as kubelet would give it, below the default one: it makes it before and removes it after.
pub fn kubelets(directory: &Path) -> String {
    match Driver::current() {
        Driver::Cgroupfs => format!("{}/kubepods/burstable/pod1", parent(directory)),
        Driver::Systemd => {
            let word = word(directory);
            format!("{}/{word}-kubepods.slice/{word}-kubepods-pod1.slice", parent(directory))
        }
    }
}

/// A container's own cgroup below its pod's.
pub fn container(pod: &str, id: &str) -> String {
    match Driver::current() {
        Driver::Cgroupfs => format!("{pod}/{id}"),
        Driver::Systemd => format!("{pod}/{}/container", scope(id)),
    }
}

/// The unit that systemd makes for a container.
pub fn scope(id: &str) -> String {
    format!("knarr-{id}.scope")
}
