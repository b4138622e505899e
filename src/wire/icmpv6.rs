//! ICMPv6 error messages and the rules by which none may be sent (RFC 4443).

use core::net::Ipv6Addr;

use super::ipv6::{HEADER_LEN, Ipv6Packet};
use super::transport::pseudo_header_sum_v6;
use super::{checksum, protocol};

/// Bytes of the longest error message, IP header included: the minimum MTU of IPv6 (RFC 4443 section 2.4).
pub const ERROR_MAX: usize = 1280;

/// Bytes of an ICMPv6 header, with the four bytes whose meaning depends on the type.
const ICMP_HEADER_LEN: usize = 8;

mod kind {
    pub(super) const DESTINATION_UNREACHABLE: u8 = 1;
    pub(super) const PACKET_TOO_BIG: u8 = 2;
    pub(super) const TIME_EXCEEDED: u8 = 3;
    /// The first type that is no error.
    pub(super) const INFORMATIONAL: u8 = 128;
    pub(super) const REDIRECT: u8 = 137;
}

/// The kind of an error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Icmpv6Error {
    /// Type 1 code 0: there is no route to the destination.
    NoRoute,
    /// Type 2 code 0: the packet is longer than the next hop carries.
    PacketTooBig {
        /// The longest packet that passes, in bytes.
        mtu: u32,
    },
    /// Type 3 code 0: the hop limit was exceeded in transit.
    TimeExceeded,
}

impl Icmpv6Error {
    fn type_code(self) -> [u8; 2] {
        match self {
            Self::NoRoute => [kind::DESTINATION_UNREACHABLE, 0],
            Self::PacketTooBig { .. } => [kind::PACKET_TOO_BIG, 0],
            Self::TimeExceeded => [kind::TIME_EXCEEDED, 0],
        }
    }

    /// Returns the four bytes after the checksum.
    fn rest(self) -> [u8; 4] {
        match self {
            Self::PacketTooBig { mtu } => mtu.to_be_bytes(),
            Self::NoRoute | Self::TimeExceeded => [0; 4],
        }
    }

    /// Writes the message about `offender` into `out`: a whole IPv6 packet from `source` to the offender's source, with
    /// traffic class and flow label 0.
    ///
    /// The quote is as much of the unchanged offender as fits. It never extends past the offender's length.
    #[must_use]
    pub fn write<'o>(
        self,
        offender: &Ipv6Packet<'_>,
        source: Ipv6Addr,
        hop_limit: u8,
        out: &'o mut [u8; ERROR_MAX],
    ) -> &'o [u8] {
        const QUOTE_MAX: usize = ERROR_MAX - HEADER_LEN - ICMP_HEADER_LEN;
        let quote = offender.as_bytes();
        let quote = quote.get(..QUOTE_MAX).unwrap_or(quote);
        let len = ICMP_HEADER_LEN + quote.len();
        let destination = offender.header().source();

        let head = |[sum0, sum1]: [u8; 2]| {
            let ([kind, code], [r0, r1, r2, r3]) = (self.type_code(), self.rest());
            [kind, code, sum0, sum1, r0, r1, r2, r3]
        };
        // The checksum covers the whole message, so all of it is written first, with a checksum of zero.
        let message = out.get_mut(HEADER_LEN..HEADER_LEN + len).unwrap_or_default();
        if let Some((slot, body)) = message.split_first_chunk_mut::<ICMP_HEADER_LEN>() {
            *slot = head([0, 0]);
            body.copy_from_slice(quote);
        }
        let (from, to) = (source.to_bits(), destination.to_bits());
        let pseudo = pseudo_header_sum_v6(from, to, protocol::ICMPV6, len as u32);
        let sum = !checksum::add(pseudo, checksum::sum(message));
        if let Some(slot) = message.first_chunk_mut::<ICMP_HEADER_LEN>() {
            *slot = head(sum.to_be_bytes());
        }
        if let Some(slot) = out.first_chunk_mut::<HEADER_LEN>() {
            *slot = ip_header(len as u16, hop_limit, source, destination);
        }
        out.get(..HEADER_LEN + len).unwrap_or_default()
    }
}

/// Returns true if a router may answer `offender` with an error (RFC 4443 section 2.4 e).
///
/// It may not if the offender is an ICMPv6 error, a redirect, or ICMPv6 that is too short for its type. Nor may it if
/// the extension headers hide the upper layer, or if the source or the destination is not a single host. A fragment
/// other than the first may be answered, because its type is unknown.
#[must_use]
pub fn may_answer(offender: &Ipv6Packet<'_>) -> bool {
    let header = offender.header();
    let (source, destination) = (header.source(), header.destination());
    let Some(upper) = header.upper_layer() else { return false };
    let is_host = !source.is_unspecified() && !source.is_multicast();
    let is_error = || match offender.as_bytes().get(usize::from(upper.offset)) {
        Some(&kind::REDIRECT) | None => true,
        Some(kind) => *kind < kind::INFORMATIONAL,
    };
    let is_icmp = upper.protocol == protocol::ICMPV6 && !upper.is_later_fragment();
    is_host && !destination.is_multicast() && !(is_icmp && is_error())
}

fn ip_header(payload_len: u16, hop_limit: u8, source: Ipv6Addr, destination: Ipv6Addr) -> [u8; HEADER_LEN] {
    const VERSION_6: u64 = 6 << 60;
    let fixed = VERSION_6 | u64::from(payload_len) << 16 | u64::from(protocol::ICMPV6) << 8 | u64::from(hop_limit);
    let mut header = [0; HEADER_LEN];
    let parts = [&fixed.to_be_bytes()[..], &source.octets(), &destination.octets()];
    for (slot, byte) in header.iter_mut().zip(parts.into_iter().flatten()) {
        *slot = *byte;
    }
    header
}
