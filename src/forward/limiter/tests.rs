use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::forward::verdict::Answer;
use crate::wire::checksum;
use crate::wire::ipv4::Ipv4Packet;
use crate::wire::ipv6::Ipv6Packet;

const A: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::new(100, 96, 99, 9);
const NO_ROUTE: RejectReason = RejectReason::NetUnreachable;
const TOO_LONG: RejectReason = RejectReason::FragmentationNeeded { mtu: 1300 };

fn at(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// Addresses of 100.96.0.0/12.
fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x6460_0000 + number)
}

fn peer(number: u8) -> SocketAddr {
    ([10, 168, 0, number], 8285).into()
}

/// A request for an error.
#[derive(Clone, Copy, Debug)]
struct Error {
    from: Ipv4Addr,
    to: Ipv4Addr,
    reason: RejectReason,
    reply_to: ReplyTo,
}

impl Error {
    fn near(from: Ipv4Addr) -> Self {
        Self { from, to: NOBODY, reason: NO_ROUTE, reply_to: ReplyTo::Tun }
    }

    fn too_long(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        Self { to, reason: TOO_LONG, ..Self::near(from) }
    }

    fn far(from: Ipv4Addr, peer: SocketAddr) -> Self {
        Self { reason: RejectReason::TimeExceeded, reply_to: ReplyTo::Peer(peer), ..Self::near(from) }
    }
}

impl IcmpLimiter {
    fn asked(&mut self, error: Error, now: Duration) -> bool {
        let mut bytes = [0; 20];
        bytes[0] = 0x45;
        bytes[3] = 20;
        bytes[12..16].copy_from_slice(&error.from.octets());
        bytes[16..].copy_from_slice(&error.to.octets());
        let sum = checksum::checksum(&bytes).to_be_bytes();
        bytes[10..12].copy_from_slice(&sum);
        let offender = Ipv4Packet::parse(&bytes).expect("a header").into();
        let answer = Some(Answer { source: error.to.into(), ttl: 64, reply_to: error.reply_to });
        self.allow(&Reject { offender, reason: error.reason, answer }, now)
    }
}

/// A request for an error about an IPv6 packet.
#[derive(Clone, Copy, Debug)]
struct ErrorV6 {
    from: Ipv6Addr,
    to: Ipv6Addr,
    reason: RejectReason,
    reply_to: ReplyTo,
}

impl IcmpLimiter {
    fn asked_v6(&mut self, error: ErrorV6, now: Duration) -> bool {
        let mut bytes = [0; 40];
        (bytes[0], bytes[6]) = (0x60, 59);
        bytes[8..24].copy_from_slice(&error.from.octets());
        bytes[24..].copy_from_slice(&error.to.octets());
        let offender = Ipv6Packet::parse(&bytes).expect("a header").into();
        let answer = Some(Answer { source: error.to.into(), ttl: 64, reply_to: error.reply_to });
        self.allow(&Reject { offender, reason: error.reason, answer }, now)
    }
}

/// Address `host` of the /64 with this number.
fn host_of(site: u16, host: u64) -> Ipv6Addr {
    Ipv6Addr::from_bits(u128::from(0xfd00_0096_0000_0000 | u64::from(site) << 16) << 64 | u128::from(host))
}

fn near_v6(from: Ipv6Addr) -> ErrorV6 {
    ErrorV6 { from, to: host_of(99, 9), reason: NO_ROUTE, reply_to: ReplyTo::Tun }
}

fn far_v6(from: Ipv6Addr, by: SocketAddr) -> ErrorV6 {
    ErrorV6 { reason: RejectReason::TimeExceeded, reply_to: ReplyTo::Peer(by), ..near_v6(from) }
}

/// Packets of our own pods: every address has its own limit, although all are in one /64.
#[test]
fn v21_r48_each_address_of_the_own_subnet_is_a_source() {
    let mut limiter = IcmpLimiter::new(IcmpLimiter::PER_SOURCE, Rate { per_second: 1000, burst: 1000 });
    for host in 1..=10 {
        let sent = (0..1000).filter(|_| limiter.asked_v6(near_v6(host_of(1, host)), Duration::ZERO)).count();
        assert_eq!(sent, 20, "host {host}");
    }
    // A pod gets its first answer while another one floods.
    assert!(limiter.asked_v6(near_v6(host_of(1, 11)), Duration::ZERO));
    let later = (0..1000).filter(|_| limiter.asked_v6(near_v6(host_of(1, 1)), at(500_000))).count();
    assert_eq!(later, 5);
}

/// Packets from peers: one sender with a /64 of addresses gets no more than one address does.
#[test]
fn v21_r48_each_site_of_a_peer_is_a_source() {
    let mut limiter = IcmpLimiter::new(IcmpLimiter::PER_SOURCE, Rate { per_second: 1000, burst: 1000 });
    for site in 1..=10 {
        let sent =
            (0..1000).filter(|host| limiter.asked_v6(far_v6(host_of(site, *host), peer(3)), Duration::ZERO)).count();
        assert_eq!(sent, 20, "site {site}");
    }
    assert!(limiter.asked_v6(far_v6(host_of(11, 1), peer(3)), Duration::ZERO));
    // What peers use up is not missing at home.
    assert!(limiter.asked_v6(near_v6(host_of(1, 1)), Duration::ZERO));
}

/// "Packet too big" has its own budget for each source and destination, and the totals hold for both families together.
#[test]
fn v21_r48_packet_too_big_has_its_own_budget_and_totals_are_shared() {
    let too_big = |to| ErrorV6 { to, reason: TOO_LONG, ..near_v6(host_of(1, 1)) };
    let mut limiter = IcmpLimiter::default();
    let count = |limiter: &mut IcmpLimiter, error| (0..100).filter(|_| limiter.asked_v6(error, Duration::ZERO)).count();
    assert_eq!(count(&mut limiter, near_v6(host_of(1, 1))), 20);
    assert_eq!(count(&mut limiter, too_big(host_of(2, 1))), 20);
    assert!(limiter.asked_v6(too_big(host_of(2, 2)), Duration::ZERO), "another destination");
    let total = Rate { per_second: 1, burst: 8 };
    let mut limiter = IcmpLimiter::new(IcmpLimiter::PER_SOURCE, total);
    let sent: usize = (0..50)
        .map(|number| {
            let v4 = limiter.asked(Error::near(source(number)), Duration::ZERO);
            let v6 = limiter.asked_v6(near_v6(host_of(1, number.into())), Duration::ZERO);
            usize::from(v4) + usize::from(v6)
        })
        .sum();
    assert!(sent <= 8, "{sent} errors with a burst of 8 in all");
}

/// Returns `count` sources of one set of the table.
fn colliding(seed: u64, with: Ipv4Addr, count: usize) -> Vec<Ipv4Addr> {
    let set = |address: Ipv4Addr| id([address.to_bits().into(), 0, 0], seed) % 64;
    (0..1 << 20).map(source).filter(|other| set(*other) == set(with) && *other != with).take(count).collect()
}

/// An exact model with a bucket for each key: every sent error must conform to it.
#[derive(Default)]
struct Exact(HashMap<(u8, Ipv4Addr, Option<Ipv4Addr>), Vec<Duration>>);

impl Exact {
    fn sent(&mut self, error: Error, now: Duration) {
        let key = match (error.reply_to, error.reason) {
            (ReplyTo::Peer(_), _) => (0, error.from, None),
            (ReplyTo::Tun, TOO_LONG) => (1, error.from, Some(error.to)),
            (ReplyTo::Tun, _) => (2, error.from, None),
        };
        self.0.entry(key).or_default().push(now);
    }

    /// Checks every window: at most burst + rate × t.
    fn assert_within(&self, per_source: Rate, total: Rate) {
        let bound = |rate: Rate, time: Duration| {
            u128::from(rate.burst) + time.as_nanos() * u128::from(rate.per_second) / 1_000_000_000
        };
        let check = |sent: &[Duration], rate: Rate, what: &dyn core::fmt::Debug| {
            for (first, from) in sent.iter().enumerate() {
                for (last, to) in sent.iter().enumerate().skip(first) {
                    let (count, bound) = ((last - first + 1) as u128, bound(rate, *to - *from));
                    assert!(count <= bound, "{what:?}: {count} from {from:?} to {to:?}, at most {bound}");
                }
            }
        };
        for (key, sent) in &self.0 {
            check(sent, per_source, key);
        }
        for budget in 0..3 {
            let of = self.0.iter().filter(|((number, ..), _)| *number == budget);
            let mut sent: Vec<_> = of.flat_map(|(_, sent)| sent.iter().copied()).collect();
            sent.sort();
            check(&sent, total, &budget);
        }
    }
}

#[test]
fn r48_ten_thousand_offenders_in_a_second_get_burst_and_rate_and_another_is_answered_meanwhile() {
    let mut limiter = IcmpLimiter::default();
    let mut sent = 0;
    for i in 0..10_000 {
        sent += u32::from(limiter.asked(Error::near(A), at(100 * i)));
        if i % 1000 == 500 {
            assert!(
                limiter.asked(Error::near(source(i as u32)), at(100 * i)),
                "another source's first, while it lasts"
            );
        }
    }
    assert!((29..=30).contains(&sent), "{sent} answers, burst 20 and 10 a second");
}

#[test]
fn r48_many_sources_share_the_limit_over_all() {
    let mut limiter = IcmpLimiter::default();
    assert_eq!((0..2000).filter(|i| limiter.asked(Error::near(source(*i)), Duration::ZERO)).count(), 100);
}

/// The case that made TCP hang: "fragmentation needed" is sent whatever was answered before.
#[test]
fn r48_unroutable_packets_leave_fragmentation_needed_its_answer() {
    let mut limiter = IcmpLimiter::default();
    assert_eq!((0..21).filter(|_| limiter.asked(Error::near(A), Duration::ZERO)).count(), 20);
    assert!(limiter.asked(Error::too_long(A, source(7)), Duration::ZERO));
    // Other sources together do not use it up either.
    (0..5000).for_each(|i| _ = limiter.asked(Error::near(source(i)), Duration::ZERO));
    assert!(limiter.asked(Error::too_long(A, source(7)), Duration::ZERO));
    // Another destination has another budget with the same limit.
    assert_eq!((0..100).filter(|_| limiter.asked(Error::too_long(A, source(7)), Duration::ZERO)).count(), 18);
    assert_eq!((0..100).filter(|_| limiter.asked(Error::too_long(A, source(8)), at(1_000_000))).count(), 20);
}

/// One source with a thousand destinations does not use up the budget of other sources.
#[test]
fn r48_too_long_packets_to_everywhere_leave_other_sources_theirs() {
    let mut limiter = IcmpLimiter::default();
    for i in 0..50_000 {
        limiter.asked(Error::too_long(A, source(i % 5000)), at(100 * u64::from(i)));
        if i % 5000 == 4999 {
            assert!(limiter.asked(Error::too_long(source(i), source(1)), at(100 * u64::from(i))), "after {i}");
        }
    }
}

/// A peer's expired packets, 2,000 a second from 250 sources. The own pods, other peers and an idle source of the same
/// peer still get their errors.
#[test]
fn r48_a_flood_from_a_peer_costs_neither_our_pods_nor_other_peers() {
    let mut limiter = IcmpLimiter::default();
    let mut sent = 0;
    for i in 0..20_000 {
        let now = at(500 * u64::from(i));
        sent += u32::from(limiter.asked(Error::far(source(i % 250), peer(3)), now));
        if i % 1000 == 999 {
            assert!(limiter.asked(Error::near(source(1000)), now), "our own pod at {now:?}");
            assert!(limiter.asked(Error::far(source(2000 + i % 7), peer(4)), now), "another peer's at {now:?}");
            assert!(limiter.asked(Error::far(source(5000 + i), peer(3)), now), "the same peer's at {now:?}");
        }
    }
    assert!((9000..=10_100).contains(&sent), "{sent} in 10 s");
    let pods = (0..200).filter(|i| limiter.asked(Error::near(source(50_000 + i)), at(9_999_999))).count();
    assert!(pods >= 99, "{pods}: all but the last one of the burst is there for our own pods");
}

/// More sources than the table holds, each so rare that it counts as idle. Other peers are not affected.
#[test]
fn r48_a_peer_with_more_sources_than_places_costs_other_peers_nothing() {
    for seed in 0..4 {
        let mut limiter = IcmpLimiter::default().with_seed(seed);
        for i in 0..200_000 {
            let now = at(50 * u64::from(i));
            limiter.asked(Error::far(source(i % 60_000), peer(3)), now);
            limiter.asked(Error::far(source(i % 50_000), peer(5)), now);
            if i % 5000 == 4999 {
                assert!(limiter.asked(Error::far(source(1 << 19 | i), peer(4)), now), "at {now:?}, seed {seed}");
            }
        }
    }
}

/// A flood from as many sources as may be answered per second. An idle source waits for at most one second.
#[test]
fn r48_a_silent_source_waits_at_most_a_second_while_many_flood() {
    for flood in [250, 500, 900] {
        let mut limiter = IcmpLimiter::default();
        let mut waits = Vec::new();
        let mut asked_since = None;
        for i in 0..100_000u32 {
            let now = at(100 * u64::from(i));
            limiter.asked(Error::near(source(i % flood)), now);
            // A new source every second asks every 50 ms until it is answered.
            if i % 10_000 == 5_000 {
                asked_since = Some((source(10_000 + i), now));
            }
            if let Some((silent, since)) = asked_since
                && i % 500 == 0
                && limiter.asked(Error::near(silent), now)
            {
                waits.push(now - since);
                asked_since = None;
            }
        }
        assert_eq!(waits.len(), 10, "{flood} sources: {waits:?}");
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(1)), "{flood} sources: {waits:?}");
    }
}

/// Sources that evict each other from one set of the table, for ten seconds.
#[test]
fn r48_sources_in_one_set_get_no_more_than_their_limit() {
    for (seed, count) in [(0, 5), (0, 17), (1, 40), (2, 100)] {
        let mut limiter = IcmpLimiter::default().with_seed(seed);
        let sources = colliding(seed, A, count);
        assert_eq!(sources.len(), count);
        let mut exact = Exact::default();
        for i in 0..100_000u64 {
            let error = Error::near(sources[(i % count as u64) as usize]);
            if limiter.asked(error, at(100 * i)) {
                exact.sent(error, at(100 * i));
            }
        }
        assert!(exact.0.len() >= count.min(WAYS), "{seed}, {count}");
        assert!(exact.0.values().all(|sent| sent.len() <= 120), "{seed}, {count}");
        exact.assert_within(IcmpLimiter::PER_SOURCE, IcmpLimiter::TOTAL);
    }
}

/// Several hundred sources share only the sets of the table.
#[test]
fn every_source_has_its_own_tokens() {
    let one = Rate { per_second: 1, burst: 1 };
    let mut limiter = IcmpLimiter::new(one, Rate { per_second: 1000, burst: 1000 });
    let first = (0..300).filter(|i| limiter.asked(Error::near(source(*i)), Duration::ZERO)).count();
    let second = (0..300).filter(|i| limiter.asked(Error::near(source(*i)), Duration::ZERO)).count();
    assert_eq!((first, second), (300, 0));
}

#[test]
fn a_source_refused_by_the_total_limit_keeps_its_tokens() {
    let one = Rate { per_second: 1, burst: 1 };
    let mut limiter = IcmpLimiter::new(one, one);
    assert!(limiter.asked(Error::near(source(9)), Duration::ZERO));
    assert!(!limiter.asked(Error::near(A), Duration::ZERO));
    assert!(limiter.asked(Error::near(A), Duration::from_secs(1)));
}

#[test]
fn an_earlier_time_counts_as_the_latest() {
    let mut limiter = IcmpLimiter::new(Rate { per_second: 1, burst: 2 }, IcmpLimiter::TOTAL);
    let allowed = [10, 5, 0, 10, 11, 4].map(|second| limiter.asked(Error::near(A), Duration::from_secs(second)));
    assert_eq!(allowed, [true, true, false, false, true, false]);
    assert!(!limiter.asked(Error::near(A), Duration::from_secs(11)));
    limiter.asked(Error::near(A), Duration::MAX);
    assert!(!limiter.asked(Error::near(A), Duration::ZERO), "no time passes any more");
}

#[test]
fn without_a_rate_only_the_burst_is_sent() {
    let none = Rate { per_second: 0, burst: 3 };
    let mut limiter = IcmpLimiter::new(none, IcmpLimiter::TOTAL);
    let sent = (0..10).filter(|i| limiter.asked(Error::near(A), Duration::from_secs(i * 3600))).count();
    assert_eq!(sent, 3);
    let nothing = Rate { per_second: 0, burst: 0 };
    assert!(!IcmpLimiter::new(nothing, IcmpLimiter::TOTAL).asked(Error::near(A), Duration::ZERO));
    assert!(!IcmpLimiter::new(IcmpLimiter::PER_SOURCE, nothing).asked(Error::near(A), Duration::ZERO));
}

#[test]
fn a_host_that_sends_no_other_errors_tells_the_size_of_a_path() {
    let nothing = Rate { per_second: 0, burst: 0 };
    let limiter = IcmpLimiter::new(nothing, nothing);
    let mut limiter = limiter.with_too_long(Rate { per_second: 0, burst: 2 }, IcmpLimiter::TOTAL);
    let sent = [Error::near(A), Error::far(A, peer(3)), Error::too_long(A, source(9))]
        .map(|error| (0..10).filter(|_| limiter.asked(error, Duration::ZERO)).count());
    assert_eq!(sent, [0, 0, 2]);
}

/// Errors of every kind, about a few addresses or about many of one set.
fn errors(seed: u64) -> impl Strategy<Value = Vec<(Error, u64)>> {
    let pool = colliding(seed, A, 40);
    let address = prop_oneof![3 => (0usize..40).prop_map(move |i| pool[i]), 1 => (0u32..2000).prop_map(source)];
    let kind = (0u8..3, 3u8..6, 0u32..3);
    let error = (address, kind).prop_map(|(from, (kind, by, to))| match kind {
        0 => Error::near(from),
        1 => Error::too_long(from, source(to)),
        _ => Error::far(from, peer(by)),
    });
    let step = prop_oneof![20 => Just(0), 5 => 0u64..2000, 1 => 0u64..300_000];
    vec((error, step), 1..600)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// R48 for every seed, setting and pattern of sources.
    #[test]
    fn r48_never_more_than_burst_and_rate(
        (errors, seed) in (0u64..8).prop_flat_map(|seed| (errors(seed), Just(seed))),
        (per_second, burst) in prop_oneof![(1u32..4, 0u32..4), (1u32..50, 0u32..30)],
        total in prop_oneof![
            Just(IcmpLimiter::TOTAL),
            Just(Rate { per_second: 100_000, burst: 100_000 }),
            (1u32..200, 0u32..200).prop_map(|(per_second, burst)| Rate { per_second, burst }),
        ],
    ) {
        let per_source = Rate { per_second, burst };
        let mut limiter = IcmpLimiter::new(per_source, total).with_seed(seed);
        let (mut now, mut exact) = (0, Exact::default());
        for (error, step) in errors {
            now += step;
            if limiter.asked(error, at(now)) {
                exact.sent(error, at(now));
            }
        }
        exact.assert_within(per_source, total);
    }
}
