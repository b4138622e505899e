//! TCP and UDP headers, as far as segmentation and coalescing need them (RFC 9293 section 3.1, RFC 768).
//!
//! As with [`Ipv4Packet`](super::ipv4::Ipv4Packet), parsing checks the header and the fixed part is stored by value.

use super::checksum;

/// Bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;

/// Bytes of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;

/// Offsets of the TCP fields that segmentation and coalescing write, in bytes from the start of the header.
pub mod tcp_field {
    /// Sequence number, four bytes.
    pub const SEQUENCE: usize = 4;
    /// The low eight control bits, see [`tcp_flag`](super::tcp_flag).
    pub const FLAGS: usize = 13;
    /// Checksum, two bytes.
    pub const CHECKSUM: usize = 16;
}

/// Offsets of the UDP fields that segmentation and coalescing write, in bytes from the start of the header.
pub mod udp_field {
    /// Length of header and payload, two bytes.
    pub const LENGTH: usize = 4;
    /// Checksum, two bytes.
    pub const CHECKSUM: usize = 6;
}

/// The control bits of a TCP header (RFC 9293 3.1, RFC 3168 6.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// The first segment of a connection.
    pub const SYN: u8 = 0x02;
    /// The connection is reset.
    pub const RST: u8 = 0x04;
    /// The receiver should deliver its data to the application.
    pub const PSH: u8 = 0x08;
    /// The urgent pointer is valid.
    pub const URG: u8 = 0x20;
    /// The sender has reduced its congestion window.
    pub const CWR: u8 = 0x80;
}

/// The reason why bytes are not a valid TCP or UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Fewer bytes than the shortest header of the protocol.
    #[error("{have} bytes are fewer than the {need} of the shortest header")]
    TooShort {
        /// Bytes after the IP header.
        have: usize,
        /// Bytes of the shortest header.
        need: usize,
    },
    /// The data offset of TCP is below 5 or exceeds the payload.
    #[error("a TCP header of {words} words is below the minimum of 5 or exceeds the {have} bytes received")]
    BadDataOffset {
        /// The data offset field, in 32-bit words.
        words: u8,
        /// Bytes after the IP header.
        have: usize,
    },
    /// The length of UDP differs from that of the IP payload.
    #[error("UDP length {length} differs from the {have} bytes of IP payload")]
    BadUdpLength {
        /// The length field, in bytes.
        length: u16,
        /// Bytes after the IP header.
        have: usize,
    },
}

/// The checked fixed part of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    ports: u32,
    sequence: u32,
    acknowledgment: u32,
    /// Data offset, control bits, window.
    control: u32,
    /// Checksum, urgent pointer.
    rest: u32,
}

impl TcpHeader {
    /// Parses the header at the front of an IP payload.
    ///
    /// # Errors
    /// The header does not fit into the payload.
    #[inline]
    pub fn parse(payload: &[u8]) -> Result<Self, TransportError> {
        let have = payload.len();
        let Some(words) = payload.as_chunks().0.first_chunk() else {
            return Err(TransportError::TooShort { have, need: TCP_HEADER_LEN });
        };
        let [ports, sequence, acknowledgment, control, rest] = words.map(u32::from_be_bytes);
        let header = Self { ports, sequence, acknowledgment, control, rest };
        match header.header_len() {
            TCP_HEADER_LEN.. if header.header_len() <= have => Ok(header),
            len => Err(TransportError::BadDataOffset { words: (len / 4) as u8, have }),
        }
    }

    /// Returns the header length in bytes, options included: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        (self.control >> 28) as usize * 4
    }

    /// Returns the source port in the high half and the destination port in the low half.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> u32 {
        self.ports
    }

    /// Returns the sequence number of the first payload byte.
    #[must_use]
    #[inline]
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Returns the sequence number that the sender expects next.
    #[must_use]
    #[inline]
    pub fn acknowledgment(&self) -> u32 {
        self.acknowledgment
    }

    /// Returns data offset, reserved bits, control bits and window as one word: `tcp_flag_word` in Linux.
    #[must_use]
    #[inline]
    pub fn control(&self) -> u32 {
        self.control
    }

    /// Returns the low eight control bits, see [`tcp_flag`].
    #[must_use]
    #[inline]
    pub fn flags(&self) -> u8 {
        (self.control >> 16) as u8
    }

    /// Returns the checksum of the packet.
    #[must_use]
    #[inline]
    pub fn checksum(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// Returns the urgent pointer.
    #[must_use]
    #[inline]
    pub fn urgent_pointer(&self) -> u16 {
        self.rest as u16
    }
}

/// The checked header of a UDP datagram whose length equals that of the IP payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHeader {
    ports: u32,
    /// Length, checksum.
    rest: u32,
}

impl UdpHeader {
    /// Parses the header at the front of an IP payload.
    ///
    /// # Errors
    /// The header does not fit, or its length differs from the payload's.
    #[inline]
    pub fn parse(payload: &[u8]) -> Result<Self, TransportError> {
        let have = payload.len();
        let Some(&[ports, rest]) = payload.as_chunks().0.first_chunk() else {
            return Err(TransportError::TooShort { have, need: UDP_HEADER_LEN });
        };
        let header = Self { ports: u32::from_be_bytes(ports), rest: u32::from_be_bytes(rest) };
        let length = (header.rest >> 16) as u16;
        if usize::from(length) != have {
            return Err(TransportError::BadUdpLength { length, have });
        }
        Ok(header)
    }

    /// Returns the source port in the high half and the destination port in the low half.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> u32 {
        self.ports
    }

    /// Returns the checksum of the packet; 0 means that the sender computed none.
    #[must_use]
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.rest as u16
    }
}

/// Returns the sum of the pseudo header of TCP and UDP (RFC 9293 section 3.1): addresses, protocol, and the length of
/// header and payload in bytes.
#[must_use]
#[inline]
pub fn pseudo_header_sum(source: u32, destination: u32, protocol: u8, len: u16) -> u16 {
    checksum::sum_of_words([source, destination, protocol.into(), len.into()])
}

/// Returns the sum of the pseudo header of IPv6 (RFC 8200 section 8.1): addresses, length of the upper-layer packet in
/// bytes, and the protocol of the upper layer.
///
/// With a routing header, `destination` is the address of the final destination.
#[must_use]
#[inline]
pub fn pseudo_header_sum_v6(source: u128, destination: u128, protocol: u8, len: u32) -> u16 {
    let words =
        |address: u128| [(address >> 96) as u32, (address >> 64) as u32, (address >> 32) as u32, address as u32];
    let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (words(source), words(destination));
    checksum::sum_of_words([s0, s1, s2, s3, d0, d1, d2, d3, len, protocol.into()])
}
