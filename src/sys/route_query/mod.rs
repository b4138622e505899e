//! Queries for the MTU of the route of one flow (rtnetlink(7)).

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use super::syscall::{self, SpecialSocket};

/// The fields that select a route in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowKey {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// `SO_MARK`, or 0.
    pub(super) mark: u32,
    /// The index of the interface that the socket is bound to, or 0.
    pub(super) interface: u32,
}

/// The MTUs of a route, in bytes of the outer packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouteMtu {
    /// The MTU of the route, or the MTU of its interface if that is smaller or the route has none.
    pub(super) configured: u32,
    /// The MTU that the kernel learned from an ICMP error. It expires.
    pub(super) learned: Option<u32>,
}

/// A netlink socket in the network namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub(super) struct RouteSocket(Mutex<Connection>);

#[derive(Debug)]
struct Connection {
    socket: File,
    sequence: u32,
}

/// Size of the buffer for a reply about one route or one interface.
const REPLY_MAX: usize = 16 << 10;

/// Struct `nlmsghdr` in linux/netlink.h.
mod header {
    use core::ops::Range;
    pub(super) const LENGTH: Range<usize> = 0..4;
    pub(super) const KIND: Range<usize> = 4..6;
    pub(super) const SEQUENCE: Range<usize> = 8..12;
    pub(super) const END: usize = 16;
}

/// Attributes of a route: `RTA_*` in linux/rtnetlink.h.
mod rta {
    pub(super) const DST: u16 = 1;
    pub(super) const SRC: u16 = 2;
    pub(super) const OIF: u16 = 4;
    pub(super) const METRICS: u16 = 8;
    pub(super) const CACHEINFO: u16 = 12;
    pub(super) const MARK: u16 = 16;
    // Linux 4.17. Older kernels have no rules by ports and ignore these.
    pub(super) const IP_PROTO: u16 = 27;
    pub(super) const SPORT: u16 = 28;
    pub(super) const DPORT: u16 = 29;
}

/// `RTAX_MTU`, inside of `RTA_METRICS`.
const METRIC_MTU: u16 = 2;
/// `IFLA_MTU` in linux/if_link.h.
const LINK_MTU: u16 = 4;
/// `rta_expires` in struct `rta_cacheinfo`.
const EXPIRES: core::ops::Range<usize> = 8..12;
/// `RTM_F_FIB_MATCH`: the reply is the entry of the table, without the learned MTU.
const FIB_MATCH: u32 = 0x2000;
/// `RTM_F_CLONED`: an exception of a route. The kernel sets it in every reply about IPv4.
const CLONED: u32 = 0x200;
/// `rtm_flags` in struct `rtmsg`.
const ROUTE_FLAGS: core::ops::Range<usize> = 8..12;
/// `IFLA_AF_SPEC` and `IFLA_INET6_CONF` in linux/if_link.h.
const LINK_FAMILIES: u16 = 26;
const IPV6_SETTINGS: u16 = 2;
/// `DEVCONF_MTU6` in linux/ipv6.h, an index of an `int`.
const IPV6_MTU_SETTING: usize = 2;
/// Sizes of struct `rtmsg` and struct `ifinfomsg` in bytes.
const ROUTE_HEADER: usize = 12;
const LINK_HEADER: usize = 16;

impl RouteSocket {
    pub(super) fn open() -> io::Result<Self> {
        let socket = File::from(syscall::special_socket(SpecialSocket::Route)?);
        Ok(Self(Mutex::new(Connection { socket, sequence: 0 })))
    }

    /// Returns the MTUs of the route of a flow.
    pub(super) fn ask(&self, flow: &FlowKey) -> io::Result<RouteMtu> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let resolved = connection.ask(libc::RTM_GETROUTE, &route_request(flow, 0))?;
        let attributes = resolved.get(ROUTE_HEADER..).unwrap_or_default();
        let expires = attribute(attributes, rta::CACHEINFO).and_then(|info| number(info.get(EXPIRES)?));
        // An IPv6 route that a router advertised expires too, and may have an MTU.
        let is_exception = resolved.get(ROUTE_FLAGS).and_then(number).is_some_and(|flags| flags & CLONED != 0);
        let learned = metric_mtu(attributes).filter(|_| is_exception && expires.is_some_and(|expires| expires != 0));
        let metric = match learned {
            None => metric_mtu(attributes),
            Some(_) => {
                let entry = connection.ask(libc::RTM_GETROUTE, &route_request(flow, FIB_MATCH))?;
                metric_mtu(entry.get(ROUTE_HEADER..).unwrap_or_default())
            }
        };
        let interface = attribute(attributes, rta::OIF).and_then(number).ok_or_else(malformed)?;
        let mut request = [0; LINK_HEADER];
        if let Some(index) = request.get_mut(4..8) {
            index.copy_from_slice(&interface.to_ne_bytes());
        }
        let link = connection.ask(libc::RTM_GETLINK, &request)?;
        let attributes = link.get(LINK_HEADER..).unwrap_or_default();
        let device = attribute(attributes, LINK_MTU).and_then(number);
        let of_ipv6 = if flow.destination.is_ipv6() { ipv6_mtu(attributes) } else { None };
        let configured = [metric, device, of_ipv6].into_iter().flatten().min().ok_or_else(malformed)?;
        Ok(RouteMtu { configured, learned })
    }
}

impl Connection {
    /// Sends a request and returns the body of the reply.
    fn ask(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<u8>> {
        const REQUEST: u16 = 1;
        self.sequence = self.sequence.wrapping_add(1);
        let len = (header::END + body.len()) as u32;
        let mut message = Vec::with_capacity(len as usize);
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(REQUEST.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        self.socket.write_all(&message)?;
        // The kernel has queued the reply when the write returns. A reply to an earlier request that failed has another
        // sequence number.
        let mut reply = alloc::vec![0; REPLY_MAX];
        loop {
            let len = self.socket.read(&mut reply)?;
            if let Some(body) = body_of(reply.get(..len).unwrap_or_default(), self.sequence)? {
                return Ok(body.to_vec());
            }
        }
    }
}

/// Returns the body of a reply, or `None` if it belongs to another request.
fn body_of(reply: &[u8], sequence: u32) -> io::Result<Option<&[u8]>> {
    let field = |at| number(reply.get(at)?);
    let len = field(header::LENGTH).ok_or_else(malformed)? as usize;
    if field(header::SEQUENCE) != Some(sequence) {
        return Ok(None);
    }
    let body = reply.get(header::END..len).ok_or_else(malformed)?;
    let kind = reply.get(header::KIND).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind == Some(libc::NLMSG_ERROR as u16) {
        let code = number(body.get(..4).ok_or_else(malformed)?).ok_or_else(malformed)?;
        return Err(io::Error::from_raw_os_error((code as i32).saturating_neg()));
    }
    Ok(Some(body))
}

fn route_request(flow: &FlowKey, flags: u32) -> Vec<u8> {
    let (family, bits) = match flow.destination {
        SocketAddr::V4(_) => (libc::AF_INET, 32),
        SocketAddr::V6(_) => (libc::AF_INET6, 128),
    };
    let source = Some(flow.source.ip()).filter(|ip| !ip.is_unspecified() && ip.is_ipv4() == flow.destination.is_ipv4());
    let source_bits = if source.is_some() { bits } else { 0 };
    let mut request = alloc::vec![family as u8, bits, source_bits, 0, 0, 0, 0, 0];
    request.extend(flags.to_ne_bytes());
    put_address(&mut request, rta::DST, flow.destination.ip());
    if let Some(source) = source {
        put_address(&mut request, rta::SRC, source);
    }
    for (kind, value) in [(rta::OIF, flow.interface), (rta::MARK, flow.mark)] {
        if value != 0 {
            put(&mut request, kind, &value.to_ne_bytes());
        }
    }
    put(&mut request, rta::IP_PROTO, &[libc::IPPROTO_UDP as u8]);
    put(&mut request, rta::SPORT, &flow.source.port().to_be_bytes());
    put(&mut request, rta::DPORT, &flow.destination.port().to_be_bytes());
    request
}

fn put_address(request: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put(request, kind, &address.octets()),
        IpAddr::V6(address) => put(request, kind, &address.octets()),
    }
}

/// Appends an attribute, padded to a multiple of 4 bytes.
fn put(request: &mut Vec<u8>, kind: u16, value: &[u8]) {
    request.extend((4 + value.len() as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
}

fn metric_mtu(attributes: &[u8]) -> Option<u32> {
    attribute(attribute(attributes, rta::METRICS)?, METRIC_MTU).and_then(number).filter(|mtu| *mtu != 0)
}

/// Returns the interface's MTU for IPv6, which a router or the sysctl `net.ipv6.conf.*.mtu` may lower.
fn ipv6_mtu(link: &[u8]) -> Option<u32> {
    let settings = attribute(attribute(attribute(link, LINK_FAMILIES)?, libc::AF_INET6 as u16)?, IPV6_SETTINGS)?;
    settings.as_chunks().0.get(IPV6_MTU_SETTING).map(|mtu| u32::from_ne_bytes(*mtu)).filter(|mtu| *mtu != 0)
}

/// Returns the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which are not part of the kind.
    const FLAGS: u16 = 0xc000;
    loop {
        let (&[l0, l1, k0, k1], _) = attributes.split_first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([k0, k1]) & !FLAGS == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's reply about a route lacks a field or is cut off")
}

#[cfg(test)]
mod tests;
