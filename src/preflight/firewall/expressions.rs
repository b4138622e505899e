//! Evaluation of the expressions of one nftables rule for one packet.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NlasIterator;

use super::attributes::{data_value, nfta, number};
use super::chains::{Outcome, Packet, PacketAddress, Table};
use super::xtables;
use crate::sys::link::error::MalformedReply;
use crate::sys::link::message::{attribute, attribute_string};

/// An element of a set or map. In a set of intervals, an element is the start or the end of an interval.
#[derive(Clone, Debug)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    is_interval_end: bool,
    verdict: Option<Verdict>,
}

impl Element {
    /// Parses an element of a message. Returns `None` for a kind that cannot be evaluated.
    pub(super) fn parse(element: &[u8]) -> Result<Option<Self>, MalformedReply> {
        /// `NFT_SET_ELEM_INTERVAL_END` and `NFT_SET_ELEM_CATCHALL`.
        const INTERVAL_END: u32 = 1;
        const CATCHALL: u32 = 2;
        let flags = number(element, nfta::ELEMENT_FLAGS)?.unwrap_or(0);
        if flags & CATCHALL != 0 || attribute(element, nfta::ELEMENT_KEY_END, |_| Ok(()))?.is_some() {
            return Ok(None);
        }
        let verdict = attribute(element, nfta::ELEMENT_DATA, parse_verdict)?.flatten();
        let is_interval_end = flags & INTERVAL_END != 0;
        Ok(Some(Self { key: data_value(element, nfta::ELEMENT_KEY)?, is_interval_end, verdict }))
    }

    /// Sorts elements by their keys. The start of an interval comes after the end of another with the same key.
    pub(super) fn sort(elements: &mut [Self]) {
        elements.sort_by(|one, other| one.key.cmp(&other.key).then(other.is_interval_end.cmp(&one.is_interval_end)));
    }
}

/// The match of an expression or a rule with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    No,
    Maybe,
    Yes,
    /// Yes for some peers, whose addresses are unknown.
    SomePeers,
}

/// The effect of a rule that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    /// Evaluation goes on with the next rule.
    Continue,
    Drop,
    Goto(String),
    Jump(String),
    NoTrack,
    Return,
    Translate,
    Unknown,
}

/// The content of a register. A register with unknown content is absent.
#[derive(Clone, Debug)]
enum Value {
    Known(Vec<u8>),
    Peer,
}

/// Returns the match of a rule with the packet, and its verdict.
pub(super) fn evaluate_rule(
    table: &Table,
    expressions: &[u8],
    packet: &Packet,
    outcome: Outcome,
) -> Result<(Match, Verdict), MalformedReply> {
    let mut registers = BTreeMap::new();
    let (mut is_certain, mut is_about_peers, mut verdict) = (true, false, Verdict::Continue);
    for element in NlasIterator::new(expressions) {
        let element = element.map_err(|_| MalformedReply::AttributeOverrun { have: expressions.len() })?;
        let name = attribute_string(element.value(), nfta::EXPRESSION_NAME)?.unwrap_or_default();
        let data = attribute(element.value(), nfta::EXPRESSION_DATA, |data| Ok(data.to_vec()))?.unwrap_or_default();
        let matches = match name.as_str() {
            "meta" | "ct" | "payload" | "immediate" | "bitwise" => {
                if let Some(loaded) = load(&name, &data, packet, &mut registers)? {
                    verdict = loaded;
                }
                Match::Yes
            }
            "cmp" | "range" => compare(&name, &data, &registers, packet)?,
            "counter" | "log" | "last" => Match::Yes,
            "match" => xtables::evaluate_match(&data, packet)?,
            "masq" => set(&mut verdict, Verdict::Translate),
            "nat" if number(&data, nfta::NAT_TYPE)? == Some(0) => set(&mut verdict, Verdict::Translate),
            "nat" | "redir" => set(&mut verdict, Verdict::Accept),
            "notrack" => set(&mut verdict, Verdict::NoTrack),
            "reject" => set(&mut verdict, Verdict::Drop),
            "target" => set(&mut verdict, xtables::target(&data)?),
            "lookup" => {
                let (matches, found) = look_up(table, &data, &registers, packet)?;
                verdict = found.unwrap_or(verdict);
                matches
            }
            "limit" | "quota" | "connlimit" | "fib" | "socket" | "byteorder" | "numgen" | "hash" => {
                registers.clear();
                Match::Maybe
            }
            _ => set(&mut verdict, Verdict::Unknown),
        };
        match matches {
            Match::No => return Ok((Match::No, verdict)),
            Match::Maybe => is_certain = false,
            Match::SomePeers => is_about_peers = true,
            Match::Yes => {}
        }
    }
    let matches = match (&verdict, is_about_peers) {
        (Verdict::Drop, true) if outcome != Outcome::Drop => Match::No,
        (Verdict::Translate, true) => Match::Maybe,
        _ if is_certain => Match::Yes,
        _ => Match::Maybe,
    };
    Ok((matches, verdict))
}

/// Sets the verdict of a statement, which matches every packet.
fn set(verdict: &mut Verdict, to: Verdict) -> Match {
    *verdict = to;
    Match::Yes
}

/// Loads a register, or returns a verdict.
fn load(
    name: &str,
    data: &[u8],
    packet: &Packet,
    registers: &mut BTreeMap<u32, Value>,
) -> Result<Option<Verdict>, MalformedReply> {
    let key = || number(data, nfta::KEY);
    let (register, value) = match name {
        // These set a value of the packet. No evaluated expression reads it again.
        "meta" if number(data, nfta::META_SOURCE)?.is_some() => return Ok(None),
        "ct" if number(data, nfta::CT_SOURCE)?.is_some() => return Ok(None),
        "payload" if number(data, nfta::PAYLOAD_SOURCE)?.is_some() => return Ok(None),
        "meta" => (number(data, nfta::REGISTER)?, packet.meta(key()?.unwrap_or(u32::MAX))),
        "ct" => {
            let is_state = key()?.map(u32::cast_signed) == Some(libc::NFT_CT_STATE);
            (number(data, nfta::REGISTER)?, is_state.then(|| known(&packet.ct_state.to_ne_bytes())))
        }
        "payload" => {
            let mut location = [0; 3];
            for (part, kind) in location.iter_mut().zip(nfta::PAYLOAD) {
                *part = number(data, kind)?.unwrap_or(u32::MAX);
            }
            (number(data, nfta::REGISTER)?, packet.payload(location))
        }
        "bitwise" => {
            let [from, to] = nfta::BITWISE;
            let value = number(data, from)?.and_then(|from| registers.get(&from).cloned());
            let (mask, xor) = (data_value(data, nfta::BITWISE_MASK)?, data_value(data, nfta::BITWISE_XOR)?);
            let is_mask = number(data, nfta::BITWISE_OPERATION)?.unwrap_or(0) == 0;
            (number(data, to)?, value.filter(|_| is_mask).map(|value| value.masked(&mask, &xor)))
        }
        _ => {
            if let Some(verdict) = attribute(data, nfta::IMMEDIATE_DATA, parse_verdict)?.flatten() {
                return Ok(Some(verdict));
            }
            (number(data, nfta::REGISTER)?, Some(known(&data_value(data, nfta::IMMEDIATE_DATA)?)))
        }
    };
    let register = register.unwrap_or(u32::MAX);
    match value {
        Some(value) => registers.insert(register, value),
        None => registers.remove(&register),
    };
    Ok(None)
}

fn known(bytes: &[u8]) -> Value {
    Value::Known(bytes.to_vec())
}

impl Value {
    fn masked(self, mask: &[u8], xor: &[u8]) -> Self {
        match self {
            Self::Known(bytes) => {
                let bits = bytes.iter().zip(mask).zip(xor);
                Self::Known(bits.map(|((byte, mask), xor)| byte & mask ^ xor).collect())
            }
            Self::Peer => Self::Peer,
        }
    }
}

impl Packet {
    /// Returns true if no other host can have an address with this prefix.
    fn excludes_peers(&self, prefix: &[u8]) -> bool {
        let mut octets = [0; 16];
        octets.iter_mut().zip(prefix).for_each(|(octet, byte)| *octet = *byte);
        let address: IpAddr = match octets {
            [a, b, c, d, ..] if !self.is_ipv6 => Ipv4Addr::new(a, b, c, d).into(),
            octets => Ipv6Addr::from(octets).into(),
        };
        address.is_multicast() || self.overlay.iter().any(|overlay| overlay.contains(&address))
    }

    /// Returns the value of a key of `meta`, `NFT_META_*`.
    fn meta(&self, key: u32) -> Option<Value> {
        /// `IFNAMSIZ`.
        const NAME: usize = 16;
        let name = |interface: &Option<(u32, String)>| {
            interface.as_ref().map(|(_, name)| {
                let mut field = name.clone().into_bytes();
                field.resize(NAME, 0);
                Value::Known(field)
            })
        };
        let index =
            |interface: &Option<(u32, String)>| interface.as_ref().map(|(index, _)| known(&index.to_ne_bytes()));
        match key.cast_signed() {
            // The EtherType.
            libc::NFT_META_PROTOCOL => Some(known(if self.is_ipv6 { &[0x86, 0xdd] } else { &[8, 0] })),
            libc::NFT_META_IIF => index(&self.input),
            libc::NFT_META_OIF => index(&self.output),
            libc::NFT_META_IIFNAME => name(&self.input),
            libc::NFT_META_OIFNAME => name(&self.output),
            libc::NFT_META_NFPROTO => {
                Some(known(&[if self.is_ipv6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 } as u8]))
            }
            libc::NFT_META_L4PROTO => Some(known(&[self.transport.protocol()])),
            _ => None,
        }
    }

    /// Returns the bytes at base, offset and length, if they are the protocol, an address, ports or an ICMPv6 type.
    fn payload(&self, [base, offset, length]: [u32; 3]) -> Option<Value> {
        /// Offsets in an IPv4 header (RFC 791) and in an IPv6 header (RFC 8200).
        const IPV4: [u32; 4] = [9, 12, 16, 20];
        const IPV6: [u32; 4] = [6, 8, 24, 40];
        let [protocol, source, destination, end] = if self.is_ipv6 { IPV6 } else { IPV4 };
        let (whole, offset) = match base.cast_signed() {
            libc::NFT_PAYLOAD_NETWORK_HEADER if offset == protocol => (known(&[self.transport.protocol()]), 0),
            libc::NFT_PAYLOAD_NETWORK_HEADER if (source..destination).contains(&offset) => {
                (self.source.value(), offset - source)
            }
            libc::NFT_PAYLOAD_NETWORK_HEADER if (destination..end).contains(&offset) => {
                (self.destination.value(), offset - destination)
            }
            libc::NFT_PAYLOAD_TRANSPORT_HEADER if offset < 4 => (Value::Known(self.transport.bytes()), offset),
            _ => return None,
        };
        match whole {
            Value::Known(bytes) => bytes.get(offset as usize..)?.get(..length as usize).map(known),
            Value::Peer => Some(Value::Peer),
        }
    }
}

impl PacketAddress {
    fn value(self) -> Value {
        match self {
            Self::Known(IpAddr::V4(address)) => known(&address.octets()),
            Self::Known(IpAddr::V6(address)) => known(&address.octets()),
            Self::Peer => Value::Peer,
        }
    }
}

fn compare(
    name: &str,
    data: &[u8],
    registers: &BTreeMap<u32, Value>,
    packet: &Packet,
) -> Result<Match, MalformedReply> {
    let value = number(data, nfta::REGISTER)?.and_then(|register| registers.get(&register));
    let operation = number(data, nfta::OPERATION)?.unwrap_or(u32::MAX).cast_signed();
    let first = data_value(data, nfta::DATA)?;
    let value = match value {
        None => return Ok(Match::Maybe),
        // `NFT_RANGE_EQ` and `NFT_RANGE_NEQ` have the same numbers.
        Some(Value::Peer) if packet.excludes_peers(&first) && operation == libc::NFT_CMP_EQ => return Ok(Match::No),
        Some(Value::Peer) if packet.excludes_peers(&first) && operation == libc::NFT_CMP_NEQ => return Ok(Match::Yes),
        Some(Value::Peer) => return Ok(Match::SomePeers),
        Some(Value::Known(value)) => value,
    };
    let against = |data: &[u8]| value.get(..data.len()).map(|value| value.cmp(data));
    let Some(order) = against(&first) else { return Ok(Match::Maybe) };
    let holds = if name == "range" {
        let Some(last) = against(&data_value(data, nfta::TO_DATA)?) else { return Ok(Match::Maybe) };
        let is_inside = order != Ordering::Less && last != Ordering::Greater;
        is_inside == (operation == libc::NFT_RANGE_EQ)
    } else {
        match operation {
            libc::NFT_CMP_EQ => order == Ordering::Equal,
            libc::NFT_CMP_NEQ => order != Ordering::Equal,
            libc::NFT_CMP_LT => order == Ordering::Less,
            libc::NFT_CMP_LTE => order != Ordering::Greater,
            libc::NFT_CMP_GT => order == Ordering::Greater,
            libc::NFT_CMP_GTE => order != Ordering::Less,
            _ => return Ok(Match::Maybe),
        }
    };
    Ok(if holds { Match::Yes } else { Match::No })
}

/// Looks a value up in a set, or in a map of verdicts.
fn look_up(
    table: &Table,
    data: &[u8],
    registers: &BTreeMap<u32, Value>,
    packet: &Packet,
) -> Result<(Match, Option<Verdict>), MalformedReply> {
    let name = attribute_string(data, nfta::LOOKUP_SET)?.unwrap_or_default();
    let value = number(data, nfta::LOOKUP_SOURCE)?.and_then(|register| registers.get(&register));
    let target = number(data, nfta::LOOKUP_TARGET)?;
    let is_inverted = number(data, nfta::LOOKUP_FLAGS)?.unwrap_or(0) & 1 != 0;
    let unknown = (Match::Maybe, target.map(|_| Verdict::Unknown));
    // A map of values loads a register, whose content is then unknown.
    let (Some(elements), None | Some(0)) = (table.sets.get(&name), target) else { return Ok(unknown) };
    let value = match value {
        None => return Ok(unknown),
        Some(Value::Peer) if target.is_none() => {
            let is_about_peers =
                elements.iter().any(|element| !element.is_interval_end && !packet.excludes_peers(&element.key));
            let is_false = !is_about_peers && !is_inverted;
            return Ok((if is_false { Match::No } else { Match::SomePeers }, None));
        }
        Some(Value::Peer) => return Ok(unknown),
        Some(Value::Known(value)) => value,
    };
    let has_intervals = elements.iter().any(|element| element.is_interval_end);
    let below = elements.iter().take_while(|element| element.key <= *value).last();
    let found = below.filter(|element| if has_intervals { !element.is_interval_end } else { element.key == *value });
    let matches = if found.is_some() != is_inverted { Match::Yes } else { Match::No };
    let verdict = found.and_then(|element| element.verdict.clone());
    Ok((matches, target.map(|_| verdict.unwrap_or(Verdict::Unknown))))
}

/// Parses a verdict, `NFT_*` or `NF_*`.
fn parse_verdict(data: &[u8]) -> Result<Option<Verdict>, MalformedReply> {
    attribute(data, nfta::DATA_VERDICT, |verdict| {
        let chain = attribute_string(verdict, nfta::VERDICT_CHAIN)?;
        Ok(match (number(verdict, nfta::VERDICT_CODE)?.map(u32::cast_signed), chain) {
            (Some(libc::NF_ACCEPT), _) => Verdict::Accept,
            (Some(libc::NFT_CONTINUE), _) => Verdict::Continue,
            (Some(libc::NF_DROP), _) => Verdict::Drop,
            (Some(libc::NFT_GOTO), Some(chain)) => Verdict::Goto(chain),
            (Some(libc::NFT_JUMP), Some(chain)) => Verdict::Jump(chain),
            (Some(libc::NFT_RETURN), _) => Verdict::Return,
            _ => Verdict::Unknown,
        })
    })
}
