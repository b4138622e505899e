//! Which device to open, and in what form packets come.

use alloc::borrow::ToOwned;
use alloc::string::String;

use crate::offload::VnetHeader;

/// Which device to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// Its name, or a pattern such as `loden%d`, in which the kernel replaces `%d` by the lowest number that is free.
    ///
    /// 1 to 15 bytes; neither `/`, `:`, white space nor NUL; `%` only as one `%d`; not `.` or `..` (`dev_valid_name` in
    /// the kernel's net/core/dev.c).
    pub name: String,
    /// Which packets to take unsegmented; a wish: [`Tun::offload`](super::Tun::offload) says what was granted.
    pub offload: TunOffload,
}

impl Default for TunConfig {
    /// The pattern `loden%d`, with all offloads.
    fn default() -> Self {
        Self { name: "loden%d".to_owned(), offload: TunOffload::ALL }
    }
}

/// Which packets pass between the kernel and us as up to 64 KiB that are yet to be cut into segments.
///
/// With either, received packets also come without a transport checksum, and [`TunMeta::header`] says what is to be done.
/// With neither, the device has no virtio-net header, and every packet is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOffload {
    /// TCP over IPv4 and IPv6.
    pub tso: bool,
    /// UDP over IPv4 and IPv6 (Linux 6.2).
    pub uso: bool,
}

impl TunOffload {
    /// TCP and UDP.
    pub const ALL: Self = Self { tso: true, uso: true };
    /// Neither.
    pub const NONE: Self = Self { tso: false, uso: false };

    /// `TUN_F_*` of linux/if_tun.h.
    pub(super) fn mask(self) -> u32 {
        let Self { tso, uso } = self;
        let of = |asked, features| if asked { libc::TUN_F_CSUM | features } else { 0 };
        of(tso, libc::TUN_F_TSO4 | libc::TUN_F_TSO6) | of(uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }
}

impl Default for TunOffload {
    /// [`TunOffload::ALL`].
    fn default() -> Self {
        Self::ALL
    }
}

/// What was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunMeta {
    /// Bytes of the packet in the buffer, without the virtio-net header.
    pub len: usize,
    /// What is left to be done to the packet; nothing on a device without offloads.
    pub header: VnetHeader,
}
