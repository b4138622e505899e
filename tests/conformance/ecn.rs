//! The tunnel's ECN in both directions, and its source ports.

use std::collections::HashSet;

use loden::forward::{
    DatagramMeta, Decap, DropReason, EcnEgress, EcnIngress, Encap, SourceCheck, SourcePort, TtlPolicy,
};
use loden::wire::Ecn::{self, Ce, Ect0, Ect1, NotEct};

use support::host::{Host, config, host_a, inbound, outbound, routes};
use support::packet::{Ipv4, MF, TCP, ones_sum, repair_checksum, udp};

const ALL: [Ecn; 4] = [NotEct, Ect0, Ect1, Ce];

/// Returns the type of service byte of a packet, with a DSCP that must not change.
fn tos(ecn: Ecn) -> u8 {
    0xb8 | ecn.bits()
}

fn decapsulated(host: &Host, inner: Ecn, outer: Ecn) -> Result<Vec<u8>, DropReason> {
    let mut bytes = Ipv4 { tos: tos(inner), ..inbound() }.bytes();
    let before = bytes.clone();
    let verdict = match host.forwarder.decapsulate(&mut bytes, DatagramMeta { from: host_a(), ecn: outer }, &host.table)
    {
        Decap::Deliver(packet) => Ok(packet.to_vec()),
        Decap::Drop(reason) => Err(reason),
        Decap::Reject(reject) => panic!("{reject:?}"),
    };
    if verdict.is_err() {
        assert_eq!(bytes, before, "what is dropped is not touched");
    }
    verdict
}

/// R57: figure 4 of RFC 6040, cell by cell, in its order of rows and columns. Every other byte is unchanged.
#[test]
fn r57_every_cell_of_the_figure() {
    let figure = [
        (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
        (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
        (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
        (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
    ];
    for policy in [TtlPolicy::BothEnds, TtlPolicy::Preserve] {
        let host = Host::new(config().with_ttl(policy), routes());
        for (inner, row) in figure {
            for (outer, cell) in ALL.into_iter().zip(row) {
                let expected = cell.ok_or(DropReason::EcnNotCapable).map(|ecn| {
                    let mut bytes = Ipv4 { tos: tos(ecn), ..inbound() }.bytes();
                    bytes[8] -= u8::from(policy == TtlPolicy::BothEnds);
                    repair_checksum(&mut bytes);
                    bytes
                });
                assert_eq!(decapsulated(&host, inner, outer), expected, "inner {inner:?}, outer {outer:?}, {policy:?}");
            }
        }
    }
}

/// A checksum of 0xFFFF stays, too. It verifies, and a rewrite would make it 0 (R33).
#[test]
fn r57_a_mark_that_stays_the_same_touches_nothing() {
    let host = Host::new(config().with_ttl(TtlPolicy::Ingress), routes());
    let marked = Ipv4 { tos: tos(Ect0), ..inbound() };
    let id = u16::MAX - ones_sum(&Ipv4 { id: 0, checksum: Some(0), ..marked.clone() }.bytes()[..20]);
    let before = Ipv4 { id, checksum: Some(0xffff), ..marked }.bytes();
    assert_eq!(ones_sum(&before[..20]), 0xffff, "it verifies");
    for (outer, after) in
        [(Ect0, [0xff, 0xff]), (Ect1, Ipv4 { tos: tos(Ect1), id, ..inbound() }.bytes()[10..12].try_into().unwrap())]
    {
        let mut bytes = before.clone();
        let Decap::Deliver(packet) =
            host.forwarder.decapsulate(&mut bytes, DatagramMeta { from: host_a(), ecn: outer }, &host.table)
        else {
            panic!("not delivered");
        };
        assert_eq!((packet[1], &packet[10..12]), (tos(outer), &after[..]));
    }
}

#[test]
fn r57_a_host_may_ignore_outer_marks() {
    let host = Host::new(config().with_ecn_egress(EcnEgress::Ignored), routes());
    for inner in ALL {
        for outer in ALL {
            assert_eq!(decapsulated(&host, inner, outer).unwrap()[1], tos(inner));
        }
    }
}

#[test]
fn r56_the_outer_field_is_not_ect_unless_it_is_to_be_copied() {
    for (policy, copies) in [(EcnIngress::Compatibility, false), (EcnIngress::Normal, true)] {
        let host = Host::new(config().with_ecn_ingress(policy), routes());
        for inner in ALL {
            let mut bytes = Ipv4 { tos: tos(inner), ..outbound() }.bytes();
            let Encap::Send(transmit) = host.forwarder.encapsulate(&mut bytes, &host.table) else { panic!() };
            assert_eq!(transmit.ecn, if copies { inner } else { NotEct });
            assert_eq!(transmit.contents[1], tos(inner), "the inner field stays");
        }
    }
}

fn flow(host: &Host, packet: &Ipv4) -> u16 {
    let mut bytes = packet.bytes();
    let Encap::Send(transmit) = host.forwarder.encapsulate(&mut bytes, &host.table) else { panic!("not sent") };
    transmit.flow
}

/// R60: a flow has one number, whatever else differs. Different flows have different numbers, so that they spread.
#[test]
fn r60_a_flow_has_one_number() {
    let host = Host::new(config().with_source_port(SourcePort::ByFlow), routes());
    let packet = |source: u16, data: &[u8]| Ipv4 { payload: udp(source, 53, data), ..outbound() };
    for port in [1, 4000, 65_535] {
        let number = flow(&host, &packet(port, b"one"));
        let other = Ipv4 { ttl: 9, id: 7, tos: 0xb8, ..packet(port, b"something else") };
        assert_eq!(flow(&host, &other), number);
    }
    for modulus in [2, 3, 8, 64] {
        let numbers: Vec<_> = (0..1000).map(|port| flow(&host, &packet(port, b"")) % modulus).collect();
        let most = (0..modulus).map(|n| numbers.iter().filter(|number| **number == n).count()).max().unwrap();
        assert!(most < 1000 / usize::from(modulus) * 2 + 20, "{most} of 1000 flows share one of {modulus} ports");
    }
    let protocols: HashSet<_> = [TCP, 17].map(|protocol| flow(&host, &Ipv4 { protocol, ..packet(1, b"") })).into();
    assert_eq!(protocols.len(), 2);
}

/// Each bit of a flow's fields changes its number, except by chance (one pair of 65,536).
#[test]
fn r60_every_bit_of_a_flow_counts() {
    let host = Host::new(config().with_source_port(SourcePort::ByFlow).with_source_check(SourceCheck::Off), routes());
    let number = |[source, destination, source_port, port]: [u32; 4], protocol: u8| {
        let source = u32::from_be_bytes([100, 96, 1, 0]) | source & 0xff;
        let destination = u32::from_be_bytes([100, 96, 2, 0]) | destination & 0x7f;
        let payload = udp(source_port as u16, port as u16, b"");
        flow(&host, &Ipv4 { protocol, payload, ..Ipv4::new(source.to_be_bytes(), destination.to_be_bytes()) })
    };
    for (field, bits) in [8, 7, 16, 16].into_iter().enumerate() {
        for bit in 0..bits {
            let same = (0..100).filter(|i| {
                let mut fields = [3 + i, 5 + i, 4000 + 77 * i, 53 + i];
                let before = number(fields, TCP);
                fields[field] ^= 1 << bit;
                number(fields, TCP) == before
            });
            assert!(same.count() < 3, "bit {bit} of field {field}");
        }
    }
}

/// Only the first fragment has ports. The others must not overtake it.
#[test]
fn r60_fragments_of_a_packet_stay_together() {
    let host = Host::new(config().with_source_port(SourcePort::ByFlow), routes());
    let first = Ipv4 { fragment: MF, payload: udp(4000, 53, &[1; 16]), ..outbound() };
    let second = Ipv4 { fragment: 3, payload: vec![2; 16], ..outbound() };
    assert_eq!(flow(&host, &first), flow(&host, &second));
}

/// Each fragment that loden makes has the metadata of its packet.
#[test]
fn r56_r60_fragments_of_ours_have_the_packets_mark_and_flow() {
    let settings = config().with_source_port(SourcePort::ByFlow).with_ecn_ingress(EcnIngress::Normal);
    let packet = |len: usize| Ipv4 { tos: tos(Ect1), payload: udp(4000, 53, &vec![7; len]), ..outbound() };
    let number = flow(&Host::new(settings.clone(), routes()), &packet(100));
    assert_ne!(number, 0);
    let host = Host::new(settings, routes());
    let mut bytes = packet(4000).bytes();
    let Encap::Fragment(mut fragments) = host.forwarder.encapsulate(&mut bytes, &host.table) else {
        panic!("too short")
    };
    let mut cut = 0;
    while let Some(transmit) = fragments.cut_next() {
        assert_eq!((transmit.destination, transmit.ecn, transmit.flow), (host_a(), Ect1, number));
        cut += 1;
    }
    assert_eq!(cut, 3);
}

#[test]
fn r60_the_source_port_is_fixed_unless_asked_otherwise() {
    let host = Host::ordinary();
    for port in 0..100 {
        assert_eq!(flow(&host, &Ipv4 { payload: udp(port, 53, b""), ..outbound() }), 0);
    }
}
