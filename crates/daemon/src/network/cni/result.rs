//! What a plugin answers: a result with addresses, of any version from 0.1.0 to 1.1.0, or an error.

use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;

/// Interfaces and addresses read from one result.
const ITEMS_MAX: usize = 1024;

#[derive(Debug, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    interfaces: Vec<Interface>,
    ips: Vec<Address>,
    /// 0.1.0 and 0.2.0
    ip4: Option<OldAddress>,
    /// 0.1.0 and 0.2.0
    ip6: Option<OldAddress>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(default)]
struct Interface {
    name: String,
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Address {
    interface: Option<i64>,
    address: String,
}

#[derive(Debug, Deserialize)]
struct OldAddress {
    ip: String,
}

/// The pod's addresses on `interface`, in the plugin's order and without repetition. An address that names no interface
/// is the pod's; one that names another interface, or one on the host's side, is not, unless there is no other.
pub(super) fn addresses(result: &Value, interface: &str) -> Result<Vec<IpAddr>, String> {
    let wire = Wire::deserialize(result).map_err(|e| format!("the result is not what CNI says it is: {e}"))?;
    if wire.interfaces.len() > ITEMS_MAX || wire.ips.len() > ITEMS_MAX {
        return Err(format!("the result has more than {ITEMS_MAX} interfaces or addresses"));
    }
    let is_pods = |address: &&Address| {
        let Some(index) = address.interface else { return true };
        let named = usize::try_from(index).ok().and_then(|index| wire.interfaces.get(index));
        named.is_some_and(|named| named.name == interface && !named.sandbox.is_empty())
    };
    let mut texts: Vec<&str> = wire.ips.iter().filter(is_pods).map(|address| address.address.as_str()).collect();
    if texts.is_empty() {
        texts = wire.ips.iter().map(|address| address.address.as_str()).collect();
    }
    texts.extend(wire.ip4.iter().chain(&wire.ip6).map(|old| old.ip.as_str()));
    let mut found: Vec<IpAddr> = Vec::new();
    for text in texts {
        let bare = text.split('/').next().unwrap_or_default();
        let ip = bare.parse().map_err(|_| format!("the result has {text:?} for an address"))?;
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    Ok(found)
}

/// A plugin's own account of its failure.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(in crate::network) struct Refused {
    #[serde(default)]
    pub code: u32,
    pub msg: String,
    #[serde(default)]
    pub details: String,
}

impl Refused {
    /// Reads an error object; `None` if it is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn only_the_pods_side_of_its_interface_counts() {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"interface": 0, "address": "10.0.0.1/24"}, {"interface": 2, "address": "10.0.0.5/24"},
                    {"interface": 2, "address": "fd00::5/64"}, {"interface": 2, "address": "10.0.0.5/24"}],
        });
        let expected: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(addresses(&result, "eth0").unwrap(), expected);
    }

    #[test]
    fn every_version_is_read() {
        let v03 = json!({"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.5/24"}], "dns": {}});
        let v02 = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24"}});
        for result in [v03, v02] {
            assert_eq!(addresses(&result, "eth0").unwrap(), [IpAddr::from([10, 0, 0, 5])]);
        }
    }

    #[test]
    fn an_index_that_is_not_there_is_no_interface() {
        let result = json!({"interfaces": [], "ips": [{"interface": -1, "address": "10.0.0.5/24"}]});
        assert_eq!(addresses(&result, "eth0").unwrap().len(), 1, "better than no address at all");
        assert!(addresses(&json!({"ips": [{"address": "nonsense"}]}), "eth0").is_err());
        assert!(addresses(&json!("text"), "eth0").is_err());
    }

    proptest! {
        #[test]
        fn hostile_results_are_refused_or_read(index in any::<i64>(), address in "\\PC*", name in "\\PC*") {
            let result = json!({"interfaces": [{"name": name}], "ips": [{"interface": index, "address": address}]});
            let _ = addresses(&result, "eth0");
        }
    }
}
