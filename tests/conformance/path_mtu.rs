//! R54: which ICMP errors about our own datagrams are believed, and for how long.

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use core::time::Duration;

use loden::forward::{Heeded, Overlay, PathMtus, SourcePort};
use loden::wire::DatagramTooBig;

use crate::bodies::path_mtu::{BY_FLOW, REPAIR, encode};
use crate::support::host::{Host, host_a, host_b, overlay, own, routes};
use crate::support::packet::{DF, ICMP, Ipv4, MF, RECORD_ROUTE, TCP, UDP, ones_sum, pattern, udp};

/// A router on the way.
const ROUTER: [u8; 4] = [10, 168, 0, 1];

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    address
}

/// A datagram of the tunnel, as it was on the wire.
fn datagram(from: SocketAddr, to: SocketAddr) -> Ipv4 {
    let payload = udp(from.port(), to.port(), &pattern(1472));
    Ipv4 { fragment: DF, payload, ..Ipv4::new(*v4(from).ip(), *v4(to).ip()) }
}

/// What a router says about it that quotes so many bytes.
fn report(mtu: u16, about: &Ipv4, quoted: usize) -> Ipv4 {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(about.bytes().iter().take(quoted));
    let sum = (!ones_sum(&message)).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    Ipv4 { protocol: ICMP, payload: message, ..Ipv4::new(ROUTER, about.source) }
}

/// The least that a router quotes: RFC 792.
const LEAST: usize = 28;

fn too_big(mtu: u16, from: SocketAddr, to: SocketAddr) -> DatagramTooBig {
    DatagramTooBig::parse(&report(mtu, &datagram(from, to), LEAST).bytes()).expect("a sound report")
}

struct Paths {
    host: Host,
    paths: PathMtus,
}

impl Paths {
    fn new(overlay: Overlay) -> Self {
        Self { host: Host::new(overlay, routes()), paths: PathMtus::default() }
    }

    fn heed(&mut self, report: &DatagramTooBig, now: u64) -> Heeded {
        self.paths.heed(report, &self.host.forwarder, &self.host.table, Duration::from_secs(now))
    }

    fn known(&self, peer: SocketAddr, now: u64) -> Option<u16> {
        self.paths.lookup(peer.ip(), Duration::from_secs(now))
    }
}

/// Quotes of every length from the 8 bytes of UDP header on, with options too.
#[test]
fn r54_a_report_says_who_sent_to_whom() {
    for options in [vec![], RECORD_ROUTE.to_vec(), vec![1; 40]] {
        let about = Ipv4 { options, ..datagram(own(), host_b()) };
        let header = usize::from(about.bytes()[0] & 15) * 4;
        for quoted in [header + 8, header + 9, 548, 1500] {
            let parsed = DatagramTooBig::parse(&report(1300, &about, quoted).bytes());
            let (source, destination) = (v4(own()), v4(host_b()));
            assert_eq!(parsed, Some(DatagramTooBig { mtu: 1300, source, destination }), "{quoted} bytes");
        }
        for quoted in [0, 1, 19, header - 1, header, header + 7] {
            assert_eq!(DatagramTooBig::parse(&report(1300, &about, quoted).bytes()), None, "{quoted} bytes");
        }
    }
}

/// Behind a header with options, and with bytes behind the message.
#[test]
fn r54_the_report_may_have_options_and_a_trailer() {
    let packet = report(1300, &datagram(own(), host_a()), LEAST);
    let packet = Ipv4 { options: RECORD_ROUTE.to_vec(), trailer: vec![0xee; 9], ..packet };
    assert_eq!(DatagramTooBig::parse(&packet.bytes()), Some(too_big(1300, own(), host_a())));
}

#[test]
fn r54_anything_else_says_nothing() {
    let about = datagram(own(), host_a());
    let sound = report(1300, &about, 100);
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut message = sound.payload.clone();
        edit(&mut message);
        message[2..4].fill(0);
        let sum = (!ones_sum(&message)).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        Ipv4 { payload: message, ..sound.clone() }
    };
    assert!(DatagramTooBig::parse(&with(&|_| {}).bytes()).is_some());
    let others = [
        ("echo", with(&|message| message[0] = 8)),
        ("port unreachable", with(&|message| message[1] = 3)),
        ("no ICMP", Ipv4 { protocol: UDP, ..sound.clone() }),
        ("IP checksum", Ipv4 { checksum: Some(0xdead), ..sound.clone() }),
        ("cut", Ipv4 { cut: Some(80), ..sound.clone() }),
        ("quote of IPv6", with(&|message| message[8] = 0x65)),
        ("quote with a short header", with(&|message| message[8] = 0x44)),
        ("quote of TCP", report(1300, &Ipv4 { protocol: TCP, ..about.clone() }, 100)),
        ("quote without DF", report(1300, &Ipv4 { fragment: 0, ..about.clone() }, 100)),
        ("quote of a first fragment", report(1300, &Ipv4 { fragment: DF | MF, ..about.clone() }, 100)),
        ("quote of a later fragment", report(1300, &Ipv4 { fragment: DF | 1, ..about }, 100)),
    ];
    for (what, packet) in others {
        assert_eq!(DatagramTooBig::parse(&packet.bytes()), None, "{what}");
    }
    let bytes = sound.bytes();
    for (at, bit) in (20..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << bit;
        assert_eq!(DatagramTooBig::parse(&flipped), None, "the ICMP checksum, bit {bit} of byte {at}");
    }
}

/// From our own address and port, to a next hop and its port: everything else is nobody's datagram.
#[test]
fn r54_only_a_datagram_of_ours_counts() {
    let mut paths = Paths::new(overlay());
    let at = |address: SocketAddr, port| SocketAddr::new(address.ip(), port);
    let elsewhere = |last| SocketAddr::from((Ipv4Addr::new(10, 168, 0, last), 8285));
    let foreign = [
        (elsewhere(9), host_a()),
        (at(own(), 8286), host_a()),
        (own(), elsewhere(9)),
        (own(), at(host_a(), 8286)),
        (own(), own()),
        (host_a(), own()),
    ];
    for (from, to) in foreign {
        assert_eq!(paths.heed(&too_big(1300, from, to), 1), Heeded::Foreign, "{from} to {to}");
        assert_eq!(paths.known(to, 1), None);
    }
    let peer = host_a().ip();
    assert_eq!(paths.heed(&too_big(1300, own(), host_a()), 1), Heeded::Lowered { peer, mtu: 1272 });
    assert_eq!((paths.known(host_a(), 1), paths.known(host_b(), 1)), (Some(1272), None));

    let mut by_flow = Paths::new(Overlay { source_port: SourcePort::ByFlow, ..overlay() });
    let from_any_port = too_big(1300, at(own(), 40_000), host_a());
    assert_eq!(by_flow.heed(&from_any_port, 1), Heeded::Lowered { peer, mtu: 1272 });
    assert_eq!(by_flow.heed(&too_big(1300, elsewhere(9), host_a()), 1), Heeded::Foreign);
}

/// Below 68, above the current value: ignored. Never raised, and up again after ten minutes.
#[test]
fn r54_a_value_only_falls_and_holds_for_ten_minutes() {
    let mut paths = Paths::new(overlay());
    let mut heed = |mtu, now| paths.heed(&too_big(mtu, own(), host_a()), now);
    for mtu in [0, 1, 67] {
        assert_eq!(heed(mtu, 1), Heeded::TooSmall);
    }
    for mtu in [1500, 1501, u16::MAX] {
        assert_eq!(heed(mtu, 1), Heeded::NotLower, "no less than the overlay's");
    }
    let lowered = |mtu| Heeded::Lowered { peer: host_a().ip(), mtu };
    assert_eq!(heed(1499, 2), lowered(1471));
    assert_eq!(heed(1000, 100), lowered(972));
    for mtu in [1001, 1499, 1500, 0] {
        assert_ne!(heed(mtu, 699), lowered(mtu.saturating_sub(28)));
    }
    assert_eq!(heed(68, 699), lowered(40));
    assert_eq!(paths.known(host_a(), 1298), Some(40));
    assert_eq!(paths.known(host_a(), 1299), None, "ten minutes after it was learned");
    assert_eq!(paths.heed(&too_big(1400, own(), host_a()), 1299), lowered(1372));
}

/// The seeds of the fuzz target.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let of = |mtu, from, to| report(mtu, &datagram(from, to), LEAST).bytes();
    let ordinary = || of(1300, own(), host_a());
    let about = || datagram(own(), host_a());
    let one = |packet: Vec<u8>| encode(0, [(0, packet.as_slice())]);
    let several =
        |reports: &[(u8, Vec<u8>)]| encode(0, reports.iter().map(|(wait, packet)| (*wait, packet.as_slice())));
    let stranger = SocketAddr::from(([10, 168, 0, 9], 8285));
    let other_port = SocketAddr::new(own().ip(), 40_000);
    vec![
        ("bad-icmp-checksum", one([&ordinary()[..55], &[1]].concat())),
        ("below-68", one(of(67, own(), host_a()))),
        ("by-flow", encode(BY_FLOW, [(0, of(1300, other_port, host_a()).as_slice())])),
        ("confirmed", several(&[(0, ordinary()), (59, ordinary()), (59, of(1400, own(), host_a())), (2, vec![])])),
        ("echo", one(Ipv4 { protocol: ICMP, payload: crate::support::packet::icmp(8, 0, b"ping"), ..about() }.bytes())),
        ("empty", vec![]),
        ("exactly-68", one(of(68, own(), host_a()))),
        ("falls-and-rises", several(&[(0, ordinary()), (1, of(1200, own(), host_a())), (60, ordinary())])),
        ("from-a-stranger", one(of(1300, stranger, host_a()))),
        ("no-lower-than-the-overlay", one(of(1500, own(), host_a()))),
        ("ordinary", one(ordinary())),
        ("other-port", one(of(1300, other_port, host_a()))),
        ("quote-of-a-fragment", one(report(1300, &Ipv4 { fragment: DF | MF, ..about() }, LEAST).bytes())),
        ("quote-of-seven-bytes", one(report(1300, &about(), LEAST - 1).bytes())),
        ("quote-of-tcp", one(report(1300, &Ipv4 { protocol: TCP, ..about() }, LEAST).bytes())),
        ("quote-with-options", one(report(1300, &Ipv4 { options: vec![1; 40], ..about() }, 120).bytes())),
        ("quote-without-df", one(report(1300, &Ipv4 { fragment: 0, ..about() }, LEAST).bytes())),
        ("repaired", encode(REPAIR, [(0, ordinary().as_slice()), (9, of(700, own(), host_b()).as_slice())])),
        ("to-a-stranger", one(of(1300, own(), stranger))),
        ("two-peers", several(&[(0, ordinary()), (0, of(600, own(), host_b()))])),
        ("with-options", one(Ipv4 { options: RECORD_ROUTE.to_vec(), ..report(1300, &about(), LEAST) }.bytes())),
        ("zero", one(of(0, own(), host_a()))),
    ]
}
