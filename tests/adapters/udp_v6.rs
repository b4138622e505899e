//! The UDP socket over IPv6 (V29).

use super::support::{SOON, bind, can_have, namespace, peer, transport, within};
use core::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use core::num::NonZeroUsize;
use loden::Transmit;
use loden::forward::{PathMode, SystemPath};
use loden::ipnet::Ipv6Net;
use loden::sys::{PathReports, RecvError, SendErrorKind, UdpConfig, UdpTransport};
use loden::wire::{DatagramTooBig, Ecn, QuotedHeader};
use std::fs;
use testbed::Namespace;

fn net(text: &str) -> Ipv6Net {
    text.parse().expect("a network")
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Returns two namespaces on one link, with fd00:1::1 and fd00:1::2.
fn neighbours() -> (Namespace, Namespace) {
    let (left, right) = (namespace(), namespace());
    left.connect("eth0", &right, "eth0").expect("veth");
    for (host, own) in [(&left, "fd00:1::1/64"), (&right, "fd00:1::2/64")] {
        host.add_ipv6_address("eth0", net(own)).expect("address");
    }
    (left, right)
}

/// Returns `left` and `right` with a router between them whose second link carries 1400 bytes.
fn narrow_path() -> (Namespace, Namespace, Namespace) {
    let (left, router, right) = (namespace(), namespace(), namespace());
    left.connect("eth0", &router, "eth0").expect("veth");
    router.connect("eth1", &right, "eth0").expect("veth");
    router.set_mtu("eth1", 1400).expect("MTU");
    right.set_mtu("eth0", 1400).expect("MTU");
    router.sysctl("net/ipv6/conf/all/forwarding", "1").expect("sysctl");
    left.add_ipv6_address("eth0", net("fd00:1::1/64")).expect("address");
    router.add_ipv6_address("eth0", net("fd00:1::ff/64")).expect("address");
    router.add_ipv6_address("eth1", net("fd00:2::ff/64")).expect("address");
    right.add_ipv6_address("eth0", net("fd00:2::1/64")).expect("address");
    let via = |text: &str| Some(text.parse().expect("an address"));
    left.add_ipv6_route(net("fd00:2::/64"), via("fd00:1::ff"), "eth0").expect("route");
    right.add_ipv6_route(net("fd00:1::/64"), via("fd00:2::ff"), "eth0").expect("route");
    (left, router, right)
}

/// The order of binding does not matter. An address that is written as IPv4-mapped is the IPv4 address.
#[test]
fn v29_a_port_has_a_socket_for_each_family() {
    if !can_have("[::]:0") {
        return;
    }
    for order in [["0.0.0.0:8285", "[::]:8285"], ["[::]:8285", "0.0.0.0:8285"], ["[::1]:8285", "127.0.0.1:8285"]] {
        namespace().enter(|| {
            let bound = |text| UdpTransport::bind(address(text), &UdpConfig::default()).expect(text);
            let transports = order.map(bound);
            let mut buffer = [0; 64];
            for to in ["127.0.0.1:8285", "[::1]:8285"] {
                let (sender, from) = peer(if to.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" });
                sender.send_to(b"abc", to).expect("sent");
                for transport in &transports {
                    let received = transport.recv(&mut buffer).map(|meta| meta.from);
                    let is_its_own = transport.local_addr().is_ipv4() == from.is_ipv4();
                    assert_eq!(received, if is_its_own { Ok(from) } else { Err(RecvError::WouldBlock) });
                }
            }
            let mapped = UdpTransport::bind(address("[::ffff:127.0.0.1]:0"), &UdpConfig::default()).expect("bound");
            assert!(mapped.local_addr().is_ipv4());
        });
    }
}

#[test]
fn v29_a_report_is_received_and_probes_ignore_what_the_kernel_learned() {
    if !can_have("[::]:0") {
        return;
    }
    let (left, _router, right) = narrow_path();
    let (peer, destination) = right.enter(|| peer("[fd00:2::1]:8285"));
    left.enter(|| {
        let transport = bind("[fd00:1::1]:8285", UdpConfig::default().with_flow_ports(2));
        let contents: Vec<u8> = (0x60..=0xff).cycle().take(1453).collect();
        for flow in 0..2 {
            let send = |mode, bytes: usize| {
                let transmits = [Transmit { flow, ..Transmit::datagram(destination, &contents[..bytes]) }];
                transport.send_batch_in(mode, &transmits, 0).map_err(|error| error.kind)
            };
            if flow == 0 {
                assert_eq!(send(PathMode::System, 1452), Ok(()), "dropped by the router");
                let mut reports = Vec::new();
                assert!(within(SOON, || {
                    transport.receive_reports(|report| reports.push(*report));
                    !reports.is_empty()
                }));
                let [DatagramTooBig { mtu: 1400, source, destination: to, len: 1500, inner }] = reports[..] else {
                    panic!("{reports:?}");
                };
                assert_eq!((source.ip(), to), (address("[fd00:1::1]:0").ip(), destination));
                assert_eq!(inner, QuotedHeader::parse(&contents));
            }
            let path = SystemPath { configured: Some(1500), learned: Some(1400), has_reports: true };
            assert!(within(SOON, || transport.system_path(destination, flow) == path), "{flow}");
            assert_eq!(send(PathMode::System, 1353), Err(SendErrorKind::TooLong), "it is not fragmented");
            for mode in [PathMode::Probe, PathMode::Fragment] {
                assert_eq!(send(mode, 1452), Ok(()), "lost on the way");
                assert_eq!(send(mode, 1453), Err(SendErrorKind::TooLong), "by the interface, and not fragmented");
            }
            assert_eq!(send(PathMode::System, 1353), Err(SendErrorKind::TooLong));
            assert_eq!(send(PathMode::System, 1352), Ok(()));
            let mut buffer = [0; 2048];
            assert_eq!(peer.recv(&mut buffer).expect("received"), 1352, "and nothing came before it");
            let batch =
                Transmit { segment_size: NonZeroUsize::new(1400), ..Transmit::datagram(destination, &contents) };
            assert_eq!(transport.send(&batch).map_err(|error| error.kind), Err(SendErrorKind::TooLong));
        }
        let config = UdpConfig::default().with_path_reports(PathReports::KernelOnly);
        let transport = bind("[fd00:1::1]:0", config);
        let path = SystemPath { configured: Some(1500), learned: Some(1400), has_reports: false };
        assert_eq!(transport.system_path(destination, 0), path);
    });
}

/// The interface's MTU for IPv6 is below that of the device, as after a router's advertisement.
#[test]
fn v29_the_configured_mtu_is_that_of_ipv6() {
    if !can_have("[::]:0") {
        return;
    }
    let (left, _right) = neighbours();
    left.narrow_ipv6_path(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 9), "eth0", 1300).expect("a route");
    left.enter(|| {
        let transport = transport("[fd00:1::1]:8285");
        let configured = |to: &str| transport.system_path(address(to), 0).configured;
        assert_eq!((configured("[fd00:1::2]:8285"), configured("[fd00:1::9]:8285")), (Some(1500), Some(1300)));
        fs::write("/proc/sys/net/ipv6/conf/eth0/mtu", "1280").expect("set");
        assert_eq!(configured("[fd00:1::2]:8285"), Some(1280));
    });
}

/// Hosts on one link may have no other addresses. The scope of a next hop is its interface.
#[test]
fn v29_a_link_local_next_hop_has_a_scope() {
    if !can_have("[::]:0") {
        return;
    }
    let (left, right) = neighbours();
    let (first, second) = ("fe80::a", "fe80::b");
    left.add_ipv6_address("eth0", net(&format!("{first}/64"))).expect("address");
    right.add_ipv6_address("eth0", net(&format!("{second}/64"))).expect("address");
    let index = || -> u32 {
        let index = fs::read_to_string("/proc/thread-self/net/igmp").expect("the interfaces");
        let line = index.lines().find(|line| line.contains("eth0")).expect("eth0");
        line.split_whitespace().next().and_then(|index| index.parse().ok()).expect("an index")
    };
    let scoped = |ip: &str, port, scope| SocketAddr::from(SocketAddrV6::new(ip.parse().expect("IPv6"), port, 0, scope));
    let there = right
        .enter(|| UdpTransport::bind(scoped(second, 8285, index()), &UdpConfig::default()).expect("bound on the link"));
    left.enter(|| {
        let index = index();
        for (own, flow_ports) in [(scoped(first, 8285, index), 0), (scoped(first, 8286, index), 2)] {
            let config = UdpConfig::default().with_flow_ports(flow_ports);
            let here = UdpTransport::bind(own, &config).expect("bound on the link");
            let to = scoped(second, 8285, index);
            for flow in 0..2 {
                here.send_batch(&[Transmit { flow, ecn: Ecn::Ect0, ..Transmit::datagram(to, b"abc") }], 0)
                    .expect("sent");
                let (mut buffer, mut meta) = ([0; 64], Err(RecvError::WouldBlock));
                assert!(within(SOON, || {
                    meta = there.recv(&mut buffer);
                    meta.is_ok()
                }));
                let meta = meta.expect("received");
                let SocketAddr::V6(from) = meta.from else { panic!("{}", meta.from) };
                assert_eq!((from.ip().to_string(), meta.len, meta.ecn), (first.into(), 3, Ecn::Ect0));
                assert_ne!(from.scope_id(), 0, "an answer finds its way");
            }
            let path = here.system_path(to, 0);
            assert_eq!((path.configured, path.learned), (Some(1500), None));
            let without = here.send(&Transmit::datagram(scoped(second, 8285, 0), b"abc"));
            assert!(without.is_ok(), "the socket has the interface: {without:?}");
            assert!(within(SOON, || there.recv(&mut [0; 64]).is_ok()));
        }
        let elsewhere = transport("[fd00:1::1]:0");
        elsewhere.send(&Transmit::datagram(scoped(second, 8285, index), b"abc")).expect("with a scope");
    });
}

#[test]
fn v29_errors_that_concern_one_destination_are_told_apart() {
    if !can_have("[::]:0") {
        return;
    }
    let (left, _right) = neighbours();
    left.enter(|| {
        let transport = transport("[fd00:1::1]:8285");
        let kind = |to: &str| transport.send(&Transmit::datagram(address(to), b"x")).map_err(|error| error.kind);
        assert_eq!(kind("[fd00:9::1]:8285"), Err(SendErrorKind::Unreachable));
        assert_eq!(kind("[fd00:1::2]:0"), Err(SendErrorKind::Other(nix::errno::Errno::EINVAL as i32)));
        assert_eq!(kind("10.1.0.1:8285"), Err(SendErrorKind::Unreachable), "no socket for both families");
        assert_eq!(kind("[fd00:1::2]:8285"), Ok(()));
        // A dead peer affects no other.
        for _ in 0..10 {
            assert_eq!(kind("[::1]:9"), Ok(()));
            assert_eq!(transport.recv(&mut [0; 8]), Err(RecvError::WouldBlock));
        }
        assert!(transport.path_mtu(address("[fd00:9::1]:8285")).is_err());
    });
}
