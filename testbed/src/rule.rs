//! Routing rules and tables other than the main one.

use crate::Namespace;
use crate::error::Context;
use crate::ipv6::ipv6_route_through;
use crate::link::index_of;
use crate::route::route_through;
use core::net::Ipv4Addr;
use core::ops::RangeInclusive;
use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMetric, RouteScope};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use std::io;

/// Lower than 32766, the priority of the main table.
const TABLE_PRIORITY: u32 = 100;

impl Namespace {
    /// Routes packets received on `link` by the table with this number, 1 to 252. No other table applies, except the
    /// kernel's own of local addresses. Destinations without a route in the table are unreachable.
    ///
    /// # Errors
    /// `AlreadyExists` if the link already has such a rule; otherwise the kernel's error.
    pub fn route_input(&self, link: &str, table: u8) -> io::Result<()> {
        self.route_input_of(AddressFamily::Inet, link, table)
    }

    /// Does the same for IPv6, whose tables have the same numbers and other routes.
    ///
    /// # Errors
    /// As [`route_input`](Self::route_input).
    pub fn route_ipv6_input(&self, link: &str, table: u8) -> io::Result<()> {
        self.route_input_of(AddressFamily::Inet6, link, table)
    }

    fn route_input_of(&self, family: AddressFamily, link: &str, table: u8) -> io::Result<()> {
        let input = || RuleAttribute::Iifname(link.to_owned());
        let mut by_table = rule(TABLE_PRIORITY, RuleAction::ToTable, table, [input()]);
        let mut otherwise = rule(TABLE_PRIORITY + 1, RuleAction::Unreachable, RouteHeader::RT_TABLE_MAIN, [input()]);
        (by_table.header.family, otherwise.header.family) = (family, family);
        self.netlink(|kernel| {
            kernel.add(RouteNetlinkMessage::NewRule(by_table))?;
            kernel.add(RouteNetlinkMessage::NewRule(otherwise))
        })
        .context(|| format!("cannot route what comes in by {link} by table {table}"))
    }

    /// Routes UDP packets from a port of this range, 65,534 at most, by the table with this number, 1 to 252.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn route_udp_from(&self, ports: RangeInclusive<u16>, table: u8) -> io::Result<()> {
        let ports = RulePortRange { start: *ports.start(), end: *ports.end() };
        let of_udp = [RuleAttribute::IpProtocol(IpProtocol::Udp), RuleAttribute::SourcePortRange(ports)];
        let rule = rule(TABLE_PRIORITY, RuleAction::ToTable, table, of_udp);
        self.netlink(|kernel| kernel.add(RouteNetlinkMessage::NewRule(rule)))
            .context(|| format!("cannot route UDP by table {table}"))
    }

    /// Adds a route to a neighbour on a link with its own MTU, to a table other than the main one.
    ///
    /// # Errors
    /// `AlreadyExists` if the table has one for this neighbour; otherwise the kernel's error.
    pub fn narrow_path_in_table(&self, table: u8, neighbour: Ipv4Addr, link: &str, mtu: u32) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut route = route_through(neighbour.into(), index_of(kernel, link)?);
            (route.header.scope, route.header.table) = (RouteScope::Link, table);
            route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
            kernel.add(RouteNetlinkMessage::NewRoute(route))
        })
        .context(|| format!("cannot add a route to {neighbour} of {mtu} bytes to table {table}"))
    }

    /// Adds a route to a destination on a link, to a table other than the main one.
    ///
    /// # Errors
    /// `AlreadyExists` if the table has one for this destination; otherwise the kernel's error.
    pub fn add_route_to_table(&self, table: u8, destination: Ipv4Net, link: &str) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut route = route_through(destination, index_of(kernel, link)?);
            (route.header.scope, route.header.table) = (RouteScope::Link, table);
            kernel.add(RouteNetlinkMessage::NewRoute(route))
        })
        .context(|| format!("cannot add a route to {destination} through {link} to table {table}"))
    }

    /// Adds an IPv6 route to a destination on a link, to a table other than the main one.
    ///
    /// # Errors
    /// `AlreadyExists` if the table has one for this destination; otherwise the kernel's error.
    pub fn add_ipv6_route_to_table(&self, table: u8, destination: Ipv6Net, link: &str) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut route = ipv6_route_through(destination, index_of(kernel, link)?);
            route.header.table = table;
            kernel.add(RouteNetlinkMessage::NewRoute(route))
        })
        .context(|| format!("cannot add a route to {destination} through {link} to table {table}"))
    }
}

fn rule(
    priority: u32,
    action: RuleAction,
    table: u8,
    selectors: impl IntoIterator<Item = RuleAttribute>,
) -> RuleMessage {
    let mut rule = RuleMessage::default();
    (rule.header.family, rule.header.action, rule.header.table) = (AddressFamily::Inet, action, table);
    rule.attributes.push(RuleAttribute::Priority(priority));
    rule.attributes.extend(selectors);
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::has_ipv6;
    use crate::probe::{EchoV6, Ping, PingOutcome, PingV6, ping, ping_v6};
    use core::time::Duration;

    const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

    /// A router with routes to both hosts that then has none for packets from one of them.
    #[test]
    fn packets_received_on_a_link_use_their_own_table() {
        let [near, router, far] = [(); 3].map(|()| Namespace::new().expect("namespace"));
        router.sysctl("net/ipv4/ip_forward", "1").expect("sysctl");
        for (host, link, address, own) in [(&near, "near0", NEAR, [10, 0, 1, 1]), (&far, "far0", FAR, [10, 0, 2, 1])] {
            router.connect(link, host, "eth0").expect("veth");
            router.add_address(link, Ipv4Net::new_assert(own.into(), 24)).expect("address");
            host.add_address("eth0", Ipv4Net::new_assert(address, 24)).expect("address");
            host.add_route_via(Ipv4Net::default(), own.into()).expect("default route");
        }
        let attempt = || {
            let patient = Ping { timeout: Duration::from_secs(5), ..Ping::default() };
            near.enter(|| ping(FAR, patient)).expect("ping")[0]
        };
        let reply = |outcome| matches!(outcome, PingOutcome::Reply { .. });
        assert!(reply(attempt()), "by the main table");
        router.route_input("near0", 77).expect("rules");
        assert!(matches!(attempt(), PingOutcome::Error { kind: 3, code: 0, .. }));
        router.add_route_to_table(77, Ipv4Net::new_assert(FAR, 32), "far0").expect("a route");
        assert!(reply(attempt()), "by its table");
        let again = router.route_input("near0", 77).expect_err("said before");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn ipv6_packets_received_on_a_link_use_their_own_table() {
        if !has_ipv6() {
            return;
        }
        let [near, router, far] = [(); 3].map(|()| Namespace::new().expect("namespace"));
        router.sysctl("net/ipv6/conf/all/forwarding", "1").expect("sysctl");
        let net = |text: &str| text.parse::<Ipv6Net>().expect("a network");
        for (host, link, subnet) in [(&near, "near0", "fd00:1::"), (&far, "far0", "fd00:2::")] {
            router.connect(link, host, "eth0").expect("veth");
            router.add_ipv6_address(link, net(&format!("{subnet}1/64"))).expect("address");
            host.add_ipv6_address("eth0", net(&format!("{subnet}2/64"))).expect("address");
            let gateway = Some(net(&format!("{subnet}1/64")).addr());
            host.add_ipv6_route(net("::/0"), gateway, "eth0").expect("default route");
        }
        let to = net("fd00:2::2/128");
        let attempt = || {
            let patient = PingV6 { timeout: Duration::from_secs(5), ..PingV6::default() };
            near.enter(|| ping_v6(to.addr(), patient)).expect("ping")
        };
        assert_eq!(attempt(), EchoV6::Reply { from: to.addr() }, "by the main table");
        router.route_ipv6_input("near0", 77).expect("rules");
        assert!(matches!(attempt(), EchoV6::Error { kind: 1, code: 0, .. }));
        router.add_ipv6_route_to_table(77, to, "far0").expect("a route");
        assert_eq!(attempt(), EchoV6::Reply { from: to.addr() }, "by its table");
        let again = router.route_ipv6_input("near0", 77).expect_err("said before");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }
}
