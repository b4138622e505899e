//! Tests against the kernel, each in a network namespace of its own. They need root. A veth end stands in for the TUN
//! device.

#![expect(clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use std::thread;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Parseable};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};

use super::*;

pub(crate) mod busy;
mod configure;
mod ipv6;
mod watch;

pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 0);

pub(crate) fn network() -> Ipv4Net {
    "100.96.0.0/16".parse().expect("a network")
}

pub(crate) fn config(form: AddressForm) -> LinkConfig {
    let host = Host::new(network(), Ipv4Net::from(ADDRESS), ([10, 168, 0, 2], 8285)).expect("an identity");
    LinkConfig::new(&host).with_mtu(Mtu::DEFAULT).with_form(form)
}

/// Runs `test` in a new network namespace, which ends with the thread and its sockets.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests make network namespaces and need root");
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// A socket for changes by "another process". State is read with the full decoder of the packet crate.
pub(crate) struct World(pub(crate) Netlink);

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self(Netlink::open().expect("a netlink socket"));
        world.set_up("lo", true);
        world
    }

    pub(crate) fn add_link(&mut self, name: &str) -> u32 {
        self.add_link_of(name, vec![LinkInfo::Kind(InfoKind::Veth)])
    }

    pub(crate) fn add_link_of(&mut self, name: &str, info: Vec<LinkInfo>) -> u32 {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.into()), LinkAttribute::LinkInfo(info)];
        self.0.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).expect("a link");
        self.state(name).index
    }

    pub(crate) fn delete_link(&mut self, name: &str) {
        let mut message = LinkMessage::default();
        message.header.index = self.state(name).index;
        self.0.change(RouteNetlinkMessage::DelLink(message), 0).expect("the link is deleted");
    }

    pub(crate) fn state(&mut self, name: &str) -> LinkState {
        requests::link_named(&mut self.0, name).expect("the link exists")
    }

    pub(crate) fn set_up(&mut self, name: &str, up: bool) {
        let index = self.state(name).index;
        requests::set_up(&mut self.0, index, name, up).expect("the link is set");
    }

    pub(crate) fn set_mtu(&mut self, name: &str, mtu: u32) {
        let index = self.state(name).index;
        requests::set_mtu(&mut self.0, index, name, mtu).expect("the MTU is set");
    }

    pub(crate) fn add_address(&mut self, name: &str, address: &str) {
        let index = self.state(name).index;
        let net: IpNet = address.parse().expect("address/length");
        assert!(requests::add_address(&mut self.0, index, name, net.addr(), net.prefix_len()).expect("added"));
    }

    pub(crate) fn remove_address(&mut self, name: &str, address: &str) {
        let index = self.state(name).index;
        let net: IpNet = address.parse().expect("address/length");
        requests::remove_address(&mut self.0, index, name, net.addr(), net.prefix_len()).expect("removed");
    }

    pub(crate) fn add_route(&mut self, name: &str) {
        let index = self.state(name).index;
        assert_eq!(requests::add_route(&mut self.0, index, name, network().into()).expect("added"), AddOutcome::Added);
    }

    pub(crate) fn remove_route(&mut self, name: &str) {
        let index = self.state(name).index;
        requests::remove_route(&mut self.0, index, name, network().into()).expect("removed");
    }

    pub(crate) fn change_route(&mut self, kind: RouteType, destination: &str, interface: Option<u32>) {
        let net: Ipv4Net = destination.parse().expect("a network");
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = net.prefix_len();
        (message.header.table, message.header.scope) = if kind == RouteType::Local {
            (255, RouteScope::Host)
        } else if kind == RouteType::Broadcast {
            (255, RouteScope::Link)
        } else {
            (254, RouteScope::Universe)
        };
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = kind;
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(net.network()))];
        message.attributes.extend(interface.map(RouteAttribute::Oif));
        self.0.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_APPEND).expect("a route");
    }

    pub(crate) fn change_route_mtu(&mut self, destination: &str, interface: u32, mtu: u32) {
        let net: Ipv4Net = destination.parse().expect("a network");
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = net.prefix_len();
        message.header.table = 254;
        message.header.scope = RouteScope::Link;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Destination(RouteAddress::Inet(net.network())),
            RouteAttribute::Oif(interface),
            RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]),
        ];
        self.0.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE).expect("a route");
    }

    pub(crate) fn addresses(&mut self, index: u32) -> Vec<(u8, Ipv4Addr)> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let read = |message: &message::Message<'_>| {
            let parsed = AddressMessage::parse(message.body).expect("the kernel's message");
            let held = message::AddressEntry::parse(message.body)?;
            assert_eq!(held.index, parsed.header.index);
            let IpAddr::V4(address) = held.address else { return Ok(None) };
            Ok((held.index == index).then_some((parsed.header.prefix_len, address)))
        };
        self.0.dump(&RouteNetlinkMessage::GetAddress(request), read).expect("the addresses").entries
    }

    /// Returns the routes of the main table to the overlay network.
    pub(crate) fn routes(&mut self) -> Vec<RouteMessage> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet;
        let read = |message: &message::Message<'_>| {
            let parsed = RouteMessage::parse(message.body).expect("the kernel's message");
            let wanted = RouteAttribute::Destination(RouteAddress::Inet(network().network()));
            let matches = parsed.attributes.contains(&wanted)
                && (parsed.header.table, parsed.header.destination_prefix_length) == (254, 16);
            Ok(matches.then_some(parsed))
        };
        self.0.dump(&RouteNetlinkMessage::GetRoute(request), read).expect("the routes").entries
    }

    pub(crate) fn is_bare(&mut self, name: &str) -> bool {
        let index = self.state(name).index;
        self.addresses(index).is_empty() && self.routes().is_empty()
    }
}
