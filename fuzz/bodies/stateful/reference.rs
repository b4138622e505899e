//! The same host in lists: routes are looked at one by one, leases all anew, and every datagram that waits has its own line.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::BTreeSet;

use loden::forward::{DropReason, IcmpOutcome, Overlay, RejectReason, ReplyTo, SourcePort, Stats, Transit};
use loden::ipnet::IpNet;
use loden::lease;
use loden::route::{Route, RouteChange};
use loden::wire::DatagramTooBig;

use super::Seen;
use super::account::{Account, Budget, Error, Paths, inner, plateau_below};
use super::script::{Mishap, Step, hops};
use super::subject::Subject;
use support::host::{Host, Outcome, holds, routes};
use support::leases::{self, recompute};
use support::model;
use support::packet::address_at;

pub(crate) struct Reference {
    /// With the routes that this batch goes by.
    host: Host,
    published: Vec<Route>,
    leases: leases::Model,
    /// The leases' routes that were last made known.
    leased: Vec<Route>,
    waiting: Vec<Waiting>,
    /// Packets of which a datagram was lost, and others wait.
    lost: BTreeSet<u64>,
    budget: Budget,
    paths: Paths,
    out: Account,
    back: Account,
    stats: Stats,
    now: Duration,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    tun: Vec<Vec<u8>>,
}

/// A datagram that waits for the socket.
#[derive(Clone, Debug)]
struct Waiting {
    to: SocketAddr,
    datagram: Vec<u8>,
    /// The packet that came out of the TUN.
    original: Vec<u8>,
    packet: u64,
    is_last: bool,
}

impl Reference {
    pub(crate) fn new(overlay: Overlay) -> Self {
        Self {
            host: Host::new(overlay, routes()),
            published: routes(),
            leases: leases::Model::default(),
            leased: Vec::new(),
            waiting: Vec::new(),
            lost: BTreeSet::new(),
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
        self.now = now;
        match step {
            Step::Out { packet, same_batch } => self.encapsulate(packet, *same_batch),
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
            Step::Route(_) | Step::Pass { .. } | Step::Flush(_) | Step::Report(_) => {}
            Step::Stop => {
                (0..self.held()).for_each(|_| self.out.drop(DropReason::Stopped));
                self.waiting.clear();
                self.lost.clear();
            }
        }
        self.follow(log);
    }

    /// Packets of which all datagrams that are left wait.
    pub(crate) fn held(&self) -> u64 {
        let packets: BTreeSet<u64> = self.waiting.iter().map(|waiting| waiting.packet).collect();
        packets.difference(&self.lost).count() as u64
    }

    /// All that can be seen of the subject is what it should be.
    pub(crate) fn assert_is(&mut self, subject: &mut Subject, step: &Step, now: Duration) {
        match step {
            Step::Publish => self.publish(subject),
            Step::Route(change) => {
                let expected = self.change(*change);
                let applied = subject.applied.take().unwrap();
                assert_eq!((applied.changed, applied.refused.is_empty()), expected, "{change:?}");
            }
            Step::Report(report) => assert_eq!(subject.reported.take(), Some(self.report(report)), "{report:?}"),
            Step::Flush(mishaps) if !mishaps.iter().any(|(_, mishap)| matches!(mishap, Mishap::Full)) => {
                assert!(self.waiting.is_empty(), "the socket took all, and {:?} still wait", self.waiting);
            }
            Step::Out { .. }
            | Step::In { .. }
            | Step::Lease { .. }
            | Step::Pass { .. }
            | Step::Flush(_)
            | Step::Stop => {}
        }
        let memory = &subject.memory;
        assert_eq!(memory.sent, self.sent, "what was sent, after {step:?}");
        assert_eq!(memory.tun, self.tun, "what was written, after {step:?}");
        self.out.assert_is(&memory.counters.encap, self.held());
        self.back.assert_is(&memory.counters.decap, 0);
        assert_eq!(memory.counters.stats, self.stats, "after {step:?}");
        for peer in hops().map(|hop| hop.ip()) {
            assert_eq!(memory.paths.lookup(peer, now), self.paths.lookup(peer, now), "the path to {peer}");
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

    fn lease_host(&self) -> lease::Host {
        let Overlay { network, subnet, underlay, .. } = *self.host.overlay();
        lease::Host::new(network, subnet, underlay)
    }

    fn assert_leases(&self, subject: &Subject) {
        let expected = recompute(&self.lease_host(), &self.leases.leases());
        assert_eq!(subject.reconciler.routes().collect::<Vec<_>>(), expected.routes);
        assert_eq!(subject.reconciler.conflicts().map(leases::text).collect::<BTreeSet<_>>(), expected.conflicts);
        assert_eq!(subject.reconciler.poll_timeout(), self.leases.next_deadline());
        for source in (0..3).map(lease::SourceId) {
            assert_eq!(subject.reconciler.stale_since(source), self.leases.stale_since(source));
        }
    }

    /// The fewest changes: what is not as it was when they were last made known.
    fn publish(&mut self, subject: &mut Subject) {
        let routes = recompute(&self.lease_host(), &self.leases.leases()).routes;
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
    }

    /// How many routes changed, and whether the change was taken.
    fn change(&mut self, change: RouteChange) -> (usize, bool) {
        let before = self.published.clone();
        let subnet = change.subnet();
        if let RouteChange::Set(route) = change {
            let Route { next_hop, mtu, .. } = route;
            let hop = next_hop.ip();
            let broadcast = hop == IpAddr::from([255; 4]);
            let nobody = hop.is_unspecified() || hop.is_multicast() || broadcast || next_hop.port() == 0;
            let Overlay { underlay, subnet: own, .. } = *self.host.overlay();
            if nobody || next_hop == underlay || subnet == own || mtu.is_some_and(|mtu| mtu < 68) {
                return (0, false);
            }
            self.published.retain(|known| known.subnet != subnet);
            self.published.push(Route { subnet, ..route });
        } else {
            self.published.retain(|known| known.subnet != subnet);
        }
        let has = |routes: &[Route]| routes.iter().find(|known| known.subnet == subnet).copied();
        (usize::from(has(&before) != has(&self.published)), true)
    }

    fn report(&mut self, report: &DatagramTooBig) -> IcmpOutcome {
        let overlay = *self.host.overlay();
        let (source, destination) = (SocketAddr::V4(report.source), SocketAddr::V4(report.destination));
        let ours = source == overlay.underlay && overlay.source_port == SourcePort::Fixed;
        if !ours || self.published.iter().all(|route| route.next_hop != destination) {
            return IcmpOutcome::Foreign;
        }
        let peer = destination.ip();
        let reported = if report.mtu == 0 { plateau_below(report.len.into()) } else { report.mtu };
        if report.len <= reported || inner(report.len, peer) > overlay.mtu {
            return IcmpOutcome::Implausible;
        }
        let floor = match report.inner {
            None => 1280,
            Some(header) => {
                let [source, destination_of] = [12, 16].map(|at| address_at(&header, at));
                let held = |route: &&Route| holds(route.subnet, destination_of);
                let route = self.published.iter().filter(held).max_by_key(|route| route.subnet.prefix_len());
                if route.is_none_or(|route| route.next_hop != destination) {
                    return IcmpOutcome::Foreign;
                }
                let own_host = IpAddr::V4(source) == overlay.underlay.ip();
                let ours = own_host || holds(overlay.subnet, source) || overlay.transit == Transit::Allowed;
                if ours { 552 } else { 1280 }
            }
        };
        if self.paths.is_fragmented(peer, self.now) {
            return IcmpOutcome::NotLower;
        }
        let known = self.paths.lookup(peer, self.now).unwrap_or(overlay.mtu);
        let floor = inner(floor, peer);
        if inner(reported, peer) < floor && known <= floor && inner(report.len, peer) <= floor {
            self.paths.fragment(peer, floor, self.now);
            return IcmpOutcome::Fragmented { peer };
        }
        let mtu = inner(reported, peer).max(floor);
        if mtu >= overlay.mtu || !self.paths.lower(peer, mtu, self.now) {
            return IcmpOutcome::NotLower;
        }
        self.stats.path_mtu_lowered += 1;
        IcmpOutcome::Lowered { peer, mtu }
    }

    fn encapsulate(&mut self, packet: &[u8], same_batch: bool) {
        if !same_batch {
            self.host.routes = self.published.clone();
        }
        self.out.received += 1;
        let mut outcome = model::encapsulate(&self.host, packet);
        if let Some(limit) = self.exceeded(packet, &outcome) {
            let whole = self.host.routes.clone();
            let route = self.route(packet);
            self.host.routes.iter_mut().filter(|known| **known == route).for_each(|known| known.mtu = Some(limit));
            outcome = model::encapsulate(&self.host, packet);
            self.host.routes = whole;
        }
        self.count_trimmed(packet, &outcome);
        match outcome {
            Outcome::Forward { to, bytes } => self.wait(packet, to.unwrap(), vec![bytes]),
            Outcome::Fragments { to, pieces } => {
                self.stats.fragments_made += pieces.len() as u64;
                self.wait(packet, to, pieces);
            }
            Outcome::Reject { reason, answer } => {
                let answered = self.answer(packet, answer);
                settle(&mut self.out, reason, answered);
            }
            Outcome::Drop(reason) => self.out.drop(reason),
        }
    }

    /// What the path carries, if that is known to be less than what would be sent.
    fn exceeded(&self, packet: &[u8], outcome: &Outcome) -> Option<u16> {
        let route = || self.route(packet);
        let (to, longest) = match outcome {
            Outcome::Forward { to, bytes } => ((*to)?, bytes.len()),
            Outcome::Fragments { to, .. } => (*to, route().mtu.unwrap_or(u16::MAX).min(self.host.overlay().mtu).into()),
            Outcome::Reject { .. } | Outcome::Drop(_) => return None,
        };
        self.paths.lookup(to.ip(), self.now).filter(|limit| longest > usize::from(*limit))
    }

    /// The route of a packet that has one.
    fn route(&self, packet: &[u8]) -> Route {
        let destination: [u8; 4] = packet[16..20].try_into().unwrap();
        *self.host.naive_route(destination.into()).unwrap()
    }

    fn wait(&mut self, packet: &[u8], to: SocketAddr, datagrams: Vec<Vec<u8>>) {
        let (number, count) = (self.out.received, datagrams.len());
        for (index, datagram) in datagrams.into_iter().enumerate() {
            let original = packet.to_vec();
            self.waiting.push(Waiting { to, datagram, original, packet: number, is_last: index + 1 == count });
        }
    }

    fn decapsulate(&mut self, datagram: &[u8], from: SocketAddr) {
        let batch = core::mem::replace(&mut self.host.routes, self.published.clone());
        self.back.received += 1;
        let outcome = model::decapsulate(&self.host, datagram, from);
        self.host.routes = batch;
        self.count_trimmed(datagram, &outcome);
        match outcome {
            Outcome::Forward { bytes, .. } => {
                self.tun.push(bytes);
                self.back.forwarded += 1;
            }
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

    /// Whether an answer that may be given is.
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
            ReplyTo::Tun => self.tun.push(message),
            ReplyTo::Peer(peer) => self.sent.push((peer, message)),
            other => panic!("the list knows no {other:?}"),
        }
        true
    }

    /// Does with the datagrams that wait what the subject says became of them.
    fn follow(&mut self, log: &[Seen]) {
        for seen in log {
            match seen {
                Seen::Took(to) => {
                    let next = self.next(*to);
                    self.sent.push((*to, next.datagram.clone()));
                    self.has_gone(&next);
                }
                Seen::GivenUp { to, datagrams, reason } => {
                    for _ in 0..*datagrams {
                        let next = self.next(*to);
                        self.is_lost(&next, Some(*reason));
                    }
                }
                Seen::Narrow { to, datagrams, outer } => self.narrow(*to, *datagrams, *outer),
            }
        }
    }

    /// The one that has waited for longest.
    fn next(&mut self, to: SocketAddr) -> Waiting {
        let at = self.waiting.iter().position(|waiting| waiting.to == to).unwrap();
        self.waiting.remove(at)
    }

    fn has_gone(&mut self, datagram: &Waiting) {
        if datagram.is_last && !self.lost.remove(&datagram.packet) {
            self.out.forwarded += 1;
        }
    }

    /// With a reason, if it has still to be counted.
    fn is_lost(&mut self, datagram: &Waiting, reason: Option<DropReason>) {
        if self.lost.insert(datagram.packet) {
            reason.into_iter().for_each(|reason| self.out.drop(reason));
        }
        if datagram.is_last {
            self.lost.remove(&datagram.packet);
        }
    }

    fn narrow(&mut self, to: SocketAddr, datagrams: usize, outer: Option<u16>) {
        let waiting = self.waiting.iter().filter(|waiting| waiting.to == to).take(datagrams);
        let longest = waiting.map(|waiting| waiting.datagram.len()).max().unwrap();
        let explains = |mtu: &u16| usize::from(*mtu) < longest;
        let known = self.paths.lookup(to.ip(), self.now).filter(explains);
        let mtu = known.or_else(|| {
            let (headers, least) = if to.is_ipv4() { (28, 552) } else { (48, 1280) };
            let plateau = || Some(plateau_below(longest + headers).max(least));
            let inner = |outer| inner(outer, to.ip());
            let mtu = outer.map(inner).filter(explains).or_else(|| plateau().map(inner).filter(explains))?;
            self.stats.path_mtu_lowered += u64::from(self.paths.lower(to.ip(), mtu, self.now));
            Some(mtu)
        });
        // Otherwise they are given up, which is said next.
        let Some(mtu) = mtu else { return };
        for _ in 0..datagrams {
            let next = self.next(to);
            if next.datagram.len() <= usize::from(mtu) {
                self.sent.push((to, next.datagram.clone()));
                self.has_gone(&next);
            } else if next.datagram[6] & 0x40 != 0 {
                self.refuse(&next, mtu);
            } else if let Some(pieces) = model::fragments(&next.datagram, mtu.into()) {
                self.stats.fragments_made += pieces.len() as u64;
                self.sent.extend(pieces.into_iter().map(|piece| (to, piece)));
                self.has_gone(&next);
            } else {
                self.is_lost(&next, Some(DropReason::NotFragmented));
            }
        }
    }

    /// The answer is the one that a route of this width would have brought about at once.
    fn refuse(&mut self, datagram: &Waiting, mtu: u16) {
        let anywhere =
            Route { mtu: Some(mtu), ..Route::new("0.0.0.0/0".parse::<IpNet>().unwrap(), ([192, 0, 2, 99], 9)) };
        let whole = core::mem::replace(&mut self.host.routes, vec![anywhere]);
        let outcome = model::encapsulate(&self.host, &datagram.original);
        self.host.routes = whole;
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
