//! IPv4 addresses and routes of a namespace.

use crate::Namespace;
use crate::error::Context;
use crate::link::{all_links, index_of};
use core::net::{IpAddr, Ipv4Addr};
use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;

/// A route of the main table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RouteEntry {
    /// The destination.
    pub destination: Ipv4Net,
    /// The name of the outgoing link.
    pub link: Option<String>,
    /// The gateway; `None` if the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The preferred source address (`src` in iproute2).
    pub source: Option<Ipv4Addr>,
    /// `rtm_scope` of rtnetlink(7): 0 is global, 253 link, 254 host.
    pub scope: u8,
    /// `rtm_protocol` of rtnetlink(7): 2 is kernel, 3 boot, 4 static.
    pub protocol: u8,
}

impl Namespace {
    /// Adds an address to a link. The kernel adds the route to its network.
    ///
    /// # Errors
    /// `AlreadyExists` if the link has it; otherwise the kernel's error.
    pub fn add_address(&self, link: &str, address: Ipv4Net) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet;
            message.header.index = index_of(kernel, link)?;
            message.header.prefix_len = address.prefix_len();
            let [local, own] =
                [AddressAttribute::Local, AddressAttribute::Address].map(|kind| kind(address.addr().into()));
            message.attributes = vec![own, local];
            if address.prefix_len() < 31 {
                message.attributes.push(AddressAttribute::Broadcast(address.broadcast()));
            }
            kernel.add(RouteNetlinkMessage::NewAddress(message))
        })
        .context(|| format!("cannot add {address} to {link}"))
    }

    /// Returns the IPv4 addresses of a link, in the kernel's order.
    ///
    /// # Errors
    /// The kernel's error, for example for an unknown link.
    pub fn addresses(&self, link: &str) -> io::Result<Vec<Ipv4Net>> {
        self.netlink(|kernel| {
            let index = index_of(kernel, link)?;
            let mut addresses = Vec::new();
            for message in kernel.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
                let RouteNetlinkMessage::NewAddress(message) = message else { continue };
                if message.header.index != index {
                    continue;
                }
                let local = message.attributes.iter().find_map(|attribute| {
                    if let AddressAttribute::Local(IpAddr::V4(address)) = attribute { Some(*address) } else { None }
                });
                addresses.extend(local.and_then(|local| Ipv4Net::new(local, message.header.prefix_len).ok()));
            }
            Ok(addresses)
        })
        .context(|| format!("cannot list the addresses of {link}"))
    }

    /// Adds a route through a link, with a gateway or to a destination on the link.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one for this destination; otherwise the kernel's error.
    pub fn add_route(&self, destination: Ipv4Net, via: Option<Ipv4Addr>, link: &str) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut route = route_through(destination, index_of(kernel, link)?);
            match via {
                Some(gateway) => route.attributes.push(RouteAttribute::Gateway(gateway.into())),
                None => route.header.scope = RouteScope::Link,
            }
            kernel.add(RouteNetlinkMessage::NewRoute(route))
        })
        .context(|| format!("cannot add a route to {destination} through {link}"))
    }

    /// Adds a route with a gateway. The kernel determines the link.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one for this destination; otherwise the kernel's error.
    pub fn add_route_via(&self, destination: Ipv4Net, gateway: Ipv4Addr) -> io::Result<()> {
        let mut route = route_to(destination);
        route.attributes.push(RouteAttribute::Gateway(gateway.into()));
        self.netlink(|kernel| kernel.add(RouteNetlinkMessage::NewRoute(route)))
            .context(|| format!("cannot add a route to {destination} via {gateway}"))
    }

    /// Adds an unreachable route: senders get `EHOSTUNREACH`.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one for this destination; otherwise the kernel's error.
    pub fn add_unreachable_route(&self, destination: Ipv4Net) -> io::Result<()> {
        let mut route = route_to(destination);
        route.header.kind = RouteType::Unreachable;
        self.netlink(|kernel| kernel.add(RouteNetlinkMessage::NewRoute(route)))
            .context(|| format!("cannot make {destination} unreachable"))
    }

    /// Reduces the MTU of the path to a neighbour, as for a tunnel with a smaller MTU. It adds a host route with its
    /// own MTU in bytes.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a route for this neighbour; otherwise the kernel's error.
    pub fn narrow_path(&self, neighbour: Ipv4Addr, link: &str, mtu: u32) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut route = route_through(neighbour.into(), index_of(kernel, link)?);
            route.header.scope = RouteScope::Link;
            route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
            kernel.add(RouteNetlinkMessage::NewRoute(route))
        })
        .context(|| format!("cannot narrow the path to {neighbour} to {mtu} bytes"))
    }

    /// Deletes the first route to exactly this destination.
    ///
    /// # Errors
    /// The kernel's error, for example `ESRCH` for an unknown route.
    pub fn delete_route(&self, destination: Ipv4Net) -> io::Result<()> {
        let mut route = route_to(destination);
        route.header.scope = RouteScope::NoWhere;
        // In a deletion, "unspecified" and RT_SCOPE_NOWHERE match anything (fib_table_delete in net/ipv4/fib_trie.c).
        route.header.protocol = Default::default();
        self.netlink(|kernel| kernel.change(RouteNetlinkMessage::DelRoute(route)))
            .context(|| format!("cannot delete the route to {destination}"))
    }

    /// Removes the path MTUs that the kernel learned from "fragmentation needed" errors.
    ///
    /// # Errors
    /// See [`sysctl`](Self::sysctl).
    pub fn forget_path_mtus(&self) -> io::Result<()> {
        self.sysctl("net/ipv4/route/flush", "1")
    }

    /// Returns the IPv4 routes of the main table, in the kernel's order.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn routes(&self) -> io::Result<Vec<RouteEntry>> {
        self.netlink(|kernel| {
            let links = all_links(kernel)?;
            let mut routes = Vec::new();
            let mut request = RouteMessage::default();
            request.header.address_family = AddressFamily::Inet;
            for message in kernel.list(RouteNetlinkMessage::GetRoute(request))? {
                let RouteNetlinkMessage::NewRoute(message) = message else { continue };
                // A dump also contains the path MTUs that the kernel learnt, as cloned routes.
                let learnt = message.header.flags.contains(RouteFlags::Cloned);
                if message.header.table == RouteHeader::RT_TABLE_MAIN && !learnt {
                    routes.push(entry(&message, &links)?);
                }
            }
            Ok(routes)
        })
        .context(|| "cannot list the routes".into())
    }
}

/// Returns a route of the main table without a next hop.
fn route_to(destination: Ipv4Net) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.header.destination_prefix_length = destination.prefix_len();
    route.attributes.push(RouteAttribute::Destination(destination.network().into()));
    route
}

/// Returns a route through the link with this index.
pub(crate) fn route_through(destination: Ipv4Net, link: u32) -> RouteMessage {
    let mut route = route_to(destination);
    route.attributes.push(RouteAttribute::Oif(link));
    route
}

fn entry(message: &RouteMessage, links: &[(u32, String)]) -> io::Result<RouteEntry> {
    let (mut network, mut link, mut gateway, mut source) = (Ipv4Addr::UNSPECIFIED, None, None, None);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(RouteAddress::Inet(address)) = attribute {
            network = *address;
        } else if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute {
            gateway = Some(*address);
        } else if let RouteAttribute::PrefSource(RouteAddress::Inet(address)) = attribute {
            source = Some(*address);
        } else if let RouteAttribute::Oif(wanted) = attribute {
            link = links.iter().find(|(index, _)| index == wanted).map(|(_, name)| name.clone());
        }
    }
    let header = &message.header;
    let destination = Ipv4Net::new(network, header.destination_prefix_length).map_err(io::Error::other)?;
    Ok(RouteEntry { destination, link, gateway, source, scope: header.scope.into(), protocol: header.protocol.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::path_mtu;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("a network")
    }

    #[test]
    fn the_kernel_lists_what_was_added() {
        let (here, there) = (Namespace::new().expect("namespace"), Namespace::new().expect("namespace"));
        here.connect("eth0", &there, "eth0").expect("veth");
        assert_eq!(here.routes().expect("routes"), []);
        assert_eq!(here.addresses("eth0").expect("addresses"), []);

        here.add_address("eth0", net("10.0.0.2/24")).expect("address");
        here.add_address("eth0", net("10.9.0.0/32")).expect("address");
        assert_eq!(here.addresses("eth0").expect("addresses"), [net("10.0.0.2/24"), net("10.9.0.0/32")]);
        let again = here.add_address("eth0", net("10.0.0.2/24")).expect_err("taken");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);

        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        here.add_route(net("10.1.0.0/16"), None, "eth0").expect("on link");
        here.add_route(net("10.2.0.0/16"), Some(gateway), "eth0").expect("via");
        here.add_route_via(net("0.0.0.0/0"), gateway).expect("default");
        let route = |destination, gateway, source, scope, protocol| {
            let (destination, link) = (net(destination), Some("eth0".to_owned()));
            RouteEntry { destination, link, gateway, source, scope, protocol }
        };
        let own = Some(Ipv4Addr::new(10, 0, 0, 2));
        let mut expected = vec![
            route("0.0.0.0/0", Some(gateway), None, 0, 4),
            route("10.0.0.0/24", None, own, 253, 2),
            route("10.1.0.0/16", None, None, 253, 4),
            route("10.2.0.0/16", Some(gateway), None, 0, 4),
        ];
        assert_eq!(here.routes().expect("routes"), expected);

        here.delete_route(net("10.1.0.0/16")).expect("delete ours");
        here.delete_route(net("10.0.0.0/24")).expect("delete the kernel's");
        expected.drain(1..3);
        assert_eq!(here.routes().expect("routes"), expected);
        assert!(here.delete_route(net("10.1.0.0/16")).is_err());
    }

    #[test]
    fn a_path_mtu_applies_to_one_neighbour() {
        let (here, there) = (Namespace::new().expect("namespace"), Namespace::new().expect("namespace"));
        here.connect("eth0", &there, "eth0").expect("veth");
        here.add_address("eth0", net("10.0.0.2/24")).expect("address");
        let mtu = |to: [u8; 4]| here.enter(|| path_mtu(to.into())).expect("a path");
        here.narrow_path([10, 0, 0, 3].into(), "eth0", 1300).expect("narrowed");
        assert_eq!((mtu([10, 0, 0, 3]), mtu([10, 0, 0, 4])), (1300, 1500));
        here.delete_route(net("10.0.0.3/32")).expect("deleted");
        assert_eq!(mtu([10, 0, 0, 3]), 1500);
    }

    #[test]
    fn an_unknown_link_is_an_error_that_names_it() {
        let namespace = Namespace::new().expect("namespace");
        let error = namespace.add_address("eth7", net("10.0.0.2/24")).expect_err("no such link").to_string();
        assert!(error.starts_with("cannot add 10.0.0.2/24 to eth7: "), "{error}");
        assert!(namespace.add_route(net("10.1.0.0/16"), None, "eth7").is_err());
        assert!(namespace.addresses("eth7").is_err());
    }
}
