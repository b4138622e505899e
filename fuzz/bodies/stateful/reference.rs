//! The reference: lists of routes, leases and queued datagrams, each of which is searched or recomputed from the start.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use loden::engine::{SendFailure, WriteFailure};
use loden::forward::{
    DropReason, ForwarderConfig, IcmpOutcome, PathMode, RejectReason, ReplyTo, SourcePort, Stats, Transit,
};
use loden::ipnet::IpNet;
use loden::lease;
use loden::route::{Route, RouteChange};
use loden::wire::{DatagramTooBig, QuotedHeader};

use super::Seen;
use super::account::{Account, Budget, Error, PER_PEER, Paths, inner, plateau_below};
use super::script::{Mishap, Step, hops};
use super::subject::Subject;
use crate::offload::model::{self as segments, complete};
use support::host::{Host, Outcome, holds, mtu_of, routes};
use support::leases::{self, recompute};
use support::model;
use support::packet::{address_at, with_ttl};

pub(crate) struct Reference {
    /// The host, with the routes of this batch.
    host: Host,
    published: Vec<Route>,
    leases: leases::Model,
    /// The leases' routes that were published last.
    leased: Vec<Route>,
    waiting: Vec<Waiting>,
    /// Packets that lost a datagram, with others still queued.
    lost: BTreeSet<u64>,
    /// The times since which peers are blocked.
    stuck: BTreeMap<SocketAddr, Duration>,
    /// The retry times of blocked peers.
    paused: BTreeMap<SocketAddr, Duration>,
    /// Bytes that were queued since the last flush.
    collected: usize,
    send_errors: BTreeMap<IpAddr, u64>,
    /// The TUN's error for the next packet.
    tun_fails: Option<WriteFailure>,
    /// The writes to the TUN in this step, and the number of compared ones.
    given: Vec<Vec<u8>>,
    given_seen: usize,
    budget: Budget,
    paths: Paths,
    out: Account,
    back: Account,
    stats: Stats,
    now: Duration,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    tun: Vec<Vec<u8>>,
}

/// A queued datagram.
#[derive(Clone, Debug)]
struct Waiting {
    to: SocketAddr,
    datagram: Vec<u8>,
    /// The packet from the TUN, or its segment.
    original: Vec<u8>,
    packet: u64,
    is_last: bool,
}

impl Reference {
    pub(crate) fn new(config: ForwarderConfig) -> Self {
        Self {
            host: Host::new(config, routes()),
            published: routes(),
            leases: leases::Model::default(),
            leased: Vec::new(),
            waiting: Vec::new(),
            lost: BTreeSet::new(),
            stuck: BTreeMap::new(),
            paused: BTreeMap::new(),
            collected: 0,
            send_errors: BTreeMap::new(),
            tun_fails: None,
            given: Vec::new(),
            given_seen: 0,
            budget: Budget::default(),
            paths: Paths::default(),
            out: Account::default(),
            back: Account::default(),
            stats: Stats::default(),
            now: Duration::ZERO,
            sent: Vec::new(),
            tun: Vec::new(),
        }
    }

    pub(crate) fn take(&mut self, step: &Step, log: &[Seen], now: Duration) {
        self.sent.clear();
        self.tun.clear();
        self.given.clear();
        (self.now, self.given_seen) = (now, 0);
        match step {
            Step::Out { packet, vnet, same_batch } => {
                if !same_batch {
                    self.host.routes = self.published.clone();
                }
                self.out.received += 1;
                match vnet {
                    Some(vnet) => self.encapsulate_gso(packet, vnet.gso_size.into()),
                    None => self.encapsulate(packet),
                }
                // A part of the second-level cache.
                if self.collected >= 128 << 10 {
                    self.flush(log);
                }
            }
            Step::In { datagram, from } => self.decapsulate(datagram, *from),
            Step::Lease { source, event } => {
                self.leases.advance(now);
                self.leases.handle(*source, event);
                self.leases.expire();
            }
            Step::Publish => {
                self.leases.advance(now);
                self.leases.expire();
            }
            Step::Flush(_) => self.flush(log),
            Step::TunFails(failure) => self.tun_fails = Some(*failure),
            Step::Route(_) | Step::Pass { .. } | Step::Report(_) => {}
            Step::Stop => self.remove(|_| true, DropReason::Stopped, false),
        }
        let seen = log.iter().filter(|seen| matches!(seen, Seen::Wrote(_))).count();
        assert_eq!(seen, self.given.len(), "the TUN was given {:?}", self.given);
    }

    /// Returns the number of queued packets that have lost no datagram.
    pub(crate) fn held(&self) -> u64 {
        let packets: BTreeSet<u64> = self.waiting.iter().map(|waiting| waiting.packet).collect();
        packets.difference(&self.lost).count() as u64
    }

    /// Asserts that all observable state of the subject equals the reference.
    pub(crate) fn assert_is(&mut self, subject: &mut Subject, step: &Step, now: Duration) {
        match step {
            Step::Publish => self.publish(subject),
            Step::Route(change) => {
                let expected = self.change(*change);
                let applied = subject.applied.take().unwrap();
                assert_eq!((applied.changed, applied.refused.is_empty()), expected, "{change:?}");
                self.remove_stale();
            }
            Step::Report(report) => assert_eq!(subject.reported.take(), Some(self.report(report)), "{report:?}"),
            Step::Out { .. }
            | Step::In { .. }
            | Step::Lease { .. }
            | Step::Pass { .. }
            | Step::Flush(_)
            | Step::TunFails(_)
            | Step::Stop => {}
        }
        let (engine, sink) = (&subject.engine, &subject.sink);
        assert_eq!(sink.sent, self.sent, "what was sent, after {step:?}");
        assert_eq!(sink.tun, self.tun, "what was written, after {step:?}");
        let counters = engine.counters();
        self.out.assert_is(&counters.encap, self.held());
        self.back.assert_is(&counters.decap, 0);
        assert_eq!(counters.stats, self.stats, "after {step:?}");
        assert_eq!(engine.endpoint().send_errors().collect::<BTreeMap<_, _>>(), self.send_errors, "after {step:?}");
        assert_eq!(engine.wake_at(), self.paused.values().min().copied(), "after {step:?}");
        for peer in hops().map(|hop| hop.ip()) {
            assert_eq!(engine.endpoint().paths().lookup(peer, now), self.paths.lookup(peer, now), "the path to {peer}");
        }
        if matches!(step, Step::Lease { .. } | Step::Publish) {
            self.assert_leases(subject);
        }
        if matches!(step, Step::Route(_) | Step::Publish) {
            let sorted = |mut routes: Vec<Route>| {
                routes.sort_by_key(|route| route.subnet);
                routes
            };
            assert_eq!(sorted(subject.reader.load().routes()), sorted(self.published.clone()));
        }
    }

    fn assert_leases(&self, subject: &Subject) {
        let expected = recompute(&self.host.config().host, &self.leases.leases());
        assert_eq!(subject.reconciler.routes().collect::<Vec<_>>(), expected.routes);
        assert_eq!(subject.reconciler.conflicts().map(leases::text).collect::<BTreeSet<_>>(), expected.conflicts);
        assert_eq!(subject.reconciler.poll_timeout(), self.leases.next_deadline());
        for source in (0..3).map(lease::SourceId) {
            assert_eq!(subject.reconciler.stale_since(source), self.leases.stale_since(source));
        }
    }

    /// Publishes the fewest changes: those since the last publication.
    fn publish(&mut self, subject: &mut Subject) {
        let routes = recompute(&self.host.config().host, &self.leases.leases()).routes;
        let with = |routes: &[Route], subnet: IpNet| routes.iter().find(|route| route.subnet == subnet).copied();
        let subnets: BTreeSet<IpNet> = routes.iter().chain(&self.leased).map(|route| route.subnet).collect();
        let differ = subnets.into_iter().filter(|subnet| with(&routes, *subnet) != with(&self.leased, *subnet));
        let change = |subnet| with(&routes, subnet).map_or(RouteChange::Delete(subnet), RouteChange::Set);
        let changes: Vec<_> = differ.map(change).collect();
        assert_eq!(subject.changes, changes);
        let changed = changes.into_iter().map(|change| self.change(change).0).sum::<usize>();
        let applied = subject.applied.take().unwrap();
        assert_eq!((applied.changed, applied.refused), (changed, vec![]));
        self.leased = routes;
        self.remove_stale();
    }

    /// Applies a change. Returns the number of changed routes, and whether it was accepted.
    fn change(&mut self, change: RouteChange) -> (usize, bool) {
        let before = self.published.clone();
        let subnet = change.subnet();
        if let RouteChange::Set(route) = change {
            let next_hop = route.next_hop;
            let hop = next_hop.ip();
            let broadcast = hop == IpAddr::from([255; 4]);
            let nobody = hop.is_unspecified() || hop.is_multicast() || broadcast || next_hop.port() == 0;
            let (underlay, own) =
                (self.host.config().host.underlay(), self.host.config().host.subnet_v4().unwrap().into());
            if nobody || next_hop == underlay || subnet == own {
                return (0, false);
            }
            self.published.retain(|known| known.subnet != subnet);
            self.published.push(route.with_subnet(subnet));
        } else {
            self.published.retain(|known| known.subnet != subnet);
        }
        let has = |routes: &[Route]| routes.iter().find(|known| known.subnet == subnet).copied();
        (usize::from(has(&before) != has(&self.published)), true)
    }

    fn report(&mut self, report: &DatagramTooBig) -> IcmpOutcome {
        let config = self.host.config().clone();
        let (source, destination) = (report.source, report.destination);
        let ours = source == config.host.underlay() && config.source_port == SourcePort::Fixed;
        if !ours || self.published.iter().all(|route| route.next_hop != destination) {
            return IcmpOutcome::Foreign;
        }
        let peer = destination.ip();
        let reported = if report.mtu == 0 { plateau_below(report.len.into()) } else { report.mtu };
        if report.len <= reported || inner(report.len, peer) > config.mtu.get() {
            return IcmpOutcome::Implausible;
        }
        let floor = match report.inner {
            None => 1280,
            // There is no IPv6 route.
            Some(QuotedHeader::Ipv6(_)) => return IcmpOutcome::Foreign,
            Some(QuotedHeader::Ipv4(header)) => {
                let [source, destination_of] = [12, 16].map(|at| address_at(&header, at));
                let held = |route: &&Route| holds(route.subnet, destination_of);
                let route = self.published.iter().filter(held).max_by_key(|route| route.subnet.prefix_len());
                if route.is_none_or(|route| route.next_hop != destination) {
                    return IcmpOutcome::Foreign;
                }
                let own_host = IpAddr::V4(source) == config.host.underlay().ip();
                let ours = own_host
                    || holds(config.host.subnet_v4().unwrap().into(), source)
                    || config.transit == Transit::Allowed;
                if ours { 552 } else { 1280 }
            }
        };
        if self.paths.is_fragmented(peer, self.now) {
            return IcmpOutcome::NotLower;
        }
        let known = self.paths.lookup(peer, self.now).unwrap_or(config.mtu.get());
        let floor = inner(floor, peer);
        if inner(reported, peer) < floor && known <= floor && inner(report.len, peer) <= floor {
            self.paths.fragment(peer, floor, self.now);
            return IcmpOutcome::Fragmented { peer };
        }
        let mtu = inner(reported, peer).max(floor);
        if mtu >= config.mtu.get() || !self.paths.lower(peer, mtu, self.now) {
            return IcmpOutcome::NotLower;
        }
        self.stats.path_mtu_lowered += 1;
        IcmpOutcome::Lowered { peer, mtu }
    }

    /// Drops the datagrams queued for next hops of no route (R70).
    fn remove_stale(&mut self) {
        let published = self.published.clone();
        let is_gone = |to| published.iter().all(|route| route.next_hop != to);
        self.remove(is_gone, DropReason::StaleRoute, false);
    }

    fn encapsulate(&mut self, packet: &[u8]) {
        let outcome = self.narrowly(|host| model::encapsulate(host, packet));
        self.count_trimmed(packet, &outcome);
        match outcome {
            Outcome::Forward { to, bytes } => {
                self.wait(to.unwrap(), vec![(packet.to_vec(), vec![bytes])]);
            }
            Outcome::Fragments { to, pieces } => self.wait(to, vec![(packet.to_vec(), pieces)]),
            Outcome::Reject { reason, answer } => {
                let answered = self.answer(packet, answer);
                settle(&mut self.out, reason, answered);
            }
            Outcome::Drop(reason) => self.out.drop(reason),
        }
    }

    /// Encapsulates each segment. They count as one packet, and an ICMP error quotes the whole.
    fn encapsulate_gso(&mut self, packet: &[u8], size: usize) {
        let payload = packet.len() - segments::headers_len(packet);
        if payload <= size {
            return self.encapsulate(&complete(packet.to_vec()));
        }
        let wide = |route: &Route| route.with_mtu(None);
        let config = self.host.config().clone().with_mtu(mtu_of(u16::MAX));
        let wide = Host::new(config, self.host.routes.iter().map(wide).collect());
        let Outcome::Forward { to: Some(to), bytes } = model::encapsulate(&wide, packet) else {
            return self.encapsulate(packet);
        };
        let mtu = usize::from(self.narrowly(|host| host.mtu_to(host.naive_route(address_at(packet, 16)).unwrap())));
        let segments = (0..payload.div_ceil(size)).map(|index| segments::segment(packet, size, index, true));
        let fits = size + segments::headers_len(packet) <= mtu;
        if !fits && packet[6] & 0x40 != 0 {
            return self.encapsulate(packet);
        }
        let pieces = segments.map(|segment| {
            let datagram = if bytes[8] == segment[8] { segment.clone() } else { with_ttl(&segment, bytes[8]) };
            Some((segment, if fits { vec![datagram] } else { model::fragments(&datagram, mtu)? }))
        });
        match pieces.collect() {
            Some(pieces) => {
                self.wait(to, pieces);
            }
            None => self.out.drop(DropReason::NotFragmented),
        }
    }

    /// Calls `of` with the learned path MTUs of all next hops.
    fn narrowly<T>(&mut self, of: impl FnOnce(&Host) -> T) -> T {
        for route in &self.host.routes {
            // A datagram has 65,507 bytes at most.
            let hop = route.next_hop.ip();
            let path = self.paths.lookup(hop, self.now).unwrap_or(u16::MAX).min(65_507);
            self.host.paths.insert(hop, path);
        }
        let result = of(&self.host);
        self.host.paths.clear();
        result
    }

    /// Queues a packet with all datagrams of its segments, or drops it if its peer's queue is full.
    fn wait(&mut self, to: SocketAddr, segments: Vec<(Vec<u8>, Vec<Vec<u8>>)>) {
        let waiting = self.waiting.iter().filter(|waiting| waiting.to == to);
        let mut bytes = waiting.map(|waiting| waiting.datagram.len()).sum::<usize>();
        let (packet, segmented) = (self.out.received, segments.len() > 1);
        let mut datagrams = Vec::new();
        for (original, pieces) in segments {
            let fragmented = pieces.len() > 1;
            for (index, datagram) in pieces.into_iter().enumerate() {
                bytes += datagram.len();
                if bytes > PER_PEER {
                    return self.lose_at(to, DropReason::SendBufferFull);
                }
                self.stats.segments_made += u64::from(segmented && index == 0);
                self.stats.fragments_made += u64::from(fragmented);
                let original = original.clone();
                datagrams.push(Waiting { to, datagram, original, packet, is_last: false });
            }
        }
        datagrams.last_mut().unwrap().is_last = true;
        self.collected += datagrams.iter().map(|waiting| waiting.datagram.len()).sum::<usize>();
        self.waiting.extend(datagrams);
    }

    fn decapsulate(&mut self, datagram: &[u8], from: SocketAddr) {
        let batch = core::mem::replace(&mut self.host.routes, self.published.clone());
        self.back.received += 1;
        let outcome = model::decapsulate(&self.host, datagram, from);
        self.host.routes = batch;
        self.count_trimmed(datagram, &outcome);
        match outcome {
            Outcome::Forward { bytes, .. } => match self.write(bytes) {
                None => self.back.forwarded += 1,
                Some(WriteFailure::Down) => self.back.drop(DropReason::TunDown),
                Some(WriteFailure::Full) => self.back.drop(DropReason::TunFull),
                Some(WriteFailure::Failed | WriteFailure::Rejected) => self.back.drop(DropReason::TunFailed),
            },
            Outcome::Reject { reason, answer } => {
                let answered = self.answer(datagram, answer);
                settle(&mut self.back, reason, answered);
            }
            Outcome::Drop(reason) => self.back.drop(reason),
            Outcome::Fragments { .. } => panic!("nothing is fragmented on the way in"),
        }
    }

    fn count_trimmed(&mut self, packet: &[u8], outcome: &Outcome) {
        if !matches!(outcome, Outcome::Drop(_)) {
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            self.stats.trimmed += u64::from(total < packet.len());
        }
    }

    /// Returns whether a permitted ICMP error is within the limits.
    fn answer(&mut self, offender: &[u8], answer: Option<(ReplyTo, Vec<u8>)>) -> bool {
        let Some((reply_to, message)) = answer else { return false };
        let source = address_at(offender, 12);
        let near = Error { kind: 0, payer: source.into(), port: 0, source, destination: None };
        let error = match reply_to {
            ReplyTo::Peer(peer) => Error { kind: 1, payer: peer.ip(), port: peer.port(), ..near },
            ReplyTo::Tun if message[20..22] == [3, 4] => {
                Error { kind: 2, destination: Some(address_at(offender, 16)), ..near }
            }
            ReplyTo::Tun => near,
            other => panic!("the list knows no {other:?}"),
        };
        if !self.budget.allow(error, self.now) {
            self.stats.icmp_limited += 1;
            return false;
        }
        match reply_to {
            ReplyTo::Tun => return self.write(message).is_none(),
            ReplyTo::Peer(peer) => self.sent.push((peer, message)),
            other => panic!("the list knows no {other:?}"),
        }
        true
    }

    fn write(&mut self, packet: Vec<u8>) -> Option<WriteFailure> {
        self.given.push(packet.clone());
        let failure = self.tun_fails.take();
        if failure.is_none() {
            self.tun.push(packet);
        }
        failure
    }

    /// Removes queued datagrams as the socket and the TUN saw them. Then only blocked peers have queued datagrams.
    fn flush(&mut self, log: &[Seen]) {
        self.collected = 0;
        self.paused.retain(|_, until| *until > self.now);
        for seen in log {
            match seen {
                Seen::Took { to, datagram, mode } => {
                    let fragmented = self.paths.is_fragmented(to.ip(), self.now);
                    assert_eq!(*mode == PathMode::Fragment, fragmented, "to {to}");
                    let next = self.reach(*to, datagram);
                    self.stuck.remove(to);
                    self.sent.push((*to, next.datagram.clone()));
                    self.has_gone(&next);
                }
                Seen::Refused { to, datagrams, count, mishap } => self.refused(*to, datagrams, *count, *mishap),
                Seen::Wrote(message) => self.wrote(message),
            }
        }
        while let Some(at) = self.waiting.iter().position(|waiting| !self.paused.contains_key(&waiting.to)) {
            let last = self.waiting.remove(at);
            self.was_not_sent(&last);
        }
    }

    /// Returns the datagram passed to the socket. No earlier one of its flow may be sent any more.
    fn reach(&mut self, to: SocketAddr, datagram: &[u8]) -> Waiting {
        assert!(!self.paused.contains_key(&to), "{to} takes nothing");
        let is_it = |waiting: &Waiting| waiting.to == to && waiting.datagram == datagram;
        let at = self.waiting.iter().position(is_it).expect("only what waits is sent");
        assert!(!self.is_too_long(&self.waiting[at]), "to {to}");
        self.settle_before(at)
    }

    fn settle_before(&mut self, at: usize) -> Waiting {
        let next = self.waiting[at].clone();
        let before: Vec<_> = self.waiting[..at].iter().filter(|waiting| waiting.to == next.to).cloned().collect();
        for waiting in before {
            self.take_out(&waiting);
            self.was_not_sent(&waiting);
        }
        self.take_out(&next);
        next
    }

    fn take_out(&mut self, datagram: &Waiting) {
        let is_it = |waiting: &Waiting| waiting.to == datagram.to && waiting.datagram == datagram.datagram;
        let at = self.waiting.iter().position(is_it).unwrap();
        self.waiting.remove(at);
    }

    fn is_too_long(&self, waiting: &Waiting) -> bool {
        let limit = self.paths.lookup(waiting.to.ip(), self.now);
        limit.is_some_and(|limit| waiting.datagram.len() > limit.into())
    }

    /// Handles a skipped datagram. Either its packet is lost already, or its path MTU became lower.
    fn was_not_sent(&mut self, datagram: &Waiting) {
        if self.lost.contains(&datagram.packet) {
            return self.is_lost(datagram, None);
        }
        assert!(self.is_too_long(datagram), "why not {datagram:?}?");
        let limit = self.paths.lookup(datagram.to.ip(), self.now).unwrap();
        self.stuck.remove(&datagram.to);
        if datagram.datagram[6] & 0x40 != 0 {
            self.refuse(datagram, limit);
        } else {
            self.is_lost(datagram, Some(DropReason::PathTooNarrow));
        }
    }

    /// Handles an ICMP error about a queued datagram.
    fn wrote(&mut self, message: &[u8]) {
        self.given_seen += 1;
        if let Some(given) = self.given.get(self.given_seen - 1) {
            return assert_eq!(given, message);
        }
        let is_about = |waiting: &Waiting| {
            let quoted = waiting.original.len().min(message.len() - 28);
            waiting.original[..quoted] == message[28..] && self.is_too_long(waiting)
        };
        let at = self.waiting.iter().position(is_about).expect("what is answered waited");
        let datagram = self.settle_before(at);
        assert!(!self.lost.contains(&datagram.packet), "one answer is enough");
        self.was_not_sent(&datagram);
        assert_eq!(self.given.last().map(Vec::as_slice), Some(message));
    }

    fn refused(&mut self, to: SocketAddr, datagrams: &[Vec<u8>], count: usize, mishap: Mishap) {
        let first = self.reach(to, &datagrams[0]);
        let at = self.waiting.iter().position(|waiting| waiting.to == to);
        self.waiting.insert(at.unwrap_or(self.waiting.len()), first);
        let since = self.stuck.get(&to).copied();
        let waited = self.now.saturating_sub(since.unwrap_or(self.now));
        let reason = match mishap {
            Mishap::Full if waited >= Duration::from_secs(1) => {
                return self.remove(|other| other == to, DropReason::SendBufferFull, true);
            }
            Mishap::Full => return self.pause(to, waited),
            Mishap::NoBuffers if waited < Duration::from_millis(15) => return self.pause(to, waited),
            Mishap::TooLong(outer) => return self.narrow(to, datagrams, outer),
            Mishap::Nothing => return,
            Mishap::NoBuffers => DropReason::SendNoBuffers,
            Mishap::Refused => DropReason::SendRefused,
            Mishap::Other(SendFailure::Unreachable) => DropReason::SendUnreachable,
            Mishap::Other(SendFailure::Forbidden) => DropReason::SendForbidden,
            Mishap::Other(_) => DropReason::SendFailed,
        };
        self.give_up(to, &datagrams[..count], reason);
    }

    /// Sets the retry time of a peer: after as long as it has been blocked, but within 4 ms.
    fn pause(&mut self, to: SocketAddr, waited: Duration) {
        self.stuck.entry(to).or_insert(self.now);
        let pause = waited.max(Duration::from_micros(500)).min(Duration::from_millis(4));
        self.paused.insert(to, self.now + pause);
    }

    fn give_up(&mut self, to: SocketAddr, datagrams: &[Vec<u8>], reason: DropReason) {
        for datagram in datagrams {
            let next = self.reach(to, datagram);
            self.stuck.remove(&to);
            self.is_lost(&next, Some(reason));
        }
    }

    /// Drops all datagrams queued for some peers.
    fn remove(&mut self, is_gone: impl Fn(SocketAddr) -> bool, reason: DropReason, is_error: bool) {
        let (gone, kept) = core::mem::take(&mut self.waiting).into_iter().partition(|waiting| is_gone(waiting.to));
        self.waiting = kept;
        let gone: Vec<Waiting> = gone;
        for waiting in &gone {
            if self.lost.insert(waiting.packet) {
                self.out.drop(reason);
                *self.send_errors.entry(waiting.to.ip()).or_default() += u64::from(is_error);
            }
        }
        self.lost.retain(|packet| gone.iter().all(|waiting| waiting.packet != *packet));
        self.send_errors.retain(|_, count| *count > 0);
        self.stuck.retain(|to, _| !is_gone(*to));
        self.paused.retain(|to, _| !is_gone(*to));
    }

    fn has_gone(&mut self, datagram: &Waiting) {
        if datagram.is_last && !self.lost.remove(&datagram.packet) {
            self.out.forwarded += 1;
        }
    }

    /// Marks a datagram's packet as lost. It is counted if a reason is given.
    fn is_lost(&mut self, datagram: &Waiting, reason: Option<DropReason>) {
        if self.lost.insert(datagram.packet)
            && let Some(reason) = reason
        {
            self.lose_at(datagram.to, reason);
        }
        if datagram.is_last {
            self.lost.remove(&datagram.packet);
        }
    }

    fn lose_at(&mut self, to: SocketAddr, reason: DropReason) {
        self.out.drop(reason);
        *self.send_errors.entry(to.ip()).or_default() += 1;
    }

    /// Learns that the path MTU is below the longest of these datagrams. Longer ones are not sent after that.
    fn narrow(&mut self, to: SocketAddr, datagrams: &[Vec<u8>], outer: Option<u16>) {
        let longest = datagrams.iter().map(Vec::len).max().unwrap();
        let explains = |mtu: &u16| usize::from(*mtu) < longest;
        let (headers, least) = if to.is_ipv4() { (28, 552) } else { (48, 1280) };
        let plateau = plateau_below(longest + headers).max(least);
        let inner = |outer| inner(outer, to.ip());
        let mtu = outer.map(inner).filter(explains).or_else(|| Some(inner(plateau)).filter(explains));
        match mtu {
            Some(mtu) => self.stats.path_mtu_lowered += u64::from(self.paths.lower(to.ip(), mtu, self.now)),
            None => {
                let as_long = datagrams.iter().take_while(|datagram| datagram.len() == longest).count();
                self.give_up(to, &datagrams[..as_long], DropReason::SendFailed);
            }
        }
    }

    /// Refuses a queued datagram. The ICMP error is the one that a route of this MTU gives.
    fn refuse(&mut self, datagram: &Waiting, mtu: u16) {
        let hop = SocketAddr::from(([192, 0, 2, 99], 9));
        let anywhere = Route::new("0.0.0.0/0".parse::<IpNet>().unwrap(), hop);
        let whole = core::mem::replace(&mut self.host.routes, vec![anywhere]);
        self.host.paths.insert(hop.ip(), mtu);
        let outcome = model::encapsulate(&self.host, &datagram.original);
        self.host.routes = whole;
        self.host.paths.clear();
        let Outcome::Reject { reason, answer } = outcome else { panic!("{outcome:?} for {datagram:?}") };
        assert_eq!(reason, RejectReason::FragmentationNeeded { mtu });
        let answered = self.answer(&datagram.original, answer);
        settle(&mut self.out, reason, answered);
        self.is_lost(datagram, None);
    }
}

fn settle(account: &mut Account, reason: RejectReason, answered: bool) {
    if answered {
        account.answered += 1;
    } else {
        account.drop(reason.into());
    }
}
