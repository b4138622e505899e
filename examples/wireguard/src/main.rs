//! WireGuard on top of loden's adapters. The README tells what it is for, and what it lacks.

mod config;
mod peer;
mod wireguard;

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::{env, error::Error, fs, time::Duration};

use ipnet::IpNet;
use loden::forward::{Forwarder, ForwarderConfig, PeerCheck, Transit, TtlPolicy};
use loden::route::RoutePublisher;
use loden::sys::link::{Link, LinkConfig, interface_of};
use loden::sys::{Tun, TunConfig, TunOffload, UdpConfig, UdpOffload, UdpTransport};
use loden::worker::{self, Worker};
use loden::{Host, Mtu};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use crate::config::Config;
use crate::wireguard::WireGuard;

const USAGE: &str = "usage: wireguard FILE [--rekey-after SECONDS] [--unbatched]
FILE is a configuration as wg-quick reads it, such as /etc/wireguard/wg0.conf. The device gets the name of the file.
--rekey-after begins a new handshake when a session is that old, for tests. The protocol does at 120 seconds.
--unbatched handles each packet by itself, without offloads, for comparisons.";

/// Bytes that WireGuard's device MTU is below the underlay's: IPv6, UDP, and 32 bytes around each packet.
const OVERHEAD: u32 = 80;
/// The MTU over an Ethernet.
const MTU_DEFAULT: u32 = 1420;

/// The command line.
#[derive(Debug, Default, PartialEq)]
struct Args {
    file: String,
    rekey_after: Option<Duration>,
    is_unbatched: bool,
}

fn main() -> ExitCode {
    let Some(args) = parse(env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = open(&args).and_then(run) else { return ExitCode::SUCCESS };
    eprintln!("wireguard: {error}");
    ExitCode::FAILURE
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Args> {
    let mut parsed = Args { file: args.next().filter(|file| !file.starts_with('-'))?, ..Args::default() };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--rekey-after" => parsed.rekey_after = Some(Duration::from_secs(args.next()?.parse().ok()?)),
            "--unbatched" => parsed.is_unbatched = true,
            _ => return None,
        }
    }
    Some(parsed)
}

/// Opens the device and the sockets.
fn open(args: &Args) -> Result<Worker<WireGuard>, Box<dyn Error>> {
    let file = &args.file;
    let text = fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    let config = Config::parse(&text).map_err(|error| format!("{file}: {error}"))?;
    let name = Path::new(file).file_stem().and_then(|stem| stem.to_str()).ok_or("the file has no name for a device")?;

    let (tun_offload, udp_offload) = match args.is_unbatched {
        true => (TunOffload::NONE, UdpOffload::NONE),
        false => (TunOffload::ALL, UdpOffload::ALL),
    };
    let udp_config = UdpConfig::default().with_offload(udp_offload);
    let udp = UdpTransport::bind((Ipv4Addr::UNSPECIFIED, config.listen_port).into(), &udp_config)?;
    let port = udp.local_addr().port();
    let needs_ipv6 = config.peers.iter().any(|peer| peer.endpoint.is_some_and(|endpoint| endpoint.is_ipv6()));
    let udp6 = match UdpTransport::bind((Ipv6Addr::UNSPECIFIED, port).into(), &udp_config) {
        Err(error) if needs_ipv6 => return Err(error.into()),
        bound => bound.ok(),
    };

    let mut underlays = vec![own_address(&config, Ipv4Addr::LOCALHOST.into())];
    if udp6.is_some() {
        underlays.push(own_address(&config, Ipv6Addr::LOCALHOST.into()));
    }
    let sockets: Vec<_> = underlays.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    // The device's addresses are all that this host owns. The rest of their network is routed to the peers.
    let networks: Vec<_> = config.addresses.iter().map(IpNet::trunc).collect();
    let own: Vec<_> = config.addresses.iter().map(|address| IpNet::from(address.addr())).collect();
    let host = Host::from_sets(&networks, &own, &sockets)?;

    let tun = Tun::open(&TunConfig::new(name).with_offload(tun_offload))?;
    let mtu = config.mtu.map_or_else(|| mtu_over(&underlays), Ok)?;
    let link = Link::configure_with(tun.name(), &LinkConfig::new(&host).with_mtu(mtu))?;
    if config.adds_routes {
        add_routes(&config, &host, link.interface())?;
    }

    let forwarder = ForwarderConfig::new(&host)
        .with_mtu(mtu)
        .with_ttl(TtlPolicy::Preserve)
        .with_transit(Transit::Allowed)
        .with_peer_check(PeerCheck::AddressPort);
    let routes = RoutePublisher::for_host(&host);
    let reader = routes.reader();
    let framing = WireGuard::new(&config, routes, args.rekey_after)?;
    let mut worker = Worker::new(tun, udp, Forwarder::new(forwarder)?, reader);
    if let Some(udp6) = udp6 {
        worker = worker.with_udp(udp6)?;
    }
    let worker = worker.with_framing(framing);
    Ok(if args.is_unbatched { worker.unbatched() } else { worker })
}

/// Returns this host's address towards the first peer of this loopback address's family. Without such a peer it is the one
/// of the default route, or else the loopback address. The forwarder recognises packets by it that would loop.
fn own_address(config: &Config, loopback: IpAddr) -> IpAddr {
    let endpoints = config.peers.iter().filter_map(|peer| peer.endpoint);
    // Nobody has these addresses (RFC 5737, RFC 3849).
    let anywhere: IpAddr = match loopback {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let to = endpoints.filter(|to| to.is_ipv4() == loopback.is_ipv4()).chain([SocketAddr::new(anywhere, 9)]).next();
    let unspecified: IpAddr = match loopback {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let address = || {
        let socket = UdpSocket::bind((unspecified, 0)).ok()?;
        socket.connect(to?).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let is_usable = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    address().filter(is_usable).unwrap_or(loopback)
}

fn mtu_over(underlays: &[IpAddr]) -> Result<Mtu, Box<dyn Error>> {
    let mut least = MTU_DEFAULT + OVERHEAD;
    for underlay in underlays.iter().filter(|underlay| !underlay.is_loopback()) {
        least = least.min(interface_of(*underlay)?.mtu);
    }
    Ok(Mtu::new(least.saturating_sub(OVERHEAD))?)
}

/// Adds a route of the kernel for each allowed network that the device's own one does not contain.
fn add_routes(config: &Config, host: &Host, device: &str) -> Result<(), Box<dyn Error>> {
    for allowed in config.peers.iter().flat_map(|peer| &peer.allowed_ips) {
        if host.networks().iter().any(|network| network.contains(allowed)) {
            continue;
        }
        let family = if allowed.addr().is_ipv4() { "-4" } else { "-6" };
        let args = [family, "route", "add", &allowed.to_string(), "dev", device];
        let output = Command::new("ip").args(args).output().map_err(|error| format!("cannot run `ip`: {error}"))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(format!("`ip {}` failed: {}", args.join(" "), reason.trim()).into());
        }
    }
    Ok(())
}

fn run(worker: Worker<WireGuard>) -> Result<(), Box<dyn Error>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let stop = SignalFd::new(&signals)?;
    let port = worker.local_addrs().next().map_or(0, |address| address.port());
    writeln!(io::stdout(), "ready {} port {port}", worker.tun_name())?;
    let counters = worker::run([worker], stop)?;
    writeln!(io::stdout(), "{counters:?}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_a_file_and_options() {
        let parse = |line: &str| parse(line.split_whitespace().map(str::to_owned));
        let plain = Args { file: "wg0.conf".into(), ..Args::default() };
        assert_eq!(parse("wg0.conf"), Some(plain));
        let all = Args { file: "wg0.conf".into(), rekey_after: Some(Duration::from_secs(7)), is_unbatched: true };
        assert_eq!(parse("wg0.conf --unbatched --rekey-after 7"), Some(all));
        for wrong in ["", "--unbatched", "wg0.conf --rekey-after", "wg0.conf --rekey-after x", "wg0.conf more"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
