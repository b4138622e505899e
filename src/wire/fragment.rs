//! In-place fragmentation of IPv4 packets (RFC 791 section 3.2).
//!
//! ```text
//!  ┌────────┬──────────────────────────────────┐
//!  │ header │ payload                          │   the packet
//!  ├────────┼───────────┐ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─
//!  │ header │ payload 0 │              the rest │   the first fragment
//!  └────────┴──┬────────┼───────────┐ ─ ─ ─ ─ ─
//!     has gone │ header │ payload 1 │  the rest │   the second: its header lies over what has gone
//!              └────────┴───────────┘ ─ ─ ─ ─ ─
//! ```
//!
//! No payload byte moves and no second buffer is needed: a fragment's header is never longer than the data before it.

use super::checksum;
use super::ipv4::{HEADER_LEN, Ipv4Header, Options, field, flag};

/// Bytes of the longest header.
const HEADER_MAX: usize = 60;

/// Every fragment's payload begins at a multiple of this many bytes.
const UNIT: usize = 8;

/// The copy bit of an option's kind: the option belongs into every fragment (RFC 791 section 3.1).
const COPIED: u8 = 0x80;

/// An iterator-like cursor that cuts a packet into as few fragments as fit an MTU, front to back.
///
/// It stores positions and no bytes; the caller passes the packet with every call. Offsets start at the packet's own
/// offset, so a fragment can be fragmented again. The last piece keeps the packet's own "more fragments" flag. Only the
/// first piece has the options without the copy bit. All pieces keep the packet's identification, TTL, type of service
/// and reserved flag.
///
/// ```
/// use loden::wire::fragment::Fragmenter;
/// use loden::wire::ipv4::Ipv4Packet;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut packet = [0; 52];
/// # packet[..20].copy_from_slice(&[
/// #     0x45, 0, 0, 52, 0, 0, 0, 0, 64, 17, 0xae, 0xf4, 100, 96, 1, 2, 100, 96, 2, 3,
/// # ]);
/// // 20 bytes of header and 32 of payload; DF is clear.
/// let mut fragmenter = Fragmenter::new(Ipv4Packet::parse(&packet)?.header(), 40).ok_or("it has DF set")?;
/// let mut lengths = Vec::new();
/// while fragmenter.advance(&mut packet) {
///     lengths.push(fragmenter.fragment(&packet).len());
/// }
/// assert_eq!(lengths, [20 + 16, 20 + 16]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragmenter {
    /// The position of the current fragment in the packet; 0 and 0 before the first one.
    start: u16,
    end: u16,
    /// Bytes of the whole packet.
    total: u16,
    /// The packet is itself a fragment and not the last one.
    more_fragments: bool,
    mtu: u16,
}

impl Fragmenter {
    /// Returns a cursor for fragments of at most `mtu` bytes of the packet with this header. Nothing is cut before the
    /// first [`advance`](Self::advance).
    ///
    /// Returns `None` in three cases:
    /// - DF is set.
    /// - The MTU does not hold the header and 8 bytes. An MTU of 68 always does.
    /// - A piece would begin beyond the largest offset, 8191.
    #[must_use]
    pub fn new(header: &Ipv4Header, mtu: u16) -> Option<Self> {
        let (total, header_len) = (header.total_len(), header.header_len());
        let last_unit = (usize::from(total) - header_len).saturating_sub(1) / UNIT;
        let fits = usize::from(mtu) >= header_len + UNIT;
        let has_offset = usize::from(header.fragment_offset()) + last_unit <= usize::from(flag::OFFSET);
        let more_fragments = header.more_fragments();
        (!header.dont_fragment() && fits && has_offset).then_some(Self { start: 0, end: 0, total, more_fragments, mtu })
    }

    /// Returns a new cursor for a packet of `len` bytes with the same header, such as a segment of a GSO packet.
    #[must_use]
    pub fn for_segment(self, len: u16) -> Self {
        Self { start: 0, end: 0, total: len, ..self }
    }

    /// Cuts the next fragment and returns true, or returns false if there is none. The header of the next fragment
    /// overwrites the previous fragment.
    ///
    /// `packet` must be the packet that this cursor was created for. The caller must not change it between the calls.
    #[must_use]
    pub fn advance(&mut self, packet: &mut [u8]) -> bool {
        if self.end == self.total {
            return false;
        }
        let mut next = Self { end: self.total, ..*self };
        if self.end > 0 {
            let Some(mut header) = self.header(packet) else { return false };
            header.follow(self.len().saturating_sub(header.len) / UNIT, self.more_fragments);
            next.start = self.end.saturating_sub(header.len as u16);
            header.write(packet, next.start, next.len());
        }
        let cut = next.fit(packet);
        if cut {
            *self = next;
        }
        cut
    }

    /// Returns the current fragment. It is empty before the first one.
    #[must_use]
    pub fn fragment<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        packet.get(self.start.into()..self.end.into()).unwrap_or_default()
    }

    /// Returns the bytes of the current fragment.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a fragment has a header")]
    pub fn len(&self) -> usize {
        (self.end - self.start).into()
    }

    /// Returns true if the current fragment is the packet's first piece.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.start == 0
    }

    /// Returns true if the current fragment is the packet's last piece.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.end == self.total
    }

    /// Returns the limit of a fragment's length, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Shortens the current fragment and all later ones to a smaller MTU, and returns true. Returns false and changes
    /// nothing if the MTU does not hold the header and 8 bytes.
    #[must_use]
    pub fn narrow(&mut self, packet: &mut [u8], mtu: u16) -> bool {
        let mut narrower = Self { mtu: self.mtu.min(mtu), ..*self };
        let cut = narrower.fit(packet);
        if cut {
            *self = narrower;
        }
        cut
    }

    /// Sets the end of the current fragment so that it fits the MTU.
    fn fit(&mut self, packet: &mut [u8]) -> bool {
        if self.len() <= self.mtu.into() {
            return true;
        }
        let Some(mut header) = self.header(packet) else { return false };
        let units = usize::from(self.mtu).saturating_sub(header.len) / UNIT;
        if units == 0 {
            return false;
        }
        let len = header.len + units * UNIT;
        header.set_more_fragments(true);
        header.write(packet, self.start, len);
        self.end = self.start + len as u16;
        true
    }

    /// Reads the header of the current fragment, or that of the packet before the first one.
    fn header(&self, packet: &[u8]) -> Option<Header> {
        Header::read(packet.get(self.start.into()..self.total.into())?)
    }
}

/// A header copied out of the packet, since the next header may overwrite it.
struct Header {
    bytes: [u8; HEADER_MAX],
    len: usize,
}

impl Header {
    fn read(packet: &[u8]) -> Option<Self> {
        let len = usize::from(packet.first()? & 0x0f) * 4;
        let mut bytes = [0; HEADER_MAX];
        bytes.get_mut(..len)?.copy_from_slice(packet.get(..len)?);
        (len >= HEADER_LEN).then_some(Self { bytes, len })
    }

    /// Turns it into the header of the fragment that begins `units` later.
    fn follow(&mut self, units: usize, more_fragments: bool) {
        self.retain_copied_options();
        let flags = self.fragment() & !flag::OFFSET;
        // `Fragmenter::new` has checked that the offset does not overflow.
        let offset = (self.fragment() & flag::OFFSET).wrapping_add(units as u16) & flag::OFFSET;
        self.set_fragment(flags | offset);
        self.set_more_fragments(more_fragments);
    }

    /// Removes the options that only the first fragment has. The rest is padded with zeros, the end of options, to
    /// whole words.
    fn retain_copied_options(&mut self) {
        let mut kept = Self { bytes: self.bytes, len: HEADER_LEN };
        for option in Options::of(self.bytes.get(..self.len).unwrap_or_default()).flatten() {
            let end = kept.len + option.len();
            if option.first().is_some_and(|kind| kind & COPIED != 0)
                && let Some(room) = kept.bytes.get_mut(kept.len..end)
            {
                room.copy_from_slice(option);
                kept.len = end;
            }
        }
        if let Some(rest) = kept.bytes.get_mut(kept.len..) {
            rest.fill(0);
        }
        kept.len = kept.len.next_multiple_of(4);
        *self = kept;
    }

    fn fragment(&self) -> u16 {
        u16::from_be_bytes([self.bytes[field::FRAGMENT], self.bytes[field::FRAGMENT + 1]])
    }

    fn set_fragment(&mut self, fragment: u16) {
        [self.bytes[field::FRAGMENT], self.bytes[field::FRAGMENT + 1]] = fragment.to_be_bytes();
    }

    fn set_more_fragments(&mut self, more_fragments: bool) {
        let others = self.fragment() & !flag::MORE_FRAGMENTS;
        self.set_fragment(others | if more_fragments { flag::MORE_FRAGMENTS } else { 0 });
    }

    /// Writes the header into `packet` as that of a fragment of `total` bytes.
    fn write(&mut self, packet: &mut [u8], start: u16, total: usize) {
        const VERSION_4: u8 = 0x40;
        self.bytes[0] = VERSION_4 | (self.len / 4) as u8;
        [self.bytes[field::TOTAL_LEN], self.bytes[field::TOTAL_LEN + 1]] = (total as u16).to_be_bytes();
        [self.bytes[field::CHECKSUM], self.bytes[field::CHECKSUM + 1]] = [0; 2];
        let sum = checksum::checksum(self.bytes.get(..self.len).unwrap_or_default());
        [self.bytes[field::CHECKSUM], self.bytes[field::CHECKSUM + 1]] = sum.to_be_bytes();
        let start = usize::from(start);
        if let (Some(room), Some(header)) = (packet.get_mut(start..start + self.len), self.bytes.get(..self.len)) {
            room.copy_from_slice(header);
        }
    }
}
