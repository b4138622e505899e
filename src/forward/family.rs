//! The rules in which IPv4 and IPv6 differ. The forwarder's fast path is compiled once for each family.

use alloc::vec::Vec;
use core::fmt::Debug;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::BitAnd;

use ipnet::{Ipv4Net, Ipv6Net};

use super::addresses::{check_v4, check_v6};
use super::{DropReason, Forwarder};
use crate::Host;
use crate::route::{NextHop, RouteTable};
use crate::wire::ipv4::Ipv4PacketMut;
use crate::wire::ipv6::Ipv6PacketMut;
use crate::wire::{IpHeader, IpPacketMut, UpperLayer, protocol};

/// A family of addresses.
pub(super) trait Family: Copy + Debug + Eq + Into<IpAddr> {
    /// An address as a number.
    type Bits: Copy + Debug + Eq + BitAnd<Output = Self::Bits>;

    fn bits(self) -> Self::Bits;

    /// Returns true if it is this address. An [`IpAddr`] is only made where one is needed, because it costs shifts.
    fn is(self, other: IpAddr) -> bool;

    fn own(forwarder: &Forwarder) -> &Own<Self>;

    fn lookup(self, routes: &RouteTable) -> Option<&NextHop>;

    /// Checks the section on addresses in `docs/conformance.md`. These packets are dropped without an ICMP error.
    fn check(source: Self, destination: Self, forwarder: &Forwarder) -> Result<(), DropReason>;
}

/// A checked packet of a family.
pub(super) trait Packet<'p>: IpPacketMut<'p, Header: IpHeader<Address: Family>> {
    /// Returns the same number for all packets of a flow, and for most flows another one (R60, V32).
    fn flow_number(header: &Self::Header, packet: &[u8]) -> u16;
}

/// The address type of a packet's family.
pub(super) type AddressOf<'p, P> = <<P as IpPacketMut<'p>>::Header as IpHeader>::Address;

/// The members of a host's identity in one family.
#[derive(Clone, Debug)]
pub(super) struct Own<A: Family> {
    /// The version of the packets that are carried. A number that no packet has if there is no own subnet.
    pub(super) version: u8,
    /// The first own subnet.
    first: Prefix<A>,
    /// The other own subnets.
    others: Vec<Prefix<A>>,
    /// The own underlay address and port, as an inner packet would carry them. Port 0 of no address if there is none.
    socket: (A, u16),
}

/// Address and netmask of a subnet.
#[derive(Clone, Copy, Debug)]
struct Prefix<A: Family> {
    address: A::Bits,
    mask: A::Bits,
}

/// No version field holds this number.
const NO_VERSION: u8 = 0xff;

impl Own<Ipv4Addr> {
    pub(super) fn v4(host: &Host) -> Self {
        let prefix = |net: Ipv4Net| Prefix { address: net.network().to_bits(), mask: net.netmask().to_bits() };
        let mut subnets = host.subnets_v4().map(prefix);
        // Without a subnet nothing is carried, so the first prefix is not compared with anything.
        let (version, first) = subnets.next().map_or((NO_VERSION, prefix(Ipv4Net::default())), |first| (4, first));
        let socket = host.underlays().iter().find_map(|underlay| match underlay.ip() {
            IpAddr::V4(address) => Some((address, underlay.port())),
            IpAddr::V6(_) => None,
        });
        Self { version, first, others: subnets.collect(), socket: socket.unwrap_or((Ipv4Addr::UNSPECIFIED, 0)) }
    }
}

impl Own<Ipv6Addr> {
    pub(super) fn v6(host: &Host) -> Self {
        let prefix = |net: Ipv6Net| Prefix { address: net.network().to_bits(), mask: net.netmask().to_bits() };
        let mut subnets = host.subnets_v6().map(prefix);
        let (version, first) = subnets.next().map_or((NO_VERSION, prefix(Ipv6Net::default())), |first| (6, first));
        let socket = host.underlays().iter().find_map(|underlay| match underlay.ip() {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some((address, underlay.port())),
        });
        Self { version, first, others: subnets.collect(), socket: socket.unwrap_or((Ipv6Addr::UNSPECIFIED, 0)) }
    }
}

impl<A: Family> Own<A> {
    /// Returns true if there is an own subnet.
    #[inline(always)]
    pub(super) fn is_carried(&self) -> bool {
        self.version != NO_VERSION
    }

    /// Returns true if there is more than one own subnet.
    pub(super) fn has_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// Returns true if an address is in the first own subnet.
    #[inline(always)]
    pub(super) fn is_first(&self, address: A) -> bool {
        self.first.contains(address)
    }

    /// Returns true if an address is in an own subnet.
    pub(super) fn contains(&self, address: A) -> bool {
        self.is_carried() && (self.first.contains(address) || self.others.iter().any(|prefix| prefix.contains(address)))
    }

    #[inline(always)]
    pub(super) fn is_socket(&self, address: A, port: u16) -> bool {
        port == self.socket.1 && address == self.socket.0
    }
}

impl<A: Family> Prefix<A> {
    #[inline(always)]
    fn contains(self, address: A) -> bool {
        address.bits() & self.mask == self.address
    }
}

impl Family for Ipv4Addr {
    type Bits = u32;

    #[inline(always)]
    fn bits(self) -> u32 {
        self.to_bits()
    }

    #[inline(always)]
    fn is(self, other: IpAddr) -> bool {
        matches!(other, IpAddr::V4(other) if other == self)
    }

    #[inline(always)]
    fn own(forwarder: &Forwarder) -> &Own<Self> {
        &forwarder.ipv4
    }

    #[inline(always)]
    fn lookup(self, routes: &RouteTable) -> Option<&NextHop> {
        routes.lookup_v4(self)
    }

    #[inline(always)]
    fn check(source: Self, destination: Self, forwarder: &Forwarder) -> Result<(), DropReason> {
        check_v4(source, destination, &forwarder.network_v4)
    }
}

impl Family for Ipv6Addr {
    type Bits = u128;

    #[inline(always)]
    fn bits(self) -> u128 {
        self.to_bits()
    }

    #[inline(always)]
    fn is(self, other: IpAddr) -> bool {
        matches!(other, IpAddr::V6(other) if other == self)
    }

    #[inline(always)]
    fn own(forwarder: &Forwarder) -> &Own<Self> {
        &forwarder.ipv6
    }

    #[inline(always)]
    fn lookup(self, routes: &RouteTable) -> Option<&NextHop> {
        routes.lookup_v6(self)
    }

    #[inline(always)]
    fn check(source: Self, destination: Self, _: &Forwarder) -> Result<(), DropReason> {
        check_v6(source, destination)
    }
}

/// A multiplier that carries every bit up. The upper bits of the product are the well mixed ones (Knuth, TAOCP 6.4).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl<'p> Packet<'p> for Ipv4PacketMut<'p> {
    fn flow_number(header: &Self::Header, packet: &[u8]) -> u16 {
        let addresses = u64::from(header.source().to_bits()) << 32 | u64::from(header.destination().to_bits());
        let rest = ports_and_protocol(&header.upper_layer(), packet);
        let mixed = (addresses.wrapping_mul(MULTIPLIER) ^ rest).wrapping_mul(MULTIPLIER);
        (mixed >> 48) as u16
    }
}

impl<'p> Packet<'p> for Ipv6PacketMut<'p> {
    fn flow_number(header: &Self::Header, packet: &[u8]) -> u16 {
        // A label set by the sender is the same in all packets of a flow, fragments included (RFC 6437 section 3).
        let rest = match header.flow_label() {
            0 => header.upper_layer().map_or(0, |upper| ports_and_protocol(&upper, packet)),
            label => u64::from(label),
        };
        let (source, destination) = (header.source().to_bits(), header.destination().to_bits());
        let words = [(source >> 64) as u64, source as u64, (destination >> 64) as u64, destination as u64, rest];
        let mixed =
            words.into_iter().fold(0, |mixed: u64, word| (mixed ^ word).wrapping_mul(MULTIPLIER).rotate_left(32));
        (mixed >> 16) as u16
    }
}

/// Returns the numbers that tell flows between two hosts apart. Only the first fragment of a packet has ports, so they
/// do not count in any.
fn ports_and_protocol(upper: &UpperLayer, packet: &[u8]) -> u64 {
    let ports = match upper.protocol {
        protocol::TCP | protocol::UDP if upper.fragment.is_none() => {
            packet.get(usize::from(upper.offset)..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default()
        }
        _ => [0; 4],
    };
    u64::from(u32::from_be_bytes(ports)) << 8 | u64::from(upper.protocol)
}
