//! nftables' chains, asked of the kernel (nfnetlink, the kernel's include/uapi/linux/netfilter/nf_tables.h). iptables-nft
//! keeps its chains there too.

use alloc::string::String;
use alloc::vec::Vec;

use netlink_packet_core::NetlinkSerializable;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Firewall;
use super::firewall::Dropping;
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
}

/// Bytes of struct `nfgenmsg`: family, version, and two that are 0.
pub(super) const HEADER: usize = 4;

/// `NFTA_TABLE_*`, `NFTA_CHAIN_*` and `NFTA_HOOK_*`. Numbers are big-endian.
pub(super) mod nfta {
    pub(in super::super) const TABLE_NAME: u16 = 1;
    pub(in super::super) const TABLE_FLAGS: u16 = 2;
    pub(in super::super) const CHAIN_TABLE: u16 = 1;
    pub(in super::super) const CHAIN_NAME: u16 = 3;
    pub(in super::super) const CHAIN_HOOK: u16 = 4;
    pub(in super::super) const CHAIN_POLICY: u16 = 5;
    pub(in super::super) const CHAIN_USE: u16 = 6;
    pub(in super::super) const HOOK_NUMBER: u16 = 1;
}

/// `NFT_TABLE_F_DORMANT`: the chains of the table are not in use.
const DORMANT: u32 = 1;

/// Asks for all tables or chains, of every family.
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

/// The base chains of the hook `forward` that see IPv4 packets and drop by policy.
pub(super) fn dropping() -> Result<Vec<Dropping>, LinkError> {
    let doing = "list nftables' chains";
    let mut kernel = match Netlink::connect(NETLINK_NETFILTER) {
        Ok(kernel) => kernel,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Vec::new()),
        Err(source) => return Err(LinkError::Socket { doing, source }),
    };
    match list(&mut kernel) {
        Ok(chains) => Ok(chains),
        // A kernel without nftables does not know the subsystem (`nfnetlink_rcv_msg` in net/netfilter/nfnetlink.c); one that has
        // it never says that to a list without conditions.
        Err(Failure::Refused { errno: libc::EINVAL, .. }) => Ok(Vec::new()),
        Err(failure) => Err(LinkError::new(failure, doing, "this host")),
    }
}

fn list(kernel: &mut Netlink) -> Result<Vec<Dropping>, Failure> {
    let chains = kernel
        .dump(&List { kind: message::GET_CHAIN }, |message: &Message<'_>| match message.kind {
            message::NEW_CHAIN => Chain::parse(message.body),
            _ => Ok(None),
        })?
        .whole()?;
    if chains.is_empty() {
        return Ok(Vec::new());
    }
    let dormant = kernel
        .dump(&List { kind: message::GET_TABLE }, |message: &Message<'_>| match message.kind {
            message::NEW_TABLE => dormant_table(message.body),
            _ => Ok(None),
        })?
        .whole()?;
    let in_use = chains.into_iter().filter(|chain| !dormant.iter().any(|table| chain.is_in(table)));
    Ok(in_use.map(Dropping::from).collect())
}

/// A base chain of the hook `forward` with the policy to drop.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    family: &'static str,
    table: String,
    name: String,
    rules: u32,
}

impl Chain {
    /// `None` for any other chain.
    fn parse(body: &[u8]) -> Result<Option<Self>, MalformedReply> {
        let Some(family) = family(body)? else { return Ok(None) };
        let attributes = attributes(body, HEADER)?;
        // Without a hook it is one that others jump to.
        let hook = attribute(attributes, nfta::CHAIN_HOOK, |hook| number(hook, nfta::HOOK_NUMBER))?.flatten();
        let policy = number(attributes, nfta::CHAIN_POLICY)?;
        if hook != Some(libc::NF_INET_FORWARD.cast_unsigned()) || policy != Some(libc::NF_DROP.cast_unsigned()) {
            return Ok(None);
        }
        let missing = |what| MalformedReply::Missing { what };
        Ok(Some(Self {
            family,
            table: attribute_string(attributes, nfta::CHAIN_TABLE)?.ok_or(missing("NFTA_CHAIN_TABLE"))?,
            name: attribute_string(attributes, nfta::CHAIN_NAME)?.ok_or(missing("NFTA_CHAIN_NAME"))?,
            // Nothing can jump to a base chain, so that its users are its rules.
            rules: number(attributes, nfta::CHAIN_USE)?.ok_or(missing("NFTA_CHAIN_USE"))?,
        }))
    }

    fn is_in(&self, table: &Table) -> bool {
        (self.family, &self.table) == (table.family, &table.name)
    }
}

impl From<Chain> for Dropping {
    fn from(Chain { family, table, name, rules }: Chain) -> Self {
        Self { firewall: Firewall::Nftables { family, table, chain: name }, rules }
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

fn number(attributes: &[u8], kind: u16) -> Result<Option<u32>, MalformedReply> {
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
    fn only_forward_chains_that_drop_and_see_ipv4_are_found() {
        for family in [libc::NFPROTO_IPV4, libc::NFPROTO_INET] {
            let name = if family == libc::NFPROTO_INET { "inet" } else { "ip" };
            let found = Chain { family: name, table: "filter".into(), name: "FORWARD".into(), rules: 3 };
            assert_eq!(Chain::parse(&chain(family, FORWARD, DROP)), Ok(Some(found)));
        }
        let other_families = [libc::NFPROTO_IPV6, libc::NFPROTO_BRIDGE, libc::NFPROTO_NETDEV];
        let others = other_families.map(|family| chain(family, FORWARD, DROP)).into_iter().chain([
            chain(libc::NFPROTO_IPV4, libc::NF_INET_LOCAL_IN.cast_unsigned(), DROP),
            chain(libc::NFPROTO_IPV4, FORWARD, libc::NF_ACCEPT.cast_unsigned()),
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
