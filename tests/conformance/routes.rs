//! Routes through the forwarder. `tests/route_table` compares the table itself with a naive one.

use loden::forward::{RejectReason, ReplyTo};
use loden::route::Route;

use support::host::{Host, NOBODY, Outcome, POD, config, host_a, host_b, net, outbound, routes};
use support::icmp::Message;
use support::packet::Ipv4;

fn sent_to(host: &Host, destination: [u8; 4]) -> Option<core::net::SocketAddr> {
    match host.encapsulate(&Ipv4::new(POD, destination).bytes()) {
        Outcome::Forward { to, .. } => to,
        Outcome::Fragments { to, .. } => Some(to),
        Outcome::Reject { .. } | Outcome::Drop(_) => None,
    }
}

/// R21, with the list's example, and the subnet of one host inside another's.
#[test]
fn r21_the_longest_prefix_wins() {
    let outer = Route::new(net([10, 1, 0, 0], 16), host_a());
    let inner = Route::new(net([10, 1, 2, 0], 24), host_b());
    for order in [vec![outer, inner], vec![inner, outer]] {
        let host = Host::new(config(), order);
        assert_eq!(sent_to(&host, [10, 1, 2, 3]), Some(host_b()));
        assert_eq!(sent_to(&host, [10, 1, 3, 3]), Some(host_a()));
    }
    let host = Host::ordinary();
    assert_eq!(sent_to(&host, [100, 96, 2, 239]), Some(host_a()));
    assert_eq!(sent_to(&host, [100, 96, 2, 240]), Some(host_b()), "to that host's own port, too");
}

#[test]
fn r22_the_default_route_matches_the_remaining_addresses() {
    let host = Host::with_default_route(config(), host_b());
    assert_eq!(sent_to(&host, [8, 8, 8, 8]), Some(host_b()));
    assert_eq!(sent_to(&host, NOBODY.octets()), Some(host_b()));
    assert_eq!(sent_to(&host, [100, 96, 2, 3]), Some(host_a()));
    let everything = Route::new(net([0, 0, 0, 0], 0), host_a());
    assert_eq!(sent_to(&Host::new(config(), vec![everything]), [1, 0, 0, 0]), Some(host_a()));
}

/// R23 and R24: a missing route is reported before TTL and length, and once.
#[test]
fn r23_r24_no_route_is_net_unreachable_whatever_the_ttl() {
    for host in [Host::ordinary(), Host::new(config(), Vec::new())] {
        for ttl in 0..=255 {
            let offender = Ipv4 { ttl, destination: NOBODY, ..outbound() }.bytes();
            let outcome = host.encapsulate(&offender);
            let Outcome::Reject { reason, answer: Some((reply_to, message)) } = &outcome else {
                panic!("TTL {ttl}: {outcome:?}")
            };
            assert_eq!((*reason, *reply_to), (RejectReason::NetUnreachable, ReplyTo::Tun));
            let message = Message::parse(message);
            message.assert_sound(&offender);
            assert_eq!((message.type_code, message.rest), ([3, 0], [0; 4]));
        }
    }
}

/// A deleted subnet is unreachable from then on, and a moved one has its new next hop.
#[test]
fn a_verdict_follows_the_table_it_is_given() {
    use loden::forward::Encap;
    use loden::route::RouteChange;

    let host = Host::new(config(), routes());
    let moved = RouteChange::Set(Route::new(net([100, 96, 2, 0], 24), host_b()));
    let (moved, _) = host.table.with_changes([moved]);
    let (deleted, _) = moved.with_changes([RouteChange::Delete(net([100, 96, 2, 0], 24).into())]);
    for (table, expected) in [(&host.table, Some(host_a())), (&moved, Some(host_b())), (&deleted, None)] {
        let mut packet = outbound().bytes();
        let to = match host.forwarder.encapsulate(&mut packet, table) {
            Encap::Send(transmit) => Some(transmit.destination),
            Encap::Fragment(_) | Encap::Reject(_) | Encap::Drop(_) => None,
        };
        assert_eq!(to, expected);
    }
}
