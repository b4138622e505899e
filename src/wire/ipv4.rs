//! IPv4 packets that are checked when they are parsed (RFC 791, RFC 1812 section 5.2.2).
//!
//! Every [`Ipv4Packet`] comes from [`Ipv4Packet::parse`], so its version, lengths, checksum and options are valid. The
//! fixed part of the header is stored by value, so no accessor can fail.

use core::net::Ipv4Addr;

use super::{Ecn, Fragment, HeaderError, UpperLayer, checksum};

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

pub(super) mod field {
    pub(crate) const TYPE_OF_SERVICE: usize = 1;
    pub(crate) const TOTAL_LEN: usize = 2;
    /// Three flags and the fragment offset in one word.
    pub(crate) const FRAGMENT: usize = 6;
    pub(crate) const TTL: usize = 8;
    pub(crate) const PROTOCOL: usize = 9;
    pub(crate) const CHECKSUM: usize = 10;
}

pub(super) mod flag {
    pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
    pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
    pub(crate) const OFFSET: u16 = 0x1fff;
}

mod option {
    pub(crate) const END: u8 = 0;
    pub(crate) const NO_OPERATION: u8 = 1;
    pub(crate) const LOOSE_SOURCE_ROUTE: u8 = 131;
    pub(crate) const STRICT_SOURCE_ROUTE: u8 = 137;
}

/// The checked header of an IPv4 packet. It stores the header's five words as numbers, so that it is passed in
/// registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Version, header length, type of service, total length.
    lengths: u32,
    /// Identification, flags, fragment offset.
    fragment: u32,
    /// TTL, protocol, checksum.
    hop: u32,
    source: u32,
    destination: u32,
    source_route: bool,
}

impl Ipv4Header {
    /// Checks a header at the front of `bytes`, in the order of [`HeaderError`].
    #[inline(always)]
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        match bytes.first_chunk::<HEADER_LEN>().map(|fixed| fixed[0] >> 4) {
            None | Some(4) => Self::parse_version_4(bytes),
            Some(version) => Err(HeaderError::BadVersion { version, expected: "4" }),
        }
    }

    /// Checks a header as [`parse`](Self::parse) does, if its version is known to be 4.
    ///
    /// It is always inlined, like all functions of the common path: a header passed in registers costs a third less.
    #[inline(always)]
    pub(crate) fn parse_version_4(bytes: &[u8]) -> Result<Self, HeaderError> {
        let have = bytes.len();
        let Some(header) = Self::read(bytes) else { return Err(HeaderError::TooShort { have, need: HEADER_LEN }) };
        let header_len = header.header_len();
        if header_len < HEADER_LEN {
            return Err(HeaderError::BadHeaderLength { words: (header_len / 4) as u8 });
        }
        let Some(whole) = bytes.get(..header_len) else {
            return Err(HeaderError::HeaderTruncated { header: header_len, have });
        };
        let total = header.total_len();
        if usize::from(total) < header_len {
            return Err(HeaderError::BadTotalLength { total, header: header_len });
        }
        if usize::from(total) > have {
            return Err(HeaderError::Truncated { total: total.into(), have });
        }
        let plain = header_len == HEADER_LEN;
        let Self { lengths, fragment, hop, source, destination, source_route: _ } = header;
        let words = [lengths, fragment, hop, source, destination];
        let sum = if plain { checksum::sum_of_words(words) } else { checksum::sum(whole) };
        if sum != 0xffff {
            return Err(HeaderError::BadChecksum { sum });
        }
        let source_route = !plain && options_hold_source_route(whole)?;
        Ok(Self { source_route, ..header })
    }

    /// Reads the fixed part, without any check.
    #[inline(always)]
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let words: &[_; 5] = bytes.as_chunks().0.first_chunk()?;
        let [lengths, fragment, hop, source, destination] = words.map(u32::from_be_bytes);
        Some(Self { lengths, fragment, hop, source, destination, source_route: false })
    }

    /// Returns the header length in bytes, options included: 20 to 60.
    #[must_use]
    #[inline]
    pub fn header_len(&self) -> usize {
        (self.lengths >> 24 & 0x0f) as usize * 4
    }

    /// Returns the type of service byte, which holds DSCP and ECN (RFC 2474, RFC 3168).
    #[must_use]
    #[inline]
    pub fn type_of_service(&self) -> u8 {
        (self.lengths >> 16) as u8
    }

    /// Returns the ECN field (RFC 3168).
    #[must_use]
    #[inline]
    pub fn ecn(&self) -> Ecn {
        Ecn::of(self.type_of_service())
    }

    /// Returns the length of the packet in bytes, header included.
    #[must_use]
    #[inline]
    pub fn total_len(&self) -> u16 {
        self.lengths as u16
    }

    /// Returns the identification, which the fragments of one packet share.
    #[must_use]
    #[inline]
    pub fn identification(&self) -> u16 {
        (self.fragment >> 16) as u16
    }

    /// Returns true if routers must not fragment this packet.
    #[must_use]
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.fragment as u16 & flag::DONT_FRAGMENT != 0
    }

    /// Returns true if this is a fragment and not the last one.
    #[must_use]
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.fragment as u16 & flag::MORE_FRAGMENTS != 0
    }

    /// Returns the offset of this fragment in the whole packet, in units of 8 bytes.
    #[must_use]
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        self.fragment as u16 & flag::OFFSET
    }

    /// Returns the time to live, in hops.
    #[must_use]
    #[inline]
    pub fn ttl(&self) -> u8 {
        (self.hop >> 24) as u8
    }

    /// Returns the protocol of the payload, see [`protocol`](super::protocol).
    #[must_use]
    #[inline]
    pub fn protocol(&self) -> u8 {
        (self.hop >> 16) as u8
    }

    /// Returns the header checksum of the packet.
    #[must_use]
    #[inline]
    pub fn checksum(&self) -> u16 {
        self.hop as u16
    }

    /// Returns the source address.
    #[must_use]
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.source)
    }

    /// Returns the destination address.
    #[must_use]
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.destination)
    }

    /// Returns the upper layer, which begins after the options.
    #[must_use]
    #[inline]
    pub fn upper_layer(&self) -> UpperLayer {
        let (offset, more_fragments) = (self.fragment_offset(), self.more_fragments());
        let fragment = (offset != 0 || more_fragments).then_some(Fragment { offset, more_fragments });
        UpperLayer { protocol: self.protocol(), offset: self.header_len() as u16, fragment }
    }

    /// Returns true if the options contain a loose or strict source route (RFC 791 section 3.1).
    #[must_use]
    #[inline]
    pub fn has_source_route(&self) -> bool {
        self.source_route
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

/// A checked IPv4 packet of exactly its total length, without trailing bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4Packet<'a> {
    header: Ipv4Header,
    bytes: &'a [u8],
}

impl<'a> Ipv4Packet<'a> {
    /// Parses the packet at the front of `bytes` and ignores the bytes after its total length.
    ///
    /// # Errors
    /// The first failed check, see [`HeaderError`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HeaderError> {
        let header = Ipv4Header::parse(bytes)?;
        let total = header.total_len();
        match bytes.get(..usize::from(total)) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(HeaderError::Truncated { total: total.into(), have: bytes.len() }),
        }
    }

    /// Returns the checked header.
    #[must_use]
    #[inline]
    pub fn header(&self) -> &Ipv4Header {
        &self.header
    }

    /// Returns the whole packet.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the bytes after the header.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.header.header_len()..).unwrap_or_default()
    }
}

/// A checked IPv4 packet with a mutable TTL and ECN field. Its methods update the checksum.
#[derive(Debug)]
pub struct Ipv4PacketMut<'a> {
    header: Ipv4Header,
    bytes: &'a mut [u8],
}

impl<'a> Ipv4PacketMut<'a> {
    /// Parses the packet at the front of `bytes` and ignores the bytes after its total length.
    ///
    /// # Errors
    /// The first failed check, see [`HeaderError`].
    #[inline(always)]
    pub fn parse(bytes: &'a mut [u8]) -> Result<Self, HeaderError> {
        let header = Ipv4Header::parse(bytes)?;
        let (total, have) = (header.total_len(), bytes.len());
        match bytes.get_mut(..usize::from(total)) {
            Some(bytes) => Ok(Self { header, bytes }),
            None => Err(HeaderError::Truncated { total: total.into(), have }),
        }
    }

    /// Combines bytes with their checked header.
    #[inline(always)]
    pub(crate) fn new(header: Ipv4Header, bytes: &'a mut [u8]) -> Self {
        Self { header, bytes: bytes.get_mut(..usize::from(header.total_len())).unwrap_or_default() }
    }

    /// Returns the checked header in its current state.
    #[must_use]
    #[inline]
    pub fn header(&self) -> &Ipv4Header {
        &self.header
    }

    /// Returns the whole packet.
    #[must_use]
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Returns the bytes after the header.
    #[must_use]
    #[inline]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.header.header_len()..).unwrap_or_default()
    }

    /// Writes `ttl` and updates the checksum (RFC 1624). Every other byte stays.
    #[inline]
    pub fn set_ttl(&mut self, ttl: u8) {
        let word = |ttl: u8| u16::from_be_bytes([ttl, self.header.protocol()]);
        let checksum = checksum::update(self.header.checksum(), word(self.header.ttl()), word(ttl));
        self.write_ttl(ttl, checksum);
    }

    /// Decrements the TTL, but not below 0. The result equals [`set_ttl`](Self::set_ttl) with less arithmetic (RFC
    /// 1141).
    #[inline(always)]
    pub fn decrement_ttl(&mut self) {
        let ttl = self.header.ttl();
        if ttl == 0 {
            return;
        }
        let sum = u32::from(self.header.checksum()) + 0x0100;
        // 0xFFFF is never written for 0x0000 (RFC 1624 section 5).
        self.write_ttl(ttl - 1, (sum + u32::from(sum >= 0xffff)) as u16);
    }

    /// Writes the ECN field and updates the checksum (RFC 1624). Every other byte stays.
    #[cold]
    pub fn set_ecn(&mut self, ecn: Ecn) {
        let old = self.header.lengths;
        let new = old & !(u32::from(Ecn::MASK) << 16) | u32::from(ecn.bits()) << 16;
        let checksum = checksum::update(self.header.checksum(), (old >> 16) as u16, (new >> 16) as u16);
        self.header.lengths = new;
        if let Some(byte) = self.bytes.get_mut(field::TYPE_OF_SERVICE) {
            *byte = (new >> 16) as u8;
        }
        self.write_ttl(self.header.ttl(), checksum);
    }

    #[inline(always)]
    fn write_ttl(&mut self, ttl: u8, checksum: u16) {
        self.header.hop = u32::from(ttl) << 24 | self.header.hop & 0x00ff_0000 | u32::from(checksum);
        if let Some(fixed) = self.bytes.first_chunk_mut::<HEADER_LEN>() {
            fixed[field::TTL] = ttl;
            [fixed[field::CHECKSUM], fixed[field::CHECKSUM + 1]] = checksum.to_be_bytes();
        }
    }

    /// Returns the packet as an immutable one.
    #[must_use]
    #[inline]
    pub fn freeze(self) -> Ipv4Packet<'a> {
        Ipv4Packet { header: self.header, bytes: self.bytes }
    }

    /// Returns the bytes of the whole packet.
    #[must_use]
    #[inline]
    pub fn into_bytes(self) -> &'a mut [u8] {
        self.bytes
    }
}

/// Checks all options of a header with an IHL above 5 (R13) and returns true if one is a source route.
#[cold]
fn options_hold_source_route(header: &[u8]) -> Result<bool, HeaderError> {
    let mut source_route = false;
    for option in Options::of(header) {
        let kind = option?.first();
        source_route |= matches!(kind, Some(&(option::LOOSE_SOURCE_ROUTE | option::STRICT_SOURCE_ROUTE)));
    }
    Ok(source_route)
}

/// An iterator over the options of a header, kind and length included. It ends at the end-of-options marker or the
/// first invalid option (RFC 791 section 3.1). Each step advances by at least one byte, so the iteration ends within 40
/// steps.
pub(super) struct Options<'h> {
    header: &'h [u8],
    at: usize,
}

impl<'h> Options<'h> {
    pub(super) fn of(header: &'h [u8]) -> Self {
        Self { header, at: HEADER_LEN }
    }
}

impl<'h> Iterator for Options<'h> {
    type Item = Result<&'h [u8], HeaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (at, header) = (self.at, self.header.len());
        let rest = self.header.get(at..)?;
        let len = match rest {
            [] | [option::END, ..] => return None,
            [option::NO_OPERATION, ..] => 1,
            [_, len, ..] if *len >= 2 => usize::from(*len),
            [_, ..] => usize::MAX,
        };
        let option = rest.get(..len);
        self.at = if option.is_some() { at + len } else { header };
        Some(option.ok_or(HeaderError::BadOption { at, header }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_prints_its_addresses_and_protocol() {
        let bytes = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0x5f, 0xcc, 10, 1, 2, 3, 10, 4, 5, 6];
        let printed = std::format!("{:?}", Ipv4Packet::parse(&bytes).unwrap().header());
        let fields = "source: 10.1.2.3, destination: 10.4.5.6, protocol: 17, ttl: 64, total_len: 20";
        assert_eq!(printed, std::format!("Ipv4Header {{ {fields}, .. }}"));
    }

    /// R32 on a packet: for every checksum and TTL, a decrement equals the general rewrite, byte for byte.
    #[test]
    fn a_decrement_equals_the_general_rewrite() {
        // Miri would take hours for all of them.
        let (ttls, all, some) = if cfg!(miri) { (51, 4099, 4099) } else { (1, 1, 97) };
        for ttl in (0..=255u8).step_by(ttls) {
            for identification in (0..=0xffffu16).step_by(if ttl == 64 { all } else { some }) {
                let mut fixed = [0x45, 0, 0, 20, 0, 0, 0, 0, ttl, 17, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6];
                [fixed[4], fixed[5]] = identification.to_be_bytes();
                let sum = checksum::checksum(&fixed).to_be_bytes();
                [fixed[10], fixed[11]] = sum;
                let (mut one, mut other) = (fixed, fixed);
                Ipv4PacketMut::parse(&mut one).unwrap().decrement_ttl();
                Ipv4PacketMut::parse(&mut other).unwrap().set_ttl(ttl.saturating_sub(1));
                assert_eq!(one, other, "ttl {ttl}, identification {identification}");
                assert_eq!(checksum::sum(&one), 0xffff);
            }
        }
    }
}
