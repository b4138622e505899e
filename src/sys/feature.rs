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

        /// Its name and the consequence of its absence.
        impl fmt::Display for Feature {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)+ })
            }
        }
    };
}

features! {
    /// Routers' reports of narrow paths, if their verification was asked for ([`PathReports`](super::PathReports)). Without it, the
    /// kernel is asked, which verifies little.
    PathReports = "raw ICMP sockets, which take CAP_NET_RAW (reports of narrow paths are not verified)",
    /// The ECN field of packets that are received. Without it, congestion marks of the underlay are not seen.
    ReceiveEcn = "IP_RECVTOS (congestion marks of the underlay are not seen)",
    /// Receiving several messages with one system call. Without it, each message costs a system call.
    ReceiveMany = "recvmmsg (each datagram costs a system call)",
    /// Questions about routes. Without them, the MTU of a route that depends on ports or marks is not known.
    RouteQueries = "NETLINK_ROUTE sockets (the MTU of a route by policy is not known)",
    /// The ECN field of packets that are sent. Without it, outer packets carry none.
    SendEcn = "IP_TOS control messages (outer packets carry no ECN field)",
    /// Further sockets on the UDP port, which only send ([`UdpTransport`](super::UdpTransport)). Without them, peers whose paths are
    /// slow share one send buffer.
    SendLanes = "further sockets on the UDP port (peers with slow paths share a send buffer)",
    /// Sending several messages with one system call. Without it, each message costs a system call.
    SendMany = "sendmmsg (each datagram costs a system call)",
    /// Making a TUN device only if nobody has one of that name. Without it, two processes may open one device.
    TunExclusive = "IFF_TUN_EXCL (two processes may open one TUN device)",
    /// Headers of unsegmented packets. Without them, there are no offloads.
    TunHeader = "IFF_VNET_HDR (the TUN device has no offloads)",
    /// Unsegmented TCP packets, if they were asked for.
    TunTso = "TUN_F_TSO4 (TCP packets are passed one by one)",
    /// Unsegmented UDP packets, if they were asked for.
    TunUso = "TUN_F_USO4 (UDP packets are passed one by one)",
    /// Receiving trains of datagrams, if they were asked for.
    UdpGro = "UDP_GRO (datagrams are received one by one)",
    /// Sending trains of datagrams, if they were asked for.
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

/// Whether an error tells that the kernel, or a sandbox, does not know or permit what it was asked for.
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
