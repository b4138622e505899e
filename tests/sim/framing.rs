//! Nodes with a framing: handshakes over an underlay that loses, packets that wait for them, and replays.

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use loden::forward::{DatagramMeta, DropReason};
use loden::framing::{Framing, Ready, Reply};
use loden::sim::{LinkProfile, Probability};

use crate::{mesh_of, ms, numbers, packet};

/// A session with each peer that said hello or welcome. Data have a counter, and each counter is accepted once.
#[derive(Debug, Default)]
pub(crate) struct Session {
    peers: BTreeSet<SocketAddr>,
    /// Hellos without an answer: the time of the last one, and their number.
    asked: BTreeMap<SocketAddr, (Duration, u32)>,
    sent: u32,
    received: BTreeSet<(SocketAddr, u32)>,
}

const DATA: u8 = 0;
const HELLO: u8 = 1;
const WELCOME: u8 = 2;
/// The time after which a hello is repeated, and the number of hellos.
const PATIENCE: Duration = Duration::from_millis(500);
const HELLOS: u32 = 4;

impl Framing for Session {
    const HEAD: usize = 5;
    const OVERHEAD_MAX: usize = 5;
    const HAS_SESSIONS: bool = true;

    fn ready(&mut self, peer: SocketAddr, _: &[u8], now: Duration, reply: &mut impl Reply) -> Ready {
        if self.peers.contains(&peer) {
            return Ready::Go;
        }
        self.asked.entry(peer).or_insert_with(|| {
            reply.send(peer, &[HELLO]);
            (now, 1)
        });
        Ready::Hold
    }

    fn seal(&mut self, peer: SocketAddr, datagram: &mut [u8], _: usize) {
        assert!(self.peers.contains(&peer), "sealed without a session");
        self.sent += 1;
        datagram[0] = DATA;
        datagram[1..5].copy_from_slice(&self.sent.to_be_bytes());
    }

    fn open<'d>(
        &mut self,
        meta: &mut DatagramMeta,
        datagram: &'d mut [u8],
        _: Duration,
        reply: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        let from = meta.from;
        match datagram {
            [HELLO] => reply.send(from, &[WELCOME]),
            [WELCOME] => {}
            [DATA, a, b, c, d, packet @ ..] => {
                return match self.peers.contains(&from) {
                    false => Err(DropReason::NoSession),
                    true if !self.received.insert((from, u32::from_be_bytes([*a, *b, *c, *d]))) => {
                        Err(DropReason::Replayed)
                    }
                    true => Ok(Some(packet)),
                };
            }
            _ => return Err(DropReason::NotAuthentic),
        }
        self.peers.insert(from);
        self.asked.remove(&from);
        Ok(None)
    }

    fn handle_timeout(&mut self, now: Duration, reply: &mut impl Reply) {
        self.asked.retain(|peer, (last, hellos)| {
            if *last + PATIENCE <= now {
                if *hellos == HELLOS {
                    return false;
                }
                reply.send(*peer, &[HELLO]);
                (*last, *hellos) = (now, *hellos + 1);
            }
            true
        });
    }

    fn poll_timeout(&self) -> Option<Duration> {
        self.asked.values().map(|(last, _)| *last + PATIENCE).min()
    }
}

/// With half of all datagrams lost, a handshake succeeds in most cases, and half of its packets arrive in order.
#[test]
fn packets_wait_for_a_handshake_that_loses_messages() {
    let (mut with_session, mut arrived) = (0, 0);
    for seed in 0..100 {
        let (mut sim, [a, b]) = mesh_of::<Session, 2>(seed);
        sim.set_link_profile(LinkProfile { loss: Probability::percent(50), ..LinkProfile::default() });
        (0..10).for_each(|number| sim.send(a, packet(0, 1, number)));
        assert_eq!(sim[a].counters().encap.held(), 10);
        sim.run_for(ms(5000));
        assert_eq!(sim[a].counters().encap.held(), 0);
        sim.run_until_idle();
        sim.check().unwrap();
        let delivered = numbers(&sim.take_delivered());
        assert!(delivered.is_sorted());
        arrived += delivered.len();
        let encap = sim[a].counters().encap;
        // All of them had a session in time, or none.
        if encap.forwarded() == 0 {
            assert_eq!((encap.dropped(DropReason::NoSession), delivered.len()), (10, 0));
        } else {
            assert_eq!(encap.forwarded(), 10);
            with_session += 1;
        }
        assert!(sim[b].counters().stats.control_received <= 15);
    }
    // One of ten hellos and its welcome arrive with probability 1 - (3/4)^10.
    assert!((85..100).contains(&with_session), "{with_session}");
    assert!((with_session * 3..with_session * 7).contains(&arrived), "{arrived}");
}

#[test]
fn a_stopped_node_drops_the_packets_that_wait() {
    let (mut sim, [a, b]) = mesh_of::<Session, 2>(1);
    sim.stop(b);
    sim.send(a, packet(0, 1, 1));
    sim.run_for(ms(700));
    assert_eq!((sim[a].counters().encap.held(), sim[a].counters().stats.control_sent), (1, 2));
    sim.stop(a);
    assert_eq!((sim[a].counters().encap.held(), sim[a].counters().encap.dropped(DropReason::Stopped)), (0, 1));
    *sim.framing_mut(a) = Session::default();
    sim.start(a);
    sim.start(b);
    sim.send(a, packet(0, 1, 2));
    sim.run_until_idle();
    sim.check().unwrap();
    assert_eq!(numbers(&sim.take_delivered()), [2]);
}
