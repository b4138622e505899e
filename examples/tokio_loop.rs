//! A tunnel to one other host, as a task on tokio. Run it as root on both.

use std::{env, error::Error, net::SocketAddrV4, process::ExitCode};

use loden::Host;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::Link;
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Worker, run_tokio};
use tokio::signal::unix::{SignalKind, signal};

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

#[tokio::main(flavor = "current_thread")]
async fn run(mut worker: Worker) -> Result<(), Box<dyn Error>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    println!("ready {}", worker.tun_name());
    let stop = async {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    Ok(run_tokio(&mut worker, stop).await?)
}
// The end of the tunnel.
