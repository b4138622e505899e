//! The interface the datagrams travel on.

use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::host::Host;
use super::{Finding, Intended};

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
