//! Findings about this host that keep a tunnel from working (feature `preflight`, Linux).
//!
//! ```text
//!   PreflightConfig::new(&host, tun)
//!       │                                     rights      CAP_NET_ADMIN, /dev/net/tun
//!       │       ┌── rtnetlink ──────────────▶ interfaces  listen address, overlap, TUN device, bridges, MTUs
//!       ▼       │                             routes      routes of a former backend
//!     check ────┼── /proc/sys/net ──────────▶ sysctl      forwarding, rp_filter
//!               └── nfnetlink ──────────────▶ firewall    chains that drop, masquerade
//! ```
//!
//! - **Read-only.** [`check`] creates no device or table, writes no setting and runs no program. The kernel may load
//!   the module that answers a request.
//! - **Failures are findings.** A failed reading is reported as [`Finding::Unchecked`].
//! - **nftables.** Named sets and most extensions of iptables cannot be evaluated. A finding then says that it may
//!   apply.
//! - **iptables-legacy.** Its rules are not read. Its tables are reported as [`Finding::Unchecked`].
//! - **Policy routing.** Only the main table is read, without the rules of `ip rule`.
//! - **Network namespace.** All readings are of the namespace of the calling thread.
//!
//! ```no_run
//! use loden::Host;
//! use loden::ipnet::Ipv4Net;
//! use loden::preflight::{PreflightConfig, Severity, check};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (network, subnet) = ("100.96.0.0/16".parse::<Ipv4Net>()?, "100.96.1.0/24".parse::<Ipv4Net>()?);
//! let host = Host::new(network, subnet, ([10, 168, 0, 2], 8285))?;
//! let findings = check(&PreflightConfig::new(&host, "loden0"));
//! for finding in &findings {
//!     eprintln!("{}: {finding}", finding.severity());
//! }
//! let works = findings.iter().all(|finding| finding.severity() < Severity::WillFail);
//! # Ok(())
//! # }
//! ```
//!
//! [`check`] blocks while the kernel lists links, addresses, routes and rules: about a millisecond, or a second with a
//! million routes. Asynchronous programs call it on a thread that may block.

mod finding;
mod firewall;
mod host;
mod interfaces;
mod rights;
mod routes;
mod sysctl;
#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use ipnet::Ipv4Net;

pub use self::finding::{Finding, Severity};
pub use self::firewall::NftablesChain;
use self::host::Host;
pub use self::routes::KernelRoute;

/// The configuration of a tunnel that is planned or runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreflightConfig {
    /// The whole overlay network, for example `100.96.0.0/16`. Host bits are ignored.
    pub network: Ipv4Net,
    /// The subnet of this host, for example `100.96.1.0/24`. Host bits are ignored.
    pub subnet: Ipv4Net,
    /// The address of this host that peers send to.
    pub listen: IpAddr,
    /// The UDP port that peers send to.
    pub port: u16,
    /// The name of the TUN device, which need not exist. A pattern such as `loden%d` never exists.
    pub tun: String,
    /// The MTU that the device will get. Default `None`: its current MTU, or the MTU that the underlay leaves.
    pub mtu: Option<crate::Mtu>,
    /// Known addresses of other hosts. For a listen address on a loopback or dummy device, the routes to them determine
    /// the interface that carries the datagrams. Default none: the default route determines it.
    pub peers: Vec<IpAddr>,
    /// The name of the bridge of the pods. Default `None`: bridges are found by their addresses.
    pub bridge: Option<String>,
}

impl PreflightConfig {
    /// Creates a configuration without MTU, peers and bridge.
    #[must_use]
    pub fn new(host: &crate::Host, tun: impl Into<String>) -> Self {
        let net = |net: Option<Ipv4Net>| net.unwrap_or(Ipv4Net::from(core::net::Ipv4Addr::UNSPECIFIED));
        let (network, subnet) = (net(host.network_v4()), net(host.subnet_v4()));
        let (underlay, tun) = (host.underlay(), tun.into());
        let (listen, port) = (underlay.ip(), underlay.port());
        Self { network, subnet, listen, port, tun, mtu: None, peers: Vec::new(), bridge: None }
    }

    /// Sets the MTU that the device will get.
    #[must_use]
    pub fn with_mtu(self, mtu: crate::Mtu) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// Sets the known addresses of other hosts.
    #[must_use]
    pub fn with_peers(self, peers: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { peers: peers.into_iter().collect(), ..self }
    }

    /// Sets the name of the bridge of the pods.
    #[must_use]
    pub fn with_bridge(self, bridge: impl Into<String>) -> Self {
        Self { bridge: Some(bridge.into()), ..self }
    }
}

/// Checks this host and returns all findings, the most severe first.
///
/// The settings are not checked against each other, for example that the network contains the subnet.
/// [`Host::new`](crate::Host::new) does that.
#[must_use]
pub fn check(config: &PreflightConfig) -> Vec<Finding> {
    let config = PreflightConfig { network: config.network.trunc(), subnet: config.subnet.trunc(), ..config.clone() };
    let mut findings = rights::check();
    let host = Host::read(&config);
    match &host {
        Ok(host) => {
            if host.is_configured(&config) {
                findings.retain(|finding| *finding != Finding::NoNetAdmin);
            }
            findings.extend(host.check(&config));
        }
        Err(error) => findings.push(Finding::unchecked("the links, addresses and routes", error)),
    }
    findings.extend(firewall::check(&config, host.as_ref().ok()));
    findings.sort_by_key(|finding| core::cmp::Reverse(finding.severity()));
    findings
}

impl Host {
    fn check(&self, config: &PreflightConfig) -> Vec<Finding> {
        let reason = "entries may be missing, because the table changed during each attempt to list it";
        let mut findings: Vec<_> = self.partial.iter().map(|table| Finding::unchecked(*table, &reason)).collect();
        findings.extend(self.check_underlay(config));
        findings.extend(self.check_device(config));
        findings.extend(self.check_bridges(config));
        findings.extend(self.check_routes(config));
        findings.extend(self.check_sysctls(config));
        findings
    }
}
