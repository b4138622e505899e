//! The TTL, its policies, and the header checksum.

use loden::forward::{DropReason, RejectReason, ReplyTo, TtlPolicy};

use support::host::{Host, Outcome, POD, POD_A, POD_B, config, host_a, host_b, inbound, outbound, routes};
use support::packet::{Ipv4, ones_sum, pattern, with_ttl};

#[derive(Debug, PartialEq)]
enum Fate {
    GoesOnWith(u8),
    Expires,
    ArrivedDead,
}
use Fate::{ArrivedDead, Expires, GoesOnWith};

fn fate(outcome: &Outcome) -> Fate {
    match outcome {
        Outcome::Forward { bytes, .. } => GoesOnWith(bytes[8]),
        Outcome::Reject { reason: RejectReason::TimeExceeded, answer: Some(_) } => Expires,
        Outcome::Drop(DropReason::TtlZero) => ArrivedDead,
        Outcome::Fragments { .. } | Outcome::Reject { .. } | Outcome::Drop(_) => panic!("{outcome:?}"),
    }
}

/// R27 to R31: every TTL, in both directions, under every policy. The helper asserts that nothing else changes.
#[test]
fn r27_to_r31_every_ttl_under_every_policy() {
    for policy in [TtlPolicy::BothEnds, TtlPolicy::Ingress, TtlPolicy::Preserve] {
        let host = Host::new(config().with_ttl(policy), routes());
        for ttl in 0..=255u8 {
            let hop = match ttl {
                0 => ArrivedDead,
                1 => Expires,
                _ => GoesOnWith(ttl - 1),
            };
            let no_hop = if ttl == 0 { ArrivedDead } else { GoesOnWith(ttl) };
            let (expected_out, expected_back) = match policy {
                TtlPolicy::BothEnds => (&hop, &hop),
                TtlPolicy::Ingress => (&hop, &no_hop),
                TtlPolicy::Preserve => (&no_hop, &no_hop),
                other => panic!("no policy {other:?} is in the list"),
            };
            let out = host.encapsulate(&Ipv4 { ttl, ..outbound() }.bytes());
            assert_eq!(&fate(&out), expected_out, "{policy:?}, out of the TUN with {ttl}");
            let back = host.decapsulate(&Ipv4 { ttl, ..inbound() }.bytes(), host_a());
            assert_eq!(&fate(&back), expected_back, "{policy:?}, from the underlay with {ttl}");
        }
    }
}

/// R30: the error goes back through the tunnel, to the next hop of the inner source, from the TUN's address.
#[test]
fn r30_the_far_end_answers_through_the_tunnel() {
    let host = Host::ordinary();
    let nested = [100, 96, 2, 241].into();
    for (source, owner) in [(POD_A, host_a()), (POD_B, host_b()), (nested, host_b())] {
        let offender = Ipv4 { ttl: 1, ..Ipv4::new(source, POD) }.bytes();
        let outcome = host.decapsulate(&offender, owner);
        let Outcome::Reject { reason, answer: Some((reply_to, message)) } = outcome else { panic!("{outcome:?}") };
        assert_eq!((reason, reply_to), (RejectReason::TimeExceeded, ReplyTo::Peer(owner)));
        assert_eq!(message[12..16], [100, 96, 1, 0], "from our TUN's address");
        assert_eq!(message[28..], offender);
    }
    // From another port of the owner. The error goes to the route's port.
    let offender = Ipv4 { ttl: 1, ..inbound() }.bytes();
    let outcome = host.decapsulate(&offender, (host_a().ip(), 53_000).into());
    let Outcome::Reject { answer: Some((reply_to, _)), .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reply_to, ReplyTo::Peer(host_a()));
}

/// The peer's own address is a valid source (R65) without a route, so that there is no ICMP error.
#[test]
fn r30_no_answer_without_a_route_back() {
    let offender = Ipv4 { ttl: 1, ..Ipv4::new([10, 168, 0, 3], POD) }.bytes();
    let expected = Outcome::Reject { reason: RejectReason::TimeExceeded, answer: None };
    assert_eq!(Host::ordinary().decapsulate(&offender, host_a()), expected);
}

/// R32: all checksums, by variation of the ID, each compared with a full recompute.
#[test]
fn r32_every_checksum_equals_a_full_recompute() {
    let host = Host::ordinary();
    let mut seen = vec![false; 0x1_0000];
    for ttl in [2, 64, 255] {
        for id in 0..=0xffff {
            let packet = Ipv4 { id, ttl, payload: Vec::new(), ..outbound() }.bytes();
            seen[usize::from(u16::from_be_bytes([packet[10], packet[11]]))] = true;
            let expected = Outcome::Forward { to: Some(host_a()), bytes: with_ttl(&packet, ttl - 1) };
            assert_eq!(host.encapsulate(&packet), expected, "ID {id}, TTL {ttl}");
        }
    }
    assert!(seen[..0xffff].iter().all(|seen| *seen), "the IDs led through every checksum there is");
}

/// Returns a packet of a local pod whose checksum is `checksum`.
fn with_checksum(checksum: u16) -> Ipv4 {
    let found = (0..=0xffff).map(|id| Ipv4 { id, ..outbound() }).find(|packet| {
        let bytes = packet.bytes();
        bytes[10..12] == checksum.to_be_bytes()
    });
    found.unwrap()
}

#[test]
fn r32_a_checksum_that_comes_to_zero_is_written_as_zero() {
    let Outcome::Forward { bytes, .. } = Host::ordinary().encapsulate(&with_checksum(0xfeff).bytes()) else {
        panic!("a sound packet")
    };
    assert_eq!(bytes[10..12], [0, 0]);
}

#[test]
fn r33_a_checksum_of_ffff_verifies_and_is_not_passed_on() {
    let packet = Ipv4 { checksum: Some(0xffff), ..with_checksum(0) };
    let bytes = packet.bytes();
    assert_eq!(ones_sum(&bytes[..20]), 0xffff, "it verifies");
    let expected = Outcome::Forward { to: Some(host_a()), bytes: with_ttl(&bytes, 63) };
    assert_eq!(Host::ordinary().encapsulate(&bytes), expected);
}

#[test]
fn r34_the_payload_is_unchanged() {
    for len in [0, 1, 2, 7, 8, 1451, 1452] {
        let payload = pattern(len);
        for packet in [Ipv4 { payload: payload.clone(), ..outbound() }, Ipv4 { payload: payload.clone(), ..inbound() }]
        {
            let outcome = match packet.source == POD {
                true => Host::ordinary().encapsulate(&packet.bytes()),
                false => Host::ordinary().decapsulate(&packet.bytes(), host_a()),
            };
            let Outcome::Forward { bytes, .. } = outcome else { panic!("{outcome:?}") };
            assert_eq!(bytes[20..], payload);
        }
    }
}
