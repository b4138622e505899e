//! The TUN device.

use alloc::borrow::ToOwned;
use alloc::string::String;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::syscall::{self, INTERFACE_NAME, InterfaceRequest};

/// The largest packet a TUN device carries, in bytes: the largest an IPv4 header can describe (RFC 791, 3.1).
///
/// The kernel cuts a packet that is longer than the buffer of [`Tun::recv`] and does not tell. A buffer of at least
/// `PACKET_MAX + 1` bytes never has a packet cut.
pub const PACKET_MAX: usize = 65_535;

/// Where the kernel offers TUN devices (Documentation/networking/tuntap.rst).
const DEVICE_NODE: &str = "/dev/net/tun";
/// `IFF_*` of linux/if_tun.h. `TUNSETIFF` takes and `TUNGETIFF` gives them as a 16-bit number.
mod flags {
    pub(super) const TUN: u16 = libc::IFF_TUN as u16;
    pub(super) const TAP: u16 = libc::IFF_TAP as u16;
    pub(super) const NO_PI: u16 = libc::IFF_NO_PI as u16;
    pub(super) const VNET_HDR: u16 = libc::IFF_VNET_HDR as u16;
    pub(super) const EXCLUSIVE: u16 = libc::IFF_TUN_EXCL as u16;
    pub(super) const PERSIST: u16 = libc::IFF_PERSIST as u16;
}

/// Which device to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// Its name, or a pattern such as `loden%d`, in which the kernel replaces `%d` by the lowest number that is free.
    ///
    /// 1 to 15 bytes; neither `/`, `:`, white space nor NUL; `%` only as one `%d`; not `.` or `..` (`dev_valid_name` in
    /// the kernel's net/core/dev.c).
    pub name: String,
}

impl Default for TunConfig {
    /// The pattern `loden%d`.
    fn default() -> Self {
        Self { name: "loden%d".to_owned() }
    }
}

/// A TUN device: what it receives are the IP packets that the kernel routes into it, what it sends comes out of it.
///
/// It never blocks; wait for its file descriptor ([`AsFd`]) to become readable. Dropping it closes the file descriptor,
/// and with that the kernel removes the device, unless it is persistent.
///
/// A packet is the bare IP packet, without the kernel's packet information or a virtio-net header.
#[derive(Debug)]
pub struct Tun {
    file: File,
    name: String,
    created: bool,
}

impl Tun {
    /// Makes a device, or attaches to a persistent one of that name which nobody uses. Its name is [`Tun::name`].
    ///
    /// A new one is down and has no address; `link::Link` sees to that. Offloads that a former process left behind on a
    /// persistent device are switched off: they are the device's and outlive the process.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is left open or made then.
    pub fn open(config: &TunConfig) -> Result<Self, OpenError> {
        Self::open_node(Path::new(DEVICE_NODE), config)
    }

    /// Takes over a file descriptor on which a device has been attached already, as a privileged parent passes it on.
    ///
    /// It is made non-blocking and the device's offloads are switched off; whether it is closed on exec stays as it is.
    /// The device counts one dropped packet: sending it is the one way to learn the packet format.
    ///
    /// # Errors
    /// [`OpenError::NotAttached`] when it is something else than an attached TUN device, [`OpenError::WrongFlags`] when
    /// packets would come in another form than bare IP. The file descriptor is closed then.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, OpenError> {
        let request = syscall::interface(fd.as_fd()).map_err(|source| OpenError::NotAttached { source })?;
        let name = name_of(&request);
        let have = request.flags;
        if have & (flags::TUN | flags::TAP | flags::VNET_HDR) != flags::TUN {
            return Err(OpenError::WrongFlags { name, have });
        }
        if let Err(source) = set_non_blocking(&fd) {
            return Err(OpenError::Other { name, doing: "set O_NONBLOCK on", source });
        }
        let file = File::from(fd);
        match has_packet_information(&file) {
            Ok(false) => Self::without_offload(file, name, false),
            Ok(true) => Err(OpenError::WrongFlags { name, have: have & !flags::NO_PI }),
            Err(source) => Err(OpenError::Other { name, doing: "find out the packet format of", source }),
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

    /// Says whether the device, with its addresses and routes, outlives this object.
    ///
    /// # Errors
    /// Of the system call: EBADFD when the device was deleted.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        syscall::set_persist(self.file.as_fd(), persistent)
    }

    /// Takes the next packet that was routed into the device and returns its length in bytes.
    ///
    /// With less than [`PACKET_MAX`] + 1 bytes of buffer a packet may be cut, which cannot be noticed.
    ///
    /// # Errors
    /// [`TunError::WouldBlock`] when there is none, also while the device is down. [`TunError::is_fatal`] ends it;
    /// everything else concerns one packet.
    pub fn recv(&self, buffer: &mut [u8]) -> Result<usize, TunError> {
        uninterrupted(|| (&self.file).read(buffer))
    }

    /// Hands a packet to the kernel as if it had arrived on the device.
    ///
    /// The kernel looks at no more than the IP version: whether the rest is valid is for the caller to know.
    ///
    /// # Errors
    /// The packet is lost then. [`TunError::is_fatal`] ends it; everything else concerns one packet.
    pub fn send(&self, packet: &[u8]) -> Result<(), TunError> {
        uninterrupted(|| (&self.file).write(packet)).map(|_all| ())
    }

    fn open_node(node: &Path, config: &TunConfig) -> Result<Self, OpenError> {
        let name = checked_name(&config.name)?;
        // std adds O_CLOEXEC.
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(node);
        let file = opened.map_err(|source| OpenError::of_node(node, &config.name, source))?;
        Self::attach(file, node, &config.name, name)
    }

    fn attach(file: File, node: &Path, asked: &str, name: [u8; INTERFACE_NAME]) -> Result<Self, OpenError> {
        let form = flags::TUN | flags::NO_PI;
        // Without IFF_MULTI_QUEUE, which would let anyone attach a second queue and get a share of the packets.
        let attach = |more| syscall::set_interface(file.as_fd(), InterfaceRequest::new(name, form | more));
        let attached = match attach(flags::EXCLUSIVE) {
            // There is a device of that name. If it is a persistent TUN device that nobody uses, it can be ours.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => attach(0),
            result => result,
        };
        let request = attached.map_err(|source| OpenError::of_device(node, asked, source))?;
        let name = name_of(&request);
        // The device may have vanished between the two attempts, so that the second one made it. One that was there
        // before us is persistent, because nobody held it; one that we made is not yet.
        match syscall::interface(file.as_fd()) {
            Ok(now) => Self::without_offload(file, name, now.flags & flags::PERSIST == 0),
            Err(source) => Err(OpenError::Other { name, doing: "read the flags of", source }),
        }
    }

    /// Without a virtio-net header an unsegmented packet would look like one that is too long, and one without a
    /// checksum like a damaged one.
    fn without_offload(file: File, name: String, created: bool) -> Result<Self, OpenError> {
        match syscall::set_offload(file.as_fd(), 0) {
            Ok(()) => Ok(Self { file, name, created }),
            Err(source) => Err(OpenError::Other { name, doing: "switch off the offloads of", source }),
        }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Why there is no TUN device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The name is none that an interface can have.
    #[error(
        "{name:?} cannot name an interface: {problem}; use a name such as \"loden0\" or a pattern such as \"loden%d\""
    )]
    BadName {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Another process, or another object of this one, has the device open.
    #[error(
        "the TUN device {name} is in use by another process; end that one (`fuser -v /dev/net/tun` lists who has TUN \
         devices open), or open one of another name"
    )]
    Busy {
        /// The device.
        name: String,
    },
    /// The kernel offers no TUN devices here.
    #[error(
        "{node} offers no TUN devices: {source}; load the kernel module with `modprobe tun`, or in a container pass \
         the device in, e.g. with `--device /dev/net/tun`"
    )]
    MissingDevice {
        /// Path of the device node.
        node: String,
        /// The error number.
        source: io::Error,
    },
    /// The process may not open the device node, or may not make or attach to a device.
    #[error(
        "no permission to {doing} the TUN device {name}: {source}; it needs read and write access to /dev/net/tun, and \
         CAP_NET_ADMIN in the user namespace that owns this network namespace unless the device was made for this \
         user: run as root, or grant both"
    )]
    NoPermission {
        /// What was asked for.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// The error number.
        source: io::Error,
    },
    /// The file descriptor has no TUN device attached, or its device was deleted.
    #[error(
        "the file descriptor has no TUN device attached: {source}; pass one of /dev/net/tun on which TUNSETIFF has \
         succeeded"
    )]
    NotAttached {
        /// The error number: ENOTTY if it is something else, EBADFD if nothing is attached.
        source: io::Error,
    },
    /// The name belongs to an interface of another kind.
    #[error(
        "the interface {name} exists, and is not a TUN device with one queue (`ip -d link show {name}` tells what it \
         is); remove it with `ip link delete {name}`, or open one of another name"
    )]
    WrongKind {
        /// The interface.
        name: String,
    },
    /// The device of the file descriptor passes packets in another form than bare IP.
    #[error("the device {name} has the flags {have:#06x}: {}", explain(*.have))]
    WrongFlags {
        /// The device.
        name: String,
        /// `IFF_*` of linux/if_tun.h: what `TUNGETIFF` says, less `IFF_NO_PI` if that is not so.
        have: u16,
    },
    /// The kernel refused for another reason.
    #[error("could not {doing} the TUN device {name}: {source}; see the kernel's log (`dmesg`)")]
    Other {
        /// The device.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// The error number.
        source: io::Error,
    },
}

impl OpenError {
    /// What `open` of the node says.
    fn of_node(node: &Path, name: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                Self::NoPermission { name: name.to_owned(), doing: "open /dev/net/tun for", source }
            }
            // The last two: there is a node, but no driver behind it.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO) => Self::missing(node, source),
            _ => Self::Other { name: name.to_owned(), doing: "open /dev/net/tun for", source },
        }
    }

    /// What `TUNSETIFF` says (`tun_set_iff` and `tun_attach` in the kernel's drivers/net/tun.c).
    fn of_device(node: &Path, name: &str, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) => Self::Busy { name },
            Some(libc::EACCES | libc::EPERM) => Self::NoPermission { name, doing: "make or attach to", source },
            // The name is legal, so what does not fit is the interface that has it.
            Some(libc::EINVAL) => Self::WrongKind { name },
            // The node is a file or another device.
            Some(libc::ENOTTY) => Self::missing(node, source),
            _ => Self::Other { name, doing: "make or attach to", source },
        }
    }

    fn missing(node: &Path, source: io::Error) -> Self {
        Self::MissingDevice { node: node.to_string_lossy().into_owned(), source }
    }
}

/// Why a packet was neither received nor sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunError {
    /// EBADF: the file descriptor is not open. Final, and a bug: somebody closed a file descriptor that is not theirs.
    #[error("the file descriptor of the TUN device was closed by someone else in this process; find out by whom")]
    Closed,
    /// EBADFD: the device was deleted. Final; its file descriptor stays readable for ever.
    #[error("the TUN device was deleted; stop polling it and open a new one")]
    Deleted,
    /// EIO: the device is down. Only sending says so; receiving says [`TunError::WouldBlock`].
    #[error("the TUN device is down; set it up, and restore the overlay's route, which the kernel removed")]
    Down,
    /// ENOBUFS or ENOMEM: the kernel has no memory for the packet.
    #[error("the kernel has no memory for a packet; send fewer at once")]
    Full,
    /// The kernel refuses this one packet: EINVAL when it is empty or begins with neither IP version 4 nor 6.
    #[error("the kernel refused a packet with error number {0}; the next one may pass")]
    Rejected(
        /// The error number.
        i32,
    ),
    /// EAGAIN: nothing to receive. On sending: more packets are on their way through the kernel than `TUNSETSNDBUF`
    /// permits, which is for ever by default (`sock_alloc_send_pskb` in net/core/sock.c); wait until it is writable.
    #[error("not now; wait until the TUN device is ready")]
    WouldBlock,
}

impl TunError {
    /// Whether every later call would fail too, so that the device must be opened anew.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        match self {
            Self::Closed | Self::Deleted => true,
            Self::Down | Self::Full | Self::Rejected(_) | Self::WouldBlock => false,
        }
    }

    fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EAGAIN => Self::WouldBlock,
            libc::EBADF => Self::Closed,
            libc::EBADFD => Self::Deleted,
            libc::EIO => Self::Down,
            libc::ENOBUFS | libc::ENOMEM => Self::Full,
            other => Self::Rejected(other),
        }
    }
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

/// The name as the kernel takes it, if `dev_valid_name` and `dev_alloc_name` in its net/core/dev.c would.
fn checked_name(name: &str) -> Result<[u8; INTERFACE_NAME], OpenError> {
    let bad = |problem| Err(OpenError::BadName { name: name.to_owned(), problem });
    let mut field = [0; INTERFACE_NAME];
    match field.split_last_mut().and_then(|(_end, room)| room.get_mut(..name.len())) {
        None => return bad("it is longer than 15 bytes"),
        Some([]) => return bad("it is empty"),
        Some(room) => room.copy_from_slice(name.as_bytes()),
    }
    // 0xa0: the kernel reads a name as Latin-1, where that is a space.
    let unfit = |byte: u8| matches!(byte, 0 | b'\t'..=b'\r' | b' ' | b'/' | b':' | 0xa0);
    if name.bytes().any(unfit) {
        return bad("it contains a slash, a colon, white space or NUL");
    }
    if name == "." || name == ".." {
        return bad("it is a directory's");
    }
    if name.replacen("%d", "", 1).contains('%') {
        return bad("it contains a % besides one %d");
    }
    Ok(field)
}

fn name_of(request: &InterfaceRequest) -> String {
    let name = request.name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// Whether the kernel takes and gives four bytes in front of every packet.
///
/// `TUNGETIFF` does not tell: `IFF_NOFILTER` has the same bit as `IFF_NO_PI`, and it sets that one always. So four
/// zeros are sent. With packet information they are an empty packet of no protocol, for which it looks whether the
/// device is up; without, they are a packet of IP version 0, refused in either state (`tun_get_user` in
/// drivers/net/tun.c).
fn has_packet_information(mut file: &File) -> io::Result<bool> {
    loop {
        match file.write(&[0; 4]) {
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

fn set_non_blocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn explain(have: u16) -> &'static str {
    if have & flags::TUN == 0 {
        "it is a TAP device and passes Ethernet frames; attach a TUN device"
    } else if have & flags::NO_PI == 0 {
        "it puts packet information in front of every packet; attach with IFF_NO_PI"
    } else {
        "it puts a virtio-net header in front of every packet; attach without IFF_VNET_HDR"
    }
}

#[cfg(test)]
mod tests;
