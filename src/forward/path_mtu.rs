//! Path MTU of each peer, learned from refusals (RFC 1191), with the clock as an argument.

mod report;

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use self::report::{Believed, judge};
use super::{Forwarder, Stats};
use crate::route::RouteTable;
use crate::wire::DatagramTooBig;

/// The longest inner packets of the few peers whose path is narrower than the overlay's MTU.
///
/// At most [`PEERS`](Self::PEERS) of them. When it is full, the value learned longest ago is forgotten, and learned again when
/// the path refuses the next packet.
///
/// Two events lower a value, and each needs a report that a stranger could not have sent:
///
/// - A router reports that a datagram was too big. [`handle_icmp`](Self::handle_icmp) takes what a raw ICMP socket received and
///   checks it.
/// - The system refuses a datagram (EMSGSIZE). [`handle_emsgsize`](Self::handle_emsgsize) takes what the system knows of the
///   path. A configured MTU explains the refusal. An MTU that the system learned from ICMP does not, because systems verify
///   little of such a report (Linux: that a socket with the quoted ports exists). Without a report of our own,
///   [`mode`](Self::mode) then tells to send to that peer without regard to it.
#[derive(Clone, Debug, Default)]
pub struct PathMtus {
    /// Sorted by peer.
    paths: Vec<Path>,
}

#[derive(Clone, Copy, Debug)]
struct Path {
    peer: IpAddr,
    mtu: u16,
    learned: Duration,
    mode: PathMode,
}

/// A way to send to a peer: within which limits, and with or without DF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathMode {
    /// DF is set, and all that the system knows of the path is a limit (Linux: `IP_PMTUDISC_DO`).
    #[default]
    System,
    /// DF is set, and the interface's MTU alone is a limit (`IP_PMTUDISC_PROBE`). The system believes a report of a narrow path
    /// that was not verified.
    Probe,
    /// DF is not set (`IP_PMTUDISC_OMIT`), so that routers fragment. The path refuses even the least that reports may lower it
    /// to.
    Fragment,
}

/// The operating system's knowledge of the path to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemPath {
    /// The MTU that is configured, in bytes of outer packet: the route's, or its interface's. `None` if it cannot be had.
    pub configured: Option<u32>,
    /// The MTU that the system learned from an ICMP error, if it did.
    pub learned: Option<u32>,
    /// True if ICMP errors reach [`PathMtus::handle_icmp`]. Then `learned` is not used. Otherwise it is taken for an unverified
    /// report.
    pub has_reports: bool,
}

/// The consequence of a refusal by the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EmsgsizeOutcome {
    /// The path carries inner packets of so many bytes, fewer than were refused: tell the sender.
    Limit(u16),
    /// Send it again, in the peer's new [`mode`](PathMtus::mode).
    Retry,
    /// Nothing explains it: there is nothing to tell the sender.
    Unexplained,
}

/// The consequence of a router's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IcmpOutcome {
    /// Ignored: the datagram was not from our own underlay address and port, was for no known next hop, or does not contain a
    /// packet that is routed there.
    Foreign,
    /// From now on the path is sent to without DF.
    Fragmented {
        /// To whom.
        peer: IpAddr,
    },
    /// Ignored: the datagram was no longer than what the report says would have passed, or is longer than any of ours.
    Implausible,
    /// From now on the path carries less.
    Lowered {
        /// To whom.
        peer: IpAddr,
        /// Bytes of inner packet.
        mtu: u16,
    },
    /// It says no less than what is known already.
    NotLower,
}

/// The least MTU in bytes that a verified report lowers an IPv4 path to: Linux's own (`net.ipv4.route.min_pmtu`).
const VERIFIED_MIN: u16 = 552;

/// The least MTU in bytes that an unverified report lowers a path to: what every IPv6 path carries, and nearly every IPv4 path.
const UNVERIFIED_MIN: u16 = 1280;

/// Likely MTUs (RFC 1191 section 7.1), for refusals without a number.
const PLATEAUS: [u16; 11] = [65_535, 32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

/// The next plateau below a length, in bytes of outer packet.
fn plateau_below(len: u16) -> u16 {
    PLATEAUS.into_iter().find(|plateau| *plateau < len).unwrap_or(0)
}

impl PathMtus {
    /// How many peers are remembered.
    pub const PEERS: usize = 1024;

    /// How long a value holds before a longer packet is tried again (RFC 1191 6.3: not before 10 minutes).
    pub const LIFETIME: Duration = Duration::from_secs(600);

    /// Whether nothing was ever learned.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// What is known of the path to `peer`, in bytes of inner packet. `now` is the time since any fixed moment.
    #[must_use]
    #[inline]
    pub fn lookup(&self, peer: IpAddr, now: Duration) -> Option<u16> {
        self.in_force(peer, now).map(|path| path.mtu)
    }

    /// Returns the way to send to `peer`.
    #[must_use]
    #[inline]
    pub fn mode(&self, peer: IpAddr, now: Duration) -> PathMode {
        self.in_force(peer, now).map_or(PathMode::System, |path| path.mode)
    }

    /// Handles that the system refused `len` bytes of inner packet to `destination` (EMSGSIZE), of whose path it knows `system`.
    /// Handle the ICMP errors that are waiting first.
    ///
    /// A refusal that nothing explains goes down the plateaus of RFC 1191, to 552 bytes of outer packet at least (IPv6: 1280).
    /// None of that raises a value.
    pub fn handle_emsgsize(
        &mut self,
        destination: SocketAddr,
        len: usize,
        system: SystemPath,
        now: Duration,
        stats: &mut Stats,
    ) -> EmsgsizeOutcome {
        let peer = destination.ip();
        let inner = |outer: u32| Self::inner(outer, peer);
        let refuses = |mtu: &u16| usize::from(*mtu) < len;
        if let Some(known) = self.lookup(peer, now).filter(refuses) {
            return EmsgsizeOutcome::Limit(known);
        }
        let mode = self.mode(peer, now);
        let configured = system.configured.map(inner);
        let learned = system.learned.filter(|outer| mode == PathMode::System && refuses(&inner(*outer)));
        let limit = match (configured.filter(refuses), learned) {
            (Some(configured), _) => configured,
            // IPv6 paths carry 1280 bytes, and Linux learns no less.
            (None, Some(_)) if system.has_reports && peer.is_ipv4() => {
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
                let outer = u16::try_from(len + Self::overhead(peer)).unwrap_or(u16::MAX);
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

    /// The path to `peer` refused a packet: from now on it carries `mtu` bytes of inner packet. A value that would raise one
    /// in force is ignored, and the same value holds for another [`LIFETIME`](Self::LIFETIME). Returns whether it was news.
    pub fn lower(&mut self, peer: IpAddr, mtu: u16, now: Duration) -> bool {
        let known = self.in_force(peer, now).copied();
        if known.is_some_and(|known| known.mtu < mtu) {
            return false;
        }
        let mode = known.map_or(PathMode::System, |known| known.mode);
        self.set(Path { peer, mtu, learned: now, mode });
        known.map(|known| known.mtu) != Some(mtu)
    }

    /// Handles a router's report that a datagram was too big (R54, RFC 1191). It lowers the value of its peer, if the quote is of
    /// a datagram that `forwarder` may have sent to a next hop in `routes`, and that is longer than the MTU that is reported.
    ///
    /// - A report that quotes the header of a packet of ours which is routed to that peer lowers down to 552 bytes of outer
    ///   packet, Linux's own least; lower values are taken for it.
    /// - A report that quotes no such header could come from anybody who knows the addresses and ports. It lowers down to 1280.
    /// - When such reports go on about datagrams that are no longer than that, the path is sent to without DF, until the value
    ///   is forgotten.
    /// - A report without an MTU (routers older than RFC 1191) is taken for the next lower plateau of its section 7.1.
    ///
    /// Any port of our address is taken for ours with [`SourcePort::ByFlow`](super::SourcePort::ByFlow).
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
        let Believed { peer, refused, mtu, least } = match judge(report, forwarder, routes) {
            Ok(believed) => believed,
            Err(ignored) => return ignored,
        };
        let known = self.lookup(peer, now).unwrap_or(forwarder.overlay().mtu);
        let mode = self.mode(peer, now);
        if mode == PathMode::Fragment {
            // Datagrams without DF are not refused: the report is late, or false.
            return IcmpOutcome::NotLower;
        }
        if mtu < least && known <= least && refused <= least {
            self.set_mode(peer, least, PathMode::Fragment, now);
            return IcmpOutcome::Fragmented { peer };
        }
        let mtu = mtu.max(least);
        if mtu < forwarder.overlay().mtu && self.lower(peer, mtu, now) {
            IcmpOutcome::Lowered { peer, mtu }
        } else {
            IcmpOutcome::NotLower
        }
    }

    /// What an outer packet of so many bytes leaves for the inner one: 28 bytes less over IPv4, 48 less over IPv6.
    #[must_use]
    pub fn inner(outer: u32, peer: IpAddr) -> u16 {
        let left = (outer as usize).saturating_sub(Self::overhead(peer));
        u16::try_from(left).unwrap_or(u16::MAX)
    }

    /// Bytes of IP and UDP header.
    fn overhead(peer: IpAddr) -> usize {
        match peer {
            IpAddr::V4(_) => 28,
            IpAddr::V6(_) => 48,
        }
    }

    /// Changes how a peer is sent to, with packets of `mtu` bytes at most. What is known of its path holds as long as before.
    fn set_mode(&mut self, peer: IpAddr, mtu: u16, mode: PathMode, now: Duration) {
        let known = self.in_force(peer, now).copied().unwrap_or(Path { peer, mtu, learned: now, mode });
        self.set(Path { mtu: known.mtu.min(mtu), mode, ..known });
    }

    fn set(&mut self, path: Path) {
        let Path { peer, .. } = path;
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

    /// Forgets what was learned, of all peers: for when our own end of the paths may have become wider. What a path itself
    /// refuses is learned again with the next packet that is too long for it.
    pub fn forget(&mut self) {
        self.paths.clear();
    }

    #[inline]
    fn in_force(&self, peer: IpAddr, now: Duration) -> Option<&Path> {
        if self.paths.is_empty() {
            return None;
        }
        let path = self.paths.get(self.find(peer).ok()?)?;
        (now.saturating_sub(path.learned) < Self::LIFETIME).then_some(path)
    }

    fn find(&self, peer: IpAddr) -> Result<usize, usize> {
        self.paths.binary_search_by_key(&peer, |path| path.peer)
    }
}

#[cfg(test)]
mod tests;
