//! The lookup structure: a 16-bit trie of pointers, and under each of its slots at most one small piece of memory.
//!
//! ```text
//!  address   a . b . c . d
//!            │   │   └───┴── leaf: everything longer than /16 inside a.b/16, in one slice of words
//!            │   └────────── Branch: a leaf, or the answer
//!            └────────────── Fib: a branch, or the answer
//! ```
//!
//! It is compiled from the [rib](super::rib), one /16 at a time, and only the /16s that changed; the others are shared with
//! the version before. Every slot holds the final answer for its addresses, so a lookup never goes back up.
//!
//! A leaf is made of blocks of 256 answers, one block for the third byte of the address and one more for each /24 with
//! longer routes in it. Most blocks hold few different answers, so they are kept as runs of equal ones behind a bitmap of
//! where runs begin (as in Asai and Ohara's "Poptrie", SIGCOMM 2015): a million routes take 10 MB, which stays in cache and
//! few memory pages, where plain arrays would take 80. Blocks with many runs are plain arrays, which are the fastest then.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::next_hops::HopId;
use super::rib::Node;

const SLOTS: usize = 256;

/// Marks a word of a leaf that is not a [`HopId`] but where in the leaf the block for the last byte begins.
const BELOW: u32 = 1 << 31;

/// The most runs a block keeps as runs: with more it is not worth its while.
const MOST_RUNS: usize = 96;

/// The first word of a block says what it is.
mod block {
    /// 256 answers follow.
    pub(super) const PLAIN: u32 = 0;
    /// A bitmap of 8 words, the number of runs before each of those words in a byte each, and the runs' answers follow.
    pub(super) const RUNS: u32 = 1;
    /// Words before the answers of a block of runs.
    pub(super) const RUNS_HEAD: usize = 11;
}

/// The answers of one table version.
#[derive(Clone)]
pub(super) struct Fib {
    branches: [Option<Arc<Branch>>; SLOTS],
    hops: [HopId; SLOTS],
}

#[derive(Clone)]
struct Branch {
    leaves: [Option<Arc<[u32]>>; SLOTS],
    hops: [HopId; SLOTS],
}

impl Fib {
    pub(super) fn new() -> Self {
        Self { branches: [const { None }; SLOTS], hops: [HopId::NONE; SLOTS] }
    }

    /// The next hop of the longest prefix that holds the address.
    #[inline]
    pub(super) fn longest_match(&self, [a, b, c, d]: [u8; 4]) -> HopId {
        let Some(branch) = at(&self.branches, a) else { return *at(&self.hops, a) };
        let Some(leaf) = at(&branch.leaves, b) else { return *at(&branch.hops, b) };
        let answer = answer(leaf, c);
        if answer & BELOW == 0 {
            return HopId(answer);
        }
        let below = leaf.get((answer & !BELOW) as usize..).unwrap_or_default();
        HopId(self::answer(below, d))
    }

    /// Compiles the /16s that are marked.
    pub(super) fn update(&mut self, rib: &Node, marked: &Marked) {
        for a in (0..=u8::MAX).filter(|a| marked.any_in(*a)) {
            let covering = rib.answer(a, HopId::NONE);
            *at_mut(&mut self.hops, a) = covering;
            let branch = at_mut(&mut self.branches, a);
            match rib.below(a) {
                Some(node) => {
                    let branch = branch.get_or_insert_with(|| Arc::new(Branch::filled(covering)));
                    Arc::make_mut(branch).update(node, covering, |b| marked.contains(a, b));
                }
                None => *branch = None,
            }
        }
    }
}

impl Branch {
    fn filled(hop: HopId) -> Self {
        Self { leaves: [const { None }; SLOTS], hops: [hop; SLOTS] }
    }

    fn update(&mut self, node: &Node, inherited: HopId, marked: impl Fn(u8) -> bool) {
        for b in (0..=u8::MAX).filter(|b| marked(*b)) {
            let covering = node.answer(b, inherited);
            *at_mut(&mut self.hops, b) = covering;
            *at_mut(&mut self.leaves, b) = node.below(b).map(|node| compile(node, covering));
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

/// The leaf for one /16.
fn compile(node: &Node, inherited: HopId) -> Arc<[u32]> {
    let mut answers = node.answers(inherited).map(|hop| hop.0);
    let mut below = Vec::new();
    for (slot, node) in node.all_below() {
        let answer = at_mut(&mut answers, slot);
        let covering = HopId(*answer);
        *answer = BELOW | below.len() as u32;
        push_block(&mut below, &node.answers(covering).map(|hop| hop.0));
    }
    // The blocks below come after the first one, whose length is known only now.
    let first = block_len(&answers) as u32;
    for answer in answers.iter_mut().filter(|answer| **answer & BELOW != 0) {
        *answer += first;
    }
    let mut leaf = Vec::with_capacity(first as usize + below.len());
    push_block(&mut leaf, &answers);
    leaf.extend_from_slice(&below);
    leaf.into()
}

/// The slots where the answer is another than in the slot before.
fn run_starts(answers: &[u32; SLOTS]) -> impl Iterator<Item = (u8, u32)> {
    let before = core::iter::once(None).chain(answers.iter().map(Some));
    let slots = (0..=u8::MAX).zip(answers).zip(before);
    slots.filter(|((_, answer), before)| Some(*answer) != *before).map(|((slot, answer), _)| (slot, *answer))
}

fn block_len(answers: &[u32; SLOTS]) -> usize {
    match run_starts(answers).count() {
        runs @ ..=MOST_RUNS => block::RUNS_HEAD + runs,
        _ => 1 + SLOTS,
    }
}

fn push_block(words: &mut Vec<u32>, answers: &[u32; SLOTS]) {
    let mut starts = [0u32; 8];
    for (slot, _) in run_starts(answers) {
        if let Some(word) = starts.get_mut(usize::from(slot >> 5)) {
            *word |= 1 << (slot & 31);
        }
    }
    let runs: u32 = starts.iter().map(|word| word.count_ones()).sum();
    if runs as usize > MOST_RUNS {
        words.push(block::PLAIN);
        words.extend_from_slice(answers);
        return;
    }
    let mut before = 0;
    let ranks = starts.map(|word| {
        let rank = before as u8;
        before += word.count_ones();
        rank
    });
    let (ranks, _) = ranks.as_chunks::<4>();
    words.push(block::RUNS);
    words.extend_from_slice(&starts);
    words.extend(ranks.iter().map(|four| u32::from_le_bytes(*four)));
    words.extend(run_starts(answers).map(|(_, answer)| answer));
}

/// What the block at the front of `words` answers for a byte.
#[inline]
fn answer(words: &[u32], byte: u8) -> u32 {
    const NONE: &u32 = &HopId::NONE.0;
    let Some((kind, plain)) = words.split_first() else { return *NONE };
    if *kind == block::PLAIN {
        return *plain.get(usize::from(byte)).unwrap_or(NONE);
    }
    let Some((head, runs)) = words.split_first_chunk::<{ block::RUNS_HEAD }>() else { return *NONE };
    let [_, starts @ .., ranks_low, ranks_high] = head;
    let number = byte >> 5;
    let word = starts.get(usize::from(number)).unwrap_or(NONE);
    let ranks = u64::from(*ranks_high) << 32 | u64::from(*ranks_low);
    let begun = ranks >> (8 * u32::from(number)) & 0xff;
    // The runs that begin in this word at or before the byte; there is one at its first slot or in a word before.
    let here = (word & u32::MAX >> (31 - (byte & 31))).count_ones();
    *runs.get((begun as usize + here as usize).wrapping_sub(1)).unwrap_or(NONE)
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
