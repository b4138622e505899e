//! The lookup structure of IPv4: arrays of results, indexed by eight address bits per level and by twice four for the last
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
//! An update compiles the changed /24s and the /16s and pages that contain them. A lookup makes two to five dependent
//! loads.
//!
//! Few routes are longer than /24, and they are usually neighbours. Sixteen results fit into one cache line; 256 would
//! evict other data.
//!
//! A segment of arrays has 64 KiB. A change copies a segment, a page and the list of segments.
//!
//! A Poptrie (runs of equal results behind bitmaps) took a sixth of the memory and twice the time, even with a million
//! routes. Its second step depends on the first, which costs more than the cache misses it saves.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::hint::select_unpredictable;

use super::arena::Arena;
use super::{BELOW, SLOTS, Slots, at, at_mut, leads_below};
use crate::route::next_hops::HopId;
use crate::route::rib::{Node, View};

/// The lookup results of one table version.
#[derive(Clone)]
pub(in crate::route) struct Fib {
    pages: [Arc<[u32; SLOTS]>; SLOTS],
    arrays: Arrays,
}

/// The arrays below the pages. A word is a [`HopId`], or the number of an array of the next level with [`BELOW`] set.
#[derive(Clone, Default)]
struct Arrays {
    blocks: Arena<[u32; 256], 64>,
    sixteens: Arena<[u32; 16], 1024>,
    /// Many /24s contain longer routes.
    are_deep: bool,
}

impl Fib {
    pub(in crate::route) fn new() -> Self {
        let empty = Arc::new([HopId::NONE.0; SLOTS]);
        Self { pages: core::array::from_fn(|_| Arc::clone(&empty)), arrays: Arrays::default() }
    }

    /// Returns the next hop of the longest prefix that contains the address.
    #[inline]
    pub(in crate::route) fn longest_match(&self, [a, b, c, d]: [u8; 4]) -> HopId {
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
    pub(in crate::route) fn update(&mut self, rib: &Node<u32>, marked: &Marked) {
        let nothing = Node::new();
        for (a, blocks) in marked.pages() {
            let node = rib.view().below(a).unwrap_or(nothing.view());
            let answers = node.answers(rib.view().answer(a, HopId::NONE));
            let page = Arc::make_mut(at_mut(&mut self.pages, a));
            let words = (0..=u8::MAX).zip(page.iter_mut()).zip(answers).zip(blocks);
            for (((b, word), answer), slots) in words.filter(|(_, slots)| !slots.is_empty()) {
                *word = self.arrays.compile_block(*word, node.below(b), answer, slots);
            }
        }
        self.arrays.are_deep = self.arrays.sixteens.in_use() > self.arrays.blocks.in_use();
    }

    /// Returns true if few of its arrays are in use. The first few segments do not count.
    pub(in crate::route) fn is_sparse(&self) -> bool {
        self.arrays.blocks.is_sparse() || self.arrays.sixteens.is_sparse()
    }
}

impl Arrays {
    /// Returns the word for a /16 with these routes below: a result, or the number of a block of results. `before` is
    /// its previous word. Slots that are not marked keep what is below them.
    fn compile_block(&mut self, before: u32, node: Option<View<'_, u32>>, covering: HopId, marked: &Slots) -> u32 {
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
    fn compile_sixteens(&mut self, before: u32, node: Option<View<'_, u32>>, covering: HopId) -> u32 {
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

/// The /24s to compile: a set for each /16, where its /8 has any.
pub(in crate::route) struct Marked([Option<Box<[Slots; SLOTS]>>; SLOTS]);

impl Marked {
    pub(in crate::route) fn none() -> Self {
        Self([const { None }; SLOTS])
    }

    /// Marks every /24 that a prefix covers or is part of.
    pub(in crate::route) fn mark(&mut self, bits: u32, len: u8) {
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
