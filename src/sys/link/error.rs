//! Errors of link set-up and of the link monitor.

use alloc::string::String;
use core::net::IpAddr;
use std::io;

use ipnet::IpNet;

use super::netlink::NetlinkError;
use crate::host::MtuError;

/// An error of link set-up, of the link monitor or of a request about the underlay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The TUN device's address is not part of the overlay.
    #[error(
        "the address {address} is outside the overlay network {network}; use the network address of this host's lease"
    )]
    AddressOutside {
        /// The requested address.
        address: IpAddr,
        /// The requested overlay network.
        network: IpNet,
    },
    /// The kernel's tables changed during every attempt to read them.
    #[error("the kernel's tables changed during each of {attempts} attempts to {operation}; try again")]
    Busy {
        /// The operation that failed.
        operation: &'static str,
        /// The number of attempts.
        attempts: u32,
    },
    /// IPv6 is disabled on the device.
    #[error(
        "IPv6 is disabled on {interface}: set net.ipv6.conf.{interface}.disable_ipv6 to 0, and \
         net.ipv6.conf.default.disable_ipv6 for devices created later (`sysctl -w`), or configure no IPv6 network"
    )]
    Ipv6Disabled {
        /// The device.
        interface: String,
    },
    /// The kernel's reply is malformed.
    #[error("could not {operation}: the kernel's reply is malformed; report it with the version of the kernel")]
    Malformed {
        /// The operation that failed.
        operation: &'static str,
        /// The defect of the reply.
        source: MalformedReply,
    },
    /// The underlay's interface is too narrow for a tunnel.
    #[error(transparent)]
    Mtu(#[from] MtuError),
    /// IPv6 needs 1280 bytes on every link (RFC 8200 section 5).
    #[error(
        "MTU {mtu} of {interface} is below the IPv6 minimum of 1280; choose an underlay that leaves 1280 or more, or \
         configure no IPv6 network"
    )]
    MtuBelowIpv6 {
        /// The device.
        interface: String,
        /// The MTU in bytes.
        mtu: u32,
    },
    /// The MTU is out of range for the device.
    #[error(
        "MTU {mtu} is out of range for {interface}, which takes {min}..={max}; use the MTU of the underlay less 28"
    )]
    MtuOutOfRange {
        /// The device.
        interface: String,
        /// The requested MTU.
        mtu: u32,
        /// The smallest MTU that the device takes.
        min: u32,
        /// The largest MTU that the device takes.
        max: u32,
    },
    /// The interface has no IPv4 address.
    #[error("{interface} has no IPv4 address; give it one, or name an interface that has (`ip -4 address` lists them)")]
    NoAddress {
        /// The interface.
        interface: String,
    },
    /// The kernel has no IPv6.
    #[error(
        "the kernel has no IPv6, which the address {address} needs; load its module (`modprobe ipv6`), boot without \
         `ipv6.disable=1`, or configure no IPv6 network"
    )]
    NoIpv6 {
        /// The requested address.
        address: IpAddr,
    },
    /// The process lacks the right to configure the network.
    #[error(
        "no permission to {operation} on {interface}: it needs CAP_NET_ADMIN in the user namespace that owns this \
         network namespace; run as root, or grant the capability"
    )]
    NoPermission {
        /// The operation that failed.
        operation: &'static str,
        /// The device.
        interface: String,
    },
    /// The device does not exist, or does not exist any more.
    #[error(
        "there is no interface {interface} in this network namespace; `ip link` lists the interfaces, and a TUN device \
         exists while it is open"
    )]
    NoSuchInterface {
        /// The requested name, or the name that the device had.
        interface: String,
    },
    /// No interface of this host has the address.
    #[error(
        "no interface of this host holds {address}; use an address that `ip address` lists in this network \
         namespace, and not a wildcard"
    )]
    NoSuchAddress {
        /// The requested address.
        address: IpAddr,
    },
    /// The kernel returned an error without a variant of its own.
    #[error(
        "the kernel refused to {operation} on {interface}: {source} ({}); check the device with `ip -d link show`",
        .reason.as_deref().unwrap_or("without a reason")
    )]
    Refused {
        /// The operation that failed.
        operation: &'static str,
        /// The device.
        interface: String,
        /// The error message of the kernel, if there is one.
        reason: Option<String>,
        /// The error number.
        source: io::Error,
    },
    /// Another interface has the route to the overlay network, so the TUN device would get no packet.
    #[error(
        "the route to {network} is held by {}; remove that route of another overlay or a former backend (`ip{} route \
         show exact {network}` lists it), or choose another overlay network",
        .interface.as_deref().unwrap_or("a route without a single interface"),
        if .network.addr().is_ipv6() { " -6" } else { "" }
    )]
    RouteTaken {
        /// The overlay network.
        network: IpNet,
        /// The interface of the route, or `None` for a blackhole or a multipath route.
        interface: Option<String>,
    },
    /// Another process set the link down during the configuration.
    #[error("another process set {interface} down during its configuration; stop that process, then try again")]
    SetDown {
        /// The device.
        interface: String,
    },
    /// The netlink socket failed.
    #[error("could not {operation}: the netlink socket failed: {source}")]
    Socket {
        /// The operation that failed.
        operation: &'static str,
        /// The error of the system call. `WouldBlock` means that the kernel did not reply in time.
        source: io::Error,
    },
}

impl LinkError {
    pub(crate) fn new(error: NetlinkError, operation: &'static str, interface: &str) -> Self {
        match error {
            NetlinkError::Interrupted { attempts } => Self::Busy { operation, attempts },
            NetlinkError::Malformed(source) => Self::Malformed { operation, source },
            NetlinkError::Refused { errno: libc::EPERM | libc::EACCES, .. } => {
                Self::NoPermission { operation, interface: interface.into() }
            }
            NetlinkError::Refused { errno: libc::ENODEV, .. } => Self::NoSuchInterface { interface: interface.into() },
            NetlinkError::Refused { errno, reason } => {
                let source = io::Error::from_raw_os_error(errno);
                Self::Refused { operation, interface: interface.into(), reason, source }
            }
            NetlinkError::Socket(source) => Self::Socket { operation, source },
        }
    }
}

/// The defect of a reply of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedReply {
    /// The length field of an attribute exceeds the message.
    #[error("an attribute exceeds the {have} bytes of all attributes")]
    AttributeOverrun {
        /// The bytes of all attributes.
        have: usize,
    },
    /// An attribute has the wrong size.
    #[error("attribute {attribute} has {have} bytes instead of {needed}")]
    AttributeSize {
        /// The attribute's number.
        attribute: u16,
        /// The size in bytes.
        have: usize,
        /// The required size in bytes.
        needed: usize,
    },
    /// The fixed part of a message is cut off.
    #[error("a message body has {have} bytes, less than its fixed part of {needed}")]
    Header {
        /// The received bytes.
        have: usize,
        /// The required bytes.
        needed: usize,
    },
    /// The length field of a message exceeds the received bytes, or is below the size of the header.
    #[error("the length of a message is {claimed}, of {have} received bytes")]
    Message {
        /// The length field, or 0 if it is cut off.
        claimed: u32,
        /// The received bytes.
        have: usize,
    },
    /// The reply lacks a message or an attribute.
    #[error("it lacks {what}")]
    Missing {
        /// The missing message or attribute.
        what: &'static str,
    },
    /// The reply exceeds the receive buffer.
    #[error("it has {length} bytes, more than the {room} of the receive buffer")]
    Oversized {
        /// The length of the reply in bytes.
        length: usize,
        /// The size of the receive buffer in bytes.
        room: usize,
    },
}
