//! Two hosts of an overlay network, each with a container, connected by an underlay network.

use crate::Namespace;
use core::net::{Ipv4Addr, Ipv6Addr};
use ipnet::{Ipv4Net, Ipv6Net};
use std::io;

/// ```text
///    pod_a                host_a                       host_b                pod_b
///  ┌────────┐   ┌──────────────────────┐     ┌──────────────────────┐   ┌────────┐
///  │  eth0 ─┼───┼─ pod0          eth0 ─┼─────┼─ eth0          pod0 ─┼───┼─ eth0  │
///  └────────┘   └──────────────────────┘     └──────────────────────┘   └────────┘
///  100.96.1.2   100.96.1.1    10.168.0.2     10.168.0.3    100.96.2.1   100.96.2.3
/// ```
///
/// All prefixes are /24. A pod's default route is its host, and the hosts forward packets. The hosts have no routes to
/// each other's pods; the tunnel under test adds them.
///
/// All other settings are the kernel's. Two of its defaults affect probes. It sends at most six ICMP errors at once and
/// then one per second to a destination (`net/ipv4/icmp_ratelimit`, in milliseconds, 0 for no limit). And it sends IPv6
/// router solicitations on every link.
#[derive(Debug)]
pub struct TwoHosts {
    /// The container on host A.
    pub pod_a: Namespace,
    /// Host A: [`HOST_A`](Self::HOST_A) on `eth0`, [`GATEWAY_A`](Self::GATEWAY_A) on `pod0`.
    pub host_a: Namespace,
    /// Host B: [`HOST_B`](Self::HOST_B) on `eth0`, [`GATEWAY_B`](Self::GATEWAY_B) on `pod0`.
    pub host_b: Namespace,
    /// The container on host B.
    pub pod_b: Namespace,
    /// The routers between the hosts, from A to B: none, or those of [`with_narrow_middle`](Self::with_narrow_middle).
    pub routers: Vec<Namespace>,
}

impl TwoHosts {
    /// The pod on host A.
    pub const POD_A: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 2);
    /// The address of host A for its pod.
    pub const GATEWAY_A: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 1);
    /// Host A on the underlay.
    pub const HOST_A: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 2);
    /// Host B on the underlay.
    pub const HOST_B: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 3);
    /// The address of host B for its pod.
    pub const GATEWAY_B: Ipv4Addr = Ipv4Addr::new(100, 96, 2, 1);
    /// The pod on host B.
    pub const POD_B: Ipv4Addr = Ipv4Addr::new(100, 96, 2, 3);
    /// The subnet of host A's pods.
    pub const SUBNET_A: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 1, 0), 24);
    /// The subnet of host B's pods.
    pub const SUBNET_B: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 2, 0), 24);
    /// The network of all pods.
    pub const OVERLAY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 0, 0), 16);
    /// The IPv6 address of the pod on host A, after [`add_ipv6`](Self::add_ipv6).
    pub const POD_A_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, 2);
    /// The IPv6 address of host A for its pod.
    pub const GATEWAY_A_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, 1);
    /// The IPv6 address of host A on the underlay.
    pub const HOST_A_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 2);
    /// The IPv6 address of host B on the underlay.
    pub const HOST_B_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 3);
    /// The IPv6 address of host B for its pod.
    pub const GATEWAY_B_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, 1);
    /// The IPv6 address of the pod on host B.
    pub const POD_B_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, 3);
    /// The name of a host's link to the other host, and of a pod's link to its host.
    pub const UPLINK: &str = "eth0";
    /// The name of a host's link to its pod.
    pub const POD_LINK: &str = "pod0";
    /// The links of the router of [`through_a_router`](Self::through_a_router), to host A and to host B.
    pub const ROUTER_LINKS: [&str; 2] = ["a0", "b0"];
    /// The links of a router of [`with_narrow_middle`](Self::with_narrow_middle), to its host and to the other router.
    const HOST_LINK: &str = "host0";
    const MIDDLE: &str = "middle0";

    /// Creates the topology with an underlay MTU of 1500 bytes.
    ///
    /// # Errors
    /// See [`Namespace::new`]; otherwise the kernel's error.
    pub fn new() -> io::Result<Self> {
        Self::with_underlay_mtu(1500)
    }

    /// Creates the topology with another MTU between the hosts. The pods keep 1500 bytes.
    ///
    /// # Errors
    /// See [`Namespace::new`]; otherwise the kernel's error.
    pub fn with_underlay_mtu(mtu: u32) -> io::Result<Self> {
        let hosts = Self::apart()?;
        hosts.host_a.connect(Self::UPLINK, &hosts.host_b, Self::UPLINK)?;
        for (host, address) in [(&hosts.host_a, Self::HOST_A), (&hosts.host_b, Self::HOST_B)] {
            host.set_mtu(Self::UPLINK, mtu)?;
            host.add_address(Self::UPLINK, Ipv4Net::new_assert(address, 24))?;
        }
        hosts.with_pods()
    }

    /// Creates the topology with two routers between the hosts, and another MTU on the link between the routers. The
    /// hosts' links have 1500 bytes, so they learn the path MTU from a router:
    ///
    /// ```text
    ///  ┌ host_a ┐      ┌───── routers[0] ─────┐        ┌───── routers[1] ─────┐      ┌ host_b ┐
    ///  │   eth0 ┼──────┼ host0        middle0 ┼── mtu ─┼ middle0        host0 ┼──────┼ eth0   │
    ///  └────────┘      └──────────────────────┘        └──────────────────────┘      └────────┘
    ///  10.168.0.2      10.168.0.1    10.168.1.1        10.168.1.2    10.168.0.1      10.168.0.3
    /// ```
    ///
    /// # Errors
    /// See [`Namespace::new`]; otherwise the kernel's error.
    pub fn with_narrow_middle(mtu: u32) -> io::Result<Self> {
        let gateway = Ipv4Addr::new(10, 168, 0, 1);
        let ends = [Ipv4Addr::new(10, 168, 1, 1), Ipv4Addr::new(10, 168, 1, 2)];
        let one = |address| Ipv4Net::new_assert(address, 32);

        let mut hosts = Self::apart()?;
        let routers = [Namespace::new()?, Namespace::new()?];
        routers[0].connect(Self::MIDDLE, &routers[1], Self::MIDDLE)?;
        let hosts_of_routers = [(&hosts.host_a, Self::HOST_A), (&hosts.host_b, Self::HOST_B)];
        for (index, (host, address)) in hosts_of_routers.into_iter().enumerate() {
            let (router, other) = (&routers[index], hosts_of_routers[1 - index].1);
            router.sysctl("net/ipv4/ip_forward", "1")?;
            router.set_mtu(Self::MIDDLE, mtu)?;
            router.add_address(Self::MIDDLE, Ipv4Net::new_assert(ends[index], 24))?;
            router.add_route_via(one(other), ends[1 - index])?;
            // The hosts' addresses are in one prefix, so its connected route must not exist.
            host.connect(Self::UPLINK, router, Self::HOST_LINK)?;
            host.add_address(Self::UPLINK, one(address))?;
            router.add_address(Self::HOST_LINK, one(gateway))?;
            router.add_route(one(address), None, Self::HOST_LINK)?;
            host.add_route(one(gateway), None, Self::UPLINK)?;
            host.add_route_via(one(other), gateway)?;
        }
        hosts.routers = routers.into();
        hosts.with_pods()
    }

    /// Creates the topology with one router between the hosts, which forwards with its kernel's default settings. Its
    /// links are [`ROUTER_LINKS`](Self::ROUTER_LINKS), of 1500 bytes.
    ///
    /// # Errors
    /// See [`Namespace::new`]; otherwise the kernel's error.
    pub fn through_a_router() -> io::Result<Self> {
        let gateway = Ipv4Addr::new(10, 168, 0, 1);
        let one = |address| Ipv4Net::new_assert(address, 32);
        let mut hosts = Self::apart()?;
        let router = Namespace::new()?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        for ((host, address, other), link) in
            [(&hosts.host_a, Self::HOST_A, Self::HOST_B), (&hosts.host_b, Self::HOST_B, Self::HOST_A)]
                .into_iter()
                .zip(Self::ROUTER_LINKS)
        {
            host.connect(Self::UPLINK, &router, link)?;
            host.add_address(Self::UPLINK, one(address))?;
            router.add_address(link, one(gateway))?;
            router.add_route(one(address), None, link)?;
            host.add_route(one(gateway), None, Self::UPLINK)?;
            host.add_route_via(one(other), gateway)?;
        }
        hosts.routers = vec![router];
        hosts.with_pods()
    }

    /// Creates the topology of [`new`](Self::new) with IPv6 beside IPv4: see [`add_ipv6`](Self::add_ipv6).
    ///
    /// # Errors
    /// See [`Namespace::new`]; otherwise the kernel's error.
    pub fn dual_stack() -> io::Result<Self> {
        let hosts = Self::new()?;
        hosts.add_ipv6()?;
        Ok(hosts)
    }

    /// Adds IPv6 beside IPv4, on the pods' links and on the underlay. All prefixes are /64. The routers of
    /// [`with_narrow_middle`](Self::with_narrow_middle) forward it too.
    ///
    /// # Errors
    /// The kernel's error, for example without IPv6.
    pub fn add_ipv6(&self) -> io::Result<()> {
        let of = |address| Ipv6Net::new_assert(address, 64);
        let one = |address| Ipv6Net::new_assert(address, 128);
        let hosts = [
            (&self.host_a, Self::HOST_A_V6, Self::GATEWAY_A_V6, &self.pod_a, Self::POD_A_V6),
            (&self.host_b, Self::HOST_B_V6, Self::GATEWAY_B_V6, &self.pod_b, Self::POD_B_V6),
        ];
        for (host, address, gateway, pod, of_pod) in hosts {
            host.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            host.add_ipv6_address(Self::POD_LINK, of(gateway))?;
            pod.add_ipv6_address(Self::UPLINK, of(of_pod))?;
            pod.add_ipv6_route(Ipv6Net::default(), Some(gateway), Self::UPLINK)?;
            let prefix = if self.routers.is_empty() { of(address) } else { one(address) };
            host.add_ipv6_address(Self::UPLINK, prefix)?;
        }
        let gateway = Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 1);
        let middle = |end| Ipv6Addr::new(0xfd00, 0x168, 1, 0, 0, 0, 0, end);
        for (index, router) in self.routers.iter().enumerate() {
            let [(host, address, ..), (_, other, ..)] = [hosts[index % 2], hosts[1 - index % 2]];
            let [here, there] = [[1, 2][index % 2], [2, 1][index % 2]].map(middle);
            router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            router.add_ipv6_address(Self::MIDDLE, of(here))?;
            router.add_ipv6_route(one(other), Some(there), Self::MIDDLE)?;
            router.add_ipv6_address(Self::HOST_LINK, one(gateway))?;
            router.add_ipv6_route(one(address), None, Self::HOST_LINK)?;
            host.add_ipv6_route(one(gateway), None, Self::UPLINK)?;
            host.add_ipv6_route(one(other), Some(gateway), Self::UPLINK)?;
        }
        Ok(())
    }

    /// Creates the namespaces without links.
    fn apart() -> io::Result<Self> {
        let hosts = Self {
            pod_a: Namespace::new()?,
            host_a: Namespace::new()?,
            host_b: Namespace::new()?,
            pod_b: Namespace::new()?,
            routers: Vec::new(),
        };
        for host in [&hosts.host_a, &hosts.host_b] {
            host.sysctl("net/ipv4/ip_forward", "1")?;
        }
        Ok(hosts)
    }

    /// Adds the pods' links.
    fn with_pods(self) -> io::Result<Self> {
        join_pod(&self.host_a, Self::GATEWAY_A, &self.pod_a, Self::POD_A)?;
        join_pod(&self.host_b, Self::GATEWAY_B, &self.pod_b, Self::POD_B)?;
        Ok(self)
    }
}

fn join_pod(host: &Namespace, gateway: Ipv4Addr, pod: &Namespace, address: Ipv4Addr) -> io::Result<()> {
    host.connect(TwoHosts::POD_LINK, pod, TwoHosts::UPLINK)?;
    host.add_address(TwoHosts::POD_LINK, Ipv4Net::new_assert(gateway, 24))?;
    pod.add_address(TwoHosts::UPLINK, Ipv4Net::new_assert(address, 24))?;
    pod.add_route_via(Ipv4Net::default(), gateway)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{EchoV6, Fragmentation, Ping, PingOutcome, PingV6, path_mtu, ping, ping_v6};

    fn one(from: &Namespace, to: Ipv4Addr, settings: Ping) -> PingOutcome {
        from.enter(|| ping(to, settings)).expect("ping").remove(0)
    }

    fn error_of(outcome: PingOutcome) -> (Ipv4Addr, u8, u8, u16) {
        let PingOutcome::Error { from, kind, code, mtu, .. } = outcome else { panic!("{outcome:?}") };
        (from, kind, code, mtu)
    }

    #[test]
    fn neighbours_answer() {
        let hosts = TwoHosts::new().expect("topology");
        let expect = |from, to, wanted| {
            let outcome = one(from, to, Ping::default());
            let PingOutcome::Reply { from, ttl, .. } = outcome else { panic!("{to}: {outcome:?}") };
            assert_eq!((from, ttl), (to, wanted));
        };
        expect(&hosts.pod_a, TwoHosts::GATEWAY_A, 64);
        expect(&hosts.host_a, TwoHosts::HOST_B, 64);
        expect(&hosts.host_b, TwoHosts::POD_B, 64);
        expect(&hosts.pod_b, TwoHosts::HOST_B, 64);
    }

    #[test]
    fn the_host_reports_an_expired_ttl_and_an_unknown_network() {
        let hosts = TwoHosts::new().expect("topology");
        let expired = one(&hosts.pod_a, TwoHosts::HOST_B, Ping { ttl: Some(1), ..Ping::default() });
        assert_eq!(error_of(expired), (TwoHosts::GATEWAY_A, 11, 0, 0));
        let unknown = one(&hosts.pod_a, TwoHosts::POD_B, Ping::default());
        assert_eq!(error_of(unknown), (TwoHosts::GATEWAY_A, 3, 0, 0));
    }

    #[test]
    fn the_pods_reach_each_other_once_the_hosts_have_routes() {
        let hosts = TwoHosts::new().expect("topology");
        hosts.host_a.add_route_via(TwoHosts::SUBNET_B, TwoHosts::HOST_B).expect("route");
        hosts.host_b.add_route_via(TwoHosts::SUBNET_A, TwoHosts::HOST_A).expect("route");
        let outcomes = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping { count: 3, ..Ping::default() })).expect("ping");
        assert_eq!(outcomes.len(), 3);
        for outcome in outcomes {
            assert!(matches!(outcome, PingOutcome::Reply { from: TwoHosts::POD_B, ttl: 62, .. }), "{outcome:?}");
        }
    }

    #[test]
    fn a_smaller_underlay_is_reported_with_its_mtu() {
        let hosts = TwoHosts::with_underlay_mtu(1400).expect("topology");
        assert_eq!(hosts.host_a.link_mtu(TwoHosts::UPLINK).expect("MTU"), Some(1400));
        hosts.host_a.add_route_via(TwoHosts::SUBNET_B, TwoHosts::HOST_B).expect("route");
        hosts.host_b.add_route_via(TwoHosts::SUBNET_A, TwoHosts::HOST_A).expect("route");
        let fits = Ping { payload_len: 1372, fragmentation: Fragmentation::Forbidden, ..Ping::default() };
        assert!(matches!(one(&hosts.pod_a, TwoHosts::POD_B, fits.clone()), PingOutcome::Reply { .. }));
        assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("MTU"), 1500);
        for _ in 0..2 {
            let too_long = Ping { payload_len: 1373, ..fits.clone() };
            let outcome = one(&hosts.pod_a, TwoHosts::POD_B, too_long.clone());
            assert_eq!(error_of(outcome), (TwoHosts::GATEWAY_A, 3, 4, 1400));
            assert_eq!(one(&hosts.pod_a, TwoHosts::POD_B, too_long), PingOutcome::TooLong);
            assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("MTU"), 1400);
            let routes = hosts.pod_a.routes().expect("routes");
            assert_eq!(routes.len(), 2, "a learnt path MTU is not a route: {routes:?}");
            hosts.pod_a.forget_path_mtus().expect("forget");
            assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("MTU"), 1500);
        }
        let cut = Ping { payload_len: 1472, fragmentation: Fragmentation::Allowed, ..Ping::default() };
        assert!(matches!(one(&hosts.pod_a, TwoHosts::POD_B, cut), PingOutcome::Reply { .. }));
        assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("MTU"), 1500);
        let longer = Ping { payload_len: 1473, fragmentation: Fragmentation::Forbidden, ..Ping::default() };
        assert_eq!(one(&hosts.pod_a, TwoHosts::POD_B, longer), PingOutcome::TooLong);
    }

    #[test]
    fn neighbours_and_routers_carry_ipv6() {
        if !crate::has_ipv6() {
            return;
        }
        for hosts in [TwoHosts::new(), TwoHosts::with_narrow_middle(1400)].map(|hosts| hosts.expect("topology")) {
            hosts.add_ipv6().expect("IPv6");
            for (from, to) in [
                (&hosts.pod_a, TwoHosts::GATEWAY_A_V6),
                (&hosts.host_a, TwoHosts::HOST_B_V6),
                (&hosts.host_b, TwoHosts::HOST_A_V6),
                (&hosts.host_b, TwoHosts::POD_B_V6),
            ] {
                let patient = PingV6 { timeout: core::time::Duration::from_secs(5), ..PingV6::default() };
                let outcome = from.enter(|| ping_v6(to, patient)).expect("sent");
                assert_eq!(outcome, EchoV6::Reply { from: to });
            }
            let settings = PingV6 { hop_limit: 1, ..PingV6::default() };
            let outcome = hosts.pod_a.enter(|| ping_v6(TwoHosts::HOST_B_V6, settings)).expect("sent");
            assert!(matches!(outcome, EchoV6::Error { kind: 3, code: 0, .. }), "{outcome:?}");
        }
    }

    #[test]
    fn both_ends_discover_a_smaller_mtu_in_the_middle() {
        let hosts = TwoHosts::with_narrow_middle(1400).expect("topology");
        for (from, to) in [(&hosts.host_a, TwoHosts::HOST_B), (&hosts.host_b, TwoHosts::HOST_A)] {
            assert_eq!(from.link_mtu(TwoHosts::UPLINK).expect("MTU"), Some(1500));
            let outcome = one(from, to, Ping::default());
            assert!(matches!(outcome, PingOutcome::Reply { ttl: 62, .. }), "{outcome:?}");
            let too_long = Ping { payload_len: 1373, fragmentation: Fragmentation::Forbidden, ..Ping::default() };
            assert_eq!(error_of(one(from, to, too_long)), (Ipv4Addr::new(10, 168, 0, 1), 3, 4, 1400));
            assert_eq!(from.enter(|| path_mtu(to)).expect("MTU"), 1400);
        }
    }
}
