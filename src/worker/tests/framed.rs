//! Workers with a framing that has sessions, timeouts and roaming peers.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use std::sync::{Mutex, MutexGuard};

use super::group::pair;
use super::*;
use crate::framing::{Ready, Reply};

/// A head of six bytes (kind, number of the sender, number of the datagram) and a check sum behind the packet. Peers are
/// known by their numbers, from any address. Clones share the sessions.
#[derive(Clone, Default)]
struct Session {
    shared: Arc<Mutex<Shared>>,
    /// The last time at which a packet of this worker had to wait.
    waits_since: Option<Duration>,
}

#[derive(Default)]
struct Shared {
    peers: BTreeMap<u8, Peer>,
    sent: u32,
}

struct Peer {
    /// The next hop of its routes.
    route: SocketAddr,
    /// The sender of its last datagram.
    seen_at: SocketAddr,
    has_session: bool,
    asked: u32,
    ask_at: Option<Duration>,
    received: BTreeSet<u32>,
}

/// The numbers of the peers.
const A: u8 = 2;
const B: u8 = 3;

const DATA: u8 = 0;
const HELLO: u8 = 1;
const WELCOME: u8 = 2;

const HEAD: usize = 6;
const OVERHEAD: usize = HEAD + 1;

/// The time between two requests for a session. There are three of them.
const RETRY: Duration = Duration::from_secs(1);

/// The time after which a worker looks for a session that another worker has got.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

impl Session {
    /// Returns one that knows both peers, without a session.
    fn new() -> Self {
        let session = Self::default();
        for (number, address) in [(A, host_a()), (B, host_b())] {
            let peer = Peer {
                route: address,
                seen_at: address,
                has_session: false,
                asked: 0,
                ask_at: None,
                received: BTreeSet::new(),
            };
            session.shared().peers.insert(number, peer);
        }
        session
    }

    /// Returns one with a session with each peer.
    fn established() -> Self {
        let session = Self::new();
        session.shared().peers.values_mut().for_each(|peer| peer.has_session = true);
        session
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }
}

impl Peer {
    fn ask(&mut self, now: Duration, reply: &mut impl Reply) {
        self.asked += 1;
        self.ask_at = (self.asked < 3).then_some(now + RETRY);
        reply.send(self.route, &[HELLO, 1]);
    }
}

impl Framing for Session {
    const HEAD: usize = HEAD;
    const OVERHEAD_MAX: usize = OVERHEAD;
    const HAS_SESSIONS: bool = true;
    const CHECKS_SENDER_FIRST: bool = false;

    fn ready(&mut self, address: SocketAddr, _: &[u8], now: Duration, reply: &mut impl Reply) -> Ready {
        let mut shared = self.shared.lock().unwrap();
        let Some(peer) = shared.peers.values_mut().find(|peer| peer.route == address) else {
            return Ready::Drop(DropReason::NoSession);
        };
        if peer.has_session {
            return Ready::Go;
        }
        if peer.asked == 0 {
            peer.ask(now, reply);
        }
        self.waits_since = Some(now);
        Ready::Hold
    }

    fn seal(&mut self, address: SocketAddr, datagram: &mut [u8], len: usize) {
        assert_eq!(datagram.len(), len + OVERHEAD);
        let mut shared = self.shared();
        assert!(shared.peers.values().any(|peer| peer.route == address && peer.has_session));
        shared.sent += 1;
        seal(1, shared.sent, datagram);
    }

    fn open<'d>(
        &mut self,
        meta: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        reply: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        let mut shared = self.shared.lock().unwrap();
        let &[kind, number] = datagram.first_chunk().ok_or(DropReason::NotAuthentic)?;
        let peer = shared.peers.get_mut(&number).ok_or(DropReason::NotAuthentic)?;
        match kind {
            HELLO if datagram.len() == 2 => reply.send(meta.from, &[WELCOME, 1]),
            WELCOME if datagram.len() == 2 => {}
            DATA if is_sealed(datagram) => {
                let counter = u32::from_be_bytes(datagram[2..HEAD].try_into().unwrap());
                if !peer.has_session {
                    return Err(DropReason::NoSession);
                }
                if !peer.received.insert(counter) {
                    return Err(DropReason::Replayed);
                }
                peer.seen_at = meta.from;
                meta.from = peer.route;
                let end = datagram.len() - 1;
                return Ok(Some(&mut datagram[HEAD..end]));
            }
            _ => return Err(DropReason::NotAuthentic),
        }
        (peer.has_session, peer.ask_at, peer.seen_at) = (true, None, meta.from);
        Ok(None)
    }

    fn handle_timeout(&mut self, now: Duration, reply: &mut impl Reply) {
        let mut shared = self.shared.lock().unwrap();
        let due = |peer: &&mut Peer| peer.ask_at.is_some_and(|at| at <= now);
        shared.peers.values_mut().filter(due).for_each(|peer| peer.ask(now, reply));
        let is_waiting = shared.peers.values().any(|peer| peer.ask_at.is_some());
        self.waits_since = self.waits_since.and(is_waiting.then_some(now));
    }

    fn poll_timeout(&self) -> Option<Duration> {
        let look_at = self.waits_since.map(|since| since + LOOK_AGAIN);
        self.shared().peers.values().filter_map(|peer| peer.ask_at).chain(look_at).min()
    }
}

/// Returns the check sum of all bytes but the last one.
fn sum(datagram: &[u8]) -> u8 {
    datagram[..datagram.len() - 1].iter().fold(0, |sum: u8, byte| sum.rotate_left(1) ^ byte)
}

fn is_sealed(datagram: &[u8]) -> bool {
    datagram.len() >= OVERHEAD && datagram.last() == Some(&sum(datagram))
}

fn seal(sender: u8, number: u32, datagram: &mut [u8]) {
    datagram[..2].copy_from_slice(&[DATA, sender]);
    datagram[2..HEAD].copy_from_slice(&number.to_be_bytes());
    let sum = sum(datagram);
    *datagram.last_mut().unwrap() = sum;
}

fn sealed(sender: u8, number: u32, packet: &[u8]) -> Vec<u8> {
    let mut datagram = [&[0; HEAD], packet, &[0]].concat();
    seal(sender, number, &mut datagram);
    datagram
}

/// Returns the packets in sealed datagrams.
fn opened(datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    assert!(datagrams.iter().all(|datagram| is_sealed(datagram)));
    datagrams.iter().map(|datagram| datagram[HEAD..datagram.len() - 1].to_vec()).collect()
}

/// Returns whether each one's number is higher than the one before.
fn is_ascending(datagrams: &[Vec<u8>]) -> bool {
    datagrams.is_sorted_by(|one, other| one[2..HEAD] < other[2..HEAD])
}

fn control<F: Framing>(stage: &Stage<F>) -> (u64, u64, u64) {
    let stats = stage.worker.counters().stats;
    (stats.control_received, stats.control_sent, stats.control_unsent)
}

#[test]
fn gso_packets_wait_for_a_session_and_leave_as_batches() {
    let [mut plain, framed] = [Stage::new(), Stage::new()];
    let mut framed = framed.with_framing(Session::new());
    let give = |script: &dyn Fn(VnetHeader, &[u8])| {
        for number in [1, 10] {
            let packet = udp(POD, POD_A, number, Df::Set, 20_500);
            script(gso(&packet, 1000), &packet);
        }
        script(VnetHeader::default(), &udp(POD, POD_A, 40, Df::Clear, 3000));
    };
    give(&|header, packet| plain.give_with(header, packet));
    give(&|header, packet| framed.give_with(header, packet));
    assert_eq!((plain.out(), framed.out()), (Ok(Progress::Drained), Ok(Progress::Drained)));
    assert_eq!((framed.encap().held(), framed.encap().forwarded()), (3, 0));
    assert_eq!(framed.script.take_datagrams(), [(host_a(), vec![HELLO, 1])]);
    framed.arrive(host_a(), &[vec![WELCOME, A]]);
    assert_eq!(framed.back(), Ok(Progress::Drained));
    let [plain_sends, framed_sends] = [plain.script.take_sends(), framed.script.take_sends()];
    let batches = |sends: &[Vec<Sent>]| sends.iter().flatten().map(|sent| sent.datagrams.len()).collect::<Vec<_>>();
    assert_eq!(batches(&framed_sends).iter().sum::<usize>(), 21 + 21 + 3);
    assert_eq!(batches(&framed_sends), batches(&plain_sends));
    let all = |sends: Vec<Vec<Sent>>| sends.into_iter().flatten().flat_map(|sent| sent.datagrams).collect::<Vec<_>>();
    let (plain_datagrams, datagrams) = (all(plain_sends), all(framed_sends));
    assert!(is_ascending(&datagrams));
    let without_fragments = |packets: Vec<Vec<u8>>| packets[..42].to_vec();
    assert_eq!(without_fragments(opened(&datagrams)), without_fragments(plain_datagrams));
    assert_eq!((framed.encap().received(), framed.encap().forwarded()), (3, 3));
    assert_eq!((control(&framed), framed.decap().received()), ((1, 1, 0), 0), "control messages are no packets");
    assert_eq!(framed.script.take_written(), [[0; 0]; 0]);
}

/// The worker asks to be called at the framing's times, and at the end of the packets' wait.
#[test]
fn timeouts_of_a_framing_wake_the_worker() {
    let mut stage = Stage::new().with_framing(Session::new());
    stage.fail(Call::Send, [libc::EPERM]);
    stage.give(&udp(POD, POD_A, 1, Df::Set, 100));
    let (begin, mut calls, mut asked, mut waited) = (stage.now, 0, vec![], Duration::ZERO);
    loop {
        assert_eq!(stage.out(), Ok(Progress::Drained));
        if !stage.script.take_datagrams().is_empty() {
            asked.push(stage.now - begin);
        }
        if stage.encap().held() > 0 {
            waited = stage.now - begin;
        }
        let Some(wake_at) = stage.next().wake_at else { break };
        assert!(wake_at > stage.now, "the worker would spin");
        stage.now = wake_at;
        calls += 1;
    }
    assert_eq!(asked, [RETRY, 2 * RETRY], "the first one was refused");
    assert_eq!(control(&stage), (0, 2, 1));
    assert!((5 * RETRY - LOOK_AGAIN..5 * RETRY).contains(&waited), "{waited:?}");
    assert!(calls <= 510, "{calls} calls, and one each 10 ms is due");
    assert_eq!(stage.encap().drops().collect::<Vec<_>>(), [(DropReason::NoSession, 1)]);
    assert_eq!((stage.encap().held(), stage.send_errors()), (0, vec![(host_a().ip(), 1)]));
}

#[test]
fn packets_that_wait_for_a_session_are_bounded_and_end_with_their_route() {
    let mut stage = Stage::new().with_framing(Session::new());
    for number in 1..=2000 {
        stage.give(&udp(POD, POD_A, number, Df::Set, 1300));
        assert_eq!(stage.call(TUN, Budget::default()).map(|_| ()), Ok(()));
    }
    let held = stage.encap().held();
    assert!((500..=(1 << 20) / 1328).contains(&held), "{held} packets wait");
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::NoSession, 2000 - held)));
    let route = Route::new("100.96.2.0/24".parse::<ipnet::Ipv4Net>().unwrap(), host_b());
    assert!(stage.routes.apply([RouteChange::Set(route)]).refused.is_empty());
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!((stage.encap().held(), stage.encap().dropped(DropReason::StaleRoute)), (0, held));
    // The worker's end drops the others.
    stage.give(&udp(POD, POD_B, 1, Df::Set, 100));
    assert_eq!(stage.out(), Ok(Progress::Drained));
    assert_eq!(stage.encap().held(), 1);
    let counters = stage.worker.stop();
    assert_eq!((counters.encap.held(), counters.encap.dropped(DropReason::Stopped)), (0, 1));
}

/// A sealed datagram that is refused is sent later, once, and in order.
#[test]
fn fault_27_r69_the_backlog_of_sealed_datagrams_is_bounded() {
    let mut stage = Stage::new().with_framing(Session::established());
    stage.script.then(Call::Send, core::iter::repeat_n(Answer::Error(libc::EAGAIN), 10_000));
    for number in 1..=2000 {
        stage.give(&udp(POD, POD_A, number, Df::Set, 1400));
        assert_eq!(stage.out(), Ok(Progress::Drained));
    }
    let held = stage.encap().held();
    assert!((512 << 10..=1 << 20).contains(&(held * 1435)), "{held} packets wait");
    assert_eq!(Stage::lost(stage.encap()), Some((DropReason::SendBufferFull, 2000 - held)));
    stage.script.forget(Call::Send);
    stage.script.take_sends();
    stage.now += 5 * MILLISECOND;
    assert_eq!(stage.out(), Ok(Progress::Drained));
    let sent = to(host_a(), &stage.script.take_datagrams());
    assert!(is_ascending(&sent));
    assert!(numbers(&opened(&sent)).into_iter().eq(1..=held as u16), "the oldest, in order");
    assert_eq!((stage.encap().held(), stage.encap().forwarded()), (0, held));
}

/// The first packets that are too long are lost, because no ICMP error can quote them. Later ones are answered or
/// fragmented for the longest datagram that the path carries.
#[test]
fn r54_a_narrow_path_of_sealed_datagrams_is_found() {
    for batch_errno in [libc::EMSGSIZE, libc::EINVAL] {
        let mut stage = Stage::new().with_framing(Session::established());
        stage.script.narrow(host_a().ip(), 1300, batch_errno);
        for number in 1..=3 {
            stage.give(&udp(POD, POD_A, number, Df::Set, 1372));
        }
        stage.give(&udp(POD, POD_B, 4, Df::Set, 1372));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::PathTooNarrow, 3)));
        assert_eq!(numbers(&opened(&to(host_b(), &stage.script.take_datagrams()))), [4]);
        let longest = 1300 - 28 - OVERHEAD;
        let gso_packet = udp(POD, POD_A, 10, Df::Set, 4000);
        stage.give_with(gso(&gso_packet, 1300), &gso_packet);
        stage.give(&udp(POD, POD_A, 20, Df::Set, longest - 28 + 1));
        stage.give(&udp(POD, POD_A, 21, Df::Set, longest - 28));
        stage.give(&udp(POD, POD_A, 22, Df::Clear, 5000));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let answers = stage.take_delivered();
        let mtus: Vec<_> = answers.iter().map(|icmp| usize::from(u16::from_be_bytes([icmp[26], icmp[27]]))).collect();
        assert_eq!(mtus, [longest; 2]);
        let sent = to(host_a(), &stage.script.take_datagrams());
        assert!(sent.iter().all(|datagram| datagram.len() <= longest + OVERHEAD));
        assert_eq!(numbers(&opened(&sent)), [21, 22, 22, 22, 22, 22]);
        assert_eq!((stage.encap().forwarded(), stage.encap().answered()), (3, 2));
        assert_eq!(Stage::lost(stage.encap()), Some((DropReason::PathTooNarrow, 3)), "no others are lost");
    }
}

/// Control messages, packets and forged datagrams in one message: each datagram has one counter.
#[test]
fn r67_each_datagram_of_a_sealed_batch_has_one_counter() {
    let mut stage = Stage::new().with_framing(Session::new());
    let packet = |number| udp(POD_A, POD, number, Df::Set, 200);
    let one = sealed(A, 1, &packet(1));
    stage.arrive(host_a(), core::slice::from_ref(&one));
    stage.arrive(host_a(), &[vec![HELLO, A]]);
    let mut forged = sealed(A, 2, &packet(2));
    forged[60] ^= 1;
    // The last one is from a host that no session has.
    let batch = [one.clone(), forged, one, sealed(A, 3, &packet(3)), sealed(9, 4, &packet(4))];
    stage.arrive(host_a(), &batch);
    stage.arrive(
        host_a(),
        &[vec![WELCOME], vec![], vec![7, A]].concat().chunks(2).map(<[u8]>::to_vec).collect::<Vec<_>>(),
    );
    assert_eq!(stage.back(), Ok(Progress::Drained));
    // Segments of one batch have identifications in a row.
    let marks: Vec<_> = stage.take_delivered().iter().map(|packet| packet[29]).collect();
    assert_eq!(marks, [1, 3]);
    let drops: Vec<_> = stage.decap().drops().collect();
    let expected = [(DropReason::NoSession, 1), (DropReason::NotAuthentic, 4), (DropReason::Replayed, 1)];
    assert_eq!((drops, stage.decap().received()), (expected.to_vec(), 8));
    assert_eq!(control(&stage), (1, 1, 0));
    assert_eq!(stage.script.take_datagrams(), [(host_a(), vec![WELCOME, 1])]);
}

/// The answer to one worker's message reaches another worker's socket. The first one finds the session at its framing's
/// next timeout.
#[test]
fn workers_share_the_sessions_of_their_framings() {
    let session = Session::new();
    let [mut one, mut other] = pair().map(|stage| stage.with_framing(session.clone()));
    one.give(&udp(POD, POD_A, 1, Df::Set, 100));
    assert_eq!(one.out(), Ok(Progress::Drained));
    assert_eq!(one.script.take_datagrams(), [(host_a(), vec![HELLO, 1])]);
    other.give(&udp(POD, POD_A, 2, Df::Set, 100));
    assert_eq!(other.out(), Ok(Progress::Drained));
    assert_eq!(other.script.take_datagrams(), [], "one handshake for all workers");
    other.arrive(host_a(), &[vec![WELCOME, A]]);
    assert_eq!(other.back(), Ok(Progress::Drained));
    let mut sent = to(host_a(), &other.script.take_datagrams());
    one.now = one.next().wake_at.unwrap();
    assert_eq!(one.now - other.now, LOOK_AGAIN);
    assert_eq!(one.out(), Ok(Progress::Drained));
    sent.extend(to(host_a(), &one.script.take_datagrams()));
    assert!(is_ascending(&sent), "each number is used once");
    assert_eq!(numbers(&opened(&sent)), [2, 1]);
    other.now = other.next().wake_at.unwrap();
    assert_eq!(other.out(), Ok(Progress::Drained));
    assert_eq!([&one, &other].map(|stage| stage.next().wake_at), [None, None]);
    // A datagram that one worker has accepted is a replay for the other.
    for (stage, forwarded) in [(&mut one, 1), (&mut other, 0)] {
        stage.arrive(host_a(), &[sealed(A, 1, &udp(POD_A, POD, 1, Df::Set, 100))]);
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(stage.decap().forwarded(), forwarded);
    }
    let counters = one.worker.remote().counters();
    assert_eq!((counters.encap.forwarded(), counters.decap.dropped(DropReason::Replayed)), (2, 1));
    assert_eq!((counters.stats.control_sent, counters.stats.control_received), (1, 1));
}

/// The peer's next hop follows its address, and no worker sends to the old one then.
#[test]
fn packets_go_to_the_new_address_of_a_peer_once_its_route_has_it() {
    let session = Session::established();
    let [mut one, mut other] = pair().map(|stage| stage.with_framing(session.clone()));
    let roamed = SocketAddr::from(([192, 0, 2, 7], 9999));
    let packets = |first: u16| (first..first + 3).map(|number| tcp(POD_A, POD, number, 100 * u32::from(number), 100));
    let batch: Vec<_> = packets(1).map(|packet| sealed(A, number(&packet).into(), &packet)).collect();
    one.arrive(roamed, &batch);
    assert_eq!(one.back(), Ok(Progress::Drained));
    assert_eq!(one.script.count(Call::Write), 1, "they are coalesced");
    assert_eq!(numbers(&one.take_delivered()), [1, 2, 3]);
    // What B owns is not A's from any address.
    one.arrive(roamed, &[sealed(A, 9, &udp(POD_B, POD, 9, Df::Set, 100))]);
    assert_eq!(one.back(), Ok(Progress::Drained));
    assert_eq!(Stage::lost(one.decap()), Some((DropReason::SpoofedSource, 1)));
    // What the control thread of a tool does.
    assert_eq!(session.shared().peers[&A].seen_at, roamed);
    one.fail(Call::Send, [libc::EAGAIN]);
    one.give(&udp(POD, POD_A, 20, Df::Set, 100));
    assert_eq!(one.out(), Ok(Progress::Drained));
    let route = Route::new("100.96.2.0/24".parse::<ipnet::Ipv4Net>().unwrap(), roamed);
    assert!(one.routes.apply([RouteChange::Set(route)]).refused.is_empty());
    session.shared().peers.get_mut(&A).unwrap().route = roamed;
    one.now += 5 * MILLISECOND;
    for (stage, number) in [(&mut one, 21), (&mut other, 22)] {
        stage.give(&udp(POD, POD_A, number, Df::Set, 100));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let sent = stage.script.take_datagrams();
        assert_eq!((numbers(&opened(&to(roamed, &sent))), sent.len()), (vec![number], 1));
        stage.arrive(roamed, &[sealed(A, number.into(), &udp(POD_A, POD, number, Df::Set, 100))]);
        assert_eq!(stage.back(), Ok(Progress::Drained));
        assert_eq!(numbers(&stage.take_delivered()), [number]);
    }
    assert_eq!(Stage::lost(one.encap()), Some((DropReason::StaleRoute, 1)), "sealed for the old address");
}

/// A kernel that believes a batch's checksum must not get a wrong one.
#[test]
fn a_corrupt_packet_that_was_sealed_is_written_alone_and_as_it_is() {
    for make in [
        |number: u16| udp(POD_A, POD, number, Df::Set, 100),
        |number: u16| tcp(POD_A, POD, number, 100 * u32::from(number), 100),
    ] {
        let mut stage = Stage::new().with_framing(Session::established());
        let mut packets: Vec<_> = (1..=9).map(make).collect();
        *packets[4].last_mut().unwrap() ^= 1;
        let mut expected = packets.clone();
        expected.iter_mut().for_each(|packet| set_ttl(packet, 63));
        stage.arrive(
            host_a(),
            &(1..).zip(&packets).map(|(number, packet)| sealed(A, number, packet)).collect::<Vec<_>>(),
        );
        assert_eq!(stage.back(), Ok(Progress::Drained));
        let written = stage.script.take_written();
        let alone = [VnetHeader::default().to_bytes().as_slice(), &expected[4]].concat();
        assert_eq!(written.iter().filter(|bytes| **bytes == alone).count(), 1);
        assert_eq!(written.len(), 3, "two batches besides it");
        assert_eq!(stage.decap().forwarded(), 9);
    }
}
