use super::*;
use core::net::SocketAddr;
use core::time::Duration;
use std::os::fd::AsRawFd;
use std::thread;
use std::vec;
use std::vec::Vec;

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvmsg};
use proptest::prelude::*;
use socket2::SockRef;

use crate::sys::{UdpConfig, UdpOffload, UdpTransport};
use crate::wire::Ecn;

fn transport(address: &str, gro: bool) -> UdpTransport {
    let config = UdpConfig { offload: UdpOffload { gso: true, gro }, ..UdpConfig::default() };
    UdpTransport::bind(address.parse().expect("an address"), &config).expect("bound")
}

/// Waits for a message, which loopback delivers at once, and returns what `receive` makes of it.
fn soon<T>(transmit: &Transmit<'_>, mut receive: impl FnMut() -> Result<T, RecvError>) -> T {
    for _ in 0..2000 {
        match receive() {
            Err(RecvError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            received => return received.expect("received"),
        }
    }
    panic!("nothing came of {transmit:?} within two seconds");
}

/// Receives by recvmsg(2), and reads the metadata from the bytes of the header alone.
fn receive_by_header(transport: &UdpTransport, buffer: &mut [u8]) -> Result<RecvMeta, RecvError> {
    use std::io::IoSliceMut;
    let room = buffer.len();
    let mut control = vec![0; RecvHeader::CONTROL_MAX];
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(transport.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_TRUNC)
            .map_err(|errno| RecvError::from_errno(errno as i32))?;
    let (len, flags) = (message.bytes, message.flags.bits());
    let from = message.address.expect("a sender");
    let from = from
        .as_sockaddr_in()
        .map(|from| SocketAddr::from(std::net::SocketAddrV4::from(*from)))
        .unwrap_or_else(|| std::net::SocketAddrV6::from(*from.as_sockaddr_in6().expect("a sender of IP")).into());
    // nix keeps the bytes of the control messages that were received in the buffer, and zeros behind them.
    let name = SendHeader::new(&Transmit::datagram(from, &[]));
    RecvMeta::from_header(&RecvHeader { name: name.name(), control: &control, flags }, len, room)
}

/// The same batch is received twice, by the transport and by a `msghdr`.
#[test]
fn a_header_tells_the_same_as_the_transport() {
    testbed::Namespace::new().expect("these tests make network namespaces, and need root").enter(|| {
        let ends = [("127.0.0.1:0", "127.0.0.1:0"), ("[::1]:0", "[::1]:0")];
        let ends = ends.into_iter().filter(|(address, _)| address.starts_with('1') || testbed::has_ipv6());
        for ((from, to), gro) in ends.into_iter().flat_map(|ends| [(ends, false), (ends, true)]) {
            let (sender, receiver) = (transport(from, false), transport(to, gro));
            let port = receiver.local_addr().port();
            let destination = SocketAddr::new(sender.local_addr().ip(), port);
            let mut buffer = vec![0; 65_536];
            for (size, len) in [(None, 7), (None, 0), (NonZeroUsize::new(100), 950), (NonZeroUsize::new(1), 3)] {
                for ecn in [Ecn::NotEct, Ecn::Ect0, Ecn::Ce] {
                    let contents = vec![7; len];
                    let transmit = Transmit { segment_size: size, ecn, ..Transmit::datagram(destination, &contents) };
                    let datagrams = if gro { 1 } else { transmit.segments().count() };
                    sender.send(&transmit).expect("sent");
                    let by_transport: Vec<_> =
                        (0..datagrams).map(|_| soon(&transmit, || receiver.recv(&mut buffer))).collect();
                    sender.send(&transmit).expect("sent");
                    let by_header: Vec<_> =
                        (0..datagrams).map(|_| soon(&transmit, || receive_by_header(&receiver, &mut buffer))).collect();
                    assert_eq!(by_header, by_transport, "{from} to {to}, GRO {gro}, {transmit:?}");
                    assert_eq!(by_header[0].from, sender.local_addr());
                    assert_eq!(by_header[0].ecn, ecn);
                    assert_eq!(by_header.iter().map(|meta| meta.len).sum::<usize>(), len);
                }
            }
        }
    });
}

/// Datagrams sent with a header arrive like those that the transport sends.
#[test]
fn a_send_by_a_header_arrives_as_one_of_the_transport() {
    use nix::libc;
    testbed::Namespace::new().expect("these tests make network namespaces, and need root").enter(|| {
        let addresses = ["127.0.0.1:0", "[::1]:0"];
        for address in addresses.into_iter().filter(|address| address.starts_with('1') || testbed::has_ipv6()) {
            let (sender, receiver) = (transport(address, false), transport(address, true));
            let contents = [7; 950];
            let destination = receiver.local_addr();
            for (segment_size, ecn) in [(NonZeroUsize::new(100), Ecn::Ect1), (None, Ecn::NotEct), (None, Ecn::Ce)] {
                let transmit = Transmit { segment_size, ecn, ..Transmit::datagram(destination, &contents) };
                let header = SendHeader::new(&transmit);
                assert_eq!(
                    header.name().len(),
                    SockRef::from(&sender).local_addr().expect("an address").len() as usize
                );
                assert_eq!(header.control().as_ptr().align_offset(align_of::<libc::cmsghdr>()), 0);
                let address = socket2::SockAddr::from(destination);
                let parts = [std::io::IoSlice::new(&contents)];
                let message = socket2::MsgHdr::new().with_addr(&address).with_buffers(&parts);
                let message = message.with_control(header.control());
                assert_eq!(SockRef::from(&sender).sendmsg(&message, 0).expect("sent"), contents.len());
                let mut buffer = vec![0; 65_536];
                let meta = soon(&transmit, || receiver.recv(&mut buffer));
                let stride = segment_size.map_or(contents.len(), NonZeroUsize::get);
                assert_eq!(meta, RecvMeta { from: sender.local_addr(), len: contents.len(), stride, ecn });
            }
        }
    });
}

#[test]
fn a_name_that_is_too_short_for_its_family_is_no_sender() {
    for (address, needed) in [("10.168.0.3:8285", 16), ("[2001:db8::7]:1", 28)] {
        let address: SocketAddr = address.parse().unwrap();
        let header = SendHeader::new(&Transmit::datagram(address, &[]));
        let from = |name| RecvMeta::from_header(&RecvHeader { name, control: &[], flags: 0 }, 0, 0);
        for length in 0..needed {
            assert_eq!(from(&header.name()[..length]), Err(RecvError::Other(libc::EAFNOSUPPORT)), "{length}");
        }
        assert_eq!(from(header.name()).unwrap().from, address);
    }
}

#[test]
fn a_truncated_message_is_an_error() {
    let header = SendHeader::new(&Transmit::datagram(([10, 168, 0, 3], 8285).into(), &[]));
    let meta = |flags, len| RecvMeta::from_header(&RecvHeader { name: header.name(), control: &[], flags }, len, 100);
    assert_eq!(meta(0, 101), Err(RecvError::Truncated { len: 101, have: 100 }));
    assert_eq!(meta(libc::MSG_TRUNC, 100), Err(RecvError::Truncated { len: 100, have: 100 }));
    assert_eq!(meta(libc::MSG_CTRUNC, 100), Err(RecvError::ControlTruncated { len: 100 }));
    assert_eq!(meta(0, 100).unwrap().len, 100);
}

proptest! {
    /// Lengths and strides stay within the message, whatever the kernel should write.
    #[test]
    fn any_bytes_are_a_header(
        mut name in prop::collection::vec(any::<u8>(), 0..64),
        mut control in prop::collection::vec(any::<u8>(), 0..128),
        family in prop::sample::select(vec![0_u16, 2, 10]),
        length in prop::sample::select(vec![0_usize, 15, 16, 17, 20, 24, usize::MAX - 7, usize::MAX]),
        (flags, len, room) in (any::<i32>(), 0..70_000_usize, 0..70_000_usize),
    ) {
        name.iter_mut().zip(family.to_ne_bytes()).for_each(|(to, from)| *to = from);
        control.iter_mut().zip(length.to_ne_bytes()).for_each(|(to, from)| *to = from);
        if let Ok(meta) = RecvMeta::from_header(&RecvHeader { name: &name, control: &control, flags }, len, room) {
            prop_assert!(meta.len == len && len <= room && meta.stride <= len);
            prop_assert!(len == 0 || meta.stride > 0);
        }
    }
}
