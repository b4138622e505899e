//! An allocator that counts per thread. A test binary makes it the global one:
//!
//! ```text
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//! ```
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait; this one only counts and hands on")]

use core::cell::Cell;
use core::hint::black_box;
use std::alloc::{GlobalAlloc, Layout, System};

#[derive(Debug)]
pub struct Counting;

std::thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

/// Counts one call that changes the bytes in use by this many.
fn count(bytes: i64) {
    // While a thread starts or ends, its counters do not exist.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    let _ = BYTES.try_with(|count| count.set(count.get() + bytes));
}

// SAFETY: every call is handed on to the system's allocator, with the arguments as they came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as i64 - layout.size() as i64);
        // SAFETY: the caller keeps the contract of `realloc`, and the pointer came from the system's allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller keeps the contract of `dealloc`, and the pointer came from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Returns the number of calls to the allocator by this thread while `work` ran, freeing included.
pub fn allocations(work: impl FnOnce()) -> u64 {
    assert_counting();
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

/// Returns the bytes that this thread allocated while `work` ran, less those it freed. If one thread allocates and
/// another frees, the sum over both is right.
pub fn bytes_kept<T>(work: impl FnOnce() -> T) -> (i64, T) {
    assert_counting();
    let before = BYTES.with(Cell::get);
    let outcome = work();
    (BYTES.with(Cell::get) - before, outcome)
}

/// Asserts that the allocator counts. With another global allocator every test of it would pass.
fn assert_counting() {
    let before = ALLOCATIONS.with(Cell::get);
    drop(black_box(Box::new(black_box(1u8))));
    assert!(ALLOCATIONS.with(Cell::get) > before, "`Counting` is not this binary's global allocator");
}

#[cfg(test)]
#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations(|| drop(black_box(Vec::<u8>::with_capacity(black_box(1))))), 2);
    let mut growing = Vec::with_capacity(1);
    assert!(allocations(|| growing.extend(black_box([1u64, 2, 3, 4, 5]))) > 0);
    assert_eq!(allocations(|| ()), 0);
    let (kept, mut bytes) = bytes_kept(|| black_box(Vec::<u8>::with_capacity(black_box(100))));
    assert_eq!(kept, 100);
    assert_eq!(bytes_kept(|| bytes.reserve_exact(black_box(1000))).0, 900);
    assert_eq!(bytes_kept(|| drop(bytes)).0, -1000);
}
