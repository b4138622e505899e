//! Addresses that no packet may have (RFC 1812 section 5.3.7, RFC 4291, RFC 6890).

use core::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;

use super::DropReason;
use crate::host::special;

/// Checks IPv4 addresses, the source first.
#[inline]
pub(super) fn check_v4(source: Ipv4Addr, destination: Ipv4Addr, network: &Ipv4Net) -> Result<(), DropReason> {
    if is_ordinary_v4(source) && is_ordinary_v4(destination) {
        Ok(())
    } else {
        check_special_v4(source, destination, network)
    }
}

/// Checks addresses in special ranges. If the network is inside a special range, all packets come here (R71).
#[cold]
fn check_special_v4(source: Ipv4Addr, destination: Ipv4Addr, network: &Ipv4Net) -> Result<(), DropReason> {
    match source.octets() {
        _ if special::is_made_ordinary(source, *network) => {}
        [0 | 127 | 224..=255, ..] => return Err(DropReason::MartianSource),
        [169, 254, ..] => return Err(DropReason::LinkLocal),
        _ => {}
    }
    match destination.octets() {
        _ if special::is_made_ordinary(destination, *network) => Ok(()),
        [255, 255, 255, 255] => Err(DropReason::BroadcastDestination),
        [0 | 127 | 240..=255, ..] => Err(DropReason::MartianDestination),
        [224..=239, ..] => Err(DropReason::MulticastDestination),
        [169, 254, ..] => Err(DropReason::LinkLocal),
        _ => Ok(()),
    }
}

/// Returns true if an address is certainly ordinary. 169/8 as a whole is checked further.
#[inline]
fn is_ordinary_v4(address: Ipv4Addr) -> bool {
    /// A bit for each first byte.
    #[expect(clippy::indexing_slicing, reason = "worked out by the compiler")]
    const SPECIAL: [u64; 4] = {
        let mut special = [0; 4];
        let mut first = 0;
        while first < 256 {
            if matches!(first, 0 | 127 | 169 | 224..) {
                special[first / 64] |= 1 << (first % 64);
            }
            first += 1;
        }
        special
    };
    let first = address.octets()[0];
    SPECIAL.get(usize::from(first >> 6)).is_some_and(|word| word >> (first & 63) & 1 == 0)
}

/// Checks IPv6 addresses: the destination for multicast, then the source, then the rest of the destination.
///
/// Multicast comes first, because the kernel sends router solicitations and multicast listener reports from :: and
/// link-local addresses into every new TUN. They have a reason of their own.
#[inline]
pub(super) fn check_v6(source: Ipv6Addr, destination: Ipv6Addr) -> Result<(), DropReason> {
    if is_ordinary_v6(source) && is_ordinary_v6(destination) { Ok(()) } else { check_special_v6(source, destination) }
}

#[cold]
fn check_special_v6(source: Ipv6Addr, destination: Ipv6Addr) -> Result<(), DropReason> {
    match () {
        () if destination.is_multicast() => Err(DropReason::Ipv6Multicast),
        () if source.is_multicast() || is_no_host_v6(source) => Err(DropReason::MartianSource),
        () if source.is_unicast_link_local() => Err(DropReason::LinkLocal),
        () if is_no_host_v6(destination) => Err(DropReason::MartianDestination),
        () if destination.is_unicast_link_local() => Err(DropReason::LinkLocal),
        () => Ok(()),
    }
}

/// Returns true for ::, ::1 and ::ffff:0:0/96.
pub(super) fn is_no_host_v6(address: Ipv6Addr) -> bool {
    address.is_unspecified() || address.is_loopback() || address.to_ipv4_mapped().is_some()
}

/// Returns true if an address is certainly ordinary: neither in ::/16 nor in fe80::/9 or ff00::/8.
#[inline]
fn is_ordinary_v6(address: Ipv6Addr) -> bool {
    let [first, ..] = address.segments();
    (1..0xfe80).contains(&first)
}
