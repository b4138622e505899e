//! Decoding of rules, in the forms that old and new versions of iptables-nft write.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::NlasIterator;

use super::attributes::{find, find_number, find_text, nfta};
use super::rule::{
    ACCEPT, Action, Addresses, EQUAL, JUMP, META_PROTOCOL, NETWORK_HEADER, NOT_EQUAL, NOTRACK, RANDOM_FULLY, RETURN,
    Rule, UDP, UdpPort, offsets,
};

/// `NFT_META_MARK`.
const META_MARK: u32 = 3;
/// `NFT_PAYLOAD_TRANSPORT_HEADER`.
const TRANSPORT_HEADER: u32 = 2;

impl Rule {
    /// Decodes the value of `NFTA_RULE_EXPRESSIONS`. Returns `None` for a rule that has anything else.
    pub(super) fn decode(expressions: &[u8], is_ipv6: bool) -> Option<Self> {
        Decoder::default().decode(expressions, is_ipv6)
    }
}

/// Returns the chain to which a rule jumps, whatever it matches.
pub(super) fn jump_target(expressions: &[u8]) -> Option<String> {
    expressions_of(expressions).find_map(|(name, data)| match (name.as_str(), find_verdict(&data)) {
        ("immediate", Some((_, chain))) => chain,
        _ => None,
    })
}

/// Returns name and data of each expression.
fn expressions_of(expressions: &[u8]) -> impl Iterator<Item = (String, Vec<u8>)> {
    let elements = NlasIterator::new(expressions).map_while(Result::ok);
    elements.map(|element| {
        let name = find_text(element.value(), nfta::EXPRESSION_NAME).unwrap_or_default();
        (name, find(element.value(), nfta::EXPRESSION_DATA).unwrap_or_default())
    })
}

/// Returns code and chain of a verdict.
fn find_verdict(immediate: &[u8]) -> Option<(u32, Option<String>)> {
    let verdict = find(&find(immediate, nfta::IMMEDIATE_DATA)?, nfta::DATA_VERDICT)?;
    Some((find_number(&verdict, nfta::VERDICT_CODE)?, find_text(&verdict, nfta::VERDICT_CHAIN)))
}

/// The content of the register.
#[derive(Clone, Debug, Default)]
enum Loaded {
    #[default]
    Nothing,
    Meta(u32),
    Payload {
        base: u32,
        offset: u32,
        length: u32,
    },
}

/// A rule that is partly decoded.
#[derive(Debug, Default)]
struct Decoder {
    loaded: Loaded,
    mask: Option<Vec<u8>>,
    is_udp: bool,
    source: Option<Addresses>,
    destination: Option<Addresses>,
    udp: Option<UdpPort>,
    mark: Option<(u32, u32)>,
    comment: Option<String>,
    action: Option<Action>,
}

impl Decoder {
    fn decode(mut self, expressions: &[u8], is_ipv6: bool) -> Option<Rule> {
        for (name, data) in expressions_of(expressions) {
            // Nothing follows the action.
            if self.action.is_some() {
                return None;
            }
            match name.as_str() {
                "counter" => {}
                "meta" => self.load(Loaded::Meta(find_number(&data, nfta::META_KEY)?)),
                "payload" => self.load(Loaded::Payload {
                    base: find_number(&data, nfta::PAYLOAD_BASE)?,
                    offset: find_number(&data, nfta::PAYLOAD_OFFSET)?,
                    length: find_number(&data, nfta::PAYLOAD_LENGTH)?,
                }),
                "bitwise" => {
                    let xor = find(&find(&data, nfta::BITWISE_XOR)?, nfta::DATA_VALUE)?;
                    if self.mask.is_some() || xor.iter().any(|byte| *byte != 0) {
                        return None;
                    }
                    self.mask = Some(find(&find(&data, nfta::BITWISE_MASK)?, nfta::DATA_VALUE)?);
                }
                "cmp" => {
                    let value = find(&find(&data, nfta::COMPARE_DATA)?, nfta::DATA_VALUE)?;
                    self.compare(find_number(&data, nfta::COMPARE_OPERATION)?, &value, is_ipv6)?;
                }
                "match" => self.extension(&data)?,
                "immediate" => {
                    self.action = Some(match find_verdict(&data)? {
                        (ACCEPT, None) => Action::Accept,
                        (RETURN, None) => Action::Return,
                        (JUMP, Some(chain)) => Action::Jump(chain),
                        _ => return None,
                    });
                }
                "target" => self.action = Some(target(&data, is_ipv6)?),
                _ => return None,
            }
        }
        if self.udp.is_some() != self.is_udp {
            return None;
        }
        Some(Rule {
            source: self.source,
            destination: self.destination,
            udp: self.udp,
            mark: self.mark,
            comment: self.comment,
            action: self.action?,
        })
    }

    fn load(&mut self, loaded: Loaded) {
        self.loaded = loaded;
        self.mask = None;
    }

    fn compare(&mut self, operation: u32, value: &[u8], is_ipv6: bool) -> Option<()> {
        let mask = self.mask.take();
        match std::mem::take(&mut self.loaded) {
            Loaded::Meta(META_PROTOCOL) if operation == EQUAL && mask.is_none() && value.first() == Some(&UDP) => {
                self.is_udp = true;
            }
            Loaded::Meta(META_MARK) if operation == EQUAL && self.mark.is_none() => {
                let value = u32::from_ne_bytes(value.try_into().ok()?);
                let mask = mask.map_or(Some(u32::MAX), |mask| Some(u32::from_ne_bytes(mask.try_into().ok()?)))?;
                self.mark = Some((value, mask));
            }
            Loaded::Payload { base: NETWORK_HEADER, offset, length } => {
                let network = network(value, mask, length, is_ipv6)?;
                let addresses = match operation {
                    EQUAL => Addresses::In(network),
                    NOT_EQUAL => Addresses::NotIn(network),
                    _ => return None,
                };
                let field = match offsets(is_ipv6).iter().position(|field| *field == offset)? {
                    0 => &mut self.source,
                    _ => &mut self.destination,
                };
                if field.replace(addresses).is_some() {
                    return None;
                }
            }
            Loaded::Payload { base: TRANSPORT_HEADER, offset, length: 2 } if operation == EQUAL && mask.is_none() => {
                let port = u16::from_be_bytes(value.try_into().ok()?);
                self.set_port(if offset == 0 { UdpPort::Source(port) } else { UdpPort::Destination(port) })?;
            }
            Loaded::Nothing | Loaded::Meta(_) | Loaded::Payload { .. } => return None,
        }
        Some(())
    }

    fn set_port(&mut self, port: UdpPort) -> Option<()> {
        self.udp.replace(port).is_none().then_some(())
    }

    fn extension(&mut self, data: &[u8]) -> Option<()> {
        let info = find(data, nfta::EXTENSION_INFO)?;
        let half = |index: usize| Some(u16::from_ne_bytes(*info.get(index * 2..)?.first_chunk()?));
        let word = |index: usize| Some(u32::from_ne_bytes(*info.get(index * 4..)?.first_chunk()?));
        let revision = find_number(data, nfta::EXTENSION_REVISION)?;
        match (find_text(data, nfta::EXTENSION_NAME)?.as_str(), revision) {
            ("comment", 0) => {
                let text = info.split(|byte| *byte == 0).next()?;
                self.comment = Some(std::str::from_utf8(text).ok()?.to_owned());
            }
            ("mark", 1) if self.mark.is_none() && info.get(8) == Some(&0) => self.mark = Some((word(0)?, word(1)?)),
            ("udp", 0) if info.get(8) == Some(&0) => {
                let port = match [half(0)?, half(1)?, half(2)?, half(3)?] {
                    [0, u16::MAX, port, last] if port == last => UdpPort::Destination(port),
                    [port, last, 0, u16::MAX] if port == last => UdpPort::Source(port),
                    _ => return None,
                };
                self.set_port(port)?;
            }
            _ => return None,
        }
        Some(())
    }
}

/// Returns the network of a comparison. Newer versions of iptables-nft load only the bytes of a prefix.
fn network(value: &[u8], mask: Option<Vec<u8>>, length: u32, is_ipv6: bool) -> Option<IpNet> {
    let size = if is_ipv6 { 16 } else { 4 };
    let length = usize::try_from(length).ok().filter(|length| *length <= size && *length == value.len())?;
    let whole = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(size, 0);
        address(&bytes)
    };
    let mask = mask.unwrap_or_else(|| vec![u8::MAX; length]);
    IpNet::with_netmask(whole(value)?, whole(&mask)?).ok()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Decodes the targets that this node writes.
fn target(data: &[u8], is_ipv6: bool) -> Option<Action> {
    let info = find(data, nfta::EXTENSION_INFO)?;
    let word = |index: usize| Some(u32::from_ne_bytes(*info.get(index * 4..)?.first_chunk()?));
    match find_text(data, nfta::EXTENSION_NAME)?.as_str() {
        "MASQUERADE" => match word(if is_ipv6 { 0 } else { 1 })? {
            0 => Some(Action::Masquerade { fully_random: false }),
            RANDOM_FULLY => Some(Action::Masquerade { fully_random: true }),
            _ => None,
        },
        "CT" => (u16::from_ne_bytes(*info.first_chunk()?) & NOTRACK != 0).then_some(Action::NoTrack),
        _ => None,
    }
}
