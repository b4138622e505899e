//! A tunnel to one other host, in a loop of one's own over `io_uring` (Linux 6.4). Run it as root on both.
//!
//! One system call reads up to 16 packets and 16 messages, and waits. Packets leave through the adapters, whose calls send
//! whole batches too, because the engine has to know at once what was refused.

mod adapters;
mod ring;

use std::io::{self, Write as _};
use std::{env, error::Error, net::SocketAddrV4, os::fd::AsRawFd, process::ExitCode, time::Instant};

use io_uring::{IoUring, types::CancelBuilder};
use loden::engine::Engine;
use loden::forward::{DatagramMeta, Forwarder, ForwarderConfig};
use loden::offload::Coalesce;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::{Tun, TunConfig, TunOffload, UdpConfig, UdpTransport};
use loden::{Host, endpoint::Endpoint, ipnet::Ipv4Net, sys::link::Link, transmit::QueueLimits, worker::WorkerError};
use nix::libc::{EBADFD, POLLERR};
use nix::sys::signalfd::{SigSet, SignalFd, signal::Signal};

use crate::adapters::Adapters;
use crate::ring::{BATCH, Source, wait, wait_for};

const USAGE: &str = "usage: io_uring SUBNET NETWORK LISTEN PEER_SUBNET PEER, for example \
    io_uring 100.96.1.0/24 100.96.0.0/16 10.168.0.2:8285 100.96.2.0/24 10.168.0.3:8285";
/// The number of the file descriptor of signals. That of the TUN is 0, and that of the socket 1.
const STOP: usize = 2;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((subnet, network, own, peer)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = run(subnet, network, own, peer) else { return ExitCode::SUCCESS };
    eprintln!("io_uring: {error}");
    ExitCode::FAILURE
}

fn parse(args: &[String]) -> Option<(Ipv4Net, Ipv4Net, SocketAddrV4, Route)> {
    let [subnet, network, own, peer_subnet, peer] = args else { return None };
    let peer = Route::new(peer_subnet.parse::<Ipv4Net>().ok()?, peer.parse::<SocketAddrV4>().ok()?);
    Some((subnet.parse().ok()?, network.parse().ok()?, own.parse().ok()?, peer))
}

fn run(subnet: Ipv4Net, network: Ipv4Net, own: SocketAddrV4, peer: Route) -> Result<(), Box<dyn Error>> {
    let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(4 * BATCH as u32);
    let mut ring =
        ring.map_err(|error| format!("this kernel, or a sandbox, has no io_uring ({error}); use poll_loop"))?;
    let host = Host::new(network, subnet, own)?;
    let mut routes = RoutePublisher::for_host(&host);
    routes.apply([RouteChange::Set(peer)]).into_result()?;
    let (tun, udp) = (&Tun::open(&TunConfig::default())?, &UdpTransport::bind(host.underlay(), &UdpConfig::default())?);
    let link = Link::configure(tun, &host)?;
    let endpoint = Endpoint::new(Forwarder::new(ForwarderConfig::new(&host).with_mtu(link.mtu()))?);
    let TunOffload { tso, uso } = tun.offload();
    let coalesce = Coalesce { tcp4: tso, tcp6: tso, udp4: uso, udp6: uso };
    let mut engine = Engine::new(endpoint, QueueLimits::default(), coalesce);
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    wait_for(&mut ring, signals.as_raw_fd(), STOP)?;
    writeln!(io::stdout(), "ready {}", tun.name())?;
    let mut sources = [Source::new(tun), Source::new(udp)];
    let (routes, sink, start, mut unsent) = (routes.table(), &mut Adapters { tun, udp }, Instant::now(), 0);
    loop {
        // 1. Post the calls, and wait: for all reads, because they never block, or else for an event or the next flush.
        sources[0].post(&mut ring, 0, |slot, fd| slot.read(fd))?;
        sources[1].post(&mut ring, 1, |slot, fd| slot.receive(fd))?;
        let timeout = engine.wake_at().map(|at| at.saturating_sub(start.elapsed()));
        wait(&ring, sources.iter().map(|source| source.in_flight).sum(), timeout)?;
        let (now, mut is_over) = (start.elapsed(), false);
        for entry in ring.completion() {
            let (number, slot) = ring::place(&entry);
            let Some(source) = sources.get_mut(number) else {
                is_over = true;
                continue;
            };
            source.complete(slot, entry.result());
            if number == 1 && slot == BATCH && entry.result() & i32::from(POLLERR) != 0 {
                udp.receive_reports(|report| {
                    engine.endpoint_mut().handle_icmp(report, routes, now);
                });
            }
        }
        if is_over {
            // Without calls that wait for it, the device ends with this program. Linux before 6.0 ends it a little later.
            let _ = ring.submitter().register_sync_cancel(None, CancelBuilder::any());
            return Ok(());
        }
        // 2. Pass the packets from the TUN to the engine, and send them if no more are waiting or enough were collected.
        for slot in sources[0].take() {
            match usize::try_from(slot.result) {
                Ok(len) => {
                    let (header, packet) = slot.packet(len, tun.has_vnet_header());
                    unsent += engine.from_tun(&header, packet, routes, now, sink);
                }
                Err(_) if slot.result == -EBADFD => {
                    return Err(WorkerError::LinkDeleted { name: tun.name().to_owned() }.into());
                }
                Err(_) => return Err(io::Error::from_raw_os_error(-slot.result).into()),
            }
        }
        if !sources[0].is_ready || unsent >= 4 * BATCH {
            engine.flush(routes, now, sink);
            unsent = 0;
        }
        // 3. Pass the datagrams from the peer to the engine, and write their packets to the TUN.
        for slot in sources[1].take() {
            let Ok((meta, bytes)) = slot.message() else {
                engine.endpoint_mut().counters_mut().stats.read_errors += 1;
                continue;
            };
            for datagram in meta.datagrams_mut(bytes) {
                let outer = DatagramMeta { from: meta.from, ecn: meta.ecn };
                engine.from_udp(outer, datagram, routes, now, sink);
            }
        }
        engine.flush_inbound(now, sink);
        udp.retry_gso(Instant::now());
    }
}
