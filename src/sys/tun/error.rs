//! Errors of TUN devices.

use alloc::borrow::ToOwned;
use alloc::string::String;
use std::io;
use std::path::Path;

use super::flags;

/// The reason why a TUN device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No interface can have the name.
    #[error(
        "{name:?} cannot name an interface: {problem}; use a name such as \"loden0\" or a pattern such as \"loden%d\""
    )]
    BadName {
        /// The requested name.
        name: String,
        /// The reason.
        problem: &'static str,
    },
    /// Another process, or another object of this process, uses the device.
    #[error(
        "the TUN device {name} is in use by another process; end that one (`fuser -v /dev/net/tun` lists who has TUN \
         devices open), or open one of another name"
    )]
    Busy {
        /// The device.
        name: String,
    },
    /// The kernel has no TUN devices.
    #[error(
        "{node} offers no TUN devices: {source}; load the kernel module with `modprobe tun`, or in a container pass \
         the device in, e.g. with `--device /dev/net/tun`"
    )]
    MissingDevice {
        /// The path of the device node.
        node: String,
        /// The system's error.
        source: io::Error,
    },
    /// The process may not open the device node, or may not create or attach to a device.
    #[error(
        "no permission to {operation} the TUN device {name}: {source}; it needs read and write access to /dev/net/tun, and \
         CAP_NET_ADMIN in the user namespace that owns this network namespace unless the device was made for this \
         user: run as root, or grant both"
    )]
    NoPermission {
        /// The requested name.
        name: String,
        /// The refused operation.
        operation: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The device node is another device or a file.
    #[error("{node} is {found} and not the TUN device node; create it with `rm {node}` and `mknod {node} c 10 200`")]
    NotTunNode {
        /// The path of the device node.
        node: String,
        /// A description of it, with the numbers of a device.
        found: String,
    },
    /// No TUN device is attached to the file descriptor, or the device was deleted.
    #[error(
        "the file descriptor has no TUN device attached: {source}; pass one of /dev/net/tun on which TUNSETIFF has \
         succeeded"
    )]
    NotAttached {
        /// The system's error: ENOTTY for another kind of file, EBADFD if no device is attached.
        source: io::Error,
    },
    /// The interface is not a TUN device, or is a TUN device with another queue mode: one queue instead of several, or
    /// the opposite.
    #[error(
        "the interface {name} exists, and is not a TUN device made for {} (`ip -d link show {name}` tells what it is); \
         remove it with `ip link delete {name}`, or open one of another name",
        if *.queues == 1 { "one queue" } else { "several queues (IFF_MULTI_QUEUE)" }
    )]
    WrongKind {
        /// The interface.
        name: String,
        /// The requested number of queues.
        queues: usize,
    },
    /// The packets of the device have another format than IP.
    #[error("the device {name} has the flags {have:#06x}: {}", explain(*.have))]
    WrongFlags {
        /// The device.
        name: String,
        /// `IFF_*` of linux/if_tun.h as returned by `TUNGETIFF`, without `IFF_NO_PI` if that is not set.
        have: u16,
    },
    /// The kernel refused for another reason.
    #[error("could not {operation} the TUN device {name}: {source}; see the kernel's log (`dmesg`)")]
    Other {
        /// The device.
        name: String,
        /// The refused operation.
        operation: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl OpenError {
    /// Converts an error from opening the device node.
    pub(super) fn of_node(node: &Path, name: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => {
                Self::NoPermission { name: name.to_owned(), operation: "open /dev/net/tun for", source }
            }
            // The last two mean that the node has no driver.
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO) => Self::missing(node, source),
            _ => Self::Other { name: name.to_owned(), operation: "open /dev/net/tun for", source },
        }
    }

    /// Converts an error of `TUNSETIFF` (`tun_set_iff` and `tun_attach` in the kernel's drivers/net/tun.c).
    pub(super) fn of_device(name: &str, queues: usize, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) => Self::Busy { name },
            Some(libc::EACCES | libc::EPERM) => Self::NoPermission { name, operation: "make or attach to", source },
            // The name is valid, so the existing interface is of another kind.
            Some(libc::EINVAL) => Self::WrongKind { name, queues },
            _ => Self::Other { name, operation: "make or attach to", source },
        }
    }

    fn missing(node: &Path, source: io::Error) -> Self {
        Self::MissingDevice { node: node.to_string_lossy().into_owned(), source }
    }
}

/// The reason why a packet was not received or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TunError {
    /// EBADF: the file descriptor is not open. This is fatal, and a bug: other code closed the descriptor.
    #[error("the file descriptor of the TUN device was closed by someone else in this process; find out by whom")]
    Closed,
    /// EBADFD: the device was deleted. This is fatal. The file descriptor stays readable.
    #[error("the TUN device was deleted; stop polling it and open a new one")]
    Deleted,
    /// EIO: the device is down. Only sends return it; receives return [`TunError::WouldBlock`].
    #[error("the TUN device is down; set it up, and restore the overlay's route, which the kernel removed")]
    Down,
    /// ENOBUFS or ENOMEM: the kernel has no memory for the packet.
    #[error("the kernel has no memory for a packet; send fewer at once")]
    Full,
    /// The device returned less than a virtio-net header. One packet is lost.
    #[error(
        "the TUN device gave {len} bytes, which is less than a virtio-net header of 10; the next packet may be whole"
    )]
    Headless {
        /// Bytes read, 0 to 9.
        len: usize,
    },
    /// EINVAL: the kernel refused this packet. A sent packet is empty, or is neither IPv4 nor IPv6, or has a header
    /// that the kernel does not accept; send its segments one by one. A received packet could not be described by a
    /// header and is lost.
    #[error("the kernel refused a packet: {}", io::Error::from_raw_os_error(*.0))]
    Rejected(
        /// The error number.
        i32,
    ),
    /// EAGAIN: no packet to receive. On sending, more packets are in the kernel than `TUNSETSNDBUF` permits, which has
    /// no limit by default (`sock_alloc_send_pskb` in net/core/sock.c). Wait until the descriptor is writable.
    #[error("not now; wait until the TUN device is ready")]
    WouldBlock,
}

impl TunError {
    /// Returns true if every later call fails too. Open the device again.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        match self {
            Self::Closed | Self::Deleted => true,
            Self::Down | Self::Full | Self::Headless { .. } | Self::Rejected(_) | Self::WouldBlock => false,
        }
    }

    pub(super) fn from_errno(errno: i32) -> Self {
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

fn explain(have: u16) -> &'static str {
    if have & flags::TUN == 0 {
        "it is a TAP device and passes Ethernet frames; attach a TUN device"
    } else {
        "it puts packet information in front of every packet; attach with IFF_NO_PI"
    }
}
