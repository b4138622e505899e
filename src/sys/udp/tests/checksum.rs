//! R58: the UDP checksum of each outer packet, as it is on the wire.

use super::*;
use alloc::vec;
use core::net::SocketAddrV4;

use testbed::kernel_version;

use crate::sys::{Tun, TunConfig, TunOffload};

/// Returns the ones' complement sum of RFC 768 over the pseudo header and a UDP datagram, 16 bits at a time. It is
/// `0xffff` with a right checksum.
fn sum(packet: &[u8]) -> u16 {
    let (addresses, datagram) = (&packet[12..20], &packet[20..]);
    let pseudo = [&[0, 17][..], &u16::try_from(datagram.len()).unwrap().to_be_bytes()].concat();
    let words = [addresses, &pseudo, datagram].into_iter().flat_map(|part| part.chunks(2));
    let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// Returns the checksum in a packet.
fn checksum(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[26], packet[27]])
}

/// Returns two bytes with which the sum of a datagram between these addresses is 0. RFC 768 writes that as `0xffff`.
fn with_sum_of_zero(from: SocketAddrV4, to: SocketAddrV4) -> [u8; 2] {
    let mut packet = vec![0; 30];
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..26].copy_from_slice(&10_u16.to_be_bytes());
    (!sum(&packet)).to_be_bytes()
}

/// The wire is a TUN device without offloads, so that the kernel completes every checksum before the test reads the
/// packet. The test computes the sum. The senders are sockets that were created, taken over with `SO_NO_CHECK` set,
/// and those of flow ports. The payloads are empty, odd and even, have a sum of zero, or form a GSO batch.
#[test]
fn r58_every_outer_packet_on_the_wire_has_a_right_checksum() {
    let namespace = testbed::Namespace::new().expect("these tests make network namespaces, and need root");
    namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    namespace.enter(|| {
        let wire = Tun::open(&TunConfig { name: "wire0".into(), offload: TunOffload::NONE }).unwrap();
        namespace.add_address("wire0", "10.1.0.1/24".parse().unwrap()).unwrap();
        namespace.set_up("wire0").unwrap();
        let (own, to) = (Ipv4Addr::new(10, 1, 0, 1), SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 2), 8285));
        let made = UdpTransport::bind((own, 8285).into(), &UdpConfig::default()).unwrap();
        let flows = UdpConfig { flow_ports: 2, ..UdpConfig::default() };
        let with_flows = UdpTransport::bind((own, 8286).into(), &flows).unwrap();
        let handed_over = UdpSocket::bind((own, 8287)).unwrap();
        syscall::set_socket_option(handed_over.as_fd(), SocketOption::NoChecksum, 1).unwrap();
        handed_over.send_to(b"unchecked", to).unwrap();
        let mut buffer = vec![0; 2048];
        assert_eq!(wire.recv(&mut buffer).unwrap().len, 37);
        assert_eq!(checksum(&buffer), 0, "the option does what it is for");
        let taken_over = UdpTransport::from_socket(handed_over, UdpOffload::ALL).unwrap();

        let contents: Vec<u8> = (0..=255).cycle().take(3001).collect();
        for (transport, port) in [(&made, Some(8285)), (&with_flows, None), (&taken_over, Some(8287))] {
            let from = SocketAddrV4::new(own, port.unwrap_or(0));
            let zero = with_sum_of_zero(from, to);
            let payloads = [&[][..], &contents[..1], &contents[..1399], &contents[..1400], &zero];
            let single = payloads.map(|payload| Transmit::datagram(to.into(), payload));
            let gso_batch =
                Transmit { segment_size: NonZeroUsize::new(1000), ..Transmit::datagram(to.into(), &contents) };
            for flow in 0..2 {
                let transmits = single.into_iter().chain([gso_batch]).map(|transmit| Transmit { flow, ..transmit });
                transport.send_batch(&transmits.collect::<Vec<_>>(), 0).unwrap();
                let lengths = [0, 1, 1399, 1400, 2, 1000, 1000, 1000, 1];
                for (number, len) in lengths.into_iter().enumerate() {
                    let meta = wire.recv(&mut buffer).unwrap();
                    let packet = &buffer[..meta.len];
                    assert_eq!((packet[9], packet.len()), (17, 28 + len), "packet {number} of {from}");
                    assert_eq!((checksum(packet) == 0, sum(packet)), (false, 0xffff), "packet {number} of {from}");
                    assert!(number != 4 || port.is_none() || checksum(packet) == 0xffff, "a sum of zero of {from}");
                }
            }
            // Before 6.11 a device that computes no checksums accepts no batches (EIO, `udp_send_skb` in
            // net/ipv4/udp.c).
            let refused = u64::from(kernel_version() < (6, 11));
            assert_eq!(transport.gso_fallbacks(), refused, "the batch was one");
        }
    });
}
