//! Forward chains that drop by policy: Docker sets the one of iptables to that.

use alloc::vec::Vec;

use ipnet::Ipv4Net;

use super::{Finding, Firewall, iptables, nftables};

/// A chain that drops what no rule of it has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dropping {
    pub(super) firewall: Firewall,
    pub(super) rules: u32,
}

pub(super) fn check(network: Ipv4Net) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |chains: Vec<Dropping>| {
        findings.extend(chains.into_iter().map(|Dropping { firewall, rules }| Finding::ForwardDropped {
            firewall,
            rules,
            network,
        }));
    };
    let (nftables, iptables) = (nftables::dropping(), iptables::dropping());
    let mut unchecked = Vec::new();
    match nftables {
        Ok(chains) => found(chains),
        Err(error) => unchecked.push(Finding::unchecked("the forward chains of nftables", &error)),
    }
    match iptables {
        Ok(chain) => found(chain.into_iter().collect()),
        Err(error) => unchecked.push(Finding::unchecked("the chain FORWARD of iptables-legacy", &error)),
    }
    findings.extend(unchecked);
    findings
}
