//! Tests of findings about IPv6 (V34), inside the tunnel and outside.

use core::net::Ipv6Addr;

use testbed::has_ipv6;

use super::host::hide;
use super::rules::{run_commands, sh};
use super::*;

const LISTEN_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 2);

fn network_v6() -> IpNet {
    net("fd00:96::/32")
}

fn subnet_v6() -> IpNet {
    net("fd00:96:1::/64")
}

/// Returns the configuration of a host of these networks.
fn config_of(networks: &[IpNet], subnets: &[IpNet], listen: &[SocketAddr]) -> PreflightConfig {
    let host = crate::Host::from_sets(networks, subnets, listen).expect("an identity");
    PreflightConfig::new(&host, "loden0")
}

/// Returns the configuration of a host that carries both families over IPv4.
fn dual_stack() -> PreflightConfig {
    config_of(&[network(), network_v6()], &[subnet(), subnet_v6()], &[(LISTEN, 8285).into()])
}

/// Returns the configuration of a host that carries IPv6 over IPv6, and nothing else.
fn ipv6_only() -> PreflightConfig {
    config_of(&[network_v6()], &[subnet_v6()], &[(LISTEN_V6, 8285).into()])
}

fn sysctl(setting: &str, value: u8) {
    fs::write(format!("/proc/sys/net/ipv6/{setting}"), value.to_string()).expect("the setting exists");
}

impl World {
    /// Creates a host with an underlay of both families and a bridge for pods of both, and without findings.
    fn dual_stack() -> Self {
        let mut world = Self::host();
        sysctl("conf/all/forwarding", 1);
        world.add_address("eth0", "fd00:168::2/64");
        world.add_address("br0", "fd00:96:1::1/64");
        // What both underlays leave.
        world.set_mtu("br0", 1452);
        for config in [dual_stack(), ipv6_only()] {
            assert_eq!(check(&config), []);
        }
        world
    }
}

/// Asserts the findings that `change` causes on a good host, and that the commands in them resolve all.
fn assert_all_found(change: impl FnOnce(&mut World) + Send + 'static, config: PreflightConfig, expected: Vec<Finding>) {
    in_namespace(move || {
        let mut world = World::dual_stack();
        change(&mut world);
        let found = check(&config);
        assert_eq!(found, expected);
        run_commands(&found);
        assert_eq!(check(&config), [], "after the commands of {found:#?}");
    });
}

#[test]
fn v34_forwarding_has_to_be_on_for_ipv6_too() {
    if !has_ipv6() {
        return;
    }
    let off = || vec![Finding::ForwardingOff { setting: "net.ipv6.conf.all.forwarding".into() }];
    for config in [dual_stack(), ipv6_only()] {
        assert_all_found(|_| sysctl("conf/all/forwarding", 0), config, off());
    }
    in_namespace(|| {
        let _world = World::dual_stack();
        set("ip_forward", 0);
        assert_eq!(check(&ipv6_only()), [], "IPv4 is not carried");
    });
}

#[test]
fn v34_ipv6_has_to_be_enabled_where_it_is_carried() {
    if !has_ipv6() {
        return;
    }
    let disabled = |interface: &str| Finding::Ipv6Disabled {
        interface: interface.into(),
        setting: format!("net.ipv6.conf.{interface}.disable_ipv6"),
    };
    assert_all_found(|_| sysctl("conf/default/disable_ipv6", 1), dual_stack(), vec![disabled("default")]);
    in_namespace(move || {
        let mut world = World::dual_stack();
        let _tun = world.open_tun("loden0");
        sysctl("conf/default/disable_ipv6", 1);
        assert_eq!(check(&dual_stack()), [], "the device exists");
        sysctl("conf/loden0/disable_ipv6", 1);
        assert_eq!(check(&dual_stack()), [disabled("loden0")]);
        sysctl("conf/br0/disable_ipv6", 1);
        assert!(check(&dual_stack()).contains(&disabled("br0")));
        assert_eq!(check(&config()), [], "IPv6 is not carried");
    });
}

/// The settings of IPv6 do not exist in a kernel without it.
#[test]
fn v34_a_kernel_without_ipv6_is_found() {
    in_namespace(|| {
        let _world = World::host();
        hide("/proc/sys/net");
        fs::create_dir_all("/proc/sys/net/ipv4").expect("a directory");
        for config in [dual_stack(), ipv6_only()] {
            let found = check(&config);
            let about_ipv6: Vec<_> =
                found.iter().filter(|finding| finding.to_string().to_lowercase().contains("ipv6")).collect();
            assert_eq!(about_ipv6, [&Finding::NoIpv6], "{found:#?}");
            assert!(Finding::NoIpv6.to_string().contains("`modprobe ipv6`"));
        }
        assert!(!check(&config()).contains(&Finding::NoIpv6));
    });
    if !has_ipv6() {
        in_namespace(|| {
            let _world = World::host();
            assert!(check(&dual_stack()).contains(&Finding::NoIpv6));
        });
    }
}

#[test]
fn v34_the_mtus_have_to_leave_1280_bytes() {
    if !has_ipv6() {
        return;
    }
    for (config, needed) in [(dual_stack(), 1308), (ipv6_only(), 1328)] {
        let narrow = Finding::UnderlayBelowIpv6 { interface: "eth0".into(), mtu: needed - 1, needed };
        in_namespace(move || {
            let mut world = World::dual_stack();
            world.set_mtu("br0", 1280);
            world.set_mtu("eth0", needed - 1);
            let found = check(&config);
            assert!(found.contains(&narrow) && found[0].to_string().contains("leaves 1279 bytes"), "{found:#?}");
            assert!(!found.iter().any(|finding| matches!(finding, Finding::TunBelowIpv6 { .. })), "{found:#?}");
            run_commands(found.get(..1).unwrap_or_default());
            assert_eq!(check(&config), []);
        });
    }
    let given = PreflightConfig { mtu: crate::Mtu::new(1279).ok(), ..dual_stack() };
    in_namespace(move || {
        let mut world = World::dual_stack();
        world.set_mtu("br0", 1279);
        let found = check(&given);
        assert!(found.contains(&Finding::TunBelowIpv6 { tun: "loden0".into(), mtu: 1279 }), "{found:#?}");
        let ipv4 = PreflightConfig { mtu: given.mtu, ..config() };
        assert_eq!(check(&ipv4), [], "IPv4 needs no 1280 bytes");
    });
}

#[test]
fn v34_ipv6_routes_must_not_bypass_the_device() {
    if !has_ipv6() {
        return;
    }
    let taken = |interface: Option<&str>| {
        vec![Finding::RouteTaken { network: network_v6(), interface: interface.map(Into::into) }]
    };
    for (route, interface) in [("", Some("eth0")), ("metric 1 ", Some("eth0"))] {
        in_namespace(move || {
            let _world = World::dual_stack();
            sh(&format!("ip -6 route add fd00:96::/32 dev eth0 {route}"));
            let found = check(&dual_stack());
            assert_eq!(found, taken(interface));
            assert!(found[0].to_string().contains("`ip -6 route show exact fd00:96::/32`"), "{}", found[0]);
        });
    }
    in_namespace(move || {
        let _world = World::dual_stack();
        sh("ip -6 route add blackhole fd00:96::/32");
        assert_eq!(check(&dual_stack()), taken(None));
    });
    in_namespace(|| {
        let _world = World::dual_stack();
        sh("ip -6 route add fd00:96::/32 dev eth0 metric 1025");
        assert_eq!(check(&dual_stack()), [], "the tunnel's own route precedes it");
    });
    for (route, text) in [
        ("fd00:96:2::/64 via fd00:168::3 dev eth0", "fd00:96:2::/64 via fd00:168::3 dev eth0 metric 1024"),
        ("unreachable fd00:96:3::/64", "unreachable fd00:96:3::/64 dev lo metric 1024"),
        ("fd00:96:1:0:1::/80 via fd00:168::3 dev eth0", "fd00:96:1:0:1::/80 via fd00:168::3 dev eth0 metric 1024"),
    ] {
        in_namespace(move || {
            let _world = World::dual_stack();
            sh(&format!("ip -6 route add {route}"));
            let found = check(&dual_stack());
            let [finding @ Finding::StaleRoute { .. }] = found.as_slice() else { panic!("{found:#?}") };
            assert!(finding.to_string().contains(&format!("`ip -6 route delete {text}`")), "{finding}");
            assert_eq!(check(&config()), [], "IPv6 is not carried");
            sh(&format!("ip -6 route delete {text}"));
            assert_eq!(check(&dual_stack()), []);
        });
    }
    // A configured device, in both forms of the address.
    for form in [AddressForm::Host, AddressForm::Network] {
        in_namespace(move || {
            let mut world = World::dual_stack();
            let _tun = world.open_tun("loden0");
            let networks = [network(), network_v6()];
            let listen = [(LISTEN, 8285).into()];
            let host = crate::Host::from_sets(&networks, &[subnet(), subnet_v6()], &listen).expect("an identity");
            let config = crate::sys::link::LinkConfig::new(&host).with_mtu(crate::Mtu::DEFAULT).with_form(form);
            let _link = Link::configure_with("loden0", &config).expect("configured");
            assert_eq!(check(&dual_stack()), [], "{form:?}");
        });
    }
}

#[test]
fn v34_overlay_and_underlay_have_to_be_apart_for_ipv6_too() {
    if !has_ipv6() {
        return;
    }
    in_namespace(|| {
        let mut world = World::dual_stack();
        world.add_address("eth0", "fd00:96:7::2/32");
        let listen: SocketAddr = "[fd00:96:7::2]:8285".parse().expect("an address");
        let config = config_of(&[network_v6()], &[subnet_v6()], &[listen]);
        let found = check(&config);
        let [Finding::Overlap { network, underlay, loops: true, .. }] = found.as_slice() else { panic!("{found:#?}") };
        assert_eq!((*network, *underlay), (network_v6(), network_v6()));
        let unheld = config_of(&[network_v6()], &[subnet_v6()], &["[fd00:168::9]:8285".parse().expect("an address")]);
        let listen = "fd00:168::9".parse().expect("an address");
        assert!(check(&unheld).contains(&Finding::ListenNotHeld { listen }));
    });
}

#[test]
fn v34_a_bridge_needs_an_address_of_each_subnet() {
    if !has_ipv6() {
        return;
    }
    let elsewhere = |address: Option<&str>| Finding::BridgeElsewhere {
        bridge: "br0".into(),
        address: address.map(net),
        subnet: subnet_v6(),
    };
    in_namespace(move || {
        let mut world = World::dual_stack();
        world.remove_address("br0", "fd00:96:1::1/64");
        assert_eq!(check(&dual_stack()), [], "the bridge may be for IPv4 alone");
        let named = PreflightConfig { bridge: Some("br0".into()), ..dual_stack() };
        let found = check(&named);
        assert_eq!(found, [elsewhere(None)]);
        assert!(found[0].to_string().contains("no IPv6 address in fd00:96:1::/64"), "{}", found[0]);
        world.add_address("br0", "fd00:96:9::1/64");
        assert_eq!(check(&dual_stack()), [elsewhere(Some("fd00:96:9::1/64"))]);
        assert_eq!(check(&config()), [], "IPv6 is not carried");
    });
}

#[test]
fn v34_firewalls_of_ipv6_are_read() {
    if !has_ipv6() {
        return;
    }
    const INPUT: &str = "nft add table ip6 t; \
        nft 'add chain ip6 t input { type filter hook input priority 0; policy drop; }'";
    const FORWARD: &str = "nft add table ip6 t; \
        nft 'add chain ip6 t forward { type filter hook forward priority 0; policy drop; }'";
    const INET: &str = "nft add table inet t; \
        nft 'add chain inet t forward { type filter hook forward priority 0; policy drop; }'; \
        nft add rule inet t forward ip saddr 100.96.0.0/16 accept; \
        nft add rule inet t forward ip daddr 100.96.0.0/16 accept";
    let chain = |family, table: &str, name: &str| NftablesChain { family, table: table.into(), name: name.into() };
    let forward = |chain, rules| vec![Finding::ForwardDropped { chain, rules, network: network_v6() }];
    let neighbours = |chain: &NftablesChain, interface: &str| Finding::NeighboursDropped {
        chain: chain.clone(),
        interface: interface.into(),
    };
    let input = move |chain: NftablesChain, certain| {
        let (eth0, br0) = (neighbours(&chain, "eth0"), neighbours(&chain, "br0"));
        vec![Finding::InputDropped { chain, port: 8285, certain }, eth0, br0]
    };
    assert_all_found(|_| sh(FORWARD), dual_stack(), forward(chain("ip6", "t", "forward"), 0));
    assert_all_found(|_| sh(INET), dual_stack(), forward(chain("inet", "t", "forward"), 2));
    assert_all_found(|_| sh(INPUT), ipv6_only(), input(chain("ip6", "t", "input"), true));
    let iptables = |_: &mut World| sh("ip6tables -P FORWARD DROP");
    assert_all_found(iptables, dual_stack(), forward(chain("ip6", "filter", "FORWARD"), 0));
    let iptables = |_: &mut World| sh("ip6tables -P INPUT DROP; ip6tables -A INPUT -p udp --dport 53 -j ACCEPT");
    assert_all_found(iptables, ipv6_only(), input(chain("ip6", "filter", "INPUT"), true));
    // Chains and rules that let the packets pass.
    for rules in [
        "nft add rule ip6 t input udp dport 8285 accept",
        "nft add rule ip6 t input ip6 daddr fd00:168::2 udp dport 8285 accept",
        "nft add rule ip6 t input ip6 saddr fd00:168::/64 udp dport 8285 accept",
        "nft add rule ip6 t input meta protocol ip6 meta l4proto udp accept",
        "nft add rule ip6 t input ip6 nexthdr udp accept",
    ] {
        in_namespace(move || {
            let _world = World::dual_stack();
            sh(INPUT);
            sh(rules);
            sh("nft add rule ip6 t input icmpv6 type '{ nd-neighbor-solicit, nd-neighbor-advert }' accept");
            assert_eq!(check(&ipv6_only()), [], "{rules}");
            assert_eq!(check(&dual_stack()), [], "the datagrams are of IPv4");
        });
    }
    for rules in [
        "nft add rule ip6 t input ip6 daddr fd00:168::3 udp dport 8285 accept",
        // No peer has an address of the overlay.
        "nft add rule ip6 t input ip6 saddr fd00:96::/32 accept",
        "nft add rule ip6 t input meta protocol ip accept",
    ] {
        in_namespace(move || {
            let _world = World::dual_stack();
            sh(INPUT);
            sh(rules);
            let found = check(&ipv6_only());
            let expected = input(chain("ip6", "t", "input"), true);
            assert_eq!(found.get(..2), expected.get(..2), "{rules}");
        });
    }
}

/// Without neighbour discovery no packet arrives, neither from the pods nor over IPv6.
#[test]
fn v34_firewalls_that_drop_neighbour_discovery_are_found() {
    if !has_ipv6() {
        return;
    }
    for rules in [
        "ip6tables -P INPUT DROP; ip6tables -A INPUT -p udp --dport 8285 -j ACCEPT",
        "ip6tables -P INPUT DROP; ip6tables -A INPUT -p ipv6-icmp --icmpv6-type echo-request -j ACCEPT; \
         ip6tables -A INPUT -p udp --dport 8285 -j ACCEPT",
        "ip6tables -A INPUT -p ipv6-icmp -j DROP",
        // It belongs to no connection.
        "ip6tables -P INPUT DROP; ip6tables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
         ip6tables -A INPUT -p udp --dport 8285 -j ACCEPT",
    ] {
        // On the bridge, and on the underlay of IPv6.
        for (config, count) in [(dual_stack as fn() -> PreflightConfig, 1), (ipv6_only, 2)] {
            in_namespace(move || {
                let _world = World::dual_stack();
                sh(rules);
                let found = check(&config());
                let dropped = |finding: &&Finding| matches!(finding, Finding::NeighboursDropped { .. });
                assert_eq!(found.iter().filter(dropped).count(), count, "{rules}: {found:#?}");
                run_commands(&found);
                assert_eq!(check(&config()), [], "{rules}");
            });
        }
    }
    for rules in [
        "ip6tables -P INPUT DROP; ip6tables -A INPUT -p ipv6-icmp -j ACCEPT; ip6tables -A INPUT -p udp -j ACCEPT",
        "ip6tables -P INPUT DROP; ip6tables -A INPUT -p ipv6-icmp --icmpv6-type neighbour-solicitation -j ACCEPT; \
         ip6tables -A INPUT -p udp -j ACCEPT",
    ] {
        in_namespace(move || {
            let _world = World::dual_stack();
            sh(rules);
            assert_eq!((check(&dual_stack()), check(&ipv6_only())), (vec![], vec![]), "{rules}");
        });
    }
}

#[test]
fn v34_masqueraded_ipv6_pods_are_found() {
    if !has_ipv6() {
        return;
    }
    in_namespace(|| {
        let _world = World::dual_stack();
        sh("ip6tables -t nat -A POSTROUTING -s fd00:96:1::/64 ! -o br0 -j MASQUERADE");
        let found = check(&ipv6_only());
        let names: Vec<_> = found.iter().map(Finding::name).collect();
        assert_eq!(names, ["port_tracked", "pods_reach_port"], "{found:#?}");
        assert_eq!(check(&dual_stack()), [], "the datagrams are of IPv4");
        run_commands(&found);
        assert_eq!(check(&ipv6_only()), []);
    });
}

/// A host that carries no IPv6 may be in any state of it.
#[test]
fn v34_nothing_is_said_about_ipv6_that_is_not_carried() {
    if !has_ipv6() {
        return;
    }
    in_namespace(|| {
        let mut world = World::host();
        world.add_address("eth0", "fd00:168::2/64");
        world.add_address("br0", "fd00:96:9::1/64");
        sh("ip -6 route add fd00:96::/32 dev eth0; ip6tables -P INPUT DROP; ip6tables -P FORWARD DROP; \
            ip6tables -t nat -A POSTROUTING -j MASQUERADE");
        for (setting, value) in [("all/forwarding", 0), ("default/disable_ipv6", 1), ("br0/disable_ipv6", 1)] {
            sysctl(&format!("conf/{setting}"), value);
        }
        assert_eq!(check(&config()), []);
    });
}
