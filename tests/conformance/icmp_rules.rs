//! ICMP errors: the conditions for sending one.

use core::net::Ipv4Addr;
use core::time::Duration;

use loden::forward::{IcmpLimiter, Rate, RejectReason, SourceCheck};
use loden::wire::icmpv4::may_answer;
use loden::wire::ipv4::Ipv4Packet;

use support::host::{
    Host, NOBODY, Outcome, POD, config, config_of, host_a, inbound, mtu_of, net, outbound, own, routes,
};
use support::icmp::Message;
use support::packet::{DF, ICMP, Ipv4, MF, TCP, icmp, pattern};

/// Returns the outcomes at the three places that may send an ICMP error about this packet.
fn everywhere(edit: impl Fn(Ipv4) -> Ipv4) -> [Outcome; 4] {
    let host = Host::ordinary();
    let narrow = Host::new(config().with_mtu(mtu_of(68)), routes());
    let long = |packet: Ipv4| {
        let payload = [packet.payload, pattern(100)].concat();
        Ipv4 { payload, fragment: packet.fragment | DF, ..packet }
    };
    [
        host.encapsulate(&edit(Ipv4 { destination: NOBODY, ..outbound() }).bytes()),
        host.encapsulate(&edit(Ipv4 { ttl: 1, ..outbound() }).bytes()),
        host.decapsulate(&edit(Ipv4 { ttl: 1, ..inbound() }).bytes(), host_a()),
        narrow.encapsulate(&long(edit(outbound())).bytes()),
    ]
}

/// Returns true if there is an ICMP error, which is the same at all places. Every packet is rejected, with or without
/// an error.
fn is_answered(what: &str, edit: impl Fn(Ipv4) -> Ipv4) -> bool {
    let outcomes = everywhere(edit);
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Reject { .. })), "{what}: {outcomes:?}");
    let answered = outcomes[0].icmp().is_some();
    assert!(outcomes.iter().all(|outcome| outcome.icmp().is_some() == answered), "{what}: {outcomes:?}");
    answered
}

/// R36, R37, fault 7: every type. Queries and their replies get an error. Errors and unknown types get none.
#[test]
fn r36_r37_fault_7_only_known_icmp_queries_are_answered() {
    for kind in 0..=255u8 {
        for code in [0, 1, 4, 255] {
            // RFC 792, 950, 1256. 42 and 43 (RFC 8335) are neither errors nor in the list of 1995.
            let known = matches!(kind, 0 | 8 | 9 | 10 | 13..=18);
            if matches!(kind, 42 | 43) {
                continue;
            }
            let quoted = Ipv4::new(POD, NOBODY).bytes();
            let payload = icmp(kind, code, &quoted);
            let answered = is_answered(&format!("type {kind}"), |packet| Ipv4 {
                protocol: ICMP,
                payload: payload.clone(),
                ..packet
            });
            assert_eq!(answered, known, "ICMP type {kind} code {code}");
        }
    }
}

#[test]
fn r37_an_echo_request_without_a_route_is_answered() {
    let echo = Ipv4 { protocol: ICMP, payload: icmp(8, 0, b"ping"), destination: NOBODY, ..outbound() }.bytes();
    let outcome = Host::ordinary().encapsulate(&echo);
    let message = Message::parse(outcome.icmp().unwrap());
    message.assert_sound(&echo);
    assert_eq!(message.type_code, [3, 0]);
}

/// R38: only the type itself must be present. The narrow path is left out, because its offender is long.
#[test]
fn r38_an_icmp_packet_too_short_for_its_type_is_not_answered() {
    for (len, answered) in [(0, false), (1, true), (4, true)] {
        let payload = icmp(8, 0, b"")[..len].to_vec();
        let edit = |packet| Ipv4 { protocol: ICMP, payload: payload.clone(), ..packet };
        for outcome in &everywhere(edit)[..3] {
            assert!(matches!(outcome, Outcome::Reject { .. }));
            assert_eq!(outcome.icmp().is_some(), answered, "{len} bytes of ICMP");
        }
    }
    // A type behind the total length does not count.
    let trailer = Ipv4 { protocol: ICMP, payload: vec![], trailer: vec![8; 8], destination: NOBODY, ..outbound() };
    assert_eq!(Host::ordinary().encapsulate(&trailer.bytes()).icmp(), None);
}

#[test]
fn r39_the_first_fragment_is_answered_and_later_ones_are_not() {
    for (fragment, answered) in [(0, true), (MF, true), (1, false), (MF | 1, false), (0x1fff, false), (0x1000, false)] {
        for protocol in [17, TCP, 89] {
            let edit = |packet| Ipv4 { fragment, protocol, ..packet };
            assert_eq!(is_answered("a fragment", edit), answered, "flags and offset {fragment:#06x}");
        }
    }
    let echo = |packet| Ipv4 { fragment: 1, protocol: ICMP, payload: icmp(8, 0, b""), ..packet };
    assert!(!is_answered("what looks like an echo request in a later fragment", echo));
}

/// R39 to R41 as a separate check: only packets from one host to one host get an error.
#[test]
fn only_what_one_host_sent_to_one_may_be_answered() {
    let may = |packet: Ipv4| {
        let bytes = packet.bytes();
        may_answer(&Ipv4Packet::parse(&bytes).unwrap(), |address| address.octets() == [100, 96, 2, 255])
    };
    assert!(may(outbound()) && may(inbound()));
    for many in [[224, 0, 0, 1], [239, 255, 255, 255], [255, 255, 255, 255], [100, 96, 2, 255]] {
        assert!(!may(Ipv4::new(POD, many)), "to {many:?}");
        assert!(!may(Ipv4::new(many, POD)), "from {many:?}");
    }
    for nobody in [[0, 0, 0, 0], [127, 0, 0, 1], [240, 0, 0, 1]] {
        assert!(!may(Ipv4::new(nobody, POD)), "from {nobody:?}");
    }
}

/// R40: the broadcast addresses of the overlay network and of the own subnet, as destination and as source.
#[test]
fn r40_broadcasts_are_not_answered() {
    let reject = |host: &Host, packet: Ipv4| match host.encapsulate(&packet.bytes()) {
        Outcome::Reject { reason: RejectReason::TimeExceeded | RejectReason::NetUnreachable, answer } => {
            answer.is_some()
        }
        other @ (Outcome::Reject { .. } | Outcome::Forward { .. } | Outcome::Fragments { .. } | Outcome::Drop(_)) => {
            panic!("{other:?}")
        }
    };
    let hosts = [Host::ordinary(), Host::with_default_route(config(), host_a())];
    for host in hosts {
        for (address, answered) in [
            ([100, 96, 255, 255], false),
            ([100, 96, 1, 255], false),
            ([100, 96, 1, 254], true),
            ([100, 96, 255, 254], true),
            ([100, 96, 7, 255], true),
        ] {
            let to = Ipv4 { ttl: 1, ..Ipv4::new(POD, address) };
            assert_eq!(reject(&host, to), answered, "to {address:?}");
            let from = Ipv4 { ttl: 1, ..Ipv4::new(address, NOBODY) };
            assert_eq!(reject(&host, from), answered, "from {address:?}");
        }
    }
    // At the remote host, for its whole subnet.
    let expiring = |last| Ipv4 { ttl: 1, destination: [100, 96, 1, last].into(), ..inbound() }.bytes();
    assert_eq!(Host::ordinary().decapsulate(&expiring(255), host_a()).icmp(), None);
    assert!(Host::ordinary().decapsulate(&expiring(254), host_a()).icmp().is_some());
    let from_all = Ipv4 { ttl: 1, source: [100, 96, 255, 255].into(), ..inbound() }.bytes();
    let unchecked = config().with_source_check(SourceCheck::Off);
    assert_eq!(Host::with_default_route(unchecked, host_a()).decapsulate(&from_all, host_a()).icmp(), None);
}

/// R40: the broadcast address of the longest routed subnet that holds an address, at both ends.
#[test]
fn r40_the_broadcast_address_of_a_routed_subnet_is_not_answered() {
    let mut all = routes();
    all.extend(
        [([100, 96, 8, 0], 22), ([100, 96, 9, 0], 24), ([100, 96, 9, 6], 31), ([100, 96, 9, 9], 32)]
            .map(|(address, len)| loden::route::Route::new(net(address, len), host_a())),
    );
    let host = Host::new(config(), all);
    for (address, answered) in [
        ([100, 96, 2, 255], false),
        ([100, 96, 3, 255], false),
        ([100, 96, 2, 239], true),
        ([100, 96, 11, 255], false),
        ([100, 96, 8, 255], true),
        ([100, 96, 9, 255], false),
        ([100, 96, 9, 7], true),
        ([100, 96, 9, 9], true),
    ] {
        let to = host.encapsulate(&Ipv4 { ttl: 1, ..Ipv4::new(POD, address) }.bytes());
        assert_eq!(to.icmp().is_some(), answered, "to {address:?}");
        let too_long = Ipv4 { fragment: DF, payload: vec![0; 2000], ..Ipv4::new(POD, address) };
        assert_eq!(host.encapsulate(&too_long.bytes()).icmp().is_some(), answered, "too long, to {address:?}");
        let from = host.encapsulate(&Ipv4 { ttl: 1, ..Ipv4::new(address, NOBODY) }.bytes());
        assert_eq!(from.icmp().is_some(), answered, "from {address:?}");
    }
    let of_everyone = Ipv4 { ttl: 1, source: [100, 96, 2, 255].into(), ..inbound() }.bytes();
    assert_eq!(host.decapsulate(&of_everyone, support::host::host_b()).icmp(), None);
}

/// R40, when the path MTU becomes known only at sending.
#[test]
fn r40_broadcasts_that_a_path_refuses_are_not_answered() {
    let host = Host::ordinary();
    for (address, answered) in [([100, 96, 2, 255], false), ([100, 96, 3, 255], false), ([100, 96, 2, 239], true)] {
        let packet = Ipv4 { fragment: DF, payload: pattern(1400), ..Ipv4::new(POD, address) };
        let Outcome::Forward { mut bytes, .. } = host.encapsulate(&packet.bytes()) else { panic!("1420 bytes fit") };
        let outcome = host.refused_as_too_long(&mut bytes, 1300);
        assert!(matches!(outcome, Outcome::Reject { .. }), "{outcome:?}");
        assert_eq!(outcome.icmp().is_some(), answered, "to {address:?}");
    }
}

/// R40: networks of one address or two have no broadcast address (RFC 3021).
#[test]
fn r40_a_network_of_one_or_two_has_no_broadcast() {
    for len in [31, 32] {
        let narrow = config_of(net([100, 96, 1, 2], len), net([100, 96, 1, 2], len), own());
        let last = Ipv4Addr::from_bits(net([100, 96, 1, 2], len).broadcast().to_bits());
        let packet = Ipv4 { ttl: 1, ..Ipv4::new(last, [100, 96, 2, 3]) };
        assert!(Host::new(narrow, routes()).encapsulate(&packet.bytes()).icmp().is_some(), "/{len}");
    }
}

/// R40: a source that is not a single host never leads to a reject.
#[test]
fn r40_r41_a_packet_that_failed_a_check_has_no_icmp_error() {
    for source in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4], [240, 0, 0, 1]] {
        for outcome in everywhere(|packet| Ipv4 { source: source.into(), ..packet }) {
            assert!(matches!(outcome, Outcome::Drop(_)), "from {source:?}: {outcome:?}");
        }
    }
    for outcome in everywhere(|packet| Ipv4 { checksum: Some(0xdead), ..packet }) {
        assert!(matches!(outcome, Outcome::Drop(_)), "{outcome:?}");
    }
}

/// R48 and fault 8, as in a worker: a million unroutable packets from one pod in a second, then one from another.
#[test]
fn r48_fault_8_a_flood_is_answered_at_the_limit() {
    let host = Host::ordinary();
    let mut limiter = IcmpLimiter::default();
    let mut packet = Ipv4 { destination: NOBODY, ..outbound() }.bytes();
    let mut of_another = Ipv4 { source: [100, 96, 1, 77].into(), destination: NOBODY, ..outbound() }.bytes();
    let Rate { per_second, burst } = IcmpLimiter::PER_SOURCE;
    let (mut answered, mut limited) = (0, 0);
    for i in 0..1_000_000u64 {
        let verdict = host.forwarder.encapsulate(&mut packet, &host.table);
        let loden::forward::Encap::Reject(reject) = verdict else { panic!("{verdict:?}") };
        assert!(reject.reply_to().is_some());
        match limiter.allow(&reject, Duration::from_micros(i)) {
            true => answered += 1,
            false => limited += 1,
        }
        if i == 500_000 {
            let verdict = host.forwarder.encapsulate(&mut of_another, &host.table);
            let loden::forward::Encap::Reject(reject) = verdict else { panic!("{verdict:?}") };
            assert!(limiter.allow(&reject, Duration::from_micros(i)), "another source's first, while the flood lasts");
        }
    }
    assert!((burst + per_second - 1..=burst + per_second).contains(&answered), "{answered} answers");
    assert_eq!(answered + limited, 1_000_000);
}

/// R48: unroutable packets use up the limit of their source, which still gets "fragmentation needed".
#[test]
fn r48_fragmentation_needed_is_said_after_any_number_of_other_errors() {
    let (host, mut limiter) = (Host::ordinary(), IcmpLimiter::default());
    let mut told = |packet: Ipv4| {
        let mut bytes = packet.bytes();
        let verdict = host.forwarder.encapsulate(&mut bytes, &host.table);
        let loden::forward::Encap::Reject(reject) = verdict else { panic!("{verdict:?}") };
        limiter.allow(&reject, Duration::ZERO)
    };
    let unroutable = || Ipv4 { destination: NOBODY, ..outbound() };
    assert_eq!((0..21).map(|_| told(unroutable())).filter(|told| *told).count(), 20);
    assert!(told(Ipv4 { fragment: DF, payload: vec![0; 2000], ..outbound() }));
}
