//! Lanes that are real sockets.

use super::*;
use crate::sys::udp::lanes::socket::COPIED;
use core::iter;
use core::net::SocketAddrV6;
use std::io;

fn on_loopback(test: impl FnOnce() + Send) {
    testbed::Namespace::new().expect("these tests make network namespaces, and need root").enter(test);
}

/// Everything that arrives reaches the sockets that receive, whichever addresses they have. No other program can bind
/// to the port.
#[test]
fn v29_a_lane_receives_nothing_and_lets_no_other_program_bind() {
    if !has_lanes() {
        return;
    }
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let any = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    let has = |address: &IpAddr| address.is_ipv4() || testbed::has_ipv6();
    for address in [loopback, any].concat().into_iter().filter(has) {
        for queues in [1, 3] {
            on_loopback(|| {
                let config = UdpConfig::default();
                let queues = NonZeroUsize::new(queues).unwrap();
                let mut transports = UdpTransport::bind_queues((address, 0).into(), &config, queues).unwrap();
                let local = transports[0].local_addr();
                let lanes: Vec<_> = (0..8).map(|_| make_lane(&transports[0].socket, &Calls::default())).collect();
                if address.is_ipv6() && queues.get() > 1 && testbed::kernel_version() < (5, 1) {
                    assert!(lanes.iter().all(Result::is_err), "they would receive a share");
                    return;
                }
                let lanes: Vec<_> = lanes.into_iter().map(Result::unwrap).collect();
                let to = SocketAddr::new(if address.is_ipv4() { loopback[0] } else { loopback[1] }, local.port());
                let expect_all = |transports: &[UdpTransport]| {
                    let senders: Vec<_> = (0..100).map(|_| UdpSocket::bind((to.ip(), 0)).unwrap()).collect();
                    senders.iter().for_each(|sender| assert_eq!(sender.send_to(b"abc", to).unwrap(), 3));
                    let mut buffer = [0; 65_536];
                    let mut count = 0;
                    for transport in transports {
                        while let Ok(meta) = transport.recv(&mut buffer) {
                            assert_eq!(meta.len, 3);
                            count += 1;
                        }
                        assert_eq!(transport.recv(&mut buffer), Err(RecvError::WouldBlock));
                    }
                    assert_eq!(count, 100, "{address} {queues}");
                    let empty =
                        |lane: &UdpSocket| lane.recv(&mut [0; 8]).unwrap_err().kind() == io::ErrorKind::WouldBlock;
                    assert!(lanes.iter().all(empty));
                };
                expect_all(&transports);
                if queues.get() == 1 {
                    for stranger in
                        [local, SocketAddr::new(any[0], local.port()), SocketAddr::new(any[1], local.port())]
                    {
                        // An IPv6 socket leaves the port of IPv4 free.
                        if !has(&stranger.ip()) || (address.is_ipv6() && stranger.is_ipv4()) {
                            continue;
                        }
                        let socket = syscall::socket(stranger).unwrap();
                        syscall::set_socket_option(socket.as_fd(), SocketOption::ReusePort, 1).unwrap();
                        let error = syscall::bind(socket.as_fd(), stranger).unwrap_err();
                        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE), "{stranger}");
                    }
                } else {
                    transports.remove(0);
                    expect_all(&transports);
                }
                // Peers see the same address and port.
                let receiver = UdpSocket::bind((to.ip(), 0)).unwrap();
                lanes[7].send_to(b"abc", mapped(receiver.local_addr().unwrap())).unwrap();
                assert_eq!(receiver.recv_from(&mut [0; 8]).unwrap(), (3, to));
            });
        }
    }
}

/// The socket of a link-local address is bound to an interface.
#[test]
fn v29_a_lane_of_a_link_local_address_receives_nothing() {
    if !has_lanes() || testbed::kernel_version() < (5, 1) {
        return;
    }
    for queues in [1, 3] {
        let namespace = testbed::Namespace::new().expect("these tests make network namespaces, and need root");
        namespace.add_ipv6_address("lo", "fe80::1/64".parse().unwrap()).unwrap();
        namespace.enter(|| {
            let own = |port| SocketAddrV6::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), port, 0, 1);
            let queues = NonZeroUsize::new(queues).unwrap();
            let transports = UdpTransport::bind_queues(own(0).into(), &UdpConfig::default(), queues).unwrap();
            let lanes: Vec<_> = (0..8).map(|_| make_lane(&transports[0].socket, &Calls::default()).unwrap()).collect();
            let to = own(transports[0].local_addr().port());
            let send = || assert_eq!(UdpSocket::bind(own(0)).unwrap().send_to(b"abc", to).unwrap(), 3);
            let mut buffer = [0; 64];
            let mut received = || -> usize {
                transports.iter().map(|queue| iter::from_fn(|| queue.recv(&mut buffer).ok()).count()).sum()
            };
            // A kernel drops what is for a new address until a worker of its own has noticed it.
            let begin = std::time::Instant::now();
            while received() == 0 {
                assert!(begin.elapsed().as_secs() < 5, "nothing arrives");
                send();
                std::thread::sleep(core::time::Duration::from_millis(5));
            }
            received();
            (0..100).for_each(|_| send());
            assert_eq!(received(), 100);
            let receiver = UdpSocket::bind(own(0)).unwrap();
            lanes[7].send_to(b"abc", receiver.local_addr().unwrap()).unwrap();
            assert_eq!(receiver.recv_from(&mut [0; 8]).unwrap(), (3, to.into()));
        });
    }
}

/// Returns the IPv4-mapped address, as an IPv6 socket needs it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(address) => (address.ip().to_ipv6_mapped(), address.port()).into(),
        SocketAddr::V6(_) => address,
    }
}

/// The kernel segments a GSO batch of a lane, and its datagrams carry the ECN field. The lane of one of several queues
/// sends from their port too.
#[test]
fn v29_a_lane_sends_batches_and_the_ecn_field() {
    if !has_lanes() {
        return;
    }
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    for (address, queues) in loopback.into_iter().flat_map(|address| [(address, 1), (address, 2)]) {
        if address.is_ipv6() && queues > 1 && testbed::kernel_version() < (5, 1) {
            continue;
        }
        on_loopback(|| {
            let bind = |queues| {
                let queues = NonZeroUsize::new(queues).unwrap();
                UdpTransport::bind_queues((address, 0).into(), &UdpConfig::default(), queues).unwrap()
            };
            let (from, to) = (&bind(queues)[0], &bind(1)[0]);
            let shared = &from.socket;
            let peer = Leaving { peer: key_of(to.local_addr()), may_be_limited: false };
            let outcome = from.lanes.move_away(peer, 0, shared, &Calls::default());
            assert_eq!(outcome, MoveOutcome::Lane { evicted: None });
            let contents = [7; 3000];
            let segment_size = NonZeroUsize::new(1000);
            let batch = Transmit { segment_size, ecn: Ecn::Ect0, ..Transmit::datagram(to.local_addr(), &contents) };
            from.send(&batch).unwrap();
            let (mut buffer, mut datagrams) = (vec![0; 65_536], 0);
            while datagrams < 3 {
                let meta = to.recv(&mut buffer).unwrap();
                assert_eq!((meta.from, meta.ecn, meta.stride), (from.local_addr(), Ecn::Ect0, 1000));
                datagrams += meta.len / meta.stride;
            }
            let number_of_lane = from.plan(&from.lanes.moved()).socket_of(&batch);
            assert_eq!(number_of_lane, 1);
            assert_ne!(from.sender(1).as_raw_fd(), shared.as_raw_fd());
        });
    }
}

/// The options that select the route of packets are those of the socket that receives.
#[test]
fn a_lane_has_the_options_of_the_socket() {
    if !has_lanes() {
        return;
    }
    on_loopback(|| {
        for flow_ports in [0, 2] {
            let config = UdpConfig::default().with_flow_ports(flow_ports).with_send_buffer(300_000);
            let transport = UdpTransport::bind((Ipv4Addr::LOCALHOST, 0).into(), &config).unwrap();
            let shared = transport.shared_socket(usize::from(flow_ports.saturating_sub(1)));
            let set =
                |(level, name), value: &[u8]| syscall::set_raw_option(shared.as_fd(), level, name, value).unwrap();
            // A socket that is bound to a device cannot be bound to another one.
            if flow_ports == 0 {
                set((libc::SOL_SOCKET, libc::SO_BINDTODEVICE), b"lo");
            } else {
                set((libc::IPPROTO_IP, libc::IP_UNICAST_IF), &1_i32.to_be_bytes());
            }
            for (option, value) in [
                ((libc::SOL_SOCKET, libc::SO_MARK), 77_i32),
                ((libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE), 1_000_000),
                ((libc::IPPROTO_IP, libc::IP_FREEBIND), 1),
                ((libc::IPPROTO_IP, libc::IP_TOS), 0x28),
                ((libc::IPPROTO_IP, libc::IP_TRANSPARENT), 1),
                ((libc::IPPROTO_IP, libc::IP_TTL), 33),
                ((libc::SOL_SOCKET, libc::SO_PRIORITY), 3),
            ] {
                set(option, &value.to_ne_bytes());
            }
            let lane = make_lane(shared, &Calls::default()).unwrap();
            let also = [(libc::SOL_SOCKET, libc::SO_SNDBUF), (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)];
            let also =
                also.into_iter().chain([(libc::SOL_SOCKET, libc::SO_NO_CHECK), (libc::IPPROTO_IP, libc::IP_RECVERR)]);
            for (level, name) in COPIED.iter().copied().filter(|(level, _)| *level != libc::IPPROTO_IPV6).chain(also) {
                let value = |socket: &UdpSocket| {
                    let mut value = [0; 64];
                    let length = syscall::raw_option(socket.as_fd(), level, name, &mut value).unwrap();
                    value[..length].to_vec()
                };
                assert_eq!(value(&lane), value(shared), "{level} {name}");
            }
            assert_eq!(syscall::socket_option(lane.as_fd(), SocketOption::ReusePort).unwrap(), 0);
            assert_eq!(syscall::socket_option(shared.as_fd(), SocketOption::ReusePort).unwrap(), 0);
        }
    });
}

/// A thread in another namespace creates no lane: it would send into that namespace.
#[test]
fn no_lane_in_another_network_namespace() {
    if !has_lanes() {
        return;
    }
    let [here, there] = [0, 1].map(|_| testbed::Namespace::new().expect("these tests need root"));
    let bind = || UdpTransport::bind((Ipv4Addr::UNSPECIFIED, 0).into(), &UdpConfig::default()).unwrap();
    let transport = here.enter(bind);
    there.enter(|| make_lane(&transport.socket, &Calls::default()).unwrap_err());
    here.enter(|| make_lane(&transport.socket, &Calls::default()).unwrap());
}
