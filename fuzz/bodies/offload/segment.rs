//! Valid GSO packets of every shape: each segment equals the model's, byte for byte.
//!
//! Byte 0: TCP (bit 0), IP options in words (bits 1 to 3), TCP options in words (bits 4 to 7). Byte 1: TCP's control
//! bits. Byte 2: type of service, 3: TTL. Then identification, fragment field (DF and the reserved bit), sequence, GSO
//! size and payload length, all big-endian. The rest is repeated as the payload.

use loden::offload::{GsoPacket, OffloadAction};

use super::model::{self, Tcp};
use super::opinion;
use support::packet::{Ipv4, TCP, UDP, pattern, udp, with_ttl};

const FIXED: usize = 16;

pub fn run(bytes: &[u8]) {
    let Some((fixed, seed)) = bytes.split_first_chunk::<FIXED>() else { return };
    let [shape, flags, tos, ttl, id0, id1, fragment, s0, s1, s2, s3, g0, g1, l0, l1, _] = *fixed;
    let ip_options = usize::from(shape >> 1 & 7) * 4;
    let tcp_options = usize::from(shape >> 4).min(10) * 4;
    let size = u16::from_be_bytes([g0, g1]).max(1);
    let is_tcp = shape & 1 == 1;
    let headers = 20 + ip_options + if is_tcp { 20 + tcp_options } else { 8 };
    let len = usize::from(u16::from_be_bytes([l0, l1])).min(65_535 - headers);
    let payload: Vec<u8> = seed.iter().chain(&[shape]).copied().cycle().take(len).collect();
    let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
    let packet = Ipv4 {
        tos,
        ttl,
        id: u16::from_be_bytes([id0, id1]),
        fragment: u16::from(fragment & 0xc0) << 8,
        protocol: if is_tcp { TCP } else { UDP },
        options: vec![1; ip_options],
        payload: match is_tcp {
            true => Tcp { flags, options: pattern(tcp_options), ..Tcp::new(sequence, payload) }.bytes(),
            false => udp(4000, 53, &payload),
        },
        ..Ipv4::new([100, 96, 1, 2], [100, 96, 2, 3])
    };
    let packet = model::partial(packet.bytes());
    let vnet = model::vnet(&packet, size);
    match vnet.inspect(&packet) {
        Ok(OffloadAction::Segment(many)) => check_segments(&many, &packet, packet.len(), size),
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
pub fn check_segments(many: &GsoPacket, packet: &[u8], total: usize, size: u16) {
    const AT_EACH_END: usize = 40;
    let segments = many.segments();
    let payload = total - model::headers_len(packet);
    assert_eq!(segments, payload.div_ceil(size.into()));
    assert_eq!(usize::from(many.segment_len()), many.len_of(0));
    assert_eq!((many.len_of(segments), many.len_of(usize::MAX)), (0, 0));
    let forwarded = with_ttl(packet, packet[8].wrapping_sub(1));
    let mut out = vec![0xfb; many.segment_len().into()];
    let ends = (0..segments).filter(|index| *index < AT_EACH_END || index + AT_EACH_END >= segments);
    for index in ends {
        for packet in [packet, &forwarded] {
            let expected = model::segment(&packet[..total], size.into(), index);
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
