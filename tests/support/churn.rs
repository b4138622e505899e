//! Leases that change without end so that an inconsistent table shows, and an observer of the table.
//!
//! ```text
//!  twins     10.64.i.j/24 and 11.64.i.j/24: added, moved and removed in one batch, to hosts of one version
//!  hoppers   10.128.i.j/24 or 11.128.i.j/24: one is added in the batch in which the other is removed
//!  the beat  10.1.0.0/24: moves with every batch, so that a table tells its version
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::Ipv4Net;
use loden::Host;
use loden::forward::{DirectionCounters, Encap, Forwarder, ForwarderConfig};
use loden::lease::{Lease, LeaseEvent, Reconciler, SourceId};
use loden::route::{RoutePublisher, RouteReader, RouteTable};
use loden::wire::checksum::checksum;

const TWINS: u32 = 10_000;
const HOPPERS: u32 = 5_000;

const SOURCE: SourceId = SourceId(1);
const OWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 8285);
const BEAT: u32 = 0x0a01_0000;
const TWIN: u32 = 0x0a40_0000;
const HOPPER: u32 = 0x0a80_0000;
/// The distance from an address in 10.0.0.0/8 to its twin in 11.0.0.0/8.
const OTHER_SIDE: u32 = 0x0100_0000;
const HOSTS: u32 = 0xac10_0000;
const BEAT_HOSTS: u32 = 0xc0a8_0000;

/// The control thread's side. It passes events through a reconciler to a publisher. A lease's id is its subnet's first
/// address.
pub struct Feeder {
    reconciler: Reconciler<u32>,
    publisher: RoutePublisher,
    random: Random,
    version: u32,
    is_there: Vec<bool>,
    /// The hoppers that are on the other side.
    is_over: Vec<bool>,
}

fn host() -> Host {
    Host::new(network(), own_subnet(), OWN).expect("an identity")
}

impl Feeder {
    /// Returns a feeder without leases.
    #[expect(clippy::new_without_default, reason = "nobody needs a default one")]
    pub fn new() -> Self {
        let host = host();
        Self {
            reconciler: Reconciler::new(&host),
            publisher: RoutePublisher::for_host(&host),
            random: Random(1),
            version: 0,
            is_there: vec![false; TWINS as usize],
            is_over: vec![false; HOPPERS as usize],
        }
    }

    pub fn observer(&self, seed: u64) -> Observer {
        let forwarder = Forwarder::new(ForwarderConfig::new(&host())).expect("valid settings");
        Observer {
            reader: self.publisher.reader(),
            forwarder,
            random: Random(seed),
            flow: DirectionCounters::default(),
            looks: 0,
        }
    }

    /// Lists all twins, and all hoppers on the first side. Returns the version that is published then.
    pub fn list_all(&mut self) -> u32 {
        self.version += 1;
        self.is_there.fill(true);
        self.is_over.fill(false);
        let twins = (0..TWINS).flat_map(|number| [twin(number, 0, 0), twin(number, OTHER_SIDE, 0)]);
        let hoppers = (0..HOPPERS).map(|number| hopper(number, 0));
        let all = twins.chain(hoppers).chain([beat(self.version)]).collect();
        self.take([LeaseEvent::Snapshot(all)]);
        self.version
    }

    /// Lists no lease.
    pub fn list_nothing(&mut self) {
        self.take([LeaseEvent::Snapshot(Vec::new())]);
    }

    /// Applies events for about this many leases, and publishes them at once. Returns the version, and the number of
    /// events.
    pub fn change(&mut self, leases: u32) -> (u32, usize) {
        self.version += 1;
        let (mut events, mut other_side) = (vec![added(beat(self.version))], Vec::new());
        for _ in 0..leases.div_ceil(3) {
            let number = self.random.below(TWINS);
            let is_there = &mut self.is_there[number as usize];
            *is_there = !*is_there || self.random.below(4) > 0;
            for (side, events) in [(0, &mut events), (OTHER_SIDE, &mut other_side)] {
                let (key, lease) = twin(number, side, self.version);
                events.push(if *is_there { added((key, lease)) } else { LeaseEvent::Removed { key } });
            }
        }
        let first = self.random.below(HOPPERS);
        for offset in 0..leases.div_ceil(6) {
            // Each lease changes at most once in a batch.
            let number = (first + offset) % HOPPERS;
            let is_over = &mut self.is_over[number as usize];
            let [from, to] = if *is_over { [OTHER_SIDE, 0] } else { [0, OTHER_SIDE] };
            *is_over = !*is_over;
            events.push(LeaseEvent::Removed { key: hopper(number, from).0 });
            other_side.push(added(hopper(number, to)));
        }
        events.append(&mut other_side);
        let count = events.len();
        self.take(events);
        (self.version, count)
    }

    /// Frees the tables that readers have released since the last publication.
    pub fn sweep(&mut self) {
        assert_eq!(self.publisher.apply([]).changed, 0);
    }

    fn take(&mut self, events: impl IntoIterator<Item = LeaseEvent<u32>>) {
        for event in events {
            self.reconciler.handle_event(SOURCE, event, Duration::ZERO);
        }
        assert_eq!(self.reconciler.conflict_totals().total(), 0);
        let applied = self.publisher.apply(self.reconciler.take_changes());
        assert!(applied.refused.is_empty(), "{:?}", applied.refused);
        assert_eq!(self.publisher.table().len(), self.reconciler.route_count());
    }
}

/// The number of looks for each walk through the whole table.
const LOOKS_PER_WALK: u32 = 4096;

/// A worker's side. It routes packets, each batch with one table.
pub struct Observer {
    reader: RouteReader,
    forwarder: Forwarder,
    random: Random,
    flow: DirectionCounters,
    looks: u32,
}

impl Observer {
    /// Routes a batch of packets after the version `published`. Asserts that every verdict is one of a consistent table
    /// that is not older. At intervals it checks the verdicts for all leases, and their number. Returns the table's
    /// version; `None` if it is empty.
    pub fn look(&mut self, published: u32) -> Option<u32> {
        let Self { reader, forwarder, random, flow, looks } = self;
        let table = reader.load();
        let mut next_hop = |bits| next_hop(bits, forwarder, table, flow);
        let Some(beat) = next_hop(BEAT) else {
            let is_empty = [TWIN, HOPPER].iter().all(|base| next_hop(base + 256 * random.below(HOPPERS)).is_none());
            assert!(is_empty && table.is_empty(), "without a beat there is nothing");
            return None;
        };
        let version = ((bits(beat) - BEAT_HOSTS) << 15) | u32::from(beat.port() - 1);
        assert!(version >= published, "version {version} after {published} was published");
        if looks.is_multiple_of(LOOKS_PER_WALK) {
            let twins: usize = (0..TWINS).map(|number| assert_twin(number, version, &mut next_hop)).sum();
            (0..HOPPERS).for_each(|number| assert_hopper(number, version, &mut next_hop));
            assert_eq!(1 + twins + HOPPERS as usize, table.len(), "routes in version {version}");
        }
        *looks = looks.wrapping_add(1);
        for _ in 0..4 {
            assert_twin(random.below(TWINS), version, &mut next_hop);
            assert_hopper(random.below(HOPPERS), version, &mut next_hop);
        }
        Some(version)
    }

    /// Returns the counters of all packets.
    pub fn flow(&self) -> &DirectionCounters {
        &self.flow
    }
}

/// Asserts that both twins exist or neither, each at its own host, with one version that is not a future one. Returns
/// their number.
fn assert_twin(number: u32, version: u32, mut next_hop: impl FnMut(u32) -> Option<SocketAddr>) -> usize {
    let twins = [0, OTHER_SIDE].map(|side| next_hop(TWIN + side + 256 * number));
    let [Some(one), Some(other)] = twins else {
        assert_eq!(twins, [None; 2], "twin {number} in version {version}");
        return 0;
    };
    assert_eq!(one.port(), other.port(), "twin {number} in version {version}");
    assert_eq!([bits(one), bits(other)], [0, 1].map(|side| HOSTS + 2 * number + side));
    assert!(version >> 15 > 0 || u32::from(one.port()) <= version + 1, "twin {number} of {one} in version {version}");
    2
}

/// Asserts that a hopper is on one side only, at its own host.
fn assert_hopper(number: u32, version: u32, mut next_hop: impl FnMut(u32) -> Option<SocketAddr>) {
    let places = [0, OTHER_SIDE].map(|side| next_hop(HOPPER + side + 256 * number));
    let hosts: Vec<_> = (0..).zip(places).filter_map(|(side, place)| Some((side, bits(place?)))).collect();
    let [(side, host)] = hosts[..] else { panic!("hopper {number} in version {version}: {places:?}") };
    assert_eq!(host, HOSTS + 2 * TWINS + 2 * number + side, "hopper {number} in version {version}");
}

/// Returns the next hop of a packet to the third address behind this one.
fn next_hop(
    subnet: u32,
    forwarder: &Forwarder,
    table: &RouteTable,
    flow: &mut DirectionCounters,
) -> Option<SocketAddr> {
    // 20 bytes from 10.0.0.2, TTL 64, UDP.
    let mut packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 0, 0, 0, 0];
    packet[16..].copy_from_slice(&(subnet + 3).to_be_bytes());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    flow.receive();
    match forwarder.encapsulate(&mut packet, table) {
        Encap::Send(transmit) => {
            flow.forward();
            Some(transmit.destination)
        }
        Encap::Reject(reject) => {
            flow.discard(reject.reason().into());
            None
        }
        verdict @ (Encap::Drop(_) | Encap::Fragment(_)) => panic!("{verdict:?}"),
    }
}

fn added((key, lease): (u32, Lease)) -> LeaseEvent<u32> {
    LeaseEvent::Added { key, lease }
}

fn beat(version: u32) -> (u32, Lease) {
    (BEAT, lease(BEAT, 24, BEAT_HOSTS + (version >> 15), version))
}

/// Returns a twin's lease. Every other one is longer than /24, and so deeper in a table.
fn twin(number: u32, side: u32, version: u32) -> (u32, Lease) {
    let first = TWIN + side + 256 * number;
    (first, lease(first, 24 + 4 * (number % 2) as u8, HOSTS + 2 * number + side / OTHER_SIDE, version))
}

fn hopper(number: u32, side: u32) -> (u32, Lease) {
    let first = HOPPER + side + 256 * number;
    (first, lease(first, 24, HOSTS + 2 * TWINS + 2 * number + side / OTHER_SIDE, 0))
}

fn lease(first: u32, len: u8, host: u32, version: u32) -> Lease {
    let subnet = Ipv4Net::new(Ipv4Addr::from_bits(first), len).expect("a short prefix");
    Lease::new(subnet, (Ipv4Addr::from_bits(host), 1 + (version & 0x7fff) as u16))
}

fn network() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 7)
}

fn own_subnet() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 24)
}

fn bits(host: SocketAddr) -> u32 {
    match host.ip() {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => panic!("nobody has {address}"),
    }
}

/// The generator SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((mixed >> 32) * u64::from(limit)) >> 32) as u32
    }
}
