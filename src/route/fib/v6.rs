//! The lookup structure of IPv6: arrays of 256 results where many routes are near each other, and trees of buckets where
//! a few are.
//!
//! ```text
//!  address   fd00:96 | 01 : 7a | …
//!            │         │    │    └ buckets: the half of the address is compared with the edges of the routes
//!            │         │    └───── array:   one of 256 words where more routes share what is before
//!            │         └────────── array
//!            └──────────────────── the bytes that all routes share are compared at once
//! ```
//!
//! Bytes that all routes below an array share are skipped by a bucket of one interval, so a network far from others
//! costs one comparison and not one array for each byte. An update compiles the changed places and what contains them.
//!
//! A lookup in a large table waits for memory and for wrong predictions, so buckets are small, and their binary search
//! has no branches. Buckets of 10 and 20 intervals took more instructions and more cache misses.

use super::arena::{Arena, Place, kind_of};
use super::bucket::{Buckets, TO_END};
use super::compile::{Before, Path, Scope};
use super::leads_below;
use crate::route::next_hops::HopId;
use crate::route::rib::{Bits, Node, Prefix, View};

pub(super) type Array = [u32; 256];

/// The distance of the first byte of half an address from its end, in bits.
const LAST_SHIFT: u32 = 56;

/// The lookup results of one table version.
#[derive(Clone)]
pub(in crate::route) struct Fib {
    root: Root,
    places: Places,
}

/// The bytes that all routes but the default one share, and what is behind them.
#[derive(Clone, Copy)]
struct Root {
    bits: u128,
    mask: u128,
    /// The number of set bits in `mask`.
    depth: u8,
    /// The result of addresses with other bytes.
    other: HopId,
    word: u32,
}

/// A word is a [`HopId`], or leads to a place of an arena.
#[derive(Clone, Default)]
pub(super) struct Places {
    pub(super) arrays: Arena<Array, 64>,
    pub(super) buckets: Buckets,
}

impl Fib {
    pub(in crate::route) fn new() -> Self {
        let root = Root { bits: 0, mask: 0, depth: 0, other: HopId::NONE, word: HopId::NONE.0 };
        Self { root, places: Places::default() }
    }

    /// Returns the next hop of the longest prefix that contains the address.
    #[inline]
    pub(in crate::route) fn longest_match(&self, address: u128) -> HopId {
        let Root { bits, mask, mut depth, other, mut word } = self.root;
        if (address ^ bits) & mask != 0 {
            return other;
        }
        let [high, low] = [(address >> 64) as u64, address as u64];
        if depth < 64 {
            word = self.places.longest_match(word, high, depth);
            if !leads_below(word) {
                return HopId(word);
            }
            depth = 64;
        }
        HopId(self.places.longest_match_low(word, low, depth))
    }

    /// Compiles what the changed prefixes cover or are part of.
    pub(in crate::route) fn update(&mut self, rib: &Node<u128>, changed: &mut [Prefix<u128>]) {
        changed.sort_unstable();
        let Root { bits, depth, word, .. } = self.root;
        let (root, below) = Root::of(rib);
        let before = Before { word, path: Path { bits, len: depth } };
        let path = Path { bits: root.bits, len: root.depth };
        let before = self.places.approach(before, path);
        let scope = Scope { all: false, changed, path: Path::default() }.narrow(path);
        let word = self.places.compile(before, Some(below), root.other, scope);
        self.root = Root { word, ..root };
    }

    /// Returns true if few of its places are in use. The first few segments do not count.
    pub(in crate::route) fn is_sparse(&self) -> bool {
        self.places.arrays.is_sparse() || self.places.buckets.is_sparse()
    }
}

impl Places {
    /// Returns the result for an address with this half. `depth` is the length of the path to the place of `word`. If the
    /// half is the first one, the result may be a word for a place of the second half.
    #[inline(always)]
    fn longest_match(&self, mut word: u32, half: u64, depth: u8) -> u32 {
        // Moves the byte behind the path to the end of the half.
        let mut shift = LAST_SHIFT - u32::from(depth % 64);
        // Every place is deeper than the one before, so the loop ends.
        while leads_below(word) {
            if kind_of(word) == Array::KIND {
                word = self.arrays.word(word, (half >> (shift % 64)) as u8);
                if shift == 0 {
                    break;
                }
                shift -= 8;
            } else {
                let Some(bucket) = self.buckets.place(word) else { return HopId::NONE.0 };
                word = bucket.word(half);
                let advance = bucket.advance();
                if advance == TO_END {
                    break;
                }
                shift = shift.wrapping_sub(advance);
            }
        }
        word
    }

    /// Returns the result of [`longest_match`](Self::longest_match) for the second half.
    #[inline(never)]
    fn longest_match_low(&self, word: u32, half: u64, depth: u8) -> u32 {
        self.longest_match(word, half, depth)
    }
}

impl Root {
    /// Returns the root without its word, and the routes behind it.
    fn of(rib: &Node<u128>) -> (Self, View<'_, u128>) {
        let (mut bits, mut depth, mut below) = (0, 0, rib.view());
        while let Some((slot, next)) = below.only_node() {
            bits = bits.with(slot, depth);
            depth += 8;
            below = next;
        }
        let other = rib.view().exact(Prefix { bits: 0, len: 0 }).unwrap_or(HopId::NONE);
        (Self { bits, mask: mask_of(depth), depth, other, word: other.0 }, below)
    }
}

/// Returns a mask of the first `len` bits.
pub(super) fn mask_of(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}
