//! A tunnel to one other host, in a loop of one's own over `poll(2)`. Run it as root on both.

use std::io::Write as _;
use std::{env, error::Error, io, net::SocketAddrV4, os::fd::AsFd, process::ExitCode, time::Instant};

use loden::Host;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::Link;
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Ready, Worker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signalfd::{SigSet, SignalFd, signal::Signal};

const USAGE: &str = "usage: poll_loop SUBNET NETWORK LISTEN PEER_SUBNET PEER, for example \
    poll_loop 100.96.1.0/24 100.96.0.0/16 10.168.0.2:8285 100.96.2.0/24 10.168.0.3:8285";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((subnet, network, own, peer)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = open(subnet, network, own, peer).and_then(run) else { return ExitCode::SUCCESS };
    eprintln!("poll_loop: {error}");
    ExitCode::FAILURE
}

// The whole tunnel, from the arguments to forwarding.
fn parse(args: &[String]) -> Option<(Ipv4Net, Ipv4Net, SocketAddrV4, Route)> {
    let [subnet, network, own, peer_subnet, peer] = args else { return None };
    let peer = Route::new(peer_subnet.parse::<Ipv4Net>().ok()?, peer.parse::<SocketAddrV4>().ok()?);
    Some((subnet.parse().ok()?, network.parse().ok()?, own.parse().ok()?, peer))
}

fn open(subnet: Ipv4Net, network: Ipv4Net, own: SocketAddrV4, peer: Route) -> Result<Worker, Box<dyn Error>> {
    let host = Host::new(network, subnet, own)?;
    let mut routes = RoutePublisher::for_host(&host);
    routes.apply([RouteChange::Set(peer)]).into_result()?;
    let (tun, udp) = (Tun::open(&TunConfig::default())?, UdpTransport::bind(host.underlay(), &UdpConfig::default())?);
    let link = Link::configure(&tun, &host)?;
    let forwarder = Forwarder::new(ForwarderConfig::new(&host).with_mtu(link.mtu()))?;
    Ok(Worker::new(tun, udp, forwarder, routes.reader()))
}

fn run(mut worker: Worker) -> Result<(), Box<dyn Error>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    writeln!(io::stdout(), "ready {}", worker.tun_name())?;
    let mut ready = Ready::default();
    loop {
        // 1. Call the worker, which moves the packets that are ready.
        let next = worker.handle(ready, Budget::default(), Instant::now())?;
        // 2. Wait for the events that it names. A file descriptor that it does not name is left out, because poll
        // reports errors in any case.
        let signals = signals.as_fd();
        let tun = if next.tun { worker.tun() } else { signals };
        let udp = if next.udp { worker.udp() } else { signals };
        let mut fds = [signals, tun, udp].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let timeout = next.timeout(Instant::now()).map(Into::into);
        ppoll(&mut fds, timeout, None).or_else(|error| if error == Errno::EINTR { Ok(0) } else { Err(error) })?;
        let [stop, tun, udp] = fds.map(|fd| fd.any().unwrap_or(true));
        if stop {
            return Ok(());
        }
        ready = Ready { tun, udp };
    }
}
// The end of the tunnel.
