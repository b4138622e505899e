//! What can go wrong while a link is set up or watched, and what to do about it.

use alloc::string::String;
use core::net::{IpAddr, Ipv4Addr};
use std::io;

use ipnet::Ipv4Net;

use super::netlink::Failure;

/// Why a link could not be set up, watched or taken down.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The TUN device's address is not part of the overlay.
    #[error(
        "the address {address} is outside the overlay network {network}; use the network address of this host's lease"
    )]
    AddressOutside {
        /// The address asked for.
        address: Ipv4Addr,
        /// The overlay network asked for.
        network: Ipv4Net,
    },
    /// The kernel's tables changed during every attempt to read them.
    #[error("the kernel's tables changed during each of {attempts} attempts to {doing}; try again")]
    Busy {
        /// What was being done.
        doing: &'static str,
        /// How often it was tried.
        attempts: u32,
    },
    /// The kernel's answer could not be understood.
    #[error("could not {doing}: the kernel's answer is malformed; please report it with the kernel's version")]
    Malformed {
        /// What was being done.
        doing: &'static str,
        /// What is wrong with the answer.
        source: MalformedReply,
    },
    /// The device cannot have that MTU.
    #[error(
        "an MTU of {mtu} is out of range for {interface}, which takes {min}..={max}; a TUN device has the underlay's \
         MTU less 28"
    )]
    MtuOutOfRange {
        /// The device.
        interface: String,
        /// The MTU asked for.
        mtu: u32,
        /// The smallest it takes.
        min: u32,
        /// The largest it takes.
        max: u32,
    },
    /// The interface has no IPv4 address.
    #[error("{interface} has no IPv4 address; give it one, or name an interface that has (`ip -4 address` lists them)")]
    NoAddress {
        /// The interface.
        interface: String,
    },
    /// The process may not configure the network.
    #[error(
        "no permission to {doing} on {interface}: it needs CAP_NET_ADMIN in the user namespace that owns this network \
         namespace; run as root, or grant the capability"
    )]
    NoPermission {
        /// What was being done.
        doing: &'static str,
        /// The device.
        interface: String,
    },
    /// There is no such device, or it is gone.
    #[error(
        "there is no interface {interface} in this network namespace, or none any more; `ip link` lists those there are, \
         and a TUN device is one while it is open"
    )]
    NoSuchInterface {
        /// The name asked for, or the name the device had.
        interface: String,
    },
    /// No interface holds the address.
    #[error(
        "no interface of this host holds {address}; use an address that `ip address` lists in this network namespace, \
         and not a wildcard"
    )]
    NotHeld {
        /// The address asked for.
        address: IpAddr,
    },
    /// The kernel refused for a reason that has no variant of its own.
    #[error(
        "the kernel refused to {doing} on {interface}: {source} ({}); check the device with `ip -d link show`",
        .reason.as_deref().unwrap_or("it gives no reason")
    )]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// The device.
        interface: String,
        /// The kernel's own words, where it has any.
        reason: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// The overlay network is routed elsewhere, so that no packet would reach the TUN device.
    #[error(
        "the route to {network} is taken by {}; remove it (`ip route show exact {network}` lists it: another overlay, \
         or what a former backend left behind), or choose another overlay network",
        .interface.as_deref().unwrap_or("a route without a single interface")
    )]
    RouteTaken {
        /// The overlay network.
        network: Ipv4Net,
        /// Where the route points to; `None` for a blackhole, a multipath route and the like.
        interface: Option<String>,
    },
    /// Someone set the link down while it was being configured.
    #[error("{interface} was set down while it was being configured; find out who does that, then try again")]
    SetDown {
        /// The device.
        interface: String,
    },
    /// The netlink socket failed.
    #[error("could not {doing}: the netlink socket failed: {source}")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// The error of the system call. `WouldBlock` means that the kernel did not answer in time.
        source: io::Error,
    },
}

impl LinkError {
    pub(crate) fn new(failure: Failure, doing: &'static str, interface: &str) -> Self {
        match failure {
            Failure::Interrupted { attempts } => Self::Busy { doing, attempts },
            Failure::Malformed(source) => Self::Malformed { doing, source },
            Failure::Refused { errno: libc::EPERM | libc::EACCES, .. } => {
                Self::NoPermission { doing, interface: interface.into() }
            }
            Failure::Refused { errno: libc::ENODEV, .. } => Self::NoSuchInterface { interface: interface.into() },
            Failure::Refused { errno, reason } => {
                let source = io::Error::from_raw_os_error(errno);
                Self::Refused { doing, interface: interface.into(), reason, source }
            }
            Failure::Socket(source) => Self::Socket { doing, source },
        }
    }
}

/// What is wrong with an answer of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedReply {
    /// An attribute claims a length that does not fit.
    #[error("an attribute among the last {have} bytes does not fit into them")]
    AttributeOverrun {
        /// Bytes from the first attribute on.
        have: usize,
    },
    /// An attribute has the wrong size.
    #[error("attribute {attribute} has {have} bytes instead of {needed}")]
    AttributeSize {
        /// The attribute's number.
        attribute: u16,
        /// Its size in bytes.
        have: usize,
        /// The size it must have.
        needed: usize,
    },
    /// The fixed part of a message is cut off.
    #[error("a message body has {have} bytes, less than its fixed part of {needed}")]
    Header {
        /// Bytes there are.
        have: usize,
        /// Bytes there must be.
        needed: usize,
    },
    /// A message claims more bytes than were received, or fewer than its own header has.
    #[error("a message claims {claimed} bytes of the {have} that were received")]
    Message {
        /// The length field; 0 if even that is cut off.
        claimed: u32,
        /// Bytes there are.
        have: usize,
    },
    /// The answer lacks what was asked for.
    #[error("it lacks {what}")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
    /// The answer did not fit into the receive buffer.
    #[error("it has {length} bytes, more than the {room} of the receive buffer")]
    Oversized {
        /// Bytes the kernel sent.
        length: usize,
        /// Bytes there was room for.
        room: usize,
    },
}
