//! One host of an overlay, and its verdict on a packet in a form that can be compared.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::HashMap;

use loden::Mtu;
use loden::forward::{Decap, DropReason, Encap, Forwarder, ForwarderConfig, Fragments, Reject, RejectReason, ReplyTo};
use loden::ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden::route::{Route, RouteTable};
use loden::transmit::Way;

use super::icmp::{Message, assert_sound_v6};
use super::packet::{Ipv4, ones_sum};
use super::packet_v6::is_v6;

/// A local pod, and pods of two other hosts.
pub const POD: Ipv4Addr = Ipv4Addr::new(100, 96, 1, 2);
pub const POD_A: Ipv4Addr = Ipv4Addr::new(100, 96, 2, 3);
pub const POD_B: Ipv4Addr = Ipv4Addr::new(100, 96, 3, 4);
/// An address inside the overlay network without a route.
pub const NOBODY: Ipv4Addr = Ipv4Addr::new(100, 96, 99, 9);

/// The same of IPv6: pods here, behind host A and behind host C, and nobody's.
pub const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, 2);
pub const POD_A_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, 3);
pub const POD_C_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 3, 0, 0, 0, 0, 4);
pub const NOBODY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 99, 0, 0, 0, 0, 9);

/// A byte that no test packet contains.
pub const CANARY: u8 = 0xfb;

pub fn own() -> SocketAddr {
    ([10, 168, 0, 2], 8285).into()
}

/// Returns host A, which owns 100.96.2.0/24 but for its last sixteenth.
pub fn host_a() -> SocketAddr {
    ([10, 168, 0, 3], 8285).into()
}

/// Returns host B, which owns 100.96.3.0/24 and 100.96.2.240/28, on another port than flannel's.
pub fn host_b() -> SocketAddr {
    ([10, 168, 0, 4], 9000).into()
}

/// Returns host C, which owns fd00:96:3::/64 and is reached over IPv6.
pub fn host_c() -> SocketAddr {
    (Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 4), 8285).into()
}

/// Returns the own underlay address of IPv6.
pub fn own_v6() -> SocketAddr {
    (Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 2), 8285).into()
}

pub fn net_v6(address: impl Into<Ipv6Addr>, len: u8) -> Ipv6Net {
    Ipv6Net::new(address.into(), len).unwrap()
}

/// The host that the tests are about, with IPv6 subnets and an IPv6 underlay address beside the others.
pub fn dual_identity() -> loden::Host {
    let networks = [net([100, 96, 0, 0], 16).into(), net_v6([0xfd00, 0x96, 0, 0, 0, 0, 0, 0], 32).into()];
    let subnets = [
        net([100, 96, 1, 0], 24).into(),
        net_v6([0xfd00, 0x96, 1, 0, 0, 0, 0, 0], 64).into(),
        net_v6([0xfd00, 0x96, 0x11, 0, 0, 0, 0, 0], 64).into(),
    ];
    loden::Host::from_sets(&networks, &subnets, &[own(), own_v6()]).unwrap()
}

/// Returns the routes of [`routes`], and those of IPv6: the last sixteenth of host A's subnet is host C's.
pub fn dual_routes() -> Vec<Route> {
    let mut all = routes();
    all.extend([
        Route::new(net_v6([0xfd00, 0x96, 2, 0, 0, 0, 0, 0], 64), host_a()),
        Route::new(net_v6([0xfd00, 0x96, 3, 0, 0, 0, 0, 0], 64), host_c()),
        Route::new(net_v6([0xfd00, 0x96, 2, 0, 0xf000, 0, 0, 0], 68), host_c()),
    ]);
    all
}

pub fn net(address: impl Into<Ipv4Addr>, len: u8) -> Ipv4Net {
    Ipv4Net::new(address.into(), len).unwrap()
}

pub fn config() -> ForwarderConfig {
    ForwarderConfig::new(&identity())
}

/// The host that the tests are about.
pub fn identity() -> loden::Host {
    loden::Host::new(net([100, 96, 0, 0], 16), net([100, 96, 1, 0], 24), own()).unwrap()
}

pub fn config_of(network: Ipv4Net, subnet: Ipv4Net, underlay: SocketAddr) -> ForwarderConfig {
    ForwarderConfig::new(&loden::Host::new(network, subnet, underlay).unwrap())
}

pub fn mtu_of(mtu: u16) -> Mtu {
    Mtu::new(mtu.into()).unwrap()
}

pub fn routes() -> Vec<Route> {
    vec![
        Route::new(net([100, 96, 2, 0], 24), host_a()),
        Route::new(net([100, 96, 3, 0], 24), host_b()),
        Route::new(net([100, 96, 2, 240], 28), host_b()),
    ]
}

/// Returns a packet from a local pod to one of host A's.
pub fn outbound() -> Ipv4 {
    Ipv4::new(POD, POD_A)
}

/// Returns a packet from one of host A's pods to a local one.
pub fn inbound() -> Ipv4 {
    Ipv4::new(POD_A, POD)
}

/// A verdict with all its observable parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Sent to a peer, or (`None`) written to the TUN.
    Forward {
        to: Option<SocketAddr>,
        bytes: Vec<u8>,
    },
    /// Sent to a peer in fragments.
    Fragments {
        to: SocketAddr,
        pieces: Vec<Vec<u8>>,
    },
    /// Dropped, with the whole ICMP packet if one is permitted.
    Reject {
        reason: RejectReason,
        answer: Option<(ReplyTo, Vec<u8>)>,
    },
    Drop(DropReason),
}

impl Outcome {
    /// Returns the reason of a drop.
    pub fn reason(&self) -> Option<DropReason> {
        match self {
            Self::Forward { .. } | Self::Fragments { .. } => None,
            Self::Reject { reason, .. } => Some((*reason).into()),
            Self::Drop(reason) => Some(*reason),
        }
    }

    /// Returns the ICMP packet of a reject.
    pub fn icmp(&self) -> Option<&[u8]> {
        match self {
            Self::Reject { answer: Some((_, bytes)), .. } => Some(bytes),
            Self::Reject { answer: None, .. } | Self::Forward { .. } | Self::Fragments { .. } | Self::Drop(_) => None,
        }
    }
}

pub struct Host {
    pub forwarder: Forwarder,
    pub table: RouteTable,
    pub routes: Vec<Route>,
    /// Learned path MTUs, which the model takes into account.
    pub paths: HashMap<IpAddr, u16>,
}

impl core::fmt::Debug for Host {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Host").field("config", self.config()).field("routes", &self.routes).finish()
    }
}

impl Host {
    pub fn new(config: ForwarderConfig, routes: Vec<Route>) -> Self {
        let table = table_of(&routes);
        Self::with_table(config, routes, table)
    }

    /// Returns a host with a table that [`table_of`] made of these routes before. An MTU of less than 1280 bytes to an
    /// IPv6 subnet counts as a learned one.
    pub fn with_table(config: ForwarderConfig, routes: Vec<Route>, table: RouteTable) -> Self {
        // Of several routes for one subnet the last one holds.
        let stands = |(i, route): &(usize, &Route)| {
            let mut later = routes.iter().skip(i + 1);
            later.all(|later| later.subnet.trunc() != route.subnet.trunc())
        };
        let mut paths = HashMap::<IpAddr, u16>::new();
        for route in &routes {
            if let Some(narrow) = route.mtu.filter(|mtu| Some(*mtu) != legal(*route).mtu) {
                let path = paths.entry(route.next_hop.ip().to_canonical()).or_insert(narrow.get());
                *path = narrow.get().min(*path);
            }
        }
        let routes = routes.iter().enumerate().filter(stands).map(|(_, route)| legal(*route)).collect();
        Self { forwarder: Forwarder::new(config).unwrap(), table, routes, paths }
    }

    pub fn ordinary() -> Self {
        Self::new(config(), routes())
    }

    /// Returns the host that carries both families.
    pub fn dual() -> Self {
        Self::new(ForwarderConfig::new(&dual_identity()), dual_routes())
    }

    /// Returns a host with a default route to `next_hop` beside the others.
    pub fn with_default_route(config: ForwarderConfig, next_hop: SocketAddr) -> Self {
        let mut routes = routes();
        routes.push(Route::new(net([0, 0, 0, 0], 0), next_hop));
        Self::new(config, routes)
    }

    pub fn config(&self) -> &ForwarderConfig {
        self.forwarder.config()
    }

    /// Returns the longest match, by comparing every route.
    pub fn naive_route(&self, address: impl Into<IpAddr>) -> Option<&Route> {
        let address = address.into();
        let len = |route: &Route| route.subnet.prefix_len();
        self.routes.iter().filter(|route| holds(route.subnet, address)).max_by_key(|route| len(route))
    }

    /// Returns the longest inner packet that goes to a route's next hop.
    pub fn mtu_to(&self, route: &Route) -> u16 {
        let config = self.config();
        let overlay = if route.next_hop.is_ipv6() { config.mtu_over_ipv6 } else { config.mtu };
        let path = self.paths.get(&route.next_hop.ip()).copied().unwrap_or(u16::MAX);
        route.mtu.unwrap_or(Mtu::MAX).min(overlay).get().min(path)
    }

    /// Returns the outcome of a packet from the TUN. Asserts the properties of every verdict.
    pub fn encapsulate(&self, packet: &[u8]) -> Outcome {
        self.encapsulate_over(packet, u16::MAX)
    }

    /// Returns the same with a path MTU of `path` bytes to every peer.
    pub fn encapsulate_over(&self, packet: &[u8], path: u16) -> Outcome {
        let mut buffer = packet.to_vec();
        let path_to = |peer| self.paths.get(&peer).copied().unwrap_or(u16::MAX).min(path);
        let outcome = match self.forwarder.encapsulate_within(&mut buffer, path_to, &self.table) {
            Encap::Send(transmit) => {
                assert_eq!(transmit.segment_size, None, "one packet is one datagram");
                Outcome::Forward { to: Some(transmit.destination), bytes: transmit.contents.to_vec() }
            }
            Encap::Fragment(fragments) => fragments_outcome(fragments),
            Encap::Reject(reject) => reject_outcome(&reject, packet),
            Encap::Drop(reason) => Outcome::Drop(reason),
        };
        assert_little_changed(packet, &buffer, &outcome);
        outcome
    }

    /// Returns the outcome of a forwarded packet that the path refuses after it was queued.
    pub fn refused_as_too_long(&self, sent: &mut [u8], mtu: u16) -> Outcome {
        let before = sent.to_vec();
        let outcome = match self.forwarder.refused_as_too_long(sent, mtu, &self.table) {
            Ok(reject) => {
                let offender = reject.offender().as_bytes().to_vec();
                reject_outcome(&reject, &offender)
            }
            Err(reason) => Outcome::Drop(reason),
        };
        assert!(!matches!(outcome, Outcome::Drop(_)) || sent == before, "what is dropped is not touched");
        outcome
    }

    /// Returns the outcome of a datagram from the underlay, likewise.
    pub fn decapsulate(&self, datagram: &[u8], from: SocketAddr) -> Outcome {
        let mut buffer = datagram.to_vec();
        let outcome = match self.forwarder.decapsulate(&mut buffer, from, &self.table) {
            Decap::Deliver(bytes) => Outcome::Forward { to: None, bytes: bytes.to_vec() },
            Decap::Reject(reject) => reject_outcome(&reject, datagram),
            Decap::Drop(reason) => Outcome::Drop(reason),
        };
        assert_little_changed(datagram, &buffer, &outcome);
        outcome
    }
}

/// Returns the route with an MTU that the table accepts (V24).
fn legal(route: Route) -> Route {
    match route.mtu {
        Some(mtu) if route.subnet.addr().is_ipv6() => route.with_mtu(mtu.max(mtu_of(1280))),
        Some(_) | None => route,
    }
}

pub fn table_of(routes: &[Route]) -> RouteTable {
    let (table, refused) = RouteTable::try_from_routes(routes.iter().map(|route| legal(*route)));
    assert_eq!(refused, [], "the tests use routes that are taken");
    table
}

pub fn holds(subnet: IpNet, address: impl Into<IpAddr>) -> bool {
    let prefix = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) >> (32 - u32::from(subnet.prefix_len().min(32))), 4),
        IpAddr::V6(address) => {
            (address.to_bits().checked_shr(128 - u32::from(subnet.prefix_len())).unwrap_or_default(), 6)
        }
    };
    prefix(subnet.addr()) == prefix(address.into())
}

fn fragments_outcome(mut fragments: Fragments<'_>) -> Outcome {
    let (way, mut pieces) = (fragments.way(), Vec::new());
    while let Some(transmit) = fragments.cut_next() {
        assert_eq!((Way::from(&transmit), transmit.segment_size), (way, None), "all go one way, each by itself");
        pieces.push(transmit.contents.to_vec());
    }
    assert!(fragments.cut_next().is_none(), "the end is the end");
    Outcome::Fragments { to: way.destination, pieces }
}

fn reject_outcome(reject: &Reject<'_>, packet: &[u8]) -> Outcome {
    let offender = reject.offender().as_bytes();
    assert_eq!(offender, &packet[..offender.len()], "the offender is the packet as it arrived");
    let mut out = [CANARY; loden::wire::ICMP_ERROR_MAX];
    let message = reject.icmp_error(&mut out).map(<[u8]>::to_vec);
    match &message {
        Some(message) if is_v6(packet) => assert_sound_v6(message, packet),
        Some(message) => Message::parse(message).assert_sound(packet),
        None => {}
    }
    assert_eq!(reject.reply_to().is_some(), message.is_some(), "somewhere to go, exactly if there is an answer");
    Outcome::Reject { reason: reject.reason(), answer: reject.reply_to().zip(message) }
}

/// Asserts that the bytes are unchanged, unless the packet is forwarded: then only TTL and checksum may differ, and the
/// checksum is right. The bytes of a fragmented packet may change, but not those behind it.
fn assert_little_changed(before: &[u8], after: &[u8], outcome: &Outcome) {
    let word = |at: usize| usize::from(u16::from_be_bytes([before[at], before[at + 1]]));
    let total = || if is_v6(before) { 40 + word(4) } else { word(2) };
    let bytes = match outcome {
        Outcome::Forward { bytes, .. } => bytes,
        Outcome::Fragments { .. } => {
            assert_eq!(before[total()..], after[total()..], "behind the total length");
            return;
        }
        Outcome::Reject { .. } | Outcome::Drop(_) => {
            assert_eq!(before, after, "only packets that go on are touched");
            return;
        }
    };
    let total = total();
    assert_eq!(bytes.as_slice(), &after[..total], "what goes on is the front of the buffer, total length bytes of it");
    let differing: Vec<_> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
    if is_v6(before) {
        assert!(differing.iter().all(|at| *at == 7), "V4: bytes {differing:?} differ");
        return;
    }
    assert!(differing.iter().all(|at| [8, 10, 11].contains(at)), "bytes {differing:?} differ");
    assert_eq!(ones_sum(&after[..usize::from(after[0] & 15) * 4]), 0xffff, "the header checksum is right");
}
