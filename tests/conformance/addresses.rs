//! Addresses, and the invalid ones of fault 10.

use core::net::Ipv4Addr;

use loden::forward::{DropReason, IcmpSource, Transit};
use loden::route::Route;

use support::host::{Host, Outcome, POD, POD_A, config, config_of, host_a, host_b, net, own};
use support::model;
use support::packet::{ICMP, Ipv4, icmp};

/// The first and last address of each class, and the drop reasons of such a source and such a destination.
const CLASSES: [([u8; 4], [u8; 4], DropReason, DropReason); 5] = {
    use DropReason::{LinkLocal, MartianDestination, MartianSource, MulticastDestination};
    [
        ([0, 0, 0, 0], [0, 255, 255, 255], MartianSource, MartianDestination),
        ([127, 0, 0, 0], [127, 255, 255, 255], MartianSource, MartianDestination),
        ([169, 254, 0, 0], [169, 254, 255, 255], LinkLocal, LinkLocal),
        ([224, 0, 0, 0], [239, 255, 255, 255], MartianSource, MulticastDestination),
        ([240, 0, 0, 0], [255, 255, 255, 254], MartianSource, MartianDestination),
        // 255.255.255.255 has its own test.
    ]
};

/// Returns a host that routes every address: to B, except A's own. B may send anything for anyone.
fn open() -> Host {
    Host::with_default_route(config().with_transit(Transit::Allowed), host_b())
}

fn naive(address: Ipv4Addr, of: fn(&(DropReason, DropReason)) -> DropReason) -> Option<DropReason> {
    let holding = CLASSES.iter().find(|(first, last, ..)| (*first..=*last).contains(&address.octets()));
    holding.map(|(_, _, source, destination)| of(&(*source, *destination)))
}

/// Returns the edges of every class, their neighbours outside, and an address of every /16.
fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    let edges = CLASSES.iter().flat_map(|(first, last, ..)| [*first, *last]).map(Ipv4Addr::from);
    let around = edges.flat_map(|edge| {
        let bits = edge.to_bits();
        [bits.wrapping_sub(1), bits, bits.wrapping_add(1)].map(Ipv4Addr::from_bits)
    });
    let everywhere = (0..=0xffff).map(|net: u32| Ipv4Addr::from_bits(net << 16 | 0x0102));
    around.chain(everywhere).filter(|address| *address != Ipv4Addr::BROADCAST)
}

/// R14, R18, R19, R62: each source, in both directions. Sources outside the classes are forwarded.
#[test]
fn r14_fault_10_invalid_sources_are_dropped_without_an_icmp_error() {
    let host = open();
    for source in addresses() {
        let expected = naive(source, |(source, _)| *source);
        let out = host.encapsulate(&Ipv4::new(source, POD_A).bytes());
        let back = host.decapsulate(&Ipv4::new(source, POD).bytes(), host_b());
        match expected {
            Some(reason) => assert_eq!([out, back], [Outcome::Drop(reason), Outcome::Drop(reason)], "{source}"),
            None => {
                assert_eq!(out.reason(), None, "{source}");
                // The source check is later, and does not depend on classes.
                let owned_by_b = host.naive_route(source).is_some_and(|route| route.next_hop == host_b());
                let ours = source.octets()[..3] == [100, 96, 1];
                let spoofed = (!owned_by_b || ours).then_some(DropReason::SpoofedSource);
                assert_eq!(back.reason(), spoofed, "{source}");
            }
        }
    }
}

/// R15, R17, R18, R19: each destination, in both directions.
#[test]
fn r15_fault_10_invalid_destinations_are_dropped_without_an_icmp_error() {
    let host = open();
    for destination in addresses() {
        let expected = naive(destination, |(_, destination)| *destination);
        let out = host.encapsulate(&Ipv4::new(POD, destination).bytes());
        let back = host.decapsulate(&Ipv4::new(POD_A, destination).bytes(), host_a());
        match expected {
            Some(reason) => assert_eq!([out, back], [Outcome::Drop(reason), Outcome::Drop(reason)], "{destination}"),
            None => {
                assert_eq!(out.reason(), None, "{destination}");
                // Transit does not send a packet back to its sender (fault 13).
                let back_to_a = host.naive_route(destination).is_some_and(|route| route.next_hop == host_a());
                assert_eq!(back.reason(), back_to_a.then_some(DropReason::ForeignDestination), "{destination}");
            }
        }
    }
}

/// R14 and R16: with and without a route, in both directions, also when the TTL expires. There is never a net
/// unreachable.
#[test]
fn r16_fault_10_the_broadcast_address_is_dropped_without_an_icmp_error() {
    for host in [open(), Host::ordinary()] {
        for ttl in [0, 1, 64] {
            let to_all = Ipv4 { ttl, ..Ipv4::new(POD, Ipv4Addr::BROADCAST) };
            assert_eq!(host.encapsulate(&to_all.bytes()), Outcome::Drop(DropReason::BroadcastDestination));
            let from_a = Ipv4 { source: POD_A, ..to_all };
            assert_eq!(host.decapsulate(&from_a.bytes(), host_a()), Outcome::Drop(DropReason::BroadcastDestination));
            let from_all = Ipv4 { ttl, ..Ipv4::new(Ipv4Addr::BROADCAST, POD_A) };
            assert_eq!(host.encapsulate(&from_all.bytes()), Outcome::Drop(DropReason::MartianSource));
            let from_all = Ipv4 { destination: POD, ..from_all };
            assert_eq!(host.decapsulate(&from_all.bytes(), host_a()), Outcome::Drop(DropReason::MartianSource));
        }
    }
}

#[test]
fn r17_a_group_gets_no_time_exceeded_and_no_unreachable() {
    for host in [open(), Host::ordinary()] {
        for ttl in [0, 1, 2, 64] {
            for group in [[224, 0, 0, 1], [224, 0, 0, 251], [239, 255, 255, 255]] {
                let packet = Ipv4 { ttl, ..Ipv4::new(POD, group) };
                assert_eq!(host.encapsulate(&packet.bytes()), Outcome::Drop(DropReason::MulticastDestination));
                let echo = Ipv4 { protocol: ICMP, payload: icmp(8, 0, b""), source: POD_A, ..packet };
                let outcome = host.decapsulate(&echo.bytes(), host_a());
                assert_eq!(outcome, Outcome::Drop(DropReason::MulticastDestination));
            }
        }
    }
}

/// R19: the documentation networks are ordinary.
#[test]
fn r19_documentation_networks_are_forwarded() {
    let host = open();
    for net in [[192, 0, 2, 1], [198, 51, 100, 1], [203, 0, 113, 1]] {
        for (source, destination) in [(POD, Ipv4Addr::from(net)), (Ipv4Addr::from(net), POD_A)] {
            assert_eq!(host.encapsulate(&Ipv4::new(source, destination).bytes()).reason(), None);
        }
        assert_eq!(host.decapsulate(&Ipv4::new(net, POD).bytes(), host_b()).reason(), None);
    }
}

/// R71: a network inside 240/4 or 169.254/16 makes its own addresses ordinary, in both directions and for errors about
/// them. Other addresses of these ranges stay special, and 255.255.255.255 stays the broadcast address.
#[test]
fn r71_a_network_that_linux_carries_makes_its_own_addresses_ordinary() {
    for [network, ours, theirs, special] in [
        ["240.96.0.0/16", "240.96.1.0/24", "240.96.2.0/24", "240.97.1.0/24"],
        ["255.255.0.0/16", "255.255.1.0/24", "255.255.255.0/24", "255.254.1.0/24"],
        ["169.254.0.0/17", "169.254.1.0/24", "169.254.2.0/24", "169.254.128.0/24"],
    ] {
        let parse = |text: &str| text.parse::<loden::ipnet::Ipv4Net>().unwrap();
        let (network, ours, theirs, special) = (parse(network), parse(ours), parse(theirs), parse(special));
        let host = |net: loden::ipnet::Ipv4Net, last: u32| Ipv4Addr::from_bits(net.network().to_bits() + last);
        let (pod, pod_a, stranger) = (host(ours, 2), host(theirs, 3), host(special, 4));
        let settings = config_of(network, ours, own()).with_transit(Transit::Allowed);
        let routes = vec![Route::new(theirs, host_a()), Route::new(net([0; 4], 0), host_b())];
        let of = |settings| Host::new(settings, routes.clone());
        let hosts = [of(settings.clone()), of(settings.with_icmp_source(IcmpSource::Fixed(host(network, 9))))];
        let addresses = [pod, pod_a, host(theirs, 255), stranger, Ipv4Addr::BROADCAST, POD, [127, 0, 0, 1].into()];
        for host in &hosts {
            for (source, destination) in addresses.iter().flat_map(|from| addresses.map(|to| (*from, to))) {
                for ttl in [64, 1] {
                    let bytes = Ipv4 { ttl, ..Ipv4::new(source, destination) }.bytes();
                    assert_eq!(host.encapsulate(&bytes), model::encapsulate(host, &bytes), "{source} to {destination}");
                    for from in [host_a(), host_b()] {
                        let (got, want) = (host.decapsulate(&bytes, from), model::decapsulate(host, &bytes, from));
                        assert_eq!(got, want, "{source} to {destination} from {from}");
                    }
                }
            }
            let out = |to| host.encapsulate(&Ipv4::new(pod, to).bytes());
            assert!(matches!(out(pod_a), Outcome::Forward { .. }), "{network}");
            assert_eq!(out(Ipv4Addr::BROADCAST), Outcome::Drop(DropReason::BroadcastDestination), "{network}");
            let beside = [DropReason::MartianDestination, DropReason::LinkLocal];
            assert!(matches!(out(stranger), Outcome::Drop(reason) if beside.contains(&reason)), "{network}");
            let back = host.decapsulate(&Ipv4::new(pod_a, pod).bytes(), host_a());
            assert!(matches!(back, Outcome::Forward { .. }), "{network}");
            let expired = host.encapsulate(&Ipv4 { ttl: 1, ..Ipv4::new(pod, pod_a) }.bytes());
            assert!(expired.icmp().is_some(), "{network}: {expired:?}");
        }
    }
}

/// R71: the ICMP source may be a single host of such a network too, and no other special address.
#[test]
fn r71_an_icmp_source_in_the_network_is_a_host() {
    let settings = config_of(net([240, 96, 0, 0], 16), net([240, 96, 1, 0], 24), own());
    for (source, is_good) in [([240, 96, 3, 1], true), ([240, 97, 3, 1], false), ([169, 254, 1, 1], false)] {
        let config = settings.clone().with_icmp_source(IcmpSource::Fixed(source.into()));
        assert_eq!(loden::forward::Forwarder::new(config).is_ok(), is_good, "{source:?}");
    }
}
