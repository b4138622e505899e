//! The UDP socket, datagram by datagram.

use super::support::{SOON, can_have, namespace, peer, transport, within};
use core::net::Ipv4Addr;
use core::num::NonZeroUsize;
use core::time::Duration;
use loden::Transmit;
use loden::forward::{PathMode, SystemPath};
use loden::sys::{
    BindError, PACKET_MAX, PathReports, RecvError, SendError, SendErrorKind, UdpConfig, UdpOffload, UdpTransport,
};
use loden::wire::{DatagramTooBig, QuotedHeader};
use std::net::UdpSocket;
use testbed::Namespace;

#[test]
fn a_datagram_is_its_payload_and_nothing_else() {
    namespace().enter(|| {
        for (here, there) in [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0"), ("[::]:0", "127.0.0.1:0")] {
            if !can_have(here) {
                continue;
            }
            let transport = transport(here);
            let (peer, address) = peer(there);
            let mut buffer = vec![0; PACKET_MAX];
            assert_eq!(transport.recv(&mut buffer), Err(RecvError::WouldBlock));
            // Loopback carries 65,536 bytes, of which IPv6 uses 48 for headers. IPv4 has at most 65,535.
            let largest = vec![7; if address.is_ipv4() { 65_507 } else { 65_488 }];
            for payload in [&b""[..], b"x", &largest] {
                transport.send(&Transmit::datagram(address, payload)).expect("sent");
                let (length, from) = peer.recv_from(&mut buffer).expect("received");
                assert_eq!((&buffer[..length], from.port()), (payload, transport.local_addr().port()));
                peer.send_to(payload, from).expect("answered");
                let mut meta = Err(RecvError::WouldBlock);
                assert!(within(SOON, || {
                    meta = transport.recv(&mut buffer);
                    meta != Err(RecvError::WouldBlock)
                }));
                let meta = meta.expect("received");
                assert_eq!((meta.from, meta.len, meta.stride), (address, payload.len(), payload.len()));
                assert_eq!(&buffer[..meta.len], payload);
            }
        }
    });
}

#[test]
fn a_batch_is_divided_and_can_be_resumed() {
    namespace().enter(|| {
        let transport = transport("127.0.0.1:0");
        let (peer, destination) = peer("127.0.0.1:0");
        // A kernel that is busy delivers a little later.
        peer.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
        let contents: Vec<u8> = (0..=249).collect();
        let transmit = Transmit { segment_size: NonZeroUsize::new(100), ..Transmit::datagram(destination, &contents) };
        for first in 0..=4 {
            transport.send_from(&transmit, first).expect("sent");
            let mut buffer = [0; 256];
            for expected in contents.chunks(100).skip(first) {
                let length = peer.recv(&mut buffer).expect("received");
                assert_eq!(&buffer[..length], expected);
            }
            assert!(peer.recv(&mut buffer).is_err(), "nothing more from {first} on");
        }
    });
}

#[test]
fn fault_25_a_datagram_that_does_not_fit_is_never_returned_cut() {
    namespace().enter(|| {
        let transport = transport("127.0.0.1:0");
        let (peer, _) = peer("127.0.0.1:0");
        peer.send_to(&[1; 101], transport.local_addr()).expect("sent");
        peer.send_to(&[2; 100], transport.local_addr()).expect("sent");
        let mut buffer = [0; 100];
        assert_eq!(transport.recv(&mut buffer), Err(RecvError::Truncated { len: 101, have: 100 }));
        assert_eq!(transport.recv(&mut buffer).expect("fits").len, 100);
        assert_eq!(buffer, [2; 100]);
    });
}

/// Returns `left` and `right` with a router between them whose second link carries 1280 bytes.
fn narrow_path() -> (Namespace, Namespace, Namespace) {
    let (left, router, right) = (namespace(), namespace(), namespace());
    left.connect("eth0", &router, "eth0").expect("veth");
    router.connect("eth1", &right, "eth0").expect("veth");
    router.set_mtu("eth1", 1280).expect("MTU");
    right.set_mtu("eth0", 1280).expect("MTU");
    let net = |text: &str| text.parse().expect("a network");
    left.add_address("eth0", net("10.1.0.1/24")).expect("address");
    router.add_address("eth0", net("10.1.0.254/24")).expect("address");
    router.add_address("eth1", net("10.2.0.254/24")).expect("address");
    right.add_address("eth0", net("10.2.0.1/24")).expect("address");
    left.add_route_via(net("10.2.0.0/24"), Ipv4Addr::new(10, 1, 0, 254)).expect("route");
    right.add_route_via(net("10.1.0.0/24"), Ipv4Addr::new(10, 2, 0, 254)).expect("route");
    router.sysctl("net/ipv4/ip_forward", "1").expect("sysctl");
    (left, router, right)
}

#[test]
fn fault_29_nothing_is_fragmented_and_the_path_tells_what_fits() {
    let (left, _router, right) = narrow_path();
    let (peer, destination) = right.enter(|| peer("10.2.0.1:8285"));
    left.enter(|| {
        let transport = transport("10.1.0.1:8285");
        let send = |bytes: usize| transport.send(&Transmit::datagram(destination, &vec![0; bytes]));
        let too_long = Err(SendError { segment: 0, kind: SendErrorKind::TooLong });
        assert_eq!(transport.path_mtu(destination).expect("MTU"), 1500);
        assert_eq!(send(1473), too_long, "by the interface");
        // The router drops it because of DF, and reports that.
        send(1472).expect("sent");
        assert!(within(SOON, || transport.path_mtu(destination).expect("MTU") == 1280));
        assert_eq!(send(1472), too_long);
        assert_eq!(send(1253), too_long);
        send(1252).expect("fits");
        assert_eq!(peer.recv(&mut [0; 2048]).expect("received"), 1252, "and nothing came before it");

        let contents = vec![0; 3000];
        let gso_batch =
            Transmit { segment_size: NonZeroUsize::new(1400), ..Transmit::datagram(destination, &contents) };
        assert_eq!(transport.send(&gso_batch), too_long);
        assert_eq!(transport.send_from(&gso_batch, 1), Err(SendError { segment: 1, kind: SendErrorKind::TooLong }));
        transport.send_from(&gso_batch, 2).expect("the rest fits");
        assert_eq!(peer.recv(&mut [0; 2048]).expect("received"), 200);
        assert_eq!(transport.recv(&mut [0; 2048]), Err(RecvError::WouldBlock));
    });
}

/// The router's MTU is reported, and distinguished from the configured one. In the other modes the kernel's learned MTU
/// does not count, and the next send uses the first mode again.
#[test]
fn r54_a_report_is_received_and_the_modes_overrule_the_kernel() {
    let (left, _router, right) = narrow_path();
    let (peer, destination) = right.enter(|| peer("10.2.0.1:8285"));
    left.enter(|| {
        let own = "10.1.0.1:8285".parse().expect("an address");
        let config = UdpConfig::default().with_flow_ports(2);
        let transport = UdpTransport::bind(own, &config).expect("bound");
        let contents: Vec<u8> = (0..=255).cycle().take(1472).collect();
        for flow in 0..2 {
            let transmits = [Transmit { flow, ..Transmit::datagram(destination, &contents) }];
            let send = |mode| transport.send_batch_in(mode, &transmits, 0).map_err(|error| error.kind);
            let mut reports = Vec::new();
            if flow == 0 {
                send(PathMode::System).expect("sent");
                assert!(within(SOON, || {
                    transport.receive_reports(|report| reports.push(*report));
                    !reports.is_empty()
                }));
                let [DatagramTooBig { mtu: 1280, destination: to, len: 1500, inner, .. }] = reports[..] else {
                    panic!("{reports:?}");
                };
                assert_eq!((to, inner), (destination, QuotedHeader::parse(&contents)));
            }
            let path = SystemPath { configured: Some(1500), learned: Some(1280), has_reports: true };
            assert!(within(SOON, || transport.system_path(destination, flow) == path), "{flow}");
            assert_eq!(send(PathMode::System), Err(SendErrorKind::TooLong));
            assert_eq!(send(PathMode::Probe), Ok(()), "lost on the way");
            assert_eq!(send(PathMode::Fragment), Ok(()));
            let mut buffer = [0; 2048];
            assert_eq!(peer.recv(&mut buffer).expect("received"), 1472, "whole, in fragments");
            assert_eq!(send(PathMode::System), Err(SendErrorKind::TooLong));
        }
        let config = UdpConfig::default().with_path_reports(PathReports::KernelOnly);
        let transport = UdpTransport::bind("10.1.0.1:0".parse().expect("an address"), &config).expect("bound");
        let path = SystemPath { configured: Some(1500), learned: Some(1280), has_reports: false };
        assert_eq!(transport.system_path(destination, 0), path);
    });
}

#[test]
fn fault_33_a_dead_peer_affects_no_other_peer() {
    namespace().enter(|| {
        let (healthy, address) = peer("127.0.0.1:0");
        let dead = peer("127.0.0.1:0").1;
        // Connected to the dead peer, so that the kernel has an error pending after each packet.
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let same = socket.try_clone().expect("a descriptor");
        let taken_over = UdpTransport::from_socket(socket, UdpOffload::ALL).expect("taken over");
        same.connect(dead).expect("connected");
        for transport in [transport("127.0.0.1:0"), taken_over] {
            for round in 0..10 {
                transport.send(&Transmit::datagram(dead, b"anyone?")).expect("sent");
                transport.send(&Transmit::datagram(address, &[round])).expect("sent");
                let mut buffer = [0; 8];
                assert_eq!(healthy.recv(&mut buffer).expect("received"), 1);
                assert_eq!(buffer[0], round);
                transport.send(&Transmit::datagram(dead, b"anyone?")).expect("sent");
                assert_eq!(transport.recv(&mut buffer), Err(RecvError::WouldBlock));
            }
        }
    });
}

#[test]
fn fault_31_errors_that_concern_one_destination_are_told_apart() {
    let (left, right) = (namespace(), namespace());
    left.connect("eth0", &right, "eth0").expect("veth");
    left.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
    left.enter(|| {
        let transport = transport("10.1.0.1:8285");
        let kind = |destination: &str| {
            let destination = destination.parse().expect("an address");
            transport.send(&Transmit::datagram(destination, b"x")).map_err(|error| error.kind)
        };
        assert_eq!(kind("10.9.0.1:8285"), Err(SendErrorKind::Unreachable));
        assert_eq!(kind("10.1.0.255:8285"), Err(SendErrorKind::Forbidden));
        assert_eq!(kind("10.1.0.2:0"), Err(SendErrorKind::Other(nix::errno::Errno::EINVAL as i32)));
        assert_eq!(kind("[::1]:8285"), Err(SendErrorKind::Other(nix::errno::Errno::EAFNOSUPPORT as i32)));
        assert_eq!(kind("10.1.0.1:8285"), Ok(()));
        assert!(transport.path_mtu("10.9.0.1:8285".parse().expect("an address")).is_err());
    });
}

#[test]
fn fault_27_a_full_send_buffer_is_waited_for() {
    let (left, right) = (namespace(), namespace());
    left.connect("eth0", &right, "eth0").expect("veth");
    left.add_address("eth0", "10.1.0.1/24".parse().expect("a network")).expect("address");
    left.enter(|| {
        let config = UdpConfig::default().with_send_buffer(Some(0));
        let transport = UdpTransport::bind("10.1.0.1:0".parse().expect("an address"), &config).expect("bound");
        // Nobody answers ARP, so that packets stay queued.
        let contents = vec![0; 64 * 1400];
        let destination = "10.1.0.2:8285".parse().expect("an address");
        let gso_batch =
            Transmit { segment_size: NonZeroUsize::new(1400), ..Transmit::datagram(destination, &contents) };
        let error = transport.send(&gso_batch).expect_err("full");
        assert_eq!(error.kind, SendErrorKind::WouldBlock);
        assert!((1..64).contains(&error.segment), "{error:?}");
        assert!(!error.is_fatal());
    });
}

#[test]
fn a_failed_bind_names_the_reason() {
    namespace().enter(|| {
        let bind = |address: &str| UdpTransport::bind(address.parse().expect("an address"), &UdpConfig::default());
        let first = bind("127.0.0.1:8285").expect("free");
        assert_eq!(first.local_addr(), "127.0.0.1:8285".parse().expect("an address"));
        for (address, reason) in
            [("127.0.0.1:8285", "in use"), ("10.168.0.3:8285", "no interface of this host holds 10.168.0.3")]
        {
            let error = bind(address).expect_err(address);
            assert_eq!(
                (matches!(error, BindError::AddressInUse { .. }), matches!(error, BindError::NotLocal { .. })),
                (reason == "in use", reason != "in use")
            );
            let message = error.to_string();
            assert!(message.contains(reason) && message.contains(address), "{message}");
        }
        drop(first);
        bind("127.0.0.1:8285").expect("free again");
    });
}

#[test]
fn the_path_mtu_of_each_family() {
    if !can_have("[::]:0") {
        return;
    }
    namespace().enter(|| {
        let dual = transport("[::]:0");
        for (local, peer, mtu) in [("127.0.0.1:0", "127.0.0.1:9", 65_535), ("[::1]:0", "[::1]:9", 65_536)] {
            let peer = peer.parse().expect("an address");
            assert_eq!(transport(local).path_mtu(peer).expect("MTU"), mtu);
            assert_eq!(dual.path_mtu(peer).expect("MTU"), mtu);
        }
    });
}
