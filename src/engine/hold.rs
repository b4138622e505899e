//! Packets from the TUN that wait for a session of their framing.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr, SocketAddrV6};
use core::ops::Bound::{self, Excluded, Included};
use core::time::Duration;

use crate::offload::VnetHeader;

/// Bytes of waiting packets for all peers, with [`EXTRA`] for each. So at most 2,048 packets wait.
const ROOM: usize = 1 << 20;
/// Bytes that a packet takes besides its own.
const EXTRA: usize = 512;
/// The time for which a packet waits at most.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Packets of each peer, in their order of arrival.
///
/// When there is no room, the peer with the most loses its newest packets. So each of `n` peers may have `1 / n` of the
/// room, regardless of what waits for the others.
#[derive(Debug, Default)]
pub(super) struct HoldQueue {
    peers: BTreeMap<SocketAddr, Waiting>,
    packets: usize,
    used: usize,
    /// A time at or before which no packet has waited for too long.
    ends_at: Option<Duration>,
}

/// The packets of one peer.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    packets: VecDeque<Packet>,
    /// The packets' bytes, one after the other. Those before `start` belong to packets that are gone.
    bytes: Vec<u8>,
    start: usize,
}

#[derive(Clone, Copy, Debug)]
struct Packet {
    header: VnetHeader,
    len: usize,
    since: Duration,
}

/// A range of peers.
pub(super) type Peers = (Bound<SocketAddr>, Bound<SocketAddr>);

/// All peers.
pub(super) const ALL: Peers = (Bound::Unbounded, Bound::Unbounded);

/// Returns the range of the peers with this address.
pub(super) fn with_address(address: IpAddr) -> Peers {
    let last = match address {
        IpAddr::V4(_) => SocketAddr::new(address, u16::MAX),
        IpAddr::V6(address) => SocketAddrV6::new(address, u16::MAX, u32::MAX, u32::MAX).into(),
    };
    (Included(SocketAddr::new(address, 0)), Included(last))
}

impl HoldQueue {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub(super) fn len(&self) -> u64 {
        self.packets as u64
    }

    /// Returns true if packets for this peer wait.
    pub(super) fn has(&self, peer: SocketAddr) -> bool {
        self.peers.contains_key(&peer)
    }

    /// Returns the first peer of a range for which packets wait.
    pub(super) fn first(&self, peers: Peers) -> Option<SocketAddr> {
        self.peers.range(peers).next().map(|(peer, _)| *peer)
    }

    /// Returns the next peer of a range, and takes it out of the range.
    pub(super) fn next(&self, peers: &mut Peers) -> Option<SocketAddr> {
        let peer = self.first(*peers)?;
        peers.0 = Excluded(peer);
        Some(peer)
    }

    /// Returns the time at which the oldest packet has waited for too long, or an earlier one.
    pub(super) fn ends_at(&self) -> Option<Duration> {
        self.ends_at
    }

    /// Determines the time at which the oldest packet has waited for too long.
    pub(super) fn update_end(&mut self) {
        let oldest = self.peers.values().filter_map(|waiting| waiting.packets.front()).map(|packet| packet.since).min();
        self.ends_at = oldest.map(|since| since + LONGEST_WAIT);
    }

    /// Adds a packet. Calls `lost` with the peer of each packet for which there is no room.
    pub(super) fn push(
        &mut self,
        peer: SocketAddr,
        header: VnetHeader,
        packet: &[u8],
        now: Duration,
        mut lost: impl FnMut(SocketAddr),
    ) {
        let own = self.peers.get(&peer).map_or(0, Waiting::used) + packet.len() + EXTRA;
        while self.used + packet.len() + EXTRA > ROOM {
            let fullest = self.peers.iter_mut().max_by_key(|(_, waiting)| waiting.used());
            let Some((fullest, waiting)) = fullest.filter(|(_, waiting)| waiting.used() > own) else {
                return lost(peer);
            };
            let fullest = *fullest;
            self.used -= waiting.drop_newest();
            self.packets -= 1;
            if waiting.packets.is_empty() {
                self.peers.remove(&fullest);
            }
            lost(fullest);
        }
        let waiting = self.peers.entry(peer).or_default();
        waiting.packets.push_back(Packet { header, len: packet.len(), since: now });
        waiting.bytes.extend_from_slice(packet);
        self.packets += 1;
        self.used += packet.len() + EXTRA;
        self.ends_at.get_or_insert(now + LONGEST_WAIT);
    }

    /// Takes out the packets of a peer.
    pub(super) fn take(&mut self, peer: SocketAddr) -> Option<Waiting> {
        let waiting = self.peers.remove(&peer)?;
        self.packets -= waiting.packets.len();
        self.used -= waiting.used();
        if self.peers.is_empty() {
            self.ends_at = None;
        }
        Some(waiting)
    }

    /// Puts back what is left of packets that were taken.
    pub(super) fn put_back(&mut self, peer: SocketAddr, mut waiting: Waiting) {
        let Some(first) = waiting.packets.front() else { return };
        let ends_at = first.since + LONGEST_WAIT;
        self.ends_at = Some(self.ends_at.map_or(ends_at, |earliest| earliest.min(ends_at)));
        self.packets += waiting.packets.len();
        self.used += waiting.used();
        waiting.bytes.drain(..waiting.start);
        waiting.start = 0;
        self.peers.insert(peer, waiting);
    }
}

impl Waiting {
    /// Returns the number of packets.
    pub(super) fn count(&self) -> u64 {
        self.packets.len() as u64
    }

    fn used(&self) -> usize {
        self.bytes.len() - self.start + self.packets.len() * EXTRA
    }

    /// Returns the room that this gives.
    fn drop_newest(&mut self) -> usize {
        let Some(Packet { len, .. }) = self.packets.pop_back() else { return 0 };
        self.bytes.truncate(self.bytes.len() - len);
        len + EXTRA
    }

    /// Returns the first packet, and whether it has waited for too long.
    pub(super) fn first(&mut self, now: Duration) -> Option<(VnetHeader, &mut [u8], bool)> {
        let Packet { header, len, since } = *self.packets.front()?;
        let packet = self.bytes.get_mut(self.start..self.start + len)?;
        Some((header, packet, now.saturating_sub(since) >= LONGEST_WAIT))
    }

    /// Removes the first packet.
    pub(super) fn pop(&mut self) {
        self.start += self.packets.pop_front().map_or(0, |packet| packet.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    fn peer(number: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, (number >> 8) as u8, number as u8)), 8285)
    }

    fn push(queue: &mut HoldQueue, to: SocketAddr, packet: &[u8], now: Duration) -> Vec<SocketAddr> {
        let mut lost = vec![];
        queue.push(to, VnetHeader::default(), packet, now, |peer| lost.push(peer));
        lost
    }

    /// In any order of arrival a peer gets its part of the room. The longest GSO packet has 65,535 bytes.
    #[test]
    fn peers_without_a_session_leave_room_to_others() {
        for (peers, len) in [(1, 65_535), (7, 65_535), (100, 1472), (1000, 60)] {
            for is_sorted in [true, false] {
                let mut queue = HoldQueue::default();
                for at in 0..peers * 40 {
                    let number = if is_sorted { at / 40 } else { at % peers };
                    push(&mut queue, peer(number), &vec![0; len], Duration::ZERO);
                }
                let part = ROOM / usize::from(peers + 1);
                for _ in 0..part / (len + EXTRA) {
                    assert!(!push(&mut queue, peer(2000), &vec![0; len], Duration::ZERO).contains(&peer(2000)));
                }
                assert!(queue.used <= ROOM && queue.peers.values().all(|waiting| waiting.used() + len + EXTRA > part));
            }
        }
    }

    #[test]
    fn peers_of_an_address_are_found_with_any_port_and_scope() {
        let link_local = SocketAddrV6::new("fe80::1".parse().unwrap(), u16::MAX, 7, u32::MAX);
        let all =
            [peer(1), SocketAddr::new(peer(1).ip(), 0), SocketAddr::new(peer(1).ip(), u16::MAX), link_local.into()];
        for one in all {
            let mut queue = HoldQueue::default();
            push(&mut queue, peer(0), &[0], Duration::ZERO);
            push(&mut queue, peer(2), &[0], Duration::ZERO);
            assert!(queue.first(with_address(one.ip())).is_none());
            push(&mut queue, one, &[0], Duration::ZERO);
            let mut peers = with_address(one.ip());
            assert_eq!([queue.next(&mut peers), queue.next(&mut peers)], [Some(one), None]);
        }
    }

    proptest! {
        /// The queue is a list for each peer, and knows when the oldest packet must go.
        #[test]
        fn it_is_a_list_of_packets_for_each_peer(
            steps in proptest::collection::vec((0u16..4, 0usize..60_000, 0u8..8, 0u64..3000), 1..200),
        ) {
            let mut queue = HoldQueue::default();
            let mut lists: BTreeMap<SocketAddr, Vec<(Vec<u8>, Duration)>> = BTreeMap::new();
            let mut now = Duration::ZERO;
            for (fill, (number, len, kept, step)) in steps.into_iter().enumerate() {
                now += Duration::from_millis(step);
                let (peer, packet) = (peer(number), vec![fill as u8; len]);
                let mut lost = push(&mut queue, peer, &packet, now);
                if lost.last() == Some(&peer) {
                    lost.pop();
                } else {
                    lists.entry(peer).or_default().push((packet, now));
                }
                for other in lost {
                    prop_assert_ne!(other, peer);
                    lists.get_mut(&other).unwrap().pop();
                }
                if kept == 0 && let Some(mut waiting) = queue.take(peer) {
                    let list = lists.remove(&peer).unwrap();
                    // A third of them stays.
                    let stays = list.len() / 3;
                    for (expected, since) in &list[..list.len() - stays] {
                        let (_, packet, is_too_old) = waiting.first(now).unwrap();
                        prop_assert_eq!((&*packet, is_too_old), (&**expected, now - *since >= LONGEST_WAIT));
                        waiting.pop();
                    }
                    prop_assert_eq!(waiting.count(), stays as u64);
                    queue.put_back(peer, waiting);
                    if stays > 0 {
                        lists.insert(peer, list[list.len() - stays..].to_vec());
                    }
                }
                let all = || lists.values().flatten();
                prop_assert_eq!(queue.len(), all().count() as u64);
                prop_assert_eq!(queue.used, all().map(|(packet, _)| packet.len() + EXTRA).sum::<usize>());
                prop_assert!(queue.used <= ROOM);
                let end = all().map(|(_, since)| *since + LONGEST_WAIT).min();
                prop_assert!(queue.ends_at().is_some() == end.is_some() && queue.ends_at() <= end);
                queue.update_end();
                prop_assert_eq!(queue.ends_at(), end);
            }
        }
    }
}
