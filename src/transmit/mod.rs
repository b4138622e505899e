//! Datagrams on their way to the underlay: one transmit for each GSO batch, and the queue that collects them.

mod queue;

use core::net::SocketAddr;
use core::num::NonZeroUsize;

pub use self::queue::{Lost, PendingPacket, QueueLimits, SELECTED_MAX, SendQueue};
use crate::wire::Ecn;

/// Datagrams in a GSO batch: one less than `UDP_MAX_SEGMENTS` of the kernel's linux/udp.h before 6.9. Linux 4.18, 4.19 and some
/// 5.x refuse that many, because they compare the length with all headers to it.
pub const SEGMENTS_MAX: usize = 63;

/// Bytes in a GSO batch: what a UDP datagram over IPv4 carries, since the kernel builds one of all before it cuts it.
pub const BATCH_BYTES_MAX: usize = 65_507;

/// The destination of a datagram, and how it is sent: datagrams that differ in this do not travel in one batch.
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
    #[inline]
    fn from(transmit: &Transmit<'_>) -> Self {
        Self { destination: transmit.destination, ecn: transmit.ecn, flow: transmit.flow }
    }
}

/// One datagram, or a train of equally long ones, to one peer.
///
/// Batching is a field and not a second interface: with a `segment_size` the contents are as many datagrams of that many
/// bytes as fit, and a shorter last one. How they get onto the wire, in one system call or in many, is the transport's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a packet that is not sent is lost without being counted"]
pub struct Transmit<'a> {
    /// Underlay address and port to send to.
    pub destination: SocketAddr,
    /// The payloads of the datagrams, end to end.
    pub contents: &'a [u8],
    /// Bytes in every datagram but the last. `None`: the contents are one datagram.
    pub segment_size: Option<NonZeroUsize>,
    /// The ECN field of the outer packets.
    pub ecn: Ecn,
    /// Chooses among the transport's source ports, taken modulo their number (R60); one flow has one number.
    pub flow: u16,
}

impl<'a> Transmit<'a> {
    /// One datagram.
    pub fn datagram(destination: SocketAddr, contents: &'a [u8]) -> Self {
        Self { destination, contents, segment_size: None, ecn: Ecn::NotEct, flow: 0 }
    }

    /// Bytes of the longest datagram.
    #[must_use]
    #[inline]
    pub fn longest(&self) -> usize {
        self.segment_size.map_or(self.contents.len(), |size| size.get().min(self.contents.len()))
    }

    /// The datagrams, in order. There is always at least one, if only an empty one.
    pub fn segments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let size = self.segment_size.map_or(self.contents.len().max(1), NonZeroUsize::get);
        let empty = self.contents.is_empty().then_some(self.contents);
        self.contents.chunks(size).chain(empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn lengths(contents: &[u8], size: Option<usize>) -> Vec<usize> {
        let segment_size = size.and_then(NonZeroUsize::new);
        let destination = ([10, 168, 0, 3], 8285).into();
        Transmit { segment_size, ..Transmit::datagram(destination, contents) }.segments().map(<[u8]>::len).collect()
    }

    #[test]
    fn a_train_is_cut_into_equal_datagrams_and_a_rest() {
        assert_eq!(lengths(&[0; 2500], Some(1000)), [1000, 1000, 500]);
        assert_eq!(lengths(&[0; 2000], Some(1000)), [1000, 1000]);
        assert_eq!(lengths(&[0; 10], Some(1000)), [10]);
        assert_eq!(lengths(&[0; 10], None), [10]);
        assert_eq!(lengths(&[], Some(1000)), [0]);
        assert_eq!(lengths(&[], None), [0]);
    }
}
