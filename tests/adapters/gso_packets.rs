//! The TUN device with offloads, and with several queues.

use super::support::{SOON, granted, named, namespace, transport, with_tun, within};
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroUsize;
use core::time::Duration;
use loden::Transmit;
use loden::offload::VnetHeader;
use loden::sys::{OpenError, PACKET_MAX, Tun, TunConfig, TunError, TunMeta, TunOffload};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use testbed::Namespace;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_GSO_*` of linux/virtio_net.h.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

const MTU: usize = 1500;

const LEFT: &str = "100.96.1.1";
const RIGHT: &str = "100.96.2.1";
const LEFT_V6: &str = "fd00:96::1:1";
const RIGHT_V6: &str = "fd00:96::2:1";

/// Creates two namespaces with these addresses, each with a TUN device. The test moves the packets between them.
fn two_ends(addresses: [&str; 2], offload: TunOffload, test: impl FnOnce(&Namespace, &Tun, &Namespace, &Tun)) {
    let ends = addresses.map(|address| {
        let namespace = namespace();
        let is_v6 = address.contains(':');
        if !is_v6 {
            namespace.disable_ipv6().expect("sysctl");
        }
        let tun = namespace.enter(|| Tun::open(&TunConfig::default().with_offload(offload)).expect("a TUN device"));
        if is_v6 {
            namespace.add_ipv6_address(tun.name(), format!("{address}/64").parse().expect("a network"))
        } else {
            namespace.add_address(tun.name(), format!("{address}/16").parse().expect("a network"))
        }
        .expect("address");
        namespace.set_up(tun.name()).expect("up");
        (namespace, tun)
    });
    let [(left, left_tun), (right, right_tun)] = &ends;
    test(left, left_tun, right, right_tun);
}

fn on_port(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().expect("an address"), port).into()
}

/// Moves a packet from one device to the other unchanged. Returns its metadata.
fn pump(from: &Tun, to: &Tun, buffer: &mut [u8]) -> Option<TunMeta> {
    match from.recv(buffer) {
        Ok(meta) => {
            to.send_with(&meta.header, &buffer[..meta.len]).expect("accepted");
            Some(meta)
        }
        Err(TunError::WouldBlock) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Sends a TCP stream from the first address to the second. Returns the metadata of its longest packet.
fn stream(addresses: [&str; 2], offload: TunOffload) -> TunMeta {
    const BYTES: usize = 4 << 20;
    let mut longest = TunMeta { len: 0, header: VnetHeader::default() };
    let to = on_port(addresses[1], 5001);
    two_ends(addresses, offload, |left, left_tun, right, right_tun| {
        let listener = right.enter(|| TcpListener::bind(to).expect("bound"));
        let sink = thread::spawn(move || {
            let mut received = Vec::new();
            listener.accept().expect("a connection").0.read_to_end(&mut received).expect("received");
            received
        });
        let contents: Vec<u8> = (0..BYTES).map(|number| (number % 251) as u8).collect();
        let copy = contents.clone();
        let source = left.spawn("source", move || {
            TcpStream::connect(to).expect("connected").write_all(&copy).expect("sent");
        });
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let pumps = scope.spawn(|| {
                let mut buffer = vec![0; PACKET_MAX + 1];
                let mut longest = TunMeta { len: 0, header: VnetHeader::default() };
                while !done.load(Ordering::Relaxed) {
                    let forth = pump(left_tun, right_tun, &mut buffer);
                    if let Some(meta) = forth.filter(|meta| meta.len > longest.len) {
                        longest = meta;
                    }
                    let back = pump(right_tun, left_tun, &mut buffer);
                    if forth.is_none() && back.is_none() {
                        thread::sleep(Duration::from_micros(50));
                    }
                }
                longest
            });
            source.join().expect("no panic");
            assert!(sink.join().expect("no panic") == contents, "it arrived as it was");
            done.store(true, Ordering::Relaxed);
            longest = pumps.join().expect("no panic");
        });
    });
    longest
}

#[test]
fn a_tcp_stream_passes_as_gso_packets() {
    let longest = stream([LEFT, RIGHT], TunOffload::ALL);
    assert!(longest.len > 4 * MTU, "{longest:?}");
    assert_eq!((longest.header.gso_type, longest.header.flags), (GSO_TCPV4, NEEDS_CSUM));
    assert!((500..MTU).contains(&usize::from(longest.header.gso_size)), "{longest:?}");
    assert_eq!((longest.header.csum_start, longest.header.csum_offset), (20, 16), "little-endian");
}

#[test]
fn v26_v27_a_tcp_stream_over_ipv6_passes_as_gso_packets() {
    if !testbed::has_ipv6() {
        return;
    }
    let longest = stream([LEFT_V6, RIGHT_V6], TunOffload::ALL);
    assert!(longest.len > 4 * MTU, "{longest:?}");
    assert_eq!((longest.header.gso_type, longest.header.flags), (GSO_TCPV6, NEEDS_CSUM));
    assert!((500..MTU).contains(&usize::from(longest.header.gso_size)), "{longest:?}");
    assert_eq!((longest.header.csum_start, longest.header.csum_offset), (40, 16));
    assert_eq!(stream([LEFT_V6, RIGHT_V6], TunOffload::NONE).len, MTU);
}

#[test]
fn without_offloads_no_packet_exceeds_the_mtu() {
    let longest = stream([LEFT, RIGHT], TunOffload::NONE);
    assert_eq!((longest.len, longest.header), (MTU, VnetHeader::default()));
    let uso = TunOffload { tso: false, uso: true };
    let longest = stream([LEFT, RIGHT], uso);
    let flags = if granted(uso) == TunOffload::NONE { 0 } else { NEEDS_CSUM };
    assert_eq!((longest.len, longest.header.gso_type, longest.header.flags), (MTU, 0, flags));
}

#[test]
fn a_udp_gso_batch_passes_as_one_gso_packet() {
    udp_gso_batch([LEFT, RIGHT], 20_528);
}

#[test]
fn v26_v27_a_udp_gso_batch_over_ipv6_passes_as_one_gso_packet() {
    if testbed::has_ipv6() {
        udp_gso_batch([LEFT_V6, RIGHT_V6], 20_548);
    }
}

/// Sends 20,500 bytes in datagrams of 1,000, and expects one packet of `len` bytes.
fn udp_gso_batch(addresses: [&str; 2], len: usize) {
    let [from, to] = [on_port(addresses[0], 0), on_port(addresses[1], 5001)];
    two_ends(addresses, TunOffload::ALL, |left, left_tun, right, right_tun| {
        if !left_tun.offload().uso {
            println!("skipped: this kernel's TUN devices have no UDP GSO packets (Linux 6.2 has)");
            return;
        }
        let receiver = right.enter(|| UdpSocket::bind(to).expect("bound"));
        let mut buffer = vec![0; PACKET_MAX + 1];
        // The kernel drops packets until its own workers have noticed both devices and their addresses.
        let probe = left.enter(|| UdpSocket::bind(from).expect("bound"));
        receiver.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
        assert!(within(SOON, || {
            probe.send_to(b"probe", to).expect("sent");
            while pump(left_tun, right_tun, &mut buffer).is_some() {}
            receiver.recv(&mut buffer).is_ok()
        }));
        receiver.set_read_timeout(Some(SOON)).expect("timeout");
        let contents: Vec<u8> = (0..20_500_u32).map(|number| (number % 251) as u8).collect();
        let gso_batch = Transmit { segment_size: NonZeroUsize::new(1000), ..Transmit::datagram(to, &contents) };
        left.enter(|| transport(&from.to_string()).send(&gso_batch).expect("sent"));
        let mut packets = 0;
        // The kernel sends multicasts to IPv6 routers and listeners.
        while let Some(meta) = pump(left_tun, right_tun, &mut buffer) {
            if buffer[0] >> 4 == 4 || buffer[24] != 0xff {
                assert_eq!((meta.len, meta.header.gso_type, meta.header.gso_size), (len, GSO_UDP_L4, 1000));
                packets += 1;
            }
        }
        assert_eq!(packets, 1, "it was all of it");
        for segment in gso_batch.segments() {
            let length = receiver.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..length], segment);
        }
    });
}

#[test]
fn a_bare_packet_passes_through_a_device_with_offloads() {
    with_tun(TunOffload::ALL, |_, tun| {
        let socket = UdpSocket::bind("100.96.1.1:4000").expect("bound");
        socket.set_read_timeout(Some(SOON)).expect("timeout");
        // 100.96.2.3:5000 → 100.96.1.1:4000 with "in!!" and no UDP checksum.
        let mut packet = [
            0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 100, 96, 2, 3, 100, 96, 1, 1, 0x13, 0x88, 0x0f, 0xa0, 0, 12, 0,
            0, b'i', b'n', b'!', b'!',
        ];
        let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        tun.send(&packet).expect("sent");
        let mut buffer = [0; 16];
        assert_eq!(socket.recv(&mut buffer).expect("received"), 4);
        assert_eq!(&buffer[..4], b"in!!");
        assert_eq!(tun.send(&[]), Err(TunError::Rejected(nix::errno::Errno::EINVAL as i32)));
        let absurd = VnetHeader { gso_type: 0x7f, gso_size: 1, ..VnetHeader::default() };
        assert_eq!(tun.send_with(&absurd, &packet), Err(TunError::Rejected(nix::errno::Errno::EINVAL as i32)));
        tun.send(&packet).expect("the next one passes");
    });
    with_tun(TunOffload::NONE, |_, tun| {
        let header = VnetHeader { flags: NEEDS_CSUM, ..VnetHeader::default() };
        assert_eq!(tun.send_with(&header, &[0x45; 20]), Err(TunError::Rejected(nix::errno::Errno::EINVAL as i32)));
    });
}

/// The offloads and the presence of a header belong to the device and outlive the process.
#[test]
fn fault_40_offloads_are_set_anew_on_a_persistent_device() {
    with_tun(TunOffload::ALL, |_, tun| {
        let socket = UdpSocket::bind("100.96.1.1:0").expect("bound");
        let name = tun.name().to_owned();
        tun.set_persistent(true).expect("persistent");
        let mut tun = Some(tun);
        let only = |tso, uso| TunOffload { tso, uso };
        let all = [TunOffload::ALL, TunOffload::NONE, only(true, false), TunOffload::NONE, only(false, true)];
        for offload in all.into_iter().cycle().take(11) {
            drop(tun.take());
            let attached = Tun::open(&TunConfig::new(name.clone()).with_offload(offload)).expect("attached");
            assert!(!attached.created());
            assert_eq!(attached.offload(), granted(offload));
            let mut buffer = [0; 64];
            let mut meta = Err(TunError::WouldBlock);
            // The kernel drops packets until it has noticed the attached process.
            assert!(within(SOON, || {
                socket.send_to(b"out", "100.96.2.3:5000").expect("sent");
                meta = attached.recv(&mut buffer);
                meta != Err(TunError::WouldBlock)
            }));
            let meta = meta.expect("received");
            assert_eq!((meta.len, &buffer[28..31]), (31, &b"out"[..]));
            let flags = if granted(offload) == TunOffload::NONE { 0 } else { NEEDS_CSUM };
            assert_eq!((meta.header.flags, meta.header.gso_type), (flags, 0));
            tun = Some(attached);
        }
        tun.expect("the last one").set_persistent(false).expect("no longer");
    });
}

fn many(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).expect("not zero")
}

#[test]
fn several_queues_are_one_device() {
    let namespace = namespace();
    namespace.enter(|| {
        let exists = || namespace.link_mtu("loden0").expect("asked").is_some();
        for offload in [TunOffload::ALL, TunOffload::NONE] {
            let queues = Tun::open_queues(&TunConfig::default().with_offload(offload), many(3)).expect("opened");
            assert_eq!(queues.len(), 3);
            for queue in &queues {
                assert_eq!((queue.name(), queue.created(), queue.offload()), ("loden0", true, granted(offload)));
                assert_eq!(queue.recv(&mut [0; 64]), Err(TunError::WouldBlock));
            }
            // Another descriptor holds it, so that it is busy. A device of one queue has another kind.
            assert!(matches!(Tun::open_queues(&named("loden0"), many(2)), Err(OpenError::Busy { .. })));
            assert!(matches!(Tun::open(&named("loden0")), Err(OpenError::WrongKind { queues: 1, .. })));
            assert_eq!(
                queues.iter().map(|queue| queue.recv(&mut [0; 64])).collect::<Vec<_>>(),
                [Err(TunError::WouldBlock); 3]
            );
            drop(queues);
            assert!(within(Duration::from_millis(100), || !exists()));
        }
    });
}

#[test]
fn packets_come_by_some_queue_and_each_queue_sends() {
    let namespace = namespace();
    namespace.disable_ipv6().expect("sysctl");
    namespace.enter(|| {
        let queues = Tun::open_queues(&TunConfig::default(), many(2)).expect("opened");
        namespace.add_address("loden0", "100.96.1.1/16".parse().expect("a network")).expect("address");
        namespace.set_up("loden0").expect("up");
        let mut buffer = [0; 64];
        for _ in 0..64 {
            let socket = UdpSocket::bind("100.96.1.1:0").expect("bound");
            socket.send_to(b"out", "100.96.2.3:5000").expect("sent");
            let received = queues.iter().filter(|queue| queue.recv(&mut buffer).is_ok()).count();
            assert_eq!(received, 1);
        }
        for queue in &queues {
            assert_eq!(queue.send(&[0x45; 20]), Ok(()));
        }
    });
}

#[test]
fn fault_41_one_queue_lets_nobody_else_attach() {
    let namespace = namespace();
    namespace.enter(|| {
        let one = Tun::open_queues(&named("loden0"), NonZeroUsize::MIN).expect("opened");
        for queues in [1, 2] {
            let error = Tun::open_queues(&named("loden0"), many(queues)).expect_err("in use");
            match queues {
                1 => assert!(matches!(error, OpenError::Busy { .. }), "{error:?}"),
                // The kernel asks this first.
                _ => assert!(matches!(error, OpenError::WrongKind { queues: 2, .. }), "{error:?}"),
            }
        }
        one[0].set_persistent(true).expect("persistent");
        drop(one);
        let error = Tun::open_queues(&named("loden0"), many(2)).expect_err("made for one");
        assert!(error.to_string().contains("not a TUN device made for several queues"), "{error}");
        Tun::open(&named("loden0")).expect("for one it is").set_persistent(false).expect("no longer");
    });
}

#[test]
fn fault_40_a_persistent_device_of_several_queues_is_attached_to() {
    let namespace = namespace();
    namespace.enter(|| {
        for (number, offload) in [TunOffload::ALL, TunOffload::NONE, TunOffload::ALL].into_iter().enumerate() {
            let config = TunConfig::new("loden0").with_offload(offload);
            let queues = Tun::open_queues(&config, many(2)).expect("opened");
            assert!(queues.iter().all(|queue| queue.offload() == granted(offload) && queue.created() == (number == 0)));
            queues[0].set_persistent(true).expect("persistent");
            // The holder of a queue determines the header.
            let other = if offload == TunOffload::ALL { TunOffload::NONE } else { TunOffload::ALL };
            let error = Tun::open_queues(&TunConfig::new("loden0").with_offload(other), many(2));
            assert!(matches!(error, Err(OpenError::Busy { .. })), "{error:?}");
        }
    });
}

#[test]
fn fault_35_more_queues_than_there_can_be_leave_no_device() {
    let namespace = namespace();
    namespace.enter(|| {
        let error = Tun::open_queues(&named("loden0"), many(257)).expect_err("256 is the most");
        assert!(matches!(error, OpenError::Other { .. }), "{error:?}");
        assert!(within(Duration::from_millis(500), || namespace.link_mtu("loden0").expect("asked").is_none()));
    });
}
