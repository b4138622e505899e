//! Every value of the fields of a header, every bit of it flipped, and every length.

use super::{Check, Way};
use crate::shape::Edit;
use crate::v6::generate::Shape;
use support::host::POD_A_V6;
use support::packet::{pattern, udp};
use support::packet_v6::{HOP_BY_HOP, ICMPV6, Ipv6, destination_options, fragment, icmpv6, segment_routing};

pub(super) fn sweep(way: Way, check: Check<'_>) {
    hop_limits(way, check);
    upper_layers(way, check);
    bits(way, check);
    lengths(way, check);
    sizes(way, check);
}

/// Checks every hop limit, and every traffic class (V4, V15, V19).
fn hop_limits(way: Way, check: Check<'_>) {
    for (destination, _) in way.destinations {
        for hop_limit in 0..=255 {
            check(Ipv6 { hop_limit, destination: *destination, ..way.packet() }.into());
        }
    }
    for traffic_class in 0..=255 {
        way.fates(|packet| Ipv6 { traffic_class, ..packet }).into_iter().for_each(|packet| check(packet.into()));
    }
}

/// Checks every next header, and every ICMPv6 type and length (V16, V17). Checksums are right or not.
fn upper_layers(way: Way, check: Check<'_>) {
    for protocol in 0..=255 {
        for payload in [pattern(40), vec![0; 16]] {
            let edit = |packet| Ipv6 { protocol, payload: payload.clone(), ..packet };
            way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
        }
    }
    for kind in 0..=255 {
        let quoted = way.packet().bytes();
        for extensions in [vec![], vec![destination_options(1), fragment(0, true)], vec![(135, vec![0; 8])]] {
            let edit = |packet: Ipv6| Ipv6 {
                protocol: ICMPV6,
                payload: icmpv6(packet.source, packet.destination, kind, &quoted),
                extensions: extensions.clone(),
                ..packet
            };
            way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
        }
    }
    for len in 0..8 {
        for kind in [0, 1, 3, 127, 128, 129, 135, 137] {
            for extensions in
                [vec![], vec![fragment(0, true)], vec![fragment(0, false)], vec![(HOP_BY_HOP, vec![0; 8])]]
            {
                let payload = [kind, 0, 1, 2, 3, 4, 5, 6][..len].to_vec();
                let trailer = vec![8; 8];
                let edit = |packet| Ipv6 {
                    protocol: ICMPV6,
                    payload: payload.clone(),
                    trailer: trailer.clone(),
                    extensions: extensions.clone(),
                    ..packet
                };
                way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
            }
        }
    }
}

/// Checks every bit of a plain packet and of one with extension headers.
fn bits(way: Way, check: Check<'_>) {
    let chain = vec![(HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0]), segment_routing(POD_A_V6), fragment(0, true)];
    let long = Ipv6 { extensions: chain, protocol: ICMPV6, payload: vec![128; 20], ..way.packet() };
    for packet in [way.packet(), long.clone(), Ipv6 { hop_limit: 1, ..long }] {
        for at in 0..packet.bytes().len() {
            for bit in 0..8 {
                check(Shape { edits: vec![(at, Edit::Flip(1 << bit))], ..packet.clone().into() });
            }
        }
    }
}

/// Checks received bytes and payload lengths (V1 to V3).
fn lengths(way: Way, check: Check<'_>) {
    let extensions = vec![(HOP_BY_HOP, vec![0, 0, 1, 4, 0, 0, 0, 0]), destination_options(2)];
    let long = Ipv6 { extensions, ..way.packet() };
    for packet in [way.packet(), long.clone(), Ipv6 { hop_limit: 1, ..long }] {
        for cut in 0..=packet.bytes().len() {
            check(Shape { cut: Some(cut), ..packet.clone().into() });
            check(Ipv6 { payload_len: Some(cut as u16), ..packet.clone() }.into());
            // Consistent, so that only the chain does not fit.
            let payload_len = Some(cut.saturating_sub(40) as u16);
            check(Shape { cut: Some(cut), ..Ipv6 { payload_len, ..packet.clone() }.into() });
        }
        for payload_len in [1240, 0x3c00, u16::MAX] {
            check(Ipv6 { payload_len: Some(payload_len), ..packet.clone() }.into());
        }
        for trailer in [1, 2, 3, 8, 26, 600, 1300] {
            check(Ipv6 { trailer: vec![0xee; trailer], ..packet.clone() }.into());
            check(Ipv6 { trailer: vec![0xee; trailer], payload_len: Some(0), ..packet.clone() }.into());
        }
    }
    for version in 0..16 {
        for cut in [1, 19, 20, 39, 40, 48] {
            for ihl in 0..6 {
                let edits = vec![(0, Edit::Set(version << 4 | ihl))];
                check(Shape { edits, cut: Some(cut), ..way.packet().into() });
            }
        }
    }
}

/// Checks sizes around the MTU of every path, and around the longest quote (V18, V23, V24).
fn sizes(way: Way, check: Check<'_>) {
    let of_length = |packet: Ipv6, total: usize| {
        let headers = 48 + packet.extensions.iter().map(|(_, header)| header.len()).sum::<usize>();
        Ipv6 { payload: udp(4000, 53, &pattern(total.saturating_sub(headers))), ..packet }
    };
    let chains = [vec![], vec![destination_options(4)], vec![fragment(0, true)], vec![fragment(7, false)]];
    for extensions in chains {
        for (destination, mtu) in way.destinations {
            let totals = [mtu - 12..=mtu + 12, 1270..=1290, 1440..=1480];
            for total in totals.into_iter().flatten().chain([999, 1000, 1001, 1232, 1500, 9000, 20_000, 65_000]) {
                let packet = Ipv6 { destination: *destination, extensions: extensions.clone(), ..way.packet() };
                check(of_length(packet, total).into());
            }
        }
        for total in 1225..=1290 {
            let packet = Ipv6 { hop_limit: 1, extensions: extensions.clone(), ..way.packet() };
            check(of_length(packet, total).into());
        }
    }
}
