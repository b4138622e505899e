//! The host: what a worker makes of the core's parts, with a socket and a device that are lists.

use core::net::SocketAddr;
use core::time::Duration;

use loden::forward::{
    Counters, Decap, DirectionCounters, DropReason, EmsgsizeOutcome, Encap, Forwarder, IcmpLimiter, IcmpOutcome,
    Overlay, PathMtus, Reject, ReplyTo, SystemPath, TooLong,
};
use loden::lease::{Host, Reconciler};
use loden::route::{Applied, RouteChange, RoutePublisher, RouteReader, RouteTable};
use loden::transmit::{Trains, Way};

use super::Seen;
use super::account::{PER_SOURCE, TOTAL};
use super::script::{Mishap, Step};
use support::host::routes;
use support::leases::Key;

/// Few, so that they are all taken soon.
const SLOTS: usize = 4;

pub(crate) struct Subject {
    forwarder: Forwarder,
    publisher: RoutePublisher,
    pub(crate) reader: RouteReader,
    /// The table that this batch goes by.
    batch: RouteTable,
    pub(crate) reconciler: Reconciler<Key>,
    trains: Trains,
    /// Whether a packet was lost of which a part has still to be put in.
    lost_unfinished: bool,
    pub(crate) memory: Memory,
    /// What the last step brought.
    pub(crate) log: Vec<Seen>,
    pub(crate) changes: Vec<RouteChange>,
    pub(crate) applied: Option<Applied>,
    pub(crate) reported: Option<IcmpOutcome>,
}

/// What is remembered of packets, and where they went in this step.
pub(crate) struct Memory {
    now: Duration,
    pub(crate) counters: Counters,
    limiter: IcmpLimiter,
    pub(crate) paths: PathMtus,
    pub(crate) sent: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) tun: Vec<Vec<u8>>,
}

impl Subject {
    pub(crate) fn new(overlay: Overlay) -> Self {
        let mut publisher = RoutePublisher::bound_to(overlay.underlay).owning(overlay.subnet);
        assert_eq!(publisher.apply(routes().into_iter().map(RouteChange::Set)).refused, []);
        let mut reader = publisher.reader();
        Self {
            forwarder: Forwarder::new(overlay).unwrap(),
            batch: reader.load().clone(),
            publisher,
            reader,
            reconciler: Reconciler::new(Host::new(overlay.network, overlay.subnet, overlay.underlay)),
            trains: Trains::with_slots(SLOTS),
            lost_unfinished: false,
            memory: Memory {
                now: Duration::ZERO,
                counters: Counters::default(),
                limiter: IcmpLimiter::new(PER_SOURCE, TOTAL),
                paths: PathMtus::default(),
                sent: Vec::new(),
                tun: Vec::new(),
            },
            log: Vec::new(),
            changes: Vec::new(),
            applied: None,
            reported: None,
        }
    }

    pub(crate) fn take(&mut self, step: &Step, now: Duration) {
        self.log.clear();
        self.memory.sent.clear();
        self.memory.tun.clear();
        self.memory.now = now;
        match step {
            Step::Out { packet, same_batch } => self.encapsulate(packet.clone(), *same_batch),
            Step::In { datagram, from } => self.decapsulate(datagram.clone(), *from),
            Step::Lease { source, event } => self.reconciler.handle_event(*source, event.clone(), now),
            Step::Publish => {
                self.reconciler.handle_timeout(now);
                self.changes = self.reconciler.take_changes();
                self.applied = Some(self.publisher.apply(self.changes.iter().copied()));
            }
            Step::Route(change) => self.applied = Some(self.publisher.apply([*change])),
            Step::Pass { .. } => {}
            Step::Flush(mishaps) => self.flush(mishaps),
            Step::Report(report) => {
                let outcome = self.memory.paths.handle_icmp(report, &self.forwarder, self.reader.load(), now);
                let is_lower = matches!(outcome, IcmpOutcome::Lowered { .. });
                self.memory.counters.stats.path_mtu_lowered += u64::from(is_lower);
                self.reported = Some(outcome);
            }
            Step::Stop => {
                self.trains.clear();
                let flow = &mut self.memory.counters.encap;
                flow.discard_all(DropReason::Stopped, flow.held());
            }
        }
    }

    fn encapsulate(&mut self, mut packet: Vec<u8>, same_batch: bool) {
        if !same_batch {
            self.batch = self.reader.load().clone();
        }
        let Self { forwarder, batch, memory, .. } = self;
        let received = packet.len();
        memory.counters.encap.receive();
        let mut verdict = forwarder.encapsulate(&mut packet, batch);
        if let Some((way, longest)) = datagrams_of(&verdict) {
            let limit = memory.paths.lookup(way.destination.ip(), memory.now).unwrap_or(u16::MAX);
            if longest > limit.into() {
                verdict = forwarder.refused_as_too_long(&mut packet, way, limit, batch).into();
            }
        }
        let (way, datagrams) = match verdict {
            Encap::Send(transmit) => {
                memory.count_trimmed(transmit.contents.len(), received);
                (Way::from(&transmit), vec![transmit.contents.to_vec()])
            }
            Encap::Fragment(mut fragments) => {
                memory.count_trimmed(fragments.packet().len(), received);
                let mut pieces = Vec::new();
                while let Some(transmit) = fragments.cut_next() {
                    memory.counters.stats.fragments_made += 1;
                    pieces.push(transmit.contents.to_vec());
                }
                (fragments.way(), pieces)
            }
            Encap::Reject(reject) => {
                memory.count_trimmed(reject.offender().as_bytes().len(), received);
                return memory.answer(&reject, |counters| &mut counters.encap);
            }
            Encap::Drop(reason) => return memory.counters.encap.discard(reason),
        };
        self.lost_unfinished = false;
        for (index, datagram) in datagrams.iter().enumerate() {
            if !self.put(way, datagram, index + 1 == datagrams.len()) {
                let (to, left) = (way.destination, datagrams.len() - index);
                self.log.push(Seen::GivenUp { to, datagrams: left, reason: DropReason::SendFailed });
                return;
            }
        }
    }

    /// Makes room for a datagram if there is none. `false` if the packet that it is part of was lost by that.
    fn put(&mut self, way: Way, datagram: &[u8], is_last: bool) -> bool {
        if self.trains.push(&way, datagram.len(), is_last).map(|room| room.copy_from_slice(datagram)).is_none() {
            self.flush(&[]);
            if self.lost_unfinished {
                return false;
            }
            let room = self.trains.push(&way, datagram.len(), is_last);
            room.expect("there is room in empty trains").copy_from_slice(datagram);
        }
        true
    }

    fn decapsulate(&mut self, mut datagram: Vec<u8>, from: SocketAddr) {
        let Self { forwarder, reader, memory, .. } = self;
        let received = datagram.len();
        memory.counters.decap.receive();
        match forwarder.decapsulate(&mut datagram, from, reader.load()) {
            Decap::Deliver(packet) => {
                memory.count_trimmed(packet.len(), received);
                memory.tun.push(packet.to_vec());
                memory.counters.decap.forward();
            }
            Decap::Reject(reject) => {
                memory.count_trimmed(reject.offender().as_bytes().len(), received);
                memory.answer(&reject, |counters| &mut counters.decap);
            }
            Decap::Drop(reason) => memory.counters.decap.discard(reason),
        }
    }

    /// Sends what waits, until the socket is full; when the mishaps are over, all of it.
    fn flush(&mut self, mishaps: &[(usize, Mishap)]) {
        let mut mishaps = mishaps.iter();
        while let Some(way) = self.trains.transmit(0).map(|front| Way::from(&front)) {
            let known = self.memory.paths.lookup(way.destination.ip(), self.memory.now);
            if known.is_some_and(|known| self.longest() > known.into()) {
                self.narrow(way, None);
                continue;
            }
            let left = self.trains.left();
            let (go, mishap) = mishaps.next().copied().unwrap_or((0, Mishap::Nothing));
            let go = if matches!(mishap, Mishap::Nothing) { left } else { go };
            self.go(way.destination, go.min(left));
            if go >= left {
                continue;
            }
            match mishap {
                Mishap::Full | Mishap::Nothing => return,
                Mishap::NoBuffers => self.give_up(way.destination, self.trains.left(), DropReason::SendNoBuffers),
                Mishap::Refused => self.give_up(way.destination, 1, DropReason::SendRefused),
                Mishap::TooLong(outer) => self.narrow(way, outer),
            }
        }
    }

    fn longest(&mut self) -> usize {
        let lengths =
            (0..self.trains.left()).filter_map(|index| self.trains.datagram_mut(index).map(|bytes| bytes.len()));
        lengths.max().unwrap_or(0)
    }

    fn go(&mut self, to: SocketAddr, datagrams: usize) {
        for _ in 0..datagrams {
            let datagram = self.trains.datagram_mut(0).expect("one is left").to_vec();
            self.memory.sent.push((to, datagram));
            self.log.push(Seen::Took(to));
            self.memory.counters.encap.forward_all(self.trains.advance(1));
        }
    }

    fn give_up(&mut self, to: SocketAddr, datagrams: usize, reason: DropReason) {
        self.log.push(Seen::GivenUp { to, datagrams, reason });
        self.give_up_silently(datagrams, reason);
    }

    fn give_up_silently(&mut self, datagrams: usize, reason: DropReason) {
        let given_up = self.trains.give_up(datagrams);
        self.lost_unfinished |= given_up.unfinished;
        self.memory.counters.encap.discard_all(reason, given_up.packets);
    }

    /// The path is too narrow for the front train.
    fn narrow(&mut self, way: Way, outer: Option<u16>) {
        let (to, left, longest) = (way.destination, self.trains.left(), self.longest());
        self.log.push(Seen::Narrow { to, datagrams: left, outer });
        let Memory { paths, counters, now, .. } = &mut self.memory;
        let system = SystemPath { configured: outer.map(u32::from), ..SystemPath::default() };
        let EmsgsizeOutcome::Limit(mtu) = paths.handle_emsgsize(to, longest, system, *now, &mut counters.stats) else {
            return self.give_up(to, left, DropReason::SendFailed);
        };
        for _ in 0..left {
            let Self { forwarder, reader, trains, memory, .. } = self;
            let datagram = trains.datagram_mut(0).expect("one is left");
            if datagram.len() <= mtu.into() {
                memory.sent.push((to, datagram.to_vec()));
                memory.counters.encap.forward_all(trains.advance(1));
                continue;
            }
            match forwarder.refused_as_too_long(datagram, way, mtu, reader.table()) {
                TooLong::Fragment(mut fragments) => {
                    while let Some(transmit) = fragments.cut_next() {
                        memory.counters.stats.fragments_made += 1;
                        memory.sent.push((transmit.destination, transmit.contents.to_vec()));
                    }
                    memory.counters.encap.forward_all(trains.advance(1));
                }
                TooLong::Reject(reject) => {
                    memory.answer(&reject, |counters| &mut counters.encap);
                    assert_eq!(trains.give_up(1).packets, 1, "a packet with DF set is one datagram");
                }
                TooLong::Drop(reason) => self.give_up_silently(1, reason),
            }
        }
    }
}

impl Memory {
    fn answer(&mut self, reject: &Reject<'_>, flow: fn(&mut Counters) -> &mut DirectionCounters) {
        let mut message = [0; loden::wire::icmpv4::ERROR_MAX];
        let answer = self.limiter.answer(reject, self.now, &mut self.counters.stats, &mut message);
        flow(&mut self.counters).settle(reject, answer.is_some());
        match answer {
            Some((ReplyTo::Tun, message)) => self.tun.push(message.to_vec()),
            Some((ReplyTo::Peer(peer), message)) => self.sent.push((peer, message.to_vec())),
            Some((other, _)) => panic!("nobody knows how to reply to {other:?}"),
            None => {}
        }
    }

    fn count_trimmed(&mut self, len: usize, received: usize) {
        self.counters.stats.trimmed += u64::from(len < received);
    }
}

fn datagrams_of(verdict: &Encap<'_>) -> Option<(Way, usize)> {
    match verdict {
        Encap::Send(transmit) => Some((Way::from(transmit), transmit.contents.len())),
        Encap::Fragment(fragments) => Some((fragments.way(), fragments.fragmenter().mtu().into())),
        Encap::Reject(_) | Encap::Drop(_) => None,
    }
}
