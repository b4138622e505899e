//! Every verdict on IPv6 packets, with its bytes and its reason, against the model.

use core::net::Ipv6Addr;

use loden::Mtu;
use loden::forward::DropReason;
use loden::route::Route;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use support::host::{Host, Outcome, dual_routes, host_a, host_c, mtu_of, net_v6};
use support::model;
use support::packet::{TCP, UDP, pattern, udp};
use support::packet_v6::{
    DESTINATION_OPTIONS, HOP_BY_HOP, ICMPV6, Ipv6, ROUTING, destination_options, fragment, segment_routing,
};
use support::scenario::{PEER_CHECKS, dual_config_from, dual_senders};

/// Returns addresses with a meaning for the overlay, their neighbours, and any others.
fn address() -> impl Strategy<Value = Ipv6Addr> {
    let pod = |subnet: u16, high: u16, last: u16| Ipv6Addr::new(0xfd00, 0x96, subnet, 0, high, 0, 0, last);
    let ours = (select(vec![1u16, 0x11]), 0u16..4).prop_map(move |(subnet, last)| pod(subnet, 0, last));
    let theirs =
        (2u16..5, select(vec![0u16, 0xefff, 0xf000]), 0u16..4).prop_map(move |(s, high, last)| pod(s, high, last));
    let special = select(vec![
        "::",
        "::1",
        "::2",
        "::ffff:10.168.0.3",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::2",
        "ff02::16",
        "2001:db8::1",
        "64:ff9b::808:808",
        "fd00:168::2",
        "fd00:168::4",
        "fdff::1",
    ]);
    let special = special.prop_map(|text| text.parse::<Ipv6Addr>().unwrap());
    prop_oneof![3 => ours, 5 => theirs, 2 => special, 1 => any::<[u8; 16]>().prop_map(Ipv6Addr::from)]
}

fn payload() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let port = || select(vec![1u16, 53, 8285, 8286, 9000, 65_535]);
    let len = || prop_oneof![4 => 0usize..60, 2 => 1170usize..1300, 1 => 1380usize..1480, 1 => 0usize..9000];
    let kind = || prop_oneof![2 => 0u8..6, 2 => 126u8..140, 1 => any::<u8>()];
    prop_oneof![
        3 => (port(), len()).prop_map(|(port, len)| (UDP, udp(4000, port, &pattern(len)))),
        1 => (0usize..8).prop_map(|len| (UDP, udp(4000, 8285, b"")[..len].to_vec())),
        3 => (kind(), len()).prop_map(|(kind, len)| (ICMPV6, [&[kind][..], &pattern(len)].concat())),
        1 => Just((ICMPV6, Vec::new())),
        2 => (select(vec![TCP, 59, 50, 4]), len()).prop_map(|(protocol, len)| (protocol, pattern(len))),
    ]
}

/// Returns extension headers, sound ones and such as do not fit.
fn extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let one = prop_oneof![
        3 => (1usize..4).prop_map(destination_options),
        2 => Just((HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0])),
        2 => (select(vec![0u16, 0, 1, 200]), any::<bool>()).prop_map(|(offset, more)| fragment(offset, more)),
        1 => Just(segment_routing(Ipv6Addr::LOCALHOST)),
        1 => Just((ROUTING, vec![0; 8])),
        1 => Just((51, [&[0, 4][..], &[7; 22]].concat())),
        1 => (select(vec![135u8, 139, 140]), any::<bool>()).prop_map(|(kind, _)| (kind, vec![0, 0, 1, 2, 3, 4, 5, 6])),
        1 => any::<u8>().prop_map(|words| (DESTINATION_OPTIONS, vec![0, words, 1, 4, 0, 0, 0, 0])),
    ];
    let many = (7usize..11).prop_map(|count| vec![destination_options(1); count]);
    prop_oneof![6 => Just(Vec::new()), 5 => vec(one, 1..4), 1 => many]
}

/// Returns mostly valid packets.
fn packet() -> impl Strategy<Value = Ipv6> {
    let hop_limit = prop_oneof![4 => Just(64u8), 3 => Just(1), 1 => Just(0), 1 => Just(2), 1 => any::<u8>()];
    let trailer = prop_oneof![4 => Just(0usize), 1 => 1usize..50];
    let header = (address(), address(), hop_limit, any::<u8>(), 0u32..1 << 20);
    (header, payload(), extensions(), trailer).prop_map(|(header, (protocol, payload), extensions, trailer)| {
        let (source, destination, hop_limit, traffic_class, flow_label) = header;
        let trailer = vec![0xee; trailer];
        let payload_len = None;
        Ipv6 {
            traffic_class,
            flow_label,
            payload_len,
            hop_limit,
            source,
            destination,
            extensions,
            protocol,
            payload,
            trailer,
        }
    })
}

/// Returns valid packets, truncated ones, and ones with changed bytes or lengths.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let mutations = vec((0usize..100, any::<u8>()), 1..4);
    let cut = prop_oneof![5 => Just(None), 1 => (0usize..100).prop_map(Some)];
    let mutated = (packet(), mutations, cut).prop_map(|(packet, mutations, cut)| {
        let mut bytes = packet.bytes();
        bytes.truncate(cut.unwrap_or(usize::MAX));
        for (at, byte) in mutations {
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
        bytes
    });
    let empty = (packet(), any::<bool>()).prop_map(|(packet, is_jumbogram)| {
        let mut bytes = Ipv6 { payload_len: Some(0), ..packet }.bytes();
        if is_jumbogram {
            bytes[6] = HOP_BY_HOP;
        }
        bytes
    });
    prop_oneof![14 => packet().prop_map(|packet| packet.bytes()), 6 => mutated, 1 => empty]
}

fn host() -> impl Strategy<Value = Host> {
    let hop = || select(vec![host_a(), host_c(), ([192, 0, 2, 1], 65_535).into()]);
    let narrow = select(vec![mtu_of(1300), mtu_of(1200), Mtu::MIN]);
    let mtu = prop_oneof![3 => Just(None), 3 => narrow.prop_map(Some)];
    let route = (address(), 0u8..=128, hop(), mtu)
        .prop_map(|(address, len, hop, mtu)| Route::new(net_v6(address, len), hop).with_mtu(mtu));
    let table = (proptest::bool::weighted(0.8), vec(route, 0..5), proptest::option::of(hop())).prop_map(
        |(known, random, default)| {
            let mut table = if known { dual_routes() } else { Vec::new() };
            table.extend(random);
            table.extend(default.map(|hop| Route::new(net_v6(Ipv6Addr::UNSPECIFIED, 0), hop)));
            table
        },
    );
    let config = (any::<u8>(), select(PEER_CHECKS.to_vec()), select(vec![1280u16, 1472, u16::MAX]), 1u8..=255);
    (config, table).prop_map(|((policy, peer_check, mtu, icmp_ttl), table)| {
        Host::new(dual_config_from(policy, mtu).with_peer_check(peer_check).with_icmp_ttl(icmp_ttl), table)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    /// V1 to V5 for the views alone, against two other parsers.
    #[test]
    fn v1_to_v5_every_header_is_read_as_by_two_other_parsers(packets in vec(bytes(), 1..64)) {
        for bytes in packets {
            bodies::header::run(&bytes);
        }
    }

    #[test]
    fn v4_v23_encapsulate_equals_the_model(host in host(), packets in vec(bytes(), 1..32)) {
        for bytes in packets {
            prop_assert_eq!(host.encapsulate(&bytes), model::encapsulate(&host, &bytes), "{:02x?}", bytes);
        }
    }

    #[test]
    fn v31_decapsulate_equals_the_model(
        host in host(),
        from in select(dual_senders().to_vec()),
        packets in vec(bytes(), 1..32),
    ) {
        for bytes in packets {
            prop_assert_eq!(host.decapsulate(&bytes, from), model::decapsulate(&host, &bytes, from), "{:02x?}", bytes);
        }
    }
}

/// The generators reach every verdict and reason of IPv6.
#[test]
fn the_generators_reach_every_verdict() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use std::collections::HashMap;

    let mut runner = TestRunner::deterministic();
    let mut seen: HashMap<(&str, Option<DropReason>, bool), u32> = HashMap::new();
    for _ in 0..400 {
        let host = host().new_tree(&mut runner).unwrap().current();
        let packets = vec(bytes(), 40).new_tree(&mut runner).unwrap().current();
        let from = select(dual_senders().to_vec()).new_tree(&mut runner).unwrap().current();
        for bytes in packets {
            let (out, back) = (model::encapsulate(&host, &bytes), model::decapsulate(&host, &bytes, from));
            assert!(!matches!(out, Outcome::Fragments { .. }), "V23: never fragmented");
            *seen.entry(("encapsulate", out.reason(), out.icmp().is_some())).or_default() += 1;
            *seen.entry(("decapsulate", back.reason(), back.icmp().is_some())).or_default() += 1;
        }
    }
    let (both, answered) = ([false, true], [true]);
    let expected: [(&str, &[DropReason], &[bool]); 4] = {
        use DropReason::*;
        [
            ("encapsulate", &[NoRoute, TimeExceeded, FragmentationNeeded], &both),
            ("decapsulate", &[TimeExceeded], &answered),
            (
                "encapsulate",
                &[
                    TooShort,
                    Truncated,
                    Jumbogram,
                    SourceRoute,
                    Ipv6Multicast,
                    MartianSource,
                    LinkLocal,
                    MartianDestination,
                    Loop,
                    TtlZero,
                    BelowIpv6Minimum,
                ],
                &[false],
            ),
            (
                "decapsulate",
                &[
                    UnknownPeer,
                    TooShort,
                    Truncated,
                    Jumbogram,
                    SourceRoute,
                    Ipv6Multicast,
                    MartianSource,
                    LinkLocal,
                    MartianDestination,
                    SpoofedSource,
                    Loop,
                    ForeignDestination,
                    TtlZero,
                ],
                &[false],
            ),
        ]
    };
    for (direction, reasons, answers) in expected {
        for (reason, answered) in
            reasons.iter().flat_map(|reason| answers.iter().map(move |answered| (reason, answered)))
        {
            let count = seen.get(&(direction, Some(*reason), *answered)).copied().unwrap_or_default();
            assert!(count >= 3, "{direction}: {reason}, answered: {answered}, {count} times");
        }
    }
    assert!(seen[&("encapsulate", None, false)] > 300 && seen[&("decapsulate", None, false)] > 100, "{seen:?}");
}
