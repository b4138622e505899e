//! What rtnetlink tells of this host, as far as it matters to the tunnel.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::Intended;
use crate::sys::link::error::LinkError;
use crate::sys::link::message::{HeldAddress, LinkState, Message, RouteEntry, link_kind};
use crate::sys::link::netlink::{Listing, Netlink};
use crate::sys::link::{Underlay, interface_to, requests};

/// The network namespace of the thread that read it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) links: Vec<Interface>,
    /// All IPv4 and IPv6 addresses.
    pub(super) addresses: Vec<HeldAddress>,
    /// The routes of the main table to the overlay network or a part of it, in the kernel's order.
    pub(super) routes: Vec<(Ipv4Net, RouteEntry)>,
    /// The interface that carries the datagrams, if one has the listen address.
    pub(super) underlay: Option<Underlay>,
    /// The interface of which the TUN device's address is a broadcast address.
    pub(super) broadcast_of: Option<u32>,
    /// Tables of which entries may be missing.
    pub(super) partial: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) state: LinkState,
    /// As `ip -d link` tells it; hardware has none.
    pub(super) kind: Option<String>,
}

impl Host {
    pub(super) fn read(intended: &Intended) -> Result<Self, LinkError> {
        let mut kernel = Netlink::open()?;
        let underlay = match interface_to(intended.listen, intended.peers.iter().copied()) {
            Ok(underlay) => Some(underlay),
            Err(LinkError::NotHeld { .. }) => None,
            Err(error) => return Err(error),
        };
        let broadcast_of = requests::broadcast_interface(&mut kernel, intended.subnet.network())?;
        let (links, addresses) = (links(&mut kernel)?, addresses(&mut kernel)?);
        let routes = routes(&mut kernel, intended.network)?;
        let tables = [("the links", links.intact), ("the addresses", addresses.intact), ("the routes", routes.intact)];
        let partial = tables.into_iter().filter(|(_, intact)| !intact).map(|(table, _)| table).collect();
        Ok(Self { links: links.seen, addresses: addresses.seen, routes: routes.seen, underlay, broadcast_of, partial })
    }

    pub(super) fn named(&self, name: &str) -> Option<&Interface> {
        self.links.iter().find(|link| link.state.name == name)
    }

    pub(super) fn at(&self, index: u32) -> Option<&Interface> {
        self.links.iter().find(|link| link.state.index == index)
    }

    /// The IPv4 addresses of a link, with their prefix lengths.
    pub(super) fn addresses_of(&self, index: u32) -> impl Iterator<Item = Ipv4Net> {
        self.addresses.iter().filter(move |held| held.index == index).filter_map(|held| match held.address {
            IpAddr::V4(address) => Ipv4Net::new(address, held.prefix_len).ok(),
            IpAddr::V6(_) => None,
        })
    }

    /// The network of the interface with the listen address.
    pub(super) fn underlay_network(&self) -> Option<IpNet> {
        let underlay = self.underlay.as_ref()?;
        let is_it = |held: &&HeldAddress| held.address == underlay.address;
        let held = self.addresses.iter().find(is_it)?;
        IpNet::new(held.address, held.prefix_len).ok().map(|net| net.trunc())
    }

    /// The links of this host's pods: those with an address of its subnet, but for the tunnel's own device.
    pub(super) fn pod_links(&self, intended: &Intended) -> impl Iterator<Item = &Interface> {
        self.links.iter().filter(move |link| {
            let is_named = intended.bridge.as_ref() == Some(&link.state.name);
            let mut addresses = self.addresses_of(link.state.index);
            link.state.name != intended.tun
                && !link.is_tun()
                && (is_named || addresses.any(|address| intended.subnet.contains(&address.addr())))
        })
    }

    /// The longest packet in bytes that passes, if that can be told.
    pub(super) fn tun_mtu(&self, intended: &Intended) -> Option<u32> {
        let of_device = || self.named(&intended.tun).map(|link| link.state.mtu);
        intended.mtu.or_else(of_device).or_else(|| self.underlay.as_ref().map(Underlay::tun_mtu))
    }
}

impl Interface {
    /// TAP devices are of this kind too.
    pub(super) fn is_tun(&self) -> bool {
        self.kind.as_deref() == Some("tun")
    }

    pub(super) fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }
}

fn links(kernel: &mut Netlink) -> Result<Listing<Interface>, LinkError> {
    let read = |message: &Message<'_>| match message.kind {
        libc::RTM_NEWLINK => {
            Ok(Some(Interface { state: LinkState::parse(message.body)?, kind: link_kind(message.body)? }))
        }
        _ => Ok(None),
    };
    kernel
        .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), read)
        .map_err(|failure| LinkError::new(failure, "list the links", "this host"))
}

fn addresses(kernel: &mut Netlink) -> Result<Listing<HeldAddress>, LinkError> {
    let read = |message: &Message<'_>| match message.kind {
        libc::RTM_NEWADDR => HeldAddress::parse(message.body).map(Some),
        _ => Ok(None),
    };
    kernel
        .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), read)
        .map_err(|failure| LinkError::new(failure, "list the addresses", "this host"))
}

fn routes(kernel: &mut Netlink, network: Ipv4Net) -> Result<Listing<(Ipv4Net, RouteEntry)>, LinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let read = |message: &Message<'_>| {
        if message.kind != libc::RTM_NEWROUTE {
            return Ok(None);
        }
        let route = RouteEntry::parse(message.body)?;
        let IpAddr::V4(address) = route.destination.unwrap_or(Ipv4Addr::UNSPECIFIED.into()) else { return Ok(None) };
        let Ok(destination) = Ipv4Net::new(address, route.prefix_len) else { return Ok(None) };
        let is_main = route.table == u32::from(RouteHeader::RT_TABLE_MAIN) && !route.cloned;
        Ok((is_main && network.contains(&destination)).then_some((destination, route)))
    };
    kernel
        .dump(&RouteNetlinkMessage::GetRoute(request), read)
        .map_err(|failure| LinkError::new(failure, "list the routes", "this host"))
}
