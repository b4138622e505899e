//! Features of the kernel that the adapters can work without.

use core::fmt;
use core::sync::atomic::{AtomicU16, Ordering};

macro_rules! features {
    ($($(#[$doc:meta])+ $variant:ident = $text:literal,)+) => {
        /// A feature of the kernel that the adapters use where it exists. An old kernel or a sandbox may lack it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Feature {
            $($(#[$doc])+ $variant,)+
        }

        impl Feature {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
        }

        /// Writes the name of the feature and the consequence of its absence.
        impl fmt::Display for Feature {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)+ })
            }
        }
    };
}

features! {
    /// Verified reports of narrow paths, if they were requested ([`PathReports`](super::PathReports)). Without them,
    /// the kernel's path MTU is used, which the kernel hardly verifies.
    PathReports = "raw ICMP sockets, which take CAP_NET_RAW (reports of narrow paths are not verified)",
    /// The ECN field of packets that are received. Without it, congestion marks of the underlay are not seen.
    ReceiveEcn = "IP_RECVTOS (congestion marks of the underlay are not seen)",
    /// Receiving several messages with one system call. Without it, each message costs a system call.
    ReceiveMany = "recvmmsg (each datagram costs a system call)",
    /// Route queries. Without them, the MTU of a route that depends on ports or marks is not known.
    RouteQueries = "NETLINK_ROUTE sockets (the MTU of a route by policy is not known)",
    /// The ECN field of packets that are sent. Without it, outer packets carry none.
    SendEcn = "IP_TOS control messages (outer packets carry no ECN field)",
    /// Further sockets on the UDP port that only send ([`UdpTransport`](super::UdpTransport)). Without them, peers
    /// with slow paths share one send buffer.
    SendLanes = "further sockets on the UDP port (peers with slow paths share a send buffer)",
    /// Sending several messages with one system call. Without it, each message costs a system call.
    SendMany = "sendmmsg (each datagram costs a system call)",
    /// Creating a TUN device only if no process has one of that name. Without it, two processes may open one device.
    TunExclusive = "IFF_TUN_EXCL (two processes may open one TUN device)",
    /// Headers of unsegmented packets. Without them, there are no offloads.
    TunHeader = "IFF_VNET_HDR (the TUN device has no offloads)",
    /// TCP GSO packets, if they were requested.
    TunTso = "TUN_F_TSO4 (TCP packets are passed one by one)",
    /// UDP GSO packets, if they were requested.
    TunUso = "TUN_F_USO4 (UDP packets are passed one by one)",
    /// GRO batches, if they were requested.
    UdpGro = "UDP_GRO (datagrams are received one by one)",
    /// GSO batches, if they were requested.
    UdpGso = "UDP_SEGMENT (datagrams are sent one by one)",
}

/// A set of features that are disabled.
#[derive(Debug, Default)]
pub(super) struct Disabled(AtomicU16);

impl Disabled {
    pub(super) fn add(&self, feature: Feature) {
        self.0.fetch_or(1 << feature as u16, Ordering::Relaxed);
    }

    pub(super) fn add_unless(&self, is_there: bool, feature: Feature) {
        if !is_there {
            self.add(feature);
        }
    }

    #[inline]
    pub(super) fn has(&self, feature: Feature) -> bool {
        self.0.load(Ordering::Relaxed) & 1 << feature as u16 != 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(|feature| self.has(*feature))
    }
}

/// Returns `true` if the error means that the kernel lacks a feature, or that a sandbox forbids it.
pub(super) fn is_missing(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EACCES
                | libc::EINVAL
                | libc::ENOPROTOOPT
                | libc::ENOSYS
                | libc::ENOTTY
                | libc::EOPNOTSUPP
                | libc::EPERM
        )
    )
}
