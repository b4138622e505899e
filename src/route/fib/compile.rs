//! The compiler of the IPv6 lookup structure.

use alloc::vec::Vec;

use super::arena::Arena;
use super::bucket::{FULL_STEP, Large, Small};
use super::v6::{Array, Places, mask_of};
use super::{Slots, leads_below};
use crate::route::next_hops::HopId;
use crate::route::rib::{Bits, Prefix, View};

/// Up to this number of routes are compiled to a bucket, if it has room for their edges.
const FEW: usize = 16;

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

    /// Returns the path with `len` more bits, which are the first ones of `bits`.
    fn then_bits(self, bits: u64, len: u8) -> Self {
        Self { bits: self.bits | u128::from(bits) << 64 >> self.len, len: self.len + len }
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
        if below.count(FEW) <= FEW
            && let Some(intervals) = intervals(below, inherited)
        {
            return self.put_intervals(before, below, &intervals, scope.path);
        }
        if below.only_node().is_some() {
            return self.compile_skip(before, below, inherited, scope);
        }
        self.compile_array(before, below, inherited, scope)
    }

    /// Compiles routes that share their first bytes.
    fn compile_skip(&mut self, before: Before, below: View<'_, u128>, inherited: HopId, scope: Scope<'_>) -> u32 {
        let (mut path, mut below, mut len) = (scope.path, below, 0);
        while let Some((slot, next)) = below.only_node().filter(|_| u32::from(len) + 8 < FULL_STEP) {
            (path, below) = (path.then(slot), next);
            len += 8;
        }
        let bits = (path.bits.wrapping_shl(scope.path.len.into()) >> 64) as u64;
        let here = self.skipped(before).filter(|skipped| before.path == scope.path && skipped.path == path);
        let (place, before) = match here {
            Some(skipped) => (before.word, skipped),
            None => (HopId::NONE.0, self.approach(before, path)),
        };
        let word = self.compile(before, Some(below), inherited, scope.narrow(path));
        self.smalls.put(place, &Small::skip(bits, len, word, inherited.0))
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

    /// Puts intervals into a bucket.
    fn put_intervals(&mut self, before: Before, below: View<'_, u128>, intervals: &[Interval], path: Path) -> u32 {
        let mut place = HopId::NONE.0;
        let (is_bucket, is_small) = (intervals.len() > 1, intervals.len() <= Small::MOST);
        let is_same = if is_small { Arena::<Small, 1024>::has } else { Arena::<Large, 256>::has };
        if before.path == path && is_bucket && is_same(before.word) {
            place = before.word;
            self.release_below(place);
        } else {
            self.release(before.word);
        }
        let mut words = Vec::with_capacity(intervals.len());
        for interval in intervals {
            let word = match interval.is_deeper {
                true => {
                    let path = path.then_bits(interval.start, FULL_STEP as u8);
                    let mut routes = Some(below);
                    for slot in interval.start.to_be_bytes() {
                        routes = routes.and_then(|routes| routes.below(slot));
                    }
                    self.compile(Before::NOTHING, routes, interval.hop, Scope { all: true, changed: &[], path })
                }
                false => interval.hop.0,
            };
            words.push((interval.start, word));
        }
        match &*words {
            [(_, word)] => *word,
            _ if is_small => self.smalls.put(place, &Small::new(&words, FULL_STEP)),
            _ => self.larges.put(place, &Large::new(&words, FULL_STEP)),
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
                self.smalls.release(before.word);
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
        let bucket = self.smalls.place(before.word).filter(|_| Arena::<Small, 1024>::has(before.word))?;
        let (bits, len, word) = bucket.skipped()?;
        Some(Before { word, path: before.path.then_bits(bits, len) })
    }

    /// Releases a place with all below it.
    fn release(&mut self, word: u32) {
        if leads_below(word) {
            self.release_below(word);
            self.arrays.release(word);
            self.smalls.release(word);
            self.larges.release(word);
        }
    }

    /// Releases all places below a place.
    fn release_below(&mut self, word: u32) {
        let release_all = |places: &mut Self, words: &[u32]| {
            let mut last = HopId::NONE.0;
            for word in words {
                // The last word of a bucket may be repeated.
                if *word != last {
                    places.release(*word);
                }
                last = *word;
            }
        };
        if Arena::<Array, 64>::has(word) {
            let array = self.arrays.get(word);
            release_all(self, &array);
        } else if Arena::<Small, 1024>::has(word) {
            let bucket = self.smalls.get(word);
            release_all(self, bucket.words());
        } else if Arena::<Large, 256>::has(word) {
            let bucket = self.larges.get(word);
            release_all(self, bucket.words());
        }
    }
}

/// Addresses with one result.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Interval {
    /// The first 64 bits of the first address.
    start: u64,
    /// The result by the routes of up to 64 bits.
    hop: HopId,
    /// Set if there are longer routes, all with these 64 bits.
    is_deeper: bool,
}

/// Returns the intervals of a few routes, or `None` if they are too many for a bucket.
fn intervals(below: View<'_, u128>, inherited: HopId) -> Option<Vec<Interval>> {
    let mut routes = Vec::with_capacity(FEW);
    below.for_each(0, 0, &mut |prefix, hop| routes.push(((prefix.bits >> 64) as u64, prefix.len, hop)));
    let last_of = |bits: u64, len: u8| bits | u64::MAX.checked_shr(len.into()).unwrap_or(0);
    let mut edges = Vec::with_capacity(2 * FEW + 1);
    edges.push(0);
    for (bits, len, _) in &routes {
        edges.push(*bits);
        edges.extend(last_of(*bits, *len).checked_add(1));
    }
    edges.sort_unstable();
    edges.dedup();
    let mut intervals: Vec<Interval> = Vec::with_capacity(edges.len());
    for start in edges {
        let covers = |(bits, len, _): &&(u64, u8, HopId)| *bits <= start && start <= last_of(*bits, *len);
        let covering = || routes.iter().filter(covers);
        let shorter = covering().filter(|(_, len, _)| u32::from(*len) <= FULL_STEP);
        let hop = shorter.max_by_key(|(_, len, _)| *len).map_or(inherited, |(.., hop)| *hop);
        let interval = Interval { start, hop, is_deeper: covering().any(|(_, len, _)| u32::from(*len) > FULL_STEP) };
        if intervals.last().is_none_or(|last| interval.is_deeper || last.is_deeper || last.hop != hop) {
            intervals.push(interval);
        }
    }
    (intervals.len() <= Large::MOST).then_some(intervals)
}
