//! A packet that goes to its peer in pieces.

use crate::transmit::{Transmit, Way};
use crate::wire::fragment::Fragmenter;

/// A packet too long for its path whose sender lets it be fragmented (DF is clear).
///
/// Its fragments are packets of their own, each of them the payload of one datagram; the other end passes them on as they are,
/// and the destination puts them together (RFC 791 3.2). They are made one by one in the packet's own buffer: send each before
/// you ask for the next. All together are one packet to count, and if one is not sent, the packet is lost.
///
/// ```
/// # use loden::forward::{Encap, Forwarder, Overlay};
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

    /// Where all of them go.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// The packet's bytes: before the first fragment is cut off, all of it as it is to be fragmented.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        self.packet
    }

    /// What cuts it, as it stands, for whoever goes on with the bytes in a buffer of their own.
    ///
    /// A GSO packet is never fragmented as a whole: cut it into its segments first, and each of them with
    /// [`Fragmenter::for_segment`].
    #[must_use]
    pub fn fragmenter(&self) -> Fragmenter {
        self.fragmenter
    }

    /// The next fragment; `None` after the last one.
    #[must_use = "a fragment that is not sent loses the packet"]
    pub fn cut_next(&mut self) -> Option<Transmit<'_>> {
        if !self.fragmenter.advance(self.packet) {
            return None;
        }
        let Way { destination, ecn, flow } = self.way;
        Some(Transmit { ecn, flow, ..Transmit::datagram(destination, self.fragmenter.fragment(self.packet)) })
    }
}
