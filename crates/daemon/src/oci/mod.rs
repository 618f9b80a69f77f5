//! From what was asked for to what the shim is told: the OCI runtime specification as a value, then the plan.
//!
//! [`build`] makes the specification of a container; whatever adjusts containers (devices by CDI, plug-ins) changes
//! that value, other runtimes get it as it is, and [`plan`] compiles it for our own. [`exec_plan`] is one more process
//! with everything that the first one has, made by the same code, so that the two cannot differ.
//!
//! These are functions of their inputs. What must be read from the host or the image is read by `beneath`, `devices`
//! and `seccomp::choose`, which may block.

pub mod beneath;
mod build;
pub mod capability;
pub mod cdi;
pub mod classes;
pub mod devices;
#[cfg(test)]
mod golden;
mod host;
mod label;
mod mounts;
mod plan;
pub mod pod;
mod process;
pub mod seccomp;
pub mod signal;
pub mod users;

pub use build::build;
pub use devices::DeviceNode;
pub use plan::{ExecRequest, PlanInputs, check_plannable, exec_plan, plan, stdio};
pub use seccomp::KernelVersion;

use knarr_model::spec::{ContainerSpec, PodSpec};
use knarr_model::{ContainerId, PodId};

/// What of an image's configuration says how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// ENTRYPOINT
    pub entrypoint: Vec<String>,
    /// CMD
    pub cmd: Vec<String>,
    /// ENV, as NAME=value
    pub env: Vec<String>,
    /// WORKDIR
    pub working_dir: String,
    /// USER, for [`users::resolve`]
    pub user: String,
    /// STOPSIGNAL, for [`signal::stop_signal`]
    pub stop_signal: String,
}

/// What the host has and this process may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The host's name, for pods on its network.
    pub hostname: String,
    /// The running kernel.
    pub kernel: KernelVersion,
    /// The cgroup2 hierarchy has the controllers; else they are in hierarchies of version 1.
    pub cgroup_v2: bool,
    /// Capabilities that can be given to others: this process' bounding set.
    pub capabilities: u64,
    /// What a container has that asks for none in particular.
    pub default_capabilities: u64,
    /// The kernel has seccomp filters.
    pub seccomp: bool,
    /// The kernel has AppArmor and it is on.
    pub apparmor: bool,
    /// The runtime's own AppArmor profile, if it could be loaded.
    pub apparmor_default: Option<String>,
    /// SELinux is on, enforcing or not.
    pub selinux: bool,
}

/// Everything that a container's specification is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Of which pod.
    pub pod_id: &'a PodId,
    /// Whose container it is.
    pub pod: &'a PodSpec,
    /// What was asked for.
    pub container: &'a ContainerSpec,
    /// What its image says.
    pub image: &'a ImageConfig,
    /// Whom it runs as, from [`users::resolve`].
    pub user: &'a users::ResolvedUser,
    /// Where the pod's files and namespaces would be on the host.
    pub pod_dir: &'a PodDir,
    /// In the form that the cgroup driver takes.
    pub cgroups_path: &'a str,
    /// From [`seccomp::choose`].
    pub seccomp: Option<&'a seccomp::Profile>,
    /// From [`devices::requested`], after [`devices::all`] when it is privileged.
    pub devices: &'a [DeviceNode],
    /// Every device may be opened, and the rules name none.
    pub all_devices: bool,
    /// What there is to be had.
    pub host: &'a HostFacts,
}

impl Inputs<'_> {
    /// The host name that the container sees.
    fn hostname(&self) -> &str {
        if self.pod.hostname.is_empty() { &self.host.hostname } else { &self.pod.hostname }
    }
}

/// The directory of a pod, and the names below it by which a specification speaks of what belongs to the pod.
///
/// Our own runtime never opens these paths: [`plan`] knows them again and says "the pod's". A foreign runtime finds
/// the files and namespaces there, where its handler has put them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir(String);

impl PodDir {
    /// `path` is absolute and has no slash at its end.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// One of the pod's files: "resolv.conf", "hostname", "hosts".
    pub fn file(&self, name: &str) -> String {
        format!("{}/files/{name}", self.0)
    }

    /// The pod's /dev/shm.
    pub fn shm(&self) -> String {
        format!("{}/shm", self.0)
    }

    /// The `number`-th image among the volumes of a container.
    pub fn image_volume(&self, number: usize) -> String {
        format!("{}/images/{number}", self.0)
    }

    /// A namespace of the pod: "net", "ipc", "uts", "pid".
    pub fn namespace(&self, kind: &str) -> String {
        format!("{}/ns/{kind}", self.0)
    }

    /// The PID namespace of a container of the pod.
    pub fn pid_namespace_of(&self, container: &ContainerId) -> String {
        format!("{}/ns/pid-{container}", self.0)
    }

    /// The name of the pod's file at `path`, if it is one.
    fn file_at<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&self.0)?.strip_prefix("/files/").filter(|name| !name.contains('/'))
    }

    /// The number of the image volume at `path`, if it is one.
    fn image_volume_at(&self, path: &str) -> Option<usize> {
        path.strip_prefix(&self.0)?.strip_prefix("/images/")?.parse().ok()
    }

    /// The container whose PID namespace is at `path`, if it is one.
    fn pid_namespace_at(&self, path: &str) -> Option<ContainerId> {
        ContainerId::parse(path.strip_prefix(&self.0)?.strip_prefix("/ns/pid-")?).ok()
    }
}

/// `path` without empty parts, `.` and `..`, as text: `/a//b/../c/` is `/a/c`. Good for comparing two paths of a
/// request, never for opening one.
fn cleaned(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
