//! The route that one flow takes, and the MTU that is configured for it, asked of the kernel (rtnetlink(7)).

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use super::syscall::{self, SpecialSocket};

/// The fields that the kernel chooses a route by.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowKey {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// `SO_MARK`, or 0.
    pub(super) mark: u32,
    /// Index of the interface that the socket is bound to, or 0.
    pub(super) interface: u32,
}

/// MTUs of a route, in bytes of outer packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouteMtu {
    /// The route's own, or its interface's if that is less or there is none.
    pub(super) configured: u32,
    /// Another one that the kernel learned from an ICMP error and that expires.
    pub(super) learned: Option<u32>,
}

/// A netlink socket in the network namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub(super) struct RouteSocket(Mutex<Exchange>);

#[derive(Debug)]
struct Exchange {
    socket: File,
    sequence: u32,
}

/// Room for an answer about one route or one interface.
const ANSWER_MAX: usize = 16 << 10;

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
    // Linux 4.17; older kernels, which have no rules by ports, pass over them.
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
/// `RTM_F_FIB_MATCH`: the entry of the table, without what was learned.
const FIB_MATCH: u32 = 0x2000;
/// Sizes of struct `rtmsg` and `ifinfomsg`.
const ROUTE_HEADER: usize = 12;
const LINK_HEADER: usize = 16;

impl RouteSocket {
    pub(super) fn open() -> io::Result<Self> {
        let socket = File::from(syscall::special_socket(SpecialSocket::Route)?);
        Ok(Self(Mutex::new(Exchange { socket, sequence: 0 })))
    }

    pub(super) fn ask(&self, flow: &FlowKey) -> io::Result<RouteMtu> {
        let mut exchange = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let resolved = exchange.ask(libc::RTM_GETROUTE, &route_request(flow, 0))?;
        let attributes = resolved.get(ROUTE_HEADER..).unwrap_or_default();
        let expires = attribute(attributes, rta::CACHEINFO).and_then(|info| number(info.get(EXPIRES)?));
        let learned = metric_mtu(attributes).filter(|_| expires.is_some_and(|expires| expires != 0));
        let metric = match learned {
            None => metric_mtu(attributes),
            Some(_) => {
                let entry = exchange.ask(libc::RTM_GETROUTE, &route_request(flow, FIB_MATCH))?;
                metric_mtu(entry.get(ROUTE_HEADER..).unwrap_or_default())
            }
        };
        let interface = attribute(attributes, rta::OIF).and_then(number).ok_or_else(malformed)?;
        let mut request = [0; LINK_HEADER];
        if let Some(index) = request.get_mut(4..8) {
            index.copy_from_slice(&interface.to_ne_bytes());
        }
        let link = exchange.ask(libc::RTM_GETLINK, &request)?;
        let device = attribute(link.get(LINK_HEADER..).unwrap_or_default(), LINK_MTU).and_then(number);
        let configured = [metric, device].into_iter().flatten().min().ok_or_else(malformed)?;
        Ok(RouteMtu { configured, learned })
    }
}

impl Exchange {
    /// Sends a request and returns the body of the answer.
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
        // The answer is there when the call returns. What is left of a request that failed has another number.
        let mut answer = alloc::vec![0; ANSWER_MAX];
        loop {
            let len = self.socket.read(&mut answer)?;
            if let Some(body) = body_of(answer.get(..len).unwrap_or_default(), self.sequence)? {
                return Ok(body.to_vec());
            }
        }
    }
}

/// The body of an answer, unless it is to another request.
fn body_of(answer: &[u8], sequence: u32) -> io::Result<Option<&[u8]>> {
    let field = |at| number(answer.get(at)?);
    let len = field(header::LENGTH).ok_or_else(malformed)? as usize;
    if field(header::SEQUENCE) != Some(sequence) {
        return Ok(None);
    }
    let body = answer.get(header::END..len).ok_or_else(malformed)?;
    let kind = answer.get(header::KIND).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
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

/// The first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`, which are no part of the kind.
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
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer about a route lacks a field or is cut off")
}

#[cfg(test)]
mod tests;
