//! The coalescer, which joins packets of one flow to GSO packets.

use alloc::boxed::Box;

use super::candidate::{Candidate, FlowKey, Kind};
use super::family::Family;
use super::gro_batch::{Appended, Coalesced, GroBatch};
use crate::wire::ipv4::Ipv4Header;
use crate::wire::ipv6::Ipv6Header;

/// The number of flows that are joined at the same time. Each has a buffer of 64 KiB.
const BATCHES: usize = 16;

/// The packets that may be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalesce {
    /// Join TCP over IPv4. The device must accept `VIRTIO_NET_HDR_GSO_TCPV4`.
    pub tcp4: bool,
    /// Join TCP over IPv6. The device must accept `VIRTIO_NET_HDR_GSO_TCPV6`.
    pub tcp6: bool,
    /// Join UDP over IPv4. The device must accept `VIRTIO_NET_HDR_GSO_UDP_L4`.
    pub udp4: bool,
    /// Join UDP over IPv6. The device must accept `VIRTIO_NET_HDR_GSO_UDP_L4`.
    pub udp6: bool,
}

impl Coalesce {
    /// TCP and UDP over IPv4 and IPv6.
    pub const ALL: Self = Self { tcp4: true, tcp6: true, udp4: true, udp6: true };
    /// No packets.
    pub const NONE: Self = Self { tcp4: false, tcp6: false, udp4: false, udp6: false };
}

/// A coalescer of packets on their way into a TUN device.
///
/// It keeps the order of the packets of one flow. Packets of different flows may change their order.
///
/// Segmentation of its output ([`VnetHeader::inspect`](super::VnetHeader::inspect), [`GsoPacket`](super::GsoPacket))
/// restores the original packets byte for byte, with one exception. The identification of an IPv4 packet with DF set has
/// no meaning (RFC 6864 section 4.1). Such packets are joined regardless of it, and the segments count up from the first
/// one's.
///
/// IPv6 packets with extension headers are not joined.
///
/// It allocates one MiB when it is created and nothing later. Only memory that was used is resident.
#[derive(Debug)]
pub struct Coalescer {
    what: Coalesce,
    /// The flow of every batch in `batches`, or [`NONE`]. They are stored separately, so a search reads two cache
    /// lines.
    flows: [FlowKey; BATCHES],
    batches: Box<[GroBatch]>,
    /// The index of the batch that the last search found. Most packets belong to the same flow as the previous packet.
    recent: usize,
    /// The number of batches begun so far.
    begun: u64,
}

/// The flow of a free place: no protocol has the number 0 here.
const NONE: FlowKey = 0;

impl Coalescer {
    /// Creates a coalescer with buffers for sixteen flows. If more flows alternate, the oldest batches are delivered
    /// early.
    #[must_use]
    pub fn new(what: Coalesce) -> Self {
        let batches = core::iter::repeat_with(GroBatch::new).take(BATCHES).collect();
        Self { what, flows: [NONE; BATCHES], batches, recent: 0, begun: 0 }
    }

    /// Returns the packets that are joined.
    #[must_use]
    pub fn what(&self) -> Coalesce {
        self.what
    }

    /// Sets the packets that are joined from now on. Use it when a device rejects an offload that it announced.
    pub fn set(&mut self, what: Coalesce) {
        self.what = what;
    }

    /// Adds one packet, whose length must equal the one in its header.
    ///
    /// Completed batches go to `deliver`, perhaps the packet itself. A packet that cannot be joined, for example
    /// because it is invalid, is delivered unchanged.
    #[inline]
    pub fn push(&mut self, packet: &[u8], deliver: &mut impl FnMut(Coalesced<'_>)) {
        // The common path of IPv4 has no branch for IPv6.
        match Kind::<Ipv4Header>::of(packet, self.what) {
            Kind::Stranger => self.push_v6(packet, deliver),
            kind @ (Kind::Candidate(_) | Kind::Alone(_) | Kind::BetweenHosts(_)) => {
                self.push_kind(packet, kind, deliver)
            }
        }
    }

    #[inline(never)]
    fn push_v6(&mut self, packet: &[u8], deliver: &mut impl FnMut(Coalesced<'_>)) {
        let kind = Kind::<Ipv6Header>::of(packet, self.what);
        self.push_kind(packet, kind, deliver);
    }

    #[inline(always)]
    fn push_kind<H: Family>(&mut self, packet: &[u8], kind: Kind<'_, H>, deliver: &mut impl FnMut(Coalesced<'_>)) {
        match kind {
            Kind::Candidate(candidate) => self.join(&candidate, deliver),
            Kind::Alone(flow) => {
                if let Some(at) = self.find(flow) {
                    self.close(at, deliver);
                }
                deliver(Coalesced::single(packet));
            }
            Kind::BetweenHosts(hosts) => {
                for at in 0..BATCHES {
                    if self.flows.get(at).is_some_and(|flow| hosts.have(*flow)) {
                        self.close(at, deliver);
                    }
                }
                deliver(Coalesced::single(packet));
            }
            Kind::Stranger => deliver(Coalesced::single(packet)),
        }
    }

    /// Delivers all open batches, the oldest first. Call it before waiting for more packets.
    #[inline]
    pub fn flush(&mut self, deliver: &mut impl FnMut(Coalesced<'_>)) {
        while let Some(at) = self.oldest() {
            self.close(at, deliver);
        }
    }

    #[inline]
    fn join<H: Family>(&mut self, packet: &Candidate<'_, H>, deliver: &mut impl FnMut(Coalesced<'_>)) {
        if let Some(at) = self.find(packet.flow) {
            let appended = self.batches.get_mut(at).map(|batch| batch.append(packet));
            match appended {
                Some(Appended::Open) => return,
                Some(Appended::Complete) => return self.close(at, deliver),
                Some(Appended::BadChecksum) => {
                    self.close(at, deliver);
                    return deliver(Coalesced::single(packet.bytes));
                }
                Some(Appended::Unfit) | None => self.close(at, deliver),
            }
        }
        if packet.ends_batch() {
            return deliver(Coalesced::single(packet.bytes));
        }
        let at = self.place(deliver);
        let Some((flow, batch)) = self.flows.get_mut(at).zip(self.batches.get_mut(at)) else { return };
        if batch.begin(packet, self.begun) {
            *flow = packet.flow;
            self.recent = at;
            self.begun += 1;
        } else {
            deliver(Coalesced::single(packet.bytes));
        }
    }

    #[inline]
    fn find(&mut self, wanted: FlowKey) -> Option<usize> {
        if self.flows.get(self.recent) == Some(&wanted) {
            return Some(self.recent);
        }
        self.recent = self.flows.iter().position(|flow| *flow == wanted)?;
        Some(self.recent)
    }

    /// Returns a place for a new batch: the first free one, whose memory was used last, or else the place of the oldest
    /// batch.
    #[inline]
    fn place(&mut self, deliver: &mut impl FnMut(Coalesced<'_>)) -> usize {
        let free = self.flows.iter().position(|flow| *flow == NONE);
        free.unwrap_or_else(|| {
            let oldest = self.oldest().unwrap_or(0);
            self.close(oldest, deliver);
            oldest
        })
    }

    #[inline]
    fn oldest(&self) -> Option<usize> {
        let open = self.flows.iter().zip(&self.batches).enumerate().filter(|(_, (flow, _))| **flow != NONE);
        open.min_by_key(|(_, (_, batch))| batch.number()).map(|(at, _)| at)
    }

    #[inline]
    fn close(&mut self, at: usize, deliver: &mut impl FnMut(Coalesced<'_>)) {
        let Some((flow, batch)) = self.flows.get_mut(at).zip(self.batches.get_mut(at)) else { return };
        *flow = NONE;
        deliver(batch.finish());
    }
}
