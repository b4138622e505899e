//! Test packets.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use bytes::Bytes;

use crate::wire::{checksum, protocol};

/// Returns an IPv4 packet with a UDP datagram of these bytes from one pod to another, as Linux sends it: TTL 64, DF
/// set, valid checksums.
///
/// At most 65,507 bytes of `data` fit; the rest is cut off.
///
/// ```
/// let packet = loden::sim::udp_packet("100.96.1.2:4000".parse()?, "100.96.2.3:53".parse()?, b"question");
/// assert_eq!(packet.len(), 36);
/// # Ok::<(), core::net::AddrParseError>(())
/// ```
#[must_use]
pub fn udp_packet(source: SocketAddrV4, destination: SocketAddrV4, data: &[u8]) -> Bytes {
    const IP: u16 = 20;
    const UDP: u16 = 8;
    const DONT_FRAGMENT: u8 = 0x40;
    let room = usize::from(u16::MAX - IP - UDP);
    let data = data.get(..room).unwrap_or(data);
    let udp_len = UDP + data.len() as u16;
    let [total, udp_len] = [IP + udp_len, udp_len].map(u16::to_be_bytes);
    let addresses = [source.ip().octets(), destination.ip().octets()].concat();
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let header = |sum: u16| {
        let start: [&[u8]; 4] = [&[0x45, 0], &total, &[0, 0, DONT_FRAGMENT, 0, 64, protocol::UDP], &sum.to_be_bytes()];
        [&start.concat()[..], &addresses].concat()
    };
    let datagram = |sum: u16| -> Vec<u8> { [&ports[..], &udp_len, &sum.to_be_bytes(), data].concat() };
    let pseudo_header = [&addresses[..], &[0, protocol::UDP], &udp_len].concat();
    let sum = checksum::add(checksum::sum(&pseudo_header), checksum::sum(&datagram(0)));
    // A checksum of 0 means that there is none (RFC 768).
    let udp_checksum = if sum == u16::MAX { u16::MAX } else { !sum };
    [header(!checksum::sum(&header(0))), datagram(udp_checksum)].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packets_equal_those_of_another_implementation(
            (source, destination) in (any::<[u8; 4]>(), any::<[u8; 4]>()),
            (from, to) in (any::<u16>(), any::<u16>()),
            data in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let packet = udp_packet(SocketAddrV4::new(source.into(), from), SocketAddrV4::new(destination.into(), to), &data);
            let mut expected = Vec::new();
            PacketBuilder::ipv4(source, destination, 64).udp(from, to).write(&mut expected, &data).unwrap();
            prop_assert_eq!(&packet[..], &expected[..]);
        }
    }

    #[test]
    fn the_longest_packet_is_not_exceeded() {
        let pod = SocketAddrV4::new([100, 96, 1, 2].into(), 1);
        let packet = udp_packet(pod, pod, &std::vec![7; 70_000]);
        assert_eq!(packet.len(), 65_535);
        assert!(SlicedPacket::from_ip(&packet).is_ok());
    }
}
