//! The tunnel's output: JSON lines on standard output, sentences on standard error.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use loden::forward::DirectionCounters;
use loden::sys::link::LinkStats;
use loden::worker::{Handle, Stranger};
use serde_json::{Map, Value, json};

use crate::control::Control;
use crate::links::Limit;
use crate::output::{Missing, Output, RateLimit};
use crate::routing::Routing;

/// Peers named in a line: those with most errors.
const MOST_PEERS: usize = 16;

/// The times of printing the counters.
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

    /// Returns whether the counters are due, and sets the next time if so.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let (Some(interval), Some(due)) = (self.interval, self.due) else { return false };
        if now < due {
            return false;
        }
        // Missed times are skipped.
        let next = due + interval;
        self.due = Some(if next > now { next } else { now + interval });
        true
    }

    /// Prints that the tunnel runs. With two listen addresses the IPv6 one has a field of its own.
    pub(crate) fn ready(&self, tun: &str, listen: &[SocketAddr], mtu: u32, offloads: &[&str]) {
        let mut texts = listen.iter().map(SocketAddr::to_string);
        let (first, second) = (texts.next(), texts.next());
        let mut line = json!({ "event": "ready", "tun": tun, "listen": first, "mtu": mtu, "offload": offloads });
        if let (Some(second), Some(fields)) = (second, line.as_object_mut()) {
            fields.insert("listen_v6".into(), second.into());
        }
        print(&line);
    }

    /// Prints the longest packet, if it changed.
    pub(crate) fn limit(&mut self, limit: Limit) {
        if self.limit.replace(limit) == Some(limit) {
            return;
        }
        let Limit { tun_mtu, underlay_mtu, packet } = limit;
        if let Some(stdout) = &*STDOUT {
            let line = json!({ "event": "mtu", "limit": packet.get(), "tun": tun_mtu, "underlay": underlay_mtu });
            stdout.say("the MTU", || line.to_string());
        }
        say(
            "the MTU",
            format_args!(
                "packets may have {packet} bytes: the MTUs are {tun_mtu} of the TUN, {underlay_mtu} of the underlay"
            ),
        );
    }

    pub(crate) fn stats(
        &self,
        event: &str,
        workers: &Handle,
        device: LinkStats,
        routing: &Routing,
        control: Option<&Control>,
    ) {
        let counters = workers.counters();
        let mut anomalies: Map<_, _> =
            counters.stats.named().map(|(name, count)| (name.into(), count.into())).collect();
        anomalies.insert("control_malformed".into(), control.map_or(0, |control| control.malformed).into());
        anomalies.insert("control_refused".into(), routing.refused().into());
        let mut peers = workers.send_errors();
        peers.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let send_errors: Map<_, _> =
            peers.iter().take(MOST_PEERS).map(|(peer, count)| (peer.to_string(), (*count).into())).collect();
        print(&json!({
            "event": event,
            "encap": flow(&counters.encap),
            "decap": flow(&counters.decap),
            "anomalies": anomalies,
            "send_errors": send_errors,
            "device": { "queue_dropped": device.tx_dropped, "kernel_dropped": device.rx_dropped },
            "routes": routing.len(),
            "seconds": self.started.elapsed().as_secs_f64(),
        }));
    }
}

fn flow(flow: &DirectionCounters) -> Value {
    let dropped: Map<_, _> = flow.drops().map(|(reason, count)| (reason.name().into(), count.into())).collect();
    json!({
        "in": flow.received(),
        "forwarded": flow.forwarded(),
        "answered": flow.answered(),
        "held": flow.held(),
        "dropped": dropped,
    })
}

static STDOUT: LazyLock<Option<Arc<Output>>> = LazyLock::new(|| {
    let missing = |missing| match missing {
        Missing::LeftOut { cause, lines } => json!({ "event": "left_out", "cause": cause, "lines": lines }).to_string(),
        Missing::Unread { lines } => json!({ "event": "unread", "lines": lines }).to_string(),
    };
    Output::start(std::io::stdout().as_fd(), RateLimit::DEFAULT, missing).ok()
});

static STDERR: LazyLock<Option<Arc<Output>>> = LazyLock::new(|| {
    let missing = |missing| match missing {
        Missing::LeftOut { cause, lines } => format!("({lines} more messages about {cause} were left out)"),
        Missing::Unread { lines } => format!("({lines} lines were dropped because nobody read them)"),
    };
    Output::start(std::io::stderr().as_fd(), RateLimit::DEFAULT, missing).ok()
});

/// Prints a line of JSON.
fn print(line: &Value) {
    if let Some(stdout) = &*STDOUT {
        stdout.answer(line.to_string());
    }
}

/// Prints a sentence on standard error, at a limited rate for each cause.
pub(crate) fn say(cause: &'static str, sentence: fmt::Arguments<'_>) {
    if let Some(stderr) = &*STDERR {
        stderr.say(cause, || sentence.to_string());
    }
}

/// Prints the workers' notices: features that the kernel lacks, calls that fail, and senders that may be behind NAT.
pub(crate) fn say_notices(workers: &Handle) {
    for notice in workers.take_notices() {
        say("system calls", format_args!("{notice}"));
    }
    for Stranger { from, inner_source, next_hop, .. } in workers.take_strangers() {
        let setting = if from.ip() == next_hop.ip() { "address" } else { "off" };
        if is_new(&format!("{} {next_hop}", from.ip())) {
            say(
                "unknown senders",
                format_args!(
                    "datagrams from {from} are dropped: no route leads there, but their inner source {inner_source} belongs \
                     to {next_hop}; if NAT changes that peer's address or port, use --peer-check {setting}, otherwise they \
                     are forged"
                ),
            );
        }
    }
}

/// Returns whether a notice is new for all queues, as far as is remembered.
fn is_new(thing: &str) -> bool {
    static KNOWN: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
    const MOST: usize = 64;
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.iter().any(|known| known == thing) {
        return false;
    }
    if known.len() == MOST {
        known.pop_front();
    }
    known.push_back(thing.to_owned());
    true
}

/// Prints a requested sentence, or the last one.
pub(crate) fn answer(sentence: fmt::Arguments<'_>) {
    if let Some(stderr) = &*STDERR {
        stderr.answer(sentence.to_string());
    }
}

/// Waits until everything is written, but not for a reader that does not read.
pub(crate) fn flush() {
    const WITHIN: Duration = Duration::from_millis(300);
    for output in [&*STDOUT, &*STDERR].into_iter().flatten() {
        output.flush(WITHIN);
    }
}
