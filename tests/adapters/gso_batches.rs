//! GSO and GRO batches, many messages in one system call, source ports of flows, and ECN.

use super::support::{SOON, bind, can_have, namespace, peer, transport, within};
use core::net::SocketAddr;
use core::num::NonZeroUsize;
use loden::Transmit;
use loden::sys::{BatchError, PACKET_MAX, RecvBatch, RecvError, SendErrorKind, UdpConfig, UdpOffload, UdpTransport};
use loden::wire::Ecn;
use std::collections::{BTreeMap, BTreeSet};
use testbed::Namespace;

fn with(offload: UdpOffload) -> UdpConfig {
    UdpConfig::default().with_offload(offload)
}

fn every_offload() -> impl Iterator<Item = UdpOffload> {
    [(false, false), (false, true), (true, false), (true, true)].into_iter().map(|(gso, gro)| UdpOffload { gso, gro })
}

/// Returns true if `lo` and veth pass a batch in one piece (`NETIF_F_GSO_SOFTWARE` in linux/netdev_features.h). Older
/// kernels segment it before, and a receiver gets single datagrams.
fn arrives_whole() -> bool {
    let whole = testbed::kernel_version() >= (5, 11);
    if !whole {
        println!("skipped: what needs batches that pass lo and veth in one piece (since Linux 5.11)");
    }
    whole
}

fn gso_batch(destination: SocketAddr, contents: &[u8], size: usize) -> Transmit<'_> {
    Transmit { segment_size: NonZeroUsize::new(size), ..Transmit::datagram(destination, contents) }
}

/// Returns the datagrams that arrive until all expected bytes are there, and the length of the longest message.
fn receive(to: &UdpTransport, bytes: usize, messages: usize) -> (Vec<Vec<u8>>, usize) {
    let mut batch = RecvBatch::new(messages);
    let (mut datagrams, mut longest, mut have) = (Vec::new(), 0, 0);
    let complete = within(SOON, || {
        while let Ok(count) = to.recv_batch(&mut batch) {
            assert_eq!((count, batch.len()), (batch.iter_mut().count(), count));
            for message in batch.iter_mut() {
                let (meta, contents) = message.expect("whole");
                longest = longest.max(meta.len);
                have += meta.len;
                datagrams.extend(contents.chunks(meta.stride).map(<[u8]>::to_vec));
            }
        }
        have >= bytes
    });
    assert!(complete, "{have} of {bytes} bytes");
    (datagrams, longest)
}

fn pass_everything(sender: &Namespace, from: &str, receiver: &Namespace, to: &str) {
    let contents: Vec<u8> = (0..150_000_u32).map(|number| (number % 251) as u8).collect();
    for offload in every_offload() {
        for many in [false, true] {
            let to = receiver.enter(|| bind(to, with(offload)));
            let from = sender.enter(|| bind(from, with(offload)));
            assert_eq!((from.offload(), to.offload()), (offload, offload));
            let destination = to.local_addr();
            // The kernel queues about 90 packets for a neighbour until it has answered, and drops the others.
            from.send(&Transmit::datagram(destination, b"first")).expect("sent");
            assert_eq!(receive(&to, 5, 1).0, [b"first"]);
            let transmits = [
                gso_batch(destination, &contents, 1400),
                Transmit::datagram(destination, b"one"),
                gso_batch(destination, &contents[7..5000], 100),
                gso_batch(destination, &contents[9..2809], 1400),
                Transmit::datagram(destination, &contents[..1472]),
                gso_batch(destination, &contents[..1401], 1400),
            ];
            match many {
                true => from.send_batch(&transmits, 1).expect("sent"),
                false => {
                    from.send_from(&transmits[0], 1).expect("sent");
                    transmits[1..].iter().for_each(|transmit| from.send(transmit).expect("sent"));
                }
            }
            let expected: Vec<_> = transmits.iter().flat_map(Transmit::segments).skip(1).collect();
            let bytes = expected.iter().map(|datagram| datagram.len()).sum();
            let (datagrams, longest) = receive(&to, bytes, if many { 32 } else { 1 });
            assert!(datagrams == expected, "{offload:?} many={many}: {} datagrams", datagrams.len());
            match offload {
                UdpOffload { gso: true, gro: true } if arrives_whole() => {
                    assert!(longest > 1472, "it arrived as a GRO batch")
                }
                UdpOffload { gro: false, .. } => assert!(longest <= 1472, "nothing was coalesced"),
                UdpOffload { .. } => {}
            }
            assert_eq!(from.gso_fallbacks(), 0);
        }
    }
}

#[test]
fn the_same_datagrams_arrive_with_every_offload() {
    let here = namespace();
    pass_everything(&here, "127.0.0.1:0", &here, "127.0.0.1:0");
    if can_have("[::1]:0") {
        pass_everything(&here, "[::1]:0", &here, "[::1]:0");
    }
    let (left, right) = (namespace(), namespace());
    left.connect("eth0", &right, "eth0").expect("veth");
    left.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
    right.add_address("eth0", "10.1.0.2/24".parse().expect("a network")).expect("address");
    pass_everything(&left, "10.1.0.1:0", &right, "10.1.0.2:0");
}

#[test]
fn fault_25_a_gro_batch_that_does_not_fit_is_an_error_of_its_own() {
    if !arrives_whole() {
        return;
    }
    namespace().enter(|| {
        let (from, to) = (transport("127.0.0.1:0"), transport("127.0.0.1:0"));
        let contents = [7; 1000];
        let to_address = to.local_addr();
        let transmits = [
            Transmit::datagram(to_address, b"1"),
            gso_batch(to_address, &contents, 100),
            Transmit::datagram(to_address, b"2"),
        ];
        from.send_batch(&transmits, 0).expect("sent");
        let mut batch = RecvBatch::with_buffers(8, 500);
        assert_eq!(to.recv_batch(&mut batch), Ok(3));
        let results: Vec<_> = batch.iter_mut().map(|message| message.map(|(_, contents)| contents.to_vec())).collect();
        let cut = RecvError::Truncated { len: 1000, have: 500 };
        assert_eq!(results, [Ok(b"1".to_vec()), Err(cut), Ok(b"2".to_vec())]);
        assert_eq!(to.recv_batch(&mut batch), Err(RecvError::WouldBlock));
        from.send_batch(&transmits[1..2], 0).expect("sent");
        assert_eq!(to.recv(&mut [0; 999]), Err(RecvError::Truncated { len: 1000, have: 999 }));
    });
}

#[test]
fn fault_31_32_an_error_in_a_batch_is_of_one_transmit() {
    let (left, right) = (namespace(), namespace());
    left.connect("eth0", &right, "eth0").expect("veth");
    left.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
    left.enter(|| {
        let (receiver, to) = peer("10.1.0.1:0");
        let from = transport("10.1.0.1:8285");
        let contents = [7; 250];
        let address = |text: &str| text.parse().expect("an address");
        let transmits = [
            gso_batch(to, &contents, 100),
            gso_batch(address("10.9.0.1:8285"), &contents, 100),
            Transmit::datagram(to, b"a"),
            Transmit::datagram(address("10.1.0.255:8285"), b"b"),
            Transmit::datagram(address("10.1.0.2:0"), b"c"),
            gso_batch(address("10.1.0.2:0"), &contents, 100),
            Transmit::datagram(to, b"d"),
        ];
        let (mut at, mut first, mut errors) = (0, 0, Vec::new());
        while let Err(BatchError { transmit, segment, kind, .. }) = from.send_batch(&transmits[at..], first) {
            at += transmit;
            first = segment + 1;
            errors.push((at, segment, kind));
        }
        let invalid = SendErrorKind::Other(nix::errno::Errno::EINVAL as i32);
        let expected = [
            (1, 0, SendErrorKind::Unreachable),
            (1, 1, SendErrorKind::Unreachable),
            (1, 2, SendErrorKind::Unreachable),
            (3, 0, SendErrorKind::Forbidden),
            (4, 0, invalid),
            (5, 0, invalid),
            (5, 1, invalid),
            (5, 2, invalid),
        ];
        assert_eq!(errors, expected);
        let mut buffer = [0; 256];
        for expected in [&contents[..100], &contents[..100], &contents[..50], b"a", b"d"] {
            let length = receiver.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..length], expected);
        }
        assert_eq!(from.gso_fallbacks(), 0);
    });
}

#[test]
fn fault_29_a_gso_batch_too_long_for_the_path_disables_no_batches() {
    let (left, right) = (namespace(), namespace());
    left.connect("eth0", &right, "eth0").expect("veth");
    left.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
    right.add_address("eth0", "10.1.0.2/24".parse().expect("a network")).expect("address");
    let to = right.enter(|| transport("10.1.0.2:8285"));
    let from = left.enter(|| transport("10.1.0.1:8285"));
    let contents = vec![7; 60_000];
    left.set_mtu("eth0", 1000).expect("MTU");
    let error = from.send(&gso_batch(to.local_addr(), &contents, 1400)).expect_err("too long");
    assert_eq!((error.segment, error.kind, from.gso_fallbacks()), (0, SendErrorKind::TooLong, 0));
    from.send(&gso_batch(to.local_addr(), &contents, 900)).expect("fits");
    let (datagrams, _) = receive(&to, contents.len(), 32);
    assert!(datagrams.iter().map(Vec::len).eq(contents.chunks(900).map(<[u8]>::len)));
}

#[test]
fn fault_27_a_full_buffer_in_the_middle_of_a_batch() {
    let (left, right) = (namespace(), namespace());
    left.connect("eth0", &right, "eth0").expect("veth");
    left.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
    left.enter(|| {
        let config = UdpConfig::default().with_send_buffer(Some(0));
        // Nobody answers ARP, so that packets stay queued.
        let contents = vec![0; 64 * 1400];
        let destination = "10.1.0.2:8285".parse().expect("an address");
        let transmits = vec![gso_batch(destination, &contents, 1400); 8];
        for offload in every_offload() {
            let from = bind("10.1.0.1:0", config.with_offload(offload));
            let error = from.send_batch(&transmits, 0).expect_err("full");
            assert_eq!(error.kind, SendErrorKind::WouldBlock);
            assert!(error.transmit * 64 + error.segment > 0, "{error:?}");
            // The caller cannot wait for the socket of a flow.
            let from = bind("10.1.0.1:0", config.with_offload(offload).with_flow_ports(1));
            assert_eq!(from.send_batch(&transmits, 0).expect_err("full").kind, SendErrorKind::PathFull);
        }
    });
}

#[test]
fn r60_a_flow_keeps_its_port_whichever_queue_sends_it() {
    namespace().enter(|| {
        for (here, there) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("[::]:0", "[::1]:0")] {
            if !can_have(here) {
                continue;
            }
            let config = UdpConfig::default().with_flow_ports(4);
            let queues = NonZeroUsize::new(3).expect("not zero");
            let here = here.parse().expect("an address");
            let queues = UdpTransport::bind_queues(here, &config, queues).expect("bound");
            assert!(queues.iter().all(|queue| queue.local_addr() == queues[0].local_addr()));
            let (receiver, to) = peer(there);
            let dead = peer(there).1;
            let contents = [7; 300];
            let mut ports = BTreeMap::new();
            for round in 0..3 {
                for queue in &queues {
                    let flows: Vec<_> =
                        (0..16).map(|flow| Transmit { flow, ..gso_batch(to, &contents, 100) }).collect();
                    queue.send_batch(&flows, round).expect("sent");
                    for flow in 0..16 {
                        for _ in if flow == 0 { round..3 } else { 0..3 } {
                            let (length, from) = receiver.recv_from(&mut [0; 512]).expect("received");
                            assert_eq!((length, *ports.entry(flow % 4).or_insert(from)), (100, from));
                        }
                    }
                    // Its refusals must not lose packets of others.
                    let nobody = (0..4).map(|flow| Transmit { flow, ..Transmit::datagram(dead, b"anyone?") });
                    queue.send_batch(&nobody.collect::<Vec<_>>(), 0).expect("sent");
                }
            }
            let mut distinct: BTreeSet<_> = ports.values().map(SocketAddr::port).collect();
            assert!(distinct.insert(queues[0].local_addr().port()), "none is the one that peers answer to");
            assert_eq!(distinct.len(), 5);
            assert!(queues.iter().all(|queue| queue.recv(&mut [0; 64]) == Err(RecvError::WouldBlock)));
        }
    });
}

#[test]
fn one_socket_shares_its_port_with_nobody_and_several_do() {
    namespace().enter(|| {
        let address = "127.0.0.1:8285".parse().expect("an address");
        let count = |count| NonZeroUsize::new(count).expect("not zero");
        let bind = |queues| UdpTransport::bind_queues(address, &UdpConfig::default(), count(queues));
        let one = bind(1).expect("free");
        assert!(bind(1).is_err() && bind(2).is_err());
        drop(one);
        let queues = bind(3).expect("free again");
        assert!(bind(1).is_err());
        for number in 0..64 {
            let (sender, _) = peer("127.0.0.1:0");
            for round in 0..3 {
                sender.send_to(&[number, round], address).expect("sent");
            }
            let mut received: Vec<_> = queues.iter().map(|queue| queue.recv(&mut [0; 8]).is_ok()).collect();
            received.retain(|any| *any);
            assert_eq!(received.len(), 1, "one sender, one queue");
            queues.iter().for_each(|queue| while queue.recv(&mut [0; 8]).is_ok() {});
        }
    });
}

#[test]
fn r56_r57_v29_the_ecn_field_goes_out_and_comes_in() {
    namespace().enter(|| {
        let all = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];
        for (from, to, destination) in [
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1:0", "::ffff:127.0.0.1"),
            ("127.0.0.1:0", "[::]:0", "127.0.0.1"),
            ("[::]:0", "[::]:0", "127.0.0.1"),
        ] {
            if !can_have(from) || !can_have(to) {
                continue;
            }
            for offload in every_offload() {
                let (from, to) = (bind(from, with(offload)), bind(to, with(offload)));
                let destination = SocketAddr::new(destination.parse().expect("an address"), to.local_addr().port());
                let contents = [7; 300];
                let transmits: Vec<_> = all
                    .into_iter()
                    .flat_map(|ecn| {
                        [
                            Transmit { ecn, ..Transmit::datagram(destination, b"x") },
                            Transmit { ecn, ..gso_batch(destination, &contents, 100) },
                        ]
                    })
                    .collect();
                from.send_batch(&transmits, 0).expect("sent");
                let mut buffer = vec![0; PACKET_MAX + 1];
                for ecn in all {
                    let mut bytes = 0;
                    while bytes < 301 {
                        let meta = to.recv(&mut buffer).expect("received");
                        assert_eq!(meta.ecn, ecn, "{destination} {offload:?}");
                        bytes += meta.len;
                    }
                }
                assert_eq!(to.recv(&mut buffer), Err(RecvError::WouldBlock));
            }
        }
    });
}
