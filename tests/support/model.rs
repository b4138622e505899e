//! A model of the forwarder from `docs/conformance.md`: slow, allocating, and with a parser of its own.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use loden::forward::{
    DropReason, ForwarderConfig, IcmpSource, PeerCheck, RejectReason, ReplyTo, SourceCheck, SourceRoutes, Transit,
    TtlPolicy,
};

use super::host::{Host, Outcome, holds};
use super::packet::{ICMP, UDP, address_at, ones_sum, with_ttl};

/// A packet that passed sections A and B, without its trailer.
struct Packet<'a> {
    bytes: &'a [u8],
    header: usize,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

pub fn encapsulate(host: &Host, bytes: &[u8]) -> Outcome {
    let config = host.config();
    let packet = match Packet::check(bytes, config) {
        Ok(packet) => packet,
        Err(reason) => return Outcome::Drop(reason),
    };
    let from = match config.icmp_source {
        IcmpSource::Fixed(address) => address,
        IcmpSource::OffenderDestination => packet.destination,
        other => panic!("the list knows no {other:?}"),
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
    let mtu = route.mtu.unwrap_or(config.mtu).min(config.mtu).get();
    if packet.bytes.len() > usize::from(mtu) {
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
        SourceCheck::Strict => {
            by_address && peer == packet.source
                || leads_to_peer && !holds(config.host.subnet_v4().unwrap().into(), packet.source)
        }
        SourceCheck::Off => config.peer_check != PeerCheck::Off || by_address || origin.is_some(),
        other => panic!("the list knows no {other:?}"),
    };
    if !may_send {
        return Outcome::Drop(DropReason::SpoofedSource);
    }
    if packet.is_for_a_tunnel_socket(host) {
        return Outcome::Drop(DropReason::Loop);
    }
    if !holds(config.host.subnet_v4().unwrap().into(), packet.destination) {
        let hop = next_hop(packet.destination);
        let back = match (config.peer_check, origin) {
            (PeerCheck::AddressPort, _) => hop == Some(SocketAddr::new(peer, from.port())),
            (PeerCheck::Off, Some(origin)) => hop == Some(origin),
            _ => hop.map(|hop| hop.ip()) == Some(peer),
        };
        if config.transit == Transit::Refused || back {
            return Outcome::Drop(DropReason::ForeignDestination);
        }
        if hop.map(|hop| hop.ip()) == Some(IpAddr::V4(packet.destination)) {
            return Outcome::Drop(DropReason::Loop);
        }
    }
    match (packet.ttl(), config.ttl) {
        (0, _) => Outcome::Drop(DropReason::TtlZero),
        (1, TtlPolicy::BothEnds) => {
            let tun = config.host.subnet_v4().unwrap().network();
            let answer = next_hop(packet.source).map(|hop| (tun, ReplyTo::Peer(hop)));
            packet.reject(host, RejectReason::TimeExceeded, answer)
        }
        (ttl, TtlPolicy::BothEnds) => Outcome::Forward { to: None, bytes: packet.with_ttl(ttl - 1) },
        (_, _) => Outcome::Forward { to: None, bytes: packet.bytes.to_vec() },
    }
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
            None => Ok(Self { bytes: &bytes[..total], header, source, destination }),
        }
    }

    fn ttl(&self) -> u8 {
        self.bytes[8]
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[self.header..]
    }

    fn fragment_offset(&self) -> u16 {
        u16::from_be_bytes([self.bytes[6] & 0x1f, self.bytes[7]])
    }

    /// Returns the packet with another TTL. With the same TTL it keeps its checksum, even 0xFFFF.
    fn with_ttl(&self, ttl: u8) -> Vec<u8> {
        if ttl == self.ttl() { self.bytes.to_vec() } else { with_ttl(self.bytes, ttl) }
    }

    /// Returns whether a packet is UDP to this host's socket or to a next hop's (fault 6).
    fn is_for_a_tunnel_socket(&self, host: &Host) -> bool {
        if self.bytes[9] != UDP || self.fragment_offset() != 0 || self.payload().len() < 4 {
            return false;
        }
        let port = u16::from_be_bytes([self.payload()[2], self.payload()[3]]);
        let socket = SocketAddr::new(self.destination.into(), port);
        host.config().host.underlay() == socket || host.routes.iter().any(|route| route.next_hop == socket)
    }

    /// Returns a reject, with its ICMP error if the rules permit one.
    fn reject(&self, host: &Host, reason: RejectReason, answer: Option<(Ipv4Addr, ReplyTo)>) -> Outcome {
        let broadcast = |address: Ipv4Addr| {
            let last = |net: loden::ipnet::IpNet| net.prefix_len() < 31 && net.broadcast() == IpAddr::V4(address);
            let config = host.config();
            let routed = host.naive_route(address).is_some_and(|route| last(route.subnet));
            last(config.host.network_v4().unwrap().into()) || last(config.host.subnet_v4().unwrap().into()) || routed
        };
        let known_query = matches!(self.payload().first(), Some(0 | 8 | 9 | 10 | 13 | 14 | 15 | 16 | 17 | 18));
        let barred = self.fragment_offset() != 0
            || broadcast(self.destination)
            || broadcast(self.source)
            || self.bytes[9] == ICMP && !known_query;
        let answer = answer.filter(|_| !barred);
        let write = |(from, to)| (to, self.icmp_error(reason, from, host.config().icmp_ttl));
        Outcome::Reject { reason, answer: answer.map(write) }
    }

    fn icmp_error(&self, reason: RejectReason, from: Ipv4Addr, ttl: u8) -> Vec<u8> {
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
            ..super::packet::Ipv4::new(from, self.source)
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
