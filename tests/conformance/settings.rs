//! Invalid settings of a forwarder, one wrong field at a time.

use core::net::SocketAddr;

use loden::ipnet::IpNet;
use loden::{Host, HostError};

use support::host::{identity, net, own};

fn refused(network: impl Into<IpNet>, subnet: impl Into<IpNet>) -> HostError {
    Host::new(network, subnet, own()).map(drop).unwrap_err()
}

#[test]
fn the_underlay_is_one_host_and_port() {
    let of =
        |address: SocketAddr| Host::new(identity().network_v4().unwrap(), identity().subnet_v4().unwrap(), address);
    for (wrong, ip, port) in
        [("unspecified", [0, 0, 0, 0], 8285), ("a group", [224, 0, 0, 1], 8285), ("no port", [10, 168, 0, 2], 0)]
    {
        let address = (ip, port).into();
        assert_eq!(of(address), Err(HostError::Underlay { address }), "{wrong}");
    }
    assert_eq!(
        of("[::ffff:10.168.0.2]:8285".parse().unwrap()),
        Ok(identity()),
        "an IPv4-mapped address is an IPv4 address"
    );
    let unspecified = "[::ffff:0.0.0.0]:8285".parse().unwrap();
    assert_eq!(of(unspecified), Err(HostError::Underlay { address: unspecified }));
    let unscoped = "[fe80::1]:8285".parse().unwrap();
    assert_eq!(of(unscoped), Err(HostError::UnderlayScope { address: unscoped }));
    let scoped = "[fe80::1%3]:8285".parse().unwrap();
    assert_eq!(of(scoped).unwrap().underlay(), scoped);
}

#[test]
fn host_bits_are_ignored() {
    let host = Host::new(net([100, 96, 7, 7], 16), net([100, 96, 1, 9], 24), own()).unwrap();
    assert_eq!(host, identity());
    assert_eq!(
        (host.network_v4().unwrap(), host.subnet_v4().unwrap()),
        (net([100, 96, 0, 0], 16), net([100, 96, 1, 0], 24))
    );
    assert_eq!((host.underlay(), host.tun_address_v4()), (own(), Some([100, 96, 1, 0].into())));
}

fn of_sets(networks: &[&str], subnets: &[&str], underlays: &[&str]) -> Result<Host, HostError> {
    let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
    let underlays: Vec<SocketAddr> = underlays.iter().map(|underlay| underlay.parse().unwrap()).collect();
    Host::from_sets(&nets(networks), &nets(subnets), &underlays)
}

const NETWORKS: [&str; 2] = ["100.96.0.0/16", "fd00:96::/32"];
const SUBNETS: [&str; 2] = ["100.96.1.0/24", "fd00:96:1::/64"];
const UNDERLAYS: [&str; 2] = ["10.168.0.2:8285", "[fd00:168::2]:8285"];

/// A host carries one family or both, over one family or both.
#[test]
fn a_host_has_a_set_for_each_family() {
    assert_eq!(of_sets(&NETWORKS[..1], &SUBNETS[..1], &UNDERLAYS[..1]), Ok(identity()));
    for (inner, outer) in (0..2).flat_map(|inner| (0..2).map(move |outer| (inner, outer))) {
        let host = of_sets(&[NETWORKS[inner]], &[SUBNETS[inner]], &[UNDERLAYS[outer]]).unwrap();
        assert_eq!((host.network_v4().is_some(), host.network_v6().is_some()), (inner == 0, inner == 1));
        assert_eq!((host.subnet_v4().is_some(), host.subnet_v6().is_some()), (inner == 0, inner == 1));
        assert_eq!(host.underlay(), UNDERLAYS[outer].parse().unwrap());
    }
    let [[v4, v6], [four, six]] = [SUBNETS, UNDERLAYS];
    let host = of_sets(&["fd00:96::/32", "100.96.0.0/16"], &[v6, "100.96.9.0/24", v4, v4], &[six, four]).unwrap();
    let text = |nets: &[IpNet]| nets.iter().map(IpNet::to_string).collect::<Vec<_>>();
    assert_eq!(text(host.networks()), NETWORKS, "IPv4 comes first");
    assert_eq!(text(host.subnets()), ["100.96.9.0/24", v4, v6], "the given order in each family, once each");
    assert_eq!(host.underlays().iter().map(SocketAddr::to_string).collect::<Vec<_>>(), UNDERLAYS);
    assert_eq!(host.tun_address_v4(), Some([100, 96, 9, 0].into()), "of the first subnet");
    let to = |peer: &str| host.underlay_to(peer.parse().unwrap()).map(|underlay| underlay.to_string());
    assert_eq!((to("10.0.0.1"), to("fd00::1")), (Some(four.to_owned()), Some(six.to_owned())));
    assert_eq!(identity().underlay_to([0xfd00, 0, 0, 0, 0, 0, 0, 1].into()), None);
}

#[test]
fn incomplete_and_contradictory_sets_are_refused() {
    let net = |net: &str| net.parse::<IpNet>().unwrap();
    let [v4, v6] = SUBNETS;
    let missing = |what| Err(HostError::Missing { what });
    assert_eq!(of_sets(&[], &SUBNETS, &UNDERLAYS), missing("networks"));
    assert_eq!(of_sets(&NETWORKS, &SUBNETS, &[]), missing("underlay addresses"));
    assert_eq!(of_sets(&NETWORKS, &[v4], &UNDERLAYS), Err(HostError::NoSubnet { network: net(NETWORKS[1]) }));
    assert_eq!(of_sets(&NETWORKS[..1], &[v4, v6], &UNDERLAYS), Err(HostError::NoNetwork { subnet: net(v6) }));
    let too_many = |what, ipv4, ipv6| Err(HostError::TooMany { what, ipv4, ipv6 });
    let networks = [NETWORKS[0], NETWORKS[1], "fd00:97::/32"];
    assert_eq!(of_sets(&networks, &SUBNETS, &UNDERLAYS), too_many("networks", 1, 2));
    let underlays = [UNDERLAYS[0], "10.168.0.2:8286", UNDERLAYS[0]];
    assert_eq!(of_sets(&NETWORKS, &SUBNETS, &underlays), too_many("underlay addresses", 3, 0));
}

/// The address is the highest that RFC 2526 does not reserve, and the first one where nearly all are reserved.
#[test]
fn the_tun_address_of_an_ipv6_subnet() {
    for (subnet, address) in [
        ("fd00:96:1::/64", "fd00:96:1:0:ffff:ffff:ffff:ff7f"),
        ("fd00:96::/32", "fd00:96:ffff:ffff:ffff:ffff:ffff:ff7f"),
        ("fd00:96:1::/120", "fd00:96:1::7f"),
        ("fd00:96:1::/121", "fd00:96:1::"),
        ("fd00:96:1::9/128", "fd00:96:1::9"),
    ] {
        let host = of_sets(&["fd00:96::/32"], &[subnet], &UNDERLAYS).unwrap();
        assert_eq!(host.tun_address_v6(), Some(address.parse().unwrap()), "{subnet}");
        assert_eq!(host.tun_addresses().collect::<Vec<_>>(), [address.parse::<core::net::IpAddr>().unwrap()]);
    }
    let host = of_sets(&NETWORKS, &SUBNETS, &UNDERLAYS).unwrap();
    assert_eq!(host.tun_addresses().count(), 2);
}

#[test]
fn the_subnet_is_inside_the_network() {
    let network = IpNet::from(identity().network_v4().unwrap());
    for outside in [net([100, 97, 1, 0], 24), net([10, 0, 0, 0], 24), net([100, 0, 0, 0], 8)] {
        let subnet = IpNet::from(outside);
        assert_eq!(refused(network, subnet), HostError::SubnetOutside { subnet, network });
    }
    for inside in [net([100, 96, 255, 0], 24), net([100, 96, 0, 0], 16), net([100, 96, 7, 7], 32)] {
        assert!(Host::new(network, inside, own()).is_ok(), "{inside}");
    }
    let subnet = IpNet::from(net([0, 0, 0, 0], 24));
    assert_eq!(refused(network, subnet), HostError::SubnetUnspecified { subnet });
}

/// R71: a subnet without valid addresses is refused, and a network with a valid subnet is accepted.
#[test]
fn r71_networks_that_are_not_carried_are_refused() {
    for (network, subnet, range) in [
        (net([0, 0, 0, 0], 8), net([0, 7, 1, 0], 24), net([0, 0, 0, 0], 8)),
        (net([0, 0, 0, 0], 0), net([0, 7, 1, 0], 24), net([0, 0, 0, 0], 8)),
        (net([127, 0, 0, 0], 8), net([127, 0, 1, 0], 24), net([127, 0, 0, 0], 8)),
        (net([127, 96, 0, 0], 16), net([127, 96, 1, 0], 24), net([127, 0, 0, 0], 8)),
        (net([224, 0, 0, 0], 4), net([239, 1, 1, 0], 24), net([224, 0, 0, 0], 4)),
        (net([224, 1, 0, 0], 16), net([224, 1, 1, 0], 24), net([224, 0, 0, 0], 4)),
        (net([224, 0, 0, 0], 3), net([240, 1, 1, 0], 24), net([224, 0, 0, 0], 3)),
        (net([128, 0, 0, 0], 1), net([240, 1, 1, 0], 24), net([224, 0, 0, 0], 3)),
        (net([169, 0, 0, 0], 8), net([169, 254, 1, 0], 24), net([169, 254, 0, 0], 16)),
        (net([240, 0, 0, 0], 4), net([255, 255, 255, 255], 32), net([255, 255, 255, 255], 32)),
    ] {
        let (subnet, range) = (IpNet::from(subnet), IpNet::from(range));
        let error = refused(network, subnet);
        assert_eq!(error, HostError::Special { subnet, range }, "{network}");
        assert!(error.to_string().contains(&format!("{subnet} is in {range}")), "{error}");
    }
    for (network, subnet) in [
        (net([240, 0, 0, 0], 4), net([240, 0, 0, 0], 24)),
        (net([255, 255, 0, 0], 16), net([255, 255, 255, 0], 24)),
        (net([169, 254, 0, 0], 16), net([169, 254, 1, 0], 24)),
        (net([0, 0, 0, 0], 0), net([100, 96, 1, 0], 24)),
        (net([128, 0, 0, 0], 1), net([192, 0, 2, 0], 24)),
    ] {
        assert!(Host::new(network, subnet, own()).is_ok(), "{subnet} of {network}");
    }
}

#[test]
fn special_ipv6_ranges_are_refused() {
    for (subnet, range) in [("::/64", "::/8"), ("fe80:1::/64", "fe80::/10"), ("ff05::/64", "ff00::/8")] {
        let [subnet, range] = [subnet, range].map(|net| net.parse::<IpNet>().unwrap());
        let everything: IpNet = "::/0".parse().unwrap();
        assert_eq!(refused(everything, subnet), HostError::Special { subnet, range });
    }
    for wide in ["::/0", "8000::/1", "fc00::/6", "fe00::/7"] {
        let [subnet, range] = [wide, "ff00::/8"].map(|net| net.parse::<IpNet>().unwrap());
        assert_eq!(refused(subnet, subnet), HostError::Special { subnet, range }, "its TUN address is a group");
    }
}
