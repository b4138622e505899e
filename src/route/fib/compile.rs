//! The compiler of the IPv6 lookup structure.

use alloc::vec::Vec;

use super::arena::Arena;
use super::bucket::{Bucket, Buckets, TO_END};
use super::v6::{Array, Places, mask_of};
use super::{Slots, leads_below};
use crate::route::next_hops::HopId;
use crate::route::rib::{Bits, Prefix, View};

/// Up to this number of routes are compiled to buckets.
const FEW: usize = 64;

/// More slots than these are compiled to an array: it needs one step.
const DENSE: usize = 40;

/// The first bits of the addresses of a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) bits: u128,
    pub(super) len: u8,
}

impl Path {
    fn then(self, slot: u8) -> Self {
        Self { bits: self.bits.with(slot, self.len), len: self.len + 8 }
    }

    /// Returns the path of the next `len` bits of an address whose half in which this path ends is given.
    fn then_half(self, half: u64, len: u8) -> Self {
        let bits = if self.is_low() { self.bits & mask_of(64) | u128::from(half) } else { u128::from(half) << 64 };
        Self { bits, len: self.len + len }
    }

    /// Returns true if the bits behind this path are in the second half of an address.
    fn is_low(self) -> bool {
        self.len >= 64
    }

    /// Returns the half of an address in which this path ends.
    fn half(self, bits: u128) -> u64 {
        if self.is_low() { bits as u64 } else { (bits >> 64) as u64 }
    }

    /// Returns the path to the end of the half in which this path ends.
    fn to_end(self, half: u64) -> Self {
        Self { len: if self.is_low() { 128 } else { 64 }, ..self.then_half(half, 0) }
    }

    fn contains(self, other: Self) -> bool {
        self.len <= other.len && (self.bits ^ other.bits) & mask_of(self.len) == 0
    }

    fn slot_at(self, depth: u8) -> u8 {
        (self.bits.wrapping_shl(depth.into())).first()
    }
}

/// The word for the addresses of a path in the version before. The path may be longer than that of the place that is
/// compiled now.
#[derive(Clone, Copy)]
pub(super) struct Before {
    pub(super) word: u32,
    pub(super) path: Path,
}

impl Before {
    const NOTHING: Self = Self { word: HopId::NONE.0, path: Path { bits: 0, len: 0 } };
}

/// The part of a place to compile.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// All of it, because a changed prefix covers it, or because nothing is left of the version before.
    pub(super) all: bool,
    /// The changed prefixes inside, sorted, if it is not all.
    pub(super) changed: &'a [Prefix<u128>],
    /// The place.
    pub(super) path: Path,
}

impl Scope<'_> {
    /// Returns the part of a place below.
    pub(super) fn narrow(self, path: Path) -> Self {
        let covers = |prefix: &Prefix<u128>| Path { bits: prefix.bits, len: prefix.len }.contains(path);
        let last = path.bits | !mask_of(path.len);
        let from = self.changed.partition_point(|prefix| (prefix.bits, prefix.len) <= (path.bits, path.len));
        let to = self.changed.partition_point(|prefix| prefix.bits <= last);
        let all = self.all || self.changed.iter().any(covers);
        Self { all, changed: self.changed.get(from..to).unwrap_or_default(), path }
    }
}

impl Places {
    /// Returns the word for a place with these routes. `inherited` is the result of the covering prefix. Takes over the
    /// places below `before` that it can use, and releases the others.
    pub(super) fn compile(
        &mut self,
        before: Before,
        below: Option<View<'_, u128>>,
        inherited: HopId,
        scope: Scope<'_>,
    ) -> u32 {
        let Some(below) = below else {
            self.release(before.word);
            return inherited.0;
        };
        let mut dense = below;
        while let Some((_, next)) = dense.only_node() {
            dense = next;
        }
        if dense.width() <= DENSE && below.count(FEW) <= FEW {
            return self.compile_buckets(before, below, inherited, scope);
        }
        self.compile_skip(before, below, inherited, scope)
    }

    /// Compiles routes to an array, and a bucket before it if they share their first bytes.
    fn compile_skip(&mut self, before: Before, below: View<'_, u128>, inherited: HopId, scope: Scope<'_>) -> u32 {
        let (mut path, mut below) = (scope.path, below);
        while let Some((slot, next)) = below.only_node().filter(|_| path.len % 64 < 56) {
            (path, below) = (path.then(slot), next);
        }
        let len = path.len - scope.path.len;
        if len == 0 {
            return self.compile_array(before, below, inherited, scope);
        }
        let interval = [path.bits, path.bits | !mask_of(path.len)].map(|bits| scope.path.half(bits));
        let here = self.skipped(before).filter(|skipped| before.path == scope.path && skipped.path == path);
        let (place, before) = match here {
            Some(skipped) => (before.word, skipped),
            None => (HopId::NONE.0, self.approach(before, path)),
        };
        let word = self.compile(before, Some(below), inherited, scope.narrow(path));
        self.buckets.put(place, &Bucket::skip(interval, len, word, inherited.0))
    }

    fn compile_array(&mut self, mut before: Before, below: View<'_, u128>, inherited: HopId, scope: Scope<'_>) -> u32 {
        let Scope { path, mut changed, .. } = scope;
        let mut place = HopId::NONE.0;
        if before.path == path && Arena::<Array, 64>::has(before.word) {
            (place, before) = (before.word, Before::NOTHING);
        } else if before.path == path {
            before = self.open(before);
        }
        let has_place = leads_below(place);
        let [mut covered, mut touched] = [if scope.all { Slots::ALL } else { Slots::NONE }; 2];
        for prefix in changed {
            let slot = Path { bits: prefix.bits, len: prefix.len }.slot_at(path.len);
            if prefix.len <= path.len + 8 {
                covered.insert(Slots::range(slot, slot | (0xff_u32 >> (prefix.len - path.len)) as u8));
            }
            touched.insert(Slots::range(slot, slot));
        }
        touched.insert(covered);
        let answers = below.answers(inherited);
        let mut words = self.arrays.get(place);
        let mut all_below = below.all_below().peekable();
        for ((slot, word), answer) in (0..=u8::MAX).zip(&mut words).zip(answers) {
            let below = all_below.next_if(|(at, _)| *at == slot).map(|(_, below)| below);
            let path = path.then(slot);
            let count = changed.partition_point(|prefix| prefix.bits <= path.bits | !mask_of(path.len));
            let inside;
            (inside, changed) = changed.split_at_checked(count).unwrap_or_default();
            if has_place && !touched.contains(slot) {
                continue;
            }
            let (before, all) = if has_place {
                (Before { word: *word, path }, covered.contains(slot))
            } else if leads_below(before.word) && path.contains(before.path) {
                (core::mem::replace(&mut before, Before::NOTHING), covered.contains(slot))
            } else {
                (Before::NOTHING, true)
            };
            *word = self.compile(before, below, answer, Scope { all, changed: if all { &[] } else { inside }, path });
        }
        self.release(before.word);
        self.arrays.put(place, &words)
    }

    /// Compiles a few routes to a tree of buckets.
    fn compile_buckets(&mut self, before: Before, below: View<'_, u128>, inherited: HopId, scope: Scope<'_>) -> u32 {
        let path = scope.path;
        let mut old = Old::default();
        if before.path == path && Buckets::has(before.word) && self.skipped(before).is_none() {
            self.list(before.word, 0, &mut old);
        } else {
            self.release(before.word);
        }
        let mut intervals = Vec::with_capacity(32);
        for Interval { start, hop, is_deeper } in Interval::all(below, inherited, path) {
            if !is_deeper {
                intervals.push((start, hop.0));
                continue;
            }
            let from = path.len;
            let path = path.to_end(start);
            let word = old.take_deeper(start);
            let mut scope = scope.narrow(path);
            scope.all |= !leads_below(word);
            if scope.all || !scope.changed.is_empty() {
                let mut routes = Some(below);
                for depth in (from..path.len).step_by(8) {
                    routes = routes.and_then(|routes| routes.below(path.slot_at(depth)));
                }
                intervals.push((start, self.compile(Before { word, path }, routes, hop, scope)));
            } else {
                intervals.push((start, word));
            }
        }
        for (_, word) in core::mem::take(&mut old.deeper) {
            self.release(word);
        }
        let word = self.put_intervals(&intervals, &mut old);
        for word in old.leaves.iter().map(|(_, word)| *word).chain(old.inner) {
            self.buckets.release(word);
        }
        word
    }

    /// Puts intervals into buckets, in the places of old ones as far as possible. The edges of the old buckets stay, so
    /// that most of them are unchanged.
    fn put_intervals(&mut self, intervals: &[(u64, u32)], old: &mut Old) -> u32 {
        if let [(_, word)] = intervals {
            return *word;
        }
        let mut leaves = Vec::new();
        let mut rest = intervals;
        if old.leaves.len() > intervals.len() / 3 + 4 {
            old.leaves.drain(..).for_each(|(_, word)| self.buckets.release(word));
        }
        let mut old_leaves = core::mem::take(&mut old.leaves).into_iter().peekable();
        while !rest.is_empty() {
            let (_, mut place) = old_leaves.next().unwrap_or((0, HopId::NONE.0));
            let end = old_leaves.peek().map(|(start, _)| *start);
            let count = end.map_or(rest.len(), |end| rest.partition_point(|(start, _)| *start < end));
            let (these, others) = rest.split_at_checked(count).unwrap_or_default();
            rest = others;
            // Buckets that overflow are halved. New ones are filled.
            let most = if leads_below(place) {
                these.len().div_ceil(these.len().div_ceil(Bucket::MOST).max(1))
            } else {
                Bucket::MOST
            };
            for these in these.chunks(most.max(1)) {
                let Some((start, _)) = these.first() else { continue };
                leaves.push((*start, self.buckets.put(place, &Bucket::new(these, TO_END))));
                place = HopId::NONE.0;
            }
            self.buckets.release(place);
        }
        old.leaves = old_leaves.collect();
        let mut old_inner = core::mem::take(&mut old.inner).into_iter();
        let mut level = leaves;
        while level.len() > 1 {
            let inner = level.chunks(Bucket::MOST).map(|these| {
                let place = old_inner.next().unwrap_or(HopId::NONE.0);
                let start = these.first().map_or(0, |(start, _)| *start);
                (start, self.buckets.put(place, &Bucket::new(these, 0)))
            });
            level = inner.collect();
        }
        old.inner = old_inner.collect();
        level.first().map_or(HopId::NONE.0, |(_, word)| *word)
    }

    /// Lists the buckets of a tree, and what is below them.
    fn list(&self, word: u32, start: u64, old: &mut Old) {
        let bucket = self.buckets.get(word);
        let mut last = HopId::NONE.0;
        let is_inner = bucket.advance() == 0;
        for (at, (first, below)) in bucket.intervals().enumerate() {
            // The last word of a bucket may be repeated.
            if leads_below(below) && below != last {
                let first = if at == 0 { start } else { first };
                if is_inner {
                    self.list(below, first, old);
                } else {
                    old.deeper.push((first, below));
                }
            }
            last = below;
        }
        if is_inner {
            old.inner.push(word);
        } else {
            old.leaves.push((start, word));
        }
    }

    /// Returns the part of `before` that a place with this path can take over. Releases the rest.
    pub(super) fn approach(&mut self, mut before: Before, path: Path) -> Before {
        while leads_below(before.word) && !path.contains(before.path) {
            if !before.path.contains(path) {
                self.release(before.word);
                return Before::NOTHING;
            }
            if Arena::<Array, 64>::has(before.word) {
                let words = self.arrays.get(before.word);
                let next = path.slot_at(before.path.len);
                for (slot, word) in (0..=u8::MAX).zip(words) {
                    if slot != next {
                        self.release(word);
                    }
                }
                self.arrays.release(before.word);
                let word = words.get(usize::from(next)).copied().unwrap_or(HopId::NONE.0);
                before = Before { word, path: before.path.then(next) };
            } else {
                before = self.open(before);
            }
        }
        before
    }

    /// Returns what is behind a bucket that skips bits, and releases the bucket. Releases any other place with all below
    /// it.
    fn open(&mut self, before: Before) -> Before {
        match self.skipped(before) {
            Some(skipped) => {
                self.buckets.release(before.word);
                skipped
            }
            None => {
                self.release(before.word);
                Before::NOTHING
            }
        }
    }

    /// Returns what is behind a bucket that skips bits.
    fn skipped(&self, before: Before) -> Option<Before> {
        let bucket = self.buckets.place(before.word).filter(|_| Buckets::has(before.word))?;
        let (bits, len, word) = bucket.skipped()?;
        Some(Before { word, path: before.path.then_half(bits, len) })
    }

    /// Releases a place with all below it.
    fn release(&mut self, word: u32) {
        if leads_below(word) {
            self.release_below(word);
            self.arrays.release(word);
            self.buckets.release(word);
        }
    }

    /// Releases all places below a place.
    fn release_below(&mut self, word: u32) {
        if Arena::<Array, 64>::has(word) {
            self.arrays.get(word).into_iter().for_each(|word| self.release(word));
        } else if Buckets::has(word) {
            let mut last = HopId::NONE.0;
            for (_, word) in self.buckets.get(word).intervals() {
                // The last word of a bucket may be repeated.
                if word != last {
                    self.release(word);
                }
                last = word;
            }
        }
    }
}

/// Addresses with one result.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Interval {
    /// The half of the first address.
    start: u64,
    /// The result by the routes that end in this half.
    hop: HopId,
    /// Set if there are longer routes, all with this half.
    is_deeper: bool,
}

/// The buckets of a tree before a change.
#[derive(Default)]
struct Old {
    /// The buckets with results, with their first address.
    leaves: Vec<(u64, u32)>,
    /// The buckets that lead to other buckets.
    inner: Vec<u32>,
    /// The words for longer routes, with their address.
    deeper: Vec<(u64, u32)>,
}

impl Old {
    /// Returns the word for longer routes at an address, which is then no longer listed.
    fn take_deeper(&mut self, start: u64) -> u32 {
        match self.deeper.binary_search_by_key(&start, |(start, _)| *start) {
            Ok(at) => {
                self.deeper.get_mut(at).map_or(HopId::NONE.0, |(_, word)| core::mem::replace(word, HopId::NONE.0))
            }
            Err(_) => HopId::NONE.0,
        }
    }
}

impl Interval {
    /// Returns the intervals of routes, in the order of their addresses. Neighbours have different results.
    fn all(below: View<'_, u128>, inherited: HopId, path: Path) -> Vec<Self> {
        let mut routes = Vec::with_capacity(32);
        let before = if path.is_low() { 64 } else { 0 };
        below.for_each(path.bits, path.len, &mut |Prefix { bits, len }, hop| {
            routes.push((path.half(bits), len - before, hop));
        });
        routes.sort_unstable_by_key(|(start, len, _)| (*start, *len));
        let mut intervals = Vec::with_capacity(2 * routes.len() + 1);
        let mut add = |start, hop, is_deeper| {
            let new = Self { start, hop, is_deeper };
            if intervals.last().is_some_and(|last: &Self| last.start == start) {
                intervals.pop();
            }
            if intervals.last().is_none_or(|last| last.is_deeper || is_deeper || last.hop != hop) {
                intervals.push(new);
            }
        };
        add(0, inherited, false);
        // The routes that cover the current address, shortest first, with their last address.
        let mut covering: Vec<(u64, HopId)> = Vec::new();
        let hop_of = |covering: &[(u64, HopId)]| covering.last().map_or(inherited, |(_, hop)| *hop);
        let leave = |covering: &mut Vec<(u64, HopId)>, before: Option<u64>, add: &mut dyn FnMut(u64, HopId, bool)| {
            while let Some((last, _)) = covering.pop_if(|(last, _)| before.is_none_or(|before| *last < before)) {
                if let Some(next) = last.checked_add(1) {
                    add(next, hop_of(covering), false);
                }
            }
        };
        for (start, len, hop) in routes {
            leave(&mut covering, Some(start), &mut add);
            let is_deeper = u32::from(len) > TO_END;
            let hop = if is_deeper { hop_of(&covering) } else { hop };
            covering.push((start | u64::MAX.checked_shr(len.into()).unwrap_or(0), hop));
            add(start, hop, is_deeper);
        }
        leave(&mut covering, None, &mut add);
        intervals
    }
}
