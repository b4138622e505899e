use super::chunk::Batch;
use super::*;
use crate::transmit::SEGMENTS_MAX;
use crate::wire::Ecn;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn way(peer: u8, flow: u16) -> Way {
    Way { destination: ([10, 168, 0, peer], 8285).into(), ecn: Ecn::NotEct, flow }
}

fn small() -> SendQueue {
    SendQueue::new(QueueLimits::new(1 << 20, 0))
}

/// Adds a packet whose datagrams all begin with its number. Returns whether there was room.
fn put(queue: &mut SendQueue, way: &Way, lengths: &[usize], number: u32) -> bool {
    let mut packet = queue.begin(way);
    for len in lengths {
        let Some(room) = packet.datagram(*len) else { return false };
        let front = 4.min(room.len());
        room[..front].copy_from_slice(&number.to_be_bytes()[..front]);
    }
    packet.commit();
    true
}

fn lengths_selected(queue: &mut SendQueue) -> Vec<(u8, usize, Option<usize>)> {
    let count = queue.select();
    let batches = (0..count).map(|index| queue.batch(index).unwrap());
    let peer = |batch: &Transmit<'_>| match batch.destination {
        SocketAddr::V4(address) => address.ip().octets()[3],
        SocketAddr::V6(_) => unreachable!(),
    };
    batches.map(|batch| (peer(&batch), batch.contents.len(), batch.segment_size.map(|size| size.get()))).collect()
}

#[test]
fn equal_datagrams_share_a_batch_and_a_shorter_one_ends_it() {
    let mut queue = small();
    for len in [100, 100, 40, 40, 41] {
        assert!(put(&mut queue, &way(3, 0), &[len], 1));
    }
    assert_eq!(lengths_selected(&mut queue), [(3, 240, Some(100)), (3, 40, None), (3, 41, None)]);
    assert_eq!((queue.packets(), queue.bytes()), (5, 321));
    assert_eq!(queue.sent(3), 5);
    assert!(queue.is_empty());
    assert_eq!((queue.packets(), queue.bytes()), (0, 0));
}

#[test]
fn a_batch_is_bounded_in_datagrams_and_bytes() {
    let mut queue = small();
    for _ in 0..=SEGMENTS_MAX {
        assert!(put(&mut queue, &way(3, 0), &[4], 1));
    }
    assert_eq!(lengths_selected(&mut queue), [(3, 4 * SEGMENTS_MAX, Some(4)), (3, 4, None)]);
    assert_eq!(queue.sent(2), SEGMENTS_MAX as u64 + 1);
    assert!(!put(&mut queue, &way(3, 0), &[BATCH_BYTES_MAX + 1], 1));
    assert!(put(&mut queue, &way(3, 0), &[BATCH_BYTES_MAX - 9], 1));
    assert!(put(&mut queue, &way(3, 0), &[10], 1));
    assert_eq!(lengths_selected(&mut queue).len(), 2, "65,508 bytes do not fit one datagram");
}

#[test]
fn a_different_ecn_field_begins_a_batch_in_order() {
    let mut queue = small();
    let marked = Way { ecn: Ecn::Ce, ..way(3, 0) };
    for way in [way(3, 0), marked, way(3, 0)] {
        assert!(put(&mut queue, &way, &[10], 0));
    }
    let count = queue.select();
    let marks: Vec<_> = (0..count).map(|index| queue.batch(index).unwrap().ecn).collect();
    assert_eq!(marks, [Ecn::NotEct, Ecn::Ce, Ecn::NotEct]);
}

#[test]
fn flows_of_a_peer_have_batches_of_their_own() {
    let mut queue = small();
    for flow in [1, 2, 1, 2] {
        assert!(put(&mut queue, &way(3, flow), &[10], 0));
    }
    assert_eq!(lengths_selected(&mut queue), [(3, 20, Some(10)), (3, 20, Some(10))]);
}

#[test]
fn empty_datagrams_are_never_in_a_batch() {
    let mut queue = small();
    for _ in 0..3 {
        assert!(put(&mut queue, &way(3, 0), &[0], 0));
    }
    assert_eq!(lengths_selected(&mut queue), [(3, 0, None); 3]);
    assert_eq!(queue.sent(3), 3);
    assert!(queue.is_empty());
}

#[test]
fn peers_are_served_in_turn() {
    let mut queue = small();
    for _ in 0..400 {
        assert!(put(&mut queue, &way(3, 0), &[1400], 0));
    }
    for peer in [4, 5] {
        assert!(put(&mut queue, &way(peer, 0), &[1400], 0));
    }
    let peers: Vec<u8> = lengths_selected(&mut queue).into_iter().map(|(peer, ..)| peer).collect();
    assert_eq!(peers[..4], [3, 4, 5, 3]);
}

/// Blocks the first selected peer, and returns the losses.
fn block(queue: &mut SendQueue, now: Duration, retry_at: Duration) -> Vec<Lost> {
    let mut lost = Vec::new();
    queue.block(now, retry_at, |of| lost.push(of));
    lost
}

/// The peer that uses most makes room, and not the one that is blocked last.
#[test]
fn the_blocked_peer_that_uses_most_makes_room() {
    let mut queue = small();
    for _ in 0..12 {
        assert!(put(&mut queue, &way(1, 0), &[60_000], 0));
    }
    queue.select();
    assert_eq!(block(&mut queue, Duration::ZERO, SECOND), []);
    for peer in 2..=9 {
        assert!(put(&mut queue, &way(peer, 0), &[100], 0));
    }
    queue.select();
    let lost = block(&mut queue, Duration::ZERO, SECOND);
    assert!(!lost.is_empty() && lost.iter().all(|of| of.destination == way(1, 0).destination), "{lost:?}");
}

#[test]
fn a_blocked_peer_is_skipped_until_its_retry() {
    let mut queue = small();
    assert!(put(&mut queue, &way(3, 0), &[100], 0) && put(&mut queue, &way(4, 0), &[200], 0));
    assert_eq!(queue.select(), 2);
    assert_eq!(block(&mut queue, SECOND, 2 * SECOND), []);
    assert_eq!(lengths_selected(&mut queue), [(4, 200, None)]);
    assert_eq!(queue.sent(1), 1);
    assert_eq!((queue.select(), queue.retry_at(), queue.is_empty()), (0, Some(2 * SECOND), false));
    assert!(put(&mut queue, &way(3, 0), &[100], 0));
    queue.unblock(SECOND);
    assert_eq!(queue.select(), 0);
    queue.unblock(2 * SECOND);
    assert_eq!(lengths_selected(&mut queue), [(3, 200, Some(100))]);
    assert_eq!(queue.blocked_since(), Some(SECOND), "until one of its datagrams is sent");
    assert_eq!(queue.advance(1), 1);
    queue.select();
    assert_eq!(queue.blocked_since(), None);
}

#[test]
fn a_packet_that_does_not_fit_leaves_the_queue_as_it_was() {
    let mut queue = SendQueue::new(QueueLimits::new(100_000, 0));
    assert!(put(&mut queue, &way(3, 0), &[1000, 1000], 0));
    assert!(!put(&mut queue, &way(3, 0), &[40_000, 40_000, 40_000], 1));
    assert!(!put(&mut queue, &way(4, 0), &[60_000, 60_000], 1));
    assert_eq!((queue.packets(), queue.bytes()), (1, 2000));
    assert!(put(&mut queue, &way(3, 0), &[1000], 2));
    assert_eq!(lengths_selected(&mut queue), [(3, 3000, Some(1000))]);
    assert_eq!(queue.sent(1), 2);
    assert!(queue.is_empty());
    drop(queue.begin(&way(3, 0)));
    assert!(queue.is_empty());
}

#[test]
fn blocked_peers_leave_room_for_others() {
    let mut queue = small();
    let chunks = 2 * CHUNKS_RESERVED;
    for peer in 0..200 {
        // The peer queues as much as it may, and is then blocked.
        while put(&mut queue, &way(peer, 0), &[60_000], 0) && queue.free() > 0 {}
        queue.select();
        while queue.blocked.iter().all(|at| queue.peer(*at).unwrap().destination != way(peer, 0).destination) {
            if queue.select() == 0 {
                break;
            }
            block(&mut queue, Duration::ZERO, SECOND);
        }
        assert!(queue.free() >= CHUNKS_RESERVED, "peer {peer} leaves {} of {chunks}", queue.free());
    }
    assert!(put(&mut queue, &way(250, 0), &[1400], 0));
    assert_eq!(lengths_selected(&mut queue), [(250, 1400, None)]);
}

/// With one chunk for each peer, the blocked peer loses all its packets and has no chunk left.
#[test]
fn a_blocked_peer_gives_up_its_only_chunk() {
    let mut queue = small();
    for peer in 0..=CHUNKS_RESERVED as u8 + 4 {
        assert!(put(&mut queue, &way(peer, 0), &[100], 0));
    }
    assert_eq!(queue.select(), SELECTED_MAX);
    let lost = Lost { destination: way(0, 0).destination, packets: 1 };
    assert_eq!(block(&mut queue, Duration::ZERO, SECOND), [lost]);
    assert_eq!((queue.packets(), queue.retry_at()), (CHUNKS_RESERVED as u64 + 4, None));
}

#[test]
fn packets_of_a_removed_peer_are_dropped_and_reported() {
    let mut queue = small();
    for (peer, packets) in [(3, 2), (4, 70), (5, 1)] {
        (0..packets).for_each(|_| assert!(put(&mut queue, &way(peer, 0), &[1400], 0)));
    }
    let mut lost = Vec::new();
    queue.drop_peers(|peer| peer != way(5, 0).destination, |of| lost.push((of.destination, of.packets)));
    lost.sort_unstable();
    assert_eq!(lost, [(way(3, 0).destination, 2), (way(4, 0).destination, 70)]);
    assert_eq!((queue.packets(), queue.bytes()), (1, 1400));
    assert_eq!(lengths_selected(&mut queue), [(5, 1400, None)]);
}

#[derive(Clone, Debug)]
enum Step {
    /// A packet of this many datagrams of equal length, and a last one.
    Put {
        peer: u8,
        flow: u16,
        datagrams: usize,
        len: usize,
        last: usize,
    },
    /// A send of some batches, then of some datagrams of the next one, and then this event.
    Send {
        batches: usize,
        datagrams: usize,
        then: Then,
    },
    Unblock,
    Drop {
        peer: u8,
    },
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    Lose(usize),
    Block,
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![Just(100usize), Just(1400), 4..3000usize, Just(9000)];
    let then = prop_oneof![Just(Then::Nothing), (1..70usize).prop_map(Then::Lose), Just(Then::Block)];
    prop_oneof![
        6 => (0..5u8, 0..2u16, 0..150usize, len(), len()).prop_map(|(peer, flow, datagrams, len, last)| {
            Step::Put { peer, flow, datagrams, len, last: last.min(len) }
        }),
        6 => (0..17usize, 0..70usize, then).prop_map(|(batches, datagrams, then)| Step::Send { batches, datagrams, then }),
        1 => Just(Step::Unblock),
        1 => (0..5u8).prop_map(|peer| Step::Drop { peer }),
    ]
}

/// A simple model of the queue: for each peer and flow, the packet number of each datagram, and whether it is the
/// packet's last one.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<(SocketAddr, u16), VecDeque<(u32, bool)>>,
    lost: BTreeSet<u32>,
    sent: u64,
}

impl Model {
    /// Removes the next datagrams of a batch. Returns the number of packets that are completely sent now.
    fn leave(&mut self, batch: &Transmit<'_>, datagrams: usize, is_lost: bool) -> u64 {
        let waiting = self.waiting.get_mut(&(batch.destination, batch.flow)).unwrap();
        let mut sent = 0;
        for datagram in batch.segments().take(datagrams) {
            let (packet, is_last) = waiting.pop_front().unwrap();
            assert_eq!(datagram[..4], packet.to_be_bytes(), "out of order");
            if is_lost {
                self.lost.insert(packet);
            } else if is_last && !self.lost.contains(&packet) {
                sent += 1;
            }
        }
        self.sent += sent;
        sent
    }

    /// Returns the number of queued packets that are not lost.
    fn held(&self) -> u64 {
        let ends = self.waiting.values().flatten().filter(|(packet, is_last)| *is_last && !self.lost.contains(packet));
        ends.count() as u64
    }
}

proptest! {
    /// Every packet is sent or lost exactly once, and sent only if all its datagrams are. The datagrams of a peer and
    /// flow leave in their order of arrival.
    #[test]
    fn every_packet_has_one_fate(steps in proptest::collection::vec(step(), 1..80)) {
        let mut queue = SendQueue::new(QueueLimits::new(300_000, 0));
        let mut model = Model::default();
        let (mut number, mut put_in, mut lost) = (0u32, 0u64, 0u64);
        for step in steps {
            match step {
                Step::Put { peer, flow, datagrams, len, last } => {
                    number += 1;
                    let mut lengths = alloc::vec![len; datagrams];
                    lengths.push(last);
                    let (bytes, way) = (queue.bytes(), way(peer, flow));
                    if put(&mut queue, &way, &lengths, number) {
                        put_in += 1;
                        let waiting = model.waiting.entry((way.destination, flow)).or_default();
                        waiting.extend((0..lengths.len()).map(|index| (number, index + 1 == lengths.len())));
                    } else {
                        prop_assert_eq!(queue.bytes(), bytes);
                    }
                }
                Step::Send { batches, datagrams, then } => {
                    let selected = queue.select();
                    let batches = batches.min(selected);
                    let mut sent = 0;
                    for index in 0..batches {
                        sent += model.leave(&queue.batch(index).unwrap(), usize::MAX, false);
                    }
                    prop_assert_eq!(queue.sent(batches), sent);
                    if batches == selected {
                        continue;
                    }
                    let count = queue.batch(0).unwrap().segments().count();
                    let datagrams = datagrams.min(count - 1);
                    let sent = model.leave(&queue.batch(0).unwrap(), datagrams, false);
                    prop_assert_eq!(queue.advance(datagrams), sent);
                    queue.select();
                    match then {
                        Then::Nothing => {}
                        Then::Lose(datagrams) if queue.batch(0).is_some() => {
                            let batch = queue.batch(0).unwrap();
                            let datagrams = datagrams.min(batch.segments().count());
                            let before = model.lost.len();
                            model.leave(&batch, datagrams, true);
                            let news = (model.lost.len() - before) as u64;
                            prop_assert_eq!(queue.lose(datagrams).unwrap().packets, news);
                            lost += news;
                        }
                        Then::Block => {
                            let lost_of = block(&mut queue, Duration::ZERO, SECOND);
                            prop_assert!(queue.free() >= CHUNKS_RESERVED || queue.blocked.is_empty());
                            for of in lost_of {
                                // The reported number of its newest packets is gone, of any flow.
                                lost += of.packets;
                                for flow in 0..2 {
                                    let kept = datagrams_of(&queue, of.destination, flow);
                                    let waiting = model.waiting.get_mut(&(of.destination, flow));
                                    let Some(waiting) = waiting else { continue };
                                    for (packet, _) in waiting.drain(kept..) {
                                        model.lost.insert(packet);
                                    }
                                    if let Some((packet, is_last)) = waiting.back_mut() {
                                        // A packet that continued in a freed chunk ends here.
                                        *is_last |= model.lost.contains(packet);
                                    }
                                }
                            }
                        }
                        Then::Lose(_) => {}
                    }
                }
                Step::Unblock => queue.unblock(SECOND),
                Step::Drop { peer } => {
                    let gone = way(peer, 0).destination;
                    queue.drop_peers(|destination| destination == gone, |of| lost += of.packets);
                    for flow in 0..2 {
                        let waiting = model.waiting.remove(&(gone, flow)).unwrap_or_default();
                        model.lost.extend(waiting.into_iter().map(|(packet, _)| packet));
                    }
                }
            }
            prop_assert_eq!(queue.packets(), model.held());
            prop_assert_eq!(lost, model.lost.len() as u64);
            prop_assert_eq!(put_in, model.sent + lost + queue.packets());
        }
    }
}

/// Returns the queued datagrams of a peer and flow.
fn datagrams_of(queue: &SendQueue, destination: SocketAddr, flow: u16) -> usize {
    let peer = queue.peers.iter().find(|peer| peer.destination == destination && peer.head != NONE);
    let (mut at, mut count) = (peer.map_or(NONE, |peer| peer.head), 0);
    while let Some(chunk) = queue.chunk(at) {
        if chunk.flow == flow {
            count += (chunk.front()..).map_while(|number| chunk.batch(number)).map(Batch::segments_left).sum::<usize>();
        }
        at = chunk.next;
    }
    count
}
