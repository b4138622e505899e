//! Leases, their sources, and the events that change them.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use ipnet::IpNet;

use crate::host::Mtu;
use crate::route::{Route, canonical};

/// A subnet and the host that owns it for a limited time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Lease {
    /// The subnet. Host bits are ignored.
    pub subnet: IpNet,
    /// The underlay address and port of the owner.
    pub next_hop: SocketAddr,
    /// The MTU of the path to the owner, in bytes of inner packet, if it is less than the overlay's.
    pub mtu: Option<Mtu>,
    /// The time at which it ends unless it is renewed, on the caller's clock. `None` if only its source ends it.
    pub expires: Option<Duration>,
}

impl Lease {
    /// Creates a lease without an end, whose path MTU is the overlay's.
    #[must_use]
    pub fn new(subnet: impl Into<IpNet>, next_hop: impl Into<SocketAddr>) -> Self {
        Self { subnet: subnet.into(), next_hop: next_hop.into(), mtu: None, expires: None }
    }

    /// Sets the subnet.
    #[must_use]
    pub fn with_subnet(self, subnet: impl Into<IpNet>) -> Self {
        Self { subnet: subnet.into(), ..self }
    }

    /// Sets the underlay address and port of the owner.
    #[must_use]
    pub fn with_next_hop(self, next_hop: impl Into<SocketAddr>) -> Self {
        Self { next_hop: next_hop.into(), ..self }
    }

    /// Sets the MTU of the path to the owner; `None` for that of the overlay.
    #[must_use]
    pub fn with_mtu(self, mtu: impl Into<Option<Mtu>>) -> Self {
        Self { mtu: mtu.into(), ..self }
    }

    /// Sets the time at which it ends; `None` if only its source ends it.
    #[must_use]
    pub fn with_expires(self, expires: impl Into<Option<Duration>>) -> Self {
        Self { expires: expires.into(), ..self }
    }

    /// Returns the route of the lease.
    #[must_use]
    pub fn route(&self) -> Route {
        Route { subnet: self.subnet, next_hop: self.next_hop, mtu: self.mtu }
    }

    /// Returns the form in which leases are compared: host bits cleared, and the next hop as route tables store it.
    pub(super) fn normalised(self) -> Self {
        Self { subnet: self.subnet.trunc(), next_hop: canonical(self.next_hop), ..self }
    }
}

/// A source of leases, such as etcd, a file or an operator. If two sources claim one subnet, the lower number wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(
    /// The rank, 0 first.
    pub u16,
);

/// The identity of a lease. Its order decides between claims of one subnet. The order is the same on every host if the
/// keys are the source's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId<K> {
    /// The source.
    pub source: SourceId,
    /// The source's name for the lease: an etcd key, a node name or a line number.
    pub key: K,
}

/// An event of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseEvent<K> {
    /// The lease is new, renewed or changed.
    Added {
        /// The source's name for the lease.
        key: K,
        /// The current state of the lease.
        lease: Lease,
    },
    /// The lease no longer exists.
    Removed {
        /// The source's name for the lease.
        key: K,
    },
    /// All leases of the source. Leases that are not in the list no longer exist.
    ///
    /// A failed listing is no snapshot: it is [`SourceLost`](Self::SourceLost), which removes no lease. Of several
    /// leases with one key the last one counts, as if they were added one by one.
    Snapshot(
        /// The leases with their keys, in any order.
        Vec<(K, Lease)>,
    ),
    /// The source is reachable again and has reported every change in between. Example: a watch that resumed.
    SourceHeard,
    /// The source is unreachable: a watch ended or a listing failed. Its leases stay.
    SourceLost,
}
