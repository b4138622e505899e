//! Leases, who says so, and what can happen to them.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use ipnet::IpNet;

use crate::route::Route;

/// A subnet and the host that owns it, for as long as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The subnet. Host bits do not matter.
    pub subnet: IpNet,
    /// Underlay address and port of the owner.
    pub next_hop: SocketAddr,
    /// The longest inner packet in bytes that the path to the owner carries, where that is less than the overlay's.
    pub mtu: Option<u16>,
    /// When it ends unless it is renewed, on the caller's clock. `None`: when the source says so.
    pub expires: Option<Duration>,
}

impl Lease {
    /// A lease that only its source ends, over a path as wide as the overlay's.
    #[must_use]
    pub fn new(subnet: impl Into<IpNet>, next_hop: impl Into<SocketAddr>) -> Self {
        Self { subnet: subnet.into(), next_hop: next_hop.into(), mtu: None, expires: None }
    }

    /// The route that the lease asks for.
    #[must_use]
    pub fn route(&self) -> Route {
        Route { subnet: self.subnet, next_hop: self.next_hop, mtu: self.mtu }
    }

    /// Host bits cleared, an IPv4 address never dressed as an IPv6 one: one spelling for one thing.
    pub(super) fn normalised(self) -> Self {
        let next_hop = SocketAddr::new(self.next_hop.ip().to_canonical(), self.next_hop.port());
        Self { subnet: self.subnet.trunc(), next_hop, ..self }
    }
}

/// Where leases come from: etcd, a file, an operator. Where two claim one subnet, the lower number is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(
    /// The rank, 0 first.
    pub u16,
);

/// What a lease is known by. The order decides between claims of one subnet, so it is the same on every host where the keys
/// are the source's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId<K> {
    /// Who says so.
    pub source: SourceId,
    /// What that source calls the lease: the etcd key, the node's name, the number of a line.
    pub key: K,
}

/// What a source has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseEvent<K> {
    /// The lease is new, renewed or changed.
    Added {
        /// What the source calls it.
        key: K,
        /// All that is known of it now.
        lease: Lease,
    },
    /// The lease is gone.
    Removed {
        /// What the source calls it.
        key: K,
    },
    /// All leases the source has: what is not among them is gone.
    ///
    /// There is no snapshot of a listing that failed; that is [`SourceLost`](Self::SourceLost), and takes nothing away. Of
    /// several leases with one key the last stands, as if they had been added one by one.
    Snapshot(
        /// The leases with their keys, in any order.
        Vec<(K, Lease)>,
    ),
    /// The source can be heard again and has told everything in between: a watch that went on where it broke off.
    SourceHeard,
    /// The source cannot be heard: a watch ended, a listing failed. Its leases stay.
    SourceLost,
}
