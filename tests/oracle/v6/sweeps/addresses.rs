//! Addresses of every class as source and destination, both ends of routes, and the tunnel's own.

use core::net::Ipv6Addr;

use super::{Check, Way};
use crate::router::Place;
use crate::v6::world::host_d;
use support::host::{host_c, own_v6};
use support::packet::{TCP, UDP, pattern, udp};
use support::packet_v6::{HOP_BY_HOP, Ipv6, destination_options, fragment};

pub(super) fn sweep(way: Way, check: Check<'_>) {
    if way.entry != Place::Peer(host_c()) {
        // Those of A's packets are the same.
        classes(way, check);
    }
    routes(way, check);
    sockets(way, check);
}

/// Checks addresses of every class as source and as destination, and special ones as both (V8 to V11).
fn classes(way: Way, check: Check<'_>) {
    for first in 0..=255u8 {
        for second in [0, 0x0d, 0x7f, 0x80, 0xbf, 0xc0, 0xff] {
            for rest in [[0, 0], [0x96, 0x17], [0xff, 0xff]] {
                let address = Ipv6Addr::from_bits(u128::from_be_bytes({
                    let mut octets = [0; 16];
                    (octets[0], octets[1], octets[2], octets[15]) = (first, second, rest[0], rest[1]);
                    octets
                }));
                // The hop limits take turns: each class has many addresses.
                let hop_limit = if (first ^ second ^ rest[1]).count_ones() % 2 == 0 { 64 } else { 1 };
                check(Ipv6 { hop_limit, source: address, ..way.packet() }.into());
                check(Ipv6 { hop_limit: hop_limit ^ 65, destination: address, ..way.packet() }.into());
            }
        }
    }
    let special = [
        "::",
        "::1",
        "::2",
        "::a01:203",
        "::ffff:a01:203",
        "::fffe:a01:203",
        "::1:ffff:a01:203",
        "fe80::1",
        "fe80::1:0:0:1",
        "febf::1",
        "fec0::1",
        "ff00::1",
        "ff01::5",
        "ff02::5",
        "ff02::1:ff00:1",
        "ff05::5",
        "ff0e::5",
        "2001:db8::1",
        "fd00:96:1::2",
        "fd00:96:2::",
        "fd00:96:2::3",
        "fd00:168::4",
    ];
    let special = special.map(|text| text.parse::<Ipv6Addr>().unwrap());
    for source in special {
        for destination in special {
            for hop_limit in [0, 1, 2, 64] {
                check(Ipv6 { hop_limit, source, destination, ..way.packet() }.into());
            }
            check(Ipv6 { source, destination, payload: pattern(2000), ..way.packet() }.into());
            let extensions = vec![(HOP_BY_HOP, vec![0, 0, 0x80, 4, 0, 0, 0, 0])];
            check(Ipv6 { source, destination, extensions, ..way.packet() }.into());
        }
    }
}

/// Checks both ends of routes, and of routes inside them (V13, V14).
fn routes(way: Way, check: Check<'_>) {
    for subnet in [0, 1, 2, 3, 4, 5, 6, 7, 8, 0xffff] {
        for high in [0, 0x7fff, 0x8000, 0xefff, 0xf000, 0xffff] {
            for last in [0, 1, 7, 8, 9, 10, 15, 16, 0xffff] {
                let destination = Ipv6Addr::new(0xfd00, 0x96, subnet, 0, high, 0, 0, last);
                for hop_limit in [1, 64] {
                    check(Ipv6 { hop_limit, destination, ..way.packet() }.into());
                }
            }
        }
    }
}

/// Checks the addresses of the underlay (R62, fault 6, and inbound R65).
fn sockets(way: Way, check: Check<'_>) {
    let own_address = Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 2);
    let peer_address = Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 4);
    let unused = Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 9);
    for address in [own_address, peer_address, unused] {
        for port in [own_v6().port(), host_c().port(), host_d().port(), 53, 0] {
            for protocol in [UDP, TCP] {
                for extensions in
                    [vec![], vec![destination_options(2)], vec![fragment(0, true)], vec![fragment(3, true)]]
                {
                    for (hop_limit, len) in [(0, 0), (1, 0), (64, 0), (64, 2000)] {
                        let payload = udp(4000, port, &pattern(len));
                        let packet =
                            Ipv6 { hop_limit, protocol, payload, extensions: extensions.clone(), ..way.packet() };
                        check(Ipv6 { destination: address, ..packet.clone() }.into());
                        check(Ipv6 { source: address, ..packet }.into());
                    }
                }
            }
        }
        // Too short to have a port.
        check(Ipv6 { destination: address, payload: vec![0x20, 0x5d], ..way.packet() }.into());
    }
}
