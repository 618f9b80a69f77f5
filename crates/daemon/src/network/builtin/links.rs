//! Bridge, veth pairs, addresses and routes, by route netlink.
//!
//! Each function works in the network namespace of the socket that it is given. Which pod gets what is decided in
//! `builtin`.

use super::addresses::Subnet;
use crate::network::netlink::{
    Attributes, Frame, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, Refusal, Socket, u32_at,
};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BRPORT_MODE: u16 = 4;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const IFA_F_NODAD: u32 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const AF_BRIDGE: u8 = 7;

/// Bytes of ifinfomsg, ifaddrmsg and rtmsg.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

/// Multicast group of link notifications.
pub(super) const RTNLGRP_LINK: u32 = 1;

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// "bridge", "veth", …; empty for hardware.
    pub kind: String,
    pub up: bool,
    /// Up, with carrier, and sending: until then what is sent to it is dropped.
    pub running: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    pub mtu: u32,
    /// A note for people; empty if there is none.
    pub alias: String,
}

fn link_header(family: u8, index: u32, up: bool) -> [u8; LINK_HEADER] {
    let flags = if up { IFF_UP } else { 0 };
    let mut header = [0; LINK_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let attributes = Attributes(payload.get(LINK_HEADER..)?);
    Some(Link {
        index: u32_at(payload, 4)?,
        name: attributes.text(IFLA_IFNAME)?.to_owned(),
        kind: attributes.inside(IFLA_LINKINFO).text(IFLA_INFO_KIND).unwrap_or_default().to_owned(),
        up: u32_at(payload, 8)? & IFF_UP != 0,
        running: u32_at(payload, 8)? & IFF_RUNNING != 0,
        master: attributes.get(IFLA_MASTER).and_then(|bytes| u32_at(bytes, 0)),
        mtu: attributes.get(IFLA_MTU).and_then(|bytes| u32_at(bytes, 0))?,
        alias: attributes.text(IFLA_IFALIAS).unwrap_or_default().to_owned(),
    })
}

/// The name of a link that a notification says is gone.
pub(super) fn gone_link<'a>(frame: &Frame<'a>) -> Option<&'a str> {
    // A port that leaves its bridge is announced with RTM_DELLINK of family AF_BRIDGE; the link is still there then.
    (frame.kind == RTM_DELLINK && frame.payload.first() != Some(&AF_BRIDGE))
        .then(|| frame.attributes(LINK_HEADER).text(IFLA_IFNAME))?
}

/// The link of that name, if there is one.
pub(super) fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, Refusal> {
    let request = Message::new(RTM_GETLINK, 0, &link_header(0, 0, false)).text(IFLA_IFNAME, name);
    match socket.get(request) {
        Ok(payload) => Ok(parse_link(&payload)),
        Err(refusal) if refusal.is(Errno::NODEV) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Every link.
pub(super) fn list(socket: &mut Socket) -> Result<Vec<Link>, Refusal> {
    let mut found = Vec::new();
    socket.dump(Message::new(RTM_GETLINK, NLM_F_DUMP, &link_header(0, 0, false)), |frame| {
        found.extend(parse_link(frame.payload));
    })?;
    Ok(found)
}

/// Every address that this host answers to.
pub(super) fn local_addresses(socket: &mut Socket) -> Result<HashSet<IpAddr>, Refusal> {
    let mut found = HashSet::new();
    socket.dump(Message::new(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_HEADER]), |frame| {
        let attributes = frame.attributes(ADDRESS_HEADER);
        // IPv6 has no IFA_LOCAL unless the link is point to point.
        let bytes = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS));
        found.extend(bytes.and_then(parse_address));
    })?;
    Ok(found)
}

/// An address of 4 or 16 bytes.
pub(super) fn parse_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// MTU of the link that packets to the outside leave by; `None` without a default route.
pub(super) fn mtu_to_the_outside(socket: &mut Socket) -> Option<u32> {
    // Any public address: the kernel only looks up its route, nothing is sent.
    const FAR_AWAY: [u8; 4] = [192, 88, 99, 1];
    let mut header = [0; ROUTE_HEADER];
    header[0] = 2;
    header[1] = 32;
    let route = socket.get(Message::new(RTM_GETROUTE, 0, &header).attr(RTA_DST, &FAR_AWAY)).ok()?;
    let index = u32_at(Attributes(route.get(ROUTE_HEADER..)?).get(RTA_OIF)?, 0)?;
    let link = socket.get(Message::new(RTM_GETLINK, 0, &link_header(0, index, false))).ok()?;
    Some(parse_link(&link)?.mtu)
}

/// Makes a bridge, down.
pub(super) fn create_bridge(socket: &mut Socket, name: &str, mac: Mac, mtu: u32) -> Result<(), Refusal> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    // A bridge that was given an address does not take over that of each new port.
    let message = Message::new(RTM_NEWLINK, flags, &link_header(0, 0, false))
        .text(IFLA_IFNAME, name)
        .attr(IFLA_ADDRESS, &mac)
        .u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
    socket.execute(vec![message])
}

/// A pair of links to be made: one end is a port of the bridge, the other the pod's eth0.
#[derive(Debug)]
pub(super) struct Veth<'a> {
    pub host_name: &'a str,
    pub pod_name: &'a str,
    pub pod_mac: Mac,
    pub host_mac: Mac,
    pub mtu: u32,
    pub bridge: u32,
    pub netns: BorrowedFd<'a>,
}

/// Makes the pair, the host's end up and in the bridge, the pod's end down and already in its namespace: it is never
/// seen, and never renamed, on the host.
pub(super) fn create_veth(socket: &mut Socket, veth: &Veth<'_>) -> Result<(), Refusal> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let message = Message::new(RTM_NEWLINK, flags, &link_header(0, 0, true))
        .text(IFLA_IFNAME, veth.host_name)
        .attr(IFLA_ADDRESS, &veth.host_mac)
        .u32(IFLA_MTU, veth.mtu)
        .u32(IFLA_MASTER, veth.bridge)
        .nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&link_header(0, 0, false))
                        .text(IFLA_IFNAME, veth.pod_name)
                        .attr(IFLA_ADDRESS, &veth.pod_mac)
                        .u32(IFLA_MTU, veth.mtu)
                        .attr(IFLA_NET_NS_FD, &veth.netns.as_raw_fd().to_ne_bytes())
                })
            })
        });
    socket.execute(vec![message])
}

/// Lets the bridge send frames back out of the port that they came from.
pub(super) fn set_hairpin(socket: &mut Socket, index: u32) -> Result<(), Refusal> {
    let message = Message::new(RTM_SETLINK, NLM_F_ACK, &link_header(AF_BRIDGE, index, false))
        .nest(IFLA_PROTINFO, |port| port.attr(IFLA_BRPORT_MODE, &[1]));
    socket.execute(vec![message])
}

/// Makes a link a port of a bridge.
pub(super) fn set_master(socket: &mut Socket, index: u32, bridge: u32) -> Result<(), Refusal> {
    let message = Message::new(RTM_SETLINK, NLM_F_ACK, &link_header(0, index, false)).u32(IFLA_MASTER, bridge);
    socket.execute(vec![message])
}

/// Writes a note on a link, at most 255 bytes.
pub(super) fn set_alias(socket: &mut Socket, index: u32, alias: &str) -> Result<(), Refusal> {
    let message = Message::new(RTM_SETLINK, NLM_F_ACK, &link_header(0, index, false)).text(IFLA_IFALIAS, alias);
    socket.execute(vec![message])
}

/// Deletes a link and its peer. The kernel waits for RCU: 25 to 30 ms.
pub(super) fn delete(socket: &mut Socket, name: &str) -> Result<(), Refusal> {
    let message = Message::new(RTM_DELLINK, NLM_F_ACK, &link_header(0, 0, false)).text(IFLA_IFNAME, name);
    match socket.execute(vec![message]) {
        Err(refusal) if refusal.is(Errno::NODEV) => Ok(()),
        outcome => outcome,
    }
}

/// Brings a link up.
pub(super) fn up(index: u32) -> Message {
    Message::new(RTM_NEWLINK, NLM_F_ACK, &link_header(0, index, true))
}

/// Gives a link an address, at once usable: we give out the addresses of the subnet, so that nobody can have it.
pub(super) fn address(index: u32, address: IpAddr, subnet: Subnet) -> Message {
    let mut header = [0; ADDRESS_HEADER];
    header[0] = family(address);
    header[1] = subnet.prefix();
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let bytes = octets(address);
    let message = Message::new(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &header)
        .attr(IFA_LOCAL, &bytes)
        .attr(IFA_ADDRESS, &bytes);
    if address.is_ipv6() {
        return message.u32(IFA_FLAGS, IFA_F_NODAD);
    }
    let broadcast: Vec<u8> = bytes.iter().zip(subnet.netmask()).map(|(octet, mask)| octet | !mask).collect();
    message.attr(IFA_BROADCAST, &broadcast)
}

/// Everything outside is reached by way of the gateway.
pub(super) fn default_route(index: u32, gateway: IpAddr) -> Message {
    let mut header = [0; ROUTE_HEADER];
    header[0] = family(gateway);
    header[4..8].copy_from_slice(&[RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST]);
    Message::new(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, &header)
        .attr(RTA_GATEWAY, &octets(gateway))
        .u32(RTA_OIF, index)
}

/// A network sysctl of the calling thread's network namespace; `name` relative to /proc/sys/net.
pub(super) fn read_sysctl(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(format!("/proc/sys/net/{name}"))?.trim_end().to_owned())
}

/// Sets a network sysctl unless it has that value; one that the kernel does not have is no error (IPv6 not built in).
pub(super) fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    match read_sysctl(name) {
        Ok(current) if current == value => Ok(()),
        Ok(_) => fs::write(format!("/proc/sys/net/{name}"), value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
