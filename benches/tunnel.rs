//! TCP through a tunnel, compared with the simplest equivalent loop: read, search a list, `sendto`, and the reverse.
//!
//! Both run as two threads of this process in two network namespaces, one after the other in each round. Only the ratio
//! within a round is comparable, because the machine's speed drifts. Needs root.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ipnet::Ipv4Net;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::Link;
use loden::sys::{Tun, TunConfig, TunOffload, UdpConfig, UdpOffload, UdpTransport};
use loden::worker::{Running, Worker};
use loden::{Host, HostError};
use nix::poll::{PollFd, PollFlags, poll};
use testbed::TwoHosts;
use testbed::probe::{Amount, tcp_send, tcp_sink};

type Error = Box<dyn std::error::Error + Send + Sync>;

const ROUNDS: usize = 5;
const PORT: u16 = 8285;

/// One host's end of the tunnel.
#[derive(Clone, Copy)]
struct Side {
    own: Ipv4Addr,
    subnet: Ipv4Net,
    peer: Ipv4Addr,
    peer_subnet: Ipv4Net,
}

/// A loop that runs until the flag is set.
type Loop = fn(Side, &AtomicBool) -> Result<(), Error>;

fn main() -> Result<(), Error> {
    let seconds = if std::env::args().any(|arg| arg == "--test") { 0.2 } else { 2.0 };
    let mut ratios = [Vec::new(), Vec::new()];
    println!("TCP, one stream, Gbit/s: a read/sendto loop, loden one packet per system call, loden:");
    for round in 1..=ROUNDS {
        let baseline = transfer(linear_loop, seconds)?;
        let singly = transfer(single_loop, seconds)?;
        let loden = transfer(worker_loop, seconds)?;
        println!("  round {round}: {baseline:.2}, {singly:.2}, {loden:.2}");
        ratios[0].push(singly / baseline);
        ratios[1].push(loden / baseline);
    }
    let [singly, loden] = ratios.map(|mut ratios| {
        ratios.sort_by(f64::total_cmp);
        ratios[ROUNDS / 2]
    });
    println!("  median ratios to the read/sendto loop: {singly:.2}, {loden:.2}");
    Ok(())
}

/// Returns the throughput from pod to pod through two of these loops, in Gbit/s.
fn transfer(run: Loop, seconds: f64) -> Result<f64, Error> {
    let hosts = TwoHosts::new()?;
    let (a, b) = (TwoHosts::HOST_A, TwoHosts::HOST_B);
    let (subnet_a, subnet_b) = (TwoHosts::SUBNET_A, TwoHosts::SUBNET_B);
    let side_a = Side { own: a, subnet: subnet_a, peer: b, peer_subnet: subnet_b };
    let side_b = Side { own: b, subnet: subnet_b, peer: a, peer_subnet: subnet_a };
    let stop = Arc::new(AtomicBool::new(false));
    let threads = [(&hosts.host_a, side_a), (&hosts.host_b, side_b)].map(|(host, side)| {
        let stop = Arc::clone(&stop);
        host.spawn("tunnel", move || run(side, &stop))
    });
    let target = SocketAddr::from((TwoHosts::POD_B, 5001));
    for host in [&hosts.host_a, &hosts.host_b] {
        while !host.routes()?.iter().any(|route| route.destination == TwoHosts::OVERLAY) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let sent = hosts.pod_b.enter(|| TcpListener::bind(target)).and_then(|listener| {
        let sink = tcp_sink(listener, 1);
        let sent = hosts.pod_a.enter(|| tcp_send(target, Amount::For(Duration::from_secs_f64(seconds)), 1));
        sent.and_then(|_| sink.join().unwrap_or_else(|_| Err(io::Error::other("the sink panicked"))))
    });
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| "a tunnel panicked")??;
    }
    Ok(sent?.bits_per_second() / 1e9)
}

fn host(side: Side) -> Result<Host, HostError> {
    Host::new(TwoHosts::OVERLAY, side.subnet, (side.own, PORT))
}

fn device(side: Side, offload: TunOffload) -> Result<(Tun, Link), Error> {
    let tun = Tun::open(&TunConfig::default().with_offload(offload))?;
    let link = Link::configure(&tun, &host(side)?)?;
    Ok((tun, link))
}

fn worker_loop(side: Side, stop: &AtomicBool) -> Result<(), Error> {
    let (tun, _link) = device(side, TunOffload::ALL)?;
    let worker = worker(tun, side, UdpOffload::ALL)?;
    run(worker, stop)
}

fn single_loop(side: Side, stop: &AtomicBool) -> Result<(), Error> {
    let (tun, _link) = device(side, TunOffload::NONE)?;
    let worker = worker(tun, side, UdpOffload::NONE)?;
    run(worker.unbatched(), stop)
}

fn worker(tun: Tun, side: Side, offload: UdpOffload) -> Result<Worker, Error> {
    let host = host(side)?;
    let udp = UdpTransport::bind(host.underlay(), &UdpConfig::default().with_offload(offload))?;
    let mut publisher = RoutePublisher::for_host(&host);
    let applied = publisher.apply([RouteChange::Set(Route::new(side.peer_subnet, (side.peer, PORT)))]);
    assert!(applied.refused.is_empty());
    let forwarder = Forwarder::new(ForwarderConfig::new(&host))?;
    Ok(Worker::new(tun, udp, forwarder, publisher.reader()))
}

fn run(worker: Worker, stop: &AtomicBool) -> Result<(), Error> {
    let running = Running::start([worker])?;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
    Ok(running.stop().map(drop)?)
}

/// Forwards like flannel's proxy without its bugs: it checks only the length, and searches and reorders a list.
fn linear_loop(side: Side, stop: &AtomicBool) -> Result<(), Error> {
    let (tun, _link) = device(side, TunOffload::NONE)?;
    let udp = UdpSocket::bind((side.own, PORT))?;
    udp.set_nonblocking(true)?;
    let mut routes = vec![(side.peer_subnet, SocketAddr::from((side.peer, PORT)))];
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let (mut tun_ready, mut udp_ready) = wait(&tun, &udp)?;
        while tun_ready || udp_ready {
            tun_ready = match tun.recv(&mut buffer).map(|meta| meta.len) {
                Ok(len) => {
                    if let Some((destination, packet)) = route(&mut routes, &mut buffer[..len]) {
                        let _ = udp.send_to(packet, destination);
                    }
                    true
                }
                Err(_) => false,
            };
            udp_ready = match udp.recv_from(&mut buffer) {
                Ok((len, _)) => {
                    if decrement_ttl(&mut buffer[..len]) {
                        let _ = tun.send(&buffer[..len]);
                    }
                    true
                }
                Err(_) => false,
            };
        }
    }
    Ok(())
}

fn route<'p>(routes: &mut [(Ipv4Net, SocketAddr)], packet: &'p mut [u8]) -> Option<(SocketAddr, &'p [u8])> {
    let destination = Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?);
    let found = routes.iter().position(|(subnet, _)| subnet.contains(&destination))?;
    routes.swap(0, found);
    decrement_ttl(packet).then_some((routes[0].1, packet))
}

fn decrement_ttl(packet: &mut [u8]) -> bool {
    if packet.len() < 20 || packet[8] <= 1 {
        return false;
    }
    packet[8] -= 1;
    let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    true
}

/// Waits until one of the two is readable and returns which. It returns periodically, so that the caller can check the
/// stop flag.
fn wait(tun: &impl AsFd, udp: &impl AsFd) -> Result<(bool, bool), Error> {
    let mut fds = [PollFd::new(tun.as_fd(), PollFlags::POLLIN), PollFd::new(udp.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, 50u8)?;
    let ready = |at: usize| fds[at].any().unwrap_or(true);
    Ok((ready(0), ready(1)))
}
