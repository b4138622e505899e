//! The order of checks: of two defects, the earlier check gives the reason.

use core::net::SocketAddr;

use loden::forward::{DropReason, Transit};

use support::host::{Host, NOBODY, POD_B, config, host_a, host_b, inbound, outbound, own};
use support::packet::{DF, Ipv4, STRICT_SOURCE_ROUTE, pattern, udp};

/// A defect of a packet. Two defects can be in one packet if they are in different fields.
struct Defect {
    reason: DropReason,
    touches: &'static [&'static str],
    make: fn(&mut Ipv4),
}

const fn defect(reason: DropReason, touches: &'static [&'static str], make: fn(&mut Ipv4)) -> Defect {
    Defect { reason, touches, make }
}

/// The first checks of both directions: header and addresses. The option checks are the last of the header's.
const SHARED: [Defect; 14] = [
    defect(DropReason::TooShort, &["cut"], |p| p.cut = Some(19)),
    defect(DropReason::BadVersion, &["version"], |p| p.version = 5),
    defect(DropReason::BadHeaderLength, &["ihl"], |p| p.ihl = Some(4)),
    defect(DropReason::HeaderTruncated, &["ihl", "cut"], |p| (p.ihl, p.cut) = (Some(15), Some(48))),
    defect(DropReason::BadTotalLength, &["total"], |p| p.total = Some(12)),
    defect(DropReason::Truncated, &["total"], |p| p.total = Some(u16::MAX)),
    defect(DropReason::BadChecksum, &["checksum"], |p| p.checksum = Some(0xdead)),
    defect(DropReason::BadOption, &["options"], |p| p.options.extend([0x1e, 0, 1, 1])),
    defect(DropReason::SourceRoute, &["source route"], |p| {
        p.options = [STRICT_SOURCE_ROUTE.as_slice(), &[1], &p.options].concat();
    }),
    defect(DropReason::MartianSource, &["source"], |p| p.source = [127, 0, 0, 1].into()),
    defect(DropReason::LinkLocal, &["source"], |p| p.source = [169, 254, 0, 1].into()),
    defect(DropReason::BroadcastDestination, &["destination"], |p| p.destination = [255; 4].into()),
    defect(DropReason::MartianDestination, &["destination"], |p| p.destination = [240, 0, 0, 1].into()),
    defect(DropReason::MulticastDestination, &["destination"], |p| p.destination = [224, 0, 0, 1].into()),
];

const TTL_0: Defect = defect(DropReason::TtlZero, &["ttl"], |p| p.ttl = 0);
const TTL_1: Defect = defect(DropReason::TimeExceeded, &["ttl"], |p| p.ttl = 1);

/// Asserts the order for every pair that fits into one packet, applied in both orders.
fn assert_order(defects: &[&Defect], base: impl Fn() -> Ipv4, reason_of: impl Fn(&[u8]) -> Option<DropReason>) {
    for (i, first) in defects.iter().enumerate() {
        let mut alone = base();
        (first.make)(&mut alone);
        assert_eq!(reason_of(&alone.bytes()), Some(first.reason), "alone");
        for second in &defects[i + 1..] {
            if first.touches.iter().any(|field| second.touches.contains(field)) {
                continue;
            }
            let mut packet = base();
            (second.make)(&mut packet);
            (first.make)(&mut packet);
            let reason = reason_of(&packet.bytes());
            assert_eq!(reason, Some(first.reason), "before {}: {packet:?}", second.reason);
        }
    }
}

#[test]
fn out_of_the_tun_header_addresses_route_ttl_size() {
    let own_part = [
        defect(DropReason::NoRoute, &["destination"], |p| p.destination = NOBODY),
        TTL_0,
        TTL_1,
        defect(DropReason::FragmentationNeeded, &["payload", "fragment"], |p| {
            (p.payload, p.fragment) = (pattern(1453), DF);
        }),
    ];
    let host = Host::ordinary();
    let defects: Vec<_> = SHARED.iter().chain(&own_part).collect();
    assert_order(&defects, outbound, |packet| host.encapsulate(packet).reason());
}

/// The same with a loop in the place of the route.
#[test]
fn out_of_the_tun_policy_before_ttl_and_size() {
    let own_part = [
        defect(DropReason::Loop, &["destination", "payload"], |p| {
            (p.destination, p.payload) = ([10, 168, 0, 2].into(), udp(4000, 8285, &pattern(4)));
        }),
        TTL_0,
        TTL_1,
        defect(DropReason::FragmentationNeeded, &["length", "fragment"], |p| {
            p.payload.extend(pattern(1460));
            p.fragment = DF;
        }),
    ];
    let host = Host::with_default_route(config(), host_a());
    let defects: Vec<_> = SHARED.iter().chain(&own_part).collect();
    assert_order(&defects[..SHARED.len() + 3], outbound, |packet| host.encapsulate(packet).reason());
    let by_itself: Vec<_> = own_part.iter().collect();
    // Applied in this order, because one replaces the payload that the other lengthens.
    for second in &own_part[1..] {
        let mut packet = outbound();
        (own_part[0].make)(&mut packet);
        (second.make)(&mut packet);
        assert_eq!(host.encapsulate(&packet.bytes()).reason(), Some(DropReason::Loop), "before {}", second.reason);
    }
    assert_order(&by_itself[1..], outbound, |packet| host.encapsulate(packet).reason());
}

/// The route is checked before a loop to the own socket.
#[test]
fn out_of_the_tun_route_before_policy() {
    let looping = Ipv4 { payload: udp(4000, 8285, b""), ..Ipv4::new([100, 96, 1, 2], [10, 168, 0, 2]) };
    assert_eq!(Host::ordinary().encapsulate(&looping.bytes()).reason(), Some(DropReason::NoRoute));
}

#[test]
fn from_the_underlay_header_addresses_source_destination_ttl() {
    let own_part = [
        defect(DropReason::SpoofedSource, &["source"], |p| p.source = POD_B),
        defect(DropReason::ForeignDestination, &["destination"], |p| p.destination = POD_B),
        TTL_0,
        TTL_1,
    ];
    let host = Host::ordinary();
    let defects: Vec<_> = SHARED.iter().chain(&own_part).collect();
    assert_order(&defects, inbound, |packet| host.decapsulate(packet, host_a()).reason());

    let transit = Host::with_default_route(config().with_transit(Transit::Allowed), host_b());
    let own_part = [
        defect(DropReason::SpoofedSource, &["source"], |p| p.source = POD_B),
        defect(DropReason::Loop, &["destination", "payload"], |p| {
            (p.destination, p.payload) = ([10, 168, 0, 2].into(), udp(4000, 8285, b""));
        }),
        TTL_0,
        TTL_1,
    ];
    let defects: Vec<_> = SHARED.iter().chain(&own_part).collect();
    assert_order(&defects, inbound, |packet| transit.decapsulate(packet, host_a()).reason());
}

/// R64: a stranger's datagram is not parsed.
#[test]
fn from_the_underlay_the_peer_before_everything() {
    let (host, stranger) = (Host::ordinary(), SocketAddr::from(([10, 168, 0, 9], 8285)));
    let others = [TTL_0, TTL_1, defect(DropReason::Loop, &[], |p| p.destination = own_address())];
    for Defect { make, .. } in SHARED.iter().chain(&others) {
        let mut packet = inbound();
        make(&mut packet);
        let reason = host.decapsulate(&packet.bytes(), stranger).reason();
        assert_eq!(reason, Some(DropReason::UnknownPeer), "{packet:?}");
    }
    assert_eq!(host.decapsulate(&[], stranger).reason(), Some(DropReason::UnknownPeer));
}

fn own_address() -> core::net::Ipv4Addr {
    match own().ip() {
        core::net::IpAddr::V4(address) => address,
        core::net::IpAddr::V6(_) => panic!("our underlay address is IPv4"),
    }
}
