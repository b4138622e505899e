//! The links, addresses and routes of this host, read through rtnetlink.

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::PreflightConfig;
use crate::sys::link::error::LinkError;
use crate::sys::link::message::{AddressEntry, LinkState, Message, RouteEntry, link_kind};
use crate::sys::link::netlink::{Listing, Netlink, NetlinkError};
use crate::sys::link::{Underlay, interface_holding, interface_to};

/// The state of the network namespace of the thread that read it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) links: Vec<Interface>,
    /// All IPv4 and IPv6 addresses.
    pub(super) addresses: Vec<AddressEntry>,
    /// The routes of the main table to the overlay networks or parts of them, in the order of the kernel.
    pub(super) routes: Vec<(IpNet, RouteEntry)>,
    /// The listen addresses, and the interface that carries the datagrams of each, if any interface has the address.
    pub(super) underlays: Vec<(SocketAddr, Option<Underlay>)>,
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
        let mut underlays = Vec::new();
        for listen in &config.listen {
            let found = match listen {
                SocketAddr::V6(scoped) if scoped.scope_id() != 0 => interface_holding(*listen),
                SocketAddr::V4(_) | SocketAddr::V6(_) => interface_to(listen.ip(), config.peers.iter().copied()),
            };
            match found {
                Ok(underlay) => underlays.push((*listen, Some(underlay))),
                Err(LinkError::NoSuchAddress { .. } | LinkError::NoSuchInterface { .. }) => {
                    underlays.push((*listen, None));
                }
                Err(error) => return Err(error),
            }
        }
        let (links, addresses) = (links(&mut kernel)?, addresses(&mut kernel)?);
        let (mut entries, mut consistent) = (Vec::new(), true);
        for network in &config.networks {
            let found = routes(&mut kernel, *network)?;
            entries.extend(found.entries);
            consistent &= found.consistent;
        }
        let tables =
            [("the links", links.consistent), ("the addresses", addresses.consistent), ("the routes", consistent)];
        let partial = tables.into_iter().filter(|(_, consistent)| !consistent).map(|(table, _)| table).collect();
        Ok(Self { links: links.entries, addresses: addresses.entries, routes: entries, underlays, partial })
    }

    /// Returns the interfaces that carry the datagrams.
    pub(super) fn underlays(&self) -> impl Iterator<Item = &Underlay> {
        self.underlays.iter().filter_map(|(_, underlay)| underlay.as_ref())
    }

    pub(super) fn named(&self, name: &str) -> Option<&Interface> {
        self.links.iter().find(|link| link.state.name == name)
    }

    pub(super) fn at(&self, index: u32) -> Option<&Interface> {
        self.links.iter().find(|link| link.state.index == index)
    }

    /// Returns the addresses of a link, with their prefix lengths.
    pub(super) fn addresses_of(&self, index: u32) -> impl Iterator<Item = IpNet> {
        self.addresses
            .iter()
            .filter(move |held| held.index == index)
            .filter_map(|held| IpNet::new(held.address, held.prefix_len).ok())
    }

    /// Returns the network of a listen address.
    pub(super) fn underlay_network(&self, underlay: &Underlay) -> Option<IpNet> {
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
                && (is_named || addresses.any(|address| config.is_of_pod(address.addr())))
        })
    }

    /// Returns the MTU that the TUN device has or will have in bytes.
    pub(super) fn tun_mtu(&self, config: &PreflightConfig) -> Option<u32> {
        let of_device = || self.named(&config.tun).map(|link| link.state.mtu);
        config.mtu.map(u32::from).or_else(of_device).or_else(|| self.underlays().map(Underlay::inner_len).min())
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

fn routes(kernel: &mut Netlink, network: IpNet) -> Result<Listing<(IpNet, RouteEntry)>, LinkError> {
    let mut request = RouteMessage::default();
    let (family, unspecified): (_, IpAddr) = match network {
        IpNet::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
        IpNet::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
    };
    request.header.address_family = family;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let read = |message: &Message<'_>| {
        if message.kind != libc::RTM_NEWROUTE {
            return Ok(None);
        }
        let route = RouteEntry::parse(message.body)?;
        let address = route.destination.unwrap_or(unspecified);
        let Ok(destination) = IpNet::new(address, route.prefix_len) else { return Ok(None) };
        let is_main = route.table == u32::from(RouteHeader::RT_TABLE_MAIN) && !route.cloned;
        // Without IPv6 a request for its routes gets those of all families.
        let is_asked_for = is_main && route.is_ipv6 == network.addr().is_ipv6();
        Ok((is_asked_for && network.contains(&destination)).then_some((destination, route)))
    };
    match kernel.dump(&RouteNetlinkMessage::GetRoute(request), read) {
        // A kernel without IPv6, which is a finding of its own.
        Err(NetlinkError::Refused { errno: libc::EOPNOTSUPP | libc::EAFNOSUPPORT, .. }) if network.addr().is_ipv6() => {
            Ok(Listing { entries: Vec::new(), consistent: true })
        }
        listed => listed.map_err(|error| LinkError::new(error, "list the routes", "this host")),
    }
}
