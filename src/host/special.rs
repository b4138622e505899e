//! Address ranges that routers do not forward (RFC 6890), and the overlay networks inside them that are forwarded.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// 0/8, 127/8, 169.254/16 and 224/4 with the part of 240/4 that prefixes from there cover; ::/8, fe80::/10 and
/// ff00::/8.
const SPECIAL: [(IpAddr, u8); 8] = [
    (IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(LINK_LOCAL), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];
const LINK_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);
const RESERVED: Ipv4Addr = Ipv4Addr::new(240, 0, 0, 0);

/// Returns the special range that contains these addresses of a network, so that packets to none of them are forwarded
/// (R71).
///
/// A wider network is mostly forwarded. The special addresses in it stay special, and its other subnets are usable.
pub(crate) fn range_of(first: IpAddr, last: IpAddr, network: IpNet) -> Option<IpNet> {
    if first == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some(first.into());
    }
    if matches!(network, IpNet::V4(network) if makes_ordinary(network)) {
        return None;
    }
    let mut ranges = SPECIAL.iter().filter_map(|(address, len)| IpNet::new(*address, *len).ok());
    ranges.find(|range| range.contains(&first) && range.contains(&last))
}

/// Returns true if an address is ordinary because it belongs to the overlay network (R71).
pub(crate) fn is_made_ordinary(address: Ipv4Addr, network: Ipv4Net) -> bool {
    makes_ordinary(network) && network.contains(&address) && !address.is_broadcast()
}

/// Returns true if a network lies in 240/4 or 169.254/16. Linux forwards these.
fn makes_ordinary(network: Ipv4Net) -> bool {
    let is_inside = |range: Ipv4Addr, len: u8| {
        network.prefix_len() >= len && (network.addr().to_bits() ^ range.to_bits()) >> (32 - len) == 0
    };
    is_inside(RESERVED, 4) || is_inside(LINK_LOCAL, 16)
}
