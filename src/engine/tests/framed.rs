//! Engines with framings: what one seals another opens.

use super::random::Random;
use super::*;
use crate::forward::{DatagramMeta, IcmpOutcome};
use crate::framing::{Ready, Reply};

/// A key in front of each packet.
pub(super) struct Keyed(pub(super) [u8; 8]);

impl Framing for Keyed {
    const HEAD: usize = 8;
    const OVERHEAD_MAX: usize = 8;

    fn seal(&mut self, _: SocketAddr, datagram: &mut [u8], _: usize) {
        datagram[..8].copy_from_slice(&self.0);
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

/// A counter, padding to 16 bytes and a check sum of changed bytes. A number is accepted once.
#[derive(Default)]
struct Padded {
    sent: u32,
    received: BTreeSet<u32>,
}

impl Framing for Padded {
    const HEAD: usize = 6;
    const OVERHEAD_MAX: usize = 6 + 15 + 1;

    fn sealed_len(&self, len: usize, mtu: usize) -> usize {
        assert!(mtu >= len);
        7 + len.next_multiple_of(16).min(mtu)
    }

    fn seal(&mut self, _: SocketAddr, datagram: &mut [u8], len: usize) {
        self.sent += 1;
        datagram[..4].copy_from_slice(&self.sent.to_be_bytes());
        datagram[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        datagram[6 + len..].fill(0);
        datagram[6..].iter_mut().for_each(|byte| *byte ^= self.sent as u8 | 0x80);
        let (sum, rest) = datagram.split_last_mut().unwrap();
        *sum = rest.iter().fold(0, |sum: u8, byte| sum.rotate_left(1) ^ byte);
    }

    fn open<'d>(
        &mut self,
        _: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        _: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        let Some((sum, rest)) = datagram.split_last_mut() else { return Err(DropReason::NotAuthentic) };
        if *sum != rest.iter().fold(0, |sum: u8, byte| sum.rotate_left(1) ^ byte) || rest.len() < 6 {
            return Err(DropReason::NotAuthentic);
        }
        let number = u32::from_be_bytes(rest[..4].try_into().unwrap());
        if !self.received.insert(number) {
            return Err(DropReason::Replayed);
        }
        let len = u16::from_be_bytes(rest[4..6].try_into().unwrap());
        let packet = &mut rest[6..][..len.into()];
        packet.iter_mut().for_each(|byte| *byte ^= number as u8 | 0x80);
        Ok(Some(packet))
    }
}

/// A session that one exchange of messages with each peer begins.
#[derive(Default)]
struct Session {
    with: BTreeSet<SocketAddr>,
    asked: BTreeMap<SocketAddr, Duration>,
    refuses: Option<DropReason>,
}

const DATA: u8 = 0;
const HELLO: u8 = 1;
const WELCOME: u8 = 2;

impl Framing for Session {
    const HEAD: usize = 1;
    const OVERHEAD_MAX: usize = 1;
    const HAS_SESSIONS: bool = true;

    fn ready(&mut self, peer: SocketAddr, packet: &[u8], now: Duration, reply: &mut impl Reply) -> Ready {
        assert!(packet.len() >= 20);
        if let Some(reason) = self.refuses {
            return Ready::Drop(reason);
        }
        if self.with.contains(&peer) {
            return Ready::Go;
        }
        self.asked.entry(peer).or_insert_with(|| {
            reply.send(peer, &[HELLO]);
            now
        });
        Ready::Hold
    }

    fn seal(&mut self, peer: SocketAddr, datagram: &mut [u8], _: usize) {
        assert!(self.with.contains(&peer), "sealed without a session");
        datagram[0] = DATA;
    }

    fn open<'d>(
        &mut self,
        meta: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        reply: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        match datagram.split_first_mut() {
            Some((&mut DATA, packet)) if self.with.contains(&meta.from) => return Ok(Some(packet)),
            Some((&mut DATA, _)) => return Err(DropReason::NoSession),
            Some((&mut HELLO, _)) => reply.send(meta.from, &[WELCOME]),
            Some((&mut WELCOME, _)) => {}
            _ => return Err(DropReason::NotAuthentic),
        }
        self.with.insert(meta.from);
        Ok(None)
    }

    fn handle_timeout(&mut self, now: Duration, reply: &mut impl Reply) {
        for (peer, asked) in &mut self.asked {
            if !self.with.contains(peer) && *asked + Duration::from_secs(1) <= now {
                *asked = now;
                reply.send(*peer, &[HELLO]);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        let waiting = self.asked.iter().filter(|(peer, _)| !self.with.contains(peer));
        waiting.map(|(_, asked)| *asked + Duration::from_secs(1)).min()
    }
}

/// Hosts 1 and 2.
struct Pair<F>([Stage<F>; 2]);

impl<F: Framing> Pair<F> {
    fn new(mtu: u32, framings: [F; 2]) -> Self {
        let mut numbers = 1..;
        Self(framings.map(|framing| {
            let limits = QueueLimits::default();
            Stage::of(numbers.next().unwrap(), limits, Mtu::new(mtu).unwrap()).with_framing(framing)
        }))
    }

    /// Carries the datagrams between both hosts until none is left. Returns the datagrams.
    fn carry(&mut self) -> Vec<Vec<u8>> {
        let mut carried = vec![];
        loop {
            self.0.iter_mut().for_each(Stage::flush);
            let sent = [self.0[0].sink.to(host(2)), self.0[1].sink.to(host(1))];
            if sent.iter().all(Vec::is_empty) {
                return carried;
            }
            for (from, datagrams) in sent.into_iter().enumerate() {
                for datagram in datagrams {
                    self.0[1 - from].arrive(from as u8 + 1, &datagram);
                    carried.push(datagram);
                }
            }
        }
    }

    fn written(&mut self, number: usize) -> Vec<(VnetHeader, Vec<u8>)> {
        core::mem::take(&mut self.0[number].sink.written)
    }
}

fn drops(flow: &DirectionCounters) -> Vec<(DropReason, u64)> {
    flow.drops().collect()
}

/// Passes the same packets to a pair with a framing and to one without it.
fn compare<F: Framing>(seed: u64, framings: [F; 2]) -> Counters {
    let mut random = Random(seed);
    let mtu = 1000 + random.below(400) as u32;
    let (mut plain, mut framed) = (Pair::new(mtu, [Bare, Bare]), Pair::new(mtu, framings));
    // All of them are of one flow, so that their order is certain.
    for number in (0..120).step_by(2) {
        let from = random.below(2);
        let (own, other) = (1 + from as u8, 2 - from as u8);
        let data = random.below(2 * mtu as usize);
        let to = if random.one_in(20) { Ipv4Addr::new(100, 96, 99, 1) } else { pod_of(other) };
        let mut bytes = packet(pod_of(own), to, number, random.one_in(2), data);
        let mut header = VnetHeader::default();
        match random.below(6) {
            0 => bytes = with_ttl(&bytes, 2 - random.below(2) as u8),
            1 | 2 => {
                header = gso(400 + random.below(700) as u16);
                bytes = packet(pod_of(own), to, number, random.one_in(2), 2000 + random.below(30_000));
            }
            _ => {}
        }
        plain.0[from].give_with(&header, &bytes);
        framed.0[from].give_with(&header, &bytes);
        if random.one_in(4) {
            plain.carry();
            framed.carry();
        }
    }
    plain.carry();
    framed.carry();
    let mut total = Counters::default();
    for number in 0..2 {
        assert!(plain.written(number) == framed.written(number), "seed {seed}");
        let [plain, framed] = [plain.0[number].engine.counters(), framed.0[number].engine.counters()];
        assert_eq!(plain, framed, "seed {seed}");
        total += &framed;
    }
    total
}

#[test]
fn packets_that_are_sealed_arrive_as_those_that_are_not() {
    let mut total = Counters::default();
    for seed in 0..40 {
        total += &compare(seed, [Keyed(*b"a secret"), Keyed(*b"a secret")]);
        total += &compare(seed, [Padded::default(), Padded::default()]);
    }
    let Counters { encap, decap, stats } = total;
    assert!(encap.forwarded() > 2000 && encap.answered() > 400 && decap.answered() > 100, "{encap:?} {decap:?}");
    assert!(stats.segments_made > 2000 && stats.fragments_made > 2000 && stats.coalesced > 2000, "{stats:?}");
}

#[test]
fn batches_are_as_long_as_without_a_framing() {
    fn batches<F: Framing>(framing: F, lengths: impl Iterator<Item = usize>) -> usize {
        let mut stage = Stage::default().with_framing(framing);
        stage.give_with(&gso(1000), &packet(POD, pod_of(2), 2, true, 30_500));
        stage.flush();
        assert_eq!(stage.sink.batches, 1, "a GSO packet");
        lengths.for_each(|len| stage.give(&packet(POD, pod_of(2), 4, true, len)));
        stage.flush();
        stage.sink.batches - 1
    }
    assert_eq!(batches(Bare, [200; 60].into_iter()), 1);
    assert_eq!(batches(Keyed([0; 8]), [200; 60].into_iter()), 1);
    // Padding makes more packets equally long.
    assert_eq!((batches(Bare, 200..210), batches(Padded::default(), 197..213)), (10, 1));
}

#[test]
fn a_datagram_has_the_length_and_the_contents_of_its_framing() {
    let mut pair = Pair::new(1400, [Keyed(*b"a secret"), Keyed(*b"a secret")]);
    let bytes = packet(POD, pod_of(2), 7, true, 100);
    pair.0[0].give(&bytes);
    let carried = pair.carry();
    assert_eq!(carried, [[b"a secret".as_slice(), &with_ttl(&bytes, 63)].concat()]);
    assert_eq!(pair.written(1), [(VnetHeader::default(), with_ttl(&bytes, 62))]);
}

#[test]
fn datagrams_that_are_not_opened_have_their_drop_reasons() {
    let mut pair = Pair::new(1400, [Padded::default(), Padded::default()]);
    pair.0[0].give_all(2, 0, 3);
    let carried = pair.carry();
    let receiver = &mut pair.0[1];
    receiver.arrive(1, &carried[1]);
    let mut forged = carried[2].clone();
    forged[20] ^= 1;
    receiver.arrive(1, &forged);
    (0..7).for_each(|len| receiver.arrive(1, &carried[0][..len]));
    // The sender is checked before.
    receiver.arrive(77, &carried[2]);
    let decap = receiver.decap();
    assert_eq!((decap.received(), decap.forwarded()), (13, 3));
    let expected = [(DropReason::UnknownPeer, 1), (DropReason::NotAuthentic, 8), (DropReason::Replayed, 1)];
    assert_eq!(drops(&decap), expected);
}

#[test]
fn a_sealed_datagram_that_is_too_long_is_dropped_and_its_path_learned() {
    let mut stage = Stage::default().with_framing(Keyed(*b"a secret"));
    stage.sink.longest.insert(host(2), 1300);
    stage.sink.system.configured = Some(1328);
    // 1328 bytes of packet become 1336.
    stage.give(&packet(POD, pod_of(2), 1, true, 1300));
    stage.give(&packet(POD, pod_of(2), 2, true, 100));
    stage.flush();
    assert_eq!(drops(&stage.encap()), [(DropReason::PathTooNarrow, 1)]);
    assert_eq!((stage.send_errors(), stage.sink.written.len()), (vec![(host(2).ip(), 1)], 0));
    stage.give(&packet(POD, pod_of(2), 3, true, 1300));
    stage.give(&packet(POD, pod_of(2), 4, true, 1292 - 28));
    stage.give(&packet(POD, pod_of(2), 5, true, 1293 - 28));
    stage.flush();
    let mtus: Vec<_> = stage.sink.written.iter().map(|(_, icmp)| u16::from_be_bytes([icmp[26], icmp[27]])).collect();
    assert_eq!((mtus, stage.encap().answered()), (vec![1292, 1292], 2));
    let lengths: Vec<_> = stage.sink.to(host(2)).iter().map(Vec::len).collect();
    assert_eq!(lengths, [136, 1300]);
}

#[test]
fn r54_a_report_about_a_sealed_datagram_counts_by_its_length() {
    let mut stage = Stage::default().with_framing(Keyed(*b"a secret"));
    let report = |mtu, len| DatagramTooBig {
        mtu,
        source: host(1),
        destination: host(2),
        len,
        // It is no packet's header.
        inner: Some(crate::wire::QuotedHeader::Ipv4([0xa5; 20])),
    };
    let Stage { engine, routes, now, .. } = &mut stage;
    let mut handle = |mtu, len| engine.endpoint_mut().handle_icmp(&report(mtu, len), routes, *now);
    assert_eq!(handle(1400, 1400), IcmpOutcome::Implausible);
    // 1472 bytes of packet and 8 of framing are the most.
    assert_eq!(handle(1508, 60_000), IcmpOutcome::Implausible);
    assert_eq!(handle(1507, 60_000), IcmpOutcome::Lowered { peer: host(2).ip(), mtu: 1479 });
    assert_eq!(handle(1400, 1500), IcmpOutcome::Lowered { peer: host(2).ip(), mtu: 1372 });
    // Anybody may have sent it.
    assert_eq!(handle(600, 1400), IcmpOutcome::Lowered { peer: host(2).ip(), mtu: 1252 });
    stage.give(&packet(POD, pod_of(2), 1, true, 1300));
    let mtu = stage.sink.written.iter().map(|(_, icmp)| u16::from_be_bytes([icmp[26], icmp[27]])).next();
    assert_eq!(mtu, Some(1244));
}

#[test]
fn packets_wait_for_a_session_and_leave_in_order() {
    let mut pair = Pair::new(1400, [Session::default(), Session::default()]);
    pair.0[0].give_all(2, 0, 20);
    pair.0[0].give_with(&gso(500), &packet(POD, pod_of(2), 20, true, 5000));
    assert_eq!((pair.0[0].encap().held(), pair.0[0].encap().forwarded()), (21, 0));
    let carried = pair.carry();
    assert_eq!(carried[..2], [vec![HELLO], vec![WELCOME]]);
    let numbers = carried[2..].iter().map(|datagram| number(&datagram[1..]));
    // Each parity is a flow, and the segments are of one.
    let (even, odd): (Vec<_>, Vec<_>) = numbers.partition(|number| number % 2 == 0 || *number > 20);
    assert_eq!(even, (0..20).step_by(2).chain(20..30).collect::<Vec<_>>());
    assert_eq!(odd, (1..20).step_by(2).collect::<Vec<_>>());
    let [one, other] = pair.0.each_ref().map(|stage| stage.engine.counters());
    assert_eq!((one.encap.forwarded(), other.decap.forwarded()), (21, 30));
    let control = |stats: crate::forward::Stats| (stats.control_received, stats.control_sent, stats.control_unsent);
    assert_eq!((control(one.stats), control(other.stats)), ((1, 1, 0), (1, 1, 0)));
    assert_eq!((one.decap.received(), other.decap.received()), (0, 30), "control messages are no packets");
    assert_eq!(pair.0.each_ref().map(|stage| stage.engine.wake_at()), [None, None]);
    // ICMP errors to the other host are sealed, too.
    pair.0[1].sink.written.clear();
    pair.0[0].give(&with_ttl(&packet(POD, pod_of(2), 99, true, 10), 2));
    assert_eq!(pair.carry().len(), 2);
    assert_eq!((pair.written(0).len(), pair.0[1].decap().answered()), (1, 1));
}

#[test]
fn packets_without_a_session_are_dropped_after_a_while() {
    let mut stage = Stage::default().with_framing(Session::default());
    stage.give_all(2, 0, 3);
    stage.pass(Duration::from_secs(3));
    stage.give_all(2, 3, 1);
    assert_eq!(stage.sink.to(host(2)), [[HELLO], [HELLO]]);
    for seconds in 4..20 {
        let at = stage.engine.wake_at().unwrap();
        assert!(at > stage.now && at <= stage.now + Duration::from_secs(1));
        stage.pass(Duration::from_secs(1));
        let held = if seconds < 5 { 4 } else { u64::from(seconds < 8) };
        assert_eq!(stage.encap().held(), held, "after {seconds} s");
    }
    assert_eq!(drops(&stage.encap()), [(DropReason::NoSession, 4)]);
    assert_eq!(stage.send_errors(), [(host(2).ip(), 4)]);
    stage.sink.refuses.insert(host(2), SendFailure::Unreachable);
    stage.pass(Duration::from_secs(1));
    assert_eq!(stage.engine.counters().stats.control_unsent, 1);
}

#[test]
fn waiting_packets_are_limited_and_leave_with_their_routes() {
    let mut stage = Stage::default().with_framing(Session::default());
    let bytes = packet(POD, pod_of(2), 1, true, 40_000);
    (0..40).for_each(|_| stage.give(&bytes));
    let held = stage.encap().held();
    assert!((20..30).contains(&held), "{held}");
    assert_eq!(drops(&stage.encap()), [(DropReason::NoSession, 40 - held)]);
    // One peer's packets cost those of another only what is more than a half.
    stage.give_all(3, 0, 600);
    let held = stage.encap().held();
    stage.engine.drop_peers(|peer| peer == host(3), DropReason::StaleRoute);
    stage.assert_conserved();
    assert_eq!((stage.encap().held(), stage.encap().dropped(DropReason::StaleRoute)), (held - 600, 600));
    assert!(held - 600 >= 12, "{held}");
    stage.engine.drop_peers(|_| true, DropReason::Stopped);
    assert_eq!((stage.encap().held(), stage.encap().dropped(DropReason::Stopped)), (0, held - 600));
    stage.engine.framing_mut().refuses = Some(DropReason::NotAuthentic);
    stage.give_all(4, 0, 2);
    assert_eq!(stage.encap().dropped(DropReason::NotAuthentic), 2);
    // A packet without a route is answered and does not wait.
    stage.give(&packet(POD, [100, 96, 99, 1].into(), 1, true, 10));
    assert_eq!((stage.encap().answered(), stage.encap().held()), (1, 0));
}

/// The batch gets a checksum that the kernel believes, so each packet's own one is verified before.
#[test]
fn a_corrupt_packet_that_was_sealed_joins_no_batch() {
    let mut pair = Pair::new(1400, [Keyed(*b"a secret"), Keyed(*b"a secret")]);
    let mut corrupt = vec![];
    for number in 0..40 {
        let mut bytes = packet(POD, pod_of(2), 2 * number, true, 200);
        if number % 10 == 7 {
            bytes[28 + usize::from(number)] ^= 1;
            corrupt.push(with_ttl(&bytes, 62));
        }
        pair.0[0].give(&bytes);
    }
    assert_eq!(pair.carry().len(), 40);
    let written = pair.written(1);
    let alone: Vec<_> = written.iter().filter(|(header, _)| *header == VnetHeader::default()).collect();
    assert!(corrupt.iter().all(|packet| alone.iter().any(|(_, alone)| alone == packet)), "{alone:?}");
    assert!(written.len() < 15, "the others are in batches: {}", written.len());
    assert!(pair.0[1].engine.counters().stats.coalesced >= 30);
}

/// A peer is whom its key says, from any address.
struct Roaming {
    own: u8,
}

impl Framing for Roaming {
    const HEAD: usize = 1;
    const OVERHEAD_MAX: usize = 1;
    const CHECKS_SENDER_FIRST: bool = false;

    fn seal(&mut self, _: SocketAddr, datagram: &mut [u8], _: usize) {
        datagram[0] = self.own;
    }

    fn open<'d>(
        &mut self,
        meta: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        _: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        match datagram.split_first_mut() {
            Some((&mut number @ 1..=9, packet)) => {
                meta.from = host(number);
                Ok(Some(packet))
            }
            _ => Err(DropReason::NotAuthentic),
        }
    }
}

#[test]
fn a_peer_with_another_address_is_the_peer_of_its_route() {
    let mut stage = Stage::default().with_framing(Roaming { own: 1 });
    let sealed = |peer: u8, packet: &[u8]| [&[peer], packet].concat();
    let stranger = 200;
    stage.arrive(stranger, &sealed(2, &packet(pod_of(2), POD, 1, true, 100)));
    // What another peer owns is not the peer's, and nobody is peer 0.
    stage.arrive(stranger, &sealed(2, &packet(pod_of(3), POD, 2, true, 100)));
    stage.arrive(stranger, &sealed(0, &packet(pod_of(2), POD, 3, true, 100)));
    stage.arrive(stranger, &[]);
    stage.flush();
    assert_eq!(stage.sink.written.len(), 1);
    assert_eq!(drops(&stage.decap()), [(DropReason::SpoofedSource, 1), (DropReason::NotAuthentic, 2)]);
    // An ICMP error goes to the route's address.
    stage.arrive(stranger, &sealed(2, &with_ttl(&packet(pod_of(2), POD, 4, true, 100), 1)));
    stage.flush();
    assert_eq!((stage.sink.to(host(2)).len(), stage.decap().answered()), (1, 1));
    stage.assert_conserved();
}
