//! An engine over a socket and a TUN that record their packets in lists.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddr};
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, UdpHeader};
use std::format;

use super::*;
use crate::forward::{DirectionCounters, Forwarder, ForwarderConfig, IcmpLimiter, Rate, SourcePort};
use crate::host::Host;
use crate::offload::{OffloadAction, vnet_flag, vnet_gso};
use crate::route::{Route, RouteTable};

mod framed;
mod ipv6;
mod random;

const POD: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 2);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Returns the address of host `number`, which owns 100.96.`number`.0/24.
fn host(number: u8) -> SocketAddr {
    ([10, 168, 0, number], 8285).into()
}

fn pod_of(host: u8) -> Ipv4Addr {
    [100, 96, host, 2].into()
}

/// Returns a UDP packet with `data` bytes of payload, whose identification is `number`.
fn packet(from: Ipv4Addr, to: Ipv4Addr, number: u16, dont_fragment: bool, data: usize) -> Vec<u8> {
    let mut header = Ipv4Header::new(8 + data as u16, 64, IpNumber::UDP, from.octets(), to.octets()).unwrap();
    (header.identification, header.dont_fragment) = (number, dont_fragment);
    header.header_checksum = header.calc_header_checksum();
    let ports = 4000 + number % 2;
    let data = vec![number as u8; data];
    let udp = UdpHeader::with_ipv4_checksum(ports, 53, &header, &data).unwrap();
    [header.to_bytes().as_slice(), &udp.to_bytes(), &data].concat()
}

fn with_ttl(packet: &[u8], ttl: u8) -> Vec<u8> {
    let (mut header, rest) = Ipv4Header::from_slice(packet).unwrap();
    header.time_to_live = ttl;
    header.header_checksum = header.calc_header_checksum();
    [header.to_bytes().as_slice(), rest].concat()
}

fn gso(size: u16) -> VnetHeader {
    VnetHeader {
        flags: vnet_flag::NEEDS_CSUM,
        gso_type: vnet_gso::UDP_L4,
        hdr_len: 28,
        gso_size: size,
        csum_start: 20,
        csum_offset: 6,
    }
}

fn number(packet: &[u8]) -> u16 {
    header(packet).identification
}

fn header(packet: &[u8]) -> Ipv4Header {
    Ipv4Header::from_slice(packet).unwrap().0
}

/// A socket and a TUN. The socket refuses all datagrams to some peers, and to others only those that are too long.
#[derive(Default)]
struct Lists {
    refuses: BTreeMap<SocketAddr, SendFailure>,
    longest: BTreeMap<SocketAddr, usize>,
    /// The most datagrams of a call that are accepted.
    most: Option<usize>,
    system: SystemPath,
    tun_fails: VecDeque<WriteFailure>,
    /// IP versions whose GSO packets the TUN refuses.
    refuses_gso_of: Vec<u8>,
    calls: usize,
    batches: usize,
    sent: Vec<(SocketAddr, PathMode, Vec<u8>)>,
    written: Vec<(VnetHeader, Vec<u8>)>,
}

impl Sink for Lists {
    fn send(&mut self, batches: &[Transmit<'_>], mode: PathMode) -> Result<(), Unsent> {
        self.calls += 1;
        self.batches += batches.len();
        let mut taken = 0;
        for (batch, transmit) in batches.iter().enumerate() {
            let to = transmit.destination;
            let count = transmit.segments().count();
            for (datagram, bytes) in transmit.segments().enumerate() {
                let is_too_long = self.longest.get(&to).is_some_and(|longest| bytes.len() > *longest);
                let too_long = (is_too_long && mode != PathMode::Fragment).then_some(SendFailure::TooLong);
                let is_enough = self.most == Some(taken);
                let refused = self.refuses.get(&to).copied().or(too_long).or(is_enough.then_some(SendFailure::Full));
                if let Some(reason) = refused {
                    return Err(Unsent { batch, datagram, datagrams: count - datagram, reason });
                }
                taken += 1;
                self.sent.push((to, mode, bytes.to_vec()));
            }
        }
        Ok(())
    }

    fn write(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure> {
        if header.gso_type != vnet_gso::NONE && self.refuses_gso_of.contains(&(packet[0] >> 4)) {
            return Err(WriteFailure::Rejected);
        }
        match self.tun_fails.pop_front() {
            Some(failure) => Err(failure),
            None => {
                self.written.push((*header, packet.to_vec()));
                Ok(())
            }
        }
    }

    fn system_path(&mut self, _: &Way, _: &mut dyn FnMut(&DatagramTooBig)) -> SystemPath {
        self.system
    }
}

impl Lists {
    fn to(&mut self, host: SocketAddr) -> Vec<Vec<u8>> {
        let (found, others) = core::mem::take(&mut self.sent).into_iter().partition(|(to, ..)| *to == host);
        self.sent = others;
        let found: Vec<(SocketAddr, PathMode, Vec<u8>)> = found;
        found.into_iter().map(|(.., datagram)| datagram).collect()
    }
}

/// Host 1 with its lists and its clock.
struct Stage<F = Bare> {
    engine: Engine<F>,
    routes: RouteTable,
    sink: Lists,
    now: Duration,
}

impl Stage {
    fn new(limits: QueueLimits) -> Self {
        Self::of(1, limits, Mtu::DEFAULT)
    }

    /// Returns the stage of a host with a number.
    fn of(number: u8, limits: QueueLimits, mtu: Mtu) -> Self {
        let net = |text: &str| text.parse::<ipnet::Ipv4Net>().unwrap();
        let identity = Host::new(net("100.96.0.0/16"), net(&format!("100.96.{number}.0/24")), host(number)).unwrap();
        let config = ForwarderConfig::new(&identity).with_source_port(SourcePort::ByFlow).with_mtu(mtu);
        let routes = (1..=60)
            .filter(|peer| *peer != number)
            .map(|number| Route::new(net(&format!("100.96.{number}.0/24")), host(number)));
        let (routes, refused) = RouteTable::try_from_routes(routes);
        assert_eq!(refused, []);
        let mut endpoint = Endpoint::new(Forwarder::new(config).unwrap());
        let plenty = Rate { per_second: 1_000_000, burst: 1_000_000 };
        endpoint.set_icmp_limiter(IcmpLimiter::new(plenty, plenty));
        let engine = Engine::new(endpoint, limits, Coalesce::ALL);
        Self { engine, routes, sink: Lists::default(), now: Duration::from_secs(1) }
    }

    fn drops(flow: &DirectionCounters) -> Vec<(DropReason, u64)> {
        flow.drops().collect()
    }

    fn with_framing<F: Framing>(self, framing: F) -> Stage<F> {
        let Self { engine, routes, sink, now } = self;
        Stage { engine: engine.with_framing(framing), routes, sink, now }
    }
}

impl<F: Framing> Stage<F> {
    fn give_with(&mut self, header: &VnetHeader, packet: &[u8]) {
        let Self { engine, routes, sink, now } = self;
        engine.from_tun(header, &mut packet.to_vec(), routes, *now, sink);
        self.assert_conserved();
    }

    fn give(&mut self, packet: &[u8]) {
        self.give_with(&VnetHeader::default(), packet);
    }

    /// Passes `count` packets from a local pod to a pod of `host`, numbered from `first` on.
    fn give_all(&mut self, host: u8, first: u16, count: u16) {
        (first..first + count).for_each(|number| self.give(&packet(POD, pod_of(host), number, true, 100)));
    }

    fn arrive(&mut self, from: u8, packet: &[u8]) {
        let Self { engine, routes, sink, now } = self;
        engine.from_udp(host(from), &mut packet.to_vec(), routes, *now, sink);
        self.assert_conserved();
    }

    fn flush(&mut self) {
        let Self { engine, routes, sink, now } = self;
        engine.flush(routes, *now, sink);
        engine.flush_inbound(*now, sink);
        self.assert_conserved();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.flush();
    }

    fn assert_conserved(&self) {
        let Counters { encap, decap, .. } = self.engine.counters();
        assert!(encap.is_conserved() && decap.is_conserved(), "R67: {encap:?} {decap:?}");
    }

    fn encap(&self) -> DirectionCounters {
        self.engine.counters().encap
    }

    fn decap(&self) -> DirectionCounters {
        self.engine.counters().decap
    }

    fn send_errors(&self) -> Vec<(IpAddr, u64)> {
        self.engine.endpoint().send_errors().collect()
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self::new(QueueLimits::default())
    }
}

#[test]
fn r69_a_blocked_path_does_not_affect_other_peers() {
    let mut stage = Stage::new(QueueLimits { per_peer: 10_000, ..QueueLimits::default() });
    let slow: Vec<u8> = (2..10).collect();
    stage.sink.refuses = slow.iter().map(|number| (host(*number), SendFailure::Full)).collect();
    for round in 0..200u16 {
        slow.iter().for_each(|number| stage.give_all(*number, 2 * round, 2));
        stage.give_all(20, round, 1);
        stage.pass(MILLISECOND);
        let sent = stage.sink.to(host(20));
        assert_eq!(sent.iter().map(|datagram| number(datagram)).collect::<Vec<_>>(), [round]);
        assert_eq!(stage.sink.sent, []);
    }
    // Of 128 bytes each, 78 fit. The newest are dropped.
    let encap = stage.encap();
    assert_eq!((encap.forwarded(), encap.held()), (200, 8 * 78));
    assert_eq!(Stage::drops(&encap), [(DropReason::SendBufferFull, 8 * 322)]);
    assert_eq!(stage.send_errors(), slow.iter().map(|number| (host(*number).ip(), 322)).collect::<Vec<_>>());
    stage.sink.refuses.clear();
    stage.pass(5 * MILLISECOND);
    for number in slow {
        let mut sent: Vec<_> = stage.sink.to(host(number)).iter().map(|datagram| self::number(datagram)).collect();
        sent.sort_unstable();
        assert_eq!(sent, (0..78).collect::<Vec<_>>());
    }
    assert_eq!((stage.encap().held(), stage.engine.wake_at()), (0, None));
}

#[test]
fn a_blocked_path_is_retried_at_doubling_and_bounded_intervals() {
    let mut stage = Stage::default();
    stage.sink.refuses.insert(host(2), SendFailure::Full);
    stage.give_all(2, 0, 2);
    stage.flush();
    let start = stage.now;
    let mut pauses = Vec::new();
    while stage.encap().held() > 0 {
        let calls = stage.sink.calls;
        stage.flush();
        assert_eq!(stage.sink.calls, calls, "retried too early");
        let wake_at = stage.engine.wake_at().unwrap();
        pauses.push((wake_at - stage.now).as_micros());
        stage.now = wake_at;
        stage.flush();
    }
    assert_eq!(pauses[..5], [500, 500, 1000, 2000, 4000]);
    assert_eq!((*pauses.iter().max().unwrap(), stage.now - start), (4000, Duration::from_secs(1)));
    assert_eq!(Stage::drops(&stage.encap()), [(DropReason::SendBufferFull, 2)]);
    assert_eq!((stage.send_errors(), stage.engine.wake_at()), (vec![(host(2).ip(), 2)], None));
}

#[test]
fn a_sent_datagram_restarts_the_limit_of_its_peer_alone() {
    let mut stage = Stage::default();
    stage.give_all(2, 0, 1);
    stage.give_all(3, 0, 1);
    stage.sink.refuses = [2, 3].map(|number| (host(number), SendFailure::Full)).into();
    stage.flush();
    stage.pass(900 * MILLISECOND);
    stage.sink.refuses.remove(&host(3));
    stage.pass(10 * MILLISECOND);
    stage.sink.refuses.insert(host(3), SendFailure::Full);
    stage.give_all(3, 1, 1);
    stage.pass(100 * MILLISECOND);
    assert_eq!(stage.send_errors(), [(host(2).ip(), 1)]);
    assert_eq!((stage.encap().forwarded(), stage.encap().held()), (1, 1));
}

#[test]
fn r70_packets_queued_for_a_removed_next_hop_have_their_own_drop_reason() {
    let mut stage = Stage::default();
    stage.sink.refuses = [2, 3].map(|number| (host(number), SendFailure::Full)).into();
    stage.give_all(2, 0, 5);
    stage.give_with(&gso(100), &packet(POD, pod_of(2), 7, true, 1000));
    stage.give_all(3, 0, 2);
    stage.flush();
    stage.engine.drop_peers(|next_hop| next_hop == host(2), DropReason::StaleRoute);
    stage.assert_conserved();
    assert_eq!(Stage::drops(&stage.encap()), [(DropReason::StaleRoute, 6)]);
    assert_eq!((stage.encap().held(), stage.send_errors()), (2, vec![]), "no send error of the peer");
    stage.sink.refuses.clear();
    stage.pass(MILLISECOND);
    assert_eq!((stage.sink.to(host(2)), stage.sink.to(host(3)).len()), (vec![], 2));
}

#[test]
fn a_closed_socket_loses_nothing() {
    let mut stage = Stage::default();
    stage.sink.refuses.insert(host(2), SendFailure::Closed);
    stage.give_all(2, 0, 5);
    stage.flush();
    assert_eq!((stage.encap().held(), stage.encap().forwarded()), (5, 0));
    stage.sink.refuses.clear();
    stage.flush();
    assert_eq!((stage.encap().held(), stage.encap().forwarded()), (0, 5));
}

#[test]
fn each_refusal_has_its_drop_reason() {
    let reasons = [
        (SendFailure::Failed, DropReason::SendFailed),
        (SendFailure::Forbidden, DropReason::SendForbidden),
        (SendFailure::Refused, DropReason::SendRefused),
        (SendFailure::Unreachable, DropReason::SendUnreachable),
    ];
    for (failure, reason) in reasons {
        let mut stage = Stage::default();
        stage.sink.refuses.insert(host(2), failure);
        stage.give_all(2, 0, 3);
        stage.give_all(3, 0, 1);
        stage.flush();
        assert_eq!((Stage::drops(&stage.encap()), stage.encap().forwarded()), (vec![(reason, 3)], 1));
        assert_eq!((stage.send_errors(), stage.encap().held()), (vec![(host(2).ip(), 3)], 0));
    }
}

#[test]
fn a_send_without_kernel_memory_is_retried_for_15_ms() {
    let mut stage = Stage::default();
    stage.sink.refuses.insert(host(2), SendFailure::NoBuffers);
    [0, 2, 4].into_iter().for_each(|number| stage.give_all(2, number, 1));
    stage.flush();
    stage.pass(14 * MILLISECOND);
    assert_eq!(stage.encap().held(), 3);
    stage.pass(14 * MILLISECOND);
    assert_eq!(Stage::drops(&stage.encap()), [(DropReason::SendNoBuffers, 3)]);
}

/// A packet is queued whole or not at all: its first datagrams are not sent without the last ones.
#[test]
fn a_packet_without_room_is_not_queued_in_part() {
    let mut stage = Stage::new(QueueLimits { per_peer: 5000, ..QueueLimits::default() });
    stage.give_with(&gso(1000), &packet(POD, pod_of(2), 1, true, 3000));
    stage.give_with(&gso(1000), &packet(POD, pod_of(2), 11, true, 3000));
    stage.give(&packet(POD, pod_of(2), 21, false, 1900));
    stage.give(&packet(POD, pod_of(2), 31, false, 1800));
    assert_eq!((stage.encap().held(), stage.encap().forwarded()), (2, 0));
    assert_eq!(Stage::drops(&stage.encap()), [(DropReason::SendBufferFull, 2)]);
    stage.flush();
    let sent: Vec<_> = stage.sink.to(host(2)).iter().map(|datagram| number(datagram)).collect();
    assert_eq!(sent, [1, 2, 3, 31, 31]);
    assert_eq!((stage.encap().held(), stage.encap().forwarded()), (0, 2));
}

/// R51: on a path of 600 bytes that is known before the packet arrives, segments of 1028 bytes are fragmented and
/// counted as such. Each segment can be reassembled.
#[test]
fn a_gso_packet_without_df_is_cut_into_fragments_on_a_narrow_path() {
    let mut stage = Stage::default();
    stage.sink.system.configured = Some(628);
    stage.sink.longest.insert(host(2), 600);
    stage.give(&packet(POD, pod_of(2), 1, false, 1000));
    stage.flush();
    assert_eq!(Stage::drops(&stage.encap()), [(DropReason::PathTooNarrow, 1)]);
    assert_eq!(stage.send_errors(), [(host(2).ip(), 1)]);
    stage.give_with(&gso(1000), &packet(POD, pod_of(2), 10, false, 2500));
    stage.give_with(&gso(1000), &packet(POD, pod_of(2), 20, true, 2500));
    stage.flush();
    let sent = stage.sink.to(host(2));
    assert!(sent.iter().all(|datagram| datagram.len() <= 600));
    let of = |segment: u16| -> Vec<_> { sent.iter().filter(|datagram| number(datagram) == 10 + segment).collect() };
    for (segment, data) in [(0, 1000), (1, 1000), (2, 500)] {
        let mut next = 0;
        for (index, fragment) in of(segment).iter().enumerate() {
            let header = header(fragment);
            assert_eq!((header.fragment_offset, header.time_to_live), (IpFragOffset::try_new(next / 8).unwrap(), 63));
            assert_eq!(header.more_fragments, index + 1 < of(segment).len());
            next += header.payload_len().unwrap();
        }
        assert_eq!(next, 8 + data);
    }
    let stats = stage.engine.counters().stats;
    assert_eq!((stats.segments_made, stats.fragments_made, sent.len()), (3, 4, 5));
    // The packet with DF got one ICMP error.
    assert_eq!((stage.encap().forwarded(), stage.encap().answered()), (1, 1));
    assert_eq!(stage.sink.written.len(), 1);
}

/// Of a queued GSO packet with DF, the first segment gets an ICMP error. The others are dropped.
#[test]
fn a_gso_packet_that_turns_out_too_long_is_answered_once() {
    let mut stage = Stage::default();
    stage.sink.system.configured = Some(628);
    stage.sink.longest.insert(host(2), 600);
    stage.give_with(&gso(1000), &packet(POD, pod_of(2), 10, true, 2500));
    stage.give(&packet(POD, pod_of(2), 20, true, 100));
    stage.flush();
    let sent: Vec<_> = stage.sink.to(host(2)).iter().map(|datagram| number(datagram)).collect();
    assert_eq!(sent, [20]);
    let [(_, message)] = &stage.sink.written[..] else { panic!("{:?}", stage.sink.written) };
    assert_eq!((message[20..22].to_vec(), message[26..28].to_vec()), (vec![3, 4], 600u16.to_be_bytes().to_vec()));
    assert_eq!(header(&message[28..]).time_to_live, 64, "the quoted TTL is the sender's");
    assert_eq!((stage.encap().answered(), stage.encap().forwarded(), stage.encap().held()), (1, 1, 0));
}

#[test]
fn a_forged_path_mtu_of_the_system_is_overruled() {
    let mut stage = Stage::default();
    stage.sink.system = SystemPath { configured: Some(1500), learned: Some(628), has_reports: true };
    stage.sink.longest.insert(host(2), 600);
    stage.give(&packet(POD, pod_of(2), 1, true, 1000));
    let Stage { engine, routes, sink, now } = &mut stage;
    // The system sends it in the other mode.
    struct Probing<'s>(&'s mut Lists);
    impl Sink for Probing<'_> {
        fn send(&mut self, batches: &[Transmit<'_>], mode: PathMode) -> Result<(), Unsent> {
            if mode == PathMode::Probe {
                self.0.longest.clear();
            }
            self.0.send(batches, mode)
        }
        fn write(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure> {
            self.0.write(header, packet)
        }
        fn system_path(&mut self, way: &Way, report: &mut dyn FnMut(&DatagramTooBig)) -> SystemPath {
            self.0.system_path(way, report)
        }
    }
    engine.flush(routes, *now, &mut Probing(sink));
    assert_eq!(
        stage.sink.sent.iter().map(|(to, mode, _)| (*to, *mode)).collect::<Vec<_>>(),
        [(host(2), PathMode::Probe)]
    );
    assert_eq!(stage.encap().forwarded(), 1);
}

#[test]
fn an_icmp_error_that_is_not_sent_is_counted_with_its_reason() {
    let mut stage = Stage::default();
    stage.sink.tun_fails.push_back(WriteFailure::Full);
    let nowhere = packet(POD, [100, 96, 99, 9].into(), 1, true, 100);
    stage.give(&nowhere);
    stage.give(&nowhere);
    assert_eq!((Stage::drops(&stage.encap()), stage.encap().answered()), (vec![(DropReason::NoRoute, 1)], 1));
    let last_hop = with_ttl(&packet(pod_of(2), POD, 1, true, 100), 1);
    stage.sink.refuses.insert(host(2), SendFailure::Full);
    stage.arrive(2, &last_hop);
    assert_eq!((Stage::drops(&stage.decap()), stage.decap().answered()), (vec![(DropReason::TimeExceeded, 1)], 0));
    assert_eq!(stage.send_errors(), [(host(2).ip(), 1)]);
    stage.sink.refuses.clear();
    stage.sink.longest.insert(host(2), 60);
    stage.arrive(2, &last_hop);
    let modes: Vec<_> = stage.sink.sent.iter().map(|(to, mode, _)| (*to, *mode)).collect();
    assert_eq!((modes, stage.decap().answered()), (vec![(host(2), PathMode::Fragment)], 1));
    // A queued packet whose path MTU became lower.
    stage.sink.tun_fails.push_back(WriteFailure::Down);
    stage.sink.system.configured = Some(100);
    stage.give(&packet(POD, pod_of(2), 5, true, 100));
    stage.flush();
    assert_eq!(stage.encap().dropped(DropReason::FragmentationNeeded), 1);
}

#[test]
fn a_packet_that_the_tun_refuses_is_counted_with_its_reason() {
    let mut stage = Stage::default();
    let failures = [
        (WriteFailure::Down, DropReason::TunDown),
        (WriteFailure::Failed, DropReason::TunFailed),
        (WriteFailure::Full, DropReason::TunFull),
        (WriteFailure::Rejected, DropReason::TunFailed),
    ];
    for (failure, reason) in failures {
        let before = stage.decap().dropped(reason);
        stage.sink.tun_fails.push_back(failure);
        stage.arrive(2, &packet(pod_of(2), POD, 1, true, 100));
        stage.flush();
        assert_eq!(stage.decap().dropped(reason), before + 1);
    }
    assert_eq!((stage.decap().forwarded(), stage.decap().received()), (0, 4));
}

/// A TUN that refuses GSO packets gets their segments. After several refusals, GSO packets are disabled for a minute.
#[test]
fn a_tun_that_refuses_gso_packets_gets_segments() {
    let mut stage = Stage::default();
    stage.sink.refuses_gso_of = vec![4];
    let arrive = |stage: &mut Stage| {
        for number in (2..12).step_by(2) {
            stage.arrive(2, &packet(pod_of(2), POD, number, true, 100));
        }
        stage.flush();
    };
    (0..20).for_each(|_| arrive(&mut stage));
    let stats = stage.engine.counters().stats;
    assert_eq!((stage.sink.written.len(), stage.decap().forwarded()), (100, 100));
    assert_eq!((stats.tun_fallbacks, stats.coalesced), (8, 0));
    stage.sink.refuses_gso_of.clear();
    stage.now += Duration::from_secs(60);
    arrive(&mut stage);
    assert_eq!((stage.engine.counters().stats.coalesced, stage.decap().forwarded()), (5, 105));
}

#[test]
fn without_batches_each_packet_leaves_before_the_call_returns() {
    let mut stage = Stage::default();
    stage.engine = stage.engine.unbatched();
    for number in 0..10 {
        stage.give_all(2, number, 1);
        assert_eq!(stage.sink.sent.len(), usize::from(number) + 1);
        stage.arrive(2, &packet(pod_of(2), POD, number, true, 100));
        assert_eq!(stage.sink.written.len(), usize::from(number) + 1);
    }
}
