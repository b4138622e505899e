//! What each peer's path carries, learned from refusals (RFC 1191), with the clock as an argument.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use super::{Anomalies, Forwarder, SourcePort};
use crate::route::RouteTable;
use crate::wire::DatagramTooBig;
use crate::wire::ipv4::MTU_MIN;

/// The longest inner packets of the few peers whose path is narrower than the overlay's MTU.
///
/// At most [`PEERS`](Self::PEERS) of them; with more, the value learned longest ago is forgotten, and learned again when the
/// path refuses the next packet.
///
/// There are two ways to learn. On Linux the kernel hears of a narrow path, and then refuses to send what is longer
/// (EMSGSIZE): ask it how much it carries, and [`lower`](Self::lower) the value; the [`worker`](crate::worker) does so. Where
/// nobody does that for you, give [`heed`](Self::heed) the ICMP errors that come in.
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
        if self.paths.is_empty() {
            return None;
        }
        let at = self.find(peer).ok()?;
        let path = self.paths.get(at)?;
        (now.saturating_sub(path.learned) < Self::LIFETIME).then_some(path.mtu)
    }

    /// What the path to `destination` carries that refused `len` bytes of inner packet (EMSGSIZE): what is known of it, if that
    /// explains the refusal, or else what the system thinks, in bytes of outer packet (`IP_MTU`), which is then remembered.
    /// `None` if neither explains it: there is nothing that could be told to the sender.
    pub fn after_refusal(
        &mut self,
        destination: SocketAddr,
        len: usize,
        outer: impl FnOnce() -> Option<u32>,
        now: Duration,
        anomalies: &mut Anomalies,
    ) -> Option<u16> {
        let refuses = |mtu: &u16| usize::from(*mtu) < len;
        if let Some(known) = self.lookup(destination.ip(), now).filter(refuses) {
            return Some(known);
        }
        let mtu = Self::inner(outer()?, destination.ip());
        anomalies.path_mtu_lowered += u64::from(self.lower(destination.ip(), mtu, now));
        Some(mtu).filter(refuses)
    }

    /// The path to `peer` refused a packet: from now on it carries `mtu` bytes of inner packet. A value that would raise one
    /// in force is ignored, and the same value holds for another [`LIFETIME`](Self::LIFETIME). Returns whether it was news.
    pub fn lower(&mut self, peer: IpAddr, mtu: u16, now: Duration) -> bool {
        let known = self.lookup(peer, now);
        if known.is_some_and(|known| known < mtu) {
            return false;
        }
        self.set(Path { peer, mtu, learned: now });
        known != Some(mtu)
    }

    /// A router reported that a datagram was too big (R54, RFC 1191): lowers the value of its peer, if the datagram is one that
    /// `forwarder` may have sent to a next hop in `routes`.
    ///
    /// With [`SourcePort::ByFlow`] any port of our address is taken for ours.
    ///
    /// ```
    /// # use core::time::Duration;
    /// # use loden::forward::{Forwarder, Heeded, PathMtus};
    /// # use loden::route::RouteTable;
    /// # use loden::wire::DatagramTooBig;
    /// # fn icmp(packet: &[u8], forwarder: &Forwarder, routes: &RouteTable, paths: &mut PathMtus, now: Duration) {
    /// // `packet` is what a raw ICMP socket received, header included.
    /// if let Some(report) = DatagramTooBig::parse(packet)
    ///     && let Heeded::Lowered { peer, mtu } = paths.heed(&report, forwarder, routes, now)
    /// {
    ///     println!("{peer} is reached by packets of {mtu} bytes");
    /// }
    /// # }
    /// ```
    pub fn heed(
        &mut self,
        report: &DatagramTooBig,
        forwarder: &Forwarder,
        routes: &RouteTable,
        now: Duration,
    ) -> Heeded {
        let overlay = forwarder.overlay();
        let (own, source) = (overlay.underlay, SocketAddr::V4(report.source));
        let is_own_port = overlay.source_port == SourcePort::ByFlow || source.port() == own.port();
        let destination = SocketAddr::V4(report.destination);
        if source.ip() != own.ip().to_canonical() || !is_own_port || !routes.has_next_hop(destination) {
            return Heeded::Foreign;
        }
        if report.mtu < MTU_MIN {
            return Heeded::TooSmall;
        }
        let (peer, mtu) = (destination.ip(), Self::inner(report.mtu.into(), destination.ip()));
        if mtu < overlay.mtu && self.lower(peer, mtu, now) { Heeded::Lowered { peer, mtu } } else { Heeded::NotLower }
    }

    /// What an outer packet of so many bytes leaves for the inner one: 28 bytes less over IPv4, 48 less over IPv6.
    #[must_use]
    pub fn inner(outer: u32, peer: IpAddr) -> u16 {
        let overhead = match peer {
            IpAddr::V4(_) => 28,
            IpAddr::V6(_) => 48,
        };
        u16::try_from(outer.saturating_sub(overhead)).unwrap_or(u16::MAX)
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

    fn find(&self, peer: IpAddr) -> Result<usize, usize> {
        self.paths.binary_search_by_key(&peer, |path| path.peer)
    }
}

/// What became of a router's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Heeded {
    /// The datagram was not from our own underlay address and port, or for no known next hop.
    Foreign,
    /// From now on the path carries less.
    Lowered {
        /// To whom.
        peer: IpAddr,
        /// Bytes of inner packet.
        mtu: u16,
    },
    /// It says no less than what is known already.
    NotLower,
    /// It says less than the 68 bytes that every path has to carry, as routers do that are older than RFC 1191.
    TooSmall,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 168, 0, 3));

    #[test]
    fn lowers_never_raises_and_forgets_after_ten_minutes() {
        let (mut paths, start) = (PathMtus::default(), Duration::from_secs(5));
        assert_eq!(paths.lookup(PEER, start), None);
        assert!(paths.lower(PEER, 1300, start));
        assert!(!paths.lower(PEER, 1400, start) && !paths.lower(PEER, 1300, start));
        assert_eq!(paths.lookup(PEER, start), Some(1300));
        paths.lower(PEER, 1200, start);
        assert_eq!(paths.lookup(PEER, start + Duration::from_secs(599)), Some(1200));
        assert_eq!(paths.lookup(PEER, start + PathMtus::LIFETIME), None);
        paths.lower(PEER, 1400, start + PathMtus::LIFETIME);
        assert_eq!(paths.lookup(PEER, start + PathMtus::LIFETIME), Some(1400));
    }

    /// RFC 1191 section 3: no attempt to raise it soon after it was reported once more.
    #[test]
    fn a_value_that_is_confirmed_holds_for_longer() {
        let (mut paths, start) = (PathMtus::default(), Duration::ZERO);
        let late = Duration::from_secs(599);
        assert!(paths.lower(PEER, 1300, start));
        assert!(!paths.lower(PEER, 1400, late) && !paths.lower(PEER, 1300, late), "no news");
        assert_eq!(paths.lookup(PEER, late + late), Some(1300));
        assert_eq!(paths.lookup(PEER, late + PathMtus::LIFETIME), None);
    }

    #[test]
    fn an_outer_packet_leaves_room_for_an_inner_one() {
        let six = IpAddr::from([0; 16]);
        for (outer, four_left, six_left) in [(1500, 1472, 1452), (68, 40, 20), (30, 2, 0), (0, 0, 0)] {
            assert_eq!((PathMtus::inner(outer, PEER), PathMtus::inner(outer, six)), (four_left, six_left));
        }
        assert_eq!(PathMtus::inner(u32::MAX, PEER), u16::MAX);
    }

    #[test]
    fn what_is_forgotten_is_learned_anew() {
        let (mut paths, now) = (PathMtus::default(), Duration::from_secs(5));
        assert!(paths.is_empty());
        paths.lower(PEER, 1200, now);
        assert!(!paths.is_empty());
        paths.forget();
        assert!(paths.is_empty());
        assert_eq!(paths.lookup(PEER, now), None);
        assert!(paths.lower(PEER, 1300, now), "news again, although it is wider");
        assert_eq!(paths.lookup(PEER, now), Some(1300));
    }

    #[test]
    fn a_refusal_is_explained_by_what_is_known_or_by_the_system() {
        let (mut paths, mut anomalies) = (PathMtus::default(), Anomalies::default());
        let to = SocketAddr::new(PEER, 8285);
        let mut after = |len, outer| paths.after_refusal(to, len, || outer, Duration::ZERO, &mut anomalies);
        assert_eq!(after(1400, None), None, "nobody knows");
        assert_eq!(after(1400, Some(1500)), None, "1472 bytes would have passed");
        assert_eq!(after(1400, Some(1328)), Some(1300));
        assert_eq!(after(1301, None), Some(1300), "known by now");
        assert_eq!(after(1300, Some(1228)), Some(1200));
        assert_eq!(anomalies.path_mtu_lowered, 3);
    }

    #[test]
    fn a_full_table_forgets_the_oldest() {
        let mut paths = PathMtus::default();
        let peer = |i: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0aa8_0000 + i));
        for i in 0..=PathMtus::PEERS as u32 {
            paths.lower(peer(i), 1000, Duration::from_millis(u64::from(i)));
        }
        let now = Duration::from_secs(2);
        let known = (0..=PathMtus::PEERS as u32).filter(|i| paths.lookup(peer(*i), now).is_some()).count();
        assert_eq!((known, paths.lookup(peer(0), now)), (PathMtus::PEERS, None));
    }
}
