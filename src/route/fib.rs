//! The lookup structure: 256 answers for each byte of an address but the first two, in plain arrays.
//!
//! ```text
//!  address   a . b . c . d
//!            │   │   │   └── block: answers                  where a /24 has longer routes in it
//!            │   │   └────── block: answers, or block below  where a /16 has longer routes in it
//!            │   └────────── page:  answers, or block below
//!            └────────────── 256 pages
//! ```
//!
//! It is compiled from the [rib](super::rib), one /16 at a time, and only those that changed. Every slot holds the final
//! answer for its addresses ("leaf pushing"), so a lookup never goes back up: two to four loads that depend on one another.
//!
//! Blocks live in segments of 64, which versions share by reference count: a change copies one segment of 64 KiB, one page and
//! the list of segments. Smaller segments would copy less and count more.
//!
//! Runs of equal answers behind bitmaps (a Poptrie) took a sixth of the memory and twice the time, with a million routes too:
//! their second step depends on the first and costs more than the cache misses it saves.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::next_hops::HopId;
use super::rib::Node;

const SLOTS: usize = 256;

/// The bit of a word that says it is not a [`HopId`] but the number of a block.
const BLOCK: u32 = 1 << 31;

/// 256 words: each a [`HopId`], or with [`BLOCK`] the number of a block below.
type Block = [u32; SLOTS];

/// Blocks in a segment.
const SEGMENT: usize = 64;

/// The answers of one table version.
#[derive(Clone)]
pub(super) struct Fib {
    pages: [Arc<Block>; SLOTS],
    blocks: Blocks,
}

impl Fib {
    pub(super) fn new() -> Self {
        let empty = Arc::new([HopId::NONE.0; SLOTS]);
        Self { pages: core::array::from_fn(|_| Arc::clone(&empty)), blocks: Blocks::default() }
    }

    /// The next hop of the longest prefix that holds the address.
    #[inline]
    pub(super) fn longest_match(&self, [a, b, c, d]: [u8; 4]) -> HopId {
        let page = at::<Arc<Block>>(&self.pages, a);
        let mut word = *at(page, b);
        if word & BLOCK != 0 {
            word = self.blocks.word(word, c);
            if word & BLOCK != 0 {
                word = self.blocks.word(word, d);
            }
        }
        HopId(word)
    }

    /// Compiles the /16s that are marked.
    pub(super) fn update(&mut self, rib: &Node, marked: &Marked) {
        let nothing = Node::default();
        for a in (0..=u8::MAX).filter(|a| marked.any_in(*a)) {
            let node = rib.below(a).unwrap_or(&nothing);
            let answers = node.answers(rib.answer(a, HopId::NONE));
            let page = Arc::make_mut(at_mut(&mut self.pages, a));
            for ((b, word), answer) in (0..=u8::MAX).zip(page).zip(answers).filter(|((b, _), _)| marked.contains(a, *b))
            {
                *word = self.blocks.compile(*word, node.below(b), answer);
            }
        }
    }
}

/// Which /16s are to be compiled.
pub(super) struct Marked([[u64; 4]; SLOTS]);

impl Marked {
    pub(super) fn none() -> Self {
        Self([[0; 4]; SLOTS])
    }

    /// Marks every /16 that a prefix covers or is part of.
    pub(super) fn mark(&mut self, bits: u32, len: u8) {
        let first = bits >> 16;
        for number in first..first + (0x1_0000 >> len.min(16)) {
            let [.., a, b] = number.to_be_bytes();
            if let Some(word) = at_mut(&mut self.0, a).get_mut(usize::from(b >> 6)) {
                *word |= 1 << (b & 63);
            }
        }
    }

    fn any_in(&self, a: u8) -> bool {
        *at(&self.0, a) != [0; 4]
    }

    fn contains(&self, a: u8, b: u8) -> bool {
        at(&self.0, a).get(usize::from(b >> 6)).is_some_and(|word| word >> (b & 63) & 1 == 1)
    }
}

/// All blocks, by number.
#[derive(Clone, Default)]
struct Blocks {
    segments: Vec<Arc<[Block; SEGMENT]>>,
    /// For each segment, a bit for each block in use.
    used: Vec<u64>,
    /// No segment before this one has a block to spare.
    spare: usize,
}

impl Blocks {
    #[inline]
    fn word(&self, leading: u32, byte: u8) -> u32 {
        match self.segments.get((leading & !BLOCK) as usize / SEGMENT) {
            Some(segment) => *at(in_segment(segment, leading), byte),
            None => HopId::NONE.0,
        }
    }

    /// The word for a slot that `before` stood in and that now has these routes below: an answer, or a block of them. Blocks
    /// that were there are used again, and those that stay as they were are not written to, so as not to be copied.
    fn compile(&mut self, before: u32, node: Option<&Node>, covering: HopId) -> u32 {
        let Some(node) = node else {
            self.release(before);
            return covering.0;
        };
        let number = if before & BLOCK == 0 { self.acquire() } else { before };
        let old = self.get(number);
        let mut words = node.answers(covering).map(|hop| hop.0);
        let mut nodes = node.all_below().peekable();
        for ((slot, word), old) in (0..=u8::MAX).zip(&mut words).zip(old) {
            let below = nodes.next_if(|(at, _)| *at == slot).map(|(_, node)| node);
            if below.is_some() || old & BLOCK != 0 {
                *word = self.compile(old, below, HopId(*word));
            }
        }
        if words != old {
            self.set(number, &words);
        }
        number
    }

    fn get(&self, number: u32) -> Block {
        match self.segments.get((number & !BLOCK) as usize / SEGMENT) {
            Some(segment) => *in_segment(segment, number),
            None => [HopId::NONE.0; SLOTS],
        }
    }

    #[expect(clippy::indexing_slicing, reason = "a remainder of 64 is below 64")]
    fn set(&mut self, number: u32, words: &Block) {
        if let Some(segment) = self.segments.get_mut((number & !BLOCK) as usize / SEGMENT) {
            Arc::make_mut(segment)[number as usize % SEGMENT] = *words;
        }
    }

    /// A block that nobody uses, with no answers in it.
    fn acquire(&mut self) -> u32 {
        while self.used.get(self.spare) == Some(&u64::MAX) {
            self.spare += 1;
        }
        if self.spare == self.segments.len() {
            self.segments.push(Arc::new([[HopId::NONE.0; SLOTS]; SEGMENT]));
            self.used.push(0);
        }
        let used = self.used.get_mut(self.spare);
        let free = used.map_or(0, |used| {
            let free = used.trailing_ones();
            *used |= 1 << free;
            free
        });
        let number = BLOCK | (self.spare * SEGMENT) as u32 | free;
        self.set(number, &[HopId::NONE.0; SLOTS]);
        number
    }

    /// Gives a block back, and all below it; an answer needs nothing done.
    fn release(&mut self, word: u32) {
        if word & BLOCK == 0 {
            return;
        }
        for below in self.get(word) {
            self.release(below);
        }
        let segment = (word & !BLOCK) as usize / SEGMENT;
        if let Some(used) = self.used.get_mut(segment) {
            *used &= !(1 << (word % SEGMENT as u32));
        }
        self.spare = self.spare.min(segment);
        while self.used.last() == Some(&0) {
            self.used.pop();
            self.segments.pop();
        }
        self.spare = self.spare.min(self.segments.len());
    }
}

#[inline]
#[expect(clippy::indexing_slicing, reason = "a remainder of 64 is below 64")]
fn in_segment(segment: &[Block; SEGMENT], number: u32) -> &Block {
    &segment[number as usize % SEGMENT]
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
