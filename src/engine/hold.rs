//! Packets from the TUN that wait for a session of their framing.

use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use crate::offload::VnetHeader;

/// Bytes of waiting packets for each peer: one GSO packet fits in any case.
const PER_PEER: usize = 128 << 10;
/// Bytes of waiting packets for all peers.
const TOTAL: usize = 1 << 20;
/// Waiting packets for all peers.
const PACKETS: usize = 512;
/// The time for which a packet waits at most.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Packets in their order of arrival. Its memory is allocated when a packet waits for the first time.
#[derive(Debug, Default)]
pub(super) struct HoldQueue {
    packets: Vec<Waiting>,
    bytes: Vec<u8>,
}

/// A waiting packet, whose bytes follow those of the packet before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) peer: SocketAddr,
    pub(super) header: VnetHeader,
    len: usize,
    since: Duration,
}

impl Waiting {
    pub(super) fn is_too_old(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) >= LONGEST_WAIT
    }
}

impl HoldQueue {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.packets.len() as u64
    }

    /// Returns true if packets for this peer wait.
    pub(super) fn has(&self, peer: SocketAddr) -> bool {
        self.packets.iter().any(|waiting| waiting.peer == peer)
    }

    /// Returns the time at which the oldest packet has waited for too long.
    pub(super) fn ends_at(&self) -> Option<Duration> {
        self.packets.first().map(|oldest| oldest.since + LONGEST_WAIT)
    }

    /// Adds a packet. Returns false if there is no room for it.
    pub(super) fn push(&mut self, peer: SocketAddr, header: VnetHeader, packet: &[u8], now: Duration) -> bool {
        let of_peer: usize =
            self.packets.iter().filter(|waiting| waiting.peer == peer).map(|waiting| waiting.len).sum();
        let has_room = self.packets.len() < PACKETS
            && of_peer + packet.len() <= PER_PEER
            && self.bytes.len() + packet.len() <= TOTAL;
        if has_room {
            if self.packets.capacity() == 0 {
                (self.packets, self.bytes) = (Vec::with_capacity(PACKETS), Vec::with_capacity(TOTAL));
            }
            self.packets.push(Waiting { peer, header, len: packet.len(), since: now });
            self.bytes.extend_from_slice(packet);
        }
        has_room
    }

    /// Keeps the packets for which `keep` returns true. `keep` may change the bytes of the others.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Waiting, &mut [u8]) -> bool) {
        let Self { packets, bytes } = self;
        let (mut from, mut to) = (0, 0);
        packets.retain(|waiting| {
            let range = from..from + waiting.len;
            from = range.end;
            let is_kept = bytes.get_mut(range.clone()).is_some_and(|packet| keep(waiting, packet));
            if is_kept {
                bytes.copy_within(range, to);
                to += waiting.len;
            }
            is_kept
        });
        bytes.truncate(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const ONE: SocketAddr = SocketAddr::new(core::net::IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1)), 1);
    const OTHER: SocketAddr = SocketAddr::new(core::net::IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 2)), 1);

    fn contents(queue: &mut HoldQueue) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut found = vec![];
        queue.retain(|waiting, packet| {
            found.push((waiting.peer, packet.to_vec()));
            true
        });
        found
    }

    #[test]
    fn packets_that_are_kept_stay_in_order() {
        let mut queue = HoldQueue::default();
        for number in 0..100u8 {
            let peer = if number % 3 == 0 { ONE } else { OTHER };
            assert!(queue.push(peer, VnetHeader::default(), &vec![number; number.into()], Duration::ZERO));
        }
        queue.retain(|waiting, _| waiting.peer == OTHER);
        let expected: Vec<_> =
            (0..100u8).filter(|number| number % 3 != 0).map(|number| (OTHER, vec![number; number.into()])).collect();
        assert_eq!(contents(&mut queue), expected);
        assert!(queue.has(OTHER) && !queue.has(ONE) && queue.len() == expected.len() as u64);
    }

    #[test]
    fn bytes_and_packets_are_limited() {
        let mut queue = HoldQueue::default();
        let packet = vec![0; 65_535];
        let mut push = |peer, packet: &[u8]| queue.push(peer, VnetHeader::default(), packet, Duration::ZERO);
        assert_eq!([(); 3].map(|()| push(ONE, &packet)), [true, true, false]);
        assert!(push(OTHER, &packet));
        let most = (0..1000).filter(|_| push(OTHER, &packet[..1])).count();
        assert_eq!(most, PACKETS - 3);
        let mut queue = HoldQueue::default();
        let taken = (0..100).filter(|port| {
            let peer = SocketAddr::new(ONE.ip(), *port);
            queue.push(peer, VnetHeader::default(), &packet, Duration::ZERO)
        });
        assert_eq!(taken.count(), TOTAL / 65_535);
        assert!(queue.bytes.len() <= TOTAL && queue.bytes.capacity() == TOTAL);
    }
}
