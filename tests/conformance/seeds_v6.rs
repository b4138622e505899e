//! The IPv6 seeds of the fuzz targets for headers, verdicts and ICMP errors.

use core::net::Ipv6Addr;

use support::host::{NOBODY_V6, POD_A_V6, POD_C_V6, POD_V6};
use support::packet::{UDP, pattern, udp};
use support::packet_v6::{
    DESTINATION_OPTIONS, HOP_BY_HOP, ICMPV6, Ipv6, ROUTING, destination_options, fragment, icmpv6, segment_routing,
};
use support::scenario::{DUAL, Scenario, policy};

type Seed = (&'static str, Vec<u8>);

fn outbound() -> Ipv6 {
    Ipv6::new(POD_V6, POD_A_V6)
}

fn inbound() -> Ipv6 {
    Ipv6::new(POD_A_V6, POD_V6)
}

fn lost() -> Ipv6 {
    Ipv6::new(POD_V6, NOBODY_V6)
}

pub(crate) fn header() -> Vec<Seed> {
    let behind = |extensions: Vec<(u8, Vec<u8>)>| Ipv6 { extensions, ..outbound() };
    let mut cut = outbound().bytes();
    cut.truncate(39);
    let packets = [
        (
            "v6-behind-all",
            behind(vec![(HOP_BY_HOP, vec![0, 0, 5, 2, 0, 0, 1, 0]), destination_options(2), fragment(0, true)]),
        ),
        ("v6-behind-authentication", behind(vec![(51, [&[0, 4][..], &[7; 22]].concat())])),
        ("v6-behind-eight", behind(vec![destination_options(1); 8])),
        ("v6-behind-nine", behind(vec![destination_options(1); 9])),
        ("v6-extension-too-long", behind(vec![(DESTINATION_OPTIONS, vec![0, 200, 1, 4, 0, 0, 0, 0])])),
        ("v6-fragment-later", behind(vec![fragment(100, false)])),
        ("v6-jumbogram", Ipv6 { payload_len: Some(0), ..behind(vec![(HOP_BY_HOP, vec![0, 0, 0xc2, 4, 0, 1, 0, 0])]) }),
        ("v6-no-payload", Ipv6 { payload_len: Some(0), ..outbound() }),
        ("v6-ordinary", outbound()),
        ("v6-routing-type-0", behind(vec![(ROUTING, vec![0; 8])])),
        ("v6-segment-routing", behind(vec![segment_routing(POD_C_V6)])),
        ("v6-trailer", Ipv6 { trailer: vec![0xee; 8], ..outbound() }),
        ("v6-truncated", Ipv6 { payload_len: Some(9999), ..outbound() }),
    ];
    let mut seeds: Vec<Seed> = packets.iter().map(|(name, packet)| (*name, packet.bytes())).collect();
    seeds.push(("v6-cut-39-bytes", cut));
    seeds
}

pub(crate) fn forward() -> Vec<Seed> {
    let (a, b, c) = (DUAL, DUAL + 1, DUAL + 6);
    let with = |policy, packet: &Ipv6| Scenario::encode(policy, 0, a, None, &packet.bytes());
    let out = |packet: &Ipv6| with(0, packet);
    let from = |sender, packet: &Ipv6| Scenario::encode(0, 0, sender, None, &packet.bytes());
    let group: Ipv6Addr = "ff02::2".parse().unwrap();
    let of_length =
        |len: usize, destination| Ipv6 { payload: udp(4000, 53, &pattern(len - 48)), ..Ipv6::new(POD_V6, destination) };
    let narrow = |packet: &Ipv6| Scenario::encode(0, 1, a, None, &packet.bytes());
    vec![
        ("v6-out-group", out(&Ipv6 { destination: group, ..outbound() })),
        ("v6-out-longest-match", out(&Ipv6 { destination: "fd00:96:2:0:f000::1".parse().unwrap(), ..outbound() })),
        ("v6-out-no-route", out(&lost())),
        ("v6-out-not-carried", Scenario::encode(0, 0, 0, None, &outbound().bytes())),
        ("v6-out-ordinary", out(&outbound())),
        ("v6-out-repaired", with(policy::REPAIR_LENGTH, &Ipv6 { payload_len: Some(7), ..outbound() })),
        ("v6-out-routing-type-0", out(&Ipv6 { extensions: vec![(ROUTING, vec![0; 8])], ..outbound() })),
        ("v6-out-too-long", narrow(&of_length(1300, POD_A_V6))),
        ("v6-out-too-long-over-ipv6", out(&of_length(1453, POD_C_V6))),
        ("v6-in-foreign", from(a, &Ipv6 { destination: POD_C_V6, ..inbound() })),
        ("v6-in-hop-limit-1", from(a, &Ipv6 { hop_limit: 1, ..inbound() })),
        ("v6-in-ordinary", from(a, &inbound())),
        ("v6-in-over-ipv6", from(c, &Ipv6::new(POD_C_V6, POD_V6))),
        ("v6-in-spoofed", from(b, &inbound())),
        ("v6-in-transit", with(policy::TRANSIT, &Ipv6 { destination: POD_C_V6, ..inbound() })),
        ("v6-ipv4-beside", Scenario::encode(0, 0, a, None, &support::host::outbound().bytes())),
    ]
}

pub(crate) fn icmp() -> Vec<Seed> {
    let offender = |packet: Ipv6| Scenario::encode(0, 0, DUAL, None, &packet.bytes());
    let of_type = |kind| {
        let payload = icmpv6(POD_V6, NOBODY_V6, kind, &pattern(28));
        offender(Ipv6 { protocol: ICMPV6, payload, ..lost() })
    };
    let narrow = |packet: Ipv6| Scenario::encode(0, 1, DUAL, None, &packet.bytes());
    let piece =
        |offset, protocol| Ipv6 { extensions: vec![fragment(offset, true)], protocol, payload: vec![1; 64], ..lost() };
    vec![
        ("v6-expired", offender(Ipv6 { hop_limit: 1, ..outbound() })),
        ("v6-expired-at-the-far-end", offender(Ipv6 { hop_limit: 1, ..inbound() })),
        ("v6-fixed-source", Scenario::encode(policy::ICMP_SOURCE_FIXED, 0, DUAL, None, &lost().bytes())),
        ("v6-fragment-first-icmp", offender(piece(0, ICMPV6))),
        ("v6-fragment-later-icmp", offender(piece(9, ICMPV6))),
        ("v6-fragment-later-udp", offender(piece(9, UDP))),
        ("v6-length-1232-quote-just-fits", offender(Ipv6 { payload: pattern(1192), ..lost() })),
        ("v6-length-1233-quote-just-not", offender(Ipv6 { payload: pattern(1193), ..lost() })),
        ("v6-too-long", narrow(Ipv6 { payload: pattern(1400), ..outbound() })),
        ("v6-too-long-for-the-path-later", offender(Ipv6 { payload: pattern(1400), ..outbound() })),
        ("v6-type-1-unreachable", of_type(1)),
        ("v6-type-128-echo", of_type(128)),
        ("v6-type-137-redirect", of_type(137)),
        ("v6-type-hidden", offender(Ipv6 { extensions: vec![destination_options(1); 9], ..lost() })),
        ("v6-type-missing", offender(Ipv6 { protocol: ICMPV6, payload: vec![], ..lost() })),
    ]
}
