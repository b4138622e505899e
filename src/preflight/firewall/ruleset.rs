//! Reading of the chains, rules and sets of nftables through nfnetlink.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use netlink_packet_core::{NetlinkSerializable, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::NftablesChain;
use super::attributes::{HEADER, message, nfta, number};
use super::chains::{self, Likelihood, Outcome, Packet};
use super::expressions::Element;
use crate::sys::link::error::{LinkError, MalformedReply};
use crate::sys::link::message::{Message, attribute, attribute_string, attributes};
use crate::sys::link::netlink::{Netlink, NetlinkError};

/// Largest number of sets whose elements are read. Each set is a request of its own, and the start of a tunnel waits
/// for the answers. Rules with further sets cannot be evaluated.
const SETS_MAX: usize = 256;

/// `NFT_TABLE_F_DORMANT`: the kernel does not use the chains of the table.
const DORMANT: u32 = 1;

/// A request for all tables, chains, rules or sets of every family, or for the elements of one set.
#[derive(Clone, Debug)]
struct List {
    kind: u16,
    /// Zeros stand for NFPROTO_UNSPEC and NFNETLINK_V0.
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

/// The base chains in use that see IPv4 or IPv6 packets, and all rules.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    pub(super) bases: Vec<BaseChain>,
    tables: BTreeMap<(&'static str, String), chains::Table>,
}

impl Ruleset {
    pub(super) fn read() -> Result<Self, LinkError> {
        let operation = "list nftables' rules";
        let mut kernel = match Netlink::connect(NETLINK_NETFILTER) {
            Ok(kernel) => kernel,
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Self::default()),
            Err(source) => return Err(LinkError::Socket { operation, source }),
        };
        match Self::list(&mut kernel) {
            Ok(ruleset) => Ok(ruleset),
            // A kernel without nftables lacks the subsystem (`nfnetlink_rcv_msg` in net/netfilter/nfnetlink.c). A
            // kernel with nftables does not give this error for a dump without conditions.
            Err(NetlinkError::Refused { errno: libc::EINVAL, .. }) => Ok(Self::default()),
            Err(error) => Err(LinkError::new(error, operation, "this host")),
        }
    }

    fn list(kernel: &mut Netlink) -> Result<Self, NetlinkError> {
        let mut bases = dump(kernel, message::GET_CHAIN, message::NEW_CHAIN, BaseChain::parse)?;
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
        for set in dump(kernel, message::GET_SET, message::NEW_SET, Set::parse)?.into_iter().take(SETS_MAX) {
            if let Some(table) = ruleset.tables.get_mut(&(set.family, set.table.clone()))
                && let Some(elements) = set.elements(kernel)?
            {
                table.sets.insert(set.name, elements);
            }
        }
        Ok(Self { bases, ..ruleset })
    }

    /// Returns the likelihood that a base chain has the outcome for the packet.
    pub(super) fn evaluate(&self, base: &BaseChain, packet: &Packet, outcome: Outcome) -> Likelihood {
        let none = chains::Table::default();
        let table = self.tables.get(&(base.name.family, base.name.table.clone())).unwrap_or(&none);
        chains::evaluate(table, &base.name.name, base.drops, packet, outcome)
    }
}

fn dump<T>(
    kernel: &mut Netlink,
    question: u16,
    answer: u16,
    parse: fn(&[u8]) -> Result<Option<T>, MalformedReply>,
) -> Result<Vec<T>, NetlinkError> {
    let read = |message: &Message<'_>| if message.kind == answer { parse(message.body) } else { Ok(None) };
    kernel.dump(&List { kind: question, header: [0; HEADER], attributes: Vec::new() }, read)?.complete()
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) name: NftablesChain,
    /// `NF_INET_*`.
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) is_nat: bool,
    /// The policy is to drop.
    pub(super) drops: bool,
    pub(super) rules: u32,
}

impl BaseChain {
    /// Parses a base chain. Returns `None` for a chain without a hook, which only other chains jump to.
    fn parse(body: &[u8]) -> Result<Option<Self>, MalformedReply> {
        let Some(family) = family(body)? else { return Ok(None) };
        let attributes = attributes(body, HEADER)?;
        let hook = attribute(attributes, nfta::CHAIN_HOOK, |hook| {
            Ok((number(hook, nfta::HOOK_NUMBER)?, number(hook, nfta::HOOK_PRIORITY)?))
        })?;
        let Some((Some(hook), priority)) = hook else { return Ok(None) };
        let missing = |what| MalformedReply::Missing { what };
        let table = attribute_string(attributes, nfta::CHAIN_TABLE)?.ok_or(missing("NFTA_CHAIN_TABLE"))?;
        let name = attribute_string(attributes, nfta::CHAIN_NAME)?.ok_or(missing("NFTA_CHAIN_NAME"))?;
        Ok(Some(Self {
            name: NftablesChain { family, table, name },
            hook,
            priority: priority.unwrap_or(0).cast_signed(),
            is_nat: attribute_string(attributes, nfta::CHAIN_TYPE)?.as_deref() == Some("nat"),
            drops: number(attributes, nfta::CHAIN_POLICY)? == Some(libc::NF_DROP.cast_unsigned()),
            // No rule can jump to a base chain, so its use count is the number of its rules.
            rules: number(attributes, nfta::CHAIN_USE)?.ok_or(missing("NFTA_CHAIN_USE"))?,
        }))
    }

    fn is_in(&self, table: &Table) -> bool {
        (self.name.family, &self.name.table) == (table.family, &table.name)
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

/// An anonymous set or map, which belongs to a rule.
struct Set {
    header: [u8; HEADER],
    family: &'static str,
    table: String,
    name: String,
}

impl Set {
    /// Parses an anonymous set. Returns `None` for a named set, which may be large and changes apart from the rules.
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

    /// Reads the elements, sorted by their keys. Returns `None` if an element cannot be evaluated.
    fn elements(&self, kernel: &mut Netlink) -> Result<Option<Vec<Element>>, NetlinkError> {
        let names = [(nfta::SET_TABLE, &self.table), (nfta::SET_NAME, &self.name)];
        let set = names.iter().flat_map(|(kind, name)| text_attribute(*kind, name)).collect();
        let question = List { kind: message::GET_ELEMENTS, header: self.header, attributes: set };
        let read = |message: &Message<'_>| match message.kind {
            message::NEW_ELEMENTS => {
                let attributes = attributes(message.body, HEADER)?;
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
        let parts: Option<Vec<_>> = kernel.dump(&question, read)?.complete()?.into_iter().collect();
        Ok(parts.map(|parts| {
            let mut elements = parts.concat();
            Element::sort(&mut elements);
            elements
        }))
    }
}

/// Returns an attribute with a text that ends with NUL.
fn text_attribute(kind: u16, text: &str) -> Vec<u8> {
    // nftables limits names to 255 bytes.
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

/// Parses a table. Returns `None` for a table that is in use.
fn dormant_table(body: &[u8]) -> Result<Option<Table>, MalformedReply> {
    let Some(family) = family(body)? else { return Ok(None) };
    let attributes = attributes(body, HEADER)?;
    let flags = number(attributes, nfta::TABLE_FLAGS)?.unwrap_or(0);
    let name = attribute_string(attributes, nfta::TABLE_NAME)?;
    let name = name.ok_or(MalformedReply::Missing { what: "NFTA_TABLE_NAME" })?;
    Ok((flags & DORMANT != 0).then_some(Table { family, name }))
}

/// Returns the family if its chains see forwarded IP packets.
fn family(body: &[u8]) -> Result<Option<&'static str>, MalformedReply> {
    let family = body.first().copied().ok_or(MalformedReply::Header { have: 0, needed: HEADER })?;
    Ok(match i32::from(family) {
        libc::NFPROTO_INET => Some("inet"),
        libc::NFPROTO_IPV4 => Some("ip"),
        libc::NFPROTO_IPV6 => Some("ip6"),
        _ => None,
    })
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
        // With NLA_F_NESTED.
        body.extend(nla(nfta::CHAIN_HOOK | 0x8000, &nla(nfta::HOOK_NUMBER, &hook.to_be_bytes())));
        body.extend(nla(nfta::CHAIN_POLICY, &policy.to_be_bytes()));
        body.extend(nla(nfta::CHAIN_USE, &3_u32.to_be_bytes()));
        body
    }

    const FORWARD: u32 = libc::NF_INET_FORWARD.cast_unsigned();
    const DROP: u32 = libc::NF_DROP.cast_unsigned();

    #[test]
    fn base_chains_that_see_ip_packets_are_found() {
        for (family, name) in [(libc::NFPROTO_IPV4, "ip"), (libc::NFPROTO_IPV6, "ip6"), (libc::NFPROTO_INET, "inet")] {
            let found = |drops| BaseChain {
                name: NftablesChain { family: name, table: "filter".into(), name: "FORWARD".into() },
                hook: FORWARD,
                priority: 0,
                is_nat: false,
                drops,
                rules: 3,
            };
            assert_eq!(BaseChain::parse(&chain(family, FORWARD, DROP)), Ok(Some(found(true))));
            let accepts = libc::NF_ACCEPT.cast_unsigned();
            assert_eq!(BaseChain::parse(&chain(family, FORWARD, accepts)), Ok(Some(found(false))));
        }
        let other_families = [libc::NFPROTO_ARP, libc::NFPROTO_BRIDGE, libc::NFPROTO_NETDEV];
        let others = other_families.map(|family| chain(family, FORWARD, DROP)).into_iter().chain([
            // A chain without a hook.
            [&[2, 0, 0, 0][..], &nla(nfta::CHAIN_TABLE, b"filter\0"), &nla(nfta::CHAIN_NAME, b"DOCKER\0")].concat(),
        ]);
        for other in others {
            assert_eq!(BaseChain::parse(&other), Ok(None), "{other:?}");
        }
    }

    #[test]
    fn a_chain_cut_anywhere_is_an_error_or_no_chain_and_never_another() {
        let whole = chain(libc::NFPROTO_IPV4, FORWARD, DROP);
        for length in 0..whole.len() {
            let cut = BaseChain::parse(whole.get(..length).expect("in range"));
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
        // `NFT_TABLE_F_OWNER`.
        assert_eq!(dormant_table(&table(2)), Ok(None));
        assert_eq!(dormant_table(&table(DORMANT)[..3]), Err(MalformedReply::Header { have: 3, needed: HEADER }));
    }
}
