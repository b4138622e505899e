//! Size: packets that are too long, and their ICMP errors.

use loden::forward::{DropReason, RejectReason, ReplyTo, TtlPolicy};
use loden::route::Route;

use support::host::{Host, Outcome, POD_A, config, host_a, inbound, mtu_of, net, outbound, routes};
use support::icmp::Message;
use support::model;
use support::packet::{DF, Ipv4, MF, pattern, with_ttl};

fn of_length(total: usize, fragment: u16) -> Ipv4 {
    Ipv4 { payload: pattern(total - 20), fragment, ..outbound() }
}

/// Returns hosts with the path MTU to A: set by the overlay, by the route, or as the smaller of both.
fn hosts() -> Vec<(Host, u16)> {
    let host = |mtu, route_mtu: Option<u16>| {
        let route = Route::new(net([100, 96, 2, 0], 24), host_a()).with_mtu(route_mtu.map(mtu_of));
        Host::new(config().with_mtu(mtu_of(mtu)), vec![route])
    };
    vec![
        (host(1472, None), 1472),
        (host(68, None), 68),
        (host(576, None), 576),
        (host(8972, None), 8972),
        (host(1472, Some(1300)), 1300),
        (host(1300, Some(1472)), 1300),
        (host(1472, Some(68)), 68),
    ]
}

/// R50: one byte decides. The MTU is in the low half of the four bytes, and the high half is 0.
#[test]
fn r50_too_long_with_df_is_answered_with_the_path_mtu() {
    for (host, mtu) in hosts() {
        let most = usize::from(mtu);
        assert_eq!(host.encapsulate(&of_length(most, DF).bytes()).reason(), None, "{mtu} bytes fit");
        for total in [most + 1, most + 2, 65_535] {
            let offender = of_length(total, DF).bytes();
            let outcome = host.encapsulate(&offender);
            let Outcome::Reject { reason, answer: Some((reply_to, message)) } = &outcome else { panic!("{outcome:?}") };
            assert_eq!((*reason, *reply_to), (RejectReason::FragmentationNeeded { mtu }, ReplyTo::Tun));
            let message = Message::parse(message);
            message.assert_sound(&offender);
            let [high, low] = mtu.to_be_bytes();
            assert_eq!((message.type_code, message.rest), ([3, 4], [0, 0, high, low]));
        }
    }
}

/// Fault 38: after a change of the limit every verdict is that of a host with this limit from the start. An invalid
/// limit changes nothing.
#[test]
fn fault_38_a_new_limit_equals_the_same_initial_limit() {
    const LIMITS: [u16; 5] = [68, 576, 1472, 8972, u16::MAX];
    let with = |mtu| Host::new(config().with_mtu(mtu_of(mtu)), routes());
    for before in LIMITS {
        let mut host = with(before);
        for after in LIMITS {
            host.forwarder.set_mtu(mtu_of(after));
            assert_eq!(*host.forwarder.config(), config().with_mtu(mtu_of(after)));
            for limit in LIMITS.map(usize::from) {
                for total in [limit - 1, limit, limit + 1].map(|total| total.min(65_535)) {
                    for fragment in [0, DF] {
                        let packet = of_length(total, fragment).bytes();
                        let what = format!("{total} bytes after {before} → {after}");
                        assert_eq!(host.encapsulate(&packet), with(after).encapsulate(&packet), "{what}");
                    }
                }
            }
        }
    }
}

/// The TTL is checked before the size. Only the total length counts, and not a trailer.
#[test]
fn r50_trailers_do_not_count() {
    let packet = Ipv4 { trailer: vec![0xee; 2000], ..of_length(1472, DF) };
    assert_eq!(Host::ordinary().encapsulate(&packet.bytes()).reason(), None);
}

/// R51: one byte decides here too. The fragment fields of the packet do not.
#[test]
fn r51_too_long_without_df_goes_in_fragments() {
    for (host, mtu) in hosts() {
        let most = usize::from(mtu);
        for fragment in [0, MF, 0x8000, 100, MF | 100] {
            assert_eq!(host.encapsulate(&of_length(most, fragment).bytes()).reason(), None, "{mtu} bytes fit");
            for total in [most + 1, 2 * most, 60_000.min(50 * most)] {
                let packet = of_length(total, fragment).bytes();
                let expected = model::fragments(&with_ttl(&packet, 63), most).unwrap();
                assert!(expected.len() > 1);
                let outcome = host.encapsulate(&packet);
                assert_eq!(outcome, Outcome::Fragments { to: host_a(), pieces: expected });
            }
        }
    }
}

/// Fault 5 with R51: a fragment past the longest packet would need an offset that does not exist. It is fragmented as
/// far as offsets exist, and never appears as another part of the packet.
#[test]
fn fault_5_a_fragment_past_the_end_is_not_fragmented() {
    let host = Host::ordinary();
    let of = |payload: usize, fragment| host.encapsulate(&of_length(20 + payload, fragment).bytes());
    for (payload, last) in [(1453, 0x1fff - 181), (1456, 0x1fff - 181), (1457, 0x1fff - 182), (3000, 0x1fff - 374)] {
        for more in [0, MF] {
            assert!(matches!(of(payload, more | last), Outcome::Fragments { .. }), "{payload} bytes at {last}");
            for offset in [last + 1, 0x1fff] {
                let expected = Outcome::Drop(DropReason::NotFragmented);
                assert_eq!(of(payload, more | offset), expected, "{payload} bytes at {offset}");
            }
        }
    }
}

/// R52 and R53, fault 5: DF and the fragment fields of packets that fit are unchanged, in both directions.
#[test]
fn r52_r53_fault_5_fragments_and_df_pass_as_they_are() {
    let host = Host::ordinary();
    for fragment in [DF, MF, DF | MF, 1, MF | 1, 0x1fff, DF | MF | 0x1fff] {
        let out = Ipv4 { fragment, payload: pattern(1400), ..outbound() };
        let expected = Outcome::Forward { to: Some(host_a()), bytes: with_ttl(&out.bytes(), 63) };
        assert_eq!(host.encapsulate(&out.bytes()), expected);
        let back = Ipv4 { fragment, payload: pattern(1400), ..inbound() };
        let expected = Outcome::Forward { to: None, bytes: with_ttl(&back.bytes(), 63) };
        assert_eq!(host.decapsulate(&back.bytes(), host_a()), expected);
    }
}

/// R63a: a packet that the underlay carried is delivered, whatever the own MTU is.
#[test]
fn r63a_longer_than_our_mtu_is_delivered() {
    for total in [1473, 9000, 65_507] {
        for fragment in [0, DF] {
            let packet = Ipv4 { fragment, payload: pattern(total - 20), ..inbound() }.bytes();
            let expected = Outcome::Forward { to: None, bytes: with_ttl(&packet, 63) };
            assert_eq!(Host::ordinary().decapsulate(&packet, host_a()), expected);
        }
    }
}

/// R45 and R50, when the path MTU becomes known only at sending. The ICMP error quotes the packet as it was received,
/// under every policy and for every TTL.
#[test]
fn refused_as_too_long_undoes_the_hop_and_answers() {
    for policy in [TtlPolicy::BothEnds, TtlPolicy::Ingress, TtlPolicy::Preserve] {
        let host = Host::new(config().with_ttl(policy), routes());
        for ttl in 2..=255 {
            let offender = Ipv4 { ttl, ..of_length(1400, DF) }.bytes();
            let Outcome::Forward { mut bytes, .. } = host.encapsulate(&offender) else { panic!("1400 bytes fit") };
            let outcome = host.refused_as_too_long(&mut bytes, 1300);
            let Outcome::Reject { reason, answer: Some((reply_to, message)) } = &outcome else { panic!("{outcome:?}") };
            assert_eq!((*reason, *reply_to), (RejectReason::FragmentationNeeded { mtu: 1300 }, ReplyTo::Tun));
            let message = Message::parse(message);
            message.assert_sound(&offender);
            assert_eq!(message.source(), POD_A);
            assert_eq!((message.type_code, message.rest), ([3, 4], [0, 0, 5, 20]));
        }
    }
}

/// R51, when the path MTU becomes known only at sending: a queued packet is no longer fragmented. It is dropped under
/// its own reason, and its bytes are unchanged.
#[test]
fn refused_as_too_long_drops_packets_without_df() {
    for policy in [TtlPolicy::BothEnds, TtlPolicy::Ingress, TtlPolicy::Preserve] {
        let host = Host::new(config().with_ttl(policy), routes());
        for fragment in [0, MF, 0x8000, 100, MF | 100, 0x1fff] {
            let packet = of_length(1400, fragment).bytes();
            let Outcome::Forward { mut bytes, .. } = host.encapsulate(&packet) else { panic!("1400 bytes fit") };
            let outcome = host.refused_as_too_long(&mut bytes, 1300);
            assert_eq!(outcome, Outcome::Drop(DropReason::PathTooNarrow), "{fragment:#x}");
        }
    }
}

/// R50 and R51, when the path MTU is known to be lower than the overlay's: the verdict is that of a route with this
/// MTU.
#[test]
fn a_path_that_is_known_to_be_narrow_counts_as_a_narrow_route() {
    for policy in [TtlPolicy::BothEnds, TtlPolicy::Ingress, TtlPolicy::Preserve] {
        let config = config().with_ttl(policy);
        let host = Host::new(config.clone(), routes());
        for path in [68, 576, 1300, 1471, 1472, u16::MAX] {
            let narrow = routes().into_iter().map(|route| route.with_mtu(Some(mtu_of(path)))).collect();
            let narrow = Host::new(config.clone(), narrow);
            for total in [path.min(1472) - 1, path.min(1472), path.min(1472) + 1, 3000] {
                for (ttl, fragment) in [(64, 0), (64, DF), (1, DF), (0, 0), (2, MF), (2, 0x1fff)] {
                    let packet = Ipv4 { ttl, ..of_length(total.into(), fragment) }.bytes();
                    let outcome = host.encapsulate_over(&packet, path);
                    assert_eq!(outcome, narrow.encapsulate(&packet), "{total} bytes over {path}");
                }
            }
        }
    }
}

/// A path MTU below IPv4's minimum, as inside a link of 68 bytes: packets are fragmented if a header and 8 bytes fit,
/// and otherwise dropped with a reason.
#[test]
fn a_path_too_narrow_for_a_fragment() {
    let host = Host::ordinary();
    for (options, least) in [(0, 28), (4, 32), (40, 68)] {
        let packet = Ipv4 { options: vec![1; options], ..of_length(1400, 0) }.bytes();
        let sent = with_ttl(&packet, 63);
        let outcome = |mtu| host.encapsulate_over(&packet, mtu);
        let pieces = model::fragments(&sent, least.into()).unwrap();
        assert_eq!(outcome(least), Outcome::Fragments { to: host_a(), pieces });
        for mtu in [0, 19, 20, least - 1] {
            assert_eq!(model::fragments(&sent, mtu.into()), None);
            assert_eq!(outcome(mtu), Outcome::Drop(DropReason::NotFragmented), "{mtu}");
        }
    }
}
