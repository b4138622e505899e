//! Publication of new route tables to running workers.
//!
//! There is one publisher and any number of readers. A reader compares one number per batch and takes a lock only after
//! a publication. The implementation is a mutex and one atomic counter, not a lock-free structure.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Applied, Own, RouteChange, RouteTable};
use crate::host::Host;

/// The owner of the current table. It publishes the next table to every reader.
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
    /// Tables that a reader may still hold. The publisher holds them too, so no reader frees a large table while it
    /// handles packets.
    retired: Vec<RouteTable>,
}

#[derive(Debug)]
struct Shared {
    /// The number of published tables. It is only compared for equality, so it may wrap.
    generation: AtomicUsize,
    current: Mutex<RouteTable>,
}

impl RoutePublisher {
    /// Creates a publisher of an empty table.
    #[must_use]
    pub fn new() -> Self {
        let table = RouteTable::new();
        let shared = Shared { generation: AtomicUsize::new(0), current: Mutex::new(table.clone()) };
        Self { shared: Arc::new(shared), table, own: Own::default(), retired: Vec::new() }
    }

    /// Creates a publisher of an empty table. It refuses routes to the address and port that `host` is bound to, and a
    /// route for the subnet that `host` owns.
    #[must_use]
    pub fn for_host(host: &Host) -> Self {
        Self { own: Own::new(host), ..Self::new() }
    }

    /// Applies all changes in their order and publishes the new table once, if anything changed.
    ///
    /// Every batch that begins after this call uses the new table. It shares unchanged parts with the previous table,
    /// so the cost depends on the changes and not on the size of the table. There is one exception: a table that has
    /// lost three quarters of its routes is rebuilt to free its memory.
    ///
    /// Only this function frees older tables that no reader holds any more. It does so even if nothing changes.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = RouteChange>) -> Applied {
        let mut next = self.table.clone();
        let applied = next.apply(changes, &self.own);
        if applied.changed > 0 {
            self.publish(next);
        }
        self.retired.retain(RouteTable::is_shared);
        applied
    }

    /// Returns the current table.
    #[must_use]
    pub fn table(&self) -> &RouteTable {
        &self.table
    }

    /// Returns a reader for one more worker.
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
            // The counter changes under the lock, so a lock holder sees the number and the table of the same
            // publication.
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
    /// Returns the newest table. Call it once per batch, so that one table routes the whole batch.
    ///
    /// It costs one atomic load, unless a table was published since the last call.
    #[inline]
    pub fn load(&mut self) -> &RouteTable {
        self.update();
        &self.table
    }

    /// Takes over the newest table and returns true if one was published since the last call.
    ///
    /// Queued packets that an older table routed may have a next hop that no longer exists, see
    /// [`SendQueue::drop_peers`](crate::transmit::SendQueue::drop_peers).
    #[inline]
    pub fn update(&mut self) -> bool {
        let is_newer = self.shared.generation.load(Ordering::Acquire) != self.generation;
        if is_newer {
            self.refresh();
        }
        is_newer
    }

    /// Returns the table that the last [`load`](Self::load) or [`update`](Self::update) found.
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
        // Dropped outside the lock: without a publisher, this may be the last reference to the old table.
        self.table = newest;
    }
}

/// Locks the table. A panic elsewhere cannot leave it half-written, because tables are only moved in whole.
fn lock(current: &Mutex<RouteTable>) -> MutexGuard<'_, RouteTable> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}
