//! IPv6 addresses and routes of a namespace.

use crate::Namespace;
use crate::error::Context;
use crate::link::index_of;
use core::net::{IpAddr, Ipv6Addr};
use ipnet::Ipv6Net;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::io;

impl Namespace {
    /// Adds an IPv6 address to a link. It can be used at once, because the kernel does not look for duplicates.
    ///
    /// # Errors
    /// `AlreadyExists` if the link has it; otherwise the kernel's error.
    pub fn add_ipv6_address(&self, link: &str, address: Ipv6Net) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut message = AddressMessage::default();
            message.header.family = AddressFamily::Inet6;
            message.header.index = index_of(kernel, link)?;
            message.header.prefix_len = address.prefix_len();
            message.attributes =
                vec![AddressAttribute::Local(address.addr().into()), AddressAttribute::Flags(AddressFlags::Nodad)];
            kernel.add(RouteNetlinkMessage::NewAddress(message))
        })
        .context(|| format!("cannot add {address} to {link}"))
    }

    /// Returns the IPv6 addresses of a link in the kernel's order, with those that the kernel chose (fe80::/10).
    ///
    /// # Errors
    /// The kernel's error, for example for an unknown link.
    pub fn ipv6_addresses(&self, link: &str) -> io::Result<Vec<Ipv6Net>> {
        self.netlink(|kernel| {
            let index = index_of(kernel, link)?;
            let mut request = AddressMessage::default();
            request.header.family = AddressFamily::Inet6;
            let mut addresses = Vec::new();
            for message in kernel.list(RouteNetlinkMessage::GetAddress(request))? {
                let RouteNetlinkMessage::NewAddress(message) = message else { continue };
                let own = message.attributes.iter().find_map(|attribute| {
                    if let AddressAttribute::Address(IpAddr::V6(address)) = attribute { Some(*address) } else { None }
                });
                if message.header.index == index {
                    addresses.extend(own.and_then(|own| Ipv6Net::new(own, message.header.prefix_len).ok()));
                }
            }
            Ok(addresses)
        })
        .context(|| format!("cannot list the IPv6 addresses of {link}"))
    }

    /// Adds an IPv6 route through a link, with a gateway or to a destination on the link.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one for this destination; otherwise the kernel's error.
    pub fn add_ipv6_route(&self, destination: Ipv6Net, via: Option<Ipv6Addr>, link: &str) -> io::Result<()> {
        let gateway = via.map(|gateway| RouteAttribute::Gateway(gateway.into()));
        self.add_ipv6(destination, link, gateway)
            .context(|| format!("cannot add a route to {destination} through {link}"))
    }

    /// Reduces the MTU of the path to an IPv6 neighbour, as for a tunnel with a smaller MTU. It adds a host route with
    /// its own MTU in bytes.
    ///
    /// # Errors
    /// `AlreadyExists` if there is a route for this neighbour; otherwise the kernel's error.
    pub fn narrow_ipv6_path(&self, neighbour: Ipv6Addr, link: &str, mtu: u32) -> io::Result<()> {
        self.add_ipv6(neighbour.into(), link, Some(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])))
            .context(|| format!("cannot narrow the path to {neighbour} to {mtu} bytes"))
    }

    /// Removes the path MTUs that the kernel learned from ICMPv6 "packet too big" errors.
    ///
    /// # Errors
    /// See [`sysctl`](Self::sysctl).
    pub fn forget_ipv6_path_mtus(&self) -> io::Result<()> {
        self.sysctl("net/ipv6/route/flush", "1")
    }

    fn add_ipv6(&self, destination: Ipv6Net, link: &str, attribute: Option<RouteAttribute>) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut route = ipv6_route_through(destination, index_of(kernel, link)?);
            route.attributes.extend(attribute);
            kernel.add(RouteNetlinkMessage::NewRoute(route))
        })
    }
}

/// Returns a route of the main table through the link with this index.
pub(crate) fn ipv6_route_through(destination: Ipv6Net, link: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet6;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.header.destination_prefix_length = destination.prefix_len();
    route.attributes = vec![RouteAttribute::Destination(destination.network().into()), RouteAttribute::Oif(link)];
    route
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::has_ipv6;
    use crate::probe::{EchoV6, PingV6, ping_v6};
    use core::time::Duration;

    fn net(text: &str) -> Ipv6Net {
        text.parse().expect("a network")
    }

    #[test]
    fn neighbours_answer_at_once_and_routers_forward() {
        if !has_ipv6() {
            return;
        }
        let [left, router, right] = [0; 3].map(|_| Namespace::new().expect("namespace"));
        left.connect("eth0", &router, "left0").expect("veth");
        router.connect("right0", &right, "eth0").expect("veth");
        router.sysctl("net/ipv6/conf/all/forwarding", "1").expect("sysctl");
        left.add_ipv6_address("eth0", net("fd00:1::1/64")).expect("address");
        router.add_ipv6_address("left0", net("fd00:1::ff/64")).expect("address");
        router.add_ipv6_address("right0", net("fd00:2::ff/64")).expect("address");
        right.add_ipv6_address("eth0", net("fd00:2::1/64")).expect("address");
        assert!(left.ipv6_addresses("eth0").expect("addresses").contains(&net("fd00:1::1/64")));
        let again = left.add_ipv6_address("eth0", net("fd00:1::1/64")).expect_err("taken");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let gateway = |text: &str| Some(text.parse().expect("an address"));
        left.add_ipv6_route(net("fd00:2::/64"), gateway("fd00:1::ff"), "eth0").expect("route");
        right.add_ipv6_route(net("fd00:1::/64"), gateway("fd00:2::ff"), "eth0").expect("route");
        for to in ["fd00:1::ff", "fd00:2::1"] {
            let to = to.parse().expect("an address");
            let patient = PingV6 { timeout: Duration::from_secs(5), ..PingV6::default() };
            assert_eq!(left.enter(|| ping_v6(to, patient)).expect("sent"), EchoV6::Reply { from: to });
        }
        let nobody = "fd00:3::1".parse().expect("an address");
        assert!(left.enter(|| ping_v6(nobody, PingV6::default())).is_err(), "there is no route");
        let error = left.add_ipv6_address("eth7", net("fd00:1::2/64")).expect_err("no such link").to_string();
        assert!(error.starts_with("cannot add fd00:1::2/64 to eth7: "), "{error}");
    }
}
