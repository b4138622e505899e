//! The run: alternating fault-free and faulty phases, the checks at the end of each, and the summary.

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::chance::Chance;
use crate::churn::Churn;
use crate::fault::{FAULTS, Fault};
use crate::fault_free::FaultFree;
use crate::lab::Lab;
use crate::misfits::Misfits;
use crate::settle::settle;
use crate::side::{SIDES, Side};
use crate::stage::Stage;
use crate::traffic::Traffic;

const FAULT_FREE: Duration = Duration::from_secs(2);
/// The permitted growth of resident memory from the first quarter to the end, in KiB.
const GROWTH: u64 = 1024;

/// Its fields are dropped in this order: first the users of the tunnels.
pub(crate) struct Soak {
    traffic: Traffic,
    churn: Churn,
    lab: Lab,
    misfits: Misfits,
    stage: Arc<Stage>,
    chance: Chance,
    began: Instant,
    faults: BTreeMap<String, u64>,
    /// The drop reasons that the faults must have caused, and those that they caused.
    due: BTreeSet<&'static str>,
    seen: BTreeSet<String>,
    /// Measurements of each tunnel: the time, and KiB.
    memory: Vec<(Duration, [u64; 2])>,
    /// Process id and number of open files, of each side.
    open_files: [Option<(u32, usize)>; 2],
}

impl Soak {
    pub(crate) fn begin(seed: u64) -> Self {
        let mut lab = Lab::new();
        let stage = Arc::<Stage>::default();
        let misfits = Misfits::new(&lab.hosts);
        let churn = Churn::start(&lab, &stage);
        let traffic = Traffic::start(&lab.hosts, &stage);
        settle(&mut lab, &stage, "the start");
        Self {
            traffic,
            churn,
            lab,
            misfits,
            stage,
            chance: Chance::new(seed),
            began: Instant::now(),
            faults: BTreeMap::new(),
            due: BTreeSet::new(),
            seen: BTreeSet::new(),
            memory: Vec::new(),
            open_files: [None, None],
        }
    }

    /// Continues until this time has passed since the beginning.
    pub(crate) fn last(&mut self, length: Duration) {
        let mut deck = Vec::new();
        for round in 0_usize.. {
            self.fault_free(round);
            if self.began.elapsed() >= length {
                break;
            }
            let fault = deck.pop().unwrap_or_else(|| {
                deck = FAULTS.into();
                self.chance.shuffle(&mut deck);
                deck.pop().unwrap()
            });
            self.faulty(fault);
        }
    }

    fn fault_free(&mut self, round: usize) {
        let Self { lab, stage, traffic, misfits, chance, .. } = self;
        let fault_free = FaultFree { lab, stage, traffic, misfits, chance };
        fault_free.pass(FAULT_FREE, [None, Some(Side::A), None, Some(Side::B)][round % 4]);
        self.measure();
    }

    /// Measures memory and open files during traffic.
    fn measure(&mut self) {
        // After the next output line the tunnel has noticed the end of the last client.
        self.lab.tallies();
        let memory = SIDES.map(|side| self.lab.tunnel(side).child.rss_kib().unwrap());
        self.memory.push((self.began.elapsed(), memory));
        for side in SIDES {
            let tunnel = self.lab.tunnel(side);
            let (id, files) = (tunnel.child.id(), tunnel.open_files());
            if let Some((of, first)) = self.open_files[side as usize]
                && of == id
            {
                assert_eq!(files, first, "open files of {side:?}, now and at first");
            }
            self.open_files[side as usize] = Some((id, files));
        }
    }

    fn faulty(&mut self, fault: Fault) {
        let before = self.lab.totals();
        let length = Duration::from_millis(200 + self.chance.below(600));
        fault.strike(&mut self.lab, &self.stage, length);
        settle(&mut self.lab, &self.stage, &format!("{fault:?}"));
        let after = self.lab.totals();
        for side in SIDES {
            let cost = after[side as usize].since(&before[side as usize]);
            for (flow, may) in [&cost.encap, &cost.decap].into_iter().zip(fault.may_cost(side)) {
                let unexplained = flow.dropped.keys().find(|reason| !may.contains(&reason.as_str()));
                assert_eq!(unexplained, None, "{fault:?} for {length:?} cost {side:?} {cost:#?}");
                self.seen.extend(flow.dropped.keys().cloned());
            }
        }
        self.due.extend(fault.must_cost());
        *self.faults.entry(format!("{fault:?}")).or_default() += 1;
    }

    /// Stops all traffic and runs the last checks.
    pub(crate) fn end(mut self) {
        let report = self.traffic.report(self.began);
        self.traffic.stop();
        self.stage.set_fault_free(false);
        self.churn.stop();
        self.stage.check();
        self.all_routes_are_gone();
        self.nothing_spins();
        self.memory_is_flat();
        let commands = self.churn.commands();
        let Self { lab, faults, memory, due, seen, .. } = self;
        assert!(!faults.is_empty(), "no faulty phase");
        let free = due.iter().find(|reason| !seen.contains(**reason));
        assert_eq!(free, None, "a fault that cost nothing: {seen:?} after {faults:?}");
        println!("{report}; {commands} commands; faults: {faults:?}");
        println!("memory in KiB, of A and B: {:?} … {:?}", memory.first(), memory.last());
        for (side, tally) in SIDES.iter().zip(lab.end()) {
            println!("{side:?}: {tally:?}");
            for made in ["segments_made", "coalesced", "fragments_made"] {
                assert!(tally.anomaly(made) > 0, "the traffic of {side:?} was to have all of it: {made}");
            }
        }
    }

    fn all_routes_are_gone(&mut self) {
        let start = Instant::now();
        while self.lab.tallies().iter().any(|tally| tally.routes != 1) {
            assert!(start.elapsed() < Duration::from_secs(10), "routes are left: {:?}", self.lab.tallies());
        }
    }

    /// Asserts processor time and wake-ups of a second without packets: those of the tunnel's output lines.
    fn nothing_spins(&mut self) {
        thread::sleep(Duration::from_millis(500));
        let looks = |lab: &mut Lab| {
            SIDES.map(|side| {
                let child = &lab.tunnel(side).child;
                (child.cpu_time().unwrap(), child.context_switches().unwrap())
            })
        };
        let before = looks(&mut self.lab);
        thread::sleep(Duration::from_secs(1));
        for ((side, before), after) in SIDES.iter().zip(before).zip(looks(&mut self.lab)) {
            let (time, switches) = (after.0 - before.0, after.1 - before.1);
            assert!(
                time < Duration::from_millis(200) && switches < 200,
                "{side:?}: {time:?} and {switches} while idle"
            );
        }
    }

    fn memory_is_flat(&self) {
        let end = self.memory.last().unwrap();
        let quarter = self.memory.iter().find(|(at, _)| *at >= end.0 / 4).unwrap();
        for side in SIDES {
            let [then, now] = [quarter, end].map(|(_, memory)| memory[side as usize]);
            assert!(now <= then + GROWTH, "{side:?} grew from {then} to {now} KiB: {:?}", self.memory);
        }
    }

    pub(crate) fn programs(&mut self) -> Vec<u32> {
        SIDES.map(|side| self.lab.tunnel(side).child.id()).into()
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.lab.directory()
    }
}
