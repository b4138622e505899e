//! Buckets: the results of a few routes as intervals of addresses.

use super::arena::{Place, kind_of};
use super::{BELOW, leads_below};
use crate::route::next_hops::HopId;

/// Intervals of the next 64 address bits, each with a word. The search is a sum of comparisons without branches.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Bucket<const STARTS: usize, const WORDS: usize> {
    /// The first addresses of all intervals but the first one, which has all addresses before them. The rest is
    /// `u64::MAX`.
    starts: [u64; STARTS],
    /// The word of each interval. The rest repeats the last one.
    words: [u32; WORDS],
    /// The number of address bits that a word for a place below leaves out.
    advance: u32,
}

/// The number of address bits that a bucket compares.
pub(super) const FULL_STEP: u32 = 64;

/// A bucket of one cache line.
pub(super) type Small = Bucket<4, 5>;

/// A bucket of four cache lines.
pub(super) type Large = Bucket<20, 21>;

impl<const STARTS: usize, const WORDS: usize> Bucket<STARTS, WORDS> {
    /// The largest number of intervals.
    pub(super) const MOST: usize = WORDS;

    /// Creates a bucket of intervals with these first addresses. The first interval has the addresses before the second
    /// one. Intervals above [`MOST`](Self::MOST) are left out.
    pub(super) fn new(intervals: &[(u64, u32)], advance: u32) -> Self {
        let mut bucket = Self { starts: [u64::MAX; STARTS], words: [HopId::NONE.0; WORDS], advance };
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
        let interval = self.starts.iter().map(|start| usize::from(*start <= address)).sum::<usize>();
        self.words.get(interval).copied().unwrap_or(HopId::NONE.0)
    }

    /// Returns the address bits that this bucket skips with their number, and the word behind them, if it was created by
    /// [`skip`](Self::skip).
    pub(super) fn skipped(&self) -> Option<(u64, u8, u32)> {
        let (at, word) = self.words.iter().enumerate().find(|(_, word)| leads_below(**word))?;
        let bits = at.checked_sub(1).map_or(Some(0), |at| self.starts.get(at).copied())?;
        (self.advance < FULL_STEP).then_some((bits, self.advance as u8, *word))
    }

    /// Creates a bucket that skips `len` bits if they are the first ones of `bits`. `word` is the word behind them, and
    /// `other` that of other addresses. `len` is below [`FULL_STEP`].
    pub(super) fn skip(bits: u64, len: u8, word: u32, other: u32) -> Self {
        let end = bits.checked_add(u64::MAX.checked_shr(len.into()).unwrap_or(0)).and_then(|last| last.checked_add(1));
        let [before, at] = [(0, other), (bits, word)];
        let behind = end.map(|end| (end, other));
        let intervals = [Some(before).filter(|_| bits > 0), Some(at), behind];
        let mut list = [at; 3];
        let mut len_of_list = 0;
        for (to, interval) in list.iter_mut().zip(intervals.into_iter().flatten()) {
            *to = interval;
            len_of_list += 1;
        }
        Self::new(list.get(..len_of_list).unwrap_or_default(), len.into())
    }

    #[inline(always)]
    pub(super) fn advance(&self) -> u32 {
        self.advance
    }

    /// Returns the words of all intervals. The last one may be repeated.
    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }
}

impl Place for Small {
    const KIND: u32 = kind_of(BELOW) + 2;

    fn free(next: u32) -> Self {
        Self::new(&[(0, next)], 0)
    }

    fn next_free(&self) -> u32 {
        self.word(0)
    }
}

impl Place for Large {
    const KIND: u32 = kind_of(BELOW) + 3;

    fn free(next: u32) -> Self {
        Self::new(&[(0, next)], 0)
    }

    fn next_free(&self) -> u32 {
        self.word(0)
    }
}
