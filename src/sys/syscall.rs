//! The system calls for which neither std nor a crate we use has a safe function. The only `unsafe` code there is.
#![expect(
    unsafe_code,
    reason = "this module is the quarantine: one system call per unsafe block, behind a safe function"
)]

use core::ffi::c_int;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for the name of an interface and the zero that ends it (`IFNAMSIZ` in linux/if.h).
pub(super) const INTERFACE_NAME: usize = libc::IFNAMSIZ;

/// struct `ifreq` of linux/if.h as `TUNSETIFF` and `TUNGETIFF` use it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct InterfaceRequest {
    /// Ends with a zero.
    pub(super) name: [u8; INTERFACE_NAME],
    /// `IFF_*` of linux/if_tun.h.
    pub(super) flags: u16,
    rest: [u8; REST_OF_REQUEST],
}

const REST_OF_REQUEST: usize = size_of::<libc::ifreq>() - INTERFACE_NAME - size_of::<u16>();

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl InterfaceRequest {
    pub(super) const fn new(name: [u8; INTERFACE_NAME], flags: u16) -> Self {
        Self { name, flags, rest: [0; REST_OF_REQUEST] }
    }
}

/// `TUNSETIFF`: makes a device or attaches to one. Returns the request with the name the device has.
pub(super) fn set_interface(tun: BorrowedFd<'_>, mut request: InterfaceRequest) -> io::Result<InterfaceRequest> {
    // SAFETY: the kernel reads and writes one `struct ifreq`, which `request` has the layout and the size of.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    checked(result).map(|_zero| request)
}

/// `TUNGETIFF`: name and flags of the device that is attached.
pub(super) fn interface(tun: BorrowedFd<'_>) -> io::Result<InterfaceRequest> {
    let mut request = InterfaceRequest::new([0; INTERFACE_NAME], 0);
    // SAFETY: the kernel writes one `struct ifreq`, which `request` has the layout and the size of.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    checked(result).map(|_zero| request)
}

/// `TUNSETOFFLOAD`: which packets the device may leave unsegmented or without a checksum, `TUN_F_*` of linux/if_tun.h.
pub(super) fn set_offload(tun: BorrowedFd<'_>, offload: u32) -> io::Result<()> {
    // SAFETY: the argument is a number and not a pointer, and zero-extended to the `unsigned long` the kernel takes.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) };
    checked(result).map(|_zero| ())
}

/// `TUNSETPERSIST`: whether the device outlives its last file descriptor.
pub(super) fn set_persist(tun: BorrowedFd<'_>, persist: bool) -> io::Result<()> {
    // SAFETY: the argument is a number and not a pointer, and zero-extended to the `unsigned long` the kernel takes.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persist)) };
    checked(result).map(|_zero| ())
}

/// The options of a socket we use, all of them an `int`.
#[derive(Clone, Copy, Debug)]
pub(super) enum SocketOption {
    /// `IP_MTU`: of the path to the peer, in bytes; only on a connected socket.
    Ipv4Mtu,
    Ipv4MtuDiscover,
    Ipv4ReceiveErrors,
    /// `IPV6_MTU`: of the path to the peer, in bytes; only on a connected socket.
    Ipv6Mtu,
    Ipv6MtuDiscover,
    Ipv6ReceiveErrors,
    ReceiveBuffer,
    ReceiveBufferForce,
    SendBuffer,
    SendBufferForce,
}

impl SocketOption {
    const fn level_and_name(self) -> (c_int, c_int) {
        match self {
            Self::Ipv4Mtu => (libc::IPPROTO_IP, libc::IP_MTU),
            Self::Ipv4MtuDiscover => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            Self::Ipv4ReceiveErrors => (libc::IPPROTO_IP, libc::IP_RECVERR),
            Self::Ipv6Mtu => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
            Self::Ipv6MtuDiscover => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
            Self::Ipv6ReceiveErrors => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
            Self::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Self::ReceiveBufferForce => (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
            Self::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
            Self::SendBufferForce => (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
        }
    }
}

/// setsockopt(2).
pub(super) fn set_socket_option(socket: BorrowedFd<'_>, option: SocketOption, value: c_int) -> io::Result<()> {
    let (level, name) = option.level_and_name();
    let pointer = (&raw const value).cast();
    // SAFETY: `pointer` is to an `int` that lives until the call returns, and the length is its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, INT_LENGTH) };
    checked(result).map(|_zero| ())
}

/// getsockopt(2).
pub(super) fn socket_option(socket: BorrowedFd<'_>, option: SocketOption) -> io::Result<c_int> {
    let (level, name) = option.level_and_name();
    let mut value: c_int = 0;
    let mut length = INT_LENGTH;
    let pointer = (&raw mut value).cast();
    // SAFETY: the kernel writes at most `length` bytes to `pointer`, which is to an `int` of that size, and the length.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, pointer, &raw mut length) };
    checked(result).map(|_zero| value)
}

/// recvfrom(2) with `MSG_TRUNC`: the length is the datagram's, which may be more than fitted into `buffer`.
pub(super) fn receive_from(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    let mut name = SocketName { bytes: [0; size_of::<SocketName>()] };
    let mut length = NAME_LENGTH;
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer` and at most `length` to `name`, which has that
    // size and, as bytes, no invalid value.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            (&raw mut name).cast(),
            &raw mut length,
        )
    };
    let received = usize::try_from(received).map_err(|_negative| io::Error::last_os_error())?;
    let sender = name.parse().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    Ok((received, sender))
}

const INT_LENGTH: libc::socklen_t = size_of::<c_int>() as libc::socklen_t;
const NAME_LENGTH: libc::socklen_t = size_of::<SocketName>() as libc::socklen_t;

/// Room for a struct `sockaddr_in` or `sockaddr_in6`.
#[repr(C, align(4))]
struct SocketName {
    bytes: [u8; size_of::<libc::sockaddr_in6>()],
}

impl SocketName {
    /// `None` if it is the address of something else than IP.
    fn parse(&self) -> Option<SocketAddr> {
        let family = u16::from_ne_bytes(self.field(offset::FAMILY)?);
        let port = u16::from_be_bytes(self.field(offset::PORT)?);
        match c_int::from(family) {
            libc::AF_INET => {
                let address = Ipv4Addr::from(self.field::<4>(offset::IPV4_ADDRESS)?);
                Some(SocketAddrV4::new(address, port).into())
            }
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(self.field::<16>(offset::IPV6_ADDRESS)?);
                // In the host's byte order, as std has it, so that addresses compare equal.
                let flow_info = u32::from_ne_bytes(self.field(offset::IPV6_FLOW_INFO)?);
                let scope = u32::from_ne_bytes(self.field(offset::IPV6_SCOPE)?);
                Some(SocketAddrV6::new(address, port, flow_info, scope).into())
            }
            _ => None,
        }
    }

    fn field<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }
}

/// Places in struct `sockaddr_in` and `sockaddr_in6`; family and port are at the same.
mod offset {
    use core::mem::offset_of;
    pub(super) const FAMILY: usize = offset_of!(libc::sockaddr_in, sin_family);
    pub(super) const PORT: usize = offset_of!(libc::sockaddr_in, sin_port);
    pub(super) const IPV4_ADDRESS: usize = offset_of!(libc::sockaddr_in, sin_addr);
    pub(super) const IPV6_FLOW_INFO: usize = offset_of!(libc::sockaddr_in6, sin6_flowinfo);
    pub(super) const IPV6_ADDRESS: usize = offset_of!(libc::sockaddr_in6, sin6_addr);
    pub(super) const IPV6_SCOPE: usize = offset_of!(libc::sockaddr_in6, sin6_scope_id);
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
