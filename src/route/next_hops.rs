//! The next hops of a table, each stored once, and the set of their addresses.
//!
//! The other structures hold a million small numbers instead of a million addresses. A number is a place in a list,
//! stored in chunks that versions share. The reverse lookup from address to number uses 256 sorted shards, selected by
//! a hash. The shards also tell whether an address is a known peer. A change copies one chunk and one shard.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use super::{NextHop, canonical};

const SHARDS: usize = 256;

/// Next hops in a chunk: 36 KiB.
const CHUNK: usize = 1024;

/// The number of a next hop: its place in the list. The top bit is never set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HopId(pub(super) u32);

impl HopId {
    /// No route. The list never reaches this length, so a lookup of `NONE` needs no separate check.
    pub(super) const NONE: Self = Self(0x7fff_ffff);
}

/// All next hops of one table version.
#[derive(Clone)]
pub(super) struct NextHops {
    chunks: Vec<Arc<[NextHop; CHUNK]>>,
    /// The first free place in the list. Its address encodes the number of the next free place.
    free: HopId,
    in_use: usize,
    /// A bit for the low six bits of every port of a present or past next hop. It lets [`NextHops::has_next_hop`]
    /// return false quickly.
    ports: u64,
    shards: Arc<[Arc<Vec<Known>>; SHARDS]>,
}

/// A next hop in its shard. Shards are sorted by this.
#[derive(Clone, Copy)]
struct Known {
    hop: NextHop,
    id: HopId,
    /// The number of routes to this next hop.
    routes: u32,
}

impl NextHops {
    pub(super) fn new() -> Self {
        let empty = Arc::new(Vec::new());
        let shards = Arc::new(core::array::from_fn(|_| Arc::clone(&empty)));
        Self { chunks: Vec::new(), free: HopId::NONE, in_use: 0, ports: 0, shards }
    }

    #[inline]
    pub(super) fn resolve(&self, id: HopId) -> Option<&NextHop> {
        let chunk = self.chunks.get(id.0 as usize / CHUNK)?;
        chunk.get(id.0 as usize % CHUNK)
    }

    /// Returns true if a route leads to this address, on any port.
    #[inline]
    pub(super) fn has_peer(&self, address: IpAddr) -> bool {
        /// Up to this length a linear search is faster than a binary search.
        const FEW: usize = 8;
        let shard = shard(&self.shards, address);
        if shard.len() <= FEW {
            return shard.iter().any(|known| known.hop.address.ip() == address);
        }
        let first = self.first_from(SocketAddr::new(address, 0));
        first.is_some_and(|hop| hop.address.ip() == address)
    }

    /// Returns true if a route leads to this link-local address on the link of its scope, on any port.
    #[cold]
    pub(super) fn has_link_local(&self, address: SocketAddrV6) -> bool {
        let is_it = |hop: SocketAddrV6| hop.ip() == address.ip() && hop.scope_id() == address.scope_id();
        let known = shard(&self.shards, (*address.ip()).into()).iter();
        known.map(|known| known.hop.address).any(|hop| matches!(hop, SocketAddr::V6(hop) if is_it(hop)))
    }

    /// Returns true if a route leads to this address and port, and to this scope if the address is link-local.
    #[inline]
    pub(super) fn has_next_hop(&self, address: SocketAddr) -> bool {
        if !self.may_have_port(address.port()) {
            return false;
        }
        let address = canonical(address);
        self.first_from(address).is_some_and(|hop| hop.address == address)
    }

    /// Returns false if no next hop has this port. It may return true by mistake.
    #[inline(always)]
    pub(super) fn may_have_port(&self, port: u16) -> bool {
        self.ports & port_bit(port) != 0
    }

    /// Returns the first next hop at or after this address, in address order and from its shard alone.
    #[inline]
    fn first_from(&self, address: SocketAddr) -> Option<&NextHop> {
        let shard = shard(&self.shards, address.ip());
        let at = shard.partition_point(|known| known.hop.address < address);
        shard.get(at).map(|known| &known.hop)
    }

    /// Returns true if few of its places are in use. The first few chunks do not count.
    pub(super) fn is_sparse(&self) -> bool {
        super::is_sparse(self.chunks.len(), CHUNK, self.in_use)
    }

    /// Returns the number of a next hop and counts one more route to it.
    pub(super) fn acquire(&mut self, hop: &NextHop) -> HopId {
        self.ports |= port_bit(hop.address.port());
        let shard = shard_mut(&mut self.shards, hop.address.ip());
        let at = match shard.binary_search_by_key(hop, |known| known.hop) {
            Ok(at) => at,
            Err(at) => {
                if self.free == HopId::NONE {
                    self.free = add_chunk(&mut self.chunks);
                }
                let id = self.free;
                if let Some(place) = place(&mut self.chunks, id) {
                    self.free = next_free(place);
                    *place = *hop;
                }
                self.in_use += 1;
                shard.insert(at, Known { hop: *hop, id, routes: 0 });
                at
            }
        };
        let Some(known) = shard.get_mut(at) else { return HopId::NONE };
        known.routes += 1;
        known.id
    }

    /// Counts one route less to this next hop and removes it with the last one.
    pub(super) fn release(&mut self, id: HopId) {
        let Some(hop) = self.resolve(id).copied() else { return };
        let shard = shard_mut(&mut self.shards, hop.address.ip());
        let Ok(at) = shard.binary_search_by_key(&hop, |known| known.hop) else { return };
        let Some(known) = shard.get_mut(at) else { return };
        known.routes = known.routes.saturating_sub(1);
        if known.routes == 0 {
            shard.remove(at);
            self.in_use -= 1;
            if self.in_use == 0 {
                *self = Self::new();
            } else if let Some(place) = place(&mut self.chunks, id) {
                *place = free_place(self.free);
                self.free = id;
            }
        }
    }
}

/// Adds a chunk of free places and returns the first.
fn add_chunk(chunks: &mut Vec<Arc<[NextHop; CHUNK]>>) -> HopId {
    let first = (chunks.len() * CHUNK) as u32;
    let mut chunk = [free_place(HopId::NONE); CHUNK];
    for (place, next) in chunk.iter_mut().zip(first + 1..first + CHUNK as u32) {
        *place = free_place(HopId(next));
    }
    chunks.push(Arc::new(chunk));
    HopId(first)
}

fn place(chunks: &mut [Arc<[NextHop; CHUNK]>], id: HopId) -> Option<&mut NextHop> {
    Arc::make_mut(chunks.get_mut(id.0 as usize / CHUNK)?).get_mut(id.0 as usize % CHUNK)
}

fn free_place(next: HopId) -> NextHop {
    NextHop { address: SocketAddr::new(Ipv4Addr::from_bits(next.0).into(), 0), mtu: None }
}

fn next_free(place: &NextHop) -> HopId {
    match place.address {
        SocketAddr::V4(next) => HopId(next.ip().to_bits()),
        SocketAddr::V6(_) => HopId::NONE,
    }
}

#[inline]
fn port_bit(port: u16) -> u64 {
    1 << (port & 63)
}

/// Returns the shard of an address. Addresses that differ only in their last bits, such as those of one rack, spread
/// evenly.
#[inline]
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
fn shard(shards: &[Arc<Vec<Known>>; SHARDS], address: IpAddr) -> &[Known] {
    &shards[usize::from(shard_of(address))]
}

#[expect(clippy::indexing_slicing, reason = "a u8 is always below 256")]
fn shard_mut(shards: &mut Arc<[Arc<Vec<Known>>; SHARDS]>, address: IpAddr) -> &mut Vec<Known> {
    Arc::make_mut(&mut Arc::make_mut(shards)[usize::from(shard_of(address))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// 256 random numbers would leave a third of 256 shards empty.
    #[test]
    fn neighbours_are_spread_over_the_shards() {
        let spread =
            |address: &dyn Fn(u8) -> IpAddr| (0..=255).map(|i| shard_of(address(i))).collect::<HashSet<_>>().len();
        let v6 = |first: u16, third: u16, last: u16| IpAddr::from([first, 0xffff, third, 0xffff, 0, 0, 0, last]);
        assert!(spread(&|i| [10, 168, 0, i].into()) > 128, "the last byte");
        assert!(spread(&|i| [10, i, 0, 1].into()) > 128, "an upper byte");
        assert!(spread(&|i| v6(0xfdff, 0xffff, i.into())) > 128, "the last byte of an IPv6 address");
        assert!(spread(&|i| v6(0xfdff, i.into(), 1)) > 128, "its network");
    }
}
