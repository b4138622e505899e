//! One running tunnel, and what it says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{Child, TwoHosts};

use crate::side::Side;

const SOON: Duration = Duration::from_secs(10);

pub(crate) struct Tunnel {
    pub(crate) child: Child,
    pub(crate) side: Side,
    pub(crate) device: String,
    latest: Tally,
    /// The number of its output lines, each of them conserved.
    pub(crate) lines: u64,
}

/// The counters of one line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) encap: Flow,
    pub(crate) decap: Flow,
    pub(crate) anomalies: BTreeMap<String, u64>,
    /// By peer.
    pub(crate) send_errors: BTreeMap<String, u64>,
    pub(crate) routes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) received: u64,
    pub(crate) forwarded: u64,
    pub(crate) answered: u64,
    /// Only the reasons that occurred.
    pub(crate) dropped: BTreeMap<String, u64>,
}

impl Tunnel {
    /// Starts one, with all offloads; the pods' packets may be longer than the underlay carries.
    pub(crate) fn start(hosts: &TwoHosts, side: Side, control: &Path) -> Self {
        let (here, there) = (side.place(), side.other().place());
        let mut command = testbed::tied_to_its_parent(program());
        command.args(["--network", "100.96.0.0/16", "--subnet", here.subnet, "--listen", &here.host.to_string()]);
        command.args(["--route", &format!("{}={}", there.subnet, there.host)]);
        command.args(["--mtu", "9000", "--stats", "0.1", "--control"]).arg(control);
        let host = side.host(hosts);
        let child = Child::spawn(host, command).unwrap();
        let line = child.next_line(SOON).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["event"], "ready", "{line}");
        let device = ready["tun"].as_str().unwrap().to_owned();
        // What a busy machine keeps waiting is not lost.
        host.set_queue_len(&device, 10_000).unwrap();
        Self { child, side, device, latest: Tally::default(), lines: 0 }
    }

    /// Its counters of a moment after this call.
    pub(crate) fn tally(&mut self) -> Tally {
        while let Ok(line) = self.child.next_line(Duration::ZERO) {
            self.take(&line);
        }
        // The next line may have been on its way already.
        let enough = self.lines + 2;
        let start = Instant::now();
        while self.lines < enough {
            assert!(start.elapsed() < SOON, "{:?} has no news: {}", self.side, self.child.stderr());
            let line = self.child.next_line(SOON).unwrap();
            self.take(&line);
        }
        self.latest.clone()
    }

    /// The last counters of one that has ended: by SIGTERM all of them, by SIGKILL those of its last line.
    pub(crate) fn last_words(mut self, signal: Signal) -> Tally {
        let mut said_farewell = false;
        while let Ok(line) = self.child.next_line(SOON) {
            // SIGKILL may come in the middle of a line.
            if signal == Signal::SIGKILL && serde_json::from_str::<Value>(&line).is_err() {
                break;
            }
            said_farewell |= self.take(&line) == "stopped";
        }
        assert_eq!(said_farewell, signal == Signal::SIGTERM, "{}", self.child.stderr());
        self.latest
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Reads a line, which must be conserved if it has counters, and returns the event it tells of.
    fn take(&mut self, line: &str) -> String {
        let event: Value = serde_json::from_str(line).unwrap();
        let name = event["event"].as_str().unwrap().to_owned();
        if name == "stats" || name == "stopped" {
            self.lines += 1;
            let map = |value: &Value| -> BTreeMap<String, u64> {
                value.as_object().unwrap().iter().map(|(name, count)| (name.clone(), count.as_u64().unwrap())).collect()
            };
            let [encap, decap] = ["encap", "decap"].map(|direction| conserved(&event[direction], line, map));
            let [anomalies, send_errors] = ["anomalies", "send_errors"].map(|name| map(&event[name]));
            let routes = event["routes"].as_u64().unwrap();
            self.latest = Tally { encap, decap, anomalies, send_errors, routes };
        }
        name
    }
}

/// R67.
fn conserved(flow: &Value, line: &str, map: impl Fn(&Value) -> BTreeMap<String, u64>) -> Flow {
    let count = |name: &str| flow[name].as_u64().unwrap();
    let dropped = map(&flow["dropped"]);
    let fates = count("forwarded") + count("answered") + count("held") + dropped.values().sum::<u64>();
    assert_eq!(count("in"), fates, "not conserved: {line}");
    Flow { received: count("in"), forwarded: count("forwarded"), answered: count("answered"), dropped }
}

impl Tally {
    /// Returns the difference to an earlier tally of the same tunnel.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            encap: self.encap.since(&earlier.encap),
            decap: self.decap.since(&earlier.decap),
            anomalies: difference(&self.anomalies, &earlier.anomalies),
            send_errors: difference(&self.send_errors, &earlier.send_errors),
            routes: self.routes,
        }
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.encap.add(&more.encap);
        self.decap.add(&more.decap);
        add(&mut self.anomalies, &more.anomalies);
        add(&mut self.send_errors, &more.send_errors);
    }

    pub(crate) fn anomaly(&self, name: &str) -> u64 {
        self.anomalies.get(name).copied().unwrap_or(0)
    }
}

impl Flow {
    fn since(&self, earlier: &Self) -> Self {
        Self {
            received: self.received - earlier.received,
            forwarded: self.forwarded - earlier.forwarded,
            answered: self.answered - earlier.answered,
            dropped: difference(&self.dropped, &earlier.dropped),
        }
    }

    fn add(&mut self, more: &Self) {
        self.received += more.received;
        self.forwarded += more.forwarded;
        self.answered += more.answered;
        add(&mut self.dropped, &more.dropped);
    }
}

fn difference(now: &BTreeMap<String, u64>, earlier: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let since = |(name, count): (&String, &u64)| {
        let grown = count - earlier.get(name).copied().unwrap_or(0);
        (grown > 0).then(|| (name.clone(), grown))
    };
    now.iter().filter_map(since).collect()
}

fn add(sum: &mut BTreeMap<String, u64>, more: &BTreeMap<String, u64>) {
    more.iter().for_each(|(name, count)| *sum.entry(name.clone()).or_default() += count);
}

/// The example's binary, beside this test's own.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("examples/tunnel");
    assert!(path.exists(), "{} is missing: run `cargo build --examples` first", path.display());
    path
}
