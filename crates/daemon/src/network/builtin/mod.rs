//! The network that is there without any plugin: one bridge, one veth pair per pod, addresses of our own, masquerade and
//! host ports. Everything by netlink from this process; nothing is executed.
//!
//! ```text
//!   pod a          pod b               outside
//!   eth0           eth0                   │
//!    │              │                    eth0
//!  kn3f…          kn81…                   │
//!    └── knarr0 ────┘ ── routing, nf_tables ─┘
//! ```
//!
//! Which mechanism a pod gets, its record and its pin are not decided here but one level up.

pub(super) mod addresses;
mod conntrack;
pub(super) mod departures;
mod links;
mod nftables;
mod ruleset;

use self::addresses::{Addresses, Subnet, Subnets};
use self::conntrack::Stale;
use self::departures::Departures;
use self::links::{Mac, Veth};
use self::ruleset::{HostPort, Policy, Ruleset};
use super::netlink::{NETLINK_ROUTE, Refusal, Socket};
use super::{BuiltinConfig, PodIdentity, netns, record};
use knarr_model::spec::PortMapping;
use knarr_model::{Error, ErrorKind, PodId};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pod's end of the pair, as every CNI plugin calls it too.
pub(super) const POD_LINK: &str = "eth0";
/// First letters of the host's end; 12 digits of the pod's id follow, which makes 14 of the kernel's 15 bytes.
const HOST_LINK_PREFIX: &str = "kn";
/// Where there is no default route to learn it from.
const MTU_DEFAULT: u32 = 1500;
/// What Linux takes for an interface with IPv6.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 1280..=65535;
/// How the note on the bridge begins, and bytes of the path behind it: a link's alias ends at 255.
const OWNER_PREFIX: &str = "knarr ";
const OWNER_PATH_MAX: usize = 200;
/// How long a new link may take to be active, and between two looks at it. It takes less than a millisecond; a pod whose
/// link takes longer is attached all the same.
const RUNNING_TIMEOUT: Duration = Duration::from_millis(100);
const RUNNING_PAUSE: Duration = Duration::from_micros(200);
/// Bytes of a link's name.
const LINK_NAME_MAX: usize = 15;

/// The host's end of a pod's pair. Pod ids are drawn at random, so that no name ever comes again.
pub(super) fn host_link(pod: &PodId) -> String {
    format!("{HOST_LINK_PREFIX}{}", pod.short())
}

/// Whether a link could be the host's end of a pair of ours.
fn is_host_link(name: &str) -> bool {
    name.strip_prefix(HOST_LINK_PREFIX)
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The built-in network of this node.
#[derive(Debug)]
pub(super) struct Builtin {
    config: BuiltinConfig,
    pub addresses: Arc<Addresses>,
    pub departures: Arc<Departures>,
    /// What is written on the bridge.
    owner: String,
    ruleset: Ruleset,
    bridge: Mutex<Option<Bridge>>,
    /// Whether a pod has been attached: before that nothing of ours is on the host.
    used: AtomicBool,
    /// Why there are no rules, if there are none.
    rules_failure: Mutex<Option<String>>,
}

#[derive(Debug, Clone, Copy)]
struct Bridge {
    index: u32,
    mtu: u32,
}

impl Builtin {
    /// Reads which addresses are given out; `ports` are the host ports of pods that are attached already. `cidr` is what
    /// an earlier UpdateRuntimeConfig said.
    pub fn open(
        config: &BuiltinConfig,
        state_dir: &Path,
        ports: &BTreeMap<PodId, Vec<PortMapping>>,
        cidr: Option<&str>,
    ) -> Result<Self, Error> {
        check_config(config)?;
        let configured = configured_subnets(config)?;
        let subnets = cidr.and_then(|cidr| subnets_of_cidr(cidr).ok()).unwrap_or(configured);
        let holder = |path: &Path| record::read(path).map(|record| (record.pod.id, record.ips));
        let addresses = Arc::new(Addresses::open(state_dir, without_missing_family(subnets), holder)?);
        let host_ports: BTreeMap<PodId, Vec<HostPort>> = ports
            .iter()
            .map(|(pod, ports)| (pod.clone(), HostPort::of_pod(ports, &addresses.of(pod))))
            .filter(|(_, ports)| config.host_ports && !ports.is_empty())
            .collect();
        let mut masqueraded: Vec<Subnet> = addresses.subnets().each().collect();
        masqueraded
            .extend(without_missing_family(configured).each().filter(|subnet| !subnets.each().any(|s| s == *subnet)));
        let policy = Policy {
            bridge: config.bridge.clone(),
            host_ports: config.host_ports,
            masquerade: config.masquerade,
            subnets: masqueraded,
        };
        Ok(Self {
            used: AtomicBool::new(!addresses.holders().is_empty()),
            departures: Arc::new(Departures::new(addresses.clone())),
            ruleset: Ruleset::new(policy, host_ports),
            addresses,
            bridge: Mutex::new(None),
            owner: owner(state_dir),
            rules_failure: Mutex::new(None),
            config: config.clone(),
        })
    }

    /// Connects the pod; blocks, and leaves the calling thread inside the pod's namespace, so that it must end.
    pub fn attach(
        &self,
        pod: &PodIdentity,
        addresses: &[(IpAddr, Subnet)],
        netns: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        let failed = |step: &str, e: Refusal| Error::internal(format!("built-in network: {step}: {e}"));
        let mut host = Socket::open(NETLINK_ROUTE).map_err(|e| failed("opening a netlink socket", e.into()))?;
        let bridge = self.ensure_bridge(&mut host)?;
        self.used.store(true, Ordering::Relaxed);
        let ips: Vec<IpAddr> = addresses.iter().map(|(ip, _)| *ip).collect();
        let wanted = if self.config.host_ports { HostPort::of_pod(&pod.ports, &ips) } else { Vec::new() };
        self.open_ports(&mut host, &pod.id, &wanted)?;
        let host_name = host_link(&pod.id);
        let veth = Veth {
            host_name: &host_name,
            pod_name: POD_LINK,
            pod_mac: pod_mac(&ips),
            host_mac: host_mac(&ips),
            mtu: bridge.mtu,
            bridge: bridge.index,
            netns,
        };
        links::create_veth(&mut host, &veth).map_err(|e| failed(&format!("making link {host_name}"), e))?;
        if !wanted.is_empty() && bridged_packets_are_translated() {
            let port = links::find(&mut host, &host_name).ok().flatten();
            if let Some(port) = port {
                links::set_hairpin(&mut host, port.index).map_err(|e| failed("setting hairpin mode", e))?;
            }
        }
        netns::enter(netns).map_err(|e| failed("entering the pod's network namespace", e.into()))?;
        configure_inside(addresses).map_err(|e| failed(&format!("configuring {POD_LINK} in the pod"), e))?;
        wait_until_running(&mut host, &[&host_name, &self.config.bridge]);
        Ok(())
    }

    fn open_ports(&self, host: &mut Socket, pod: &PodId, wanted: &[HostPort]) -> Result<(), Error> {
        let mut rules = nftables::open().map_err(|e| Error::internal(format!("opening nf_tables: {e}")))?;
        if wanted.is_empty() {
            // A pod without host ports is better off without masquerade than not at all: said in the status.
            self.note_rules(self.ruleset.ensure(&mut rules));
            return Ok(());
        }
        self.ruleset.publish(&mut rules, pod, wanted.to_vec())?;
        self.note_rules(Ok(()));
        if wanted.iter().any(|port| port.protocol == knarr_model::spec::Protocol::Udp) {
            let forgotten = links::local_addresses(host)
                .and_then(|local| conntrack::forget_flows(&mut rules, wanted, Stale::Before(&local)));
            if let Err(refusal) = forgotten {
                tracing::warn!(%pod, %refusal, "UDP flows to host ports that began before the pod may not reach it");
            }
        }
        Ok(())
    }

    fn note_rules(&self, outcome: Result<(), Error>) {
        let mut failure = self.rules_failure.lock().unwrap_or_else(PoisonError::into_inner);
        let now = outcome.err().map(|error| error.message);
        if let Some(message) = now.as_ref().filter(|message| Some(*message) != failure.as_ref()) {
            tracing::warn!(%message, "pods have no masquerade and no host ports");
        }
        *failure = now;
        self.set_route_localnet(failure.is_none() && self.ruleset.has_any_ports());
    }

    /// Lets packets of 127.0.0.1 be routed to the bridge, and back. Only while the rule is there that keeps pods from
    /// reaching the services of the host's 127.0.0.1 that way.
    fn set_route_localnet(&self, on: bool) {
        let key = format!("ipv4/conf/{}/route_localnet", self.config.bridge);
        if let Err(error) = links::write_sysctl(&key, if on { "1" } else { "0" }) {
            tracing::warn!(key, %error, "host ports do not work on 127.0.0.1");
        }
    }

    /// Takes back what [`Builtin::attach`] did, as far as it came. Does not wait for the kernel to remove the link.
    pub fn detach(&self, pod: &PodId, netns_inode: Option<u64>) -> Vec<Error> {
        let mut errors = Vec::new();
        if self.ruleset.has_ports(pod) {
            errors.extend(self.close_ports(pod).err());
        }
        let left = Socket::open(NETLINK_ROUTE)
            .map_err(|e| Error::internal(format!("built-in network: opening a netlink socket: {e}")))
            .and_then(|mut host| self.departures.leave(&mut host, pod, netns_inode));
        errors.extend(left.err());
        errors
    }

    /// Deletes the pod's link at once, which takes 25 to 30 ms.
    pub fn delete_link(&self, pod: &PodId) -> Result<(), Error> {
        let name = host_link(pod);
        let mut host = Socket::open(NETLINK_ROUTE).map_err(|e| Error::internal(format!("opening netlink: {e}")))?;
        match links::find(&mut host, &name) {
            Ok(None) => Ok(()),
            Ok(Some(_)) => links::delete(&mut host, &name),
            Err(refusal) => Err(refusal),
        }
        .map_err(|e| Error::internal(format!("built-in network: deleting link {name}: {e}")))
    }

    fn close_ports(&self, pod: &PodId) -> Result<(), Error> {
        let mut rules = nftables::open().map_err(|e| Error::internal(format!("opening nf_tables: {e}")))?;
        let ports = self.ruleset.withdraw(&mut rules, pod)?;
        if let Err(refusal) = conntrack::forget_flows(&mut rules, &ports, Stale::After) {
            tracing::warn!(%pod, %refusal, "UDP flows still lead to the pod's address");
        }
        Ok(())
    }

    /// The bridge, made if it is not there. A bridge that somebody deleted and that is made again gets its ports back.
    fn ensure_bridge(&self, host: &mut Socket) -> Result<Bridge, Error> {
        let name = self.config.bridge.as_str();
        let failed = |step: &str, e: Refusal| Error::internal(format!("bridge {name}: {step}: {e}"));
        let mut known = self.bridge.lock().unwrap_or_else(PoisonError::into_inner);
        let found = links::find(host, name).map_err(|e| failed("looking for it", e))?;
        if let (Some(bridge), Some(link)) = (*known, &found)
            && bridge.index == link.index
            && link.up
        {
            return Ok(bridge);
        }
        let mtu = match self.config.mtu {
            0 => links::mtu_to_the_outside(host).filter(|mtu| MTU_RANGE.contains(mtu)).unwrap_or(MTU_DEFAULT),
            mtu => mtu,
        };
        let link = match found {
            Some(link) => link,
            None => {
                let gateway = self.addresses.subnets().v4.gateway();
                links::create_bridge(host, name, pod_mac(&[gateway]), mtu).map_err(|e| failed("making it", e))?;
                let made = links::find(host, name).map_err(|e| failed("looking for it", e))?;
                made.ok_or_else(|| Error::internal(format!("bridge {name}: gone as soon as it was made")))?
            }
        };
        if link.kind != "bridge" {
            return Err(Error::internal(format!(
                "link {name} is a {:?}, not a bridge: choose another name",
                link.kind
            )));
        }
        if self.is_anothers(&link) {
            let why = format!("bridge {name} belongs to another instance ({}): choose another name", link.alias);
            return Err(Error::new(ErrorKind::FailedPrecondition, why));
        }
        links::set_alias(host, link.index, &self.owner).map_err(|e| failed("noting whose it is", e))?;
        self.set_bridge_up(host, link.index)?;
        self.adopt_ports(host, link.index).map_err(|e| failed("taking its ports back", e))?;
        let bridge = Bridge { index: link.index, mtu };
        *known = Some(bridge);
        Ok(bridge)
    }

    /// Two instances on one bridge would sweep each other's pods away: the bridge says which state directory it serves.
    fn is_anothers(&self, bridge: &links::Link) -> bool {
        bridge.alias.starts_with(OWNER_PREFIX) && bridge.alias != self.owner
    }

    fn set_bridge_up(&self, host: &mut Socket, index: u32) -> Result<(), Error> {
        let name = self.config.bridge.as_str();
        let subnets = self.addresses.subnets();
        let sysctl = |key: &str, value: &str| {
            links::write_sysctl(key, value).map_err(|e| Error::internal(format!("setting net/{key} to {value}: {e}")))
        };
        // Before the link is up: else the kernel could take a pod's router advertisement for its own.
        for (key, value) in [("accept_ra", "0"), ("accept_dad", "0"), ("autoconf", "0")] {
            sysctl(&format!("ipv6/conf/{name}/{key}"), value)?;
        }
        if subnets.v6.is_some() {
            sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "0")?;
            enable_ipv6_forwarding().map_err(|e| Error::internal(format!("enabling IPv6 forwarding: {e}")))?;
        }
        sysctl("ipv4/ip_forward", "1")?;
        if !self.config.host_ports {
            sysctl(&format!("ipv4/conf/{name}/route_localnet"), "0")?;
        }
        let mut batch = vec![links::up(index)];
        batch.extend(subnets.each().map(|subnet| links::address(index, subnet.gateway(), subnet)));
        host.execute(batch).map_err(|e| Error::internal(format!("bridge {name}: addresses: {e}")))
    }

    fn adopt_ports(&self, host: &mut Socket, bridge: u32) -> Result<(), Refusal> {
        let ours: Vec<String> = self.addresses.holders().iter().map(host_link).collect();
        if ours.is_empty() {
            return Ok(());
        }
        for link in links::list(host)?.iter().filter(|link| link.master.is_none() && ours.contains(&link.name)) {
            links::set_master(host, link.index, bridge)?;
        }
        Ok(())
    }

    /// Makes the rules whole if they are not and any pod is here; blocks.
    pub fn repair_rules(&self) {
        if !self.used.load(Ordering::Relaxed) {
            return;
        }
        let repaired = nftables::open()
            .map_err(|e| Error::internal(format!("opening nf_tables: {e}")))
            .and_then(|mut rules| self.ruleset.ensure(&mut rules));
        self.note_rules(repaired);
    }

    /// Whether an earlier life has left a bridge or a table; on a node with CNI there is neither.
    fn has_traces(&self) -> bool {
        let bridge = Socket::open(NETLINK_ROUTE)
            .map_err(Refusal::from)
            .and_then(|mut host| links::find(&mut host, &self.config.bridge));
        matches!(bridge, Ok(Some(_))) || nftables::open().is_ok_and(|mut rules| self.ruleset.exists(&mut rules))
    }

    /// Removes links and rules that belong to no pod of `known`; blocks. Links of our bridge whose name is that of no
    /// known pod are deleted, and the table is made anew without their host ports.
    pub fn sweep(&self, known: &[PodId]) -> Vec<Error> {
        if !self.used.load(Ordering::Relaxed) && !self.has_traces() {
            return Vec::new();
        }
        let bridge = Socket::open(NETLINK_ROUTE)
            .map_err(Refusal::from)
            .and_then(|mut host| links::find(&mut host, &self.config.bridge));
        if bridge.is_ok_and(|bridge| bridge.is_some_and(|bridge| self.is_anothers(&bridge))) {
            return Vec::new();
        }
        self.used.store(true, Ordering::Relaxed);
        let mut errors = Vec::new();
        let stray = || -> Result<(), Refusal> {
            let mut host = Socket::open(NETLINK_ROUTE)?;
            let Some(bridge) = links::find(&mut host, &self.config.bridge)? else { return Ok(()) };
            let kept: Vec<String> = known.iter().map(host_link).collect();
            for link in links::list(&mut host)? {
                let ours = link.master == Some(bridge.index) && is_host_link(&link.name);
                if ours && !kept.contains(&link.name) && !self.departures.awaits(&link.name) {
                    links::delete(&mut host, &link.name)?;
                }
            }
            Ok(())
        };
        errors.extend(stray().err().map(|e| Error::internal(format!("removing links of pods that are gone: {e}"))));
        let refreshed = nftables::open()
            .map_err(|e| Error::internal(format!("opening nf_tables: {e}")))
            .and_then(|mut rules| self.ruleset.refresh(&mut rules));
        errors.extend(refreshed.err());
        errors
    }

    /// Addresses come from other subnets from now on; blocks. Pods keep theirs.
    pub fn set_cidr(&self, cidr: &str) -> Result<(), Error> {
        let subnets = without_missing_family(subnets_of_cidr(cidr)?);
        let old = self.addresses.subnets();
        if subnets == old {
            return Ok(());
        }
        self.addresses.set_subnets(subnets);
        // The bridge gets its new addresses with the next pod.
        *self.bridge.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut masqueraded: Vec<Subnet> = subnets.each().collect();
        masqueraded.extend(old.each().filter(|subnet| !subnets.each().any(|new| new == *subnet)));
        let mut rules = nftables::open().map_err(|e| Error::internal(format!("opening nf_tables: {e}")))?;
        self.ruleset.set_subnets(&mut rules, masqueraded)
    }

    /// Removes bridge and table if no pod is left; blocks.
    pub fn close(&self) -> Vec<Error> {
        if !self.used.load(Ordering::Relaxed) || !self.addresses.holders().is_empty() {
            return Vec::new();
        }
        let mut errors = Vec::new();
        let removed = nftables::open()
            .map_err(|e| Error::internal(format!("opening nf_tables: {e}")))
            .and_then(|mut rules| self.ruleset.remove(&mut rules));
        errors.extend(removed.err());
        let name = &self.config.bridge;
        let deleted = Socket::open(NETLINK_ROUTE)
            .map_err(Refusal::from)
            .and_then(|mut host| links::delete(&mut host, name))
            .map_err(|e| Error::internal(format!("removing bridge {name}: {e}")));
        errors.extend(deleted.err());
        *self.bridge.lock().unwrap_or_else(PoisonError::into_inner) = None;
        errors
    }

    /// What is worth knowing about the built-in network, in sentences; empty if all is well.
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        remarks.extend(self.rules_failure.lock().unwrap_or_else(PoisonError::into_inner).clone());
        for chain in self.ruleset.foreign_drops() {
            remarks.push(format!(
                "nf_tables chain {chain} drops forwarded packets: allow those from and to {}",
                self.config.bridge
            ));
        }
        remarks
    }

    /// What was done, in the shape of a CNI result.
    pub fn detail(&self, pod: &PodId, netns_path: &Path) -> serde_json::Value {
        let ips = self.addresses.of(pod);
        let subnets: Vec<Subnet> = self.addresses.subnets().each().collect();
        let of = |ip: &IpAddr| subnets.iter().find(|subnet| subnet.contains(*ip));
        let mac = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": self.config.bridge },
                { "name": host_link(pod), "mac": mac(host_mac(&ips)) },
                { "name": POD_LINK, "mac": mac(pod_mac(&ips)), "sandbox": netns_path },
            ],
            "ips": ips.iter().map(|ip| match of(ip) {
                Some(subnet) => json!({
                    "interface": 2, "address": format!("{ip}/{}", subnet.prefix()), "gateway": subnet.gateway(),
                }),
                None => json!({ "interface": 2, "address": ip }),
            }).collect::<Vec<_>>(),
        })
    }
}

/// The pod's end, in the namespace that the calling thread is in.
fn configure_inside(addresses: &[(IpAddr, Subnet)]) -> Result<(), Refusal> {
    let mut socket = Socket::open(NETLINK_ROUTE)?;
    let link = links::find(&mut socket, POD_LINK)?.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
    if addresses.iter().any(|(ip, _)| ip.is_ipv6()) {
        // Before the link is up: no second of waiting for duplicate addresses, no route from a rogue router.
        for key in ["disable_ipv6", "accept_ra", "accept_dad"] {
            links::write_sysctl(&format!("ipv6/conf/{POD_LINK}/{key}"), "0")?;
        }
    }
    let mut batch = vec![netns::loopback_up(), links::up(link.index)];
    batch.extend(addresses.iter().map(|(ip, subnet)| links::address(link.index, *ip, *subnet)));
    batch.extend(addresses.iter().map(|(_, subnet)| links::default_route(link.index, subnet.gateway())));
    socket.execute(batch)
}

/// The kernel activates a link that gets its carrier late, the host's end and a new bridge, from a work queue. A packet
/// sent before is dropped, and a client waits a second until it tries again. Answered by `host` in its namespace,
/// whichever the calling thread is in.
fn wait_until_running(host: &mut Socket, names: &[&str]) {
    let end = Instant::now() + RUNNING_TIMEOUT;
    for name in names {
        while links::find(host, name).is_ok_and(|link| link.is_some_and(|link| !link.running)) && Instant::now() < end {
            std::thread::sleep(RUNNING_PAUSE);
        }
    }
}

/// A hardware address that follows from the IPv4 address: a neighbour's memory of an address that another pod had is
/// right for this one too.
fn pod_mac(ips: &[IpAddr]) -> Mac {
    mac(0x0a, ips)
}

fn host_mac(ips: &[IpAddr]) -> Mac {
    mac(0x0e, ips)
}

fn mac(first: u8, ips: &[IpAddr]) -> Mac {
    let v4 = ips.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(v4.octets()) } else { None });
    let [a, b, c, d] = v4.unwrap_or_default();
    [first, 0x58, a, b, c, d]
}

/// Whether br_netfilter sends bridged packets through nf_tables: then a pod's packet to its own host port is turned
/// round inside the bridge, and the port must be allowed to send it back.
fn bridged_packets_are_translated() -> bool {
    links::read_sysctl("bridge/bridge-nf-call-iptables").is_ok_and(|value| value == "1")
}

/// Forwarding makes Linux ignore router advertisements: an interface that lives by them is told to go on.
fn enable_ipv6_forwarding() -> std::io::Result<()> {
    if links::read_sysctl("ipv6/conf/all/forwarding").is_ok_and(|value| value == "1") {
        return Ok(());
    }
    for entry in std::fs::read_dir("/proc/sys/net/ipv6/conf")?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = format!("ipv6/conf/{name}/accept_ra");
        if !["all", "default", "lo"].contains(&name.as_str()) && links::read_sysctl(&key).is_ok_and(|v| v == "1") {
            links::write_sysctl(&key, "2")?;
        }
    }
    links::write_sysctl("ipv6/conf/all/forwarding", "1")
}

fn check_config(config: &BuiltinConfig) -> Result<(), Error> {
    let name = config.bridge.as_str();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if name.is_empty() || name.len() > LINK_NAME_MAX || !plain || name == "." || name == ".." || name == "all" {
        return Err(Error::invalid("network bridge", format!("{name:?} cannot be the name of a bridge")));
    }
    if config.mtu != 0 && !MTU_RANGE.contains(&config.mtu) {
        return Err(Error::invalid("network mtu", format!("{} is not in {MTU_RANGE:?}", config.mtu)));
    }
    Ok(())
}

fn configured_subnets(config: &BuiltinConfig) -> Result<Subnets, Error> {
    let v4 = Subnet::parse(&config.subnet_v4).map_err(|why| Error::invalid("network subnet_v4", why))?;
    let v6 = config.subnet_v6.as_deref().map(Subnet::parse).transpose();
    let v6 = v6.map_err(|why| Error::invalid("network subnet_v6", why))?;
    Subnets::new(v4, v6).map_err(|why| Error::invalid("network subnets", why))
}

/// At most one subnet of each family, in any order.
fn subnets_of_cidr(cidr: &str) -> Result<Subnets, Error> {
    let refuse = |why: String| Error::invalid("pod_cidr", why);
    let (mut v4, mut v6) = (None, None);
    for part in cidr.split(',') {
        let subnet = Subnet::parse(part).map_err(refuse)?;
        let slot = if subnet.network().is_ipv4() { &mut v4 } else { &mut v6 };
        if slot.replace(subnet).is_some() {
            return Err(refuse(format!("{cidr:?} has two subnets of one family")));
        }
    }
    let v4 = v4.ok_or_else(|| refuse(format!("{cidr:?} has no IPv4 subnet, which the built-in network needs")))?;
    Subnets::new(v4, v6).map_err(refuse)
}

/// The note on the bridge: the state directory, its end if it is long.
fn owner(state_dir: &Path) -> String {
    let path = state_dir.to_string_lossy();
    let start =
        path.char_indices().map(|(at, _)| at).find(|at| path.len() - at <= OWNER_PATH_MAX).unwrap_or(path.len());
    format!("{OWNER_PREFIX}{}", &path[start..])
}

/// Without IPv6 where the kernel has none or the host's administrator has switched it off.
fn without_missing_family(subnets: Subnets) -> Subnets {
    let has_ipv6 = links::read_sysctl("ipv6/conf/all/disable_ipv6").is_ok_and(|value| value == "0");
    if has_ipv6 { subnets } else { Subnets { v6: None, ..subnets } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_their_folder_are_no_bridge() {
        let config = |bridge: &str| BuiltinConfig { bridge: bridge.to_owned(), ..BuiltinConfig::default() };
        assert_eq!(check_config(&config("knarr0")), Ok(()));
        for bad in ["", "..", "a/b", "all", "a b", "sixteen-letters0"] {
            assert!(check_config(&config(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pod_cidr_has_one_subnet_of_each_family() {
        assert!(subnets_of_cidr("10.244.1.0/24").is_ok());
        assert!(subnets_of_cidr("fd00:1::/64,10.244.1.0/24").is_ok());
        for bad in ["", "fd00:1::/64", "10.244.1.0/24,10.244.2.0/24", "10.244.1.0/24,", "10.244.1.7/24"] {
            assert!(subnets_of_cidr(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_two_ends_have_different_hardware_addresses() {
        let ips = ["10.85.0.2".parse().unwrap()];
        assert_eq!(pod_mac(&ips), [0x0a, 0x58, 10, 85, 0, 2]);
        assert_ne!(pod_mac(&ips), host_mac(&ips));
    }
}
