//! Routers' reports over an IPv6 underlay (V29): R54's rules, with 1280 bytes as the least.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use loden::forward::{Forwarder, ForwarderConfig, IcmpOutcome, PathMode, PathMtus};
use loden::ipnet::IpNet;
use loden::route::{Route, RouteTable};
use loden::wire::{DatagramTooBig, QuotedHeader};
use support::host::table_of;

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn own() -> SocketAddr {
    at("[fd00:168::2]:8285")
}

fn peer() -> SocketAddr {
    at("[fd00:168::3]:8285")
}

fn other_peer() -> SocketAddr {
    at("[fd00:168::4]:8285")
}

/// Returns a host of both families, whose peers are reached over IPv6.
fn host() -> (Forwarder, RouteTable) {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let networks = [net("100.96.0.0/16"), net("fd00:96::/32")];
    let subnets = [net("100.96.1.0/24"), net("fd00:96:1::/64")];
    let host = loden::Host::from_sets(&networks, &subnets, &[own()]).unwrap();
    let routes = [
        Route::new(net("100.96.2.0/24"), peer()),
        Route::new(net("fd00:96:2::/64"), peer()),
        Route::new(net("fd00:96:3::/64"), other_peer()),
    ];
    (Forwarder::new(ForwarderConfig::new(&host)).unwrap(), table_of(&routes))
}

/// Returns the header of an inner packet of `len` bytes.
fn inner(from: &str, to: &str, len: u16) -> QuotedHeader {
    match (from.parse().unwrap(), to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&len.to_be_bytes());
            header[12..16].copy_from_slice(&from.octets());
            header[16..].copy_from_slice(&to.octets());
            QuotedHeader::Ipv4(header)
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V6(address) => address.octets(),
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            };
            let mut header = [0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(len - 40).to_be_bytes());
            header[8..24].copy_from_slice(&octets(from));
            header[24..].copy_from_slice(&octets(to));
            QuotedHeader::Ipv6(header)
        }
    }
}

/// Returns a report about a datagram of 1,472 bytes with an IPv6 packet for the peer, the longest that a tunnel sends.
fn report(mtu: u16) -> DatagramTooBig {
    let inner = Some(inner("fd00:96:1::5", "fd00:96:2::7", 1424));
    DatagramTooBig { mtu, source: own(), destination: peer(), len: 1472, inner }
}

fn outcome(report: &DatagramTooBig) -> (IcmpOutcome, Option<u16>, PathMode) {
    let ((forwarder, table), mut paths) = (host(), PathMtus::default());
    let outcome = paths.handle_icmp(report, &forwarder, &table, Duration::ZERO);
    let peer = peer().ip();
    (outcome, paths.lookup(peer, Duration::ZERO), paths.mode(peer, Duration::ZERO))
}

#[test]
fn v29_a_report_lowers_the_path_to_1280_bytes_at_least() {
    for mtu in [1280, 1300, 1471] {
        let reports = [
            report(mtu),
            DatagramTooBig { inner: Some(inner("100.96.1.5", "100.96.2.7", 1424)), ..report(mtu) },
            DatagramTooBig { inner: None, ..report(mtu) },
            // A kernel quotes the length of a whole batch.
            DatagramTooBig { len: 60_000, ..report(mtu) },
        ];
        for report in reports {
            // Without an inner header anybody can forge it. This host carries IPv6, which needs 1280 bytes.
            let least = if report.inner.is_some() { 0 } else { 1280 };
            let inner = (mtu - 48).max(least);
            let lowered = IcmpOutcome::Lowered { peer: peer().ip(), mtu: inner };
            assert_eq!(outcome(&report), (lowered, Some(inner), PathMode::System), "{report:?}");
        }
    }
}

/// IPv6 has no reports without an MTU, and every path carries 1280 bytes.
#[test]
fn v29_implausible_reports_change_nothing() {
    for mtu in [0, 1, 552, 1279, 1472, 1500, 65_535] {
        assert_eq!(outcome(&report(mtu)), (IcmpOutcome::Implausible, None, PathMode::System), "{mtu}");
    }
    let short = DatagramTooBig { len: 1280, inner: None, ..report(1280) };
    assert_eq!(outcome(&short).0, IcmpOutcome::Implausible);
    // Again and again: DF stays, because IPv6 routers do not fragment.
    let ((forwarder, table), mut paths) = (host(), PathMtus::default());
    for second in 0..10 {
        paths.handle_icmp(&report(1280), &forwarder, &table, Duration::from_secs(second));
        assert_eq!(paths.mode(peer().ip(), Duration::from_secs(second)), PathMode::System);
    }
}

#[test]
fn v29_reports_about_datagrams_of_others_are_foreign() {
    let elsewhere = SocketAddr::new(Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 9).into(), 8285);
    let sound = report(1300);
    for (what, report) in [
        ("another source", DatagramTooBig { source: elsewhere, ..sound }),
        ("another port", DatagramTooBig { source: at("[fd00:168::2]:8286"), ..sound }),
        ("no next hop", DatagramTooBig { destination: elsewhere, ..sound }),
        ("a next hop's other port", DatagramTooBig { destination: at("[fd00:168::3]:9"), ..sound }),
        (
            "a packet for another peer",
            DatagramTooBig { inner: Some(inner("fd00:96:1::5", "fd00:96:3::7", 1424)), ..sound },
        ),
        (
            "a packet without a route",
            DatagramTooBig { inner: Some(inner("fd00:96:1::5", "fd00:96:9::7", 1424)), ..sound },
        ),
        (
            "another family",
            DatagramTooBig { source: at("10.168.0.2:8285"), destination: at("10.168.0.3:8285"), ..sound },
        ),
    ] {
        assert_eq!(outcome(&report), (IcmpOutcome::Foreign, None, PathMode::System), "{what}");
    }
}
