//! New route tables for workers that are running.
//!
//! One publisher, any number of readers. A reader compares one number per batch and takes a lock only when it differs, which
//! is when a table was published since. There is nothing lock-free here to get wrong: a mutex and one atomic.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

use super::{Applied, Own, RouteChange, RouteTable};

/// Owns the current table and hands the next one to every reader.
///
/// ```
/// use loden::route::{Route, RouteChange, RoutePublisher};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut publisher = RoutePublisher::new();
/// let mut reader = publisher.reader();
/// let route = Route::new("100.96.2.0/24".parse::<ipnet::Ipv4Net>()?, ([10, 168, 0, 3], 8285));
/// let applied = publisher.apply([RouteChange::Set(route)]);
/// assert_eq!((applied.changed, applied.refused.len()), (1, 0));
/// assert_eq!(reader.load().len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RoutePublisher {
    shared: Arc<Shared>,
    table: RouteTable,
    own: Own,
    /// Tables that some reader may still hold. The publisher holds them too, so that it is never a reader, in the middle of
    /// its packets, who frees a large one.
    retired: Vec<RouteTable>,
}

#[derive(Debug)]
struct Shared {
    /// How many tables were published. Only compared for equality, so that it may wrap.
    generation: AtomicUsize,
    current: Mutex<RouteTable>,
}

impl RoutePublisher {
    /// A publisher of an empty table.
    #[must_use]
    pub fn new() -> Self {
        let table = RouteTable::new();
        let shared = Shared { generation: AtomicUsize::new(0), current: Mutex::new(table.clone()) };
        Self { shared: Arc::new(shared), table, own: Own::default(), retired: Vec::new() }
    }

    /// A publisher that also refuses routes to `own`, the address and port this host is bound to.
    #[must_use]
    pub fn bound_to(own: SocketAddr) -> Self {
        let address = Some(SocketAddr::new(own.ip().to_canonical(), own.port()));
        Self { own: Own { address, subnet: None }, ..Self::new() }
    }

    /// The same publisher, which also refuses a route of `subnet`, the one this host owns.
    #[must_use]
    pub fn owning(mut self, subnet: impl Into<IpNet>) -> Self {
        self.own.subnet = Some(subnet.into().trunc());
        self
    }

    /// Applies all changes in their order and publishes the outcome once, if there is one.
    ///
    /// When this returns, no batch that begins uses an older table. Parts that did not change are shared with the table
    /// before, so the cost is that of the changes, not of the table; but for a table that has lost three quarters of its routes
    /// and more, which is made anew to give back their room.
    ///
    /// Older tables that no reader holds any more are freed here, and only here: also when nothing changes.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = RouteChange>) -> Applied {
        let mut next = self.table.clone();
        let applied = next.apply(changes, &self.own);
        if applied.changed > 0 {
            self.publish(next);
        }
        self.retired.retain(RouteTable::is_shared);
        applied
    }

    /// The current table.
    #[must_use]
    pub fn table(&self) -> &RouteTable {
        &self.table
    }

    /// A reader for one more worker.
    #[must_use]
    pub fn reader(&self) -> RouteReader {
        let generation = self.shared.generation.load(Ordering::Acquire);
        RouteReader { shared: Arc::clone(&self.shared), table: self.table.clone(), generation }
    }

    fn publish(&mut self, next: RouteTable) {
        let before = core::mem::replace(&mut self.table, next);
        {
            let mut current = lock(&self.shared.current);
            *current = self.table.clone();
            // Written under the lock, so that who holds it sees number and table of one publication.
            self.shared.generation.fetch_add(1, Ordering::Release);
        }
        self.retired.push(before);
    }
}

impl Default for RoutePublisher {
    fn default() -> Self {
        Self::new()
    }
}

/// One worker's view of the published table.
#[derive(Clone, Debug)]
pub struct RouteReader {
    shared: Arc<Shared>,
    table: RouteTable,
    generation: usize,
}

impl RouteReader {
    /// The newest table. Call it once per batch, so that a whole batch is routed by one table.
    ///
    /// One atomic load, unless a table was published since the last call.
    #[inline]
    pub fn load(&mut self) -> &RouteTable {
        self.update();
        &self.table
    }

    /// Takes over the newest table, and returns whether one was published since the last call. Packets that were routed by an
    /// older table and wait may have a next hop that is gone then ([`SendQueue::drop_peers`](crate::transmit::SendQueue::drop_peers)).
    #[inline]
    pub fn update(&mut self) -> bool {
        let is_newer = self.shared.generation.load(Ordering::Acquire) != self.generation;
        if is_newer {
            self.refresh();
        }
        is_newer
    }

    /// The table that the last [`load`](Self::load) or [`update`](Self::update) found.
    #[must_use]
    #[inline]
    pub fn table(&self) -> &RouteTable {
        &self.table
    }

    #[cold]
    fn refresh(&mut self) {
        let newest = {
            let current = lock(&self.shared.current);
            self.generation = self.shared.generation.load(Ordering::Acquire);
            current.clone()
        };
        // Outside the lock: without a publisher this may be the last hand on the old table.
        self.table = newest;
    }
}

/// A panic elsewhere cannot leave a half-written table: one is only ever moved in whole.
fn lock(current: &Mutex<RouteTable>) -> MutexGuard<'_, RouteTable> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}
