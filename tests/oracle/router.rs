//! A Linux router in a namespace of its own. All its links end in this test.

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::os::fd::AsFd;

use loden::ipnet::Ipv4Net;
use loden::sys::{PACKET_MAX, Tun, TunConfig, TunError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use testbed::Namespace;

use support::packet::{Ipv4, udp};

/// The timeout of what takes microseconds.
const SOON: Duration = Duration::from_secs(20);

/// The queue length of the links: more than the fragments of any packet, so that none is lost.
const QUEUE: u32 = 10_000;

/// The beginning of a marker's payload. No test packet contains it.
const MAGIC: [u8; 8] = *b"MARKER\xfb\xfb";

/// The source or destination of a packet: the own TUN, a peer, or an unused link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tun,
    Peer(SocketAddr),
    Nowhere,
}

/// The settings of a link, and its place on loden's side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) place: Place,
    pub(crate) name: &'static str,
    /// The router's own address on it.
    pub(crate) address: Ipv4Addr,
    pub(crate) mtu: u16,
    /// A source must be routed to the incoming link (RFC 3704 section 2.2).
    pub(crate) strict_source: bool,
}

/// The routes for packets from some links.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) number: u8,
    pub(crate) links: Vec<Place>,
    pub(crate) routes: Vec<(Ipv4Net, Place)>,
}

pub(crate) struct Router {
    ends: Vec<(Link, Tun)>,
    /// A packet for each link that always leaves by it: its entry, and its destination.
    markers: Vec<(Place, Ipv4)>,
    passed: u64,
    /// The first lost marker. Later results are unknown.
    lost: Option<String>,
    buffer: Vec<u8>,
    _namespace: Namespace,
}

impl Router {
    /// Creates a router. `main` has the routes of its own packets and of the source check. Each of the `markers` leaves
    /// by the link of the same number.
    pub(crate) fn new(
        links: &[Link],
        main: &[(Ipv4Net, Place)],
        tables: &[Table],
        markers: Vec<(Place, Ipv4)>,
    ) -> Self {
        let namespace = Namespace::new().expect("these tests make network namespaces and TUN devices, and need root");
        namespace.disable_ipv6().unwrap();
        for (path, value) in SETTINGS {
            namespace.sysctl(path, value).unwrap();
        }
        let ends: Vec<_> = links.iter().map(|link| (*link, open(&namespace, link))).collect();
        let name = |place| ends.iter().find(|(link, _)| link.place == place).unwrap().0.name;
        for (net, place) in main {
            namespace.add_route(*net, None, name(*place)).unwrap();
        }
        for table in tables {
            for (net, place) in &table.routes {
                namespace.add_route_to_table(table.number, *net, name(*place)).unwrap();
            }
            for place in &table.links {
                namespace.route_input(name(*place), table.number).unwrap();
            }
        }
        assert_eq!(markers.len(), links.len());
        Self { ends, markers, passed: 0, lost: None, buffer: vec![0; PACKET_MAX + 1], _namespace: namespace }
    }

    pub(crate) fn link(&self, place: Place) -> &Link {
        &self.end(place).0
    }

    /// Returns true if an address is the router's own.
    pub(crate) fn owns(&self, address: Ipv4Addr) -> bool {
        self.ends.iter().any(|(link, _)| link.address == address)
    }

    /// Returns all output of the router for a packet that enters by this link, in the order of the links.
    pub(crate) fn pass(&mut self, entry: Place, packet: &[u8]) -> Vec<(Place, Vec<u8>)> {
        if let Some(lost) = &self.lost {
            panic!("{lost}");
        }
        match self.end(entry).1.send(packet) {
            // A TUN device refuses a packet of neither version (EINVAL), which equals a drop without an ICMP error.
            Ok(()) | Err(TunError::Rejected(_)) => {}
            Err(error) => panic!("{error}: {packet:02x?}"),
        }
        self.passed += 1;
        let seal = [MAGIC, self.passed.to_be_bytes()].concat();
        for (entry, marker) in &self.markers {
            let marker = Ipv4 { payload: udp(9, 9, &seal), ..marker.clone() };
            self.end(*entry).1.send(&marker.bytes()).unwrap();
        }
        let mut seen = Vec::new();
        for (link, tun) in &self.ends {
            match until_sealed(tun, &seal, &mut self.buffer) {
                Some(packets) => seen.extend(packets.into_iter().map(|packet| (link.place, packet))),
                None => self.lost = Some(format!("a marker did not come out of {}, behind {packet:02x?}", link.name)),
            }
        }
        match &self.lost {
            None => seen,
            Some(lost) => panic!("{lost}"),
        }
    }

    fn end(&self, place: Place) -> &(Link, Tun) {
        self.ends.iter().find(|(link, _)| link.place == place).unwrap()
    }
}

/// The settings that the router must not inherit from this host.
const SETTINGS: [(&str, &str); 16] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/ip_default_ttl", "64"),
    // No limit on any error: the mask selects the limited types, by the host's limit and by those per target. Only the
    // limit of network unreachable is left (`ip_error` in net/ipv4/route.c): 5, and then one a second, for each source.
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    // The source of an error is the preferred address of the route back.
    ("net/ipv4/icmp_errors_use_inbound_ifaddr", "0"),
    ("net/ipv4/icmp_echo_ignore_broadcasts", "1"),
    // Sources are checked on the links that require it.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Packets with a source route are dropped, as in loden (RFC 7126).
    ("net/ipv4/conf/all/accept_source_route", "0"),
    ("net/ipv4/conf/default/accept_source_route", "0"),
    // 127/8 and the router's own addresses are martians, as with any router.
    ("net/ipv4/conf/default/route_localnet", "0"),
    ("net/ipv4/conf/default/accept_local", "0"),
    // R49; and nothing for the kernel's log.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/log_martians", "0"),
    ("net/ipv4/conf/default/log_martians", "0"),
];

fn open(namespace: &Namespace, link: &Link) -> Tun {
    let config = TunConfig::new(link.name);
    let tun = namespace.enter(|| Tun::open(&config)).unwrap();
    let strict = if link.strict_source { "1" } else { "0" };
    namespace.sysctl(&format!("net/ipv4/conf/{}/rp_filter", link.name), strict).unwrap();
    namespace.set_mtu(link.name, link.mtu.into()).unwrap();
    namespace.set_queue_len(link.name, QUEUE).unwrap();
    // The address has no network, so that the kernel adds neither routes nor broadcast addresses.
    namespace.add_address(link.name, Ipv4Net::from(link.address)).unwrap();
    namespace.set_up(link.name).unwrap();
    tun
}

/// Returns the packets that leave a link before the marker. The kernel processes one packet completely before the next,
/// so none follows the marker. Returns `None` if there is no marker.
fn until_sealed(tun: &Tun, seal: &[u8], buffer: &mut [u8]) -> Option<Vec<Vec<u8>>> {
    /// A marker arrives unchanged, or quoted by an error about it.
    const AT: [usize; 2] = [20 + 8, 20 + 8 + 20 + 8];
    let mut packets = Vec::new();
    loop {
        match tun.recv(buffer) {
            Ok(meta) => {
                let packet = &buffer[..meta.len];
                if AT.iter().any(|at| packet.get(*at..).is_some_and(|rest| rest.starts_with(seal))) {
                    return Some(packets);
                }
                packets.push(packet.to_vec());
            }
            Err(TunError::WouldBlock) => {
                let mut watched = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
                if poll(&mut watched, PollTimeout::try_from(SOON).unwrap()).unwrap() == 0 {
                    return None;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}
