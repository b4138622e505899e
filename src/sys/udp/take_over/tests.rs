use super::*;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::num::NonZeroUsize;
use std::net::TcpListener;
use std::os::fd::OwnedFd;

use crate::Transmit;
use crate::sys::syscall::{SocketOption, set_socket_option, socket_option};
use crate::sys::{RecvError, RecvMeta, UdpOffload, UdpTransport};
use crate::wire::Ecn;

fn on_loopback(test: impl FnOnce() + Send) {
    testbed::Namespace::new().expect("these tests make network namespaces, and need root").enter(test);
}

fn bound(ip: impl Into<core::net::IpAddr>) -> UdpSocket {
    UdpSocket::bind(SocketAddr::new(ip.into(), 0)).unwrap()
}

/// Returns a value that the option has on no socket of this library, in the form in which the kernel returns it, if
/// it does.
fn strange(option: &Reset) -> Vec<u8> {
    let int = |value: i32| value.to_ne_bytes().to_vec();
    match option.name {
        // Record route, without a hop yet.
        "IP_OPTIONS" => [7, 7, 4, 0, 0, 0, 0, 0].to_vec(),
        // Eight bytes of padding; a routing header of type 2 with an address in it.
        "IPV6_HOPOPTS" | "IPV6_DSTOPTS" | "IPV6_RTHDRDSTOPTS" => [0, 0, 1, 4, 0, 0, 0, 0].to_vec(),
        "IPV6_RTHDR" => [&[0, 2, 2, 1, 0, 0, 0, 0][..], &Ipv6Addr::LOCALHOST.octets()].concat(),
        "IPV6_PKTINFO" => [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 4]].concat(),
        "IP_TOS" | "IPV6_TCLASS" => int(0xbb),
        "IP_TTL" | "IPV6_UNICAST_HOPS" => int(3),
        "IPV6_MTU" => int(1280),
        "SO_PEEK_OFF" | "SO_RCVLOWAT" => int(7),
        // SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE.
        "SO_TIMESTAMPING" => int(1 << 3 | 1 << 4),
        "UDP_SEGMENT" => int(100),
        // ESP in UDP.
        "UDP_ENCAP" => int(2),
        _ => int(1),
    }
}

/// Every option that is reset, set to something strange before: afterwards it is as on a new socket.
#[test]
fn fault_62_every_option_of_a_socket_that_is_taken_over_is_reset() {
    on_loopback(|| {
        for ip in [core::net::IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            if ip.is_ipv6() && !testbed::has_ipv6() {
                continue;
            }
            let new = bound(ip);
            let mut unknown = Vec::new();
            for option in resets(new.local_addr().unwrap()) {
                let socket = bound(ip);
                let copy = socket.try_clone().unwrap();
                let set = syscall::set_raw_option(socket.as_fd(), option.level, option.number, &strange(option));
                if let Err(error) = set {
                    // A routing header needs a kernel with Mobile IPv6.
                    assert!(is_unknown(&error) || option.name == "IPV6_RTHDR", "{}: {error}", option.name);
                    unknown.push(option.name);
                    continue;
                }
                let (before, on_new) = (option.value(&socket).ok(), option.value(&new).ok());
                assert!(before.is_none() || before != on_new, "{} was not set: {before:?}", option.name);
                let transport = UdpTransport::from_socket(socket, UdpOffload::ALL).unwrap();
                assert_eq!(option.value(&copy).ok(), on_new, "{}", option.name);
                assert_eq!(transport.disabled().count(), 0);
                // It receives datagrams, alone and in batches, whole and with the control messages that are expected.
                let own = transport.local_addr();
                for (count, segment_size) in [(1, None), (3, NonZeroUsize::new(1200))] {
                    let contents = &[7; 3 * 1200][..count * 1200];
                    let datagrams = Transmit { ecn: Ecn::Ect0, segment_size, ..Transmit::datagram(own, contents) };
                    transport.send(&datagrams).unwrap();
                    let mut received = 0;
                    while received < contents.len() {
                        let meta = transport.recv(&mut [0; 65_536]).expect(option.name);
                        assert_eq!(
                            meta,
                            RecvMeta { from: own, len: meta.len, stride: 1200, ecn: Ecn::Ect0 },
                            "{}",
                            option.name
                        );
                        received += meta.len;
                    }
                }
            }
            assert!(unknown.len() <= 2, "{unknown:?}");
        }
    });
}

/// The receiver sees no effect of any option: one of them would set CE in every packet, so that peers drop it.
#[test]
fn fault_62_what_a_socket_that_is_taken_over_sends_is_as_of_a_new_one() {
    on_loopback(|| {
        let receiver = bound(Ipv4Addr::LOCALHOST);
        for number in [libc::IP_RECVTOS, libc::IP_RECVTTL, libc::IP_RECVOPTS] {
            syscall::set_raw_option(receiver.as_fd(), libc::IPPROTO_IP, number, ONE).unwrap();
        }
        let seen = |sender: &dyn Fn()| {
            sender();
            let mut buffer = [0; 2048];
            let slot = &mut [crate::sys::syscall::Slot::EMPTY];
            let buffers = core::iter::once(&mut buffer[..]);
            syscall::receive_messages::<1>(receiver.as_fd(), slot, buffers).unwrap();
            slot[0].control_bytes().to_vec()
        };
        let to = receiver.local_addr().unwrap();
        let send = |transport: &UdpTransport| transport.send(&Transmit::datagram(to, b"x")).unwrap();
        let new = UdpTransport::bind(SocketAddr::from(([127, 0, 0, 1], 0)), &Default::default()).unwrap();
        let usual = seen(&|| send(&new));

        let socket = bound(Ipv4Addr::LOCALHOST);
        for option in SOCKET.iter().chain(&IPV4).filter(|option| option.name != "SO_DONTROUTE") {
            let _unknown = syscall::set_raw_option(socket.as_fd(), option.level, option.number, &strange(option));
        }
        set_socket_option(socket.as_fd(), SocketOption::NoChecksum, 1).unwrap();
        let strange = seen(&|| assert_eq!(socket.send_to(b"x", to).unwrap(), 1));
        assert_ne!(strange, usual, "otherwise this test tests nothing");
        let transport = UdpTransport::from_socket(socket, UdpOffload::ALL).unwrap();
        assert_eq!(seen(&|| send(&transport)), usual);
        assert_eq!(socket_option(transport.as_fd(), SocketOption::NoChecksum).unwrap(), 0);
    });
}

/// A filter that lets no byte pass is detached; one that is locked is refused.
#[test]
fn fault_62_a_filter_is_detached_or_refused() {
    on_loopback(|| {
        // struct sock_filter of linux/filter.h: return 0, which drops everything.
        let program: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];
        let attach = |socket: &UdpSocket| {
            let mut value = [0; 16];
            value[..2].copy_from_slice(&1_u16.to_ne_bytes());
            value[8..].copy_from_slice(&(program.as_ptr() as usize).to_ne_bytes());
            syscall::set_raw_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &value).unwrap();
        };
        let socket = bound(Ipv4Addr::LOCALHOST);
        attach(&socket);
        let own = socket.local_addr().unwrap();
        let peer = bound(Ipv4Addr::LOCALHOST);
        peer.send_to(b"lost", own).unwrap();
        let transport = UdpTransport::from_socket(socket, UdpOffload::ALL).unwrap();
        assert_eq!(transport.recv(&mut [0; 64]), Err(RecvError::WouldBlock), "otherwise this test tests nothing");
        peer.send_to(b"not lost", own).unwrap();
        assert_eq!(transport.recv(&mut [0; 64]).map(|meta| meta.len), Ok(8));

        let socket = bound(Ipv4Addr::LOCALHOST);
        attach(&socket);
        syscall::set_raw_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_LOCK_FILTER, ONE).unwrap();
        match UdpTransport::from_socket(socket, UdpOffload::ALL) {
            Err(TakeOverError::Option { name: "SO_ATTACH_FILTER", source }) => {
                assert_eq!(source.raw_os_error(), Some(libc::EPERM));
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn fault_62_a_socket_that_cannot_serve_is_refused() {
    on_loopback(|| {
        let take = |socket| UdpTransport::from_socket(socket, UdpOffload::ALL).map(drop);
        let (connected, peer) = (bound(Ipv4Addr::LOCALHOST), bound(Ipv4Addr::LOCALHOST).local_addr().unwrap());
        connected.connect(peer).unwrap();
        let error = take(connected).unwrap_err();
        assert!(matches!(error, TakeOverError::Connected { peer: told } if told == peer), "{error:?}");

        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let error = take(syscall::socket(any).unwrap().into()).unwrap_err();
        assert!(matches!(error, TakeOverError::NotBound), "{error:?}");

        let tcp = OwnedFd::from(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let (lite, device) = (libc::IPPROTO_UDPLITE, OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        let lite = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, Some(lite.into()));
        for socket in [Some(tcp), lite.ok().map(OwnedFd::from)].into_iter().flatten() {
            let error = take(socket.into()).unwrap_err();
            assert!(matches!(error, TakeOverError::NotUdp { .. }), "{error:?}");
        }
        let error = take(device.into()).unwrap_err();
        assert!(matches!(&error, TakeOverError::Other { source } if source.raw_os_error() == Some(libc::ENOTSOCK)));
    });
}
