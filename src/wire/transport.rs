//! TCP and UDP headers (RFC 9293 3.1, RFC 768), as far as packets are cut and joined by them.
//!
//! As with [`Ipv4Packet`](super::ipv4::Ipv4Packet), the constructor is the check and the fixed part is kept by value.

use super::checksum;

/// Bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;

/// Bytes of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;

/// Where the fields are that are written when a packet is cut or joined, in bytes from the begin of the TCP header.
pub mod tcp_field {
    /// Sequence number, four bytes.
    pub const SEQUENCE: usize = 4;
    /// The low eight control bits, see [`tcp_flag`](super::tcp_flag).
    pub const FLAGS: usize = 13;
    /// Checksum, two bytes.
    pub const CHECKSUM: usize = 16;
}

/// Likewise from the begin of the UDP header.
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
    /// The connection is broken off.
    pub const RST: u8 = 0x04;
    /// The receiver should hand on what it has.
    pub const PSH: u8 = 0x08;
    /// The urgent pointer means something.
    pub const URG: u8 = 0x20;
    /// The sender has reduced its congestion window.
    pub const CWR: u8 = 0x80;
}

/// Why bytes are no TCP or UDP header that fits what was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Fewer bytes than the shortest header of the protocol.
    #[error("{have} bytes are fewer than the {need} of the shortest header")]
    TooShort {
        /// Bytes behind the IP header.
        have: usize,
        /// Bytes of the shortest header.
        need: usize,
    },
    /// TCP's data offset is below 5, or leads past the end.
    #[error("a TCP header of {words} words does not fit into 5 words to {have} bytes")]
    BadDataOffset {
        /// The data offset field, in 32-bit words.
        words: u8,
        /// Bytes behind the IP header.
        have: usize,
    },
    /// UDP's length is not that of the IP payload.
    #[error("a UDP length of {length} in {have} bytes of IP payload")]
    BadUdpLength {
        /// The length field, in bytes.
        length: u16,
        /// Bytes behind the IP header.
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
    /// The header at the front of an IP payload.
    ///
    /// # Errors
    /// If it does not fit into the payload.
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

    /// Header length in bytes, options included: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        (self.control >> 28) as usize * 4
    }

    /// Source and destination port, in the high and the low half.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> u32 {
        self.ports
    }

    /// The number of the first byte of payload.
    #[must_use]
    #[inline]
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// The number of the next byte the sender awaits.
    #[must_use]
    #[inline]
    pub fn acknowledgment(&self) -> u32 {
        self.acknowledgment
    }

    /// Data offset, reserved bits, control bits and window, as one word: Linux's `tcp_flag_word`.
    #[must_use]
    #[inline]
    pub fn control(&self) -> u32 {
        self.control
    }

    /// The low eight control bits, see [`tcp_flag`].
    #[must_use]
    #[inline]
    pub fn flags(&self) -> u8 {
        (self.control >> 16) as u8
    }

    /// The checksum as it stands in the packet.
    #[must_use]
    #[inline]
    pub fn checksum(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// The urgent pointer.
    #[must_use]
    #[inline]
    pub fn urgent_pointer(&self) -> u16 {
        self.rest as u16
    }
}

/// The checked header of a UDP datagram whose length is that of the IP payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpHeader {
    ports: u32,
    /// Length, checksum.
    rest: u32,
}

impl UdpHeader {
    /// The header at the front of an IP payload.
    ///
    /// # Errors
    /// If it does not fit, or its length is another than the payload's.
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

    /// Source and destination port, in the high and the low half.
    #[must_use]
    #[inline]
    pub fn ports(&self) -> u32 {
        self.ports
    }

    /// The checksum as it stands in the packet; 0 means that the sender computed none.
    #[must_use]
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.rest as u16
    }
}

/// The sum of the pseudo header that TCP and UDP put before what they sum (RFC 9293 3.1): addresses as numbers, protocol, and
/// the bytes of header and payload.
#[must_use]
#[inline]
pub fn pseudo_header_sum(source: u32, destination: u32, protocol: u8, len: u16) -> u16 {
    checksum::sum_of_words([source, destination, protocol.into(), len.into()])
}
