//! What the tunnel says: JSON lines on standard output, sentences on standard error.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use loden::forward::Flow;
use loden::worker::Worker;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value, json};

use crate::control::Control;
use crate::routes::Routes;

/// When the counters are due, if they are at all.
pub(crate) struct Report {
    interval: Option<Duration>,
    due: Option<Instant>,
    started: Instant,
}

impl Report {
    pub(crate) fn new(interval: Option<Duration>) -> Self {
        let started = Instant::now();
        Self { interval, due: interval.map(|interval| started + interval), started }
    }

    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the counters are due; if so, sets the next time.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let (Some(interval), Some(due)) = (self.interval, self.due) else { return false };
        if now < due {
            return false;
        }
        // After a pause the missed times are not made up for.
        self.due = Some((due + interval).max(now));
        true
    }

    pub(crate) fn ready(&self, tun: &str, listen: SocketAddr, mtu: u32) {
        print(&json!({ "event": "ready", "tun": tun, "listen": listen.to_string(), "mtu": mtu }));
    }

    pub(crate) fn stats(&self, event: &str, worker: &Worker, routes: &Routes, control: Option<&Control>) {
        let counters = worker.counters();
        let mut anomalies: Map<_, _> =
            counters.anomalies.named().into_iter().map(|(name, count)| (name.into(), count.into())).collect();
        if let Some(control) = control {
            anomalies.insert("control_malformed".into(), control.malformed.into());
            anomalies.insert("control_refused".into(), control.refused.into());
        }
        let send_errors: Map<_, _> = worker.send_errors().map(|(peer, n)| (peer.to_string(), n.into())).collect();
        print(&json!({
            "event": event,
            "seconds": self.started.elapsed().as_secs_f64(),
            "routes": routes.len(),
            "encap": flow(&counters.encap),
            "decap": flow(&counters.decap),
            "anomalies": anomalies,
            "send_errors": send_errors,
        }));
    }
}

fn flow(flow: &Flow) -> Value {
    let dropped: Map<_, _> = flow.drops().map(|(reason, count)| (reason.name().into(), count.into())).collect();
    json!({
        "in": flow.received(),
        "forwarded": flow.forwarded(),
        "answered": flow.answered(),
        "held": flow.held(),
        "dropped": dropped,
    })
}

/// Prints a line, unless nobody takes it: packets do not wait for a reader.
fn print(line: &Value) {
    let stdout = std::io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::ZERO) == Ok(0) {
        return;
    }
    let mut stdout = stdout.lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Says a sentence to whoever runs the tunnel: at most ten a second, and then how many were left out.
pub(crate) fn say(sentence: &str) {
    const PER_SECOND: u32 = 10;
    static SAID: Mutex<(Option<Instant>, u32)> = Mutex::new((None, 0));
    let Ok(mut said) = SAID.lock() else { return };
    let (since, count) = &mut *said;
    if since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
        let left_out = count.saturating_sub(PER_SECOND);
        (*since, *count) = (Some(Instant::now()), 0);
        if left_out > 0 {
            let _ = writeln!(std::io::stderr(), "({left_out} more of these were left out)");
        }
    }
    *count += 1;
    if *count <= PER_SECOND {
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }
}
