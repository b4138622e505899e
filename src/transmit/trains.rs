//! Datagrams that wait to be sent together.

use alloc::boxed::Box;
use alloc::vec;
use core::net::SocketAddr;
use core::num::NonZeroUsize;
use core::ops::Range;

use super::Transmit;
use crate::wire::Ecn;

/// Where a datagram goes and how: datagrams that differ in this do not travel in one train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Underlay address and port.
    pub destination: SocketAddr,
    /// The ECN field of the outer packet.
    pub ecn: Ecn,
    /// See [`Transmit::flow`].
    pub flow: u16,
}

impl From<&Transmit<'_>> for Way {
    fn from(transmit: &Transmit<'_>) -> Self {
        Self { destination: transmit.destination, ecn: transmit.ecn, flow: transmit.flow }
    }
}

/// Datagrams on their way to the socket, in trains of equal ones that the kernel takes at once.
///
/// ```text
///    front              waiting             newest of A
///  ┌─────────────────┐ ┌─────────────────┐ ┌─────────────────┐
///  │ A 1472 1472 800 │ │ B 64 64         │ │ A 1472 1472     │  ← the next one for A, of at most 1472 bytes
///  └─────────────────┘ └─────────────────┘ └─────────────────┘
/// ```
///
/// Only the newest train of a peer and flow is ever extended, so that their datagrams leave in the order they came. A train
/// ends with the first datagram that is shorter than the others, or when it is full.
///
/// A packet may be several datagrams, of more than one train. It has gone when its last one has, and is lost when any of them
/// is; either is said exactly once, by [`Trains::advance`] or [`Trains::give_up`].
#[derive(Debug)]
pub struct Trains {
    /// All that there is room for, each with its buffer. Those that wait: `front..end`.
    slots: Box<[Train]>,
    front: usize,
    end: usize,
    /// Datagrams of the front train that are done with.
    done: usize,
    bytes: usize,
}

/// What [`Trains::give_up`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Packets that are lost by it and were not before.
    pub packets: u64,
    /// Whether the last of them is yet to be continued: what is left of it must not be put in.
    pub unfinished: bool,
}

impl Trains {
    /// Datagrams in a train: one less than `UDP_MAX_SEGMENTS` of the kernel's linux/udp.h before 6.9. Linux 4.18, 4.19 and some
    /// 5.x refuse that many, because they compare the length with all headers to it.
    pub const SEGMENTS_MAX: usize = 63;

    /// Bytes in a train: what a UDP datagram over IPv4 carries, since the kernel builds one of all before it cuts it.
    pub const BYTES_MAX: usize = 65_507;

    /// Room for so many trains, at least one; 64 KiB each.
    #[must_use]
    pub fn with_slots(count: usize) -> Self {
        Self { slots: (0..count.max(1)).map(|_| Train::new()).collect(), front: 0, end: 0, done: 0, bytes: 0 }
    }

    /// Whether nothing waits.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.front == self.end
    }

    /// How many trains wait.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.end - self.front
    }

    /// How many bytes were put in since it was last empty.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a datagram of `len` bytes in, and gives the place that its bytes are to be written to, all of them. `is_last` says
    /// whether it is the last datagram of its packet.
    ///
    /// `None` if there is no room for it before others are sent; or ever, above [`Trains::BYTES_MAX`].
    #[inline]
    pub fn push(&mut self, way: &Way, len: usize, is_last: bool) -> Option<&mut [u8]> {
        if len > Self::BYTES_MAX {
            return None;
        }
        let at = match self.newest(way) {
            Some(at) if self.slots.get(at)?.takes(way, len) => at,
            _ => self.start(way, len)?,
        };
        self.bytes += len;
        self.slots.get_mut(at)?.push(len, is_last)
    }

    /// The train to send as number `index`, counted from the front; of the front one the first [`Trains::done`] datagrams are
    /// not to be sent again.
    #[inline]
    pub fn transmit(&self, index: usize) -> Option<Transmit<'_>> {
        let train = self.waiting().get(index)?;
        Some(Transmit {
            destination: train.way.destination,
            contents: train.buffer.get(..train.len)?,
            segment_size: NonZeroUsize::new(train.segment_size).filter(|_| train.segments > 1),
            ecn: train.way.ecn,
            flow: train.way.flow,
        })
    }

    /// Datagrams of the front train that are done with.
    #[must_use]
    #[inline]
    pub fn done(&self) -> usize {
        self.done
    }

    /// Datagrams of the front train that are left.
    #[must_use]
    #[inline]
    pub fn left(&self) -> usize {
        self.front().map_or(0, |front| front.segments - self.done)
    }

    /// How many datagrams of the front train are the next packet, or what there is of it in this train.
    #[must_use]
    pub fn next_packet(&self) -> usize {
        let end = self.front().and_then(|front| front.next_end(self.done));
        end.map_or(self.left(), |end| end + 1 - self.done)
    }

    /// Whether the next packet was lost before, by a datagram of a former train.
    #[must_use]
    pub fn next_is_lost(&self) -> bool {
        self.front().is_some_and(|front| front.spoiled)
    }

    /// Datagram number `index` of those left in the front train.
    pub fn datagram_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let at = self.done + index;
        let front = self.slots.get_mut(self.front..self.end)?.first_mut()?;
        front.buffer.get_mut(..front.len)?.chunks_mut(front.segment_size.max(1)).nth(at)
    }

    /// The next `datagrams` of the front train have gone: how many packets have gone by that.
    #[inline]
    pub fn advance(&mut self, datagrams: usize) -> u64 {
        let Some((front, range)) = self.next(datagrams) else { return 0 };
        let end = range.end;
        let packets = front.packets_ending(range);
        self.done = end;
        self.pop_if_done();
        packets
    }

    /// The next `datagrams` of the front train will not go, and with them all packets that they are part of.
    pub fn give_up(&mut self, datagrams: usize) -> GivenUp {
        let Some((front, range)) = self.next(datagrams) else { return GivenUp { packets: 0, unfinished: false } };
        let end = range.end;
        let goes_on = !range.is_empty() && front.ends & bit(range.end - 1) == 0;
        // A packet that was lost before, and whose end is not among these, is what goes on.
        let was_lost = front.spoiled && front.next_end(range.start).is_none_or(|end| end >= range.end);
        let packets = front.packets_ending(range) + u64::from(goes_on && !was_lost);
        let way = front.way;
        self.done = end;
        let unfinished = goes_on && !self.spoil_next(&way);
        self.pop_if_done();
        GivenUp { packets, unfinished }
    }

    /// Gives up every train to a destination that `is_gone`. The other trains keep their order.
    pub fn give_up_where(&mut self, mut is_gone: impl FnMut(SocketAddr) -> bool) -> GivenUp {
        let (mut given_up, mut kept) = (GivenUp { packets: 0, unfinished: false }, self.front);
        for at in self.front..self.end {
            let Some(train) = self.slots.get_mut(at) else { break };
            let from = if at == self.front { core::mem::take(&mut self.done) } else { 0 };
            if is_gone(train.way.destination) {
                given_up.packets += train.packets_ending(from..train.segments);
                // All of a flow has one destination: the end of a packet that goes on is given up with a later train, or is
                // not here yet. In the latter case no other packet of any flow is unfinished.
                let (way, last) = (train.way, train.segments.saturating_sub(1));
                let goes_on = train.ends & bit(last) == 0 && self.newest(&way) == Some(at);
                given_up.unfinished |= goes_on;
                given_up.packets += u64::from(goes_on);
            } else {
                if at == self.front {
                    self.done = from;
                }
                self.slots.swap(kept, at);
                kept += 1;
            }
        }
        self.end = kept;
        if self.is_empty() {
            self.clear();
        }
        given_up
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        (self.front, self.end, self.done, self.bytes) = (0, 0, 0, 0);
    }

    #[inline]
    fn waiting(&self) -> &[Train] {
        self.slots.get(self.front..self.end).unwrap_or_default()
    }

    #[inline]
    fn front(&self) -> Option<&Train> {
        self.waiting().first()
    }

    /// The front train, and which of its datagrams the next so many are.
    #[inline]
    fn next(&mut self, datagrams: usize) -> Option<(&mut Train, Range<usize>)> {
        let done = self.done;
        let front = self.slots.get_mut(self.front..self.end)?.first_mut()?;
        let range = done..front.segments.min(done + datagrams);
        Some((front, range))
    }

    /// Marks what follows the done datagrams as part of a packet that is lost, as far as it goes. `false` if its last datagram
    /// is not here: then what is here ends it.
    fn spoil_next(&mut self, way: &Way) -> bool {
        let (front, done) = (self.front, self.done);
        let trains = self.slots.get_mut(front..self.end).unwrap_or_default();
        let mut last = None;
        for (index, train) in trains.iter_mut().enumerate().filter(|(_, train)| train.way.is_same_flow(way)) {
            let from = if index == 0 { done } else { 0 };
            if from == train.segments {
                continue;
            }
            train.spoiled = true;
            if train.next_end(from).is_some() {
                return true;
            }
            last = Some(train);
        }
        if let Some(last) = last {
            last.ends |= bit(last.segments - 1);
        }
        false
    }

    #[inline]
    fn pop_if_done(&mut self) {
        if self.left() > 0 {
            return;
        }
        self.front += 1;
        self.done = 0;
        if self.front >= self.end {
            self.clear();
        }
    }

    /// The newest train of a peer and flow, the only one that may be extended.
    #[inline]
    fn newest(&self, way: &Way) -> Option<usize> {
        let index = self.waiting().iter().rposition(|train| train.way.is_same_flow(way))?;
        Some(self.front + index)
    }

    fn start(&mut self, way: &Way, len: usize) -> Option<usize> {
        let at = self.end;
        self.slots.get_mut(at)?.restart(way, len);
        self.end += 1;
        Some(at)
    }
}

impl Way {
    /// ECN does not matter: it is no reason for overtaking.
    #[inline]
    fn is_same_flow(&self, other: &Self) -> bool {
        self.flow == other.flow && self.destination == other.destination
    }
}

/// Some equally long datagrams to one peer, the last of them possibly shorter.
#[derive(Debug)]
struct Train {
    way: Way,
    buffer: Box<[u8]>,
    len: usize,
    segment_size: usize,
    segments: usize,
    /// A bit for each datagram that is the last of a packet.
    ends: u64,
    /// Whether the packet that its first datagrams are part of is lost already. Until that ends here.
    spoiled: bool,
}

const _: () = assert!(Trains::SEGMENTS_MAX <= u64::BITS as usize);

impl Train {
    fn new() -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            way: Way { destination: nowhere, ecn: Ecn::NotEct, flow: 0 },
            buffer: vec![0; Trains::BYTES_MAX].into_boxed_slice(),
            len: 0,
            segment_size: 0,
            segments: 0,
            ends: 0,
            spoiled: false,
        }
    }

    #[inline]
    fn restart(&mut self, way: &Way, segment_size: usize) {
        self.way = *way;
        self.segment_size = segment_size;
        (self.len, self.segments, self.ends, self.spoiled) = (0, 0, 0, false);
    }

    /// Whether a datagram may be the next one.
    #[inline]
    fn takes(&self, way: &Way, len: usize) -> bool {
        // Empty ones are not told apart by the kernel, which cuts by bytes.
        let is_open = self.len == self.segments * self.segment_size && len > 0;
        let is_like = len <= self.segment_size && self.way.ecn == way.ecn;
        is_open && is_like && self.segments < Trains::SEGMENTS_MAX && self.len + len <= Trains::BYTES_MAX
    }

    #[inline]
    fn push(&mut self, len: usize, is_last: bool) -> Option<&mut [u8]> {
        let room = self.buffer.get_mut(self.len..self.len + len)?;
        self.len += len;
        if is_last {
            self.ends |= bit(self.segments);
        }
        self.segments += 1;
        Some(room)
    }

    /// Where the packet ends that datagram `from` is part of, if it does in this train.
    fn next_end(&self, from: usize) -> Option<usize> {
        let ends = self.ends & bits(from..Trains::SEGMENTS_MAX);
        (ends != 0).then_some(ends.trailing_zeros() as usize)
    }

    /// How many packets end in a range, less the one that was lost before.
    #[inline]
    fn packets_ending(&mut self, range: Range<usize>) -> u64 {
        let packets = u64::from((self.ends & bits(range)).count_ones());
        let lost_before = self.spoiled && packets > 0;
        self.spoiled &= !lost_before;
        packets - u64::from(lost_before)
    }
}

#[inline]
fn bit(index: usize) -> u64 {
    1u64.checked_shl(index as u32).unwrap_or(0)
}

/// The bits of a range.
#[inline]
fn bits(range: Range<usize>) -> u64 {
    let below = |end: usize| bit(end).wrapping_sub(1);
    below(range.end) & !below(range.start)
}

#[cfg(test)]
mod tests;
