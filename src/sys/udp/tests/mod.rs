use super::*;
use std::net::UdpSocket;

use crate::sys::script::{Answer, Call, Script};

mod checksum;

/// Runs a test in a network namespace whose loopback is up.
fn on_loopback(test: impl FnOnce() + Send) {
    testbed::Namespace::new().expect("these tests make network namespaces, and need root").enter(test);
}

impl UdpTransport {
    /// Returns a transport over a script, with a number of flow ports.
    pub(crate) fn scripted(script: &Script, offload: UdpOffload, flows: usize) -> Self {
        let socket = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let transport = Self::from_socket(socket(), UdpOffload::ALL).unwrap();
        let lanes = Arc::new(Lanes::new(flows));
        let (flows, disabled) = ((0..flows).map(|_| socket()).collect(), Disabled::default());
        Self { offload, flows, lanes, disabled, calls: script.into(), ..transport }
    }
}

/// Whichever socket cannot be created, the error has its number and no other socket is left open.
#[test]
fn fault_35_queues_that_cannot_be_created_leave_no_socket_open() {
    let config = UdpConfig::default().with_flow_ports(3);
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let queues = NonZeroUsize::new(4).unwrap();
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
        for before in 0..7 {
            let script = Script::default();
            script.then(Call::Socket, core::iter::repeat_n(Answer::All, before).chain([Answer::Error(errno)]));
            let binding = Binding { calls: (&script).into(), ..Binding::new(free, &config) };
            let error = binding.queues(queues).unwrap_err();
            let BindError::Other { address, source } = &error else { panic!("{error:?}") };
            assert_eq!((address.ip(), source.raw_os_error()), (free.ip(), Some(errno)));
            assert_eq!(script.count(Call::Socket), before + 1);
            UdpTransport::bind(free, &UdpConfig::default()).expect("nobody has the port");
        }
    }
}

/// The query of a path MTU opens a socket, for which there may be no descriptor.
#[test]
fn fault_35_a_path_query_without_a_descriptor_returns_its_error() {
    let script = Script::default();
    script.then(Call::PathMtu, [Answer::Error(libc::EMFILE)]);
    let transport = UdpTransport::scripted(&script, UdpOffload::ALL, 0);
    let destination = ([10, 168, 0, 3], 8285).into();
    assert_eq!(transport.path_mtu(destination).unwrap_err().raw_os_error(), Some(libc::EMFILE));
    assert_eq!(transport.path_mtu(destination).unwrap(), 1500);
}

#[test]
fn every_errno_of_a_bind_has_its_meaning() {
    let address = SocketAddr::from(([10, 168, 0, 3], 8285));
    let error = |errno| BindError::new(address, io::Error::from_raw_os_error(errno));
    assert!(matches!(error(libc::EADDRINUSE), BindError::AddressInUse { .. }));
    assert!(matches!(error(libc::EADDRNOTAVAIL), BindError::NotLocal { .. }));
    assert!(matches!(error(libc::EACCES), BindError::NoPermission { .. }));
    assert!(matches!(error(libc::EMFILE), BindError::Other { .. }));
    let of_ipv6 = BindError::new((Ipv6Addr::LOCALHOST, 8285).into(), io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
    assert!(matches!(of_ipv6, BindError::NoIpv6 { .. }) && of_ipv6.to_string().contains("modprobe ipv6"));
}

/// With the option that a socket of this library never has.
#[test]
fn fault_33_a_dead_peer_costs_a_healthy_one_no_packet() {
    on_loopback(|| {
        let transport = UdpTransport::bind((Ipv4Addr::LOCALHOST, 0).into(), &UdpConfig::default()).unwrap();
        syscall::set_socket_option(transport.as_fd(), SocketOption::Ipv4ReceiveErrors, 1).unwrap();
        let healthy = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        healthy.set_nonblocking(true).unwrap();
        let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        for round in 0..100_u8 {
            transport.send(&Transmit::datagram(dead, b"anyone?")).unwrap();
            let (dead_again, contents) = (Transmit::datagram(dead, b"anyone?"), [round]);
            let batch = [Transmit::datagram(healthy.local_addr().unwrap(), &contents), dead_again];
            transport.send_batch(&batch, 0).unwrap();
            let mut buffer = [0; 2];
            assert_eq!(healthy.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], round);
            assert_eq!(transport.recv(&mut buffer), Err(RecvError::WouldBlock));
        }
    });
}

#[test]
fn a_socket_that_is_taken_over_forgets_its_options() {
    if !testbed::has_ipv6() {
        return;
    }
    on_loopback(|| {
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let set = |option| syscall::set_socket_option(socket.as_fd(), option, 1).unwrap();
        set(SocketOption::Ipv4ReceiveErrors);
        set(SocketOption::Ipv6ReceiveErrors);
        set(SocketOption::NoChecksum);
        syscall::set_socket_option(socket.as_fd(), SocketOption::UdpSegment, 100).unwrap();
        let transport = UdpTransport::from_socket(socket, UdpOffload::ALL).unwrap();
        let value = |option| syscall::socket_option(transport.as_fd(), option).unwrap();
        assert_eq!((value(SocketOption::Ipv4ReceiveErrors), value(SocketOption::Ipv6ReceiveErrors)), (0, 0));
        assert_eq!((value(SocketOption::NoChecksum), value(SocketOption::UdpSegment)), (0, 0));
        assert_eq!(value(SocketOption::UdpGro), 1);
        assert_eq!(value(SocketOption::Ipv4MtuDiscover), libc::IP_PMTUDISC_DO);
        assert_eq!(value(SocketOption::Ipv6MtuDiscover), libc::IPV6_PMTUDISC_DO);
        assert_eq!(transport.recv(&mut [0; 8]), Err(RecvError::WouldBlock), "was blocking before");
    });
}

#[test]
fn buffers_are_as_large_as_permitted() {
    let granted = |config: &UdpConfig| {
        let transport = UdpTransport::bind((Ipv4Addr::LOCALHOST, 0).into(), config).unwrap();
        let value = |option| syscall::socket_option(transport.as_fd(), option).unwrap();
        (value(SocketOption::ReceiveBuffer), value(SocketOption::SendBuffer))
    };
    let config = |bytes| UdpConfig::default().with_receive_buffer(bytes).with_send_buffer(bytes);
    // The kernel doubles the value. Root is limited by nothing, others by a sysctl.
    let limit = |name: &str| -> Option<usize> {
        std::fs::read_to_string(std::format!("/proc/sys/net/core/{name}")).ok()?.trim().parse().ok()
    };
    let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let forced = syscall::set_socket_option(probe.as_fd(), SocketOption::ReceiveBufferForce, 1 << 20).is_ok();
    let wish = UdpConfig::default().receive_buffer.unwrap();
    let expected = |name| 2 * if forced { wish } else { limit(name).map_or(wish, |limit| wish.min(limit)) };
    let (receive, send) = granted(&UdpConfig::default());
    assert_eq!((receive as usize, send as usize), (expected("rmem_max"), expected("wmem_max")));
    assert!(granted(&config(Some(usize::MAX))).0 >= receive);
    assert!(granted(&config(Some(0))).0 > 0);
    assert!(granted(&config(None)).0 < receive);
}

/// Without checksums the kernel refuses GSO batches (`udp_send_skb` in net/ipv4/udp.c): EINVAL, as over some devices
/// and paths.
#[test]
fn fault_30_the_kernel_refuses_a_batch_and_the_datagrams_arrive() {
    on_loopback(|| {
        let loopback = |last| SocketAddr::from(([127, 0, 0, last], 0));
        let transport = UdpTransport::bind(loopback(1), &UdpConfig::default()).unwrap();
        let receivers = [2, 3].map(|last| UdpSocket::bind(loopback(last)).unwrap());
        let contents: Vec<u8> = (0..=255).cycle().take(10_500).collect();
        let gso_batch = |to: &UdpSocket| Transmit {
            segment_size: NonZeroUsize::new(100),
            ..Transmit::datagram(to.local_addr().unwrap(), &contents)
        };
        let arrived = |to: &UdpSocket| {
            let mut buffer = [0; 256];
            for expected in contents.chunks(100) {
                let length = to.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], expected);
            }
            to.set_nonblocking(true).unwrap();
            assert!(to.recv(&mut buffer).is_err(), "nothing twice");
            to.set_nonblocking(false).unwrap();
        };
        let [first, second] = &receivers;
        syscall::set_socket_option(transport.as_fd(), SocketOption::NoChecksum, 1).unwrap();
        for _ in 0..2 {
            transport.send_batch(&[gso_batch(first)], 0).unwrap();
            arrived(first);
            assert_eq!(transport.gso_fallbacks(), 1);
        }
        syscall::set_socket_option(transport.as_fd(), SocketOption::NoChecksum, 0).unwrap();
        transport.send_batch(&[gso_batch(first), gso_batch(second)], 0).unwrap();
        receivers.iter().for_each(arrived);
        assert!(transport.fallbacks.contains(first.local_addr().unwrap().ip()));
        assert!(
            !transport.fallbacks.contains(second.local_addr().unwrap().ip()),
            "other destinations still get batches"
        );
    });
}

#[test]
fn the_ports_of_flows_never_fragment_and_hold_next_to_nothing() {
    if !testbed::has_ipv6() {
        return;
    }
    on_loopback(|| {
        let config = UdpConfig::default().with_flow_ports(3);
        let transport = UdpTransport::bind((Ipv6Addr::LOCALHOST, 0).into(), &config).unwrap();
        assert_eq!(transport.flows.len(), 3);
        for socket in transport.flows.iter() {
            let value = |option| syscall::socket_option(socket.as_fd(), option).unwrap();
            assert!(value(SocketOption::ReceiveBuffer) < 8192);
            assert!(value(SocketOption::SendBuffer) > 100_000);
            assert_eq!(value(SocketOption::Ipv4MtuDiscover), libc::IP_PMTUDISC_DO);
            assert_eq!(value(SocketOption::Ipv6MtuDiscover), libc::IPV6_PMTUDISC_DO);
            assert_eq!((value(SocketOption::Ipv4ReceiveErrors), value(SocketOption::NoChecksum)), (0, 0));
        }
    });
}
