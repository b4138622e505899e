//! Decoding of steps from any bytes.
//!
//! Byte 0 is the policy ([`scenario::policy`](support::scenario::policy)), byte 1 the overlay's MTU and peer check.
//! Then come steps of five bytes, see [`op`]. Addresses, next hops, subnets, lengths and times are indices of the lists
//! here, so that steps of a history affect each other.

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;

use loden::Mtu;
use loden::engine::{SendFailure, WriteFailure};
use loden::forward::ForwarderConfig;
use loden::ipnet::IpNet;
use loden::lease::{Lease, LeaseEvent, SourceId};
use loden::offload::VnetHeader;
use loden::route::{Route, RouteChange};
use loden::wire::{DatagramTooBig, QuotedHeader};

use crate::offload::model::{partial, vnet};
use support::host::{NOBODY, POD, POD_A, POD_B, mtu_of, net, own};
use support::leases::Key;
use support::packet::{DF, ICMP, Ipv4, MF, RECORD_ROUTE, STRICT_SOURCE_ROUTE, UDP, icmp, pattern, udp};
use support::scenario::{PEER_CHECKS, config_from, next_hops, senders};

/// The low four bits of a step's first byte.
pub mod op {
    /// A packet from the TUN: `source << 4 | destination`, `ttl << 5 | kind << 3 | fragment`, `defect << 4 | length`,
    /// `gso << 1`, and whether it belongs to the batch of the previous packet.
    pub const OUT: u8 = 0;
    /// A datagram from a peer: the same fields, and its sender.
    pub const IN: u8 = 1;
    /// A lease of the source in the upper four bits: key, subnet, next hop, `mtu << 4 | end`.
    pub const ADDED: u8 = 2;
    /// The end of a lease: key.
    pub const REMOVED: u8 = 3;
    /// All leases of a source: their number, the first subnet, the first next hop, `mtu << 4 | end`.
    pub const SNAPSHOT: u8 = 4;
    pub const SOURCE_LOST: u8 = 5;
    /// Publishes the leases' changes to the routes.
    pub const PUBLISH: u8 = 6;
    /// A route from outside the leases: subnet, next hop, mtu. If the last byte is odd it is removed.
    pub const ROUTE: u8 = 7;
    /// A change of the time: its length, and whether the clock goes back.
    pub const PASS: u8 = 8;
    /// A flush. Of the first selection up to three datagrams are sent, then a failure occurs, and the same once more.
    /// Then all others are sent.
    pub const FLUSH: u8 = 9;
    /// A router's report: MTU, source, destination, the quoted datagram and the length of the quote.
    pub const REPORT: u8 = 10;
    /// Drops all queued packets.
    pub const STOP: u8 = 11;
    /// Makes the TUN refuse the next packet.
    pub const TUN: u8 = 12;
}

const STEP: usize = 5;
const MTUS: [u16; 4] = [1472, 576, 1300, 9000];
const TTLS: [u8; 8] = [64, 2, 1, 0, 255, 3, 64, 64];
const LENGTHS: [usize; 16] = [0, 7, 8, 29, 100, 480, 528, 529, 548, 900, 952, 1280, 1400, 1444, 1452, 1453];
/// MTUs in bytes of outer packet.
const OUTER_MTUS: [u16; 8] = [1500, 0, 67, 68, 576, 1000, 1328, 1499];
/// Payload bytes in a segment.
const GSO_SIZES: [u16; 4] = [100, 480, 700, 1000];
/// Times in milliseconds.
const TIMES: [u64; 8] = [1, 10, 50, 100, 1000, 30_000, 599_999, 600_000];

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Out { packet: Vec<u8>, vnet: Option<VnetHeader>, same_batch: bool },
    In { datagram: Vec<u8>, from: SocketAddr },
    Lease { source: SourceId, event: LeaseEvent<Key> },
    Publish,
    Route(RouteChange),
    Pass { time: Duration, back: bool },
    Flush([(usize, Mishap); 2]),
    Report(DatagramTooBig),
    TunFails(WriteFailure),
    Stop,
}

/// An answer of the socket.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mishap {
    /// Accepts all datagrams.
    Nothing,
    /// EAGAIN.
    Full,
    /// ENOBUFS.
    NoBuffers,
    /// ECONNREFUSED, of one datagram.
    Refused,
    /// EMSGSIZE, with the path MTU that the system then reports.
    TooLong(Option<u16>),
    /// Any other error.
    Other(SendFailure),
}

impl Mishap {
    pub(crate) fn failure(self) -> Option<SendFailure> {
        match self {
            Self::Nothing => None,
            Self::Full => Some(SendFailure::Full),
            Self::NoBuffers => Some(SendFailure::NoBuffers),
            Self::Refused => Some(SendFailure::Refused),
            Self::TooLong(_) => Some(SendFailure::TooLong),
            Self::Other(failure) => Some(failure),
        }
    }

    pub(crate) fn outer(self) -> Option<u16> {
        match self {
            Self::TooLong(outer) => outer,
            Self::Nothing | Self::Full | Self::NoBuffers | Self::Refused | Self::Other(_) => None,
        }
    }
}

impl Step {
    /// Converts the leases' ends to times on the clock.
    pub(crate) fn at(mut self, now: Duration) -> Self {
        let ends = |lease: &mut Lease| lease.expires = lease.expires.map(|left| now + left);
        if let Self::Lease { event: LeaseEvent::Added { lease, .. }, .. } = &mut self {
            ends(lease);
        } else if let Self::Lease { event: LeaseEvent::Snapshot(leases), .. } = &mut self {
            leases.iter_mut().for_each(|(_, lease)| ends(lease));
        }
        self
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Option<(ForwarderConfig, Vec<Step>)> {
    let ([policy, choice], steps) = bytes.split_first_chunk()?;
    let config = config_from(*policy, MTUS[usize::from(*choice) % MTUS.len()])
        .with_peer_check(PEER_CHECKS[usize::from(*choice) / MTUS.len() % PEER_CHECKS.len()]);
    let steps = steps.as_chunks::<STEP>().0.iter().enumerate();
    Some((config, steps.filter_map(|(number, step)| decode_step(number, *step)).collect()))
}

fn decode_step(number: usize, [first, a, b, c, d]: [u8; STEP]) -> Option<Step> {
    let source = SourceId(u16::from(first >> 4) % 3);
    // No two datagrams of a history are equal: each packet has at most this many segments.
    let id = (number as u16).wrapping_mul(300);
    let step = match first & 15 {
        op::OUT => {
            let (packet, vnet) = outbound(id, [a, b, c], d >> 1);
            Step::Out { packet, vnet, same_batch: d & 1 != 0 }
        }
        op::IN => Step::In { datagram: packet(id, a, b, c).bytes(), from: pick(&senders(), d) },
        op::ADDED => Step::Lease { source, event: LeaseEvent::Added { key: a % 8, lease: lease(b, c, d) } },
        op::REMOVED => Step::Lease { source, event: LeaseEvent::Removed { key: a % 8 } },
        op::SNAPSHOT => {
            let lease = |number: u8| (number, lease(b.wrapping_add(number), c.wrapping_add(number), d));
            Step::Lease { source, event: LeaseEvent::Snapshot((0..a % 8).map(lease).collect()) }
        }
        op::SOURCE_LOST if a & 1 != 0 => Step::Lease { source, event: LeaseEvent::SourceHeard },
        op::SOURCE_LOST => Step::Lease { source, event: LeaseEvent::SourceLost },
        op::PUBLISH => Step::Publish,
        op::ROUTE if d & 1 != 0 => Step::Route(RouteChange::Delete(pick(&subnets(), a))),
        op::ROUTE => Step::Route(RouteChange::Set(Route::new(pick(&subnets(), a), pick(&hops(), b)).with_mtu(mtu(c)))),
        op::PASS => Step::Pass { time: Duration::from_millis(pick(&TIMES, a)), back: b & 7 == 7 },
        op::FLUSH => Step::Flush([(a, b), (c, d)].map(|(go, kind)| (usize::from(go % 4), mishap(kind)))),
        op::REPORT => {
            let ours = [own(), ([10, 168, 0, 2], 1).into(), ([10, 168, 0, 9], 8285).into()];
            let (source, destination) = (pick(&ours, b), pick(&hops(), c));
            if destination.is_ipv6() {
                return None;
            }
            let len: u16 = pick(&[1500, 1280, 1000, 552], d >> 1);
            let mut inner = packet(0x1234, (d >> 3) ^ 2, 0, 0).bytes().first_chunk().copied();
            inner.iter_mut().for_each(|header: &mut [u8; 20]| header[2..4].copy_from_slice(&(len - 28).to_be_bytes()));
            let inner = inner.filter(|_| d & 1 == 0).map(QuotedHeader::Ipv4);
            Step::Report(DatagramTooBig { mtu: pick(&OUTER_MTUS, a), source, destination, len, inner })
        }
        op::STOP => Step::Stop,
        op::TUN => {
            let failures = [WriteFailure::Down, WriteFailure::Failed, WriteFailure::Full, WriteFailure::Rejected];
            Step::TunFails(pick(&failures, a))
        }
        _ => return None,
    };
    Some(step)
}

/// Returns a packet, or a GSO packet with four times as much data. A UDP one is valid and not a fragment.
fn outbound(id: u16, [addresses, kind, shape]: [u8; 3], gso: u8) -> (Vec<u8>, Option<VnetHeader>) {
    let one = packet(id, addresses, kind, shape);
    let is_sound = one.checksum.is_none() && one.trailer.is_empty() && one.cut.is_none();
    if gso & 64 == 0 || one.protocol != UDP || one.fragment & !DF != 0 || !is_sound {
        return (one.bytes(), None);
    }
    let port = u16::from_be_bytes([one.payload[2], one.payload[3]]);
    let payload = udp(4000, port, &one.payload[8..].repeat(4));
    let packet = partial(Ipv4 { payload, ..one }.bytes());
    let header = vnet(&packet, pick(&GSO_SIZES, gso));
    (packet, Some(header))
}

fn packet(id: u16, addresses: u8, kind: u8, shape: u8) -> Ipv4 {
    let pods = addresses_there_are();
    let data = pattern(pick(&LENGTHS, shape));
    let (protocol, payload) = match kind >> 3 & 3 {
        0 | 1 => (loden::wire::protocol::UDP, udp(4000, 53, &data)),
        2 => (loden::wire::protocol::UDP, udp(4000, 8285, &data)),
        _ => (ICMP, icmp(if kind & 4 == 0 { 8 } else { 3 }, 0, &data)),
    };
    let fragment = [DF, 0, 0, DF, MF, 100, DF | MF, 0x1fff][usize::from(kind & 7)];
    let ttl = pick(&TTLS, kind >> 5);
    let packet =
        Ipv4 { id, ttl, fragment, protocol, payload, ..Ipv4::new(pick(&pods, addresses >> 4), pick(&pods, addresses)) };
    match shape >> 4 {
        1 => Ipv4 { checksum: Some(0xdead), ..packet },
        2 => Ipv4 { trailer: vec![0xee; 9], ..packet },
        3 => Ipv4 { options: RECORD_ROUTE.to_vec(), ..packet },
        4 => Ipv4 { options: STRICT_SOURCE_ROUTE.to_vec(), ..packet },
        5 => Ipv4 { cut: Some(19), ..packet },
        _ => packet,
    }
}

/// Returns the addresses. At most eight of them are hosts, so that the limiter never evicts one.
fn addresses_there_are() -> [Ipv4Addr; 16] {
    let hosts = [POD, [100, 96, 1, 3].into(), POD_A, [100, 96, 2, 241].into(), POD_B, NOBODY, [10, 168, 0, 3].into()];
    let own = match own() {
        SocketAddr::V4(own) => *own.ip(),
        SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let [a, b, c, d, e, f, g] = hosts;
    let others =
        [[100, 96, 1, 255], [100, 96, 255, 255], [224, 0, 0, 1], [127, 0, 0, 1], [169, 254, 1, 1]].map(Ipv4Addr::from);
    let [h, i, j, k, l] = others;
    [a, b, c, d, e, f, g, own, h, i, j, k, l, a, c, e]
}

fn subnets() -> [IpNet; 12] {
    let nets = [
        ([100, 96, 2, 0], 24),
        ([100, 96, 3, 0], 24),
        ([100, 96, 2, 240], 28),
        ([100, 96, 2, 3], 32),
        ([100, 96, 0, 0], 16),
        ([100, 96, 2, 0], 23),
        ([100, 96, 1, 0], 24),
        ([100, 96, 1, 3], 32),
        ([100, 96, 99, 0], 24),
        ([0, 0, 0, 0], 0),
        ([10, 168, 0, 0], 24),
        ([100, 96, 2, 77], 24),
    ];
    nets.map(|(address, len)| net(address, len).into())
}

/// Returns the next hops that a table accepts, and then those that it refuses.
pub(crate) fn hops() -> [SocketAddr; 13] {
    let [a, b, c, d, e, f, g, h] = next_hops();
    [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        own(),
        ([0, 0, 0, 0], 1).into(),
        ([224, 0, 0, 1], 1).into(),
        ([10, 168, 0, 3], 0).into(),
        (POD_B, 8285).into(),
    ]
}

fn lease(subnet: u8, hop: u8, rest: u8) -> Lease {
    let ends = [None, None, Some(50), Some(1000), Some(30_000), Some(700_000), Some(0), None];
    let expires = pick(&ends, rest).map(Duration::from_millis);
    Lease::new(pick(&subnets(), subnet), pick(&hops(), hop)).with_mtu(mtu(rest >> 4)).with_expires(expires)
}

fn mtu(number: u8) -> Option<Mtu> {
    pick(&[None, None, Some(1300), Some(576), Some(68), Some(69), None, None], number).map(mtu_of)
}

fn mishap(number: u8) -> Mishap {
    match number & 7 {
        0 => Mishap::Nothing,
        1 => Mishap::Full,
        2 => Mishap::NoBuffers,
        3 => Mishap::Refused,
        4 => Mishap::TooLong(None),
        6 => Mishap::Other(pick(&[SendFailure::Unreachable, SendFailure::Forbidden, SendFailure::Failed], number >> 3)),
        _ => Mishap::TooLong(Some(pick(&OUTER_MTUS, number >> 3))),
    }
}

fn pick<T: Copy>(list: &[T], number: u8) -> T {
    list[usize::from(number) % list.len()]
}
