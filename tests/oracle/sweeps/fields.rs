//! Every value of every field of a header, and every bit of it flipped.

use super::{Check, Way};
use crate::shape::{Edit, Shape};
use support::packet::{ICMP, Ipv4, MF, RECORD_ROUTE, ROUTER_ALERT, TCP, icmp, ones_sum, pattern};

pub(super) fn sweep(way: Way, check: Check<'_>) {
    hops(way, check);
    protocols(way, check);
    icmp_types(way, check);
    types_of_service(way, check);
    fragments(way, check);
    bits(way, check);
    lengths(way, check);
    checksums(way, check);
}

fn hops(way: Way, check: Check<'_>) {
    for (destination, _) in way.destinations {
        for ttl in 0..=255 {
            check(Ipv4 { ttl, destination: *destination, ..way.packet() }.into());
        }
    }
}

fn protocols(way: Way, check: Check<'_>) {
    for protocol in 0..=255 {
        for packet in way.fates(|packet| Ipv4 { protocol, payload: pattern(40), ..packet }) {
            check(packet.into());
        }
    }
}

/// Checks ICMP types (R36, R37, R38).
fn icmp_types(way: Way, check: Check<'_>) {
    for kind in 0..=255 {
        let quoted = way.packet().bytes();
        for packet in way.fates(|packet| Ipv4 { protocol: ICMP, payload: icmp(kind, 0, &quoted), ..packet }) {
            check(packet.into());
        }
    }
    for len in 0..8 {
        for kind in [0, 3, 8, 11, 42] {
            let payload = icmp(kind, 0, b"")[..len].to_vec();
            let edit = |packet| Ipv4 { protocol: ICMP, payload: payload.clone(), trailer: vec![8; 8], ..packet };
            way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
        }
    }
}

/// Checks types of service (R44).
fn types_of_service(way: Way, check: Check<'_>) {
    for tos in 0..=255 {
        way.fates(|packet| Ipv4 { tos, ..packet }).into_iter().for_each(|packet| check(packet.into()));
    }
}

/// Checks all flags, and offsets at both ends (R39).
fn fragments(way: Way, check: Check<'_>) {
    for flags in 0..8u16 {
        for offset in [0, 1, 2, 0x0ff, 0x1000, 0x1ffe, 0x1fff] {
            for protocol in [ICMP, TCP, 17, 89] {
                let payload = icmp(8, 0, &pattern(24));
                let fragment = flags << 13 | offset;
                let edit = |packet| Ipv4 { fragment, protocol, payload: payload.clone(), ..packet };
                way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
            }
        }
    }
}

/// Checks flipped bits, with and without a repaired checksum (fault 3).
fn bits(way: Way, check: Check<'_>) {
    let options = [&RECORD_ROUTE[..], &[1], &ROUTER_ALERT].concat();
    for options in [vec![], options] {
        for packet in way.fates(|packet| Ipv4 { options: options.clone(), ..packet }) {
            for bit in 0..(20 + options.len() + 4) * 8 {
                for repair in [false, true] {
                    let edits = vec![(bit / 8, Edit::Flip(1 << (bit % 8)))];
                    check(Shape { packet: packet.clone(), edits, repair });
                }
            }
        }
    }
}

/// Checks the received length, the header length and the total length (R1 to R9).
fn lengths(way: Way, check: Check<'_>) {
    let packet = Ipv4 { payload: pattern(40), ..way.packet() };
    for cut in 0..64 {
        check(Ipv4 { cut: Some(cut), ..packet.clone() }.into());
        check(Ipv4 { cut: Some(cut), total: Some(cut as u16), ..packet.clone() }.into());
        check(Ipv4 { total: Some(cut as u16), ..packet.clone() }.into());
        for ihl in 0..16 {
            check(Ipv4 { cut: Some(cut), ihl: Some(ihl), ..packet.clone() }.into());
            check(Ipv4 { total: Some(cut as u16), ihl: Some(ihl), ..packet.clone() }.into());
        }
    }
    for total in [64, 1000, 0x3c00, u16::MAX] {
        check(Ipv4 { total: Some(total), ..packet.clone() }.into());
    }
    for version in 0..16 {
        check(Ipv4 { version, ..packet.clone() }.into());
    }
    for trailer in [1, 2, 3, 4, 26, 600] {
        for payload in [0, 1, 8, 555] {
            let edit =
                |packet| Ipv4 { payload: pattern(payload), trailer: vec![0xee; trailer], fragment: MF, ..packet };
            way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
        }
    }
}

/// Checks wrong checksums, and those at which a decrement carries over (R5, R32, R33).
fn checksums(way: Way, check: Check<'_>) {
    for packet in way.fates(|packet| packet) {
        let bytes = packet.bytes();
        let right = u16::from_be_bytes([bytes[10], bytes[11]]);
        for wrong in [0, 0xffff, right ^ 1, right ^ 0x8000, right.wrapping_add(1), !right, right.swap_bytes()] {
            check(Ipv4 { checksum: Some(wrong), ..packet.clone() }.into());
        }
    }
    for wanted in [0x0000, 0x0001, 0x00ff, 0x0100, 0x7fff, 0xfdff, 0xfe00, 0xfefe, 0xfeff, 0xff00, 0xff01, 0xfffe] {
        // The identification is the free field.
        let without = Ipv4 { id: 0, checksum: Some(wanted), source: way.source, ..way.packet() };
        let sum = ones_sum(&without.bytes()[..20]);
        let packet = Ipv4 { id: 0xffff - sum, ..without };
        assert_eq!(ones_sum(&packet.bytes()[..20]), 0xffff);
        check(packet.clone().into());
        if wanted == 0 {
            // 0xFFFF is the other zero, which verifies too.
            check(Ipv4 { checksum: Some(0xffff), ..packet }.into());
        }
    }
}
