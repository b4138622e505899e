//! A Linux router in a namespace of its own. All its links end in this test.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::io;
use std::os::fd::AsFd;

use loden::ipnet::{IpNet, Ipv4Net};
use loden::sys::{PACKET_MAX, Tun, TunConfig, TunError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use testbed::Namespace;

use support::packet::{Ipv4, udp};
use support::packet_v6::Ipv6;

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
    pub(crate) address: IpAddr,
    pub(crate) mtu: u16,
    /// A source must be routed to the incoming link (RFC 3704 section 2.2). Linux has such a check for IPv4 only.
    pub(crate) strict_source: bool,
}

/// The routes for packets from some links.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) number: u8,
    pub(crate) links: Vec<Place>,
    pub(crate) routes: Vec<(IpNet, Place)>,
}

/// A packet that the router certainly forwards or answers.
#[derive(Clone, Debug)]
pub(crate) enum Marker {
    V4(Ipv4),
    V6(Ipv6),
}

impl Marker {
    fn bytes(&self, seal: &[u8]) -> Vec<u8> {
        let payload = udp(9, 9, seal);
        match self {
            Self::V4(packet) => Ipv4 { payload, ..packet.clone() }.bytes(),
            Self::V6(packet) => Ipv6 { payload, ..packet.clone() }.bytes(),
        }
    }
}

impl Link {
    /// Returns the address of a router of IPv4.
    pub(crate) fn address_v4(&self) -> Ipv4Addr {
        match self.address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => panic!("{address}"),
        }
    }
}

pub(crate) struct Router {
    ends: Vec<(Link, Tun)>,
    /// A packet for each link that always leaves by it: its entry, and its destination.
    markers: Vec<(Place, Marker)>,
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
        main: &[(IpNet, Place)],
        tables: &[Table],
        markers: Vec<(Place, Marker)>,
    ) -> Self {
        let namespace = Namespace::new().expect("these tests make network namespaces and TUN devices, and need root");
        let is_ipv6 = links[0].address.is_ipv6();
        if is_ipv6 {
            SETTINGS_V6.iter().for_each(|(path, value)| namespace.sysctl(path, value).unwrap());
        } else {
            namespace.disable_ipv6().unwrap();
            SETTINGS.iter().for_each(|(path, value)| namespace.sysctl(path, value).unwrap());
        }
        let ends: Vec<_> = links.iter().map(|link| (*link, open(&namespace, link))).collect();
        let name = |place| ends.iter().find(|(link, _)| link.place == place).unwrap().0.name;
        for (net, place) in main {
            add_route(&namespace, *net, name(*place), None).unwrap();
        }
        for table in tables {
            for (net, place) in &table.routes {
                add_route(&namespace, *net, name(*place), Some(table.number)).unwrap();
            }
            for place in &table.links {
                let (link, table) = (name(*place), table.number);
                let routed = match is_ipv6 {
                    true => namespace.route_ipv6_input(link, table),
                    false => namespace.route_input(link, table),
                };
                routed.unwrap();
            }
        }
        assert_eq!(markers.len(), links.len());
        Self { ends, markers, passed: 0, lost: None, buffer: vec![0; PACKET_MAX + 1], _namespace: namespace }
    }

    pub(crate) fn link(&self, place: Place) -> &Link {
        &self.end(place).0
    }

    /// Returns true if an address is the router's own.
    pub(crate) fn owns(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
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
            self.end(*entry).1.send(&marker.bytes(&seal)).unwrap();
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

/// The same for IPv6.
const SETTINGS_V6: [(&str, &str); 11] = [
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv6/conf/default/hop_limit", "64"),
    // No link-local addresses, no search for duplicates, no questions to routers.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    // No limit on any error: the mask selects the limited types, and there is no type 255 to limit.
    ("net/ipv6/icmp/ratemask", "255"),
    ("net/ipv6/icmp/ratelimit", "0"),
    // V19: errors have a flow label of 0. By default Linux hashes the addresses into one.
    ("net/ipv6/auto_flowlabels", "0"),
    ("net/ipv6/flowlabel_reflect", "0"),
    ("net/ipv6/icmp/echo_ignore_multicast", "1"),
];

fn add_route(namespace: &Namespace, net: IpNet, link: &str, table: Option<u8>) -> io::Result<()> {
    match (net, table) {
        (IpNet::V4(net), None) => namespace.add_route(net, None, link),
        (IpNet::V4(net), Some(table)) => namespace.add_route_to_table(table, net, link),
        (IpNet::V6(net), None) => namespace.add_ipv6_route(net, None, link),
        (IpNet::V6(net), Some(table)) => namespace.add_ipv6_route_to_table(table, net, link),
    }
}

/// Returns true for the kernel's own reports about its multicast groups (V9), which it sends at any time: to ff02::16,
/// with the hop limit 1. It forwards no packet to a group.
fn is_membership_report(packet: &[u8]) -> bool {
    const TO: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
    packet[0] >> 4 == 6 && packet.len() > 40 && packet[7] == 1 && packet[24..40] == TO
}

fn open(namespace: &Namespace, link: &Link) -> Tun {
    let config = TunConfig::new(link.name);
    let tun = namespace.enter(|| Tun::open(&config)).unwrap();
    if link.address.is_ipv4() {
        let strict = if link.strict_source { "1" } else { "0" };
        namespace.sysctl(&format!("net/ipv4/conf/{}/rp_filter", link.name), strict).unwrap();
    }
    namespace.set_mtu(link.name, link.mtu.into()).unwrap();
    namespace.set_queue_len(link.name, QUEUE).unwrap();
    // The address has no network, so that the kernel adds neither routes nor broadcast addresses.
    match link.address {
        IpAddr::V4(address) => namespace.add_address(link.name, Ipv4Net::from(address)).unwrap(),
        IpAddr::V6(address) => namespace.add_ipv6_address(link.name, address.into()).unwrap(),
    }
    namespace.set_up(link.name).unwrap();
    tun
}

/// Returns the packets that leave a link before the marker. The kernel processes one packet completely before the next,
/// so none follows the marker. Returns `None` if there is no marker.
fn until_sealed(tun: &Tun, seal: &[u8], buffer: &mut [u8]) -> Option<Vec<Vec<u8>>> {
    /// A marker arrives unchanged, or quoted by an error about it.
    const AT: [usize; 4] = [20 + 8, 20 + 8 + 20 + 8, 40 + 8, 40 + 8 + 40 + 8];
    let mut packets = Vec::new();
    loop {
        match tun.recv(buffer) {
            Ok(meta) => {
                let packet = &buffer[..meta.len];
                if AT.iter().any(|at| packet.get(*at..).is_some_and(|rest| rest.starts_with(seal))) {
                    return Some(packets);
                }
                if !is_membership_report(packet) {
                    packets.push(packet.to_vec());
                }
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
