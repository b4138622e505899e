//! A packet on its way from the buffer into trains: as it is, in segments, in fragments, or in fragments of segments.

use core::net::SocketAddr;
use std::time::Instant;

use crate::offload::GsoPacket;
use crate::transmit::{Trains, Way};
use crate::wire::fragment::Fragmenter;

/// A packet of which not all is in trains.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unfinished {
    way: Way,
    pieces: Pieces,
    /// When the packet was taken in, or tried last.
    pub(super) since: Instant,
}

/// What becomes of it, and how far that is.
#[derive(Clone, Copy, Debug)]
enum Pieces {
    Whole {
        len: usize,
    },
    /// The GSO packet's segments from this one on.
    Segments(GsoPacket, usize),
    Fragments(Fragmented),
}

/// What [`Unfinished::place`] did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Placed {
    pub(super) segments: u64,
    pub(super) fragments: u64,
    /// Whether nothing is left.
    pub(super) all: bool,
}

impl Unfinished {
    /// A packet of `len` bytes, which if it is a GSO packet is cut into its segments.
    #[inline]
    pub(super) fn new(way: Way, len: usize, gso_packet: Option<GsoPacket>, since: Instant) -> Self {
        let pieces = gso_packet.map_or(Pieces::Whole { len }, |gso_packet| Pieces::Segments(gso_packet, 0));
        Self { way, pieces, since }
    }

    /// A packet that is too long for its path, or a GSO packet whose segments are.
    #[cold]
    pub(super) fn fragmented(way: Way, fragmenter: Fragmenter, gso_packet: Option<GsoPacket>, since: Instant) -> Self {
        Self { way, pieces: Pieces::Fragments(Fragmented::new(fragmenter, gso_packet)), since }
    }

    /// The next hop it was routed to.
    pub(super) fn destination(&self) -> SocketAddr {
        self.way.destination
    }

    /// Puts as much into trains as there is room and budget for. `buffer` holds the packet, `scratch` one segment at a time.
    ///
    /// A datagram takes one off the budget, but for the first of a packet, which was paid for when it was read.
    #[inline]
    pub(super) fn place(
        &mut self,
        buffer: &mut [u8],
        scratch: &mut [u8],
        trains: &mut Trains,
        left: &mut usize,
    ) -> Placed {
        match &mut self.pieces {
            Pieces::Whole { len } => {
                let room = trains.push(&self.way, *len, true);
                let all = room.map(|room| room.copy_from_slice(buffer.get(..*len).unwrap_or_default())).is_some();
                Placed { all, ..Placed::default() }
            }
            Pieces::Segments(gso_packet, next) => {
                let first = *next;
                let count = gso_packet.segments();
                while *next < count && (*left > 0 || *next == 0) {
                    let is_last = *next + 1 == count;
                    let Some(room) = trains.push(&self.way, gso_packet.len_of(*next), is_last) else { break };
                    gso_packet.write_segment(buffer, *next, room);
                    if *next > 0 {
                        *left -= 1;
                    }
                    *next += 1;
                }
                Placed { segments: (*next - first) as u64, fragments: 0, all: *next == count }
            }
            Pieces::Fragments(fragmented) => fragmented.place(&self.way, buffer, scratch, trains, left),
        }
    }
}

/// A packet, or one segment after another, on its way into fragments.
#[derive(Clone, Copy, Debug)]
struct Fragmented {
    gso_packet: Option<GsoPacket>,
    /// Cuts any packet with the header of this one.
    template: Fragmenter,
    /// How many segments have been written to where they are cut.
    segments: usize,
    /// Cuts the packet, or the segment that was written last.
    fragmenter: Fragmenter,
    /// Whether the fragment that was cut off last is in no train yet.
    waits: bool,
}

impl Fragmented {
    fn new(fragmenter: Fragmenter, gso_packet: Option<GsoPacket>) -> Self {
        let current = if gso_packet.is_some() { fragmenter.for_segment(0) } else { fragmenter };
        Self { gso_packet, template: fragmenter, segments: 0, fragmenter: current, waits: false }
    }

    #[cold]
    fn place(
        &mut self,
        way: &Way,
        buffer: &mut [u8],
        scratch: &mut [u8],
        trains: &mut Trains,
        left: &mut usize,
    ) -> Placed {
        let mut placed = Placed::default();
        loop {
            while !self.waits {
                let packet = if self.gso_packet.is_some() { &mut *scratch } else { &mut *buffer };
                self.waits = self.fragmenter.advance(packet);
                if !self.waits && !self.write_segment(buffer, scratch) {
                    return Placed { all: true, ..placed };
                }
            }
            let is_first = self.segments <= 1 && self.fragmenter.is_first();
            if *left == 0 && !is_first {
                return placed;
            }
            let is_last_packet = self.gso_packet.is_none_or(|gso_packet| gso_packet.segments() == self.segments);
            let Some(room) = trains.push(way, self.fragmenter.len(), is_last_packet && self.fragmenter.is_last())
            else {
                return placed;
            };
            let packet = if self.gso_packet.is_some() { &*scratch } else { &*buffer };
            room.copy_from_slice(self.fragmenter.fragment(packet));
            self.waits = false;
            *left -= usize::from(!is_first);
            placed.segments += u64::from(self.gso_packet.is_some() && self.fragmenter.is_first());
            placed.fragments += u64::from(!(self.fragmenter.is_first() && self.fragmenter.is_last()));
        }
    }

    /// Writes the next segment to where it is cut; `false` after the last.
    fn write_segment(&mut self, buffer: &[u8], scratch: &mut [u8]) -> bool {
        let Some(gso_packet) = self.gso_packet.filter(|gso_packet| self.segments < gso_packet.segments()) else {
            return false;
        };
        let len = gso_packet.len_of(self.segments);
        gso_packet.write_segment(buffer, self.segments, scratch.get_mut(..len).unwrap_or_default());
        self.fragmenter = self.template.for_segment(len as u16);
        self.segments += 1;
        true
    }
}

#[cfg(test)]
mod tests;
