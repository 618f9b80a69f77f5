//! Our nf_tables table: host ports and masquerade.
//!
//! ```text
//! table inet knarr-<bridge> {
//!   map ports4    { proto . port : addr . port }          host ports on every IPv4 address
//!   map ports4_at { addr . proto . port : addr . port }   host ports on one; ports6 and ports6_at alike
//!   chain martians    { raw prerouting:  iifname != lo ip daddr 127.0.0.0/8 drop }
//!   chain prerouting  { dstnat:          fib daddr type local jump ports }
//!   chain output      { dstnat:          ip6 daddr ::1 return; fib daddr type local jump ports }
//!   chain ports       {                  dnat to the maps' elements, those on one address first }
//!   chain postrouting { srcnat:          to the bridge, translated, from 127/8 or from a pod: masquerade
//!                                        from a pod, not to the bridge: masquerade }
//! }
//! ```
//!
//! - Only packets to an address of this host are looked up (`fib daddr type local`): traffic of a pod to another
//!   machine's port of the same number is none of ours.
//! - `route_localnet` on the bridge makes 127.0.0.1 work as a host port's address; `martians` takes back what that opens,
//!   so that the one is set only while the other is there.
//!   IPv6 has nothing like it, so that ::1 is left alone and refuses at once.
//! - There is no forward chain: an accept of ours would not keep another table from dropping. Such tables are looked for
//!   and named instead.
//! - The pods' chains are made anew in one transaction when somebody has flushed them.

use super::addresses::Subnet;
use super::nftables::{
    Base, Compare, ELEMENTS_PER_MESSAGE, Element, Expression, FAMILY_INET, FAMILY_IPV4, FAMILY_IPV6, HOOK_OUTPUT,
    HOOK_POSTROUTING, HOOK_PREROUTING, Map, Meta, TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_IPV4_ADDR, TYPE_IPV6_ADDR,
    Verdict, add_elements, commit, count_rules, delete_elements, delete_table, forward_drops, generation,
    new_base_chain, new_chain, new_map, new_rule, new_table,
};
use crate::network::netlink::{Message, Refusal, Socket};
use knarr_model::spec::{PortMapping, Protocol};
use knarr_model::{Error, ErrorKind, PodId};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_SRCNAT: i32 = 100;

/// Host ports of one pod: what kubelet lets one have is far below; 65535 of each protocol is what there is.
const PORTS_PER_POD_MAX: usize = 4096;

const MAPS: [Map; 4] = [
    Map {
        name: "ports4",
        key: &[(TYPE_INET_PROTO, 1), (TYPE_INET_SERVICE, 2)],
        data: &[(TYPE_IPV4_ADDR, 4), (TYPE_INET_SERVICE, 2)],
    },
    Map {
        name: "ports4_at",
        key: &[(TYPE_IPV4_ADDR, 4), (TYPE_INET_PROTO, 1), (TYPE_INET_SERVICE, 2)],
        data: &[(TYPE_IPV4_ADDR, 4), (TYPE_INET_SERVICE, 2)],
    },
    Map {
        name: "ports6",
        key: &[(TYPE_INET_PROTO, 1), (TYPE_INET_SERVICE, 2)],
        data: &[(TYPE_IPV6_ADDR, 16), (TYPE_INET_SERVICE, 2)],
    },
    Map {
        name: "ports6_at",
        key: &[(TYPE_IPV6_ADDR, 16), (TYPE_INET_PROTO, 1), (TYPE_INET_SERVICE, 2)],
        data: &[(TYPE_IPV6_ADDR, 16), (TYPE_INET_SERVICE, 2)],
    },
];

/// A port of the host that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HostPort {
    pub protocol: Protocol,
    /// `None`: every address of the family of `target`.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub target: IpAddr,
    pub target_port: u16,
}

/// IP protocol number.
pub(super) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

impl HostPort {
    /// What a pod's port mappings come to, given its addresses. 0.0.0.0 and :: are every address of their family.
    pub fn of_pod(ports: &[PortMapping], addresses: &[IpAddr]) -> Vec<Self> {
        let mut found = Vec::new();
        for port in ports.iter().filter(|port| port.host_port != 0) {
            for target in addresses.iter().copied() {
                if port.host_ip.is_some_and(|ip| ip.is_ipv4() != target.is_ipv4()) {
                    continue;
                }
                let host_port = Self {
                    protocol: port.protocol,
                    host_ip: port.host_ip.filter(|ip| !ip.is_unspecified()),
                    host_port: port.host_port,
                    target,
                    target_port: port.container_port,
                };
                if !found.contains(&host_port) {
                    found.push(host_port);
                }
            }
        }
        found
    }

    /// Whether one packet could match both.
    fn clashes(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && self.target.is_ipv4() == other.target.is_ipv4()
            && (self.host_ip.is_none() || other.host_ip.is_none() || self.host_ip == other.host_ip)
    }

    fn map(&self) -> &'static str {
        match (self.target, self.host_ip) {
            (IpAddr::V4(_), None) => "ports4",
            (IpAddr::V4(_), Some(_)) => "ports4_at",
            (IpAddr::V6(_), None) => "ports6",
            (IpAddr::V6(_), Some(_)) => "ports6_at",
        }
    }

    fn element(&self, pod: &PodId) -> Element {
        let mut key = Vec::new();
        if let Some(address) = self.host_ip {
            push_address(&mut key, address);
        }
        key.extend_from_slice(&[protocol_number(self.protocol), 0, 0, 0]);
        push_port(&mut key, self.host_port);
        let mut data = Vec::new();
        push_address(&mut data, self.target);
        push_port(&mut data, self.target_port);
        Element { key, data, comment: pod.as_str().to_owned() }
    }
}

fn push_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => bytes.extend_from_slice(&v4.octets()),
        IpAddr::V6(v6) => bytes.extend_from_slice(&v6.octets()),
    }
}

fn push_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
}

/// What the rules depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub bridge: String,
    pub host_ports: bool,
    pub masquerade: bool,
    /// Where pods' addresses come from, and came from.
    pub subnets: Vec<Subnet>,
}

/// The table and what must be in it.
#[derive(Debug)]
pub(super) struct Ruleset {
    table: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    policy: Policy,
    ports: BTreeMap<PodId, Vec<HostPort>>,
    /// The ruleset's number when the table was last known to be whole.
    verified: Option<u32>,
    /// The maps may hold what `ports` does not: only making the table anew makes it whole.
    stale: bool,
    /// Chains of others that drop forwarded packets, as last seen.
    foreign_drops: Vec<String>,
}

impl Ruleset {
    /// Knows what should be there; touches nothing.
    pub fn new(policy: Policy, ports: BTreeMap<PodId, Vec<HostPort>>) -> Self {
        let table = format!("knarr-{}", policy.bridge);
        let foreign_drops = Vec::new();
        Self { table, state: Mutex::new(State { policy, ports, verified: None, stale: false, foreign_drops }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the table whole if it is not; costs one exchange if nobody has touched any table since.
    pub fn ensure(&self, socket: &mut Socket) -> Result<(), Error> {
        self.ensure_locked(&mut self.lock(), socket)
    }

    fn ensure_locked(&self, state: &mut State, socket: &mut Socket) -> Result<(), Error> {
        let now = generation(socket).map_err(|e| self.failed("asking for the ruleset's number", &e))?;
        if state.verified == Some(now) {
            return Ok(());
        }
        self.look_for_foreign_drops(state, socket);
        let expected = rules(&self.table, &state.policy).len();
        // A table that is not there is an error on some kernels and an empty answer on others.
        if !state.stale && count_rules(socket, FAMILY_INET, &self.table).unwrap_or(0) == expected {
            state.verified = Some(now);
            return Ok(());
        }
        self.rebuild(state, socket)
    }

    /// Makes the table anew in one transaction: no packet ever meets half of it.
    fn rebuild(&self, state: &mut State, socket: &mut Socket) -> Result<(), Error> {
        let table = self.table.as_str();
        // Making it first makes deleting it possible whether or not it was there.
        let mut batch =
            vec![new_table(FAMILY_INET, table), delete_table(FAMILY_INET, table), new_table(FAMILY_INET, table)];
        batch.extend(MAPS.iter().zip(1..).map(|(map, id)| new_map(FAMILY_INET, table, map, id)));
        batch.extend(chains(table));
        batch.extend(rules(table, &state.policy));
        let all: Vec<(PodId, HostPort)> =
            state.ports.iter().flat_map(|(pod, ports)| ports.iter().map(|port| (pod.clone(), *port))).collect();
        batch.extend(self.element_messages(&all, add_elements));
        // Not verified until the next look: another transaction may have come between the number and this one.
        state.verified = None;
        state.stale = true;
        commit(socket, batch).map_err(|e| self.failed("making the table", &e))?;
        state.stale = false;
        Ok(())
    }

    fn look_for_foreign_drops(&self, state: &mut State, socket: &mut Socket) {
        let Ok(drops) = forward_drops(socket, &self.table) else { return };
        if drops != state.foreign_drops {
            for chain in drops.iter().filter(|chain| !state.foreign_drops.contains(chain)) {
                tracing::warn!(%chain, bridge = %state.policy.bridge,
                    "nf_tables chain drops forwarded packets: pods may not reach the outside nor be reached by host port");
            }
            state.foreign_drops = drops;
        }
    }

    /// Chains of other tables that drop forwarded packets, as last seen.
    pub fn foreign_drops(&self) -> Vec<String> {
        self.lock().foreign_drops.clone()
    }

    fn element_messages(
        &self,
        ports: &[(PodId, HostPort)],
        build: fn(u8, &str, &str, &[Element]) -> Message,
    ) -> Vec<Message> {
        let mut messages = Vec::new();
        for map in MAPS {
            let of_map = ports.iter().filter(|(_, port)| port.map() == map.name);
            let elements: Vec<Element> = of_map.map(|(pod, port)| port.element(pod)).collect();
            for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
                messages.push(build(FAMILY_INET, &self.table, map.name, some));
            }
        }
        messages
    }

    /// Reserves host ports for a pod and makes them lead to it.
    pub fn publish(&self, socket: &mut Socket, pod: &PodId, ports: Vec<HostPort>) -> Result<(), Error> {
        let mut state = self.lock();
        if ports.len() > PORTS_PER_POD_MAX {
            let message = format!("{} host ports; a pod can have {PORTS_PER_POD_MAX}", ports.len());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        check_clashes(&state.ports, pod, &ports)?;
        self.ensure_locked(&mut state, socket)?;
        let pairs: Vec<(PodId, HostPort)> = ports.iter().map(|port| (pod.clone(), *port)).collect();
        state.ports.insert(pod.clone(), ports);
        if self.change(&mut state, socket, self.element_messages(&pairs, add_elements)).is_ok() {
            return Ok(());
        }
        // Somebody has changed the table: what should be there is known, so it is made anew.
        self.rebuild(&mut state, socket).inspect_err(|_| {
            state.ports.remove(pod);
        })
    }

    /// Takes a pod's host ports back; gives what they were.
    pub fn withdraw(&self, socket: &mut Socket, pod: &PodId) -> Result<Vec<HostPort>, Error> {
        let mut state = self.lock();
        let Some(ports) = state.ports.remove(pod) else { return Ok(Vec::new()) };
        let pairs: Vec<(PodId, HostPort)> = ports.iter().map(|port| (pod.clone(), *port)).collect();
        if self.change(&mut state, socket, self.element_messages(&pairs, delete_elements)).is_err() {
            self.rebuild(&mut state, socket)?;
        }
        Ok(ports)
    }

    /// Commits and, if nobody else did at the same time, stays verified.
    fn change(&self, state: &mut State, socket: &mut Socket, batch: Vec<Message>) -> Result<(), Refusal> {
        let before = state.verified.take();
        commit(socket, batch)?;
        let after = generation(socket)?;
        if before.map(|number| number.wrapping_add(1)) == Some(after) {
            state.verified = Some(after);
        }
        Ok(())
    }

    /// Whether a pod has host ports.
    pub fn has_ports(&self, pod: &PodId) -> bool {
        self.lock().ports.contains_key(pod)
    }

    /// Whether any pod has host ports.
    pub fn has_any_ports(&self) -> bool {
        !self.lock().ports.is_empty()
    }

    /// Masquerades for other subnets from now on.
    pub fn set_subnets(&self, socket: &mut Socket, subnets: Vec<Subnet>) -> Result<(), Error> {
        let mut state = self.lock();
        state.policy.subnets = subnets;
        self.rebuild(&mut state, socket)
    }

    /// Makes the table anew from what is known: elements of pods that are not, go.
    pub fn refresh(&self, socket: &mut Socket) -> Result<(), Error> {
        self.rebuild(&mut self.lock(), socket)
    }

    /// Whether the table is there with any rule.
    pub fn exists(&self, socket: &mut Socket) -> bool {
        count_rules(socket, FAMILY_INET, &self.table).is_ok_and(|count| count > 0)
    }

    /// Removes the table.
    pub fn remove(&self, socket: &mut Socket) -> Result<(), Error> {
        self.lock().verified = None;
        let batch = vec![new_table(FAMILY_INET, &self.table), delete_table(FAMILY_INET, &self.table)];
        commit(socket, batch).map_err(|e| self.failed("removing the table", &e))
    }

    fn failed(&self, step: &str, refusal: &Refusal) -> Error {
        Error::internal(format!("nf_tables, table inet {}: {step}: message {}: {refusal}", self.table, refusal.index))
    }
}

/// Refuses a port that another pod has, or that the pod asks for twice.
fn check_clashes(taken: &BTreeMap<PodId, Vec<HostPort>>, pod: &PodId, wanted: &[HostPort]) -> Result<(), Error> {
    let refuse = |port: &HostPort, by: String| {
        let on = port.host_ip.map(|ip| format!(" on {ip}")).unwrap_or_default();
        let message = format!("host port {}/{}{on} {by}", port.host_port, protocol_name(port.protocol));
        Err(Error::new(ErrorKind::FailedPrecondition, message))
    };
    for (index, port) in wanted.iter().enumerate() {
        if wanted[..index].iter().any(|earlier| earlier.clashes(port)) {
            return refuse(port, "is asked for twice by the same pod".to_owned());
        }
        for (other, ports) in taken.iter().filter(|(other, _)| *other != pod) {
            if ports.iter().any(|theirs| theirs.clashes(port)) {
                return refuse(port, format!("is taken by pod {other}"));
            }
        }
    }
    Ok(())
}

fn chains(table: &str) -> Vec<Message> {
    let base = |chain, kind, hook, priority| new_base_chain(FAMILY_INET, table, chain, kind, hook, priority);
    vec![
        new_chain(FAMILY_INET, table, "ports"),
        base("martians", "filter", HOOK_PREROUTING, PRIORITY_RAW),
        base("prerouting", "nat", HOOK_PREROUTING, PRIORITY_DSTNAT),
        base("output", "nat", HOOK_OUTPUT, PRIORITY_DSTNAT),
        base("postrouting", "nat", HOOK_POSTROUTING, PRIORITY_SRCNAT),
    ]
}

fn rules(table: &str, policy: &Policy) -> Vec<Message> {
    let mut rules = vec![];
    let mut rule = |chain: &str, parts: Vec<Vec<Expression>>| {
        rules.push(new_rule(FAMILY_INET, table, chain, &parts.concat()));
    };
    if policy.host_ports {
        let drop = vec![Expression::verdict(Verdict::Drop)];
        rule("martians", vec![interface(Meta::InterfaceIn, Compare::Unequal, "lo"), from_or_to_loopback(16), drop]);
        let to_ports = || {
            vec![
                Expression::destination_type(1),
                Expression::compare(1, Compare::Equal, &2_u32.to_ne_bytes()),
                Expression::verdict(Verdict::Jump("ports")),
            ]
        };
        rule("prerouting", vec![to_ports()]);
        let localhost = Ipv6Addr::LOCALHOST.octets();
        let to_localhost = vec![
            Expression::payload(Base::Network, 24, 16, 1),
            Expression::compare(1, Compare::Equal, &localhost),
            Expression::verdict(Verdict::Return),
        ];
        rule("output", vec![network_protocol(FAMILY_IPV6), to_localhost]);
        rule("output", vec![to_ports()]);
        rule("ports", vec![translate(FAMILY_IPV4, "ports4_at", Some((16, 4)))]);
        rule("ports", vec![translate(FAMILY_IPV4, "ports4", None)]);
        rule("ports", vec![translate(FAMILY_IPV6, "ports6_at", Some((24, 16)))]);
        rule("ports", vec![translate(FAMILY_IPV6, "ports6", None)]);
        let to_bridge = || interface(Meta::InterfaceOut, Compare::Equal, &policy.bridge);
        let masquerade = || vec![Expression::masquerade(false)];
        rule("postrouting", vec![to_bridge(), was_translated(), from_or_to_loopback(12), masquerade()]);
        for subnet in &policy.subnets {
            rule("postrouting", vec![to_bridge(), was_translated(), from_subnet(subnet), masquerade()]);
        }
    }
    if policy.masquerade {
        for subnet in &policy.subnets {
            let outside = interface(Meta::InterfaceOut, Compare::Unequal, &policy.bridge);
            rule("postrouting", vec![outside, from_subnet(subnet), vec![Expression::masquerade(true)]]);
        }
    }
    rules
}

fn interface(which: Meta, sense: Compare, name: &str) -> Vec<Expression> {
    let mut padded = [0; 16];
    for (slot, byte) in padded.iter_mut().zip(name.bytes().take(15)) {
        *slot = byte;
    }
    vec![Expression::meta(which, 1), Expression::compare(1, sense, &padded)]
}

fn network_protocol(family: u8) -> Vec<Expression> {
    vec![Expression::meta(Meta::NetworkProtocol, 1), Expression::compare(1, Compare::Equal, &[family])]
}

/// The first byte of the IPv4 address at that offset of the header is 127.
fn from_or_to_loopback(offset: u32) -> Vec<Expression> {
    let mut expressions = network_protocol(FAMILY_IPV4);
    expressions.push(Expression::payload(Base::Network, offset, 1, 1));
    expressions.push(Expression::compare(1, Compare::Equal, &[127]));
    expressions
}

fn from_subnet(subnet: &Subnet) -> Vec<Expression> {
    let (family, offset, length) = if subnet.network().is_ipv4() { (FAMILY_IPV4, 12, 4) } else { (FAMILY_IPV6, 8, 16) };
    let mut network = Vec::new();
    push_address(&mut network, subnet.network());
    let mut expressions = network_protocol(family);
    expressions.push(Expression::payload(Base::Network, offset, length, 1));
    expressions.push(Expression::mask(1, &subnet.netmask()));
    expressions.push(Expression::compare(1, Compare::Equal, &network));
    expressions
}

/// `ct status dnat`
fn was_translated() -> Vec<Expression> {
    const IPS_DST_NAT: u32 = 1 << 5;
    vec![
        Expression::conntrack_status(1),
        Expression::mask(1, &IPS_DST_NAT.to_ne_bytes()),
        Expression::compare(1, Compare::Unequal, &[0; 4]),
    ]
}

/// Looks the packet up in a map and translates its destination; `address` is offset and length of the destination
/// address where that is part of the key.
fn translate(family: u8, map: &str, address: Option<(u32, u32)>) -> Vec<Expression> {
    // The address takes `length / 4` of the 4-byte registers that start at number 8, protocol and port one each.
    let length = address.map_or(0, |(_, length)| length);
    let (protocol, port) = (8 + length / 4, 9 + length / 4);
    let mut expressions = network_protocol(family);
    expressions.extend(address.map(|(offset, length)| Expression::payload(Base::Network, offset, length, 8)));
    expressions.push(Expression::meta(Meta::TransportProtocol, protocol));
    expressions.push(Expression::payload(Base::Transport, 2, 2, port));
    expressions.push(Expression::lookup(map));
    let port_register = if family == FAMILY_IPV4 { 9 } else { 12 };
    expressions.push(Expression::dnat(family, port_register));
    expressions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(n: u8) -> PodId {
        PodId::from_bytes(&[n; 32])
    }

    fn mapping(host_port: u16, host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip }
    }

    fn addresses() -> Vec<IpAddr> {
        vec!["10.85.0.2".parse().unwrap(), "fd85::2".parse().unwrap()]
    }

    #[test]
    fn a_port_without_an_address_is_there_in_both_families() {
        let ports = HostPort::of_pod(&[mapping(8080, None), mapping(0, None)], &addresses());
        assert_eq!(ports.iter().map(HostPort::map).collect::<Vec<_>>(), ["ports4", "ports6"]);
        let any4 = HostPort::of_pod(&[mapping(8080, Some("0.0.0.0"))], &addresses());
        assert_eq!(any4.iter().map(HostPort::map).collect::<Vec<_>>(), ["ports4"]);
        let one6 = HostPort::of_pod(&[mapping(8080, Some("2001:db8::1"))], &addresses());
        assert_eq!(one6.iter().map(HostPort::map).collect::<Vec<_>>(), ["ports6_at"]);
    }

    #[test]
    fn a_taken_port_is_refused_with_its_holders_name() {
        let taken = BTreeMap::from([(pod(1), HostPort::of_pod(&[mapping(8080, Some("192.0.2.1"))], &addresses()))]);
        let check = |port| check_clashes(&taken, &pod(2), &HostPort::of_pod(&[port], &addresses()));
        let error = check(mapping(8080, None)).unwrap_err();
        assert!(error.message.contains(pod(1).as_str()) && error.message.contains("8080/tcp"), "{error}");
        assert_eq!(check(mapping(8080, Some("192.0.2.2"))), Ok(()));
        assert_eq!(check(mapping(8081, None)), Ok(()));
        assert_eq!(check_clashes(&taken, &pod(1), &taken[&pod(1)]), Ok(()), "a pod's own ports do not clash");
        let twice = HostPort::of_pod(&[mapping(1, None), mapping(1, Some("192.0.2.9"))], &addresses());
        assert!(check_clashes(&BTreeMap::new(), &pod(2), &twice).unwrap_err().message.contains("twice"));
    }

    #[test]
    fn keys_are_padded_to_registers() {
        let port = HostPort::of_pod(&[mapping(0x1f90, Some("192.0.2.1"))], &addresses())[0];
        let element = port.element(&pod(1));
        assert_eq!(element.key, [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(element.data, [10, 85, 0, 2, 0, 80, 0, 0]);
    }

    proptest! {
        #[test]
        fn ports_that_do_not_clash_have_different_keys(
            a in (1_u16..4, 0_u8..3), b in (1_u16..4, 0_u8..3),
        ) {
            let host_port = |(port, ip): (u16, u8)| {
                let ip = (ip > 0).then(|| format!("192.0.2.{ip}"));
                HostPort::of_pod(&[mapping(port, ip.as_deref())], &addresses())[0]
            };
            let (a, b) = (host_port(a), host_port(b));
            if !a.clashes(&b) {
                prop_assert!(a.map() != b.map() || a.element(&pod(1)).key != b.element(&pod(1)).key);
            }
            prop_assert_eq!(a.clashes(&b), b.clashes(&a));
        }
    }
}
