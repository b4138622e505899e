//! A tunnel whose datagrams are `key ‖ packet`, as cframe's plain mode sends them. Run it as root on both hosts. TTLs stay
//! as they are. The only ICMP errors are "fragmentation needed", from which senders learn the size of a path. The key is
//! readable on the wire: it tells tunnels apart and protects nothing.

use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::{env, error::Error, io, process::ExitCode, time::Duration};

use loden::forward::{DatagramMeta, DropReason, Forwarder, ForwarderConfig, IcmpLimiter, Rate, TtlPolicy};
use loden::framing::{Framing, Reply};
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::{Link, LinkConfig};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{self, Worker};
use loden::{Host, ipnet::Ipv4Net};
use nix::sys::signalfd::{SigSet, SignalFd, signal::Signal};

const USAGE: &str = "usage: cframe KEY SUBNET NETWORK LISTEN PEER_SUBNET PEER, for example \
    cframe 0123456789abcdef 100.96.1.0/24 100.96.0.0/16 10.168.0.2:8285 100.96.2.0/24 10.168.0.3:8285";

/// Bytes of a key: 16 characters.
const KEY_LEN: usize = 16;

/// A key in front of each packet.
struct Cframe([u8; KEY_LEN]);

impl Framing for Cframe {
    const HEAD: usize = KEY_LEN;
    const OVERHEAD_MAX: usize = KEY_LEN;

    fn seal(&mut self, _: SocketAddr, datagram: &mut [u8], _: usize) {
        if let Some(key) = datagram.first_chunk_mut() {
            *key = self.0;
        }
    }

    fn open<'d>(
        &mut self,
        _: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        _: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        match datagram.split_first_chunk_mut() {
            Some((key, packet)) if *key == self.0 => Ok(Some(packet)),
            _ => Err(DropReason::NotAuthentic),
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((key, subnet, network, own, peer)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = open(Cframe(key), subnet, network, own, peer).and_then(run) else { return ExitCode::SUCCESS };
    eprintln!("cframe: {error}");
    ExitCode::FAILURE
}

fn parse(args: &[String]) -> Option<([u8; KEY_LEN], Ipv4Net, Ipv4Net, SocketAddrV4, Route)> {
    let [key, subnet, network, own, peer_subnet, peer] = args else { return None };
    let peer = Route::new(peer_subnet.parse::<Ipv4Net>().ok()?, peer.parse::<SocketAddrV4>().ok()?);
    Some((key.as_bytes().try_into().ok()?, subnet.parse().ok()?, network.parse().ok()?, own.parse().ok()?, peer))
}

fn open(
    framing: Cframe,
    subnet: Ipv4Net,
    network: Ipv4Net,
    own: SocketAddrV4,
    peer: Route,
) -> Result<Worker<Cframe>, Box<dyn Error>> {
    let host = Host::new(network, subnet, own)?;
    let mut routes = RoutePublisher::for_host(&host);
    routes.apply([RouteChange::Set(peer)]).into_result()?;
    let (tun, udp) = (Tun::open(&TunConfig::default())?, UdpTransport::bind(host.underlay(), &UdpConfig::default())?);
    let link = Link::configure_with(tun.name(), &LinkConfig::new(&host).with_framing::<Cframe>())?;
    let config = ForwarderConfig::new(&host).with_mtu(link.mtu()).with_ttl(TtlPolicy::Preserve);
    let worker = Worker::new(tun, udp, Forwarder::new(config)?, routes.reader()).with_framing(framing);
    let nothing = Rate { per_second: 0, burst: 0 };
    let limiter = IcmpLimiter::new(nothing, nothing).with_too_long(IcmpLimiter::PER_SOURCE, IcmpLimiter::TOTAL);
    worker.remote().set_icmp_limiter(limiter);
    Ok(worker)
}

fn run(worker: Worker<Cframe>) -> Result<(), Box<dyn Error>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let stop = SignalFd::new(&signals)?;
    writeln!(io::stdout(), "ready {}", worker.tun_name())?;
    let counters = worker::run([worker], stop)?;
    writeln!(io::stdout(), "{counters:?}")?;
    Ok(())
}
