//! Verification of a router's report: evidence that it quotes a datagram of this host (R54).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{IcmpOutcome, UNVERIFIED_MIN, VERIFIED_MIN, plateau_below};
use crate::forward::{Forwarder, SourcePort, Transit};
use crate::host::{IPV6_MTU_MIN, Overhead};
use crate::route::RouteTable;
use crate::wire::{DatagramTooBig, QuotedHeader};

/// A plausible report, with lengths in bytes of inner packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Believed {
    pub(super) peer: IpAddr,
    /// The length of the refused packet.
    pub(super) refused: u16,
    /// The longest packet that passes, according to the report.
    pub(super) mtu: u16,
    /// The smallest MTU that such a report may set.
    pub(super) least: u16,
}

/// Checks a report, or returns why it is ignored. `framing` is the overhead of a framing in bytes, if there is one: then
/// no inner header is quoted.
pub(super) fn judge(
    report: &DatagramTooBig,
    forwarder: &Forwarder,
    routes: &RouteTable,
    framing: Option<u16>,
) -> Result<Believed, IcmpOutcome> {
    let config = forwarder.config();
    let DatagramTooBig { source, destination, .. } = *report;
    let is_ours = |own: &SocketAddr| {
        let is_own_port = config.source_port == SourcePort::ByFlow || source.port() == own.port();
        source.ip() == own.ip() && is_own_port
    };
    if !config.host.underlays().iter().any(is_ours) || !routes.has_next_hop(destination) {
        return Err(IcmpOutcome::Foreign);
    }
    let (peer, inner) = (destination.ip(), report.inner.as_ref().filter(|_| framing.is_none()).map(InnerPacket::of));
    let longest = config.mtu_to(peer).get().saturating_add(framing.unwrap_or(0));
    let len = match framing {
        None => datagram_len(report, inner.as_ref()),
        // The length may be that of a GSO batch, see `datagram_len`.
        Some(_) => report.len.min(longest.saturating_add(Overhead::of(peer).get())),
    };
    // Routers older than RFC 1191 report 0. IPv6 paths carry 1280 bytes, and a report of less is wrong (RFC 8201 section
    // 4).
    let mtu = if report.mtu == 0 && peer.is_ipv4() { plateau_below(len) } else { report.mtu };
    let inner_len = |outer: u16| Overhead::of(peer).inner(outer.into());
    let is_too_small = peer.is_ipv6() && mtu < UNVERIFIED_MIN;
    if len <= mtu || is_too_small || inner_len(len) > longest {
        return Err(IcmpOutcome::Implausible);
    }
    let is_proven = match &inner {
        Some(inner) => proves(inner, len, destination, forwarder, routes)?,
        None => false,
    };
    let least = match is_proven {
        true if peer.is_ipv4() => inner_len(VERIFIED_MIN),
        // Routers quote enough of an IPv6 datagram, so that a narrower path can be proven.
        false if config.host.network_v6().is_some() => inner_len(UNVERIFIED_MIN).max(IPV6_MTU_MIN),
        _ => inner_len(UNVERIFIED_MIN),
    };
    Ok(Believed { peer, refused: inner_len(len), mtu: inner_len(mtu), least })
}

/// The inner packet whose header a report quotes.
#[derive(Clone, Copy, Debug)]
struct InnerPacket {
    /// False if the header is that of no packet.
    is_sound: bool,
    /// The length of the whole packet in bytes, from the header.
    len: u16,
    source: IpAddr,
    destination: IpAddr,
}

impl InnerPacket {
    fn of(header: &QuotedHeader) -> Self {
        match *header {
            QuotedHeader::Ipv4([version_and_length, _, l0, l1, .., a, b, c, d, e, f, g, h]) => Self {
                is_sound: (0x45..=0x4f).contains(&version_and_length),
                len: u16::from_be_bytes([l0, l1]),
                source: Ipv4Addr::new(a, b, c, d).into(),
                destination: Ipv4Addr::new(e, f, g, h).into(),
            },
            QuotedHeader::Ipv6([_, _, _, _, l0, l1, _, _, ref addresses @ ..]) => {
                let ([source, destination], _) =
                    addresses.as_chunks::<16>().0.split_first_chunk().unwrap_or((&[[0; 16]; 2], &[]));
                Self {
                    is_sound: true,
                    len: u16::from_be_bytes([l0, l1]).saturating_add(IPV6_HEADER_LEN),
                    source: Ipv6Addr::from(*source).into(),
                    destination: Ipv6Addr::from(*destination).into(),
                }
            }
        }
    }
}

/// The length of an IPv6 header in bytes (RFC 8200 section 3).
const IPV6_HEADER_LEN: u16 = 40;

/// Returns the length of the refused datagram with its outer headers.
///
/// A kernel that routes for a local container or virtual machine gets whole GSO batches. Then the quoted outer header
/// has the length of the batch (`ip_forward` in net/ipv4/ip_forward.c passes the packet to `icmp_send` unchanged). All
/// datagrams of a batch are as long as the first one, whose inner header is quoted.
fn datagram_len(report: &DatagramTooBig, inner: Option<&InnerPacket>) -> u16 {
    let overhead = Overhead::of(report.destination.ip()).get();
    inner.map_or(report.len, |inner| inner.len.saturating_add(overhead).min(report.len))
}

/// Returns true if the header of an inner packet shows that `forwarder` sent it to `peer`. Returns an error if it shows
/// that it did not.
fn proves(
    inner: &InnerPacket,
    outer_len: u16,
    peer: SocketAddr,
    forwarder: &Forwarder,
    routes: &RouteTable,
) -> Result<bool, IcmpOutcome> {
    let is_routed_there = routes.lookup(inner.destination).is_some_and(|hop| hop.address == peer);
    if !inner.is_sound || !is_routed_there {
        return Err(IcmpOutcome::Foreign);
    }
    let has_same_len = Overhead::of(peer.ip()).inner(outer_len.into()) == inner.len;
    let config = forwarder.config();
    let is_source_ours = config.host.subnets().iter().any(|subnet| subnet.contains(&inner.source))
        || config.host.underlays().iter().any(|underlay| underlay.ip() == inner.source)
        || config.transit == Transit::Allowed;
    Ok(has_same_len && is_source_ours)
}
