//! Routes that lead past the tunnel.

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

/// A route as a former backend leaves it.
fn leave(world: &mut World, destination: &str, gateway: Option<[u8; 4]>, interface: &str, more: Vec<RouteAttribute>) {
    let index = world.state(interface).index;
    let destination = net(destination);
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = 254;
    message.header.protocol = RouteProtocol::Boot;
    message.header.kind = RouteType::Unicast;
    message.header.scope = if gateway.is_some() { RouteScope::Universe } else { RouteScope::Link };
    message.attributes =
        vec![RouteAttribute::Destination(RouteAddress::Inet(destination.network())), RouteAttribute::Oif(index)];
    message.attributes.extend(gateway.map(|gateway| RouteAttribute::Gateway(RouteAddress::Inet(gateway.into()))));
    message.attributes.extend(more);
    world.0.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).expect("a route");
}

const PEER: [u8; 4] = [10, 168, 0, 3];

#[test]
fn what_host_gw_left_is_found() {
    provokes(
        |world| leave(world, "100.96.2.0/24", Some(PEER), "eth0", vec![]),
        intended(),
        stale(route("100.96.2.0/24", Some(PEER), Some("eth0"))),
        &["packets to 100.96.2.0/24", "`ip route delete 100.96.2.0/24 via 10.168.0.3 dev eth0`"],
    );
    // Whatever its metric: a longer prefix is preferred first.
    provokes(
        |world| leave(world, "100.96.2.0/24", Some(PEER), "eth0", vec![RouteAttribute::Priority(100)]),
        intended(),
        stale(KernelRoute { metric: 100, ..route("100.96.2.0/24", Some(PEER), Some("eth0")) }),
        &["`ip route delete 100.96.2.0/24 via 10.168.0.3 dev eth0 metric 100`"],
    );
}

#[test]
fn what_a_vxlan_backend_left_is_found_with_its_device() {
    provokes(
        |world| {
            world.add_vxlan("flannel.1", 1);
            world.set_up("flannel.1", true);
            // As flannel has it: a /32 of our own subnet, which is no route of the main table.
            world.add_address("flannel.1", "100.96.1.0/32");
            leave(world, "100.96.2.0/24", None, "flannel.1", vec![]);
        },
        intended(),
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
        provokes(
            move |world| world.change_route(kind, "100.96.128.0/17", None),
            intended(),
            stale(KernelRoute { kind: name, ..route("100.96.128.0/17", None, None) }),
            &["100.96.128.0/17`"],
        );
    }
}

#[test]
fn our_own_subnet_is_for_our_own_links() {
    // A pod with a route of its own, a part behind a pod, and a hole for what no pod has.
    provokes_nothing(
        |world| {
            leave(world, "100.96.1.7/32", None, "br0", vec![]);
            leave(world, "100.96.1.64/26", Some([100, 96, 1, 7]), "br0", vec![]);
            world.change_route(RouteType::BlackHole, "100.96.1.128/25", None);
        },
        intended(),
    );
    // The lease was another host's before.
    provokes(
        |world| leave(world, "100.96.1.128/25", Some(PEER), "eth0", vec![]),
        intended(),
        stale(route("100.96.1.128/25", Some(PEER), Some("eth0"))),
        &["packets to 100.96.1.128/25 never reach"],
    );
}

#[test]
fn routes_outside_the_overlay_and_other_tables_are_nobodys_business() {
    provokes_nothing(
        |world| {
            leave(world, "100.97.0.0/16", Some(PEER), "eth0", vec![]);
            leave(world, "100.64.0.0/10", Some(PEER), "eth0", vec![]);
            leave(world, "0.0.0.0/0", Some(PEER), "eth0", vec![]);
            leave(world, "100.96.2.0/24", Some(PEER), "eth0", vec![RouteAttribute::Table(77)]);
        },
        intended(),
    );
}

#[test]
fn the_overlays_own_route_has_to_be_free() {
    let taken =
        |interface: Option<&str>| Finding::RouteTaken { network: network(), interface: interface.map(Into::into) };
    provokes(
        |world| world.add_route("eth0"),
        intended(),
        taken(Some("eth0")),
        &["held by eth0", "`ip route show exact 100.96.0.0/16`"],
    );
    provokes(
        |world| world.change_route(RouteType::BlackHole, "100.96.0.0/16", None),
        intended(),
        taken(None),
        &["without a single interface"],
    );
    // Ours is preferred to one with a metric.
    provokes_nothing(
        |world| leave(world, "100.96.0.0/16", Some(PEER), "eth0", vec![RouteAttribute::Priority(7)]),
        intended(),
    );
}

#[test]
fn an_overlay_of_everything_needs_the_default_route() {
    in_namespace(|| {
        let mut world = World::host();
        let everything = Intended { network: net("0.0.0.0/0"), ..intended() };
        let taken = Finding::RouteTaken { network: everything.network, interface: Some("eth0".into()) };
        assert!(!check(&everything).contains(&taken));
        leave(&mut world, "0.0.0.0/0", Some(PEER), "eth0", vec![]);
        assert!(check(&everything).contains(&taken));
    });
}

/// The tunnel's own routes are none of a former backend, and a tunnel of another name is one that runs already.
#[test]
fn a_running_tunnel_is_no_fault_of_its_own() {
    in_namespace(|| {
        let mut world = World::host();
        let _tun = world.open_tun("loden0");
        assert_eq!(check(&intended()), [], "a device that is not configured yet");
        for form in [AddressForm::Host, AddressForm::Network] {
            let link = Link::configure("loden0", &config(form)).expect("configured");
            assert_eq!(check(&intended()), []);
            let other = Intended { tun: "loden%d".into(), ..intended() };
            let taken = Finding::RouteTaken { network: network(), interface: Some("loden0".into()) };
            assert_eq!(check(&other), [taken]);
            link.remove().expect("removed");
        }
        // Into the tunnel with what is another host's, but not with what is our own.
        world.set_up("loden0", true);
        leave(&mut world, "100.96.2.0/24", None, "loden0", vec![]);
        assert_eq!(check(&intended()), []);
        leave(&mut world, "100.96.1.128/25", None, "loden0", vec![]);
        assert_eq!(check(&intended()), [stale(route("100.96.1.128/25", None, Some("loden0")))]);
    });
}
