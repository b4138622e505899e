//! The expressions of a rule of nftables (linux/netfilter/nf_tables.h); numbers in them are big-endian. iptables-nft has some
//! of its own, `match` and `target`.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::net::Ipv4Addr;

use netlink_packet_core::NlasIterator;

use super::chains::{Aim, Host, Packet, Table, UNTRACKED};
use super::ruleset::number;
use crate::sys::link::error::MalformedReply;
use crate::sys::link::message::{attribute, attribute_string, sized};

/// An element of a set or map. In one of intervals it is where an interval begins or is over.
#[derive(Clone, Debug)]
pub(in crate::preflight) struct Element {
    pub(in crate::preflight) key: Vec<u8>,
    is_over: bool,
    action: Option<Action>,
}

impl Element {
    /// One of a message; `None` if it is of a kind that cannot be judged.
    pub(in crate::preflight) fn parse(element: &[u8]) -> Result<Option<Self>, MalformedReply> {
        /// `NFT_SET_ELEM_INTERVAL_END` and `NFT_SET_ELEM_CATCHALL`.
        const OVER: u32 = 1;
        const CATCHALL: u32 = 2;
        let flags = number(element, nfta::ELEMENT_FLAGS)?.unwrap_or(0);
        if flags & CATCHALL != 0 || attribute(element, nfta::ELEMENT_KEY_END, |_| Ok(()))?.is_some() {
            return Ok(None);
        }
        let action = attribute(element, nfta::DATA_OF_ELEMENT, verdict)?.flatten();
        Ok(Some(Self { key: data_value(element, nfta::ELEMENT_KEY)?, is_over: flags & OVER != 0, action }))
    }

    /// By keys. Where an interval begins as another is over, it counts.
    pub(in crate::preflight) fn sort(elements: &mut [Self]) {
        elements.sort_by(|one, other| one.key.cmp(&other.key).then(other.is_over.cmp(&one.is_over)));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::preflight) enum Truth {
    No,
    Maybe,
    Yes,
    /// If it is about a peer.
    Peer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::preflight) enum Action {
    Accept,
    Drop,
    Goto(String),
    Jump(String),
    NoTrack,
    Pass,
    Return,
    Translate,
    Unknown,
}

/// What a register holds; nothing is known of one that is missing.
#[derive(Clone, Debug)]
enum Value {
    Known(Vec<u8>),
    Peer,
}

/// `NFTA_*` of the expressions, and what they may be.
pub(in crate::preflight) mod nfta {
    pub(in crate::preflight) const EXPRESSION_NAME: u16 = 1;
    pub(in crate::preflight) const EXPRESSION_DATA: u16 = 2;
    pub(in crate::preflight) const DATA_VALUE: u16 = 1;
    pub(in crate::preflight) const DATA_VERDICT: u16 = 2;
    pub(in crate::preflight) const VERDICT_CODE: u16 = 1;
    pub(in crate::preflight) const VERDICT_CHAIN: u16 = 2;
    /// The register that `meta`, `ct`, `payload` and `immediate` load, or that `cmp` and `range` look at.
    pub(in crate::preflight) const REGISTER: u16 = 1;
    /// Of `meta` and `ct`.
    pub(in crate::preflight) const KEY: u16 = 2;
    pub(in crate::preflight) const META_SOURCE: u16 = 3;
    pub(in crate::preflight) const CT_SOURCE: u16 = 4;
    pub(in crate::preflight) const PAYLOAD: [u16; 3] = [2, 3, 4];
    pub(in crate::preflight) const PAYLOAD_SOURCE: u16 = 5;
    pub(in crate::preflight) const OPERATION: u16 = 2;
    pub(in crate::preflight) const DATA: u16 = 3;
    pub(in crate::preflight) const TO_DATA: u16 = 4;
    pub(in crate::preflight) const IMMEDIATE_DATA: u16 = 2;
    pub(in crate::preflight) const BITWISE: [u16; 2] = [1, 2];
    pub(in crate::preflight) const BITWISE_MASK: u16 = 4;
    pub(in crate::preflight) const BITWISE_XOR: u16 = 5;
    pub(in crate::preflight) const BITWISE_OPERATION: u16 = 6;
    pub(in crate::preflight) const LOOKUP_SET: u16 = 1;
    pub(in crate::preflight) const LOOKUP_SOURCE: u16 = 2;
    pub(in crate::preflight) const LOOKUP_TARGET: u16 = 3;
    pub(in crate::preflight) const LOOKUP_FLAGS: u16 = 5;
    pub(in crate::preflight) const ELEMENT_KEY: u16 = 1;
    pub(in crate::preflight) const DATA_OF_ELEMENT: u16 = 2;
    pub(in crate::preflight) const ELEMENT_FLAGS: u16 = 3;
    pub(in crate::preflight) const ELEMENT_KEY_END: u16 = 10;
    /// Of `match` and `target`.
    pub(in crate::preflight) const EXTENSION_NAME: u16 = 1;
    pub(in crate::preflight) const EXTENSION_INFO: u16 = 3;
    pub(in crate::preflight) const NAT_TYPE: u16 = 1;
}

/// Whether a rule is about the packet, and what it does then.
pub(in crate::preflight) fn judge_rule(
    table: &Table,
    expressions: &[u8],
    packet: &Packet,
    aim: Aim,
) -> Result<(Truth, Action), MalformedReply> {
    let mut registers = BTreeMap::new();
    let (mut is_certain, mut is_about_peer, mut action) = (true, false, Action::Pass);
    for element in NlasIterator::new(expressions) {
        let element = element.map_err(|_| MalformedReply::AttributeOverrun { have: expressions.len() })?;
        let name = attribute_string(element.value(), nfta::EXPRESSION_NAME)?.unwrap_or_default();
        let data = attribute(element.value(), nfta::EXPRESSION_DATA, |data| Ok(data.to_vec()))?.unwrap_or_default();
        let truth = match name.as_str() {
            "meta" | "ct" | "payload" | "immediate" | "bitwise" => {
                if let Some(verdict) = load(&name, &data, packet, &mut registers)? {
                    action = verdict;
                }
                Truth::Yes
            }
            "cmp" | "range" => compare(&name, &data, &registers, packet)?,
            "counter" | "log" | "last" => Truth::Yes,
            "match" => extension(&data, packet)?,
            "masq" => act(&mut action, Action::Translate),
            "nat" if number(&data, nfta::NAT_TYPE)? == Some(0) => act(&mut action, Action::Translate),
            "nat" | "redir" => act(&mut action, Action::Accept),
            "notrack" => act(&mut action, Action::NoTrack),
            "reject" => act(&mut action, Action::Drop),
            "target" => act(&mut action, target(&data)?),
            "lookup" => {
                let (truth, verdict) = look_up(table, &data, &registers, packet)?;
                action = verdict.unwrap_or(action);
                truth
            }
            "limit" | "quota" | "connlimit" | "fib" | "socket" | "byteorder" | "numgen" | "hash" => {
                registers.clear();
                Truth::Maybe
            }
            _ => act(&mut action, Action::Unknown),
        };
        match truth {
            Truth::No => return Ok((Truth::No, action)),
            Truth::Maybe => is_certain = false,
            Truth::Peer => is_about_peer = true,
            Truth::Yes => {}
        }
    }
    let truth = match (&action, is_about_peer) {
        (Action::Drop, true) if aim != Aim::Drop => Truth::No,
        (Action::Translate, true) => Truth::Maybe,
        _ if is_certain => Truth::Yes,
        _ => Truth::Maybe,
    };
    Ok((truth, action))
}

fn act(action: &mut Action, is: Action) -> Truth {
    *action = is;
    Truth::Yes
}

/// Loads a register, or finds a verdict.
fn load(
    name: &str,
    data: &[u8],
    packet: &Packet,
    registers: &mut BTreeMap<u32, Value>,
) -> Result<Option<Action>, MalformedReply> {
    let key = || number(data, nfta::KEY);
    let (register, value) = match name {
        // They set something, which no rule here asks for.
        "meta" if number(data, nfta::META_SOURCE)?.is_some() => return Ok(None),
        "ct" if number(data, nfta::CT_SOURCE)?.is_some() => return Ok(None),
        "payload" if number(data, nfta::PAYLOAD_SOURCE)?.is_some() => return Ok(None),
        "meta" => (number(data, nfta::REGISTER)?, packet.meta(key()?.unwrap_or(u32::MAX))),
        "ct" => (number(data, nfta::REGISTER)?, (key()? == Some(0)).then(|| known(&packet.state.to_ne_bytes()))),
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
            if let Some(verdict) = attribute(data, nfta::IMMEDIATE_DATA, verdict)?.flatten() {
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
    /// Whether no other host has an address that begins so.
    fn is_no_peer(&self, begin: &[u8]) -> bool {
        let mut octets = [0; 4];
        octets.iter_mut().zip(begin).for_each(|(octet, byte)| *octet = *byte);
        let address = Ipv4Addr::from(octets);
        address.is_multicast() || self.overlay.contains(&address)
    }

    /// By `NFT_META_*`.
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
            // NFT_META_PROTOCOL: of Ethernet.
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

    /// By base, offset and length: of the header of IPv4, of that of UDP.
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

impl Host {
    fn value(self) -> Value {
        match self {
            Self::At(address) => known(&address.octets()),
            Self::Peer => Value::Peer,
        }
    }
}

fn compare(
    name: &str,
    data: &[u8],
    registers: &BTreeMap<u32, Value>,
    packet: &Packet,
) -> Result<Truth, MalformedReply> {
    let value = number(data, nfta::REGISTER)?.and_then(|register| registers.get(&register));
    let (operation, first) = (number(data, nfta::OPERATION)?.unwrap_or(u32::MAX), data_value(data, nfta::DATA)?);
    let value = match value {
        None => return Ok(Truth::Maybe),
        Some(Value::Peer) if packet.is_no_peer(&first) && operation < 2 => {
            return Ok(if operation == 0 { Truth::No } else { Truth::Yes });
        }
        Some(Value::Peer) => return Ok(Truth::Peer),
        Some(Value::Known(value)) => value,
    };
    let against = |data: &[u8]| value.get(..data.len()).map(|value| value.cmp(data));
    let Some(order) = against(&first) else { return Ok(Truth::Maybe) };
    let holds = if name == "range" {
        let Some(last) = against(&data_value(data, nfta::TO_DATA)?) else { return Ok(Truth::Maybe) };
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
            _ => return Ok(Truth::Maybe),
        }
    };
    Ok(if holds { Truth::Yes } else { Truth::No })
}

fn data_value(attributes: &[u8], kind: u16) -> Result<Vec<u8>, MalformedReply> {
    let value = attribute(attributes, kind, |data| attribute(data, nfta::DATA_VALUE, |value| Ok(value.to_vec())))?;
    Ok(value.flatten().unwrap_or_default())
}

/// Looks a value up in a set; in a map of verdicts there is one to be found.
fn look_up(
    table: &Table,
    data: &[u8],
    registers: &BTreeMap<u32, Value>,
    packet: &Packet,
) -> Result<(Truth, Option<Action>), MalformedReply> {
    let name = attribute_string(data, nfta::LOOKUP_SET)?.unwrap_or_default();
    let value = number(data, nfta::LOOKUP_SOURCE)?.and_then(|register| registers.get(&register));
    let target = number(data, nfta::LOOKUP_TARGET)?;
    let is_inverted = number(data, nfta::LOOKUP_FLAGS)?.unwrap_or(0) & 1 != 0;
    let unknown = (Truth::Maybe, target.map(|_| Action::Unknown));
    // A map of other values than verdicts loads a register.
    let (Some(elements), None | Some(0)) = (table.sets.get(&name), target) else { return Ok(unknown) };
    let value = match value {
        None => return Ok(unknown),
        Some(Value::Peer) if target.is_none() => {
            let is_about_peers = elements.iter().any(|element| !element.is_over && !packet.is_no_peer(&element.key));
            let is_false = !is_about_peers && !is_inverted;
            return Ok((if is_false { Truth::No } else { Truth::Peer }, None));
        }
        Some(Value::Peer) => return Ok(unknown),
        Some(Value::Known(value)) => value,
    };
    let has_intervals = elements.iter().any(|element| element.is_over);
    let below = elements.iter().take_while(|element| element.key <= *value).last();
    let found = below.filter(|element| if has_intervals { !element.is_over } else { element.key == *value });
    let truth = if found.is_some() != is_inverted { Truth::Yes } else { Truth::No };
    let verdict = found.and_then(|element| element.action.clone());
    Ok((truth, target.map(|_| verdict.unwrap_or(Action::Unknown))))
}

/// `NFT_*` and `NF_*` verdicts.
fn verdict(data: &[u8]) -> Result<Option<Action>, MalformedReply> {
    attribute(data, nfta::DATA_VERDICT, |verdict| {
        let chain = attribute_string(verdict, nfta::VERDICT_CHAIN)?;
        Ok(match (number(verdict, nfta::VERDICT_CODE)?.map(u32::cast_signed), chain) {
            (Some(0), _) => Action::Drop,
            (Some(1), _) => Action::Accept,
            (Some(-1), _) => Action::Pass,
            (Some(-3), Some(chain)) => Action::Jump(chain),
            (Some(-4), Some(chain)) => Action::Goto(chain),
            (Some(-5), _) => Action::Return,
            _ => Action::Unknown,
        })
    })
}

/// A `match` of iptables.
fn extension(data: &[u8], packet: &Packet) -> Result<Truth, MalformedReply> {
    /// Places in struct `xt_conntrack_mtinfo3`, the flag that it is about the state, and one without a meaning.
    const FLAGS: usize = 146;
    const STATES: usize = 150;
    const STATE: u16 = 1;
    const ALIAS: u16 = 1 << 13;
    /// The bits of the other states are those of nftables.
    const XT_UNTRACKED: u32 = 1 << 8;
    let name = attribute_string(data, nfta::EXTENSION_NAME)?.unwrap_or_default();
    let info = attribute(data, nfta::EXTENSION_INFO, |info| Ok(info.to_vec()))?.unwrap_or_default();
    let at = |place: usize| -> Option<u16> { info.get(place..)?.first_chunk().copied().map(u16::from_ne_bytes) };
    let holds = match name.as_str() {
        "comment" => return Ok(Truth::Yes),
        "conntrack" => match (at(FLAGS), at(FLAGS + 2), at(STATES)) {
            (Some(flags), Some(invert), Some(states)) if flags & !ALIAS == STATE => {
                let state = if packet.state == UNTRACKED { XT_UNTRACKED } else { packet.state };
                (u32::from(states) & state != 0) == (invert & STATE == 0)
            }
            _ => return Ok(Truth::Maybe),
        },
        // Struct xt_udp: two ranges of ports, and a byte of what is inverted.
        "udp" => match ([0, 2, 4, 6].map(at), info.get(8)) {
            ([Some(source), Some(source_to), Some(destination), Some(destination_to)], Some(0)) => {
                (source..=source_to).contains(&packet.source_port)
                    && (destination..=destination_to).contains(&packet.destination_port)
            }
            _ => return Ok(Truth::Maybe),
        },
        _ => return Ok(Truth::Maybe),
    };
    Ok(if holds { Truth::Yes } else { Truth::No })
}

/// A `target` of iptables.
fn target(data: &[u8]) -> Result<Action, MalformedReply> {
    /// `XT_CT_NOTRACK`, of the first field of struct `xt_ct_target_info`.
    const NOTRACK: u16 = 1;
    let name = attribute_string(data, nfta::EXTENSION_NAME)?.unwrap_or_default();
    let flags = attribute(data, nfta::EXTENSION_INFO, |info| {
        sized::<2>(info.get(..2).unwrap_or_default(), nfta::EXTENSION_INFO).map(u16::from_ne_bytes)
    });
    Ok(match name.as_str() {
        "MASQUERADE" | "SNAT" => Action::Translate,
        "NOTRACK" => Action::NoTrack,
        "CT" if flags?.unwrap_or(0) & NOTRACK != 0 => Action::NoTrack,
        "REJECT" => Action::Drop,
        "CHECKSUM" | "CONNMARK" | "CT" | "LOG" | "MARK" | "NFLOG" | "TCPMSS" | "TRACE" => Action::Pass,
        _ => Action::Unknown,
    })
}
