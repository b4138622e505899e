//! The lookup structure: arrays of results, indexed by eight address bits per level and by twice four for the last
//! byte.
//!
//! ```text
//!  address   a . b . c . d
//!            │   │   │   ├┴─ two levels of sixteen results  where a /24 has longer routes in it
//!            │   │   └────── block: 256 results             where a /16 has longer routes in it
//!            │   └────────── page:  256 results
//!            └────────────── 256 pages
//! ```
//!
//! It is compiled from the [rib](super::rib). An update compiles the changed /24s and the /16s and pages that contain
//! them. Every slot holds the final result for its addresses ("leaf pushing"), so a lookup never returns to an upper
//! level. A lookup makes two to five dependent loads.
//!
//! Few routes are longer than /24, and they are usually neighbours. Sixteen results fit into one cache line; 256 would
//! evict other data.
//!
//! Arrays live in segments of 64 KiB, which table versions share by reference count. A change copies a segment, a page
//! and the list of segments. Smaller segments would copy less and need more reference counts.
//!
//! A Poptrie (runs of equal results behind bitmaps) took a sixth of the memory and twice the time, even with a million
//! routes. Its second step depends on the first, which costs more than the cache misses it saves.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hint::select_unpredictable;

use super::next_hops::HopId;
use super::rib::Node;

const SLOTS: usize = 256;

/// The bit of a word that marks the number of an array of the next level instead of a [`HopId`].
const BELOW: u32 = 1 << 31;

/// Returns true if a word is the number of an array of the next level.
#[inline(always)]
fn leads_below(word: u32) -> bool {
    word & BELOW != 0
}

/// The lookup results of one table version.
#[derive(Clone)]
pub(super) struct Fib {
    pages: [Arc<[u32; SLOTS]>; SLOTS],
    arrays: Arrays,
}

/// The arrays below the pages. A word is a [`HopId`], or the number of an array of the next level with [`BELOW`] set.
#[derive(Clone, Default)]
struct Arrays {
    blocks: Arena<256, 64>,
    sixteens: Arena<16, 1024>,
    /// Many /24s contain longer routes.
    are_deep: bool,
}

impl Fib {
    pub(super) fn new() -> Self {
        let empty = Arc::new([HopId::NONE.0; SLOTS]);
        Self { pages: core::array::from_fn(|_| Arc::clone(&empty)), arrays: Arrays::default() }
    }

    /// Returns the next hop of the longest prefix that contains the address.
    #[inline]
    pub(super) fn longest_match(&self, [a, b, c, d]: [u8; 4]) -> HopId {
        let page = at::<Arc<_>>(&self.pages, a);
        let mut word = *at(page, b);
        if leads_below(word) {
            word = self.arrays.blocks.word(word, c);
            if self.arrays.are_deep {
                // The branch is unpredictable, so both results are loaded and one is selected. That halves the time in
                // this case.
                let deeper = leads_below(word);
                let below = self.arrays.sixteens.word(select_unpredictable(deeper, word, BELOW), d >> 4);
                word = select_unpredictable(deeper, below, word);
            } else if leads_below(word) {
                word = self.arrays.sixteens.word(word, d >> 4);
            }
            if leads_below(word) {
                word = self.arrays.sixteens.word(word, d & 15);
            }
        }
        HopId(word)
    }

    /// Compiles the marked /24s.
    pub(super) fn update(&mut self, rib: &Node, marked: &Marked) {
        let nothing = Node::default();
        for (a, blocks) in marked.pages() {
            let node = rib.below(a).unwrap_or(&nothing);
            let answers = node.answers(rib.answer(a, HopId::NONE));
            let page = Arc::make_mut(at_mut(&mut self.pages, a));
            let words = (0..=u8::MAX).zip(page.iter_mut()).zip(answers).zip(blocks);
            for (((b, word), answer), slots) in words.filter(|(_, slots)| !slots.is_empty()) {
                *word = self.arrays.compile_block(*word, node.below(b), answer, slots);
            }
        }
        self.arrays.are_deep = self.arrays.sixteens.in_use > self.arrays.blocks.in_use;
    }

    /// Returns true if few of its arrays are in use. The first few segments do not count.
    pub(super) fn is_sparse(&self) -> bool {
        self.arrays.blocks.is_sparse() || self.arrays.sixteens.is_sparse()
    }
}

impl Arrays {
    /// Returns the word for a /16 with these routes below: a result, or the number of a block of results. `before` is
    /// its previous word. Slots that are not marked keep what is below them.
    fn compile_block(&mut self, before: u32, node: Option<&Node>, covering: HopId, marked: &Slots) -> u32 {
        let Some(node) = node else {
            self.release_block(before);
            return covering.0;
        };
        let mut words = node.answers(covering).map(|hop| hop.0);
        let mut nodes = node.all_below().peekable();
        for ((slot, word), old) in (0..=u8::MAX).zip(&mut words).zip(self.blocks.get(before)) {
            let below = nodes.next_if(|(at, _)| *at == slot).map(|(_, node)| node);
            if !marked.contains(slot) {
                *word = if leads_below(old) { old } else { *word };
            } else if below.is_some() || leads_below(old) {
                *word = self.compile_sixteens(old, below, HopId(*word));
            }
        }
        self.blocks.put(before, &words)
    }

    /// Returns the word for a /24, like [`compile_block`](Self::compile_block).
    fn compile_sixteens(&mut self, before: u32, node: Option<&Node>, covering: HopId) -> u32 {
        let Some(node) = node else {
            self.release_sixteens(before);
            return covering.0;
        };
        let answers = node.answers(covering).map(|hop| hop.0);
        let mut words = self.sixteens.get(before);
        for (word, last) in words.iter_mut().zip(answers.as_chunks::<16>().0) {
            *word = match last {
                [first, rest @ ..] if rest.iter().all(|other| other == first) => {
                    self.sixteens.release(*word);
                    *first
                }
                _ => self.sixteens.put(*word, last),
            };
        }
        self.sixteens.put(before, &words)
    }

    fn release_block(&mut self, word: u32) {
        if leads_below(word) {
            for below in self.blocks.get(word) {
                self.release_sixteens(below);
            }
            self.blocks.release(word);
        }
    }

    fn release_sixteens(&mut self, word: u32) {
        if leads_below(word) {
            for below in self.sixteens.get(word) {
                self.sixteens.release(below);
            }
            self.sixteens.release(word);
        }
    }
}

/// Numbered arrays of one length in segments of `COUNT`. The first word of a free array is the number of the next free
/// one, so no version copies a free list. Free arrays stay allocated until a [sparse](Fib::is_sparse) table is rebuilt.
#[derive(Clone)]
struct Arena<const WORDS: usize, const COUNT: usize> {
    segments: Vec<Arc<[[u32; WORDS]; COUNT]>>,
    in_use: usize,
    /// The first free array, or [`END`].
    free: u32,
}

/// The end of the list of free arrays.
const END: u32 = HopId::NONE.0;

impl<const WORDS: usize, const COUNT: usize> Arena<WORDS, COUNT> {
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "remainders are below what they are divided by")]
    fn word(&self, number: u32, slot: u8) -> u32 {
        let number = (number & !BELOW) as usize;
        match self.segments.get(number / COUNT) {
            Some(segment) => segment[number % COUNT][usize::from(slot) % WORDS],
            None => HopId::NONE.0,
        }
    }

    /// Returns the array with this number, or an array without results if the word is not a number.
    fn get(&self, word: u32) -> [u32; WORDS] {
        let number = (word & !BELOW) as usize;
        let segment = self.segments.get(number / COUNT).filter(|_| leads_below(word));
        segment.and_then(|segment| segment.get(number % COUNT)).copied().unwrap_or([HopId::NONE.0; WORDS])
    }

    /// Writes an array in the place of `before`, or into a free place if `before` is not a number. Returns its number.
    /// Unchanged arrays are not written, because a write copies a shared segment.
    fn put(&mut self, before: u32, words: &[u32; WORDS]) -> u32 {
        if !leads_below(before) {
            let number = self.acquire();
            self.write(number, words);
            return number;
        }
        if self.get(before) != *words {
            self.write(before, words);
        }
        before
    }

    fn write(&mut self, number: u32, words: &[u32; WORDS]) {
        let place = (number & !BELOW) as usize;
        let segment = self.segments.get_mut(place / COUNT).map(Arc::make_mut);
        if let Some(array) = segment.and_then(|segment| segment.get_mut(place % COUNT)) {
            *array = *words;
        }
    }

    fn is_sparse(&self) -> bool {
        super::is_sparse(self.segments.len(), COUNT, self.in_use)
    }

    fn acquire(&mut self) -> u32 {
        if self.free == END {
            let first = (self.segments.len() * COUNT) as u32;
            let mut segment = [[END; WORDS]; COUNT];
            for (array, next) in segment.iter_mut().zip(first + 1..first + COUNT as u32) {
                *array = [next; WORDS];
            }
            self.segments.push(Arc::new(segment));
            self.free = first;
        }
        let number = BELOW | self.free;
        self.free = self.get(number).first().copied().unwrap_or(END);
        self.in_use += 1;
        number
    }

    /// Frees an array. A word that is not a number is ignored.
    fn release(&mut self, word: u32) {
        if !leads_below(word) {
            return;
        }
        self.in_use -= 1;
        if self.in_use == 0 {
            *self = Self::default();
        } else {
            self.write(word, &[self.free; WORDS]);
            self.free = word & !BELOW;
        }
    }
}

impl<const WORDS: usize, const COUNT: usize> Default for Arena<WORDS, COUNT> {
    fn default() -> Self {
        Self { segments: Vec::new(), in_use: 0, free: END }
    }
}

/// The /24s to compile: a set for each /16, where its /8 has any.
pub(super) struct Marked([Option<Box<[Slots; SLOTS]>>; SLOTS]);

/// A set of slots.
#[derive(Clone, Copy)]
struct Slots([u64; 4]);

impl Marked {
    pub(super) fn none() -> Self {
        Self([const { None }; SLOTS])
    }

    /// Marks every /24 that a prefix covers or is part of.
    pub(super) fn mark(&mut self, bits: u32, len: u8) {
        let [.., c, _] = bits.to_be_bytes();
        let slots = if len <= 16 { Slots::ALL } else { Slots::range(c, c | (0xff >> (len - 16).min(8)) as u8) };
        let first = bits >> 16;
        for block in first..first + (0x1_0000 >> len.min(16)) {
            let [.., a, b] = block.to_be_bytes();
            let blocks = at_mut(&mut self.0, a).get_or_insert_with(|| Box::new([Slots::NONE; SLOTS]));
            at_mut(blocks, b).insert(slots);
        }
    }

    fn pages(&self) -> impl Iterator<Item = (u8, &[Slots; SLOTS])> {
        (0..=u8::MAX).zip(&self.0).filter_map(|(a, blocks)| Some((a, &**blocks.as_ref()?)))
    }
}

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
