//! A packet that is sent to its peer in fragments.

use crate::transmit::{Transmit, Way};
use crate::wire::fragment::Fragmenter;

/// A packet that is too long for its path and that may be fragmented (DF is clear).
///
/// Each fragment is a packet of its own and the payload of one datagram. The other end forwards fragments unchanged,
/// and the destination reassembles them (RFC 791 section 3.2). They are made one by one in the packet's own buffer, so
/// send each before you request the next. Together they count as one packet. If one is not sent, the packet is lost.
///
/// ```
/// # use loden::forward::{Encap, Forwarder, ForwarderConfig};
/// # use loden::route::{Route, RouteTable};
/// # use loden::Transmit;
/// # fn send(_: &Transmit<'_>) -> bool { true }
/// # fn encapsulate(forwarder: &Forwarder, packet: &mut [u8], routes: &RouteTable) -> bool {
/// match forwarder.encapsulate(packet, routes) {
///     Encap::Fragment(mut fragments) => {
///         while let Some(transmit) = fragments.cut_next() {
///             if !send(&transmit) {
///                 return false; // Lost, for this reason, as a whole.
///             }
///         }
///         true // Forwarded, once.
///     }
///     // …
/// #   _ => false,
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Fragments<'p> {
    way: Way,
    packet: &'p mut [u8],
    fragmenter: Fragmenter,
}

impl<'p> Fragments<'p> {
    pub(super) fn new(way: Way, packet: &'p mut [u8], fragmenter: Fragmenter) -> Self {
        Self { way, packet, fragmenter }
    }

    pub(crate) fn into_parts(self) -> (Way, &'p mut [u8], Fragmenter) {
        (self.way, self.packet, self.fragmenter)
    }

    /// Returns the metadata of all its datagrams.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Returns the packet's bytes. Before the first fragment is cut, this is the whole packet to fragment.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.packet
    }

    /// Returns the fragmenter in its current state, for callers that continue in a buffer of their own.
    ///
    /// A GSO packet is never fragmented as a whole. Segment it first, and fragment each segment with
    /// [`Fragmenter::for_segment`].
    #[must_use]
    pub fn fragmenter(&self) -> Fragmenter {
        self.fragmenter
    }

    /// Returns the next fragment; `None` after the last one.
    #[must_use = "a fragment that is not sent loses the packet"]
    pub fn cut_next(&mut self) -> Option<Transmit<'_>> {
        if !self.fragmenter.advance(self.packet) {
            return None;
        }
        let Way { destination, ecn, flow } = self.way;
        Some(Transmit { ecn, flow, ..Transmit::datagram(destination, self.fragmenter.fragment(self.packet)) })
    }
}
