//! Packet counters: plain numbers, one set per worker.

use core::fmt::{self, Debug, Formatter};
use core::ops::AddAssign;

use super::{DropReason, Reject};

/// The counters of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets from the TUN device.
    pub encap: DirectionCounters,
    /// Packets from the underlay.
    pub decap: DirectionCounters,
    /// Events other than the outcome of a packet.
    pub stats: Stats,
}

/// The packets of one direction by their outcome.
///
/// At every moment each received packet is counted in exactly one of the others (R67): `received = forwarded + answered
/// + held + Σ dropped`.
#[derive(Clone, PartialEq, Eq)]
pub struct DirectionCounters {
    received: u64,
    forwarded: u64,
    answered: u64,
    held: u64,
    dropped: [u64; DropReason::ALL.len()],
}

/// Counters of events other than the outcome of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Packets that were forwarded or answered without the bytes after their total length.
    pub trimmed: u64,
    /// ICMP errors that the limiter suppressed.
    pub icmp_limited: u64,
    /// Failed reads of the TUN device or the socket that say nothing about the next read.
    pub read_errors: u64,
    /// Reductions of a path MTU because a datagram was refused as too long.
    pub path_mtu_lowered: u64,
    /// Segments made of GSO packets from the TUN device.
    pub segments_made: u64,
    /// Fragments made of packets or segments that were too long for their path.
    pub fragments_made: u64,
    /// Packets that were written to the TUN device as part of a GSO packet.
    pub coalesced: u64,
    /// GSO batches that the kernel refused although it accepted their datagrams one by one. The peer then gets no GSO
    /// batches for a minute. The time doubles with each further refusal, up to an hour.
    pub gso_fallbacks: u64,
    /// GSO packets that the TUN device refused and that were written packet by packet.
    pub tun_fallbacks: u64,
    /// Control messages that the framing received. They are no packets.
    pub control_received: u64,
    /// Control messages that the framing sent.
    pub control_sent: u64,
    /// Control messages of the framing that could not be sent.
    pub control_unsent: u64,
}

impl Stats {
    /// Returns names, for metrics, and values.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Self {
            trimmed,
            icmp_limited,
            read_errors,
            path_mtu_lowered,
            segments_made,
            fragments_made,
            coalesced,
            gso_fallbacks,
            tun_fallbacks,
            control_received,
            control_sent,
            control_unsent,
        } = *self;
        [
            ("trimmed", trimmed),
            ("icmp_limited", icmp_limited),
            ("read_errors", read_errors),
            ("path_mtu_lowered", path_mtu_lowered),
            ("segments_made", segments_made),
            ("fragments_made", fragments_made),
            ("coalesced", coalesced),
            ("gso_fallbacks", gso_fallbacks),
            ("tun_fallbacks", tun_fallbacks),
            ("control_received", control_received),
            ("control_sent", control_sent),
            ("control_unsent", control_unsent),
        ]
        .into_iter()
    }
}

impl DirectionCounters {
    /// Counts a received packet, which is held until another method is called for it.
    #[inline]
    pub fn receive(&mut self) {
        self.received += 1;
        self.held += 1;
    }

    /// Counts a held packet as forwarded.
    #[inline]
    pub fn forward(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.forwarded += 1;
    }

    /// Counts this many held packets as forwarded.
    #[inline]
    pub fn forward_all(&mut self, packets: u64) {
        self.held = self.held.saturating_sub(packets);
        self.forwarded += packets;
    }

    /// Counts a held packet as answered with an ICMP error.
    #[inline]
    pub fn answer(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.answered += 1;
    }

    /// Counts a held packet that was rejected: as answered, or as dropped for the same reason.
    pub fn settle(&mut self, reject: &Reject<'_>, answered: bool) {
        if answered { self.answer() } else { self.discard(reject.reason().into()) }
    }

    /// Counts a held packet as dropped.
    #[inline]
    pub fn discard(&mut self, reason: DropReason) {
        self.discard_all(reason, 1);
    }

    /// Counts this many held packets as dropped for one reason.
    #[inline]
    pub fn discard_all(&mut self, reason: DropReason, packets: u64) {
        self.held = self.held.saturating_sub(packets);
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count += packets;
        }
    }

    /// So many packets that were counted as handed on were not, all for one reason.
    #[cold]
    pub fn lose_forwarded(&mut self, reason: DropReason, packets: u64) {
        self.forwarded = self.forwarded.saturating_sub(packets);
        self.held += packets;
        self.discard_all(reason, packets);
    }

    /// So many packets that were counted as handed on still wait.
    pub fn hold_all(&mut self, packets: u64) {
        self.forwarded = self.forwarded.saturating_sub(packets);
        self.held += packets;
    }

    /// Counts packets that were received and still wait for the first decision.
    pub(crate) fn receive_waiting(&mut self, packets: u64) {
        self.received += packets;
        self.held += packets;
    }

    /// A packet that was counted as answered was not, for this reason.
    #[cold]
    pub fn lose_answer(&mut self, reason: DropReason) {
        self.answered = self.answered.saturating_sub(1);
        self.held += 1;
        self.discard(reason);
    }

    /// Returns the number of received packets.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the number of packets that the kernel accepted for a peer or the TUN device. Later drops in a queue of
    /// this host are not visible here, see `tc -s qdisc` and `UdpSndbufErrors`.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded
    }

    /// Returns the number of packets that were answered with an ICMP error.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Returns the number of packets that wait until the kernel accepts them, or until a framing has a session.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Returns the number of packets that were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or_default()
    }

    /// Returns the number of dropped packets by reason, without the reasons that never occurred.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason))).filter(|(_, count)| *count > 0)
    }

    /// Returns true if every received packet is accounted for.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        self.received == self.forwarded + self.answered + self.held + self.dropped.iter().sum::<u64>()
    }
}

/// Names the reasons of drops, and leaves out those that never occurred.
impl Debug for DirectionCounters {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { received, forwarded, answered, held, dropped: _ } = self;
        let mut fields = f.debug_struct("DirectionCounters");
        fields.field("received", received).field("forwarded", forwarded).field("answered", answered);
        fields.field("held", held);
        for (reason, count) in self.drops() {
            fields.field(reason.name(), &count);
        }
        fields.finish()
    }
}

impl Default for DirectionCounters {
    fn default() -> Self {
        Self { received: 0, forwarded: 0, answered: 0, held: 0, dropped: [0; DropReason::ALL.len()] }
    }
}

impl Counters {
    /// R8: the bytes behind a packet's total length are not used.
    #[inline]
    pub(crate) fn trim(&mut self, packet: &[u8], received: usize) {
        self.stats.trimmed += u64::from(packet.len() < received);
    }
}

/// Adds the counters of several workers.
impl AddAssign<&Self> for Counters {
    fn add_assign(&mut self, other: &Self) {
        self.encap += &other.encap;
        self.decap += &other.decap;
        self.stats += &other.stats;
    }
}

impl AddAssign<&Self> for DirectionCounters {
    fn add_assign(&mut self, other: &Self) {
        self.received += other.received;
        self.forwarded += other.forwarded;
        self.answered += other.answered;
        self.held += other.held;
        for (mine, theirs) in self.dropped.iter_mut().zip(&other.dropped) {
            *mine += theirs;
        }
    }
}

impl AddAssign<&Self> for Stats {
    fn add_assign(&mut self, other: &Self) {
        self.trimmed += other.trimmed;
        self.icmp_limited += other.icmp_limited;
        self.read_errors += other.read_errors;
        self.path_mtu_lowered += other.path_mtu_lowered;
        self.segments_made += other.segments_made;
        self.fragments_made += other.fragments_made;
        self.coalesced += other.coalesced;
        self.gso_fallbacks += other.gso_fallbacks;
        self.tun_fallbacks += other.tun_fallbacks;
        self.control_received += other.control_received;
        self.control_sent += other.control_sent;
        self.control_unsent += other.control_unsent;
    }
}
