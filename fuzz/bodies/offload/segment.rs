//! Valid GSO packets of every shape: each segment equals the model's, byte for byte.
//!
//! Byte 0: TCP (bit 0), IP options in words or destination options headers (bits 1 to 3), TCP options in words (bits 4 to
//! 7). Byte 1: TCP's control bits. Byte 2: type of service or traffic class, 3: TTL or hop limit. Then identification or
//! flow label, and one byte of the fragment field (DF and the reserved bit), whose bit 0 is IPv6 and bit 1 a routing
//! header. Then sequence, GSO size and payload length, all big-endian. The rest is repeated as the payload.

use core::net::Ipv6Addr;

use loden::offload::{GsoPacket, OffloadAction, VnetHeader};

use super::model::{self, Tcp};
use super::opinion;
use support::packet::{Ipv4, TCP, UDP, pattern, udp};
use support::packet_v6::{Ipv6, destination_options, hop_limit, segment_routing, with_hop_limit};

const FIXED: usize = 16;

/// The final destination of packets with a routing header.
const FINAL: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 3, 0, 0, 0, 0, 4);

pub fn run(bytes: &[u8]) {
    let Some((fixed, seed)) = bytes.split_first_chunk::<FIXED>() else { return };
    let [shape, flags, tos, ttl, id0, id1, fragment, s0, s1, s2, s3, g0, g1, l0, l1, _] = *fixed;
    let (v6, routed) = (fragment & 1 == 1, fragment & 3 == 3);
    let options = usize::from(shape >> 1 & 7);
    let tcp_options = usize::from(shape >> 4).min(10) * 4;
    let size = u16::from_be_bytes([g0, g1]).max(1);
    let is_tcp = shape & 1 == 1;
    let ip = if v6 { 40 + options * 8 + usize::from(routed) * 24 } else { 20 + options * 4 };
    let headers = ip + if is_tcp { 20 + tcp_options } else { 8 };
    let longest = if v6 { 65_575 } else { 65_535 };
    let len = usize::from(u16::from_be_bytes([l0, l1])).min(longest - headers);
    let payload: Vec<u8> = seed.iter().chain(&[shape]).copied().cycle().take(len).collect();
    let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
    let id = u16::from_be_bytes([id0, id1]);
    let protocol = if is_tcp { TCP } else { UDP };
    let payload = match is_tcp {
        true => Tcp { flags, options: pattern(tcp_options), ..Tcp::new(sequence, payload) }.bytes(),
        false => udp(4000, 53, &payload),
    };
    let packet = if v6 {
        let routing = routed.then(|| segment_routing(FINAL));
        let extensions = (0..options).map(|_| destination_options(1)).chain(routing).collect();
        let (traffic_class, hop_limit, flow_label) = (tos, ttl, id.into());
        let new = Ipv6::new([0xfd00, 0x96, 1, 0, 0, 0, 0, 2], [0xfd00, 0x96, 2, 0, 0, 0, 0, 3]);
        let packet = Ipv6 { traffic_class, flow_label, hop_limit, extensions, protocol, payload, ..new }.bytes();
        if routed { model::partial_to(packet, FINAL) } else { model::partial(packet) }
    } else {
        let fragment = u16::from(fragment & 0xc0) << 8;
        let new = Ipv4::new([100, 96, 1, 2], [100, 96, 2, 3]);
        model::partial(Ipv4 { tos, ttl, id, fragment, protocol, options: vec![1; options * 4], payload, ..new }.bytes())
    };
    let vnet = model::vnet(&packet, size);
    match vnet.inspect(&packet) {
        Ok(OffloadAction::Segment(many)) => {
            check_segments(&many, &packet, packet.len(), &vnet);
            if v6 {
                let mut first = vec![0; many.len_of(0)];
                many.write_segment(&packet, 0, &mut first);
                let sum = if routed { model::transport_sum_to(&first, FINAL) } else { model::transport_sum(&first) };
                assert_eq!(sum, 0xffff, "{first:02x?}");
            }
        }
        work => {
            assert!(
                matches!(work, Ok(OffloadAction::Checksum(_))) && len <= usize::from(size),
                "{work:?} for {packet:02x?}"
            )
        }
    }
}

/// Asserts that the segments are those of the model, also after a hop. Of very many, only those at both ends are
/// compared.
pub fn check_segments(many: &GsoPacket, packet: &[u8], total: usize, vnet: &VnetHeader) {
    const AT_EACH_END: usize = 40;
    let (segments, size) = (many.segments(), vnet.gso_size);
    let payload = total - model::headers_len(&packet[..total]);
    assert_eq!(segments, payload.div_ceil(size.into()));
    assert_eq!(usize::from(many.segment_len()), many.len_of(0).min(65_535));
    assert_eq!((many.len_of(segments), many.len_of(usize::MAX)), (0, 0));
    let forwarded = with_hop_limit(packet, hop_limit(packet).wrapping_sub(1));
    let mut out = vec![0xfb; many.len_of(0)];
    let ends = (0..segments).filter(|index| *index < AT_EACH_END || index + AT_EACH_END >= segments);
    for index in ends {
        for packet in [packet, &forwarded] {
            let expected = model::segment(&packet[..total], size.into(), index, vnet.flags & 1 == 1);
            assert_eq!(many.len_of(index), expected.len(), "segment {index} of {segments}");
            let out = &mut out[..expected.len()];
            many.write_segment(packet, index, out);
            assert_eq!(out, expected, "segment {index} of {segments} of {packet:02x?}");
            opinion::assert_sound(&packet[..total], size, index, out);
        }
    }
    // A buffer that is too short is not changed.
    let untouched = |packet: &[u8], index, len| {
        let mut out = vec![0xfb; len];
        many.write_segment(packet, index, &mut out);
        out.iter().all(|byte| *byte == 0xfb)
    };
    let len = many.len_of(0);
    assert!(untouched(packet, segments, len) && untouched(packet, usize::MAX, len));
    assert!(untouched(packet, 0, len - 1) && untouched(packet, 0, len + 1) && untouched(packet, 0, 0));
    assert!(untouched(&packet[..total - 1], segments - 1, many.len_of(segments - 1)));
    assert!(untouched(&[], 0, len));
}
