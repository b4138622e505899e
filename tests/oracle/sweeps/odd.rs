//! Addresses of every class as source and destination, and the tunnel's own.

use core::net::{IpAddr, Ipv4Addr};

use super::{Check, Way};
use crate::router::Place;
use crate::world::{BROADCASTS, host_c};
use support::host::{host_a, host_b, own};
use support::packet::{ICMP, Ipv4, MF, TCP, UDP, icmp, pattern, udp};

pub(super) fn sweep(way: Way, check: Check<'_>) {
    classes(way, check);
    routes(way, check);
    broadcasts(way, check);
    sockets(way, check);
}

/// Checks every first byte as source and as destination, and special ones as both.
fn classes(way: Way, check: Check<'_>) {
    for first in 0..=255 {
        for rest in [[0, 0, 0], [7, 7, 7], [254, 7, 9], [1, 1, 1], [255, 255, 255]] {
            let [b, c, d] = rest;
            let address = Ipv4Addr::new(first, b, c, d);
            for ttl in [1, 64] {
                check(Ipv4 { ttl, source: address, ..way.packet() }.into());
                check(Ipv4 { ttl, destination: address, ..way.packet() }.into());
            }
            // With an option that does not fit.
            check(Ipv4 { source: address, options: vec![99, 1], ..way.packet() }.into());
            check(Ipv4 { destination: address, options: vec![99, 1], ..way.packet() }.into());
        }
    }
    let odd = [[0, 0, 0, 0], [0, 7, 0, 1], [127, 0, 0, 1], [169, 254, 7, 1], [224, 0, 0, 1], [239, 1, 2, 3]];
    let odd = odd.into_iter().chain([[240, 1, 0, 1], [240, 9, 0, 1], [255; 4]]).map(Ipv4Addr::from);
    for source in odd.clone() {
        for destination in odd.clone() {
            for (ttl, payload) in [(0, 8), (1, 8), (2, 8), (64, 2000)] {
                check(Ipv4 { ttl, source, destination, payload: pattern(payload), ..way.packet() }.into());
            }
        }
    }
}

/// Checks both ends of routes, and of routes inside them (R21).
fn routes(way: Way, check: Check<'_>) {
    for third in [0, 1, 2, 3, 4, 5, 254, 255] {
        for last in [0, 1, 2, 127, 128, 239, 240, 247, 255] {
            for ttl in [1, 64] {
                check(Ipv4 { ttl, destination: [100, 96, third, last].into(), ..way.packet() }.into());
            }
        }
    }
    for destination in [[127, 255, 255, 255], [128, 0, 0, 0], [191, 255, 255, 255], [192, 0, 0, 0], [240, 2, 0, 0]] {
        check(Ipv4 { destination: destination.into(), ..way.packet() }.into());
    }
}

/// Checks broadcasts, also with packets that get no error for another reason (R40).
fn broadcasts(way: Way, check: Check<'_>) {
    for broadcast in BROADCASTS {
        for payload in [icmp(8, 0, b""), icmp(3, 1, b"")] {
            for ttl in [0, 1, 2] {
                let packet = Ipv4 { ttl, protocol: ICMP, payload: payload.clone(), ..way.packet() };
                check(Ipv4 { source: broadcast, ..packet.clone() }.into());
                check(Ipv4 { destination: broadcast, ..packet }.into());
            }
        }
    }
}

/// Checks the addresses of the underlay (R62, fault 6, and inbound R65).
fn sockets(way: Way, check: Check<'_>) {
    let sockets = [own(), host_a(), host_b(), host_c()];
    for address in sockets.map(|socket| socket.ip()).into_iter().chain([[10, 168, 0, 9].into()]) {
        let IpAddr::V4(address) = address else { panic!("{address}") };
        for port in sockets.map(|socket| socket.port()).into_iter().chain([53]) {
            for (protocol, fragment) in [(UDP, 0), (UDP, MF), (UDP, 3), (TCP, 0)] {
                for (ttl, len) in [(0, 0), (1, 0), (64, 0), (64, 2000)] {
                    let payload = udp(4000, port, &pattern(len));
                    let packet = Ipv4 { ttl, protocol, fragment, payload, ..way.packet() };
                    check(Ipv4 { destination: address, ..packet.clone() }.into());
                    if way.entry != Place::Tun {
                        check(Ipv4 { source: address, ..packet }.into());
                    }
                }
            }
        }
    }
    // Too short to have a port.
    check(Ipv4 { payload: vec![0x20, 0x5d], ..way.packet() }.into());
}
