//! An allocator that counts bytes per thread.
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait; this one only counts and hands on")]

use core::cell::Cell;
use std::alloc::{GlobalAlloc, Layout, System};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

std::thread_local! {
    /// Bytes in use by this thread, and their peak.
    static BYTES: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

fn count(more: i64) {
    // While a thread starts or ends, its counters do not exist.
    let _ = BYTES.try_with(|bytes| {
        let (now, most) = bytes.get();
        bytes.set((now + more, most.max(now + more)));
    });
}

// SAFETY: every call is handed on to the system's allocator, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller keeps the contract of `dealloc`, and the pointer came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both blocks may exist for a moment.
        count(size as i64);
        count(-(layout.size() as i64));
        // SAFETY: the caller keeps the contract of `realloc`, and the pointer came from the system's allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Returns the peak of additional bytes of this thread while `work` ran, and the additional bytes after it.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (T, u64, u64) {
    let (before, _) = BYTES.get();
    BYTES.set((before, before));
    let outcome = work();
    let (after, most) = BYTES.get();
    (outcome, (most - before) as u64, (after - before).max(0) as u64)
}

#[test]
fn the_allocator_counts() {
    let ((), most, after) = peak(|| drop(core::hint::black_box(vec![1u8; 1000])));
    assert_eq!((most, after), (1000, 0));
    let (kept, most, after) = peak(|| vec![1u64; 100]);
    assert_eq!((kept.len(), most, after), (100, 800, 800));
}
