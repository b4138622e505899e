//! The destinations whose GSO batches are sent as single datagrams for a while.

use alloc::collections::BTreeMap;
use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The number of destinations that are remembered. One that is forgotten costs one system call that fails.
const REMEMBERED: usize = 1024;

/// The time without batches after a first refusal. It doubles with each further refusal.
const FIRST_WAIT: Duration = Duration::from_secs(60);

/// The longest time without batches. A destination that accepts batches for that time starts with the first wait
/// again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The destinations whose GSO batches failed although the same datagrams went one by one. The device on the path
/// computes no checksums, or the packets go through IPsec (`udp_send_skb` in the kernel's net/ipv4/udp.c), or the
/// error was a passing one.
#[derive(Debug, Default)]
pub(super) struct Fallbacks {
    /// Set while a destination gets no batches. It usually saves the lock.
    any: AtomicBool,
    count: AtomicU64,
    destinations: Mutex<BTreeMap<IpAddr, Fallback>>,
}

#[derive(Clone, Copy, Debug)]
struct Fallback {
    wait: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A batch failed since the last call of `expire`. The value is the time since which it had got batches again, if
    /// ever.
    New(Option<Instant>),
    /// It gets no batches before this time.
    Until(Instant),
    /// It gets batches again since this time.
    Again(Instant),
}

impl Fallbacks {
    #[inline]
    pub(super) fn contains(&self, destination: IpAddr) -> bool {
        self.any.load(Ordering::Relaxed) && self.has(destination)
    }

    #[cold]
    fn has(&self, destination: IpAddr) -> bool {
        self.destinations().get(&destination).is_some_and(Fallback::is_in_force)
    }

    #[cold]
    pub(super) fn insert(&self, destination: IpAddr) {
        let mut destinations = self.destinations();
        if destinations.len() >= REMEMBERED && !destinations.contains_key(&destination) {
            destinations.pop_first();
        }
        let known = destinations.entry(destination).or_insert(Fallback { wait: FIRST_WAIT, state: State::New(None) });
        if let State::Again(since) = known.state {
            known.state = State::New(Some(since));
        }
        self.any.store(true, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Enables batches again for the destinations whose wait is over.
    #[inline]
    pub(super) fn expire(&self, now: Instant) {
        if self.any.load(Ordering::Relaxed) {
            self.expire_all(now);
        }
    }

    #[cold]
    fn expire_all(&self, now: Instant) {
        let mut destinations = self.destinations();
        for known in destinations.values_mut() {
            known.state = match known.state {
                State::New(since) => {
                    let soon = since.is_some_and(|since| now.saturating_duration_since(since) < LONGEST_WAIT);
                    known.wait = if soon { (2 * known.wait).min(LONGEST_WAIT) } else { FIRST_WAIT };
                    State::Until(now + known.wait)
                }
                State::Until(at) if at <= now => State::Again(now),
                state @ (State::Until(_) | State::Again(_)) => state,
            };
        }
        self.any.store(destinations.values().any(Fallback::is_in_force), Ordering::Relaxed);
    }

    /// Returns the number of refusals.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn destinations(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Fallback>> {
        self.destinations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fallback {
    fn is_in_force(&self) -> bool {
        !matches!(self.state, State::Again(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "takes an interpreter a quarter of an hour")]
    fn no_more_destinations_than_a_bound() {
        let fallbacks = Fallbacks::default();
        let address = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        for number in 0..2 * REMEMBERED {
            assert!(!fallbacks.contains(address(number)));
            fallbacks.insert(address(number));
            fallbacks.insert(address(number));
            assert!(fallbacks.contains(address(number)));
        }
        assert_eq!(fallbacks.destinations().len(), REMEMBERED);
        assert_eq!(fallbacks.count(), 4 * REMEMBERED as u64);
    }

    /// After each refusal the wait is twice the last one, from a minute to an hour. It starts from a minute again
    /// once batches were accepted for an hour.
    #[test]
    fn fault_55_the_wait_doubles_from_a_minute_to_an_hour() {
        let (fallbacks, mut now) = (Fallbacks::default(), Instant::now());
        let [peer, other] = [[10, 168, 0, 3], [10, 168, 0, 4]].map(IpAddr::from);
        let second = Duration::from_secs(1);
        for _ in 0..2 {
            for minutes in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
                fallbacks.insert(peer);
                fallbacks.expire(now);
                let until = now + minutes * 60 * second;
                now = until - second;
                fallbacks.expire(now);
                assert!(fallbacks.contains(peer) && !fallbacks.contains(other), "{minutes} minutes");
                now = until;
                fallbacks.expire(now);
                assert!(!fallbacks.contains(peer), "{minutes} minutes");
            }
            now += LONGEST_WAIT;
        }
    }
}
