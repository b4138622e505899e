//! Senders that no route names as next hop, although their inner source has a route. Most likely they are peers behind
//! NAT.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::time::Instant;

use crate::route::RouteTable;
use crate::wire::IpPacket;

/// A sender whose datagrams are dropped as those of an unknown peer, and the peer that it claims to be.
///
/// Either the peer is behind NAT and its datagrams come from another address than the route's next hop, or somebody
/// forges them. [`PeerCheck::Off`](crate::forward::PeerCheck::Off) accepts both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stranger {
    /// Underlay address and port that the datagram came from.
    pub from: SocketAddr,
    /// Source address of the inner packet.
    pub inner_source: IpAddr,
    /// Next hop of that source's route: the peer whose subnet it is.
    pub next_hop: SocketAddr,
}

/// The strangers seen last. In a flood of datagrams from unknown senders, [`Strangers::PER_SECOND`] of them are parsed
/// per second.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    /// The newest last.
    known: VecDeque<Stranger>,
    /// Number of the newest that were not taken yet.
    fresh: usize,
    looks: u32,
    looks_until: Option<Instant>,
}

impl Strangers {
    /// Pairs of sender and peer that are remembered. Each is reported once.
    pub(super) const MAX: usize = 64;
    /// Datagrams of unknown senders that are parsed per second.
    pub(super) const PER_SECOND: u32 = 100;

    /// Examines a datagram that was dropped as one of an unknown peer.
    #[cold]
    pub(super) fn look(&mut self, datagram: &[u8], from: SocketAddr, routes: &RouteTable, now: Instant) {
        if self.looks_until.is_none_or(|until| now >= until) {
            (self.looks, self.looks_until) = (0, now.checked_add(Duration::from_secs(1)));
        }
        if self.looks >= Self::PER_SECOND {
            return;
        }
        self.looks += 1;
        let Ok(packet) = IpPacket::parse(datagram) else { return };
        let source = packet.source();
        let Some(next_hop) = routes.lookup(source).map(|hop| hop.address) else { return };
        // NAT may choose another port for each flow. The stranger is the same.
        let is_known = |known: &Stranger| known.from.ip() == from.ip() && known.next_hop == next_hop;
        if self.known.iter().any(is_known) {
            return;
        }
        if self.known.len() == Self::MAX {
            self.known.pop_front();
        }
        self.known.push_back(Stranger { from, inner_source: source, next_hop });
        self.fresh = (self.fresh + 1).min(Self::MAX);
    }

    /// Returns the strangers that were not returned before, oldest first.
    pub(super) fn take(&mut self) -> Vec<Stranger> {
        let fresh = core::mem::take(&mut self.fresh);
        self.known.iter().skip(self.known.len() - fresh).copied().collect()
    }
}
