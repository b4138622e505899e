//! The measured ways from pod to pod.

use core::fmt;
use std::env;
use std::io;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use testbed::probe::{Ping, PingOutcome, ping};
use testbed::{Child, Namespace, TwoHosts, Vxlan};

use crate::Error;
use crate::null::GSO_MAX_SIZE;
use crate::program::Tunnel;

/// The timeout of a program's start, and of the first packet from end to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way of packets between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Variant {
    Tunnel,
    NoTunTso,
    NoTunUso,
    NoUdpGso,
    NoUdpGro,
    Plain,
    Vxlan,
    HostGw,
    Null,
}

impl Variant {
    /// All variants, in the order of the table.
    pub(crate) const ALL: &[Self] = &[
        Self::Tunnel,
        Self::NoTunTso,
        Self::NoTunUso,
        Self::NoUdpGso,
        Self::NoUdpGro,
        Self::Plain,
        Self::Vxlan,
        Self::HostGw,
        Self::Null,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::NoTunTso => "no-tun-tso",
            Self::NoTunUso => "no-tun-uso",
            Self::NoUdpGso => "no-udp-gso",
            Self::NoUdpGro => "no-udp-gro",
            Self::Plain => "plain",
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Null => "null",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel, everything on",
            Self::NoTunTso => "tunnel without TUN TSO",
            Self::NoTunUso => "tunnel without TUN USO",
            Self::NoUdpGso => "tunnel without UDP GSO",
            Self::NoUdpGro => "tunnel without UDP GRO",
            Self::Plain => "tunnel, everything off",
            Self::Vxlan => "kernel VXLAN",
            Self::HostGw => "plain routing (host-gw)",
            Self::Null => "null forwarder",
        }
    }

    pub(crate) fn is_tunnel(self) -> bool {
        match self {
            Self::Tunnel | Self::NoTunTso | Self::NoTunUso | Self::NoUdpGso | Self::NoUdpGro | Self::Plain => true,
            Self::Vxlan | Self::HostGw | Self::Null => false,
        }
    }

    /// Returns the tunnel's arguments for its offloads.
    fn offload_args(self) -> &'static [&'static str] {
        match self {
            Self::NoTunTso => &["--offload", "tun-uso,udp-gso,udp-gro"],
            Self::NoTunUso => &["--offload", "tun-tso,udp-gso,udp-gro"],
            Self::NoUdpGso => &["--offload", "tun-tso,tun-uso,udp-gro"],
            Self::NoUdpGro => &["--offload", "tun-tso,tun-uso,udp-gso"],
            Self::Plain => &["--no-offload"],
            Self::Tunnel | Self::Vxlan | Self::HostGw | Self::Null => &[],
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
}

/// The addresses of one end.
struct End<'a> {
    host: &'a Namespace,
    pod: &'a Namespace,
    own: Ipv4Addr,
    peer: Ipv4Addr,
    subnet: Ipv4Net,
    peer_subnet: Ipv4Net,
}

impl Running {
    /// Sets up a variant. The variants of a tunnel need `tunnel`.
    pub(crate) fn start(variant: Variant, tunnel: Option<&Tunnel>) -> Result<Self, Error> {
        let hosts = TwoHosts::new()?;
        let mut programs = Vec::new();
        for (number, end) in (1..).zip(ends(&hosts)) {
            // IPv6 would send packets of its own on every new device during the measurements.
            end.host.disable_ipv6()?;
            match variant {
                Variant::HostGw => end.host.add_route_via(end.peer_subnet, end.peer)?,
                Variant::Vxlan => add_vxlan(&end, number)?,
                Variant::Null => programs.push(start_null(&end)?),
                Variant::Tunnel
                | Variant::NoTunTso
                | Variant::NoTunUso
                | Variant::NoUdpGso
                | Variant::NoUdpGro
                | Variant::Plain => {
                    let tunnel = tunnel.ok_or("there is no tunnel program")?;
                    programs.push(start_tunnel(&end, tunnel, variant.offload_args())?);
                }
            }
        }
        let running = Self { programs, hosts };
        running.wait_until_open()?;
        Ok(running)
    }

    pub(crate) fn hosts(&self) -> &TwoHosts {
        &self.hosts
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

    fn wait_until_open(&self) -> Result<(), Error> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let outcomes = self.hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping::default()))?;
            if let Some(PingOutcome::Reply { .. }) = outcomes.first() {
                return Ok(());
            }
        }
        Err(format!("no packet came from pod to pod and back within {PATIENCE:?}{}", self.complaints()).into())
    }
}

fn ends(hosts: &TwoHosts) -> [End<'_>; 2] {
    let (a, b) = ((TwoHosts::HOST_A, TwoHosts::SUBNET_A), (TwoHosts::HOST_B, TwoHosts::SUBNET_B));
    let [a_to_b, b_to_a] = [(a, b), (b, a)]
        .map(|((own, subnet), (peer, peer_subnet))| move |host, pod| End { host, pod, own, peer, subnet, peer_subnet });
    [a_to_b(&hosts.host_a, &hosts.pod_a), b_to_a(&hosts.host_b, &hosts.pod_b)]
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

fn start_tunnel(end: &End<'_>, tunnel: &Tunnel, offload: &[&str]) -> Result<Child, Error> {
    let mut command = tunnel.command();
    command.args(["--network", &TwoHosts::OVERLAY.to_string(), "--subnet", &end.subnet.to_string()]);
    command.args(["--listen", &end.own.to_string(), "--route", &format!("{}={}", end.peer_subnet, end.peer)]);
    command.args(offload);
    spawn(end, command)
}

fn start_null(end: &End<'_>) -> Result<Child, Error> {
    end.pod.set_gso_max_size(TwoHosts::UPLINK, GSO_MAX_SIZE)?;
    let mut command = Command::new(env::current_exe()?);
    command.arg("null-end").args([end.own, end.peer, end.subnet.network()].map(|address| address.to_string()));
    spawn(end, command)
}

/// Starts a program whose first line says that it is ready.
fn spawn(end: &End<'_>, command: Command) -> Result<Child, Error> {
    let child = Child::spawn(end.host, command)?;
    let line = child.next_line(PATIENCE)?;
    if !line.contains("ready") {
        return Err(format!("a program should have said that it is ready, and not {line:?}").into());
    }
    Ok(child)
}
