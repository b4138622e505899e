//! The links, addresses and routes of this host, read through rtnetlink.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::PreflightConfig;
use crate::sys::link::error::LinkError;
use crate::sys::link::message::{AddressEntry, LinkState, Message, RouteEntry, link_kind};
use crate::sys::link::netlink::{Listing, Netlink};
use crate::sys::link::{Underlay, interface_to};

/// The state of the network namespace of the thread that read it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) links: Vec<Interface>,
    /// All IPv4 and IPv6 addresses.
    pub(super) addresses: Vec<AddressEntry>,
    /// The routes of the main table to the overlay network or a part of it, in the order of the kernel.
    pub(super) routes: Vec<(Ipv4Net, RouteEntry)>,
    /// The interface that carries the datagrams, if any interface has the listen address.
    pub(super) underlay: Option<Underlay>,
    /// Tables that changed during every attempt to list them, so entries may be missing.
    pub(super) partial: Vec<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) state: LinkState,
    /// The kind as `ip -d link` prints it, or `None` for hardware.
    pub(super) kind: Option<String>,
}

impl Host {
    pub(super) fn read(config: &PreflightConfig) -> Result<Self, LinkError> {
        let mut kernel = Netlink::open()?;
        let underlay = match interface_to(config.listen, config.peers.iter().copied()) {
            Ok(underlay) => Some(underlay),
            Err(LinkError::NoSuchAddress { .. }) => None,
            Err(error) => return Err(error),
        };
        let (links, addresses) = (links(&mut kernel)?, addresses(&mut kernel)?);
        let routes = routes(&mut kernel, config.network)?;
        let tables = [
            ("the links", links.consistent),
            ("the addresses", addresses.consistent),
            ("the routes", routes.consistent),
        ];
        let partial = tables.into_iter().filter(|(_, consistent)| !consistent).map(|(table, _)| table).collect();
        Ok(Self { links: links.entries, addresses: addresses.entries, routes: routes.entries, underlay, partial })
    }

    pub(super) fn named(&self, name: &str) -> Option<&Interface> {
        self.links.iter().find(|link| link.state.name == name)
    }

    pub(super) fn at(&self, index: u32) -> Option<&Interface> {
        self.links.iter().find(|link| link.state.index == index)
    }

    /// Returns the IPv4 addresses of a link, with their prefix lengths.
    pub(super) fn addresses_of(&self, index: u32) -> impl Iterator<Item = Ipv4Net> {
        self.addresses.iter().filter(move |held| held.index == index).filter_map(|held| match held.address {
            IpAddr::V4(address) => Ipv4Net::new(address, held.prefix_len).ok(),
            IpAddr::V6(_) => None,
        })
    }

    /// Returns the network of the listen address.
    pub(super) fn underlay_network(&self) -> Option<IpNet> {
        let underlay = self.underlay.as_ref()?;
        let is_it = |held: &&AddressEntry| held.address == underlay.address;
        let held = self.addresses.iter().find(is_it)?;
        IpNet::new(held.address, held.prefix_len).ok().map(|net| net.trunc())
    }

    /// Returns the links of this host's pods: the configured bridge and all links with an address of the subnet, except
    /// TUN devices.
    pub(super) fn pod_links(&self, config: &PreflightConfig) -> impl Iterator<Item = &Interface> {
        self.links.iter().filter(move |link| {
            let is_named = config.bridge.as_ref() == Some(&link.state.name);
            let mut addresses = self.addresses_of(link.state.index);
            link.state.name != config.tun
                && !link.is_tun()
                && (is_named || addresses.any(|address| config.subnet.contains(&address.addr())))
        })
    }

    /// Returns the MTU that the TUN device has or will have in bytes.
    pub(super) fn tun_mtu(&self, config: &PreflightConfig) -> Option<u32> {
        let of_device = || self.named(&config.tun).map(|link| link.state.mtu);
        config.mtu.map(u32::from).or_else(of_device).or_else(|| self.underlay.as_ref().map(Underlay::inner_len))
    }
}

impl Interface {
    /// Returns true for TUN and TAP devices, which have the same kind.
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
        .map_err(|error| LinkError::new(error, "list the links", "this host"))
}

fn addresses(kernel: &mut Netlink) -> Result<Listing<AddressEntry>, LinkError> {
    let read = |message: &Message<'_>| match message.kind {
        libc::RTM_NEWADDR => AddressEntry::parse(message.body).map(Some),
        _ => Ok(None),
    };
    kernel
        .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), read)
        .map_err(|error| LinkError::new(error, "list the addresses", "this host"))
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
        .map_err(|error| LinkError::new(error, "list the routes", "this host"))
}
