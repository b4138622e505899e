//! The TUN device, if it exists.

use alloc::vec::Vec;

use super::host::Host;
use super::{Finding, Intended};

impl Host {
    pub(super) fn check_device(&self, intended: &Intended) -> Vec<Finding> {
        let mut findings = Vec::new();
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
