//! The TUN device, if it exists.

use alloc::vec::Vec;

use ipnet::Ipv4Net;

use super::host::Host;
use super::{Finding, Intended};
use crate::sys::OpenError;
use crate::sys::link::message::RouteEntry;
use crate::sys::tun::checked_name;

impl Host {
    /// Whether the device needs no change, so that no right to change it is needed either.
    pub(super) fn is_prepared(&self, intended: &Intended) -> bool {
        let Some(device) = self.named(&intended.tun) else { return false };
        let has_address = self.addresses_of(device.state.index).any(|held| held.addr() == intended.subnet.network());
        let is_overlay = |(destination, route): &(Ipv4Net, RouteEntry)| {
            *destination == intended.network && self.is_ours(route, intended)
        };
        let has_mtu = intended.mtu.is_none_or(|mtu| mtu == device.state.mtu);
        device.is_tun() && device.state.up && has_mtu && has_address && self.routes.iter().any(is_overlay)
    }

    pub(super) fn check_address(&self, intended: &Intended) -> Option<Finding> {
        let interface = self.broadcast_of.and_then(|index| self.at(index))?.state.name.clone();
        Some(Finding::TunAddressBroadcast { address: intended.subnet.network(), interface, tun: intended.tun.clone() })
    }

    pub(super) fn check_device(&self, intended: &Intended) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(OpenError::BadName { name, problem }) = checked_name(&intended.tun) {
            findings.push(Finding::BadName { name, problem });
        }
        let device = self.named(&intended.tun);
        if let Some(other) = device.filter(|device| !device.is_tun()) {
            findings.push(Finding::NotTun { interface: intended.tun.clone(), kind: other.kind.clone() });
            return findings;
        }
        if let (Some(mtu), Some(underlay)) = (self.tun_mtu(intended), &self.underlay)
            && mtu > underlay.tun_mtu()
        {
            findings.push(Finding::MtuTooLarge {
                tun: intended.tun.clone(),
                mtu,
                interface: underlay.name.clone(),
                interface_mtu: underlay.mtu,
                most: underlay.tun_mtu(),
            });
        }
        findings
    }
}
