//! Extension headers of every type, length and number, and what is in them.

use super::{Check, Way};
use support::packet::{TCP, UDP, udp};
use support::packet_v6::{
    DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMPV6, Ipv6, ROUTING, destination_options, fragment,
};

pub(super) fn sweep(way: Way, check: Check<'_>) {
    chains(way, check);
    fragments(way, check);
    hop_by_hop_options(way, check);
    routing_headers(way, check);
}

/// Checks chains of every extension header, of every length, and their combinations (V5).
fn chains(way: Way, check: Check<'_>) {
    let types = [HOP_BY_HOP, ROUTING, FRAGMENT, 51, DESTINATION_OPTIONS, 135, 139, 140, 59, 50];
    for kind in types {
        for words in 0..=255u8 {
            let header = vec![0, words, 1, 4, 0, 0, 0, 0];
            for (protocol, hop_limit) in [(UDP, 64), (UDP, 1), (ICMPV6, 1)] {
                let payload = vec![if words % 2 == 0 { 128 } else { 1 }; 64];
                let extensions = vec![(kind, header.clone())];
                check(Ipv6 { hop_limit, protocol, payload, extensions, ..way.packet() }.into());
            }
        }
        for second in types {
            for protocol in [UDP, ICMPV6, 59] {
                let header = |kind| match kind {
                    FRAGMENT => fragment(0, false),
                    51 => (51, vec![0, 0, 0, 0, 0, 0, 0, 0]),
                    kind => (kind, vec![0, 0, 1, 4, 0, 0, 0, 0]),
                };
                for kinds in [vec![kind, second], vec![kind, second, kind], vec![second, kind, 60, second]] {
                    let extensions = kinds.into_iter().map(header).collect();
                    let payload = vec![3; 12];
                    check(Ipv6 { hop_limit: 1, protocol, payload, extensions, ..way.packet() }.into());
                }
            }
        }
    }
    for count in 0..20 {
        for protocol in [UDP, ICMPV6] {
            for kind in [1, 128] {
                let edit = |packet| Ipv6 {
                    extensions: vec![destination_options(1); count],
                    protocol,
                    payload: vec![kind; 20],
                    ..packet
                };
                way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
            }
        }
    }
}

/// Checks fragments of everything (V22).
fn fragments(way: Way, check: Check<'_>) {
    for offset in [0, 1, 2, 7, 160, 0x0fff, 0x1fff] {
        for low in 0..8u8 {
            for protocol in [UDP, TCP, ICMPV6, 59, DESTINATION_OPTIONS, ROUTING] {
                for payload in [vec![], vec![1; 40], vec![128; 40]] {
                    let (kind, mut header) = fragment(offset, false);
                    header[3] |= low;
                    let extensions = vec![(kind, header)];
                    let edit =
                        |packet| Ipv6 { extensions: extensions.clone(), protocol, payload: payload.clone(), ..packet };
                    let turn = usize::from(low) % 4;
                    let fates = way.fates(edit);
                    check(fates[turn].clone().into());
                    check(fates[1].clone().into());
                }
            }
        }
    }
}

/// Checks every hop-by-hop option with every length, and lists of them (V7).
fn hop_by_hop_options(way: Way, check: Check<'_>) {
    for kind in 0..=255 {
        for len in [0, 1, 2, 4, 12, 13, 255] {
            let mut header = vec![0; 16];
            (header[1], header[2], header[3]) = (1, kind, len);
            let extensions = vec![(HOP_BY_HOP, header)];
            let hop_limit = if len == 4 { 1 } else { 64 };
            check(Ipv6 { hop_limit, extensions, ..way.packet() }.into());
        }
    }
    let unknown = [0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 0x1e, 0, 1, 2, 0, 0];
    let lists: [&[u8]; 12] = [
        &[0; 6],
        &[0; 14],
        &[1, 4, 0, 0, 0, 0],
        &[1, 4, 0, 0, 1, 0],
        &[1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[5, 2, 0, 0, 0, 0],
        &[0xc2, 4, 0, 1, 0, 0],
        &[0xc2, 4, 0, 0, 0, 99],
        &[0, 0xc2, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x31, 4, 0, 0, 0, 0],
        &unknown[..14],
        &unknown,
    ];
    for list in lists {
        let extensions = vec![(HOP_BY_HOP, [&[0, (list.len() / 8) as u8][..], list].concat())];
        for payload in [udp(4000, 53, b"question"), vec![1; 20]] {
            for protocol in [UDP, ICMPV6] {
                for payload_len in [None, Some(0)] {
                    let edit = |packet| Ipv6 {
                        extensions: extensions.clone(),
                        protocol,
                        payload: payload.clone(),
                        payload_len,
                        ..packet
                    };
                    way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
                }
            }
        }
    }
}

/// Checks every type of routing header, in every place (V6).
fn routing_headers(way: Way, check: Check<'_>) {
    for kind in 0..=255 {
        let routing = (ROUTING, vec![0, 0, kind, 1, 0, 0, 0, 0]);
        let chains = [
            vec![routing.clone()],
            vec![destination_options(1), routing.clone()],
            vec![(HOP_BY_HOP, vec![0, 0, 1, 4, 0, 0, 0, 0]), routing.clone()],
            vec![fragment(9, true), routing],
        ];
        for extensions in chains {
            for hop_limit in [1, 64] {
                check(Ipv6 { hop_limit, extensions: extensions.clone(), ..way.packet() }.into());
            }
        }
    }
}
