//! Wire formats: checksums, IPv4 and IPv6 packets, fragments of IPv4, TCP and UDP headers, and ICMP errors. This module
//! does not depend on tunnels, routes or sockets.

pub mod checksum;
mod ecn;
pub mod fragment;
mod header_error;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
mod packet;
mod too_big;
pub mod transport;
mod upper_layer;

pub use ecn::Ecn;
pub use header_error::HeaderError;
pub use packet::IpPacket;
pub(crate) use packet::{IpHeader, IpPacketMut};
pub use too_big::{DatagramTooBig, QuotedHeader};
pub use upper_layer::{EXTENSIONS_MAX, Fragment, UpperLayer};

/// Bytes of the longest ICMP error of either family, IP header included.
pub const ICMP_ERROR_MAX: usize = icmpv6::ERROR_MAX;

/// IP protocol numbers that the tunnel distinguishes (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// Internet Control Message Protocol, RFC 792.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol, RFC 9293.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol, RFC 768.
    pub const UDP: u8 = 17;
    /// Internet Control Message Protocol for IPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
}
