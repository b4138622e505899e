//! Options: every kind and length, record routes and timestamps filled to any degree, and whole lists of them.

use super::{Check, Way};
use support::packet::{ICMP, Ipv4, LOOSE_SOURCE_ROUTE, RECORD_ROUTE, ROUTER_ALERT, STRICT_SOURCE_ROUTE, icmp, pattern};

pub(super) fn sweep(way: Way, check: Check<'_>) {
    kinds(way, check);
    record_routes(way, check);
    timestamps(way, check);
    lists(way, check);
}

/// Checks every kind with every length, in front of other options (R11, R13).
fn kinds(way: Way, check: Check<'_>) {
    for kind in 0..=255 {
        for len in [0, 1, 2, 3, 4, 7, 8, 9, 255] {
            let options = vec![kind, len, 4, 0, 0, 0, 0, 1];
            check(Ipv4 { options, ..way.packet() }.into());
        }
    }
    // The kind alone.
    for kind in [0, 1, 7, 68, 131, 148, 255] {
        check(Ipv4 { options: vec![1, 1, 1, kind], ..way.packet() }.into());
    }
}

fn record_routes(way: Way, check: Check<'_>) {
    for len in [3, 6, 7, 8, 9, 11, 13, 39] {
        for pointer in (0..len + 6).chain([255]) {
            let mut options = pattern(len.into());
            (options[0], options[1], options[2]) = (7, len, pointer);
            for packet in way.fates(|packet| Ipv4 { options: options.clone(), ..packet }) {
                check(packet.into());
            }
        }
    }
}

fn timestamps(way: Way, check: Check<'_>) {
    for len in [4, 8, 10, 12, 15, 20, 36, 40] {
        for pointer in (0..len + 3).chain([255]) {
            for flags in [0x00, 0x01, 0x03, 0x02, 0x0f, 0xe0, 0xf0, 0xf1, 0xf3] {
                let mut options = pattern(len.into());
                (options[0], options[1], options[2], options[3]) = (68, len, pointer, flags);
                // A prespecified address: that of another host, an unused one, or the router's own.
                for (index, entry) in options[4..].chunks_exact_mut(8).enumerate() {
                    let address = [[100, 96, 2, 3], [224, 0, 0, 1], [127, 0, 0, 1], [198, 18, 0, 1]][index];
                    entry[..4].copy_from_slice(&address);
                }
                let fates = way.fates(|packet| Ipv4 { options: options.clone(), ..packet });
                let turn = usize::from(pointer) + usize::from(flags);
                check(fates[turn % fates.len()].clone().into());
                check(fates[(turn + 1) % fates.len()].clone().into());
            }
        }
    }
}

fn lists(way: Way, check: Check<'_>) {
    let timestamp = [68, 8, 5, 0, 0, 0, 0, 0];
    let security = [130, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let garbage = pattern(9);
    let lists: [&[&[u8]]; 21] = [
        &[&RECORD_ROUTE, &[1], &timestamp],
        &[&RECORD_ROUTE, &timestamp, &RECORD_ROUTE],
        &[&timestamp, &timestamp],
        &[&RECORD_ROUTE, &[7, 2]],
        &[&RECORD_ROUTE, &[99, 1]],
        &[&timestamp, &[99, 0]],
        &[&LOOSE_SOURCE_ROUTE],
        &[&STRICT_SOURCE_ROUTE, &RECORD_ROUTE],
        &[&LOOSE_SOURCE_ROUTE, &LOOSE_SOURCE_ROUTE],
        &[&RECORD_ROUTE, &STRICT_SOURCE_ROUTE, &[99, 0]],
        &[&[0], &garbage[..7]],
        &[&RECORD_ROUTE, &[0], &garbage],
        &[&ROUTER_ALERT],
        &[&[148, 4, 0, 1], &ROUTER_ALERT],
        &[&security, &ROUTER_ALERT, &RECORD_ROUTE],
        &[&security, &[0]],
        &[&[0x9e, 3, 7], &[1]],
        &[&[0x9e, 3, 7], &[1], &[0, 0, 0, 0]],
        &[&[0; 40]],
        &[&[1; 40]],
        &[&[7, 23, 4], &[0; 20], &[68, 16, 5, 1], &[0; 12], &[1]],
    ];
    for list in lists {
        let options = list.concat();
        for payload in [icmp(8, 0, b"ping"), icmp(5, 0, b"")] {
            for fragment in [0, 0x8000, 0x2003] {
                let edit = |packet| Ipv4 {
                    options: options.clone(),
                    protocol: ICMP,
                    payload: payload.clone(),
                    fragment,
                    ..packet
                };
                way.fates(edit).into_iter().for_each(|packet| check(packet.into()));
            }
        }
    }
}
