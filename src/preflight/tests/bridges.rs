//! Tests of the bridges of pods.

use super::*;

fn named(bridge: &str) -> PreflightConfig {
    PreflightConfig { bridge: Some(bridge.into()), ..config() }
}

fn elsewhere(bridge: &str, address: Option<&str>) -> Finding {
    Finding::BridgeElsewhere { bridge: bridge.into(), address: address.map(net), subnet: subnet() }
}

/// The connected route of the bridge is no finding of its own.
#[test]
fn a_bridge_with_an_old_range_is_found() {
    assert_found(
        |world| world.add_bridge("docker0", "100.96.5.1/24"),
        config(),
        elsewhere("docker0", Some("100.96.5.1/24")),
        &["docker0 has 100.96.5.1/24", "100.96.1.0/24", "dockerd --bip", "ip link delete dev docker0"],
    );
}

#[test]
fn a_bridge_outside_the_overlay_is_no_finding_unless_it_is_configured() {
    let docker = |world: &mut World| world.add_bridge("docker0", "172.17.0.1/16");
    assert_nothing_found(docker, config());
    assert_found(docker, named("docker0"), elsewhere("docker0", Some("172.17.0.1/16")), &["172.17.0.1/16"]);
}

#[test]
fn a_configured_bridge_needs_an_address() {
    assert_nothing_found(|_| {}, named("br0"));
    let missing = Finding::NoBridge { bridge: "docker0".into(), subnet: subnet() };
    assert_found(|_| {}, named("docker0"), missing, &["docker0", "100.96.1.0/24"]);
    let bare = |world: &mut World| {
        world.add_link_of("docker0", vec![LinkInfo::Kind(InfoKind::Bridge)]);
        world.set_mtu("docker0", 1400);
    };
    assert_found(bare, named("docker0"), elsewhere("docker0", None), &["no IPv4 address"]);
}

/// A bridge that is the underlay is not a bridge of pods, even with an address of the overlay.
#[test]
fn an_underlay_that_is_a_bridge_is_no_bridge_of_pods() {
    let wide = PreflightConfig { networks: vec![net("96.0.0.0/3")], ..listening([([120, 0, 0, 2], 8285)]) };
    let overlap = Finding::Overlap {
        network: wide.networks[0],
        underlay: net("120.0.0.0/24"),
        interface: "wan0".into(),
        loops: false,
    };
    let add = |world: &mut World| {
        world.add_bridge("wan0", "120.0.0.2/24");
        world.set_mtu("wan0", 1500);
    };
    assert_found(add, wide, overlap, &["120.0.0.0/24"]);
}

/// A second address outside the subnet is no finding.
#[test]
fn one_address_of_the_subnet_is_enough() {
    assert_nothing_found(|world| world.add_address("br0", "192.168.7.1/24"), config());
}

#[test]
fn a_bridge_with_a_larger_mtu_than_the_tunnel_is_a_hint() {
    let hint = |mtu, max_mtu| Finding::BridgeMtu { bridge: "br0".into(), mtu, max_mtu };
    let wide = |world: &mut World| world.set_mtu("br0", 1500);
    assert_found(wide, config(), hint(1500, 1472), &["MTU of 1500", "1472 bytes", "--mtu 1472"]);
    assert_found(|_| {}, config().with_mtu(crate::Mtu::new(1400).expect("an MTU")), hint(1472, 1400), &["1400"]);
}
