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
    let of = |address: SocketAddr| Host::new(identity().network(), identity().subnet(), address);
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
    let scoped = "[fe80::1%3]:8285".parse().unwrap();
    assert_eq!(of(scoped).unwrap().underlay(), scoped);
}

#[test]
fn host_bits_are_ignored() {
    let host = Host::new(net([100, 96, 7, 7], 16), net([100, 96, 1, 9], 24), own()).unwrap();
    assert_eq!(host, identity());
    assert_eq!((host.network(), host.subnet()), (net([100, 96, 0, 0], 16), net([100, 96, 1, 0], 24)));
    assert_eq!((host.underlay(), host.tun_address()), (own(), [100, 96, 1, 0].into()));
}

#[test]
fn each_set_has_one_member() {
    let (network, subnet) = (IpNet::from(identity().network()), IpNet::from(identity().subnet()));
    let host = Host::from_sets(&[network], &[subnet], &[own()]).unwrap();
    assert_eq!(host, identity());
    assert_eq!((host.networks(), host.subnets(), host.underlays()), (&[network][..], &[subnet][..], &[own()][..]));
    for (networks, subnets, underlays, what, count) in [
        (vec![], vec![subnet], vec![own()], "networks", 0),
        (vec![network; 2], vec![subnet], vec![own()], "networks", 2),
        (vec![network], vec![subnet; 3], vec![own()], "subnets", 3),
        (vec![network], vec![subnet], vec![], "underlay addresses", 0),
    ] {
        assert_eq!(Host::from_sets(&networks, &subnets, &underlays), Err(HostError::Count { what, count }));
    }
}

#[test]
fn the_subnet_is_inside_the_network() {
    let network = IpNet::from(identity().network());
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
fn ipv6_is_not_carried() {
    let net: IpNet = "fd00::/64".parse().unwrap();
    assert_eq!(refused(net, identity().subnet()), HostError::Ipv6 { net });
    assert_eq!(refused(identity().network(), net), HostError::Ipv6 { net });
}
