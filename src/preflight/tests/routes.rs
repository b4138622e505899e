//! Tests of routes that bypass the tunnel.

use super::*;

fn route(destination: &str, gateway: Option<[u8; 4]>, interface: Option<&str>) -> KernelRoute {
    let gateway = gateway.map(IpAddr::from);
    KernelRoute {
        kind: "",
        destination: net(destination),
        tos: 0,
        gateway,
        interface: interface.map(Into::into),
        metric: 0,
    }
}

fn stale(route: KernelRoute) -> Finding {
    Finding::StaleRoute { route, vxlan: false }
}

/// Adds a route as a former backend does.
fn add_stale_route(
    world: &mut World,
    destination: &str,
    gateway: Option<[u8; 4]>,
    interface: &str,
    more: Vec<RouteAttribute>,
) {
    let index = world.state(interface).index;
    let destination = net(destination);
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = 254;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.attributes = vec![RouteAttribute::Destination(destination.network().into()), RouteAttribute::Oif(index)];
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::Inet(gateway.into()))));
    message.attributes.extend(more);
    world.0.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).expect("a route");
}

const PEER: [u8; 4] = [10, 168, 0, 3];

#[test]
fn routes_of_the_host_gw_backend_are_found() {
    assert_found(
        |world| add_stale_route(world, "100.96.2.0/24", Some(PEER), "eth0", vec![]),
        config(),
        stale(route("100.96.2.0/24", Some(PEER), Some("eth0"))),
        &["packets to 100.96.2.0/24", "`ip route delete 100.96.2.0/24 via 10.168.0.3 dev eth0`"],
    );
    // The kernel prefers a longer prefix regardless of its metric.
    assert_found(
        |world| add_stale_route(world, "100.96.2.0/24", Some(PEER), "eth0", vec![RouteAttribute::Priority(100)]),
        config(),
        stale(KernelRoute { metric: 100, ..route("100.96.2.0/24", Some(PEER), Some("eth0")) }),
        &["`ip route delete 100.96.2.0/24 via 10.168.0.3 dev eth0 metric 100`"],
    );
}

#[test]
fn routes_of_the_vxlan_backend_are_found_with_the_device() {
    assert_found(
        |world| {
            world.add_vxlan("flannel.1", 1);
            world.set_up("flannel.1", true);
            // The address of flannel: a /32 of the own subnet, which adds no route to the main table.
            world.add_address("flannel.1", "100.96.1.0/32");
            add_stale_route(world, "100.96.2.0/24", None, "flannel.1", vec![]);
        },
        config(),
        Finding::StaleRoute { route: route("100.96.2.0/24", None, Some("flannel.1")), vxlan: true },
        &["`ip route delete 100.96.2.0/24 dev flannel.1`", "`ip link delete dev flannel.1`"],
    );
}

#[test]
fn blackholes_for_other_hosts_are_found() {
    for (kind, name) in [
        (RouteType::BlackHole, "blackhole"),
        (RouteType::Unreachable, "unreachable"),
        (RouteType::Prohibit, "prohibit"),
        (RouteType::Throw, "throw"),
    ] {
        assert_found(
            move |world| world.change_route(kind, "100.96.128.0/17", None),
            config(),
            stale(KernelRoute { kind: name, ..route("100.96.128.0/17", None, None) }),
            &["100.96.128.0/17`"],
        );
    }
}

#[test]
fn routes_to_the_own_subnet_must_stay_on_the_host() {
    // A route to one pod, a subnet behind a pod, and a blackhole for unused addresses.
    assert_nothing_found(
        |world| {
            add_stale_route(world, "100.96.1.7/32", None, "br0", vec![]);
            add_stale_route(world, "100.96.1.64/26", Some([100, 96, 1, 7]), "br0", vec![]);
            world.change_route(RouteType::BlackHole, "100.96.1.128/25", None);
        },
        config(),
    );
    // The lease of the subnet belonged to another host before.
    assert_found(
        |world| add_stale_route(world, "100.96.1.128/25", Some(PEER), "eth0", vec![]),
        config(),
        stale(route("100.96.1.128/25", Some(PEER), Some("eth0"))),
        &["packets to 100.96.1.128/25 never reach"],
    );
}

#[test]
fn routes_outside_the_overlay_and_other_tables_are_no_finding() {
    assert_nothing_found(
        |world| {
            add_stale_route(world, "100.97.0.0/16", Some(PEER), "eth0", vec![]);
            add_stale_route(world, "100.64.0.0/10", Some(PEER), "eth0", vec![]);
            add_stale_route(world, "0.0.0.0/0", Some(PEER), "eth0", vec![]);
            add_stale_route(world, "100.96.2.0/24", Some(PEER), "eth0", vec![RouteAttribute::Table(77)]);
        },
        config(),
    );
}

#[test]
fn the_overlays_own_route_has_to_be_free() {
    let taken =
        |interface: Option<&str>| Finding::RouteTaken { network: network(), interface: interface.map(Into::into) };
    assert_found(
        |world| world.add_route("eth0"),
        config(),
        taken(Some("eth0")),
        &["held by eth0", "`ip route show exact 100.96.0.0/16`"],
    );
    assert_found(
        |world| world.change_route(RouteType::BlackHole, "100.96.0.0/16", None),
        config(),
        taken(None),
        &["without a single interface"],
    );
    // The kernel prefers the route without a metric.
    assert_nothing_found(
        |world| add_stale_route(world, "100.96.0.0/16", Some(PEER), "eth0", vec![RouteAttribute::Priority(7)]),
        config(),
    );
}

#[test]
fn an_overlay_of_everything_needs_the_default_route() {
    in_namespace(|| {
        let mut world = World::host();
        let everything = PreflightConfig { networks: vec![net("0.0.0.0/0")], ..config() };
        let taken = Finding::RouteTaken { network: everything.networks[0], interface: Some("eth0".into()) };
        assert!(!check(&everything).contains(&taken));
        add_stale_route(&mut world, "0.0.0.0/0", Some(PEER), "eth0", vec![]);
        assert!(check(&everything).contains(&taken));
    });
}

/// The tunnel's own routes are not stale, and a second tunnel cannot have the route of the first.
#[test]
fn a_running_tunnel_is_no_finding() {
    in_namespace(|| {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        assert_eq!(check(&config()), [], "an unconfigured device");
        for form in [AddressForm::Host, AddressForm::Network] {
            let link = Link::configure_with("loden0", &link_config(form)).expect("configured");
            assert_eq!(check(&config()), []);
            let other = PreflightConfig { tun: "loden%d".into(), ..config() };
            let taken = Finding::RouteTaken { network: network(), interface: Some("loden0".into()) };
            assert_eq!(check(&other), [taken]);
            link.remove().expect("removed");
        }
        // A route into the tunnel is right for the subnet of another host and wrong for the own subnet.
        world.set_up("loden0", true);
        add_stale_route(&mut world, "100.96.2.0/24", None, "loden0", vec![]);
        assert_eq!(check(&config()), []);
        add_stale_route(&mut world, "100.96.1.128/25", None, "loden0", vec![]);
        assert_eq!(check(&config()), [stale(route("100.96.1.128/25", None, Some("loden0")))]);
    });
}
