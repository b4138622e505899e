//! R58, V29: the UDP checksum of each outer packet, as it is on the wire.

use super::*;
use alloc::vec;

use testbed::kernel_version;

use crate::sys::{Tun, TunConfig, TunOffload};

/// Returns the addresses of a packet, and its UDP datagram.
fn parts(packet: &[u8]) -> (&[u8], &[u8]) {
    if packet[0] >> 4 == 4 { (&packet[12..20], &packet[20..]) } else { (&packet[8..40], &packet[40..]) }
}

/// Returns the ones' complement sum of RFC 768 over the pseudo header and a UDP datagram, 16 bits at a time. It is
/// `0xffff` with a right checksum. The pseudo header of IPv6 has wider fields with the same sum (RFC 8200 section 8.1).
fn sum(packet: &[u8]) -> u16 {
    let (addresses, datagram) = parts(packet);
    let pseudo = [&[0, 17][..], &u16::try_from(datagram.len()).unwrap().to_be_bytes()].concat();
    let words = [addresses, &pseudo, datagram].into_iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// Returns the checksum in a packet.
fn checksum(packet: &[u8]) -> u16 {
    let (_, datagram) = parts(packet);
    u16::from_be_bytes([datagram[6], datagram[7]])
}

/// Returns two bytes with which the sum of a datagram between these addresses is 0. RFC 768 writes that as `0xffff`.
fn with_sum_of_zero(from: SocketAddr, to: SocketAddr) -> [u8; 2] {
    let mut packet = match (from, to) {
        (SocketAddr::V4(from), SocketAddr::V4(to)) => {
            [&[0x45; 12][..], &from.ip().octets(), &to.ip().octets()].concat()
        }
        (SocketAddr::V6(from), SocketAddr::V6(to)) => [&[0x60; 8][..], &from.ip().octets(), &to.ip().octets()].concat(),
        _ => panic!("{from} and {to} are of two families"),
    };
    packet.extend([from.port(), to.port(), 10, 0, 0].map(u16::to_be_bytes).concat());
    (!sum(&packet)).to_be_bytes()
}

/// The wire is a TUN device without offloads, so that the kernel completes every checksum before the test reads the
/// packet. The test computes the sum. The senders are sockets that were created, taken over with `SO_NO_CHECK` set,
/// and those of flow ports. The payloads are empty, odd and even, have a sum of zero, or form a GSO batch.
#[test]
fn r58_every_outer_packet_on_the_wire_has_a_right_checksum() {
    every_outer_packet_has_a_right_checksum(Ipv4Addr::new(10, 1, 0, 1).into(), Ipv4Addr::new(10, 1, 0, 2).into());
}

#[test]
fn v29_every_outer_packet_over_ipv6_has_a_right_checksum() {
    if testbed::has_ipv6() {
        let [own, to] = [1, 2].map(|last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into());
        every_outer_packet_has_a_right_checksum(own, to);
    }
}

fn every_outer_packet_has_a_right_checksum(own: IpAddr, to: IpAddr) {
    let namespace = testbed::Namespace::new().expect("these tests make network namespaces, and need root");
    let is_ipv6 = own.is_ipv6();
    if !is_ipv6 {
        namespace.disable_ipv6().unwrap();
    }
    namespace.enter(|| {
        let wire = Tun::open(&TunConfig::new("wire0").with_offload(TunOffload::NONE)).unwrap();
        match own {
            IpAddr::V4(own) => namespace.add_address("wire0", ipnet::Ipv4Net::new_assert(own, 24)).unwrap(),
            IpAddr::V6(own) => namespace.add_ipv6_address("wire0", ipnet::Ipv6Net::new_assert(own, 64)).unwrap(),
        }
        namespace.set_up("wire0").unwrap();
        let to = SocketAddr::new(to, 8285);
        let mut buffer = vec![0; 2048];
        // The kernel sends router solicitations and MLD reports too, which are not of UDP.
        let mut next = || loop {
            let meta = wire.recv(&mut buffer).unwrap();
            let packet = buffer[..meta.len].to_vec();
            if packet[if is_ipv6 { 6 } else { 9 }] == 17 {
                return packet;
            }
        };
        let made = UdpTransport::bind((own, 8285).into(), &UdpConfig::default()).unwrap();
        let flows = UdpConfig::default().with_flow_ports(2);
        let with_flows = UdpTransport::bind((own, 8286).into(), &flows).unwrap();
        let handed_over = UdpSocket::bind((own, 8287)).unwrap();
        // `UDP_NO_CHECK6_TX` of linux/udp.h.
        let (level, number) = if is_ipv6 { (libc::SOL_UDP, 101) } else { (libc::SOL_SOCKET, libc::SO_NO_CHECK) };
        syscall::set_raw_option(handed_over.as_fd(), level, number, &1_i32.to_ne_bytes()).unwrap();
        handed_over.send_to(b"unchecked", to).unwrap();
        assert_eq!(checksum(&next()), 0, "the option does what it is for");
        let taken_over = UdpTransport::from_socket(handed_over, UdpOffload::ALL).unwrap();

        let contents: Vec<u8> = (0..=255).cycle().take(3001).collect();
        for (transport, port) in [(&made, Some(8285)), (&with_flows, None), (&taken_over, Some(8287))] {
            let from = SocketAddr::new(own, port.unwrap_or(0));
            let zero = with_sum_of_zero(from, to);
            let payloads = [&[][..], &contents[..1], &contents[..1399], &contents[..1400], &zero];
            let single = payloads.map(|payload| Transmit::datagram(to, payload));
            let gso_batch = Transmit { segment_size: NonZeroUsize::new(1000), ..Transmit::datagram(to, &contents) };
            for flow in 0..2 {
                let transmits = single.into_iter().chain([gso_batch]).map(|transmit| Transmit { flow, ..transmit });
                transport.send_batch(&transmits.collect::<Vec<_>>(), 0).unwrap();
                let lengths = [0, 1, 1399, 1400, 2, 1000, 1000, 1000, 1];
                for (number, len) in lengths.into_iter().enumerate() {
                    let packet = next();
                    assert_eq!(parts(&packet).1.len(), 8 + len, "packet {number} of {from}");
                    assert_eq!((checksum(&packet) == 0, sum(&packet)), (false, 0xffff), "packet {number} of {from}");
                    assert!(number != 4 || port.is_none() || checksum(&packet) == 0xffff, "a sum of zero of {from}");
                }
            }
            // Before 6.11 a device that computes no checksums accepts no batches (EIO, `udp_send_skb` in
            // net/ipv4/udp.c).
            let refused = u64::from(kernel_version() < (6, 11));
            assert_eq!(transport.gso_fallbacks(), refused, "the batch was one");
        }
    });
}
