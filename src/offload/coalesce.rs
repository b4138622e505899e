//! Packets of one flow joined to GSO packets.

use alloc::boxed::Box;

use super::candidate::{Candidate, FlowKey, Kind, hosts_of};
use super::gro_batch::{Appended, Coalesced, GroBatch};

/// Flows that are joined at the same time. Each has 64 KiB.
const BATCHES: usize = 16;

/// Which packets may be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coalesce {
    /// TCP, if the device takes `VIRTIO_NET_HDR_GSO_TCPV4`.
    pub tcp: bool,
    /// UDP, if the device takes `VIRTIO_NET_HDR_GSO_UDP_L4`.
    pub udp: bool,
}

/// Joins packets on their way into a TUN device.
///
/// Two packets of one flow are never handed on in another order than they came in; of different flows they may be. Cutting
/// what is handed on ([`VnetHeader::inspect`](super::VnetHeader::inspect), [`GsoPacket`](super::GsoPacket)) gives back
/// the packets that came in, byte for byte, but for one thing: with DF set, which makes the identification meaningless
/// (RFC 6864 4.1), packets are joined whatever theirs is, and cut into packets that count up from the first one's.
///
/// It has a mebibyte from the begin, of which what was used is resident, and never allocates again.
#[derive(Debug)]
pub struct Coalescer {
    what: Coalesce,
    /// The flows of `batches`, [`NONE`] where there is none: apart from them, so that a search reads two cache lines.
    flows: [FlowKey; BATCHES],
    batches: Box<[GroBatch]>,
    /// The batch that was last looked for and found: most packets belong to the flow of the one before.
    recent: usize,
    /// Batches begun so far.
    begun: u64,
}

/// The flow of a place without a batch: no protocol has the number 0 here.
const NONE: FlowKey = 0;

impl Coalescer {
    /// With room for the batches of sixteen flows. With more that take turns, the oldest batches are handed on unfinished.
    #[must_use]
    pub fn new(what: Coalesce) -> Self {
        let batches = core::iter::repeat_with(GroBatch::new).take(BATCHES).collect();
        Self { what, flows: [NONE; BATCHES], batches, recent: 0, begun: 0 }
    }

    /// Which packets are joined.
    #[must_use]
    pub fn what(&self) -> Coalesce {
        self.what
    }

    /// From now on joins others: for a device that turns out not to take what it promised.
    pub fn set(&mut self, what: Coalesce) {
        self.what = what;
    }

    /// Takes in one packet, exactly as long as its total length says.
    ///
    /// What is complete by that goes to `deliver`, perhaps the packet itself. What cannot be joined, and be it because it is
    /// broken, is handed on as it is.
    #[inline]
    pub fn push(&mut self, packet: &[u8], deliver: &mut impl FnMut(Coalesced<'_>)) {
        match Kind::of(packet, self.what) {
            Kind::Candidate(candidate) => self.join(&candidate, deliver),
            Kind::Alone(flow) => {
                if let Some(at) = self.find(flow) {
                    self.close(at, deliver);
                }
                deliver(Coalesced::single(packet));
            }
            Kind::BetweenHosts(hosts) => {
                for at in 0..BATCHES {
                    if self.flows.get(at).is_some_and(|flow| hosts_of(*flow) == hosts) {
                        self.close(at, deliver);
                    }
                }
                deliver(Coalesced::single(packet));
            }
            Kind::Stranger => deliver(Coalesced::single(packet)),
        }
    }

    /// Hands on all that is still open, the oldest first. To be called before waiting for more.
    #[inline]
    pub fn flush(&mut self, deliver: &mut impl FnMut(Coalesced<'_>)) {
        while let Some(at) = self.oldest() {
            self.close(at, deliver);
        }
    }

    #[inline]
    fn join(&mut self, packet: &Candidate<'_>, deliver: &mut impl FnMut(Coalesced<'_>)) {
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

    /// A place for a new batch: the first free one, whose memory was in use last, or else the oldest batch's.
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
