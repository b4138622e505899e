//! Tests of links that carry IPv6 (V33).

use core::net::{Ipv6Addr, SocketAddr};
use core::time::Duration;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use ipnet::Ipv6Net;
use testbed::probe::{EchoV6, PingV6, ping_v6};
use testbed::{Namespace, has_ipv6};

use super::*;
use crate::sys::{Tun, TunConfig, TunOffload};

/// The address of V33 in fd00:96:1::/64.
const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0xffff, 0xffff, 0xffff, 0xff7f);

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

fn v6(text: &str) -> Ipv6Net {
    text.parse().expect("an IPv6 network")
}

/// Returns a host of IPv6, and of IPv4 too if it is asked for.
fn host(has_ipv4: bool) -> Host {
    let (mut networks, mut subnets) = (vec![net("fd00:96::/32")], vec![net("fd00:96:1::/64")]);
    if has_ipv4 {
        networks.push(network().into());
        subnets.push(Ipv4Net::new_assert(ADDRESS, 24).into());
    }
    Host::from_sets(&networks, &subnets, &[([10, 168, 0, 2], 8285).into()]).expect("an identity")
}

fn config_of(host: &Host) -> LinkConfig {
    LinkConfig::new(host).with_mtu(Mtu::DEFAULT)
}

impl World {
    /// Returns the IPv6 addresses of a link with their prefix lengths.
    fn ipv6_addresses(&mut self, index: u32) -> Vec<(Ipv6Addr, u8)> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet6;
        let read = |message: &message::Message<'_>| {
            let held = message::AddressEntry::parse(message.body)?;
            let IpAddr::V6(address) = held.address else { return Ok(None) };
            Ok((held.index == index).then_some((address, held.prefix_len)))
        };
        self.0.dump(&RouteNetlinkMessage::GetAddress(request), read).expect("the addresses").entries
    }

    /// Returns the IPv6 routes of the main table through a link: destination, metric, and whether the kernel added it.
    fn ipv6_routes(&mut self, index: u32) -> Vec<(IpNet, u32, bool)> {
        let mut request = RouteMessage::default();
        request.header.address_family = AddressFamily::Inet6;
        let read = |message: &message::Message<'_>| {
            let route = message::RouteEntry::parse(message.body)?;
            let is_its = route.interface == Some(index) && route.table == u32::from(RouteHeader::RT_TABLE_MAIN);
            let destination = route.destination.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
            let destination = IpNet::new(destination, route.prefix_len).expect("a network");
            Ok(is_its.then_some((destination, route.priority, route.connected)))
        };
        self.0.dump(&RouteNetlinkMessage::GetRoute(request), read).expect("the routes").entries
    }

    /// Adds an IPv6 route of another program.
    fn change_ipv6_route(&mut self, kind: RouteType, destination: &str, interface: Option<u32>, metric: u32) {
        let net = net(destination);
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.destination_prefix_length = net.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = kind;
        message.attributes = vec![RouteAttribute::Destination(net.network().into()), RouteAttribute::Priority(metric)];
        message.attributes.extend(interface.map(RouteAttribute::Oif));
        self.0.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE).expect("a route");
    }
}

fn sysctl(name: &str, value: &str) {
    fs::write(alloc::format!("/proc/sys/net/ipv6/{name}"), value).expect(name);
}

fn events(monitor: &mut LinkMonitor) -> Vec<LinkEvent> {
    core::iter::from_fn(|| monitor.next_event().expect("the monitor works")).collect()
}

#[test]
fn v33_the_link_has_an_address_and_a_route_of_each_family() {
    if !has_ipv6() {
        return;
    }
    for has_ipv4 in [false, true] {
        in_namespace(move || {
            let mut world = World::new();
            let index = world.add_link("loden0");
            let link = Link::configure_with("loden0", &config_of(&host(has_ipv4))).expect("configured");
            assert_eq!(world.ipv6_addresses(index), [(OWN, 128)], "and no link-local address");
            assert_eq!(world.ipv6_routes(index), [(net("fd00:96::/32"), 1024, false)]);
            assert_eq!(world.addresses(index), if has_ipv4 { vec![(32, ADDRESS)] } else { vec![] });
            assert_eq!(world.routes().len(), usize::from(has_ipv4));
            Link::configure_with("loden0", link.config()).expect("again").remove().expect("nothing is its own");
            assert_eq!((world.ipv6_addresses(index).len(), world.ipv6_routes(index).len()), (1, 1));
            link.remove().expect("removed");
            assert!(world.ipv6_addresses(index).is_empty() && world.ipv6_routes(index).is_empty());
            assert!(world.is_bare("loden0"));
        });
    }
}

#[test]
fn v33_the_address_is_configurable_and_may_have_the_length_of_the_network() {
    if !has_ipv6() {
        return;
    }
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let own: Ipv6Addr = "fd00:96:1::9".parse().expect("an address");
        let config = config_of(&host(true)).with_address(own.into()).with_form(AddressForm::Network);
        let mut link = Link::configure_with("loden0", &config).expect("configured");
        assert_eq!((world.ipv6_addresses(index), world.addresses(index)), (vec![(own, 32)], vec![(16, ADDRESS)]));
        assert_eq!(world.ipv6_routes(index), [(net("fd00:96::/32"), 256, true)], "the kernel's");
        world.set_up("loden0", false);
        world.set_up("loden0", true);
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: true, route: false });
        assert_eq!(world.ipv6_routes(index), [(net("fd00:96::/32"), 256, true)]);
        link.remove().expect("removed");
        assert!(world.ipv6_addresses(index).is_empty() && world.ipv6_routes(index).is_empty());
        let outside = config.with_address("fd00:97::1".parse().expect("an address"));
        let error = Link::configure_with("loden0", &outside).expect_err("outside");
        assert!(matches!(error, LinkError::AddressOutside { .. }), "{error:?}");
    });
}

/// A new device is not up, and so sends nothing when it is set up: whether it carries IPv6 or not.
#[test]
fn v33_a_new_device_is_silent() {
    if !has_ipv6() {
        return;
    }
    for (host, quiet) in [(Some(host(true)), true), (Some(host(false)), true), (None, true)] {
        in_namespace(move || {
            let _world = World::new();
            let tun = Tun::open(&TunConfig::new("loden0").with_offload(TunOffload::NONE)).expect("a TUN device");
            let config = host.as_ref().map_or_else(|| config(AddressForm::Host), config_of);
            let _link = Link::configure_with("loden0", &config).expect("configured");
            // The kernel reports its multicast groups after up to a second, and solicits routers then.
            thread::sleep(Duration::from_millis(1500));
            assert_eq!(tun.recv(&mut [0; 2048]).is_err(), quiet);
        });
    }
}

#[test]
fn v33_down_removes_ipv6_addresses_and_restore_adds_both_families() {
    if !has_ipv6() {
        return;
    }
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let mut monitor = LinkMonitor::open("loden0").expect("watched");
        let mut link = Link::configure_with("loden0", &config_of(&host(true))).expect("configured");
        events(&mut monitor);
        world.set_up("loden0", false);
        let seen = events(&mut monitor);
        assert!(seen.contains(&LinkEvent::AddressRemoved(OWN.into())), "{seen:?}");
        assert_eq!(seen.first(), Some(&LinkEvent::Down), "{seen:?}");
        assert_eq!(link.restore().expect("asked"), Restored::LinkDown);
        assert!(!world.state("loden0").up && world.ipv6_addresses(index).is_empty());
        world.set_up("loden0", true);
        assert_eq!(events(&mut monitor), [LinkEvent::Up]);
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: true, route: true });
        let is_complete = |world: &mut World| {
            world.ipv6_addresses(index) == [(OWN, 128)]
                && world.ipv6_routes(index) == [(net("fd00:96::/32"), 1024, false)]
                && (world.addresses(index).len(), world.routes().len()) == (1, 1)
        };
        assert!(is_complete(&mut world), "and there is no link-local address either");
        assert_eq!(link.restore().expect("whole"), Restored::Complete { address: false, route: false });

        requests::remove_route(&mut world.0, index, "loden0", net("fd00:96::/32")).expect("removed by someone");
        assert_eq!(events(&mut monitor), [LinkEvent::RouteRemoved(net("fd00:96::/32"))]);
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: false, route: true });
        world.remove_address("loden0", &alloc::format!("{OWN}/128"));
        assert_eq!(events(&mut monitor), [LinkEvent::AddressRemoved(OWN.into())]);
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: true, route: false });

        // Below 1280 bytes there is no IPv6.
        world.set_mtu("loden0", 1279);
        let seen = events(&mut monitor);
        assert!(seen.contains(&LinkEvent::AddressRemoved(OWN.into())), "{seen:?}");
        let error = link.restore().expect_err("too small");
        assert!(matches!(&error, LinkError::MtuBelowIpv6 { interface, mtu: 1279 } if interface == "loden0"));
        // IPv4 does not depend on it.
        world.remove_address("loden0", "100.96.1.0/32");
        assert_ne!(world.addresses(index).len(), 1);
        link.restore().expect_err("still too small");
        assert_eq!((world.addresses(index).len(), world.routes().len()), (1, 1), "address and route of IPv4 are back");
        world.set_mtu("loden0", 1280);
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: true, route: true });
        assert!(is_complete(&mut world), "and there is no link-local address either");
        link.remove().expect("removed");
        assert!(world.ipv6_routes(index).iter().all(|(_, _, connected)| *connected));
        assert!(world.is_bare("loden0"));
    });
}

#[test]
fn v24_an_mtu_below_1280_is_an_error_before_any_change() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        world.add_link("eth0");
        world.add_address("eth0", "10.168.0.2/24");
        let host = host(true);
        for (outer, inner) in [(1307, Err(1279)), (1308, Ok(1280))] {
            world.set_mtu("eth0", outer);
            let link = has_ipv6().then(|| Link::configure_with("loden0", &LinkConfig::new(&host)));
            match (inner, link) {
                (Ok(inner), Some(Ok(link))) => assert_eq!(link.mtu().get(), inner),
                (Err(inner), Some(Err(LinkError::MtuBelowIpv6 { interface, mtu }))) => {
                    assert_eq!((interface.as_str(), mtu), ("loden0", inner));
                    assert!(world.is_bare("loden0") && !world.state("loden0").up);
                }
                (_, None) => {}
                other => panic!("{other:?}"),
            }
        }
        let error = Link::configure_with("loden0", &config_of(&host).with_mtu(Mtu::MIN)).expect_err("68 bytes");
        assert!(error.to_string().contains("68 of loden0 is below the IPv6 minimum of 1280"), "{error}");
    });
}

#[test]
fn v33_a_device_without_ipv6_is_an_error_with_the_remedy() {
    if !has_ipv6() {
        return;
    }
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        sysctl("conf/loden0/disable_ipv6", "1");
        let error = Link::configure_with("loden0", &config_of(&host(true))).expect_err("disabled");
        assert!(matches!(&error, LinkError::Ipv6Disabled { interface } if interface == "loden0"), "{error:?}");
        assert!(error.to_string().contains("net.ipv6.conf.loden0.disable_ipv6"), "{error}");
        assert!(world.is_bare("loden0") && !world.state("loden0").up);
        let ipv4 = Link::configure_with("loden0", &config(AddressForm::Host)).expect("IPv4 needs no IPv6");
        ipv4.remove().expect("removed");
        sysctl("conf/loden0/disable_ipv6", "0");
        drop(Link::configure_with("loden0", &config_of(&host(true))).expect("configured"));
        assert_eq!(world.ipv6_addresses(index).first(), Some(&(OWN, 128)));
    });
}

/// A kernel without IPv6 carries IPv4, and names the reason why it carries no IPv6.
#[test]
fn v33_a_kernel_without_ipv6_is_an_error_with_the_remedy() {
    if has_ipv6() {
        return;
    }
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        let error = Link::configure_with("loden0", &config_of(&host(true))).expect_err("no IPv6");
        assert!(matches!(error, LinkError::NoIpv6 { .. }), "{error:?}");
        assert!(world.is_bare("loden0") && !world.state("loden0").up);
    });
}

/// The lower of the metrics wins, so that a route with a higher one than 1024 is no obstacle.
#[test]
fn v33_a_route_that_precedes_the_overlay_route_is_an_error() {
    if !has_ipv6() {
        return;
    }
    let cases: [(Option<u32>, Option<&str>); 5] = [
        (Some(1), Some("eth7")),
        (Some(256), Some("eth7")),
        (Some(1024), Some("eth7")),
        (Some(1025), None),
        (None, None),
    ];
    for (metric, holder) in cases {
        in_namespace(move || {
            let mut world = World::new();
            let other = world.add_link("eth7");
            world.set_up("eth7", true);
            let index = world.add_link("loden0");
            match metric {
                Some(metric) => world.change_ipv6_route(RouteType::Unicast, "fd00:96::/32", Some(other), metric),
                None => world.change_ipv6_route(RouteType::BlackHole, "fd00:96::/32", None, 1024),
            }
            let outcome = Link::configure_with("loden0", &config_of(&host(true)));
            match (outcome, metric) {
                (Ok(link), Some(1025)) => {
                    link.remove().expect("removed");
                    assert!(world.ipv6_routes(index).is_empty());
                }
                (Err(LinkError::RouteTaken { network, interface }), _) => {
                    assert_eq!((network, interface.as_deref()), (net("fd00:96::/32"), holder), "{metric:?}");
                    assert!(world.is_bare("loden0") && !world.state("loden0").up);
                    assert!(world.ipv6_addresses(index).is_empty());
                }
                (other, _) => panic!("{metric:?}: {other:?}"),
            }
        });
    }
}

/// Returns the address that answers a ping. A bridge that was just set up may lose the first request.
fn answering(to: Ipv6Addr) -> Option<Ipv6Addr> {
    (0..5).find_map(|_| match ping_v6(to, PingV6::default()).expect("sent") {
        EchoV6::Reply { from } => Some(from),
        EchoV6::Error { .. } | EchoV6::Silence | EchoV6::TooLong => None,
    })
}

/// The bridge comes first and forwards: it takes the subnet's first address, and leaves the device its own.
#[test]
fn v33_the_address_is_reached_beside_a_forwarding_bridge() {
    if !has_ipv6() {
        return;
    }
    let (node, pod) = (Namespace::new().expect("root"), Namespace::new().expect("root"));
    node.sysctl("net/ipv6/conf/all/forwarding", "1").expect("a sysctl");
    node.add_bridge("br0").expect("a bridge");
    node.connect("port0", &pod, "eth0").expect("a link");
    node.add_port("br0", "port0").expect("a port");
    node.add_ipv6_address("br0", v6("fd00:96:1::1/64")).expect("an address");
    pod.add_ipv6_address("eth0", v6("fd00:96:1::9/64")).expect("an address");
    pod.add_ipv6_route(v6("::/0"), Some("fd00:96:1::1".parse().expect("an address")), "eth0").expect("a route");
    let (tun, link, listener) = node.enter(|| {
        let tun = Tun::open(&TunConfig::new("loden0").with_offload(TunOffload::NONE)).expect("a TUN device");
        let link = Link::configure_with("loden0", &config_of(&host(true))).expect("configured");
        (tun, link, TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).expect("a listener"))
    });
    let port = listener.local_addr().expect("an address").port();
    // The pod's neighbours are on its link: it finds the device by the bridge, which answers for it.
    for from in [&node, &pod] {
        let patience = Duration::from_secs(5);
        let via = Ipv6Net::new_assert(OWN, 128);
        if core::ptr::eq(from, &pod) {
            pod.add_ipv6_route(via, Some("fd00:96:1::1".parse().expect("an address")), "eth0").expect("a route");
        }
        from.enter(|| {
            assert_eq!(answering(OWN), Some(OWN), "answered as itself");
            let to = SocketAddr::from((OWN, port));
            let mut client = TcpStream::connect_timeout(&to, patience).expect("connected");
            let (mut server, _) = listener.accept().expect("accepted");
            client.write_all(b"abc").expect("sent");
            let mut received = [0; 3];
            server.read_exact(&mut received).expect("received");
            assert_eq!(&received, b"abc");
        });
    }
    // The first address is the bridge's: an answer comes from another one.
    let first = "fd00:96:1::".parse().expect("an address");
    assert_ne!(node.enter(|| answering(first)), Some(first), "otherwise the first address would do");
    node.enter(move || link.remove().expect("removed"));
    drop(tun);
}
