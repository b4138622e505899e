//! The peers that fill a shared socket: what each is sent, as far as it matters.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Exit, LOOK_EVERY, Leaving, Moved, key_of};
use crate::sys::syscall::SendBacklog;

/// The number of peers whose bytes are counted while a shared socket fills.
pub(super) const SUSPECTS_MAX: usize = 64;

/// The number of bytes that a shared socket sends between two queries of its fill level. A query takes a thousandth
/// of the time of sending them.
pub(super) const BYTES_UNCHECKED: usize = 128 << 10;

/// Returns `true` if a shared socket is so full that bytes are counted for each peer.
pub(in crate::sys::udp) fn is_filling(backlog: SendBacklog) -> bool {
    backlog.charged >= backlog.limit / 8
}

/// Returns `true` if a shared socket is so full that a peer has to leave it.
pub(in crate::sys::udp) fn is_crowded(backlog: SendBacklog) -> bool {
    backlog.charged >= backlog.limit / 4
}

/// The bytes that one transport sends by the shared sockets.
#[derive(Debug)]
pub(in crate::sys::udp) struct Meter {
    /// The number of bytes sent since the last query of a fill level.
    unchecked: AtomicUsize,
    /// The number of bytes after which the fill level is queried.
    check_every: AtomicUsize,
    /// Set while a socket fills and bytes are counted for each peer.
    pub(super) is_counting: AtomicBool,
    suspects: Mutex<Suspects>,
}

impl Default for Meter {
    fn default() -> Self {
        let (peers, backlog) = ([Suspect::default(); SUSPECTS_MAX], SendBacklog { charged: 0, limit: usize::MAX });
        let suspects = Suspects { len: 0, peers, backlog, cleared: Vec::new(), left_at: Vec::new(), aged_at: None };
        Self {
            unchecked: AtomicUsize::new(0),
            check_every: AtomicUsize::new(BYTES_UNCHECKED),
            is_counting: AtomicBool::new(false),
            suspects: Mutex::new(suspects),
        }
    }
}

impl Meter {
    /// Adds bytes that were sent. Returns `true` if [`find`](Self::find) is to be called.
    #[inline]
    pub(in crate::sys::udp) fn count(&self, bytes: usize) -> bool {
        // Threads that send by the same transport may lose a few bytes of each other.
        let unchecked = self.unchecked.load(Ordering::Relaxed) + bytes;
        self.unchecked.store(unchecked, Ordering::Relaxed);
        unchecked >= self.check_every.load(Ordering::Relaxed) || self.is_counting.load(Ordering::Relaxed)
    }

    /// Counts what was sent, and finds the peer that has to leave the socket of a port, if any. `refused` is the peer
    /// for which the socket was full.
    #[cold]
    pub(in crate::sys::udp) fn find(
        &self,
        port: usize,
        sent: impl Iterator<Item = (SocketAddr, usize)>,
        refused: Option<SocketAddr>,
        moved: &Moved,
        backlog: impl FnOnce() -> io::Result<SendBacklog>,
    ) -> io::Result<Option<Leaving>> {
        let mut suspects = self.suspects();
        for (peer, bytes) in sent {
            suspects.add(key_of(peer), bytes.max(1));
        }
        if refused.is_none() && self.unchecked.load(Ordering::Relaxed) < self.check_every.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.unchecked.store(0, Ordering::Relaxed);
        let backlog = backlog()?;
        suspects.backlog = backlog;
        self.check_every.store(BYTES_UNCHECKED.min(backlog.limit / 16), Ordering::Relaxed);
        self.is_counting.store(is_filling(backlog), Ordering::Relaxed);
        if !is_filling(backlog) {
            suspects.forget_all();
        }
        if let Some(peer) = refused.map(key_of).filter(|_| is_crowded(backlog)) {
            return Ok(Some(Leaving { peer, may_be_limited: suspects.has_filled(peer) }));
        }
        Ok(suspects.take(port, backlog, moved).map(|peer| Leaving { peer, may_be_limited: true }))
    }

    /// Limits every peer that can have filled a socket, if no further one can be limited by itself.
    #[cold]
    pub(in crate::sys::udp) fn limit_suspects(&self, moved: &mut Moved) {
        let suspects = self.suspects();
        let enough = suspects.share().min(suspects.backlog.limit / 64);
        for suspect in suspects.known().filter(|suspect| suspect.own() >= enough) {
            if moved.index_of(suspect.peer).is_none() {
                moved.set(suspect.peer, Exit::Limited);
            }
        }
    }

    /// Notes how full the socket is that a limited peer sends by. If it is crowded, the peer is refused.
    #[cold]
    pub(in crate::sys::udp) fn note_limited(&self, peer: SocketAddr, backlog: SendBacklog) {
        let (mut suspects, peer) = (self.suspects(), key_of(peer));
        suspects.backlog = backlog;
        if let Some(suspect) = suspects.find_mut(peer) {
            suspect.is_refused |= is_crowded(backlog);
        }
    }

    /// Halves the counted bytes once a second.
    #[inline]
    pub(in crate::sys::udp) fn age(&self, now: Instant) {
        if self.is_counting.load(Ordering::Relaxed) {
            self.suspects().age(now);
        }
    }

    /// Updates the suspects after a peer got a lane, and another peer with a fast path lost it.
    #[cold]
    pub(in crate::sys::udp) fn has_left(&self, peer: Leaving, evicted: Option<u64>) {
        let mut suspects = self.suspects();
        suspects.forget(peer.peer);
        if let Some(evicted) = evicted {
            suspects.clear(evicted);
        }
    }

    pub(super) fn suspects(&self) -> MutexGuard<'_, Suspects> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peers that were sent most. Every peer that was sent more than a 64th of all bytes is among them (Metwally and
/// others, "Efficient Computation of Frequent and Top-k Elements in Data Streams", 2005).
#[derive(Debug)]
pub(super) struct Suspects {
    len: usize,
    peers: [Suspect; SUSPECTS_MAX],
    /// The fill level of the socket that was queried last.
    backlog: SendBacklog,
    /// The peers whose lane stayed empty. They are not suspected again before the socket is nearly empty.
    cleared: Vec<u64>,
    /// For each port, the bytes that were charged to its socket when a peer left it last, or the least since then.
    left_at: Vec<usize>,
    aged_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Suspect {
    pub(super) peer: u64,
    /// Bytes that it was sent at most.
    pub(super) sum: usize,
    /// The bytes among them that may be those of peers that had its place before.
    inherited: usize,
    /// Set if it was refused as a limited peer since the last halving.
    is_refused: bool,
}

impl Suspect {
    /// Bytes that it was sent at least.
    fn own(&self) -> usize {
        self.sum - self.inherited
    }
}

impl Suspects {
    pub(super) fn known(&self) -> impl Iterator<Item = &Suspect> {
        self.peers.iter().take(self.len)
    }

    fn find_mut(&mut self, peer: u64) -> Option<&mut Suspect> {
        self.peers.iter_mut().take(self.len).find(|known| known.peer == peer)
    }

    #[cold]
    fn age(&mut self, now: Instant) {
        if self.aged_at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY) {
            self.aged_at = Some(now);
            let enough = self.backlog.limit / 64;
            for known in &mut self.peers {
                // A peer that is refused for what it was sent is not to be sent as much again every second.
                if !known.is_refused || known.own() < enough {
                    (known.sum, known.inherited) = (known.sum / 2, known.inherited / 2);
                }
                known.is_refused = false;
            }
        }
    }

    /// Returns the peer that was sent most and has not moved, if a socket is crowded and has filled further since a
    /// peer left it. What that peer was sent stays in the socket.
    fn take(&mut self, port: usize, backlog: SendBacklog, moved: &Moved) -> Option<u64> {
        let SendBacklog { charged, limit } = backlog;
        if self.left_at.len() <= port {
            self.left_at.resize(port + 1, 0);
        }
        let left_at = self.left_at.get_mut(port)?;
        // A change by a few batches means nothing.
        *left_at = (charged + limit / 8).min(*left_at);
        if !is_crowded(backlog) || charged < *left_at + limit / 64 {
            return None;
        }
        let stays = self.known().filter(|suspect| moved.index_of(suspect.peer).is_none());
        let &Suspect { peer, .. } = stays.max_by_key(|suspect| suspect.sum)?;
        if !self.has_filled(peer) {
            return None;
        }
        if let Some(left_at) = self.left_at.get_mut(port) {
            *left_at = charged;
        }
        Some(peer)
    }

    /// Returns `true` if a peer can have filled a socket: not if it was sent little, or much less than another peer.
    fn has_filled(&self, peer: u64) -> bool {
        let sum = self.known().find(|known| known.peer == peer).map_or(0, |known| known.sum);
        sum >= self.enough()
    }

    /// Returns the least number of bytes with which a peer can have filled a socket.
    fn enough(&self) -> usize {
        let most = self.known().map(|known| known.sum).max().unwrap_or(0);
        (self.backlog.limit / 64).max(most / 4).min(self.share())
    }

    /// Returns each peer's share of half of the room that is left in a socket which is half full.
    fn share(&self) -> usize {
        let SendBacklog { charged, limit } = self.backlog;
        if charged < limit / 2 { usize::MAX } else { limit.saturating_sub(charged) / 2 / self.len.max(1) }
    }

    fn forget(&mut self, peer: u64) {
        if let Some(index) = self.peers.iter().take(self.len).position(|known| known.peer == peer) {
            self.len -= 1;
            self.peers.swap(index, self.len);
        }
    }

    fn add(&mut self, peer: u64, bytes: usize) {
        if self.cleared.contains(&peer) {
            return;
        }
        if let Some(known) = self.find_mut(peer) {
            known.sum += bytes;
        } else if let Some(slot) = self.peers.get_mut(self.len) {
            *slot = Suspect { peer, sum: bytes, ..Suspect::default() };
            self.len += 1;
        } else if let Some(least) = self.peers.iter_mut().min_by_key(|known| known.sum) {
            *least = Suspect { peer, sum: least.sum + bytes, inherited: least.sum, is_refused: false };
        }
    }

    fn clear(&mut self, peer: u64) {
        // With so many, the oldest entries are outdated.
        if self.cleared.len() == SUSPECTS_MAX {
            self.cleared.clear();
        }
        self.cleared.push(peer);
    }

    fn forget_all(&mut self) {
        self.len = 0;
        self.cleared.clear();
    }
}
