//! Requests to a TUN device (drivers/net/tun.c in the kernel, linux/if_tun.h).

use core::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::checked;

/// The size of an interface name with its terminating zero (`IFNAMSIZ` in linux/if.h).
pub(in crate::sys) const INTERFACE_NAME: usize = libc::IFNAMSIZ;

/// Struct `ifreq` of linux/if.h as `TUNSETIFF` and `TUNGETIFF` use it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(in crate::sys) struct InterfaceRequest {
    /// The name with a terminating zero.
    pub(in crate::sys) name: [u8; INTERFACE_NAME],
    /// `IFF_*` of linux/if_tun.h.
    pub(in crate::sys) flags: u16,
    rest: [u8; REST_OF_REQUEST],
}

const REST_OF_REQUEST: usize = size_of::<libc::ifreq>() - INTERFACE_NAME - size_of::<u16>();

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl InterfaceRequest {
    pub(in crate::sys) const fn new(name: [u8; INTERFACE_NAME], flags: u16) -> Self {
        Self { name, flags, rest: [0; REST_OF_REQUEST] }
    }
}

/// Creates a device or attaches to one (`TUNSETIFF`). Returns the request with the device's name.
pub(in crate::sys) fn set_interface(
    tun: BorrowedFd<'_>,
    mut request: InterfaceRequest,
) -> io::Result<InterfaceRequest> {
    // SAFETY: the kernel reads and writes one `struct ifreq`, which `request` has the layout and the size of.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    checked(result).map(|_zero| request)
}

/// Returns name and flags of the attached device (`TUNGETIFF`).
pub(in crate::sys) fn interface(tun: BorrowedFd<'_>) -> io::Result<InterfaceRequest> {
    let mut request = InterfaceRequest::new([0; INTERFACE_NAME], 0);
    // SAFETY: the kernel writes one `struct ifreq`, which `request` has the layout and the size of.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    checked(result).map(|_zero| request)
}

/// Sets the packets that may lack segmentation or a checksum (`TUNSETOFFLOAD`, `TUN_F_*` of linux/if_tun.h).
pub(in crate::sys) fn set_offload(tun: BorrowedFd<'_>, offload: u32) -> io::Result<()> {
    // SAFETY: the argument is a number and not a pointer, and zero-extended to the `unsigned long` the kernel takes.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) };
    checked(result).map(|_zero| ())
}

/// Sets whether the device outlives its last file descriptor (`TUNSETPERSIST`).
pub(in crate::sys) fn set_persist(tun: BorrowedFd<'_>, persist: bool) -> io::Result<()> {
    // SAFETY: the argument is a number and not a pointer, and zero-extended to the `unsigned long` the kernel takes.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persist)) };
    checked(result).map(|_zero| ())
}

/// Sets the length of the virtio-net header of every packet, with `IFF_VNET_HDR` (`TUNSETVNETHDRSZ`).
pub(in crate::sys) fn set_vnet_header_len(tun: BorrowedFd<'_>, bytes: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one `int`, which lives until the call returns.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
    checked(result).map(|_zero| ())
}

/// Sets whether the header is little-endian instead of native (`TUNSETVNETLE`).
pub(in crate::sys) fn set_vnet_little_endian(tun: BorrowedFd<'_>, little: bool) -> io::Result<()> {
    let little = c_int::from(little);
    // SAFETY: the kernel reads one `int`, which lives until the call returns.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETLE, &raw const little) };
    checked(result).map(|_zero| ())
}

/// Sets whether the header is big-endian (`TUNSETVNETBE`). EINVAL from a kernel without `CONFIG_TUN_VNET_CROSS_LE`.
pub(in crate::sys) fn set_vnet_big_endian(tun: BorrowedFd<'_>, big: bool) -> io::Result<()> {
    let big = c_int::from(big);
    // SAFETY: the kernel reads one `int`, which lives until the call returns.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETBE, &raw const big) };
    checked(result).map(|_zero| ())
}
