//! The actions that packets from the kernel need: faults 14 to 21 and R35.

use loden::offload::{OffloadAction, OffloadError, VNET_HEADER_LEN, VnetHeader};
use loden::wire::transport::TransportError;
use proptest::prelude::*;

use super::v6;
use bodies::offload;
use bodies::offload::model::{self, Tcp, complete, partial, vnet};
use bodies::offload::segment::check_segments;
use support::host::outbound;
use support::packet::{Ipv4, MF, TCP, UDP, pattern, udp, with_ttl};

/// Returns a GSO packet with 3,000 bytes of TCP.
pub(crate) fn tcp_super() -> Vec<u8> {
    partial(Ipv4 { protocol: TCP, payload: Tcp::new(7000, pattern(3000)).bytes(), ..outbound() }.bytes())
}

pub(crate) fn udp_super() -> Vec<u8> {
    partial(Ipv4 { payload: udp(4000, 53, &pattern(3000)), ..outbound() }.bytes())
}

fn error(vnet: &VnetHeader, packet: &[u8]) -> OffloadError {
    offload::vnet::check(vnet, packet);
    vnet.inspect(packet).unwrap_err()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Any header in front of valid GSO packets, broken ones and noise.
    #[test]
    fn fault_14_any_vnet_header_gets_the_verdict_of_the_model(
        header in any::<[u8; VNET_HEADER_LEN]>(),
        packet in prop_oneof![
            Just(tcp_super()),
            Just(udp_super()),
            Just(v6::tcp_super()),
            Just(v6::udp_super()),
            proptest::collection::vec(any::<u8>(), 0..100),
        ],
    ) {
        offload::vnet::check(&VnetHeader::from_bytes(header), &packet);
    }

    #[test]
    fn the_verdict_on_any_bytes_is_the_model_s(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        offload::vnet::run(&bytes);
    }
}

/// Every value of every byte of a valid header.
#[test]
fn fault_14_each_byte_of_a_vnet_header() {
    for packet in [tcp_super(), udp_super(), v6::tcp_super(), v6::udp_super()] {
        for size in [0, 1000] {
            let right = vnet(&packet, size).to_bytes();
            for at in 0..VNET_HEADER_LEN {
                for value in 0..=255 {
                    let mut header = right;
                    header[at] = value;
                    offload::vnet::check(&VnetHeader::from_bytes(header), &packet);
                }
            }
        }
    }
}

#[test]
fn fault_15_fewer_bytes_than_a_vnet_header() {
    for have in 0..VNET_HEADER_LEN {
        assert_eq!(VnetHeader::split(&[0; VNET_HEADER_LEN][..have]), Err(OffloadError::TooShort { have }));
    }
    assert_eq!(VnetHeader::split(&[0; VNET_HEADER_LEN]), Ok((VnetHeader::default(), [].as_slice())));
}

#[test]
fn fault_16_a_gso_size_of_0_is_refused() {
    for packet in [tcp_super(), udp_super()] {
        let header = VnetHeader { gso_size: 0, ..vnet(&packet, 1000) };
        assert_eq!(error(&header, &packet), OffloadError::GsoSizeZero);
    }
}

/// Only the payload bounds the number of segments. They cost nothing until they are requested.
#[test]
fn fault_16_a_gso_size_of_1_with_64_kib_gives_65_thousand_segments_lazily() {
    let tcp = Ipv4 { protocol: TCP, payload: Tcp::new(7000, pattern(65_495)).bytes(), ..outbound() };
    let udp = Ipv4 { payload: udp(4000, 53, &pattern(65_507)), ..outbound() };
    for (packet, segments) in [(tcp, 65_495), (udp, 65_507)] {
        let packet = partial(packet.bytes());
        assert_eq!(packet.len(), 65_535);
        let Ok(OffloadAction::Segment(many)) = vnet(&packet, 1).inspect(&packet) else { panic!("not many") };
        assert_eq!((many.segments(), usize::from(many.segment_len())), (segments, model::headers_len(&packet) + 1));
        check_segments(&many, &packet, packet.len(), &vnet(&packet, 1));
    }
}

#[test]
fn fault_16_a_gso_size_of_the_payload_or_more_leaves_one_packet() {
    for packet in [tcp_super(), udp_super()] {
        for size in [3000, 3001, 65_535] {
            let Ok(OffloadAction::Checksum(work)) = vnet(&packet, size).inspect(&packet) else { panic!("size {size}") };
            let mut completed = packet.clone();
            work.complete(&mut completed);
            assert_eq!(completed, complete(packet.clone()));
        }
        assert!(
            matches!(vnet(&packet, 2999).inspect(&packet), Ok(OffloadAction::Segment(many)) if many.segments() == 2)
        );
        // The header requests neither a checksum nor segments.
        let header = VnetHeader { flags: 0, ..vnet(&packet, 3000) };
        assert_eq!(header.inspect(&packet), Ok(OffloadAction::Nothing));
    }
}

#[test]
fn fault_17_the_header_length_is_not_looked_at() {
    for packet in [tcp_super(), udp_super()] {
        for size in [0, 1000] {
            let right = vnet(&packet, size).inspect(&packet);
            for hdr_len in [0, 1, 20, 65_535] {
                assert_eq!(VnetHeader { hdr_len, ..vnet(&packet, size) }.inspect(&packet), right);
            }
        }
    }
}

#[test]
fn fault_18_a_checksum_outside_the_payload_is_refused() {
    let packet = udp_super();
    let total = packet.len();
    for size in [0, 1000] {
        let at =
            |csum_start, csum_offset| error(&VnetHeader { csum_start, csum_offset, ..vnet(&packet, size) }, &packet);
        for start in [0, 10, 19] {
            assert_eq!(at(start, 6), OffloadError::ChecksumInHeader { start, header: 20 });
        }
        assert_eq!(at(20, total as u16 - 21), OffloadError::ChecksumPastEnd { at: total - 1, total });
        assert_eq!(at(total as u16, 0), OffloadError::ChecksumPastEnd { at: total, total });
        assert_eq!(at(20, 65_535), OffloadError::ChecksumPastEnd { at: 65_555, total });
        // 65,535 + 65,535 does not wrap to an offset inside the packet.
        assert_eq!(at(65_535, 65_535), OffloadError::ChecksumPastEnd { at: 131_070, total });
        assert_eq!(at(65_535, 30), OffloadError::ChecksumPastEnd { at: 65_565, total });
    }
    // The trailer of a read is not part of the packet.
    let with_trailer = [packet.as_slice(), &[0; 64]].concat();
    let header = VnetHeader { csum_start: total as u16, csum_offset: 0, ..vnet(&packet, 0) };
    assert_eq!(error(&header, &with_trailer), OffloadError::ChecksumPastEnd { at: total, total });
}

#[test]
fn fault_18_a_gso_packet_s_checksum_is_where_its_protocol_has_it() {
    let packet = tcp_super();
    for (start, offset) in [(20, 6), (24, 16), (24, 12), (40, 16)] {
        let header = VnetHeader { csum_start: start, csum_offset: offset, ..vnet(&packet, 1000) };
        let misplaced = OffloadError::ChecksumMisplaced { start, offset, protocol: TCP, header: 20 };
        assert_eq!(error(&header, &packet), misplaced);
    }
}

#[test]
fn fault_18_where_no_checksum_is_due_its_place_is_not_looked_at() {
    for packet in [tcp_super(), udp_super()] {
        let header = VnetHeader { flags: 0, csum_start: 1, csum_offset: 2, ..vnet(&packet, 1000) };
        offload::vnet::check(&header, &packet);
        assert!(matches!(header.inspect(&packet), Ok(OffloadAction::Segment(_))));
    }
}

#[test]
fn fault_19_a_gso_type_that_does_not_fit() {
    let (tcp, udp) = (tcp_super(), udp_super());
    let other = Ipv4 { protocol: 47, payload: pattern(3000), ..outbound() }.bytes();
    for gso_type in 1..=255 {
        for (packet, protocol) in [(&tcp, TCP), (&udp, UDP), (&other, 47)] {
            let header = VnetHeader { gso_type, ..vnet(packet, 1000) };
            match (gso_type, protocol) {
                (1 | 0x81, TCP) | (5, UDP) => assert!(matches!(header.inspect(packet), Ok(OffloadAction::Segment(_)))),
                (1 | 3 | 4 | 5 | 0x81 | 0x84, _) => {
                    assert_eq!(error(&header, packet), OffloadError::UnfitGso { gso_type, version: 4, protocol });
                }
                _ => assert_eq!(error(&header, packet), OffloadError::UnknownGso { gso_type }),
            }
        }
    }
}

#[test]
fn fault_19_unknown_flags() {
    for packet in [tcp_super(), udp_super()] {
        for flags in 4..=255 {
            for size in [0, 1000] {
                let header = VnetHeader { flags, ..vnet(&packet, size) };
                assert_eq!(error(&header, &packet), OffloadError::UnknownFlags { flags });
            }
        }
    }
}

#[test]
fn fault_20_a_tcp_header_that_does_not_fit() {
    for (words, len, fits) in
        [(0, 60, false), (4, 60, false), (5, 60, true), (15, 59, false), (15, 60, true), (6, 22, false)]
    {
        let mut segment = Tcp::new(1, pattern(len)).bytes();
        segment.truncate(len);
        segment[12] = words << 4;
        let packet = Ipv4 { protocol: TCP, payload: segment, ..outbound() }.bytes();
        let header = VnetHeader { flags: 1, gso_type: 1, gso_size: 1, csum_start: 20, csum_offset: 16, hdr_len: 0 };
        offload::vnet::check(&header, &packet);
        let result = header.inspect(&packet);
        let error = OffloadError::Transport(TransportError::BadDataOffset { words, have: len });
        assert_eq!(result.err(), (!fits).then_some(error), "{words} words in {len} bytes");
    }
    let packet = Ipv4 { protocol: TCP, payload: pattern(19), ..outbound() }.bytes();
    let header = VnetHeader { gso_type: 1, gso_size: 1, ..VnetHeader::default() };
    let short = TransportError::TooShort { have: 19, need: 20 };
    assert_eq!(error(&header, &packet), OffloadError::Transport(short));
}

#[test]
fn a_udp_length_other_than_the_payload_s_is_refused() {
    let mut packet = udp_super();
    packet[24..26].copy_from_slice(&9u16.to_be_bytes());
    let bad = TransportError::BadUdpLength { length: 9, have: 3008 };
    assert_eq!(error(&vnet(&packet, 1000), &packet), OffloadError::Transport(bad));
}

#[test]
fn fault_21_a_fragment_is_no_gso_packet() {
    for (fragment, offset) in [(MF, 0), (MF | 185, 185), (185, 185)] {
        for whole in [tcp_super(), udp_super()] {
            let packet = Ipv4 { fragment, protocol: whole[9], payload: whole[20..].to_vec(), ..outbound() }.bytes();
            for size in [0, 1000] {
                assert_eq!(error(&vnet(&packet, size), &packet), OffloadError::Fragment { offset });
            }
        }
    }
}

/// The forwarder reports the errors of a packet.
#[test]
fn invalid_packets_need_no_action() {
    let mut broken = tcp_super();
    broken[10] ^= 1;
    let headers = [[0xff; VNET_HEADER_LEN], [1; VNET_HEADER_LEN], vnet(&tcp_super(), 1000).to_bytes()];
    for packet in [vec![], vec![0x45; 19], vec![0x60; 39], vec![0x60; 60], broken] {
        for header in headers {
            assert_eq!(VnetHeader::from_bytes(header).inspect(&packet), Ok(OffloadAction::Nothing));
        }
    }
}

#[test]
fn r35_a_partial_checksum_is_completed_also_after_a_hop() {
    for len in [0, 1, 2, 33, 1452] {
        let tcp = Ipv4 { protocol: TCP, payload: Tcp::new(1, pattern(len)).bytes(), ..outbound() };
        let udp = Ipv4 { payload: udp(4000, 53, &pattern(len)), options: vec![1; 8], ..outbound() };
        for packet in [tcp, udp] {
            let packet = partial(packet.bytes());
            let Ok(OffloadAction::Checksum(work)) = vnet(&packet, 0).inspect(&packet) else { panic!("{len} bytes") };
            let mut forwarded = with_ttl(&packet, 63);
            work.complete(&mut forwarded);
            assert_eq!(forwarded, complete(with_ttl(&packet, 63)), "{len} bytes");
            assert_eq!(model::transport_sum(&forwarded), 0xffff);
        }
    }
}

/// Two bytes of payload that make the checksum 0: UDP writes the other zero, TCP does not have to.
#[test]
fn r35_a_udp_checksum_of_0_is_written_as_ffff() {
    let udp = |data: &[u8]| udp(4000, 53, data);
    let tcp = |data: &[u8]| Tcp::new(1, data.to_vec()).bytes();
    for (protocol, at, expected) in [(UDP, 26, [0xff; 2]), (TCP, 36, [0; 2])] {
        let make = |data: &[u8]| {
            let payload = if protocol == UDP { udp(data) } else { tcp(data) };
            Ipv4 { protocol, payload, ..outbound() }.bytes()
        };
        let rest = complete(make(&[0, 0]));
        let packet = partial(make(&rest[at..at + 2]));
        let Ok(OffloadAction::Checksum(work)) = vnet(&packet, 0).inspect(&packet) else { panic!("{packet:02x?}") };
        let mut completed = packet.clone();
        work.complete(&mut completed);
        assert_eq!(completed[at..at + 2], expected);
        // The same as a segment of a GSO packet.
        let gso_packet = partial(make(&[&rest[at..at + 2], &[0; 2]].concat()));
        let Ok(OffloadAction::Segment(many)) = vnet(&gso_packet, 2).inspect(&gso_packet) else { panic!("not many") };
        let mut segment = vec![0; many.len_of(0)];
        many.write_segment(&gso_packet, 0, &mut segment);
        assert_eq!(segment[at..at + 2], expected);
    }
}
