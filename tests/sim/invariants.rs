//! R67 over random histories, after every step. A separate account is kept from the trace.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use loden::forward::{Counters, DropReason};
use loden::framing::{Bare, Framing};
use loden::lease::{Lease, LeaseEvent};
use loden::route::{Route, RouteChange};
use loden::sim::{Direction, Event, Fate, LinkProfile, Loss, NodeId, Probability, Record, Sim};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::framing::Session;
use crate::{SOURCE, at, mesh_of, ms, packet, packet_of, subnet, underlay, with_byte};

const NODES: u32 = 4;

/// An action of a user of the simulator.
#[derive(Clone, Debug)]
enum Act {
    Send { from: u32, to: u32, len: usize, header: Option<(usize, u8)>, change: Option<(usize, u8)> },
    Inject { to: u32, from: u32, change: Option<(usize, u8)> },
    Lease { key: u32, host: u32 },
    LeaseGone(u32),
    Hear(u32, bool),
    Route { node: u32, to: u32, via: Option<u32> },
    LinkProfile(LinkProfile),
    LinkMtu(u32, u16),
    Part(Vec<u32>),
    Heal,
    Stop(u32),
    Start(u32),
    Steps(u8),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let node = || 0..NODES;
    // Unused addresses too.
    let anybody = || 0..NODES + 2;
    let change = || proptest::option::weighted(0.2, (0usize..32, any::<u8>()));
    let len = || prop_oneof![4 => 32usize..64, 1 => 500usize..1600];
    let header = || proptest::sample::select(vec![None, Some((at::FLAGS, 0)), Some((at::TTL, 1)), Some((at::TTL, 2))]);
    let probability = || prop_oneof![2 => Just(Probability::NEVER), 1 => (0u32..60).prop_map(Probability::percent)];
    let mtu = || prop_oneof![3 => Just(1500u16), 1 => 40u16..1500];
    let profile = (0u64..9, 0u64..9, probability(), probability(), mtu()).prop_map(
        |(latency, jitter, loss, duplication, mtu)| {
            let (latency, jitter) = (ms(latency), ms(jitter));
            LinkProfile { latency, jitter, loss, duplication, mtu, ..LinkProfile::default() }
        },
    );
    prop_oneof![
        12 => (node(), anybody(), len(), header(), change())
            .prop_map(|(from, to, len, header, change)| Act::Send { from, to, len, header, change }),
        3 => (node(), anybody(), change()).prop_map(|(to, from, change)| Act::Inject { to, from, change }),
        2 => (anybody(), anybody()).prop_map(|(key, host)| Act::Lease { key, host }),
        1 => anybody().prop_map(Act::LeaseGone),
        1 => (node(), any::<bool>()).prop_map(|(node, hears)| Act::Hear(node, hears)),
        1 => (node(), anybody(), proptest::option::of(anybody())).prop_map(|(node, to, via)| Act::Route { node, to, via }),
        2 => profile.prop_map(Act::LinkProfile),
        1 => (node(), mtu()).prop_map(|(node, mtu)| Act::LinkMtu(node, mtu)),
        1 => vec(node(), 1..3).prop_map(Act::Part),
        1 => Just(Act::Heal),
        1 => node().prop_map(Act::Stop),
        2 => node().prop_map(Act::Start),
        4 => (1u8..9).prop_map(Act::Steps),
        4 => (0u64..30).prop_map(Act::Pass),
    ]
}

fn changed(packet: bytes::Bytes, change: Option<(usize, u8)>) -> Vec<u8> {
    let mut packet = packet.to_vec();
    change.into_iter().for_each(|(at, byte)| packet[at] ^= byte);
    packet
}

fn perform<F: Framing>(sim: &mut Sim<u32, F>, nodes: &[NodeId], act: Act) {
    let at = |number: u32| nodes[number as usize];
    match act {
        Act::Send { from, to, len, header, change } => {
            let packet = packet_of(len, from, to);
            sim.send(
                at(from),
                changed(header.map_or(packet.clone(), |(at, byte)| with_byte(&packet, at, byte)), change),
            );
        }
        Act::Inject { to, from, change } => sim.inject(at(to), underlay(from), changed(packet(from, to, 0), change)),
        Act::Lease { key, host } => {
            let lease = Lease::new(subnet(key), underlay(host));
            sim.lease_event(SOURCE, LeaseEvent::Added { key, lease });
        }
        Act::LeaseGone(key) => sim.lease_event(SOURCE, LeaseEvent::Removed { key }),
        Act::Hear(node, hears) => sim.set_hears_leases(at(node), hears),
        Act::Route { node, to, via } => {
            let delete = RouteChange::Delete(subnet(to).into());
            let change = via.map_or(delete, |via| RouteChange::Set(Route::new(subnet(to), underlay(via))));
            let _ = sim.change_routes(at(node), [change]);
        }
        Act::LinkProfile(profile) => sim.set_link_profile(profile),
        Act::LinkMtu(node, mtu) => sim.set_link_mtu(at(node), mtu),
        Act::Part(group) => sim.partition([group.into_iter().map(at)]),
        Act::Heal => sim.heal(),
        Act::Stop(node) => sim.stop(at(node)),
        Act::Start(node) => sim.start(at(node)),
        Act::Steps(steps) => {
            for _ in 0..steps {
                sim.step();
                sim.check().unwrap();
            }
        }
        Act::Pass(time) => sim.run_for(ms(time)),
    }
}

/// The events of a node in the trace.
#[derive(Default)]
struct Account {
    read: u64,
    written: u64,
    fates: BTreeMap<(bool, String), u64>,
}

fn assert_accounts<F: Framing>(sim: &Sim<u32, F>, trace: &[Record]) {
    let mut accounts: BTreeMap<NodeId, Account> = BTreeMap::new();
    let (mut sent, mut arrived, mut copies, mut lost) = (0, 0, 0, BTreeMap::<Loss, u64>::new());
    for record in trace {
        match &record.event {
            Event::FromTun { node, .. } => accounts.entry(*node).or_default().read += 1,
            Event::ToTun { node, .. } => accounts.entry(*node).or_default().written += 1,
            Event::Settled { node, direction, fate } => {
                let fate = match fate {
                    Fate::Forwarded => "forwarded".to_string(),
                    Fate::Answered => "answered".to_string(),
                    Fate::Dropped(reason) => reason.to_string(),
                    other => panic!("{other:?}"),
                };
                let fates = &mut accounts.entry(*node).or_default().fates;
                *fates.entry((*direction == Direction::Outbound, fate)).or_default() += 1;
            }
            Event::Sent { .. } => sent += 1,
            Event::Arrived { .. } => arrived += 1,
            Event::Duplicated { .. } => copies += 1,
            Event::Lost { loss, .. } => *lost.entry(*loss).or_default() += 1,
            Event::Refused { .. } | Event::PathNarrowed { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let underlay = sim.underlay();
    assert_eq!((sent, arrived, copies), (underlay.sent(), underlay.arrived(), underlay.duplicated()));
    assert_eq!(lost, underlay.losses().collect());
    for node in sim.nodes() {
        let account = accounts.remove(&node).unwrap_or_default();
        let counters = sim[node].counters();
        let mut fates = BTreeMap::new();
        for (is_encap, flow) in [(true, &counters.encap), (false, &counters.decap)] {
            let drops = flow.drops().map(|(reason, count)| (reason.to_string(), count));
            let others = [("forwarded".to_string(), flow.forwarded()), ("answered".to_string(), flow.answered())];
            fates.extend(
                drops.chain(others).filter(|(_, count)| *count > 0).map(|(fate, count)| ((is_encap, fate), count)),
            );
        }
        assert_eq!(account.fates, fates, "{node}");
        assert_eq!((account.read, counters.encap.held()), (counters.encap.received(), 0), "{node}");
        assert_eq!(account.written, counters.decap.forwarded() + counters.encap.answered(), "{node}");
    }
}

/// Runs a history, and asserts after every step and at the end that all packets are accounted for.
fn history<F: Framing + Default>(seed: u64, acts: Vec<Act>) -> Sim<u32, F> {
    let (mut sim, nodes) = mesh_of::<F, { NODES as usize }>(seed);
    sim.keep_trace();
    let (mut offered, mut injected) = (0, 0);
    for act in acts {
        offered += u64::from(matches!(act, Act::Send { .. }));
        injected += u64::from(matches!(act, Act::Inject { .. }));
        perform(&mut sim, &nodes, act);
        sim.check().unwrap();
    }
    sim.run_until_idle();
    sim.check().unwrap();
    let refused: u64 = nodes.iter().map(|node| sim[*node].refused()).sum();
    assert_eq!(sim.counters().encap.received() + refused, offered);
    assert_eq!((sim.underlay().injected(), sim.underlay().in_flight()), (injected, 0));
    let trace = sim.take_trace();
    assert_accounts(&sim, &trace);
    // A delivered packet is for a pod there, or an ICMP error for a sender there.
    for delivered in sim.take_delivered() {
        let destination = Ipv4Addr::from(<[u8; 4]>::try_from(&delivered.packet[16..20]).unwrap());
        let is_ours = sim[delivered.node].config().host.subnet_v4().unwrap().contains(&destination);
        assert!(is_ours || delivered.packet[9] == 1, "{destination} at {}", delivered.node);
    }
    sim
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn r67_every_packet_is_in_one_place_after_every_step(seed in any::<u64>(), acts in vec(act(), 1..120)) {
        history::<Bare>(seed, acts);
    }

    /// Packets that wait for a session included.
    #[test]
    fn r67_every_packet_of_a_framing_is_in_one_place_after_every_step(seed in any::<u64>(), acts in vec(act(), 1..120)) {
        history::<Session>(seed, acts);
    }
}

/// Runs 150 histories, and returns the sum of their counters.
fn all<F: Framing + Default>() -> (Counters, BTreeMap<Loss, u64>) {
    let mut runner = TestRunner::deterministic();
    let (mut total, mut lost) = (Counters::default(), BTreeMap::<Loss, u64>::new());
    for seed in 0..150 {
        let acts = vec(act(), 100).new_tree(&mut runner).unwrap().current();
        let sim = history::<F>(seed, acts);
        total += &sim.counters();
        sim.underlay().losses().for_each(|(loss, count)| *lost.entry(loss).or_default() += count);
    }
    (total, lost)
}

/// The histories reach every fate.
#[test]
fn the_histories_reach_every_fate() {
    let (total, lost) = all::<Bare>();
    assert_eq!(lost.len(), Loss::ALL.len(), "{lost:?}");
    let Counters { encap, decap, stats } = total;
    assert!(
        encap.forwarded() > 500 && decap.forwarded() > 500 && encap.answered() > 100 && decap.answered() > 10,
        "{encap:?} {decap:?}"
    );
    assert!(stats.fragments_made > 10 && stats.path_mtu_lowered > 10, "{stats:?}");
    let reasons = [DropReason::UnknownPeer, DropReason::SpoofedSource, DropReason::ForeignDestination];
    assert!(reasons.iter().all(|reason| decap.dropped(*reason) > 10), "{decap:?}");
    assert!(encap.dropped(DropReason::BadChecksum) > 10, "{encap:?}");
}

#[test]
fn the_histories_of_a_framing_reach_every_fate() {
    let (Counters { encap, decap, stats }, lost) = all::<Session>();
    assert_eq!(lost.len(), Loss::ALL.len(), "{lost:?}");
    assert!(encap.forwarded() > 500 && decap.forwarded() > 200 && encap.answered() > 100, "{encap:?} {decap:?}");
    assert!(stats.control_sent > 100 && stats.control_received > 100 && stats.fragments_made > 10, "{stats:?}");
    assert!(encap.dropped(DropReason::NoSession) > 10 && encap.dropped(DropReason::Stopped) > 1, "{encap:?}");
    let reasons = [DropReason::NoSession, DropReason::NotAuthentic, DropReason::Replayed, DropReason::UnknownPeer];
    assert!(reasons.iter().all(|reason| decap.dropped(*reason) > 1), "{decap:?}");
}
