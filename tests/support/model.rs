//! A model of the forwarder from `docs/conformance.md`: slow, allocating, and with a parser of its own.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use loden::forward::{
    DropReason, ForwarderConfig, IcmpSource, Icmpv6Source, PeerCheck, RejectReason, ReplyTo, SourceCheck, SourceRoutes,
    Transit, TtlPolicy,
};

use super::host::{Host, Outcome, holds};
use super::packet::{ICMP, UDP, address_at, ones_sum};
use super::packet_v6::{ICMPV6, hop_limit, is_v6, upper, with_hop_limit};

/// A packet that passed sections A and B, without its trailer.
struct Packet<'a> {
    bytes: &'a [u8],
    header: usize,
    source: IpAddr,
    destination: IpAddr,
}

pub fn encapsulate(host: &Host, bytes: &[u8]) -> Outcome {
    let config = host.config();
    let packet = match Packet::check(bytes, config) {
        Ok(packet) => packet,
        Err(reason) => return Outcome::Drop(reason),
    };
    let from = match (packet.destination, config.icmp_source, config.icmpv6_source) {
        (IpAddr::V4(_), IcmpSource::Fixed(address), _) => address.into(),
        (IpAddr::V4(_), IcmpSource::OffenderDestination, _) => packet.destination,
        (IpAddr::V6(_), _, Icmpv6Source::Fixed(address)) => address.into(),
        (IpAddr::V6(_), _, Icmpv6Source::TunAddress) => tun_address_v6(config).into(),
        (_, other, other_v6) => panic!("the list knows no {other:?} or {other_v6:?}"),
    };
    let reject = |reason| packet.reject(host, reason, Some((from, ReplyTo::Tun)));
    let Some(route) = host.naive_route(packet.destination) else { return reject(RejectReason::NetUnreachable) };
    if route.next_hop.ip() == packet.destination || packet.is_for_a_tunnel_socket(host) {
        return Outcome::Drop(DropReason::Loop);
    }
    let ttl = match (packet.ttl(), config.ttl) {
        (0, _) => return Outcome::Drop(DropReason::TtlZero),
        (ttl, TtlPolicy::Preserve) => ttl,
        (1, _) => return reject(RejectReason::TimeExceeded),
        (ttl, _) => ttl - 1,
    };
    let mtu = host.mtu_to(route);
    if packet.bytes.len() > usize::from(mtu) {
        if is_v6(packet.bytes) {
            return match packet.bytes.len() {
                ..=1280 => Outcome::Drop(DropReason::BelowIpv6Minimum),
                _ => reject(RejectReason::FragmentationNeeded { mtu: mtu.max(1280) }),
            };
        }
        if packet.bytes[6] & 0x40 != 0 {
            return reject(RejectReason::FragmentationNeeded { mtu });
        }
        return match fragments(&packet.with_ttl(ttl), mtu.into()) {
            Some(pieces) => Outcome::Fragments { to: route.next_hop, pieces },
            None => Outcome::Drop(DropReason::NotFragmented),
        };
    }
    Outcome::Forward { to: Some(route.next_hop), bytes: packet.with_ttl(ttl) }
}

pub fn decapsulate(host: &Host, bytes: &[u8], from: SocketAddr) -> Outcome {
    let config = host.config();
    let peer = match from.ip() {
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(from.ip(), IpAddr::V4),
        IpAddr::V4(_) => from.ip(),
    };
    let by_address = host.routes.iter().any(|route| route.next_hop.ip() == peer);
    let by_port = host.routes.iter().any(|route| route.next_hop == SocketAddr::new(peer, from.port()));
    let is_known = match config.peer_check {
        PeerCheck::Address => by_address,
        PeerCheck::AddressPort => by_port,
        PeerCheck::Off => true,
        other => panic!("the list knows no {other:?}"),
    };
    if !is_known {
        return Outcome::Drop(DropReason::UnknownPeer);
    }
    let packet = match Packet::check(bytes, config) {
        Ok(packet) => packet,
        Err(reason) => return Outcome::Drop(reason),
    };
    let next_hop = |address| host.naive_route(address).map(|route| route.next_hop);
    let origin = next_hop(packet.source);
    let leads_to_peer = match config.peer_check {
        PeerCheck::AddressPort => origin == Some(SocketAddr::new(peer, from.port())),
        PeerCheck::Off => origin.is_some(),
        PeerCheck::Address => origin.is_some_and(|hop| hop.ip() == peer),
        other => panic!("the list knows no {other:?}"),
    };
    let may_send = match config.source_check {
        SourceCheck::Strict => by_address && peer == packet.source || leads_to_peer && !owns(config, packet.source),
        SourceCheck::Off => config.peer_check != PeerCheck::Off || by_address || origin.is_some(),
        other => panic!("the list knows no {other:?}"),
    };
    if !may_send {
        return Outcome::Drop(DropReason::SpoofedSource);
    }
    if packet.is_for_a_tunnel_socket(host) {
        return Outcome::Drop(DropReason::Loop);
    }
    if !owns(config, packet.destination) {
        let hop = next_hop(packet.destination);
        let back = match (config.peer_check, origin) {
            (PeerCheck::AddressPort, _) => hop == Some(SocketAddr::new(peer, from.port())),
            (PeerCheck::Off, Some(origin)) => hop == Some(origin),
            _ => hop.map(|hop| hop.ip()) == Some(peer),
        };
        if config.transit == Transit::Refused || back {
            return Outcome::Drop(DropReason::ForeignDestination);
        }
        if hop.map(|hop| hop.ip()) == Some(packet.destination) {
            return Outcome::Drop(DropReason::Loop);
        }
    }
    match (packet.ttl(), config.ttl) {
        (0, _) => Outcome::Drop(DropReason::TtlZero),
        (1, TtlPolicy::BothEnds) => {
            let tun = match packet.source {
                IpAddr::V4(_) => config.host.subnet_v4().unwrap().network().into(),
                IpAddr::V6(_) => tun_address_v6(config).into(),
            };
            let answer = next_hop(packet.source).map(|hop| (tun, ReplyTo::Peer(hop)));
            packet.reject(host, RejectReason::TimeExceeded, answer)
        }
        (ttl, TtlPolicy::BothEnds) => Outcome::Forward { to: None, bytes: packet.with_ttl(ttl - 1) },
        (_, _) => Outcome::Forward { to: None, bytes: packet.bytes.to_vec() },
    }
}

fn owns(config: &ForwarderConfig, address: IpAddr) -> bool {
    config.host.subnets().iter().any(|subnet| holds(*subnet, address))
}

/// Returns the address of V33: the highest that RFC 2526 does not reserve.
fn tun_address_v6(config: &ForwarderConfig) -> Ipv6Addr {
    let subnet = config.host.subnet_v6().unwrap();
    assert!(subnet.prefix_len() <= 120, "the tests have large subnets");
    Ipv6Addr::from_bits(subnet.network().to_bits() | ((u128::MAX >> subnet.prefix_len()) - 128))
}

/// Returns the fragments of a packet (R51). Each unit of 8 bytes is assigned first, then the packets are built field by
/// field. Returns `None` if 8 bytes do not fit, or an offset does not fit 13 bits.
pub fn fragments(packet: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let (head, payload) = packet.split_at(usize::from(packet[0] & 15) * 4);
    let copied = copied_options(&head[20..]);
    let later = 20 + copied.len().next_multiple_of(4);
    let mut cuts = vec![0];
    while payload.len() - cuts[cuts.len() - 1] > mtu.checked_sub(if cuts.len() == 1 { head.len() } else { later })? {
        let room = mtu - if cuts.len() == 1 { head.len() } else { later };
        if room < 8 {
            return None;
        }
        cuts.push(cuts[cuts.len() - 1] + room / 8 * 8);
    }
    cuts.push(payload.len());
    let word = u16::from_be_bytes([packet[6], packet[7]]);
    let (reserved, more, offset) = (word & 0x8000, word & 0x2000, usize::from(word & 0x1fff));
    if offset * 8 + payload.len() > 65_536 {
        return None;
    }
    let piece = |index: usize| {
        let more = if index + 2 < cuts.len() { 0x2000 } else { more };
        let piece = super::packet::Ipv4 {
            tos: packet[1],
            id: u16::from_be_bytes([packet[4], packet[5]]),
            fragment: reserved | more | (offset + cuts[index] / 8) as u16,
            ttl: packet[8],
            protocol: packet[9],
            options: if index == 0 { head[20..].to_vec() } else { copied.clone() },
            payload: payload[cuts[index]..cuts[index + 1]].to_vec(),
            ..super::packet::Ipv4::new(address_at(packet, 12), address_at(packet, 16))
        };
        piece.bytes()
    };
    Some((0..cuts.len() - 1).map(piece).collect())
}

/// Returns the options that RFC 791 copies into every fragment: those of kind 128 and more.
fn copied_options(mut options: &[u8]) -> Vec<u8> {
    let mut copied = Vec::new();
    while let [kind @ 1..=255, rest @ ..] = options {
        let len = if *kind == 1 { 1 } else { usize::from(rest[0]) };
        if *kind >= 128 {
            copied.extend(&options[..len]);
        }
        options = &options[len..];
    }
    copied
}

impl<'a> Packet<'a> {
    /// Checks header and addresses, in the order at the top of the list.
    fn check(bytes: &'a [u8], config: &ForwarderConfig) -> Result<Self, DropReason> {
        if bytes.len() < 20 {
            return Err(DropReason::TooShort);
        }
        let (header, total) = (usize::from(bytes[0] & 15) * 4, usize::from(bytes[2]) * 256 + usize::from(bytes[3]));
        let (source, destination) = (address_at(bytes, 12), address_at(bytes, 16));
        let carries = |ipv6| config.host.subnets().iter().any(|subnet| subnet.addr().is_ipv6() == ipv6);
        match bytes[0] >> 4 {
            6 if carries(true) => return Self::check_v6(bytes, config),
            4 if !carries(false) => return Err(DropReason::Ipv4NotCarried),
            _ => {}
        }
        let checks = [
            (bytes[0] >> 4 == 6, DropReason::Ipv6NotCarried),
            (bytes[0] >> 4 != 4, DropReason::BadVersion),
            (header < 20, DropReason::BadHeaderLength),
            (header > bytes.len(), DropReason::HeaderTruncated),
            (total < header, DropReason::BadTotalLength),
            (total > bytes.len(), DropReason::Truncated),
            (ones_sum(&bytes[..header.min(bytes.len())]) != 0xffff, DropReason::BadChecksum),
        ];
        if let Some((_, reason)) = checks.iter().find(|(fails, _)| *fails) {
            return Err(*reason);
        }
        let kinds = option_kinds(&bytes[20..header]).ok_or(DropReason::BadOption)?;
        let source_route = kinds.iter().any(|kind| [131, 137].contains(kind));
        if source_route && config.source_routes == SourceRoutes::Dropped {
            return Err(DropReason::SourceRoute);
        }
        let begins = |address: Ipv4Addr, first: u8, len: u32| {
            address.to_bits() >> (32 - len) == u32::from(first) << 24 >> (32 - len)
        };
        let network = config.host.network_v4().unwrap().addr();
        let len = config.host.network_v4().unwrap().prefix_len();
        let carried = len >= 4 && begins(network, 240, 4) || len >= 16 && network.octets()[..2] == [169, 254];
        let own = |address| {
            carried && holds(config.host.network_v4().unwrap().into(), address) && address != Ipv4Addr::BROADCAST
        };
        let within = |address, nets: &[(u8, u32)]| {
            !own(address) && nets.iter().any(|(first, len)| begins(address, *first, *len))
        };
        let link_local = |address: Ipv4Addr| address.octets()[..2] == [169, 254] && !own(address);
        let checks = [
            (within(source, &[(0, 8), (127, 8), (224, 4), (240, 4)]), DropReason::MartianSource),
            (link_local(source), DropReason::LinkLocal),
            (destination == Ipv4Addr::BROADCAST, DropReason::BroadcastDestination),
            (within(destination, &[(0, 8), (127, 8), (240, 4)]), DropReason::MartianDestination),
            (within(destination, &[(224, 4)]), DropReason::MulticastDestination),
            (link_local(destination), DropReason::LinkLocal),
        ];
        match checks.iter().find(|(fails, _)| *fails) {
            Some((_, reason)) => Err(*reason),
            None => Ok(Self { bytes: &bytes[..total], header, source: source.into(), destination: destination.into() }),
        }
    }

    /// Checks V1 to V10.
    fn check_v6(bytes: &'a [u8], config: &ForwarderConfig) -> Result<Self, DropReason> {
        if bytes.len() < 40 {
            return Err(DropReason::TooShort);
        }
        let payload = usize::from(bytes[4]) * 256 + usize::from(bytes[5]);
        let total = 40 + payload;
        if total > bytes.len() {
            return Err(DropReason::Truncated);
        }
        if payload == 0 && bytes[6] == 0 {
            return Err(DropReason::Jumbogram);
        }
        let bytes = &bytes[..total];
        if has_type_0_routing(bytes) && config.source_routes == SourceRoutes::Dropped {
            return Err(DropReason::SourceRoute);
        }
        let address = |at: usize| -> [u8; 16] { bytes[at..at + 16].try_into().unwrap() };
        let (source, destination) = (address(8), address(24));
        let begins = |address: [u8; 16], with: &[u8]| address.starts_with(with);
        let nobody = |address: [u8; 16]| {
            let mapped = [&[0; 10][..], &[0xff; 2]].concat();
            address[..15] == [0; 15] && address[15] <= 1 || begins(address, &mapped)
        };
        let link_local = |address: [u8; 16]| address[0] == 0xfe && address[1] & 0xc0 == 0x80;
        let checks = [
            (begins(destination, &[0xff]), DropReason::Ipv6Multicast),
            (nobody(source) || begins(source, &[0xff]), DropReason::MartianSource),
            (link_local(source), DropReason::LinkLocal),
            (nobody(destination), DropReason::MartianDestination),
            (link_local(destination), DropReason::LinkLocal),
        ];
        match checks.iter().find(|(fails, _)| *fails) {
            Some((_, reason)) => Err(*reason),
            None => {
                let (source, destination) = (Ipv6Addr::from(source).into(), Ipv6Addr::from(destination).into());
                Ok(Self { bytes, header: 40, source, destination })
            }
        }
    }

    fn ttl(&self) -> u8 {
        hop_limit(self.bytes)
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[self.header..]
    }

    fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes([self.bytes[6] & 0x1f, self.bytes[7]])
    }

    /// Returns the packet with another TTL. With the same TTL it keeps its checksum, even 0xFFFF.
    fn with_ttl(&self, ttl: u8) -> Vec<u8> {
        if ttl == self.ttl() { self.bytes.to_vec() } else { with_hop_limit(self.bytes, ttl) }
    }

    /// Returns whether a packet is UDP to this host's socket or to a next hop's (fault 6).
    fn is_for_a_tunnel_socket(&self, host: &Host) -> bool {
        let Some(upper) = upper(self.bytes) else { return false };
        let payload = &self.bytes[upper.at..];
        if upper.protocol != UDP || upper.fragment.is_some_and(|(offset, _)| offset != 0) || payload.len() < 4 {
            return false;
        }
        let socket = SocketAddr::new(self.destination, u16::from_be_bytes([payload[2], payload[3]]));
        host.config().host.underlays().contains(&socket) || host.routes.iter().any(|route| route.next_hop == socket)
    }

    /// Returns a reject, with its ICMP error if the rules permit one.
    fn reject(&self, host: &Host, reason: RejectReason, answer: Option<(IpAddr, ReplyTo)>) -> Outcome {
        let barred = if is_v6(self.bytes) { self.is_barred_v6() } else { self.is_barred(host) };
        let answer = answer.filter(|_| !barred);
        let write = |(from, to)| (to, self.icmp_error(reason, from, host.config().icmp_ttl));
        Outcome::Reject { reason, answer: answer.map(write) }
    }

    /// Returns true if V16 forbids an error.
    fn is_barred_v6(&self) -> bool {
        match upper(self.bytes) {
            None => true,
            Some(upper) if upper.fragment.is_some_and(|(offset, _)| offset != 0) => false,
            Some(upper) if upper.protocol == ICMPV6 => !matches!(self.bytes.get(upper.at), Some(128..=136 | 138..=255)),
            Some(_) => false,
        }
    }

    /// Returns true if R36 to R40 forbid an error.
    fn is_barred(&self, host: &Host) -> bool {
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (self.source, self.destination) else { return true };
        let broadcast = |address: Ipv4Addr| {
            let last = |net: loden::ipnet::IpNet| net.prefix_len() < 31 && net.broadcast() == IpAddr::V4(address);
            let config = host.config();
            let routed = host.naive_route(address).is_some_and(|route| last(route.subnet));
            last(config.host.network_v4().unwrap().into()) || last(config.host.subnet_v4().unwrap().into()) || routed
        };
        let known_query = matches!(self.payload().first(), Some(0 | 8 | 9 | 10 | 13 | 14 | 15 | 16 | 17 | 18));
        self.fragment_offset() != 0
            || broadcast(destination)
            || broadcast(source)
            || self.bytes[9] == ICMP && !known_query
    }

    fn icmp_error(&self, reason: RejectReason, from: IpAddr, ttl: u8) -> Vec<u8> {
        match (from, self.source) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.icmpv4_error(reason, from, to, ttl),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.icmpv6_error(reason, from, to, ttl),
            other => panic!("an error from and to {other:?}"),
        }
    }

    fn icmpv6_error(&self, reason: RejectReason, from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
        let (kind, rest) = match reason {
            RejectReason::NetUnreachable => (1, 0u32),
            RejectReason::FragmentationNeeded { mtu } => (2, mtu.into()),
            RejectReason::TimeExceeded => (3, 0),
            other => panic!("the list knows no {other:?}"),
        };
        let mut message = [&[kind, 0, 0, 0][..], &rest.to_be_bytes()].concat();
        message.extend(self.bytes.iter().take(1280 - 48));
        let pseudo = [&from.octets()[..], &to.octets(), &(message.len() as u32).to_be_bytes(), &[0, 0, 0, ICMPV6]];
        let checksum = !ones_sum(&[&pseudo.concat(), &message[..]].concat());
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let answer = super::packet_v6::Ipv6 {
            flow_label: 0,
            hop_limit,
            protocol: ICMPV6,
            payload: message,
            ..super::packet_v6::Ipv6::new(from, to)
        };
        answer.bytes()
    }

    fn icmpv4_error(&self, reason: RejectReason, from: Ipv4Addr, to: Ipv4Addr, ttl: u8) -> Vec<u8> {
        let (kind, code, mtu) = match reason {
            RejectReason::NetUnreachable => (3, 0, 0),
            RejectReason::FragmentationNeeded { mtu } => (3, 4, mtu),
            RejectReason::TimeExceeded => (11, 0, 0),
            other => panic!("the list knows no {other:?}"),
        };
        let mut message = vec![kind, code, 0, 0, 0, 0, (mtu >> 8) as u8, mtu as u8];
        message.extend(self.bytes.iter().take(576 - 28));
        let checksum = !ones_sum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let answer = super::packet::Ipv4 {
            tos: 0xc0 | self.bytes[1] & 0x1c,
            id: 0,
            fragment: super::packet::DF,
            ttl,
            protocol: ICMP,
            payload: message,
            ..super::packet::Ipv4::new(from, to)
        };
        answer.bytes()
    }
}

/// Returns the kinds of all options up to the end marker; `None` if one does not fit.
pub fn option_kinds(mut options: &[u8]) -> Option<Vec<u8>> {
    let mut kinds = Vec::new();
    while let [kind @ 1..=255, rest @ ..] = options {
        kinds.push(*kind);
        options = match (*kind, rest) {
            (1, rest) => rest,
            (_, [len @ 2..=255, ..]) => options.get(usize::from(*len)..)?,
            _ => return None,
        };
    }
    Some(kinds)
}

/// Returns true if a routing header of type 0 is within reach (V6): among the first eight extension headers, with its
/// type inside the packet.
fn has_type_0_routing(packet: &[u8]) -> bool {
    let (mut kind, mut at) = (packet[6], 40);
    for _ in 0..8 {
        let header = &packet[at..];
        if kind == 43 && header.get(2) == Some(&0) {
            return true;
        }
        let len = match kind {
            44 => 8,
            51 => 4 * (2 + header.get(1).copied().map_or(0, usize::from)),
            0 | 43 | 60 | 135 | 139 | 140 => 8 * (1 + header.get(1).copied().map_or(0, usize::from)),
            _ => return false,
        };
        let is_later = kind == 44 && header.len() >= 4 && (header[2] != 0 || header[3] >> 3 != 0);
        if header.len() < len.max(4) || is_later {
            return false;
        }
        (kind, at) = (header[0], at + len);
    }
    false
}
