//! Forgets UDP flows that were tracked before a host port led to a pod, or that still lead to one that is gone.
//!
//! Address translation is decided by a flow's first packet. A client that keeps sending from one port keeps its flow
//! alive, and would go on talking to nobody, or to the old pod's address. TCP needs nothing: its client reconnects.

use super::links::parse_address;
use super::ruleset::{HostPort, protocol_number};
use crate::network::netlink::{Attributes, Frame, Message, NLM_F_ACK, NLM_F_DUMP, Refusal, Socket};
use knarr_model::spec::Protocol;
use rustix::io::Errno;
use std::collections::HashSet;
use std::net::IpAddr;

const SUBSYSTEM: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = SUBSYSTEM | 1;
const IPCTNL_MSG_CT_DELETE: u16 = SUBSYSTEM | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Which fields of the tuple a dump's filter compares: protocol and destination port.
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

/// Bytes of nfgenmsg.
const GENERIC_HEADER: usize = 4;

/// Flows forgotten per port; a flood of spoofed sources must not keep a pod from starting.
const FLOWS_MAX: usize = 100_000;

/// Which flows to a host port are wrong.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stale<'a> {
    /// The port leads to a pod now: flows to one of these addresses of the host that began before.
    Before(&'a HashSet<IpAddr>),
    /// The port leads to the pod no more: flows that are translated to it.
    After,
}

/// Forgets the wrong flows of those ports that are UDP; gives how many there were.
pub(super) fn forget_flows(socket: &mut Socket, ports: &[HostPort], stale: Stale<'_>) -> Result<usize, Refusal> {
    let mut forgotten = 0;
    for port in ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        let mut deletions = Vec::new();
        socket.dump(dump_request(port), |frame| {
            if deletions.len() < FLOWS_MAX && is_stale(frame, port, stale) {
                deletions.push(deletion(frame));
            }
        })?;
        for deletion in deletions {
            match socket.execute(vec![deletion]) {
                Ok(()) => forgotten += 1,
                // It timed out in between.
                Err(refusal) if refusal.is(Errno::NOENT) => {}
                Err(refusal) => return Err(refusal),
            }
        }
    }
    Ok(forgotten)
}

fn family(port: &HostPort) -> u8 {
    if port.target.is_ipv4() { 2 } else { 10 }
}

fn dump_request(port: &HostPort) -> Message {
    Message::new(IPCTNL_MSG_CT_GET, NLM_F_DUMP, &[family(port), 0, 0, 0])
        .nest(CTA_TUPLE_ORIG, |tuple| {
            tuple.nest(CTA_TUPLE_PROTO, |proto| {
                proto
                    .attr(CTA_PROTO_NUM, &[protocol_number(port.protocol)])
                    .attr(CTA_PROTO_DST_PORT, &port.host_port.to_be_bytes())
            })
        })
        .nest(CTA_FILTER, |filter| {
            filter.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTOCOL | FILTER_DESTINATION_PORT).u32(CTA_FILTER_REPLY_FLAGS, 0)
        })
}

/// Source and destination of a tuple: attributes 1 and 2 in IPv4, 3 and 4 in IPv6.
fn ends(tuple: &Attributes<'_>) -> (Option<IpAddr>, Option<IpAddr>) {
    let ip = tuple.inside(CTA_TUPLE_IP);
    let either = |v4, v6| ip.get(v4).or_else(|| ip.get(v6)).and_then(parse_address);
    (either(1, 3), either(2, 4))
}

fn is_stale(frame: &Frame<'_>, port: &HostPort, stale: Stale<'_>) -> bool {
    let attributes = frame.attributes(GENERIC_HEADER);
    // The filter of the dump is repeated here: a kernel that does not know it sends everything.
    let original = attributes.inside(CTA_TUPLE_ORIG);
    let proto = original.inside(CTA_TUPLE_PROTO);
    if proto.get(CTA_PROTO_NUM) != Some(&[protocol_number(port.protocol)])
        || proto.get(CTA_PROTO_DST_PORT) != Some(&port.host_port.to_be_bytes())
    {
        return false;
    }
    let (_, destination) = ends(&original);
    let (answers_from, _) = ends(&attributes.inside(CTA_TUPLE_REPLY));
    match stale {
        Stale::Before(local) => {
            let ours = destination.is_some_and(|ip| port.host_ip.map_or(local.contains(&ip), |host_ip| host_ip == ip));
            ours && answers_from != Some(port.target)
        }
        Stale::After => answers_from == Some(port.target),
    }
}

fn deletion(frame: &Frame<'_>) -> Message {
    let attributes = frame.attributes(GENERIC_HEADER);
    let header: Vec<u8> = frame.payload.iter().copied().take(1).chain([0; 3]).collect();
    let mut message = Message::new(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, &header);
    if let Some(tuple) = attributes.get(CTA_TUPLE_ORIG) {
        message = message.nest(CTA_TUPLE_ORIG, |inner| inner.raw(tuple));
    }
    for kind in [CTA_ID, CTA_ZONE] {
        if let Some(value) = attributes.get(kind) {
            message = message.attr(kind, value);
        }
    }
    message
}
