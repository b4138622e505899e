//! The reasons why bytes are not a valid packet.

/// The reason why bytes are not a valid IP packet. The checks of each family run in the order of the variants, and the
/// first failure is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Fewer bytes than the shortest header.
    #[error("{have} bytes are fewer than the {need} of the shortest header")]
    TooShort {
        /// Bytes received.
        have: usize,
        /// Bytes of the shortest header: 20 for IPv4, 40 for IPv6.
        need: usize,
    },
    /// Another version.
    #[error("IP version {version} is not {expected}")]
    BadVersion {
        /// The version field.
        version: u8,
        /// The versions that the parser accepts.
        expected: &'static str,
    },
    /// An IHL below 5.
    #[error("a header length of {words} words is below the minimum of 5")]
    BadHeaderLength {
        /// The IHL field, in 32-bit words.
        words: u8,
    },
    /// The header is longer than the received bytes.
    #[error("a header of {header} bytes exceeds the {have} bytes received")]
    HeaderTruncated {
        /// The IHL in bytes.
        header: usize,
        /// Bytes received.
        have: usize,
    },
    /// The total length is shorter than the header.
    #[error("total length {total} is less than the header length of {header} bytes")]
    BadTotalLength {
        /// The total length field.
        total: u16,
        /// The IHL in bytes.
        header: usize,
    },
    /// The packet is longer than the received bytes.
    #[error("a packet of {total} bytes exceeds the {have} bytes received")]
    Truncated {
        /// The total length of IPv4, or 40 plus the payload length of IPv6.
        total: usize,
        /// Bytes received.
        have: usize,
    },
    /// The header's words do not sum to `0xFFFF`.
    #[error("the header sums to {sum:#06x} instead of 0xffff")]
    BadChecksum {
        /// The ones' complement sum of the header.
        sum: u16,
    },
    /// An option has length 0 or 1, or extends past the header.
    #[error("the option at byte {at} does not fit into a header of {header} bytes")]
    BadOption {
        /// The offset of the option, in bytes.
        at: usize,
        /// The IHL in bytes.
        header: usize,
    },
    /// Hop-by-hop options in an IPv6 packet with payload length 0: a jumbogram (RFC 2675).
    #[error("a payload length of 0 with hop-by-hop options announces a jumbogram; {have} bytes were received")]
    Jumbogram {
        /// Bytes received.
        have: usize,
    },
}
