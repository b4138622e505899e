//! nftables' chains and rules, asked of the kernel (nfnetlink, the kernel's include/uapi/linux/netfilter/nf_tables.h). iptables-nft
//! keeps its chains there too.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use netlink_packet_core::NetlinkSerializable;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Firewall;
use super::rules::{self, Aim, Judgement, Packet, Rules};
use crate::sys::link::error::{LinkError, MalformedReply};
use crate::sys::link::message::{Message, attribute, attribute_string, attributes, sized};
use crate::sys::link::netlink::{Failure, Netlink};

/// Message types: the subsystem in the upper byte.
mod message {
    const NFTABLES: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
    pub(super) const NEW_TABLE: u16 = NFTABLES | libc::NFT_MSG_NEWTABLE as u16;
    pub(super) const GET_TABLE: u16 = NFTABLES | libc::NFT_MSG_GETTABLE as u16;
    pub(super) const NEW_CHAIN: u16 = NFTABLES | libc::NFT_MSG_NEWCHAIN as u16;
    pub(super) const GET_CHAIN: u16 = NFTABLES | libc::NFT_MSG_GETCHAIN as u16;
    pub(super) const NEW_RULE: u16 = NFTABLES | libc::NFT_MSG_NEWRULE as u16;
    pub(super) const GET_RULE: u16 = NFTABLES | libc::NFT_MSG_GETRULE as u16;
}

/// Bytes of struct `nfgenmsg`: family, version, and two that are 0.
pub(super) const HEADER: usize = 4;

/// `NFTA_TABLE_*`, `NFTA_CHAIN_*`, `NFTA_HOOK_*` and `NFTA_RULE_*`. Numbers are big-endian.
pub(super) mod nfta {
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const TABLE_FLAGS: u16 = 2;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_USE: u16 = 6;
    pub(in super::super) const CHAIN_TYPE: u16 = 7;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
    pub(in super::super) const HOOK_PRIORITY: u16 = 2;
    pub(in super::super) const RULE_TABLE: u16 = 1;
    pub(in super::super) const RULE_CHAIN: u16 = 2;
    pub(in super::super) const RULE_EXPRESSIONS: u16 = 4;
}

/// `NFT_TABLE_F_DORMANT`: the chains of the table are not in use.
const DORMANT: u32 = 1;

/// Asks for all tables, chains or rules, of every family.
#[derive(Clone, Copy, Debug)]
struct List {
    kind: u16,
}

impl NetlinkSerializable for List {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // NFPROTO_UNSPEC and NFNETLINK_V0.
        buffer.fill(0);
    }
}

/// The base chains that see IPv4 packets and are in use, and all rules.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    pub(super) bases: Vec<Chain>,
    rules: BTreeMap<(&'static str, String), Rules>,
}

impl Ruleset {
    pub(super) fn read() -> Result<Self, LinkError> {
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
            ruleset.rules.entry((family, table)).or_default().entry(chain).or_default().push(expressions);
        }
        Ok(Self { bases, ..ruleset })
    }

    /// Whether a base chain does what is looked for to the packet.
    pub(super) fn judge(&self, base: &Chain, packet: &Packet, aim: Aim) -> Judgement {
        let none = Rules::new();
        let rules = self.rules.get(&(base.family, base.table.clone())).unwrap_or(&none);
        rules::judge(rules, &base.name, base.drops, packet, aim)
    }
}

fn dump<T>(
    kernel: &mut Netlink,
    question: u16,
    answer: u16,
    parse: fn(&[u8]) -> Result<Option<T>, MalformedReply>,
) -> Result<Vec<T>, Failure> {
    let read = |message: &Message<'_>| if message.kind == answer { parse(message.body) } else { Ok(None) };
    kernel.dump(&List { kind: question }, read)?.whole()
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    family: &'static str,
    table: String,
    name: String,
    /// `NF_INET_*`.
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) is_nat: bool,
    /// By policy.
    pub(super) drops: bool,
    pub(super) rules: u32,
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

    pub(super) fn firewall(&self) -> Firewall {
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

pub(super) fn number(attributes: &[u8], kind: u16) -> Result<Option<u32>, MalformedReply> {
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
