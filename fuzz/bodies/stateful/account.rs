//! The state of a host, as lists.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::HashMap;

use loden::forward::{DirectionCounters, DropReason, PathMtus, Rate};

/// A limit that histories reach.
pub(crate) const PER_SOURCE: Rate = Rate { per_second: 10, burst: 3 };
pub(crate) const TOTAL: Rate = Rate { per_second: 100, burst: 8 };

/// The queue limit of each peer in bytes, low enough to be reached.
pub(crate) const PER_PEER: usize = 7_000;

/// The packets of one direction.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) received: u64,
    pub(crate) forwarded: u64,
    pub(crate) answered: u64,
    dropped: HashMap<DropReason, u64>,
}

impl Account {
    pub(crate) fn drop(&mut self, reason: DropReason) {
        *self.dropped.entry(reason).or_default() += 1;
    }

    pub(crate) fn assert_is(&self, flow: &DirectionCounters, held: u64) {
        assert!(flow.is_conserved(), "R67: {flow:?}");
        let dropped: HashMap<_, _> = flow.drops().collect();
        assert_eq!(dropped, self.dropped);
        let counted = (flow.received(), flow.forwarded(), flow.answered(), flow.held());
        assert_eq!(counted, (self.received, self.forwarded, self.answered, held));
        let fates = self.forwarded + self.answered + held + self.dropped.values().sum::<u64>();
        assert_eq!(fates, self.received, "R67");
    }
}

/// The fields of an ICMP error that limits use: R48's three kinds, the payer, and the offender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) kind: u8,
    pub(crate) payer: IpAddr,
    pub(crate) port: u16,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Option<Ipv4Addr>,
}

/// All ICMP errors so far, and whether the payer had a token of its own share left.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    now: Duration,
    sent: Vec<(Duration, Error, bool)>,
}

impl Budget {
    pub(crate) fn allow(&mut self, error: Error, now: Duration) -> bool {
        self.now = self.now.max(now);
        let Self { now, sent } = self;
        let share = Rate { per_second: TOTAL.per_second.div_ceil(16), burst: TOTAL.burst.div_ceil(16) };
        // The time at which a bucket without these tokens is full again.
        let full_at = |rate: Rate, of: &dyn Fn(&Error, bool) -> bool| {
            let taken = sent.iter().filter(|(_, error, shared)| of(error, *shared));
            taken.fold(Duration::ZERO, |full_at, (at, ..)| full_at.max(*at) + each(rate))
        };
        let has = |rate: Rate, kept: u32, full_at: Duration| {
            full_at.max(*now) + each(rate) <= *now + each(rate) * (rate.burst - kept)
        };
        let of_source = full_at(PER_SOURCE, &|other, _| {
            let key = |error: &Error| (error.kind, error.source, error.destination);
            key(other) == key(&error)
        });
        let of_payer = full_at(share, &|other, shared| {
            let key = |error: &Error| (error.kind, error.payer, error.port);
            shared && key(other) == key(&error)
        });
        let of_all = full_at(TOTAL, &|other, _| other.kind == error.kind);
        let shared = has(share, 0, of_payer);
        let silent = of_source + Duration::from_secs(1) <= *now;
        let quarters = 2 * u32::from(!shared) + u32::from(!silent);
        let allowed = has(PER_SOURCE, 0, of_source) && has(TOTAL, TOTAL.burst * quarters / 4, of_all);
        if allowed {
            self.sent.push((*now, error, shared));
        }
        allowed
    }
}

fn each(rate: Rate) -> Duration {
    Duration::from_nanos(1_000_000_000_u64.div_ceil(rate.per_second.into()))
}

/// The learned path MTUs, and the peers for which DF is cleared.
#[derive(Debug, Default)]
pub(crate) struct Paths(Vec<(IpAddr, u16, Duration)>, Vec<(IpAddr, Duration)>);

impl Paths {
    pub(crate) fn lookup(&self, peer: IpAddr, now: Duration) -> Option<u16> {
        let (_, mtu, learned) = self.0.iter().rfind(|(known, _, _)| *known == peer)?;
        (now.saturating_sub(*learned) < PathMtus::LIFETIME).then_some(*mtu)
    }

    pub(crate) fn is_fragmented(&self, peer: IpAddr, now: Duration) -> bool {
        let fragmented = self.1.iter().filter(|(known, _)| *known == peer);
        fragmented.clone().any(|(_, learned)| now.saturating_sub(*learned) < PathMtus::LIFETIME)
    }

    /// Clears DF for a peer while the learned path MTU is valid.
    pub(crate) fn fragment(&mut self, peer: IpAddr, mtu: u16, now: Duration) {
        if self.lookup(peer, now).is_none() {
            self.begin(peer, mtu, now);
        }
        let (_, _, learned) = self.0.iter().rfind(|(known, _, _)| *known == peer).unwrap();
        self.1.push((peer, *learned));
    }

    /// Records the path MTU of a peer of which nothing is known, or no longer. A clock that goes back brings nothing back.
    fn begin(&mut self, peer: IpAddr, mtu: u16, now: Duration) {
        self.1.retain(|(known, _)| *known != peer);
        self.0.push((peer, mtu, now));
    }

    /// Records a path MTU. Returns whether it is lower than the known one.
    pub(crate) fn lower(&mut self, peer: IpAddr, mtu: u16, now: Duration) -> bool {
        let known = self.lookup(peer, now);
        match known {
            None => self.begin(peer, mtu, now),
            Some(known) if mtu <= known => self.0.push((peer, mtu, now)),
            Some(_) => {}
        }
        known.is_none_or(|known| mtu < known)
    }
}

/// Returns the plateau below a length (RFC 1191 section 7.1).
pub(crate) fn plateau_below(len: usize) -> u16 {
    let plateaus = [65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];
    plateaus.into_iter().find(|plateau| usize::from(*plateau) < len).unwrap_or(0)
}

/// Returns the inner bytes of an outer packet.
pub(crate) fn inner(outer: u16, peer: IpAddr) -> u16 {
    outer.saturating_sub(if peer.is_ipv4() { 28 } else { 48 })
}
