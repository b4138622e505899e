//! A super-packet that a narrow path refuses is one packet, whatever its last segment would fit.

use super::*;

#[test]
fn fault_29_nothing_is_sent_of_a_super_packet_whose_sender_is_told() {
    for batched in [true, false] {
        let mut stage = Stage::new();
        if !batched {
            stage.worker = stage.worker.one_by_one();
        }
        stage.script.narrow(host_a().ip(), 1300, libc::EMSGSIZE);
        // Two segments of 1400 bytes with their headers, and one of 128.
        let too_long = udp(POD, POD_A, 1, Df::Set, 2 * 1372 + 100);
        stage.give_with(gso(&too_long, 1372), &too_long);
        stage.give(&udp(POD, POD_A, 9, Df::Set, 100));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(numbers(&to(host_a(), &stage.script.take_datagrams())), [9]);
        let told = stage.take_delivered();
        assert_eq!((told.len(), &told[0][20..22]), (1, &[3, 4][..]));
        assert_eq!((stage.encap().received(), stage.encap().answered(), stage.encap().forwarded()), (2, 1, 1));
    }
}
