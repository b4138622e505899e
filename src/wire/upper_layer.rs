//! The upper layer of a packet, after the options of IPv4 or the extension headers of IPv6 (RFC 8200 section 4).

use super::ipv6::HEADER_LEN;

/// Extension headers that are skipped at most. Packets with more are forwarded like those whose upper layer is unknown.
pub const EXTENSIONS_MAX: usize = 8;

/// The protocol that a packet carries, and the place where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperLayer {
    /// The protocol, see [`protocol`](super::protocol). In a later fragment, the first header of the fragmented part.
    pub protocol: u8,
    /// The offset of its header in the packet, in bytes. In a later fragment, the offset of the fragment's data.
    pub offset: u16,
    /// The place of a fragment in the whole packet; `None` if the packet is not fragmented.
    pub fragment: Option<Fragment>,
}

/// The place of a fragment in the whole packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The offset in units of 8 bytes.
    pub offset: u16,
    /// True unless this is the last fragment.
    pub more_fragments: bool,
}

impl UpperLayer {
    /// Returns true if the packet is a fragment other than the first one, which has no upper-layer header.
    #[must_use]
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }
}

mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const HOST_IDENTITY: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
}

/// Returns true if a next header field names an extension header (IANA "IPv6 Extension Header Types"). ESP is left out:
/// what follows it is encrypted, so it is the upper layer itself.
#[inline(always)]
pub(super) fn is_extension(next: u8) -> bool {
    use extension::{
        AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, HOST_IDENTITY, MOBILITY, ROUTING, SHIM6,
    };
    matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY | HOST_IDENTITY | SHIM6
    )
}

/// The result of a walk over extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    upper: Option<UpperLayer>,
    source_route: bool,
}

impl Chain {
    /// Returns the chain of a packet without extension headers.
    #[inline(always)]
    pub(super) fn plain(protocol: u8) -> Self {
        Self { upper: Some(UpperLayer { protocol, offset: HEADER_LEN as u16, fragment: None }), source_route: false }
    }

    /// Walks the extension headers of a packet of exactly its length. `first` is the type of the first one.
    #[cold]
    pub(super) fn walk(packet: &[u8], first: u8) -> Self {
        let mut walk = Walk { packet, next: first, at: HEADER_LEN, fragment: None, source_route: false };
        let mut skipped = 0;
        while is_extension(walk.next) {
            if skipped == EXTENSIONS_MAX || walk.skip().is_none() {
                return Self { upper: None, source_route: walk.source_route };
            }
            if walk.fragment.is_some_and(|fragment| fragment.offset != 0) {
                break;
            }
            skipped += 1;
        }
        // Eight headers of at most 2,048 bytes.
        let upper = UpperLayer { protocol: walk.next, offset: walk.at as u16, fragment: walk.fragment };
        Self { upper: Some(upper), source_route: walk.source_route }
    }

    #[inline(always)]
    pub(super) fn upper_layer(&self) -> Option<UpperLayer> {
        self.upper
    }

    #[inline(always)]
    pub(super) fn has_source_route(&self) -> bool {
        self.source_route
    }
}

/// A position in the chain of extension headers.
struct Walk<'p> {
    packet: &'p [u8],
    /// The type of the header at `at`.
    next: u8,
    at: usize,
    fragment: Option<Fragment>,
    source_route: bool,
}

impl Walk<'_> {
    /// Skips one extension header. Returns `None` if it does not fit into the packet.
    fn skip(&mut self) -> Option<()> {
        const TYPE_0: u8 = 0;
        const MORE_FRAGMENTS: u16 = 1;
        let rest = self.packet.get(self.at..)?;
        // A routing header may end past the packet: its type counts anyway.
        self.source_route |= self.next == extension::ROUTING && rest.get(2) == Some(&TYPE_0);
        let &[next, words, high, low] = rest.first_chunk()?;
        let len = match self.next {
            extension::FRAGMENT => 8,
            // RFC 4302 section 2.2: words of 4 bytes, less two.
            extension::AUTHENTICATION => (usize::from(words) + 2) * 4,
            _ => (usize::from(words) + 1) * 8,
        };
        if len > rest.len() {
            return None;
        }
        if self.next == extension::FRAGMENT {
            let word = u16::from_be_bytes([high, low]);
            self.fragment = Some(Fragment { offset: word >> 3, more_fragments: word & MORE_FRAGMENTS != 0 });
        }
        (self.next, self.at) = (next, self.at + len);
        Some(())
    }
}
