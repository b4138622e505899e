//! ICMP "fragmentation needed" errors about UDP datagrams (RFC 1191).

use core::net::{Ipv4Addr, SocketAddrV4};

use super::icmpv4::{FRAGMENTATION_NEEDED, ICMP_HEADER_LEN};
use super::ipv4::{HEADER_LEN, Ipv4Packet, field, flag};
use super::{checksum, protocol};

/// An ICMP error "fragmentation needed and DF set" (RFC 792, type 3 code 4) about a UDP datagram.
///
/// Anybody who guesses four numbers can send one. Check that the datagram is your own and was too long, as
/// [`PathMtus::handle_icmp`](crate::forward::PathMtus::handle_icmp) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramTooBig {
    /// The MTU of the next hop, in bytes; 0 from routers older than RFC 1191.
    pub mtu: u16,
    /// The source of the datagram.
    pub source: SocketAddrV4,
    /// The destination of the datagram.
    pub destination: SocketAddrV4,
    /// The total length in the quoted IP header, in bytes. A kernel that received a whole GSO batch quotes the length
    /// of the batch.
    pub len: u16,
    /// The first bytes of the datagram's payload. Many routers quote none of it.
    pub inner: Option<[u8; HEADER_LEN]>,
}

impl DatagramTooBig {
    /// Parses an IPv4 packet with header, as a raw ICMP socket delivers it (raw(7)).
    ///
    /// Returns `None` if the packet is invalid or of another kind, or if the quote does not begin with a UDP datagram
    /// with DF set. A router must quote only the IP header and 8 bytes (RFC 792). The lengths and checksums of the
    /// quote are not verified.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let packet = Ipv4Packet::parse(packet).ok()?;
        let message = packet.payload();
        let (&[kind, code, _, _, _, _, m0, m1], quote) = message.split_first_chunk::<ICMP_HEADER_LEN>()?;
        let sound = packet.header().protocol() == protocol::ICMP && checksum::sum(message) == 0xffff;
        if !sound || [kind, code] != FRAGMENTATION_NEEDED {
            return None;
        }
        let header = quote.first_chunk::<HEADER_LEN>()?;
        let [version_and_length, ..] = *header;
        let header_len = usize::from(version_and_length & 0x0f) * 4;
        let fragment = u16::from_be_bytes([header[field::FRAGMENT], header[field::FRAGMENT + 1]]);
        let whole = fragment & flag::DONT_FRAGMENT != 0 && fragment & (flag::MORE_FRAGMENTS | flag::OFFSET) == 0;
        if version_and_length >> 4 != 4 || header_len < HEADER_LEN || !whole || header[field::PROTOCOL] != protocol::UDP
        {
            return None;
        }
        let (&[s0, s1, d0, d1, _, _, _, _], contents) = quote.get(header_len..)?.split_first_chunk()?;
        let &[_, _, l0, l1, .., a, b, c, d, e, f, g, h] = header;
        Some(Self {
            mtu: u16::from_be_bytes([m0, m1]),
            source: SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([s0, s1])),
            destination: SocketAddrV4::new(Ipv4Addr::new(e, f, g, h), u16::from_be_bytes([d0, d1])),
            len: u16::from_be_bytes([l0, l1]),
            inner: contents.first_chunk().copied(),
        })
    }
}
