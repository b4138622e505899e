//! Packets that are longer than the path MTU.

use super::*;

/// A GSO packet is one packet. Its last segment would fit and is not sent.
#[test]
fn fault_29_no_segment_of_an_answered_gso_packet_is_sent() {
    for batched in [true, false] {
        let mut stage = Stage::new();
        if !batched {
            stage.worker = stage.worker.unbatched();
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

/// The first is refused by the kernel, the second by the learned path MTU.
#[test]
fn r40_broadcasts_of_routed_subnets_are_not_answered_either() {
    let mut stage = Stage::new();
    stage.script.narrow(host_a().ip(), 1300, libc::EMSGSIZE);
    for sends in [1, 0] {
        let before = stage.script.count(Call::Send);
        stage.give(&udp(POD, Ipv4Addr::new(100, 96, 2, 255), 1, Df::Set, 1352));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        assert_eq!(stage.script.count(Call::Send) - before, sends);
        assert_eq!(stage.take_delivered(), [[0; 0]; 0]);
    }
    assert_eq!((stage.encap().received(), stage.encap().answered(), stage.encap().forwarded()), (2, 0, 0));
}

/// A lower limit of the worker keeps the learned path MTU. Any other limit removes it.
#[test]
fn fault_38_a_learned_path_mtu_is_kept_only_when_the_limit_is_lowered() {
    let mut stage = Stage::new();
    stage.script.narrow(host_a().ip(), 1300, libc::EMSGSIZE);
    let sends_and_mtu = |stage: &mut Stage| {
        let sends = stage.script.count(Call::Send);
        stage.give(&udp(POD, POD_A, 1, Df::Set, 1352));
        assert_eq!(stage.out(), Ok(Progress::Drained));
        let told = stage.take_delivered().pop().map(|message| u16::from_be_bytes([message[26], message[27]]));
        (stage.script.count(Call::Send) - sends, told)
    };
    assert_eq!(sends_and_mtu(&mut stage), (1, Some(1272)));
    for (mtu, sends) in [(1400, 0), (1390, 0), (1390, 1), (1400, 1)] {
        stage.worker.remote().set_mtu(Mtu::new(mtu).unwrap());
        assert_eq!(sends_and_mtu(&mut stage), (sends, Some(1272)), "after {mtu}");
    }
    stage.script.narrow(host_a().ip(), 1500, libc::EMSGSIZE);
    assert_eq!(sends_and_mtu(&mut stage), (0, Some(1272)), "believed until something changes");
    stage.worker.remote().set_mtu(Mtu::new(1472).unwrap());
    assert_eq!(sends_and_mtu(&mut stage), (1, None));
}
