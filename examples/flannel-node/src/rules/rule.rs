//! A rule and its encoding.
//!
//! The encoding is the oldest one of iptables-nft, which newer versions read too: addresses are loaded whole and masked,
//! and ports, marks and comments are extensions of xtables. Older versions misread the shorter forms of newer ones, and
//! would save and restore other rules.

use std::net::IpAddr;

use ipnet::IpNet;

use super::attributes::{attribute, nested, nfta, number, text};

/// `NFT_META_L4PROTO`.
pub(super) const META_PROTOCOL: u32 = 16;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
pub(super) const NETWORK_HEADER: u32 = 1;
pub(super) const UDP: u8 = 17;
/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
pub(super) const EQUAL: u32 = 0;
pub(super) const NOT_EQUAL: u32 = 1;
/// Verdicts: `NF_ACCEPT`, `NFT_RETURN`, `NFT_JUMP`.
pub(super) const ACCEPT: u32 = 1;
pub(super) const RETURN: u32 = (-5_i32).cast_unsigned();
pub(super) const JUMP: u32 = (-3_i32).cast_unsigned();
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
pub(super) const RANDOM_FULLY: u32 = 1 << 4;
/// `XT_CT_NOTRACK`, and the flag by which iptables lists the target as `NOTRACK` (`XT_CT_NOTRACK_ALIAS`).
pub(super) const NOTRACK: u16 = 1;
const NOTRACK_ALIAS: u16 = 1 << 1;

/// A rule: matches, a comment and what happens with the packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) source: Option<Addresses>,
    pub(super) destination: Option<Addresses>,
    pub(super) udp: Option<UdpPort>,
    /// Value and mask.
    pub(super) mark: Option<(u32, u32)>,
    pub(super) comment: Option<String>,
    pub(super) action: Action,
}

/// The addresses of a network, or all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addresses {
    In(IpNet),
    NotIn(IpNet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UdpPort {
    Source(u16),
    Destination(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Jump(String),
    Masquerade { fully_random: bool },
    NoTrack,
    Return,
}

impl Addresses {
    pub(super) const fn network(self) -> IpNet {
        match self {
            Self::In(network) | Self::NotIn(network) => network,
        }
    }
}

impl Rule {
    /// Returns a rule for all packets.
    pub(super) fn new(comment: &str, action: Action) -> Self {
        Self { source: None, destination: None, udp: None, mark: None, comment: Some(comment.to_owned()), action }
    }

    pub(super) fn from(self, source: Addresses) -> Self {
        Self { source: Some(source), ..self }
    }

    pub(super) fn to(self, destination: Addresses) -> Self {
        Self { destination: Some(destination), ..self }
    }

    pub(super) fn with_udp(self, port: UdpPort) -> Self {
        Self { udp: Some(port), ..self }
    }

    pub(super) fn with_mark(self, value: u32, mask: u32) -> Self {
        Self { mark: Some((value, mask)), ..self }
    }

    /// Returns the attributes `NFTA_RULE_EXPRESSIONS` and, if the rule names a protocol, `NFTA_RULE_COMPAT`.
    pub(super) fn encode(&self, is_ipv6: bool) -> Vec<u8> {
        let mut expressions = Vec::new();
        for (addresses, offset) in [self.source, self.destination].into_iter().zip(offsets(is_ipv6)) {
            expressions.extend(addresses.into_iter().flat_map(|addresses| encode_addresses(addresses, offset)));
        }
        if let Some(port) = self.udp {
            let protocol = [number(nfta::META_KEY, META_PROTOCOL), number(nfta::REGISTER, 1)];
            expressions.extend([expression("meta", &protocol), compare(EQUAL, &[UDP])]);
            // Struct xt_udp: two ranges of ports, a byte of inversion flags.
            let any = (0, u16::MAX);
            let (source, destination) = match port {
                UdpPort::Source(port) => ((port, port), any),
                UdpPort::Destination(port) => (any, (port, port)),
            };
            let ports = [source.0, source.1, destination.0, destination.1].map(u16::to_ne_bytes).concat();
            expressions.push(extension("match", "udp", 0, &ports, 16));
        }
        if let Some((value, mask)) = self.mark {
            // Struct xt_mark_mtinfo1, without inversion.
            let info = [value, mask].map(u32::to_ne_bytes).concat();
            expressions.push(extension("match", "mark", 1, &info, 16));
        }
        if let Some(comment) = &self.comment {
            // Struct xt_comment_info.
            expressions.push(extension("match", "comment", 0, comment.as_bytes(), 256));
        }
        let zeros = [0; 8];
        expressions.push(expression(
            "counter",
            &[attribute(nfta::COUNTER_BYTES, &zeros), attribute(nfta::COUNTER_PACKETS, &zeros)],
        ));
        expressions.push(self.action.encode(is_ipv6));
        let compat = self.udp.map(|_| {
            nested(nfta::RULE_COMPAT, &[number(nfta::COMPAT_PROTOCOL, UDP.into()), number(nfta::COMPAT_FLAGS, 0)])
        });
        [nested(nfta::RULE_EXPRESSIONS, &expressions), compat.unwrap_or_default()].concat()
    }
}

impl Action {
    fn encode(&self, is_ipv6: bool) -> Vec<u8> {
        match self {
            Self::Accept => verdict(ACCEPT, None),
            Self::Return => verdict(RETURN, None),
            Self::Jump(chain) => verdict(JUMP, Some(chain)),
            Self::Masquerade { fully_random } => {
                let flags = if *fully_random { RANDOM_FULLY } else { 0 };
                // Struct nf_nat_range for IPv6; struct nf_nat_ipv4_multi_range_compat, with one range, for IPv4.
                if is_ipv6 {
                    extension("target", "MASQUERADE", 0, &flags.to_ne_bytes(), 40)
                } else {
                    extension("target", "MASQUERADE", 0, &[1, flags].map(u32::to_ne_bytes).concat(), 24)
                }
            }
            // Struct xt_ct_target_info_v1.
            Self::NoTrack => extension("target", "CT", 2, &(NOTRACK | NOTRACK_ALIAS).to_ne_bytes(), 72),
        }
    }
}

/// Returns the offsets of source and destination in a header (RFC 791, RFC 8200).
pub(super) const fn offsets(is_ipv6: bool) -> [u32; 2] {
    if is_ipv6 { [8, 24] } else { [12, 16] }
}

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    nested(nfta::LIST_ELEMENT, &[text(nfta::EXPRESSION_NAME, name), nested(nfta::EXPRESSION_DATA, data)])
}

fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    nested(kind, &[attribute(nfta::DATA_VALUE, value)])
}

fn compare(operation: u32, value: &[u8]) -> Vec<u8> {
    let parts =
        [number(nfta::REGISTER, 1), number(nfta::COMPARE_OPERATION, operation), data(nfta::COMPARE_DATA, value)];
    expression("cmp", &parts)
}

/// Returns an extension of xtables. Its data has the size of the kernel's struct, aligned to 8 bytes.
fn extension(kind: &str, name: &str, revision: u32, info: &[u8], size: usize) -> Vec<u8> {
    let mut info = info.to_vec();
    info.resize(size, 0);
    let parts = [
        text(nfta::EXTENSION_NAME, name),
        number(nfta::EXTENSION_REVISION, revision),
        attribute(nfta::EXTENSION_INFO, &info),
    ];
    expression(kind, &parts)
}

fn verdict(code: u32, chain: Option<&str>) -> Vec<u8> {
    let chain = chain.map(|chain| text(nfta::VERDICT_CHAIN, chain)).unwrap_or_default();
    let verdict = nested(nfta::DATA_VERDICT, &[number(nfta::VERDICT_CODE, code), chain]);
    expression("immediate", &[number(nfta::REGISTER, 0), nested(nfta::IMMEDIATE_DATA, &[verdict])])
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn encode_addresses(addresses: Addresses, offset: u32) -> Vec<Vec<u8>> {
    let network = addresses.network();
    let mask = octets(network.netmask());
    let length = u32::from(network.max_prefix_len()) / 8;
    let mut expressions = vec![expression(
        "payload",
        &[
            number(nfta::REGISTER, 1),
            number(nfta::PAYLOAD_BASE, NETWORK_HEADER),
            number(nfta::PAYLOAD_OFFSET, offset),
            number(nfta::PAYLOAD_LENGTH, length),
        ],
    )];
    if network.prefix_len() < network.max_prefix_len() {
        expressions.push(expression(
            "bitwise",
            &[
                number(nfta::REGISTER, 1),
                number(nfta::BITWISE_TARGET, 1),
                number(nfta::BITWISE_LENGTH, length),
                data(nfta::BITWISE_MASK, &mask),
                data(nfta::BITWISE_XOR, &vec![0; mask.len()]),
            ],
        ));
    }
    let operation = if matches!(addresses, Addresses::In(_)) { EQUAL } else { NOT_EQUAL };
    expressions.push(compare(operation, &octets(network.network())));
    expressions
}
