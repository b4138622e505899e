//! Buckets: the results of a few routes as intervals of addresses.

use super::arena::{Arena, Place, kind_of};
use super::{BELOW, leads_below};
use crate::route::next_hops::HopId;

/// The [`advance`](Bucket::advance) of a bucket whose words for places below are for the second half of an address.
pub(super) const TO_END: u32 = 64;

const STARTS: usize = 7;

pub(super) type Buckets = Arena<Bucket, 256>;

/// Intervals of half an address, each with a word.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(32))]
pub(super) struct Bucket {
    /// The first addresses of all intervals but the first one, which has all addresses before them. The rest is
    /// `u64::MAX`.
    starts: [u64; STARTS],
    /// The word of each interval. The rest repeats the last one.
    words: [u32; Self::MOST],
    /// The number of address bits between this place and those below.
    advance: u32,
}

impl Bucket {
    /// The largest number of intervals.
    pub(super) const MOST: usize = STARTS + 1;

    /// Creates a bucket of intervals with these first addresses. The first interval has the addresses before the second
    /// one. Intervals above [`MOST`](Self::MOST) are left out.
    pub(super) fn new(intervals: &[(u64, u32)], advance: u32) -> Self {
        let mut bucket = Self { starts: [u64::MAX; STARTS], words: [HopId::NONE.0; Self::MOST], advance };
        for (to, (start, _)) in bucket.starts.iter_mut().zip(intervals.iter().skip(1)) {
            *to = *start;
        }
        if let Some((_, last)) = intervals.last() {
            bucket.words.fill(*last);
        }
        for (to, (_, word)) in bucket.words.iter_mut().zip(intervals) {
            *to = *word;
        }
        bucket
    }

    /// Returns the word of an address.
    #[inline(always)]
    pub(super) fn word(&self, address: u64) -> u32 {
        // A binary search without branches: they would be unpredictable.
        let mut interval = 0;
        for step in [4, 2, 1] {
            let is_behind = self.starts.get(interval + step - 1).is_some_and(|start| *start <= address);
            interval += usize::from(is_behind) * step;
        }
        self.words.get(interval).copied().unwrap_or(HopId::NONE.0)
    }

    /// Creates a bucket that skips `len` bits, up to `last`, the first and last address of an interval. `word` is the word
    /// behind them, and `other` that of other addresses.
    pub(super) fn skip([first, last]: [u64; 2], len: u8, word: u32, other: u32) -> Self {
        let intervals = [(0, other), (first, word), (last.wrapping_add(1), other)];
        let from = usize::from(first == 0);
        let to = if last == u64::MAX { 2 } else { 3 };
        Self::new(intervals.get(from..to).unwrap_or_default(), len.into())
    }

    /// Returns the first address of the interval that this bucket skips to, the number of bits, and the word behind them,
    /// if it was created by [`skip`](Self::skip).
    pub(super) fn skipped(&self) -> Option<(u64, u8, u32)> {
        let (first, word) = self.intervals().find(|(_, word)| leads_below(*word))?;
        (0 < self.advance && self.advance < TO_END).then_some((first, self.advance as u8, word))
    }

    #[inline(always)]
    pub(super) fn advance(&self) -> u32 {
        self.advance
    }

    /// Returns the first addresses of all intervals with their words. The last one may be repeated.
    pub(super) fn intervals(&self) -> impl Iterator<Item = (u64, u32)> {
        core::iter::once(0).chain(self.starts).zip(self.words)
    }
}

impl Place for Bucket {
    const KIND: u32 = kind_of(BELOW) + 2;

    fn free(next: u32) -> Self {
        Self::new(&[(0, next)], 0)
    }

    fn next_free(&self) -> u32 {
        self.word(0)
    }
}
