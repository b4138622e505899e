//! What the rules of nftables make of one packet, as far as that can be told without sending it. Expressions are those of
//! linux/netfilter/nf_tables.h, numbers in them are big-endian. iptables-nft has some of its own, `match` and `target`.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::cmp::Ordering;
use core::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::NlasIterator;

use super::nftables::number;
use crate::sys::link::error::MalformedReply;
use crate::sys::link::message::{attribute, attribute_string, sized};

/// Chains that jump to each other deeper than this are not followed. The kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH: u32 = 16;
/// Rules that are looked at for one packet, at most: chains that many others jump to count each time.
const RULES: u32 = 1 << 20;
/// `NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h.
pub(super) const ESTABLISHED: u32 = 1 << 1;
pub(super) const NEW: u32 = 1 << 3;
pub(super) const UNTRACKED: u32 = 1 << 6;

/// A UDP datagram over IPv4, in front of a chain.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) source: Host,
    pub(super) destination: Host,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    /// Index and name of the interface that it came in by.
    pub(super) input: Option<(u32, String)>,
    /// The same of the one that it leaves by.
    pub(super) output: Option<(u32, String)>,
    /// Of connection tracking.
    pub(super) state: u32,
    /// No other host has an address in it.
    pub(super) overlay: Ipv4Net,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    At(Ipv4Addr),
    /// One of the other hosts, whose addresses are not known here. A rule for some addresses is taken for one that was made
    /// for them, unless it does the contrary of what is looked for.
    Peer,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    Accept,
    Drop,
    NoTrack,
    Translate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Judgement {
    Never,
    Maybe,
    Always,
}

/// The rules of one table, by their chains.
pub(super) type Rules = BTreeMap<String, Vec<Vec<u8>>>;

/// Whether a base chain with this policy does what is looked for to the packet.
pub(super) fn judge(rules: &Rules, chain: &str, drops_by_policy: bool, packet: &Packet, aim: Aim) -> Judgement {
    let mut ends = walk(rules, chain, packet, aim, DEPTH, &Cell::new(RULES));
    ends.drops |= ends.passes && drops_by_policy;
    ends.accepts |= ends.passes && !drops_by_policy;
    let (can, cannot) = match aim {
        Aim::Accept => (ends.accepts, ends.drops),
        Aim::Drop => (ends.drops, ends.accepts),
        Aim::NoTrack | Aim::Translate => (ends.acts, ends.accepts || ends.drops),
    };
    match (can, cannot) {
        (false, _) => Judgement::Never,
        (true, true) => Judgement::Maybe,
        (true, false) => Judgement::Always,
    }
}

/// Ends that the way through a chain may have.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    accepts: bool,
    drops: bool,
    /// A rule tracks not, or translates.
    acts: bool,
    /// The rules leave it to whoever called the chain.
    passes: bool,
}

fn walk(rules: &Rules, chain: &str, packet: &Packet, aim: Aim, depth: u32, left: &Cell<u32>) -> Ends {
    let anything = Ends { accepts: true, drops: true, acts: true, passes: true };
    let Some(depth) = depth.checked_sub(1) else { return anything };
    let mut ends = Ends { passes: true, ..Ends::default() };
    let mut returns = false;
    for rule in rules.get(chain).into_iter().flatten() {
        let Some(fewer) = left.get().checked_sub(1) else { return anything };
        left.set(fewer);
        // What cannot be read may be anything.
        let (truth, action) = judge_rule(rule, packet, aim).unwrap_or((Truth::Maybe, Action::Unknown));
        if truth == Truth::No {
            continue;
        }
        let mut is_end = true;
        match action {
            Action::Accept => ends.accepts = true,
            Action::Drop => ends.drops = true,
            Action::NoTrack | Action::Translate => ends.acts = true,
            Action::Return => returns = true,
            Action::Pass => is_end = false,
            Action::Jump(to) => is_end = !ends.join(walk(rules, &to, packet, aim, depth, left)),
            Action::Goto(to) => returns |= ends.join(walk(rules, &to, packet, aim, depth, left)),
            Action::Unknown => {
                ends = anything;
                is_end = false;
            }
        }
        if is_end && truth == Truth::Yes {
            ends.passes = false;
            break;
        }
    }
    ends.passes |= returns;
    ends
}

impl Ends {
    /// Takes over those of a chain that was called. Returns whether it may come back.
    fn join(&mut self, called: Self) -> bool {
        self.accepts |= called.accepts;
        self.drops |= called.drops;
        self.acts |= called.acts;
        called.passes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    No,
    Maybe,
    Yes,
    /// If it is about a peer.
    Peer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
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
mod nfta {
    pub(super) const EXPRESSION_NAME: u16 = 1;
    pub(super) const EXPRESSION_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    /// The register that `meta`, `ct`, `payload` and `immediate` load, or that `cmp` and `range` look at.
    pub(super) const REGISTER: u16 = 1;
    /// Of `meta` and `ct`.
    pub(super) const KEY: u16 = 2;
    pub(super) const META_SOURCE: u16 = 3;
    pub(super) const CT_SOURCE: u16 = 4;
    pub(super) const PAYLOAD: [u16; 3] = [2, 3, 4];
    pub(super) const PAYLOAD_SOURCE: u16 = 5;
    pub(super) const OPERATION: u16 = 2;
    pub(super) const DATA: u16 = 3;
    pub(super) const TO_DATA: u16 = 4;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const BITWISE: [u16; 2] = [1, 2];
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const BITWISE_OPERATION: u16 = 6;
    pub(super) const LOOKUP_REGISTER: u16 = 3;
    /// Of `match` and `target`.
    pub(super) const EXTENSION_NAME: u16 = 1;
    pub(super) const EXTENSION_INFO: u16 = 3;
    pub(super) const NAT_TYPE: u16 = 1;
}

fn judge_rule(expressions: &[u8], packet: &Packet, aim: Aim) -> Result<(Truth, Action), MalformedReply> {
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
            "lookup" | "limit" | "quota" | "connlimit" | "fib" | "socket" | "byteorder" | "numgen" | "hash" => {
                registers.clear();
                // A map of verdicts has one in register 0.
                if name == "lookup" && number(&data, nfta::LOOKUP_REGISTER)? == Some(0) {
                    action = Action::Unknown;
                }
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
            let verdict = attribute(data, nfta::IMMEDIATE_DATA, |data| {
                attribute(data, nfta::DATA_VERDICT, |verdict| {
                    Ok((number(verdict, nfta::VERDICT_CODE)?, attribute_string(verdict, nfta::VERDICT_CHAIN)?))
                })
            })?;
            if let Some((code, chain)) = verdict.flatten() {
                return Ok(Some(verdict_of(code, chain)));
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

/// `NFT_*` and `NF_*` verdicts.
fn verdict_of(code: Option<u32>, chain: Option<String>) -> Action {
    match (code.map(u32::cast_signed), chain) {
        (Some(0), _) => Action::Drop,
        (Some(1), _) => Action::Accept,
        (Some(-1), _) => Action::Pass,
        (Some(-3), Some(chain)) => Action::Jump(chain),
        (Some(-4), Some(chain)) => Action::Goto(chain),
        (Some(-5), _) => Action::Return,
        _ => Action::Unknown,
    }
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

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::*;
    use crate::sys::link::message::nla;

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        let name = nla(nfta::EXPRESSION_NAME, alloc::format!("{name}\0").as_bytes());
        nla(1, &[name, nla(nfta::EXPRESSION_DATA, &data.concat())].concat())
    }

    fn big(kind: u16, number: u32) -> Vec<u8> {
        nla(kind, &number.to_be_bytes())
    }

    /// `udp dport 8285 accept`, with the protocol left out.
    fn accepts_port() -> Vec<u8> {
        let verdict = nla(nfta::DATA_VERDICT, &big(nfta::VERDICT_CODE, 1));
        [
            expression("payload", &[big(1, 1), big(2, 2), big(3, 2), big(4, 2)]),
            expression("cmp", &[big(1, 1), big(2, 0), nla(3, &nla(nfta::DATA_VALUE, &8285_u16.to_be_bytes()))]),
            expression("immediate", &[big(1, 0), nla(nfta::IMMEDIATE_DATA, &verdict)]),
        ]
        .concat()
    }

    fn packet(port: u16) -> Packet {
        Packet {
            source: Host::Peer,
            destination: Host::At(Ipv4Addr::new(10, 168, 0, 2)),
            source_port: 8285,
            destination_port: port,
            input: Some((2, "eth0".into())),
            output: None,
            state: NEW,
            overlay: "100.96.0.0/16".parse().expect("a network"),
        }
    }

    fn judged(rule: Vec<u8>, port: u16) -> Judgement {
        judge(&Rules::from([("input".into(), [rule].into())]), "input", true, &packet(port), Aim::Accept)
    }

    #[test]
    fn a_rule_that_is_cut_or_changed_is_judged_without_a_panic_and_never_surely_for_another_port() {
        let rule = accepts_port();
        assert_eq!((judged(rule.clone(), 8285), judged(rule.clone(), 8286)), (Judgement::Always, Judgement::Never));
        for length in 0..rule.len() {
            let cut = rule.get(..length).expect("in range").to_vec();
            assert_ne!(judged(cut, 8285), Judgement::Always, "{length} of {} bytes", rule.len());
        }
        for bit in 0..rule.len() * 8 {
            let mut flipped = rule.clone();
            *flipped.get_mut(bit / 8).expect("in range") ^= 1 << (bit % 8);
            judged(flipped, 8285);
        }
    }

    #[test]
    fn chains_that_call_each_other_for_ever_cannot_be_judged() {
        let verdict = nla(nfta::DATA_VERDICT, &[big(1, (-3_i32).cast_unsigned()), nla(2, b"input\0")].concat());
        let jump = expression("immediate", &[big(1, 0), nla(nfta::IMMEDIATE_DATA, &verdict)]);
        assert_eq!(judged(jump.clone(), 8285), Judgement::Maybe);
        let many = Rules::from([("input".into(), alloc::vec![jump; 100])]);
        assert_eq!(judge(&many, "input", true, &packet(8285), Aim::Accept), Judgement::Maybe);
    }
}
