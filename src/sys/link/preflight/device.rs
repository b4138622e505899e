//! The TUN device, if it exists.

use alloc::vec::Vec;

use super::host::Host;
use super::{Finding, Intended};
use crate::sys::OpenError;
use crate::sys::tun::checked_name;

impl Host {
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
