//! The next hops of a table, each held once, and the peers they are.
//!
//! A trie holds a million small numbers rather than a million addresses. The numbers stand for slots in 256 shards, chosen
//! by a hash of the address; a change copies one shard. The same shards answer whether an address is a known peer.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use super::NextHop;

const SHARDS: usize = 256;

/// Stands for a next hop: the shard in the low byte, the slot above it, the top bit never set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HopId(pub(super) u32);

impl HopId {
    /// No route. Its slot number is one that no shard ever reaches, so that looking it up needs no test of its own.
    pub(super) const NONE: Self = Self(0x7fff_ffff);

    fn new(shard: u8, slot: u32) -> Self {
        Self(slot << 8 | u32::from(shard))
    }

    #[inline]
    fn shard(self) -> u8 {
        self.0 as u8
    }

    #[inline]
    fn slot(self) -> usize {
        (self.0 >> 8) as usize
    }
}

/// All next hops of one table version.
#[derive(Clone)]
pub(super) struct NextHops {
    shards: Arc<[Arc<Shard>; SHARDS]>,
}

#[derive(Clone, Default)]
struct Shard {
    slots: Vec<Slot>,
    /// The slots in use, sorted by their next hop.
    sorted: Vec<u32>,
    /// The slots not in use.
    free: Vec<u32>,
}

#[derive(Clone)]
struct Slot {
    hop: NextHop,
    /// How many routes lead here.
    routes: u32,
}

impl NextHops {
    pub(super) fn new() -> Self {
        let empty = Arc::new(Shard::default());
        Self { shards: Arc::new(core::array::from_fn(|_| Arc::clone(&empty))) }
    }

    #[inline]
    pub(super) fn resolve(&self, id: HopId) -> Option<&NextHop> {
        let slot = shard(&self.shards, id.shard()).slots.get(id.slot())?;
        Some(&slot.hop)
    }

    /// Whether some route leads to this address, whatever the port.
    #[inline]
    pub(super) fn has_peer(&self, address: IpAddr) -> bool {
        let first = self.first_from(SocketAddr::new(address, 0));
        first.is_some_and(|hop| hop.address.ip() == address)
    }

    /// Whether some route leads to this address and port.
    pub(super) fn has_next_hop(&self, address: SocketAddr) -> bool {
        self.first_from(address).is_some_and(|hop| hop.address == address)
    }

    /// The first next hop, in the order of their addresses, that is not before this one; looked for in its shard alone.
    #[inline]
    fn first_from(&self, address: SocketAddr) -> Option<&NextHop> {
        let shard = shard(&self.shards, shard_of(address.ip()));
        let hop = |slot: &u32| shard.slots.get(*slot as usize).map(|slot| &slot.hop);
        let at = shard.sorted.partition_point(|slot| hop(slot).is_some_and(|hop| hop.address < address));
        hop(shard.sorted.get(at)?)
    }

    /// The number of a next hop, for one more route.
    pub(super) fn acquire(&mut self, hop: &NextHop) -> HopId {
        let number = shard_of(hop.address.ip());
        let shard = shard_mut(&mut self.shards, number);
        let slot = match shard.find(hop) {
            Ok(at) => shard.sorted.get(at).copied().unwrap_or_default(),
            Err(at) => shard.insert(at, hop),
        };
        if let Some(slot) = shard.slots.get_mut(slot as usize) {
            slot.routes += 1;
        }
        HopId::new(number, slot)
    }

    /// One route fewer leads to this next hop; with the last one it is forgotten.
    pub(super) fn release(&mut self, id: HopId) {
        let shard = shard_mut(&mut self.shards, id.shard());
        let Some(slot) = shard.slots.get_mut(id.slot()) else { return };
        slot.routes -= 1;
        if slot.routes == 0 {
            let hop = slot.hop;
            if let Ok(at) = shard.find(&hop) {
                shard.free.push(shard.sorted.remove(at));
            }
        }
    }
}

impl Shard {
    fn find(&self, hop: &NextHop) -> Result<usize, usize> {
        self.sorted.binary_search_by(|slot| {
            self.slots.get(*slot as usize).map_or(core::cmp::Ordering::Less, |slot| slot.hop.cmp(hop))
        })
    }

    fn insert(&mut self, at: usize, hop: &NextHop) -> u32 {
        let slot = Slot { hop: *hop, routes: 0 };
        let number = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(number as usize) {
            Some(free) => *free = slot,
            None => self.slots.push(slot),
        }
        self.sorted.insert(at, number);
        number
    }
}

/// Spreads addresses that differ only in their last bits, as the hosts of a rack do.
fn shard_of(address: IpAddr) -> u8 {
    const FIBONACCI: u64 = 0x9e37_79b9_7f4a_7c15;
    let bits = match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits >> 64) as u64 ^ bits as u64
        }
    };
    (bits.wrapping_mul(FIBONACCI) >> 56) as u8
}

#[inline]
#[expect(clippy::indexing_slicing, reason = "a u8 is always below 256")]
fn shard(shards: &[Arc<Shard>; SHARDS], number: u8) -> &Shard {
    &shards[usize::from(number)]
}

#[expect(clippy::indexing_slicing, reason = "a u8 is always below 256")]
fn shard_mut(shards: &mut Arc<[Arc<Shard>; SHARDS]>, number: u8) -> &mut Shard {
    Arc::make_mut(&mut Arc::make_mut(shards)[usize::from(number)])
}
