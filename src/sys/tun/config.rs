//! The configuration of a TUN device.

use alloc::string::String;

use crate::offload::VnetHeader;

/// The configuration of a TUN device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TunConfig {
    /// The name, or a pattern such as `loden%d` in which the kernel replaces `%d` by the lowest free number.
    ///
    /// It has 1 to 15 bytes without `/`, `:`, white space and NUL. `%` may only occur in one `%d`. `.` and `..` are
    /// invalid (`dev_valid_name` in the kernel's net/core/dev.c).
    pub name: String,
    /// The offloads to request. [`Tun::offload`](super::Tun::offload) returns the granted ones.
    pub offload: TunOffload,
}

impl TunConfig {
    /// Returns a configuration with all offloads for a device of this name.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), offload: TunOffload::ALL }
    }

    /// Sets the offloads to request.
    #[must_use]
    pub fn with_offload(self, offload: TunOffload) -> Self {
        Self { offload, ..self }
    }
}

impl Default for TunConfig {
    /// Returns the pattern `loden%d` with all offloads.
    fn default() -> Self {
        Self::new("loden%d")
    }
}

/// The kinds of packets that pass between the kernel and this process as GSO packets of up to 64 KiB.
///
/// With either of them, received packets may also lack their transport checksum, see [`TunMeta::header`]. With neither,
/// the device has no virtio-net header and every packet is complete.
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

    /// Returns the `TUN_F_*` flags of linux/if_tun.h.
    pub(super) fn mask(self) -> u32 {
        let Self { tso, uso } = self;
        let of = |asked, features| if asked { libc::TUN_F_CSUM | features } else { 0 };
        of(tso, libc::TUN_F_TSO4 | libc::TUN_F_TSO6) | of(uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }
}

impl Default for TunOffload {
    /// Returns [`TunOffload::ALL`].
    fn default() -> Self {
        Self::ALL
    }
}

/// The metadata of a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunMeta {
    /// Bytes of the packet in the buffer, without the virtio-net header.
    pub len: usize,
    /// The pending work for the packet; none on a device without offloads.
    pub header: VnetHeader,
}
