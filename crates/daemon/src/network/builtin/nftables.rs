//! nf_tables messages: tables, chains, maps, rules and their expressions, encoded by hand.
//!
//! A rule is a list of expressions that load packet fields into registers, compare them, and end in a verdict; a batch
//! of messages is one transaction. Which rules there are is `ruleset`'s business. `nft --debug=netlink list ruleset`
//! prints rules in the notation that the functions here are named after.
//!
//! Registers: number 1 is the first of four 16-byte ones, 8 + n the n-th of the same memory in 4-byte steps. A
//! concatenation lies in consecutive 4-byte steps, each part padded.

use crate::network::netlink::{
    Attributes, Message, NETLINK_NETFILTER, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Refusal,
    Socket, be32_at,
};
use std::io;

const SUBSYSTEM: u16 = 10 << 8;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = SUBSYSTEM;
const NFT_MSG_DELTABLE: u16 = SUBSYSTEM | 2;
const NFT_MSG_NEWCHAIN: u16 = SUBSYSTEM | 3;
const NFT_MSG_GETCHAIN: u16 = SUBSYSTEM | 4;
const NFT_MSG_NEWRULE: u16 = SUBSYSTEM | 6;
const NFT_MSG_GETRULE: u16 = SUBSYSTEM | 7;
const NFT_MSG_NEWSET: u16 = SUBSYSTEM | 9;
const NFT_MSG_NEWSETELEM: u16 = SUBSYSTEM | 12;
const NFT_MSG_DELSETELEM: u16 = SUBSYSTEM | 14;
const NFT_MSG_NEWGEN: u16 = SUBSYSTEM | 15;
const NFT_MSG_GETGEN: u16 = SUBSYSTEM | 16;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_USERDATA: u16 = 6;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_GEN_ID: u16 = 1;
const NFT_SET_MAP: u32 = 8;
/// User data of an element: what `nft list` shows as its comment.
const UDATA_ELEMENT_COMMENT: u8 = 0;

/// Bytes of nfgenmsg.
const GENERIC_HEADER: usize = 4;

/// Elements put in one message: an attribute ends at 64 KiB, and an element takes less than 200 bytes.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 200;

/// Address families of tables.
pub(super) const FAMILY_INET: u8 = 1;
pub(super) const FAMILY_IPV4: u8 = 2;
pub(super) const FAMILY_IPV6: u8 = 10;

/// Hooks, as netfilter numbers them.
pub(super) const HOOK_PREROUTING: u32 = 0;
pub(super) const HOOK_FORWARD: u32 = 2;
pub(super) const HOOK_OUTPUT: u32 = 3;
pub(super) const HOOK_POSTROUTING: u32 = 4;

/// Types of fields, by which `nft list` prints them; a concatenation is their sequence in 6 bits each.
pub(super) const TYPE_IPV4_ADDR: u32 = 7;
pub(super) const TYPE_IPV6_ADDR: u32 = 8;
pub(super) const TYPE_INET_PROTO: u32 = 12;
pub(super) const TYPE_INET_SERVICE: u32 = 13;

fn header(family: u8) -> [u8; GENERIC_HEADER] {
    [family, 0, 0, 0]
}

/// What ends or continues a rule's evaluation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict<'a> {
    Drop,
    Return,
    Jump(&'a str),
}

/// A field that `meta load` reads.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meta {
    InterfaceIn,
    InterfaceOut,
    NetworkProtocol,
    TransportProtocol,
}

/// Which header a payload offset counts from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Base {
    Network,
    Transport,
}

/// A comparison's sense.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compare {
    Equal,
    Unequal,
}

/// One expression: the name of its kernel module and its attributes.
#[derive(Debug, Clone)]
pub(super) struct Expression {
    name: &'static str,
    data: Message,
}

impl Expression {
    fn new(name: &'static str, build: impl FnOnce(Message) -> Message) -> Self {
        // Only the attributes behind the message's header are used.
        Self { name, data: build(Message::new(0, 0, &[])) }
    }

    /// `meta load <key> => reg`
    pub fn meta(key: Meta, register: u32) -> Self {
        let key = match key {
            Meta::InterfaceIn => 6,
            Meta::InterfaceOut => 7,
            Meta::NetworkProtocol => 15,
            Meta::TransportProtocol => 16,
        };
        Self::new("meta", |data| data.be32(1, register).be32(2, key))
    }

    /// `payload load <length>b @ <base> header + <offset> => reg`
    pub fn payload(base: Base, offset: u32, length: u32, register: u32) -> Self {
        let base = match base {
            Base::Network => 1,
            Base::Transport => 2,
        };
        Self::new("payload", |data| data.be32(1, register).be32(2, base).be32(3, offset).be32(4, length))
    }

    /// `cmp eq|neq reg <value>`
    pub fn compare(register: u32, sense: Compare, value: &[u8]) -> Self {
        let operation = match sense {
            Compare::Equal => 0,
            Compare::Unequal => 1,
        };
        Self::new("cmp", |data| {
            data.be32(1, register).be32(2, operation).nest(3, |inner| inner.attr(NFTA_DATA_VALUE, value))
        })
    }

    /// `bitwise reg = ( reg & mask ) ^ 0`
    pub fn mask(register: u32, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        Self::new("bitwise", |data| {
            data.be32(1, register)
                .be32(2, register)
                .be32(3, length)
                .nest(4, |inner| inner.attr(NFTA_DATA_VALUE, mask))
                .nest(5, |inner| inner.attr(NFTA_DATA_VALUE, &vec![0; mask.len()]))
        })
    }

    /// `ct load status => reg`
    pub fn conntrack_status(register: u32) -> Self {
        Self::new("ct", |data| data.be32(1, register).be32(2, 2))
    }

    /// `fib daddr type => reg`
    pub fn destination_type(register: u32) -> Self {
        Self::new("fib", |data| data.be32(1, register).be32(2, 3).be32(3, 1 << 1))
    }

    /// `lookup reg 1 set <map> dreg 1`; ends the rule if the key is not there.
    pub fn lookup(map: &str) -> Self {
        Self::new("lookup", |data| data.text(1, map).be32(2, 1).be32(3, 1))
    }

    /// `nat dnat <family> addr_min reg 1 proto_min reg <port>`
    pub fn dnat(family: u8, port_register: u32) -> Self {
        Self::new("nat", |data| data.be32(1, 1).be32(2, family.into()).be32(3, 1).be32(5, port_register))
    }

    /// `masq`; `random` draws source ports at random, so that flows of different pods do not race for the same one.
    pub fn masquerade(random: bool) -> Self {
        const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
        Self::new("masq", |data| if random { data.be32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY) } else { data })
    }

    /// `immediate reg 0 <verdict>`
    pub fn verdict(verdict: Verdict<'_>) -> Self {
        let (code, chain) = match verdict {
            Verdict::Drop => (0_i32, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Return => (-5, None),
        };
        Self::new("immediate", |data| {
            data.be32(1, 0).nest(2, |value| {
                value.nest(NFTA_DATA_VERDICT, |verdict| {
                    let verdict = verdict.attr(NFTA_VERDICT_CODE, &code.to_be_bytes());
                    match chain {
                        Some(chain) => verdict.text(NFTA_VERDICT_CHAIN, chain),
                        None => verdict,
                    }
                })
            })
        })
    }
}

/// A map of a table: what is looked up, and what is found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Map {
    pub name: &'static str,
    pub key: &'static [(u32, u32)],
    pub data: &'static [(u32, u32)],
}

/// One element of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub key: Vec<u8>,
    pub data: Vec<u8>,
    pub comment: String,
}

/// Makes a table. With `NLM_F_EXCL` absent an existing one is as good.
pub(super) fn new_table(family: u8, table: &str) -> Message {
    Message::new(NFT_MSG_NEWTABLE, NLM_F_ACK | NLM_F_CREATE, &header(family)).text(NFTA_TABLE_NAME, table)
}

/// Deletes a table and all that is in it.
pub(super) fn delete_table(family: u8, table: &str) -> Message {
    Message::new(NFT_MSG_DELTABLE, NLM_F_ACK, &header(family)).text(NFTA_TABLE_NAME, table)
}

/// Makes a chain that rules jump to.
pub(super) fn new_chain(family: u8, table: &str, chain: &str) -> Message {
    Message::new(NFT_MSG_NEWCHAIN, NLM_F_ACK | NLM_F_CREATE, &header(family))
        .text(NFTA_CHAIN_TABLE, table)
        .text(NFTA_CHAIN_NAME, chain)
}

/// Makes a chain that packets enter at a hook; what no rule decides is accepted.
pub(super) fn new_base_chain(family: u8, table: &str, chain: &str, kind: &str, hook: u32, priority: i32) -> Message {
    new_chain(family, table, chain)
        .nest(NFTA_CHAIN_HOOK, |at| at.be32(NFTA_HOOK_HOOKNUM, hook).attr(NFTA_HOOK_PRIORITY, &priority.to_be_bytes()))
        .text(NFTA_CHAIN_TYPE, kind)
}

/// Appends a rule to a chain.
pub(super) fn new_rule(family: u8, table: &str, chain: &str, expressions: &[Expression]) -> Message {
    Message::new(NFT_MSG_NEWRULE, NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND, &header(family))
        .text(NFTA_RULE_TABLE, table)
        .text(NFTA_RULE_CHAIN, chain)
        .nest(NFTA_RULE_EXPRESSIONS, |mut list| {
            for expression in expressions {
                list = list.nest(NFTA_LIST_ELEM, |element| {
                    element
                        .text(NFTA_EXPR_NAME, expression.name)
                        .nest(NFTA_EXPR_DATA, |data| data.raw(expression.data.content()))
                });
            }
            list
        })
}

/// Makes a map; `id` is unique in the batch.
pub(super) fn new_map(family: u8, table: &str, map: &Map, id: u32) -> Message {
    let concatenated = |parts: &[(u32, u32)]| parts.iter().fold(0, |all, (kind, _)| (all << 6) | kind);
    let length = |parts: &[(u32, u32)]| parts.iter().map(|(_, bytes)| bytes.next_multiple_of(4)).sum::<u32>();
    Message::new(NFT_MSG_NEWSET, NLM_F_ACK | NLM_F_CREATE, &header(family))
        .text(NFTA_SET_TABLE, table)
        .text(NFTA_SET_NAME, map.name)
        .be32(NFTA_SET_FLAGS, NFT_SET_MAP)
        .be32(NFTA_SET_KEY_TYPE, concatenated(map.key))
        .be32(NFTA_SET_KEY_LEN, length(map.key))
        .be32(NFTA_SET_DATA_TYPE, concatenated(map.data))
        .be32(NFTA_SET_DATA_LEN, length(map.data))
        .be32(NFTA_SET_ID, id)
}

fn elements(kind: u16, flags: u16, family: u8, table: &str, map: &str, elements: &[Element]) -> Message {
    Message::new(kind, flags | NLM_F_ACK, &header(family))
        .text(NFTA_SET_ELEM_LIST_TABLE, table)
        .text(NFTA_SET_ELEM_LIST_SET, map)
        .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |mut list| {
            for element in elements {
                list = list.nest(NFTA_LIST_ELEM, |one| {
                    let one = one.nest(NFTA_SET_ELEM_KEY, |key| key.attr(NFTA_DATA_VALUE, &element.key));
                    if kind == NFT_MSG_DELSETELEM {
                        return one;
                    }
                    let mut comment = vec![UDATA_ELEMENT_COMMENT, u8::try_from(element.comment.len() + 1).unwrap_or(0)];
                    comment.extend_from_slice(element.comment.as_bytes());
                    comment.push(0);
                    one.nest(NFTA_SET_ELEM_DATA, |data| data.attr(NFTA_DATA_VALUE, &element.data))
                        .attr(NFTA_SET_ELEM_USERDATA, &comment)
                });
            }
            list
        })
}

/// Adds elements to a map, at most [`ELEMENTS_PER_MESSAGE`]; refused if one of the keys is there.
pub(super) fn add_elements(family: u8, table: &str, map: &str, new: &[Element]) -> Message {
    elements(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, family, table, map, new)
}

/// Removes elements from a map by their keys; refused if one of them is not there.
pub(super) fn delete_elements(family: u8, table: &str, map: &str, old: &[Element]) -> Message {
    elements(NFT_MSG_DELSETELEM, 0, family, table, map, old)
}

/// Opens a socket for nf_tables and conntrack in the calling thread's network namespace.
pub(super) fn open() -> io::Result<Socket> {
    Socket::open(NETLINK_NETFILTER)
}

/// Carries out the messages as one transaction.
pub(super) fn commit(socket: &mut Socket, messages: Vec<Message>) -> Result<(), Refusal> {
    let subsystem = [0, 0, 0, 10];
    let mut batch = Vec::with_capacity(messages.len() + 2);
    batch.push(Message::new(NFNL_MSG_BATCH_BEGIN, 0, &subsystem));
    batch.extend(messages);
    batch.push(Message::new(NFNL_MSG_BATCH_END, 0, &subsystem));
    socket.execute(batch)
}

/// The number of the ruleset: it grows by one with every transaction of anybody in this network namespace.
pub(super) fn generation(socket: &mut Socket) -> Result<u32, Refusal> {
    let payload = socket.get(Message::new(NFT_MSG_GETGEN, 0, &header(0)))?;
    let attributes = Attributes(payload.get(GENERIC_HEADER..).unwrap_or(&[]));
    attributes
        .get(NFTA_GEN_ID)
        .and_then(|bytes| be32_at(bytes, 0))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData).into())
}

/// How many rules a table has; 0 if there is no such table.
pub(super) fn count_rules(socket: &mut Socket, family: u8, table: &str) -> Result<usize, Refusal> {
    let request = Message::new(NFT_MSG_GETRULE, NLM_F_DUMP, &header(family)).text(NFTA_RULE_TABLE, table);
    let mut count = 0;
    socket.dump(request, |frame| {
        // The end of a dump may be preceded by the generation's number.
        if frame.kind != NFT_MSG_NEWGEN && frame.attributes(GENERIC_HEADER).text(NFTA_RULE_TABLE) == Some(table) {
            count += 1;
        }
    })?;
    Ok(count)
}

/// Names of the chains of other tables that drop forwarded packets which they do not accept.
pub(super) fn forward_drops(socket: &mut Socket, own_table: &str) -> Result<Vec<String>, Refusal> {
    const NF_DROP: u32 = 0;
    let mut found = Vec::new();
    socket.dump(Message::new(NFT_MSG_GETCHAIN, NLM_F_DUMP, &header(0)), |frame| {
        let family = match frame.payload.first() {
            Some(&FAMILY_INET) => "inet",
            Some(&FAMILY_IPV4) => "ip",
            Some(&FAMILY_IPV6) => "ip6",
            _ => return,
        };
        let chain = frame.attributes(GENERIC_HEADER);
        let number = |attributes: &Attributes<'_>, kind| attributes.get(kind).and_then(|bytes| be32_at(bytes, 0));
        let at_forward = number(&chain.inside(NFTA_CHAIN_HOOK), NFTA_HOOK_HOOKNUM) == Some(HOOK_FORWARD);
        let drops = number(&chain, NFTA_CHAIN_POLICY) == Some(NF_DROP);
        if let (true, true, Some(table), Some(name)) =
            (at_forward, drops, chain.text(NFTA_CHAIN_TABLE), chain.text(NFTA_CHAIN_NAME))
            && table != own_table
        {
            found.push(format!("{family} {table} {name}"));
        }
    })?;
    Ok(found)
}
