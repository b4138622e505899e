//! Findings about interfaces: the underlay, the TUN device and the bridges of pods.

use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::host::{Host, Interface};
use super::{Finding, PreflightConfig};
use crate::sys::link::Underlay;
use crate::sys::link::message::RouteEntry;
use crate::sys::{OpenError, checked_name};

impl Host {
    pub(super) fn check_underlay(&self, config: &PreflightConfig) -> Vec<Finding> {
        let listen = config.listen;
        let Some(underlay) = &self.underlay else { return [Finding::ListenNotHeld { listen }].into() };
        let interface = &underlay.name;
        let mut findings = Vec::new();
        if self.at(underlay.index).is_some_and(|link| !link.state.up) {
            findings.push(Finding::UnderlayDown { interface: interface.clone(), listen });
        }
        if let Some(IpNet::V4(network)) = self.underlay_network()
            && overlaps(network, config.network)
        {
            findings.push(Finding::Overlap {
                network: config.network,
                underlay: network,
                interface: interface.clone(),
                loops: loops(network, config.network, listen),
            });
        }
        findings
    }

    /// Returns true if the device needs no change, so the process needs no right to change it.
    pub(super) fn is_configured(&self, config: &PreflightConfig) -> bool {
        let Some(device) = self.named(&config.tun) else { return false };
        let has_address = self.addresses_of(device.state.index).any(|held| held.addr() == config.subnet.network());
        let is_overlay = |(destination, route): &(Ipv4Net, RouteEntry)| {
            *destination == config.network && self.is_ours(route, config)
        };
        let has_mtu = config.mtu.is_none_or(|mtu| u32::from(mtu) == device.state.mtu);
        device.is_tun() && device.state.up && has_mtu && has_address && self.routes.iter().any(is_overlay)
    }

    pub(super) fn check_device(&self, config: &PreflightConfig) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Err(OpenError::BadName { name, problem }) = checked_name(&config.tun) {
            findings.push(Finding::BadName { name, problem });
        }
        let device = self.named(&config.tun);
        if let Some(other) = device.filter(|device| !device.is_tun()) {
            findings.push(Finding::NotTun { interface: config.tun.clone(), kind: other.kind.clone() });
            return findings;
        }
        if let (Some(mtu), Some(underlay)) = (self.tun_mtu(config), &self.underlay)
            && mtu > underlay.inner_len()
        {
            findings.push(Finding::MtuTooLarge {
                tun: config.tun.clone(),
                mtu,
                interface: underlay.name.clone(),
                interface_mtu: underlay.mtu,
                max_mtu: underlay.inner_len(),
            });
        }
        findings
    }

    pub(super) fn check_bridges(&self, config: &PreflightConfig) -> Vec<Finding> {
        let mut findings = Vec::new();
        let subnet = config.subnet;
        if let Some(bridge) = &config.bridge
            && self.named(bridge).is_none()
        {
            findings.push(Finding::NoBridge { bridge: bridge.clone(), subnet });
        }
        for link in &self.links {
            findings.extend(self.bridge_elsewhere(link, config));
        }
        let bridges = self.pod_links(config).filter(|link| link.is_bridge());
        if let Some(max_mtu) = self.path_mtu(config) {
            findings.extend(bridges.filter(|link| link.state.mtu > max_mtu).map(|link| Finding::BridgeMtu {
                bridge: link.state.name.clone(),
                mtu: link.state.mtu,
                max_mtu,
            }));
        }
        findings
    }

    /// Reports a bridge without an address of this host's subnet, if it has an address of the overlay or is the
    /// configured bridge.
    pub(super) fn bridge_elsewhere(&self, link: &Interface, config: &PreflightConfig) -> Option<Finding> {
        let is_named = config.bridge.as_ref() == Some(&link.state.name);
        // The overlap of an underlay that is a bridge is a finding of its own.
        let is_underlay = self.underlay.as_ref().is_some_and(|underlay| underlay.index == link.state.index);
        if !is_named && (!link.is_bridge() || is_underlay) {
            return None;
        }
        let addresses: Vec<_> = self.addresses_of(link.state.index).collect();
        if addresses.iter().any(|address| config.subnet.contains(&address.addr())) {
            return None;
        }
        let of_overlay = addresses.iter().find(|address| config.network.contains(&address.addr()));
        let address = of_overlay.or(addresses.first().filter(|_| is_named)).copied();
        let is_found = is_named || address.is_some();
        let (bridge, subnet) = (link.state.name.clone(), config.subnet);
        is_found.then_some(Finding::BridgeElsewhere { bridge, address, subnet })
    }

    /// Returns the largest packet in bytes that the TUN device and the underlay carry.
    fn path_mtu(&self, config: &PreflightConfig) -> Option<u32> {
        let underlay = self.underlay.as_ref().map(Underlay::inner_len);
        self.tun_mtu(config).into_iter().chain(underlay).min()
    }
}

fn overlaps(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Returns true if the kernel prefers the route to the overlay for underlay addresses of other hosts. That route wins
/// if hosts have addresses in the overlay and its prefix is not shorter than that of the underlay. A /32 on the
/// underlay leaves no connected route, so the route to the overlay wins too.
fn loops(underlay: Ipv4Net, overlay: Ipv4Net, listen: IpAddr) -> bool {
    let IpAddr::V4(listen) = listen else { return false };
    overlay.contains(&listen) && (underlay.contains(&overlay) || underlay.prefix_len() == 32)
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::*;

    #[test]
    fn an_overlap_is_fatal_if_the_route_to_the_overlay_is_preferred() {
        let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
        let judge = |underlay, overlay, listen: [u8; 4]| {
            overlaps(net(underlay), net(overlay)).then(|| loops(net(underlay), net(overlay), listen.into()))
        };
        assert_eq!(judge("10.168.0.0/24", "100.96.0.0/16", [10, 168, 0, 2]), None);
        // The overlay is a part of the underlay: its route matches hosts with addresses in it.
        assert_eq!(judge("100.0.0.0/8", "100.96.0.0/16", [100, 96, 0, 2]), Some(true));
        assert_eq!(judge("100.0.0.0/8", "100.96.0.0/16", [100, 1, 0, 2]), Some(false));
        assert_eq!(judge("100.96.0.0/16", "100.96.0.0/16", [100, 96, 0, 2]), Some(true));
        // The overlay is wider: the connected route has the longer prefix, if there is one.
        assert_eq!(judge("10.168.0.0/24", "10.0.0.0/8", [10, 168, 0, 2]), Some(false));
        assert_eq!(judge("10.168.0.2/32", "10.0.0.0/8", [10, 168, 0, 2]), Some(true));
    }
}
