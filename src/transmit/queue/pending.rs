//! A packet on its way into a send queue.

use super::chunk::Mark;
use super::{BATCH_BYTES_MAX, SendQueue, Way};

/// A packet that is added to a [`SendQueue`], datagram by datagram.
///
/// [`commit`](Self::commit) adds it. Dropping it before restores the queue.
#[derive(Debug)]
#[must_use = "a packet that is not committed is not queued"]
pub struct PendingPacket<'q> {
    pub(super) queue: &'q mut SendQueue,
    pub(super) way: Way,
    pub(super) peer: u16,
    /// The chunk for the next datagram.
    pub(super) chunk: u16,
    /// The newest chunk before this packet, and its mark.
    pub(super) first: u16,
    pub(super) mark: Option<Mark>,
    pub(super) bytes: usize,
}

impl PendingPacket<'_> {
    /// Reserves `len` bytes for the next datagram, all of which the caller writes.
    ///
    /// Returns `None` if the peer's limit or the limit of all peers is reached, or if `len` is above
    /// [`BATCH_BYTES_MAX`].
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

    /// Adds the packet, with all its datagrams.
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
