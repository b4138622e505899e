//! What the tunnel says: JSON lines on standard output, sentences on standard error.

use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use loden::forward::Flow;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Map, Value, json};

use crate::control::Control;
use crate::links::Limit;
use crate::queues::Tally;
use crate::routes::Routes;

/// Peers named in a line: those with most errors. With them a line is shorter than what a pipe takes at once (`PIPE_BUF`).
const MOST_PEERS: usize = 16;

/// When the counters are due, if they are at all.
pub(crate) struct Report {
    interval: Option<Duration>,
    due: Option<Instant>,
    started: Instant,
    limit: Option<Limit>,
}

impl Report {
    pub(crate) fn new(interval: Option<Duration>) -> Self {
        let started = Instant::now();
        Self { interval, due: interval.map(|interval| started + interval), started, limit: None }
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
        let next = due + interval;
        self.due = Some(if next > now { next } else { now + interval });
        true
    }

    pub(crate) fn ready(&self, tun: &str, listen: SocketAddr, mtu: u32, offloads: &[&str]) {
        let listen = listen.to_string();
        print(&json!({ "event": "ready", "tun": tun, "listen": listen, "mtu": mtu, "offload": offloads }));
    }

    /// How long a packet may be from now on, if that is news.
    pub(crate) fn limit(&mut self, limit: Limit) {
        if self.limit.replace(limit) == Some(limit) {
            return;
        }
        let Limit { tun_mtu, underlay_mtu, packet } = limit;
        print(&json!({ "event": "mtu", "limit": packet, "tun": tun_mtu, "underlay": underlay_mtu }));
        say(&format!(
            "packets may have {packet} bytes: the MTUs are {tun_mtu} of the TUN, {underlay_mtu} of the underlay"
        ));
    }

    pub(crate) fn stats(&self, event: &str, tally: &Tally, routes: &Routes, control: Option<&Control>) {
        let counters = &tally.counters;
        let mut anomalies: Map<_, _> =
            counters.anomalies.named().map(|(name, count)| (name.into(), count.into())).collect();
        let (malformed, refused) = control.map_or((0, 0), |control| (control.malformed, control.refused));
        anomalies.insert("control_malformed".into(), malformed.into());
        anomalies.insert("control_refused".into(), refused.into());
        let mut peers = tally.send_errors.clone();
        peers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let send_errors: Map<_, _> =
            peers.iter().take(MOST_PEERS).map(|(peer, count)| (peer.to_string(), (*count).into())).collect();
        print(&json!({
            "event": event,
            "encap": flow(&counters.encap),
            "decap": flow(&counters.decap),
            "anomalies": anomalies,
            "send_errors": send_errors,
            "routes": routes.len(),
            "seconds": self.started.elapsed().as_secs_f64(),
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
    if is_writable(stdout.as_fd()) {
        // In one piece, which a pipe that is writable has room for.
        let _ = stdout.lock().write_all(format!("{line}\n").as_bytes());
    }
}

/// Says a sentence to whoever runs the tunnel, unless nobody listens.
pub(crate) fn say(sentence: &str) {
    let stderr = std::io::stderr();
    if is_writable(stderr.as_fd()) {
        let _ = stderr.lock().write_all(format!("{sentence}\n").as_bytes());
    }
}

fn is_writable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::ZERO) != Ok(0)
}

/// For what a stranger can cause as often as they like: says it at most ten times a second, and then how often it did not.
pub(crate) struct Limited {
    since: Option<Instant>,
    said: u32,
}

impl Limited {
    pub(crate) const fn new() -> Self {
        Self { since: None, said: 0 }
    }

    pub(crate) fn say(&mut self, sentence: &str) {
        const PER_SECOND: u32 = 10;
        if self.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            let left_out = self.said.saturating_sub(PER_SECOND);
            *self = Self { since: Some(Instant::now()), said: 0 };
            if left_out > 0 {
                say(&format!("({left_out} more of these were left out)"));
            }
        }
        self.said = self.said.saturating_add(1);
        if self.said <= PER_SECOND {
            say(sentence);
        }
    }
}
