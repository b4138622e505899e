//! Wire formats: checksums, IPv4 packets and their fragments, TCP and UDP headers, and ICMPv4 errors. This module does
//! not depend on tunnels, routes or sockets.

pub mod checksum;
mod ecn;
pub mod fragment;
pub mod icmpv4;
pub mod ipv4;
mod too_big;
pub mod transport;

pub use ecn::Ecn;
pub use too_big::{DatagramTooBig, QuotedHeader};

/// IP protocol numbers that the tunnel distinguishes (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// Internet Control Message Protocol, RFC 792.
    pub const ICMP: u8 = 1;
    /// Transmission Control Protocol, RFC 9293.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol, RFC 768.
    pub const UDP: u8 = 17;
}
