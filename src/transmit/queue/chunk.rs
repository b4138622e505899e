//! The storage of a send queue: chunks of 64 KiB, each with the GSO batches of one peer and flow.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroUsize;
use core::ops::Range;

use super::NONE;
use crate::transmit::{BATCH_BYTES_MAX, SEGMENTS_MAX};
use crate::wire::Ecn;

/// Bytes in a chunk: one full GSO batch.
pub(super) const CHUNK_LEN: usize = 1 << 16;

/// The most batches in a chunk. Packets of mixed sizes make short batches; 64 of two datagrams fill a chunk.
const BATCHES_MAX: usize = 64;

/// GSO batches of one peer and flow, in sending order.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Box<[u8]>,
    len: usize,
    batches: Vec<Batch>,
    /// Number of batches at the front that have left.
    left: usize,
    pub(super) flow: u16,
    /// The next chunk of the same peer.
    pub(super) next: u16,
}

/// Datagrams of equal size, the last of them possibly shorter, that one message carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch {
    start: usize,
    len: usize,
    size: usize,
    segments: usize,
    /// Number of datagrams at the front that have left or are lost.
    done: usize,
    pub(super) ecn: Ecn,
    /// A bit for each datagram that is the last of its packet.
    ends: u64,
    /// The same for packets of which a datagram is lost.
    lost: u64,
}

const _: () = assert!(SEGMENTS_MAX <= u64::BITS as usize && BATCH_BYTES_MAX <= CHUNK_LEN);

/// The end of a chunk at some time, to return to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    len: usize,
    batches: usize,
    last: Option<Batch>,
}

impl Chunk {
    pub(super) fn new() -> Self {
        let bytes = vec![0; CHUNK_LEN].into_boxed_slice();
        Self { bytes, len: 0, batches: Vec::with_capacity(BATCHES_MAX), left: 0, flow: 0, next: NONE }
    }

    /// Empties the chunk for another peer or flow.
    pub(super) fn reset(&mut self, flow: u16) {
        self.batches.clear();
        (self.len, self.left, self.flow, self.next) = (0, 0, flow, NONE);
    }

    /// Adds a datagram of `len` bytes, which the caller writes. Returns `None` if there is no room.
    #[inline]
    pub(super) fn push(&mut self, ecn: Ecn, len: usize) -> Option<&mut [u8]> {
        let room = self.bytes.get_mut(self.len..)?.get_mut(..len)?;
        let is_full = self.batches.len() == BATCHES_MAX;
        match self.batches.last_mut() {
            Some(last) if last.takes(ecn, len) => {
                last.len += len;
                last.segments += 1;
            }
            _ if is_full => return None,
            _ => self.batches.push(Batch::new(self.len, len, ecn)),
        }
        self.len += len;
        Some(room)
    }

    /// Returns whether a datagram of `len` bytes can be added.
    #[inline]
    pub(super) fn has_room(&self, ecn: Ecn, len: usize) -> bool {
        let has_batch =
            self.batches.len() < BATCHES_MAX || self.batches.last().is_some_and(|last| last.takes(ecn, len));
        has_batch && self.len + len <= CHUNK_LEN
    }

    /// Makes the newest datagram the last one of its packet.
    #[inline]
    pub(super) fn end_packet(&mut self) {
        if let Some(last) = self.batches.last_mut() {
            last.ends |= bit(last.segments - 1);
        }
    }

    #[inline]
    pub(super) fn mark(&self) -> Mark {
        Mark { len: self.len, batches: self.batches.len(), last: self.batches.last().copied() }
    }

    pub(super) fn return_to(&mut self, mark: &Mark) {
        self.batches.truncate(mark.batches);
        if let (Some(last), Some(former)) = (self.batches.last_mut(), mark.last) {
            *last = former;
        }
        self.len = mark.len;
    }

    /// Returns the number of the first queued batch.
    #[inline]
    pub(super) fn front(&self) -> usize {
        self.left
    }

    /// Returns whether no batch is queued.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.left == self.batches.len()
    }

    /// Returns the number of queued bytes.
    pub(super) fn bytes_waiting(&self) -> usize {
        self.batches.iter().skip(self.left).map(Batch::bytes_left).sum()
    }

    #[inline]
    pub(super) fn batch(&self, number: usize) -> Option<&Batch> {
        self.batches.get(number)
    }

    /// Returns the bytes of a batch that have not left.
    #[inline]
    pub(super) fn contents(&self, batch: &Batch) -> Option<&[u8]> {
        self.bytes.get(batch.start + batch.done * batch.size..batch.start + batch.len)
    }

    /// Returns the next datagram.
    pub(super) fn datagram_mut(&mut self) -> Option<&mut [u8]> {
        let batch = self.batches.get(self.left)?;
        let start = batch.start + batch.done * batch.size;
        let end = (start + batch.size).min(batch.start + batch.len);
        self.bytes.get_mut(start..end)
    }

    /// Removes the next `datagrams` of the first batch. Returns how many complete packets end with them, and how many
    /// bytes they have.
    #[inline]
    pub(super) fn advance(&mut self, datagrams: usize) -> (u64, usize) {
        let Some(batch) = self.batches.get_mut(self.left) else { return (0, 0) };
        let before = batch.bytes_left();
        let range = batch.next(datagrams);
        let packets = (batch.ends & !batch.lost & bits(range.clone())).count_ones();
        batch.done = range.end;
        let bytes = before - batch.bytes_left();
        self.left += usize::from(batch.done == batch.segments);
        (packets.into(), bytes)
    }

    /// Marks the packets that end with the next `datagrams` of the first batch as lost. Returns how many were not lost
    /// before, and whether another packet continues behind these datagrams.
    pub(super) fn lose_ends(&mut self, datagrams: usize) -> (u64, bool) {
        let Some(batch) = self.batches.get_mut(self.left) else { return (0, false) };
        let range = batch.next(datagrams);
        let goes_on = !range.is_empty() && batch.ends & bit(range.end - 1) == 0;
        let ends = batch.ends & bits(range);
        let packets = (ends & !batch.lost).count_ones();
        batch.lost |= ends;
        (packets.into(), goes_on)
    }

    /// Marks the packet that ends first behind `skip` datagrams as lost. Returns `None` if none ends in this chunk, and
    /// otherwise whether it was not lost before.
    pub(super) fn lose_next_end(&mut self, skip: usize) -> Option<bool> {
        let mut from = self.batches.get(self.left).map_or(0, |batch| batch.done + skip);
        for batch in self.batches.iter_mut().skip(self.left) {
            let ends = batch.ends & bits(from..SEGMENTS_MAX);
            if ends != 0 {
                let end = ends & ends.wrapping_neg();
                let is_news = batch.lost & end == 0;
                batch.lost |= end;
                return Some(is_news);
            }
            from = 0;
        }
        None
    }

    /// Returns whether the next packet that ends here is lost. `None` if none ends here.
    pub(super) fn next_end_is_lost(&self) -> Option<bool> {
        self.batches.iter().skip(self.left).find_map(|batch| {
            let ends = batch.ends & bits(batch.done..SEGMENTS_MAX);
            (ends != 0).then(|| batch.lost & ends & ends.wrapping_neg() != 0)
        })
    }

    /// Returns the number of queued packets that end here and are not lost.
    pub(super) fn sound_packets(&self) -> u64 {
        let of_batch = |batch: &Batch| (batch.ends & !batch.lost & bits(batch.done..SEGMENTS_MAX)).count_ones();
        self.batches.iter().skip(self.left).map(|batch| u64::from(of_batch(batch))).sum()
    }

    /// Ends the newest packet here as a lost one, if it continued in a chunk that is gone.
    pub(super) fn end_lost_packet(&mut self) {
        if let Some(last) = self.batches.last_mut() {
            let end = bit(last.segments - 1);
            if last.ends & end == 0 {
                last.ends |= end;
                last.lost |= end;
            }
        }
    }
}

impl Batch {
    fn new(start: usize, len: usize, ecn: Ecn) -> Self {
        Self { start, len, size: len, segments: 1, done: 0, ecn, ends: 0, lost: 0 }
    }

    /// Returns whether a datagram may be the next one. The kernel cuts by bytes, so that nothing follows a shorter or
    /// an empty datagram.
    #[inline]
    fn takes(&self, ecn: Ecn, len: usize) -> bool {
        let is_open = self.len == self.segments * self.size && (1..=self.size).contains(&len);
        is_open && self.ecn == ecn && self.segments < SEGMENTS_MAX && self.len + len <= BATCH_BYTES_MAX
    }

    #[inline]
    fn next(&self, datagrams: usize) -> Range<usize> {
        self.done..self.segments.min(self.done.saturating_add(datagrams))
    }

    #[inline]
    pub(super) fn bytes_left(&self) -> usize {
        self.len.saturating_sub(self.done * self.size)
    }

    #[inline]
    pub(super) fn segments_left(&self) -> usize {
        self.segments - self.done
    }

    /// Returns the length of each datagram but the last in bytes, if there is more than one.
    #[inline]
    pub(super) fn segment_size(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.size).filter(|_| self.segments_left() > 1)
    }
}

#[inline]
fn bit(index: usize) -> u64 {
    1u64.checked_shl(index as u32).unwrap_or(0)
}

/// Returns a mask of the bits of a range.
#[inline]
fn bits(range: Range<usize>) -> u64 {
    let below = |end: usize| bit(end).wrapping_sub(1);
    below(range.end) & !below(range.start)
}
