//! IPv4 packets whose constructor is the check (RFC 791, RFC 1812 5.2.2).
//!
//! [`Ipv4Packet::parse`] is the only way to a packet, so a value of the type is proof that its header was checked: version,
//! lengths, checksum and options. The twenty fixed bytes of the header are kept by value, which is why no accessor can fail.

use core::net::Ipv4Addr;

use super::checksum;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

/// The smallest MTU, in bytes, that a path of IPv4 may have (RFC 791 3.2).
pub const MTU_MIN: u16 = 68;

mod field {
    use core::ops::Range;

    pub(super) const VERSION_IHL: usize = 0;
    pub(super) const TYPE_OF_SERVICE: usize = 1;
    pub(super) const TOTAL_LENGTH: Range<usize> = 2..4;
    pub(super) const IDENTIFICATION: Range<usize> = 4..6;
    pub(super) const FLAGS_OFFSET: Range<usize> = 6..8;
    pub(super) const TTL: usize = 8;
    pub(super) const PROTOCOL: usize = 9;
    pub(super) const CHECKSUM: Range<usize> = 10..12;
    pub(super) const SOURCE: Range<usize> = 12..16;
    pub(super) const DESTINATION: Range<usize> = 16..20;
}

mod flag {
    pub(super) const DONT_FRAGMENT: u16 = 0x4000;
    pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
    pub(super) const OFFSET: u16 = 0x1fff;
}

mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OPERATION: u8 = 1;
    pub(super) const LOOSE_SOURCE_ROUTE: u8 = 131;
    pub(super) const STRICT_SOURCE_ROUTE: u8 = 137;
}

/// Why bytes are not a sound IPv4 packet. The first check that fails, in the order of the variants, gives the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Fewer bytes than the shortest header.
    #[error("{have} bytes are fewer than the {HEADER_LEN} of the shortest IPv4 header")]
    TooShort {
        /// Bytes received.
        have: usize,
    },
    /// Version 6: a sound packet of a protocol this view does not read.
    #[error("the packet is IPv6")]
    Ipv6,
    /// Neither version 4 nor 6.
    #[error("IP version {version} is neither 4 nor 6")]
    BadVersion {
        /// The version field.
        version: u8,
    },
    /// IHL below 5.
    #[error("a header length of {words} words is below the least of 5")]
    BadHeaderLength {
        /// The IHL field, in 32-bit words.
        words: u8,
    },
    /// The header says it is longer than what was received.
    #[error("a header of {header} bytes exceeds the {have} received")]
    HeaderTruncated {
        /// IHL in bytes.
        header: usize,
        /// Bytes received.
        have: usize,
    },
    /// The packet says it is shorter than its own header.
    #[error("total length {total} is less than the header's {header} bytes")]
    BadTotalLength {
        /// The total length field.
        total: u16,
        /// IHL in bytes.
        header: usize,
    },
    /// The packet says it is longer than what was received.
    #[error("total length {total} exceeds the {have} bytes received")]
    Truncated {
        /// The total length field.
        total: u16,
        /// Bytes received.
        have: usize,
    },
    /// The header's words do not sum to `0xFFFF`.
    #[error("the header sums to {sum:#06x} instead of 0xffff")]
    BadChecksum {
        /// The ones' complement sum of the header.
        sum: u16,
    },
    /// An option's length is 0, 1 or leads past the header.
    #[error("the option at byte {at} has no length that fits a header of {header} bytes")]
    BadOption {
        /// Where the option begins.
        at: usize,
        /// IHL in bytes.
        header: usize,
    },
}

/// The checked header of an IPv4 packet, by value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Header {
    fixed: [u8; HEADER_LEN],
    source_route: bool,
}

impl Ipv4Header {
    /// Checks everything that can be wrong with a header at the front of `bytes`, in the order of [`HeaderError`].
    ///
    /// Always inlined, as is all on the way to a verdict: a header that is handed on in registers costs a third less.
    #[inline(always)]
    fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let have = bytes.len();
        let Some(fixed) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(HeaderError::TooShort { have });
        };
        let header = Self { fixed: *fixed, source_route: false };
        match fixed[field::VERSION_IHL] >> 4 {
            4 => {}
            6 => return Err(HeaderError::Ipv6),
            version => return Err(HeaderError::BadVersion { version }),
        }
        let header_len = header.header_len();
        if header_len < HEADER_LEN {
            return Err(HeaderError::BadHeaderLength { words: fixed[field::VERSION_IHL] & 0x0f });
        }
        let Some(whole) = bytes.get(..header_len) else {
            return Err(HeaderError::HeaderTruncated { header: header_len, have });
        };
        let total = header.total_len();
        if usize::from(total) < header_len {
            return Err(HeaderError::BadTotalLength { total, header: header_len });
        }
        if usize::from(total) > have {
            return Err(HeaderError::Truncated { total, have });
        }
        let plain = header_len == HEADER_LEN;
        let sum = if plain { checksum::sum_of_header(fixed) } else { checksum::sum(whole) };
        if sum != 0xffff {
            return Err(HeaderError::BadChecksum { sum });
        }
        let source_route = !plain && options_hold_source_route(whole)?;
        Ok(Self { source_route, ..header })
    }

    /// Header length in bytes, options included: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.fixed[field::VERSION_IHL] & 0x0f) * 4
    }

    /// The type of service byte: DSCP and ECN (RFC 2474, RFC 3168), once precedence and delay, throughput, reliability.
    #[must_use]
    #[inline]
    pub fn type_of_service(&self) -> u8 {
        self.fixed[field::TYPE_OF_SERVICE]
    }

    /// Length of the packet in bytes, header included.
    #[must_use]
    #[inline]
    pub fn total_len(&self) -> u16 {
        self.word(field::TOTAL_LENGTH)
    }

    /// The identification that fragments of one packet share.
    #[must_use]
    #[inline]
    pub fn identification(&self) -> u16 {
        self.word(field::IDENTIFICATION)
    }

    /// Whether routers must not fragment this packet.
    #[must_use]
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.word(field::FLAGS_OFFSET) & flag::DONT_FRAGMENT != 0
    }

    /// Whether this is a fragment and not the last one.
    #[must_use]
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.word(field::FLAGS_OFFSET) & flag::MORE_FRAGMENTS != 0
    }

    /// Where this fragment begins in the whole packet, in units of 8 bytes.
    #[must_use]
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        self.word(field::FLAGS_OFFSET) & flag::OFFSET
    }

    /// Time to live, in hops.
    #[must_use]
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.fixed[field::TTL]
    }

    /// The protocol of the payload, see [`protocol`](super::protocol).
    #[must_use]
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.fixed[field::PROTOCOL]
    }

    /// The header checksum as it stands in the packet.
    #[must_use]
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.word(field::CHECKSUM)
    }

    /// Where the packet says it comes from.
    #[must_use]
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        self.address(field::SOURCE)
    }

    /// Where the packet wants to go.
    #[must_use]
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        self.address(field::DESTINATION)
    }

    /// Whether a loose or strict source route is among the options (RFC 791 3.1).
    #[must_use]
    #[inline]
    pub fn has_source_route(&self) -> bool {
        self.source_route
    }

    #[inline]
    fn set_ttl(&mut self, ttl: u8) {
        let word = |ttl: u8| u16::from_be_bytes([ttl, self.fixed[field::PROTOCOL]]);
        let checksum = checksum::update(self.checksum(), word(self.ttl()), word(ttl));
        self.fixed[field::TTL] = ttl;
        [self.fixed[field::CHECKSUM.start], self.fixed[field::CHECKSUM.start + 1]] = checksum.to_be_bytes();
    }

    #[inline]
    fn word(&self, at: core::ops::Range<usize>) -> u16 {
        match self.fixed.get(at) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => 0,
        }
    }

    #[inline]
    fn address(&self, at: core::ops::Range<usize>) -> Ipv4Addr {
        match self.fixed.get(at) {
            Some(&[a, b, c, d]) => Ipv4Addr::new(a, b, c, d),
            _ => Ipv4Addr::UNSPECIFIED,
        }
    }
}

impl core::fmt::Debug for Ipv4Header {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Ipv4Header")
            .field("source", &self.source())
            .field("destination", &self.destination())
            .field("protocol", &self.protocol())
            .field("ttl", &self.ttl())
            .field("total_len", &self.total_len())
            .finish_non_exhaustive()
    }
}

/// A checked IPv4 packet: exactly its total length, no trailer.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Packet<'a> {
    header: Ipv4Header,
    bytes: &'a [u8],
}

impl<'a> Ipv4Packet<'a> {
    /// The packet at the front of `bytes`; what follows its total length is left out.
    ///
    /// # Errors
    /// The first thing wrong with the header, see [`HeaderError`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HeaderError> {
        let header = Ipv4Header::parse(bytes)?;
        let total = header.total_len();
        match bytes.get(..usize::from(total)) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(HeaderError::Truncated { total, have: bytes.len() }),
        }
    }

    /// The checked header.
    #[must_use]
    #[inline]
    pub fn header(&self) -> &Ipv4Header {
        &self.header
    }

    /// The whole packet.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// What the header carries.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.header.header_len()..).unwrap_or_default()
    }
}

/// A checked IPv4 packet that may be changed in the one way a forwarder changes packets: its TTL, checksum included.
#[derive(Debug)]
pub struct Ipv4PacketMut<'a> {
    header: Ipv4Header,
    bytes: &'a mut [u8],
}

impl<'a> Ipv4PacketMut<'a> {
    /// The packet at the front of `bytes`; what follows its total length is left out.
    ///
    /// # Errors
    /// The first thing wrong with the header, see [`HeaderError`].
    #[inline(always)]
    pub fn parse(bytes: &'a mut [u8]) -> Result<Self, HeaderError> {
        let header = Ipv4Header::parse(bytes)?;
        let (total, have) = (header.total_len(), bytes.len());
        match bytes.get_mut(..usize::from(total)) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(HeaderError::Truncated { total, have }),
        }
    }

    /// The checked header as it is now.
    #[must_use]
    #[inline]
    pub fn header(&self) -> &Ipv4Header {
        &self.header
    }

    /// What the header carries.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.header.header_len()..).unwrap_or_default()
    }

    /// Writes `ttl` and patches the checksum (RFC 1624); every other byte stays.
    #[inline]
    pub fn set_ttl(&mut self, ttl: u8) {
        self.header.set_ttl(ttl);
        // Only what changed: reading the whole header back while these bytes are on their way to memory would stall.
        if let Some(fixed) = self.bytes.first_chunk_mut::<HEADER_LEN>() {
            fixed[field::TTL] = ttl;
            [fixed[field::CHECKSUM.start], fixed[field::CHECKSUM.start + 1]] = self.header.checksum().to_be_bytes();
        }
    }

    /// The packet, from here on unchangeable.
    #[must_use]
    #[inline]
    pub fn freeze(self) -> Ipv4Packet<'a> {
        Ipv4Packet { header: self.header, bytes: self.bytes }
    }

    /// The whole packet.
    #[must_use]
    #[inline]
    pub fn into_bytes(self) -> &'a mut [u8] {
        self.bytes
    }
}

/// Walks the options of a header with IHL above 5: every one must fit (R13). Each step moves at least one byte, so the walk
/// ends within 40.
#[cold]
fn options_hold_source_route(header: &[u8]) -> Result<bool, HeaderError> {
    let mut source_route = false;
    let mut at = HEADER_LEN;
    while let Some(&kind) = header.get(at) {
        at += match kind {
            option::END => break,
            option::NO_OPERATION => 1,
            _ => match header.get(at + 1) {
                Some(&len) if len >= 2 && at + usize::from(len) <= header.len() => usize::from(len),
                _ => return Err(HeaderError::BadOption { at, header: header.len() }),
            },
        };
        source_route |= matches!(kind, option::LOOSE_SOURCE_ROUTE | option::STRICT_SOURCE_ROUTE);
    }
    Ok(source_route)
}
