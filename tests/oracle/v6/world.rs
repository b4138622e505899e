//! The host of [`crate::world`] with IPv6 subnets, in both forms.
//!
//! ```text
//!                 ┌────────────────┐ a0 ── A: 1472 bytes
//!                 │                │ b0 ── B: 1280
//!   pods ── tun0 ─┤ kernel or ours ├ c0 ── C: 1452, over IPv6
//!                 └────────────────┘ d0 ── D: 1000, which was learned; 1280 for the kernel
//! ```

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use loden::forward::{ForwarderConfig, PeerCheck};
use loden::ipnet::{IpNet, Ipv6Net};
use loden::route::Route;

use super::known_difference::KnownDifference;
use crate::router::{Link, Marker, Place, Router, Table};
use support::host::{
    Host, NOBODY_V6, Outcome, POD_A_V6, POD_C_V6, POD_V6, holds, host_a, host_b, host_c, mtu_of, net_v6, own, own_v6,
};
use support::model;
use support::packet_v6::Ipv6;

/// Pods of the other hosts.
pub(super) const POD_B_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 4, 0, 0, 0, 0, 5);
pub(super) const POD_D_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 5, 0, 0, 0, 0, 6);

/// The base of the router's own addresses, which no result depends on.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0);

const MARKER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, 0x77);

/// The groups that the router itself is in.
const GROUPS: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2),
    Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 2),
];

pub(super) fn host_d() -> SocketAddr {
    ([10, 168, 0, 5], 8285).into()
}

pub(super) struct World {
    host: Host,
    /// The same host with the largest MTU for every path.
    hopeful: Host,
    /// The same host, which checks ports of peers too: not by the usual way through the forwarder.
    strict: Host,
    pub(super) router: Router,
    /// The entries of packets.
    pub(super) entries: Vec<Place>,
    /// The differences that may occur.
    pub(super) known_differences: &'static [KnownDifference],
    /// The kernel's routes for packets from these entries, and for its own.
    input: Vec<(IpNet, Place)>,
    main: Vec<(IpNet, Place)>,
}

fn config() -> ForwarderConfig {
    let (network, subnet) = (net("fd00:96::/32"), net("fd00:96:1::/64"));
    ForwarderConfig::new(&loden::Host::from_sets(&[network.into()], &[subnet.into()], &[own(), own_v6()]).unwrap())
}

fn net(text: &str) -> Ipv6Net {
    text.parse().unwrap()
}

impl World {
    /// Returns the world for packets from the TUN.
    pub(super) fn outbound() -> Self {
        let (a, b, c, d) = (host_a(), host_b(), host_c(), host_d());
        let routes: Vec<_> = [
            (net_v6(POD_A_V6, 64), a),
            (net_v6(POD_B_V6, 64), b),
            (net_v6(POD_C_V6, 64), c),
            (net_v6(POD_D_V6, 64), d),
            // Inside each other (V13).
            (net("fd00:96:2:0:8000::/65"), b),
            (net("fd00:96:2:0:f000::/68"), c),
            (net("fd00:96:2:0:f000::8/125"), a),
            (net("fd00:96:2:0:f000::9/128"), d),
            (net("fd00:96:6::/63"), b),
            // Half of all addresses, and classes of their own (V9 to V11).
            (net("8000::/1"), b),
            (net("::/64"), a),
            (net("2001:db8::/32"), a),
            (net("fec0::/10"), a),
            (net("fe80::/64"), a),
            // The underlay.
            (net("fd00:168::/32"), a),
            (net_v6(Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 4), 128), c),
        ]
        .map(|(subnet, hop)| Route::new(subnet, hop).with_mtu((hop == b).then(|| mtu_of(1280))))
        .into();
        let own = config().host.tun_address_v6().unwrap().into();
        let links = [(a, "a0", 1472), (b, "b0", 1280), (c, "c0", 1452), (d, "d0", 1280)];
        let mut links: Vec<_> = links
            .into_iter()
            .zip(1..)
            .map(|((peer, name, mtu), number)| link(Place::Peer(peer), name, router(number), mtu))
            .collect();
        links.insert(0, link(Place::Tun, "tun0", own, 9000));
        let input = routes.iter().map(|route| (route.subnet, Place::Peer(route.next_hop))).collect();
        // The router's errors about a packet go back to its entry.
        let main = vec![(net("::/0").into(), Place::Tun)];
        let marker = |hop_limit, to| (Place::Tun, Marker::V6(Ipv6 { hop_limit, ..Ipv6::new(MARKER, to) }));
        let markers = vec![
            marker(1, POD_A_V6),
            marker(64, POD_A_V6),
            marker(64, POD_B_V6),
            marker(64, POD_C_V6),
            marker(64, POD_D_V6),
        ];
        let mut world = Self::of(routes, &links, vec![Place::Tun], main, input, markers, &KnownDifference::OUTBOUND);
        world.host.paths.insert(d.ip(), 1000);
        world
    }

    /// Returns the world for packets from peers A and C. Packets that R66 drops leave by a link without a peer.
    pub(super) fn inbound() -> Self {
        let (a, c) = (Place::Peer(host_a()), Place::Peer(host_c()));
        let routes = vec![
            Route::new(net_v6(POD_A_V6, 64), host_a()),
            Route::new(net_v6(POD_C_V6, 64), host_c()),
            Route::new(net("fd00:96:2:0:f000::/68"), host_c()),
            Route::new(net("2001:db8::/32"), host_a()),
            Route::new(net("fec0::/10"), host_a()),
            // The own subnet lies within one of C's.
            Route::new(net("fd00:96::/47"), host_c()),
        ];
        // V20 at the remote host: the TUN address.
        let own = config().host.tun_address_v6().unwrap().into();
        let links = [
            link(Place::Tun, "tun0", router(1), u16::MAX),
            link(Place::Nowhere, "void0", router(2), u16::MAX),
            link(a, "a0", own, 1472),
            link(c, "c0", own, 1452),
        ];
        let own_subnet = (net("fd00:96:1::/64").into(), Place::Tun);
        let input = vec![own_subnet, (net("::/0").into(), Place::Nowhere)];
        let main = routes.iter().map(|route| (route.subnet, Place::Peer(route.next_hop)));
        // Errors about link-local sources go back to A (V10).
        let main = main.chain([own_subnet, (net("fe80::/64").into(), a)]).collect();
        let marker = |place, hop_limit, from, to| (place, Marker::V6(Ipv6 { hop_limit, ..Ipv6::new(from, to) }));
        let markers = vec![
            marker(a, 64, MARKER, POD_V6),
            marker(a, 64, MARKER, NOBODY_V6),
            marker(a, 1, MARKER, POD_V6),
            marker(c, 1, POD_C_V6, POD_V6),
        ];
        Self::of(routes, &links, vec![a, c], main, input, markers, &KnownDifference::INBOUND)
    }

    fn of(
        routes: Vec<Route>,
        links: &[Link],
        entries: Vec<Place>,
        main: Vec<(IpNet, Place)>,
        input: Vec<(IpNet, Place)>,
        markers: Vec<(Place, Marker)>,
        known_differences: &'static [KnownDifference],
    ) -> Self {
        let table = Table { number: 100, links: entries.clone(), routes: input.clone() };
        let router = Router::new(links, &main, &[table], markers);
        let wide = routes.iter().map(|route| route.with_mtu(None)).collect();
        let hopeful = Host::new(config().with_mtu(mtu_of(u16::MAX)), wide);
        let strict = Host::new(config().with_peer_check(PeerCheck::AddressPort), routes.clone());
        Self { host: Host::new(config(), routes), hopeful, strict, router, entries, known_differences, input, main }
    }

    /// Returns the forwarder's outcome for a packet.
    pub(super) fn ours(&self, entry: Place, packet: &[u8]) -> Outcome {
        match entry {
            Place::Tun => {
                let hop = destination(packet).and_then(|destination| self.host.naive_route(destination));
                let path = hop.and_then(|route| self.host.paths.get(&route.next_hop.ip()));
                self.host.encapsulate_over(packet, path.copied().unwrap_or(u16::MAX))
            }
            Place::Peer(peer) => self.host.decapsulate(packet, peer),
            Place::Nowhere => panic!("nothing comes from there"),
        }
    }

    /// Returns the forwarder's outcome for a packet of the same circumstances by other code: a path that turned out to
    /// be narrow only at sending, and the checks of senders that are not the usual ones.
    pub(super) fn ours_otherwise(&self, entry: Place, packet: &[u8]) -> Outcome {
        match entry {
            Place::Tun => self.ours_in_hindsight(packet),
            Place::Peer(peer) => self.strict.decapsulate(packet, peer),
            Place::Nowhere => panic!("nothing comes from there"),
        }
    }

    /// Returns the model's outcome, by `docs/conformance.md`.
    pub(super) fn by_the_list(&self, entry: Place, packet: &[u8]) -> Outcome {
        match entry {
            Place::Tun => model::encapsulate(&self.host, packet),
            Place::Peer(peer) => model::decapsulate(&self.host, packet, peer),
            Place::Nowhere => panic!("nothing comes from there"),
        }
    }

    fn ours_in_hindsight(&self, packet: &[u8]) -> Outcome {
        let outcome = self.hopeful.encapsulate(packet);
        let Outcome::Forward { to, mut bytes } = outcome else { return outcome };
        let mtu = self.host.mtu_to(self.host.naive_route(destination(packet).unwrap()).unwrap());
        match bytes.len() > mtu.into() {
            true => self.hopeful.refused_as_too_long(&mut bytes, mtu),
            false => Outcome::Forward { to, bytes },
        }
    }

    /// Returns the kernel's route for a packet that enters here. A link-local destination is on the same link.
    pub(super) fn kernel_route(&self, entry: Place, destination: Ipv6Addr) -> Option<Place> {
        longest(&self.input, destination, entry).map(|(_, place)| place)
    }

    /// Returns the kernel's route for its errors about a packet that entered here.
    pub(super) fn kernel_route_back(&self, entry: Place, source: Ipv6Addr) -> Option<(IpNet, Place)> {
        longest(&self.main, source, entry)
    }

    /// Returns the router's own address on a link.
    pub(super) fn address(&self, place: Place) -> Ipv6Addr {
        match self.router.link(place).address {
            IpAddr::V6(address) => address,
            IpAddr::V4(address) => panic!("{address}"),
        }
    }

    /// Returns true if a packet is for the router itself or from it, which is not forwarding.
    pub(super) fn concerns_the_router(&self, packet: &[u8]) -> bool {
        let is_own = |address| self.router.owns(address) || GROUPS.contains(&address);
        let mut addresses = [8, 24].into_iter().filter_map(|at| packet.get(at..at + 16));
        addresses.any(|bytes| is_own(<[u8; 16]>::try_from(bytes).unwrap().into()))
    }
}

fn destination(packet: &[u8]) -> Option<Ipv6Addr> {
    packet.get(24..40).map(|bytes| <[u8; 16]>::try_from(bytes).unwrap().into())
}

/// Returns the longest match. A link-local address is on the link of the entry.
fn longest(routes: &[(IpNet, Place)], address: Ipv6Addr, entry: Place) -> Option<(IpNet, Place)> {
    let is_here = |place| !address.is_unicast_link_local() || place == entry;
    let matching = routes.iter().filter(|(net, place)| holds(*net, address) && is_here(*place));
    matching.max_by_key(|(net, _)| net.prefix_len()).copied()
}

fn router(number: u128) -> IpAddr {
    Ipv6Addr::from_bits(ROUTER.to_bits() + number).into()
}

fn link(place: Place, name: &'static str, address: IpAddr, mtu: u16) -> Link {
    Link { place, name, address, mtu, strict_source: false }
}
