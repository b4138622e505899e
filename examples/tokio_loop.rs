//! A tunnel to one other host, in an asynchronous task of one's own over tokio. Run it as root on both.

use std::os::fd::{AsFd, OwnedFd};
use std::{env, error::Error, io, net::SocketAddrV4, process::ExitCode, time::Instant};

use loden::forward::{Forwarder, Overlay};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::{AddressForm, Link, LinkConfig, interface_of};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Progress, Worker};
use tokio::signal::unix::{SignalKind, signal};
use tokio::{io::Interest, io::unix::AsyncFd, time::sleep_until};

const USAGE: &str = "usage: tokio_loop SUBNET NETWORK LISTEN PEER_SUBNET PEER, for example \
    tokio_loop 100.96.1.0/24 100.96.0.0/16 10.168.0.2:8285 100.96.2.0/24 10.168.0.3:8285";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((subnet, network, own, peer)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = open(subnet, network, own, peer).and_then(run) else { return ExitCode::SUCCESS };
    eprintln!("tokio_loop: {error}");
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

#[tokio::main(flavor = "current_thread")]
async fn run(mut worker: Worker) -> Result<(), Box<dyn Error>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (tun, udp) = (watch(worker.tun())?, watch(worker.udp())?);
    println!("ready {}", worker.tun().name());
    let either = Interest::READABLE | Interest::ERROR; // A deleted device is in error, but not readable.
    loop {
        // 1. What to wait for.
        let interest = worker.interest();
        let wake_at = interest.wake_at.unwrap_or_else(Instant::now);
        // 2. Wait.
        let (from_tun, from_udp, ready) = tokio::select! {
            tun = tun.ready(either), if interest.tun_readable => (true, false, Some(tun?)),
            udp = udp.writable(), if interest.udp_writable => (false, false, Some(udp?)),
            () = sleep_until(wake_at.into()), if interest.wake_at.is_some() => (false, false, None),
            udp = udp.readable(), if interest.udp_readable => (false, true, Some(udp?)),
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        };
        // 3. Call what is ready.
        let call = if from_udp { Worker::udp_ready } else { Worker::tun_ready };
        let progress = call(&mut worker, Budget::default(), Instant::now())?;
        // 4. What has more stays ready, for that is not said twice: what is held has, but a socket that takes nothing is not writable.
        let more = progress == Progress::More || (progress == Progress::Held && (from_tun || from_udp));
        if let Some(mut ready) = ready.filter(|_| !more) {
            ready.clear_ready();
        }
    }
}

/// A duplicate, because the worker owns the original and must be free to change while its duplicate is waited for.
#[expect(deprecated, reason = "the successor is unsafe, because not every `AsRawFd` keeps its word as `OwnedFd` does")]
fn watch(fd: &impl AsFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd.as_fd().try_clone_to_owned()?)
}
