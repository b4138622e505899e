//! The lookup structures, one for each family. Both are compiled from the [rib](super::rib).
//!
//! A word of either is a lookup result or leads to a place of the next level. Every word holds the final result for its
//! addresses ("leaf pushing"), so a lookup never returns to an upper level.

mod arena;
mod bucket;
mod compile;
pub(super) mod v4;
pub(super) mod v6;

const SLOTS: usize = 256;

/// The bit of a word that marks the number of a place of the next level instead of a [`HopId`](super::next_hops::HopId).
const BELOW: u32 = 1 << 31;

/// Returns true if a word is the number of a place of the next level.
#[inline(always)]
fn leads_below(word: u32) -> bool {
    word & BELOW != 0
}

/// A set of slots.
#[derive(Clone, Copy)]
struct Slots([u64; 4]);

impl Slots {
    const ALL: Self = Self([u64::MAX; 4]);
    const NONE: Self = Self([0; 4]);

    /// Returns the slots from `first` to `last`, both included.
    fn range(first: u8, last: u8) -> Self {
        let mut slots = [0; 4];
        for (word, base) in slots.iter_mut().zip([0, 64, 128, 192]) {
            let [from, to] = [first.max(base), last.min(base + 63)];
            if from <= to {
                *word = (u64::MAX >> (63 - (to - from))) << (from - base);
            }
        }
        Self(slots)
    }

    fn insert(&mut self, other: Self) {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word |= other;
        }
    }

    fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }

    fn contains(&self, slot: u8) -> bool {
        self.0.get(usize::from(slot >> 6)).is_some_and(|word| word >> (slot & 63) & 1 == 1)
    }
}

#[inline]
#[expect(clippy::indexing_slicing, reason = "a u8 is always below 256")]
fn at<T>(slots: &[T; SLOTS], slot: u8) -> &T {
    &slots[usize::from(slot)]
}

#[inline]
#[expect(clippy::indexing_slicing, reason = "a u8 is always below 256")]
fn at_mut<T>(slots: &mut [T; SLOTS], slot: u8) -> &mut T {
    &mut slots[usize::from(slot)]
}
