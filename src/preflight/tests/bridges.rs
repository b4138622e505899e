//! The bridges of the pods.

use super::*;

fn named(bridge: &str) -> Intended {
    Intended { bridge: Some(bridge.into()), ..intended() }
}

fn elsewhere(bridge: &str, address: Option<&str>) -> Finding {
    Finding::BridgeElsewhere { bridge: bridge.into(), address: address.map(net), subnet: subnet() }
}

/// Its connected route is part of the same trouble.
#[test]
fn a_bridge_with_an_old_range_is_found() {
    provokes(
        |world| world.add_bridge("docker0", "100.96.5.1/24"),
        intended(),
        elsewhere("docker0", Some("100.96.5.1/24")),
        &["docker0 has 100.96.5.1/24", "100.96.1.0/24", "dockerd --bip", "ip link delete dev docker0"],
    );
}

#[test]
fn a_bridge_outside_the_overlay_is_nobodys_business_unless_it_is_named() {
    let docker = |world: &mut World| world.add_bridge("docker0", "172.17.0.1/16");
    provokes_nothing(docker, intended());
    provokes(docker, named("docker0"), elsewhere("docker0", Some("172.17.0.1/16")), &["172.17.0.1/16"]);
}

#[test]
fn a_named_bridge_has_to_exist_and_to_have_an_address() {
    provokes_nothing(|_| {}, named("br0"));
    let missing = Finding::NoBridge { bridge: "docker0".into(), subnet: subnet() };
    provokes(|_| {}, named("docker0"), missing, &["docker0", "100.96.1.0/24"]);
    let bare = |world: &mut World| {
        world.add_link_of("docker0", vec![LinkInfo::Kind(InfoKind::Bridge)]);
        world.set_mtu("docker0", 1400);
    };
    provokes(bare, named("docker0"), elsewhere("docker0", None), &["no IPv4 address"]);
}

/// The hosts' own bridge is no pods' bridge, even where its addresses are in the overlay.
#[test]
fn an_underlay_that_is_a_bridge_is_none_of_pods() {
    let wide = Intended { network: net("96.0.0.0/3"), listen: [120, 0, 0, 2].into(), ..intended() };
    let overlap = Finding::Overlap {
        network: wide.network,
        underlay: net("120.0.0.0/24"),
        interface: "wan0".into(),
        loops: false,
    };
    let add = |world: &mut World| {
        world.add_bridge("wan0", "120.0.0.2/24");
        world.set_mtu("wan0", 1500);
    };
    provokes(add, wide, overlap, &["120.0.0.0/24"]);
}

/// A second address beside the right one is somebody's choice.
#[test]
fn one_address_of_the_subnet_is_enough() {
    provokes_nothing(|world| world.add_address("br0", "192.168.7.1/24"), intended());
}

#[test]
fn a_bridge_with_longer_packets_than_pass_is_a_hint() {
    let hint = |mtu, most| Finding::BridgeMtu { bridge: "br0".into(), mtu, most };
    let wide = |world: &mut World| world.set_mtu("br0", 1500);
    provokes(wide, intended(), hint(1500, 1472), &["MTU of 1500", "1472 bytes", "--mtu 1472"]);
    provokes(|_| {}, Intended { mtu: Some(1400), ..intended() }, hint(1472, 1400), &["1400"]);
}
