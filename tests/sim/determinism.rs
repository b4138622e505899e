//! The seed determines the whole run.

use loden::lease::LeaseEvent;
use loden::route::RouteChange;
use loden::sim::{Event, LinkProfile, Probability, Record};

use crate::{SOURCE, mesh, ms, packet, packet_of, subnet};

/// Runs a scenario with some of every event.
fn happenings(seed: u64, loss: Probability) -> Vec<Record> {
    let (mut sim, nodes) = mesh::<5>(seed);
    sim.keep_trace();
    let profile = LinkProfile { jitter: ms(3), duplication: Probability::percent(10), loss, ..LinkProfile::default() };
    sim.set_link_profile(profile);
    sim.set_link_profile_between(nodes[0], nodes[1], LinkProfile { mtu: 600, ..profile });
    for round in 0..50 {
        for from in 0..5 {
            for to in 0..6 {
                sim.send_at(ms(round), nodes[from as usize], packet(from, to, round as u32));
            }
        }
        sim.send_at(ms(round), nodes[0], packet_of(1000, 0, 1));
    }
    sim.run_until(ms(10));
    sim.partition([[nodes[2], nodes[3]]]);
    sim.stop(nodes[4]);
    sim.run_until(ms(20));
    sim.heal();
    sim.lease_event(SOURCE, LeaseEvent::Removed { key: 1 });
    let _ = sim.change_routes(nodes[0], [RouteChange::Delete(subnet(2).into())]);
    sim.run_until(ms(30));
    sim.start(nodes[4]);
    sim.run_until_idle();
    sim.check().unwrap();
    sim.take_trace()
}

/// Returns the FNV-1a hash of a whole trace, with the packets' bytes.
fn digest(trace: &[Record]) -> u64 {
    let mut digest = 0xcbf2_9ce4_8422_2325u64;
    let mut add =
        |bytes: &[u8]| bytes.iter().for_each(|byte| digest = (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    for record in trace {
        add(record.to_string().as_bytes());
        if let Event::FromTun { packet, .. } | Event::ToTun { packet, .. } | Event::Refused { packet, .. } =
            &record.event
        {
            add(packet);
        } else if let Event::Sent { datagram, .. } | Event::Arrived { datagram, .. } = &record.event {
            add(datagram);
        }
    }
    digest
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let (one, other) = (happenings(7, Probability::percent(5)), happenings(7, Probability::percent(5)));
    assert!(one.len() > 3000, "{} records", one.len());
    assert_eq!(one, other);
}

#[test]
fn another_seed_gives_another_trace() {
    let traces = [1, 2, 3].map(|seed| happenings(seed, Probability::percent(5)));
    assert!(traces[0] != traces[1] && traces[1] != traces[2] && traces[0] != traces[2]);
}

/// The hash is the same on every platform. It was computed on x86-64, and changes only with the simulator's behaviour
/// or trace.
#[test]
fn the_trace_of_a_seed_is_this_one() {
    assert_eq!(digest(&happenings(7, Probability::percent(5))), 8_122_724_884_054_065_402);
}

/// A change of one condition does not affect the effects of the others.
#[test]
fn packets_arrive_at_the_same_times_with_and_without_loss() {
    let arrivals = |trace: Vec<Record>| -> Vec<Record> {
        trace.into_iter().filter(|record| matches!(record.event, Event::Arrived { .. })).collect()
    };
    let (lossy, lossless) =
        (arrivals(happenings(7, Probability::percent(5))), arrivals(happenings(7, Probability::NEVER)));
    let kept = lossless.len() * 9 / 10..lossless.len();
    assert!(kept.contains(&lossy.len()), "{} of {} arrived", lossy.len(), lossless.len());
    let mut rest = lossless.iter();
    assert!(lossy.iter().all(|record| rest.any(|other| other == record)), "a part of them, in their order");
}

#[test]
fn a_record_reads_as_a_line() {
    let trace = happenings(7, Probability::percent(5));
    let line = |text: &str| trace.iter().map(Record::to_string).find(|line| line.contains(text)).unwrap();
    assert_eq!(line("read"), "0.000000000 node 0 read 32 bytes from its TUN");
    assert_eq!(line("answered"), "0.000000000 node 0 encap: answered");
    assert!(line("lost, random").ends_with(":8285: lost, random"));
    assert!(line("partition").contains("lost, partition"));
    assert!(line("carries").contains("learned that the path to 10.168.0.2:8285 carries 600 bytes"));
    assert!(line("is stopped").contains("node 4 is stopped: 32 bytes were dropped"));
}
