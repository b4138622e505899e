//! A worker over scripted system calls: each fault, as counters and errors show it.

use alloc::vec::Vec;
use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;
use etherparse::{IpNumber, Ipv4Header, PacketBuilder};

use super::*;
use crate::forward::{DirectionCounters, ForwarderConfig};
use crate::host::{Host, Mtu};
use crate::offload::{OffloadAction, VNET_HEADER_LEN, VnetHeader, vnet_flag, vnet_gso};
use crate::route::{Route, RouteChange, RoutePublisher};
use crate::sys::script::{Answer, Arrival, Call, Script, Sent};
use crate::sys::{TunOffload, UdpOffload};
use crate::wire::checksum;
use crate::wire::ipv4::Ipv4Packet;

mod bounds;
mod budget;
mod ends;
mod failing;
mod framed;
#[cfg(feature = "tokio")]
mod future;
mod group;
mod inbound;
mod interrupted;
mod outbound;
mod random;
mod refused;
mod stale;
mod strangers;

/// A local pod, one of host A and one of host B, and an address without a route.
const POD: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 2);
const POD_A: Ipv4Addr = Ipv4Addr::new(100, 96, 2, 3);
const POD_B: Ipv4Addr = Ipv4Addr::new(100, 96, 3, 4);
const NOBODY: Ipv4Addr = Ipv4Addr::new(100, 96, 99, 9);

const MILLISECOND: Duration = Duration::from_millis(1);

fn host_a() -> SocketAddr {
    ([10, 168, 0, 3], 8285).into()
}

fn host_b() -> SocketAddr {
    ([10, 168, 0, 4], 8285).into()
}

/// The DF bit of an IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Df {
    Clear,
    Set,
}

const TUN: Ready = Ready { tun: true, udp: false };
const UDP: Ready = Ready { tun: false, udp: true };

/// The state of the ready file descriptor after a call, derived from [`Next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Drained,
    /// More packets may be left, and a failing call is retried later.
    Held,
    /// More packets than the budget were ready.
    More,
}

/// A worker on host 10.168.0.2, its script, and its clock.
struct Stage<F = Bare> {
    script: Script,
    worker: Worker<F>,
    routes: RoutePublisher,
    now: Instant,
}

impl Stage {
    /// Returns a stage with all offloads.
    fn new() -> Self {
        Self::with(TunOffload::ALL, UdpOffload::ALL)
    }

    fn with(of_tun: TunOffload, of_udp: UdpOffload) -> Self {
        let net = |text: &str| text.parse::<ipnet::Ipv4Net>().unwrap();
        let host = Host::new(net("100.96.0.0/16"), net("100.96.1.0/24"), ([10, 168, 0, 2], 8285)).unwrap();
        let mut routes = RoutePublisher::for_host(&host);
        let both = [Route::new(net("100.96.2.0/24"), host_a()), Route::new(net("100.96.3.0/24"), host_b())];
        assert!(routes.apply(both.map(RouteChange::Set)).refused.is_empty());
        let forwarder = Forwarder::new(ForwarderConfig::new(&host)).unwrap();
        let script = Script::default();
        let (tun, udp) = (Tun::scripted(&script, of_tun), UdpTransport::scripted(&script, of_udp, 0));
        let worker = Worker::new(tun, udp, forwarder, routes.reader());
        Self { script, worker, routes, now: Instant::now() }
    }

    fn with_framing<F: Framing>(self, framing: F) -> Stage<F> {
        let Self { script, worker, routes, now } = self;
        Stage { script, worker: worker.with_framing(framing), routes, now }
    }

    /// Returns the only drop reason, and its count.
    fn lost(flow: DirectionCounters) -> Option<(DropReason, u64)> {
        let mut drops = flow.drops();
        let first = drops.next();
        assert_eq!(drops.next(), None);
        first
    }
}

impl<F: Framing> Stage<F> {
    /// Makes the next calls of this kind fail with these error numbers.
    fn fail<const N: usize>(&self, call: Call, errnos: [c_int; N]) {
        self.script.then(call, errnos.map(Answer::Error));
    }

    /// Adds a packet of a local pod to the device, without requested offloads.
    fn give(&self, packet: &[u8]) {
        self.give_with(VnetHeader::default(), packet);
    }

    fn give_with(&self, header: VnetHeader, packet: &[u8]) {
        let bare = self.worker.tun.offload() == TunOffload::NONE;
        let header = header.to_bytes();
        self.script.give_packet(&[if bare { &[] } else { &header[..] }, packet].concat());
    }

    /// Adds datagrams that arrive as one message.
    fn arrive(&self, from: SocketAddr, datagrams: &[Vec<u8>]) {
        let segment = (datagrams.len() > 1).then_some(datagrams[0].len() as c_int);
        self.script.give_message(Arrival { from, bytes: datagrams.concat(), segment, flags: 0 });
    }

    /// Moves packets from the TUN to the peers, with the default budget. Asserts that all packets are counted.
    fn out(&mut self) -> Result<Progress, WorkerError> {
        self.call(TUN, Budget::default())
    }

    /// Moves packets from the peers to the TUN, likewise.
    fn back(&mut self) -> Result<Progress, WorkerError> {
        self.call(UDP, Budget::default())
    }

    fn call(&mut self, ready: Ready, budget: Budget) -> Result<Progress, WorkerError> {
        let outcome = self.worker.handle(ready, budget, self.now);
        let Counters { encap, decap, .. } = self.worker.counters();
        assert!(encap.is_conserved() && decap.is_conserved(), "R67: {encap:?} {decap:?}");
        assert_eq!(decap.held(), 0, "no packet from a peer is queued");
        let next = outcome?;
        assert_eq!(next, self.next());
        let is_drained = (next.tun || !ready.tun) && (next.udp || !ready.udp);
        let at_once = next.wake_at.is_some_and(|at| at <= self.now);
        Ok(if is_drained {
            Progress::Drained
        } else if at_once {
            Progress::More
        } else {
            Progress::Held
        })
    }

    fn next(&self) -> Next {
        self.worker.next(self.now)
    }

    fn encap(&self) -> DirectionCounters {
        self.worker.counters().encap
    }

    fn decap(&self) -> DirectionCounters {
        self.worker.counters().decap
    }

    fn send_errors(&self) -> Vec<(IpAddr, u64)> {
        self.worker.remote().send_errors()
    }

    /// Returns the packets written to the TUN since the last call, with GSO packets cut into their segments.
    fn take_delivered(&self) -> Vec<Vec<u8>> {
        let bare = self.worker.tun.offload() == TunOffload::NONE;
        let mut delivered = Vec::new();
        for bytes in self.script.take_written() {
            let (header, packet) = bytes.split_at(if bare { 0 } else { VNET_HEADER_LEN });
            let header = header.first_chunk().map_or(VnetHeader::default(), |bytes| VnetHeader::from_bytes(*bytes));
            match header.inspect(packet).unwrap() {
                OffloadAction::Segment(many) => delivered.extend((0..many.segments()).map(|index| {
                    let mut segment = alloc::vec![0; many.len_of(index)];
                    many.write_segment(packet, index, &mut segment);
                    segment
                })),
                OffloadAction::Nothing | OffloadAction::Checksum(_) => delivered.push(packet.to_vec()),
            }
        }
        delivered
    }
}

/// Returns a UDP packet with `payload` bytes of payload. Their first bytes and the identification are its number.
fn udp(source: Ipv4Addr, destination: Ipv4Addr, number: u16, df: Df, payload: usize) -> Vec<u8> {
    let builder = PacketBuilder::ip(ip(source, destination, number, df)).udp(4000, 53);
    let mut packet = Vec::new();
    builder.write(&mut packet, &marked(number, payload)).unwrap();
    packet
}

fn set_ttl(packet: &mut [u8], ttl: u8) {
    packet[8] = ttl;
    packet[10..12].copy_from_slice(&[0; 2]);
    let sum = checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Returns the same over TCP, with a sequence number.
fn tcp(source: Ipv4Addr, destination: Ipv4Addr, number: u16, sequence: u32, payload: usize) -> Vec<u8> {
    let builder = PacketBuilder::ip(ip(source, destination, number, Df::Set)).tcp(4000, 80, sequence, 500).ack(7);
    let mut packet = Vec::new();
    builder.write(&mut packet, &marked(number, payload)).unwrap();
    packet
}

fn ip(source: Ipv4Addr, destination: Ipv4Addr, number: u16, df: Df) -> etherparse::IpHeaders {
    let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, source.octets(), destination.octets()).unwrap();
    header.identification = number;
    header.dont_fragment = df == Df::Set;
    etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
}

fn marked(number: u16, len: usize) -> Vec<u8> {
    number.to_be_bytes().into_iter().chain((2..).map(|at| at as u8)).take(len).collect()
}

/// Returns the header that the kernel writes for a GSO packet of TCP or UDP.
fn gso(packet: &[u8], size: u16) -> VnetHeader {
    let (gso_type, hdr_len, csum_offset) =
        if packet[9] == IpNumber::TCP.0 { (vnet_gso::TCPV4, 40, 16) } else { (vnet_gso::UDP_L4, 28, 6) };
    VnetHeader { flags: vnet_flag::NEEDS_CSUM, gso_type, hdr_len, gso_size: size, csum_start: 20, csum_offset }
}

fn number(packet: &[u8]) -> u16 {
    Ipv4Packet::parse(packet).unwrap().header().identification()
}

fn numbers<'p>(packets: impl IntoIterator<Item = &'p Vec<u8>>) -> Vec<u16> {
    packets.into_iter().map(|packet| number(packet)).collect()
}

/// Returns the datagrams to one host.
fn to(host: SocketAddr, datagrams: &[(SocketAddr, Vec<u8>)]) -> Vec<Vec<u8>> {
    datagrams.iter().filter(|(to, _)| *to == host).map(|(_, datagram)| datagram.clone()).collect()
}
