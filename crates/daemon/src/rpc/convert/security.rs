//! Security contexts: namespaces, users, capabilities, profiles.

use super::text::{absolute_path, at_most, no_dot_dot, one_line, path};
use super::{GROUPS_MAX, PATHS_MAX};
use crate::oci::capability;
use knarr_cri_api::v1;
use knarr_model::spec::{GroupsPolicy, PidNamespace, PodNamespaces, PodSpec, Profile, RunAs, Security, SelinuxOptions};
use knarr_model::{ContainerId, Error, IdMap, UserNamespace};

/// Where a container's security context stands in the request.
const FIELD: &str = "config.linux.security_context";
/// Bytes of a user's name.
const USER_NAME_BYTES_MAX: usize = 256;
/// Entries of each list of capabilities; the kernel has 41, in two spellings.
const CAPABILITIES_MAX: usize = 128;
/// Bytes of an AppArmor profile's name or a part of an SELinux label.
const LABEL_BYTES_MAX: usize = 1024;
/// The highest uid or gid that is taken. The kernel has twice as many, but programs that count in signed numbers
/// take those for negative ones.
const ID_MAX: i64 = i32::MAX as i64;

/// A mode as the number that a message holds.
pub(super) fn namespace_mode(mode: v1::NamespaceMode) -> i32 {
    mode as i32
}

/// "Must error" by the protocol: a group with no user to go with.
pub(super) fn check_run_as_group(field: &str, group: bool, user: bool) -> Result<(), Error> {
    if group && !user {
        return Err(Error::invalid(&format!("{field}.run_as_group"), "needs run_as_user or run_as_username"));
    }
    Ok(())
}

/// Which namespaces a pod has for itself. Without options every mode is the protocol's zero: POD.
pub(super) fn pod_namespaces(options: Option<&v1::NamespaceOption>) -> Result<PodNamespaces, Error> {
    let field = |name: &str| format!("{FIELD}.namespace_options.{name}");
    let Some(options) = options else {
        return Ok(PodNamespaces { shared_pid: true, ..PodNamespaces::default() });
    };
    let pid = mode(&field("pid"), options.pid)?;
    if pid == v1::NamespaceMode::Target {
        return Err(Error::invalid(&field("pid"), "a pod cannot have the namespace of a container (TARGET)"));
    }
    let namespaces = PodNamespaces {
        host_network: pod_or_node(&field("network"), options.network)?,
        host_ipc: pod_or_node(&field("ipc"), options.ipc)?,
        host_pid: pid == v1::NamespaceMode::Node,
        shared_pid: pid == v1::NamespaceMode::Pod,
        user: user_namespace(options.userns_options.as_ref())?,
    };
    // The pod's root has no rights over them: neither a procfs nor an mqueue file system could be mounted.
    for (name, of_host) in [("pid", namespaces.host_pid), ("ipc", namespaces.host_ipc)] {
        if of_host && namespaces.user.is_some() {
            return Err(Error::invalid(&field(name), "NODE is not possible in a pod with a user namespace"));
        }
    }
    Ok(namespaces)
}

/// A container's security context, held against what its pod has.
pub(super) fn security(context: Option<v1::LinuxContainerSecurityContext>, pod: &PodSpec) -> Result<Security, Error> {
    let context = context.unwrap_or_default();
    if context.privileged && !pod.privileged {
        return Err(Error::invalid(&format!("{FIELD}.privileged"), "the pod is not privileged"));
    }
    let capabilities = context.capabilities.unwrap_or_default();
    // Kubelets before 1.19 and some clients of today say profiles only in this way.
    #[allow(deprecated)]
    let (old_seccomp, old_apparmor) = (context.seccomp_profile_path, context.apparmor_profile);
    let run_as = run_as(context.run_as_user, context.run_as_username)?;
    check_run_as_group(FIELD, context.run_as_group.is_some(), run_as != RunAs::Image)?;
    Ok(Security {
        privileged: context.privileged,
        pid: pid_namespace(context.namespace_options.as_ref(), pod)?,
        host_network: pod.namespaces.host_network,
        host_ipc: pod.namespaces.host_ipc,
        run_as,
        run_as_group: context.run_as_group.map(|group| id("run_as_group", group.value)).transpose()?,
        supplemental_groups: supplemental_groups(context.supplemental_groups)?,
        groups_policy: groups_policy(context.supplemental_groups_policy)?,
        add_capabilities: capability_names("add_capabilities", capabilities.add_capabilities)?,
        drop_capabilities: capability_names("drop_capabilities", capabilities.drop_capabilities)?,
        add_ambient_capabilities: capability_names("add_ambient_capabilities", capabilities.add_ambient_capabilities)?,
        read_only_rootfs: context.readonly_rootfs,
        no_new_privs: context.no_new_privs,
        masked_paths: paths("masked_paths", context.masked_paths)?,
        readonly_paths: paths("readonly_paths", context.readonly_paths)?,
        seccomp: seccomp(context.seccomp.as_ref(), &old_seccomp)?,
        apparmor: apparmor(context.apparmor.as_ref(), &old_apparmor)?,
        selinux: context.selinux_options.map(selinux).transpose()?,
    })
}

/// A SecurityProfile, not yet looked at for what its reference names. `None` stays `None`: what that means differs
/// between seccomp and AppArmor.
pub(super) fn security_profile(field: &str, profile: Option<&v1::SecurityProfile>) -> Result<Option<Profile>, Error> {
    use v1::security_profile::ProfileType;
    let Some(profile) = profile else { return Ok(None) };
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(Some(Profile::RuntimeDefault)),
        Ok(ProfileType::Unconfined) => Ok(Some(Profile::Unconfined)),
        // An empty name must never mean "no profile": the container would run with less protection than asked for.
        Ok(ProfileType::Localhost) if profile.localhost_ref.is_empty() => {
            Err(Error::invalid(&format!("{field}.localhost_ref"), "is required with a Localhost profile"))
        }
        Ok(ProfileType::Localhost) => Ok(Some(Profile::Localhost(profile.localhost_ref.clone()))),
        Err(_) => Err(Error::invalid(&format!("{field}.profile_type"), format!("{} is none", profile.profile_type))),
    }
}

fn mode(field: &str, raw: i32) -> Result<v1::NamespaceMode, Error> {
    v1::NamespaceMode::try_from(raw).map_err(|_| Error::invalid(field, format!("{raw} is no namespace mode")))
}

/// True for the host's namespace. Network and IPC namespaces belong to pods, never to single containers.
fn pod_or_node(field: &str, raw: i32) -> Result<bool, Error> {
    match mode(field, raw)? {
        v1::NamespaceMode::Pod => Ok(false),
        v1::NamespaceMode::Node => Ok(true),
        other @ (v1::NamespaceMode::Container | v1::NamespaceMode::Target) => {
            Err(Error::invalid(field, format!("{} is not possible here, only POD and NODE are", other.as_str_name())))
        }
    }
}

/// NODE (`None`), or POD with exactly one mapping of uids and one of gids that hold the container's root.
fn user_namespace(options: Option<&v1::UserNamespace>) -> Result<Option<UserNamespace>, Error> {
    let field = |name: &str| format!("{FIELD}.namespace_options.userns_options.{name}");
    let Some(options) = options else { return Ok(None) };
    match mode(&field("mode"), options.mode)? {
        v1::NamespaceMode::Node => {
            let mappings = [("uids", &options.uids), ("gids", &options.gids)];
            match mappings.iter().find(|(_, list)| !list.is_empty()) {
                Some((name, _)) => {
                    Err(Error::invalid(&field(name), "there is nothing to map in the host's user namespace"))
                }
                None => Ok(None),
            }
        }
        v1::NamespaceMode::Pod => Ok(Some(UserNamespace {
            uids: mapping(&field("uids"), &options.uids)?,
            gids: mapping(&field("gids"), &options.gids)?,
        })),
        other @ (v1::NamespaceMode::Container | v1::NamespaceMode::Target) => {
            let why = format!("{} is not possible here, only POD and NODE are", other.as_str_name());
            Err(Error::invalid(&field("mode"), why))
        }
    }
}

fn mapping(field: &str, mappings: &[v1::IdMapping]) -> Result<IdMap, Error> {
    let [mapping] = mappings else {
        return Err(Error::invalid(field, format!("exactly one mapping is needed, not {}", mappings.len())));
    };
    let end = |first: u32| first.checked_add(mapping.length);
    if mapping.container_id != 0 || mapping.length == 0 {
        return Err(Error::invalid(field, "the container's id 0 is not mapped"));
    }
    if end(mapping.host_id).is_none() || end(mapping.container_id).is_none() {
        return Err(Error::invalid(field, format!("{} ids from {} on do not exist", mapping.length, mapping.host_id)));
    }
    Ok(id_map(mapping))
}

/// As it is in the message.
pub(super) fn id_map(mapping: &v1::IdMapping) -> IdMap {
    IdMap { host: mapping.host_id, container: mapping.container_id, length: mapping.length }
}

/// A container is in its pod's user namespace, whether it says so or nothing.
fn check_same_user_namespace(options: Option<&v1::UserNamespace>, pod: &PodSpec) -> Result<(), Error> {
    let field = format!("{FIELD}.namespace_options.userns_options");
    if options.is_some() && user_namespace(options)? != pod.namespaces.user {
        return Err(Error::invalid(&field, "is not the same as the pod's"));
    }
    Ok(())
}

/// A container says nothing, or nothing that its pod does not have. POD is whatever the pod has, the host's included.
fn pid_namespace(options: Option<&v1::NamespaceOption>, pod: &PodSpec) -> Result<PidNamespace, Error> {
    let field = |name: &str| format!("{FIELD}.namespace_options.{name}");
    let of_pod = match (pod.namespaces.host_pid, pod.namespaces.shared_pid) {
        (true, _) => PidNamespace::Host,
        (false, true) => PidNamespace::Pod,
        (false, false) => PidNamespace::Own,
    };
    let Some(options) = options else { return Ok(of_pod) };
    check_same_user_namespace(options.userns_options.as_ref(), pod)?;
    if pod_or_node(&field("network"), options.network)? && !pod.namespaces.host_network {
        return Err(Error::invalid(&field("network"), "NODE, but the pod is not on the host's network"));
    }
    if pod_or_node(&field("ipc"), options.ipc)? && !pod.namespaces.host_ipc {
        return Err(Error::invalid(&field("ipc"), "NODE, but the pod does not share the host's IPC namespace"));
    }
    match mode(&field("pid"), options.pid)? {
        v1::NamespaceMode::Pod if of_pod == PidNamespace::Own => {
            Err(Error::invalid(&field("pid"), "POD, but the pod has no PID namespace that its containers share"))
        }
        v1::NamespaceMode::Pod => Ok(of_pod),
        v1::NamespaceMode::Container => Ok(PidNamespace::Own),
        v1::NamespaceMode::Node if pod.namespaces.host_pid => Ok(PidNamespace::Host),
        v1::NamespaceMode::Node => {
            Err(Error::invalid(&field("pid"), "NODE, but the pod does not share the host's PID namespace"))
        }
        v1::NamespaceMode::Target => match ContainerId::parse(&options.target_id) {
            Ok(id) => Ok(PidNamespace::Target(id)),
            Err(why) => Err(Error::invalid(&field("target_id"), format!("{:?}: {why}", options.target_id))),
        },
    }
}

fn run_as(user: Option<v1::Int64Value>, user_name: String) -> Result<RunAs, Error> {
    let field = format!("{FIELD}.run_as_username");
    match (user, user_name) {
        (None, name) if name.is_empty() => Ok(RunAs::Image),
        (Some(user), name) if name.is_empty() => Ok(RunAs::Uid(id("run_as_user", user.value)?)),
        (Some(_), _) => Err(Error::invalid(&field, "run_as_user is given too")),
        (None, name) => {
            at_most(&field, name.len(), USER_NAME_BYTES_MAX, "bytes")?;
            match name.chars().find(|c| c.is_control() || c.is_whitespace() || *c == ':') {
                Some(bad) => Err(Error::invalid(&field, format!("{name:?} holds {bad:?}"))),
                None => Ok(RunAs::Name(name)),
            }
        }
    }
}

fn id(name: &str, value: i64) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(id) if value <= ID_MAX => Ok(id),
        _ => Err(Error::invalid(&format!("{FIELD}.{name}"), format!("{value} is not between 0 and {ID_MAX}"))),
    }
}

fn supplemental_groups(groups: Vec<i64>) -> Result<Vec<u32>, Error> {
    at_most(&format!("{FIELD}.supplemental_groups"), groups.len(), GROUPS_MAX, "groups")?;
    groups.into_iter().map(|group| id("supplemental_groups", group)).collect()
}

fn groups_policy(raw: i32) -> Result<GroupsPolicy, Error> {
    match v1::SupplementalGroupsPolicy::try_from(raw) {
        Ok(v1::SupplementalGroupsPolicy::Merge) => Ok(GroupsPolicy::Merge),
        Ok(v1::SupplementalGroupsPolicy::Strict) => Ok(GroupsPolicy::Strict),
        Err(_) => Err(Error::invalid(&format!("{FIELD}.supplemental_groups_policy"), format!("{raw} is no policy"))),
    }
}

/// Kubelet writes "NET_ADMIN", people also "CAP_NET_ADMIN" and "net_admin".
fn capability_names(list: &str, names: Vec<String>) -> Result<Vec<String>, Error> {
    let field = format!("{FIELD}.capabilities.{list}");
    at_most(&field, names.len(), CAPABILITIES_MAX, "capabilities")?;
    let known = |name: String| {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" || capability::number(bare).is_some() {
            return Ok(bare.to_owned());
        }
        Err(Error::invalid(&field, format!("{name:?} is no capability")))
    };
    names.into_iter().map(known).collect()
}

fn paths(list: &str, paths: Vec<String>) -> Result<Vec<String>, Error> {
    let field = format!("{FIELD}.{list}");
    at_most(&field, paths.len(), PATHS_MAX, "paths")?;
    for path in &paths {
        absolute_path(&field, path)?;
    }
    Ok(paths)
}

/// The profile if there is one, else the deprecated text, else unconfined: for seccomp nothing means nothing.
fn seccomp(profile: Option<&v1::SecurityProfile>, deprecated: &str) -> Result<Profile, Error> {
    let field = format!("{FIELD}.seccomp");
    let profile = match security_profile(&field, profile)? {
        Some(profile) => profile,
        None => deprecated_profile(&format!("{FIELD}.seccomp_profile_path"), deprecated)?.unwrap_or_default(),
    };
    if let Profile::Localhost(file) = &profile {
        absolute_path(&field, file)?;
        no_dot_dot(&field, file)?;
    }
    Ok(profile)
}

/// The profile if there is one, else the deprecated text, else the runtime's default: for AppArmor nothing means the
/// default, as Kubernetes has it since 1.8.
fn apparmor(profile: Option<&v1::SecurityProfile>, deprecated: &str) -> Result<Profile, Error> {
    let field = format!("{FIELD}.apparmor");
    let profile = match security_profile(&field, profile)? {
        Some(profile) => profile,
        None => {
            deprecated_profile(&format!("{FIELD}.apparmor_profile"), deprecated)?.unwrap_or(Profile::RuntimeDefault)
        }
    };
    let Profile::Localhost(name) = profile else { return Ok(profile) };
    let name = name.strip_prefix("localhost/").unwrap_or(&name);
    at_most(&field, name.len(), LABEL_BYTES_MAX, "bytes")?;
    one_line(&field, name)?;
    if name.is_empty() {
        return Err(Error::invalid(&field, "a Localhost profile has no name"));
    }
    Ok(Profile::Localhost(name.to_owned()))
}

/// "", "unconfined", "runtime/default", "docker/default" or "localhost/<reference>".
fn deprecated_profile(field: &str, text: &str) -> Result<Option<Profile>, Error> {
    match text {
        "" => Ok(None),
        "unconfined" => Ok(Some(Profile::Unconfined)),
        "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
        _ => match text.strip_prefix("localhost/") {
            Some("") | None => {
                path(field, text)?;
                Err(Error::invalid(field, format!("{text:?} is none of unconfined, runtime/default, localhost/…")))
            }
            Some(reference) => Ok(Some(Profile::Localhost(reference.to_owned()))),
        },
    }
}

fn selinux(options: v1::SeLinuxOption) -> Result<SelinuxOptions, Error> {
    let parts =
        [("user", &options.user), ("role", &options.role), ("type", &options.r#type), ("level", &options.level)];
    for (name, part) in parts {
        let field = format!("{FIELD}.selinux_options.{name}");
        at_most(&field, part.len(), LABEL_BYTES_MAX, "bytes")?;
        // Parts are joined by colons, and only the level may hold some.
        let good = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') || (name == "level" && matches!(c, ':' | ','))
        };
        if let Some(bad) = part.chars().find(|c| !good(*c)) {
            return Err(Error::invalid(&field, format!("{part:?} holds {bad:?}")));
        }
    }
    Ok(SelinuxOptions { user: options.user, role: options.role, kind: options.r#type, level: options.level })
}
