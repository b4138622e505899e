//! The route tables of the benches.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{Ipv4Net, Ipv6Net};
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

/// The kinds of IPv6 tables: a small cluster, and the Internet in two forms.
pub(crate) const TABLES_V6: [Table; 3] = [
    Table { name: "256 x /64", routes: cluster_v6 },
    Table { name: "200,000 internet-like IPv6", routes: internet_like_v6 },
    Table { name: "200,000 at random IPv6", routes: random_v6 },
];

/// Returns 256 hosts, each with a /64 of fd00:96::/32.
pub(crate) fn cluster_v6() -> Vec<Route> {
    let subnet = |i: u32| net_v6(0xfd00_0096 << 96 | u128::from(i) << 80, 64);
    (0..256).map(|i| Route::new(subnet(i), host(i))).collect()
}

/// Returns 200,000 prefixes with the lengths of the global routing table, as its parts are assigned: registries have a
/// few /12 and /23, networks have /29 and /32 of these, and announce /36 to /48 of their own. A tenth is longer than /48,
/// as in overlays.
pub(crate) fn internet_like_v6() -> Vec<Route> {
    const REGISTRIES: [(u128, u8); 9] = [
        (0x2001, 16),
        (0x2400, 12),
        (0x2600, 12),
        (0x2610, 23),
        (0x2620, 23),
        (0x2800, 12),
        (0x2a00, 12),
        (0x2a10, 12),
        (0x2c00, 12),
    ];
    let mut random = Random(4);
    let mut networks = Vec::new();
    while networks.len() < 30_000 {
        let (first, len) = REGISTRIES[random.below(9) as usize];
        let assigned = if random.below(4) == 0 { 29 } else { 32 };
        networks.push((within(first << 112, len, assigned, &mut random), assigned));
    }
    unique(200_000, || {
        // A few networks announce much more than the others.
        let of = random.below(30_000);
        let (network, assigned) = networks[(of * of / 30_000) as usize];
        let len = match random.below(1000) {
            0..10 => return net_v6(network, 19 + random.below(9) as u8),
            10..100 => assigned,
            100..200 => 33 + random.below(7) as u8,
            200..350 => 40 + random.below(4) as u8,
            350..450 => 44 + random.below(4) as u8,
            450..900 => 48,
            900..950 => 49 + random.below(15) as u8,
            950..990 => 64,
            _ => 128,
        };
        net_v6(within(network, assigned, len, &mut random), len)
    })
}

/// Returns 200,000 prefixes of the same lengths at random places of 2000::/3, a tenth longer than /48.
pub(crate) fn random_v6() -> Vec<Route> {
    let mut random = Random(5);
    unique(200_000, || {
        let len = match random.below(100) {
            0..20 => 19 + random.below(13) as u8,
            20..40 => 32,
            40..55 => 33 + random.below(15) as u8,
            55..90 => 48,
            _ => 49 + random.below(80) as u8,
        };
        net_v6(within(1 << 125, 3, len, &mut random), len)
    })
}

/// Returns random bits between two lengths behind a prefix.
fn within(prefix: u128, len: u8, to: u8, random: &mut Random) -> u128 {
    let bits = u128::from(random.next()) << 64 | u128::from(random.next());
    let mask = |len: u8| u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    prefix & mask(len) | bits & mask(to) & !mask(len)
}

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

/// Returns the same for a table of IPv6 routes.
pub(crate) fn destinations_v6(routes: &[Route], count: usize) -> Vec<Ipv6Addr> {
    let mut random = Random(3);
    let mut pick = || {
        let subnet = subnet_v6(&routes[random.below(routes.len() as u64) as usize]);
        Ipv6Addr::from_bits(within(subnet.network().to_bits(), subnet.prefix_len(), 128, &mut random))
    };
    (0..count).map(|_| pick()).collect()
}

pub(crate) fn subnet(route: &Route) -> Ipv4Net {
    match route.subnet {
        ipnet::IpNet::V4(subnet) => subnet,
        ipnet::IpNet::V6(_) => unreachable!("the table is IPv4"),
    }
}

pub(crate) fn subnet_v6(route: &Route) -> Ipv6Net {
    match route.subnet {
        ipnet::IpNet::V6(subnet) => subnet,
        ipnet::IpNet::V4(_) => unreachable!("the table is IPv6"),
    }
}

fn unique<N: Copy + Eq + std::hash::Hash + Into<ipnet::IpNet>>(
    count: usize,
    mut make: impl FnMut() -> N,
) -> Vec<Route> {
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

fn net_v6(bits: u128, len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), len).trunc()
}

fn host(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0aa8_0002 + number), 8285).into()
}
