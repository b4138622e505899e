//! The route tables of the benches.

use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use loden::route::Route;

/// SplitMix64: repeatable random numbers without a dependency.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A kind of route table: a small cluster, a large one, or the Internet.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) routes: fn() -> Vec<Route>,
}

pub(crate) const TABLES: [Table; 3] = [
    Table { name: "256 x /24", routes: cluster },
    Table { name: "10,000 in 10/8", routes: mixed },
    Table { name: "1,000,000 internet-like", routes: internet_like },
];

/// Returns 256 hosts, each with a /24 of 100.96.0.0/16.
pub(crate) fn cluster() -> Vec<Route> {
    let subnet = |i: u32| net(0x6460_0000 | i << 8, 24);
    (0..256).map(|i| Route::new(subnet(i), host(i))).collect()
}

/// Returns 10,000 prefixes between /16 and /28 in 10.0.0.0/8 with 1,000 next hops.
pub(crate) fn mixed() -> Vec<Route> {
    let mut random = Random(1);
    unique(10_000, || {
        let len = 16 + random.below(13) as u8;
        net(0x0a00_0000 | random.next() as u32 & 0x00ff_ffff, len)
    })
}

/// Returns a million prefixes with the lengths of the global routing table: six in ten are /24, nearly all others are
/// between /16 and /23. One in fifty is longer than /24, as in overlays.
pub(crate) fn internet_like() -> Vec<Route> {
    /// Prefix lengths with their share in thousandths.
    const SPREAD: [(u8, u64); 16] = [
        (8, 1),
        (12, 2),
        (14, 3),
        (15, 3),
        (16, 13),
        (17, 8),
        (18, 14),
        (19, 25),
        (20, 42),
        (21, 50),
        (22, 110),
        (23, 100),
        (24, 609),
        (28, 8),
        (30, 2),
        (32, 10),
    ];
    let mut random = Random(2);
    unique(1_000_000, || {
        let mut lot = random.below(1000);
        let spread = SPREAD.iter().find(|(_, share)| {
            let found = lot < *share;
            lot = lot.saturating_sub(*share);
            found
        });
        let first = 1 + random.below(223) as u32;
        net(first << 24 | random.next() as u32 & 0x00ff_ffff, spread.map_or(24, |(len, _)| *len))
    })
}

/// Returns destinations with a route, spread over the whole table.
pub(crate) fn destinations(routes: &[Route], count: usize) -> Vec<Ipv4Addr> {
    let mut random = Random(3);
    let mut pick = || {
        let subnet = subnet(&routes[random.below(routes.len() as u64) as usize]);
        let host_bits = u32::MAX.checked_shr(subnet.prefix_len().into()).unwrap_or(0);
        Ipv4Addr::from_bits(subnet.network().to_bits() | random.next() as u32 & host_bits)
    };
    (0..count).map(|_| pick()).collect()
}

pub(crate) fn subnet(route: &Route) -> Ipv4Net {
    match route.subnet {
        ipnet::IpNet::V4(subnet) => subnet,
        ipnet::IpNet::V6(_) => unreachable!("the tables are IPv4"),
    }
}

fn unique(count: usize, mut make: impl FnMut() -> Ipv4Net) -> Vec<Route> {
    let mut seen = std::collections::HashSet::new();
    let mut routes = Vec::with_capacity(count);
    while routes.len() < count {
        let subnet = make();
        if seen.insert(subnet) {
            routes.push(Route::new(subnet, host(routes.len() as u32 % 1000)));
        }
    }
    routes
}

fn net(bits: u32, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), len).trunc()
}

fn host(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0aa8_0002 + number), 8285).into()
}
