//! GSO packets: segmentation and coalescing compared with a plain copy of the same bytes, and their checksums.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use loden::offload::{Coalesce, Coalescer, GsoPacket, OffloadAction, VnetHeader, vnet_flag, vnet_gso};
use loden::wire::{checksum, transport};

const TCP: usize = 6;
const UDP: usize = 17;

/// The payload of a segment: an MTU of 1472, less 12 and 20 bytes of TCP headers with timestamps, and the IP header.
const PAYLOAD: [usize; 2] = [1420, 1400];
const TCP_HEADER: usize = 32;
const SEGMENTS: usize = 45;

/// A family of packets.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

use Family::{V4, V6};

impl Family {
    fn header_len(self) -> usize {
        match self {
            V4 => 20,
            V6 => 40,
        }
    }

    fn tcp_payload(self) -> usize {
        PAYLOAD[usize::from(self == V6)]
    }

    /// Writes the IP header of a packet.
    fn write(self, packet: &mut [u8], protocol: usize) {
        let total = packet.len();
        match self {
            V4 => {
                let addresses = [100, 96, 1, 2, 100, 96, 2, 3];
                packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol as u8, 0, 0]);
                packet[12..20].copy_from_slice(&addresses);
                packet[2..4].copy_from_slice(&(total as u16).to_be_bytes());
                let sum = checksum::checksum(&packet[..20]);
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            V6 => {
                packet[..8].copy_from_slice(&[0x60, 1, 2, 3, 0, 0, protocol as u8, 64]);
                packet[4..6].copy_from_slice(&((total - 40) as u16).to_be_bytes());
                packet[8..40].fill(0);
                packet[8..14].copy_from_slice(&[0xfd, 0, 0, 0x96, 0, 1]);
                packet[24..30].copy_from_slice(&[0xfd, 0, 0, 0x96, 0, 2]);
                (packet[23], packet[39]) = (2, 3);
            }
        }
    }
}

/// Returns a GSO packet of `segments` times `size` bytes with a shorter last segment.
fn gso_packet(family: Family, protocol: usize, segments: usize, size: usize) -> (VnetHeader, Vec<u8>) {
    let ip = family.header_len();
    let header = if protocol == TCP { TCP_HEADER } else { transport::UDP_HEADER_LEN };
    let total = ip + header + segments * size - 1;
    let mut packet: Vec<u8> = (0..total).map(|i| i as u8).collect();
    family.write(&mut packet, protocol);
    let csum_offset = if protocol == TCP {
        packet[ip + 12..ip + 14].copy_from_slice(&[(header / 4) as u8 * 16, 0x10]);
        transport::tcp_field::CHECKSUM
    } else {
        packet[ip + 4..ip + 6].copy_from_slice(&((total - ip) as u16).to_be_bytes());
        transport::udp_field::CHECKSUM
    };
    let vnet = VnetHeader {
        flags: vnet_flag::NEEDS_CSUM,
        gso_type: match (protocol, family) {
            (TCP, V4) => vnet_gso::TCPV4,
            (TCP, V6) => vnet_gso::TCPV6,
            _ => vnet_gso::UDP_L4,
        },
        hdr_len: 0,
        gso_size: size as u16,
        csum_start: ip as u16,
        csum_offset: csum_offset as u16,
    };
    (vnet, packet)
}

fn inspect(vnet: &VnetHeader, packet: &[u8]) -> GsoPacket {
    match vnet.inspect(packet) {
        Ok(OffloadAction::Segment(many)) => many,
        work => panic!("{work:?}"),
    }
}

fn segments(vnet: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let many = inspect(vnet, packet);
    let write = |index| {
        let mut segment = vec![0; many.len_of(index)];
        many.write_segment(packet, index, &mut segment);
        segment
    };
    (0..many.segments()).map(write).collect()
}

pub(crate) fn segment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("segment");
    for (name, family, protocol, count, size) in [
        ("45 TCP of 1420", V4, TCP, SEGMENTS, V4.tcp_payload()),
        ("64 UDP of 64", V4, UDP, 64, 64),
        ("45 TCP of 1400 over IPv6", V6, TCP, SEGMENTS, V6.tcp_payload()),
        ("64 UDP of 64 over IPv6", V6, UDP, 64, 64),
    ] {
        let (vnet, packet) = gso_packet(family, protocol, count, size);
        let mut out = vec![0; packet.len() * 2];
        group.throughput(Throughput::Bytes(packet.len() as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let packet = black_box(&packet[..]);
                let many = inspect(&vnet, packet);
                let mut rest = &mut out[..];
                for index in 0..many.segments() {
                    let (segment, behind) = rest.split_at_mut(many.len_of(index));
                    many.write_segment(packet, index, segment);
                    rest = behind;
                }
                black_box(&out);
            });
        });
        let end = packet.len();
        group.bench_function(BenchmarkId::new("plain copy", name), |bench| {
            bench.iter(|| black_box(&mut out)[..end].copy_from_slice(black_box(&packet)));
        });
    }
    group.finish();
}

pub(crate) fn coalesce(criterion: &mut Criterion) {
    let of = |family: Family, protocol| {
        let (count, size) = if protocol == TCP { (SEGMENTS, family.tcp_payload()) } else { (64, 64) };
        let (vnet, packet) = gso_packet(family, protocol, count, size);
        segments(&vnet, &packet)
    };
    let udp = of(V4, UDP);
    // Four flows whose packets alternate.
    let mixed: Vec<_> = udp
        .iter()
        .enumerate()
        .map(|(i, packet)| {
            const IP: usize = 20;
            let mut packet = packet.clone();
            packet[IP + 1] ^= i as u8 & 3;
            packet[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
            packet[10..12].fill(0);
            let sum = checksum::checksum(&packet[..IP]);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            packet[IP + 6..IP + 8].fill(0);
            let pseudo = transport::pseudo_header_sum(0x6460_0102, 0x6460_0203, UDP as u8, (packet.len() - IP) as u16);
            let sum = !checksum::add(pseudo, checksum::sum(&packet[IP..]));
            packet[IP + 6..IP + 8].copy_from_slice(&sum.to_be_bytes());
            packet
        })
        .collect();
    let mut group = criterion.benchmark_group("coalesce");
    for (name, packets, writes) in [
        ("45 TCP of 1420", of(V4, TCP), 1),
        ("64 UDP of 64", udp, 1),
        ("64 UDP of 64, 4 flows", mixed, 4),
        ("45 TCP of 1400 over IPv6", of(V6, TCP), 1),
        ("64 UDP of 64 over IPv6", of(V6, UDP), 1),
    ] {
        let bytes: usize = packets.iter().map(Vec::len).sum();
        let mut coalescer = Coalescer::new(Coalesce::ALL);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let mut delivered = 0;
                let mut deliver = |coalesced: loden::offload::Coalesced<'_>| {
                    black_box(coalesced.packet);
                    delivered += 1;
                };
                for packet in &packets {
                    coalescer.push(black_box(packet), &mut deliver);
                }
                coalescer.flush(&mut deliver);
                assert_eq!(delivered, writes);
            });
        });
        let mut out = vec![0; bytes];
        group.bench_function(BenchmarkId::new("plain copy", name), |bench| {
            bench.iter(|| {
                let mut rest = &mut black_box(&mut out)[..];
                for packet in &packets {
                    let (slot, behind) = rest.split_at_mut(packet.len());
                    slot.copy_from_slice(black_box(packet));
                    rest = behind;
                }
            });
        });
    }
    group.finish();
}

pub(crate) fn copy_and_sum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("copy and sum");
    for len in [64usize, 1420, 62_000] {
        let from: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let mut to = vec![0; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("at once", len), |bench| {
            bench.iter(|| checksum::copy_and_sum(black_box(&from), black_box(&mut to)));
        });
        group.bench_function(BenchmarkId::new("copy, then sum", len), |bench| {
            bench.iter(|| {
                black_box(&mut to).copy_from_slice(black_box(&from));
                checksum::sum(black_box(&to))
            });
        });
    }
    group.finish();
}
