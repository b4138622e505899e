//! The oracle: recomputes everything from the set of leases, with every pair compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use loden::lease::{Conflict, Lease, LeaseEvent, LeaseId, Refusal, SourceId};
use loden::route::{Route, RouteError};
use loden::{Host, Mtu};

pub type Key = u8;

/// The expected routes and conflicts.
#[derive(Debug, PartialEq)]
pub struct Expected {
    pub routes: Vec<Route>,
    pub conflicts: BTreeSet<String>,
    /// The host's further subnets.
    pub further: BTreeSet<IpNet>,
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Returns `Ok(true)` for a contender.
fn judge(host: &Host, lease: &Lease) -> Result<bool, Refusal> {
    let (subnet, hop) = (lease.subnet.trunc(), canonical(lease.next_hop));
    let ours = hop == host.underlay();
    let (ip, own, network) =
        (hop.ip(), IpNet::from(host.subnet_v4().unwrap()), IpNet::from(host.network_v4().unwrap()));
    let narrow = lease.mtu.filter(|mtu| mtu.get() < 1280 && subnet.addr().is_ipv6());
    let conditions = [
        (own.contains(&subnet) && !ours, Refusal::OwnSubnet { own }),
        (ip.is_unspecified(), Refusal::Unroutable(RouteError::UnspecifiedNextHop)),
        (ip.is_multicast(), Refusal::Unroutable(RouteError::MulticastNextHop)),
        (ip == IpAddr::V4(Ipv4Addr::BROADCAST), Refusal::Unroutable(RouteError::BroadcastNextHop)),
        (hop.port() == 0, Refusal::Unroutable(RouteError::ZeroPort)),
        (narrow.is_some(), Refusal::Unroutable(RouteError::MtuBelowIpv6 { mtu: narrow.unwrap_or(Mtu::MIN) })),
        (!network.contains(&subnet), Refusal::OutsideOverlay { network }),
        (ours && subnet.contains(&own), Refusal::OwnAddress),
        (network.contains(&ip) && !ours, Refusal::NextHopInOverlay { network }),
    ];
    if subnet == own && ours {
        return Ok(false);
    }
    match conditions.into_iter().find(|(holds, _)| *holds) {
        Some((_, refusal)) => Err(refusal),
        None => Ok(!ours),
    }
}

pub fn text(conflict: &Conflict<Key>) -> String {
    format!("{conflict:?}")
}

/// Returns the routes and conflicts of these leases.
pub fn recompute(host: &Host, leases: &BTreeMap<LeaseId<Key>, Lease>) -> Expected {
    let mut conflicts = Vec::new();
    let mut routes: BTreeMap<IpNet, Route> = BTreeMap::new();
    let (mut disputed, mut further) = (BTreeSet::new(), BTreeSet::new());
    // In the order of their ids, the first to claim a subnet gets it.
    for (id, lease) in leases {
        let (subnet, next_hop) = (lease.subnet.trunc(), canonical(lease.next_hop));
        match judge(host, lease) {
            Ok(false) => {
                further.insert(subnet);
            }
            Err(reason) => conflicts.push(Conflict::Refused { id: *id, subnet, next_hop, reason }),
            Ok(true) => {
                let route = Route::new(subnet, next_hop).with_mtu(lease.mtu);
                let first = *routes.entry(subnet).or_insert(route);
                if first != route && disputed.insert(subnet) {
                    conflicts.push(Conflict::Duplicate { subnet, in_force: first.next_hop, rival: next_hop });
                }
            }
        }
    }
    let own = IpNet::from(host.subnet_v4().unwrap());
    further.retain(|subnet| !own.contains(subnet) && !routes.keys().any(|routed| subnet.contains(routed)));
    for inner in routes.keys().chain([&own]) {
        let around = routes.keys().filter(|outer| *outer != inner && outer.contains(inner));
        if let Some(outer) = around.max_by_key(|outer| outer.prefix_len()) {
            conflicts.push(Conflict::Overlap { inner: *inner, outer: *outer });
        }
    }
    let hosts: BTreeSet<SocketAddr> = routes.values().map(|route| route.next_hop).collect();
    for next_hop in hosts {
        let of_family = |ipv4| {
            routes.values().filter(|route| route.next_hop == next_hop && route.subnet.addr().is_ipv4() == ipv4).count()
        };
        if of_family(true).max(of_family(false)) > 1 {
            conflicts.push(Conflict::SharedNextHop { next_hop });
        }
    }
    let conflicts = conflicts.iter().map(text).collect();
    Expected { routes: routes.into_values().collect(), conflicts, further }
}

/// The leases, with a simple model of time: each has a remaining time, which shrinks while its source is connected.
#[derive(Default)]
pub struct Model {
    now: Duration,
    sources: BTreeMap<SourceId, Source>,
}

#[derive(Default)]
struct Source {
    stale_since: Option<Duration>,
    leases: BTreeMap<Key, (Lease, Option<Duration>)>,
}

impl Model {
    pub fn leases(&self) -> BTreeMap<LeaseId<Key>, Lease> {
        let of = |(source, said): (&SourceId, &Source)| {
            let source = *source;
            let ids = said.leases.iter().map(move |(key, (lease, _))| (LeaseId { source, key: *key }, *lease));
            ids.collect::<Vec<_>>()
        };
        self.sources.iter().flat_map(of).collect()
    }

    pub fn stale_since(&self, source: SourceId) -> Option<Duration> {
        self.sources.get(&source)?.stale_since
    }

    pub fn next_deadline(&self) -> Option<Duration> {
        let heard = self.sources.values().filter(|said| said.stale_since.is_none());
        heard.flat_map(|said| said.leases.values()).filter_map(|(_, left)| Some(self.now + (*left)?)).min()
    }

    pub fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now);
        self.now += passed;
        for said in self.sources.values_mut().filter(|said| said.stale_since.is_none()) {
            for (_, left) in said.leases.values_mut() {
                *left = left.map(|left| left.saturating_sub(passed));
            }
        }
    }

    /// Removes leases without remaining time. A lease whose source is lost keeps its time.
    pub fn expire(&mut self) {
        for said in self.sources.values_mut() {
            said.leases.retain(|_, (_, left)| *left != Some(Duration::ZERO));
        }
    }

    pub fn handle(&mut self, source: SourceId, event: &LeaseEvent<Key>) {
        let now = self.now;
        let said = self.sources.entry(source).or_default();
        let put = |said: &mut Source, key: &Key, lease: &Lease| {
            said.leases.insert(*key, (*lease, lease.expires.map(|at| at.saturating_sub(now))));
        };
        if *event == LeaseEvent::SourceLost {
            said.stale_since.get_or_insert(now);
            return;
        }
        said.stale_since = None;
        if let LeaseEvent::Added { key, lease } = event {
            put(said, key, lease);
        } else if let LeaseEvent::Removed { key } = event {
            said.leases.remove(key);
        } else if let LeaseEvent::Snapshot(leases) = event {
            said.leases.clear();
            leases.iter().for_each(|(key, lease)| put(said, key, lease));
        }
    }
}
