//! A manifest's container as CRI's ContainerConfig, as kubelet would fill it in.

use std::collections::{BTreeMap, HashMap};

use knarr_cri_api::v1;
use serde_json::json;

use super::environment::Facts;
use super::expand::expand;
use super::sandbox_config::{
    LABEL_CONTAINER_NAME, LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID, groups_policy, namespace_options,
    supplemental_groups,
};
use super::schema::{Container, Pod, Profile, Protocol, Role, SeLinux, SharedSecurity};

/// kubelet's annotation with the grace period, by which anybody can stop the container politely.
pub const ANNOTATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
/// kubelet's annotation with the ports, which CRI has no field for in a container's status.
pub const ANNOTATION_PORTS: &str = "io.kubernetes.container.ports";
/// kubelet's annotation with the number of restarts.
pub const ANNOTATION_RESTARTS: &str = "io.kubernetes.container.restartCount";
/// "init", "sidecar" or "main": what `knarr start` waits for.
pub const ANNOTATION_ROLE: &str = "knarr.role";
/// The place in the order of starting.
pub const ANNOTATION_ORDER: &str = "knarr.order";

/// Where kubelet looks for seccomp profiles of type Localhost.
const SECCOMP_DIRECTORY: &str = "/var/lib/kubelet/seccomp";

/// The usual period of CPU quotas.
const CPU_PERIOD_US: i64 = 100_000;
/// The kernel takes no quota below a millisecond.
const MIN_CPU_QUOTA_US: i64 = 1_000;

/// Hidden from containers by every runtime: the kernel's memory, keys and timers, firmware, power readings.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Shown but not writable: what would change the host.
const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a container needs to know beyond the manifest.
pub struct Ingredients<'a> {
    /// What is known of the pod now.
    pub facts: &'a Facts,
    /// The image as the runtime has it.
    pub image: &'a v1::Image,
    /// Its variables, worked out.
    pub environment: &'a [(String, String)],
    /// Its volumes, prepared.
    pub mounts: Vec<v1::Mount>,
    /// How often it was started before.
    pub attempt: u32,
}

/// The container's log below the pod's log directory, as kubelet lays it out.
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// The container that the pod asks for.
///
/// # Errors
/// runAsNonRoot with an image that runs as root or does not say.
pub fn container_config(
    pod: &Pod,
    container: &Container,
    ingredients: Ingredients<'_>,
) -> Result<v1::ContainerConfig, String> {
    let security_context = security_context(pod, container, ingredients.image)?;
    let variables: BTreeMap<&str, &str> =
        ingredients.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expanded =
        |words: &[String]| words.iter().map(|word| expand(word, |name| variables.get(name).copied())).collect();
    let envs = ingredients.environment.iter();
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt: ingredients.attempt }),
        image: Some(v1::ImageSpec {
            image: ingredients.image.id.clone(),
            user_specified_image: container.image.clone(),
            ..v1::ImageSpec::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        envs: envs.map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone().into() }).collect(),
        mounts: ingredients.mounts,
        labels: labels(pod, container, ingredients.facts),
        annotations: annotations(pod, container, ingredients.attempt),
        log_path: log_path(&container.name, ingredients.attempt),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources(pod, container, ingredients.facts.node_memory_bytes)),
            security_context: Some(security_context),
        }),
        stop_signal: v1::Signal::from_str_name(&container.stop_signal).unwrap_or_default() as i32,
        ..v1::ContainerConfig::default()
    })
}

fn labels(pod: &Pod, container: &Container, facts: &Facts) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_POD_NAME.to_owned(), pod.name.clone()),
        (LABEL_POD_NAMESPACE.to_owned(), pod.namespace.clone()),
        (LABEL_POD_UID.to_owned(), facts.uid.clone()),
        (LABEL_CONTAINER_NAME.to_owned(), container.name.clone()),
    ])
}

fn annotations(pod: &Pod, container: &Container, attempt: u32) -> HashMap<String, String> {
    let role = match container.role {
        Role::Init => "init",
        Role::Sidecar => "sidecar",
        Role::Main => "main",
    };
    let order = pod.all_containers().position(|one| one.name == container.name).unwrap_or_default();
    let mut annotations = HashMap::from([
        (ANNOTATION_GRACE.to_owned(), pod.grace_s.to_string()),
        (ANNOTATION_RESTARTS.to_owned(), attempt.to_string()),
        (ANNOTATION_ROLE.to_owned(), role.to_owned()),
        (ANNOTATION_ORDER.to_owned(), order.to_string()),
    ]);
    let ports: Vec<_> = container
        .ports
        .iter()
        .map(|port| {
            let protocol = match port.protocol {
                Protocol::Tcp => "TCP",
                Protocol::Udp => "UDP",
                Protocol::Sctp => "SCTP",
            };
            json!({
                "name": port.name,
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": protocol,
                "hostIP": port.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        annotations.insert(ANNOTATION_PORTS.to_owned(), json!(ports).to_string());
    }
    annotations
}

/// kubelet's arithmetic: 1024 shares for a processor, never fewer than the kernel takes.
pub fn milli_cpu_to_shares(milli: i64) -> i64 {
    (milli.saturating_mul(1_024) / 1_000).clamp(2, 262_144)
}

/// (quota, period) in microseconds; zeros for no limit.
pub fn milli_cpu_to_quota(milli: i64) -> (i64, i64) {
    if milli == 0 {
        return (0, 0);
    }
    ((milli.saturating_mul(CPU_PERIOD_US) / 1_000).max(MIN_CPU_QUOTA_US), CPU_PERIOD_US)
}

fn resources(pod: &Pod, container: &Container, node_memory_bytes: i64) -> v1::LinuxContainerResources {
    let written = &container.resources;
    let (cpu_quota, cpu_period) = written.cpu_limit.map_or((0, 0), |limit| milli_cpu_to_quota(limit.milli_value()));
    v1::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares: milli_cpu_to_shares(written.cpu_request.map_or(0, |request| request.milli_value())),
        memory_limit_in_bytes: written.memory_limit.map_or(0, |limit| limit.value()),
        oom_score_adj: oom_score_adj(pod, container, node_memory_bytes),
        hugepage_limits: written
            .huge_pages
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        ..v1::LinuxContainerResources::default()
    }
}

/// Who dies first when memory is short, by kubelet's quality of service: pods that promised nothing go first, pods that
/// reserved all they may use go last, and between them whoever reserved less goes earlier.
fn oom_score_adj(pod: &Pod, container: &Container, node_memory_bytes: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    const BEST_EFFORT: i64 = 1_000;
    let written = |one: &Container| {
        let resources = &one.resources;
        [resources.cpu_limit, resources.cpu_request, resources.memory_limit, resources.memory_request]
    };
    let guaranteed = pod.all_containers().all(|one| {
        let [cpu_limit, cpu_request, memory_limit, memory_request] = written(one);
        cpu_limit.is_some() && memory_limit.is_some() && cpu_limit == cpu_request && memory_limit == memory_request
    });
    if guaranteed {
        return GUARANTEED;
    }
    if pod.all_containers().all(|one| written(one).iter().all(Option::is_none)) {
        return BEST_EFFORT;
    }
    let request = container.resources.memory_request.map_or(0, |request| request.value());
    let share = i128::from(request) * 1_000 / i128::from(node_memory_bytes.max(1));
    let score = 1_000 - i64::try_from(share).unwrap_or(1_000);
    // Below every pod without promises, above every guaranteed one.
    score.clamp(1_000 + GUARANTEED, BEST_EFFORT - 1)
}

/// The container's word, else its pod's.
fn effective(pod: &Pod, container: &Container) -> SharedSecurity {
    let (own, pods) = (&container.security.shared, &pod.security.shared);
    SharedSecurity {
        user: own.user.or(pods.user),
        group: own.group.or(pods.group),
        non_root: own.non_root.or(pods.non_root),
        seccomp: own.seccomp.clone().or_else(|| pods.seccomp.clone()),
        apparmor: own.apparmor.clone().or_else(|| pods.apparmor.clone()),
        selinux: own.selinux.clone().or_else(|| pods.selinux.clone()),
    }
}

fn security_context(
    pod: &Pod,
    container: &Container,
    image: &v1::Image,
) -> Result<v1::LinuxContainerSecurityContext, String> {
    let security = &container.security;
    let shared = effective(pod, container);
    let user = user(&shared, image)?;
    let bare = security.privileged || security.unmasked;
    let paths = |paths: &[&str]| if bare { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() };
    Ok(v1::LinuxContainerSecurityContext {
        capabilities: Some(v1::Capability {
            add_capabilities: security.add.clone(),
            drop_capabilities: security.drop.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespace_options(pod)),
        selinux_options: shared.selinux.as_ref().map(selinux_options),
        run_as_user: user.id.map(|value| v1::Int64Value { value }),
        run_as_group: shared.group.map(|value| v1::Int64Value { value }),
        run_as_username: user.name,
        readonly_rootfs: security.read_only_root,
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        no_new_privs: security.no_new_privileges,
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READ_ONLY_PATHS),
        seccomp: Some(seccomp(shared.seccomp.as_ref(), security.privileged)),
        apparmor: shared.apparmor.as_ref().map(|profile| security_profile(profile, str::to_owned)),
        ..v1::LinuxContainerSecurityContext::default()
    })
}

/// Whom to run as.
struct User {
    id: Option<i64>,
    name: String,
}

/// The manifest's user, else the image's. CRI wants it said: a group alone is an error there.
fn user(shared: &SharedSecurity, image: &v1::Image) -> Result<User, String> {
    let must_not_be_root = shared.non_root == Some(true);
    if let Some(id) = shared.user {
        if must_not_be_root && id == 0 {
            return Err("runAsNonRoot is set, and runAsUser is root".to_owned());
        }
        return Ok(User { id: Some(id), name: String::new() });
    }
    match (&image.uid, image.username.as_str()) {
        (Some(uid), _) if must_not_be_root && uid.value == 0 => {
            Err("runAsNonRoot is set, and the image runs as root".to_owned())
        }
        (Some(uid), _) => Ok(User { id: Some(uid.value), name: String::new() }),
        (None, "") if must_not_be_root => Err("runAsNonRoot is set, and the image runs as root".to_owned()),
        (None, "") => Ok(User { id: Some(0), name: String::new() }),
        (None, name) if must_not_be_root => Err(format!(
            "runAsNonRoot is set, and the image's user {name:?} is no number, so that it cannot be told whether it is root: \
             set runAsUser"
        )),
        (None, name) => Ok(User { id: None, name: name.to_owned() }),
    }
}

/// Nothing said means the runtime's own profile, as on a kubelet with --seccomp-default; privileged means none.
fn seccomp(profile: Option<&Profile>, privileged: bool) -> v1::SecurityProfile {
    let profile = if privileged { &Profile::Unconfined } else { profile.unwrap_or(&Profile::RuntimeDefault) };
    security_profile(profile, |name| format!("{SECCOMP_DIRECTORY}/{name}"))
}

fn security_profile(profile: &Profile, local: impl Fn(&str) -> String) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let (kind, localhost_ref) = match profile {
        Profile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Profile::Unconfined => (ProfileType::Unconfined, String::new()),
        Profile::Localhost(name) => (ProfileType::Localhost, local(name)),
    };
    v1::SecurityProfile { profile_type: kind as i32, localhost_ref }
}

/// SELinux options in the words of CRI.
pub fn selinux_options(options: &SeLinux) -> v1::SeLinuxOption {
    v1::SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.kind.clone(),
        level: options.level.clone(),
    }
}
