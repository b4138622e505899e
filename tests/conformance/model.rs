//! Every verdict, with its bytes and its reason, against the model: random packets, tables and policies.

use core::net::Ipv4Addr;

use loden::Mtu;
use loden::route::Route;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use support::host::{Host, Outcome, mtu_of, net, routes};
use support::model;
use support::packet::{
    DF, ICMP, Ipv4, LOOSE_SOURCE_ROUTE, MF, RECORD_ROUTE, ROUTER_ALERT, STRICT_SOURCE_ROUTE, TCP, UDP, icmp, pattern,
    repair_checksum, udp,
};
use support::scenario::{PEER_CHECKS, config_from, next_hops, senders};

/// Returns addresses with a meaning for the overlay, their neighbours, and any others.
fn address() -> impl Strategy<Value = Ipv4Addr> {
    let ours = select(vec![0, 1, 2, 254, 255]).prop_map(|last| Ipv4Addr::new(100, 96, 1, last));
    let theirs = (2u8..5, any::<u8>()).prop_map(|(subnet, last)| Ipv4Addr::new(100, 96, subnet, last));
    let special = select(vec![
        [100, 96, 0, 0],
        [100, 96, 255, 255],
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [169, 254, 1, 1],
        [169, 253, 1, 1],
        [224, 0, 0, 1],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
        [192, 0, 2, 1],
        [8, 8, 8, 8],
        [10, 168, 0, 2],
        [10, 168, 0, 3],
        [10, 168, 0, 4],
    ]);
    prop_oneof![3 => ours, 4 => theirs, 2 => special.prop_map(Ipv4Addr::from), 1 => any::<[u8; 4]>().prop_map(Ipv4Addr::from)]
}

fn payload() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let port = || select(vec![1u16, 53, 8285, 8286, 9000, 65_535]);
    let len = || prop_oneof![4 => 0usize..60, 2 => 530usize..600, 1 => 1440usize..1500, 1 => 0usize..9000];
    prop_oneof![
        3 => (port(), len()).prop_map(|(port, len)| (UDP, udp(4000, port, &pattern(len)))),
        1 => (0usize..8).prop_map(|len| (UDP, udp(4000, 8285, b"")[..len].to_vec())),
        3 => (0u8..20, any::<u8>(), len()).prop_map(|(kind, code, len)| (ICMP, icmp(kind, code, &pattern(len)))),
        1 => any::<u8>().prop_map(|kind| (ICMP, vec![kind])),
        1 => Just((ICMP, Vec::new())),
        2 => (select(vec![TCP, 4, 47, 89]), len()).prop_map(|(protocol, len)| (protocol, pattern(len))),
    ]
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let lists = select(vec![
        RECORD_ROUTE.to_vec(),
        ROUTER_ALERT.to_vec(),
        LOOSE_SOURCE_ROUTE.to_vec(),
        STRICT_SOURCE_ROUTE.to_vec(),
        vec![1; 40],
        vec![0; 4],
    ]);
    // Some are copied into every fragment, and some are not.
    let kinds = select(vec![
        RECORD_ROUTE.to_vec(),
        ROUTER_ALERT.to_vec(),
        vec![1],
        vec![130, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        vec![68, 5, 5, 0, 9],
        vec![0xde, 2],
    ]);
    let sound =
        vec(kinds, 1..5).prop_map(|list| list.concat()).prop_filter("at most 40 bytes", |list| list.len() <= 40);
    prop_oneof![6 => Just(Vec::new()), 3 => lists, 3 => sound, 1 => vec(any::<u8>(), 0..=40)]
}

/// Returns mostly valid packets.
fn packet() -> impl Strategy<Value = Ipv4> {
    let ttl = prop_oneof![4 => Just(64u8), 3 => Just(1), 1 => Just(0), 1 => Just(2), 1 => any::<u8>()];
    let fragment =
        prop_oneof![8 => Just(0u16), 6 => Just(DF), 2 => Just(MF), 2 => any::<u16>(), 1 => 0x1f00..=MF | 0x1fff];
    let trailer = prop_oneof![4 => Just(0usize), 1 => 1usize..50];
    let header = (address(), address(), ttl, fragment, any::<u8>(), any::<u16>());
    (header, payload(), options(), trailer).prop_map(|(header, (protocol, payload), options, trailer)| {
        let (source, destination, ttl, fragment, tos, id) = header;
        let trailer = vec![0xee; trailer];
        Ipv4 { ttl, fragment, tos, id, protocol, payload, options, trailer, ..Ipv4::new(source, destination) }
    })
}

/// Returns valid packets, truncated ones, and ones with changed bytes, with or without a repaired checksum.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let mutations = vec((0usize..64, any::<u8>()), 1..4);
    let cut = prop_oneof![5 => Just(None), 1 => (0usize..80).prop_map(Some)];
    let mutated = (packet(), mutations, any::<bool>(), cut).prop_map(|(packet, mutations, repair, cut)| {
        let mut bytes = packet.bytes();
        bytes.truncate(cut.unwrap_or(usize::MAX));
        for (at, byte) in mutations {
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
        if repair {
            repair_checksum(&mut bytes);
        }
        bytes
    });
    let broken = (packet(), 0u8..5, 0u16..20, 0..3).prop_map(|(packet, ihl, total, which)| {
        let packet = match which {
            0 => Ipv4 { ihl: Some(ihl), ..packet },
            1 => Ipv4 { total: Some(total), ..packet },
            _ => Ipv4 { version: ihl + 5, ..packet },
        };
        packet.bytes()
    });
    prop_oneof![12 => packet().prop_map(|packet| packet.bytes()), 8 => mutated, 2 => broken]
}

fn host() -> impl Strategy<Value = Host> {
    let hop = || select(next_hops().to_vec());
    let mtu = prop_oneof![3 => Just(None), 1 => Just(Some(mtu_of(1300))), 1 => Just(Some(Mtu::MIN))];
    let route = (address(), 0u8..=32, hop(), mtu).prop_map(|(address, len, next_hop, mtu)| {
        let route = Route::new(net(address, len), next_hop);
        route.with_mtu(mtu)
    });
    let table = (proptest::bool::weighted(0.8), vec(route, 0..5), proptest::option::of(hop())).prop_map(
        |(known, random, default)| {
            let mut table = if known { routes() } else { Vec::new() };
            table.extend(random);
            table.extend(default.map(|hop| Route::new(net([0, 0, 0, 0], 0), hop)));
            table
        },
    );
    let config = (any::<u8>(), select(PEER_CHECKS.to_vec()), select(vec![68u16, 576, 1472, u16::MAX]), 1u8..=255);
    (config, table).prop_map(|((policy, peer_check, mtu, icmp_ttl), table)| {
        Host::new(config_from(policy, mtu).with_peer_check(peer_check).with_icmp_ttl(icmp_ttl), table)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn encapsulate_equals_the_model(host in host(), packets in vec(bytes(), 1..32)) {
        for bytes in packets {
            prop_assert_eq!(host.encapsulate(&bytes), model::encapsulate(&host, &bytes), "{:02x?}", bytes);
        }
    }

    #[test]
    fn decapsulate_equals_the_model(host in host(), from in select(senders().to_vec()), packets in vec(bytes(), 1..32)) {
        for bytes in packets {
            prop_assert_eq!(host.decapsulate(&bytes, from), model::decapsulate(&host, &bytes, from), "{:02x?}", bytes);
        }
    }
}

/// The generators reach every verdict and reason that a packet alone can cause.
#[test]
fn the_generators_reach_every_verdict() {
    use loden::forward::DropReason;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use std::collections::HashMap;

    let mut runner = TestRunner::deterministic();
    let mut seen: HashMap<(&str, Option<DropReason>, bool), u32> = HashMap::new();
    let mut fragmented = 0;
    for _ in 0..800 {
        let host = host().new_tree(&mut runner).unwrap().current();
        let packets = vec(bytes(), 40).new_tree(&mut runner).unwrap().current();
        let from = select(senders().to_vec()).new_tree(&mut runner).unwrap().current();
        for bytes in packets {
            let (out, back) = (model::encapsulate(&host, &bytes), model::decapsulate(&host, &bytes, from));
            fragmented += u32::from(matches!(out, Outcome::Fragments { .. }));
            *seen.entry(("encapsulate", out.reason(), out.icmp().is_some())).or_default() += 1;
            *seen.entry(("decapsulate", back.reason(), back.icmp().is_some())).or_default() += 1;
        }
    }
    let mut missing = Vec::new();
    let of_the_forwarder = DropReason::ALL.iter().take_while(|reason| **reason != DropReason::PathTooNarrow);
    // These need more than the bytes of an IPv4 packet, or another host.
    let needs_more = |reason: &&DropReason| {
        use DropReason::{BadOffload, BelowIpv6Minimum, EcnNotCapable, Ipv4NotCarried, Ipv6Multicast, Jumbogram};
        matches!(reason, BadOffload | BelowIpv6Minimum | EcnNotCapable | Ipv4NotCarried | Ipv6Multicast | Jumbogram)
    };
    for reason in of_the_forwarder.filter(|reason| !needs_more(reason)) {
        use DropReason::{
            ForeignDestination, FragmentationNeeded, NoRoute, NotFragmented, SpoofedSource, TimeExceeded, UnknownPeer,
        };
        let decap_only = matches!(reason, UnknownPeer | SpoofedSource | ForeignDestination);
        let encap_only = matches!(reason, NoRoute | FragmentationNeeded | NotFragmented);
        let answers = matches!(reason, NoRoute | TimeExceeded | FragmentationNeeded);
        for (direction, applies) in [("encapsulate", !decap_only), ("decapsulate", !encap_only)] {
            let mut least = |answered| {
                let count = seen.get(&(direction, Some(*reason), answered)).copied().unwrap_or_default();
                if applies && count < 3 {
                    missing.push((direction, *reason, answered, count));
                }
            };
            least(false);
            if answers {
                least(true);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
    assert!(seen[&("encapsulate", None, false)] > 500 && seen[&("decapsulate", None, false)] > 100);
    assert!(fragmented > 100, "{fragmented} went in fragments");
}
