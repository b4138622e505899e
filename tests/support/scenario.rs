//! Settings, routes and a packet from any bytes for the fuzz targets, and the bytes of the seeds.
//!
//! Byte 0 is the policy, byte 1 the MTU (low two bits) and the sender, byte 2 the peer check and the number of routes.
//! Each route has six bytes: address, prefix length, next hop. The rest is the packet. From sender [`DUAL`] on, the
//! host carries IPv6 too: it has the IPv6 routes of [`dual_routes`], and routes with a prefix length from 128 on are
//! IPv6.

use core::cell::RefCell;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::collections::HashMap;

use loden::forward::{
    ForwarderConfig, IcmpSource, Icmpv6Source, PeerCheck, SourceCheck, SourceRoutes, Transit, TtlPolicy,
};
use loden::route::{Route, RouteTable};

use super::host::{Host, dual_identity, dual_routes, host_a, host_b, host_c, identity, mtu_of, net, net_v6, table_of};
use super::packet::repair_checksum;
use super::packet_v6::is_v6;

pub mod policy {
    pub const TTL_INGRESS: u8 = 1;
    pub const TTL_PRESERVE: u8 = 2;
    pub const SOURCE_CHECK_OFF: u8 = 1 << 2;
    pub const TRANSIT: u8 = 1 << 3;
    pub const SOURCE_ROUTES: u8 = 1 << 4;
    pub const ICMP_SOURCE_FIXED: u8 = 1 << 5;
    /// Repairs the checksum, so that mutated packets pass R5.
    pub const REPAIR_CHECKSUM: u8 = 1 << 6;
    /// Repairs the total length, so that mutated packets pass R7.
    pub const REPAIR_LENGTH: u8 = 1 << 7;
}

/// The first sender of hosts that carry both families.
pub const DUAL: u8 = 40;

pub const ICMP_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);
pub const ICMP_SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const MTUS: [u16; 4] = [1472, 68, 576, 65_535];
const ROUTES_MAX: u8 = 9;
pub const PEER_CHECKS: [PeerCheck; 3] = [PeerCheck::Address, PeerCheck::AddressPort, PeerCheck::Off];
const ROUTE_MTU: u8 = 0x80;

pub struct Scenario {
    pub host: Host,
    pub from: SocketAddr,
    pub packet: Vec<u8>,
}

/// Returns next hops, none of them inside the overlay network, as on every host whose underlay is not its overlay.
pub fn next_hops() -> [SocketAddr; 8] {
    [
        host_a(),
        host_b(),
        ([127, 0, 0, 1], 1).into(),
        ([10, 168, 0, 2], 8286).into(),
        ([192, 0, 2, 1], 65_535).into(),
        (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1), 8285).into(),
        ([8, 8, 8, 8], 53).into(),
        ([10, 168, 0, 3], 8286).into(),
    ]
}

/// Returns the next hops, also with other ports, one as an IPv4-mapped IPv6 address, and a stranger.
pub fn senders() -> [SocketAddr; 10] {
    let [a, b, c, d, e, f, g, h] = next_hops();
    let mapped = SocketAddr::new(IpAddr::V6(Ipv4Addr::new(10, 168, 0, 3).to_ipv6_mapped()), 8285);
    [a, SocketAddr::new(b.ip(), 1), c, d, e, f, g, h, mapped, ([10, 9, 9, 9], 8285).into()]
}

/// Returns the senders for hosts that carry both families: host C takes one's place.
pub fn dual_senders() -> [SocketAddr; 10] {
    let [a, b, c, d, e, f, _, h, mapped, stranger] = senders();
    [a, b, c, d, e, f, host_c(), h, mapped, stranger]
}

/// Returns the overlay of a policy byte.
pub fn config_from(policy: u8, mtu: u16) -> ForwarderConfig {
    config_of(&identity(), policy, mtu)
}

/// Returns the overlay of a policy byte for a host that carries both families. It needs an MTU of 1280 bytes.
pub fn dual_config_from(policy: u8, mtu: u16) -> ForwarderConfig {
    let mtu = mtu.max(1280);
    config_of(&dual_identity(), policy, mtu).with_mtu_over_ipv6(mtu_of(mtu.saturating_sub(20).max(1280)))
}

fn config_of(host: &loden::Host, policy: u8, mtu: u16) -> ForwarderConfig {
    ForwarderConfig::new(host)
        .with_mtu(mtu_of(mtu))
        .with_ttl(match policy & 3 {
            policy::TTL_INGRESS => TtlPolicy::Ingress,
            policy::TTL_PRESERVE => TtlPolicy::Preserve,
            _ => TtlPolicy::BothEnds,
        })
        .with_source_check(if policy & policy::SOURCE_CHECK_OFF == 0 { SourceCheck::Strict } else { SourceCheck::Off })
        .with_transit(if policy & policy::TRANSIT == 0 { Transit::Refused } else { Transit::Allowed })
        .with_source_routes(match policy & policy::SOURCE_ROUTES {
            0 => SourceRoutes::Dropped,
            _ => SourceRoutes::Forwarded,
        })
        .with_icmp_source(match policy & policy::ICMP_SOURCE_FIXED {
            0 => IcmpSource::OffenderDestination,
            _ => IcmpSource::Fixed(ICMP_SOURCE),
        })
        .with_icmpv6_source(match policy & policy::ICMP_SOURCE_FIXED {
            0 => Icmpv6Source::TunAddress,
            _ => Icmpv6Source::Fixed(ICMP_SOURCE_V6),
        })
}

impl Scenario {
    /// Decodes a scenario. Returns `None` if the bytes end before the packet begins.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let ([policy, choice, count], mut rest) = bytes.split_first_chunk()?;
        let is_dual = choice >> 2 >= DUAL;
        let mut routes = if is_dual { dual_routes() } else { Vec::new() };
        for _ in 0..count % ROUTES_MAX {
            let ([a, b, c, d, len, hop], after) = rest.split_first_chunk()?;
            let next_hop = next_hops()[usize::from(hop & !ROUTE_MTU) % next_hops().len()];
            let mtu = (hop & ROUTE_MTU != 0).then_some(mtu_of(if is_dual { 1200 } else { 1300 }));
            let segments = [0xfd00, 0x96, u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]), 0, 0, 0, 0];
            let route = match len {
                128.. if is_dual => Route::new(net_v6(segments, len - 127), next_hop),
                _ => Route::new(net([*a, *b, *c, *d], len % 33), next_hop),
            };
            routes.push(route.with_mtu(mtu));
            rest = after;
        }
        let mut packet = rest.to_vec();
        if policy & policy::REPAIR_LENGTH != 0 && packet.len() >= 40 && is_v6(&packet) {
            let payload = u16::try_from(packet.len() - 40).unwrap_or(u16::MAX);
            packet[4..6].copy_from_slice(&payload.to_be_bytes());
        } else if policy & policy::REPAIR_LENGTH != 0 && packet.len() >= 20 {
            let total = u16::try_from(packet.len()).unwrap_or(u16::MAX);
            packet[2..4].copy_from_slice(&total.to_be_bytes());
        }
        if policy & policy::REPAIR_CHECKSUM != 0 && !is_v6(&packet) {
            repair_checksum(&mut packet);
        }
        let all = if is_dual { dual_senders() } else { senders() };
        let from = all[usize::from(choice >> 2) % all.len()];
        let table = table_of_known(&routes);
        let mtu = MTUS[usize::from(choice & 3)];
        let config = if is_dual { dual_config_from(*policy, mtu) } else { config_from(*policy, mtu) };
        let config = config.with_peer_check(PEER_CHECKS[usize::from(count / ROUTES_MAX) % PEER_CHECKS.len()]);
        let host = Host::with_table(config, routes, table);
        Some(Self { host, from, packet })
    }

    /// Returns the bytes of a scenario of [`host::routes`](super::host::routes) and, if given, a default route to next
    /// hop `default_route`.
    pub fn encode(policy: u8, mtu: u8, sender: u8, default_route: Option<u8>, packet: &[u8]) -> Vec<u8> {
        let mut routes = vec![[100, 96, 2, 0, 24, 0], [100, 96, 3, 0, 24, 1], [100, 96, 2, 240, 28, 1]];
        routes.extend(default_route.map(|hop| [0, 0, 0, 0, 0, hop]));
        let mut bytes = vec![policy, sender << 2 | mtu, routes.len() as u8];
        bytes.extend(routes.concat());
        bytes.extend(packet);
        bytes
    }
}

/// Returns the table of these routes. Building one costs a hundred times a forwarding decision, and a fuzzer mostly
/// changes packets, so tables are cached.
fn table_of_known(routes: &[Route]) -> RouteTable {
    const TABLES: usize = 256;
    std::thread_local! {
        static KNOWN: RefCell<HashMap<Vec<Route>, RouteTable>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        if known.len() >= TABLES {
            known.clear();
        }
        known.entry(routes.to_vec()).or_insert_with(|| table_of(routes)).clone()
    })
}
