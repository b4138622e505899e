//! Datagrams that wait for the socket: a queue for each peer, served in turn.

mod chunk;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use self::chunk::{CHUNK_LEN, Chunk, Mark};
use super::{BATCH_BYTES_MAX, Transmit, Way};

/// The index of nothing.
const NONE: u16 = u16::MAX;

/// Lists that peers are found by.
const BUCKETS: usize = 256;

/// Batches that are selected at once.
pub const SELECTED_MAX: usize = 8;

/// Bytes that one peer sends before it is another one's turn: one full batch, so that each turn sends something.
const QUANTUM: usize = CHUNK_LEN;

/// Chunks that a peer which takes nothing never keeps from the others.
const CHUNKS_RESERVED: usize = 16;

/// How much may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Bytes for each peer. Default 1 MiB.
    pub per_peer: usize,
    /// Bytes for all peers together, in steps of 64 KiB and at least 2 MiB. Default 8 MiB. Only what was in use once is
    /// resident.
    pub total: usize,
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
/// - Peers are served in turn, each at most 64 KiB at a time (the idea of deficit round robin, Shreedhar and Varghese 1995).
///   A peer whose path takes nothing is passed over.
/// - A peer that has [`QueueLimits::per_peer`] bytes takes no more. What all peers may have is limited, too: a peer that is
///   blocked gives up its newest packets rather than the last room of the others.
/// - The datagrams of a peer and flow leave in the order in which they came. A batch ends with the first datagram that is
///   shorter than the others, or when it is full.
/// - A packet may be several datagrams. They are put in together or not at all. The packet is sent when all of them are, and
///   lost when any of them is; either is reported exactly once.
///
/// Peers for which nothing waits take no room and no time.
#[derive(Debug)]
pub struct SendQueue {
    limits: QueueLimits,
    chunks: Vec<Chunk>,
    free_chunks: Vec<u16>,
    chunks_max: usize,
    peers: Vec<Peer>,
    free_peers: Vec<u16>,
    buckets: [u16; BUCKETS],
    /// The peer that a datagram was put in for last.
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
    /// The next peer in the same list.
    next: u16,
    /// Since when its path takes nothing.
    blocked: Option<Blocked>,
    /// The next batch to select: a chunk, and the number of a batch in it.
    cursor: (u16, usize),
}

/// A batch that is sent next.
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

/// Packets of a peer that will not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The peer.
    pub destination: SocketAddr,
    /// Packets that were not lost before.
    pub packets: u64,
}

impl SendQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        let chunks_max = (limits.total / CHUNK_LEN).clamp(2 * CHUNKS_RESERVED, NONE.into());
        Self {
            limits,
            chunks: Vec::with_capacity(chunks_max),
            free_chunks: Vec::with_capacity(chunks_max),
            chunks_max,
            // Each of them has a chunk at least.
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

    /// Whether nothing waits.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.blocked.is_empty()
    }

    /// Packets that wait, without those that are lost already.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Bytes that wait.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Begins to put in a packet: see [`PendingPacket`].
    #[inline]
    pub fn begin(&mut self, way: &Way) -> PendingPacket<'_> {
        let peer = self.find(way.destination);
        let chunk = peer.map_or(NONE, |peer| self.newest_chunk(peer, way.flow));
        let mark = self.chunk(chunk).map(Chunk::mark);
        PendingPacket { way: *way, peer: peer.unwrap_or(NONE), chunk, first: chunk, mark, bytes: 0, queue: self }
    }

    /// Selects what to send next, in turn among the peers whose path takes something. Returns how many batches: none if nothing
    /// can be sent. A former selection is forgotten.
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

    /// The batch number `index` of the selection.
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

    /// Takes the first `batches` of the selection as sent, whole. Returns how many packets have been sent with that.
    #[inline]
    pub fn sent(&mut self, batches: usize) -> u64 {
        let mut packets = 0;
        for index in 0..batches.min(self.selected_len) {
            let selected = self.selected.get(..self.selected_len).unwrap_or_default();
            let peer_of = |index: usize| selected.get(index).map_or(NONE, |selected: &Selected| selected.peer);
            let (peer, next) = (peer_of(index), peer_of(index + 1));
            packets += self.advance_peer(peer, usize::MAX);
            // Its turn is over: the others come first.
            if next != peer && self.ready.front() == Some(&peer) {
                self.ready.rotate_left(1);
            }
        }
        self.selected.copy_within(batches.min(self.selected_len)..self.selected_len, 0);
        self.selected_len -= batches.min(self.selected_len);
        packets
    }

    /// Takes the next `datagrams` of the first batch of the selection as sent. Returns how many packets have been sent with that.
    pub fn advance(&mut self, datagrams: usize) -> u64 {
        self.first_selected().map_or(0, |peer| self.advance_peer(peer, datagrams))
    }

    /// The next datagram of the first batch of the selection.
    pub fn datagram_mut(&mut self) -> Option<&mut [u8]> {
        let peer = self.first_selected()?;
        let head = self.peer(peer)?.head;
        self.chunk_mut(head)?.datagram_mut()
    }

    /// Selects the first batch of the selection alone, after a part of it was sent.
    pub fn select_first_again(&mut self) {
        self.selected_len = self.selected_len.min(1);
    }

    /// Whether the packet of the next datagram of the first batch is lost already.
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

    /// Whether little room is left: what can be sent should be.
    #[must_use]
    #[inline]
    pub fn is_short(&self) -> bool {
        self.free() < CHUNKS_RESERVED / 2
    }

    /// Takes the next `datagrams` of the first batch of the selection as lost, and with them every packet that they are part
    /// of.
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

    /// Takes the peer of the first batch of the selection as blocked: its path takes nothing until `retry_at`. Nothing of it is
    /// selected before that moment, or before [`unblock_all`](Self::unblock_all). If there is little room left it loses its
    /// newest packets.
    pub fn block(&mut self, now: Duration, retry_at: Duration) -> Option<Lost> {
        let at = self.first_selected()?;
        let peer = self.peer_mut(at)?;
        let since = peer.blocked.map_or(now, |blocked| blocked.since);
        peer.blocked = Some(Blocked { since, retry_at });
        let destination = peer.destination;
        self.ready.retain(|ready| *ready != at);
        self.blocked.push(at);
        let mut packets = 0;
        while self.free() < CHUNKS_RESERVED && self.peer(at).is_some_and(|peer| peer.head != NONE) {
            packets += self.drop_newest_chunk(at);
        }
        self.selected_len = 0;
        Some(Lost { destination, packets })
    }

    /// Since when the path of the peer of the first batch of the selection takes nothing, if it was blocked before.
    #[must_use]
    pub fn blocked_since(&self) -> Option<Duration> {
        let peer = self.peer(self.first_selected()?)?;
        peer.blocked.map(|blocked| blocked.since)
    }

    /// When to select again at the latest, if nothing tells that a path takes more.
    #[must_use]
    pub fn retry_at(&self) -> Option<Duration> {
        self.blocked.iter().filter_map(|at| Some(self.peer(*at)?.blocked?.retry_at)).min()
    }

    /// Lets the blocked peers be selected whose moment has come.
    #[inline]
    pub fn unblock(&mut self, now: Duration) {
        if !self.blocked.is_empty() {
            self.unblock_if(|blocked| blocked.retry_at <= now);
        }
    }

    /// Lets all blocked peers be selected.
    pub fn unblock_all(&mut self) {
        self.unblock_if(|_| true);
    }

    /// Drops all that waits for the peers that `is_gone` names, and reports it peer by peer.
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

    /// The packet behind the next `datagrams` of a chunk is lost. Whether it was not lost before.
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

    /// Drops the last chunk of a peer, and the peer with its only one. Returns the packets that are lost with it.
    fn drop_newest_chunk(&mut self, at: u16) -> u64 {
        let Some(Peer { head, tail, .. }) = self.peer(at).copied() else { return 0 };
        let Some(chunk) = self.chunk(tail) else { return 0 };
        let (packets, bytes, flow) = (chunk.sound_packets(), chunk.bytes_waiting(), chunk.flow);
        self.packets -= packets;
        self.bytes -= bytes;
        self.unlink_tail(at, bytes);
        // What began before it is lost and ends where it is cut off now.
        if head != tail
            && let Some(peer) = self.peer(at)
            && let former = self.newest_chunk_of(peer, flow)
            && let Some(former) = self.chunk_mut(former)
        {
            former.end_lost_packet();
        }
        packets
    }

    /// Frees the last chunk of a peer, and removes the peer with its only one.
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

    /// Chunks that could be had.
    #[inline]
    fn free(&self) -> usize {
        self.free_chunks.len() + (self.chunks_max - self.chunks.len())
    }

    /// Appends an empty chunk to the queue of a peer, which is made if there is none.
    fn grow(&mut self, peer: u16, way: &Way) -> Option<(u16, u16)> {
        let free = self.free();
        let (blocked, chunks) = self.peer(peer).map_or((false, 0), |peer| (peer.blocked.is_some(), peer.chunks));
        // The more is in use, the less a blocked peer may have (dynamic thresholds, Choudhury and Hahne 1998).
        if free == 0 || (blocked && chunks >= free.saturating_sub(CHUNKS_RESERVED)) {
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

    fn add_peer(&mut self, destination: SocketAddr, chunk: u16) -> u16 {
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

    fn remove_peer(&mut self, at: u16) {
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

    #[inline]
    fn find(&mut self, destination: SocketAddr) -> Option<u16> {
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
    fn newest_chunk(&self, peer: u16, flow: u16) -> u16 {
        self.peer(peer).map_or(NONE, |peer| self.newest_chunk_of(peer, flow))
    }

    /// The newest chunk of a peer and flow: the only one that may be extended.
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
    fn peer(&self, at: u16) -> Option<&Peer> {
        self.peers.get(usize::from(at))
    }

    #[inline]
    fn peer_mut(&mut self, at: u16) -> Option<&mut Peer> {
        self.peers.get_mut(usize::from(at))
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

/// A packet that is being put into a [`SendQueue`], datagram by datagram.
///
/// [`commit`](Self::commit) puts it in. If it is dropped before, the queue is as it was.
#[derive(Debug)]
#[must_use = "a packet that is not committed is not put in"]
pub struct PendingPacket<'q> {
    queue: &'q mut SendQueue,
    way: Way,
    peer: u16,
    /// The chunk to put the next datagram into.
    chunk: u16,
    /// The chunk that there was before, and how far it was filled.
    first: u16,
    mark: Option<Mark>,
    bytes: usize,
}

impl PendingPacket<'_> {
    /// Makes room for the next datagram, of `len` bytes, all of which the caller writes.
    ///
    /// `None` if the peer or all peers together have as much as they may, or above
    /// [`BATCH_BYTES_MAX`](super::BATCH_BYTES_MAX).
    #[inline]
    pub fn datagram(&mut self, len: usize) -> Option<&mut [u8]> {
        let waiting = self.queue.peer(self.peer).map_or(0, |peer| peer.bytes);
        if len > BATCH_BYTES_MAX || waiting + self.bytes + len > self.queue.limits.per_peer {
            return None;
        }
        let has_room = self.queue.chunk(self.chunk).is_some_and(|chunk| chunk.has_room(self.way.ecn, len));
        if !has_room {
            (self.peer, self.chunk) = self.queue.grow(self.peer, &self.way)?;
        }
        let room = self.queue.chunk_mut(self.chunk)?.push(self.way.ecn, len)?;
        self.bytes += len;
        Some(room)
    }

    /// Puts the packet in, with all its datagrams.
    #[inline]
    pub fn commit(self) {
        let mut packet = core::mem::ManuallyDrop::new(self);
        let PendingPacket { peer, chunk, bytes, .. } = *packet;
        let queue = &mut *packet.queue;
        if let Some(chunk) = queue.chunk_mut(chunk) {
            chunk.end_packet();
            queue.packets += 1;
            queue.bytes += bytes;
        }
        if let Some(peer) = queue.peer_mut(peer) {
            peer.bytes += bytes;
        }
    }
}

impl Drop for PendingPacket<'_> {
    fn drop(&mut self) {
        while self.queue.newest_chunk(self.peer, self.way.flow) != self.first {
            let chunks = self.queue.peer(self.peer).map_or(0, |peer| peer.chunks);
            self.queue.unlink_tail(self.peer, 0);
            if chunks <= 1 {
                return;
            }
        }
        if let (Some(mark), Some(chunk)) = (&self.mark, self.queue.chunk_mut(self.first)) {
            chunk.return_to(mark);
        }
    }
}

/// Multiplying by a large odd number carries every bit up, and the upper bits are the well mixed ones.
#[inline]
fn bucket_of(destination: SocketAddr) -> usize {
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let address = match destination.ip() {
        core::net::IpAddr::V4(address) => u64::from(address.to_bits()),
        core::net::IpAddr::V6(address) => (address.to_bits() >> 64) as u64 ^ address.to_bits() as u64,
    };
    let mixed = (address ^ u64::from(destination.port()) << 32).wrapping_mul(MULTIPLIER);
    (mixed >> 56) as usize
}

#[cfg(test)]
mod tests;
