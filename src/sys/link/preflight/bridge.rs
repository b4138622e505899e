//! The bridges of the pods: they have this host's range, or their pods are nobody's.

use alloc::vec::Vec;

use super::host::{Host, Interface};
use super::{Finding, Intended};
use crate::sys::link::Underlay;

impl Host {
    pub(super) fn check_bridges(&self, intended: &Intended) -> Vec<Finding> {
        let mut findings = Vec::new();
        let subnet = intended.subnet;
        if let Some(bridge) = &intended.bridge
            && self.named(bridge).is_none()
        {
            findings.push(Finding::NoBridge { bridge: bridge.clone(), subnet });
        }
        for link in &self.links {
            findings.extend(self.bridge_elsewhere(link, intended));
        }
        let bridges = self.pod_links(intended).filter(|link| link.is_bridge());
        if let Some(most) = self.passes(intended) {
            findings.extend(bridges.filter(|link| link.state.mtu > most).map(|link| Finding::BridgeMtu {
                bridge: link.state.name.clone(),
                mtu: link.state.mtu,
                most,
            }));
        }
        findings
    }

    /// A bridge with an address of the overlay and none of this host's; or the bridge that was named, with any other or none.
    pub(super) fn bridge_elsewhere(&self, link: &Interface, intended: &Intended) -> Option<Finding> {
        let is_named = intended.bridge.as_ref() == Some(&link.state.name);
        // An underlay that is a bridge, and overlaps the overlay, is a finding of its own.
        let is_underlay = self.underlay.as_ref().is_some_and(|underlay| underlay.index == link.state.index);
        if !is_named && (!link.is_bridge() || is_underlay) {
            return None;
        }
        let addresses: Vec<_> = self.addresses_of(link.state.index).collect();
        if addresses.iter().any(|address| intended.subnet.contains(&address.addr())) {
            return None;
        }
        let of_overlay = addresses.iter().find(|address| intended.network.contains(&address.addr()));
        let address = of_overlay.or(addresses.first().filter(|_| is_named)).copied();
        let is_found = is_named || address.is_some();
        let (bridge, subnet) = (link.state.name.clone(), intended.subnet);
        is_found.then_some(Finding::BridgeElsewhere { bridge, address, subnet })
    }

    /// The longest packet in bytes that passes the TUN device and the underlay.
    fn passes(&self, intended: &Intended) -> Option<u32> {
        let underlay = self.underlay.as_ref().map(Underlay::tun_mtu);
        self.tun_mtu(intended).into_iter().chain(underlay).min()
    }
}
