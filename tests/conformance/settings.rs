//! Invalid settings of a forwarder, one wrong field at a time.

use loden::forward::{Forwarder, Overlay, OverlayError};
use loden::ipnet::IpNet;

use support::host::{net, overlay, own};

fn refused(overlay: Overlay) -> OverlayError {
    Forwarder::new(overlay).map(drop).unwrap_err()
}

#[test]
fn the_underlay_is_one_host_and_port() {
    for (wrong, ip) in [("unspecified", [0, 0, 0, 0]), ("a group", [224, 0, 0, 1])] {
        let address = (ip, 8285).into();
        let error = refused(Overlay { underlay: address, ..overlay() });
        assert_eq!(error, OverlayError::Underlay { address }, "{wrong}");
    }
    let address = (own().ip(), 0).into();
    assert_eq!(refused(Overlay { underlay: address, ..overlay() }), OverlayError::Underlay { address });
}

#[test]
fn the_subnet_is_inside_the_network() {
    let network = overlay().network;
    for outside in [net([100, 97, 1, 0], 24), net([10, 0, 0, 0], 24), net([100, 0, 0, 0], 8)] {
        let subnet = IpNet::from(outside);
        assert_eq!(refused(Overlay { subnet, ..overlay() }), OverlayError::SubnetOutside { subnet, network });
    }
    for inside in [net([100, 96, 255, 0], 24), net([100, 96, 0, 0], 16), net([100, 96, 7, 7], 32)] {
        assert!(Forwarder::new(Overlay { subnet: inside.into(), ..overlay() }).is_ok(), "{inside}");
    }
    let subnet = IpNet::from(net([0, 0, 0, 0], 24));
    assert_eq!(refused(Overlay { subnet, ..overlay() }), OverlayError::SubnetUnspecified { subnet });
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
        let error = refused(Overlay { network: network.into(), subnet, ..overlay() });
        assert_eq!(error, OverlayError::Special { subnet, range }, "{network}");
        assert!(error.to_string().contains(&format!("{subnet} is in {range}")), "{error}");
    }
    for (network, subnet) in [
        (net([240, 0, 0, 0], 4), net([240, 0, 0, 0], 24)),
        (net([255, 255, 0, 0], 16), net([255, 255, 255, 0], 24)),
        (net([169, 254, 0, 0], 16), net([169, 254, 1, 0], 24)),
        (net([0, 0, 0, 0], 0), net([100, 96, 1, 0], 24)),
        (net([128, 0, 0, 0], 1), net([192, 0, 2, 0], 24)),
    ] {
        let overlay = Overlay { network: network.into(), subnet: subnet.into(), ..overlay() };
        assert!(Forwarder::new(overlay).is_ok(), "{subnet} of {network}");
    }
}

#[test]
fn ipv6_is_not_carried() {
    let net: IpNet = "fd00::/64".parse().unwrap();
    assert_eq!(refused(Overlay { network: net, ..overlay() }), OverlayError::Ipv6 { net });
    assert_eq!(refused(Overlay { subnet: net, ..overlay() }), OverlayError::Ipv6 { net });
}
