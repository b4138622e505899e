//! nftables' chains and rules, asked of the kernel (nfnetlink, the kernel's include/uapi/linux/netfilter/nf_tables.h). iptables-nft
//! keeps its chains there too.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use netlink_packet_core::{NetlinkSerializable, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::chains::{self, Aim, Judgement, Packet};
use super::expressions::Element;
use crate::preflight::Firewall;
use crate::sys::link::error::{LinkError, MalformedReply};
use crate::sys::link::message::{Message, attribute, attribute_string, attributes, sized};
use crate::sys::link::netlink::{Failure, Netlink};

/// Message types: the subsystem in the upper byte.
mod message {
    const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
    pub(in crate::preflight) const NEW_TABLE: u16 = NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
    pub(in crate::preflight) const GET_TABLE: u16 = NFTABLES | libc::NFT_MSG_GETTABLE as u16;
    pub(in crate::preflight) const NEW_CHAIN: u16 = NFTABLES | libc::NFT_MSG_NEWCHAIN as u16;
    pub(in crate::preflight) const GET_CHAIN: u16 = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
    pub(in crate::preflight) const NEW_RULE: u16 = NFTABLES | libc::NFT_MSG_NEWRULE as u16;
    pub(in crate::preflight) const GET_RULE: u16 = NFTABLES | libc::NFT_MSG_GETRULE as u16;
    pub(in crate::preflight) const NEW_SET: u16 = NFTABLES | libc::NFT_MSG_NEWSET as u16;
    pub(in crate::preflight) const GET_SET: u16 = NFTABLES | libc::NFT_MSG_GETSET as u16;
    pub(in crate::preflight) const NEW_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_NEWSETELEM as u16;
    pub(in crate::preflight) const GET_ELEMENTS: u16 = NFTABLES | libc::NFT_MSG_GETSETELEM as u16;
}

/// Bytes of struct `nfgenmsg`: family, version, and two that are 0.
pub(in crate::preflight) const HEADER: usize = 4;

/// `NFTA_TABLE_*`, `NFTA_CHAIN_*`, `NFTA_HOOK_*`, `NFTA_RULE_*`, `NFTA_SET_*`. Numbers are big-endian.
pub(in crate::preflight) mod nfta {
    pub(in crate::preflight) const TABLE_NAME: u16 = 1;
    pub(in crate::preflight) const TABLE_FLAGS: u16 = 2;
    pub(in crate::preflight) const CHAIN_TABLE: u16 = 1;
    pub(in crate::preflight) const CHAIN_NAME: u16 = 3;
    pub(in crate::preflight) const CHAIN_HOOK: u16 = 4;
    pub(in crate::preflight) const CHAIN_POLICY: u16 = 5;
    pub(in crate::preflight) const CHAIN_USE: u16 = 6;
    pub(in crate::preflight) const CHAIN_TYPE: u16 = 7;
    pub(in crate::preflight) const HOOK_NUMBER: u16 = 1;
    pub(in crate::preflight) const HOOK_PRIORITY: u16 = 2;
    pub(in crate::preflight) const SET_TABLE: u16 = 1;
    pub(in crate::preflight) const SET_NAME: u16 = 2;
    pub(in crate::preflight) const SET_FLAGS: u16 = 3;
    pub(in crate::preflight) const SET_ELEMENTS: u16 = 3;
    pub(in crate::preflight) const RULE_TABLE: u16 = 1;
    pub(in crate::preflight) const RULE_CHAIN: u16 = 2;
    pub(in crate::preflight) const RULE_EXPRESSIONS: u16 = 4;
}

/// Sets of which the elements are read, at most: each is a question of its own, and a tunnel that starts waits. Rules with
/// others cannot be judged.
const SETS: usize = 256;

/// `NFT_TABLE_F_DORMANT`: the chains of the table are not in use.
const DORMANT: u32 = 1;

/// Asks for all tables, chains, rules or sets, of every family, or for the elements of one set.
#[derive(Clone, Debug)]
struct List {
    kind: u16,
    /// All zero are NFPROTO_UNSPEC and NFNETLINK_V0.
    header: [u8; HEADER],
    attributes: Vec<u8>,
}

impl NetlinkSerializable for List {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER.saturating_add(self.attributes.len())
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let bytes = self.header.iter().chain(&self.attributes);
        buffer.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    }
}

/// The base chains that see IPv4 packets and are in use, and all rules.
#[derive(Debug, Default)]
pub(in crate::preflight) struct Ruleset {
    pub(in crate::preflight) bases: Vec<Chain>,
    tables: BTreeMap<(&'static str, String), chains::Table>,
}

impl Ruleset {
    pub(in crate::preflight) fn read() -> Result<Self, LinkError> {
        let doing = "list nftables' rules";
        let mut kernel = match Netlink::connect(NETLINK_NETFILTER) {
            Ok(kernel) => kernel,
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Self::default()),
            Err(source) => return Err(LinkError::Socket { doing, source }),
        };
        match Self::list(&mut kernel) {
            Ok(ruleset) => Ok(ruleset),
            // A kernel without nftables does not know the subsystem (`nfnetlink_rcv_msg` in net/netfilter/nfnetlink.c); one
            // that has it never says that to a list without conditions.
            Err(Failure::Refused { errno: libc::EINVAL, .. }) => Ok(Self::default()),
            Err(failure) => Err(LinkError::new(failure, doing, "this host")),
        }
    }

    fn list(kernel: &mut Netlink) -> Result<Self, Failure> {
        let mut bases = dump(kernel, message::GET_CHAIN, message::NEW_CHAIN, Chain::parse)?;
        let mut ruleset = Self::default();
        if bases.is_empty() {
            return Ok(ruleset);
        }
        let dormant = dump(kernel, message::GET_TABLE, message::NEW_TABLE, dormant_table)?;
        bases.retain(|chain| !dormant.iter().any(|table| chain.is_in(table)));
        for Rule { family, table, chain, expressions } in
            dump(kernel, message::GET_RULE, message::NEW_RULE, Rule::parse)?
        {
            let table = ruleset.tables.entry((family, table)).or_default();
            table.chains.entry(chain).or_default().push(expressions);
        }
        for set in dump(kernel, message::GET_SET, message::NEW_SET, Set::parse)?.into_iter().take(SETS) {
            if let Some(table) = ruleset.tables.get_mut(&(set.family, set.table.clone()))
                && let Some(elements) = set.elements(kernel)?
            {
                table.sets.insert(set.name, elements);
            }
        }
        Ok(Self { bases, ..ruleset })
    }

    /// Whether a base chain does what is looked for to the packet.
    pub(in crate::preflight) fn judge(&self, base: &Chain, packet: &Packet, aim: Aim) -> Judgement {
        let none = chains::Table::default();
        let table = self.tables.get(&(base.family, base.table.clone())).unwrap_or(&none);
        chains::judge(table, &base.name, base.drops, packet, aim)
    }
}

fn dump<T>(
    kernel: &mut Netlink,
    question: u16,
    answer: u16,
    parse: fn(&[u8]) -> Result<Option<T>, MalformedReply>,
) -> Result<Vec<T>, Failure> {
    let read = |message: &Message<'_>| if message.kind == answer { parse(message.body) } else { Ok(None) };
    kernel.dump(&List { kind: question, header: [0; HEADER], attributes: Vec::new() }, read)?.whole()
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::preflight) struct Chain {
    family: &'static str,
    table: String,
    name: String,
    /// `NF_INET_*`.
    pub(in crate::preflight) hook: u32,
    pub(in crate::preflight) priority: i32,
    pub(in crate::preflight) is_nat: bool,
    /// By policy.
    pub(in crate::preflight) drops: bool,
    pub(in crate::preflight) rules: u32,
}

impl Chain {
    /// `None` for one that others jump to, which has no hook.
    fn parse(body: &[u8]) -> Result<Option<Self>, MalformedReply> {
        let Some(family) = family(body)? else { return Ok(None) };
        let attributes = attributes(body, HEADER)?;
        let hook = attribute(attributes, nfta::CHAIN_HOOK, |hook| {
            Ok((number(hook, nfta::HOOK_NUMBER)?, number(hook, nfta::HOOK_PRIORITY)?))
        })?;
        let Some((Some(hook), priority)) = hook else { return Ok(None) };
        let missing = |what| MalformedReply::Missing { what };
        Ok(Some(Self {
            family,
            table: attribute_string(attributes, nfta::CHAIN_TABLE)?.ok_or(missing("NFTA_CHAIN_TABLE"))?,
            name: attribute_string(attributes, nfta::CHAIN_NAME)?.ok_or(missing("NFTA_CHAIN_NAME"))?,
            hook,
            priority: priority.unwrap_or(0).cast_signed(),
            is_nat: attribute_string(attributes, nfta::CHAIN_TYPE)?.as_deref() == Some("nat"),
            drops: number(attributes, nfta::CHAIN_POLICY)? == Some(libc::NF_DROP.cast_unsigned()),
            // Nothing can jump to a base chain, so that its users are its rules.
            rules: number(attributes, nfta::CHAIN_USE)?.ok_or(missing("NFTA_CHAIN_USE"))?,
        }))
    }

    pub(in crate::preflight) fn firewall(&self) -> Firewall {
        Firewall::Nftables { family: self.family, table: self.table.clone(), chain: self.name.clone() }
    }

    fn is_in(&self, table: &Table) -> bool {
        (self.family, &self.table) == (table.family, &table.name)
    }
}

/// A rule of any chain.
struct Rule {
    family: &'static str,
    table: String,
    chain: String,
    expressions: Vec<u8>,
}

impl Rule {
    fn parse(body: &[u8]) -> Result<Option<Self>, MalformedReply> {
        let Some(family) = family(body)? else { return Ok(None) };
        let attributes = attributes(body, HEADER)?;
        let missing = |what| MalformedReply::Missing { what };
        let expressions = attribute(attributes, nfta::RULE_EXPRESSIONS, |bytes| Ok(bytes.to_vec()))?;
        Ok(Some(Self {
            family,
            table: attribute_string(attributes, nfta::RULE_TABLE)?.ok_or(missing("NFTA_RULE_TABLE"))?,
            chain: attribute_string(attributes, nfta::RULE_CHAIN)?.ok_or(missing("NFTA_RULE_CHAIN"))?,
            expressions: expressions.unwrap_or_default(),
        }))
    }
}

/// A set or map that is part of a rule and has no name of its own.
struct Set {
    header: [u8; HEADER],
    family: &'static str,
    table: String,
    name: String,
}

impl Set {
    /// `None` for one with a name: it may be large, and changes apart from the rules.
    fn parse(body: &[u8]) -> Result<Option<Self>, MalformedReply> {
        /// `NFT_SET_ANONYMOUS`.
        const ANONYMOUS: u32 = 1;
        let Some(family) = family(body)? else { return Ok(None) };
        let attributes = attributes(body, HEADER)?;
        if number(attributes, nfta::SET_FLAGS)?.unwrap_or(0) & ANONYMOUS == 0 {
            return Ok(None);
        }
        let missing = |what| MalformedReply::Missing { what };
        let mut header = [0; HEADER];
        header.iter_mut().zip(body).take(1).for_each(|(place, family)| *place = *family);
        Ok(Some(Self {
            header,
            family,
            table: attribute_string(attributes, nfta::SET_TABLE)?.ok_or(missing("NFTA_SET_TABLE"))?,
            name: attribute_string(attributes, nfta::SET_NAME)?.ok_or(missing("NFTA_SET_NAME"))?,
        }))
    }

    /// Its elements, by their keys; `None` if one cannot be judged.
    fn elements(&self, kernel: &mut Netlink) -> Result<Option<Vec<Element>>, Failure> {
        let names = [(nfta::SET_TABLE, &self.table), (nfta::SET_NAME, &self.name)];
        let attributes = names.iter().flat_map(|(kind, name)| text_attribute(*kind, name)).collect();
        let question = List { kind: message::GET_ELEMENTS, header: self.header, attributes };
        let read = |message: &Message<'_>| match message.kind {
            message::NEW_ELEMENTS => {
                let attributes = attributes_of(message.body)?;
                let elements = attribute(attributes, nfta::SET_ELEMENTS, |list| {
                    let elements = NlasIterator::new(list).map(|element| {
                        let element = element.map_err(|_| MalformedReply::AttributeOverrun { have: list.len() })?;
                        Element::parse(element.value())
                    });
                    elements.collect::<Result<Option<Vec<_>>, _>>()
                })?;
                Ok(Some(elements.unwrap_or_else(|| Some(Vec::new()))))
            }
            _ => Ok(None),
        };
        let parts: Option<Vec<_>> = kernel.dump(&question, read)?.whole()?.into_iter().collect();
        Ok(parts.map(|parts| {
            let mut elements = parts.concat();
            Element::sort(&mut elements);
            elements
        }))
    }
}

fn attributes_of(body: &[u8]) -> Result<&[u8], MalformedReply> {
    attributes(body, HEADER)
}

/// An attribute with a text and the NUL behind it.
fn text_attribute(kind: u16, text: &str) -> Vec<u8> {
    // Names have at most 255 bytes.
    let length = u16::try_from(text.len()).unwrap_or(0).saturating_add(5);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(text.bytes().take(length.saturating_sub(5).into()));
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    family: &'static str,
    name: String,
}

/// The table, if its chains are not in use.
fn dormant_table(body: &[u8]) -> Result<Option<Table>, MalformedReply> {
    let Some(family) = family(body)? else { return Ok(None) };
    let attributes = attributes(body, HEADER)?;
    let flags = number(attributes, nfta::TABLE_FLAGS)?.unwrap_or(0);
    let name = attribute_string(attributes, nfta::TABLE_NAME)?;
    let name = name.ok_or(MalformedReply::Missing { what: "NFTA_TABLE_NAME" })?;
    Ok((flags & DORMANT != 0).then_some(Table { family, name }))
}

/// The family, if its chains see IPv4 packets on their way through this host.
fn family(body: &[u8]) -> Result<Option<&'static str>, MalformedReply> {
    let family = body.first().copied().ok_or(MalformedReply::Header { have: 0, needed: HEADER })?;
    Ok(match i32::from(family) {
        libc::NFPROTO_INET => Some("inet"),
        libc::NFPROTO_IPV4 => Some("ip"),
        _ => None,
    })
}

pub(in crate::preflight) fn number(attributes: &[u8], kind: u16) -> Result<Option<u32>, MalformedReply> {
    attribute(attributes, kind, |value| sized(value, kind).map(u32::from_be_bytes))
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::*;
    use crate::sys::link::message::nla;

    fn chain(family: i32, hook: u32, policy: u32) -> Vec<u8> {
        let mut body = [u8::try_from(family).expect("small"), 0, 0, 0].to_vec();
        body.extend(nla(nfta::CHAIN_TABLE, b"filter\0"));
        body.extend(nla(nfta::CHAIN_NAME, b"FORWARD\0"));
        // With the flag that it is nested.
        body.extend(nla(nfta::CHAIN_HOOK | 0x8000, &nla(nfta::HOOK_NUMBER, &hook.to_be_bytes())));
        body.extend(nla(nfta::CHAIN_POLICY, &policy.to_be_bytes()));
        body.extend(nla(nfta::CHAIN_USE, &3_u32.to_be_bytes()));
        body
    }

    const FORWARD: u32 = libc::NF_INET_FORWARD.cast_unsigned();
    const DROP: u32 = libc::NF_DROP.cast_unsigned();

    #[test]
    fn base_chains_that_see_ipv4_are_found() {
        for family in [libc::NFPROTO_IPV4, libc::NFPROTO_INET] {
            let name = if family == libc::NFPROTO_INET { "inet" } else { "ip" };
            let found = |drops| Chain {
                family: name,
                table: "filter".into(),
                name: "FORWARD".into(),
                hook: FORWARD,
                priority: 0,
                is_nat: false,
                drops,
                rules: 3,
            };
            assert_eq!(Chain::parse(&chain(family, FORWARD, DROP)), Ok(Some(found(true))));
            let accepts = libc::NF_ACCEPT.cast_unsigned();
            assert_eq!(Chain::parse(&chain(family, FORWARD, accepts)), Ok(Some(found(false))));
        }
        let other_families = [libc::NFPROTO_IPV6, libc::NFPROTO_BRIDGE, libc::NFPROTO_NETDEV];
        let others = other_families.map(|family| chain(family, FORWARD, DROP)).into_iter().chain([
            // A chain that others jump to.
            [&[2, 0, 0, 0][..], &nla(nfta::CHAIN_TABLE, b"filter\0"), &nla(nfta::CHAIN_NAME, b"DOCKER\0")].concat(),
        ]);
        for other in others {
            assert_eq!(Chain::parse(&other), Ok(None), "{other:?}");
        }
    }

    #[test]
    fn a_chain_cut_anywhere_is_an_error_or_no_chain_and_never_another() {
        let whole = chain(libc::NFPROTO_IPV4, FORWARD, DROP);
        for length in 0..whole.len() {
            let cut = Chain::parse(whole.get(..length).expect("in range"));
            assert!(matches!(cut, Err(_) | Ok(None)), "{length} of {} bytes: {cut:?}", whole.len());
        }
    }

    #[test]
    fn a_dormant_table_is_told_from_one_in_use() {
        let table = |flags: u32| {
            [&[1, 0, 0, 0][..], &nla(nfta::TABLE_NAME, b"mine\0"), &nla(nfta::TABLE_FLAGS, &flags.to_be_bytes())]
                .concat()
        };
        let dormant = Table { family: "inet", name: "mine".into() };
        assert_eq!(dormant_table(&table(DORMANT)), Ok(Some(dormant)));
        // Somebody's, and not dormant.
        assert_eq!(dormant_table(&table(2)), Ok(None));
        assert_eq!(dormant_table(&table(DORMANT)[..3]), Err(MalformedReply::Header { have: 3, needed: HEADER }));
    }
}
