//! The judgement of single leases, by the identity of this host.

use alloc::vec::Vec;
use core::net::SocketAddr;

use ipnet::IpNet;

use super::conflict::Refusal;
use super::event::Lease;
use crate::host::Host;
use crate::route;

/// The values by which a host judges the leases of others, normalised as leases are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// At least one.
    pub(crate) networks: Vec<IpNet>,
    pub(crate) subnets: Vec<IpNet>,
    /// The addresses and ports by which others reach this host, at most one for each IP family.
    pub(crate) underlays: Vec<SocketAddr>,
}

/// The relation of a single lease to this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// It gets a route, unless another lease for its subnet precedes it.
    Contender,
    /// It is a lease of this host: that of its subnet, or a further one, for example a reservation.
    Own,
    Refused(Refusal),
}

impl Identity {
    pub(crate) fn new(host: &Host) -> Self {
        let (networks, subnets) = (host.networks().to_vec(), host.subnets().to_vec());
        let bound = Self { networks, subnets, underlays: Vec::new() };
        host.underlays().iter().fold(bound, |identity, underlay| identity.with_underlay(*underlay))
    }

    /// Replaces the address and port of this IP family by which others reach this host.
    pub(crate) fn with_underlay(mut self, underlay: SocketAddr) -> Self {
        let underlay = route::canonical(underlay);
        self.underlays.retain(|other| other.is_ipv4() != underlay.is_ipv4());
        self.underlays.push(underlay);
        self
    }

    /// Judges a lease, which must be normalised.
    pub(super) fn judge(&self, lease: &Lease) -> Relation {
        let is_to_us = self.underlays.contains(&lease.next_hop);
        if is_to_us && self.subnets.contains(&lease.subnet) {
            return Relation::Own;
        }
        let own = self.subnets.iter().find(|own| own.contains(&lease.subnet));
        let network_around = |net: IpNet| self.networks.iter().find(|network| network.contains(&net)).copied();
        let refusal = if let Some(own) = own.filter(|_| !is_to_us) {
            Refusal::OwnSubnet { own: *own }
        } else if let Err(reason) = route::check(&lease.route(), &route::Own::default()) {
            Refusal::Unroutable(reason)
        } else if network_around(lease.subnet).is_none() {
            let is_of_family = |network: &&IpNet| network.addr().is_ipv4() == lease.subnet.addr().is_ipv4();
            let network = self.networks.iter().find(is_of_family).or(self.networks.first());
            Refusal::OutsideOverlay { network: network.copied().unwrap_or_default() }
        } else if is_to_us && self.subnets.iter().any(|own| lease.subnet.contains(own)) {
            Refusal::OwnAddress
        } else if is_to_us {
            return Relation::Own;
        } else if let Some(network) = network_around(lease.next_hop.ip().into()) {
            Refusal::NextHopInOverlay { network }
        } else {
            return Relation::Contender;
        };
        Relation::Refused(refusal)
    }
}
