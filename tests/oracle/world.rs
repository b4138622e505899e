//! One host in two forms: loden's forwarder, and a Linux router with a link for each peer and one for the TUN.
//!
//! ```text
//!                 ┌────────────────┐ a0 ── A: 1472 bytes
//!   pods ── tun0 ─┤ kernel or ours ├ b0 ── B:  576
//!                 └────────────────┘ c0 ── C:   68
//! ```

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use loden::forward::{DropReason, ReplyTo};
use loden::ipnet::{IpNet, Ipv4Net};
use loden::route::Route;

use crate::known_difference::KnownDifference;
use crate::router::{Link, Marker, Place, Router, Table};
use support::host::{
    Host, NOBODY, Outcome, POD, POD_A, POD_B, config, config_of, host_a, host_b, identity, mtu_of, net, own, routes,
};
use support::model;
use support::packet::{Ipv4, address_at};

/// A pod of host C.
pub(crate) const POD_C: Ipv4Addr = Ipv4Addr::new(100, 96, 4, 5);

/// The broadcast addresses of the network, which has a route, and of the own subnet.
pub(crate) const BROADCASTS: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 96, 255, 255), Ipv4Addr::new(100, 96, 1, 255)];

/// The base of the router's own addresses, which no result depends on.
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

const MARKER: Ipv4Addr = Ipv4Addr::new(100, 96, 2, 77);

/// The base of the sources, each of which sends few packets: see `SETTINGS` in the router.
const SOURCES: Ipv4Addr = Ipv4Addr::new(100, 66, 0, 0);

pub(crate) fn host_c() -> SocketAddr {
    ([10, 168, 0, 5], 8285).into()
}

pub(crate) struct World {
    pub(crate) host: Host,
    /// The same host with all peers at other underlay addresses.
    elsewhere: Host,
    /// The same host with the largest MTU for every path.
    hopeful: Host,
    pub(crate) router: Router,
    /// The entries of packets.
    pub(crate) entries: Vec<Place>,
    /// The differences that may occur.
    pub(crate) known_differences: &'static [KnownDifference],
}

impl World {
    /// Returns the world for packets from the TUN. Packets without a route get an ICMP error.
    pub(crate) fn outbound() -> Self {
        let b = |subnet| Route::new(subnet, host_b()).with_mtu(Some(mtu_of(576)));
        let mut all = vec![
            Route::new(net(POD_A, 24), host_a()),
            b(net(POD_B, 24)),
            b(net([100, 96, 2, 240], 28)),
            Route::new(net(POD_C, 24), host_c()).with_mtu(Some(mtu_of(68))),
            // A quarter of all addresses, with 169.254/16.
            b(net([128, 0, 0, 0], 2)),
        ];
        // The other classes of odd addresses, a network's broadcast, and the underlay itself.
        let odd = [([0, 7, 0, 0], 16), ([100, 96, 255, 0], 24), ([169, 254, 7, 0], 24), ([240, 1, 0, 0], 16)];
        all.extend(odd.map(|(address, len)| Route::new(net(address, len), host_a())));
        all.push(Route::new(net([10, 168, 0, 0], 24), host_a()));
        let peers = [(Place::Peer(host_a()), "a0", 1472), (Place::Peer(host_b()), "b0", 576)];
        let peers = peers.into_iter().chain([(Place::Peer(host_c()), "c0", 68)]);
        let links: Vec<_> = [(Place::Tun, "tun0", 9000)]
            .into_iter()
            .chain(peers)
            .zip(1..)
            .map(|((place, name, mtu), number)| {
                let address = Ipv4Addr::from_bits(ROUTER.to_bits() + number).into();
                Link { place, name, address, mtu, strict_source: false }
            })
            .collect();
        let table = Table {
            number: 100,
            links: vec![Place::Tun],
            routes: all.iter().map(|route| (route.subnet, Place::Peer(route.next_hop))).collect(),
        };
        let markers = [(1, POD_A), (64, POD_A), (64, POD_B), (64, POD_C)];
        let markers = markers
            .map(|(ttl, destination)| (Place::Tun, Marker::V4(Ipv4 { ttl, ..Ipv4::new(MARKER, destination) })))
            .into();
        // The router's errors about a packet go back to its entry.
        let router = Router::new(&links, &[(net([0; 4], 0).into(), Place::Tun)], &[table], markers);
        Self::of(all, router, vec![Place::Tun], &KnownDifference::OUTBOUND)
    }

    /// Returns the world for packets from peers A and B. R65 is a router's strict source check (RFC 3704 2.2). Packets
    /// that R66 drops leave by a link without a peer.
    pub(crate) fn inbound() -> Self {
        let mut all = routes();
        // The own subnet lies within one of B's.
        all.push(Route::new(net([100, 96, 0, 0], 18), host_b()));
        let (a, b) = (Place::Peer(host_a()), Place::Peer(host_b()));
        let link = |place, name, number| Link {
            place,
            name,
            address: Ipv4Addr::from_bits(ROUTER.to_bits() + number).into(),
            mtu: u16::MAX,
            strict_source: false,
        };
        let (tun, nowhere) = (link(Place::Tun, "tun0", 1), link(Place::Nowhere, "void0", 2));
        // R42 at the remote host: the TUN address.
        let own = identity().tun_address_v4().unwrap().into();
        let peer = |place, name| Link { place, name, address: own, mtu: 1472, strict_source: true };
        let table = Table {
            number: 101,
            links: vec![a, b],
            routes: vec![(identity().subnet_v4().unwrap().into(), Place::Tun), (net([0; 4], 0).into(), Place::Nowhere)],
        };
        let main = all.iter().map(|route| (route.subnet, Place::Peer(route.next_hop)));
        // R65: the underlay address of a peer is its own.
        let own_addresses = [host_a(), host_b()].map(|peer| (IpNet::from(peer.ip()), Place::Peer(peer)));
        let own_subnet = (identity().subnet_v4().unwrap().into(), Place::Tun);
        let main: Vec<_> = main.chain(own_addresses).chain([own_subnet]).collect();
        let marker = |place, ttl, source: Ipv4Addr, to| (place, Marker::V4(Ipv4 { ttl, ..Ipv4::new(source, to) }));
        let markers = vec![
            marker(a, 64, MARKER, POD),
            marker(a, 64, MARKER, NOBODY),
            marker(a, 1, MARKER, POD),
            marker(b, 1, POD_B, POD),
        ];
        let router = Router::new(&[tun, nowhere, peer(a, "a0"), peer(b, "b0")], &main, &[table], markers);
        Self::of(all, router, vec![a, b], &KnownDifference::INBOUND)
    }

    fn of(
        routes: Vec<Route>,
        router: Router,
        entries: Vec<Place>,
        known_differences: &'static [KnownDifference],
    ) -> Self {
        let wide = routes.iter().map(|route| route.with_mtu(None)).collect();
        let hopeful = Host::new(config().with_mtu(mtu_of(u16::MAX)), wide);
        Self {
            elsewhere: elsewhere(&routes),
            hopeful,
            host: Host::new(config(), routes),
            router,
            entries,
            known_differences,
        }
    }

    /// Returns the forwarder's outcome for a packet.
    pub(crate) fn ours(&self, entry: Place, packet: &[u8]) -> Outcome {
        match entry {
            Place::Tun => self.host.encapsulate(packet),
            Place::Peer(peer) => self.host.decapsulate(packet, peer),
            Place::Nowhere => panic!("nothing comes from there"),
        }
    }

    /// Returns the model's outcome, by `docs/conformance.md`.
    pub(crate) fn by_the_list(&self, entry: Place, packet: &[u8]) -> Outcome {
        match entry {
            Place::Tun => model::encapsulate(&self.host, packet),
            Place::Peer(peer) => model::decapsulate(&self.host, packet, peer),
            Place::Nowhere => panic!("nothing comes from there"),
        }
    }

    /// Returns the forwarder's outcome for a packet from the TUN with the underlay at other addresses, so that none is
    /// the tunnel's own.
    pub(crate) fn ours_elsewhere(&self, packet: &[u8]) -> Outcome {
        let mut outcome = self.elsewhere.encapsulate(packet);
        if let Outcome::Forward { to: Some(to), .. } | Outcome::Fragments { to, .. } = &mut outcome {
            *to = moved(*to, 10, 168);
        }
        outcome
    }

    /// Returns the forwarder's outcome for a packet from the TUN whose path turned out to be narrow; with DF, only at
    /// sending.
    pub(crate) fn ours_in_hindsight(&self, packet: &[u8]) -> Outcome {
        let outcome = self.hopeful.encapsulate(packet);
        let Outcome::Forward { to: Some(peer), mut bytes } = outcome else { return outcome };
        let mtu = self.router.link(Place::Peer(peer)).mtu;
        if bytes.len() <= mtu.into() {
            return Outcome::Forward { to: Some(peer), bytes };
        }
        match self.hopeful.refused_as_too_long(&mut bytes, mtu) {
            Outcome::Drop(DropReason::PathTooNarrow) => self.hopeful.encapsulate_over(packet, mtu),
            outcome @ (Outcome::Forward { .. }
            | Outcome::Fragments { .. }
            | Outcome::Reject { .. }
            | Outcome::Drop(_)) => outcome,
        }
    }

    /// Returns an ordinary address, with the same route or also without one.
    pub(crate) fn ordinary(&self, like: Ipv4Addr) -> Ipv4Addr {
        let next_hop = self.host.naive_route(like).map(|route| route.next_hop);
        let own = identity().subnet_v4().unwrap().contains(&like).then_some(POD);
        let found = [POD_A, POD_B, POD_C]
            .into_iter()
            .find(|pod| next_hop.is_some() && self.host.naive_route(*pod).map(|route| route.next_hop) == next_hop);
        own.or(found).unwrap_or(NOBODY)
    }

    /// Returns whether an address is one of R40's broadcast addresses.
    pub(crate) fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        let last = |subnet: Ipv4Net| subnet.prefix_len() < 31 && subnet.broadcast() == address;
        let routed = self.host.naive_route(address).is_some_and(|route| last(v4(route.subnet)));
        BROADCASTS.contains(&address) || routed
    }

    /// Returns source `number`, a pod that may send by this entry.
    pub(crate) fn source(&self, entry: Place, number: u32) -> Ipv4Addr {
        match entry {
            Place::Tun => Ipv4Addr::from_bits(SOURCES.to_bits() + number),
            Place::Peer(peer) if peer == host_a() => POD_A,
            Place::Peer(_) | Place::Nowhere => POD_B,
        }
    }

    /// Returns whether a packet is for the router itself or from it, which is not forwarding.
    pub(crate) fn concerns_the_router(&self, packet: &[u8]) -> bool {
        packet.len() >= 20 && [12, 16].iter().any(|at| self.router.owns(address_at(packet, *at)))
    }
}

pub(crate) fn place_of(reply_to: ReplyTo) -> Place {
    match reply_to {
        ReplyTo::Tun => Place::Tun,
        ReplyTo::Peer(peer) => Place::Peer(peer),
        other => panic!("the list knows no {other:?}"),
    }
}

fn v4(net: IpNet) -> Ipv4Net {
    match net {
        IpNet::V4(net) => net.trunc(),
        IpNet::V6(net) => panic!("{net}"),
    }
}

/// Returns the host in 203.0.0.0/24, which has no route here, instead of 10.168.0.0/24.
fn elsewhere(routes: &[Route]) -> Host {
    let away = |address| moved(address, 203, 0);
    let config = config_of(identity().network_v4().unwrap(), identity().subnet_v4().unwrap(), away(own()));
    Host::new(config, routes.iter().map(|route| route.with_next_hop(away(route.next_hop))).collect())
}

fn moved(address: SocketAddr, first: u8, second: u8) -> SocketAddr {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address}") };
    let [_, _, third, last] = ip.octets();
    SocketAddr::new([first, second, third, last].into(), address.port())
}
