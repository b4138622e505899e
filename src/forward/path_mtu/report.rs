//! Verification of a router's report: evidence that it quotes a datagram of this host (R54).

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{IcmpOutcome, UNVERIFIED_MIN, VERIFIED_MIN, plateau_below};
use crate::forward::{Forwarder, SourcePort, Transit};
use crate::host::Overhead;
use crate::route::RouteTable;
use crate::wire::DatagramTooBig;
use crate::wire::ipv4::HEADER_LEN;

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

/// Checks a report, or returns why it is ignored.
pub(super) fn judge(
    report: &DatagramTooBig,
    forwarder: &Forwarder,
    routes: &RouteTable,
) -> Result<Believed, IcmpOutcome> {
    let config = forwarder.config();
    let (own, source) = (config.host.underlay(), SocketAddr::V4(report.source));
    let is_own_port = config.source_port == SourcePort::ByFlow || source.port() == own.port();
    let destination = SocketAddr::V4(report.destination);
    if source.ip() != own.ip() || !is_own_port || !routes.has_next_hop(destination) {
        return Err(IcmpOutcome::Foreign);
    }
    let (peer, len) = (destination.ip(), datagram_len(report));
    // Routers older than RFC 1191 report 0.
    let mtu = if report.mtu == 0 { plateau_below(len) } else { report.mtu };
    let inner = |outer: u16| Overhead::of(peer).inner(outer.into());
    if len <= mtu || inner(len) > config.mtu.get() {
        return Err(IcmpOutcome::Implausible);
    }
    let is_proven = match &report.inner {
        Some(header) => proves(header, len, destination, forwarder, routes)?,
        None => false,
    };
    let least = if is_proven { VERIFIED_MIN } else { UNVERIFIED_MIN };
    Ok(Believed { peer, refused: inner(len), mtu: inner(mtu), least: inner(least) })
}

/// Returns the length of the refused datagram with its outer headers.
///
/// A kernel that routes for a local container or virtual machine gets whole GSO batches. Then the quoted outer header
/// has the length of the batch (`ip_forward` in net/ipv4/ip_forward.c passes the packet to `icmp_send` unchanged). All
/// datagrams of a batch are as long as the first one, whose inner header is quoted.
fn datagram_len(report: &DatagramTooBig) -> u16 {
    let first =
        report.inner.map(|[_, _, l0, l1, ..]| u16::from_be_bytes([l0, l1]).saturating_add(Overhead::IPV4.get()));
    first.map_or(report.len, |first| first.min(report.len))
}

/// Returns true if the first bytes of an inner packet show that `forwarder` sent it to `peer`. Returns an error if they
/// show that it did not.
fn proves(
    header: &[u8; HEADER_LEN],
    outer_len: u16,
    peer: SocketAddr,
    forwarder: &Forwarder,
    routes: &RouteTable,
) -> Result<bool, IcmpOutcome> {
    let &[version_and_length, _, l0, l1, .., a, b, c, d, e, f, g, h] = header;
    let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
    let is_routed_there = routes.lookup_v4(destination).is_some_and(|hop| hop.address == peer);
    if !(0x45..=0x4f).contains(&version_and_length) || !is_routed_there {
        return Err(IcmpOutcome::Foreign);
    }
    let has_same_len = Overhead::of(peer.ip()).inner(outer_len.into()) == u16::from_be_bytes([l0, l1]);
    let config = forwarder.config();
    let is_source_ours = forwarder.owns(source)
        || config.host.underlay().ip() == IpAddr::V4(source)
        || config.transit == Transit::Allowed;
    Ok(has_same_len && is_source_ours)
}
