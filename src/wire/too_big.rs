//! What a router says about a datagram that was too long for its next link (RFC 1191).

use core::net::{Ipv4Addr, SocketAddrV4};

use super::icmpv4::{FRAGMENTATION_NEEDED, ICMP_HEADER_LEN};
use super::ipv4::{HEADER_LEN, Ipv4Packet, field, flag};
use super::{checksum, protocol};

/// An ICMP error "fragmentation needed and DF set" (RFC 792, type 3 code 4), and which UDP datagram it is about.
///
/// Anybody who can guess four numbers can send one. Check that the datagram is one of your own and was too long, as
/// [`PathMtus::handle_icmp`](crate::forward::PathMtus::handle_icmp) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramTooBig {
    /// The longest packet that would have passed, in bytes; 0 from routers that are older than RFC 1191.
    pub mtu: u16,
    /// Whose datagram it was.
    pub source: SocketAddrV4,
    /// Whom it was for.
    pub destination: SocketAddrV4,
    /// Bytes of the datagram with all its headers, as the quoted IP header says: of the whole GSO batch, from a kernel that got one.
    pub len: u16,
    /// The front of the datagram's contents, of which many routers quote nothing.
    pub inner: Option<[u8; HEADER_LEN]>,
}

impl DatagramTooBig {
    /// Reads an IPv4 packet, as a raw ICMP socket gives it: header included (raw(7)).
    ///
    /// `None` if it is damaged or anything else, or if its quote is not the front of a UDP datagram with DF set. Routers owe no
    /// more of that than the IP header and 8 bytes (RFC 792). Lengths and checksums in it are not verified.
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
