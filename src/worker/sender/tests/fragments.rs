//! What a narrow path makes of packets that may be fragmented.

use super::*;
use crate::forward::PathMtus;

/// What went, as marks and bytes of payload.
fn pieces(script: &Script) -> Vec<(u32, usize)> {
    script.sent.borrow().iter().map(|sent| (sent.mark, sent.payload.len())).collect()
}

/// Fault 29 with DF clear: the packets that met the narrow path are fragmented, not lost, and count once.
#[test]
fn fault_29_what_may_be_fragmented_is() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    // A packet of two datagrams, one of one, and one that fits.
    put_with(0, &mut sender, &mut state, 3, 1, 2, 1400);
    put_with(0, &mut sender, &mut state, 3, 2, 1, 1400);
    put_with(0, &mut sender, &mut state, 3, 3, 1, 900);
    put_with(DF, &mut sender, &mut state, 4, 4, 1, 900);
    let socket = script(&[]);
    socket.mtu.set(1000);
    sender.flush(&socket, &mut state, now).unwrap();
    let (first, second) = (976, 404);
    let expected = [(0x100, first), (0x100, second), (0x101, first), (0x101, second), (0x200, first), (0x200, second)];
    assert_eq!(pieces(&socket)[..6], expected);
    assert_eq!(pieces(&socket)[6..], [(0x300, 880), (0x400, 880)]);
    let counters = &state.counters;
    assert_eq!((counters.encap.forwarded(), counters.encap.answered(), counters.stats.fragments_made), (4, 0, 6));
    assert!(counters.encap.is_conserved() && sender.trains.is_empty());
}

/// Faults 27 and 29: a socket that is full between two fragments is waited for, and goes on with the next of them, also if the
/// path has become narrower still.
#[test]
fn fault_27_between_two_fragments() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put_with(0, &mut sender, &mut state, 3, 1, 1, 1400);
    put_with(0, &mut sender, &mut state, 3, 2, 1, 1400);
    let socket = script(&[(9, SendErrorKind::Other(0)), (9, SendErrorKind::Other(0)), (0, SendErrorKind::WouldBlock)]);
    socket.mtu.set(600);
    sender.flush(&socket, &mut state, now).unwrap();
    assert!(sender.held().is_some());
    assert_eq!((pieces(&socket), state.counters.encap.held()), (Vec::from([(0x100, 576)]), 2));
    socket.mtu.set(500);
    sender.flush(&socket, &mut state, now).unwrap();
    let first = [(0x100, 576), (0x100, 480), (0x100, 324)];
    assert_eq!(pieces(&socket), [&first[..], &[(0x200, 480), (0x200, 480), (0x200, 420)]].concat());
    assert_eq!((state.counters.encap.forwarded(), state.counters.stats.fragments_made), (2, 6));
    assert!(sender.held().is_none() && sender.trains.is_empty());
}

/// The same after the value has been forgotten: what has begun in fragments goes on in fragments.
#[test]
fn fault_27_between_two_fragments_until_the_path_is_forgotten() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put_with(0, &mut sender, &mut state, 3, 1, 1, 1400);
    let socket = script(&[(9, SendErrorKind::Other(0)), (9, SendErrorKind::Other(0)), (0, SendErrorKind::WouldBlock)]);
    socket.mtu.set(600);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!(pieces(&socket), [(0x100, 576)]);
    socket.mtu.set(1472);
    sender.flush(&socket, &mut state, now + PathMtus::LIFETIME).unwrap();
    assert_eq!(pieces(&socket), [(0x100, 576), (0x100, 576), (0x100, 228)]);
    assert_eq!((state.counters.encap.forwarded(), sender.trains.is_empty()), (1, true));
}

/// R67: of a packet of which a fragment fails nothing more is sent; it is lost once, for that reason, and the next one goes.
#[test]
fn r67_a_fragment_that_fails_is_the_packets_fate() {
    for kind in [SendErrorKind::Unreachable, SendErrorKind::Forbidden, SendErrorKind::Other(5)] {
        let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
        put_with(0, &mut sender, &mut state, 3, 1, 2, 1400);
        put_with(0, &mut sender, &mut state, 3, 2, 1, 1400);
        let socket = script(&[(9, kind), (9, kind), (0, kind)]);
        socket.mtu.set(600);
        sender.flush(&socket, &mut state, now).unwrap();
        let (flow, sent) = (&state.counters.encap, marks(&socket));
        assert_eq!(flow.dropped(send_failure(kind)), 1);
        assert_eq!((flow.forwarded(), flow.is_conserved()), (1, true), "{flow:?}");
        assert_eq!(sent.iter().filter(|mark| **mark == 0x100).count(), 1, "the rest of the datagram stays: {sent:?}");
        assert!(!sent.contains(&0x101), "and so does the packet's other datagram");
        assert_eq!(sent.iter().filter(|mark| **mark == 0x200).count(), 3, "{sent:?}");
        assert_eq!(state.send_errors.values().sum::<u64>(), 1);
    }
}

/// A path that has no room for a fragment: a reason of its own.
#[test]
fn what_cannot_be_fragmented_is_counted() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put_with(0, &mut sender, &mut state, 3, 1, 1, 1400);
    put_with(0x1fff, &mut sender, &mut state, 3, 2, 1, 1400);
    let socket = script(&[]);
    socket.mtu.set(1000);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!(state.counters.encap.dropped(DropReason::NotFragmented), 1);
    socket.mtu.set(20);
    put_with(0, &mut sender, &mut state, 3, 3, 1, 1400);
    sender.flush(&socket, &mut state, now).unwrap();
    let flow = &state.counters.encap;
    assert_eq!((flow.forwarded(), flow.dropped(DropReason::SendFailed), flow.is_conserved()), (1, 1, true), "{flow:?}");
}
