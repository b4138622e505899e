//! This host's identity, by which leases are judged.

use core::net::SocketAddr;

use ipnet::IpNet;

use super::conflict::Refusal;
use super::event::Lease;
use crate::route;

/// The identity of this host, by which it judges the leases of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The network of all hosts, for example 100.96.0.0/16. Host bits are ignored.
    pub network: IpNet,
    /// The subnet of the network that this host owns, for example 100.96.1.0/24. Host bits are ignored.
    pub subnet: IpNet,
    /// The underlay address and port by which others reach this host, as in its own lease. It equals the bound address
    /// and port unless NAT translates them. (`RoutePublisher::bound_to` always takes the bound ones.)
    pub underlay: SocketAddr,
}

/// The relation of a single lease to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// It gets a route, unless another lease for its subnet precedes it.
    Contender,
    /// It is this host's own lease.
    Own,
    Refused(Refusal),
}

impl Host {
    /// Creates the identity of a host that owns a subnet and is reached at an underlay address.
    #[must_use]
    pub fn new(network: impl Into<IpNet>, subnet: impl Into<IpNet>, underlay: impl Into<SocketAddr>) -> Self {
        Self { network: network.into(), subnet: subnet.into(), underlay: underlay.into() }
    }

    pub(crate) fn normalised(self) -> Self {
        let underlay = SocketAddr::new(self.underlay.ip().to_canonical(), self.underlay.port());
        Self { network: self.network.trunc(), subnet: self.subnet.trunc(), underlay }
    }

    /// Judges a lease. Both must be normalised.
    pub(super) fn judge(&self, lease: &Lease) -> Relation {
        if lease.subnet == self.subnet && lease.next_hop == self.underlay {
            return Relation::Own;
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
            return Relation::Contender;
        };
        Relation::Refused(refusal)
    }
}
