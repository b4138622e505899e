//! The requests this module makes, each with its everyday answers (exists, is gone, is down) told apart from its
//! errors.

use alloc::string::String;
use alloc::{format, vec};
use core::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{LinkError, MalformedReply};
use super::message::{HeldAddress, LinkState, LinkStats, Message, RouteEntry};
use super::netlink::{Failure, Netlink};
use super::underlay::first_held;

/// Longest name of an interface in bytes (`IFNAMSIZ` less the NUL).
const NAME_MAX: usize = 15;
/// How often a route that exists, and then does not, is tried again.
const ROUTE_ATTEMPTS: u32 = 3;
const LOCAL_ROUTE: &str = "add a local route of the address, which is a broadcast address of another interface,";

/// What became of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    Existed,
    LinkDown,
    Made,
}

pub(crate) fn link_named(kernel: &mut Netlink, name: &str) -> Result<LinkState, LinkError> {
    // The kernel ends a name at the first NUL and would find another interface.
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
    let doing = "read the state of an interface";
    let read = |message: &Message<'_>| match message.kind {
        libc::RTM_NEWLINK => parse(message.body).map(Some),
        _ => Ok(None),
    };
    kernel
        .ask(RouteNetlinkMessage::GetLink(request), read)
        .and_then(|found| found.ok_or(MalformedReply::Missing { what: "RTM_NEWLINK" }.into()))
        .map_err(|failure| LinkError::new(failure, doing, interface))
}

pub(crate) fn set_mtu(kernel: &mut Netlink, index: u32, interface: &str, mtu: u32) -> Result<(), LinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes = vec![LinkAttribute::Mtu(mtu)];
    kernel
        .change(RouteNetlinkMessage::SetLink(request), 0)
        .map_err(|failure| LinkError::new(failure, "set the MTU", interface))
}

pub(crate) fn set_up(kernel: &mut Netlink, index: u32, interface: &str, up: bool) -> Result<(), LinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.header.change_mask = LinkFlags::Up;
    request.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    let doing = if up { "set the link up" } else { "set the link down" };
    kernel.change(RouteNetlinkMessage::SetLink(request), 0).map_err(|failure| LinkError::new(failure, doing, interface))
}

/// Whether the address had to be added.
pub(crate) fn add_address(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: Ipv4Addr,
    prefix_len: u8,
) -> Result<bool, LinkError> {
    let request = RouteNetlinkMessage::NewAddress(address_message(index, address, prefix_len));
    match kernel.change(request, NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(true),
        Err(Failure::Refused { errno: libc::EEXIST, .. }) => Ok(false),
        // Who may change nothing may use what is there.
        Err(Failure::Refused { errno: libc::EPERM | libc::EACCES, .. })
            if holds(kernel, index, address, prefix_len)? =>
        {
            Ok(false)
        }
        Err(failure) => Err(LinkError::new(failure, "add the address", interface)),
    }
}

fn holds(kernel: &mut Netlink, index: u32, address: Ipv4Addr, prefix_len: u8) -> Result<bool, LinkError> {
    let wanted = HeldAddress { index, address: address.into(), prefix_len };
    Ok(first_held(kernel, AddressFamily::Inet, index, |held| *held == wanted)?.is_some())
}

pub(crate) fn remove_address(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: Ipv4Addr,
    prefix_len: u8,
) -> Result<(), LinkError> {
    let request = RouteNetlinkMessage::DelAddress(address_message(index, address, prefix_len));
    gone(kernel.change(request, 0), libc::EADDRNOTAVAIL, "remove the address", interface)
}

/// Adds the route, unless the kernel's first choice for `network` leads to this link already.
pub(crate) fn add_route(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    network: Ipv4Net,
) -> Result<Added, LinkError> {
    let doing = "add the overlay route";
    let mut attempt = 1;
    loop {
        let request = RouteNetlinkMessage::NewRoute(route_message(index, network));
        let refusal = match kernel.change(request, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => return Ok(Added::Made),
            Err(Failure::Refused { errno: libc::ENETDOWN, .. }) => return Ok(Added::LinkDown),
            Err(refusal @ Failure::Refused { errno: libc::EEXIST | libc::EPERM | libc::EACCES, .. }) => refusal,
            Err(failure) => return Err(LinkError::new(failure, doing, interface)),
        };
        let holder = first_route(kernel, network).map_err(|failure| LinkError::new(failure, doing, interface))?;
        match holder {
            Some(route) if route.interface == Some(index) => return Ok(Added::Existed),
            Some(route) => {
                let interface = route.interface.map(|other| name_of(kernel, other));
                return Err(LinkError::RouteTaken { network, interface });
            }
            // It was there and is not any more.
            None if attempt < ROUTE_ATTEMPTS && matches!(refusal, Failure::Refused { errno: libc::EEXIST, .. }) => {
                attempt += 1;
            }
            None => return Err(LinkError::new(refusal, doing, interface)),
        }
    }
}

pub(crate) fn remove_route(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    network: Ipv4Net,
) -> Result<(), LinkError> {
    let request = RouteNetlinkMessage::DelRoute(route_message(index, network));
    gone(kernel.change(request, 0), libc::ESRCH, "remove the overlay route", interface)
}

/// Sees to it that the kernel delivers packets to `address` to this host. A bridge with an address of the same network that
/// existed first makes it a broadcast address before Linux 5.14; a local route in front of that wins. Returns whether it had to
/// be added.
pub(crate) fn add_local_route(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: Ipv4Addr,
) -> Result<bool, LinkError> {
    if local_route(kernel, address.into())?.is_some() {
        return Ok(false);
    }
    // Without NLM_F_APPEND it is put in front.
    match kernel.change(RouteNetlinkMessage::NewRoute(local_route_message(index, address)), NLM_F_CREATE) {
        Ok(()) => Ok(true),
        Err(failure) => Err(LinkError::new(failure, LOCAL_ROUTE, interface)),
    }
}

pub(crate) fn remove_local_route(
    kernel: &mut Netlink,
    index: u32,
    interface: &str,
    address: Ipv4Addr,
) -> Result<(), LinkError> {
    let request = RouteNetlinkMessage::DelRoute(local_route_message(index, address));
    gone(kernel.change(request, 0), libc::ESRCH, "remove the local route of the address", interface)
}

/// The route that packets from `from` to `to` take, if they can leave.
pub(crate) fn route_from(kernel: &mut Netlink, from: IpAddr, to: IpAddr) -> Result<Option<RouteEntry>, LinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let length = if to.is_ipv4() { 32 } else { 128 };
    (request.header.destination_prefix_length, request.header.source_prefix_length) = (length, length);
    request.attributes = vec![RouteAttribute::Destination(to.into()), RouteAttribute::Source(from.into())];
    match kernel.ask(RouteNetlinkMessage::GetRoute(request), read_route) {
        Ok(found) => Ok(found.filter(|route| route.kind == RouteType::Unicast)),
        Err(Failure::Refused { .. }) => Ok(None),
        Err(failure) => Err(LinkError::new(failure, "look a route up", "this host")),
    }
}

/// The route to `address` if it is one of this host's own.
pub(crate) fn local_route(kernel: &mut Netlink, address: IpAddr) -> Result<Option<RouteEntry>, LinkError> {
    Ok(entry_for(kernel, address)?.filter(|route| route.kind == RouteType::Local))
}

/// The entry of the tables for `address`, and not the resolved route, which names the loopback interface for every local address.
fn entry_for(kernel: &mut Netlink, address: IpAddr) -> Result<Option<RouteEntry>, LinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    request.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    request.header.flags = RouteFlags::FibMatch;
    request.attributes = vec![RouteAttribute::Destination(address.into())];
    match kernel.ask(RouteNetlinkMessage::GetRoute(request), read_route) {
        Ok(found) => Ok(found),
        // Unreachable, prohibited, blackholed: in any case not local.
        Err(Failure::Refused { .. }) => Ok(None),
        Err(failure) => Err(LinkError::new(failure, "look an address up", "this host")),
    }
}

/// The first route of the main table for exactly `network`, with TOS and metric 0, as the kernel would choose it. A
/// connected route that the kernel appended behind another interface's exists too, and is not used.
fn first_route(kernel: &mut Netlink, network: Ipv4Net) -> Result<Option<RouteEntry>, Failure> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    let read = |message: &Message<'_>| {
        Ok(read_route(message)?.filter(|route| {
            let destination = route.destination.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
            destination == network.network()
                && route.prefix_len == network.prefix_len()
                && route.table == u32::from(RouteHeader::RT_TABLE_MAIN)
                && (route.tos, route.priority) == (0, 0)
        }))
    };
    kernel.first(&RouteNetlinkMessage::GetRoute(request), read)
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

/// A removal has succeeded when the thing, or the whole device, is gone.
fn gone(result: Result<(), Failure>, absent: i32, doing: &'static str, interface: &str) -> Result<(), LinkError> {
    match result {
        Err(Failure::Refused { errno, .. }) if errno == absent || errno == libc::ENODEV => Ok(()),
        result => result.map_err(|failure| LinkError::new(failure, doing, interface)),
    }
}

fn address_message(index: u32, address: Ipv4Addr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix_len;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    message
}

/// The kernel makes one of its own with the address, but behind what is there.
fn local_route_message(index: u32, address: Ipv4Addr) -> RouteMessage {
    let mut message = route_message(index, address.into());
    message.header.table = libc::RT_TABLE_LOCAL;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message
}

fn route_message(index: u32, network: Ipv4Net) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = network.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    // The kernel refuses host bits.
    message.attributes =
        vec![RouteAttribute::Destination(RouteAddress::Inet(network.network())), RouteAttribute::Oif(index)];
    message
}
