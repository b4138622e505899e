//! A check of the segments of GSO packets with etherparse.

use etherparse::checksum::Sum16BitWords;
use etherparse::{Ipv4Header, NetSlice, SlicedPacket, TransportSlice};

/// Asserts that a segment equals the GSO packet but for lengths, checksums and identification, and in TCP the sequence
/// number and the flags of one end. Asserts that both checksums are right.
///
/// `packet` is the GSO packet, whose transport checksum is ignored. `size` is the most payload of a segment.
pub fn assert_sound(packet: &[u8], size: u16, index: usize, segment: &[u8]) {
    let (whole, one) = (Parts::of(packet), Parts::of(segment));
    assert_eq!(usize::from(one.ip.total_len), segment.len());
    assert_eq!(Sum16BitWords::new().add_slice(&segment[..one.ip.header_len()]).ones_complement(), 0);
    assert_eq!(segment[6..8], packet[6..8], "all flags");
    let expected = Ipv4Header {
        total_len: one.ip.total_len,
        header_checksum: one.ip.header_checksum,
        identification: whole.ip.identification.wrapping_add(index as u16),
        ..whole.ip.clone()
    };
    assert_eq!(one.ip, expected, "fault 22 and others: segment {index}");
    let start = index * usize::from(size);
    let end = whole.payload.len().min(start + usize::from(size));
    let (is_first, is_last) = (start == 0, end == whole.payload.len());
    assert_eq!(one.payload, &whole.payload[start..end], "segment {index}");
    match (&whole.transport, &one.transport) {
        (TransportSlice::Tcp(whole), TransportSlice::Tcp(tcp)) => {
            let mut expected = whole.to_header();
            expected.sequence_number = expected.sequence_number.wrapping_add(start as u32);
            expected.checksum = tcp.checksum();
            (expected.fin, expected.psh) = (expected.fin && is_last, expected.psh && is_last);
            expected.cwr &= is_first;
            assert_eq!(tcp.to_header(), expected, "segment {index}");
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(one.ip.source, one.ip.destination).unwrap());
        }
        (TransportSlice::Udp(whole), TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            assert_eq!((header.source_port, header.destination_port), (whole.source_port(), whole.destination_port()));
            assert_eq!(usize::from(header.length), 8 + one.payload.len());
            assert_eq!(header.checksum, header.calc_checksum_ipv4(&one.ip, udp.payload()).unwrap());
        }
        others => panic!("{others:?}"),
    }
}

struct Parts<'a> {
    ip: Ipv4Header,
    transport: TransportSlice<'a>,
    payload: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(packet: &'a [u8]) -> Self {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(transport)) = (sliced.net, sliced.transport) else {
            panic!("no segment: {packet:02x?}")
        };
        let payload = match &transport {
            TransportSlice::Tcp(tcp) => tcp.payload(),
            TransportSlice::Udp(udp) => udp.payload(),
            other @ (TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_)) => {
                panic!("no segment: {other:?}")
            }
        };
        Self { ip: ip.header().to_header(), transport, payload }
    }
}
