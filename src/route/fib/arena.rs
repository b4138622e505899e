//! Numbered places of one type in segments of `COUNT`, which table versions share by reference count.
//!
//! A change copies a segment and the list of segments. Smaller segments would copy less and need more reference counts.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{BELOW, leads_below};
use crate::route::next_hops::HopId;

/// The bits of a word that are the number of a place.
const NUMBER: u32 = (1 << 29) - 1;

/// The content of a place: an array of words or a bucket.
pub(super) trait Place: Copy + PartialEq {
    /// The top three bits of the words that lead to such a place, as [`kind_of`] returns them.
    const KIND: u32;

    /// Returns the content of a free place. `next` is the number of the next free one.
    fn free(next: u32) -> Self;

    /// Returns the number that [`free`](Self::free) was given.
    fn next_free(&self) -> u32;
}

/// Returns the kind of the place that a word leads to. A word without [`BELOW`] has a smaller one than any kind.
#[inline(always)]
pub(super) const fn kind_of(word: u32) -> u32 {
    word >> 29
}

impl Place for [u32; 256] {
    const KIND: u32 = kind_of(BELOW);

    fn free(next: u32) -> Self {
        [next; 256]
    }

    fn next_free(&self) -> u32 {
        let [next, ..] = self;
        *next
    }
}

impl Place for [u32; 16] {
    const KIND: u32 = kind_of(BELOW) + 1;

    fn free(next: u32) -> Self {
        [next; 16]
    }

    fn next_free(&self) -> u32 {
        let [next, ..] = self;
        *next
    }
}

/// Places of one type. A free place holds the number of the next free one, so no version copies a free list. Free
/// places stay allocated until a [sparse](Arena::is_sparse) table is rebuilt.
#[derive(Clone)]
pub(super) struct Arena<T, const COUNT: usize> {
    segments: Vec<Arc<[T; COUNT]>>,
    in_use: usize,
    /// The first free place, or [`END`].
    free: u32,
}

/// The end of the list of free places.
const END: u32 = HopId::NONE.0;

impl<const WORDS: usize, const COUNT: usize> Arena<[u32; WORDS], COUNT> {
    /// Returns one word of an array.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "a remainder is below what it is divided by")]
    pub(super) fn word(&self, number: u32, slot: u8) -> u32 {
        match self.place(number) {
            Some(array) => array[usize::from(slot) % WORDS],
            None => HopId::NONE.0,
        }
    }
}

impl<T, const COUNT: usize> Arena<T, COUNT> {
    /// Returns the place that a word leads to.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "a remainder is below what it is divided by")]
    pub(super) fn place(&self, word: u32) -> Option<&T> {
        let number = (word & NUMBER) as usize;
        Some(&self.segments.get(number / COUNT)?[number % COUNT])
    }

    pub(super) fn in_use(&self) -> usize {
        self.in_use
    }

    /// Returns true if few places are in use. The first few segments do not count.
    pub(super) fn is_sparse(&self) -> bool {
        crate::route::is_sparse(self.segments.len(), COUNT, self.in_use)
    }
}

impl<T: Place, const COUNT: usize> Arena<T, COUNT> {
    /// Returns true if a word leads to a place of this arena.
    pub(super) fn has(word: u32) -> bool {
        leads_below(word) && kind_of(word) == T::KIND
    }

    /// Returns the content of the place that a word leads to, or one without results if it leads to none.
    pub(super) fn get(&self, word: u32) -> T {
        self.place(word).filter(|_| Self::has(word)).copied().unwrap_or(T::free(END))
    }

    /// Writes into the place that `before` leads to, or into a free one if it leads to none. Returns the word that leads
    /// there. Unchanged places are not written, because a write copies a shared segment.
    pub(super) fn put(&mut self, before: u32, content: &T) -> u32 {
        if !Self::has(before) {
            let word = self.acquire();
            self.write(word, content);
            return word;
        }
        if self.get(before) != *content {
            self.write(before, content);
        }
        before
    }

    fn write(&mut self, word: u32, content: &T) {
        let number = (word & NUMBER) as usize;
        let segment = self.segments.get_mut(number / COUNT).map(Arc::make_mut);
        if let Some(place) = segment.and_then(|segment| segment.get_mut(number % COUNT)) {
            *place = *content;
        }
    }

    fn acquire(&mut self) -> u32 {
        if self.free == END {
            let first = (self.segments.len() * COUNT) as u32;
            let mut segment = [T::free(END); COUNT];
            for (place, next) in segment.iter_mut().zip(first + 1..first + COUNT as u32) {
                *place = T::free(next);
            }
            self.segments.push(Arc::new(segment));
            self.free = first;
        }
        let word = T::KIND << 29 | self.free;
        self.free = self.get(word).next_free();
        self.in_use += 1;
        word
    }

    /// Frees a place. A word that leads to none is ignored.
    pub(super) fn release(&mut self, word: u32) {
        if !Self::has(word) {
            return;
        }
        self.in_use -= 1;
        if self.in_use == 0 {
            *self = Self::default();
        } else {
            self.write(word, &T::free(self.free));
            self.free = word & NUMBER;
        }
    }
}

impl<T, const COUNT: usize> Default for Arena<T, COUNT> {
    fn default() -> Self {
        Self { segments: Vec::new(), in_use: 0, free: END }
    }
}
