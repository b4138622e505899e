//! Socket addresses in the kernel's format.

use core::ffi::c_int;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A buffer for a struct `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub(super) struct SocketName {
    bytes: [u8; size_of::<libc::sockaddr_in6>()],
}

/// Bytes of [`SocketName`].
pub(super) const NAME_LENGTH: libc::socklen_t = size_of::<SocketName>() as libc::socklen_t;

impl SocketName {
    pub(super) const EMPTY: Self = Self { bytes: [0; size_of::<Self>()] };

    /// Encodes an address and returns its length too.
    #[inline]
    pub(super) fn new(address: SocketAddr) -> (Self, libc::socklen_t) {
        let mut name = Self::EMPTY;
        name.put(offset::PORT, address.port().to_be_bytes());
        match address {
            SocketAddr::V4(address) => {
                name.put(offset::FAMILY, (libc::AF_INET as u16).to_ne_bytes());
                name.put(offset::IPV4_ADDRESS, address.ip().octets());
                (name, size_of::<libc::sockaddr_in>() as libc::socklen_t)
            }
            SocketAddr::V6(address) => {
                name.put(offset::FAMILY, (libc::AF_INET6 as u16).to_ne_bytes());
                name.put(offset::IPV6_FLOW_INFO, address.flowinfo().to_ne_bytes());
                name.put(offset::IPV6_ADDRESS, address.ip().octets());
                name.put(offset::IPV6_SCOPE, address.scope_id().to_ne_bytes());
                (name, NAME_LENGTH)
            }
        }
    }

    /// Copies a socket address of any length. One that is too short for its family is [`EMPTY`](Self::EMPTY).
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut name = Self::EMPTY;
        let length = bytes.len().min(name.bytes.len());
        name.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let expected = name.parse().map_or(0, |address| Self::new(address).1 as usize);
        if length < expected { Self::EMPTY } else { name }
    }

    /// Returns the first `length` bytes.
    pub(super) fn bytes(&self, length: libc::socklen_t) -> &[u8] {
        self.bytes.get(..length as usize).unwrap_or(&self.bytes)
    }

    /// Returns `None` for an address of another family than IP.
    #[inline]
    pub(super) fn parse(&self) -> Option<SocketAddr> {
        let family = u16::from_ne_bytes(self.field(offset::FAMILY)?);
        let port = u16::from_be_bytes(self.field(offset::PORT)?);
        match c_int::from(family) {
            libc::AF_INET => {
                let address = Ipv4Addr::from(self.field::<4>(offset::IPV4_ADDRESS)?);
                Some(SocketAddrV4::new(address, port).into())
            }
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(self.field::<16>(offset::IPV6_ADDRESS)?);
                // The field is in native byte order, as in std, so that addresses compare equal.
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

    fn put<const N: usize>(&mut self, offset: usize, value: [u8; N]) {
        if let Some(field) = self.bytes.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) {
            *field = value;
        }
    }
}

/// Offsets in struct `sockaddr_in` and `sockaddr_in6`. Family and port have the same offset in both.
mod offset {
    use core::mem::offset_of;
    pub(super) const FAMILY: usize = offset_of!(libc::sockaddr_in, sin_family);
    pub(super) const PORT: usize = offset_of!(libc::sockaddr_in, sin_port);
    pub(super) const IPV4_ADDRESS: usize = offset_of!(libc::sockaddr_in, sin_addr);
    pub(super) const IPV6_FLOW_INFO: usize = offset_of!(libc::sockaddr_in6, sin6_flowinfo);
    pub(super) const IPV6_ADDRESS: usize = offset_of!(libc::sockaddr_in6, sin6_addr);
    pub(super) const IPV6_SCOPE: usize = offset_of!(libc::sockaddr_in6, sin6_scope_id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_decoded_as_it_was_encoded() {
        for (address, length) in [("10.168.0.3:8285", 16), ("[2001:db8::7]:1", 28), ("[fe80::1%3]:65535", 28)] {
            let address: SocketAddr = address.parse().unwrap();
            let (name, bytes) = SocketName::new(address);
            assert_eq!((name.parse(), bytes), (Some(address), length));
        }
        assert_eq!(SocketName::EMPTY.parse(), None);
    }
}
