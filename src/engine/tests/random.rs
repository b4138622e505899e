//! R67 under random failures. The expected counters follow from the packets that the socket and the TUN accepted.

use super::*;

/// Splitmix64 (Steele, Lea and Flood 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % end as u64) as usize
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// The most segments of a GSO packet, so that each segment has a number of its own.
const NUMBERS: u16 = 64;

/// Bytes behind the IP headers of each packet from the TUN, by number.
type Expected = BTreeMap<u16, usize>;

fn give(stage: &mut Stage, random: &mut Random, number: u16, expected: &mut Expected) {
    let host = 2 + random.below(50) as u8;
    let data = random.pick(&[0, 100, 100, 900, 1400, 1400, 1440, 3000]);
    let dont_fragment = random.one_in(2);
    let kind = random.below(12);
    let mut bytes = packet(POD, pod_of(host), number, dont_fragment, data);
    let mut header = VnetHeader::default();
    let mut payload = 8 + data;
    match kind {
        0 => bytes = with_ttl(&bytes, random.pick(&[0, 1])),
        1 => bytes[10] ^= 1,
        2 => bytes = packet(POD, [100, 96, 99, 9].into(), number, dont_fragment, data),
        3 => header.flags = 0xff,
        4..7 => {
            let size = random.pick(&[500, 1000, 1400]);
            let data = 1 + random.below(30_000);
            bytes = packet(POD, pod_of(host), number, dont_fragment, data);
            header = gso(size);
            payload = data + 8 * data.div_ceil(size.into());
        }
        _ => {}
    }
    expected.insert(number / NUMBERS, payload);
    stage.give_with(&header, &bytes);
}

/// Changes the answers of the socket.
fn change(stage: &mut Stage, random: &mut Random) {
    let failures = [
        SendFailure::Closed,
        SendFailure::Failed,
        SendFailure::Forbidden,
        SendFailure::Full,
        SendFailure::Full,
        SendFailure::Full,
        SendFailure::NoBuffers,
        SendFailure::Refused,
        SendFailure::Unreachable,
    ];
    let host = host(2 + random.below(50) as u8);
    match random.below(8) {
        0..3 => drop(stage.sink.refuses.insert(host, random.pick(&failures))),
        3 => drop(stage.sink.longest.insert(host, random.pick(&[300, 1200]))),
        4 => stage.sink.most = Some(random.below(40)).filter(|_| random.one_in(2)),
        5 => stage.sink.tun_fails.push_back(random.pick(&[WriteFailure::Full, WriteFailure::Rejected])),
        6 => stage.sink.refuses_gso_of = if random.one_in(2) { vec![4] } else { vec![] },
        _ => {
            stage.sink.refuses.clear();
            stage.sink.longest.clear();
        }
    }
    let narrow = [Some(328), Some(1228), None];
    stage.sink.system = SystemPath { configured: random.pick(&narrow), ..SystemPath::default() };
}

/// Ends the failures: the socket accepts all that is left.
fn history(seed: u64) -> Counters {
    let mut random = Random(seed);
    let per_peer = random.pick(&[20_000, 100_000, 1 << 20]);
    let mut stage = Stage::new(QueueLimits::new(per_peer, 0));
    let (mut number, mut expected, mut arrived) = (0u16, Expected::new(), 0u64);
    for _ in 0..300 {
        match random.below(20) {
            0..11 => {
                number = number.wrapping_add(NUMBERS);
                give(&mut stage, &mut random, number, &mut expected);
            }
            11..14 => {
                arrived += 1;
                let from = 2 + random.below(3) as u8;
                let bytes = packet(pod_of(from), POD, 2, true, 100);
                let bytes = if random.one_in(4) { with_ttl(&bytes, 1) } else { bytes };
                stage.arrive(from, &bytes);
            }
            14..17 => {
                let time = random.pick(&[0, 1, 20, 1100]);
                stage.pass(time * MILLISECOND);
            }
            17 => {
                let gone = host(2 + random.below(50) as u8);
                stage.engine.drop_peers(|next_hop| next_hop == gone, DropReason::StaleRoute);
                stage.assert_conserved();
            }
            _ => change(&mut stage, &mut random),
        }
    }
    stage.sink.refuses.clear();
    stage.sink.most = None;
    stage.pass(Duration::from_secs(10));
    assert_eq!((stage.encap().held(), stage.engine.wake_at()), (0, None), "seed {seed}");
    assert_eq!((stage.encap().received(), stage.decap().received()), (expected.len() as u64, arrived));
    assert_accounts(&stage, &expected, seed);
    assert_order(&stage, seed);
    stage.engine.counters()
}

/// Asserts that the counters of forwarded and answered packets match what the socket and the TUN accepted.
fn assert_accounts(stage: &Stage, expected: &Expected, seed: u64) {
    let (encap, decap) = (stage.encap(), stage.decap());
    let (mut carried, mut answers) = (Expected::new(), 0);
    for (.., datagram) in &stage.sink.sent {
        let header = header(datagram);
        if header.protocol == IpNumber::ICMP {
            answers += 1;
        } else {
            *carried.entry(header.identification / NUMBERS).or_default() += datagram.len() - header.header_len();
        }
    }
    assert!(carried.iter().all(|(number, bytes)| *bytes <= expected[number]), "seed {seed}: sent twice");
    let whole = carried.iter().filter(|(number, bytes)| **bytes == expected[number]).count();
    assert_eq!((encap.forwarded(), decap.answered()), (whole as u64, answers), "seed {seed}");
    let (mut delivered, mut answers) = (0, 0);
    for (vnet, packet) in &stage.sink.written {
        match vnet.inspect(packet).unwrap() {
            OffloadAction::Segment(gso) => delivered += gso.segments() as u64,
            OffloadAction::Nothing | OffloadAction::Checksum(_) if header(packet).protocol == IpNumber::ICMP => {
                answers += 1
            }
            OffloadAction::Nothing | OffloadAction::Checksum(_) => delivered += 1,
        }
    }
    assert_eq!((decap.forwarded(), encap.answered()), (delivered, answers), "seed {seed}");
}

/// Asserts that the packets of a flow leave in their order of arrival.
fn assert_order(stage: &Stage, seed: u64) {
    let mut last = BTreeMap::new();
    let mut orders = BTreeSet::new();
    for (to, _, datagram) in &stage.sink.sent {
        let header = header(datagram);
        if header.protocol != IpNumber::ICMP {
            let number = header.identification;
            let former = last.insert((*to, header.destination), number).unwrap_or_default();
            // Fragments of one packet have one number.
            assert!(number >= former, "seed {seed}: {number} after {former} to {to}");
            orders.insert(*to);
        }
    }
}

#[test]
fn r67_every_packet_is_in_one_counter() {
    let mut total = Counters::default();
    for seed in 0..200 {
        total += &history(seed);
    }
    // The run must have covered each of these reasons.
    let Counters { encap, decap, stats } = &total;
    let reasons = [
        DropReason::BadOffload,
        DropReason::SendBufferFull,
        DropReason::SendNoBuffers,
        DropReason::SendRefused,
        DropReason::SendUnreachable,
        DropReason::SendForbidden,
        DropReason::SendFailed,
        DropReason::PathTooNarrow,
        DropReason::StaleRoute,
    ];
    for reason in reasons {
        assert!(encap.dropped(reason) > 20, "{reason}: {encap:?}");
    }
    assert!(encap.forwarded() > 1000 && encap.answered() > 1000 && decap.forwarded() > 1000, "{total:?}");
    assert!(decap.answered() > 100 && decap.dropped(DropReason::TunFull) > 20, "{decap:?}");
    assert!(stats.segments_made > 1000 && stats.fragments_made > 1000, "{stats:?}");
}
