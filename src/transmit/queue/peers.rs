//! The peers of a send queue, found by their destinations: a hash table with lists, without memory for idle peers.

use core::net::{IpAddr, SocketAddr};

use super::{NONE, Peer, SendQueue};

/// Lists of peers.
pub(super) const BUCKETS: usize = 256;

impl SendQueue {
    /// Adds a peer with its first chunk. It is served last.
    pub(super) fn add_peer(&mut self, destination: SocketAddr, chunk: u16) -> u16 {
        let bucket = self.buckets.get_mut(bucket_of(destination));
        let next = bucket.as_ref().map_or(NONE, |bucket| **bucket);
        let peer = Peer {
            destination,
            head: chunk,
            tail: chunk,
            chunks: 0,
            bytes: 0,
            next,
            blocked: None,
            cursor: (chunk, 0),
        };
        let at = self.free_peers.pop().unwrap_or(self.peers.len() as u16);
        if let Some(bucket) = bucket {
            *bucket = at;
        }
        match self.peers.get_mut(usize::from(at)) {
            Some(free) => *free = peer,
            None => self.peers.push(peer),
        }
        self.ready.push_back(at);
        at
    }

    /// Removes a peer for which nothing waits any more.
    pub(super) fn remove_peer(&mut self, at: u16) {
        let Some(Peer { destination, next, .. }) = self.peer(at).copied() else { return };
        let Self { peers, buckets, .. } = self;
        if let Some(bucket) = buckets.get_mut(bucket_of(destination)) {
            if *bucket == at {
                *bucket = next;
            } else {
                let mut before = usize::from(*bucket);
                while let Some(peer) = peers.get_mut(before) {
                    if peer.next == at {
                        peer.next = next;
                        break;
                    }
                    before = usize::from(peer.next);
                }
            }
        }
        if let Some(peer) = peers.get_mut(usize::from(at)) {
            (peer.head, peer.tail, peer.bytes) = (NONE, NONE, 0);
        }
        if self.ready.front() == Some(&at) {
            self.ready.pop_front();
        } else {
            self.ready.retain(|ready| *ready != at);
            self.blocked.retain(|blocked| *blocked != at);
        }
        if self.newest == at {
            self.newest = NONE;
        }
        self.free_peers.push(at);
    }

    /// Returns the peer of a destination, if datagrams for it wait.
    #[inline]
    pub(super) fn find(&mut self, destination: SocketAddr) -> Option<u16> {
        if self.peer(self.newest).is_some_and(|peer| peer.destination == destination) {
            return Some(self.newest);
        }
        let mut at = *self.buckets.get(bucket_of(destination))?;
        while let Some(peer) = self.peer(at) {
            if peer.destination == destination {
                self.newest = at;
                return Some(at);
            }
            at = peer.next;
        }
        None
    }

    #[inline]
    pub(super) fn peer(&self, at: u16) -> Option<&Peer> {
        self.peers.get(usize::from(at))
    }

    #[inline]
    pub(super) fn peer_mut(&mut self, at: u16) -> Option<&mut Peer> {
        self.peers.get_mut(usize::from(at))
    }
}

/// Returns the bucket of an address. Multiplication by a large odd number mixes the upper bits well.
#[inline]
fn bucket_of(destination: SocketAddr) -> usize {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let address = match destination.ip() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64 ^ address.to_bits() as u64,
    };
    let mixed = (address ^ u64::from(destination.port()) << 32).wrapping_mul(MULTIPLIER);
    (mixed >> 56) as usize
}
