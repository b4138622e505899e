//! Requests of rtnetlink. Expected results, such as an existing route or a missing device, are values and not errors.

use alloc::string::String;
use alloc::{format, vec};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{LinkError, MalformedReply};
use super::message::{AddressEntry, LinkState, LinkStats, Message, RouteEntry};
use super::netlink::{Netlink, NetlinkError};
use super::underlay::find_address;

/// Longest name of an interface in bytes (`IFNAMSIZ` less the NUL).
const NAME_MAX: usize = 15;
/// Largest number of attempts to add a route that disappears between two requests.
const ROUTE_ATTEMPTS: u32 = 3;
/// The metric of an IPv6 route that is added without one (`IP6_RT_PRIO_USER` in linux/ipv6_route.h).
const IPV6_METRIC: u32 = 1024;
const LOCAL_ROUTE: &str = "add a local route of the address, which is a broadcast address of another interface,";

/// The result of adding a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddOutcome {
    Added,
    Existed,
    LinkDown,
}

pub(crate) fn link_named(kernel: &mut Netlink, name: &str) -> Result<LinkState, LinkError> {
    // The kernel reads a name up to the first NUL and would find another interface.
    if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
        return Err(LinkError::NoSuchInterface { interface: name.into() });
    }
    let mut request = LinkMessage::default();
    request.attributes = vec![LinkAttribute::IfName(name.into())];
    link(kernel, request, name)
}

pub(crate) fn link_at(kernel: &mut Netlink, index: u32) -> Result<LinkState, LinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    link(kernel, request, &numbered(index))
}

/// Reads the counters of the device `index`.
pub(crate) fn stats(kernel: &mut Netlink, index: u32, interface: &str) -> Result<LinkStats, LinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    ask_link(kernel, request, interface, LinkStats::parse)
}

fn link(kernel: &mut Netlink, request: LinkMessage, interface: &str) -> Result<LinkState, LinkError> {
    ask_link(kernel, request, interface, LinkState::parse)
}

fn ask_link<T>(
    kernel: &mut Netlink,
    request: LinkMessage,
    interface: &str,
    parse: fn(&[u8]) -> Result<T, MalformedReply>,
) -> Result<T, LinkError> {
    let operation = "read the state of an interface";
    let read = |message: &Message<'_>| match message.kind {
        libc::RTM_NEWLINK => parse(message.body).map(Some),
        _ => Ok(None),
    };
    kernel
        .ask(RouteNetlinkMessage::GetLink(request), read)
        .and_then(|found| found.ok_or(MalformedReply::Missing { what: "RTM_NEWLINK" }.into()))
        .map_err(|error| LinkError::new(error, operation, interface))
}

pub(crate) fn set_mtu(kernel: &mut Netlink, index: u32, interface: &str, mtu: u32) -> Result<(), LinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes = vec![LinkAttribute::Mtu(mtu)];
    kernel
        .change(RouteNetlinkMessage::SetLink(request), 0)
        .map_err(|error| LinkError::new(error, "set the MTU", interface))
}

pub(crate) fn set_up(kernel: &mut Netlink, index: u32, interface: &str, up: bool) -> Result<(), LinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.header.change_mask = LinkFlags::Up;
    request.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    let operation = if up { "set the link up" } else { "set the link down" };
    kernel.change(RouteNetlinkMessage::SetLink(request), 0).map_err(|error| LinkError::new(error, operation, interface))
}

/// Sets the mode in which the kernel chooses an IPv6 address for the link by itself. Does nothing if the link has that
/// mode, or has no IPv6.
pub(crate) fn set_address_mode(kernel: &mut Netlink, link: &LinkState, mode: In6AddrGenMode) -> Result<(), LinkError> {
    if link.address_mode.is_none_or(|now| now == u8::from(&mode)) {
        return Ok(());
    }
    let mut request = LinkMessage::default();
    request.header.index = link.index;
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
    request.attributes = vec![LinkAttribute::AfSpecUnspec(vec![mode])];
    kernel
        .change(RouteNetlinkMessage::SetLink(request), 0)
        .map_err(|error| LinkError::new(error, "turn the automatic IPv6 address off", &link.name))
}

/// Adds the address if it is missing. Returns true if it was added.
pub(crate) fn add_address(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: IpAddr,
    prefix_len: u8,
) -> Result<bool, LinkError> {
    let request = RouteNetlinkMessage::NewAddress(address_message(index, address, prefix_len));
    match kernel.change(request, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(NetlinkError::Refused { errno: libc::EEXIST, .. }) => Ok(false),
        // A process without the right to add the address may use the existing one.
        Err(NetlinkError::Refused { errno: libc::EPERM | libc::EACCES, .. })
            if holds(kernel, index, address, prefix_len)? =>
        {
            Ok(false)
        }
        // A right that is lacking is EPERM (`netlink_net_capable`).
        Err(NetlinkError::Refused { errno: libc::EACCES, .. }) if address.is_ipv6() => {
            Err(LinkError::Ipv6Disabled { interface: interface.into() })
        }
        Err(NetlinkError::Refused { errno: libc::EOPNOTSUPP | libc::EAFNOSUPPORT, .. }) if address.is_ipv6() => {
            Err(LinkError::NoIpv6 { address })
        }
        Err(error) => Err(LinkError::new(error, "add the address", interface)),
    }
}

fn holds(kernel: &mut Netlink, index: u32, address: IpAddr, prefix_len: u8) -> Result<bool, LinkError> {
    let wanted = AddressEntry { index, address, prefix_len };
    Ok(find_address(kernel, family_of(address), index, |held| *held == wanted)?.is_some())
}

pub(crate) fn remove_address(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: IpAddr,
    prefix_len: u8,
) -> Result<(), LinkError> {
    let request = RouteNetlinkMessage::DelAddress(address_message(index, address, prefix_len));
    ignore_absent(kernel.change(request, 0), libc::EADDRNOTAVAIL, "remove the address", interface)
}

/// Adds the route, unless the route that the kernel uses for `network` already leads to this link.
pub(crate) fn add_route(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    network: IpNet,
) -> Result<AddOutcome, LinkError> {
    let operation = "add the overlay route";
    let mut attempt = 1;
    // An IPv6 route that another one precedes is added without an error, because their metrics differ.
    if let IpNet::V6(_) = network
        && let Some(route) = route_to(kernel, network, operation, interface)?
    {
        return existing(kernel, &route, index, network);
    }
    loop {
        let request = RouteNetlinkMessage::NewRoute(route_message(index, network));
        let refusal = match kernel.change(request, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => return Ok(AddOutcome::Added),
            Err(NetlinkError::Refused { errno: libc::ENETDOWN, .. }) => return Ok(AddOutcome::LinkDown),
            Err(refusal @ NetlinkError::Refused { errno: libc::EEXIST | libc::EPERM | libc::EACCES, .. }) => refusal,
            Err(error) => return Err(LinkError::new(error, operation, interface)),
        };
        match route_to(kernel, network, operation, interface)? {
            Some(route) => return existing(kernel, &route, index, network),
            // The route existed and was removed meanwhile.
            None if attempt < ROUTE_ATTEMPTS
                && matches!(refusal, NetlinkError::Refused { errno: libc::EEXIST, .. }) =>
            {
                attempt += 1;
            }
            None => return Err(LinkError::new(refusal, operation, interface)),
        }
    }
}

fn route_to(
    kernel: &mut Netlink,
    network: IpNet,
    operation: &'static str,
    interface: &str,
) -> Result<Option<RouteEntry>, LinkError> {
    first_route(kernel, network).map_err(|error| LinkError::new(error, operation, interface))
}

/// Returns the outcome of adding a route where this one exists.
fn existing(kernel: &mut Netlink, route: &RouteEntry, index: u32, network: IpNet) -> Result<AddOutcome, LinkError> {
    // An IPv6 blackhole route has the loopback interface.
    let interface = route.interface.filter(|_| route.kind == RouteType::Unicast);
    if interface == Some(index) {
        return Ok(AddOutcome::Existed);
    }
    let interface = interface.map(|other| name_of(kernel, other));
    Err(LinkError::RouteTaken { network, interface })
}

pub(crate) fn remove_route(kernel: &mut Netlink, index: u32, interface: &str, network: IpNet) -> Result<(), LinkError> {
    let request = RouteNetlinkMessage::DelRoute(route_message(index, network));
    ignore_absent(kernel.change(request, 0), libc::ESRCH, "remove the overlay route", interface)
}

/// Adds a local route to `address` if there is none. Returns true if it was added. Before Linux 5.14, a bridge that had
/// an address of the same network first makes `address` a broadcast address. A local route in front of the broadcast
/// entry wins.
pub(crate) fn add_local_route(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: Ipv4Addr,
) -> Result<bool, LinkError> {
    if local_route(kernel, address.into())?.is_some() {
        return Ok(false);
    }
    // Without NLM_F_APPEND the kernel puts the route in front.
    match kernel.change(RouteNetlinkMessage::NewRoute(local_route_message(index, address)), NLM_F_CREATE) {
        Ok(()) => Ok(true),
        Err(error) => Err(LinkError::new(error, LOCAL_ROUTE, interface)),
    }
}

pub(crate) fn remove_local_route(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: Ipv4Addr,
) -> Result<(), LinkError> {
    let request = RouteNetlinkMessage::DelRoute(local_route_message(index, address));
    ignore_absent(kernel.change(request, 0), libc::ESRCH, "remove the local route of the address", interface)
}

/// Returns the route of packets from `from` to `to`, if there is a unicast route.
pub(crate) fn route_from(kernel: &mut Netlink, from: IpAddr, to: IpAddr) -> Result<Option<RouteEntry>, LinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family_of(to);
    let length = if to.is_ipv4() { 32 } else { 128 };
    (request.header.destination_prefix_length, request.header.source_prefix_length) = (length, length);
    request.attributes = vec![RouteAttribute::Destination(to.into()), RouteAttribute::Source(from.into())];
    match kernel.ask(RouteNetlinkMessage::GetRoute(request), read_route) {
        Ok(found) => Ok(found.filter(|route| route.kind == RouteType::Unicast)),
        Err(NetlinkError::Refused { .. }) => Ok(None),
        Err(error) => Err(LinkError::new(error, "look a route up", "this host")),
    }
}

/// Returns the route to `address` if it is a local address.
pub(crate) fn local_route(kernel: &mut Netlink, address: IpAddr) -> Result<Option<RouteEntry>, LinkError> {
    Ok(entry_for(kernel, address)?.filter(|route| route.kind == RouteType::Local))
}

/// Returns the entry of the tables for `address`. The resolved route would name the loopback interface for every local
/// address.
fn entry_for(kernel: &mut Netlink, address: IpAddr) -> Result<Option<RouteEntry>, LinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family_of(address);
    request.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    request.header.flags = RouteFlags::FibMatch;
    request.attributes = vec![RouteAttribute::Destination(address.into())];
    match kernel.ask(RouteNetlinkMessage::GetRoute(request), read_route) {
        Ok(found) => Ok(found),
        // The address is unreachable, prohibited or blackholed, and so not local.
        Err(NetlinkError::Refused { .. }) => Ok(None),
        Err(error) => Err(LinkError::new(error, "look an address up", "this host")),
    }
}

/// Returns the route of the main table to exactly `network` that the kernel uses instead of a new one, or that a new one
/// would equal.
///
/// For IPv4 that is the first one with TOS and metric 0. Further equal routes, such as an appended connected route, are
/// unused. For IPv6 it is the one with the lowest metric up to that of a new one. The kernel lists it first
/// (`fib6_add_rt2node` in net/ipv6/ip6_fib.c).
fn first_route(kernel: &mut Netlink, network: IpNet) -> Result<Option<RouteEntry>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family_of(network.addr());
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let (unspecified, most) = match network {
        IpNet::V4(_) => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        IpNet::V6(_) => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IPV6_METRIC),
    };
    let read = |message: &Message<'_>| {
        Ok(read_route(message)?.filter(|route| {
            route.destination.unwrap_or(unspecified) == network.network()
                && route.prefix_len == network.prefix_len()
                && route.table == u32::from(RouteHeader::RT_TABLE_MAIN)
                && route.tos == 0
                && route.priority <= most
                // A request for one family gets the routes of all where that family is missing.
                && route.is_ipv6 == network.addr().is_ipv6()
                && !(route.is_ipv6 && route.cloned)
        }))
    };
    match kernel.first(&RouteNetlinkMessage::GetRoute(request), read) {
        // A kernel without IPv6.
        Err(NetlinkError::Refused { errno: libc::EOPNOTSUPP | libc::EAFNOSUPPORT, .. }) => Ok(None),
        found => found,
    }
}

fn read_route(message: &Message<'_>) -> Result<Option<RouteEntry>, MalformedReply> {
    match message.kind {
        libc::RTM_NEWROUTE => RouteEntry::parse(message.body).map(Some),
        _ => Ok(None),
    }
}

fn name_of(kernel: &mut Netlink, index: u32) -> String {
    link_at(kernel, index).map_or_else(|_| numbered(index), |link| link.name)
}

fn numbered(index: u32) -> String {
    format!("number {index}")
}

/// Treats a missing object or device as a successful removal.
fn ignore_absent(
    result: Result<(), NetlinkError>,
    absent: i32,
    operation: &'static str,
    interface: &str,
) -> Result<(), LinkError> {
    match result {
        Err(NetlinkError::Refused { errno, .. }) if errno == absent || errno == libc::ENODEV => Ok(()),
        result => result.map_err(|error| LinkError::new(error, operation, interface)),
    }
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn address_message(index: u32, address: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address);
    message.header.prefix_len = prefix_len;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if address.is_ipv6() {
        // Nobody else is on the link who could have the address too.
        let mut flags = AddressFlags::Nodad;
        if prefix_len == 128 {
            // The kernel would add a route to the address itself to the main table.
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

/// The kernel adds a local route with the address too, but behind existing entries.
fn local_route_message(index: u32, address: Ipv4Addr) -> RouteMessage {
    let mut message = route_message(index, IpAddr::V4(address).into());
    message.header.table = libc::RT_TABLE_LOCAL;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message
}

fn route_message(index: u32, network: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family_of(network.addr());
    message.header.destination_prefix_length = network.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    // The kernel rejects host bits.
    message.attributes = vec![RouteAttribute::Destination(network.network().into()), RouteAttribute::Oif(index)];
    message
}
