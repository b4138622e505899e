//! ICMP errors that a UDP datagram was too big for a link: "fragmentation needed" (RFC 1191) and "packet too big" (RFC
//! 8201).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::icmpv4::{FRAGMENTATION_NEEDED, ICMP_HEADER_LEN};
use super::ipv4::{HEADER_LEN, Ipv4Packet, field, flag};
use super::{checksum, protocol};

/// The length of an IPv6 header in bytes (RFC 8200 section 3).
const IPV6_HEADER_LEN: usize = 40;

/// The type of the ICMPv6 error "packet too big" (RFC 4443 section 3.2).
const PACKET_TOO_BIG: u8 = 2;

/// An ICMP error about a UDP datagram that was too big for a link: "fragmentation needed and DF set" (RFC 792, type 3
/// code 4), or "packet too big" of ICMPv6 (RFC 4443, type 2).
///
/// Anybody who guesses four numbers can send one. Check that the datagram is your own and was too long, as
/// [`PathMtus::handle_icmp`](crate::forward::PathMtus::handle_icmp) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramTooBig {
    /// The MTU of the next hop, in bytes; 0 from routers older than RFC 1191. ICMPv6 has 32 bits for it: what exceeds
    /// 65,535 is 65,535.
    pub mtu: u16,
    /// The source of the datagram.
    pub source: SocketAddr,
    /// The destination of the datagram, of the same family. A report about a link-local address has no scope.
    pub destination: SocketAddr,
    /// The length of the datagram with its IP header, in bytes, from the quoted header. A kernel that received a whole
    /// GSO batch quotes the length of the batch.
    pub len: u16,
    /// The header of the inner packet, if the error quotes all of it. Many IPv4 routers quote none of it.
    pub inner: Option<QuotedHeader>,
}

/// The first bytes of a datagram's payload, which should be the header of an inner packet. Nothing but its version is
/// checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotedHeader {
    /// Any other version than 6.
    Ipv4([u8; HEADER_LEN]),
    /// Version 6.
    Ipv6([u8; IPV6_HEADER_LEN]),
}

impl QuotedHeader {
    /// Returns the header at the beginning of a payload, or `None` if it is cut off.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        match payload.first()? >> 4 {
            6 => payload.first_chunk().copied().map(Self::Ipv6),
            _ => payload.first_chunk().copied().map(Self::Ipv4),
        }
    }
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
        let &[_, _, l0, l1, .., a, b, c, d, e, f, g, h] = header;
        let addresses = [Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::new(e, f, g, h).into()];
        let len = u16::from_be_bytes([l0, l1]);
        Self::quoting(u16::from_be_bytes([m0, m1]), addresses, len, quote.get(header_len..)?)
    }

    /// Parses an ICMPv6 message without IPv6 header, as a raw ICMPv6 socket delivers it (RFC 3542 section 3). Such a
    /// socket delivers no message with a wrong checksum, so that it is not verified here.
    ///
    /// Returns `None` if the message is cut off or of another kind, or if the quote does not begin with a UDP datagram.
    /// A UDP header behind extension headers does not count, because the datagrams of this host have none. The code is
    /// ignored (RFC 4443 section 3.2).
    #[must_use]
    pub fn parse_icmpv6(message: &[u8]) -> Option<Self> {
        let (&[kind, _, _, _, m0, m1, m2, m3], quote) = message.split_first_chunk::<ICMP_HEADER_LEN>()?;
        let (header, datagram) = quote.split_first_chunk::<IPV6_HEADER_LEN>()?;
        let &[version, _, _, _, l0, l1, next_header, _, ref addresses @ ..] = header;
        if kind != PACKET_TOO_BIG || version >> 4 != 6 || next_header != protocol::UDP {
            return None;
        }
        let (&[source, destination], _) = addresses.as_chunks::<16>().0.split_first_chunk()?;
        let addresses = [source, destination].map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
        let len = u16::from_be_bytes([l0, l1]).saturating_add(IPV6_HEADER_LEN as u16);
        let mtu = u16::try_from(u32::from_be_bytes([m0, m1, m2, m3])).unwrap_or(u16::MAX);
        Self::quoting(mtu, addresses, len, datagram)
    }

    /// Returns the report about a datagram that begins with a UDP header.
    fn quoting(mtu: u16, addresses: [IpAddr; 2], len: u16, datagram: &[u8]) -> Option<Self> {
        let (&[s0, s1, d0, d1, _, _, _, _], payload) = datagram.split_first_chunk()?;
        let [source, destination] = addresses;
        Some(Self {
            mtu,
            source: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
            destination: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
            len,
            inner: QuotedHeader::parse(payload),
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// Returns a message about a datagram of `len` bytes from port 8285 of fd00::2 to port 9 of fd00::3.
    fn message(mtu: u32, len: u16, payload: &[u8]) -> Vec<u8> {
        let mut message = [&[2, 0, 0, 0][..], &mtu.to_be_bytes(), &[0x60, 3, 0, 1]].concat();
        message.extend((len - 40).to_be_bytes());
        message.extend([17, 64]);
        for last in [2, 3] {
            message.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).octets());
        }
        message.extend([0x20, 0x5d, 0, 9, 0, 0, 0, 0]);
        message.extend(payload);
        message
    }

    #[test]
    fn v29_an_icmpv6_report_says_who_sent_what_to_whom() {
        let (v4, v6) = ([0x45; 20], [0x60; 40]);
        for (mtu, reported) in [(1280, 1280), (0, 0), (65_535, 65_535), (65_536, 65_535), (u32::MAX, 65_535)] {
            for (payload, inner) in [
                (&v6[..], Some(QuotedHeader::Ipv6(v6))),
                (&[&v6[..], b"more"].concat(), Some(QuotedHeader::Ipv6(v6))),
                (&v6[..39], None),
                (&v4, Some(QuotedHeader::Ipv4(v4))),
                (&v4[..19], None),
                (&[], None),
            ] {
                let expected = DatagramTooBig {
                    mtu: reported,
                    source: "[fd00::2]:8285".parse().unwrap(),
                    destination: "[fd00::3]:9".parse().unwrap(),
                    len: 1500,
                    inner,
                };
                assert_eq!(DatagramTooBig::parse_icmpv6(&message(mtu, 1500, payload)), Some(expected));
            }
        }
    }

    #[test]
    fn v29_other_icmpv6_messages_are_no_reports() {
        let sound = message(1280, 1500, &[0x60; 40]);
        for len in 0..8 + 40 + 8 {
            assert_eq!(DatagramTooBig::parse_icmpv6(&sound[..len]), None, "{len} bytes");
        }
        let with = |at: usize, value| {
            let mut changed = sound.clone();
            changed[at] = value;
            DatagramTooBig::parse_icmpv6(&changed)
        };
        for kind in (0..=255).filter(|kind| *kind != 2) {
            assert_eq!(with(0, kind), None, "type {kind}");
        }
        for version in (0..=255).filter(|byte| byte >> 4 != 6) {
            assert_eq!(with(8, version), None, "first byte {version}");
        }
        for next_header in (0..=255).filter(|number| *number != 17) {
            assert_eq!(with(14, next_header), None, "next header {next_header}");
        }
        for at in (1..4).chain(9..12).chain([15]) {
            assert!(with(at, 0xff).is_some(), "byte {at}");
        }
    }
}
