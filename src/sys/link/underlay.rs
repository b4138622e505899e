//! Which interface carries the tunnel's datagrams, and how large a TUN MTU that leaves.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use alloc::string::String;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::LinkError;
use super::message::{HeldAddress, Message};
use super::netlink::Netlink;
use super::requests;

/// Bytes a datagram adds to an inner packet: IPv4 header 20 (RFC 791, no options) and UDP header 8 (RFC 768).
pub const OVERHEAD_IPV4: u32 = 20 + 8;
/// The same over IPv6: header 40 (RFC 8200, no extensions) and UDP header 8.
pub const OVERHEAD_IPV6: u32 = 40 + 8;
/// Largest IP packet: the length fields of IPv4 and of UDP have 16 bits. The loopback interface claims 65,536.
const PACKET_MAX: u32 = 65_535;
/// MTU of an Ethernet (RFC 894).
const ETHERNET: u32 = 1500;
/// Addresses that no host has (RFC 5737, RFC 3849), so that the default route is the one to them.
const ANYWHERE_IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ANYWHERE_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The interface that carries the tunnel's datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Underlay {
    /// Interface index.
    pub index: u32,
    /// Name at the time of asking.
    pub name: String,
    /// MTU of the interface in bytes, or a smaller one of the route, at the time of asking.
    pub mtu: u32,
    /// The address it was asked for, or its first one.
    pub address: IpAddr,
}

impl Underlay {
    /// The largest inner packet in bytes that fits into one datagram on this interface: its MTU, at most 65,535, less
    /// [`OVERHEAD_IPV4`] or [`OVERHEAD_IPV6`]. An Ethernet of 1500 gives flannel's 1472.
    #[must_use]
    pub fn tun_mtu(&self) -> u32 {
        let overhead = if self.address.is_ipv4() { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 };
        self.mtu.min(PACKET_MAX).saturating_sub(overhead)
    }
}

/// Returns the interface that holds `address`: the first one the kernel lists it on, else the one its local routes name,
/// which covers 127.0.0.0/8 and whole prefixes made local with `ip route add local`.
///
/// An address on a loopback or dummy device, 127.0.0.0/8 and `::1` apart, has its datagrams carried by another interface:
/// see [`interface_to`].
///
/// # Errors
/// [`LinkError::NotHeld`] if no interface does; wildcards, multicast and broadcast are held by none.
pub fn interface_of(address: IpAddr) -> Result<Underlay, LinkError> {
    interface_to(address, [])
}

/// Returns the interface that carries datagrams from `address` to `peers`.
///
/// That is the one that holds `address`, as [`interface_of`] finds it. If it is a loopback or dummy device, the routes to the
/// peers tell the interface, and of several the one with the smallest MTU counts. Without a peer that is routed the default
/// route tells it. Without a default route the MTU is at most 1500.
///
/// # Errors
/// [`LinkError::NotHeld`] if no interface holds `address`.
pub fn interface_to(address: IpAddr, peers: impl IntoIterator<Item = IpAddr>) -> Result<Underlay, LinkError> {
    let not_held = || LinkError::NotHeld { address };
    if address.is_unspecified() {
        return Err(not_held());
    }
    let mut kernel = Netlink::open()?;
    let index = match holder(&mut kernel, address) {
        Ok(Some(index)) => index,
        Err(error) if !matches!(error, LinkError::Busy { .. }) => return Err(error),
        Ok(None) | Err(_) => {
            requests::local_route(&mut kernel, address)?.and_then(|route| route.interface).ok_or_else(not_held)?
        }
    };
    let link = requests::link_at(&mut kernel, index)?;
    if !link.is_stub || address.is_loopback() {
        return Ok(Underlay { index, name: link.name, mtu: link.mtu, address });
    }
    let mut carrier: Option<Underlay> = None;
    for peer in peers {
        if let Some(found) = carrier_to(&mut kernel, address, peer)?
            && carrier.as_ref().is_none_or(|least| found.mtu < least.mtu)
        {
            carrier = Some(found);
        }
    }
    if carrier.is_none() {
        let anywhere = if address.is_ipv4() { ANYWHERE_IPV4.into() } else { ANYWHERE_IPV6.into() };
        carrier = carrier_to(&mut kernel, address, anywhere)?;
    }
    Ok(carrier.unwrap_or(Underlay { index, name: link.name, mtu: link.mtu.min(ETHERNET), address }))
}

/// Returns the interface of the route to `peer`, unless the route stays on this host.
fn carrier_to(kernel: &mut Netlink, address: IpAddr, peer: IpAddr) -> Result<Option<Underlay>, LinkError> {
    if peer.is_ipv4() != address.is_ipv4() {
        return Ok(None);
    }
    let Some(route) = requests::route_from(kernel, address, peer)? else { return Ok(None) };
    let Some(index) = route.interface else { return Ok(None) };
    let link = requests::link_at(kernel, index)?;
    let mtu = link.mtu.min(route.mtu.unwrap_or(link.mtu));
    Ok((!link.is_stub).then_some(Underlay { index, name: link.name, mtu, address }))
}

/// Returns the interface of this name with its first IPv4 address, the one the kernel sends from.
///
/// # Errors
/// [`LinkError::NoSuchInterface`]; [`LinkError::NoAddress`] if it holds none.
pub fn interface_named(name: &str) -> Result<Underlay, LinkError> {
    let mut kernel = Netlink::open()?;
    let link = requests::link_named(&mut kernel, name)?;
    let held = first_held(&mut kernel, AddressFamily::Inet, link.index, |held| held.index == link.index)?;
    let held = held.ok_or_else(|| LinkError::NoAddress { interface: name.into() })?;
    Ok(Underlay { index: link.index, name: link.name, mtu: link.mtu, address: held.address })
}

fn holder(kernel: &mut Netlink, address: IpAddr) -> Result<Option<u32>, LinkError> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(first_held(kernel, family, 0, |held| held.address == address)?.map(|held| held.index))
}

/// The first address in the kernel's order that is wanted. From Linux 4.20 on the kernel lists those of one interface alone
/// if `of` is not 0.
pub(crate) fn first_held(
    kernel: &mut Netlink,
    family: AddressFamily,
    of: u32,
    wanted: impl Fn(&HeldAddress) -> bool,
) -> Result<Option<HeldAddress>, LinkError> {
    let mut request = AddressMessage::default();
    request.header.family = family;
    request.header.index = of;
    let read = |message: &Message<'_>| match message.kind {
        libc::RTM_NEWADDR => Ok(Some(HeldAddress::parse(message.body)?).filter(&wanted)),
        _ => Ok(None),
    };
    kernel
        .first(&RouteNetlinkMessage::GetAddress(request), read)
        .map_err(|failure| LinkError::new(failure, "list the addresses", "this host"))
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::*;

    #[test]
    fn the_overhead_depends_on_the_outer_family_and_the_mtu_is_bounded() {
        let underlay = |mtu, address: &str| {
            let address = address.parse().expect("an address");
            Underlay { index: 1, name: "eth0".into(), mtu, address }.tun_mtu()
        };
        assert_eq!(underlay(1500, "10.0.0.1"), 1472);
        assert_eq!(underlay(1500, "fd00::1"), 1452);
        assert_eq!(underlay(65_536, "127.0.0.1"), 65_507);
        assert_eq!(underlay(20, "10.0.0.1"), 0);
    }
}
