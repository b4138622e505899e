//! The path MTU of each peer, learned from refusals (RFC 1191), with the clock as an argument.

mod report;

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use self::report::{Believed, judge};
use super::{Forwarder, Stats};
use crate::host::Overhead;
use crate::route::RouteTable;
use crate::wire::DatagramTooBig;

/// A cache of the path MTUs that are smaller than the overlay's, in bytes of inner packet. With a
/// [`Framing`](crate::framing::Framing), all lengths here are those of sealed packets.
///
/// It has at most [`PEERS`](Self::PEERS) entries. When it is full, the oldest entry is removed. The MTU is learned
/// again when the path refuses the next packet.
///
/// Two events lower an MTU. Both need evidence that a stranger cannot forge:
///
/// - A router reports that a datagram was too big. [`handle_icmp`](Self::handle_icmp) verifies a packet that a raw ICMP
///   socket received.
/// - The system refuses a datagram (EMSGSIZE). [`handle_emsgsize`](Self::handle_emsgsize) evaluates the system's
///   knowledge of the path. A configured MTU explains the refusal. An MTU learned from ICMP does not, because systems
///   verify little of such a report (Linux: a socket with the quoted ports must exist). Without a verified report,
///   [`mode`](Self::mode) then tells the caller to ignore the system's MTU for that peer.
#[derive(Clone, Debug, Default)]
pub struct PathMtus {
    /// The entries, sorted by peer.
    paths: Vec<Path>,
    changes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Path {
    peer: IpAddr,
    mtu: u16,
    learned: Duration,
    mode: PathMode,
}

/// The mode of sending to a peer: the limits, and DF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PathMode {
    /// DF is set, and the system enforces the path MTU that it knows (Linux: `IP_PMTUDISC_DO`).
    #[default]
    System,
    /// DF is set, and the system enforces only the interface's MTU (`IP_PMTUDISC_PROBE`). The system has accepted an
    /// unverified report of a small path MTU.
    Probe,
    /// DF is not set (`IP_PMTUDISC_OMIT`), so routers may fragment. The path refuses even the smallest MTU that reports
    /// may set.
    Fragment,
}

/// The operating system's knowledge of the path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemPath {
    /// The configured MTU of the route or its interface, in bytes of outer packet. `None` if it is unknown.
    pub configured: Option<u32>,
    /// The MTU that the system learned from an ICMP error.
    pub learned: Option<u32>,
    /// True if ICMP errors reach [`PathMtus::handle_icmp`]. Then `learned` is ignored. Otherwise it counts as an
    /// unverified report.
    pub has_reports: bool,
}

/// The consequence of a refusal by the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmsgsizeOutcome {
    /// The path carries inner packets of this many bytes, fewer than were refused. Answer the sender.
    Limit(u16),
    /// Send the datagram again, in the peer's new [`mode`](PathMtus::mode).
    Retry,
    /// The refusal is unexplained, so the sender cannot be answered.
    Unexplained,
}

/// The consequence of a router's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IcmpOutcome {
    /// Ignored: the datagram was not from the own underlay address and port, its destination was not a known next hop,
    /// or its payload is not routed there.
    Foreign,
    /// Datagrams on this path no longer have DF.
    Fragmented {
        /// The peer.
        peer: IpAddr,
    },
    /// Ignored: the datagram was not longer than the reported MTU, or longer than any own datagram.
    Implausible,
    /// The path MTU was lowered.
    Lowered {
        /// The peer.
        peer: IpAddr,
        /// The new path MTU in bytes of inner packet.
        mtu: u16,
    },
    /// Ignored: the reported MTU is not lower than the known one.
    NotLower,
}

/// The smallest MTU that a verified report sets for an IPv4 path, in bytes: Linux's own minimum
/// (`net.ipv4.route.min_pmtu`).
const VERIFIED_MIN: u16 = 552;

/// The smallest MTU that an unverified report sets, in bytes. Every IPv6 path and nearly every IPv4 path carries it.
const UNVERIFIED_MIN: u16 = 1280;

/// Likely MTUs (RFC 1191 section 7.1), for refusals without a number.
const PLATEAUS: [u16; 11] = [65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

/// Returns the next plateau below a length, in bytes of outer packet.
fn plateau_below(len: u16) -> u16 {
    PLATEAUS.into_iter().find(|plateau| *plateau < len).unwrap_or(0)
}

impl Path {
    fn is_in_force(&self, now: Duration) -> bool {
        now.saturating_sub(self.learned) < PathMtus::LIFETIME
    }
}

impl PathMtus {
    /// The number of entries.
    pub const PEERS: usize = 1024;

    /// The time after which a longer packet is tried again (RFC 1191 section 6.3: not before 10 minutes).
    pub const LIFETIME: Duration = Duration::from_secs(600);

    /// Returns true if no entry was ever learned.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Returns the path MTU of `peer` in bytes of inner packet, if it is known. `now` is the time since any fixed
    /// moment.
    #[must_use]
    #[inline]
    pub fn lookup(&self, peer: IpAddr, now: Duration) -> Option<u16> {
        self.in_force(peer, now).map(|path| path.mtu)
    }

    /// Returns the mode of sending to `peer`.
    #[must_use]
    #[inline]
    pub fn mode(&self, peer: IpAddr, now: Duration) -> PathMode {
        self.in_force(peer, now).map_or(PathMode::System, |path| path.mode)
    }

    /// Handles the system's refusal of `len` bytes of inner packet to `destination` (EMSGSIZE). `system` is the
    /// system's knowledge of that path. Handle waiting ICMP errors first.
    ///
    /// An unexplained refusal lowers the MTU to the next plateau of RFC 1191, down to 552 bytes of outer packet (IPv6:
    /// 1280). No refusal raises an MTU.
    pub fn handle_emsgsize(
        &mut self,
        destination: SocketAddr,
        len: usize,
        system: SystemPath,
        now: Duration,
        stats: &mut Stats,
    ) -> EmsgsizeOutcome {
        let peer = destination.ip();
        let overhead = Overhead::of(peer);
        let inner = |outer: u32| overhead.inner(outer);
        let refuses = |mtu: &u16| usize::from(*mtu) < len;
        if let Some(known) = self.lookup(peer, now).filter(refuses) {
            return EmsgsizeOutcome::Limit(known);
        }
        let mode = self.mode(peer, now);
        let configured = system.configured.map(inner);
        let learned = system.learned.filter(|outer| mode == PathMode::System && refuses(&inner(*outer)));
        let limit = match (configured.filter(refuses), learned) {
            (Some(configured), _) => configured,
            (None, Some(_)) if system.has_reports => {
                self.set_mode(peer, configured.unwrap_or(u16::MAX), PathMode::Probe, now);
                return EmsgsizeOutcome::Retry;
            }
            (None, Some(learned)) => {
                let limit = inner(learned.max(UNVERIFIED_MIN.into()));
                if learned < UNVERIFIED_MIN.into() {
                    self.set_mode(peer, u16::MAX, PathMode::Fragment, now);
                }
                limit
            }
            (None, None) => {
                let outer = u16::try_from(overhead.outer(len)).unwrap_or(u16::MAX);
                let least = if peer.is_ipv4() { VERIFIED_MIN } else { UNVERIFIED_MIN };
                inner(plateau_below(outer).max(least).into())
            }
        };
        let is_explained = refuses(&limit);
        if is_explained || learned.is_some() {
            stats.path_mtu_lowered += u64::from(self.lower(peer, limit, now));
        }
        match learned {
            _ if is_explained => EmsgsizeOutcome::Limit(limit),
            Some(_) => EmsgsizeOutcome::Retry,
            None => EmsgsizeOutcome::Unexplained,
        }
    }

    /// Lowers the path MTU of `peer` to `mtu` bytes of inner packet and returns true. Returns false if the current
    /// value is equal or lower. An equal value is renewed for another [`LIFETIME`](Self::LIFETIME); a higher one is
    /// ignored.
    pub fn lower(&mut self, peer: IpAddr, mtu: u16, now: Duration) -> bool {
        let known = self.in_force(peer, now).copied();
        if known.is_some_and(|known| known.mtu < mtu) {
            return false;
        }
        let mode = known.map_or(PathMode::System, |known| known.mode);
        self.set(Path { peer, mtu, learned: now, mode });
        known.map(|known| known.mtu) != Some(mtu)
    }

    /// Handles a router's report that a datagram was too big (R54, V29, RFC 1191, RFC 8201).
    ///
    /// It lowers the MTU of the peer under two conditions. `forwarder` may have sent the quoted datagram to a next hop
    /// in `routes`. And the datagram is longer than the reported MTU.
    ///
    /// - A report may quote the header of an inner packet that is routed to that peer. It lowers the MTU to at least
    ///   552 bytes of outer packet, Linux's own minimum. Lower values are raised to it.
    /// - Anybody who knows addresses and ports can forge a report without such a header. It lowers the MTU to at least
    ///   1280 bytes of outer packet, and of inner packet if this host carries IPv6.
    /// - If such reports continue for datagrams within that minimum, datagrams to this peer no longer have DF until the
    ///   entry expires.
    /// - A report without an MTU (routers older than RFC 1191) counts as the next lower plateau of RFC 1191 section
    ///   7.1.
    /// - Over IPv6, a report of less than 1280 bytes is ignored, because every path carries 1280 bytes (RFC 8201 section
    ///   4). No report lowers the MTU below that, and DF stays.
    ///
    /// With [`SourcePort::ByFlow`](super::SourcePort::ByFlow) any source port is accepted.
    ///
    /// ```
    /// # use core::time::Duration;
    /// # use loden::forward::{Forwarder, IcmpOutcome, PathMtus};
    /// # use loden::route::RouteTable;
    /// # use loden::wire::DatagramTooBig;
    /// # fn icmp(packet: &[u8], forwarder: &Forwarder, routes: &RouteTable, paths: &mut PathMtus, now: Duration) {
    /// // `packet` is what a raw ICMP socket received, header included.
    /// if let Some(report) = DatagramTooBig::parse(packet)
    ///     && let IcmpOutcome::Lowered { peer, mtu } = paths.handle_icmp(&report, forwarder, routes, now)
    /// {
    ///     println!("{peer} is reached by packets of {mtu} bytes");
    /// }
    /// # }
    /// ```
    pub fn handle_icmp(
        &mut self,
        report: &DatagramTooBig,
        forwarder: &Forwarder,
        routes: &RouteTable,
        now: Duration,
    ) -> IcmpOutcome {
        self.handle_icmp_framed(report, forwarder, routes, None, now)
    }

    /// Handles a report about datagrams that a framing sealed, which are up to `framing` bytes longer than their
    /// packets. Their contents prove nothing, so the lengths alone count.
    pub(crate) fn handle_icmp_framed(
        &mut self,
        report: &DatagramTooBig,
        forwarder: &Forwarder,
        routes: &RouteTable,
        framing: Option<u16>,
        now: Duration,
    ) -> IcmpOutcome {
        let Believed { peer, refused, mtu, least } = match judge(report, forwarder, routes, framing) {
            Ok(believed) => believed,
            Err(ignored) => return ignored,
        };
        let whole = forwarder.config().mtu_to(peer).get().saturating_add(framing.unwrap_or(0));
        let known = self.lookup(peer, now).unwrap_or(whole);
        let mode = self.mode(peer, now);
        if mode == PathMode::Fragment {
            // Datagrams without DF are not refused, so the report is late or forged.
            return IcmpOutcome::NotLower;
        }
        if mtu < least && known <= least && refused <= least {
            self.set_mode(peer, least, PathMode::Fragment, now);
            return IcmpOutcome::Fragmented { peer };
        }
        let mtu = mtu.max(least);
        if mtu < whole && self.lower(peer, mtu, now) {
            IcmpOutcome::Lowered { peer, mtu }
        } else {
            IcmpOutcome::NotLower
        }
    }

    /// Sets the mode of a peer, with packets of at most `mtu` bytes. The lifetime of an existing entry stays.
    fn set_mode(&mut self, peer: IpAddr, mtu: u16, mode: PathMode, now: Duration) {
        let known = self.in_force(peer, now).copied().unwrap_or(Path { peer, mtu, learned: now, mode });
        self.set(Path { mtu: known.mtu.min(mtu), mode, ..known });
    }

    fn set(&mut self, path: Path) {
        let Path { peer, .. } = path;
        self.changes += 1;
        match self.find(peer) {
            Ok(at) => {
                if let Some(known) = self.paths.get_mut(at) {
                    *known = path;
                }
            }
            Err(at) if self.paths.len() < Self::PEERS => self.paths.insert(at, path),
            Err(_) => {
                let oldest = self.paths.iter().enumerate().min_by_key(|(_, path)| path.learned);
                if let Some((oldest, _)) = oldest {
                    self.paths.remove(oldest);
                }
                let at = self.find(peer).unwrap_or_else(|at| at);
                self.paths.insert(at, path);
            }
        }
    }

    /// Removes all entries. Use it when an interface of this host may have got a larger MTU. A smaller path MTU is
    /// learned again with the next packet that is too long.
    pub fn forget(&mut self) {
        self.paths.clear();
        self.changes += 1;
    }

    /// Returns a number that is another one after each change.
    #[must_use]
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Takes over the path MTUs that another host with the same underlay address and clock learned. For each peer the lower
    /// value and the stronger mode hold, until the later end. Returns true if anything changed.
    pub fn merge(&mut self, other: &Self, now: Duration) -> bool {
        let before = self.changes;
        for path in other.paths.iter().filter(|path| path.is_in_force(now)) {
            let merged = self.in_force(path.peer, now).map_or(*path, |known| Path {
                peer: path.peer,
                mtu: known.mtu.min(path.mtu),
                learned: known.learned.max(path.learned),
                mode: known.mode.max(path.mode),
            });
            if self.in_force(path.peer, now) != Some(&merged) {
                self.set(merged);
            }
        }
        self.changes != before
    }

    #[inline]
    fn in_force(&self, peer: IpAddr, now: Duration) -> Option<&Path> {
        if self.paths.is_empty() {
            return None;
        }
        let path = self.paths.get(self.find(peer).ok()?)?;
        Some(path).filter(|path| path.is_in_force(now))
    }

    fn find(&self, peer: IpAddr) -> Result<usize, usize> {
        self.paths.binary_search_by_key(&peer, |path| path.peer)
    }
}

#[cfg(test)]
mod tests;
