//! A manifest's pod as CRI's PodSandboxConfig, with the words that kubelet uses where they matter to other tools.

use std::collections::HashMap;
use std::path::Path;

use knarr_cri_api::v1;

use super::container_config::{milli_cpu_to_quota, milli_cpu_to_shares};
use super::schema::{Dns, Pod, Protocol, Resources};

/// Labels by which kubelet, crictl and log collectors know what a sandbox or container belongs to.
pub const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
/// Its namespace.
pub const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Its uid.
pub const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
/// The container's name.
pub const LABEL_CONTAINER_NAME: &str = "io.kubernetes.container.name";

/// Marks the pods that `knarr run` and `knarr create` made, so that they are told from those of a kubelet.
pub const LABEL_MADE_BY: &str = "knarr.made-by";
/// Its value.
pub const MADE_BY_RUN: &str = "run";

/// What the sandbox needs to know beyond the manifest.
pub struct Surroundings<'a> {
    /// metadata.uid
    pub uid: &'a str,
    /// Where its containers' logs are written.
    pub log_directory: &'a Path,
    /// The host's resolv.conf, taken apart.
    pub host_dns: &'a Dns,
}

/// The sandbox that the pod asks for.
pub fn sandbox_config(pod: &Pod, surroundings: &Surroundings<'_>) -> v1::PodSandboxConfig {
    let mut labels: HashMap<String, String> = pod.labels.clone().into_iter().collect();
    labels.extend([
        (LABEL_POD_NAME.to_owned(), pod.name.clone()),
        (LABEL_POD_NAMESPACE.to_owned(), pod.namespace.clone()),
        (LABEL_POD_UID.to_owned(), surroundings.uid.to_owned()),
        (LABEL_MADE_BY.to_owned(), MADE_BY_RUN.to_owned()),
    ]);
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.name.clone(),
            uid: surroundings.uid.to_owned(),
            namespace: pod.namespace.clone(),
            attempt: 0,
        }),
        // CRI: empty exactly where the pod has the host's network and so the host's name.
        hostname: if pod.host.network { String::new() } else { pod.hostname.clone() },
        log_directory: surroundings.log_directory.to_string_lossy().into_owned(),
        dns_config: dns_config(&pod.dns, surroundings.host_dns),
        port_mappings: port_mappings(pod),
        labels,
        annotations: pod.annotations.clone().into_iter().collect(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: String::new(),
            security_context: Some(security_context(pod)),
            sysctls: pod.security.sysctls.clone().into_iter().collect(),
            overhead: None,
            resources: Some(sum_of_resources(pod)),
        }),
        windows: None,
    }
}

/// `None` lets the runtime copy the host's file, which is right as long as the pod adds nothing to it.
fn dns_config(dns: &Dns, host: &Dns) -> Option<v1::DnsConfig> {
    let says_nothing = dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty();
    if dns.with_host && says_nothing {
        return None;
    }
    let joined = |of_host: &[String], own: &[String]| {
        let of_host = if dns.with_host { of_host } else { &[] };
        let mut all: Vec<String> = Vec::new();
        for word in of_host.iter().chain(own) {
            if !all.contains(word) {
                all.push(word.clone());
            }
        }
        all
    };
    Some(v1::DnsConfig {
        servers: joined(&host.servers, &dns.servers),
        searches: joined(&host.searches, &dns.searches),
        options: joined(&host.options, &dns.options),
    })
}

/// Takes a resolv.conf apart; what it does not know it leaves out.
pub fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns { with_host: true, ..Dns::default() };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            // The last line wins, as in the resolver.
            Some("search" | "domain") => dns.searches = words.map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

fn port_mappings(pod: &Pod) -> Vec<v1::PortMapping> {
    if pod.host.network {
        return Vec::new();
    }
    pod.all_containers()
        .flat_map(|container| &container.ports)
        .map(|port| v1::PortMapping {
            protocol: match port.protocol {
                Protocol::Tcp => v1::Protocol::Tcp as i32,
                Protocol::Udp => v1::Protocol::Udp as i32,
                Protocol::Sctp => v1::Protocol::Sctp as i32,
            },
            container_port: port.container_port,
            host_port: port.host_port,
            host_ip: port.host_ip.clone(),
        })
        .collect()
}

/// The namespaces of the pod, in the words of both sandbox and container.
pub fn namespace_options(pod: &Pod) -> v1::NamespaceOption {
    let host_or_pod = |host: bool| if host { v1::NamespaceMode::Node as i32 } else { v1::NamespaceMode::Pod as i32 };
    let pid = if pod.host.pid {
        v1::NamespaceMode::Node
    } else if pod.share_processes {
        v1::NamespaceMode::Pod
    } else {
        v1::NamespaceMode::Container
    };
    v1::NamespaceOption {
        network: host_or_pod(pod.host.network),
        ipc: host_or_pod(pod.host.ipc),
        pid: pid as i32,
        ..v1::NamespaceOption::default()
    }
}

/// All groups that every process of the pod has: the ones asked for and the one that owns its volumes.
pub fn supplemental_groups(pod: &Pod) -> Vec<i64> {
    let mut groups = pod.security.groups.clone();
    groups.extend(pod.security.fs_group.filter(|group| !groups.contains(group)));
    groups
}

/// Merge or Strict as CRI numbers them.
pub fn groups_policy(pod: &Pod) -> i32 {
    let policy = if pod.security.strict_groups {
        v1::SupplementalGroupsPolicy::Strict
    } else {
        v1::SupplementalGroupsPolicy::Merge
    };
    policy as i32
}

fn security_context(pod: &Pod) -> v1::LinuxSandboxSecurityContext {
    let shared = &pod.security.shared;
    let value = |value: i64| v1::Int64Value { value };
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(namespace_options(pod)),
        run_as_user: shared.user.map(value),
        // CRI forbids a group without a user; containers are given both, so nothing is lost here.
        run_as_group: shared.group.filter(|_| shared.user.is_some()).map(value),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod),
        privileged: pod.all_containers().any(|container| container.security.privileged),
        seccomp: Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::RuntimeDefault as i32,
            localhost_ref: String::new(),
        }),
        selinux_options: shared.selinux.as_ref().map(super::container_config::selinux_options),
        ..v1::LinuxSandboxSecurityContext::default()
    }
}

/// What the containers may use together; nothing where one of them is not limited.
fn sum_of_resources(pod: &Pod) -> v1::LinuxContainerResources {
    let total = |amount: &dyn Fn(&Resources) -> Option<i64>| -> Option<i64> {
        pod.containers.iter().try_fold(0_i64, |sum, container| Some(sum.saturating_add(amount(&container.resources)?)))
    };
    let cpu_limit = total(&|resources| resources.cpu_limit.map(super::quantity::Quantity::milli_value));
    let memory_limit = total(&|resources| resources.memory_limit.map(super::quantity::Quantity::value));
    let requests = pod.containers.iter().filter_map(|container| container.resources.cpu_request);
    let cpu_request = requests.fold(0_i64, |sum, request| sum.saturating_add(request.milli_value()));
    let (cpu_quota, cpu_period) = cpu_limit.map_or((0, 0), milli_cpu_to_quota);
    v1::LinuxContainerResources {
        cpu_shares: milli_cpu_to_shares(cpu_request),
        cpu_quota,
        cpu_period,
        memory_limit_in_bytes: memory_limit.unwrap_or(0),
        ..v1::LinuxContainerResources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_taken_apart() {
        let dns = parse_resolv_conf(
            "# c\nnameserver 10.0.0.1\nnameserver ::1\nsearch a\nsearch b c\noptions ndots:2 rotate\noptions edns0\nsortlist x\n",
        );
        assert_eq!(dns.servers, ["10.0.0.1", "::1"]);
        assert_eq!(dns.searches, ["b", "c"]);
        assert_eq!(dns.options, ["ndots:2", "rotate", "edns0"]);
    }

    #[test]
    fn the_pods_words_on_names_follow_the_hosts() {
        let host = parse_resolv_conf("nameserver 10.0.0.1\nsearch corp\n");
        let nothing = Dns { with_host: true, ..Dns::default() };
        assert_eq!(dns_config(&nothing, &host), None);
        let more = Dns { with_host: true, servers: vec!["1.1.1.1".into(), "10.0.0.1".into()], ..Dns::default() };
        let config = dns_config(&more, &host).unwrap();
        assert_eq!(config.servers, ["10.0.0.1", "1.1.1.1"]);
        assert_eq!(config.searches, ["corp"]);
        let alone = Dns { with_host: false, servers: vec!["1.1.1.1".into()], ..Dns::default() };
        assert_eq!(dns_config(&alone, &host).unwrap().servers, ["1.1.1.1"]);
    }
}
