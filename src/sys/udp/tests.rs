use super::*;

#[test]
fn every_errno_of_a_bind_has_its_meaning() {
    let address = SocketAddr::from(([10, 168, 0, 3], 8285));
    let error = |errno| BindError::new(address, io::Error::from_raw_os_error(errno));
    assert!(matches!(error(libc::EADDRINUSE), BindError::AddressInUse { .. }));
    assert!(matches!(error(libc::EADDRNOTAVAIL), BindError::NotLocal { .. }));
    assert!(matches!(error(libc::EACCES), BindError::NoPermission { .. }));
    assert!(matches!(error(libc::EMFILE), BindError::Other { .. }));
}

/// Fault 33, with the option that a socket of ours never has.
#[test]
fn a_dead_peer_costs_a_healthy_one_no_packet() {
    let transport = UdpTransport::bind((Ipv4Addr::LOCALHOST, 0).into(), &UdpConfig::default()).unwrap();
    syscall::set_socket_option(transport.as_fd(), SocketOption::Ipv4ReceiveErrors, 1).unwrap();
    let healthy = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    healthy.set_nonblocking(true).unwrap();
    let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    for round in 0..100_u8 {
        transport.send(&Transmit::datagram(dead, b"anyone?")).unwrap();
        transport.send(&Transmit::datagram(healthy.local_addr().unwrap(), &[round])).unwrap();
        let mut buffer = [0; 2];
        assert_eq!(healthy.recv(&mut buffer).unwrap(), 1);
        assert_eq!(buffer[0], round);
        assert_eq!(transport.recv(&mut buffer), Err(RecvError::WouldBlock));
    }
}

#[test]
fn a_socket_that_is_taken_over_forgets_its_options() {
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    let set = |option| syscall::set_socket_option(socket.as_fd(), option, 1).unwrap();
    set(SocketOption::Ipv4ReceiveErrors);
    set(SocketOption::Ipv6ReceiveErrors);
    let transport = UdpTransport::from_socket(socket, UdpOffload::ALL).unwrap();
    let value = |option| syscall::socket_option(transport.as_fd(), option).unwrap();
    assert_eq!((value(SocketOption::Ipv4ReceiveErrors), value(SocketOption::Ipv6ReceiveErrors)), (0, 0));
    assert_eq!(value(SocketOption::Ipv4MtuDiscover), libc::IP_PMTUDISC_DO);
    assert_eq!(value(SocketOption::Ipv6MtuDiscover), libc::IPV6_PMTUDISC_DO);
    assert_eq!(transport.recv(&mut [0; 8]), Err(RecvError::WouldBlock), "was blocking before");
}

#[test]
fn buffers_are_as_large_as_permitted() {
    let granted = |config: &UdpConfig| {
        let transport = UdpTransport::bind((Ipv4Addr::LOCALHOST, 0).into(), config).unwrap();
        let value = |option| syscall::socket_option(transport.as_fd(), option).unwrap();
        (value(SocketOption::ReceiveBuffer), value(SocketOption::SendBuffer))
    };
    let config = |bytes| UdpConfig { receive_buffer: bytes, send_buffer: bytes, ..UdpConfig::default() };
    // The kernel doubles what was asked for. Root is limited by nothing, others by a sysctl.
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
