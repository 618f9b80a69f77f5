//! PodSandboxConfig to [`PodSpec`].

use super::security::{check_run_as_group, namespace_mode, pod_namespaces, security_profile};
use super::text::{absolute_path, at_most, map, name, no_dot_dot, one_line, path};
use super::view::id_mapping;
use super::{DNS_BYTES_MAX, GROUPS_MAX, HOSTNAME_BYTES_MAX, PORTS_MAX, SETTING_BYTES_MAX, SYSCTLS_MAX, resources};
use knarr_cri_api::v1;
use knarr_model::Error;
use knarr_model::spec::{DnsConfig, PodNamespaces, PodSpec, PortMapping, Protocol};
use std::collections::{BTreeMap, HashMap};

/// Bytes of a cgroup_parent: a path below /sys/fs/cgroup.
const CGROUP_PARENT_BYTES_MAX: usize = 2048;
/// Bytes of a runtime handler's name: Kubernetes takes a DNS label.
const HANDLER_BYTES_MAX: usize = 253;
/// Used when nothing of the pod's name can stand in a host name.
const HOSTNAME_OF_LAST_RESORT: &str = "pod";

/// Parses RunPodSandbox's config. Whether a handler of that name is configured is for the caller to say.
pub fn pod_spec(config: v1::PodSandboxConfig, runtime_handler: &str) -> Result<PodSpec, Error> {
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata", "is required"))?;
    name("config.metadata.name", &metadata.name)?;
    name("config.metadata.namespace", &metadata.namespace)?;
    name("config.metadata.uid", &metadata.uid)?;
    at_most("runtime_handler", runtime_handler.len(), HANDLER_BYTES_MAX, "bytes")?;
    one_line("runtime_handler", runtime_handler)?;

    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    check_security(&security)?;
    let namespaces = pod_namespaces(security.namespace_options.as_ref())?;

    Ok(PodSpec {
        hostname: hostname(config.hostname, &metadata.name, namespaces.host_network)?,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        log_directory: log_directory(config.log_directory)?,
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: port_mappings(config.port_mappings)?,
        labels: map("config.labels", config.labels)?,
        annotations: map("config.annotations", config.annotations)?,
        handler: runtime_handler.to_owned(),
        cgroup_parent: cgroup_parent(linux.cgroup_parent)?,
        sysctls: sysctls(linux.sysctls, namespaces)?,
        namespaces,
        privileged: security.privileged,
        overhead: resources("config.linux.overhead", linux.overhead.unwrap_or_default())?,
        resources: resources("config.linux.resources", linux.resources.unwrap_or_default())?,
    })
}

/// No process of a pod is its own, so user, groups and profiles of the sandbox have nothing to act on; what is wrong
/// with them is still wrong.
fn check_security(security: &v1::LinuxSandboxSecurityContext) -> Result<(), Error> {
    const FIELD: &str = "config.linux.security_context";
    check_run_as_group(FIELD, security.run_as_group.is_some(), security.run_as_user.is_some())?;
    at_most(&format!("{FIELD}.supplemental_groups"), security.supplemental_groups.len(), GROUPS_MAX, "groups")?;
    security_profile(&format!("{FIELD}.seccomp"), security.seccomp.as_ref())?;
    security_profile(&format!("{FIELD}.apparmor"), security.apparmor.as_ref())?;
    Ok(())
}

/// The host name as given. Clients other than kubelet leave it out: the pod then gets its own name, as far as that
/// can stand in a host name.
fn hostname(given: String, pod_name: &str, host_network: bool) -> Result<String, Error> {
    const FIELD: &str = "config.hostname";
    if given.is_empty() {
        return Ok(if host_network { String::new() } else { hostname_from(pod_name) });
    }
    at_most(FIELD, given.len(), HOSTNAME_BYTES_MAX, "bytes")?;
    match given.chars().find(|c| !in_hostname(*c)) {
        Some(bad) => Err(Error::invalid(FIELD, format!("{given:?} holds {bad:?}"))),
        None if given.starts_with(['-', '.']) => Err(Error::invalid(FIELD, format!("{given:?} begins with no letter"))),
        None => Ok(given),
    }
}

fn in_hostname(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')
}

fn hostname_from(pod_name: &str) -> String {
    let mapped: String = pod_name.chars().map(|c| if in_hostname(c) { c } else { '-' }).take(63).collect();
    let trimmed = mapped.trim_matches(['-', '.']);
    if trimmed.is_empty() { HOSTNAME_OF_LAST_RESORT.to_owned() } else { trimmed.to_owned() }
}

fn log_directory(directory: String) -> Result<String, Error> {
    if !directory.is_empty() {
        absolute_path("config.log_directory", &directory)?;
        no_dot_dot("config.log_directory", &directory)?;
    }
    Ok(directory)
}

fn dns(config: v1::DnsConfig) -> Result<DnsConfig, Error> {
    let all = [
        ("config.dns_config.servers", &config.servers),
        ("config.dns_config.searches", &config.searches),
        ("config.dns_config.options", &config.options),
    ];
    let bytes = all.iter().flat_map(|(_, words)| words.iter()).map(|word| word.len() + 1).sum();
    at_most("config.dns_config", bytes, DNS_BYTES_MAX, "bytes")?;
    for (field, words) in all {
        for word in words {
            // A word with white space in it would be two words, or a line of its own choosing, in resolv.conf.
            if word.is_empty() || word.chars().any(|c| c.is_control() || c.is_whitespace()) {
                return Err(Error::invalid(field, format!("{word:?} is not one word")));
            }
        }
    }
    Ok(DnsConfig { servers: config.servers, searches: config.searches, options: config.options })
}

fn port_mappings(mappings: Vec<v1::PortMapping>) -> Result<Vec<PortMapping>, Error> {
    at_most("config.port_mappings", mappings.len(), PORTS_MAX, "ports")?;
    mappings.into_iter().enumerate().map(|(at, mapping)| port_mapping(at, mapping)).collect()
}

fn port_mapping(at: usize, mapping: v1::PortMapping) -> Result<PortMapping, Error> {
    let field = |name: &str| format!("config.port_mappings[{at}].{name}");
    let protocol = match v1::Protocol::try_from(mapping.protocol) {
        Ok(v1::Protocol::Tcp) => Protocol::Tcp,
        Ok(v1::Protocol::Udp) => Protocol::Udp,
        Ok(v1::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => return Err(Error::invalid(&field("protocol"), format!("{} is no protocol", mapping.protocol))),
    };
    let container_port = match u16::try_from(mapping.container_port) {
        Ok(port @ 1..) => port,
        _ => return Err(Error::invalid(&field("container_port"), not_a_port(mapping.container_port))),
    };
    let host_port = u16::try_from(mapping.host_port)
        .map_err(|_| Error::invalid(&field("host_port"), not_a_port(mapping.host_port)))?;
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        ip => Some(ip.parse().map_err(|_| Error::invalid(&field("host_ip"), format!("{ip:?} is no IP address")))?),
    };
    Ok(PortMapping { protocol, container_port, host_port, host_ip })
}

fn not_a_port(port: i32) -> String {
    format!("{port} is not between 1 and 65535")
}

/// Empty, an absolute cgroupfs path, or a systemd slice with or without its parents. It becomes both a path and a
/// property of a systemd unit, so its characters are those that systemd puts into the names of units.
fn cgroup_parent(parent: String) -> Result<String, Error> {
    const FIELD: &str = "config.linux.cgroup_parent";
    at_most(FIELD, parent.len(), CGROUP_PARENT_BYTES_MAX, "bytes")?;
    path(FIELD, &parent)?;
    no_dot_dot(FIELD, &parent)?;
    if parent.is_empty() {
        return Ok(parent);
    }
    let in_unit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | ':' | '@' | '\\');
    if let Some(bad) = parent.chars().find(|c| !in_unit(*c)) {
        return Err(Error::invalid(FIELD, format!("{parent:?} holds {bad:?}")));
    }
    if !parent.starts_with('/') && (parent.contains('/') || !parent.ends_with(".slice")) {
        return Err(Error::invalid(FIELD, format!("{parent:?} is neither an absolute path nor a slice")));
    }
    Ok(parent)
}

/// Sysctls by their names with dots, as kubelet writes them (a dot inside a part is then a slash, as in
/// "net.ipv4.conf.eno2/100.rp_filter").
fn sysctls(given: HashMap<String, String>, namespaces: PodNamespaces) -> Result<BTreeMap<String, String>, Error> {
    const FIELD: &str = "config.linux.sysctls";
    at_most(FIELD, given.len(), SYSCTLS_MAX, "sysctls")?;
    let mut sysctls = BTreeMap::new();
    for (given_name, value) in given {
        let field = format!("{FIELD}[{given_name:?}]");
        let dotted = dotted_sysctl(&given_name);
        check_sysctl(&field, &dotted, &value, namespaces)?;
        if sysctls.insert(dotted, value).is_some() {
            return Err(Error::invalid(&field, "is there twice, with dots and with slashes"));
        }
    }
    Ok(sysctls)
}

/// sysctl(8)'s rule: whichever of `.` and `/` comes first separates, the other is part of a name.
fn dotted_sysctl(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn check_sysctl(field: &str, name: &str, value: &str, namespaces: PodNamespaces) -> Result<(), Error> {
    at_most(field, name.len().max(value.len()), SETTING_BYTES_MAX, "bytes")?;
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-');
    if !name.chars().all(in_name) || name.split(['.', '/']).any(str::is_empty) {
        return Err(Error::invalid(field, "is no name of a sysctl"));
    }
    let in_value = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '\t' | '.' | ',' | '-' | '_' | ':' | '/');
    if let Some(bad) = value.chars().find(|c| !in_value(*c)) {
        return Err(Error::invalid(field, format!("the value holds {bad:?}")));
    }
    let of_ipc = name == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
    match (name.starts_with("net."), of_ipc) {
        (true, _) if namespaces.host_network => Err(Error::invalid(field, "the pod is on the host's network")),
        (_, true) if namespaces.host_ipc => Err(Error::invalid(field, "the pod shares the host's IPC namespace")),
        (false, false) => Err(Error::invalid(field, "belongs to no namespace of a pod and would change the host")),
        _ => Ok(()),
    }
}

/// Which of its namespaces a pod has, as CRI's modes: what PodSandboxStatus must report.
pub(super) fn namespace_options(namespaces: PodNamespaces) -> v1::NamespaceOption {
    let mode = |host: bool| namespace_mode(if host { v1::NamespaceMode::Node } else { v1::NamespaceMode::Pod });
    let pid = match (namespaces.host_pid, namespaces.shared_pid) {
        (true, _) => v1::NamespaceMode::Node,
        (false, true) => v1::NamespaceMode::Pod,
        (false, false) => v1::NamespaceMode::Container,
    };
    v1::NamespaceOption {
        network: mode(namespaces.host_network),
        pid: namespace_mode(pid),
        ipc: mode(namespaces.host_ipc),
        target_id: String::new(),
        userns_options: Some(v1::UserNamespace {
            mode: mode(namespaces.user.is_none()),
            uids: namespaces.user.iter().map(|user| id_mapping(&user.uids)).collect(),
            gids: namespaces.user.iter().map(|user| id_mapping(&user.gids)).collect(),
        }),
    }
}
