//! Nothing on the packet path allocates.

use core::hint::black_box;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use core::time::Duration;

use loden::endpoint::Endpoint;
use loden::engine::{Engine, Sink, Unsent, WriteFailure};
use loden::forward::{
    Counters, DatagramMeta, Decap, DropReason, Encap, ForwarderConfig, IcmpLimiter, PathMode, PathMtus, Reject, Transit,
};
use loden::framing::{Framing, Reply};
use loden::offload::{Coalesce, VnetHeader, vnet_flag, vnet_gso};
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::transmit::{QueueLimits, Transmit};

use bodies::offload::model::complete;
use support::allocations::allocations;
use support::host::{
    Host, NOBODY, NOBODY_V6, POD_A_V6, POD_B, POD_C_V6, POD_V6, config, dual_identity, dual_routes, host_a, host_c,
    inbound, mtu_of, net, net_v6, outbound,
};
use support::packet::{
    DF, ICMP, Ipv4, RECORD_ROUTE, ROUTER_ALERT, STRICT_SOURCE_ROUTE, icmp, pattern, repair_checksum, udp,
};
use support::packet_v6::{HOP_BY_HOP, ICMPV6, Ipv6, ROUTING, destination_options, fragment};

/// The state of a worker beside the forwarder.
struct Worker {
    host: Host,
    counters: Counters,
    limiter: IcmpLimiter,
    paths: PathMtus,
    out: [u8; loden::wire::ICMP_ERROR_MAX],
    now: Duration,
}

impl Worker {
    fn new(config: ForwarderConfig) -> Self {
        // Routes to the own underlay networks of hosts A and C make loops possible. One path is narrow.
        let mut routes = dual_routes();
        routes.push(Route::new(net([10, 168, 0, 0], 24), host_a()));
        routes.push(Route::new(net_v6([0xfd00, 0x168, 0, 0, 0, 0, 0, 0], 32), host_c()));
        routes.push(Route::new(net_v6(NARROW, 64), host_a()).with_mtu(Some(mtu_of(600))));
        let mut paths = PathMtus::default();
        paths.lower(host_a().ip(), 1300, Duration::ZERO);
        Self {
            host: Host::new(config, routes),
            counters: Counters::default(),
            limiter: IcmpLimiter::default(),
            paths,
            out: [0; loden::wire::ICMP_ERROR_MAX],
            now: Duration::ZERO,
        }
    }

    fn encapsulate(&mut self, packet: &mut [u8]) {
        self.counters.encap.receive();
        match self.host.forwarder.encapsulate(packet, &self.host.table) {
            Encap::Send(transmit) => {
                for segment in transmit.segments() {
                    black_box(segment);
                }
                black_box(self.paths.lookup(transmit.destination.ip(), self.now));
                self.counters.encap.forward();
            }
            Encap::Fragment(mut fragments) => {
                while let Some(transmit) = fragments.cut_next() {
                    black_box(transmit.contents);
                    self.counters.stats.fragments_made += 1;
                }
                self.counters.encap.forward();
            }
            Encap::Reject(reject) => {
                let answered = answer(&mut self.limiter, &mut self.out, self.now, &reject);
                match answered {
                    true => self.counters.encap.answer(),
                    false => self.counters.encap.discard(reject.reason().into()),
                }
            }
            Encap::Drop(reason) => self.counters.encap.discard(reason),
        }
    }

    fn decapsulate(&mut self, datagram: &mut [u8], from: SocketAddr) {
        self.counters.decap.receive();
        match self.host.forwarder.decapsulate(datagram, from, &self.host.table) {
            Decap::Deliver(bytes) => {
                black_box(bytes);
                self.counters.decap.forward();
            }
            Decap::Reject(reject) => {
                let answered = answer(&mut self.limiter, &mut self.out, self.now, &reject);
                match answered {
                    true => self.counters.decap.answer(),
                    false => self.counters.decap.discard(reject.reason().into()),
                }
            }
            Decap::Drop(reason) => self.counters.decap.discard(reason),
        }
    }
}

/// Writes every ICMP error, limited or not.
fn answer(
    limiter: &mut IcmpLimiter,
    out: &mut [u8; loden::wire::ICMP_ERROR_MAX],
    now: Duration,
    reject: &Reject<'_>,
) -> bool {
    let written = black_box(reject.icmp_error(out)).is_some();
    written && limiter.allow(reject, now)
}

/// An address behind host A on a path that is too narrow for IPv6.
const NARROW: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 4, 0, 0, 0, 0, 1);

/// Returns an IPv6 packet for every verdict and for every reason that one packet can cause.
fn packets_v6() -> Vec<Ipv6> {
    let mut packets = Vec::new();
    for base in [Ipv6::new(POD_V6, POD_A_V6), Ipv6::new(POD_A_V6, POD_V6)] {
        let with = |edit: fn(&mut Ipv6)| {
            let mut packet = base.clone();
            edit(&mut packet);
            packet
        };
        packets.extend([
            base.clone(),
            with(|p| p.extensions = vec![destination_options(2), fragment(0, true)]),
            with(|p| p.extensions = vec![destination_options(1); 9]),
            with(|p| p.extensions = vec![(ROUTING, vec![0; 8])]),
            with(|p| p.payload_len = Some(9999)),
            with(|p| (p.payload_len, p.extensions) = (Some(0), vec![(HOP_BY_HOP, vec![0, 0, 0xc2, 4, 0, 1, 0, 0])])),
            with(|p| p.source = Ipv6Addr::LOCALHOST),
            with(|p| p.source = [0xfe80, 0, 0, 0, 0, 0, 0, 1].into()),
            with(|p| p.source = POD_C_V6),
            with(|p| p.destination = Ipv6Addr::LOCALHOST),
            with(|p| p.destination = [0xff02, 0, 0, 0, 0, 0, 0, 2].into()),
            with(|p| p.destination = POD_C_V6),
            with(|p| p.destination = NOBODY_V6),
            with(|p| (p.destination, p.protocol, p.payload) = (NOBODY_V6, ICMPV6, vec![1; 40])),
            with(|p| p.destination = [0xfd00, 0x168, 0, 0, 0, 0, 0, 4].into()),
            with(|p| p.destination = NARROW),
            with(|p| (p.destination, p.payload) = (NARROW, pattern(1000))),
            with(|p| p.hop_limit = 0),
            with(|p| p.hop_limit = 1),
            with(|p| p.payload = pattern(2000)),
        ]);
    }
    packets
}

/// Returns a packet for every verdict and for every reason that one packet can cause.
fn packets() -> Vec<Ipv4> {
    let mut packets = Vec::new();
    for base in [outbound(), inbound()] {
        let with = |edit: fn(&mut Ipv4)| {
            let mut packet = base.clone();
            edit(&mut packet);
            packet
        };
        packets.extend([
            base.clone(),
            with(|p| p.options = RECORD_ROUTE.to_vec()),
            with(|p| p.payload = pattern(1452)),
            with(|p| p.trailer = vec![9; 7]),
            with(|p| p.cut = Some(19)),
            with(|p| p.version = 6),
            with(|p| p.version = 5),
            with(|p| p.ihl = Some(4)),
            with(|p| (p.ihl, p.cut) = (Some(15), Some(48))),
            with(|p| p.total = Some(12)),
            with(|p| p.total = Some(9999)),
            with(|p| p.checksum = Some(0xdead)),
            with(|p| p.options = vec![30, 0, 1, 1]),
            with(|p| p.options = STRICT_SOURCE_ROUTE.to_vec()),
            with(|p| p.source = Ipv4Addr::LOCALHOST),
            with(|p| p.source = [169, 254, 0, 1].into()),
            with(|p| p.source = POD_B),
            with(|p| p.destination = Ipv4Addr::BROADCAST),
            with(|p| p.destination = Ipv4Addr::LOCALHOST),
            with(|p| p.destination = [224, 0, 0, 1].into()),
            with(|p| p.destination = POD_B),
            with(|p| p.destination = NOBODY),
            with(|p| (p.destination, p.protocol, p.payload) = (NOBODY, ICMP, icmp(3, 0, b""))),
            with(|p| p.destination = [10, 168, 0, 3].into()),
            with(|p| (p.destination, p.payload) = ([10, 168, 0, 2].into(), udp(1, 8285, b""))),
            with(|p| p.ttl = 0),
            with(|p| p.ttl = 1),
            with(|p| (p.payload, p.fragment) = (pattern(2000), DF)),
            with(|p| p.payload = pattern(65_000)),
            with(|p| (p.payload, p.options) = (pattern(2000), [ROUTER_ALERT.as_slice(), &RECORD_ROUTE].concat())),
            with(|p| (p.payload, p.fragment) = (pattern(2000), 0x1fff)),
        ]);
    }
    packets
}

#[test]
fn no_verdict_allocates() {
    const ROUNDS: u32 = 500;
    let dual = ForwarderConfig::new(&dual_identity());
    for config in [config(), config().with_transit(Transit::Allowed), dual] {
        use DropReason::{
            BadOffload, BelowIpv6Minimum, EcnNotCapable, Ipv4NotCarried, Ipv6Multicast, Ipv6NotCarried, Jumbogram,
        };
        let carries_ipv6 = config.host.network_v6().is_some();
        let mut worker = Worker::new(config);
        let mut originals: Vec<_> = packets().iter().map(Ipv4::bytes).collect();
        originals.extend(packets_v6().iter().map(Ipv6::bytes));
        let mut buffer = vec![0; 65_536];
        let calls = allocations(|| {
            for round in 0..ROUNDS {
                worker.now = Duration::from_millis(u64::from(round));
                for original in &originals {
                    let packet = &mut buffer[..original.len()];
                    packet.copy_from_slice(original);
                    worker.encapsulate(packet);
                    packet.copy_from_slice(original);
                    worker.decapsulate(packet, host_a());
                    packet.copy_from_slice(original);
                    worker.decapsulate(packet, ([10, 9, 9, 9], 8285).into());
                }
            }
        });
        assert_eq!(calls, 0);
        // The calls must have been of every kind.
        let Counters { encap, decap, stats, .. } = &worker.counters;
        assert_eq!(encap.received(), u64::from(ROUNDS) * originals.len() as u64);
        assert!(stats.fragments_made > u64::from(ROUNDS) * 40, "65,000 bytes are many fragments");
        assert!(encap.is_conserved() && decap.is_conserved());
        assert!([encap, decap].iter().all(|flow| flow.forwarded() > 0 && flow.answered() > 0));
        let seen = |reason: &&DropReason| encap.dropped(**reason) + decap.dropped(**reason) > 0;
        let of_the_forwarder = DropReason::ALL.iter().take_while(|reason| **reason != DropReason::PathTooNarrow);
        // These need more than the bytes of a packet (a mark, an offload, a learned path MTU), or another host.
        let needs_more = |reason: &DropReason| {
            matches!(reason, EcnNotCapable | BadOffload | BelowIpv6Minimum | Ipv4NotCarried)
                || carries_ipv6 && matches!(reason, Ipv6NotCarried)
                || !carries_ipv6 && matches!(reason, Jumbogram | Ipv6Multicast)
        };
        let of_bytes = of_the_forwarder.filter(|reason| !needs_more(reason));
        let unseen: Vec<_> = of_bytes.filter(|reason| !seen(reason)).collect();
        assert!(unseen.is_empty(), "never seen: {unseen:?}");
    }
}

#[test]
fn handling_a_refusal_does_not_allocate() {
    let mut worker = Worker::new(config());
    let mut refused = Ipv4 { payload: pattern(1452), fragment: DF, ..outbound() }.bytes();
    let cut = Ipv4 { payload: pattern(1452), ..outbound() }.bytes();
    let mut buffer = cut.clone();
    let calls = allocations(|| {
        for _ in 0..10_000 {
            let Host { forwarder, table, .. } = &worker.host;
            let Encap::Send(_) = forwarder.encapsulate(&mut refused, table) else { return };
            // The packet has its first TTL again.
            let Ok(reject) = forwarder.refused_as_too_long(&mut refused, 1300, table) else { return };
            black_box(answer(&mut worker.limiter, &mut worker.out, worker.now, &reject));
            worker.counters.encap.receive();
            worker.counters.encap.answer();
            buffer.copy_from_slice(&cut);
            let Encap::Fragment(mut fragments) = forwarder.encapsulate_within(&mut buffer, |_| 300, table) else {
                return;
            };
            while let Some(transmit) = fragments.cut_next() {
                worker.counters.stats.fragments_made += 1;
                black_box(transmit.contents);
            }
        }
    });
    let Counters { encap, stats, .. } = &worker.counters;
    assert_eq!((calls, encap.answered(), stats.fragments_made), (0, 10_000, 60_000));
}

/// The limiter's table has a fixed size for any number of sources.
#[test]
fn the_limiter_does_not_allocate() {
    let (host, mut limiter) = (Host::ordinary(), IcmpLimiter::default());
    let mut packet = Ipv4 { destination: NOBODY, ..outbound() }.bytes();
    let mut allowed = 0;
    let calls = allocations(|| {
        for i in 0..100_000u32 {
            let source = [100, 96, (i >> 8) as u8, i as u8];
            packet[12..16].copy_from_slice(&source);
            repair_checksum(&mut packet);
            if let Encap::Reject(reject) = host.forwarder.encapsulate(&mut packet, &host.table) {
                allowed += u32::from(limiter.allow(&reject, Duration::from_micros(u64::from(i) * 50)));
            }
        }
    });
    assert_eq!(calls, 0);
    assert!((1000..100_000).contains(&allowed), "{allowed} were allowed, so both ways were taken");
}

/// The steady state: a batch uses the table of the previous one. The first batch after a change may allocate.
#[test]
fn load_does_not_allocate_while_nothing_is_published() {
    let mut publisher = RoutePublisher::new();
    let mut reader = publisher.reader();
    for port in 1..200 {
        let route = Route::new(net([100, 96, 2, 0], 24), ([10, 168, 0, 3], port));
        assert_eq!(publisher.apply([RouteChange::Set(route)]).changed, 1);
        assert_eq!(reader.load().len(), 1);
        let mut found = None;
        let calls = allocations(|| {
            for _ in 0..100 {
                found = reader.load().lookup_v4([100, 96, 2, 3].into()).map(|hop| hop.address.port());
            }
        });
        assert_eq!((calls, found), (0, Some(port)));
    }
}

/// A tag of one byte.
struct Tag;

impl Framing for Tag {
    const HEAD: usize = 1;
    const OVERHEAD_MAX: usize = 1;

    fn seal(&mut self, _: SocketAddr, datagram: &mut [u8], _: usize) {
        datagram[0] = 0xa5;
    }

    fn open<'d>(
        &mut self,
        _: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        _: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        match datagram.split_first_mut() {
            Some((&mut 0xa5, packet)) => Ok(Some(packet)),
            _ => Err(DropReason::NotAuthentic),
        }
    }
}

/// Accepts everything, and counts it.
#[derive(Default)]
struct Count {
    sent: usize,
    written: usize,
}

impl Sink for Count {
    fn send(&mut self, batches: &[Transmit<'_>], _: PathMode) -> Result<(), Unsent> {
        for datagram in batches.iter().flat_map(Transmit::segments) {
            assert_eq!(datagram[0], 0xa5);
            self.sent += 1;
        }
        Ok(())
    }

    fn write(&mut self, _: &VnetHeader, _: &[u8]) -> Result<(), WriteFailure> {
        self.written += 1;
        Ok(())
    }
}

/// Packets of each kind: whole ones, fragments, segments of GSO packets, and coalesced ones.
#[test]
fn no_sealed_packet_allocates() {
    let host = Host::new(config(), dual_routes());
    let endpoint = Endpoint::new(host.forwarder.clone());
    let mut engine = Engine::new(endpoint, QueueLimits::default(), Coalesce::ALL).with_framing(Tag);
    let to = outbound().bytes();
    let from = complete(Ipv4 { payload: udp(53, 4000, &pattern(500)), fragment: DF, ..inbound() }.bytes());
    let from = [&[0xa5], from.as_slice()].concat();
    let long = Ipv4 { payload: pattern(4000), ..outbound() }.bytes();
    let many = Ipv4 { payload: udp(4000, 53, &pattern(8000)), fragment: DF, ..outbound() }.bytes();
    let gso = VnetHeader {
        flags: vnet_flag::NEEDS_CSUM,
        gso_type: vnet_gso::UDP_L4,
        hdr_len: 28,
        gso_size: 1000,
        csum_start: 20,
        csum_offset: 6,
    };
    let (mut sink, mut buffer, plain) = (Count::default(), vec![0; 16_384], VnetHeader::default());
    let mut run = |rounds: usize| {
        for _ in 0..rounds {
            for (header, packet) in [(&plain, &to), (&plain, &long), (&gso, &many)] {
                buffer[..packet.len()].copy_from_slice(packet);
                engine.from_tun(header, &mut buffer[..packet.len()], &host.table, Duration::ZERO, &mut sink);
            }
            for _ in 0..4 {
                buffer[..from.len()].copy_from_slice(&from);
                engine.from_udp(host_a(), &mut buffer[..from.len()], &host.table, Duration::ZERO, &mut sink);
            }
            engine.flush_inbound(Duration::ZERO, &mut sink);
        }
        engine.flush(&host.table, Duration::ZERO, &mut sink);
    };
    // The queue keeps the memory that it has used once.
    run(1000);
    assert_eq!(allocations(|| run(1000)), 0);
    let Counters { encap, decap, stats } = engine.counters();
    assert_eq!(
        (encap.forwarded(), decap.forwarded(), stats.segments_made, stats.fragments_made),
        (6000, 8000, 16_000, 6000)
    );
    assert_eq!((sink.sent, sink.written, stats.coalesced), (2000 + 16_000 + 6000, 2000, 8000));
}
