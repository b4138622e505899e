//! Bytes with names: checksums, IPv4 packets and ICMPv4 errors. Nothing here knows of tunnels, routes or sockets.

pub mod checksum;
pub mod icmpv4;
pub mod ipv4;

/// IP protocol numbers the tunnel has to tell apart (IANA "Assigned Internet Protocol Numbers").
pub mod protocol {
    /// Internet Control Message Protocol, RFC 792.
    pub const ICMP: u8 = 1;
    /// User Datagram Protocol, RFC 768.
    pub const UDP: u8 = 17;
}
