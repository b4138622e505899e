//! A model of the kernel's IPv6 router: `ip6_rcv_core`, `ip6_forward` and `icmp6_send` of net/ipv6, written from its
//! rules and not from loden's. The kernel has to do what it says for every packet.

use core::net::Ipv6Addr;

use loden::ipnet::IpNet;

use super::hop_by_hop::{self, Options};
use super::world::World;
use crate::router::Place;
use support::packet::ones_sum;
use support::packet_v6::{FRAGMENT, HOP_BY_HOP, ICMPV6, Ipv6, with_hop_limit};

/// Bytes of the longest error.
const ERROR_MAX: usize = 1280;

/// Bytes of the shortest MTU.
const MTU_MIN: usize = 1280;

/// The types of errors, with their codes.
const NO_ROUTE: [u8; 2] = [1, 0];
const BEYOND_SCOPE: [u8; 2] = [1, 2];
const TOO_BIG: [u8; 2] = [2, 0];
const HOP_LIMIT_EXCEEDED: [u8; 2] = [3, 0];
const PARAMETER_PROBLEM: u8 = 4;

/// Returns the packet that the router sends because of this one.
pub(super) fn output(world: &World, entry: Place, received: &[u8]) -> Option<(Place, Vec<u8>)> {
    let arrival = Arrival::check(world, entry, received)?;
    let Arrival { packet, source, destination, .. } = arrival;
    if packet[6] == HOP_BY_HOP {
        match hop_by_hop::walk(packet) {
            Options::Fine => {}
            Options::Problem { code, at } => return arrival.error([PARAMETER_PROBLEM, code], at),
            Options::Dropped => return None,
            Options::Unpredictable => panic!("left out before"),
        }
    }
    if destination.is_multicast() {
        return None;
    }
    let Some(to) = world.kernel_route(entry, destination) else { return arrival.error(NO_ROUTE, 0) };
    if packet[7] <= 1 {
        return arrival.error(HOP_LIMIT_EXCEEDED, 0);
    }
    if source.is_unspecified() {
        return None;
    }
    if source.is_unicast_link_local() {
        return arrival.error(BEYOND_SCOPE, 0);
    }
    let mtu = MTU_MIN.max(world.router.link(to).mtu.into());
    if packet.len() > mtu {
        return arrival.error(TOO_BIG, mtu);
    }
    Some((to, with_hop_limit(packet, packet[7] - 1)))
}

/// A packet that passed the first checks.
struct Arrival<'p> {
    world: &'p World,
    entry: Place,
    /// Without trailer.
    packet: &'p [u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

impl<'p> Arrival<'p> {
    fn check(world: &'p World, entry: Place, received: &'p [u8]) -> Option<Self> {
        let fixed: &[u8; 40] = received.first_chunk()?;
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[at..at + 16]).unwrap());
        let (source, destination) = (address(8), address(24));
        let is_for_this_node = destination.is_multicast() && fixed[25] & 15 <= 1;
        if fixed[0] >> 4 != 6
            || source.is_loopback()
            || source.is_multicast()
            || destination.is_loopback()
            || is_for_this_node
        {
            return None;
        }
        let packet = match u16::from_be_bytes([fixed[4], fixed[5]]) {
            // The options may have the length.
            0 if fixed[6] == HOP_BY_HOP => received,
            len => received.get(..40 + usize::from(len))?,
        };
        Some(Self { world, entry, packet, source, destination })
    }

    /// Returns the error, unless the kernel sends none about this packet.
    fn error(&self, type_code: [u8; 2], info: usize) -> Option<(Place, Vec<u8>)> {
        const UNKNOWN_OPTION: [u8; 2] = [PARAMETER_PROBLEM, 2];
        if self.source.is_unspecified() || is_ineligible(self.packet) {
            return None;
        }
        if self.destination.is_multicast() && type_code != UNKNOWN_OPTION {
            return None;
        }
        let (net, to) = self.world.kernel_route_back(self.entry, self.source)?;
        if is_anycast(net, self.source) {
            return None;
        }
        let from = self.world.address(self.entry);
        let quote = &self.packet[..self.packet.len().min(ERROR_MAX - 48)];
        let mut message = [&type_code[..], &[0, 0], &(info as u32).to_be_bytes(), quote].concat();
        let len = (message.len() as u32).to_be_bytes();
        let pseudo = [&from.octets()[..], &self.source.octets(), &len, &[0, 0, 0, ICMPV6]].concat();
        let checksum = !ones_sum(&[&pseudo[..], &message].concat());
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        let packet = Ipv6 { flow_label: 0, protocol: ICMPV6, payload: message, ..Ipv6::new(from, self.source) };
        Some((to, packet.bytes()))
    }
}

/// Returns true if an address is that of any router on a link, by a route to the link (`ipv6_anycast_destination` of
/// include/net/ip6_route.h).
pub(super) fn is_anycast(net: IpNet, address: Ipv6Addr) -> bool {
    net.prefix_len() < 127 && net.network() == address
}

/// Returns true if the kernel takes a packet for an ICMPv6 error (`is_ineligible` of net/ipv6/icmp.c).
fn is_ineligible(packet: &[u8]) -> bool {
    const NO_NEXT_HEADER: u8 = 59;
    const INFORMATIONAL: u8 = 0x80;
    let (mut kind, mut at, mut fragment) = (packet[6], 40, 0);
    while matches!(kind, 0 | 43 | FRAGMENT | 51 | NO_NEXT_HEADER | 60) {
        let Some(&[next, words]) = packet.get(at..).and_then(|rest| rest.first_chunk()) else { return false };
        let len = match kind {
            NO_NEXT_HEADER => return false,
            FRAGMENT => {
                let Some(&[_, _, high, low]) = packet[at..].first_chunk() else { return false };
                fragment = u16::from_be_bytes([high, low]);
                if fragment & !7 != 0 {
                    return false;
                }
                8
            }
            51 => (usize::from(words) + 2) * 4,
            _ => (usize::from(words) + 1) * 8,
        };
        (kind, at) = (next, at + len);
    }
    kind == ICMPV6
        && match packet.get(at) {
            Some(kind) => kind & INFORMATIONAL == 0,
            None => fragment == 0,
        }
}
