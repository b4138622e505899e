//! ICMP errors: their contents, read by etherparse.

use core::net::Ipv4Addr;

use etherparse::Icmpv4Type;
use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use loden::forward::{ConfigError, Forwarder, ForwarderConfig, IcmpSource, RejectReason, ReplyTo, SourceCheck};
use loden::{Mtu, MtuError};

use support::host::{
    CANARY, Host, NOBODY, Outcome, POD, POD_A, config, host_a, inbound, mtu_of, net, outbound, own, routes,
};
use support::icmp::Message;
use support::packet::{DF, Ipv4, pattern};

/// Returns an offender of each kind, at the sending and at the remote host: no route, expired here, expired there, too
/// long.
fn offenders(edit: impl Fn(Ipv4) -> Ipv4) -> Vec<(Ipv4, Outcome)> {
    let host = Host::ordinary();
    let lost = edit(Ipv4 { destination: NOBODY, ..outbound() });
    let expired = edit(Ipv4 { ttl: 1, ..outbound() });
    let expired_there = edit(Ipv4 { ttl: 1, ..inbound() });
    let mut all = vec![
        (lost.clone(), host.encapsulate(&lost.bytes())),
        (expired.clone(), host.encapsulate(&expired.bytes())),
        (expired_there.clone(), host.decapsulate(&expired_there.bytes(), host_a())),
    ];
    let narrow = Host::new(config().with_mtu(mtu_of(68)), routes());
    let too_long = Ipv4 { fragment: DF, ..edit(outbound()) };
    if too_long.bytes().len() > 68 {
        all.push((too_long.clone(), narrow.encapsulate(&too_long.bytes())));
    }
    all
}

/// R42, R44, R45, R47, R49 by [`Message::assert_sound`], for offenders of every length up to well past 576 bytes: odd
/// and empty ones, and quotes at the limit.
#[test]
fn r45_r47_offenders_of_every_length() {
    for len in 0..700 {
        for (offender, outcome) in offenders(|packet| Ipv4 { payload: pattern(len), ..packet }) {
            let bytes = offender.bytes();
            let message = outcome.icmp().unwrap();
            Message::parse(message).assert_sound(&bytes);
            assert_eq!(message.len(), (28 + bytes.len()).min(576), "as much as fits");
        }
    }
}

/// R46 and R45: options are quoted completely, up to the longest header.
#[test]
fn r46_headers_of_every_length_are_answered() {
    for words in 5..=15usize {
        for payload in [0, 1, 7, 8, 9, 64, 600] {
            let edit = |packet| Ipv4 { options: vec![1; (words - 5) * 4], payload: pattern(payload), ..packet };
            for (offender, outcome) in offenders(edit) {
                let message = Message::parse(outcome.icmp().unwrap());
                message.assert_sound(&offender.bytes());
                assert!(message.quote.len() >= words * 4 + payload.min(8));
            }
        }
    }
}

/// R44, for every type of service.
#[test]
fn r44_precedence_6_and_the_offenders_delay_throughput_reliability() {
    for tos in 0..=255u8 {
        for (offender, outcome) in offenders(|packet| Ipv4 { tos, ..packet }) {
            let message = Message::parse(outcome.icmp().unwrap());
            message.assert_sound(&offender.bytes());
            assert_eq!(message.ip.ecn.value(), 0);
            assert_eq!(message.ip.dscp.value() >> 3, 6);
        }
    }
}

/// R23, R28, R30, R50: each reason has its type, code and four bytes. No other message is sent (R49).
#[test]
fn each_reason_has_its_message() {
    let long = |packet| Ipv4 { payload: pattern(100), ..packet };
    let expected = [
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network),
        Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 68 }),
    ];
    let offenders = offenders(long);
    assert_eq!(offenders.len(), expected.len());
    for ((offender, outcome), kind) in offenders.iter().zip(expected) {
        let message = Message::parse(outcome.icmp().unwrap());
        message.assert_sound(&offender.bytes());
        assert_eq!(message.kind, kind);
        let mtu = if matches!(outcome, Outcome::Reject { reason: RejectReason::FragmentationNeeded { .. }, .. }) {
            [0, 0, 0, 68]
        } else {
            [0; 4]
        };
        assert_eq!(message.rest, mtu, "the four bytes are 0 but for the path MTU");
    }
}

/// R42: the source at the sending host is the offender's destination or the configured address. At the remote host it
/// is the TUN's.
#[test]
fn r42_the_source_address_of_an_error() {
    let fixed = Ipv4Addr::new(192, 0, 2, 77);
    for (icmp_source, expected) in [(IcmpSource::OffenderDestination, NOBODY), (IcmpSource::Fixed(fixed), fixed)] {
        let host = Host::new(config().with_icmp_source(icmp_source), routes());
        let near = Ipv4 { destination: NOBODY, ..outbound() }.bytes();
        let Outcome::Reject { answer: Some((reply_to, message)), .. } = host.encapsulate(&near) else { panic!() };
        assert_eq!((reply_to, Message::parse(&message).source()), (ReplyTo::Tun, expected));
        let far = Ipv4 { ttl: 1, ..inbound() }.bytes();
        let Outcome::Reject { answer: Some((reply_to, message)), .. } = host.decapsulate(&far, host_a()) else {
            panic!()
        };
        let source = Message::parse(&message).source();
        assert_eq!((reply_to, source), (ReplyTo::Peer(host_a()), [100, 96, 1, 0].into()));
        assert_eq!(source, host.forwarder.config().host.tun_address_v4().unwrap());
    }
}

/// R42, R43, R50: settings that lead to an unusable ICMP error are refused with their name.
#[test]
fn r42_r43_r50_senseless_settings_are_refused() {
    for address in [[0, 0, 0, 0], [224, 0, 0, 1], [239, 1, 2, 3], [255, 255, 255, 255]] {
        let address = Ipv4Addr::from(address);
        let fixed = config().with_icmp_source(IcmpSource::Fixed(address));
        assert_eq!(Forwarder::new(fixed).unwrap_err(), ConfigError::IcmpSource { address: address.into() });
    }
    assert_eq!(Forwarder::new(config().with_icmp_ttl(0)).unwrap_err(), ConfigError::IcmpTtl);
    for mtu in [0, 1, 67] {
        assert_eq!(Mtu::new(mtu).unwrap_err(), MtuError::TooSmall { mtu });
    }
    assert!(Forwarder::new(config().with_mtu(mtu_of(68)).with_icmp_ttl(1)).is_ok());
}

/// R42 at the remote host: a subnet whose network address is 0.0.0.0 has no TUN address as source. It is refused, or
/// there is no ICMP error.
#[test]
fn r42_never_from_the_unspecified_address() {
    if let Ok(host) = loden::Host::new(net([0, 0, 0, 0], 0), net([0, 0, 0, 0], 1), own()) {
        let config = ForwarderConfig::new(&host).with_source_check(SourceCheck::Off);
        let outcome = Host::new(config, routes()).decapsulate(&Ipv4 { ttl: 1, ..inbound() }.bytes(), host_a());
        let source = outcome.icmp().map(|message| Message::parse(message).source());
        assert_ne!(source, Some(Ipv4Addr::UNSPECIFIED));
    }
}

/// R43: 64 or the configured TTL, and never the offender's.
#[test]
fn r43_the_ttl_of_an_error_is_its_own() {
    for ttl in [1, 2, 63, 255] {
        let offender = Ipv4 { ttl, destination: NOBODY, ..outbound() }.bytes();
        let message = Host::ordinary().encapsulate(&offender);
        assert_eq!(Message::parse(message.icmp().unwrap()).ip.time_to_live, 64);
        for icmp_ttl in [1, 32, 255] {
            let host = Host::new(config().with_icmp_ttl(icmp_ttl), routes());
            let near = host.encapsulate(&offender);
            let far = host.decapsulate(&Ipv4 { ttl: 1, ..inbound() }.bytes(), host_a());
            for outcome in [near, far] {
                assert_eq!(Message::parse(outcome.icmp().unwrap()).ip.time_to_live, icmp_ttl);
            }
        }
    }
}

/// R47: the errors of one host are never reassembled as fragments of one packet.
#[test]
fn r47_errors_are_not_fragmented() {
    for (_, outcome) in offenders(|packet| Ipv4 { id: 0x4321, ..packet }) {
        let message = Message::parse(outcome.icmp().unwrap());
        assert!(message.ip.dont_fragment);
        assert!(!message.ip.more_fragments);
    }
}

/// Fault 9: no bytes behind the packet in a receive buffer, and no earlier bytes of the buffer for the error, are sent.
#[test]
fn fault_9_no_stale_byte_in_an_answer() {
    let host = Host::ordinary();
    for len in [20, 21, 28, 47, 60] {
        for ihl in [5, len / 4] {
            let options = vec![1; (ihl - 5) * 4];
            let payload = pattern(len - ihl * 4);
            let edit = |packet| Ipv4 { options: options.clone(), payload: payload.clone(), ..packet };
            let near = edit(Ipv4 { ttl: 1, ..Ipv4::new(POD, POD_A) });
            let far = edit(Ipv4 { ttl: 1, ..Ipv4::new(POD_A, POD) });
            for behind in [0, 1, 44, 1452] {
                let trailer = vec![CANARY; behind];
                let near = Ipv4 { trailer: trailer.clone(), ..near.clone() };
                let far = Ipv4 { trailer, ..far.clone() };
                let outcomes = [host.encapsulate(&near.bytes()), host.decapsulate(&far.bytes(), host_a())];
                for outcome in outcomes {
                    let message = outcome.icmp().unwrap();
                    assert_eq!(message.len(), 28 + len);
                    // Checksums may be any number. All other bytes are known not to be the canary.
                    let known = message.iter().enumerate().filter(|(at, _)| ![10, 11, 22, 23, 38, 39].contains(at));
                    assert!(known.clone().all(|(_, byte)| *byte != CANARY), "a stale byte in {message:02x?}");
                }
            }
        }
    }
}
