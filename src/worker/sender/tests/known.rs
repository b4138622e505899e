//! What is known of a path holds for every train of a call, whatever the kernel would take.

use super::*;

#[test]
fn r54_no_train_behind_the_first_is_longer_than_its_path_is_known_to_carry() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    let socket = script(&[]);
    socket.mtu.set(1272);
    put(&mut sender, &mut state, 4, 1, 1, 1400);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!(*socket.refused.borrow(), [1 << 8], "so that it is known");
    // The kernel has forgotten it.
    socket.mtu.set(9000);
    for (number, (peer, len)) in (2..).zip([(3, 1400), (4, 1400), (3, 200), (4, 1272)]) {
        put(&mut sender, &mut state, peer, number, 1, len);
    }
    sender.flush(&socket, &mut state, now).unwrap();
    assert!(sender.trains.is_empty());
    let mut went = marks(&socket);
    went.sort_unstable();
    assert_eq!((went, &socket.refused.borrow()[1..]), (alloc::vec![2 << 8, 4 << 8, 5 << 8], &[3 << 8][..]));
}
