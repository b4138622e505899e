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
    let described = |Dropping { firewall, rules }| Finding::ForwardDropped { firewall, rules, network };
    let mut findings = Vec::new();
    match nftables::dropping() {
        Ok(chains) => findings.extend(chains.into_iter().map(described)),
        Err(error) => findings.push(Finding::unchecked("the forward chains of nftables", &error)),
    }
    match iptables::dropping() {
        Ok(chain) => findings.extend(chain.map(described)),
        Err(error) => findings.push(Finding::unchecked("the chain FORWARD of iptables-legacy", &error)),
    }
    findings
}
