//! The next hops of a table, each held once, and the peers they are.
//!
//! The other structures hold a million small numbers rather than a million addresses. The numbers are places in a list, kept
//! in chunks that versions share; the way back, from address to number, is by 256 sorted shards, chosen by a hash. They also
//! answer whether an address is a known peer. A change copies one chunk and one shard.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::NextHop;

const SHARDS: usize = 256;

/// Next hops in a chunk: 36 KiB.
const CHUNK: usize = 1024;

/// Stands for a next hop: its place in the list. The top bit is never set.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct HopId(pub(super) u32);

impl HopId {
    /// No route. No list is so long, so that looking it up needs no test of its own.
    pub(super) const NONE: Self = Self(0x7fff_ffff);
}

/// All next hops of one table version.
#[derive(Clone)]
pub(super) struct NextHops {
    chunks: Vec<Arc<[NextHop; CHUNK]>>,
    /// The first place in the list that nobody uses. It holds the number of the next one, dressed as an address.
    free: HopId,
    in_use: usize,
    /// A bit for the low six bits of every port that is or was a next hop's: a quick no to [`NextHops::has_next_hop`].
    ports: u64,
    shards: Arc<[Arc<Vec<Known>>; SHARDS]>,
}

/// A next hop in its shard, which is sorted by it.
#[derive(Clone, Copy)]
struct Known {
    hop: NextHop,
    id: HopId,
    /// How many routes lead there.
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

    /// Whether some route leads to this address, whatever the port.
    #[inline]
    pub(super) fn has_peer(&self, address: IpAddr) -> bool {
        /// Up to here looking at all is faster than looking for one.
        const FEW: usize = 8;
        let shard = shard(&self.shards, address);
        if shard.len() <= FEW {
            return shard.iter().any(|known| known.hop.address.ip() == address);
        }
        let first = self.first_from(SocketAddr::new(address, 0));
        first.is_some_and(|hop| hop.address.ip() == address)
    }

    /// Whether some route leads to this address and port.
    #[inline]
    pub(super) fn has_next_hop(&self, address: SocketAddr) -> bool {
        let is_it = |hop: &NextHop| hop.address.ip() == address.ip() && hop.address.port() == address.port();
        self.ports & port_bit(address.port()) != 0 && self.first_from(address).is_some_and(is_it)
    }

    /// The first next hop, in the order of their addresses, that is not before this one; looked for in its shard alone.
    #[inline]
    fn first_from(&self, address: SocketAddr) -> Option<&NextHop> {
        let shard = shard(&self.shards, address.ip());
        let at = shard.partition_point(|known| known.hop.address < address);
        shard.get(at).map(|known| &known.hop)
    }

    /// Whether few of its places are in use, of more than a handful of chunks.
    pub(super) fn is_sparse(&self) -> bool {
        super::is_sparse(self.chunks.len(), CHUNK, self.in_use)
    }

    /// The number of a next hop, for one more route.
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

    /// One route fewer leads to this next hop; with the last one it is forgotten.
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

/// Makes a chunk's worth of free places and returns the first.
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

/// Spreads addresses that differ only in their last bits, as the hosts of a rack do.
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

    /// 256 numbers drawn at random would leave a third of 256 shards empty.
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
