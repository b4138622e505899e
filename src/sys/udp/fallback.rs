//! Where trains have to be sent one by one.

use alloc::collections::BTreeSet;
use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Destinations that are remembered. One that is forgotten costs one system call that fails.
const REMEMBERED: usize = 1024;

/// The destinations to which a train failed where the same datagrams one by one did not: the device on the way computes no
/// checksums, or the packets go through IPsec (`udp_send_skb` in the kernel's net/ipv4/udp.c).
#[derive(Debug, Default)]
pub(super) struct Fallbacks {
    /// Whether there is any, so that it usually takes no lock to know.
    any: AtomicBool,
    count: AtomicU64,
    destinations: Mutex<BTreeSet<IpAddr>>,
}

impl Fallbacks {
    #[inline]
    pub(super) fn contains(&self, destination: IpAddr) -> bool {
        self.any.load(Ordering::Relaxed) && self.destinations().contains(&destination)
    }

    #[cold]
    pub(super) fn insert(&self, destination: IpAddr) {
        let mut destinations = self.destinations();
        if destinations.len() >= REMEMBERED && !destinations.contains(&destination) {
            destinations.pop_first();
        }
        destinations.insert(destination);
        self.any.store(true, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a destination was added.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    fn destinations(&self) -> MutexGuard<'_, BTreeSet<IpAddr>> {
        self.destinations.lock().unwrap_or_else(PoisonError::into_inner)
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
}
