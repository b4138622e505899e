//! The routes themselves: a trie of four levels, one address byte each, whose unchanged parts are shared between
//! versions.
//!
//! Changes and listings use this structure; packet lookups do not. A change copies only the nodes on its path that
//! another version also holds (`Arc::make_mut`).

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::next_hops::HopId;

/// The rest of a prefix at some level: its bits, left aligned, and their number.
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

/// A node of any level: the routes whose prefix ends in it, and its child nodes, both sorted.
#[derive(Clone, Default)]
pub(super) struct Node {
    own: Vec<OwnRoute>,
    below: Vec<(u8, Arc<Self>)>,
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

impl Node {
    /// Sets the route of a prefix, or removes it if `hop` is `None`. Returns the previous one.
    pub(super) fn replace(&mut self, prefix: Prefix, hop: Option<HopId>) -> Option<HopId> {
        if prefix.len <= 8 {
            return self.replace_own(OwnKey { len: prefix.len, slot: prefix.slot() }, hop);
        }
        let at = match (self.find_below(prefix.slot()), hop) {
            (Ok(at), _) => at,
            (Err(_), None) => return None,
            (Err(at), Some(_)) => {
                self.below.insert(at, (prefix.slot(), Arc::default()));
                at
            }
        };
        let (_, node) = self.below.get_mut(at)?;
        let node = Arc::make_mut(node);
        let before = node.replace(prefix.below(), hop);
        if node.own.is_empty() && node.below.is_empty() {
            self.below.remove(at);
        }
        before
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

    /// Returns the next hop of exactly this prefix.
    pub(super) fn exact(&self, prefix: Prefix) -> Option<HopId> {
        if prefix.len > 8 {
            return self.below(prefix.slot())?.exact(prefix.below());
        }
        let key = OwnKey { len: prefix.len, slot: prefix.slot() };
        let at = self.own.binary_search_by_key(&key, |route| route.key).ok()?;
        self.own.get(at).map(|route| route.hop)
    }

    /// Returns the child node of a slot.
    pub(super) fn below(&self, slot: u8) -> Option<&Self> {
        let (_, node) = self.below.get(self.find_below(slot).ok()?)?;
        Some(node)
    }

    /// Returns all child nodes with their slots.
    pub(super) fn all_below(&self) -> impl Iterator<Item = (u8, &Self)> {
        self.below.iter().map(|(slot, node)| (*slot, &**node))
    }

    /// Returns the result of every slot by this node's own routes. `inherited` is the result of the covering prefix.
    pub(super) fn answers(&self, inherited: HopId) -> [HopId; 256] {
        let mut answers = [inherited; 256];
        // The order is shortest first, so that longer prefixes overwrite shorter ones.
        for OwnRoute { key, hop } in &self.own {
            let first = usize::from(key.slot);
            answers.get_mut(first..first + (256 >> key.len)).unwrap_or_default().fill(*hop);
        }
        answers
    }

    /// Returns the result of one slot, like [`answers`](Self::answers).
    pub(super) fn answer(&self, slot: u8, inherited: HopId) -> HopId {
        self.covering(slot).map_or(inherited, |route| route.hop)
    }

    /// Returns the length of the longest prefix that covers an address. `bits` is aligned as in a [`Prefix`], with
    /// `depth` bits already consumed.
    pub(super) fn longest_match(&self, bits: u32, depth: u8) -> Option<u8> {
        let slot = (bits >> 24) as u8;
        let longer = self.below(slot).and_then(|node| node.longest_match(bits << 8, depth + 8));
        longer.or_else(|| self.covering(slot).map(|route| depth + route.key.len))
    }

    /// Returns the longest of this node's own routes that covers a slot.
    fn covering(&self, slot: u8) -> Option<&OwnRoute> {
        let covers = |key: OwnKey| u16::from(slot ^ key.slot) >> (8 - key.len) == 0;
        self.own.iter().rfind(|route| covers(route.key))
    }

    /// Calls `each` for every route. `bits` is the path to this node and `depth` its length in bits.
    pub(super) fn for_each(&self, bits: u32, depth: u8, each: &mut impl FnMut(Prefix, HopId)) {
        let with = |slot: u8| bits | u32::from(slot) << (24 - depth);
        for OwnRoute { key, hop } in &self.own {
            each(Prefix { bits: with(key.slot), len: depth + key.len }, *hop);
        }
        for (slot, node) in &self.below {
            node.for_each(with(*slot), depth + 8, each);
        }
    }

    fn find_below(&self, slot: u8) -> Result<usize, usize> {
        self.below.binary_search_by_key(&slot, |(slot, _)| *slot)
    }
}
