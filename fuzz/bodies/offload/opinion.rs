//! A check of the segments of GSO packets with etherparse.

use etherparse::checksum::Sum16BitWords;
use etherparse::{Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TransportSlice};

/// Asserts that a segment equals the GSO packet but for lengths, checksums and identification, and in TCP the sequence
/// number and the flags of one end. Asserts that its checksums are right; behind extension headers that is up to the
/// caller, because etherparse does not know the final destination.
///
/// `packet` is the GSO packet, whose transport checksum is ignored. `size` is the most payload of a segment.
pub fn assert_sound(packet: &[u8], size: u16, index: usize, segment: &[u8]) {
    let (whole, one) = (Parts::of(packet), Parts::of(segment));
    match (&whole.ip, &one.ip) {
        (Ip::V4(whole), Ip::V4(one)) => {
            assert_eq!(usize::from(one.total_len), segment.len());
            assert_eq!(Sum16BitWords::new().add_slice(&segment[..one.header_len()]).ones_complement(), 0);
            assert_eq!(segment[6..8], packet[6..8], "all flags");
            let expected = Ipv4Header {
                total_len: one.total_len,
                header_checksum: one.header_checksum,
                identification: whole.identification.wrapping_add(index as u16),
                ..whole.clone()
            };
            assert_eq!(*one, expected, "fault 22 and others: segment {index}");
        }
        (Ip::V6(whole, extensions), Ip::V6(one, copies)) => {
            assert_eq!(usize::from(one.payload_length) + 40, segment.len());
            assert_eq!(*one, Ipv6Header { payload_length: one.payload_length, ..whole.clone() }, "segment {index}");
            assert_eq!(copies, extensions, "segment {index}");
        }
        _ => panic!("a segment of another family"),
    }
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
            match &one.ip {
                Ip::V4(ip) => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(ip.source, ip.destination).unwrap())
                }
                Ip::V6(ip, extensions) if extensions.is_empty() => {
                    assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(ip.source, ip.destination).unwrap())
                }
                Ip::V6(..) => {}
            }
        }
        (TransportSlice::Udp(whole), TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            assert_eq!((header.source_port, header.destination_port), (whole.source_port(), whole.destination_port()));
            assert_eq!(usize::from(header.length), 8 + one.payload.len());
            match &one.ip {
                Ip::V4(ip) => assert_eq!(header.checksum, header.calc_checksum_ipv4(ip, udp.payload()).unwrap()),
                Ip::V6(ip, extensions) if extensions.is_empty() => {
                    assert_eq!(header.checksum, header.calc_checksum_ipv6(ip, udp.payload()).unwrap())
                }
                Ip::V6(..) => assert_ne!(header.checksum, 0),
            }
        }
        others => panic!("{others:?}"),
    }
}

enum Ip {
    V4(Ipv4Header),
    /// With the bytes of the extension headers.
    V6(Ipv6Header, Vec<u8>),
}

struct Parts<'a> {
    ip: Ip,
    transport: TransportSlice<'a>,
    payload: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(packet: &'a [u8]) -> Self {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let (Some(net), Some(transport)) = (sliced.net, sliced.transport) else { panic!("no segment: {packet:02x?}") };
        let ip = match net {
            NetSlice::Ipv4(ip) => Ip::V4(ip.header().to_header()),
            NetSlice::Ipv6(ip) => Ip::V6(ip.header().to_header(), ip.extensions().slice().to_vec()),
            NetSlice::Arp(arp) => panic!("no segment: {arp:?}"),
        };
        let payload = match &transport {
            TransportSlice::Tcp(tcp) => tcp.payload(),
            TransportSlice::Udp(udp) => udp.payload(),
            other @ (TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_)) => {
                panic!("no segment: {other:?}")
            }
        };
        Self { ip, transport, payload }
    }
}
