//! What routers report, one after the other: who is believed, and what is then known of each path.
//!
//! Byte 0 has switches, then come reports: ten seconds each that pass before it, its length, its bytes.

use core::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use core::time::Duration;
use std::collections::HashMap;

use loden::forward::{Heeded, Overlay, PathMtus, SourcePort};
use loden::wire::DatagramTooBig;

use crate::support::host::{Host, host_a, host_b, overlay, own, routes};
use crate::support::packet::{ICMP, UDP, ones_sum, repair_checksum};

/// The source ports are chosen by flow.
pub(crate) const BY_FLOW: u8 = 1;
/// Lengths and checksums are put right, so that mutated reports get past them.
pub(crate) const REPAIR: u8 = 2;

pub(crate) fn encode<'b>(switches: u8, reports: impl IntoIterator<Item = (u8, &'b [u8])>) -> Vec<u8> {
    let mut bytes = vec![switches];
    for (tens_of_seconds, report) in reports {
        bytes.extend([tens_of_seconds, report.len() as u8]);
        bytes.extend(report);
    }
    bytes
}

pub(crate) fn run(bytes: &[u8]) {
    let [switches, rest @ ..] = bytes else { return };
    let source_port = if switches & BY_FLOW == 0 { SourcePort::Fixed } else { SourcePort::ByFlow };
    let host = Host::new(Overlay { source_port, ..overlay() }, routes());
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
        if let Some(parsed) = parsed {
            let heeded = paths.heed(&parsed, &host.forwarder, &host.table, Duration::from_secs(now));
            assert_eq!(heeded, expected(&parsed, source_port, &mut known, now), "{parsed:?}");
        }
        for peer in [host_a(), host_b(), own()].map(|address| address.ip()) {
            let inner = in_force(&known, peer, now);
            assert_eq!(paths.lookup(peer, Duration::from_secs(now)), inner, "{peer} at {now}");
        }
    }
}

/// RFC 792 by the places of its fields.
fn naive(packet: &[u8]) -> Option<DatagramTooBig> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(word(2)?);
    let options_fit = || crate::support::model::option_kinds(&packet[20..header]).is_some();
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
        SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes([quote[port], quote[port + 1]]))
    };
    let mtu = u16::from_be_bytes([message[6], message[7]]);
    Some(DatagramTooBig { mtu, source: at(12, ports), destination: at(16, ports + 2) })
}

type Known = HashMap<IpAddr, (u16, u64)>;

fn in_force(known: &Known, peer: IpAddr, now: u64) -> Option<u16> {
    known.get(&peer).filter(|(_, learned)| now - learned < 600).map(|(mtu, _)| *mtu)
}

/// R54, sentence by sentence.
fn expected(report: &DatagramTooBig, source_port: SourcePort, known: &mut Known, now: u64) -> Heeded {
    let (source, destination) = (SocketAddr::V4(report.source), SocketAddr::V4(report.destination));
    let from_us = source.ip() == own().ip() && (source.port() == own().port() || source_port == SourcePort::ByFlow);
    if !from_us || ![host_a(), host_b()].contains(&destination) {
        return Heeded::Foreign;
    }
    if report.mtu < 68 {
        return Heeded::TooSmall;
    }
    let (peer, mtu) = (destination.ip(), report.mtu - 28);
    let current = in_force(known, peer, now).unwrap_or(1472);
    if mtu > current || mtu == 1472 {
        return Heeded::NotLower;
    }
    known.insert(peer, (mtu, now));
    if mtu < current { Heeded::Lowered { peer, mtu } } else { Heeded::NotLower }
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
