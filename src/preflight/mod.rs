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
//! - **Families.** Findings are about the families that the host carries or listens on. A host without IPv6 networks and
//!   addresses gets no finding about IPv6.
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
use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

pub use self::finding::{Finding, Severity};
pub use self::firewall::NftablesChain;
use self::host::Host;
pub use self::routes::KernelRoute;

/// The configuration of a tunnel that is planned or runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreflightConfig {
    /// The whole overlay networks, one for each family that is carried, for example `100.96.0.0/16`. Host bits are
    /// ignored.
    pub networks: Vec<IpNet>,
    /// The subnets of this host, for example `100.96.1.0/24`. Host bits are ignored.
    pub subnets: Vec<IpNet>,
    /// The addresses of the TUN device, one for each family that is carried.
    pub addresses: Vec<IpAddr>,
    /// The addresses and UDP ports of this host that peers send to.
    pub listen: Vec<SocketAddr>,
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
        Self {
            networks: host.networks().into(),
            subnets: host.subnets().into(),
            addresses: host.tun_addresses().collect(),
            listen: host.underlays().into(),
            tun: tun.into(),
            mtu: None,
            peers: Vec::new(),
            bridge: None,
        }
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
    let trunc = |nets: &[IpNet]| nets.iter().map(IpNet::trunc).collect();
    let (networks, subnets) = (trunc(&config.networks), trunc(&config.subnets));
    let config = PreflightConfig { networks, subnets, ..config.clone() };
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

impl PreflightConfig {
    /// Returns this host's subnets of the family of an address.
    fn subnets_like(&self, address: IpAddr) -> impl Iterator<Item = IpNet> {
        self.subnets.iter().copied().filter(move |subnet| subnet.addr().is_ipv4() == address.is_ipv4())
    }

    /// Returns true if the address belongs to a pod of this host.
    fn is_of_pod(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(&address))
    }

    /// Returns true if packets of a family are carried.
    fn carries(&self, is_ipv6: bool) -> bool {
        self.networks.iter().any(|network| network.addr().is_ipv6() == is_ipv6)
    }

    /// Returns true if packets of a family are carried, or carry others.
    fn needs(&self, is_ipv6: bool) -> bool {
        self.carries(is_ipv6) || self.listen.iter().any(|listen| listen.is_ipv6() == is_ipv6)
    }
}

impl Host {
    fn check(&self, config: &PreflightConfig) -> Vec<Finding> {
        let reason = "entries may be missing, because the table changed during each attempt to list it";
        let mut findings: Vec<_> = self.partial.iter().map(|table| Finding::unchecked(*table, &reason)).collect();
        findings.extend(self.check_underlays(config));
        findings.extend(self.check_device(config));
        findings.extend(self.check_bridges(config));
        findings.extend(self.check_routes(config));
        findings.extend(self.check_sysctls(config));
        findings
    }
}
