//! The datagrams of one packet.

use alloc::boxed::Box;
use alloc::vec;

use crate::forward::{Fragments, Stats};
use crate::offload::GsoPacket;
use crate::transmit::{Transmit, Way};
use crate::wire::fragment::Fragmenter;

/// Segments of a GSO packet, or fragments of a packet or of segments. They count as one packet. If one of them is not
/// sent, the packet is lost.
///
/// [`next_len`](Self::next_len) returns the length of the next datagram, and [`write_next`](Self::write_next) writes
/// it. [`next_into`](Self::next_into) does both.
#[derive(Debug)]
#[must_use = "datagrams that are not sent are a lost packet"]
pub struct Datagrams<'p, 'e> {
    way: Way,
    pieces: Pieces<'p, 'e>,
    stats: &'e mut Stats,
}

#[derive(Debug)]
enum Pieces<'p, 'e> {
    Segments { packet: &'p [u8], gso: GsoPacket, next: usize },
    Fragments { packet: &'p mut [u8], fragmenter: Fragmenter, is_cut: bool },
    SegmentFragments(SegmentFragments<'p, 'e>),
}

/// Segments, each of which is written to a buffer and cut into fragments there.
#[derive(Debug)]
struct SegmentFragments<'p, 'e> {
    packet: &'p [u8],
    gso: GsoPacket,
    /// Segments that were written.
    segments: usize,
    scratch: &'e mut [u8],
    fragmenter: Fragmenter,
    is_cut: bool,
}

/// Buffer for one segment, allocated at its first use.
#[derive(Debug, Default)]
pub(super) struct Scratch(Box<[u8]>);

impl Scratch {
    fn room(&mut self) -> &mut [u8] {
        if self.0.is_empty() {
            self.0 = vec![0; 1 << 16].into_boxed_slice();
        }
        &mut self.0
    }
}

impl<'p, 'e> Datagrams<'p, 'e> {
    #[inline]
    pub(super) fn segments(way: Way, packet: &'p [u8], gso: GsoPacket, stats: &'e mut Stats) -> Self {
        Self { way, pieces: Pieces::Segments { packet, gso, next: 0 }, stats }
    }

    #[cold]
    pub(super) fn fragments(
        fragments: Fragments<'p>,
        gso: Option<GsoPacket>,
        scratch: &'e mut Scratch,
        stats: &'e mut Stats,
    ) -> Self {
        let (way, packet, fragmenter) = fragments.into_parts();
        let pieces = match gso {
            None => Pieces::Fragments { packet, fragmenter, is_cut: false },
            Some(gso) => Pieces::SegmentFragments(SegmentFragments {
                packet,
                gso,
                segments: 0,
                scratch: scratch.room(),
                fragmenter: fragmenter.for_segment(0),
                is_cut: false,
            }),
        };
        Self { way, pieces, stats }
    }

    /// Returns destination, ECN field and flow of all of them.
    #[must_use]
    #[inline]
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// Returns the length of the next datagram in bytes. `None` after the last one.
    #[must_use]
    #[inline]
    pub fn next_len(&mut self) -> Option<usize> {
        match &mut self.pieces {
            Pieces::Segments { gso, next, .. } => (*next < gso.segments()).then(|| gso.len_of(*next)),
            Pieces::Fragments { packet, fragmenter, is_cut } => {
                *is_cut = *is_cut || fragmenter.advance(packet);
                is_cut.then(|| fragmenter.len())
            }
            Pieces::SegmentFragments(pieces) => pieces.next_len(),
        }
    }

    /// Writes the next datagram to `out`, whose length must be that of [`next_len`](Self::next_len). If `out` has
    /// another length, nothing is written and the datagram is lost.
    #[inline]
    pub fn write_next(&mut self, out: &mut [u8]) {
        match &mut self.pieces {
            Pieces::Segments { packet, gso, next } => {
                gso.write_segment(packet, *next, out);
                *next += 1;
                self.stats.segments_made += 1;
            }
            Pieces::Fragments { packet, fragmenter, is_cut } => {
                write(fragmenter.fragment(packet), out);
                *is_cut = false;
                self.stats.fragments_made += 1;
            }
            Pieces::SegmentFragments(pieces) => {
                write(pieces.fragmenter.fragment(pieces.scratch), out);
                pieces.is_cut = false;
                let (is_first, is_last) = (pieces.fragmenter.is_first(), pieces.fragmenter.is_last());
                self.stats.segments_made += u64::from(is_first);
                self.stats.fragments_made += u64::from(!(is_first && is_last));
            }
        }
    }

    /// Writes the next datagram to the front of `out`, which should have 65,535 bytes. `None` after the last one, or if
    /// it does not fit.
    pub fn next_into<'o>(&mut self, out: &'o mut [u8]) -> Option<Transmit<'o>> {
        let len = self.next_len()?;
        let room = out.get_mut(..len)?;
        self.write_next(room);
        let Way { destination, ecn, flow } = self.way;
        Some(Transmit { ecn, flow, ..Transmit::datagram(destination, room) })
    }
}

impl SegmentFragments<'_, '_> {
    #[cold]
    fn next_len(&mut self) -> Option<usize> {
        while !self.is_cut {
            self.is_cut = self.fragmenter.advance(self.scratch);
            if !self.is_cut {
                let len = self.gso.len_of(self.segments);
                // After the last datagram, no length is left.
                let segment = self.scratch.get_mut(..len).filter(|segment| !segment.is_empty())?;
                self.gso.write_segment(self.packet, self.segments, segment);
                self.fragmenter = self.fragmenter.for_segment(len as u16);
                self.segments += 1;
            }
        }
        Some(self.fragmenter.len())
    }
}

fn write(datagram: &[u8], out: &mut [u8]) {
    if datagram.len() == out.len() {
        out.copy_from_slice(datagram);
    }
}
