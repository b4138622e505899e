//! A sequence of routers' reports: the accepted ones, and the path MTU after each.
//!
//! Byte 0 has switches. Each report then has the time before it in steps of ten seconds, its length and its bytes.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::collections::HashMap;

use loden::forward::{IcmpOutcome, PathMode, PathMtus, SourcePort};
use loden::wire::{DatagramTooBig, QuotedHeader};

use support::host::{Host, config, host_a, host_b, own, routes};
use support::packet::{ICMP, UDP, ones_sum, repair_checksum};

/// A switch: source ports by flow.
pub const BY_FLOW: u8 = 1;
/// A switch: repairs lengths and checksums, so that mutated reports pass their checks.
pub const REPAIR: u8 = 2;

pub fn encode<'b>(switches: u8, reports: impl IntoIterator<Item = (u8, &'b [u8])>) -> Vec<u8> {
    let mut bytes = vec![switches];
    for (tens_of_seconds, report) in reports {
        bytes.extend([tens_of_seconds, report.len() as u8]);
        bytes.extend(report);
    }
    bytes
}

pub fn run(bytes: &[u8]) {
    let [switches, rest @ ..] = bytes else { return };
    let source_port = if switches & BY_FLOW == 0 { SourcePort::Fixed } else { SourcePort::ByFlow };
    let host = Host::new(config().with_source_port(source_port), routes());
    let (mut paths, mut known, mut now) = (PathMtus::default(), HashMap::new(), 5);
    let mut rest = rest;
    while let [tens_of_seconds, len, behind @ ..] = rest {
        let (report, behind) = behind.split_at(behind.len().min((*len).into()));
        rest = behind;
        now += u64::from(*tens_of_seconds) * 10;
        let mut report = report.to_vec();
        if switches & REPAIR != 0 {
            repair(&mut report);
        }
        let parsed = DatagramTooBig::parse(&report);
        assert_eq!(parsed, naive(&report), "{report:02x?}");
        assert_eq!(DatagramTooBig::parse_icmpv6(&report), naive_v6(&report), "{report:02x?}");
        if let Some(parsed) = parsed {
            let outcome = paths.handle_icmp(&parsed, &host.forwarder, &host.table, Duration::from_secs(now));
            assert_eq!(outcome, expected(&parsed, &host, &mut known, now), "{parsed:?}");
        }
        for peer in [host_a(), host_b(), own()].map(|address| address.ip()) {
            let (at, path) = (Duration::from_secs(now), in_force(&known, peer, now));
            assert_eq!(paths.lookup(peer, at), path.map(|path| path.mtu), "{peer} at {now}");
            let is_whole = path.is_none_or(|path| path.has_df);
            assert_eq!(paths.mode(peer, at), if is_whole { PathMode::System } else { PathMode::Fragment });
        }
    }
}

/// Parses a report by the field offsets of RFC 792.
fn naive(packet: &[u8]) -> Option<DatagramTooBig> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(word(2)?);
    let options_fit = || support::model::option_kinds(&packet[20..header]).is_some();
    let is_ipv4 = packet[0] >> 4 == 4 && header >= 20 && packet.len() >= 20 && (header..=packet.len()).contains(&total);
    if !is_ipv4 || ones_sum(&packet[..header]) != 0xffff || !options_fit() || packet[9] != ICMP {
        return None;
    }
    let message = &packet[header..total];
    if message.len() < 36 || ones_sum(message) != 0xffff || message[..2] != [3, 4] {
        return None;
    }
    let quote = &message[8..];
    let ports = usize::from(quote[0] & 15) * 4;
    let is_ours_to_judge = (0x45..=0x4f).contains(&quote[0]) && quote[6..8] == [quote[6] & 0x80 | 0x40, 0];
    if !is_ours_to_judge || quote[9] != UDP || quote.len() < ports + 8 {
        return None;
    }
    let at = |address: usize, port: usize| {
        let address: [u8; 4] = quote[address..address + 4].try_into().unwrap();
        SocketAddr::from((Ipv4Addr::from(address), u16::from_be_bytes([quote[port], quote[port + 1]])))
    };
    let mtu = u16::from_be_bytes([message[6], message[7]]);
    let len = u16::from_be_bytes([quote[2], quote[3]]);
    let inner = quoted_header(&quote[ports + 8..]);
    Some(DatagramTooBig { mtu, source: at(12, ports), destination: at(16, ports + 2), len, inner })
}

/// Parses an ICMPv6 report by the field offsets of RFC 4443 and RFC 8200.
fn naive_v6(message: &[u8]) -> Option<DatagramTooBig> {
    if message.len() < 8 + 40 + 8 || message[0] != 2 || message[8] >> 4 != 6 || message[8 + 6] != UDP {
        return None;
    }
    let at = |address: usize, port: usize| {
        let address: [u8; 16] = message[address..address + 16].try_into().unwrap();
        SocketAddr::from((address, u16::from_be_bytes([message[port], message[port + 1]])))
    };
    let mtu = u32::from_be_bytes(message[4..8].try_into().unwrap()).min(65_535) as u16;
    let len = (u32::from(message[8 + 4]) * 256 + u32::from(message[8 + 5]) + 40).min(65_535) as u16;
    let inner = quoted_header(&message[56..]);
    Some(DatagramTooBig { mtu, source: at(16, 48), destination: at(32, 50), len, inner })
}

/// Returns the header of the inner packet at the beginning of a payload.
fn quoted_header(payload: &[u8]) -> Option<QuotedHeader> {
    let is_ipv6 = payload.first().is_some_and(|byte| byte >> 4 == 6);
    match (is_ipv6, payload.len()) {
        (true, 40..) => Some(QuotedHeader::Ipv6(payload[..40].try_into().unwrap())),
        (false, 20..) => Some(QuotedHeader::Ipv4(payload[..20].try_into().unwrap())),
        _ => None,
    }
}

/// A learned path MTU, and its time.
#[derive(Clone, Copy)]
struct Path {
    mtu: u16,
    learned: u64,
    has_df: bool,
}

type Known = HashMap<IpAddr, Path>;

fn in_force(known: &Known, peer: IpAddr, now: u64) -> Option<Path> {
    known.get(&peer).filter(|path| now - path.learned < 600).copied()
}

/// Returns the outcome of a report by the sentences of R54, in bytes of outer packet.
fn expected(report: &DatagramTooBig, host: &Host, known: &mut Known, now: u64) -> IcmpOutcome {
    let (source, destination) = (report.source, report.destination);
    let any_port = host.config().source_port == SourcePort::ByFlow;
    let from_us = source.ip() == own().ip() && (source.port() == own().port() || any_port);
    if !from_us || ![host_a(), host_b()].contains(&destination) {
        return IcmpOutcome::Foreign;
    }
    // The quoted outer header may be that of a GSO batch.
    let of_inner = report.inner.map(|inner| match inner {
        QuotedHeader::Ipv4(header) => usize::from(u16::from_be_bytes([header[2], header[3]])) + 28,
        QuotedHeader::Ipv6(header) => usize::from(u16::from_be_bytes([header[4], header[5]])) + 40 + 28,
    });
    let len = of_inner.map_or(report.len, |len| len.min(report.len.into()) as u16);
    let mtu = match report.mtu {
        0 => [1492, 1006, 508, 296, 68, 0].into_iter().find(|mtu| *mtu < len).unwrap_or(0),
        mtu => mtu,
    };
    if len <= mtu || len > 1500 {
        return IcmpOutcome::Implausible;
    }
    let floor = match report.inner {
        None => 1280,
        // There is no IPv6 route.
        Some(QuotedHeader::Ipv6(_)) => return IcmpOutcome::Foreign,
        Some(QuotedHeader::Ipv4(header)) => {
            let route = host.naive_route(support::packet::address_at(&header, 16));
            if header[0] >> 4 != 4 || header[0] & 15 < 5 || route.is_none_or(|route| route.next_hop != destination) {
                return IcmpOutcome::Foreign;
            }
            let has_len = u16::from_be_bytes([header[2], header[3]]) == len.saturating_sub(28);
            let is_ours = header[12..15] == [100, 96, 1] || header[12..16] == [10, 168, 0, 2];
            if has_len && is_ours { 552 } else { 1280 }
        }
    };
    let peer = destination.ip();
    let path = in_force(known, peer, now);
    let current = path.map_or(1500, |path| path.mtu + 28);
    if path.is_some_and(|path| !path.has_df) {
        return IcmpOutcome::NotLower;
    }
    if mtu < floor && current <= floor && len <= floor {
        known.insert(peer, Path { has_df: false, ..path.unwrap() });
        return IcmpOutcome::Fragmented { peer };
    }
    let mtu = mtu.max(floor);
    if mtu > current || mtu == 1500 {
        return IcmpOutcome::NotLower;
    }
    known.insert(peer, Path { mtu: mtu - 28, learned: now, has_df: true });
    if mtu < current { IcmpOutcome::Lowered { peer, mtu: mtu - 28 } } else { IcmpOutcome::NotLower }
}

fn repair(report: &mut [u8]) {
    if report.len() < 20 {
        return;
    }
    let total = (report.len() as u16).to_be_bytes();
    report[2..4].copy_from_slice(&total);
    repair_checksum(report);
    let header = usize::from(report[0] & 15) * 4;
    if header >= 20 && report.len() >= header + 8 {
        report[header + 2..header + 4].fill(0);
        let sum = (!ones_sum(&report[header..])).to_be_bytes();
        report[header + 2..header + 4].copy_from_slice(&sum);
    }
}
