//! The choice of a lane over a scripted kernel.

mod sockets;

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::num::{NonZeroU16, NonZeroUsize};

use super::meter::BYTES_UNCHECKED;
use super::*;
use crate::Transmit;
use crate::forward::PathMode;
use crate::sys::script::{Answer, Call, Script};
use crate::sys::syscall::{self, SocketOption};
use crate::sys::{Feature, RecvError, SendErrorKind, UdpConfig, UdpOffload, UdpTransport};
use crate::wire::Ecn;

const BUFFER: usize = 4 << 20;
const DATAGRAM: usize = 1400;

/// Returns `true` if the kernel can create lanes, which are IPv6 sockets.
fn has_lanes() -> bool {
    let has = testbed::has_ipv6();
    if !has {
        std::println!("skipped: lanes, for which the kernel needs IPv6");
    }
    has
}

fn peer(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    ([10, 168, high, low], 8285).into()
}

/// A transport, its script, and the datagrams that each peer was sent.
struct Stage {
    script: Script,
    udp: UdpTransport,
    sent: BTreeMap<SocketAddr, u64>,
    refused: BTreeMap<SocketAddr, Vec<SendErrorKind>>,
    /// The sockets that sent to each peer, in the order of their first datagram.
    sockets: BTreeMap<SocketAddr, Vec<i32>>,
    /// The number of the next datagram of each peer.
    next: BTreeMap<SocketAddr, u64>,
    now: Instant,
}

impl Stage {
    fn new(flows: usize) -> Self {
        let script = Script::default();
        script.limit_send_buffers(BUFFER);
        let udp = UdpTransport::scripted(&script, UdpOffload::ALL, flows);
        let (sent, refused, sockets, next) = Default::default();
        Self { script, udp, sent, refused, sockets, next, now: Instant::now() }
    }

    /// Sends one peer numbered datagrams in one batch, or stores the error.
    fn send(&mut self, to: SocketAddr, datagrams: usize) {
        self.send_flow(to, 0, datagrams);
    }

    fn send_flow(&mut self, to: SocketAddr, flow: u16, datagrams: usize) {
        let next = self.sent.entry(to).or_default();
        let mut contents = vec![0; datagrams * DATAGRAM];
        for (number, datagram) in (*next..).zip(contents.chunks_mut(DATAGRAM)) {
            datagram[..8].copy_from_slice(&number.to_be_bytes());
        }
        let segment_size = NonZeroUsize::new(DATAGRAM);
        let batch = Transmit { destination: to, contents: &contents, segment_size, ecn: Ecn::NotEct, flow };
        match self.udp.send(&batch) {
            Ok(()) => *next += datagrams as u64,
            Err(error) => {
                assert_eq!(error.segment, 0, "a batch is taken or refused");
                self.refused.entry(to).or_default().push(error.kind);
            }
        }
    }

    fn tick(&mut self, time: Duration) {
        self.now += time;
        self.udp.retry_gso(self.now);
        self.check();
    }

    fn is_refused(&self, to: SocketAddr) -> bool {
        self.refused.contains_key(&to)
    }

    /// Checks the datagrams that were sent: those of each peer are in order.
    fn check(&mut self) {
        for sent in self.script.take_sends().into_iter().flatten() {
            let of_peer = self.sockets.entry(sent.to).or_default();
            if of_peer.last() != Some(&sent.socket) {
                of_peer.push(sent.socket);
            }
            for datagram in sent.datagrams {
                let number = u64::from_be_bytes(*datagram.first_chunk().unwrap());
                let next = self.next.entry(sent.to).or_default();
                assert_eq!(number, *next, "{} in order", sent.to);
                *next += 1;
            }
        }
    }

    /// The bytes for which a peer is suspected.
    fn counted(&self, of: SocketAddr) -> usize {
        let suspects = self.udp.meter.suspects();
        suspects.known().find(|known| known.peer == key_of(of)).map_or(0, |known| known.sum)
    }

    fn is_shared(&self, socket: i32) -> bool {
        socket == self.udp.as_fd().as_raw_fd()
    }
}

/// The slow peer fills a lane of its own, and the idle one never meets a full socket.
#[test]
fn r69_fault_51_a_slow_peer_fills_a_lane_of_its_own() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(0);
    let [slow, idle] = [1, 2].map(peer);
    stage.script.slow_down(slow);
    for _ in 0..200 {
        stage.send(slow, 40);
        stage.send(idle, 1);
    }
    stage.check();
    assert!(!stage.is_refused(idle));
    assert!(stage.refused[&slow].iter().all(|kind| *kind == SendErrorKind::PathFull), "{:?}", stage.refused[&slow]);
    let own = stage.udp.as_fd().as_raw_fd();
    assert!(stage.script.charged(own) < BUFFER / 2, "{}", stage.script.charged(own));
    assert_eq!(stage.sockets[&idle], [own]);
    let [first, lane] = stage.sockets[&slow][..] else { panic!("{:?}", stage.sockets) };
    assert!(first == own && lane != own && stage.script.charged(lane) >= BUFFER);
    assert_eq!(stage.udp.disabled().count(), 0);
}

/// One call may be for several peers. The error names the peer that was refused, and what was before it was sent.
#[test]
fn r69_fault_51_the_error_of_a_batch_names_the_peer_whose_lane_is_full() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(0);
    let [slow, idle] = [1, 2].map(peer);
    stage.script.slow_down(slow);
    for _ in 0..120 {
        stage.send(slow, 40);
    }
    assert!(stage.is_refused(slow));
    stage.script.take_sends();
    let contents = [0; 10];
    let [to_slow, to_idle] = [slow, idle].map(|to| Transmit::datagram(to, &contents));
    let error = stage.udp.send_batch(&[to_idle, to_idle, to_slow, to_idle], 0).unwrap_err();
    assert_eq!((error.transmit, error.segment, error.datagrams), (2, 0, 1));
    assert_eq!(error.kind, SendErrorKind::PathFull);
    assert_eq!(stage.script.take_datagrams().len(), 2);
}

/// Eight slow peers have eight lanes. A ninth is limited, and is still sent what its path carries.
#[test]
fn r69_fault_51_more_slow_peers_than_lanes() {
    if !has_lanes() {
        return;
    }
    for slow_peers in [1, 8, 9, 16] {
        let mut stage = Stage::new(0);
        let (idle, slow) = (peer(0), (1..=slow_peers).map(peer).collect::<Vec<_>>());
        slow.iter().for_each(|slow| stage.script.slow_down(*slow));
        let mut before = BTreeMap::new();
        for round in 0..800 {
            for to in &slow {
                stage.send(*to, 20);
                stage.script.free(*to, 5 * DATAGRAM);
            }
            stage.send(idle, 1);
            stage.tick(Duration::from_millis(50));
            if round == 400 {
                before = stage.sent.clone();
            }
        }
        assert!(!stage.is_refused(idle), "{slow_peers}");
        let is_busy = |to: &&SocketAddr| stage.sent[*to] - before[*to] >= 400 * 5 - 40;
        let busy = slow.iter().filter(is_busy).count();
        // Limited peers share one buffer.
        assert!(busy >= if slow_peers <= 9 { slow_peers.into() } else { LANES_MAX }, "{busy} of {slow_peers}");
        assert!(slow.iter().all(|slow| stage.is_refused(*slow)));
        let sockets: alloc::collections::BTreeSet<_> = stage.sockets.values().flatten().collect();
        assert_eq!(sockets.len(), 1 + LANES_MAX.min(slow_peers.into()));
    }
}

/// When no place is left among the limited peers, every peer that can have filled the socket is limited.
#[test]
fn r69_fault_51_an_idle_peer_is_sent_to_whatever_the_number_of_slow_ones() {
    if !has_lanes() {
        return;
    }
    for slow_peers in [17, 64] {
        let mut stage = Stage::new(0);
        let (idle, slow) = (peer(0), (1..=slow_peers).map(peer).collect::<Vec<_>>());
        slow.iter().for_each(|slow| stage.script.slow_down(*slow));
        let own = stage.udp.as_fd().as_raw_fd();
        let mut most = 0;
        for round in 0..400_usize {
            for to in &slow {
                stage.send(*to, 20);
                // In the second half nothing leaves any more.
                stage.script.free(*to, if round < 200 { 5 * DATAGRAM } else { 0 });
            }
            // Five a second.
            if round % 4 == 0 {
                stage.send(idle, 1);
            }
            stage.tick(Duration::from_millis(50));
            most = stage.script.charged(own).max(most);
        }
        assert!(!stage.is_refused(idle), "{slow_peers}");
        assert!(most < BUFFER, "{slow_peers}: {most}");
        assert!(slow.iter().all(|slow| stage.is_refused(*slow)));
    }
}

/// A limited peer that is not sent anything any more makes room for another one.
#[test]
fn r69_fault_51_a_quiet_peer_is_not_limited_for_ever() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(0);
    let slow: Vec<_> = (1..=16).map(peer).collect();
    slow.iter().for_each(|slow| stage.script.slow_down(*slow));
    for _ in 0..200 {
        slow.iter().for_each(|to| stage.send(*to, 20));
        stage.tick(Duration::from_millis(50));
    }
    let limited = |stage: &Stage| {
        let moved = stage.udp.lanes.moved().unwrap();
        slow.iter().copied().filter(|to| moved.exit_of(*to) == Some(Exit::Limited)).collect::<Vec<_>>()
    };
    let before = limited(&stage);
    assert_eq!(before.len(), LIMITED_MAX);
    for _ in 0..50 {
        slow.iter().filter(|to| !before[4..].contains(to)).for_each(|to| stage.send(*to, 20));
        stage.tick(Duration::from_millis(50));
    }
    assert_eq!(limited(&stage), before[..4]);
}

/// Many peers are sent more than the slow one, and many are sent little.
#[test]
fn r69_fault_51_the_slow_peer_is_found_among_many() {
    if !has_lanes() {
        return;
    }
    for (fast, few) in [(10, 0), (20, 0), (0, 1000), (4, 1000)] {
        let mut stage = Stage::new(0);
        let slow = peer(0);
        stage.script.slow_down(slow);
        let fast: Vec<_> = (1..=fast).map(peer).collect();
        let few: Vec<_> = (1000..1000 + few).map(peer).collect();
        let per_round = fast.len() * 40 + few.len() / 10;
        for round in 0..2000_usize {
            // A fiftieth of all, until its buffer would have been full twice.
            stage.send(slow, per_round / 50 + 1);
            fast.iter().for_each(|to| stage.send(*to, 40));
            few.iter().skip(round % 10).step_by(10).for_each(|to| stage.send(*to, 1));
            stage.tick(Duration::from_millis(1));
            if stage.sent[&slow] as usize * DATAGRAM > 2 * BUFFER {
                break;
            }
        }
        assert!(stage.is_refused(slow), "its lane is full");
        let refused: Vec<_> = stage.refused.keys().filter(|to| **to != slow).collect();
        assert!(refused.is_empty(), "{} fast, {} few: {refused:?}", fast.len(), few.len());
    }
}

/// The lane becomes empty, and the peer returns to the shared socket. Then the fill level is not queried any more.
#[test]
fn a_peer_returns_when_its_lane_is_empty() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(0);
    let slow = peer(1);
    stage.script.slow_down(slow);
    for _ in 0..120 {
        stage.send(slow, 40);
    }
    for _ in 0..10 {
        stage.tick(Duration::from_secs(1));
    }
    stage.send(slow, 1);
    assert_eq!(stage.sockets[&slow].len(), 2, "it has its lane while that is full");
    stage.script.free(slow, usize::MAX);
    stage.tick(Duration::from_secs(1));
    assert!(stage.udp.lanes.moved().is_some(), "after one check");
    stage.tick(Duration::from_millis(999));
    assert!(stage.udp.lanes.moved().is_some(), "no check before a second is over");
    stage.tick(Duration::from_millis(1));
    assert!(stage.udp.lanes.moved().is_none());
    let asked = stage.script.count(Call::SendBacklog);
    stage.tick(Duration::from_secs(1));
    stage.send(slow, 1);
    stage.check();
    assert!(stage.is_shared(*stage.sockets[&slow].last().unwrap()));
    assert_eq!(stage.script.count(Call::SendBacklog), asked);
}

/// While every path is fast, no socket is created and no peer is stored. A fill level is queried once in 128 KiB at
/// most.
#[test]
fn lanes_cost_nothing_while_no_path_is_slow() {
    let mut stage = Stage::new(0);
    // Twice the send buffer.
    for round in 0..400 {
        stage.send(peer(round % 7), 15);
    }
    assert_eq!(stage.script.count(Call::Socket), 0);
    assert!(stage.udp.lanes.moved().is_none());
    let (asked, bytes) = (stage.script.count(Call::SendBacklog), 400 * 15 * DATAGRAM);
    assert!((1..=bytes / BYTES_UNCHECKED).contains(&asked), "{asked} for {bytes} bytes");
}

/// A sandbox may refuse the sockets, or the query. The feature is then disabled, and the peers that are sent most are
/// limited.
#[test]
fn fault_51_without_lanes_the_peer_that_fills_the_socket_is_limited() {
    let mut stage = Stage::new(0);
    let [slow, idle] = [1, 2].map(peer);
    stage.script.slow_down(slow);
    stage.script.then(Call::Socket, [Answer::Error(libc::EAFNOSUPPORT)]);
    for _ in 0..400 {
        stage.send(slow, 40);
        stage.send(idle, 1);
        stage.script.free(slow, 10 * DATAGRAM);
        stage.tick(Duration::from_millis(10));
    }
    assert!(!stage.is_refused(idle) && stage.is_refused(slow));
    assert_eq!(stage.sockets[&slow].len(), 1);
    assert_eq!(stage.script.count(Call::Socket), 1, "it is not tried again and again");
    assert_eq!(stage.udp.disabled().collect::<Vec<_>>(), [Feature::SendLanes]);

    let mut stage = Stage::new(0);
    stage.script.then(Call::SendBacklog, [Answer::Error(libc::EPERM)]);
    (0..10).for_each(|_| stage.send(idle, 40));
    assert_eq!(stage.udp.disabled().collect::<Vec<_>>(), [Feature::SendLanes]);
}

/// Datagrams that the socket refuses, or leaves over from a batch, fill nothing: whose they are is not suspected.
#[test]
fn fault_51_only_accepted_datagrams_are_counted() {
    let mut stage = Stage::new(0);
    let [slow, blocked] = [1, 2].map(peer);
    stage.script.slow_down(slow);
    (0..12).for_each(|_| stage.send(slow, 40));
    assert!(stage.udp.meter.is_counting.load(Ordering::Relaxed));
    stage.script.then(Call::Send, [Answer::Error(libc::EAGAIN); 5]);
    (0..5).for_each(|_| stage.send(blocked, 40));
    assert_eq!((stage.refused[&blocked].len(), stage.counted(blocked)), (5, 0));
    let contents = [0; 1000];
    stage.script.then(Call::Send, [Answer::AtMost(2), Answer::Error(libc::EAGAIN)]);
    let error = stage.udp.send_batch(&[Transmit::datagram(blocked, &contents); 4], 0).unwrap_err();
    assert_eq!((error.transmit, stage.counted(blocked)), (2, 2000));
    // What a batch goes on with was not sent yet, either.
    stage
        .udp
        .send_batch(&[Transmit { segment_size: NonZeroUsize::new(100), ..Transmit::datagram(blocked, &contents) }], 8)
        .unwrap();
    assert_eq!(stage.counted(blocked), 2200);
}

/// A lack of file descriptors passes: a lane is made a second later, and those that exist stay.
#[test]
fn fault_51_a_lane_is_tried_again_after_an_error_that_may_pass() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(0);
    let [first, second] = [1, 2].map(peer);
    [first, second].iter().for_each(|slow| stage.script.slow_down(*slow));
    (0..60).for_each(|_| stage.send(first, 40));
    let exit_of = |stage: &Stage, peer| stage.udp.lanes.moved().and_then(|moved| moved.exit_of(peer));
    assert_eq!(exit_of(&stage, first), Some(Exit::Lane(0)));
    stage.script.then(Call::Socket, [Answer::Error(libc::EMFILE)]);
    (0..60).for_each(|_| stage.send(second, 40));
    assert_eq!((exit_of(&stage, first), exit_of(&stage, second)), (Some(Exit::Lane(0)), Some(Exit::Limited)));
    assert_eq!((stage.script.count(Call::Socket), stage.udp.disabled().count()), (2, 0));
    std::thread::sleep(LOOK_EVERY);
    stage.tick(LOOK_EVERY);
    stage.send(second, 1);
    assert_eq!((exit_of(&stage, second), stage.script.count(Call::Socket)), (Some(Exit::Lane(1)), 3));
}

/// While every lane is needed, the lanes are not asked again for each datagram that is refused.
#[test]
fn fault_51_refused_datagrams_do_not_ask_every_lane() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(0);
    let slow: Vec<_> = (1..=9).map(peer).collect();
    slow.iter().for_each(|slow| stage.script.slow_down(*slow));
    for _ in 0..100 {
        slow.iter().for_each(|to| stage.send(*to, 20));
    }
    let asked = stage.script.count(Call::SendBacklog);
    stage.script.then(Call::Send, [Answer::Error(libc::EAGAIN); 1000]);
    let began = Instant::now();
    (0..1000).for_each(|_| stage.send(peer(100), 1));
    let attempts = 1 + began.elapsed().as_millis() as usize / 10;
    let asked = stage.script.count(Call::SendBacklog) - asked;
    assert!(asked <= 1000 + attempts * LANES_MAX, "{asked} in {attempts} attempts");
}

/// The limits that a socket set hold until that one is nearly empty, whatever another one of the group has.
#[test]
fn fault_51_another_socket_does_not_lift_a_limit() {
    let mut stage = Stage::new(2);
    let slow = peer(1);
    stage.script.slow_down(slow);
    stage.script.then(Call::Socket, [Answer::Error(libc::EAFNOSUPPORT)]);
    (0..60).for_each(|_| stage.send_flow(slow, 0, 40));
    let is_limited = |stage: &Stage| stage.udp.moved().is_some_and(|moved| moved.exit_of(slow) == Some(Exit::Limited));
    assert!(is_limited(&stage) && stage.is_refused(slow));
    stage.send_flow(slow, 1, 1);
    assert!(is_limited(&stage), "the other socket is empty");
    stage.script.free(slow, usize::MAX);
    stage.send_flow(slow, 0, 1);
    assert!(!is_limited(&stage));
}

/// Each flow keeps its source port, and the slow peer's flows have lanes of their own ports.
#[test]
fn r60_flows_keep_their_ports_in_a_lane() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(3);
    let ports: Vec<_> = stage.udp.flows.iter().map(|flow| flow.local_addr().unwrap().port()).collect();
    let [slow, idle] = [1, 2].map(peer);
    stage.script.slow_down(slow);
    for round in 0..600_u16 {
        stage.send_flow(slow, round % 3, 40);
        stage.send_flow(idle, round % 3, 1);
    }
    assert!(!stage.is_refused(idle) && stage.is_refused(slow));
    assert!(stage.refused[&slow].iter().all(|kind| *kind == SendErrorKind::PathFull));
    let moved = stage.udp.lanes.moved().unwrap();
    let Some(Exit::Lane(lane)) = moved.exit_of(slow) else { panic!("{moved:?}") };
    for (number, port) in ports.into_iter().enumerate() {
        let socket = stage.udp.sender((1 + usize::from(lane)) * 3 + number);
        assert_eq!(socket.local_addr().unwrap().port(), port);
        assert!(stage.script.charged(socket.as_raw_fd()) > 0);
    }
}

/// The discovery mode is set on the socket that sends, and restored afterwards.
#[test]
fn a_lane_sends_in_the_mode_of_the_path() {
    if !has_lanes() {
        return;
    }
    let mut stage = Stage::new(0);
    let slow = peer(1);
    stage.script.slow_down(slow);
    for _ in 0..60 {
        stage.send(slow, 40);
    }
    let batch = [Transmit::datagram(slow, b"abc")];
    stage.script.free(slow, usize::MAX);
    stage.udp.send_batch_in(PathMode::Probe, &batch, 0).unwrap();
    let lane = stage.udp.sender(1);
    assert_eq!(stage.script.take_sends().last().unwrap()[0].socket, lane.as_raw_fd());
    let mode = syscall::socket_option(lane.as_fd(), SocketOption::Ipv4MtuDiscover).unwrap();
    assert_eq!(mode, libc::IP_PMTUDISC_DO);
}

/// Each IPv4 address and port has a number of its own.
#[test]
fn numbers_of_destinations_differ() {
    let ports = [1, 8285, 8286, u16::MAX].map(|port| NonZeroU16::new(port).unwrap().get());
    let addresses = [[0, 0, 0, 0], [10, 168, 0, 2], [10, 168, 0, 3], [10, 169, 0, 2], [255; 4]].map(IpAddr::from);
    let ipv6 =
        ["::1", "fd00::1", "fd00:1::", "fd00:0:0:1::", "fd00:0:0:1::1"].map(|text| text.parse::<IpAddr>().unwrap());
    let all = addresses.into_iter().chain(ipv6).flat_map(|address| ports.map(|port| key_of((address, port).into())));
    let mut numbers: Vec<_> = all.collect();
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count);
}
