//! Header: the conditions of a header, in both directions.

use loden::forward::{DropReason, SourceRoutes};

use support::host::{Host, Outcome, config, host_a, inbound, mtu_of, outbound, routes};
use support::packet::{
    DF, Ipv4, LOOSE_SOURCE_ROUTE, MF, RECORD_ROUTE, ROUTER_ALERT, STRICT_SOURCE_ROUTE, pattern, repair_checksum,
    with_ttl,
};

/// Returns the outcomes in both directions: the edit is applied to a packet of this host, and to one for it.
fn both_ways(host: &Host, edit: impl Fn(Ipv4) -> Ipv4) -> [Outcome; 2] {
    [host.encapsulate(&edit(outbound()).bytes()), host.decapsulate(&edit(inbound()).bytes(), host_a())]
}

fn assert_dropped(what: &str, reason: DropReason, edit: impl Fn(Ipv4) -> Ipv4) {
    for outcome in both_ways(&Host::ordinary(), edit) {
        assert_eq!(outcome, Outcome::Drop(reason), "{what}");
    }
}

/// Asserts that it is forwarded in both directions with one hop less and otherwise unchanged.
fn assert_forwarded(host: &Host, what: &str, edit: impl Fn(Ipv4) -> Ipv4) {
    let [out, back] = both_ways(host, &edit);
    let goes_on = |packet: Ipv4| with_ttl(&Ipv4 { trailer: Vec::new(), ..packet.clone() }.bytes(), packet.ttl - 1);
    let to = Some(host_a());
    assert_eq!(out, Outcome::Forward { to, bytes: goes_on(edit(outbound())) }, "{what}");
    assert_eq!(back, Outcome::Forward { to: None, bytes: goes_on(edit(inbound())) }, "{what}");
}

#[test]
fn r1_fault_1_fewer_than_20_bytes_are_too_short() {
    for have in 0..20 {
        assert_dropped(&format!("{have} bytes"), DropReason::TooShort, |packet| Ipv4 { cut: Some(have), ..packet });
    }
    for byte in 0..=255 {
        assert_eq!(Host::ordinary().encapsulate(&[byte]), Outcome::Drop(DropReason::TooShort), "fault 1");
    }
}

#[test]
fn r2_versions_other_than_4() {
    for version in (0..16).filter(|version| *version != 4) {
        let reason = if version == 6 { DropReason::Ipv6NotCarried } else { DropReason::BadVersion };
        assert_dropped(&format!("version {version}"), reason, |packet| Ipv4 { version, ..packet });
    }
    let mut ipv6 = vec![0x60, 0, 0, 0, 0, 8, 58, 255];
    ipv6.resize(48, 0xfe);
    assert_eq!(Host::ordinary().encapsulate(&ipv6), Outcome::Drop(DropReason::Ipv6NotCarried));
}

#[test]
fn r3_a_header_length_below_5() {
    for ihl in 0..5 {
        let edit = |packet| Ipv4 { ihl: Some(ihl), ..packet };
        assert_dropped(&format!("IHL {ihl}"), DropReason::BadHeaderLength, edit);
    }
}

#[test]
fn r4_a_header_longer_than_what_was_received() {
    for ihl in 6..=15u8 {
        for have in [20, usize::from(ihl) * 4 - 1] {
            let edit = |packet| Ipv4 { ihl: Some(ihl), cut: Some(have), payload: pattern(60), ..packet };
            assert_dropped(&format!("IHL {ihl} in {have} bytes"), DropReason::HeaderTruncated, edit);
        }
    }
}

#[test]
fn r5_a_wrong_checksum_is_never_repaired() {
    let host = Host::ordinary();
    let right = u16::from_be_bytes([outbound().bytes()[10], outbound().bytes()[11]]);
    for wrong in (0..=0xffff).filter(|checksum| *checksum != right) {
        let packet = Ipv4 { checksum: Some(wrong), ..outbound() }.bytes();
        assert_eq!(host.encapsulate(&packet), Outcome::Drop(DropReason::BadChecksum), "{wrong:#06x}");
    }
    let options = |packet| Ipv4 { options: RECORD_ROUTE.to_vec(), checksum: Some(right), ..packet };
    assert_dropped("options are under the checksum", DropReason::BadChecksum, options);
}

#[test]
fn r6_a_total_length_below_the_header() {
    for words in 5..=15u8 {
        let options = vec![1; usize::from(words - 5) * 4];
        for total in 0..u16::from(words) * 4 {
            let edit = |packet| Ipv4 { total: Some(total), options: options.clone(), ..packet };
            assert_dropped(&format!("{total} of {words} words"), DropReason::BadTotalLength, edit);
        }
    }
}

#[test]
fn r7_a_total_length_beyond_the_received_bytes_is_dropped_without_an_icmp_error() {
    let have = outbound().bytes().len() as u16;
    for total in [have + 1, have + 8, 1500, u16::MAX] {
        assert_dropped(&format!("{total} of {have}"), DropReason::Truncated, |packet| Ipv4 {
            total: Some(total),
            ..packet
        });
    }
    for have in 20..usize::from(have) {
        assert_dropped(&format!("cut to {have}"), DropReason::Truncated, |packet| Ipv4 { cut: Some(have), ..packet });
    }
}

#[test]
fn r8_a_trailer_stays_behind_on_the_wire_and_in_the_quote() {
    for len in [1, 3, 26, 1480] {
        let trailer = vec![0xee; len];
        let host = Host::ordinary();
        assert_forwarded(&host, &format!("{len} more"), |packet| Ipv4 { trailer: trailer.clone(), ..packet });
        let expiring = Ipv4 { ttl: 1, trailer: trailer.clone(), ..outbound() };
        let whole = Ipv4 { trailer: Vec::new(), ..expiring.clone() }.bytes();
        let outcome = host.encapsulate(&expiring.bytes());
        assert_eq!(&outcome.icmp().unwrap()[28..], whole, "the quote is the packet without its trailer");
    }
}

#[test]
fn r9_a_packet_that_is_all_header_is_forwarded() {
    let host = Host::ordinary();
    assert_forwarded(&host, "20 bytes", |packet| Ipv4 { payload: Vec::new(), ..packet });
    let options = |packet| Ipv4 { options: vec![1; 40], payload: Vec::new(), ..packet };
    assert_forwarded(&host, "60 bytes", options);
}

/// R10 and fault 5: no combination of TOS, flags and offset changes the verdict.
#[test]
fn r10_fault_5_reserved_bits_pass_unchanged() {
    let host = Host::ordinary();
    for tos in 0..=255 {
        assert_forwarded(&host, &format!("TOS {tos:#04x}"), |packet| Ipv4 { tos, ..packet });
    }
    for flags in 0..8u16 {
        assert_forwarded(&host, &format!("flags {flags}"), |packet| Ipv4 { fragment: flags << 13, ..packet });
    }
    let past_the_end = |packet| Ipv4 { fragment: 0x1fff, payload: pattern(1400), ..packet };
    assert_forwarded(&host, "fault 5: offset + length > 65,535", past_the_end);
    assert_forwarded(&host, "fault 5: more fragments with DF", |packet| Ipv4 { fragment: DF | MF, ..packet });
}

#[test]
fn r11_fault_4_well_formed_options_pass_byte_for_byte() {
    let lists: [(&str, Vec<u8>); 9] = [
        ("record route", RECORD_ROUTE.to_vec()),
        ("timestamp", vec![68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("router alert", ROUTER_ALERT.to_vec()),
        ("unknown", vec![0x9e, 4, 1, 2]),
        ("unknown, no data", vec![0x1e, 2, 1, 1]),
        ("fault 4: 40 × NOP", vec![1; 40]),
        ("one option of 40", [[0x1e, 40].as_slice(), &pattern(38)].concat()),
        ("fault 4: no end marker", vec![1, 0x1e, 3, 9]),
        ("anything behind the end marker", vec![0, 131, 0, 255]),
    ];
    for (what, options) in lists {
        assert_forwarded(&Host::ordinary(), what, |packet| Ipv4 { options: options.clone(), ..packet });
    }
}

#[test]
fn r12_source_routes_are_dropped_unless_allowed() {
    let allowed = config().with_source_routes(SourceRoutes::Forwarded);
    let allowed = Host::new(allowed, routes());
    for route in [LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE] {
        for before in [vec![], vec![1; 3], RECORD_ROUTE.to_vec()] {
            let options = [before, route.to_vec()].concat();
            let edit = |packet| Ipv4 { options: options.clone(), ..packet };
            assert_dropped("source route", DropReason::SourceRoute, edit);
            assert_forwarded(&allowed, "source route", edit);
        }
    }
    let data = |packet| Ipv4 { options: vec![0x1e, 6, 131, 7, 137, 7], ..packet };
    assert_forwarded(&Host::ordinary(), "a source route's number as data of another option", data);
}

/// R13 and fault 4, with every kind of option at every position.
#[test]
fn r13_fault_4_option_lengths_that_do_not_fit() {
    let host = Host::ordinary();
    for kind in 2..=255u8 {
        for at in 0..40usize {
            for len in [0, 1, 41 - at as u8, 41, 255] {
                let mut options = vec![1; 40];
                options[at] = kind;
                if let Some(slot) = options.get_mut(at + 1) {
                    *slot = len;
                }
                let packet = Ipv4 { options, payload: Vec::new(), ..outbound() }.bytes();
                let outcome = host.encapsulate(&packet);
                assert_eq!(outcome, Outcome::Drop(DropReason::BadOption), "kind {kind} at {at} with length {len}");
            }
        }
    }
}

/// Fault 3: the reason is that of the flipped field, or the checksum if no other check has the field.
#[test]
fn fault_3_every_flip_of_a_single_bit_is_noticed() {
    let host = Host::ordinary();
    let options = vec![1; 40];
    for packet in [outbound(), Ipv4 { options, ..outbound() }, Ipv4 { ttl: 1, fragment: DF, ..outbound() }] {
        let header = 20 + packet.options.len();
        let bytes = packet.bytes();
        for bit in 0..header * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 0x80 >> (bit % 8);
            let words = usize::from(flipped[0] & 15);
            let total = usize::from(u16::from_be_bytes([flipped[2], flipped[3]]));
            let expected = match bit {
                2 => DropReason::Ipv6NotCarried,
                0..=3 => DropReason::BadVersion,
                4..=7 if words < 5 => DropReason::BadHeaderLength,
                4..=7 if words * 4 > bytes.len() => DropReason::HeaderTruncated,
                16..=31 if total < header => DropReason::BadTotalLength,
                16..=31 if total > bytes.len() => DropReason::Truncated,
                _ => DropReason::BadChecksum,
            };
            assert_eq!(host.encapsulate(&flipped), Outcome::Drop(expected), "bit {bit}");
            assert_eq!(host.decapsulate(&flipped, host_a()), Outcome::Drop(expected), "bit {bit}");
        }
    }
}

/// Fault 2: the longest datagram and the longest TUN packet.
#[test]
fn fault_2_the_longest_packets_are_read_in_full() {
    let wide = Host::new(config().with_mtu(mtu_of(u16::MAX)), routes());
    for total in [65_507, 65_535] {
        let payload = pattern(total - 20);
        assert_forwarded(&wide, &format!("{total} bytes"), |packet| Ipv4 { payload: payload.clone(), ..packet });
    }
    let mut endless = outbound().bytes();
    endless.resize(70_000, 0xee);
    repair_checksum(&mut endless);
    assert_eq!(wide.encapsulate(&endless).reason(), None, "a buffer longer than any packet");
}
