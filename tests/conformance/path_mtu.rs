//! R54: the ICMP errors about loden's datagrams that are accepted, and their lifetime.

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use core::time::Duration;

use loden::forward::{ForwarderConfig, IcmpOutcome, PathMode, PathMtus, SourcePort, Transit};
use loden::wire::{DatagramTooBig, QuotedHeader};

use bodies::path_mtu::{BY_FLOW, REPAIR, encode};
use support::host::{Host, NOBODY, POD, POD_A, POD_B, config, host_a, host_b, own, routes};
use support::packet::{DF, ICMP, Ipv4, MF, RECORD_ROUTE, TCP, UDP, ones_sum, pattern, udp};

/// A router on the way.
const ROUTER: [u8; 4] = [10, 168, 0, 1];

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("{address} is no IPv4 address") };
    address
}

/// Returns a datagram of the tunnel as on the wire, with a packet of a local pod for a pod of that host.
fn datagram(from: SocketAddr, to: SocketAddr) -> Ipv4 {
    with_inner(from, to, &inner(to))
}

fn inner(to: SocketAddr) -> Ipv4 {
    Ipv4 { payload: pattern(1452), ..Ipv4::new(POD, if to == host_b() { POD_B } else { POD_A }) }
}

fn with_inner(from: SocketAddr, to: SocketAddr, inner: &Ipv4) -> Ipv4 {
    let payload = udp(from.port(), to.port(), &inner.bytes());
    Ipv4 { fragment: DF, payload, ..Ipv4::new(*v4(from).ip(), *v4(to).ip()) }
}

/// Returns a router's report about the packet that quotes this many bytes.
fn report(mtu: u16, about: &Ipv4, quoted: usize) -> Ipv4 {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(about.bytes().iter().take(quoted));
    let sum = (!ones_sum(&message)).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    Ipv4 { protocol: ICMP, payload: message, ..Ipv4::new(ROUTER, about.source) }
}

/// The shortest quote of a router: RFC 792.
const LEAST: usize = 28;

/// A quote with the header of the inner packet, as RFC 1812 requires.
const MORE: usize = 548;

fn parsed(mtu: u16, about: &Ipv4, quoted: usize) -> DatagramTooBig {
    DatagramTooBig::parse(&report(mtu, about, quoted).bytes()).expect("a sound report")
}

fn too_big(mtu: u16, from: SocketAddr, to: SocketAddr) -> DatagramTooBig {
    parsed(mtu, &datagram(from, to), MORE)
}

struct Paths {
    host: Host,
    paths: PathMtus,
}

impl Paths {
    fn new(config: ForwarderConfig) -> Self {
        Self { host: Host::new(config, routes()), paths: PathMtus::default() }
    }

    fn handle(&mut self, report: &DatagramTooBig, now: u64) -> IcmpOutcome {
        self.paths.handle_icmp(report, &self.host.forwarder, &self.host.table, Duration::from_secs(now))
    }

    fn known(&self, peer: SocketAddr, now: u64) -> Option<u16> {
        self.paths.lookup(peer.ip(), Duration::from_secs(now))
    }

    fn mode(&self, peer: SocketAddr, now: u64) -> PathMode {
        self.paths.mode(peer.ip(), Duration::from_secs(now))
    }
}

fn lowered(peer: SocketAddr, mtu: u16) -> IcmpOutcome {
    IcmpOutcome::Lowered { peer: peer.ip(), mtu }
}

/// Quotes of every length from the 8 bytes of UDP header on, also with options.
#[test]
fn r54_a_report_says_who_sent_to_whom() {
    for options in [vec![], RECORD_ROUTE.to_vec(), vec![1; 40]] {
        let about = Ipv4 { options, ..datagram(own(), host_b()) };
        let header = usize::from(about.bytes()[0] & 15) * 4;
        for quoted in [header + 8, header + 9, header + 27, header + 28, 548, 1500] {
            let parsed = DatagramTooBig::parse(&report(1300, &about, quoted).bytes());
            let (source, destination, bytes) = (own(), host_b(), about.bytes());
            let inner = QuotedHeader::parse(&bytes[header + 8..header + 28]).filter(|_| quoted >= header + 28);
            let expected = DatagramTooBig { mtu: 1300, source, destination, len: bytes.len() as u16, inner };
            assert_eq!(parsed, Some(expected), "{quoted} bytes");
        }
        for quoted in [0, 1, 19, header - 1, header, header + 7] {
            assert_eq!(DatagramTooBig::parse(&report(1300, &about, quoted).bytes()), None, "{quoted} bytes");
        }
    }
}

/// Behind a header with options, and with bytes behind the message.
#[test]
fn r54_the_report_may_have_options_and_a_trailer() {
    let packet = report(1300, &datagram(own(), host_a()), MORE);
    let packet = Ipv4 { options: RECORD_ROUTE.to_vec(), trailer: vec![0xee; 9], ..packet };
    assert_eq!(DatagramTooBig::parse(&packet.bytes()), Some(too_big(1300, own(), host_a())));
}

#[test]
fn r54_other_messages_change_nothing() {
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

/// Only datagrams from the own address and port to a next hop and its port count.
#[test]
fn r54_only_a_quoted_datagram_of_the_tunnel_counts() {
    let mut paths = Paths::new(config());
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
        assert_eq!(paths.handle(&too_big(1300, from, to), 1), IcmpOutcome::Foreign, "{from} to {to}");
        assert_eq!(paths.known(to, 1), None);
    }
    assert_eq!(paths.handle(&too_big(1300, own(), host_a()), 1), lowered(host_a(), 1272));
    assert_eq!((paths.known(host_a(), 1), paths.known(host_b(), 1)), (Some(1272), None));

    let mut by_flow = Paths::new(config().with_source_port(SourcePort::ByFlow));
    let from_any_port = too_big(1300, at(own(), 40_000), host_a());
    assert_eq!(by_flow.handle(&from_any_port, 1), lowered(host_a(), 1272));
    assert_eq!(by_flow.handle(&too_big(1300, elsewhere(9), host_a()), 1), IcmpOutcome::Foreign);
}

/// A path MTU is never raised by a report and never below the minimum. It is forgotten after ten minutes.
#[test]
fn r54_a_value_only_falls_to_the_floor_and_holds_for_ten_minutes() {
    let mut paths = Paths::new(config());
    let mut handle = |mtu, now| paths.handle(&too_big(mtu, own(), host_a()), now);
    assert_eq!(handle(1499, 2), lowered(host_a(), 1471));
    assert_eq!(handle(1000, 100), lowered(host_a(), 972));
    for mtu in [1001, 1499, 0] {
        assert_eq!(handle(mtu, 699), IcmpOutcome::NotLower);
    }
    for mtu in [68, 551, 552, 1] {
        let outcome = if mtu == 68 { lowered(host_a(), 524) } else { IcmpOutcome::NotLower };
        assert_eq!(handle(mtu, 699), outcome, "{mtu}");
    }
    assert_eq!(paths.known(host_a(), 1298), Some(524));
    assert_eq!(paths.known(host_a(), 1299), None, "ten minutes after it was learned");
    assert_eq!(paths.handle(&too_big(1400, own(), host_a()), 1299), lowered(host_a(), 1372));
}

/// Fault 52: a real report is about a datagram that is longer than its MTU, and that loden would send.
#[test]
fn fault_52_a_datagram_that_was_not_too_big_is_ignored() {
    let mut paths = Paths::new(config());
    let empty = Ipv4 { payload: udp(8285, 8285, &[]), ..datagram(own(), host_a()) };
    for mtu in [28, 68, 552, 1000, 1500] {
        assert_eq!(paths.handle(&parsed(mtu, &empty, LEAST), 1), IcmpOutcome::Implausible, "28 bytes and {mtu}");
    }
    let sent = datagram(own(), host_a());
    for mtu in [1500, 1501, u16::MAX] {
        assert_eq!(paths.handle(&parsed(mtu, &sent, MORE), 1), IcmpOutcome::Implausible, "1500 bytes and {mtu}");
    }
    let longer = Ipv4 { payload: pattern(1453), ..inner(host_a()) };
    let longer = with_inner(own(), host_a(), &longer);
    for quoted in [LEAST, MORE] {
        assert_eq!(paths.handle(&parsed(1400, &longer, quoted), 1), IcmpOutcome::Implausible, "1501 bytes");
    }
    assert!(paths.paths.is_empty());
}

/// A quote of an inner packet that loden would not send to that peer is not accepted.
#[test]
fn r54_the_inner_packet_is_routed_to_that_peer() {
    let mut paths = Paths::new(config());
    let sound = inner(host_a());
    let none_of_ours = [
        ("to another peer", Ipv4 { destination: POD_B, ..sound.clone() }),
        ("to nobody", Ipv4 { destination: NOBODY, ..sound.clone() }),
        ("IPv6", Ipv4 { version: 6, ..sound.clone() }),
    ];
    for (what, inner) in none_of_ours {
        let report = parsed(552, &with_inner(own(), host_a(), &inner), MORE);
        assert_eq!(paths.handle(&report, 1), IcmpOutcome::Foreign, "{what}");
    }
    assert!(paths.paths.is_empty());
}

/// A report with only addresses and ports lowers a path to 1280 bytes at most.
#[test]
fn r54_without_a_proven_inner_header_no_lower_than_1280() {
    let sent = datagram(own(), host_a());
    let stranger = Ipv4 { source: Ipv4Addr::new(8, 8, 8, 8), ..inner(host_a()) };
    let unproven = [
        ("28 bytes", parsed(552, &sent, LEAST)),
        ("47 bytes", parsed(552, &sent, 47)),
        ("a source that is not ours", parsed(552, &with_inner(own(), host_a(), &stranger), MORE)),
        ("longer than the datagram it is in", DatagramTooBig { len: 1499, ..parsed(552, &sent, MORE) }),
    ];
    for (what, report) in unproven {
        let mut paths = Paths::new(config());
        assert_eq!(paths.handle(&report, 1), lowered(host_a(), 1252), "{what}");
        assert_eq!(paths.handle(&report, 2), IcmpOutcome::NotLower, "{what}");
        assert_eq!((paths.known(host_a(), 2), paths.mode(host_a(), 2)), (Some(1252), PathMode::System), "{what}");
    }
    let mut paths = Paths::new(config());
    assert_eq!(paths.handle(&parsed(1400, &sent, LEAST), 1), lowered(host_a(), 1372), "above 1280 as it says");
    // The inner header proves it, also with transit from another source or from the host itself.
    let own_host = Ipv4 { source: *v4(own()).ip(), ..inner(host_a()) };
    for (inner, transit) in [(stranger, Transit::Allowed), (own_host, Transit::Refused)] {
        let mut paths = Paths::new(config().with_transit(transit));
        let report = parsed(700, &with_inner(own(), host_a(), &inner), 48);
        assert_eq!(paths.handle(&report, 1), lowered(host_a(), 672));
    }
}

/// A kernel that received a whole GSO batch quotes the length of the batch. The inner header has the length of the
/// first datagram.
#[test]
fn r54_a_report_may_quote_a_whole_gso_batch() {
    let batch = |inner_len: usize, len, mtu| {
        let inner = Ipv4 { payload: pattern(inner_len - 20), ..inner(host_a()) };
        DatagramTooBig { len, ..parsed(mtu, &with_inner(own(), host_a(), &inner), MORE) }
    };
    for (inner_len, len, mtu, expected) in [
        (1472, 28 + 2 * 1472, 1300, lowered(host_a(), 1272)),
        (1428, 28 + 45 * 1428, 1000, lowered(host_a(), 972)),
        (1428, u16::MAX, 100, lowered(host_a(), 524)),
        (1400, 28 + 1400 + 72, 1000, lowered(host_a(), 972)),
        (1472, 28 + 2 * 1472, 0, lowered(host_a(), 1464)),
        // None of its datagrams is longer than the MTU, or all are longer than the overlay's.
        (1272, 28 + 2 * 1272, 1300, IcmpOutcome::Implausible),
        (1473, 28 + 2 * 1473, 1300, IcmpOutcome::Implausible),
    ] {
        let mut paths = Paths::new(config());
        assert_eq!(paths.handle(&batch(inner_len, len, mtu), 1), expected, "{inner_len} {len} {mtu}");
    }
}

/// A path that still refuses datagrams at the minimum of unverified reports is sent to without DF. It is not a black
/// hole.
#[test]
fn r54_df_is_clear_if_such_reports_continue() {
    let mut paths = Paths::new(config());
    let of_len = |inner_len: usize, quoted| {
        let inner = Ipv4 { payload: pattern(inner_len - 20), ..inner(host_a()) };
        parsed(1000, &with_inner(own(), host_a(), &inner), quoted)
    };
    assert_eq!(paths.handle(&of_len(1472, LEAST), 1), lowered(host_a(), 1252));
    assert_eq!(paths.handle(&of_len(1253, LEAST), 2), IcmpOutcome::NotLower, "it was on its way already");
    assert_eq!(paths.mode(host_a(), 2), PathMode::System);
    let peer = host_a().ip();
    assert_eq!(paths.handle(&of_len(1252, LEAST), 3), IcmpOutcome::Fragmented { peer });
    assert_eq!((paths.known(host_a(), 3), paths.mode(host_a(), 3)), (Some(1252), PathMode::Fragment));
    assert_eq!(paths.handle(&of_len(1252, MORE), 4), IcmpOutcome::NotLower, "no datagram has DF now");
    assert_eq!(paths.mode(host_b(), 4), PathMode::System, "the others have");
    let end = 602;
    assert_eq!((paths.known(host_a(), end), paths.mode(host_a(), end)), (None, PathMode::System));
    // The same below the minimum of verified reports.
    assert_eq!(paths.handle(&of_len(1472, MORE), 700), lowered(host_a(), 972));
    let tiny = |mtu| DatagramTooBig { mtu, ..of_len(524, MORE) };
    assert_eq!(paths.handle(&tiny(300), 701), lowered(host_a(), 524));
    assert_eq!(paths.handle(&tiny(300), 702), IcmpOutcome::Fragmented { peer });
}

/// Routers older than RFC 1191 report 0. It gives the next plateau of its section 7.1 below the quoted length.
#[test]
fn r54_a_report_without_a_number_goes_down_the_plateaus() {
    for (inner_len, mtu) in [(1472, 1492), (1465, 1492), (1464, 1006), (979, 1006), (978, 552), (525, 552)] {
        let mut paths = Paths::new(config());
        let inner = Ipv4 { payload: pattern(inner_len - 20), ..inner(host_a()) };
        let report = parsed(0, &with_inner(own(), host_a(), &inner), MORE);
        assert_eq!(paths.handle(&report, 1), lowered(host_a(), mtu - 28), "{inner_len}");
    }
    let mut paths = Paths::new(config());
    assert_eq!(paths.handle(&parsed(0, &datagram(own(), host_a()), LEAST), 1), lowered(host_a(), 1464));
}

/// Returns the seeds of the fuzz target.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let of = |mtu, from, to| report(mtu, &datagram(from, to), 48).bytes();
    let short = |mtu| report(mtu, &datagram(own(), host_a()), LEAST).bytes();
    let floor = |mtu| {
        let inner = Ipv4 { payload: pattern(1232), ..inner(host_a()) };
        report(mtu, &with_inner(own(), host_a(), &inner), LEAST).bytes()
    };
    let ordinary = || of(1300, own(), host_a());
    let about = || datagram(own(), host_a());
    let one = |packet: Vec<u8>| encode(0, [(0, packet.as_slice())]);
    let several =
        |reports: &[(u8, Vec<u8>)]| encode(0, reports.iter().map(|(wait, packet)| (*wait, packet.as_slice())));
    let stranger = SocketAddr::from(([10, 168, 0, 9], 8285));
    let other_port = SocketAddr::new(own().ip(), 40_000);
    vec![
        ("bad-icmp-checksum", one([&ordinary()[..75], &[1]].concat())),
        ("below-68", one(of(67, own(), host_a()))),
        ("by-flow", encode(BY_FLOW, [(0, of(1300, other_port, host_a()).as_slice())])),
        ("confirmed", several(&[(0, ordinary()), (59, ordinary()), (59, of(1400, own(), host_a())), (2, vec![])])),
        ("echo", one(Ipv4 { protocol: ICMP, payload: support::packet::icmp(8, 0, b"ping"), ..about() }.bytes())),
        ("empty", vec![]),
        ("exactly-68", one(of(68, own(), host_a()))),
        ("falls-and-rises", several(&[(0, ordinary()), (1, of(1200, own(), host_a())), (60, ordinary())])),
        ("floor-and-on", several(&[(0, short(1000)), (0, floor(1000)), (0, ordinary()), (60, ordinary())])),
        ("from-a-stranger", one(of(1300, stranger, host_a()))),
        ("no-lower-than-the-overlay", one(of(1500, own(), host_a()))),
        ("ordinary", one(ordinary())),
        ("other-port", one(of(1300, other_port, host_a()))),
        ("quote-of-a-fragment", one(report(1300, &Ipv4 { fragment: DF | MF, ..about() }, LEAST).bytes())),
        ("quote-of-seven-bytes", one(report(1300, &about(), LEAST - 1).bytes())),
        ("quote-of-28-bytes", several(&[(0, short(552)), (0, short(1300))])),
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
