//! The routes themselves: for each family a trie with one address byte per level, whose unchanged parts are shared
//! between versions.
//!
//! Changes and listings use this structure; packet lookups do not. A change copies only the nodes on its path that
//! another version also holds (`Arc::make_mut`).
//!
//! A node has two routes or more. A route that is alone below a slot is stored in its parent, so long prefixes far from
//! each other need no chains of nodes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::next_hops::HopId;

/// The bits of an address, or of its rest at some level: the first bit is the highest.
pub(super) trait Bits: Copy + PartialEq {
    /// Returns the first byte.
    fn first(self) -> u8;

    /// Removes the first byte.
    fn rest(self) -> Self;

    /// Returns bits that are zero behind this first byte.
    fn of(byte: u8) -> Self;

    /// Sets the byte after the first `depth` bits, which must be zero.
    fn with(self, byte: u8, depth: u8) -> Self;

    /// Inserts a first byte.
    fn behind(self, byte: u8) -> Self;
}

/// Prefixes of IPv4.
impl Bits for u32 {
    fn first(self) -> u8 {
        (self >> 24) as u8
    }

    fn rest(self) -> Self {
        self << 8
    }

    fn of(byte: u8) -> Self {
        Self::from(byte) << 24
    }

    fn with(self, byte: u8, depth: u8) -> Self {
        self | Self::of(byte) >> depth
    }

    fn behind(self, byte: u8) -> Self {
        self >> 8 | Self::of(byte)
    }
}

/// Prefixes of IPv6.
impl Bits for u128 {
    fn first(self) -> u8 {
        (self >> 120) as u8
    }

    fn rest(self) -> Self {
        self << 8
    }

    fn of(byte: u8) -> Self {
        Self::from(byte) << 120
    }

    fn with(self, byte: u8, depth: u8) -> Self {
        self | Self::of(byte) >> depth
    }

    fn behind(self, byte: u8) -> Self {
        self >> 8 | Self::of(byte)
    }
}

/// The rest of a prefix at some level: its bits, left aligned, and their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix<B> {
    pub(super) bits: B,
    pub(super) len: u8,
}

impl<B: Bits> Prefix<B> {
    fn slot(self) -> u8 {
        self.bits.first()
    }

    fn below(self) -> Self {
        Self { bits: self.bits.rest(), len: self.len - 8 }
    }
}

/// A node of any level: the routes whose prefix ends in it, and the longer ones by slot, both sorted.
#[derive(Clone)]
pub(super) struct Node<B> {
    own: Vec<OwnRoute>,
    below: Vec<Child<B>>,
}

#[derive(Clone, Copy)]
struct OwnRoute {
    key: OwnKey,
    hop: HopId,
}

/// A prefix inside one node: 0 to 8 bits, shortest first. Length 0 is the default route and exists at the root only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OwnKey {
    len: u8,
    slot: u8,
}

/// The longer routes of one slot.
#[derive(Clone)]
enum Child<B> {
    /// One route. Its bits and length are those below the slot.
    Lone { slot: u8, len: u8, hop: HopId, bits: B },
    /// Two routes or more.
    Node { slot: u8, node: Arc<Node<B>> },
}

impl<B: Bits> Child<B> {
    fn lone(slot: u8, Prefix { bits, len }: Prefix<B>, hop: HopId) -> Self {
        Self::Lone { slot, len, hop, bits }
    }

    fn slot(&self) -> u8 {
        match self {
            Self::Lone { slot, .. } | Self::Node { slot, .. } => *slot,
        }
    }

    fn view(&self) -> View<'_, B> {
        match self {
            Self::Lone { len, hop, bits, .. } => View::Lone(Prefix { bits: *bits, len: *len }, *hop),
            Self::Node { node, .. } => View::Node(node),
        }
    }
}

impl<B: Bits> Node<B> {
    pub(super) fn new() -> Self {
        Self { own: Vec::new(), below: Vec::new() }
    }

    pub(super) fn view(&self) -> View<'_, B> {
        View::Node(self)
    }

    /// Sets the route of a prefix, or removes it if `hop` is `None`. Returns the previous one.
    pub(super) fn replace(&mut self, prefix: Prefix<B>, hop: Option<HopId>) -> Option<HopId> {
        let slot = prefix.slot();
        if prefix.len <= 8 {
            return self.replace_own(OwnKey { len: prefix.len, slot }, hop);
        }
        let prefix = prefix.below();
        let at = match self.find_below(slot) {
            Ok(at) => at,
            Err(at) => {
                self.below.insert(at, Child::lone(slot, prefix, hop?));
                return None;
            }
        };
        let child = self.below.get_mut(at)?;
        match child {
            Child::Lone { len, hop: before, bits, .. } if *len == prefix.len && *bits == prefix.bits => match hop {
                Some(hop) => Some(core::mem::replace(before, hop)),
                None => {
                    let before = *before;
                    self.below.remove(at);
                    Some(before)
                }
            },
            Child::Lone { len, hop: other, bits, .. } => {
                let hop = hop?;
                let mut node = Self::new();
                node.replace(Prefix { bits: *bits, len: *len }, Some(*other));
                node.replace(prefix, Some(hop));
                *child = Child::Node { slot, node: Arc::new(node) };
                None
            }
            Child::Node { node, .. } => {
                let node = Arc::make_mut(node);
                let before = node.replace(prefix, hop);
                if let Some((prefix, hop)) = node.only_route() {
                    *child = Child::lone(slot, prefix, hop);
                }
                before
            }
        }
    }

    fn replace_own(&mut self, key: OwnKey, hop: Option<HopId>) -> Option<HopId> {
        match (self.own.binary_search_by_key(&key, |route| route.key), hop) {
            (Ok(at), Some(hop)) => self.own.get_mut(at).map(|route| core::mem::replace(&mut route.hop, hop)),
            (Ok(at), None) => Some(self.own.remove(at).hop),
            (Err(at), Some(hop)) => {
                // There can be a million of these lists, and most are short.
                self.own.reserve_exact(1);
                self.own.insert(at, OwnRoute { key, hop });
                None
            }
            (Err(_), None) => None,
        }
    }

    /// Returns the route of this node and its child nodes if it is only one.
    fn only_route(&self) -> Option<(Prefix<B>, HopId)> {
        match (&*self.own, &*self.below) {
            ([], [Child::Lone { slot, len, hop, bits }]) => {
                Some((Prefix { bits: bits.behind(*slot), len: *len + 8 }, *hop))
            }
            ([OwnRoute { key, hop }], []) => Some((Prefix { bits: B::of(key.slot), len: key.len }, *hop)),
            _ => None,
        }
    }

    fn find_below(&self, slot: u8) -> Result<usize, usize> {
        self.below.binary_search_by_key(&slot, Child::slot)
    }
}

/// A node, or the only route in the place of one.
pub(super) enum View<'a, B> {
    Node(&'a Node<B>),
    Lone(Prefix<B>, HopId),
}

impl<B> Clone for View<'_, B>
where
    B: Copy,
{
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for View<'_, B> where B: Copy {}

impl<'a, B: Bits> View<'a, B> {
    /// Returns the routes whose prefix ends here, shortest first.
    fn own(self) -> impl DoubleEndedIterator<Item = OwnRoute> + use<'a, B> {
        let (own, lone): (&[_], _) = match self {
            View::Node(node) => (&node.own, None),
            View::Lone(prefix, hop) => {
                let key = OwnKey { len: prefix.len, slot: prefix.slot() };
                (&[], (prefix.len <= 8).then_some(OwnRoute { key, hop }))
            }
        };
        own.iter().copied().chain(lone)
    }

    /// Returns the longer routes of every slot that has any.
    pub(super) fn all_below(self) -> impl Iterator<Item = (u8, Self)> {
        let (below, lone): (&[_], _) = match self {
            View::Node(node) => (&node.below, None),
            View::Lone(prefix, hop) => {
                (&[], (prefix.len > 8).then(|| (prefix.slot(), View::Lone(prefix.below(), hop))))
            }
        };
        below.iter().map(|child| (child.slot(), child.view())).chain(lone)
    }

    /// Returns the longer routes of a slot.
    pub(super) fn below(self, slot: u8) -> Option<Self> {
        match self {
            View::Node(node) => node.below.get(node.find_below(slot).ok()?).map(Child::view),
            View::Lone(prefix, hop) => {
                (prefix.len > 8 && prefix.slot() == slot).then(|| View::Lone(prefix.below(), hop))
            }
        }
    }

    /// Returns the next hop of exactly this prefix.
    pub(super) fn exact(self, prefix: Prefix<B>) -> Option<HopId> {
        if prefix.len > 8 {
            return self.below(prefix.slot())?.exact(prefix.below());
        }
        let key = OwnKey { len: prefix.len, slot: prefix.slot() };
        match self {
            View::Node(node) => {
                let at = node.own.binary_search_by_key(&key, |route| route.key).ok()?;
                node.own.get(at).map(|route| route.hop)
            }
            View::Lone(own, hop) => (own == prefix).then_some(hop),
        }
    }

    /// Returns the result of every slot by the routes that end here. `inherited` is the result of the covering prefix.
    pub(super) fn answers(self, inherited: HopId) -> [HopId; 256] {
        let mut answers = [inherited; 256];
        // The order is shortest first, so that longer prefixes overwrite shorter ones.
        self.own().for_each(|OwnRoute { key, hop }| {
            let first = usize::from(key.slot);
            answers.get_mut(first..first + (256 >> key.len)).unwrap_or_default().fill(hop);
        });
        answers
    }

    /// Returns the result of one slot, like [`answers`](Self::answers).
    pub(super) fn answer(self, slot: u8, inherited: HopId) -> HopId {
        self.covering(slot).map_or(inherited, |route| route.hop)
    }

    /// Returns the length of the longest prefix that covers an address. `bits` is aligned as in a [`Prefix`], with
    /// `depth` bits already consumed.
    pub(super) fn longest_match(self, bits: B, depth: u8) -> Option<u8> {
        let slot = bits.first();
        let longer = self.below(slot).and_then(|below| below.longest_match(bits.rest(), depth + 8));
        longer.or_else(|| self.covering(slot).map(|route| depth + route.key.len))
    }

    /// Returns the longest of the routes that end here and cover a slot.
    fn covering(self, slot: u8) -> Option<OwnRoute> {
        let covers = |key: OwnKey| u16::from(slot ^ key.slot) >> (8 - key.len) == 0;
        self.own().rfind(|route| covers(route.key))
    }

    /// Calls `each` for every route. `bits` is the path to this place and `depth` its length in bits.
    pub(super) fn for_each(self, bits: B, depth: u8, each: &mut impl FnMut(Prefix<B>, HopId)) {
        for OwnRoute { key, hop } in self.own() {
            each(Prefix { bits: bits.with(key.slot, depth), len: depth + key.len }, hop);
        }
        for (slot, below) in self.all_below() {
            below.for_each(bits.with(slot, depth), depth + 8, each);
        }
    }

    /// Returns the number of routes that end here and of slots with longer ones.
    pub(super) fn width(self) -> usize {
        match self {
            View::Lone(..) => 1,
            View::Node(node) => node.own.len() + node.below.len(),
        }
    }

    /// Returns the number of routes, or a larger number than `most` if there are more.
    pub(super) fn count(self, most: usize) -> usize {
        match self {
            View::Lone(..) => 1,
            View::Node(node) => node.below.iter().fold(node.own.len(), |count, child| {
                if count > most { count } else { count + child.view().count(most - count) }
            }),
        }
    }

    /// Returns the slot and the node below if all routes but the default one are there, and it is a node.
    pub(super) fn only_node(self) -> Option<(u8, Self)> {
        match self {
            View::Node(Node { own, below }) if own.iter().all(|route| route.key.len == 0) => match &**below {
                [Child::Node { slot, node }] => Some((*slot, View::Node(node))),
                _ => None,
            },
            View::Node(_) | View::Lone(..) => None,
        }
    }
}
