//! Findings about interfaces: the underlay, the TUN device and the bridges of pods.

use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::host::{Host, Interface};
use super::{Finding, Intended};
use crate::sys::link::Underlay;
use crate::sys::link::message::RouteEntry;
use crate::sys::{OpenError, checked_name};

impl Host {
    pub(super) fn check_underlay(&self, intended: &Intended) -> Vec<Finding> {
        let listen = intended.listen;
        let Some(underlay) = &self.underlay else { return [Finding::ListenNotHeld { listen }].into() };
        let interface = &underlay.name;
        let mut findings = Vec::new();
        if self.at(underlay.index).is_some_and(|link| !link.state.up) {
            findings.push(Finding::UnderlayDown { interface: interface.clone(), listen });
        }
        if let Some(IpNet::V4(network)) = self.underlay_network()
            && overlaps(network, intended.network)
        {
            findings.push(Finding::Overlap {
                network: intended.network,
                underlay: network,
                interface: interface.clone(),
                loops: loops(network, intended.network, listen),
            });
        }
        findings
    }

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

fn overlaps(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Whether other hosts are reached through the overlay's route: it is at least as long as that of the underlay's network, and
/// hosts have addresses in it, as ours is; or there is no network of neighbours at all (a /32), so that any route is longer.
fn loops(underlay: Ipv4Net, overlay: Ipv4Net, listen: IpAddr) -> bool {
    let IpAddr::V4(listen) = listen else { return false };
    overlay.contains(&listen) && (underlay.contains(&overlay) || underlay.prefix_len() == 32)
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::*;

    #[test]
    fn which_overlaps_are_fatal() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
        let judge = |underlay, overlay, listen: [u8; 4]| {
            overlaps(net(underlay), net(overlay)).then(|| loops(net(underlay), net(overlay), listen.into()))
        };
        assert_eq!(judge("10.168.0.0/24", "100.96.0.0/16", [10, 168, 0, 2]), None);
        // The overlay is inside: hosts that are in it too are looked for in the tunnel.
        assert_eq!(judge("100.0.0.0/8", "100.96.0.0/16", [100, 96, 0, 2]), Some(true));
        assert_eq!(judge("100.0.0.0/8", "100.96.0.0/16", [100, 1, 0, 2]), Some(false));
        assert_eq!(judge("100.96.0.0/16", "100.96.0.0/16", [100, 96, 0, 2]), Some(true));
        // It is wider: the network's own route is longer, unless there is none.
        assert_eq!(judge("10.168.0.0/24", "10.0.0.0/8", [10, 168, 0, 2]), Some(false));
        assert_eq!(judge("10.168.0.2/32", "10.0.0.0/8", [10, 168, 0, 2]), Some(true));
    }
}
