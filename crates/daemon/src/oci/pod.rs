//! What follows from a pod as a whole: its files and sysctls, as the pod's plan takes them, and where its logs are.

use knarr_model::spec::{ContainerSpec, DnsConfig, PodSpec};
use std::net::IpAddr;

/// Bytes of the host's resolv.conf or hosts that a pod gets; what is beyond is cut at a line.
const HOST_FILE_BYTES_MAX: usize = 1 << 20;

/// The last group that may send echo requests: a larger one is none to the kernel.
const LAST_GROUP: u32 = 2_147_483_647;

/// Sysctls of every pod with a network of its own, unless it says otherwise: programs that are not root may use low
/// ports and send echo requests there, where no other pod's ports are. As with containerd; but groups that are not in the
/// pod's user namespace are refused by the kernel.
fn default_sysctls(pod: &PodSpec) -> [(&'static str, String); 2] {
    let last = pod.namespaces.user.and_then(|user| user.gids.last()).map_or(LAST_GROUP, |last| last.min(LAST_GROUP));
    [("net.ipv4.ip_unprivileged_port_start", "0".to_owned()), ("net.ipv4.ping_group_range", format!("0 {last}"))]
}

/// The pod's sysctls as (path below /proc/sys, value).
pub fn sysctls(pod: &PodSpec) -> Vec<(Vec<u8>, Vec<u8>)> {
    let defaults = default_sysctls(pod);
    let defaults = defaults
        .iter()
        .filter(|(name, _)| !pod.namespaces.host_network && !pod.sysctls.contains_key(*name))
        .map(|(name, value)| (*name, value.as_str()));
    let asked = pod.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    defaults.chain(asked).map(|(name, value)| (sysctl_path(name).into_bytes(), value.as_bytes().to_vec())).collect()
}

/// Dots separate, and a slash is a dot within a part: "net.ipv4.conf.eno2/100.rp_filter".
fn sysctl_path(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect()
}

/// The pod's files by name: "hostname", "hosts", "resolv.conf".
///
/// `hostname` is the pod's or, on the host's network, the host's. `ips` may be empty: then the pod's name stands for
/// a loopback address. The host's files are for pods that use its network or say nothing about DNS.
pub fn files(
    pod: &PodSpec,
    hostname: &str,
    ips: &[IpAddr],
    host_resolv_conf: &[u8],
    host_hosts: &[u8],
) -> Vec<(Vec<u8>, Vec<u8>)> {
    let hosts = if pod.namespaces.host_network { whole_lines(host_hosts) } else { hosts(hostname, ips) };
    let resolv_conf = match &pod.dns {
        Some(dns) => resolv_conf(dns),
        None => whole_lines(host_resolv_conf),
    };
    [("hostname", format!("{hostname}\n").into_bytes()), ("hosts", hosts), ("resolv.conf", resolv_conf)]
        .into_iter()
        .map(|(name, content)| (name.as_bytes().to_vec(), content))
        .collect()
}

fn whole_lines(file: &[u8]) -> Vec<u8> {
    if file.len() <= HOST_FILE_BYTES_MAX {
        return file.to_vec();
    }
    let end = file[..HOST_FILE_BYTES_MAX].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    file[..end].to_vec()
}

fn resolv_conf(dns: &DnsConfig) -> Vec<u8> {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text.into_bytes()
}

/// Kubelet brings its own; this is for clients that do not.
fn hosts(hostname: &str, ips: &[IpAddr]) -> Vec<u8> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    if ips.is_empty() {
        text.push_str(&format!("127.0.1.1\t{hostname}\n"));
    }
    for ip in ips {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    text.into_bytes()
}

/// The absolute path of a container's log; empty when there is none.
pub fn log_path(pod: &PodSpec, container: &ContainerSpec) -> String {
    if pod.log_directory.is_empty() || container.log_path.is_empty() {
        return String::new();
    }
    format!("{}/{}", pod.log_directory.trim_end_matches('/'), container.log_path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_model::spec::PodNamespaces;
    use knarr_model::{IdMap, UserNamespace};

    fn file(pod: &PodSpec, name: &str, ips: &[IpAddr]) -> String {
        let files = files(pod, "web-0", ips, b"nameserver 9.9.9.9\n", b"1.2.3.4 node\n");
        let (_, content) = files.into_iter().find(|(known, _)| known == name.as_bytes()).unwrap();
        String::from_utf8(content).unwrap()
    }

    #[test]
    fn dns_is_as_asked_for_or_the_hosts() {
        let mut pod = PodSpec::default();
        assert_eq!(file(&pod, "resolv.conf", &[]), "nameserver 9.9.9.9\n");
        pod.dns = Some(DnsConfig::default());
        assert_eq!(file(&pod, "resolv.conf", &[]), "", "said to be empty is not the same as not said");
        pod.dns = Some(DnsConfig {
            servers: vec!["10.96.0.10".into(), "fd00::a".into()],
            searches: vec!["a.b".into(), "b".into()],
            options: vec!["ndots:5".into()],
        });
        let expected = "search a.b b\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n";
        assert_eq!(file(&pod, "resolv.conf", &[]), expected);
    }

    #[test]
    fn the_pods_name_has_its_address_and_the_hosts_network_the_hosts_names() {
        let mut pod = PodSpec::default();
        assert!(file(&pod, "hosts", &[]).ends_with("127.0.1.1\tweb-0\n"));
        let with = file(&pod, "hosts", &["10.1.0.5".parse().unwrap()]);
        assert!(with.starts_with("127.0.0.1\tlocalhost\n") && with.ends_with("\n10.1.0.5\tweb-0\n"), "{with}");
        pod.namespaces = PodNamespaces { host_network: true, ..PodNamespaces::default() };
        assert_eq!(file(&pod, "hosts", &[]), "1.2.3.4 node\n");
        assert_eq!(file(&pod, "hostname", &[]), "web-0\n");
    }

    #[test]
    fn a_giant_file_of_the_host_is_cut_at_a_line() {
        let giant = b"nameserver 1.1.1.1\n".repeat(100_000);
        let cut = whole_lines(&giant);
        assert!(cut.len() <= HOST_FILE_BYTES_MAX && cut.ends_with(b"\n"));
        assert_eq!(whole_lines(&[b'x'; HOST_FILE_BYTES_MAX + 1]), b"");
    }

    #[test]
    fn sysctls_become_paths_and_what_the_pod_says_wins() {
        let mut pod = PodSpec::default();
        pod.sysctls.insert("net.ipv4.ping_group_range".into(), "1 0".into());
        pod.sysctls.insert("net.ipv4.conf.eno2/100.rp_filter".into(), "1".into());
        let text: Vec<(String, String)> = sysctls(&pod)
            .into_iter()
            .map(|(path, value)| (String::from_utf8(path).unwrap(), String::from_utf8(value).unwrap()))
            .collect();
        let expected = [
            ("net/ipv4/ip_unprivileged_port_start", "0"),
            ("net/ipv4/conf/eno2.100/rp_filter", "1"),
            ("net/ipv4/ping_group_range", "1 0"),
        ];
        assert_eq!(text, expected.map(|(path, value)| (path.to_owned(), value.to_owned())));
        pod.sysctls.clear();
        let ids = IdMap { host: 100_000, container: 0, length: 65_536 };
        pod.namespaces.user = Some(UserNamespace { uids: ids, gids: ids });
        assert_eq!(sysctls(&pod)[1].1, b"0 65535", "no group beyond those that there are");
        pod.namespaces.host_network = true;
        assert!(sysctls(&pod).is_empty(), "the host's are left alone");
    }
}
