//! A socket filter that passes the messages of one link only.
//!
//! Hosts that start and stop containers announce dozens of links a second. Without the filter, each announcement would
//! wake the tunnel's event loop.

use netlink_packet_route::route::RouteHeader;
use socket2::SockFilter;

/// Offsets in a netlink message. The fixed part of its body begins at 16 (struct `nlmsghdr`).
mod field {
    pub(super) const KIND: u32 = 4;
    pub(super) const FAMILY: u32 = 16;
    /// The offset of both `ifi_index` and `ifa_index`.
    pub(super) const INDEX: u32 = 20;
    pub(super) const TABLE: u32 = 20;
    pub(super) const ROUTE_ATTRIBUTES: u32 = 28;
    /// The offset of the value from the start of an attribute.
    pub(super) const VALUE: u32 = 4;
}

/// Returns a filter for the messages of the link `index`: changes and removal of the link, removal of an address, and
/// removal of a route of the main or local table through the link. Messages about a bridge port with the same index do
/// not pass.
///
/// Loads convert from network byte order, but netlink uses host byte order, so the constants are converted. `ANCILLARY`
/// finds the attribute whose number is in X, from the offset in A (`SKF_AD_NLATTR` in the kernel's
/// `net/core/filter.c`).
pub(super) fn only(index: u32) -> [SockFilter; 21] {
    const ACCEPT: u8 = 19;
    const DROP: u8 = 20;
    const ANCILLARY: u32 = libc::SKF_AD_OFF.wrapping_add(libc::SKF_AD_NLATTR).cast_unsigned();
    let index = u32::from_be_bytes(index.to_ne_bytes());
    let kind = |kind: u16| u32::from(u16::from_be_bytes(kind.to_ne_bytes()));
    [
        statement(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, field::KIND),
        jump(1, kind(libc::RTM_DELROUTE), 9, 2),
        jump(2, kind(libc::RTM_DELADDR), 7, 3),
        jump(3, kind(libc::RTM_NEWLINK), 5, 4),
        jump(4, kind(libc::RTM_DELLINK), 5, DROP),
        // 5: link
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, field::FAMILY),
        jump(6, libc::AF_UNSPEC.cast_unsigned(), 7, DROP),
        // 7: link or address
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, field::INDEX),
        jump(8, index, ACCEPT, DROP),
        // 9: route
        statement(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, field::TABLE),
        jump(10, RouteHeader::RT_TABLE_MAIN.into(), 12, 11),
        jump(11, libc::RT_TABLE_LOCAL.into(), 12, DROP),
        statement(libc::BPF_LDX | libc::BPF_IMM, libc::RTA_OIF as u32),
        statement(libc::BPF_LD | libc::BPF_IMM, field::ROUTE_ATTRIBUTES),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, ANCILLARY),
        jump(15, 0, DROP, 16),
        statement(libc::BPF_MISC | libc::BPF_TAX, 0),
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, field::VALUE),
        jump(18, index, ACCEPT, DROP),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ]
}

fn statement(code: u32, operand: u32) -> SockFilter {
    SockFilter::new(code as u16, 0, 0, operand)
}

/// Returns a jump to `equal` if the accumulator equals `value`, and to `other` otherwise. Jump offsets count from the
/// next instruction.
fn jump(line: u8, value: u32, equal: u8, other: u8) -> SockFilter {
    let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let next = line.wrapping_add(1);
    SockFilter::new(code as u16, equal.wrapping_sub(next), other.wrapping_sub(next), value)
}
