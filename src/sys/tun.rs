//! The TUN device.

mod config;
mod error;
mod open;

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_int;
use core::num::NonZeroUsize;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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

/// The largest packet a TUN device carries, in bytes: the largest an IPv4 header can describe (RFC 791, 3.1).
///
/// The kernel cuts a packet that is longer than the buffer of [`Tun::recv`] and does not tell. A buffer of at least
/// `PACKET_MAX + 1` bytes never has a packet cut.
pub const PACKET_MAX: usize = 65_535;

/// Where the kernel offers TUN devices (Documentation/networking/tuntap.rst).
pub(crate) const DEVICE_NODE: &str = "/dev/net/tun";

/// `IFF_*` of linux/if_tun.h. `TUNSETIFF` takes and `TUNGETIFF` gives them as a 16-bit number.
mod flags {
    pub(super) const TUN: u16 = libc::IFF_TUN as u16;
    pub(super) const TAP: u16 = libc::IFF_TAP as u16;
    pub(super) const NO_PI: u16 = libc::IFF_NO_PI as u16;
    pub(super) const VNET_HDR: u16 = libc::IFF_VNET_HDR as u16;
    pub(super) const MULTI_QUEUE: u16 = libc::IFF_MULTI_QUEUE as u16;
    pub(super) const EXCLUSIVE: u16 = libc::IFF_TUN_EXCL as u16;
    pub(super) const PERSIST: u16 = libc::IFF_PERSIST as u16;
}

/// A TUN device, or one queue of it: what it receives are the IP packets that the kernel routes into it, what it sends comes
/// out of it.
///
/// It never blocks; wait for its file descriptor ([`AsFd`]) to become readable. Dropping it closes the file descriptor.
/// With the last one the kernel removes the device, unless it is persistent.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    created: bool,
    /// Whether there is a virtio-net header in front of every packet.
    vnet: bool,
    offload: TunOffload,
    disabled: Disabled,
    calls: Calls,
}

impl Tun {
    /// Makes a device, or attaches to a persistent one of that name which nobody uses. Its name is [`Tun::name`].
    ///
    /// A new one is down and has no address; `link::Link` sees to that. The offloads and the form of the header that a former
    /// process left behind on a persistent device are set anew: they are the device's and outlive the process.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left open or made then. Features that the kernel lacks are no error: see [`Tun::disabled`].
    pub fn open(config: &TunConfig) -> Result<Self, OpenError> {
        Opening::new(Path::new(DEVICE_NODE), config, NonZeroUsize::MIN).first()
    }

    /// The same with several queues, 1 to 256, one for each thread of a program. The kernel gives each flow to one of them.
    ///
    /// A device that is made for several queues can be attached to by any process with the right to, which then gets a share
    /// of the packets, so one queue asks for a device of one. An existing device must be of the same kind. That another process
    /// has queues of a persistent one cannot be noticed.
    ///
    /// The kernel gives a flow to the queue that last sent a packet of its other direction. If that changes, two threads may
    /// have packets of one flow for a moment.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left open or made then.
    pub fn open_queues(config: &TunConfig, queues: NonZeroUsize) -> Result<Vec<Self>, OpenError> {
        Opening::new(Path::new(DEVICE_NODE), config, queues).all()
    }

    /// Takes over a file descriptor on which a device has been attached already, as a privileged parent passes it on.
    ///
    /// It is made non-blocking; whether it is closed on exec stays as it is. The offloads of a device that was attached with
    /// `IFF_VNET_HDR` are set to `offload`, and its header to the 10 bytes we know; on one without they are switched off,
    /// whatever is asked for. They are the device's, so that all its queues must be taken over alike. The device counts one
    /// dropped packet: sending it is the one way to learn the packet format.
    ///
    /// # Errors
    /// [`OpenError::NotAttached`] when it is something else than an attached TUN device, [`OpenError::WrongFlags`] when
    /// packets would come in another form than IP. The file descriptor is closed then.
    pub fn from_fd(fd: OwnedFd, offload: TunOffload) -> Result<Self, OpenError> {
        let request = syscall::interface(fd.as_fd()).map_err(|source| OpenError::NotAttached { source })?;
        let name = open::name_of(&request);
        let have = request.flags;
        if have & (flags::TUN | flags::TAP) != flags::TUN {
            return Err(OpenError::WrongFlags { name, have });
        }
        if let Err(source) = set_non_blocking(&fd) {
            return Err(OpenError::Other { name, doing: "set O_NONBLOCK on", source });
        }
        let vnet = have & flags::VNET_HDR != 0;
        let offload = if vnet { offload } else { TunOffload::NONE };
        let (file, disabled, calls) = (File::from(fd), Disabled::default(), Calls::default());
        let tun = Self { file, name, created: false, vnet, offload, disabled, calls }.configured()?;
        match tun.has_packet_information() {
            Ok(false) => Ok(tun),
            Ok(true) => Err(OpenError::WrongFlags { name: tun.name, have: have & !flags::NO_PI }),
            Err(source) => Err(OpenError::Other { name: tun.name, doing: "find out the packet format of", source }),
        }
    }

    /// The name the kernel gave the device when it was opened. Someone may have renamed it since.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether [`Tun::open`] made the device, as opposed to one that was there.
    #[must_use]
    pub fn created(&self) -> bool {
        self.created
    }

    /// Which packets come unsegmented: what the kernel granted of what was asked for.
    #[must_use]
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// The features that the kernel lacks, or did not grant of what was asked for.
    pub fn disabled(&self) -> impl Iterator<Item = Feature> {
        self.disabled.iter()
    }

    /// Says whether the device, with its addresses and routes, outlives this object.
    ///
    /// # Errors
    /// Of the system call: EBADFD when the device was deleted.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        syscall::set_persist(self.file.as_fd(), persistent)
    }

    /// Takes the next packet that was routed into the device.
    ///
    /// With offloads it may be a super-packet of up to 64 KiB, and its transport checksum may have yet to be computed:
    /// [`VnetHeader::inspect`] of [`TunMeta::header`] says which, and has to be asked before the packet goes anywhere.
    ///
    /// With less than [`PACKET_MAX`] + 1 bytes of buffer a packet may be cut, which cannot be noticed.
    ///
    /// # Errors
    /// [`TunError::WouldBlock`] when there is none, also while the device is down. [`TunError::is_fatal`] ends it;
    /// everything else concerns one packet.
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

    /// Hands a packet to the kernel as if it had arrived on the device. Its transport checksum is looked at.
    ///
    /// The kernel looks at no more than the IP version: whether the rest is valid is for the caller to know.
    ///
    /// # Errors
    /// The packet is lost then. [`TunError::is_fatal`] ends it; everything else concerns one packet.
    pub fn send(&self, packet: &[u8]) -> Result<(), TunError> {
        self.send_with(&VnetHeader::default(), packet)
    }

    /// The same with a header that asks the kernel to complete the checksum, or to take the packet for a train of segments.
    ///
    /// # Errors
    /// [`TunError::Rejected`] with EINVAL from kernels that do not take this train: send its segments one by one. A
    /// device without offloads, which has no header, rejects any that asks for something.
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

    /// Sets what is the device's, and notes what of the offloads was granted.
    fn configured(mut self) -> Result<Self, OpenError> {
        let result = self.set_header_form().and_then(|()| self.set_offload());
        match result {
            Ok(offload) => {
                self.offload = offload;
                Ok(self)
            }
            Err((doing, source)) => Err(OpenError::Other { name: self.name, doing, source }),
        }
    }

    fn set_header_form(&self) -> Result<(), (&'static str, io::Error)> {
        if !self.vnet {
            return Ok(());
        }
        let device = self.file.as_fd();
        let length = VNET_HEADER_LEN as c_int;
        // A device that was made just now has a header of 10 bytes in the machine's order, so that a sandbox without these
        // requests does no harm.
        let pass_over = |result: io::Result<()>, is_default: bool| {
            result.or_else(|error| if is_default && is_missing(&error) { Ok(()) } else { Err(error) })
        };
        pass_over(syscall::set_vnet_header_len(device, length), self.created)
            .map_err(|error| ("set the header length of", error))?;
        pass_over(syscall::set_vnet_little_endian(device, true), cfg!(target_endian = "little"))
            .map_err(|error| ("set the byte order of", error))?;
        // Little-endian goes before it, and few kernels know it at all: only so that no trace of it is left.
        let _unknown = syscall::set_vnet_big_endian(device, false);
        Ok(())
    }

    /// Without a virtio-net header an unsegmented packet would look like one that is too long, and one without a
    /// checksum like a damaged one, so that all offloads have to be off then.
    fn set_offload(&self) -> Result<TunOffload, (&'static str, io::Error)> {
        let set = |offload: TunOffload| syscall::set_offload(self.file.as_fd(), offload.mask()).map(|()| offload);
        let wish = self.offload;
        // EINVAL: older than Linux 6.2.
        let granted = set(wish).or_else(|_| set(TunOffload { uso: false, ..wish })).or_else(|_| set(TunOffload::NONE));
        // A device that was made just now has none.
        let granted = granted.or_else(|error| match self.created && is_missing(&error) {
            true => Ok(TunOffload::NONE),
            false => Err(("set the offloads of", error)),
        })?;
        self.disabled.add_unless(granted.tso || !wish.tso, Feature::TunTso);
        self.disabled.add_unless(granted.uso || !wish.uso, Feature::TunUso);
        Ok(granted)
    }

    /// Whether the kernel takes and gives four bytes in front of every packet.
    ///
    /// `TUNGETIFF` does not tell: `IFF_NOFILTER` has the same bit as `IFF_NO_PI`, and it sets that one always. So four
    /// zeros are sent. With packet information they are an empty packet of no protocol, for which it looks whether the
    /// device is up; without, they are a packet of IP version 0, refused in either state (`tun_get_user` in
    /// drivers/net/tun.c). A virtio-net header, if there is one, is behind the packet information and as zero.
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

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Of so many bytes read the header and the length of the packet.
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
