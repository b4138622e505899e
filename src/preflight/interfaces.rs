//! Findings about interfaces: the underlay, the TUN device and the bridges of pods.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::host::{Host, Interface};
use super::{Finding, PreflightConfig};
use crate::host::Overhead;
use crate::sys::link::Underlay;
use crate::sys::link::message::RouteEntry;
use crate::sys::{OpenError, checked_name};

/// The smallest MTU of an IPv6 link (RFC 8200 section 5).
const IPV6_MIN: u32 = 1280;

impl Host {
    pub(super) fn check_underlays(&self, config: &PreflightConfig) -> Vec<Finding> {
        let findings = self.underlays.iter().flat_map(|(listen, underlay)| match underlay {
            Some(underlay) => self.check_underlay(underlay, *listen, config),
            None => [Finding::ListenNotHeld { listen: listen.ip() }].into(),
        });
        findings.collect()
    }

    fn check_underlay(&self, underlay: &Underlay, listen: SocketAddr, config: &PreflightConfig) -> Vec<Finding> {
        let (interface, listen) = (&underlay.name, listen.ip());
        let mut findings = Vec::new();
        if self.at(underlay.index).is_some_and(|link| !link.state.up) {
            findings.push(Finding::UnderlayDown { interface: interface.clone(), listen });
        }
        let needed = IPV6_MIN + u32::from(Overhead::of(listen).get());
        if config.carries(true) && underlay.mtu < needed {
            findings.push(Finding::UnderlayBelowIpv6 { interface: interface.clone(), mtu: underlay.mtu, needed });
        }
        let network = self.underlay_network(underlay);
        let overlap = |network: IpNet| {
            let overlaps = config.networks.iter().filter(move |overlay| overlaps(network, **overlay));
            overlaps.map(move |overlay| Finding::Overlap {
                network: *overlay,
                underlay: network,
                interface: interface.clone(),
                loops: loops(network, *overlay, listen),
            })
        };
        findings.extend(network.into_iter().flat_map(overlap));
        findings
    }

    /// Returns true if the device needs no change, so the process needs no right to change it.
    pub(super) fn is_configured(&self, config: &PreflightConfig) -> bool {
        let Some(device) = self.named(&config.tun) else { return false };
        let has_address = |wanted: &IpAddr| self.addresses_of(device.state.index).any(|held| held.addr() == *wanted);
        let has_route = |network: &IpNet| {
            let is_it =
                |(destination, route): &(IpNet, RouteEntry)| destination == network && self.is_ours(route, config);
            self.routes.iter().any(is_it)
        };
        let has_mtu = config.mtu.is_none_or(|mtu| u32::from(mtu) == device.state.mtu);
        device.is_tun()
            && device.state.up
            && has_mtu
            && config.addresses.iter().all(has_address)
            && config.networks.iter().all(has_route)
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
        let Some(mtu) = self.tun_mtu(config) else { return findings };
        findings.extend(self.underlays().filter(|underlay| mtu > underlay.inner_len()).map(|underlay| {
            Finding::MtuTooLarge {
                tun: config.tun.clone(),
                mtu,
                interface: underlay.name.clone(),
                interface_mtu: underlay.mtu,
                max_mtu: underlay.inner_len(),
            }
        }));
        // An MTU that the underlay leaves is a finding about the underlay.
        if config.carries(true) && mtu < IPV6_MIN && self.underlays().all(|underlay| mtu != underlay.inner_len()) {
            findings.push(Finding::TunBelowIpv6 { tun: config.tun.clone(), mtu });
        }
        findings
    }

    pub(super) fn check_bridges(&self, config: &PreflightConfig) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let (Some(bridge), Some(subnet)) = (&config.bridge, config.subnets.first())
            && self.named(bridge).is_none()
        {
            findings.push(Finding::NoBridge { bridge: bridge.clone(), subnet: *subnet });
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

    /// Reports a bridge without an address of this host's subnets of a family, if it has an address of the overlay of
    /// that family or is the configured bridge.
    pub(super) fn bridge_elsewhere(&self, link: &Interface, config: &PreflightConfig) -> Vec<Finding> {
        let is_named = config.bridge.as_ref() == Some(&link.state.name);
        // The overlap of an underlay that is a bridge is a finding of its own.
        let is_underlay = self.underlays().any(|underlay| underlay.index == link.state.index);
        if !is_named && (!link.is_bridge() || is_underlay) {
            return Vec::new();
        }
        let of_network = |network: &IpNet| {
            let subnet = config.subnets_like(network.addr()).next()?;
            let addresses: Vec<_> =
                self.addresses_of(link.state.index).filter(|held| is_of_family(*held, *network)).collect();
            if addresses.iter().any(|address| config.is_of_pod(address.addr())) {
                return None;
            }
            let of_overlay = addresses.iter().find(|address| network.contains(&address.addr()));
            let address = of_overlay.or(addresses.first().filter(|_| is_named)).copied();
            let is_found = is_named || address.is_some();
            is_found.then(|| Finding::BridgeElsewhere { bridge: link.state.name.clone(), address, subnet })
        };
        config.networks.iter().filter_map(of_network).collect()
    }

    /// Returns the largest packet in bytes that the TUN device and the underlay carry.
    fn path_mtu(&self, config: &PreflightConfig) -> Option<u32> {
        self.tun_mtu(config).into_iter().chain(self.underlays().map(Underlay::inner_len)).min()
    }
}

/// Returns true for an address of the family of a network that other links can reach. Every link with IPv6 has one that
/// they cannot (fe80::/10).
fn is_of_family(held: IpNet, network: IpNet) -> bool {
    match (held.addr(), network) {
        (IpAddr::V4(_), IpNet::V4(_)) => true,
        (IpAddr::V6(address), IpNet::V6(_)) => !address.is_unicast_link_local(),
        (IpAddr::V4(_) | IpAddr::V6(_), IpNet::V4(_) | IpNet::V6(_)) => false,
    }
}

fn overlaps(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// Returns true if the kernel prefers the route to the overlay for underlay addresses of other hosts. That route wins
/// if hosts have addresses in the overlay and its prefix is not shorter than that of the underlay. A /32 or /128 on the
/// underlay leaves no connected route, so the route to the overlay wins too.
fn loops(underlay: IpNet, overlay: IpNet, listen: IpAddr) -> bool {
    overlay.contains(&listen) && (underlay.contains(&overlay) || underlay.prefix_len() == underlay.max_prefix_len())
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::*;

    #[test]
    fn an_overlap_is_fatal_if_the_route_to_the_overlay_is_preferred() {
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        let judge_at = |underlay, overlay, listen: IpAddr| {
            overlaps(net(underlay), net(overlay)).then(|| loops(net(underlay), net(overlay), listen))
        };
        let judge = |underlay, overlay, listen: [u8; 4]| judge_at(underlay, overlay, listen.into());
        assert_eq!(judge("10.168.0.0/24", "100.96.0.0/16", [10, 168, 0, 2]), None);
        // The overlay is a part of the underlay: its route matches hosts with addresses in it.
        assert_eq!(judge("100.0.0.0/8", "100.96.0.0/16", [100, 96, 0, 2]), Some(true));
        assert_eq!(judge("100.0.0.0/8", "100.96.0.0/16", [100, 1, 0, 2]), Some(false));
        assert_eq!(judge("100.96.0.0/16", "100.96.0.0/16", [100, 96, 0, 2]), Some(true));
        // The overlay is wider: the connected route has the longer prefix, if there is one.
        assert_eq!(judge("10.168.0.0/24", "10.0.0.0/8", [10, 168, 0, 2]), Some(false));
        assert_eq!(judge("10.168.0.2/32", "10.0.0.0/8", [10, 168, 0, 2]), Some(true));
        for (underlay, listen, expected) in [
            ("fd00:168::/64", "fd00:168::2", None),
            ("fd00:96:7::/64", "fd00:96:7::2", Some(false)),
            ("fd00::/16", "fd00:96:7::2", Some(true)),
            ("fd00::/16", "fd00:168::2", Some(false)),
            ("fd00:96:7::2/128", "fd00:96:7::2", Some(true)),
            ("10.168.0.0/24", "10.168.0.2", None),
        ] {
            assert_eq!(judge_at(underlay, "fd00:96::/32", listen.parse().expect("an address")), expected, "{underlay}");
        }
    }
}
