//! The queue of scheduled events, in the order of time and, at the same time, of insertion.

use alloc::collections::BinaryHeap;
use core::cmp::Ordering;
use core::time::Duration;

#[derive(Debug)]
pub(super) struct Queue<T> {
    heap: BinaryHeap<Scheduled<T>>,
    scheduled: u64,
}

#[derive(Debug)]
struct Scheduled<T> {
    at: Duration,
    number: u64,
    what: T,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { heap: BinaryHeap::new(), scheduled: 0 }
    }

    pub(super) fn push(&mut self, at: Duration, what: T) {
        self.heap.push(Scheduled { at, number: self.scheduled, what });
        self.scheduled += 1;
    }

    pub(super) fn pop(&mut self) -> Option<(Duration, T)> {
        self.heap.pop().map(|next| (next.at, next.what))
    }

    /// Returns the time of the first event.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|next| next.at)
    }
}

/// The order is reversed because the heap returns the greatest item first.
impl<T> Ord for Scheduled<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<T> PartialOrd for Scheduled<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Scheduled<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Scheduled<T> {}
