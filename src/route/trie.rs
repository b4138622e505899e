//! The longest-prefix-match trie: four levels of 256 slots, one byte of the address each.
//!
//! ```text
//!  address   a . b . c . d
//!            │   │   │   └── Leaf ── slot: next hop                        prefixes /25 to /32
//!            │   │   └────── Leaf ── slot: next hop, or the Leaf below     prefixes /17 to /24
//!            │   └────────── Branch  slot: next hop, and the Leaf below    prefixes  /9 to /16
//!            └────────────── Branch  slot: next hop, and the Branch below  prefixes  /0 to  /8
//! ```
//!
//! Every slot holds the final answer for its addresses ("leaf pushing"), so a lookup never goes back up. What a node needs
//! to work its answers out again stands beside them: its own routes, sorted, and what it inherits from above. Nodes below
//! are shared by reference count; a change copies the nodes on its path that another table holds too (`Arc::make_mut`), and
//! no others. That is why a batch of changes, or building from nothing, copies each node at most once.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::next_hops::HopId;

const SLOTS: usize = 256;

/// What is left of a prefix at some level: its bits, left aligned, and how many of them there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix {
    pub(super) bits: u32,
    pub(super) len: u8,
}

impl Prefix {
    fn slot(self) -> u8 {
        (self.bits >> 24) as u8
    }

    fn below(self) -> Self {
        Self { bits: self.bits << 8, len: self.len - 8 }
    }
}

/// A node of any level.
pub(super) trait Node: Clone {
    /// A node without routes, whose every slot answers `inherited`.
    fn hollow(inherited: HopId) -> Self;
    /// Sets or (with `None`) removes the route of a prefix; returns what was there.
    fn replace(&mut self, prefix: Prefix, hop: Option<HopId>) -> Option<HopId>;
    /// The answer of the covering route above has changed.
    fn inherit(&mut self, inherited: HopId);
    /// Whether it says nothing that the slot above would not say.
    fn is_hollow(&self) -> bool;
    /// The hop of exactly this prefix.
    fn exact(&self, prefix: Prefix) -> Option<HopId>;
    /// Calls `each` for every route, `bits` being what leads here and `depth` how many bits that is.
    fn for_each(&self, bits: u32, depth: u8, each: &mut dyn FnMut(Prefix, HopId));
}

/// The root of a trie and its first level.
pub(super) type Root = Branch<Branch<Leaf>>;

impl Root {
    /// The next hop of the longest prefix that holds the address.
    #[inline]
    pub(super) fn longest_match(&self, [a, b, c, d]: [u8; 4]) -> HopId {
        let Some(branch) = at(&self.below, a) else { return *at(&self.hops, a) };
        let Some(leaf) = at(&branch.below, b) else { return *at(&branch.hops, b) };
        leaf.longest_match(c, d)
    }
}

/// A node whose slots hold pointers: fast to pass through, and there are at most 257 of them.
#[derive(Clone)]
pub(super) struct Branch<N> {
    below: [Option<Arc<N>>; SLOTS],
    hops: [HopId; SLOTS],
    own: OwnRoutes,
    inherited: HopId,
}

impl<N: Node> Branch<N> {
    fn repaint(&mut self, span: Span, base: HopId) {
        let Self { below, hops, own, .. } = self;
        own.paint(span, base, |slot, hop| {
            *at_mut(hops, slot) = hop;
            if let Some(node) = at_mut(below, slot) {
                Arc::make_mut(node).inherit(hop);
            }
        });
    }
}

impl<N: Node> Node for Branch<N> {
    fn hollow(inherited: HopId) -> Self {
        Self { below: [const { None }; SLOTS], hops: [inherited; SLOTS], own: OwnRoutes::default(), inherited }
    }

    fn replace(&mut self, prefix: Prefix, hop: Option<HopId>) -> Option<HopId> {
        if let Some(own) = OwnKey::of(prefix) {
            let before = self.own.replace(own, hop);
            self.repaint(own.span(), self.own.covering(own).unwrap_or(self.inherited));
            return before;
        }
        let slot = prefix.slot();
        let answer = *at(&self.hops, slot);
        let below = at_mut(&mut self.below, slot);
        if below.is_none() && hop.is_none() {
            return None;
        }
        let node = Arc::make_mut(below.get_or_insert_with(|| Arc::new(N::hollow(answer))));
        let before = node.replace(prefix.below(), hop);
        if hop.is_none() && node.is_hollow() {
            *below = None;
        }
        before
    }

    fn inherit(&mut self, inherited: HopId) {
        if self.inherited != inherited {
            self.inherited = inherited;
            self.repaint(Span::WHOLE, self.own.covering(OwnKey::WHOLE).unwrap_or(inherited));
        }
    }

    fn is_hollow(&self) -> bool {
        self.own.0.is_empty() && self.below.iter().all(Option::is_none)
    }

    fn exact(&self, prefix: Prefix) -> Option<HopId> {
        match OwnKey::of(prefix) {
            Some(own) => self.own.exact(own),
            None => at(&self.below, prefix.slot()).as_ref()?.exact(prefix.below()),
        }
    }

    fn for_each(&self, bits: u32, depth: u8, each: &mut dyn FnMut(Prefix, HopId)) {
        self.own.for_each(bits, depth, each);
        for (slot, node) in (0u32..).zip(&self.below) {
            if let Some(node) = node {
                node.for_each(bits | slot << (24 - depth), depth + 8, each);
            }
        }
    }
}

/// A node whose slots hold four bytes each: there can be tens of thousands of these.
///
/// A slot is a [`HopId`], or, with [`BELOW`] set, an index into the few nodes further down.
#[derive(Clone)]
pub(super) struct Leaf {
    slots: [u32; SLOTS],
    own: OwnRoutes,
    below: Vec<Arc<Leaf>>,
    inherited: HopId,
}

/// The bit of a [`Leaf`] slot that says there is a node below; a [`HopId`] never has it.
const BELOW: u32 = 1 << 31;

impl Leaf {
    #[inline]
    fn longest_match(&self, c: u8, d: u8) -> HopId {
        let slot = *at(&self.slots, c);
        if slot & BELOW == 0 {
            return HopId(slot);
        }
        match self.below.get((slot & !BELOW) as usize) {
            Some(leaf) => HopId(*at(&leaf.slots, d)),
            None => HopId::NONE,
        }
    }

    fn repaint(&mut self, span: Span, base: HopId) {
        let Self { slots, own, below, .. } = self;
        own.paint(span, base, |slot, hop| {
            let slot = at_mut(slots, slot);
            if *slot & BELOW == 0 {
                *slot = hop.0;
            } else if let Some(leaf) = below.get_mut((*slot & !BELOW) as usize) {
                Arc::make_mut(leaf).inherit(hop);
            }
        });
    }

    /// The node under a slot, made if there is none and `make` says so.
    fn node_below(&mut self, slot: u8, make: bool) -> Option<&mut Self> {
        let slot = at_mut(&mut self.slots, slot);
        if *slot & BELOW == 0 {
            if !make {
                return None;
            }
            self.below.push(Arc::new(Self::hollow(HopId(*slot))));
            *slot = BELOW | (self.below.len() - 1) as u32;
        }
        self.below.get_mut((*slot & !BELOW) as usize).map(Arc::make_mut)
    }

    /// Takes out the node under a slot; the last one moves into its place.
    fn remove_below(&mut self, slot: u8) {
        let gone = *at(&self.slots, slot) & !BELOW;
        let last = BELOW | (self.below.len() - 1) as u32;
        if let Some(moved) = self.slots.iter_mut().find(|slot| **slot == last) {
            *moved = BELOW | gone;
        }
        let inherited = self.below.swap_remove(gone as usize).inherited;
        *at_mut(&mut self.slots, slot) = inherited.0;
    }
}

impl Node for Leaf {
    fn hollow(inherited: HopId) -> Self {
        Self { slots: [inherited.0; SLOTS], own: OwnRoutes::default(), below: Vec::new(), inherited }
    }

    fn replace(&mut self, prefix: Prefix, hop: Option<HopId>) -> Option<HopId> {
        if let Some(own) = OwnKey::of(prefix) {
            let before = self.own.replace(own, hop);
            self.repaint(own.span(), self.own.covering(own).unwrap_or(self.inherited));
            return before;
        }
        let node = self.node_below(prefix.slot(), hop.is_some())?;
        let before = node.replace(prefix.below(), hop);
        if hop.is_none() && node.is_hollow() {
            self.remove_below(prefix.slot());
        }
        before
    }

    fn inherit(&mut self, inherited: HopId) {
        if self.inherited != inherited {
            self.inherited = inherited;
            self.repaint(Span::WHOLE, self.own.covering(OwnKey::WHOLE).unwrap_or(inherited));
        }
    }

    fn is_hollow(&self) -> bool {
        self.own.0.is_empty() && self.below.is_empty()
    }

    fn exact(&self, prefix: Prefix) -> Option<HopId> {
        if let Some(own) = OwnKey::of(prefix) {
            return self.own.exact(own);
        }
        let slot = *at(&self.slots, prefix.slot());
        if slot & BELOW == 0 {
            return None;
        }
        self.below.get((slot & !BELOW) as usize)?.exact(prefix.below())
    }

    fn for_each(&self, bits: u32, depth: u8, each: &mut dyn FnMut(Prefix, HopId)) {
        self.own.for_each(bits, depth, each);
        for (number, slot) in (0u32..).zip(&self.slots) {
            if slot & BELOW != 0
                && let Some(leaf) = self.below.get((slot & !BELOW) as usize)
            {
                leaf.for_each(bits | number << (24 - depth), depth + 8, each);
            }
        }
    }
}

/// The routes whose prefix ends inside one node, shortest first.
#[derive(Clone, Default)]
struct OwnRoutes(Vec<OwnRoute>);

#[derive(Clone, Copy)]
struct OwnRoute {
    key: OwnKey,
    hop: HopId,
}

/// A prefix inside one node: 0 to 8 bits. Length 0 is the default route, at the root only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OwnKey {
    len: u8,
    slot: u8,
}

/// Slots `first..end`.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    end: usize,
}

impl Span {
    const WHOLE: Self = Self { first: 0, end: SLOTS };
}

impl OwnKey {
    const WHOLE: Self = Self { len: 0, slot: 0 };

    /// `None` if the prefix ends further down.
    fn of(prefix: Prefix) -> Option<Self> {
        (prefix.len <= 8).then(|| Self { len: prefix.len, slot: prefix.slot() })
    }

    fn span(self) -> Span {
        let first = usize::from(self.slot);
        Span { first, end: first + (SLOTS >> self.len) }
    }

    /// The same prefix with only its first `len` bits.
    fn shortened(self, len: u8) -> Self {
        Self { len, slot: (u16::from(self.slot) & 0xff00 >> len) as u8 }
    }
}

impl OwnRoutes {
    fn find(&self, key: OwnKey) -> Result<usize, usize> {
        self.0.binary_search_by_key(&key, |route| route.key)
    }

    fn exact(&self, key: OwnKey) -> Option<HopId> {
        self.0.get(self.find(key).ok()?).map(|route| route.hop)
    }

    fn replace(&mut self, key: OwnKey, hop: Option<HopId>) -> Option<HopId> {
        match (self.find(key), hop) {
            (Ok(at), Some(hop)) => self.0.get_mut(at).map(|route| core::mem::replace(&mut route.hop, hop)),
            (Ok(at), None) => Some(self.0.remove(at).hop),
            (Err(at), Some(hop)) => {
                self.0.insert(at, OwnRoute { key, hop });
                None
            }
            (Err(_), None) => None,
        }
    }

    /// The hop of the longest route of this node that holds all of `key`.
    fn covering(&self, key: OwnKey) -> Option<HopId> {
        (0..=key.len).rev().find_map(|len| self.exact(key.shortened(len)))
    }

    /// Works the answers of a span out again, given the answer where no longer route stands, and hands them to `set`.
    fn paint(&self, span: Span, base: HopId, mut set: impl FnMut(u8, HopId)) {
        if span.first + 1 == span.end {
            return set(span.first as u8, base);
        }
        let mut answers = [base; SLOTS];
        for route in &self.0 {
            let of = route.key.span();
            // A shorter or equal route is what `base` came from, or covers nothing of the span.
            if of.end - of.first < span.end - span.first && span.first <= of.first && of.end <= span.end {
                answers.get_mut(of.first..of.end).unwrap_or_default().fill(route.hop);
            }
        }
        for (slot, hop) in (0..=u8::MAX).zip(answers).skip(span.first).take(span.end - span.first) {
            set(slot, hop);
        }
    }

    fn for_each(&self, bits: u32, depth: u8, each: &mut dyn FnMut(Prefix, HopId)) {
        for OwnRoute { key, hop } in &self.0 {
            each(Prefix { bits: bits | u32::from(key.slot) << (24 - depth), len: depth + key.len }, *hop);
        }
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
