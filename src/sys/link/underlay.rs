//! The interface that carries the tunnel's datagrams, and the TUN MTU that it leaves.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use alloc::string::String;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::LinkError;
use super::message::{AddressEntry, Message};
use super::netlink::Netlink;
use super::requests;
use crate::host::{Mtu, MtuError, Overhead};

/// MTU of an Ethernet (RFC 894).
const ETHERNET: u32 = 1500;
/// Addresses that no host has (RFC 5737, RFC 3849). The route to them is the default route.
const ANYWHERE_IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ANYWHERE_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The interface that carries the tunnel's datagrams.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Underlay {
    /// Interface index.
    pub index: u32,
    /// Name at the time of the request.
    pub name: String,
    /// MTU of the interface in bytes, or a smaller MTU of the route, at the time of the request.
    pub mtu: u32,
    /// The requested address, or the first address of the interface.
    pub address: IpAddr,
}

impl Underlay {
    /// Returns the length of the longest inner packet that fits into one datagram: the MTU less the [`Overhead`] of the
    /// address. An Ethernet MTU of 1500 gives 1472, as in flannel.
    ///
    /// # Errors
    /// [`MtuError::UnderlayTooSmall`].
    pub fn tun_mtu(&self) -> Result<Mtu, MtuError> {
        Mtu::of_inner(self.mtu, Overhead::of(self.address))
    }

    /// Returns the length in bytes of the longest inner packet that fits into one datagram, even if it is no MTU.
    #[cfg(feature = "preflight")]
    pub(crate) fn inner_len(&self) -> u32 {
        Overhead::of(self.address).inner(self.mtu).into()
    }
}

/// Returns the interface that has `address`: the first one in the order of the kernel, or else the interface of the
/// local route. Local routes cover 127.0.0.0/8 and prefixes of `ip route add local`.
///
/// Another interface carries the datagrams of an address on a loopback or dummy device, except for 127.0.0.0/8 and
/// `::1`. [`interface_to`] describes the choice.
///
/// # Errors
/// [`LinkError::NoSuchAddress`] if no interface has the address, as for wildcard, multicast and broadcast addresses.
pub fn interface_of(address: IpAddr) -> Result<Underlay, LinkError> {
    interface_to(address, [])
}

/// Returns the interface that has the address of a socket. The scope of a link-local address is its interface.
pub(crate) fn interface_holding(address: SocketAddr) -> Result<Underlay, LinkError> {
    match address {
        SocketAddr::V6(scoped) if scoped.scope_id() != 0 => {
            let link = requests::link_at(&mut Netlink::open()?, scoped.scope_id())?;
            Ok(Underlay { index: link.index, name: link.name, mtu: link.mtu, address: address.ip() })
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => interface_of(address.ip()),
    }
}

/// Returns the interface that carries datagrams from `address` to `peers`.
///
/// This is the interface that has `address`, as in [`interface_of`]. For a loopback or dummy device, the routes to the
/// peers determine the interface, and the one with the smallest MTU is returned. Without a route to any peer, the
/// default route determines it. Without a default route, the MTU is at most 1500.
///
/// # Errors
/// [`LinkError::NoSuchAddress`] if no interface has `address`.
pub fn interface_to(address: IpAddr, peers: impl IntoIterator<Item = IpAddr>) -> Result<Underlay, LinkError> {
    let no_such_address = || LinkError::NoSuchAddress { address };
    if address.is_unspecified() {
        return Err(no_such_address());
    }
    let mut kernel = Netlink::open()?;
    let index = match holder(&mut kernel, address) {
        Ok(Some(index)) => index,
        Err(error) if !matches!(error, LinkError::Busy { .. }) => return Err(error),
        Ok(None) | Err(_) => requests::local_route(&mut kernel, address)?
            .and_then(|route| route.interface)
            .ok_or_else(no_such_address)?,
    };
    let link = requests::link_at(&mut kernel, index)?;
    if !link.is_stub || address.is_loopback() {
        return Ok(Underlay { index, name: link.name, mtu: link.mtu, address });
    }
    let mut carrier: Option<Underlay> = None;
    for peer in peers {
        if let Some(found) = interface_of_route(&mut kernel, address, peer)?
            && carrier.as_ref().is_none_or(|least| found.mtu < least.mtu)
        {
            carrier = Some(found);
        }
    }
    if carrier.is_none() {
        let anywhere = if address.is_ipv4() { ANYWHERE_IPV4.into() } else { ANYWHERE_IPV6.into() };
        carrier = interface_of_route(&mut kernel, address, anywhere)?;
    }
    Ok(carrier.unwrap_or(Underlay { index, name: link.name, mtu: link.mtu.min(ETHERNET), address }))
}

/// Returns the interface of the route to `peer`, unless the route stays on this host.
fn interface_of_route(kernel: &mut Netlink, address: IpAddr, peer: IpAddr) -> Result<Option<Underlay>, LinkError> {
    if peer.is_ipv4() != address.is_ipv4() {
        return Ok(None);
    }
    let Some(route) = requests::route_from(kernel, address, peer)? else { return Ok(None) };
    let Some(index) = route.interface else { return Ok(None) };
    let link = requests::link_at(kernel, index)?;
    let mtu = link.mtu.min(route.mtu.unwrap_or(link.mtu));
    Ok((!link.is_stub).then_some(Underlay { index, name: link.name, mtu, address }))
}

/// Returns the interface of this name with its first IPv4 address, which the kernel uses as the source.
///
/// # Errors
/// [`LinkError::NoSuchInterface`]. [`LinkError::NoAddress`] if the interface has no IPv4 address.
pub fn interface_named(name: &str) -> Result<Underlay, LinkError> {
    let mut kernel = Netlink::open()?;
    let link = requests::link_named(&mut kernel, name)?;
    let held = find_address(&mut kernel, AddressFamily::Inet, link.index, |held| held.index == link.index)?;
    let held = held.ok_or_else(|| LinkError::NoAddress { interface: name.into() })?;
    Ok(Underlay { index: link.index, name: link.name, mtu: link.mtu, address: held.address })
}

fn holder(kernel: &mut Netlink, address: IpAddr) -> Result<Option<u32>, LinkError> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(find_address(kernel, family, 0, |held| held.address == address)?.map(|held| held.index))
}

/// Returns the first address, in the order of the kernel, for which `wanted` returns true. An index `of` other than 0
/// limits the dump to one interface, from Linux 4.20 on.
pub(crate) fn find_address(
    kernel: &mut Netlink,
    family: AddressFamily,
    of: u32,
    wanted: impl Fn(&AddressEntry) -> bool,
) -> Result<Option<AddressEntry>, LinkError> {
    let mut request = AddressMessage::default();
    request.header.family = family;
    request.header.index = of;
    let read = |message: &Message<'_>| match message.kind {
        libc::RTM_NEWADDR => Ok(Some(AddressEntry::parse(message.body)?).filter(&wanted)),
        _ => Ok(None),
    };
    kernel
        .first(&RouteNetlinkMessage::GetAddress(request), read)
        .map_err(|error| LinkError::new(error, "list the addresses", "this host"))
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
        assert_eq!(underlay(1500, "10.0.0.1"), Mtu::new(1472));
        assert_eq!(underlay(1500, "fd00::1"), Mtu::new(1452));
        assert_eq!(underlay(65_536, "127.0.0.1"), Mtu::new(65_507));
        let too_small = MtuError::UnderlayTooSmall { outer: 20, overhead: Overhead::IPV4 };
        assert_eq!(underlay(20, "10.0.0.1"), Err(too_small));
    }
}
