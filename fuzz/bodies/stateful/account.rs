//! What a host remembers, in lists.

use core::net::{IpAddr, Ipv4Addr};
use core::time::Duration;
use std::collections::HashMap;

use loden::forward::{DropReason, Flow, PathMtus, Rate};

/// Low enough to be reached.
pub(crate) const PER_SOURCE: Rate = Rate { per_second: 10, burst: 3 };
pub(crate) const TOTAL: Rate = Rate { per_second: 100, burst: 8 };

/// One direction's packets.
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

    pub(crate) fn assert_is(&self, flow: &Flow, held: u64) {
        assert!(flow.is_conserved(), "R67: {flow:?}");
        let dropped: HashMap<_, _> = flow.drops().collect();
        assert_eq!(dropped, self.dropped);
        let counted = (flow.received(), flow.forwarded(), flow.answered(), flow.held());
        assert_eq!(counted, (self.received, self.forwarded, self.answered, held));
        let fates = self.forwarded + self.answered + held + self.dropped.values().sum::<u64>();
        assert_eq!(fates, self.received, "R67");
    }
}

/// Tokens for ICMP errors, in nanoseconds of waiting for them.
#[derive(Debug)]
pub(crate) struct Budget {
    now: Duration,
    total: Duration,
    sources: Vec<(Ipv4Addr, Duration)>,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { now: Duration::ZERO, total: full(TOTAL), sources: Vec::new() }
    }

    pub(crate) fn allow(&mut self, source: Ipv4Addr, now: Duration) -> bool {
        let passed = now.saturating_sub(self.now);
        self.now += passed;
        self.total = full(TOTAL).min(self.total + passed);
        self.sources.iter_mut().for_each(|(_, left)| *left = full(PER_SOURCE).min(*left + passed));
        if self.sources.iter().all(|(known, _)| *known != source) {
            self.sources.push((source, full(PER_SOURCE)));
        }
        let (_, left) = self.sources.iter_mut().find(|(known, _)| *known == source).unwrap();
        let allowed = self.total >= each(TOTAL) && *left >= each(PER_SOURCE);
        if allowed {
            self.total -= each(TOTAL);
            *left -= each(PER_SOURCE);
        }
        allowed
    }
}

fn each(rate: Rate) -> Duration {
    Duration::from_secs(1) / rate.per_second
}

fn full(rate: Rate) -> Duration {
    each(rate) * rate.burst
}

/// What was learned of paths, every word of it, and which of that ends with DF not being set.
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

    /// As long as what is known holds.
    pub(crate) fn fragment(&mut self, peer: IpAddr, mtu: u16, now: Duration) {
        if self.lookup(peer, now).is_none() {
            self.0.push((peer, mtu, now));
        }
        let (_, _, learned) = self.0.iter().rfind(|(known, _, _)| *known == peer).unwrap();
        self.1.push((peer, *learned));
    }

    /// Whether it was news.
    pub(crate) fn lower(&mut self, peer: IpAddr, mtu: u16, now: Duration) -> bool {
        let known = self.lookup(peer, now);
        if known.is_none_or(|known| mtu <= known) {
            self.0.push((peer, mtu, now));
        }
        known.is_none_or(|known| mtu < known)
    }
}

/// RFC 1191 section 7.1.
pub(crate) fn plateau_below(len: usize) -> u16 {
    let plateaus = [65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];
    plateaus.into_iter().find(|plateau| usize::from(*plateau) < len).unwrap_or(0)
}

/// Of outer bytes for inner ones.
pub(crate) fn inner(outer: u16, peer: IpAddr) -> u16 {
    outer.saturating_sub(if peer.is_ipv4() { 28 } else { 48 })
}
