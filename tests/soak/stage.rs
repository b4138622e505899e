//! What all threads of a run share: whether it is calm, whether it is over, and the first thing that went wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use crate::side::Side;

/// Calm or storm. Whoever sends something does it [`during`](Self::during) one of them, so that nothing sent in the calm can be
/// hit by the fault that ends it without the counts telling.
#[derive(Default)]
pub(crate) struct Stage {
    phase: RwLock<Phase>,
    /// Sides whose route in use is left alone.
    at_rest: RwLock<[bool; 2]>,
    over: AtomicBool,
    failure: Mutex<Option<String>>,
}

/// What a sender sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) calm: bool,
    /// How often it has changed.
    pub(crate) changes: u64,
}

impl Stage {
    pub(crate) fn set_calm(&self, calm: bool) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        *phase = Phase { calm, changes: phase.changes + 1 };
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something short within one phase.
    pub(crate) fn during<T>(&self, act: impl FnOnce(bool) -> T) -> T {
        act(self.phase.read().unwrap_or_else(PoisonError::into_inner).calm)
    }

    /// Whether it was calm from then until now, without an interruption.
    pub(crate) fn was_calm_since(&self, then: Phase) -> bool {
        then.calm && then == self.phase()
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
