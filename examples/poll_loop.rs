//! A tunnel to one other host, in a loop of one's own over `poll(2)`. Run it as root on both.

use std::io::Write as _;
use std::{env, error::Error, io, net::SocketAddrV4, os::fd::AsFd, process::ExitCode, time::Instant};

use loden::forward::{Forwarder, Overlay};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::{AddressForm, Link, LinkConfig, interface_of};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Worker};
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

fn parse(args: &[String]) -> Option<(Ipv4Net, Ipv4Net, SocketAddrV4, Route)> {
    let [subnet, network, own, peer_subnet, peer] = args else { return None };
    let peer = Route::new(peer_subnet.parse::<Ipv4Net>().ok()?, peer.parse::<SocketAddrV4>().ok()?);
    Some((subnet.parse().ok()?, network.parse().ok()?, own.parse().ok()?, peer))
}

fn open(subnet: Ipv4Net, network: Ipv4Net, own: SocketAddrV4, peer: Route) -> Result<Worker, Box<dyn Error>> {
    let mut routes = RoutePublisher::bound_to(own.into());
    routes.apply([RouteChange::Set(peer)]).into_result()?;
    let mtu = interface_of((*own.ip()).into())?.tun_mtu();
    let forwarder = Forwarder::new(Overlay { mtu: mtu.try_into()?, ..Overlay::new(network, subnet, own) })?;
    let (tun, udp) = (Tun::open(&TunConfig::default())?, UdpTransport::bind(own.into(), &UdpConfig::default())?);
    let link = LinkConfig { address: forwarder.tun_address(), network, mtu, form: AddressForm::Host };
    Link::configure(tun.name(), &link)?;
    Ok(Worker::new(tun, udp, forwarder, routes.reader()))
}

fn run(mut worker: Worker) -> Result<(), Box<dyn Error>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    writeln!(io::stdout(), "ready {}", worker.tun().name())?;
    loop {
        // 1. What to wait for.
        let interest = worker.interest();
        let readable = if interest.udp_readable { PollFlags::POLLIN } else { PollFlags::empty() };
        let writable = if interest.udp_writable { PollFlags::POLLOUT } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(worker.udp().as_fd(), readable | writable),
            PollFd::new(worker.tun().as_fd(), PollFlags::POLLIN),
        ];
        // 2. Wait. A TUN that is not waited for is left out: poll tells of a deleted one whether asked or not.
        let timeout = interest.wake_at.map(|at| at.saturating_duration_since(Instant::now()).into());
        let asked = if interest.tun_readable { &mut fds[..] } else { &mut fds[..2] };
        ppoll(asked, timeout, None).or_else(|error| if error == Errno::EINTR { Ok(0) } else { Err(error) })?;
        let [stop, udp, tun] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::all()));
        // 3. Call what is ready. 4. `Progress::More` needs no care: what is left, poll reports at once the next time.
        let now = Instant::now();
        let due = interest.wake_at.is_some_and(|at| at <= now);
        if due || !tun.is_empty() || udp.contains(PollFlags::POLLOUT) {
            let _ = worker.tun_ready(Budget::default(), now)?;
        }
        if udp.intersects(!PollFlags::POLLOUT) {
            let _ = worker.udp_ready(Budget::default(), now)?;
        }
        if !stop.is_empty() {
            return Ok(());
        }
    }
}
