use super::*;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;

fn way(peer: u8) -> Way {
    Way { destination: ([10, 168, 0, peer], 8285).into(), ecn: Ecn::NotEct, flow: 0 }
}

fn push(trains: &mut Trains, way: &Way, len: usize, mark: u8, is_last: bool) -> bool {
    trains.push(way, len, is_last).map(|room| room.fill(mark)).is_some()
}

#[test]
fn equal_datagrams_share_a_train_and_a_shorter_one_ends_it() {
    let mut trains = Trains::with_slots(4);
    for len in [100, 100, 40] {
        assert!(push(&mut trains, &way(3), len, 1, true));
    }
    let transmit = trains.transmit(0).unwrap();
    assert_eq!((transmit.contents.len(), transmit.segment_size.unwrap().get()), (240, 100));
    assert!(push(&mut trains, &way(3), 40, 1, true));
    assert_eq!(trains.len(), 2, "nothing may follow a shorter datagram");
    assert!(push(&mut trains, &way(3), 41, 1, true));
    assert_eq!(trains.len(), 3, "a longer one begins a train");
    assert!(trains.transmit(2).unwrap().segment_size.is_none(), "one datagram is no train");
}

#[test]
fn only_the_newest_train_of_a_peer_is_extended() {
    let mut trains = Trains::with_slots(8);
    for (peer, len) in [(3, 100), (4, 100), (3, 100), (3, 200), (4, 100), (3, 100)] {
        assert!(push(&mut trains, &way(peer), len, peer, true));
    }
    let sent: Vec<_> = (0..).map_while(|i| trains.transmit(i)).map(|t| (t.contents[0], t.contents.len())).collect();
    assert_eq!(sent, [(3, 200), (4, 200), (3, 300)], "the last of peer 3 fits the newest train only");
}

#[test]
fn a_mark_that_differs_begins_a_train_and_does_not_overtake() {
    let mut trains = Trains::with_slots(8);
    let marked = Way { ecn: Ecn::Ce, ..way(3) };
    for way in [way(3), marked, way(3)] {
        assert!(push(&mut trains, &way, 10, 0, true));
    }
    let marks: Vec<_> = (0..).map_while(|i| trains.transmit(i)).map(|t| t.ecn).collect();
    assert_eq!(marks, [Ecn::NotEct, Ecn::Ce, Ecn::NotEct]);
}

#[test]
fn a_train_is_bounded_in_datagrams_and_bytes() {
    let mut trains = Trains::with_slots(2);
    for _ in 0..Trains::SEGMENTS_MAX {
        assert!(push(&mut trains, &way(3), 1, 0, true));
    }
    assert_eq!(trains.len(), 1);
    assert!(push(&mut trains, &way(3), 1, 0, true));
    assert_eq!(trains.len(), 2);
    assert!(!push(&mut trains, &way(4), 1, 0, true), "all slots are taken");
    trains.clear();
    assert!(!push(&mut trains, &way(3), Trains::BYTES_MAX + 1, 0, true));
    assert!(push(&mut trains, &way(3), Trains::BYTES_MAX - 9, 0, true));
    assert!(push(&mut trains, &way(3), 10, 0, true));
    assert_eq!(trains.len(), 2, "65,508 bytes do not fit one datagram");
}

#[test]
fn empty_datagrams_are_never_in_a_train() {
    let mut trains = Trains::with_slots(3);
    for _ in 0..3 {
        assert!(push(&mut trains, &way(3), 0, 0, true));
    }
    assert_eq!(trains.len(), 3);
    assert_eq!(trains.advance(1), 1);
    assert_eq!(trains.len(), 2);
}

/// What is done with the front train.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A packet of so many datagrams to a peer.
    Put(u8, usize, usize),
    Advance(usize),
    GiveUp(usize),
    /// A peer is gone.
    Remove(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..4u8, 1..80usize, prop_oneof![Just(100usize), Just(60), Just(900)]).prop_map(|(p, n, l)| Step::Put(p, n, l)),
        2 => (1..70usize).prop_map(Step::Advance),
        1 => (1..70usize).prop_map(Step::GiveUp),
        1 => (1..4u8).prop_map(Step::Remove),
    ]
}

proptest! {
    /// Every packet is said to have gone or to be lost exactly once, and has gone only if all its datagrams have; the
    /// datagrams of a peer come out in the order they went in.
    #[test]
    fn every_packet_has_one_fate(steps in proptest::collection::vec(step(), 1..60)) {
        let mut trains = Trains::with_slots(3);
        // The model: for each peer the datagrams that wait, as numbers of packets, and which packets lost one.
        let mut waiting: [VecDeque<(u64, bool)>; 4] = Default::default();
        let (lost, lost_count) = (RefCell::new(BTreeSet::new()), Cell::new(0u64));
        let (mut put, mut gone) = (0u64, 0u64);
        let mut drain = |trains: &mut Trains, waiting: &mut [VecDeque<(u64, bool)>; 4], count: usize, up: bool| {
            let Some(front) = trains.transmit(0) else { return false };
            let SocketAddr::V4(to) = front.destination else { unreachable!() };
            let count = count.min(trains.left());
            let mut ended = 0;
            for index in 0..count {
                let mark = trains.datagram_mut(index).unwrap()[0];
                let (packet, last) = waiting[usize::from(to.ip().octets()[3])].pop_front().unwrap();
                assert_eq!(mark, packet as u8, "out of order");
                if up {
                    lost.borrow_mut().insert(packet);
                } else if last && !lost.borrow().contains(&packet) {
                    ended += 1;
                }
            }
            if up {
                let given_up = trains.give_up(count);
                lost_count.set(lost_count.get() + given_up.packets);
                given_up.unfinished
            } else {
                assert_eq!(trains.advance(count), ended);
                gone += ended;
                false
            }
        };
        for step in steps {
            match step {
                Step::Put(peer, datagrams, len) => {
                    put += 1;
                    'packet: for index in 0..datagrams {
                        let is_last = index + 1 == datagrams;
                        while !push(&mut trains, &way(peer), len, put as u8, is_last) {
                            let all = trains.left();
                            if drain(&mut trains, &mut waiting, all, put % 3 == 0) {
                                break 'packet;
                            }
                        }
                        waiting[usize::from(peer)].push_back((put, is_last));
                    }
                }
                Step::Advance(count) => { drain(&mut trains, &mut waiting, count, false); }
                Step::GiveUp(count) => { drain(&mut trains, &mut waiting, count, true); }
                Step::Remove(peer) => {
                    lost.borrow_mut().extend(waiting[usize::from(peer)].drain(..).map(|(packet, _)| packet));
                    let given_up = trains.give_up_where(|to| to == way(peer).destination);
                    prop_assert!(!given_up.unfinished, "each packet was put in whole");
                    lost_count.set(lost_count.get() + given_up.packets);
                }
            }
        }
        while !trains.is_empty() {
            let all = trains.left();
            drain(&mut trains, &mut waiting, all, false);
        }
        prop_assert_eq!(lost_count.get(), lost.borrow().len() as u64);
        prop_assert_eq!(gone + lost_count.get(), put);
    }
}
