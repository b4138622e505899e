//! A time in which nothing may be lost but what must not pass.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::thread;
use std::time::Instant;

use loden::control::Command;

use crate::answers;
use crate::chance::Chance;
use crate::churn::route;
use crate::lab::Lab;
use crate::misfits::{Expected, Misfits, NOBODY};
use crate::side::{SIDES, Side};
use crate::stage::Stage;
use crate::traffic::Traffic;

/// The time limit until sent packets are counted and received.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(40);
/// A subnet without owner.
const DEAD: Ipv4Addr = Ipv4Addr::new(100, 96, 3, 3);

pub(crate) struct FaultFree<'a> {
    pub(crate) lab: &'a mut Lab,
    pub(crate) stage: &'a Stage,
    pub(crate) traffic: &'a Traffic,
    pub(crate) misfits: &'a Misfits,
    pub(crate) chance: &'a mut Chance,
}

impl FaultFree<'_> {
    /// Runs one phase without faults and checks that every packet is where it belongs. A route to nobody may stand.
    ///
    /// # Panics
    /// If one is not.
    pub(crate) fn pass(self, length: Duration, dead_peer_of: Option<Side>) {
        let Self { lab, stage, traffic, misfits, chance } = self;
        let before = lab.totals();
        let mut expected = [Expected::default(), Expected::default()];
        let dead = || DEAD.into();
        if let Some(side) = dead_peer_of {
            lab.command(side, route(dead(), NOBODY));
            // A command is taken before the next packet but one; the counters are written after both.
            lab.tunnel(side).tally();
        }
        stage.set_fault_free(true);
        let start = Instant::now();
        while start.elapsed() < length {
            for side in SIDES {
                misfits.send(lab, side, chance, &mut expected[side as usize]);
                if dead_peer_of == Some(side) {
                    misfits.send_to_nobody(side, DEAD, &mut expected[side as usize]);
                }
            }
            stage.check();
            thread::sleep(PAUSE);
        }
        answers::are_given(lab, &mut expected);
        stage.set_fault_free(false);
        let start = Instant::now();
        loop {
            stage.check();
            let totals = lab.totals();
            let counted = SIDES.map(|side| totals[side as usize].since(&before[side as usize]));
            let wrong = SIDES.iter().find_map(|side| {
                let outcome = expected[*side as usize].compare(&counted[*side as usize]);
                outcome.err().map(|what| format!("{side:?}: {what}"))
            });
            let Some(what) = wrong.or_else(|| traffic.missing()) else { break };
            assert!(
                start.elapsed() < PATIENCE,
                "{}\n{counted:?}\nin the fault-free phase: {what}",
                kernel::losses(lab)
            );
        }
        if let Some(side) = dead_peer_of {
            lab.command(side, Command::DeleteRoute { subnet: dead() });
        }
    }
}

/// The losses of the kernels, to distinguish them from losses of the tunnels.
mod kernel {
    use std::fs;

    use crate::lab::Lab;
    use crate::side::SIDES;

    pub(super) fn losses(lab: &Lab) -> String {
        let mut said = String::new();
        for side in SIDES {
            for (name, namespace) in [("host", side.host(&lab.hosts)), ("pod", side.pod(&lab.hosts))] {
                let (snmp, devices) = namespace.enter(|| {
                    let read = |path| fs::read_to_string(path).unwrap_or_default();
                    (read("/proc/thread-self/net/snmp"), read("/proc/thread-self/net/dev"))
                });
                let udp: Vec<_> =
                    snmp.lines().filter(|line| line.starts_with("Udp:") || line.starts_with("Ip:")).collect();
                said += &format!("{name} {side:?}\n{}\n{devices}", udp.join("\n"));
            }
        }
        said + &fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default()
    }
}
