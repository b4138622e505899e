//! This host, and which leases can be nothing to it but a mistake.

use core::net::SocketAddr;

use ipnet::IpNet;

use super::conflict::Refusal;
use super::event::Lease;
use crate::route;

/// What a host has to know about itself to judge the leases of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The network all hosts share, 100.96.0.0/16 say. Host bits do not matter.
    pub network: IpNet,
    /// The subnet of it that this host owns, 100.96.1.0/24 say. Host bits do not matter.
    pub subnet: IpNet,
    /// Underlay address and port by which others reach this host, and hence its own lease: those it is bound to, unless an
    /// address is translated in between. (Those it is bound to are for `RoutePublisher::bound_to` in any case.)
    pub underlay: SocketAddr,
}

/// What a lease is to this host, looked at alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may have its route, if no other lease for its subnet comes before.
    Contender,
    /// It is this host's own.
    Own,
    Refused(Refusal),
}

impl Host {
    /// A host of the overlay network that owns a subnet and is reached at an underlay address.
    #[must_use]
    pub fn new(network: impl Into<IpNet>, subnet: impl Into<IpNet>, underlay: impl Into<SocketAddr>) -> Self {
        Self { network: network.into(), subnet: subnet.into(), underlay: underlay.into() }
    }

    pub(crate) fn normalised(self) -> Self {
        let underlay = SocketAddr::new(self.underlay.ip().to_canonical(), self.underlay.port());
        Self { network: self.network.trunc(), subnet: self.subnet.trunc(), underlay }
    }

    /// Both are normalised.
    pub(super) fn judge(&self, lease: &Lease) -> Standing {
        if lease.subnet == self.subnet && lease.next_hop == self.underlay {
            return Standing::Own;
        }
        let refusal = if self.subnet.contains(&lease.subnet) && lease.next_hop != self.underlay {
            Refusal::OwnSubnet { own: self.subnet }
        } else if let Err(reason) = route::check(&lease.route(), &route::Own::default()) {
            Refusal::Unroutable(reason)
        } else if !self.network.contains(&lease.subnet) {
            Refusal::OutsideOverlay { network: self.network }
        } else if lease.next_hop == self.underlay {
            Refusal::OwnAddress
        } else if self.network.contains(&lease.next_hop.ip()) {
            Refusal::NextHopInOverlay { network: self.network }
        } else {
            return Standing::Contender;
        };
        Standing::Refused(refusal)
    }
}
