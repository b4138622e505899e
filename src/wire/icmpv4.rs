//! ICMPv4 error messages and the rules by which none may be sent (RFC 792, RFC 1812 section 4.3).

use core::net::Ipv4Addr;

use super::ipv4::{HEADER_LEN, Ipv4Header, Ipv4Packet};
use super::{checksum, protocol};

/// Bytes of the longest error message, IP header included (RFC 1812 section 4.3.2.3).
pub const ERROR_MAX: usize = 576;

/// Bytes of an ICMP header.
pub(super) const ICMP_HEADER_LEN: usize = 8;

/// The type and code of "fragmentation needed and DF set".
pub(super) const FRAGMENTATION_NEEDED: [u8; 2] = [kind::DESTINATION_UNREACHABLE, 4];

/// Precedence 6, "internetwork control" (RFC 1812 4.3.2.5).
const PRECEDENCE_INTERNETWORK_CONTROL: u8 = 0xc0;

/// The delay, throughput and reliability bits of a type of service byte. An error message copies them (RFC 1812
/// 4.3.2.5).
const DELAY_THROUGHPUT_RELIABILITY: u8 = 0x1c;

mod kind {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const DESTINATION_UNREACHABLE: u8 = 3;
    pub(super) const ECHO_REQUEST: u8 = 8;
    pub(super) const ROUTER_ADVERTISEMENT: u8 = 9;
    pub(super) const ROUTER_SOLICITATION: u8 = 10;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const TIMESTAMP: u8 = 13;
    pub(super) const ADDRESS_MASK_REPLY: u8 = 18;
}

/// The kind of an error message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IcmpError {
    /// Type 3 code 0: there is no route to the destination's network.
    NetUnreachable,
    /// Type 3 code 4: the packet is longer than the next hop carries, and DF is set (RFC 1191).
    FragmentationNeeded {
        /// The longest packet that passes, in bytes.
        mtu: u16,
    },
    /// Type 11 code 0: the TTL expired in transit.
    TimeExceeded,
}

impl IcmpError {
    fn type_code(self) -> [u8; 2] {
        match self {
            Self::NetUnreachable => [kind::DESTINATION_UNREACHABLE, 0],
            Self::FragmentationNeeded { .. } => FRAGMENTATION_NEEDED,
            Self::TimeExceeded => [kind::TIME_EXCEEDED, 0],
        }
    }

    /// Returns the four bytes after the checksum. RFC 1191 section 4 puts the MTU into the low half; other errors leave
    /// them zero.
    fn rest(self) -> [u8; 4] {
        match self {
            Self::FragmentationNeeded { mtu } => u32::from(mtu).to_be_bytes(),
            Self::NetUnreachable | Self::TimeExceeded => [0; 4],
        }
    }

    /// Writes the message about `offender` into `out`: a whole IPv4 packet from `source` to the offender's source.
    ///
    /// The quote is the unchanged header of the offender with options, and as much of its payload as fits. It never
    /// extends past the total length (RFC 1812 section 4.3.2.3). DF is set, so the packet needs no unique
    /// identification (RFC 6864).
    #[must_use]
    pub fn write<'o>(
        self,
        offender: &Ipv4Packet<'_>,
        source: Ipv4Addr,
        ttl: u8,
        out: &'o mut [u8; ERROR_MAX],
    ) -> &'o [u8] {
        const QUOTE_MAX: usize = ERROR_MAX - HEADER_LEN - ICMP_HEADER_LEN;
        let quote = offender.as_bytes();
        let quote = quote.get(..QUOTE_MAX).unwrap_or(quote);
        let total = HEADER_LEN + ICMP_HEADER_LEN + quote.len();

        let head = |[sum0, sum1]: [u8; 2]| {
            let ([kind, code], [r0, r1, r2, r3]) = (self.type_code(), self.rest());
            [kind, code, sum0, sum1, r0, r1, r2, r3]
        };
        // The checksum covers the whole message, so all of it is written first, with a checksum of zero.
        let message = out.get_mut(HEADER_LEN..total).unwrap_or_default();
        if let Some((slot, body)) = message.split_first_chunk_mut::<ICMP_HEADER_LEN>() {
            *slot = head([0, 0]);
            body.copy_from_slice(quote);
        }
        let sum = checksum::checksum(message).to_be_bytes();
        if let Some(slot) = message.first_chunk_mut::<ICMP_HEADER_LEN>() {
            *slot = head(sum);
        }
        if let Some(slot) = out.first_chunk_mut::<HEADER_LEN>() {
            let header = offender.header();
            *slot = ip_header(type_of_service(header), total as u16, ttl, source, header.source());
        }
        out.get(..total).unwrap_or_default()
    }
}

/// Returns true if a router may answer `offender` with an error (RFC 1812 section 4.3.2.7, RFC 1122 section 3.2.2).
///
/// It may not if the offender is an ICMP error, an ICMP message of unknown type or a later fragment. Nor may it if the
/// source or the destination is not a single host. `broadcast` returns true for local broadcast addresses other than
/// 255.255.255.255.
#[must_use]
pub fn may_answer(offender: &Ipv4Packet<'_>, broadcast: impl Fn(Ipv4Addr) -> bool) -> bool {
    is_single_host(offender.header().source()) && may_answer_host(offender, broadcast)
}

/// Returns the result of [`may_answer`] for an offender whose source is known to be no special address.
pub(crate) fn may_answer_host(offender: &Ipv4Packet<'_>, broadcast: impl Fn(Ipv4Addr) -> bool) -> bool {
    let header = offender.header();
    let (source, destination) = (header.source(), header.destination());
    header.fragment_offset() == 0
        && !(destination.is_multicast() || destination.is_broadcast() || broadcast(destination))
        && !broadcast(source)
        && (header.protocol() != protocol::ICMP || is_query(offender.payload()))
}

/// Returns true unless it is a network, loopback, multicast, reserved or broadcast address (RFC 1812 section 4.3.2.7).
pub(crate) fn is_single_host(source: Ipv4Addr) -> bool {
    !matches!(source.octets()[0], 0 | 127 | 224..=255)
}

/// Returns true for an ICMP query or reply. RFC 1812 forbids errors about errors, and RFC 1122 section 3.2.2 discards
/// messages of unknown type. A message too short for its type counts as unknown (R38).
fn is_query(message: &[u8]) -> bool {
    matches!(
        message.first(),
        Some(
            &(kind::ECHO_REPLY
                | kind::ECHO_REQUEST
                | kind::ROUTER_ADVERTISEMENT
                | kind::ROUTER_SOLICITATION
                | kind::TIMESTAMP..=kind::ADDRESS_MASK_REPLY)
        )
    )
}

fn type_of_service(offender: &Ipv4Header) -> u8 {
    PRECEDENCE_INTERNETWORK_CONTROL | offender.type_of_service() & DELAY_THROUGHPUT_RELIABILITY
}

fn ip_header(tos: u8, total: u16, ttl: u8, source: Ipv4Addr, destination: Ipv4Addr) -> [u8; HEADER_LEN] {
    const VERSION_4_IHL_5: u8 = 0x45;
    const DONT_FRAGMENT: u8 = 0x40;
    let ([t0, t1], [s0, s1, s2, s3], [d0, d1, d2, d3]) = (total.to_be_bytes(), source.octets(), destination.octets());
    let with_checksum = |[c0, c1]: [u8; 2]| {
        [
            VERSION_4_IHL_5,
            tos,
            t0,
            t1,
            0,
            0,
            DONT_FRAGMENT,
            0,
            ttl,
            protocol::ICMP,
            c0,
            c1,
            s0,
            s1,
            s2,
            s3,
            d0,
            d1,
            d2,
            d3,
        ]
    };
    with_checksum(checksum::checksum(&with_checksum([0, 0])).to_be_bytes())
}
