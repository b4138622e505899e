//! The UDP socket on the underlay.

mod bind;
mod error;
mod fallback;
mod header;
mod lanes;
mod path;
mod receive;
mod send;
mod take_over;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::c_int;
use core::iter;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::num::NonZeroUsize;
use core::slice;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Mutex;
use std::time::Instant;

use self::bind::Binding;
pub use self::error::{BatchError, BindError, RecvError, SendError, SendErrorKind};
use self::fallback::Fallbacks;
pub use self::header::{RecvHeader, SendHeader};
use self::lanes::{LANES_MAX, Lanes, Meter, MoveOutcome, Moved, is_crowded, is_filling};
use self::path::PathSockets;
use self::receive::skip_pending;
pub use self::receive::{RecvBatch, RecvMeta};
use self::send::{Messages, Plan, send_all};
pub use self::take_over::TakeOverError;
use self::take_over::take_over;
use super::feature::{Disabled, Feature, is_missing};
use super::kernel::{Calls, SystemCalls};
use super::syscall::{self, MESSAGES, Slot, SocketOption};
use crate::Transmit;

/// The settings of a UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpConfig {
    /// The size in bytes of the buffer for datagrams that the program has not received yet. The kernel's overhead of
    /// some hundred bytes per packet counts. `None`: the system's default.
    ///
    /// It is a request: without `CAP_NET_ADMIN` the kernel grants no more than the sysctl `net.core.rmem_max`.
    pub receive_buffer: Option<usize>,
    /// The size in bytes of the buffer for datagrams that are not on the wire yet. The kernel's overhead counts.
    /// `None`: the system's default. It is a request too, limited by `net.core.wmem_max`. Each lane for a peer with a
    /// slow path has a buffer of the same size: see [`UdpTransport`].
    pub send_buffer: Option<usize>,
    /// The directions in which GSO and GRO batches are requested.
    pub offload: UdpOffload,
    /// The number of source ports to send from, by [`Transmit::flow`]. 0: the port that the socket is bound to, as
    /// flannel does.
    ///
    /// Each costs a socket, whose port the kernel chooses. Routers and network cards that spread packets by their
    /// ports then spread the flows of one peer. The program receives nothing on them: peers answer to the port they
    /// know.
    pub flow_ports: u16,
    /// The verification of routers' reports that a datagram was too big.
    pub path_reports: PathReports,
}

/// The verification of ICMP errors "fragmentation needed", and of ICMPv6 errors "packet too big", before they lower a path
/// MTU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathReports {
    /// A raw ICMP socket is opened beside the UDP socket, and [`PathMtus`](crate::forward::PathMtus) verifies the
    /// reports. It needs `CAP_NET_RAW`. Without that, the kernel verifies them, as with
    /// [`KernelOnly`](Self::KernelOnly).
    #[default]
    Verified,
    /// The kernel verifies that the quoted ports are those of the socket, and nothing else. A report lowers a path to
    /// 1280 bytes at most. Datagrams on a path that is reported to be narrower are sent without DF.
    KernelOnly,
}

impl UdpConfig {
    /// Sets the size in bytes of the receive buffer; `None` for the system's default.
    #[must_use]
    pub fn with_receive_buffer(self, receive_buffer: impl Into<Option<usize>>) -> Self {
        Self { receive_buffer: receive_buffer.into(), ..self }
    }

    /// Sets the size in bytes of the send buffer; `None` for the system's default.
    #[must_use]
    pub fn with_send_buffer(self, send_buffer: impl Into<Option<usize>>) -> Self {
        Self { send_buffer: send_buffer.into(), ..self }
    }

    /// Sets the directions in which GSO and GRO batches are requested.
    #[must_use]
    pub fn with_offload(self, offload: UdpOffload) -> Self {
        Self { offload, ..self }
    }

    /// Sets the number of source ports to send from; 0 for the bound port alone.
    #[must_use]
    pub fn with_flow_ports(self, flow_ports: u16) -> Self {
        Self { flow_ports, ..self }
    }

    /// Sets the verification of routers' reports.
    #[must_use]
    pub fn with_path_reports(self, path_reports: PathReports) -> Self {
        Self { path_reports, ..self }
    }
}

impl Default for UdpConfig {
    /// Returns settings with buffers of 4 MiB each, GSO and GRO, and one source port. 4 MiB hold 1,500-byte packets
    /// at 10 Gbit/s for about 2 ms, for which a busy scheduler may delay a thread.
    fn default() -> Self {
        Self {
            receive_buffer: Some(4 << 20),
            send_buffer: Some(4 << 20),
            offload: UdpOffload::ALL,
            flow_ports: 0,
            path_reports: PathReports::Verified,
        }
    }
}

/// The directions in which the kernel and the program pass equally long datagrams to each other in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpOffload {
    /// GSO batches on sending (`UDP_SEGMENT` in udp(7), Linux 4.18).
    pub gso: bool,
    /// GRO batches on receiving (`UDP_GRO` in udp(7), Linux 5.0). They need buffers of 64 KiB.
    pub gro: bool,
}

impl UdpOffload {
    /// Both directions.
    pub const ALL: Self = Self { gso: true, gro: true };
    /// No batches.
    pub const NONE: Self = Self { gso: false, gro: false };
}

impl Default for UdpOffload {
    /// Returns [`UdpOffload::ALL`].
    fn default() -> Self {
        Self::ALL
    }
}

/// A UDP socket for the packets to and from all peers.
///
/// It is for one IP family, the family of its address. A host that reaches peers over both has two.
///
/// It never blocks: wait for its file descriptor ([`AsFd`]) to become ready. The outer packets carry DF and a
/// checksum, and this host never fragments them. A packet that does not fit is [`SendErrorKind::TooLong`]. The
/// exception is [`send_batch_in`](Self::send_batch_in) with
/// [`PathMode::Fragment`](crate::forward::PathMode::Fragment).
///
/// Beside the UDP socket it holds a netlink socket for route queries and a raw socket for ICMP errors
/// ([`PathReports`]). Each is absent where the process is not permitted to open it.
///
/// # Peers with slow paths
/// Linux charges a datagram to the send buffer of its socket until the network device has sent it. A peer behind a
/// slow interface would fill the buffer, and nothing could be sent to the others. Such a peer therefore gets a
/// *lane*: a socket on the same address and port that only sends, with a send buffer of its own.
///
/// - At most eight peers have a lane at once. Datagrams to further peers that fill the shared buffer are refused
///   while it is a quarter full.
/// - [`SendErrorKind::PathFull`] concerns the peer of that datagram alone. Send to the other peers, and try this one
///   again after a millisecond or so: no file descriptor becomes ready for it.
/// - With [`flow_ports`](UdpConfig::flow_ports) a lane has a socket for each port, so that each flow keeps its source
///   port.
/// - A lane receives nothing. It is made when it is first needed, by the user who made the socket, in the network
///   namespace of the socket. [`Feature::SendLanes`] is disabled where it cannot be made, for example because the
///   kernel has no IPv6 (`ipv6.disable=1`). An IPv6 socket that shares its port with other queues has lanes from Linux
///   5.1 on, unless it is bound to an interface and the process lacks `CAP_NET_RAW`.
/// - The lane has the options that the socket has at that moment (`SO_MARK`, `SO_BINDTODEVICE`, `IP_TOS` and others).
#[derive(Debug)]
pub struct UdpTransport {
    socket: UdpSocket,
    local: SocketAddr,
    offload: UdpOffload,
    /// The sockets of the flow ports, if any.
    flows: Arc<[UdpSocket]>,
    /// Held while the path MTU discovery mode of a socket is changed. Transports that share flow ports share it.
    overruling: Arc<Mutex<()>>,
    /// The lanes of peers that fill the sockets above. Transports of one port share them.
    lanes: Arc<Lanes>,
    meter: Meter,
    path_sockets: PathSockets,
    fallbacks: Fallbacks,
    disabled: Disabled,
    calls: Calls,
}

impl UdpTransport {
    /// Creates a socket and binds it to an address of this host. With port 0 the kernel chooses one:
    /// [`UdpTransport::local_addr`].
    ///
    /// A socket on a wildcard address receives on all addresses, but the kernel chooses the source address, and peers
    /// may not know it. A socket on an IPv6 address, also on `[::]`, neither receives nor sends IPv4 (`IPV6_V6ONLY`). Bind
    /// one for each family. An IPv4-mapped address counts as the IPv4 address.
    ///
    /// While a lane is made ([Peers with slow paths](Self#peers-with-slow-paths)), the socket has `SO_REUSEPORT` for a moment.
    /// Another process of the same user that asks for it again and again can bind to the address then, and gets a share.
    ///
    /// # Errors
    /// Returns [`BindError`]. No socket is left open then.
    pub fn bind(address: SocketAddr, config: &UdpConfig) -> Result<Self, BindError> {
        Binding::new(address, config).alone()
    }

    /// Creates several sockets on the same address and port, one for each thread of a program. The kernel assigns
    /// each sender to one of them by a hash of addresses and ports (`SO_REUSEPORT` in socket(7)), so that its
    /// datagrams stay in order.
    ///
    /// The sockets share their [`flow_ports`](UdpConfig::flow_ports), so that a flow keeps its port whichever of them
    /// sends it. With more than one socket, another process of the same user can bind to the address with
    /// `SO_REUSEPORT` and gets a share of the datagrams. A second program that uses this function cannot.
    ///
    /// # Errors
    /// Returns [`BindError`]. No socket is left open then.
    pub fn bind_queues(address: SocketAddr, config: &UdpConfig, queues: NonZeroUsize) -> Result<Vec<Self>, BindError> {
        Binding::new(address, config).queues(queues)
    }

    /// Takes over a bound socket that systemd or a privileged parent passes on.
    ///
    /// Its options become those of a socket that [`UdpTransport::bind`] creates:
    ///
    /// | options | result |
    /// | --- | --- |
    /// | `O_NONBLOCK`, `IP_MTU_DISCOVER`, `IP_RECVERR`, `SO_NO_CHECK`, `IP_RECVTOS`, `UDP_GRO`, and those of IPv6 | set |
    /// | `IP_TOS`, `IP_TTL`, `IP_OPTIONS`; `IPV6_TCLASS`, `IPV6_UNICAST_HOPS`, sticky headers, `IPV6_PKTINFO`, `IPV6_MTU`, `IPV6_DONTFRAG` | reset: the transport sets what packets carry |
    /// | `UDP_SEGMENT`, `UDP_CORK`, `UDP_ENCAP`, `UDP_NO_CHECK6_TX`, `UDP_NO_CHECK6_RX` | reset: one datagram in is one datagram out, with a checksum |
    /// | `SO_TIMESTAMP` and its kin, `SO_RXQ_OVFL`, `SO_WIFI_STATUS`, `SO_RCVMARK`, `SO_RCVPRIORITY`; `IP_PKTINFO`, `IP_RECVTTL`, `IP_RECVOPTS`, `IP_RETOPTS`, `IP_PASSSEC`, `IP_CHECKSUM`, `IP_RECVORIGDSTADDR`, `IP_RECVFRAGSIZE`, and those of IPv6 | reset: the buffer has no room for more control messages |
    /// | `SO_ATTACH_FILTER` | detached: a filter may cut datagrams |
    /// | `SO_BROADCAST`, `SO_DONTROUTE`, `SO_PEEK_OFF`, `SO_RCVLOWAT`, `SO_SELECT_ERR_QUEUE` | reset |
    /// | `SO_BINDTODEVICE`, `SO_MARK`, `SO_PRIORITY`, `SO_RCVBUF`, `SO_SNDBUF`, `SO_REUSEPORT` and its program, `SO_REUSEADDR`, `SO_MAX_PACING_RATE`, `SO_BUSY_POLL`, `IP_FREEBIND`, `IP_TRANSPARENT`, `IP_UNICAST_IF`, `IPV6_V6ONLY`, multicast memberships | kept: they select the packets of the socket and their route |
    /// | `SO_RCVTIMEO`, `SO_SNDTIMEO`, `SO_LINGER`, `IP_HDRINCL`, `IP_MULTICAST_TTL` and others for TCP, multicast or raw sockets | no effect |
    ///
    /// `IP_RECVERR` reports the errors of earlier packets, so that a dead peer would cost healthy peers packets. The
    /// transport has no flow ports. Its reports are [`PathReports::Verified`], if this process may open a raw socket.
    ///
    /// # Errors
    /// Returns [`TakeOverError`] for a socket that is connected, not bound or not one of UDP, or that has an option
    /// that cannot be reset. The socket is closed then.
    pub fn from_socket(socket: UdpSocket, offload: UdpOffload) -> Result<Self, TakeOverError> {
        take_over(&socket)?;
        Ok(Self::configured(socket, offload, PathReports::default())?)
    }

    /// Sets the options that differ from those of a new socket.
    fn configured(socket: UdpSocket, offload: UdpOffload, path_reports: PathReports) -> io::Result<Self> {
        let local = socket.local_addr()?;
        socket.set_nonblocking(true)?;
        set_sending_options(&socket, local)?;
        let set = |option, value| syscall::set_socket_option(socket.as_fd(), option, value);
        // Measured: 0.1 µs for each message, for a datagram as for a batch. An IPv6 socket receives IPv4 too, by its
        // options.
        let mut ecn = set(SocketOption::Ipv4ReceiveTos, 1);
        if local.is_ipv6() {
            ecn = ecn.and(set(SocketOption::Ipv6ReceiveTrafficClass, 1));
        }
        // A kernel that does not know them returns ENOPROTOOPT.
        let gso = set(SocketOption::UdpSegment, 0).is_ok();
        let gro = set(SocketOption::UdpGro, c_int::from(offload.gro)).is_ok();
        let disabled = Disabled::default();
        disabled.add_unless(ecn.is_ok(), Feature::ReceiveEcn);
        disabled.add_unless(gro || !offload.gro, Feature::UdpGro);
        disabled.add_unless(gso || !offload.gso, Feature::UdpGso);
        let offload = UdpOffload { gso: gso && offload.gso, gro: gro && offload.gro };
        let (flows, fallbacks, calls) = (Arc::new([]), Fallbacks::default(), Calls::default());
        let (overruling, path_sockets) = (Arc::default(), PathSockets::open(local, path_reports, &disabled));
        let (lanes, meter) = (Arc::new(Lanes::new(0)), Meter::default());
        Ok(Self { socket, local, offload, flows, overruling, lanes, meter, path_sockets, fallbacks, disabled, calls })
    }

    /// Returns the address that the socket is bound to, with the port that the kernel chose for port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Returns the offloads in use: those that were requested and that the kernel has.
    #[must_use]
    pub fn offload(&self) -> UdpOffload {
        self.offload
    }

    /// Returns the number of GSO batches that the kernel refused although it accepted their datagrams one by one. The
    /// destination then gets no batches until [`UdpTransport::retry_gso`], as long as it is among the 1,024 that are
    /// remembered.
    #[must_use]
    pub fn gso_fallbacks(&self) -> u64 {
        self.fallbacks.count()
    }

    /// Enables GSO batches again for destinations that refused one: after a minute at first, and after twice the time
    /// with each further refusal, up to an hour. Call it with the time before sending. A refusal counts from the next
    /// call.
    ///
    /// Once a second it also checks the lanes. A peer whose lane was empty at two checks uses the shared socket
    /// again.
    #[inline]
    pub fn retry_gso(&self, now: Instant) {
        self.fallbacks.expire(now);
        self.lanes.release(now, &self.calls);
        self.meter.age(now);
    }

    /// Returns the features that the kernel lacks, or that it refused at their first use.
    pub fn disabled(&self) -> impl Iterator<Item = Feature> {
        self.disabled.iter()
    }

    /// Sends every datagram of a transmit, in order.
    ///
    /// # Errors
    /// Returns the error of the first datagram that was not sent. Continue with [`UdpTransport::send_from`].
    pub fn send(&self, transmit: &Transmit<'_>) -> Result<(), SendError> {
        self.send_from(transmit, 0)
    }

    /// Sends the datagrams of a transmit from number `first_segment` on, counted from 0. Sends nothing if there are
    /// fewer.
    ///
    /// After a [`SendError`] `e`, continue at `e.segment + 1`, which drops that datagram. To try it again, continue
    /// at `e.segment`: once the socket is writable for [`SendErrorKind::WouldBlock`], a little later for
    /// [`SendErrorKind::PathFull`].
    ///
    /// # Errors
    /// Returns the error of the first datagram that was not sent.
    pub fn send_from(&self, transmit: &Transmit<'_>, first_segment: usize) -> Result<(), SendError> {
        self.send_batch(slice::from_ref(transmit), first_segment)
            .map_err(|BatchError { segment, kind, .. }| SendError { segment, kind })
    }

    /// Sends the datagrams of several transmits, in order, up to 32 GSO batches or datagrams in one system call
    /// (sendmmsg(2)). Of the first transmit it sends those from number `first_segment` on.
    ///
    /// The datagrams of a GSO batch that the kernel refuses are sent one by one at once.
    ///
    /// # Errors
    /// Returns the error of the first datagram that was not sent. [`BatchError`] describes how to continue. The
    /// waiting times are those of [`UdpTransport::send_from`].
    pub fn send_batch(&self, transmits: &[Transmit<'_>], first_segment: usize) -> Result<(), BatchError> {
        let moved = self.moved();
        send_all(|socket, messages| self.send_messages(socket, messages), self.plan(&moved), transmits, first_segment)
    }

    /// The peers that have moved, if any, and those that are limited for lack of room.
    #[inline]
    fn moved(&self) -> Option<Moved> {
        let mut moved = self.lanes.moved()?;
        if moved.is_full() {
            self.meter.limit_suspects(&mut moved);
        }
        Some(moved)
    }

    #[inline]
    fn plan<'p>(&'p self, moved: &'p Option<Moved>) -> Plan<'p> {
        let (gso, flows, moved) = (self.offload.gso, self.flows.len(), moved.as_ref().unwrap_or(&Moved::NONE));
        Plan { gso, flows, moved, fallbacks: &self.fallbacks, disabled: &self.disabled }
    }

    /// Receives the next datagram or GRO batch into the beginning of `buffer`.
    ///
    /// 65,536 bytes are always enough. With [`UdpOffload::gro`] a smaller buffer is too small even for short
    /// datagrams: a GRO batch that does not fit is lost. [`RecvMeta::datagrams_mut`] divides a batch into its
    /// datagrams.
    ///
    /// # Errors
    /// Returns [`RecvError::WouldBlock`] when there is none, and an error with [`RecvError::is_fatal`] when the
    /// socket is closed. Errors of packets sent earlier (refused, unreachable) are not returned.
    pub fn recv(&self, buffer: &mut [u8]) -> Result<RecvMeta, RecvError> {
        let room = buffer.len();
        let mut slot = Slot::EMPTY;
        skip_pending(|| {
            let slots = slice::from_mut(&mut slot);
            self.calls.receive::<1>(self.socket.as_fd(), slots, iter::once(&mut *buffer))
        })?;
        RecvMeta::new(&slot, room)
    }

    /// Receives as many datagrams or GRO batches as there are and the batch has room for, in one system call
    /// (recvmmsg(2)). Returns their number, which is at least one.
    ///
    /// # Errors
    /// Returns the errors of [`UdpTransport::recv`], and the batch is empty then. The batch itself returns an error
    /// of one message.
    pub fn recv_batch(&self, batch: &mut RecvBatch) -> Result<usize, RecvError> {
        batch.fill(|slots, bytes, room| {
            let most = if self.disabled.has(Feature::ReceiveMany) { 1 } else { slots.len() };
            let slots = slots.get_mut(..most).unwrap_or_default();
            skip_pending(|| {
                let (socket, buffers) = (self.socket.as_fd(), bytes.chunks_exact_mut(room));
                match slots.len() {
                    1 => self.calls.receive::<1>(socket, slots, buffers),
                    2..=16 => self.calls.receive::<16>(socket, slots, buffers),
                    _ => self.calls.receive::<MESSAGES>(socket, slots, buffers),
                }
                .or_else(|error| self.receive_one(error, slots, bytes, room))
            })
        })
    }

    /// Receives a single message where the system call for several is missing.
    #[cold]
    fn receive_one(&self, error: io::Error, slots: &mut [Slot], bytes: &mut [u8], room: usize) -> io::Result<usize> {
        let (true, Some(slots)) = (slots.len() > 1 && is_missing(&error), slots.get_mut(..1)) else {
            return Err(error);
        };
        let one = self.calls.receive::<1>(self.socket.as_fd(), slots, bytes.chunks_exact_mut(room));
        if one.as_ref().err().and_then(io::Error::raw_os_error) != error.raw_os_error() {
            self.disabled.add(Feature::ReceiveMany);
        }
        one
    }

    /// Returns the size in bytes, with all headers, of the largest outer packet that the kernel believes the path to
    /// `destination` to carry.
    ///
    /// It is the MTU of the interface at first, and less after a report of a lower one, which the kernel hardly
    /// verifies. [`system_path`](Self::system_path) tells the two apart. The function opens a socket on the same
    /// address for the query (`IP_MTU` in ip(7), `IPV6_MTU` in ipv6(7)), so do not call it per packet.
    ///
    /// # Errors
    /// Returns the error of the system call that failed: ENETUNREACH without a route, EMFILE without a free file
    /// descriptor.
    pub fn path_mtu(&self, destination: SocketAddr) -> io::Result<u32> {
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let mut source = self.local;
        source.set_port(0);
        if source.is_ipv4() != destination.is_ipv4() {
            source.set_ip(any);
        }
        self.calls.path_mtu(source, destination)
    }

    /// Sends messages by the socket of a number.
    #[inline]
    fn send_messages(&self, number: usize, messages: &mut Messages<'_, '_>) -> io::Result<usize> {
        if number >= self.ports() {
            return self.send_aside(number, messages);
        }
        self.send_shared(number, messages)
    }

    /// Sends messages by a shared socket.
    #[inline]
    fn send_shared(&self, port: usize, messages: &mut Messages<'_, '_>) -> io::Result<usize> {
        let start = messages.place();
        let sent = self.calls.send(self.shared_socket(port).as_fd(), &mut *messages);
        let accepted = *sent.as_ref().unwrap_or(&0);
        let is_full = sent.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EAGAIN));
        if self.meter.count(messages.bytes_accepted(start, accepted)) || is_full {
            let refused = if is_full { messages.destination(start) } else { None };
            self.make_room(port, messages.accepted(start, accepted), refused);
        }
        sent
    }

    /// Sends messages by a lane, or for a limited peer by a shared socket while that has room.
    #[cold]
    fn send_aside(&self, number: usize, messages: &mut Messages<'_, '_>) -> io::Result<usize> {
        let (row, port) = (number / self.ports(), number % self.ports());
        if row <= LANES_MAX {
            let start = messages.place();
            let sent = self.calls.send(self.sender(number).as_fd(), &mut *messages);
            if let Ok(accepted) = sent {
                self.lanes.count(row - 1, messages.bytes_accepted(start, accepted));
            }
            return sent;
        }
        let shared = self.shared_socket(port);
        match (self.calls.send_backlog(shared.as_fd()), messages.destination(messages.place())) {
            (Ok(backlog), Some(peer)) if is_filling(backlog) => {
                self.lanes.note_active(peer);
                self.meter.note_limited(peer, backlog);
                if is_crowded(backlog) {
                    return Err(io::Error::from_raw_os_error(libc::EAGAIN));
                }
            }
            _ => self.lanes.lift_limits(shared),
        }
        self.send_shared(port, messages)
    }

    /// Counts the bytes that a shared socket sent. If the socket fills, the peer that was sent most moves to a lane.
    #[cold]
    fn make_room(&self, port: usize, sent: impl Iterator<Item = (SocketAddr, usize)>, refused: Option<SocketAddr>) {
        let shared = self.shared_socket(port);
        let moved = self.lanes.moved().unwrap_or(Moved::NONE);
        let backlog = || self.calls.send_backlog(shared.as_fd());
        match self.meter.find(port, sent, refused, &moved, backlog) {
            Ok(None) => {}
            Ok(Some(peer)) => match self.lanes.move_away(peer, port, shared, &self.calls) {
                MoveOutcome::Lane { evicted } => self.meter.has_left(peer, evicted),
                MoveOutcome::NoLaneIsFree => {}
                MoveOutcome::NoLanes => self.disabled.add(Feature::SendLanes),
            },
            Err(_) => self.disabled.add(Feature::SendLanes),
        }
    }

    /// Returns the number of source ports.
    #[inline]
    fn ports(&self) -> usize {
        self.flows.len().max(1)
    }

    /// Returns the shared socket of a port.
    #[inline]
    fn shared_socket(&self, port: usize) -> &UdpSocket {
        self.flows.get(port).unwrap_or(&self.socket)
    }

    /// Returns the socket of a number.
    #[cold]
    fn sender(&self, number: usize) -> &UdpSocket {
        let (row, port) = (number / self.ports(), number % self.ports());
        let shared = self.shared_socket(port);
        let lane = row.checked_sub(1).filter(|lane| *lane < LANES_MAX);
        let lane = lane.and_then(|lane| self.lanes.socket(lane as u8, port, shared, &self.calls));
        lane.unwrap_or(shared)
    }
}

impl AsRawFd for UdpTransport {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for UdpTransport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn set_sending_options(socket: &UdpSocket, local: SocketAddr) -> io::Result<()> {
    let set = |option, value| syscall::set_socket_option(socket.as_fd(), option, value);
    set(SocketOption::NoChecksum, 0)?;
    // An IPv6 socket sends IPv4 too, by the IPv4 options.
    set(SocketOption::Ipv4MtuDiscover, libc::IP_PMTUDISC_DO)?;
    set(SocketOption::Ipv4ReceiveErrors, 0)?;
    if local.is_ipv6() {
        set(SocketOption::Ipv6MtuDiscover, libc::IPV6_PMTUDISC_DO)?;
        set(SocketOption::Ipv6ReceiveErrors, 0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
