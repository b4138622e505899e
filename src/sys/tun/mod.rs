//! TUN devices.

mod config;
mod error;
mod open;

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_int;
use core::num::NonZeroUsize;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

pub use self::config::{TunConfig, TunMeta, TunOffload};
pub use self::error::{OpenError, TunError};
use self::open::Opening;
#[cfg(any(feature = "link", test))]
#[cfg(feature = "preflight")]
pub(crate) use self::open::{checked_name, other_than_node};
use super::feature::{Disabled, Feature, is_missing};
use super::kernel::{Calls, SystemCalls};
use super::syscall;
use crate::offload::{VNET_HEADER_LEN, VnetHeader};

/// The largest packet of a TUN device in bytes: the largest total length of an IPv4 packet (RFC 791 section 3.1). The
/// kernel passes no longer IPv6 packets either: the MTU of a device and its GSO packets are limited to as much
/// (`MAX_MTU` in drivers/net/tun.c, `GSO_LEGACY_MAX_SIZE` in linux/netdevice.h).
///
/// The kernel truncates a packet that is longer than the buffer of [`Tun::recv`] without a notice. A buffer of at least
/// `PACKET_MAX + 1` bytes never truncates a packet.
pub const PACKET_MAX: usize = 65_535;

/// The path of the device node (Documentation/networking/tuntap.rst).
pub(crate) const DEVICE_NODE: &str = "/dev/net/tun";

/// `IFF_*` of linux/if_tun.h. `TUNSETIFF` and `TUNGETIFF` pass them as a 16-bit number.
mod flags {
    pub(super) const TUN: u16 = libc::IFF_TUN as u16;
    pub(super) const TAP: u16 = libc::IFF_TAP as u16;
    pub(super) const NO_PI: u16 = libc::IFF_NO_PI as u16;
    pub(super) const VNET_HDR: u16 = libc::IFF_VNET_HDR as u16;
    pub(super) const MULTI_QUEUE: u16 = libc::IFF_MULTI_QUEUE as u16;
    pub(super) const EXCLUSIVE: u16 = libc::IFF_TUN_EXCL as u16;
    pub(super) const PERSIST: u16 = libc::IFF_PERSIST as u16;
}

/// A TUN device, or one queue of it. It receives the IP packets that the kernel routes to the device, and sends packets
/// that the kernel receives from the device.
///
/// It never blocks. Wait for its file descriptor ([`AsFd`]) to become readable. Dropping it closes the file descriptor.
/// The kernel removes the device with the last descriptor, unless the device is persistent.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    created: bool,
    /// Every packet has a virtio-net header.
    vnet: bool,
    offload: TunOffload,
    disabled: Disabled,
    calls: Calls,
}

impl Tun {
    /// Creates a device, or attaches to a persistent one of that name that is not in use. [`Tun::name`] returns its
    /// name.
    ///
    /// A new device is down and has no address, see `link::Link`. A persistent device keeps the offloads and the header
    /// format of the last process, so both are set again.
    ///
    /// # Errors
    /// [`OpenError`]. No device and no descriptor is left then. Missing kernel features are not an error, see
    /// [`Tun::disabled`].
    pub fn open(config: &TunConfig) -> Result<Self, OpenError> {
        Opening::new(Path::new(DEVICE_NODE), config, NonZeroUsize::MIN).first()
    }

    /// Creates or opens a device with 1 to 256 queues, one for each thread. The kernel assigns each flow to one queue.
    ///
    /// Any process with the right to can attach to a device with several queues, and then gets some of its packets. So
    /// one queue requests a single-queue device. An existing device must be of the same kind. Queues of other processes
    /// on a persistent device cannot be detected.
    ///
    /// The kernel assigns a flow to the queue that last sent a packet of the opposite direction. When that changes, two
    /// threads may briefly have packets of one flow.
    ///
    /// # Errors
    /// [`OpenError`]. No device and no descriptor is left then.
    pub fn open_queues(config: &TunConfig, queues: NonZeroUsize) -> Result<Vec<Self>, OpenError> {
        Opening::new(Path::new(DEVICE_NODE), config, queues).all()
    }

    /// Takes over a file descriptor with an attached device, for example from a privileged parent process.
    ///
    /// It sets the descriptor to non-blocking and keeps its close-on-exec flag. If the device was attached with
    /// `IFF_VNET_HDR`, it sets the offloads to `offload` and the header to 10 bytes. Otherwise it disables all
    /// offloads. These settings belong to the device, so take over all its queues with the same `offload`. The device
    /// counts one dropped packet: only a sent packet reveals the packet format.
    ///
    /// # Errors
    /// [`OpenError::NotAttached`] if no TUN device is attached, [`OpenError::WrongFlags`] if its packets have another
    /// format than IP. The file descriptor is closed then.
    pub fn from_fd(fd: OwnedFd, offload: TunOffload) -> Result<Self, OpenError> {
        let request = syscall::interface(fd.as_fd()).map_err(|source| OpenError::NotAttached { source })?;
        let name = open::name_of(&request);
        let have = request.flags;
        if have & (flags::TUN | flags::TAP) != flags::TUN {
            return Err(OpenError::WrongFlags { name, have });
        }
        if let Err(source) = set_non_blocking(&fd) {
            return Err(OpenError::Other { name, operation: "set O_NONBLOCK on", source });
        }
        let vnet = have & flags::VNET_HDR != 0;
        let offload = if vnet { offload } else { TunOffload::NONE };
        let (file, disabled, calls) = (File::from(fd), Disabled::default(), Calls::default());
        let tun = Self { file, name, created: false, vnet, offload, disabled, calls }.configured()?;
        match tun.has_packet_information() {
            Ok(false) => Ok(tun),
            Ok(true) => Err(OpenError::WrongFlags { name: tun.name, have: have & !flags::NO_PI }),
            Err(source) => Err(OpenError::Other { name: tun.name, operation: "find out the packet format of", source }),
        }
    }

    /// Returns the name of the device when it was opened. It may have been renamed since.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns true if [`Tun::open`] created the device, and false if it existed before.
    #[must_use]
    pub fn created(&self) -> bool {
        self.created
    }

    /// Returns the offloads that the kernel granted.
    #[must_use]
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Returns true if the device was opened with `IFF_VNET_HDR`: every packet that is read from or written to its file
    /// descriptor then has a [`VnetHeader`] of 10 bytes in front. [`recv`](Self::recv) and [`send`](Self::send) take care of it.
    #[must_use]
    pub fn has_vnet_header(&self) -> bool {
        self.vnet
    }

    /// Returns the requested features that the kernel lacks or did not grant.
    pub fn disabled(&self) -> impl Iterator<Item = Feature> {
        self.disabled.iter()
    }

    /// Sets whether the device, with its addresses and routes, outlives this object.
    ///
    /// # Errors
    /// The error of the system call: EBADFD if the device was deleted.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        syscall::set_persist(self.file.as_fd(), persistent)
    }

    /// Receives the next packet that was routed to the device.
    ///
    /// With offloads it may be a GSO packet of up to 64 KiB, and its transport checksum may be incomplete. Call
    /// [`VnetHeader::inspect`] of [`TunMeta::header`] before you forward the packet.
    ///
    /// A buffer of less than [`PACKET_MAX`] + 1 bytes may truncate a packet without a notice.
    ///
    /// # Errors
    /// [`TunError::WouldBlock`] if there is no packet, also while the device is down. After a fatal error
    /// ([`TunError::is_fatal`]) every call fails. Other errors concern one packet.
    pub fn recv(&self, buffer: &mut [u8]) -> Result<TunMeta, TunError> {
        if !self.vnet {
            let len = uninterrupted(|| self.calls.read(&self.file, buffer))?;
            return Ok(TunMeta { len, header: VnetHeader::default() });
        }
        let mut header = [0; VNET_HEADER_LEN];
        let len = uninterrupted(|| {
            let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
            self.calls.read_parts(&self.file, &mut parts)
        })?;
        received(len, header)
    }

    /// Sends a packet to the kernel, which receives it from the device and verifies its transport checksum.
    ///
    /// The kernel checks only the IP version. The caller must ensure that the packet is valid.
    ///
    /// # Errors
    /// The packet is lost. After a fatal error ([`TunError::is_fatal`]) every call fails. Other errors concern one
    /// packet.
    pub fn send(&self, packet: &[u8]) -> Result<(), TunError> {
        self.send_with(&VnetHeader::default(), packet)
    }

    /// Sends a packet with a header that requests checksum completion or segmentation from the kernel.
    ///
    /// # Errors
    /// [`TunError::Rejected`] with EINVAL if the kernel does not accept this GSO packet. Send its segments one by one.
    /// A device without offloads has no header and rejects every request.
    pub fn send_with(&self, header: &VnetHeader, packet: &[u8]) -> Result<(), TunError> {
        if self.vnet {
            let header = header.to_bytes();
            let parts = [IoSlice::new(&header), IoSlice::new(packet)];
            uninterrupted(|| self.calls.write_parts(&self.file, &parts)).map(|_all| ())
        } else if *header == VnetHeader::default() {
            uninterrupted(|| self.calls.write(&self.file, packet)).map(|_all| ())
        } else {
            Err(TunError::Rejected(libc::EINVAL))
        }
    }

    /// Configures the device and stores the granted offloads.
    fn configured(mut self) -> Result<Self, OpenError> {
        let result = self.set_header_form().and_then(|()| self.set_offload());
        match result {
            Ok(offload) => {
                self.offload = offload;
                Ok(self)
            }
            Err((operation, source)) => Err(OpenError::Other { name: self.name, operation, source }),
        }
    }

    fn set_header_form(&self) -> Result<(), (&'static str, io::Error)> {
        if !self.vnet {
            return Ok(());
        }
        let device = self.file.as_fd();
        let length = VNET_HEADER_LEN as c_int;
        // A new device has a header of 10 bytes in native byte order. So a sandbox that lacks these requests is no
        // problem for it.
        let pass_over = |result: io::Result<()>, is_default: bool| {
            result.or_else(|error| if is_default && is_missing(&error) { Ok(()) } else { Err(error) })
        };
        pass_over(syscall::set_vnet_header_len(device, length), self.created)
            .map_err(|error| ("set the header length of", error))?;
        pass_over(syscall::set_vnet_little_endian(device, true), cfg!(target_endian = "little"))
            .map_err(|error| ("set the byte order of", error))?;
        // Big-endian is overridden by little-endian, and few kernels support the request. It only clears a former
        // setting.
        let _unknown = syscall::set_vnet_big_endian(device, false);
        Ok(())
    }

    /// Sets the offloads and returns the granted ones. Without a virtio-net header all must be off: a GSO packet would look
    /// too long, and a packet with an incomplete checksum would look damaged.
    fn set_offload(&self) -> Result<TunOffload, (&'static str, io::Error)> {
        let set = |offload: TunOffload| syscall::set_offload(self.file.as_fd(), offload.mask()).map(|()| offload);
        let wish = self.offload;
        // Linux before 6.2 returns EINVAL for UDP. Every kernel has TCP of both families or of none.
        let granted = set(wish).or_else(|_| set(TunOffload { uso: false, ..wish })).or_else(|_| set(TunOffload::NONE));
        // A new device has no offloads enabled.
        let granted = granted.or_else(|error| match self.created && is_missing(&error) {
            true => Ok(TunOffload::NONE),
            false => Err(("set the offloads of", error)),
        })?;
        self.disabled.add_unless(granted.tso || !wish.tso, Feature::TunTso);
        self.disabled.add_unless(granted.uso || !wish.uso, Feature::TunUso);
        Ok(granted)
    }

    /// Returns true if every packet has four bytes of packet information in front.
    ///
    /// `TUNGETIFF` does not tell: it always sets the bit of `IFF_NO_PI`, which is also that of `IFF_NOFILTER`. So this
    /// function sends four zero bytes. With packet information they are an empty packet without protocol, and the
    /// result depends on the state of the device. Without it they are a packet of IP version 0, which is refused in any
    /// state (`tun_get_user` in drivers/net/tun.c). A virtio-net header follows the packet information and is zero too.
    fn has_packet_information(&self) -> io::Result<bool> {
        let zeros = if self.vnet { &[0; 4 + VNET_HEADER_LEN][..] } else { &[0; 4] };
        loop {
            match self.calls.write(&self.file, zeros) {
                Ok(_accepted) => return Ok(true),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EINVAL) => return Ok(false),
                    Some(libc::EIO) => return Ok(true),
                    _ => return Err(error),
                },
            }
        }
    }
}

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns the header and the packet length of a read of `len` bytes.
#[inline]
fn received(len: usize, header: [u8; VNET_HEADER_LEN]) -> Result<TunMeta, TunError> {
    let packet = len.checked_sub(VNET_HEADER_LEN).ok_or(TunError::Headless { len })?;
    Ok(TunMeta { len: packet, header: VnetHeader::from_bytes(header) })
}

fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> Result<usize, TunError> {
    loop {
        match call() {
            Ok(length) => return Ok(length),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => {}
                errno => return Err(TunError::from_errno(errno.unwrap_or(libc::EIO))),
            },
        }
    }
}

fn set_non_blocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests;
