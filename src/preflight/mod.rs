//! What on this host would keep a tunnel from working: asked of the kernel, before a tunnel is made or while one runs.
//!
//! ```text
//!   Intended { network, subnet, listen, tun, … }
//!       │                                     rights      CAP_NET_ADMIN, /dev/net/tun
//!       │       ┌── rtnetlink ──────────────▶ underlay    listen address, overlap
//!       ▼       │                             device      kind and MTU of the TUN
//!     check ────┤                             bridge      its range and MTU
//!               │                             routes      of a former backend
//!               ├── /proc/sys/net ──────────▶ settings    forwarding, rp_filter
//!               ├── nfnetlink ──────────────▶ firewall    chains that drop by policy, masquerade
//!               └── ip_tables' own option ──▶             policies of the legacy chains
//! ```
//!
//! - **It changes nothing.** No device is made, no table made, no setting written; no other program is run. One thing a
//!   question can cause: a kernel that has TUN devices or netfilter as modules may load the one that answers.
//! - **It never passes in silence.** What could not be read is a finding of its own, [`Finding::Unchecked`].
//! - **It reads rules of nftables as far as it can.** Sets with a name, most extensions of iptables and the like it cannot
//!   judge, and says so. Of iptables-legacy it looks at the policies, and at whether POSTROUTING of the table `nat` has rules.
//! - **It looks at the main table**, not at the rules that may lead past it.
//! - **Which namespace.** The network namespace of the calling thread, for all readings.
//!
//! ```no_run
//! use loden::sys::link::preflight::{Intended, Severity, check};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (network, subnet) = ("100.96.0.0/16".parse()?, "100.96.1.0/24".parse()?);
//! let findings = check(&Intended::new(network, subnet, [10, 168, 0, 2], "loden0"));
//! for finding in &findings {
//!     eprintln!("{}: {finding}", finding.severity());
//! }
//! let works = findings.iter().all(|finding| finding.severity() < Severity::WillFail);
//! # Ok(())
//! # }
//! ```
//!
//! It blocks for as long as the kernel takes to list its links, addresses and routes: a millisecond, or a second where there
//! are a million routes. From an asynchronous program, call it where blocking is allowed, on any thread of the namespace.

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

pub use self::finding::{Finding, Firewall, KernelRoute, Severity};
use self::host::Host;

/// flannel's.
const DEFAULT_PORT: u16 = 8285;

/// The tunnel as it is going to be, or is.
///
/// [`Intended::new`] has what every tunnel has; the rest is a struct update away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intended {
    /// The whole overlay network, 100.96.0.0/16 say. Host bits are ignored.
    pub network: Ipv4Net,
    /// The subnet of it that this host owns, 100.96.1.0/24 say. Host bits are ignored.
    pub subnet: Ipv4Net,
    /// The address of this host that peers send to.
    pub listen: IpAddr,
    /// The UDP port that peers send to. Default 8285.
    pub port: u16,
    /// The name of the TUN device, which need not exist. A pattern such as `loden%d` never does.
    pub tun: String,
    /// The MTU that the device is going to be given, in bytes; `None`: what it has, or what the underlay carries. Default
    /// `None`.
    pub mtu: Option<u32>,
    /// Addresses of other hosts, as far as they are known. If the listen address is on a loopback or dummy device, the routes to
    /// them tell the interface that carries the datagrams. Default none: the default route tells it.
    pub peers: Vec<IpAddr>,
    /// The bridge of the pods, if it is known by name; others are found by their addresses. Default `None`.
    pub bridge: Option<String>,
}

impl Intended {
    /// A tunnel whose MTU and bridge are not decided on.
    #[must_use]
    pub fn new(network: Ipv4Net, subnet: Ipv4Net, listen: impl Into<IpAddr>, tun: impl Into<String>) -> Self {
        let (listen, tun) = (listen.into(), tun.into());
        Self { network, subnet, listen, port: DEFAULT_PORT, tun, mtu: None, peers: Vec::new(), bridge: None }
    }
}

/// Everything that is found, the worst first. Nothing found is nothing wrong, as far as the kernel can be asked.
///
/// Whether the settings fit each other (the subnet into the network, say) is not looked at here:
/// [`Forwarder::new`](crate::forward::Forwarder::new) does.
#[must_use]
pub fn check(intended: &Intended) -> Vec<Finding> {
    let intended = Intended { network: intended.network.trunc(), subnet: intended.subnet.trunc(), ..intended.clone() };
    let mut findings = rights::check();
    let host = Host::read(&intended);
    match &host {
        Ok(host) => {
            if host.is_prepared(&intended) {
                findings.retain(|finding| *finding != Finding::NoNetAdmin);
            }
            findings.extend(host.check(&intended));
        }
        Err(error) => findings.push(Finding::unchecked("the links, addresses and routes", error)),
    }
    findings.extend(firewall::check(&intended, host.as_ref().ok()));
    findings.sort_by_key(|finding| core::cmp::Reverse(finding.severity()));
    findings
}

impl Host {
    fn check(&self, intended: &Intended) -> Vec<Finding> {
        let changing = "entries may be missing, because it changed during each attempt to list it";
        let mut findings: Vec<_> = self.partial.iter().map(|table| Finding::unchecked(*table, &changing)).collect();
        findings.extend(self.check_underlay(intended));
        findings.extend(self.check_device(intended));
        findings.extend(self.check_address(intended));
        findings.extend(self.check_bridges(intended));
        findings.extend(self.check_routes(intended));
        findings.extend(self.check_settings(intended));
        findings
    }
}
