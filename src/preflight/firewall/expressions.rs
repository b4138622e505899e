//! Evaluation of the expressions of one nftables rule for one packet.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::Ipv4Addr;

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

/// The answer to whether an expression or a rule matches a packet.
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
        "ct" => (number(data, nfta::REGISTER)?, (key()? == Some(0)).then(|| known(&packet.ct_state.to_ne_bytes()))),
        "payload" => {
            let mut place = [0; 3];
            for (place, kind) in place.iter_mut().zip(nfta::PAYLOAD) {
                *place = number(data, kind)?.unwrap_or(u32::MAX);
            }
            (number(data, nfta::REGISTER)?, packet.payload(place))
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
    fn excludes_peers(&self, begin: &[u8]) -> bool {
        let mut octets = [0; 4];
        octets.iter_mut().zip(begin).for_each(|(octet, byte)| *octet = *byte);
        let address = Ipv4Addr::from(octets);
        address.is_multicast() || self.overlay.contains(&address)
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
        match key {
            // NFT_META_PROTOCOL is the EtherType.
            1 => Some(known(&[8, 0])),
            4 => index(&self.input),
            5 => index(&self.output),
            6 => name(&self.input),
            7 => name(&self.output),
            15 => Some(known(&[libc::NFPROTO_IPV4 as u8])),
            16 => Some(known(&[libc::IPPROTO_UDP as u8])),
            _ => None,
        }
    }

    /// Returns the bytes at base, offset and length. Base 1 is the IPv4 header, base 2 the UDP header.
    fn payload(&self, [base, offset, length]: [u32; 3]) -> Option<Value> {
        let (whole, offset) = match (base, offset) {
            (1, 9) => (known(&[libc::IPPROTO_UDP as u8]), 0),
            (1, 12..16) => (self.source.value(), offset - 12),
            (1, 16..20) => (self.destination.value(), offset - 16),
            (2, 0..4) => {
                let ports = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat();
                (Value::Known(ports), offset)
            }
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
            Self::Known(address) => known(&address.octets()),
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
    let (operation, first) = (number(data, nfta::OPERATION)?.unwrap_or(u32::MAX), data_value(data, nfta::DATA)?);
    let value = match value {
        None => return Ok(Match::Maybe),
        Some(Value::Peer) if packet.excludes_peers(&first) && operation < 2 => {
            return Ok(if operation == 0 { Match::No } else { Match::Yes });
        }
        Some(Value::Peer) => return Ok(Match::SomePeers),
        Some(Value::Known(value)) => value,
    };
    let against = |data: &[u8]| value.get(..data.len()).map(|value| value.cmp(data));
    let Some(order) = against(&first) else { return Ok(Match::Maybe) };
    let holds = if name == "range" {
        let Some(last) = against(&data_value(data, nfta::TO_DATA)?) else { return Ok(Match::Maybe) };
        let is_inside = order != Ordering::Less && last != Ordering::Greater;
        is_inside == (operation == 0)
    } else {
        match operation {
            0 => order == Ordering::Equal,
            1 => order != Ordering::Equal,
            2 => order == Ordering::Less,
            3 => order != Ordering::Greater,
            4 => order == Ordering::Greater,
            5 => order != Ordering::Less,
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
            (Some(0), _) => Verdict::Drop,
            (Some(1), _) => Verdict::Accept,
            (Some(-1), _) => Verdict::Continue,
            (Some(-3), Some(chain)) => Verdict::Jump(chain),
            (Some(-4), Some(chain)) => Verdict::Goto(chain),
            (Some(-5), _) => Verdict::Return,
            _ => Verdict::Unknown,
        })
    })
}
