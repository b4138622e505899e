//! Where every packet went: plain numbers, one set per worker.

use core::ops::AddAssign;

use super::{DropReason, Reject};

/// The counters of one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets out of the TUN.
    pub encap: DirectionCounters,
    /// Packets from the underlay.
    pub decap: DirectionCounters,
    /// What is no packet's fate of its own.
    pub stats: Stats,
}

/// One direction's packets. Each that came in is in exactly one of the others, at every moment (R67):
/// `received = forwarded + answered + held + Σ dropped`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionCounters {
    received: u64,
    forwarded: u64,
    answered: u64,
    held: u64,
    dropped: [u64; DropReason::ALL.len()],
}

/// Things worth counting beside the packets' fates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Packets that were handed on or answered without the bytes behind their total length.
    pub trimmed: u64,
    /// ICMP errors that the limiter held back.
    pub icmp_limited: u64,
    /// Reads of the TUN or the socket that failed and said nothing about the next one.
    pub read_errors: u64,
    /// Path MTUs lowered because a datagram was refused as too long.
    pub path_mtu_lowered: u64,
    /// Packets made of GSO packets out of the TUN.
    pub segments_made: u64,
    /// Fragments made of packets, or of segments, that were too long for their path.
    pub fragments_made: u64,
    /// Packets that went to the TUN as part of a GSO packet.
    pub coalesced: u64,
    /// How often the kernel refused a train to a peer and took its datagrams one by one. That peer then gets no trains for a
    /// minute, and for twice the time with each further refusal, up to an hour.
    pub gso_fallbacks: u64,
    /// GSO packets that the TUN refused and that were written packet by packet.
    pub tun_fallbacks: u64,
}

impl Stats {
    /// Names, for metrics, and values.
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
        ]
        .into_iter()
    }
}

impl DirectionCounters {
    /// A packet came in and its fate is open: it is held until one of the others is called for it.
    #[inline]
    pub fn receive(&mut self) {
        self.received += 1;
        self.held += 1;
    }

    /// A held packet was handed on.
    #[inline]
    pub fn forward(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.forwarded += 1;
    }

    /// So many held packets were handed on.
    #[inline]
    pub fn forward_all(&mut self, packets: u64) {
        self.held = self.held.saturating_sub(packets);
        self.forwarded += packets;
    }

    /// A held packet was answered with an ICMP error.
    #[inline]
    pub fn answer(&mut self) {
        self.held = self.held.saturating_sub(1);
        self.answered += 1;
    }

    /// A held packet was rejected: answered, or dropped for the same reason without an answer.
    pub fn settle(&mut self, reject: &Reject<'_>, answered: bool) {
        if answered { self.answer() } else { self.discard(reject.reason().into()) }
    }

    /// A held packet was dropped.
    #[inline]
    pub fn discard(&mut self, reason: DropReason) {
        self.discard_all(reason, 1);
    }

    /// So many held packets were dropped, all for one reason.
    #[inline]
    pub fn discard_all(&mut self, reason: DropReason, packets: u64) {
        self.held = self.held.saturating_sub(packets);
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count += packets;
        }
    }

    /// Packets that came in.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Packets that were handed on, to a peer or to the TUN: the kernel took them. What a queue of this host drops later it
    /// does not tell (see `tc -s qdisc` and `UdpSndbufErrors`).
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded
    }

    /// Packets that were answered with an ICMP error.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Packets whose fate is open: they wait for the kernel to take them.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Packets dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or_default()
    }

    /// Packets dropped, by reason, without the reasons that never occurred.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.iter().map(|reason| (*reason, self.dropped(*reason))).filter(|(_, count)| *count > 0)
    }

    /// Whether every packet that came in is accounted for.
    #[must_use]
    pub fn is_conserved(&self) -> bool {
        self.received == self.forwarded + self.answered + self.held + self.dropped.iter().sum::<u64>()
    }
}

impl Default for DirectionCounters {
    fn default() -> Self {
        Self { received: 0, forwarded: 0, answered: 0, held: 0, dropped: [0; DropReason::ALL.len()] }
    }
}

/// Counters of several workers add up.
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
    }
}
