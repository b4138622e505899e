//! Path MTU at the socket: queries to the kernel, reports of routers, and the discovery mode in which a batch is
//! sent.
//!
//! The kernel believes an ICMP error "fragmentation needed" that quotes the addresses and ports of a socket, whether
//! or not such a datagram was sent, and then refuses longer ones (EMSGSIZE) for ten minutes. The settings of
//! `IP_MTU_DISCOVER` were tried with routers that quote 28, 548 and more bytes, and with forged reports:
//!
//! - `IP_PMTUDISC_PROBE` for everything ignores forged reports, but also the MTU of a route (`ip route … mtu 1300`).
//!   Every peer would have to be asked for before the first packet, and again whenever routes change.
//! - `IP_RECVERR` hands over the error, but not the outer headers that were quoted: from routers that quote 28 bytes
//!   it is empty. It also makes the error of one peer fail the next send to another one.
//! - `IP_PMTUDISC_DO` costs nothing while no report is forged, and it notices every change of a route at once. After
//!   a refusal a route query distinguishes a configured MTU from a learned one. A raw ICMP socket receives the whole
//!   report, which can be verified.
//!
//! So the sockets have `DO`. Datagrams to a peer about which the kernel believes an unverified report are sent with
//! `PROBE`: the option is set for that call alone, and only while there is such a report.
//!
//! All of it holds for IPv6 too (`IPV6_MTU_DISCOVER`, ICMPv6 "packet too big"), with two differences. The kernel learns
//! no MTU below 1280 (`__ip6_rt_update_pmtu` in net/ipv6/route.c). And routers do not fragment, so that
//! [`PathMode::Fragment`] is [`PathMode::Probe`].

use alloc::vec::Vec;
use core::ffi::c_int;
use core::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::fs::File;
use std::io::{self, Read};
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{OnceLock, PoisonError};

use super::{Messages, PathReports, UdpTransport, send_all};
use crate::Transmit;
use crate::forward::{PathMode, SystemPath};
use crate::sys::feature::{Disabled, Feature};
use crate::sys::kernel::SystemCalls;
use crate::sys::route_query::{FlowKey, RouteMtu, RouteSocket};
use crate::sys::syscall::{self, SocketOption, SpecialSocket};
use crate::sys::udp::error::BatchError;
use crate::wire::DatagramTooBig;

/// The length in bytes of the longest report that is read: what routers may quote of a jumbo frame.
const REPORT_MAX: usize = 9216;

/// The most ICMP messages that are read at a time: as many as the socket holds.
const REPORTS_AT_ONCE: usize = 256;

/// The sockets beside the UDP socket. One that a sandbox refuses is absent.
#[derive(Debug, Default)]
pub(super) struct PathSockets {
    /// A raw socket for ICMP errors of type 3 to this host.
    reports: Option<File>,
    /// A raw socket for ICMPv6 errors of type 2 to this host.
    reports_v6: Option<File>,
    routes: Option<RouteSocket>,
    /// The flow ports, stored so that a flood of reports costs no system calls for them.
    flow_ports: OnceLock<Vec<u16>>,
}

impl PathSockets {
    /// Opens the sockets for reports of the families that the UDP socket sends: one on `[::]` may send both.
    pub(super) fn open(local: SocketAddr, wanted: PathReports, disabled: &Disabled) -> Self {
        let (v4, v6) = match (local, local.ip().to_canonical()) {
            (_, IpAddr::V4(address)) => (Some(address), None),
            (SocketAddr::V6(local), _) => (local.ip().is_unspecified().then_some(Ipv4Addr::UNSPECIFIED), Some(local)),
            (SocketAddr::V4(_), IpAddr::V6(_)) => (None, None),
        };
        let is_wanted = wanted == PathReports::Verified;
        let reports = v4.filter(|_| is_wanted).map(open_reports);
        let reports_v6 = v6.filter(|_| is_wanted).map(open_reports_v6);
        let routes = RouteSocket::open();
        let has = |reports: &Option<io::Result<OwnedFd>>| reports.as_ref().is_none_or(Result::is_ok);
        disabled.add_unless(has(&reports) && has(&reports_v6), Feature::PathReports);
        disabled.add_unless(routes.is_ok(), Feature::RouteQueries);
        let file = |reports: Option<io::Result<OwnedFd>>| reports.and_then(Result::ok).map(File::from);
        let (reports, reports_v6) = (file(reports), file(reports_v6));
        Self { reports, reports_v6, routes: routes.ok(), flow_ports: OnceLock::new() }
    }
}

fn open_reports(address: Ipv4Addr) -> io::Result<OwnedFd> {
    const DESTINATION_UNREACHABLE: c_int = 3;
    let socket = syscall::special_socket(SpecialSocket::Icmp)?;
    syscall::set_socket_option(socket.as_fd(), SocketOption::IcmpFilter, !(1 << DESTINATION_UNREACHABLE))?;
    syscall::bind(socket.as_fd(), SocketAddr::from((address, 0)))?;
    Ok(socket)
}

fn open_reports_v6(mut address: SocketAddrV6) -> io::Result<OwnedFd> {
    const PACKET_TOO_BIG: u32 = 2;
    /// `ICMPV6_FILTER` in linux/icmpv6.h: struct `icmp6_filter` has a bit for each type that is filtered.
    const ICMPV6_FILTER: c_int = 1;
    let mut filter = [0xff; 32];
    if let Some(types) = filter.first_chunk_mut() {
        *types = (!(1_u32 << PACKET_TOO_BIG)).to_ne_bytes();
    }
    let socket = syscall::special_socket(SpecialSocket::Icmpv6)?;
    syscall::set_raw_option(socket.as_fd(), libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &filter)?;
    address.set_port(0);
    syscall::bind(socket.as_fd(), address.into())?;
    Ok(socket)
}

impl UdpTransport {
    /// Sends as [`send_batch`](Self::send_batch) does, to peers whose paths have this
    /// [`mode`](crate::forward::PathMtus::mode). Over IPv6 [`PathMode::Fragment`] is [`PathMode::Probe`], because IPv6
    /// routers do not fragment, and every path carries 1280 bytes.
    ///
    /// # Errors
    /// Returns the errors of [`send_batch`](Self::send_batch).
    #[inline]
    pub fn send_batch_in(
        &self,
        mode: PathMode,
        transmits: &[Transmit<'_>],
        first_segment: usize,
    ) -> Result<(), BatchError> {
        if mode == PathMode::System {
            return self.send_batch(transmits, first_segment);
        }
        let moved = self.moved();
        let plan = self.plan(&moved);
        send_all(|socket, messages| self.send_overruling(mode, socket, messages), plan, transmits, first_segment)
    }

    /// Sends messages while the kernel ignores the path MTU that it learned.
    #[cold]
    fn send_overruling(&self, mode: PathMode, socket: usize, messages: &mut Messages<'_, '_>) -> io::Result<usize> {
        const SYSTEM: (c_int, c_int) = (libc::IP_PMTUDISC_DO, libc::IPV6_PMTUDISC_DO);
        let values = match mode {
            PathMode::System => SYSTEM,
            PathMode::Probe => (libc::IP_PMTUDISC_PROBE, libc::IPV6_PMTUDISC_PROBE),
            PathMode::Fragment => (libc::IP_PMTUDISC_OMIT, libc::IPV6_PMTUDISC_PROBE),
        };
        // Other queues send by the same sockets. One that sends in the usual mode meanwhile may send a datagram that
        // its path refuses, and gets the report of it as before.
        let _alone = self.overruling.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = self.sender(socket).as_fd();
        let set = |(ipv4, ipv6)| {
            syscall::set_socket_option(sender, SocketOption::Ipv4MtuDiscover, ipv4)?;
            // An IPv6 socket may send IPv4 too, by the IPv4 options. A lane for IPv4 sends nothing else.
            if self.local.is_ipv6() {
                syscall::set_socket_option(sender, SocketOption::Ipv6MtuDiscover, ipv6)
            } else {
                Ok(())
            }
        };
        // A sandbox may refuse it. Then the kernel refuses again what is too long for it.
        let _ = set(values);
        let sent = self.send_messages(socket, messages);
        // It cannot fail where it worked before, and the caller needs the number that was sent.
        let _ = set(SYSTEM);
        sent
    }

    /// Returns what the kernel knows of the path that the datagrams of a [flow](Transmit::flow) take, for
    /// [`PathMtus::handle_emsgsize`](crate::forward::PathMtus::handle_emsgsize).
    ///
    /// The route is asked for with the flow's own port and with the mark and interface of its socket, so that rules
    /// by these are obeyed (`ip rule … ipproto udp sport 8285`). It takes a few system calls.
    #[cold]
    #[must_use]
    pub fn system_path(&self, destination: SocketAddr, flow: u16) -> SystemPath {
        let PathSockets { reports, reports_v6, .. } = &self.path_sockets;
        let is_ipv4 = destination.ip().to_canonical().is_ipv4();
        let has_reports = if is_ipv4 { reports.is_some() } else { reports_v6.is_some() };
        let sender = self.shared_socket(self.plan(&None).port_of(flow));
        let option = |option| syscall::socket_option(sender.as_fd(), option).map_or(0, c_int::cast_unsigned);
        // The interface of a link-local next hop.
        let scope = match destination {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(destination) => destination.scope_id(),
        };
        let flow = FlowKey {
            source: sender.local_addr().unwrap_or(self.local),
            destination,
            mark: option(SocketOption::Mark),
            interface: Some(option(SocketOption::BoundInterface)).filter(|index| *index != 0).unwrap_or(scope),
        };
        let route = self.calls.route_mtu(self.path_sockets.routes.as_ref(), &flow).ok();
        known_path(route, || self.path_mtu(destination).ok(), has_reports)
    }

    /// Reads the reports that routers sent about datagrams from the transport's ports, up to 256 of each family, for
    /// [`PathMtus::handle_icmp`](crate::forward::PathMtus::handle_icmp). Does nothing without a raw ICMP socket
    /// ([`PathReports`]).
    ///
    /// Call it after [`SendErrorKind::TooLong`](super::SendErrorKind::TooLong), and every 10 ms at most while
    /// some path is not in [`PathMode::System`]. No file descriptor has to be waited for.
    #[cold]
    pub fn receive_reports(&self, mut handle: impl FnMut(&DatagramTooBig)) {
        let PathSockets { reports, reports_v6, .. } = &self.path_sockets;
        if let Some(socket) = reports {
            self.read_reports(socket, DatagramTooBig::parse, &mut handle);
        }
        if let Some(socket) = reports_v6 {
            self.read_reports(socket, DatagramTooBig::parse_icmpv6, &mut handle);
        }
    }

    fn read_reports(
        &self,
        mut socket: &File,
        parse: fn(&[u8]) -> Option<DatagramTooBig>,
        handle: &mut impl FnMut(&DatagramTooBig),
    ) {
        let mut buffer = [0; REPORT_MAX];
        for _ in 0..REPORTS_AT_ONCE {
            match socket.read(&mut buffer) {
                Ok(len) => {
                    let report = buffer.get(..len).and_then(parse);
                    if let Some(report) = report.filter(|report| self.has_port(report.source.port())) {
                        handle(&report);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Returns `true` if the transport sends from this port.
    fn has_port(&self, port: u16) -> bool {
        let port_of = |socket: &UdpSocket| socket.local_addr().ok().map(|local| local.port());
        let ports = || self.path_sockets.flow_ports.get_or_init(|| self.flows.iter().filter_map(port_of).collect());
        self.local.port() == port || ports().contains(&port)
    }
}

/// The least MTU in bytes that is taken for a configured one from another socket's path, which may have been forged.
const LOCAL_MIN: u32 = 1280;

/// Combines the answer to a route query with the MTU that another socket has to the same destination. That socket may
/// be on another route, but it alone shows the room that IPsec takes (`xfrm_mtu` in net/xfrm/xfrm_policy.c).
fn known_path(route: Option<RouteMtu>, elsewhere: impl Fn() -> Option<u32>, has_reports: bool) -> SystemPath {
    match route {
        // Routers quote the datagram as IPsec encrypted it, so that no report matches one of ours.
        Some(RouteMtu { configured, learned: Some(learned) }) => match elsewhere().filter(|mtu| *mtu < learned) {
            Some(within) => SystemPath { configured: Some(configured), learned: Some(within), has_reports: false },
            None => SystemPath { configured: Some(configured), learned: Some(learned), has_reports },
        },
        // Less is not the room that IPsec takes, but an MTU that the kernel learned while the route was asked for.
        Some(RouteMtu { configured, learned: None }) => match elsewhere().filter(|mtu| *mtu < configured) {
            Some(learned) if learned < LOCAL_MIN => {
                SystemPath { configured: Some(configured), learned: Some(learned), has_reports }
            }
            less => SystemPath { configured: less.or(Some(configured)), learned: None, has_reports },
        },
        None => SystemPath { configured: None, learned: elsewhere(), has_reports },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r54_reports_count_for_nothing_where_ipsec_hides_the_datagrams() {
        let known = |learned, elsewhere| known_path(Some(RouteMtu { configured: 1500, learned }), || elsewhere, true);
        let path = |configured, learned, has_reports| SystemPath { configured: Some(configured), learned, has_reports };
        assert_eq!(known(Some(1400), Some(1400)), path(1500, Some(1400), true));
        assert_eq!(known(Some(1400), Some(1342)), path(1500, Some(1342), false));
        assert_eq!(known(Some(1400), None), path(1500, Some(1400), true));
        assert_eq!(known(None, Some(1442)), path(1442, None, true));
        assert_eq!(known(None, Some(1500)), path(1500, None, true));
        assert_eq!(known(None, Some(1280)), path(1280, None, true));
        assert_eq!(known(None, Some(552)), path(1500, Some(552), true), "another socket's path may be forged");
        let unknown = known_path(None, || Some(1400), true);
        assert_eq!(unknown, SystemPath { configured: None, learned: Some(1400), has_reports: true });
    }
}
