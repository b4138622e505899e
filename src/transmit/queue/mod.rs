//! The send queue: datagrams that wait for the socket, with one queue for each peer.

mod chunk;
mod peers;
mod pending;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use self::chunk::{CHUNK_LEN, Chunk};
use self::peers::BUCKETS;
pub use self::pending::PendingPacket;
use super::{BATCH_BYTES_MAX, Transmit, Way};

/// The index of no chunk and no peer.
const NONE: u16 = u16::MAX;

/// The most batches in one selection.
pub const SELECTED_MAX: usize = 8;

/// Bytes that one peer sends before the next one's turn: one full batch, so that each turn sends something.
const QUANTUM: usize = CHUNK_LEN;

/// Chunks that blocked peers always leave to the others.
const CHUNKS_RESERVED: usize = 16;

/// The limits of a send queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueLimits {
    /// Bytes for each peer. Default 1 MiB.
    pub per_peer: usize,
    /// Bytes for all peers together, in steps of 64 KiB and at least 2 MiB. Default 8 MiB. Only memory that was used
    /// once is resident.
    pub total: usize,
}

impl QueueLimits {
    /// Returns limits in bytes, for each peer and for all together.
    #[must_use]
    pub const fn new(per_peer: usize, total: usize) -> Self {
        Self { per_peer, total }
    }
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { per_peer: 1 << 20, total: 8 << 20 }
    }
}

/// Datagrams that wait for the socket, as GSO batches of each peer.
///
/// ```text
///  10.168.0.3   │ 1472 1472 800 │ 64 64 64 │        ready
///  10.168.0.4   │ 1472 1472 1472 1472 1472 │ ...   blocked until its path takes more
///  10.168.0.5   │ 100 │                           ready
/// ```
///
/// - Peers are served in turn, each with at most 64 KiB (the idea of deficit round robin, Shreedhar and Varghese 1995).
///   Blocked peers are skipped.
/// - A peer with [`QueueLimits::per_peer`] queued bytes accepts no more. The bytes of all peers are limited, too. A
///   blocked peer loses its newest packets before it takes the last room from others.
/// - The datagrams of a peer and flow leave in their order of arrival. A batch ends with the first datagram that is
///   shorter than the others, or when it is full.
/// - A packet may be several datagrams. They are queued together or not at all. The packet is sent when all of them
///   are, and lost when any of them is. Either is reported exactly once.
///
/// Peers without queued datagrams use no memory and no time.
///
/// # Backpressure
/// There is none to the senders. A TUN device that is not read fills its own queue, and then blocks or drops the packets of
/// every pod, for every peer. The TUN is therefore always read, and a peer whose queue is full drops its newest packets. A
/// pod's TCP sees loss and slows down, as behind a router whose link is full. A pod's UDP socket does not block and gets no
/// error. The counters and the send errors of the peer count the dropped packets.
#[derive(Debug)]
pub struct SendQueue {
    limits: QueueLimits,
    chunks: Vec<Chunk>,
    free_chunks: Vec<u16>,
    chunks_max: usize,
    peers: Vec<Peer>,
    free_peers: Vec<u16>,
    buckets: [u16; BUCKETS],
    /// The peer of the newest datagram.
    newest: u16,
    ready: VecDeque<u16>,
    blocked: Vec<u16>,
    selected: [Selected; SELECTED_MAX],
    selected_len: usize,
    packets: u64,
    bytes: usize,
}

/// The queue of one peer.
#[derive(Clone, Copy, Debug)]
struct Peer {
    destination: SocketAddr,
    head: u16,
    tail: u16,
    chunks: usize,
    bytes: usize,
    /// The next peer in the same bucket.
    next: u16,
    /// The first block since its last sent datagram, and the retry.
    blocked: Option<Blocked>,
    /// The next batch to select: a chunk, and the number of a batch in it.
    cursor: (u16, usize),
}

/// A batch of the selection.
#[derive(Clone, Copy, Debug)]
struct Selected {
    peer: u16,
    chunk: u16,
    batch: usize,
}

#[derive(Clone, Copy, Debug)]
struct Blocked {
    since: Duration,
    retry_at: Duration,
}

/// Packets of a peer that are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The peer.
    pub destination: SocketAddr,
    /// Packets that were not lost before.
    pub packets: u64,
}

impl SendQueue {
    /// Returns an empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        Self::with_chunks(limits, (limits.total / CHUNK_LEN).clamp(2 * CHUNKS_RESERVED, NONE.into()))
    }

    /// Returns a queue that accepts nothing and takes little memory.
    #[cfg(feature = "sim")]
    pub(crate) fn without_room() -> Self {
        Self::with_chunks(QueueLimits::new(0, 0), 0)
    }

    fn with_chunks(limits: QueueLimits, chunks_max: usize) -> Self {
        Self {
            limits,
            chunks: Vec::with_capacity(chunks_max),
            free_chunks: Vec::with_capacity(chunks_max),
            chunks_max,
            // Each peer has at least one chunk.
            peers: Vec::with_capacity(chunks_max),
            free_peers: Vec::with_capacity(chunks_max),
            buckets: [NONE; BUCKETS],
            newest: NONE,
            ready: VecDeque::with_capacity(chunks_max),
            blocked: Vec::with_capacity(chunks_max),
            selected: [Selected { peer: NONE, chunk: NONE, batch: 0 }; SELECTED_MAX],
            selected_len: 0,
            packets: 0,
            bytes: 0,
        }
    }

    /// Returns whether no datagram is queued.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.blocked.is_empty()
    }

    /// Returns the number of queued packets, without lost ones.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Returns the number of queued bytes.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Begins to add a packet: see [`PendingPacket`].
    #[inline]
    pub fn begin(&mut self, way: &Way) -> PendingPacket<'_> {
        let peer = self.find(way.destination);
        let chunk = peer.map_or(NONE, |peer| self.newest_chunk(peer, way.flow));
        let mark = self.chunk(chunk).map(Chunk::mark);
        PendingPacket { way: *way, peer: peer.unwrap_or(NONE), chunk, first: chunk, mark, bytes: 0, queue: self }
    }

    /// Selects the batches to send next, in turn among the peers that are not blocked. Returns their number, which is 0
    /// if nothing can be sent. It replaces the former selection.
    #[inline]
    pub fn select(&mut self) -> usize {
        self.selected_len = 0;
        let mut is_first_pass = true;
        loop {
            let before = self.selected_len;
            for turn in 0..self.ready.len() {
                if self.selected_len == SELECTED_MAX {
                    return self.selected_len;
                }
                let Some(&at) = self.ready.get(turn) else { break };
                self.select_from(at, is_first_pass);
            }
            is_first_pass = false;
            if self.selected_len == before {
                return self.selected_len;
            }
        }
    }

    /// Selects one turn of a peer.
    #[inline]
    fn select_from(&mut self, at: u16, is_first: bool) {
        let Self { peers, chunks, selected, selected_len, .. } = self;
        let Some(peer) = peers.get_mut(usize::from(at)) else { return };
        if is_first {
            peer.cursor = (peer.head, chunks.get(usize::from(peer.head)).map_or(0, Chunk::front));
        }
        let mut left = QUANTUM;
        while let Some(chunk) = chunks.get(usize::from(peer.cursor.0)) {
            let Some(batch) = chunk.batch(peer.cursor.1) else {
                peer.cursor = (chunk.next, 0);
                continue;
            };
            let Some(slot) = selected.get_mut(*selected_len).filter(|_| batch.bytes_left() <= left) else { break };
            *slot = Selected { peer: at, chunk: peer.cursor.0, batch: peer.cursor.1 };
            *selected_len += 1;
            left -= batch.bytes_left();
            peer.cursor.1 += 1;
        }
    }

    /// Returns batch number `index` of the selection.
    #[must_use]
    #[inline]
    pub fn batch(&self, index: usize) -> Option<Transmit<'_>> {
        let selected = self.selected.get(..self.selected_len)?.get(index)?;
        let (peer, chunk) = (self.peer(selected.peer)?, self.chunk(selected.chunk)?);
        let batch = chunk.batch(selected.batch)?;
        Some(Transmit {
            destination: peer.destination,
            contents: chunk.contents(batch)?,
            segment_size: batch.segment_size(),
            ecn: batch.ecn,
            flow: chunk.flow,
        })
    }

    /// Marks the first `batches` of the selection as sent, whole. Returns the number of packets that are completely
    /// sent now.
    #[inline]
    pub fn sent(&mut self, batches: usize) -> u64 {
        let mut packets = 0;
        for index in 0..batches.min(self.selected_len) {
            let selected = self.selected.get(..self.selected_len).unwrap_or_default();
            let peer_of = |index: usize| selected.get(index).map_or(NONE, |selected: &Selected| selected.peer);
            let (peer, next) = (peer_of(index), peer_of(index + 1));
            packets += self.advance_peer(peer, usize::MAX);
            // The peer's turn is over, so it goes to the end.
            if next != peer && self.ready.front() == Some(&peer) {
                self.ready.rotate_left(1);
            }
        }
        self.selected.copy_within(batches.min(self.selected_len)..self.selected_len, 0);
        self.selected_len -= batches.min(self.selected_len);
        packets
    }

    /// Marks the next `datagrams` of the first batch of the selection as sent. Returns the number of packets that are
    /// completely sent now.
    pub fn advance(&mut self, datagrams: usize) -> u64 {
        self.first_selected().map_or(0, |peer| self.advance_peer(peer, datagrams))
    }

    /// Returns the next datagram of the first batch of the selection.
    pub fn datagram_mut(&mut self) -> Option<&mut [u8]> {
        let peer = self.first_selected()?;
        let head = self.peer(peer)?.head;
        self.chunk_mut(head)?.datagram_mut()
    }

    /// Selects only the first batch of the selection, after a part of it was sent.
    pub fn select_first_again(&mut self) {
        self.selected_len = self.selected_len.min(1);
    }

    /// Returns whether the packet of the next datagram of the first batch is lost already.
    #[must_use]
    pub fn next_is_lost(&self) -> bool {
        let head = self.first_selected().and_then(|peer| self.peer(peer)).map_or(NONE, |peer| peer.head);
        let Some(flow) = self.chunk(head).map(|chunk| chunk.flow) else { return false };
        let mut at = head;
        while let Some(chunk) = self.chunk(at) {
            if chunk.flow == flow
                && let Some(is_lost) = chunk.next_end_is_lost()
            {
                return is_lost;
            }
            at = chunk.next;
        }
        false
    }

    /// Returns whether little room is left, so that the caller should flush.
    #[must_use]
    #[inline]
    pub fn is_short(&self) -> bool {
        self.free() < CHUNKS_RESERVED / 2
    }

    /// Removes the next `datagrams` of the first batch of the selection. Marks every packet that they are part of as
    /// lost.
    pub fn lose(&mut self, datagrams: usize) -> Option<Lost> {
        let at = self.first_selected()?;
        let Peer { destination, head, .. } = *self.peer(at)?;
        let (mut packets, goes_on) = self.chunk_mut(head)?.lose_ends(datagrams);
        if goes_on && self.lose_rest_of_packet(head, datagrams) {
            packets += 1;
        }
        self.packets -= packets;
        self.advance_peer(at, datagrams);
        Some(Lost { destination, packets })
    }

    /// Marks the peer of the first batch of the selection as blocked. It is not selected before `retry_at` or
    /// [`unblock_all`](Self::unblock_all). If little room is left, the blocked peers that use most lose their newest packets,
    /// which are reported.
    pub fn block(&mut self, now: Duration, retry_at: Duration, mut report: impl FnMut(Lost)) {
        let Some(at) = self.first_selected() else { return };
        self.selected_len = 0;
        let Some(peer) = self.peer_mut(at) else { return };
        let since = peer.blocked.map_or(now, |blocked| blocked.since);
        peer.blocked = Some(Blocked { since, retry_at });
        self.ready.retain(|ready| *ready != at);
        self.blocked.push(at);
        while self.free() < CHUNKS_RESERVED {
            let most = self.blocked.iter().filter_map(|at| Some((self.peer(*at)?, *at)));
            let most = most.max_by_key(|(peer, _)| peer.chunks).map(|(peer, at)| (peer.destination, at));
            let Some((destination, at)) = most else { return };
            let packets = self.drop_newest_chunk(at);
            report(Lost { destination, packets });
        }
    }

    /// Returns the time of the first block of the peer of the first batch of the selection, if none of its datagrams
    /// was sent since.
    #[must_use]
    pub fn blocked_since(&self) -> Option<Duration> {
        let peer = self.peer(self.first_selected()?)?;
        peer.blocked.map(|blocked| blocked.since)
    }

    /// Returns the time of the next retry of a blocked peer.
    #[must_use]
    pub fn retry_at(&self) -> Option<Duration> {
        self.blocked.iter().filter_map(|at| Some(self.peer(*at)?.blocked?.retry_at)).min()
    }

    /// Unblocks the peers whose retry is due.
    #[inline]
    pub fn unblock(&mut self, now: Duration) {
        if !self.blocked.is_empty() {
            self.unblock_if(|blocked| blocked.retry_at <= now);
        }
    }

    /// Unblocks all peers.
    pub fn unblock_all(&mut self) {
        self.unblock_if(|_| true);
    }

    /// Drops all datagrams of the peers for which `is_gone` returns true, and reports the lost packets of each.
    pub fn drop_peers(&mut self, is_gone: impl Fn(SocketAddr) -> bool, mut report: impl FnMut(Lost)) {
        self.selected_len = 0;
        for index in (0..self.peers.len()).rev() {
            let at = index as u16;
            let Some(Peer { destination, head, .. }) = self.peer(at).copied() else { continue };
            if head == NONE || !is_gone(destination) {
                continue;
            }
            let mut packets = 0;
            while self.peer(at).is_some_and(|peer| peer.head != NONE) {
                packets += self.drop_newest_chunk(at);
            }
            report(Lost { destination, packets });
        }
    }

    #[inline]
    fn first_selected(&self) -> Option<u16> {
        self.selected.get(..self.selected_len)?.first().map(|selected| selected.peer)
    }

    #[inline]
    fn advance_peer(&mut self, at: u16, datagrams: usize) -> u64 {
        let Some(head) = self.peer(at).map(|peer| peer.head) else { return 0 };
        let Some(chunk) = self.chunk_mut(head) else { return 0 };
        let (packets, bytes) = chunk.advance(datagrams);
        let (is_empty, next) = (chunk.is_empty(), chunk.next);
        self.packets -= packets;
        self.bytes -= bytes;
        if let Some(peer) = self.peer_mut(at) {
            peer.bytes -= bytes;
            if datagrams > 0 {
                peer.blocked = None;
            }
            if is_empty {
                peer.head = next;
                peer.chunks -= 1;
                let is_done = next == NONE;
                self.free_chunks.push(head);
                if is_done {
                    self.remove_peer(at);
                }
            }
        }
        packets
    }

    /// Marks the packet behind the next `datagrams` of a chunk as lost. Returns whether it was not lost before.
    fn lose_rest_of_packet(&mut self, head: u16, datagrams: usize) -> bool {
        let (mut at, mut skip) = (head, datagrams);
        let Some(flow) = self.chunk(head).map(|chunk| chunk.flow) else { return false };
        while let Some(chunk) = self.chunk_mut(at) {
            if chunk.flow == flow
                && let Some(is_news) = chunk.lose_next_end(skip)
            {
                return is_news;
            }
            (at, skip) = (chunk.next, 0);
        }
        false
    }

    fn unblock_if(&mut self, is_due: impl Fn(&Blocked) -> bool) {
        let Self { peers, ready, blocked, .. } = self;
        blocked.retain(|at| {
            let peer = peers.get(usize::from(*at));
            let stays = peer.and_then(|peer| peer.blocked.as_ref()).is_some_and(|blocked| !is_due(blocked));
            if !stays {
                ready.push_back(*at);
            }
            stays
        });
    }

    /// Drops the last chunk of a peer, and the peer if it has no other. Returns the number of lost packets.
    fn drop_newest_chunk(&mut self, at: u16) -> u64 {
        let Some(Peer { head, tail, .. }) = self.peer(at).copied() else { return 0 };
        let Some(chunk) = self.chunk(tail) else { return 0 };
        let (packets, bytes, flow) = (chunk.sound_packets(), chunk.bytes_waiting(), chunk.flow);
        self.packets -= packets;
        self.bytes -= bytes;
        self.unlink_tail(at, bytes);
        // A packet that began in an earlier chunk is lost. It ends at the cut now.
        if head != tail
            && let Some(peer) = self.peer(at)
            && let former = self.newest_chunk_of(peer, flow)
            && let Some(former) = self.chunk_mut(former)
        {
            former.end_lost_packet();
        }
        packets
    }

    /// Frees the last chunk of a peer, and removes the peer if it has no other.
    fn unlink_tail(&mut self, at: u16, bytes: usize) {
        let Some(Peer { head, tail, .. }) = self.peer(at).copied() else { return };
        let mut before = head;
        while let Some(next) = self.chunk(before).map(|chunk| chunk.next).filter(|next| *next != tail && *next != NONE)
        {
            before = next;
        }
        self.free_chunks.push(tail);
        if head == tail {
            return self.remove_peer(at);
        }
        if let Some(before) = self.chunk_mut(before) {
            before.next = NONE;
        }
        if let Some(peer) = self.peer_mut(at) {
            peer.tail = before;
            peer.chunks -= 1;
            peer.bytes -= bytes;
        }
    }

    /// Returns the number of chunks that are free or can be allocated.
    #[inline]
    fn free(&self) -> usize {
        self.free_chunks.len() + (self.chunks_max - self.chunks.len())
    }

    /// Appends an empty chunk to the queue of a peer, which is created if it is new.
    fn grow(&mut self, peer: u16, way: &Way) -> Option<(u16, u16)> {
        let free = self.free();
        let (blocked, chunks) = self.peer(peer).map_or((false, 0), |peer| (peer.blocked.is_some(), peer.chunks));
        // A blocked peer's share shrinks as use grows (dynamic thresholds, Choudhury and Hahne 1998).
        // Small packets of many flows fill chunks by little, so that their number is limited beside their bytes.
        let most = (2 * self.limits.per_peer / CHUNK_LEN).clamp(1, free.saturating_sub(CHUNKS_RESERVED).max(1));
        if free == 0 || (blocked && (chunks >= most || free <= CHUNKS_RESERVED)) {
            return None;
        }
        let chunk = self.free_chunks.pop().unwrap_or_else(|| {
            self.chunks.push(Chunk::new());
            (self.chunks.len() - 1) as u16
        });
        self.chunk_mut(chunk)?.reset(way.flow);
        let at = if peer == NONE { self.add_peer(way.destination, chunk) } else { peer };
        let peer = self.peer_mut(at)?;
        peer.chunks += 1;
        let tail = core::mem::replace(&mut peer.tail, chunk);
        if tail != chunk
            && let Some(tail) = self.chunk_mut(tail)
        {
            tail.next = chunk;
        }
        Some((at, chunk))
    }

    #[inline]
    fn newest_chunk(&self, peer: u16, flow: u16) -> u16 {
        self.peer(peer).map_or(NONE, |peer| self.newest_chunk_of(peer, flow))
    }

    /// Returns the newest chunk of a peer and flow: the only one that may be extended.
    #[inline]
    fn newest_chunk_of(&self, peer: &Peer, flow: u16) -> u16 {
        if self.chunk(peer.tail).is_some_and(|chunk| chunk.flow == flow) {
            return peer.tail;
        }
        let (mut at, mut newest) = (peer.head, NONE);
        while let Some(chunk) = self.chunk(at) {
            if chunk.flow == flow {
                newest = at;
            }
            at = chunk.next;
        }
        newest
    }

    #[inline]
    fn chunk(&self, at: u16) -> Option<&Chunk> {
        self.chunks.get(usize::from(at))
    }

    #[inline]
    fn chunk_mut(&mut self, at: u16) -> Option<&mut Chunk> {
        self.chunks.get_mut(usize::from(at))
    }
}

#[cfg(test)]
mod tests;
