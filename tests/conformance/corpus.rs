//! The fuzz targets' bodies over the committed seeds, and the seeds themselves.
//!
//! `LODEN_WRITE_SEEDS=1 cargo test --test conformance seeds` writes them anew.

use crate::{path_mtu, seeds_v6};
use support::corpus::{assert_committed, run_over};
use support::host::{NOBODY, POD, POD_B, inbound, outbound};
use support::packet::{
    DF, ICMP, Ipv4, LOOSE_SOURCE_ROUTE, MF, RECORD_ROUTE, ROUTER_ALERT, STRICT_SOURCE_ROUTE, TCP, icmp, pattern, udp,
};
use support::scenario::{Scenario, policy};

type Seed = (&'static str, Vec<u8>);

#[test]
fn control_over_the_corpus() {
    run_over("control", bodies::control::run);
}

#[test]
fn header_over_the_corpus() {
    run_over("header", bodies::header::run);
}

#[test]
fn forward_over_the_corpus() {
    run_over("forward", bodies::forward::run);
}

#[test]
fn icmp_over_the_corpus() {
    run_over("icmp", bodies::icmp::run);
}

#[test]
fn path_mtu_over_the_corpus() {
    run_over("path_mtu", bodies::path_mtu::run);
}

#[test]
fn the_committed_seeds_are_these() {
    let of_target = [
        ("control", control_seeds()),
        ("header", [header_seeds(), seeds_v6::header()].concat()),
        ("forward", [forward_seeds(), seeds_v6::forward()].concat()),
        ("icmp", [icmp_seeds(), seeds_v6::icmp()].concat()),
        ("path_mtu", path_mtu::seeds()),
    ];
    for (target, seeds) in of_target {
        assert!((20..=60).contains(&seeds.len()), "{} seeds for {target}", seeds.len());
        assert_committed(target, seeds);
    }
}

/// Returns commands in little-endian byte order, which most machines have.
fn control_seeds() -> Vec<Seed> {
    let command = |kind: i32, subnet: [u8; 4], len: i32, next_hop: [u8; 4], port: u16| {
        let numbers = [kind.to_le_bytes(), subnet, len.to_le_bytes(), next_hop].concat();
        [&numbers[..], &port.to_le_bytes(), &[0; 2]].concat()
    };
    let (subnet, host) = ([100, 96, 2, 0], [10, 168, 0, 3]);
    let set = |len| command(1, subnet, len, host, 8285);
    let delete = |len| command(2, subnet, len, [0; 4], 0);
    let stop = command(3, [0; 4], 0, [0; 4], 0);
    let dirty = |command: &[u8], from: usize| [&command[..from], &[0xee; 20][from..]].concat();
    vec![
        ("delete", delete(24)),
        ("delete-all", command(2, [0; 4], 0, [0; 4], 0)),
        ("delete-length-33", delete(33)),
        ("delete-with-a-next-hop", dirty(&delete(24), 12)),
        ("kind-0", command(0, subnet, 24, host, 8285)),
        ("kind-4", command(4, subnet, 24, host, 8285)),
        ("kind-big-endian", 1i32.to_be_bytes().into_iter().chain(set(24).split_off(4)).collect()),
        ("kind-negative", command(-1, subnet, 24, host, 8285)),
        ("long", [set(24), vec![0]].concat()),
        ("nothing", vec![]),
        ("set", set(24)),
        ("set-host", command(1, [100, 96, 2, 3], 32, host, 8285)),
        ("set-host-bits", command(1, [100, 96, 2, 77], 24, host, 8285)),
        ("set-length-0", set(0)),
        ("set-length-33", set(33)),
        ("set-length-256", set(256)),
        ("set-length-negative", set(-1)),
        ("set-nowhere", command(1, subnet, 24, [0; 4], 0)),
        ("set-padding", dirty(&set(24), 18)),
        ("short", set(24)[..19].to_vec()),
        ("stop", stop.clone()),
        ("stop-with-anything", dirty(&stop, 4)),
    ]
}

/// Returns the first packets of every target. Their names describe them.
fn header_seeds() -> Vec<Seed> {
    let packets = [
        ("all-header", Ipv4 { payload: vec![], ..outbound() }),
        ("bad-checksum", Ipv4 { checksum: Some(0xdead), ..outbound() }),
        ("checksum-ffff", Ipv4 { checksum: Some(0xffff), ..outbound() }),
        ("cut-19-bytes", Ipv4 { cut: Some(19), ..outbound() }),
        ("cut-in-the-payload", Ipv4 { cut: Some(24), ..outbound() }),
        ("fragment-first", Ipv4 { fragment: MF, payload: pattern(64), ..outbound() }),
        ("fragment-last", Ipv4 { fragment: 8, payload: pattern(13), ..outbound() }),
        ("fragment-past-the-end", Ipv4 { fragment: 0x1fff, payload: pattern(64), ..outbound() }),
        ("ihl-4", Ipv4 { ihl: Some(4), ..outbound() }),
        ("ihl-15-in-48-bytes", Ipv4 { ihl: Some(15), cut: Some(48), payload: pattern(60), ..outbound() }),
        ("ihl-15-nops", Ipv4 { options: vec![1; 40], ..outbound() }),
        ("ihl-15-one-option", Ipv4 { options: [[0x1e, 40].as_slice(), &pattern(38)].concat(), ..outbound() }),
        ("icmp-echo", Ipv4 { protocol: ICMP, payload: icmp(8, 0, b"ping"), ..outbound() }),
        ("ipv6", Ipv4 { version: 6, payload: pattern(40), ..outbound() }),
        ("option-end-then-anything", Ipv4 { options: vec![0, 131, 0, 255], ..outbound() }),
        ("option-length-0", Ipv4 { options: vec![0x1e, 0, 1, 1], ..outbound() }),
        ("option-length-1", Ipv4 { options: vec![0x1e, 1, 1, 1], ..outbound() }),
        ("option-length-41", Ipv4 { options: vec![0x1e, 41, 1, 1], ..outbound() }),
        ("option-length-missing", Ipv4 { options: vec![1, 1, 1, 0x1e], ..outbound() }),
        ("option-record-route", Ipv4 { options: RECORD_ROUTE.to_vec(), ..outbound() }),
        ("option-router-alert", Ipv4 { options: ROUTER_ALERT.to_vec(), ..outbound() }),
        ("ordinary", outbound()),
        ("reserved-bits", Ipv4 { tos: 3, fragment: 0x8000, ..outbound() }),
        ("source-route-loose", Ipv4 { options: LOOSE_SOURCE_ROUTE.to_vec(), ..outbound() }),
        ("source-route-strict", Ipv4 { options: STRICT_SOURCE_ROUTE.to_vec(), ..outbound() }),
        ("tcp", Ipv4 { protocol: TCP, payload: pattern(20), fragment: DF, ..outbound() }),
        ("total-length-19", Ipv4 { total: Some(19), ..outbound() }),
        ("total-length-65535", Ipv4 { total: Some(u16::MAX), ..outbound() }),
        ("trailer", Ipv4 { trailer: vec![0xee; 8], ..outbound() }),
        ("ttl-0", Ipv4 { ttl: 0, ..outbound() }),
        ("version-5", Ipv4 { version: 5, ..outbound() }),
    ];
    let mut seeds: Vec<Seed> = packets.iter().map(|(name, packet)| (*name, packet.bytes())).collect();
    seeds.push(("empty", Vec::new()));
    seeds
}

fn forward_seeds() -> Vec<Seed> {
    let (a, b, stranger) = (0, 1, 9);
    let out = |packet: &Ipv4| Scenario::encode(0, 0, a, None, &packet.bytes());
    let with = |policy, packet: &Ipv4| Scenario::encode(policy, 0, a, None, &packet.bytes());
    let from = |sender, packet: &Ipv4| Scenario::encode(0, 0, sender, None, &packet.bytes());
    let to_tunnel = Ipv4 { payload: udp(4000, 8285, b""), ..Ipv4::new(POD, [10, 168, 0, 2]) };
    let source_route = Ipv4 { options: STRICT_SOURCE_ROUTE.to_vec(), ..outbound() };
    let long = Ipv4 { payload: pattern(100), ..outbound() };
    let options = [RECORD_ROUTE.as_slice(), &ROUTER_ALERT, &[1, 1, 130, 3, 9, 1]].concat();
    let narrow = |packet: &Ipv4| Scenario::encode(0, 1, a, None, &packet.bytes());
    vec![
        ("out-bad-checksum", out(&Ipv4 { checksum: Some(1), ..outbound() })),
        ("out-broadcast", out(&Ipv4 { destination: [255; 4].into(), ..outbound() })),
        ("out-default-route", Scenario::encode(0, 0, a, Some(6), &Ipv4::new(POD, [9, 9, 9, 9]).bytes())),
        ("out-fixed-icmp-source", with(policy::ICMP_SOURCE_FIXED, &Ipv4 { ttl: 1, ..outbound() })),
        ("out-link-local", out(&Ipv4 { destination: [169, 254, 1, 1].into(), ..outbound() })),
        ("out-longest-match", out(&Ipv4 { destination: [100, 96, 2, 241].into(), ..outbound() })),
        ("out-loop-next-hop", Scenario::encode(0, 0, a, Some(0), &Ipv4::new(POD, [10, 168, 0, 3]).bytes())),
        ("out-loop-own-socket", Scenario::encode(0, 0, a, Some(0), &to_tunnel.bytes())),
        ("out-martian-source", out(&Ipv4 { source: [127, 0, 0, 1].into(), ..outbound() })),
        ("out-multicast-ttl-1", out(&Ipv4 { destination: [224, 0, 0, 1].into(), ttl: 1, ..outbound() })),
        ("out-no-route", out(&Ipv4 { destination: NOBODY, ..outbound() })),
        ("out-ordinary", out(&outbound())),
        ("out-preserve-ttl-1", with(policy::TTL_PRESERVE, &Ipv4 { ttl: 1, ..outbound() })),
        ("out-repaired", with(policy::REPAIR_CHECKSUM | policy::REPAIR_LENGTH, &outbound())),
        ("out-source-route", out(&source_route)),
        ("out-source-route-allowed", with(policy::SOURCE_ROUTES, &source_route)),
        ("out-too-long", narrow(&long)),
        ("out-too-long-fragment", narrow(&Ipv4 { fragment: MF | 99, ..long.clone() })),
        ("out-too-long-options", narrow(&Ipv4 { options, ..long.clone() })),
        ("out-too-long-past-the-end", narrow(&Ipv4 { fragment: 0x1fff, ..long.clone() })),
        ("out-too-long-df", narrow(&Ipv4 { fragment: DF, ..long })),
        ("out-trailer", out(&Ipv4 { trailer: vec![0xee; 9], ..outbound() })),
        ("out-ttl-0", out(&Ipv4 { ttl: 0, ..outbound() })),
        ("in-dressed-as-ipv6", from(8, &inbound())),
        ("in-foreign", from(a, &Ipv4 { destination: POD_B, ..inbound() })),
        ("in-from-our-subnet", from(a, &Ipv4::new([100, 96, 1, 9], POD))),
        ("in-ingress-ttl-1", with(policy::TTL_INGRESS, &Ipv4 { ttl: 1, ..inbound() })),
        ("in-ordinary", from(a, &inbound())),
        ("in-other-port", from(7, &inbound())),
        ("in-spoofed", from(b, &inbound())),
        ("in-spoofed-unchecked", Scenario::encode(policy::SOURCE_CHECK_OFF, 0, b, None, &inbound().bytes())),
        ("in-stranger", from(stranger, &inbound())),
        ("in-transit", with(policy::TRANSIT, &Ipv4 { destination: POD_B, ..inbound() })),
        ("in-transit-back", with(policy::TRANSIT, &Ipv4 { destination: [100, 96, 2, 9].into(), ..inbound() })),
        ("in-ttl-1", from(a, &Ipv4 { ttl: 1, ..inbound() })),
        ("no-routes", vec![0, 0, 0, 0x45, 0]),
        ("nothing", vec![]),
    ]
}

/// Returns offenders. Each gets an ICMP error unless its name says otherwise.
fn icmp_seeds() -> Vec<Seed> {
    let lost = || Ipv4 { destination: NOBODY, ..outbound() };
    let offender = |packet: Ipv4| Scenario::encode(0, 0, 0, None, &packet.bytes());
    let of_type = |kind| offender(Ipv4 { protocol: ICMP, payload: icmp(kind, 0, &pattern(28)), ..lost() });
    let narrow = |packet: Ipv4| Scenario::encode(0, 1, 0, None, &Ipv4 { fragment: DF, ..packet }.bytes());
    vec![
        ("broadcast-of-the-network", offender(Ipv4 { destination: [100, 96, 255, 255].into(), ..lost() })),
        ("broadcast-of-the-subnet", offender(Ipv4 { ttl: 1, source: [100, 96, 1, 255].into(), ..outbound() })),
        ("expired", offender(Ipv4 { ttl: 1, ..outbound() })),
        ("expired-at-the-far-end", offender(Ipv4 { ttl: 1, ..inbound() })),
        ("expired-without-a-way-back", offender(Ipv4 { ttl: 1, source: [10, 168, 0, 3].into(), ..inbound() })),
        ("fits-after-all", narrow(Ipv4 { payload: pattern(48), ..outbound() })),
        ("fixed-source", Scenario::encode(policy::ICMP_SOURCE_FIXED, 0, 0, None, &lost().bytes())),
        ("fragment-first", offender(Ipv4 { fragment: MF, ..lost() })),
        ("fragment-later", offender(Ipv4 { fragment: 1, ..lost() })),
        ("ihl-15-options", offender(Ipv4 { options: vec![1; 40], ..lost() })),
        ("ihl-15-too-long", narrow(Ipv4 { options: vec![1; 40], payload: pattern(600), ..outbound() })),
        ("length-0-payload", offender(Ipv4 { payload: vec![], ..lost() })),
        ("length-548-quote-just-fits", offender(Ipv4 { payload: pattern(528), ..lost() })),
        ("length-549-quote-just-not", offender(Ipv4 { payload: pattern(529), ..lost() })),
        ("length-odd", offender(Ipv4 { payload: pattern(7), ..lost() })),
        ("tos-ff", offender(Ipv4 { tos: 0xff, ..lost() })),
        ("too-long", narrow(Ipv4 { payload: pattern(100), ..outbound() })),
        ("too-long-for-the-path-later", offender(Ipv4 { payload: pattern(1200), fragment: DF, ..outbound() })),
        ("trailer", offender(Ipv4 { trailer: vec![0xee; 60], ..lost() })),
        ("type-0-echo-reply", of_type(0)),
        ("type-3-unreachable", of_type(3)),
        ("type-5-redirect", of_type(5)),
        ("type-8-echo", of_type(8)),
        ("type-11-time-exceeded", of_type(11)),
        ("type-12-parameter-problem", of_type(12)),
        ("type-13-timestamp", of_type(13)),
        ("type-200-unknown", of_type(200)),
        ("type-missing", offender(Ipv4 { protocol: ICMP, payload: vec![], ..lost() })),
    ]
}
