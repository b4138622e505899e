//! Why there is no TUN device, or a packet was neither received nor sent.

use alloc::borrow::ToOwned;
use alloc::string::String;
use std::io;
use std::path::Path;

use super::flags;

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
    /// The device node is another device, or a file.
    #[error(
        "{node} is {found} and not the node that TUN devices come from; make it anew with `rm {node}` and \
         `mknod {node} c 10 200`"
    )]
    NotTunNode {
        /// Path of the device node.
        node: String,
        /// A description of it, with the numbers of a device.
        found: String,
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
    /// The name belongs to an interface of another kind, or to a TUN device that was made for one queue where several are
    /// asked for, or the other way about.
    #[error(
        "the interface {name} exists, and is not a TUN device made for {} (`ip -d link show {name}` tells what it is); \
         remove it with `ip link delete {name}`, or open one of another name",
        if *.queues == 1 { "one queue" } else { "several queues (IFF_MULTI_QUEUE)" }
    )]
    WrongKind {
        /// The interface.
        name: String,
        /// How many queues were asked for.
        queues: usize,
    },
    /// The device of the file descriptor passes packets in another form than IP.
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
    pub(super) fn of_node(node: &Path, name: &str, source: io::Error) -> Self {
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
    pub(super) fn of_device(name: &str, queues: usize, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EBUSY) => Self::Busy { name },
            Some(libc::EACCES | libc::EPERM) => Self::NoPermission { name, doing: "make or attach to", source },
            // The name is legal, so what does not fit is the interface that has it.
            Some(libc::EINVAL) => Self::WrongKind { name, queues },
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
    /// The device gave less than a virtio-net header. Only one packet is lost.
    #[error(
        "the TUN device gave {len} bytes, which is less than a virtio-net header of 10; the next packet may be whole"
    )]
    Headless {
        /// Bytes read, 0 to 9.
        len: usize,
    },
    /// The kernel refuses this one packet with EINVAL. On sending, it is empty or begins with neither IP version 4 nor 6, or
    /// its header is one that the kernel does not take: send its segments one by one. On receiving, a header cannot tell
    /// what the packet is; it is lost.
    #[error("the kernel refused a packet: {}", io::Error::from_raw_os_error(*.0))]
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
