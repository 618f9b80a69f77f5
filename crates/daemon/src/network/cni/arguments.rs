//! What a pod brings into a CNI call: CNI_ARGS and the values of capabilities.
//!
//! Pods' texts end in a `;`-separated list and in JSON that plugins read as root: what could be read as something else is
//! refused here.

use crate::network::PodIdentity;
use knarr_model::Error;
use knarr_model::spec::Protocol;
use serde_json::{Map, Value, json};

/// Bits a second that a bandwidth annotation may ask for: kubelet's own bounds, 1k to 1P.
const BANDWIDTH_RANGE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Bits of a burst: the largest that the bandwidth plugin takes.
const BANDWIDTH_BURST: u64 = u32::MAX as u64;

/// CNI_ARGS as pairs, in the order in which plugins are used to them.
pub(super) fn pairs(pod: &PodIdentity) -> Result<Vec<(String, String)>, Error> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", pod.id.as_str()),
        ("K8S_POD_UID", &pod.uid),
    ];
    for (key, value) in pairs {
        if value.contains([';', '=']) || value.contains(char::is_control) {
            return Err(Error::invalid(key, format!("{value:?} would be read as another argument by CNI plugins")));
        }
    }
    Ok(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec())
}

/// Pairs as CNI_ARGS.
pub(super) fn joined(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(";")
}

/// Values for every capability that we know; a plugin gets those that it declares.
pub(super) fn capabilities(pod: &PodIdentity) -> Result<Map<String, Value>, Error> {
    let mut values = Map::new();
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .filter(|port| port.host_port != 0)
        .map(|port| {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let host_ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            json!({
                "hostPort": port.host_port, "containerPort": port.container_port, "protocol": protocol, "hostIP": host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        values.insert("portMappings".to_owned(), Value::Array(ports));
    }
    let mut bandwidth = Map::new();
    for (direction, rate, burst) in
        [("ingress", "ingressRate", "ingressBurst"), ("egress", "egressRate", "egressBurst")]
    {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = pod.annotations.get(&key) else { continue };
        let bits = quantity(text).filter(|bits| BANDWIDTH_RANGE.contains(bits)).ok_or_else(|| {
            Error::invalid(&format!("annotation {key}"), format!("{text:?} is no quantity between 1k and 1P"))
        })?;
        bandwidth.insert(rate.to_owned(), bits.into());
        bandwidth.insert(burst.to_owned(), BANDWIDTH_BURST.into());
    }
    if !bandwidth.is_empty() {
        values.insert("bandwidth".to_owned(), Value::Object(bandwidth));
    }
    if let Some(dns) = &pod.dns {
        let dns = json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options });
        values.insert("dns".to_owned(), dns);
    }
    values.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(pod.annotations));
    if !pod.cgroup_path.is_empty() {
        values.insert("cgroupPath".to_owned(), pod.cgroup_path.clone().into());
    }
    Ok(values)
}

/// A Kubernetes quantity, rounded up to a whole number: digits with an optional fraction, then a decimal or binary
/// suffix or an exponent.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.len() > 18 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let below = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (times, over) = scale(suffix)?;
    let value = digits.checked_mul(times)?.div_ceil(below.checked_mul(over)?);
    u64::try_from(value).ok()
}

/// What a suffix multiplies with and divides by.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let powers_of_1024 = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let powers_of_1000 = ["k", "M", "G", "T", "P", "E"];
    if let Some(n) = powers_of_1024.iter().position(|known| *known == suffix) {
        return Some((1 << (10 * (n + 1)), 1));
    }
    if let Some(n) = powers_of_1000.iter().position(|known| *known == suffix) {
        return Some((1000_u128.pow(u32::try_from(n).ok()? + 1), 1));
    }
    match suffix {
        "" => Some((1, 1)),
        "m" => Some((1, 1_000)),
        "u" => Some((1, 1_000_000)),
        "n" => Some((1, 1_000_000_000)),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let scale = 10_u128.checked_pow(power.unsigned_abs())?;
            Some(if power < 0 { (1, scale) } else { (scale, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_model::PodId;
    use knarr_model::spec::PortMapping;
    use proptest::prelude::*;

    fn pod() -> PodIdentity {
        PodIdentity {
            id: PodId::from_bytes(&[7; 32]),
            name: "web".to_owned(),
            namespace: "default".to_owned(),
            uid: "u-1".to_owned(),
            annotations: Default::default(),
            cgroup_path: "/kubepods/podu-1".to_owned(),
            ports: Vec::new(),
            dns: None,
        }
    }

    #[test]
    fn arguments_are_those_that_plugins_know() {
        let text = joined(&pairs(&pod()).unwrap());
        let id = "07".repeat(32);
        assert_eq!(
            text,
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=u-1"
            )
        );
    }

    #[test]
    fn only_host_ports_are_mapped() {
        let port = |host_port| PortMapping { protocol: Protocol::Udp, container_port: 53, host_port, host_ip: None };
        let mut pod = pod();
        pod.ports = vec![port(0), port(5353)];
        let expected = json!([{ "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "" }]);
        assert_eq!(capabilities(&pod).unwrap()["portMappings"], expected);
    }

    #[test]
    fn bandwidth_is_in_bits_a_second() {
        let mut pod = pod();
        pod.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "10M".to_owned());
        assert_eq!(
            capabilities(&pod).unwrap()["bandwidth"],
            json!({ "egressRate": 10_000_000, "egressBurst": u32::MAX })
        );
        pod.annotations.insert("kubernetes.io/egress-bandwidth".to_owned(), "10".to_owned());
        assert!(capabilities(&pod).unwrap_err().message.contains("egress-bandwidth"));
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, value) in [
            ("1k", 1_000),
            ("1Ki", 1_024),
            ("1.5M", 1_500_000),
            ("2e3", 2_000),
            ("1500m", 2),
            ("7", 7),
            (".5G", 500_000_000),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for bad in ["", ".", "k", "1x", "-1", "1 M", "1e99", "99999999999999999999"] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_value_becomes_another_argument(name in "\\PC*", uid in any::<String>()) {
            let mut pod = pod();
            (pod.name, pod.uid) = (name, uid);
            if let Ok(pairs) = pairs(&pod) {
                let text = joined(&pairs);
                prop_assert_eq!(text.split(';').count(), 5);
                prop_assert!(text.split(';').all(|pair| pair.split('=').count() == 2));
            }
        }

        #[test]
        fn hostile_quantities_end(text in "\\PC{0,40}") {
            let _ = quantity(&text);
        }
    }
}
