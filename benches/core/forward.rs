//! The packet path without system calls: encapsulate, decapsulate and checksum, compared with a lookup of
//! `prefix-trie`.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use crate::tables::{cluster, destinations, subnet};
use criterion::{BenchmarkId, Criterion, Throughput};
use ipnet::Ipv4Net;
use loden::Host;
use loden::forward::{Decap, Encap, Forwarder, ForwarderConfig};
use loden::route::{Route, RouteTable};
use loden::wire::checksum;
use prefix_trie::PrefixMap;

const HEADER: usize = 20;

/// The number of packets, each with another destination.
const PACKETS: usize = 256;

/// A packet in its buffer and its original header, because a forwarder changes packets in place.
struct Packet {
    bytes: Vec<u8>,
    header: [u8; HEADER],
}

impl Packet {
    fn new(source: Ipv4Addr, destination: Ipv4Addr, len: u16) -> Self {
        let mut bytes = vec![0; len.into()];
        let mut header = [0; HEADER];
        header[0] = 0x45;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[8..10].copy_from_slice(&[64, 17]);
        header[12..16].copy_from_slice(&source.octets());
        header[16..].copy_from_slice(&destination.octets());
        let sum = checksum::checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes[..HEADER].copy_from_slice(&header);
        Self { bytes, header }
    }

    fn fresh(&mut self) -> &mut [u8] {
        self.bytes[..HEADER].copy_from_slice(&self.header);
        &mut self.bytes
    }
}

fn forwarder() -> Result<(Forwarder, RouteTable), Box<dyn std::error::Error>> {
    let network: Ipv4Net = "100.96.0.0/16".parse()?;
    let own: Ipv4Net = "100.96.255.0/24".parse()?;
    let (table, _) = RouteTable::try_from_routes(cluster());
    Ok((Forwarder::new(ForwarderConfig::new(&Host::new(network, own, ([10, 168, 0, 1], 8285))?))?, table))
}

pub(crate) fn forward(criterion: &mut Criterion) {
    let (forwarder, table) = forwarder().expect("the settings are sound");
    let routes = cluster();
    // The own subnet has no route.
    let remote: Vec<Route> = routes[..255].to_vec();
    let own = Ipv4Addr::new(100, 96, 255, 7);
    let mut group = criterion.benchmark_group("forward");
    group.throughput(Throughput::Elements(PACKETS as u64));
    for len in [64, 1400] {
        let mut packets: Vec<_> =
            destinations(&remote, PACKETS).into_iter().map(|to| Packet::new(own, to, len)).collect();
        group.bench_function(BenchmarkId::new("encapsulate", len), |bench| {
            bench.iter(|| {
                for packet in &mut packets {
                    let verdict = forwarder.encapsulate(packet.fresh(), &table);
                    assert!(matches!(black_box(&verdict), Encap::Send(_)));
                }
            });
        });
        let mut packets: Vec<_> = destinations(&remote, PACKETS)
            .into_iter()
            .filter_map(|from| Some((Packet::new(from, own, len), table.lookup_v4(from)?.address)))
            .collect();
        group.bench_function(BenchmarkId::new("decapsulate", len), |bench| {
            bench.iter(|| {
                for (packet, from) in &mut packets {
                    let verdict = forwarder.decapsulate(packet.fresh(), *from, &table);
                    assert!(matches!(black_box(&verdict), Decap::Deliver(_)));
                }
            });
        });
    }
    // A reference: one lookup in another crate.
    let trie: PrefixMap<Ipv4Net, SocketAddr> = routes.iter().map(|route| (subnet(route), route.next_hop)).collect();
    let wanted = destinations(&remote, PACKETS);
    group.bench_function("one lookup of prefix-trie", |bench| {
        bench.iter(|| {
            for destination in &wanted {
                black_box(trie.get_lpm(&Ipv4Net::from(*destination)));
            }
        });
    });
    group.finish();
}

pub(crate) fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    for len in [20usize, 64, 576, 1400, 65_535] {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |bench| bench.iter(|| checksum::sum(black_box(&bytes))));
    }
    group.finish();
}
