//! Peers behind NAT: each is named once, and a flood of unknown senders is examined at a bounded rate.

use super::*;
use crate::worker::strangers::Strangers;

fn stranger(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 40_000).into()
}

fn from_pod_of(host: [u8; 2], number: u16) -> Vec<u8> {
    udp(Ipv4Addr::new(100, 96, host[0], host[1]), POD, number, Df::Set, 10)
}

impl Stage {
    fn strangers(&mut self) -> Vec<(SocketAddr, IpAddr, SocketAddr)> {
        let told = self.worker.remote().take_strangers().into_iter();
        told.map(|stranger| (stranger.from, stranger.inner_source, stranger.next_hop)).collect()
    }
}

/// R64: their datagrams are dropped, and each pair of sender and peer is reported once, also when NAT changes the port.
#[test]
fn r64_a_peer_behind_nat_is_named_once() {
    let mut stage = Stage::new();
    for number in 1..=10 {
        let from = SocketAddr::new(stranger(1).ip(), 40_000 + number);
        stage.arrive(from, &[udp(POD_A, POD, number, Df::Set, 10)]);
        assert_eq!(stage.back(), Ok(Progress::Drained));
    }
    stage.arrive(stranger(1), &[udp(POD_B, POD, 11, Df::Set, 10)]);
    stage.arrive(stranger(2), &[udp(POD_A, POD, 12, Df::Set, 10)]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    let first = SocketAddr::new(stranger(1).ip(), 40_001);
    let expected =
        [(first, POD_A.into(), host_a()), (stranger(1), POD_B.into(), host_b()), (stranger(2), POD_A.into(), host_a())];
    assert_eq!(stage.strangers(), expected);
    stage.arrive(stranger(1), &[udp(POD_A, POD, 13, Df::Set, 10)]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert_eq!(stage.strangers(), []);
    assert_eq!(Stage::lost(stage.decap()), Some((DropReason::UnknownPeer, 13)));
}

/// Invalid packets, inner sources without a route and known peers are not reported.
#[test]
fn r64_invalid_and_known_senders_are_not_reported() {
    let mut stage = Stage::new();
    let mut broken = udp(POD_A, POD, 1, Df::Set, 10);
    broken[10] ^= 1;
    for bytes in [Vec::new(), alloc::vec![0x45; 19], alloc::vec![0x45; 60], broken, udp(NOBODY, POD, 2, Df::Set, 10)] {
        stage.arrive(stranger(1), &[bytes]);
    }
    stage.arrive(host_a(), &[udp(POD_B, POD, 3, Df::Set, 10)]);
    stage.arrive(host_a(), &[udp(POD_A, POD, 4, Df::Set, 10)]);
    assert_eq!(stage.back(), Ok(Progress::Drained));
    assert_eq!(stage.strangers(), []);
    assert_eq!((stage.decap().dropped(DropReason::UnknownPeer), stage.decap().forwarded()), (5, 1));
}

/// A flood is examined a bounded number of times a second. Memory is bounded, and the newest are kept.
#[test]
fn r64_a_flood_of_strangers_costs_little() {
    let mut stage = Stage::new();
    let senders =
        |range: core::ops::Range<u32>| range.map(|host| SocketAddr::from(((0xc000_0200 + host).to_be_bytes(), 9)));
    let flood = |stage: &mut Stage, range: core::ops::Range<u32>| {
        for from in senders(range) {
            stage.arrive(from, &[from_pod_of([2, 3], 1)]);
            while stage.back().unwrap() == Progress::More {}
        }
    };
    flood(&mut stage, 0..1000);
    let looked_at = Strangers::PER_SECOND;
    let newest: Vec<_> = senders(looked_at - Strangers::MAX as u32..looked_at).collect();
    let told = |stage: &mut Stage| -> Vec<_> { stage.strangers().into_iter().map(|(from, ..)| from).collect() };
    assert_eq!(told(&mut stage), newest);
    flood(&mut stage, 1000..1001);
    assert_eq!(told(&mut stage), [], "not within the same second");
    stage.now += Duration::from_secs(1);
    flood(&mut stage, 1001..1002);
    assert_eq!(told(&mut stage), senders(1001..1002).collect::<Vec<_>>());
    assert_eq!(stage.decap().dropped(DropReason::UnknownPeer), 1002);
}
