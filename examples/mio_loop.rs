//! A tunnel to one other host, in a loop of one's own over mio. Run it as root on both.

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd};
use std::{env, error::Error, io, net::SocketAddrV4, process::ExitCode, time::Instant};

use loden::Host;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::Link;
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Ready, Worker};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::signalfd::{SigSet, SignalFd, signal::Signal};

/// The numbers of the file descriptors in the loop.
const STOP: Token = Token(0);
const TUN: Token = Token(1);

const USAGE: &str = "usage: mio_loop SUBNET NETWORK LISTEN PEER_SUBNET PEER, for example \
    mio_loop 100.96.1.0/24 100.96.0.0/16 10.168.0.2:8285 100.96.2.0/24 10.168.0.3:8285";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((subnet, network, own, peer)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = open(subnet, network, own, peer).and_then(run) else { return ExitCode::SUCCESS };
    eprintln!("mio_loop: {error}");
    ExitCode::FAILURE
}

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
    let mut poll = Poll::new()?;
    let fds = [signals.as_fd(), worker.tun(), worker.udp()].map(|fd| fd.as_raw_fd());
    for (number, fd) in fds.iter().enumerate() {
        poll.registry().register(&mut SourceFd(fd), Token(number), Interest::READABLE)?;
    }
    writeln!(io::stdout(), "ready {}", worker.tun_name())?;
    let (mut events, mut ready) = (Events::with_capacity(fds.len()), Ready::default());
    loop {
        // 1. Call the worker, which moves the packets that are ready.
        let next = worker.handle(ready, Budget::default(), Instant::now())?;
        // 2. Wait. mio is edge-triggered: an event is consumed only when the worker has drained its file descriptor, which
        // `next` then names.
        ready = Ready { tun: ready.tun && !next.tun, udp: ready.udp && !next.udp };
        match poll.poll(&mut events, next.timeout(Instant::now())) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            match event.token() {
                STOP => return Ok(()),
                TUN => ready.tun = true,
                _ => ready.udp = true,
            }
        }
    }
}
