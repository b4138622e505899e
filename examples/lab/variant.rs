//! The measured ways from pod to pod.

use core::fmt;
use std::env;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use testbed::probe::{EchoV6, Ping, PingOutcome, PingV6, ping, ping_v6};
use testbed::{Child, Namespace, TwoHosts, Vxlan};

use crate::Error;
use crate::example::Example;
use crate::null::GSO_MAX_SIZE;
use crate::program::Programs;

/// The timeout of a program's start, and of the first packet from end to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// flannel's port.
const PORT: u16 = 8285;

/// A way of packets between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    Tunnel,
    Ipv6,
    OverIpv6,
    NoTunTso,
    NoTunUso,
    NoUdpGso,
    NoUdpGro,
    Plain,
    Vxlan,
    HostGw,
    Null,
    Example(Example),
}

impl Variant {
    /// All variants, in the order of the table.
    pub(crate) const ALL: &[Self] = &[
        Self::Tunnel,
        Self::Ipv6,
        Self::OverIpv6,
        Self::NoTunTso,
        Self::NoTunUso,
        Self::NoUdpGso,
        Self::NoUdpGro,
        Self::Plain,
        Self::Vxlan,
        Self::HostGw,
        Self::Null,
        Self::Example(Example::PollLoop),
        Self::Example(Example::TokioLoop),
        Self::Example(Example::MioLoop),
        Self::Example(Example::IoUring),
        Self::Example(Example::Cframe),
        Self::Example(Example::Aead),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Ipv6 => "ipv6",
            Self::OverIpv6 => "over-ipv6",
            Self::NoTunTso => "no-tun-tso",
            Self::NoTunUso => "no-tun-uso",
            Self::NoUdpGso => "no-udp-gso",
            Self::NoUdpGro => "no-udp-gro",
            Self::Plain => "plain",
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Null => "null",
            Self::Example(example) => example.name(),
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel, everything on",
            Self::Ipv6 => "tunnel, IPv6 pods",
            Self::OverIpv6 => "tunnel over IPv6",
            Self::NoTunTso => "tunnel without TUN TSO",
            Self::NoTunUso => "tunnel without TUN USO",
            Self::NoUdpGso => "tunnel without UDP GSO",
            Self::NoUdpGro => "tunnel without UDP GRO",
            Self::Plain => "tunnel, everything off",
            Self::Vxlan => "kernel VXLAN",
            Self::HostGw => "plain routing (host-gw)",
            Self::Null => "null forwarder",
            Self::Example(example) => example.title(),
        }
    }

    /// Returns the name of its program, unless the kernel or the lab forwards.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Tunnel
            | Self::Ipv6
            | Self::OverIpv6
            | Self::NoTunTso
            | Self::NoTunUso
            | Self::NoUdpGso
            | Self::NoUdpGro
            | Self::Plain => Some("tunnel"),
            Self::Example(example) => Some(example.program()),
            Self::Vxlan | Self::HostGw | Self::Null => None,
        }
    }

    /// Returns whether it is measured without being named.
    pub(crate) fn is_default(self) -> bool {
        !matches!(self, Self::Example(_))
    }

    /// Returns whether the pods speak IPv6.
    fn has_ipv6_pods(self) -> bool {
        self == Self::Ipv6
    }

    /// Returns whether a namespace needs IPv6.
    fn uses_ipv6(self) -> bool {
        matches!(self, Self::Ipv6 | Self::OverIpv6)
    }

    /// Returns the tunnel's arguments for its offloads.
    fn offload_args(self) -> &'static [&'static str] {
        match self {
            Self::NoTunTso => &["--offload", "tun-uso,udp-gso,udp-gro"],
            Self::NoTunUso => &["--offload", "tun-tso,udp-gso,udp-gro"],
            Self::NoUdpGso => &["--offload", "tun-tso,tun-uso,udp-gro"],
            Self::NoUdpGro => &["--offload", "tun-tso,tun-uso,udp-gso"],
            Self::Plain => &["--no-offload"],
            Self::Tunnel | Self::Ipv6 | Self::OverIpv6 | Self::Vxlan | Self::HostGw | Self::Null | Self::Example(_) => {
                &[]
            }
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Two hosts and their pods, with a working way between them.
pub(crate) struct Running {
    // Before `hosts`, because programs must end before their namespaces.
    programs: Vec<Child>,
    hosts: TwoHosts,
    variant: Variant,
}

/// The two pods, and the addresses by which they are measured.
#[derive(Clone, Copy)]
pub(crate) struct Pods<'a> {
    pub(crate) a: &'a Namespace,
    pub(crate) b: &'a Namespace,
    pub(crate) address_a: IpAddr,
    pub(crate) address_b: IpAddr,
}

/// The addresses of one end.
struct End<'a> {
    host: &'a Namespace,
    pod: &'a Namespace,
    own: Ipv4Addr,
    peer: Ipv4Addr,
    subnet: Ipv4Net,
    peer_subnet: Ipv4Net,
    /// The same over IPv6, as arguments of a tunnel.
    own_v6: &'static str,
    peer_v6: &'static str,
    subnet_v6: &'static str,
    peer_subnet_v6: &'static str,
}

impl Running {
    /// Sets up a variant.
    pub(crate) fn start(variant: Variant, found: &Programs) -> Result<Self, Error> {
        let hosts = TwoHosts::new()?;
        if variant.uses_ipv6() {
            hosts.add_ipv6()?;
        }
        let mut programs = Vec::new();
        for (number, end) in (1..).zip(ends(&hosts)) {
            if !variant.uses_ipv6() {
                // IPv6 would send packets of its own on every new device during the measurements.
                end.host.disable_ipv6()?;
            }
            match variant {
                Variant::HostGw => end.host.add_route_via(end.peer_subnet, end.peer)?,
                Variant::Vxlan => add_vxlan(&end, number)?,
                Variant::Null => programs.push(start_null(&end)?),
                Variant::Tunnel
                | Variant::Ipv6
                | Variant::OverIpv6
                | Variant::NoTunTso
                | Variant::NoTunUso
                | Variant::NoUdpGso
                | Variant::NoUdpGro
                | Variant::Plain => programs.push(start_tunnel(&end, found, variant)?),
                Variant::Example(example) => programs.push(start_example(&end, found, example)?),
            }
        }
        let running = Self { programs, hosts, variant };
        running.wait_until_open()?;
        Ok(running)
    }

    pub(crate) fn pods(&self) -> Pods<'_> {
        let (a, b) = (&self.hosts.pod_a, &self.hosts.pod_b);
        let [address_a, address_b] = if self.variant.has_ipv6_pods() {
            [IpAddr::V6(TwoHosts::POD_A_V6), IpAddr::V6(TwoHosts::POD_B_V6)]
        } else {
            [IpAddr::V4(TwoHosts::POD_A), IpAddr::V4(TwoHosts::POD_B)]
        };
        Pods { a, b, address_a, address_b }
    }

    /// Returns the processor time of both ends so far; `None` if the kernel does all work.
    pub(crate) fn cpu_time(&self) -> io::Result<Option<Duration>> {
        let times = self.programs.iter().map(Child::cpu_time);
        times.reduce(|sum, time| Ok(sum? + time?)).transpose()
    }

    /// Returns the peak memory of one end in MiB; `None` if the kernel does all work.
    pub(crate) fn peak_memory(&self) -> io::Result<Option<f64>> {
        let peaks = self.programs.iter().map(Child::peak_rss_kib);
        let peak = peaks.reduce(|most, peak| Ok(most?.max(peak?))).transpose()?;
        Ok(peak.map(|kib| kib as f64 / 1024.0))
    }

    /// Returns the programs' standard error, for the report of a failure.
    pub(crate) fn complaints(&self) -> String {
        self.programs
            .iter()
            .map(Child::stderr)
            .filter(|said| !said.is_empty())
            .map(|said| format!("\n{said}"))
            .collect()
    }

    fn is_open(&self) -> io::Result<bool> {
        if self.variant.has_ipv6_pods() {
            // The kernel refuses it until it has found no duplicate of its address.
            let outcome = self.hosts.pod_a.enter(|| ping_v6(TwoHosts::POD_B_V6, PingV6::default()));
            return Ok(matches!(outcome, Ok(EchoV6::Reply { .. })));
        }
        let outcomes = self.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping::default()))?;
        Ok(matches!(outcomes.first(), Some(PingOutcome::Reply { .. })))
    }

    fn wait_until_open(&self) -> Result<(), Error> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if self.is_open()? {
                return Ok(());
            }
        }
        Err(format!("no packet came from pod to pod and back within {PATIENCE:?}{}", self.complaints()).into())
    }
}

fn ends(hosts: &TwoHosts) -> [End<'_>; 2] {
    let (a, b) = ((TwoHosts::HOST_A, TwoHosts::SUBNET_A), (TwoHosts::HOST_B, TwoHosts::SUBNET_B));
    let (a_v6, b_v6) = (("[fd00:168::2]", "fd00:96:1::/64"), ("[fd00:168::3]", "fd00:96:2::/64"));
    let ends = [(&hosts.host_a, &hosts.pod_a, a, b, a_v6, b_v6), (&hosts.host_b, &hosts.pod_b, b, a, b_v6, a_v6)];
    ends.map(|(host, pod, (own, subnet), (peer, peer_subnet), (own_v6, subnet_v6), (peer_v6, peer_subnet_v6))| End {
        host,
        pod,
        own,
        peer,
        subnet,
        peer_subnet,
        own_v6,
        peer_v6,
        subnet_v6,
        peer_subnet_v6,
    })
}

fn add_vxlan(end: &End<'_>, number: u8) -> io::Result<()> {
    const DEVICE: &str = "vxlan0";
    let address = |number| Ipv4Addr::new(100, 97, 0, number);
    let vxlan = Vxlan { vni: 1, underlay: TwoHosts::UPLINK, local: end.own, remote: end.peer };
    end.host.add_vxlan(DEVICE, vxlan)?;
    end.host.add_address(DEVICE, Ipv4Net::new_assert(address(number), 24))?;
    // The other end is 2 for 1, and 1 for 2.
    end.host.add_route(end.peer_subnet, Some(address(3 - number)), DEVICE)
}

fn start_tunnel(end: &End<'_>, found: &Programs, variant: Variant) -> Result<Child, Error> {
    let mut command = found.command("tunnel");
    let (own, peer) = (end.own.to_string(), end.peer.to_string());
    let (own, peer) = if variant == Variant::OverIpv6 { (end.own_v6, end.peer_v6) } else { (&*own, &*peer) };
    command.args(["--network", &TwoHosts::OVERLAY.to_string(), "--subnet", &end.subnet.to_string()]);
    command.args(["--listen", own, "--route", &format!("{}={peer}", end.peer_subnet)]);
    if variant.has_ipv6_pods() {
        command.args(["--network", "fd00:96::/32", "--subnet", end.subnet_v6]);
        command.args(["--route", &format!("{}={peer}", end.peer_subnet_v6)]);
    }
    command.args(variant.offload_args());
    ready(Child::spawn(end.host, command)?)
}

fn start_example(end: &End<'_>, found: &Programs, example: Example) -> Result<Child, Error> {
    let mut command = found.command(example.program());
    command.args(example.first_arg(found.keys()));
    command.args([end.subnet, TwoHosts::OVERLAY].map(|net| net.to_string()));
    command.args([format!("{}:{PORT}", end.own), end.peer_subnet.to_string(), format!("{}:{PORT}", end.peer)]);
    ready(Child::spawn(end.host, command)?)
}

fn start_null(end: &End<'_>) -> Result<Child, Error> {
    end.pod.set_gso_max_size(TwoHosts::UPLINK, GSO_MAX_SIZE)?;
    let mut command = Command::new(env::current_exe()?);
    command.arg("null-end").args([end.own, end.peer, end.subnet.network()].map(|address| address.to_string()));
    ready(Child::spawn(end.host, command)?)
}

/// Returns a program after its first line, which says that it is ready.
fn ready(child: Child) -> Result<Child, Error> {
    let line = child.next_line(PATIENCE)?;
    if !line.contains("ready") {
        return Err(format!("a program should have said that it is ready, and not {line:?}").into());
    }
    Ok(child)
}
