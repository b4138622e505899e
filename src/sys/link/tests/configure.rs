//! Tests of link set-up, restoration, removal and requests.

use alloc::string::{String, ToString};
use std::net::UdpSocket;
use std::process::Command;

use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::route::RouteFlags;

use super::*;
use crate::host::MtuError;
use crate::sys::{Tun, TunConfig, TunOffload};

#[test]
fn the_host_form_makes_exactly_flannels_address_and_route_and_takes_them_back() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        let state = world.state("loden0");
        assert_eq!((link.index(), state.up, state.mtu), (index, true, 1472));
        assert_eq!(world.addresses(index), [(32, ADDRESS)]);
        let routes = world.routes();
        let [route] = routes.as_slice() else { panic!("one route: {routes:?}") };
        let header = &route.header;
        assert_eq!(
            (header.scope, header.protocol, header.kind, header.tos),
            (RouteScope::Universe, RouteProtocol::Boot, RouteType::Unicast, 0)
        );
        assert!(route.attributes.contains(&RouteAttribute::Oif(index)));
        let unwanted = |attribute: &RouteAttribute| {
            matches!(
                attribute,
                RouteAttribute::PrefSource(_) | RouteAttribute::Gateway(_) | RouteAttribute::Priority(_)
            )
        };
        assert!(!route.attributes.iter().any(unwanted), "{route:?}");
        link.remove().expect("removed");
        assert!(world.is_bare("loden0"));
    });
}

#[test]
fn configure_and_remove_keep_existing_parts() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let first = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        let second = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured again");
        second.remove().expect("nothing to remove");
        assert_eq!((world.addresses(index).len(), world.routes().len()), (1, 1));
        drop(first);
        assert_eq!((world.addresses(index).len(), world.routes().len()), (1, 1), "a restart finds everything");
        world.remove_route("loden0");
        Link::configure_with("loden0", &config(AddressForm::Host))
            .expect("half of it")
            .remove()
            .expect("the route only");
        assert_eq!((world.addresses(index).len(), world.routes().len()), (1, 0));
    });
}

#[test]
fn the_network_form_leaves_the_route_to_the_kernel() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let mut link = Link::configure_with("loden0", &config(AddressForm::Network)).expect("configured");
        assert_eq!(world.addresses(index), [(16, ADDRESS)]);
        let protocols =
            |world: &mut World| world.routes().iter().map(|route| route.header.protocol).collect::<Vec<_>>();
        assert_eq!(protocols(&mut world), [RouteProtocol::Kernel]);
        world.set_up("loden0", false);
        assert_eq!(link.restore().expect("asked"), Restored::LinkDown);
        world.set_up("loden0", true);
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: false, route: false });
        assert_eq!(protocols(&mut world), [RouteProtocol::Kernel]);
        link.remove().expect("removed");
        assert!(world.is_bare("loden0"));
    });
}

#[test]
fn host_bits_and_the_default_route_are_accepted() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        for network in ["100.96.7.9/16", "0.0.0.0/0", "100.96.1.0/32"] {
            let mut config = config(AddressForm::Host);
            config.networks[0].network = network.parse().expect("a network");
            for _ in 0..2 {
                let link = Link::configure_with("loden0", &config).expect(network);
                assert_eq!((link.interface(), link.config()), ("loden0", &config));
                drop(Link::configure_with("loden0", &config).expect("exists"));
                link.remove().expect(network);
            }
            assert!(world.is_bare("loden0"), "{network}");
        }
    });
}

/// Asserts the error for a route that `take` gave to another holder before.
fn with_route_taken(take: fn(&mut World), holder: Option<&'static str>, form: AddressForm) {
    in_namespace(move || {
        let mut world = World::new();
        world.add_link("eth7");
        world.set_up("eth7", true);
        take(&mut world);
        // The kernel notices late that the other end of the link is down.
        let routes = |world: &mut World| {
            let mut routes = world.routes();
            routes.iter_mut().for_each(|route| route.header.flags.remove(RouteFlags::Linkdown));
            routes
        };
        let before = routes(&mut world);
        let index = world.add_link("loden0");
        match Link::configure_with("loden0", &config(form)) {
            Err(LinkError::RouteTaken { network: taken, interface }) => {
                assert_eq!((taken, interface.as_deref()), (network().into(), holder));
            }
            other => panic!("{other:?}"),
        }
        let state = world.state("loden0");
        assert_eq!((state.up, state.mtu), (false, 1500), "MTU and up are as before");
        assert_eq!((world.addresses(index), routes(&mut world)), (vec![], before));
    });
}

#[test]
fn a_route_on_another_interface_is_an_error_and_leaves_no_changes() {
    with_route_taken(|world| world.add_route("eth7"), Some("eth7"), AddressForm::Host);
}

#[test]
fn a_connected_route_that_comes_first_is_an_error_although_ours_exists_behind_it() {
    with_route_taken(|world| world.add_address("eth7", "100.96.0.1/16"), Some("eth7"), AddressForm::Network);
}

#[test]
fn a_blackhole_for_the_overlay_is_an_error_without_an_interface() {
    let take = |world: &mut World| world.change_route(RouteType::BlackHole, "100.96.0.0/16", None);
    with_route_taken(take, None, AddressForm::Host);
}

#[test]
fn restore_adds_what_the_kernel_removed() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let mut link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        assert_eq!(link.restore().expect("whole"), Restored::Complete { address: false, route: false });
        world.set_up("loden0", false);
        assert_eq!(link.restore().expect("asked"), Restored::LinkDown);
        assert!(!world.state("loden0").up, "restore does not set a link up");
        world.set_up("loden0", true);
        assert_eq!((world.addresses(index).len(), world.routes().len()), (1, 0), "the kernel's side of the bargain");
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: false, route: true });
        world.remove_address("loden0", "100.96.1.0/32");
        assert_eq!(world.routes().len(), 0, "the last address takes the routes along");
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: true, route: true });
        assert_eq!((world.addresses(index).len(), world.routes().len()), (1, 1));
        link.remove().expect("removed");
        assert!(world.is_bare("loden0"));
    });
}

#[test]
fn a_device_that_is_gone_is_an_error_for_restore_and_none_for_remove() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        let mut link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        world.delete_link("loden0");
        world.add_link("loden0");
        match link.restore() {
            Err(LinkError::NoSuchInterface { interface }) => assert_eq!(interface, "loden0"),
            other => panic!("another device of that name is not ours: {other:?}"),
        }
        link.remove().expect("it went with the device");
    });
}

#[test]
fn wrong_arguments_are_errors_before_any_change() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        let host = config(AddressForm::Host);
        for name in ["", "loden1", "a-name-that-is-too-long", "loden0\0x"] {
            let error = Link::configure_with(name, &host).expect_err("no such interface");
            assert!(matches!(&error, LinkError::NoSuchInterface { interface } if interface == name), "{error:?}");
            assert!(matches!(LinkMonitor::open(name), Err(LinkError::NoSuchInterface { .. })));
        }
        let outside = host.clone().with_address([100, 97, 1, 0].into());
        let error = Link::configure_with("loden0", &outside).expect_err("outside").to_string();
        assert!(error.contains("100.97.1.0") && error.contains("100.96.0.0/16"), "{error}");
        assert!(world.is_bare("loden0") && !world.state("loden0").up);
        // A TAP device keeps room for an Ethernet header.
        let added = Command::new("ip").args(["tuntap", "add", "dev", "tap0", "mode", "tap"]).status();
        assert!(added.expect("iproute2 is installed").success());
        match Link::configure_with("tap0", &host.clone().with_mtu(Mtu::MAX)) {
            Err(LinkError::MtuOutOfRange { interface, mtu, min, max }) => {
                assert_eq!((interface.as_str(), mtu, min, max), ("tap0", 65_535, 68, 65_521));
            }
            other => panic!("{other:?}"),
        }
        for mtu in [Mtu::MIN, Mtu::MAX] {
            Link::configure_with("loden0", &host.clone().with_mtu(mtu)).expect("legal").remove().expect("removed");
            assert_eq!(world.state("loden0").mtu, u32::from(mtu));
        }
    });
}

/// The device gets what the underlay's interface leaves, and the link tells how much that is.
#[test]
fn the_mtu_is_that_of_the_underlay_unless_it_is_set() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        world.add_link("eth0");
        let host = LinkConfig { mtu: None, ..config(AddressForm::Host) };
        let error = Link::configure_with("loden0", &host).expect_err("no interface has the address");
        assert!(matches!(error, LinkError::NoSuchAddress { .. }), "{error:?}");
        world.add_address("eth0", "10.168.0.2/24");
        for (outer, inner) in [(1500, 1472), (9000, 8972), (96, 68)] {
            world.set_mtu("eth0", outer);
            let link = Link::configure_with("loden0", &host).expect("configured");
            assert_eq!((link.mtu().get(), world.state("loden0").mtu), (inner, inner.into()));
            link.remove().expect("removed");
        }
        world.set_mtu("eth0", 95);
        let error = Link::configure_with("loden0", &host).expect_err("too small");
        assert!(matches!(error, LinkError::Mtu(MtuError::UnderlayTooSmall { outer: 95, .. })), "{error:?}");
        assert!(world.is_bare("loden0"));
        let given = Link::configure_with("loden0", &host.with_mtu(Mtu::DEFAULT)).expect("the underlay is not asked");
        assert_eq!(given.mtu(), Mtu::DEFAULT);
    });
}

#[test]
fn without_the_capability_the_error_says_which_one() {
    in_namespace(|| {
        World::new().add_link("loden0");
        run_without_the_capability("child_without_the_capability");
    });
}

/// Runs an ignored test in a new user namespace, which has no rights in this network namespace.
fn run_without_the_capability(test: &str) {
    let output = Command::new("unshare")
        .arg("--user")
        .arg(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--nocapture", test])
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by without_the_capability_the_error_says_which_one"]
fn child_without_the_capability() {
    let error = Link::configure_with("loden0", &config(AddressForm::Host)).expect_err("not permitted");
    assert!(matches!(error, LinkError::NoPermission { .. }), "{error:?}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"));
    LinkMonitor::open("loden0").expect("watching is free");
    interface_of(Ipv4Addr::LOCALHOST.into()).expect("asking is free");
}

#[test]
fn the_underlay_is_the_interface_with_the_address() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("eth0");
        world.add_link("eth1");
        world.set_up("eth0", true);
        world.set_mtu("eth0", 9000);
        world.add_address("eth0", "10.168.0.9/24");
        world.add_address("eth1", "10.168.0.10/32");
        world.change_route(RouteType::Local, "10.77.0.0/16", Some(index));
        let ask = |address: &str| interface_of(address.parse().expect("an address"));
        let found = |address| {
            ask(address)
                .map(|found| (found.name.clone(), found.mtu, u32::from(found.tun_mtu().expect("an MTU"))))
                .expect(address)
        };
        assert_eq!(found("10.168.0.9"), ("eth0".into(), 9000, 8972));
        assert_eq!(found("10.168.0.10"), ("eth1".into(), 1500, 1472));
        assert_eq!(found("127.0.0.1"), ("lo".into(), 65_536, 65_507));
        assert_eq!(found("127.0.0.5"), ("lo".into(), 65_536, 65_507));
        assert_eq!(found("10.77.3.4"), ("eth0".into(), 9000, 8972));
        if testbed::has_ipv6() {
            assert_eq!(found("::1"), ("lo".into(), 65_536, 65_487));
        }
        for foreign in
            ["10.168.0.8", "10.168.0.255", "0.0.0.0", "224.0.0.1", "255.255.255.255", "8.8.8.8", "::", "fd00::1"]
        {
            match ask(foreign) {
                Err(LinkError::NoSuchAddress { address }) => assert_eq!(address.to_string(), foreign),
                other => panic!("{foreign}: {other:?}"),
            }
        }
    });
}

/// Hosts that announce their address by a routing protocol have it on `lo`.
#[test]
fn an_address_on_a_loopback_device_has_the_mtu_of_the_route_to_the_peers() {
    in_namespace(|| {
        let mut world = World::new();
        for stub in ["10.255.0.1/32", "10.255.0.2/32"] {
            world.add_address("lo", stub);
        }
        let of = |address: &str| {
            let found = interface_of(address.parse().expect("an address")).expect(address);
            (found.name.clone(), u32::from(found.tun_mtu().expect("an MTU")), found.address.to_string())
        };
        let to = |address: &str, peers: &[&str]| {
            let peers = peers.iter().map(|peer| peer.parse().expect("an address"));
            let found = interface_to(address.parse().expect("an address"), peers).expect(address);
            (found.name.clone(), u32::from(found.tun_mtu().expect("an MTU")))
        };
        assert_eq!(of("10.255.0.1"), ("lo".into(), 1472, "10.255.0.1".into()), "nothing is known of any way out");
        assert_eq!(of("127.0.0.1").1, 65_507);
        for (name, mtu, address) in [("eth0", 9000, "10.168.0.9/24"), ("eth1", 1400, "10.169.0.9/24")] {
            world.add_link(name);
            world.set_mtu(name, mtu);
            world.set_up(name, true);
            world.add_address(name, address);
        }
        let index = world.state("eth0").index;
        world.change_route(RouteType::Unicast, "0.0.0.0/0", Some(index));
        for stub in ["10.255.0.1", "10.255.0.2"] {
            assert_eq!(of(stub), ("eth0".into(), 8972, stub.into()), "the default route");
            assert_eq!(to(stub, &["10.168.0.3"]), ("eth0".into(), 8972));
            assert_eq!(to(stub, &["10.168.0.3", "10.169.0.3", "10.255.0.1", "fd00::1"]), ("eth1".into(), 1372));
            assert_eq!(to(stub, &["10.255.0.1"]), ("eth0".into(), 8972), "a peer on this host has no way out");
        }
        world.change_route_mtu("10.170.0.0/16", index, 1300);
        assert_eq!(to("10.255.0.1", &["10.170.0.1"]), ("eth0".into(), 1272), "a route may have an MTU of its own");
        assert_eq!(to("10.168.0.9", &["10.169.0.3"]), ("eth0".into(), 8972), "an address on a real interface");
    });
}

/// The broadcast entry that a bridge with the subnet's first host address has before Linux 5.14, added by hand.
#[test]
fn an_address_that_is_a_broadcast_address_of_a_bridge_is_made_local() {
    in_namespace(|| {
        let mut world = World::new();
        let bridge = world.add_link("docker0");
        world.set_up("docker0", true);
        world.add_link("loden0");
        world.change_route(RouteType::Broadcast, "100.96.1.0/32", Some(bridge));
        let is_local =
            |world: &mut World| requests::local_route(&mut world.0, ADDRESS.into()).expect("asked").is_some();
        world.add_address("loden0", "100.96.1.0/32");
        assert!(!is_local(&mut world), "the kernel's own local route is behind");
        world.remove_address("loden0", "100.96.1.0/32");

        let mut monitor = LinkMonitor::open("loden0").expect("watched");
        let mut link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        assert!(is_local(&mut world));
        Link::configure_with("loden0", &config(AddressForm::Host))
            .expect("again")
            .remove()
            .expect("nothing of its own");
        assert!(is_local(&mut world));
        assert_eq!(link.restore().expect("whole"), Restored::Complete { address: false, route: false });
        while monitor.next_event().expect("an event").is_some() {}

        let index = world.state("loden0").index;
        requests::remove_local_route(&mut world.0, index, "loden0", ADDRESS).expect("removed by someone");
        assert_eq!(
            monitor.next_event().expect("an event"),
            Some(LinkEvent::RouteRemoved(IpAddr::from(ADDRESS).into()))
        );
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: false, route: true });
        world.remove_address("loden0", "100.96.1.0/32");
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: true, route: true });
        assert!(is_local(&mut world));
        link.remove().expect("removed");
        assert!(world.is_bare("loden0") && !is_local(&mut world));
        requests::remove_local_route(&mut world.0, index, "loden0", ADDRESS).expect("nothing is left");
    });
}

/// An administrator has configured the device for a user.
#[test]
fn a_configured_device_needs_no_capability() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        drop(Link::configure_with("loden0", &config(AddressForm::Host)).expect("prepared"));
        run_without_the_capability("child_on_a_prepared_device");
        world.remove_route("loden0");
        run_without_the_capability("child_without_the_capability");
        world.add_route("loden0");
        world.set_mtu("loden0", 1400);
        run_without_the_capability("child_without_the_capability");
        assert_eq!(world.state("loden0").mtu, 1400);
    });
}

#[test]
#[ignore = "run by a_configured_device_needs_no_capability"]
fn child_on_a_prepared_device() {
    let mut link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("nothing has to change");
    assert_eq!(link.restore().expect("whole"), Restored::Complete { address: false, route: false });
    link.remove().expect("nothing is ours");
}

#[test]
fn an_interface_is_found_by_its_name_with_its_first_address() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("eth0");
        world.add_link("eth1");
        world.set_mtu("eth0", 9000);
        world.add_address("eth0", "10.168.0.9/24");
        world.add_address("eth0", "10.168.0.8/24");
        let found = interface_named("eth0").expect("an underlay");
        let address = IpAddr::from([10, 168, 0, 9]);
        assert_eq!(found, Underlay { index, name: "eth0".into(), mtu: 9000, address });
        let refused = |name| interface_named(name).expect_err("no underlay");
        assert!(matches!(refused("eth1"), LinkError::NoAddress { interface } if interface == "eth1"));
        assert!(matches!(refused("eth7"), LinkError::NoSuchInterface { interface } if interface == "eth7"));
    });
}

/// The queue has room for 500 packets, and no program reads (R72).
#[test]
fn r72_packets_that_the_queue_of_the_device_dropped_are_counted() {
    in_namespace(|| {
        let _world = World::new();
        let config = TunConfig::new("loden0").with_offload(TunOffload::NONE);
        let tun = Tun::open(&config).expect("a TUN device");
        let mut link = Link::configure_with("loden0", &self::config(AddressForm::Host)).expect("configured");
        let before = link.stats().expect("counters").tx_dropped;
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        for _ in 0..700 {
            socket.send_to(&[0; 8], "100.96.2.3:9").expect("sent");
        }
        let mut read = 0;
        let mut buffer = [0; 2048];
        while let Ok(meta) = tun.recv(&mut buffer) {
            read += u64::from(buffer[0] >> 4 == 4 && meta.len == 36);
        }
        assert!(read < 700, "nothing was dropped");
        let dropped = link.stats().expect("counters").tx_dropped - before;
        // Some of the packets may be IPv6 router solicitations.
        assert!((700 - read..710 - read).contains(&dropped), "{read} of 700 read and {dropped} dropped");
        drop(tun);
        assert!(matches!(link.stats(), Err(LinkError::NoSuchInterface { .. })));
    });
}

#[test]
fn the_parser_agrees_with_the_full_decoder_on_every_link() {
    in_namespace(|| {
        let mut world = World::new();
        for number in 0..40 {
            world.add_link(&alloc::format!("link{number}"));
        }
        world.set_up("link7", true);
        let read = |message: &message::Message<'_>| {
            let ours = LinkState::parse(message.body)?;
            let full = LinkMessage::parse(message.body).expect("the kernel's message");
            assert_eq!((ours.index, ours.up), (full.header.index, full.header.flags.contains(LinkFlags::Up)));
            assert!(full.attributes.contains(&LinkAttribute::IfName(ours.name.clone())));
            assert!(full.attributes.contains(&LinkAttribute::Mtu(ours.mtu)));
            Ok(Some(ours))
        };
        let links =
            world.0.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()), read).expect("the links").entries;
        assert_eq!(links.len(), 1 + 2 * 40, "lo and both ends of every pair");
    });
}
