//! The state that all threads of a run share: the phase, the end of the run, and the first failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::side::Side;

/// The current phase. A sender calls [`during`](Self::during), so that a phase cannot end between a send and its count.
#[derive(Default)]
pub(crate) struct Stage {
    phase: RwLock<Phase>,
    /// Sides whose route in use is left alone.
    at_rest: RwLock<[bool; 2]>,
    over: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// The state that a sender sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) fault_free: bool,
    /// The number of changes.
    pub(crate) changes: u64,
}

impl Stage {
    pub(crate) fn set_fault_free(&self, fault_free: bool) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        *phase = Phase { fault_free, changes: phase.changes + 1 };
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something short within one phase.
    pub(crate) fn during<T>(&self, act: impl FnOnce(bool) -> T) -> T {
        act(self.phase.read().unwrap_or_else(PoisonError::into_inner).fault_free)
    }

    /// Returns true if no fault was injected from then until now.
    pub(crate) fn was_fault_free_since(&self, then: Phase) -> bool {
        then.fault_free && then == self.phase()
    }

    /// From now on the route in use is left alone, or no longer. A change of it that had begun is over.
    pub(crate) fn set_at_rest(&self, side: Side, at_rest: bool) {
        self.at_rest.write().unwrap_or_else(PoisonError::into_inner)[side as usize] = at_rest;
    }

    /// Changes the route in use, unless it is left alone.
    pub(crate) fn unless_at_rest<T>(&self, side: Side, change: impl FnOnce() -> T) -> Option<T> {
        let at_rest = self.at_rest.read().unwrap_or_else(PoisonError::into_inner);
        (!at_rest[side as usize]).then(change)
    }

    pub(crate) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Notes what went wrong; the first counts.
    pub(crate) fn fail(&self, what: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    /// # Panics
    /// If anything went wrong in any thread.
    pub(crate) fn check(&self) {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(what) = failure {
            panic!("{what}");
        }
    }
}
