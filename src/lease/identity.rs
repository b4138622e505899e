//! The judgement of single leases, by the identity of this host.

use core::net::SocketAddr;

use ipnet::IpNet;

use super::conflict::Refusal;
use super::event::Lease;
use crate::host::Host;
use crate::route;

/// The values by which a host judges the leases of others, normalised as leases are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) network: IpNet,
    pub(crate) subnet: IpNet,
    /// The address and port by which others reach this host.
    pub(crate) underlay: SocketAddr,
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

impl Identity {
    pub(crate) fn new(host: &Host) -> Self {
        Self { network: host.network().into(), subnet: host.subnet().into(), underlay: host.underlay() }
            .with_underlay(host.underlay())
    }

    /// Replaces the address and port by which others reach this host.
    pub(crate) fn with_underlay(self, underlay: SocketAddr) -> Self {
        Self { underlay: route::canonical(underlay), ..self }
    }

    /// Judges a lease, which must be normalised.
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
