//! What the node says: one sentence a line, or the same as JSON.

use std::fmt;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Something an operator may want to know.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Something that is needed is not there yet.
    Waiting {
        reason: String,
        retry_seconds: f64,
    },
    Config {
        network: String,
        subnet_len: u8,
        subnet_min: String,
        subnet_max: String,
        port: u16,
    },
    Lease {
        subnet: String,
        public_ip: String,
        how: &'static str,
        seconds: u64,
    },
    /// Something on this host may keep the node from working.
    Finding {
        finding: &'static str,
        severity: &'static str,
        says: String,
    },
    Ready {
        tun: String,
        listen: String,
        mtu: u32,
        subnet_file: String,
    },
    Routes {
        count: usize,
        set: Vec<String>,
        deleted: Vec<String>,
    },
    Conflict {
        ended: bool,
        conflict: String,
    },
    SetAside {
        reason: String,
    },
    Stale {
        reason: String,
        routes: usize,
    },
    Heard {
        seconds: f64,
    },
    Renewed {
        subnet: String,
        seconds: u64,
    },
    NotRenewed {
        reason: String,
        retry_seconds: f64,
        seconds_left: f64,
    },
    Link {
        state: String,
    },
    LeftOut {
        lines: u32,
    },
    Warning {
        reason: String,
    },
    Stopped {
        encap: Value,
        decap: Value,
        anomalies: Value,
        routes: usize,
    },
    Error {
        reason: String,
    },
}

/// Sentences for who reads a log.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { reason, retry_seconds } => write!(f, "{reason}; trying again in {retry_seconds:.1} s"),
            Self::Config { network, subnet_len, subnet_min, subnet_max, port } => {
                write!(f, "the network is {network}, leased as /{subnet_len} from {subnet_min} to {subnet_max}")?;
                write!(f, ", UDP port {port}")
            }
            Self::Lease { subnet, public_ip, how, seconds } => {
                write!(f, "leased {subnet} for {public_ip}, {how}, for {}", Span(*seconds))
            }
            Self::Finding { severity, says, .. } => write!(f, "{}: {says}", severity.replace('_', " ")),
            Self::Ready { tun, listen, mtu, subnet_file } => {
                write!(f, "forwarding: {tun}, MTU {mtu}, listening on {listen}; {subnet_file} is written")
            }
            Self::Routes { count, set, deleted } => {
                let shown = set.iter().chain(deleted).map(String::as_str).collect::<Vec<_>>().join(", ");
                let summary = format!("{} set, {} deleted", set.len(), deleted.len());
                let what = if set.len() + deleted.len() > MOST_ROUTES { &summary } else { &shown };
                write!(f, "routes: {what}; {count} in all")
            }
            Self::Conflict { ended: false, conflict } => write!(f, "conflict: {conflict}"),
            Self::Conflict { ended: true, conflict } => write!(f, "conflict ended: {conflict}"),
            Self::SetAside { reason } | Self::Link { state: reason } => f.write_str(reason),
            Self::Stale { reason, routes } => {
                write!(f, "leases cannot be heard: {reason}. Forwarding goes on with the {routes} routes there are")
            }
            Self::Heard { seconds } => write!(f, "leases are heard again, after {seconds:.1} s"),
            Self::Renewed { subnet, seconds } => write!(f, "renewed the lease of {subnet} for {}", Span(*seconds)),
            Self::NotRenewed { reason, retry_seconds, seconds_left } => {
                write!(f, "the lease cannot be renewed: {reason}; trying again in {retry_seconds:.0} s")?;
                let left = *seconds_left as u64;
                if left > 0 { write!(f, ", {} are left", Span(left)) } else { f.write_str(", its time is over") }
            }
            Self::LeftOut { lines } => write!(f, "({lines} lines about leases were left out)"),
            Self::Warning { reason } => write!(f, "warning: {reason}"),
            Self::Stopped { encap, decap, .. } => {
                let count = |flow: &Value, what: &str| flow[what].as_u64().unwrap_or(0);
                let (sent, delivered) = (count(encap, "forwarded"), count(decap, "forwarded"));
                let lost = count(encap, "in") - sent - count(encap, "answered") + count(decap, "in")
                    - delivered
                    - count(decap, "answered");
                write!(f, "stopped, the lease stays; packets: {sent} sent, {delivered} delivered, {lost} dropped")
            }
            Self::Error { reason } => f.write_str(reason),
        }
    }
}

/// Routes named in one sentence, at most.
const MOST_ROUTES: usize = 8;

/// A time in the largest units that make sense of it.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds @ ..120 => write!(f, "{seconds} s"),
            seconds @ 120..7200 => write!(f, "{} min", seconds / 60),
            seconds => write!(f, "{:.1} h", seconds as f64 / 3600.0),
        }
    }
}

/// Where it is said.
pub(crate) struct Say {
    json: bool,
    limit: Limit,
}

/// For what others can cause as often as they like: so many lines a second, and then how many were left out.
struct Limit {
    since: Instant,
    said: u32,
}

impl Limit {
    const LINES: u32 = 20;
}

impl Say {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, limit: Limit { since: Instant::now(), said: 0 } }
    }

    /// Says it on standard output, unless nobody listens: neither packets nor leases wait for a reader.
    pub(crate) fn say(&self, event: &Event) {
        if self.json {
            let mut object = json!(event);
            object["message"] = event.to_string().into();
            self.print(&object.to_string());
        } else {
            self.print(&event.to_string());
        }
    }

    /// How long what others cause is counted, until more of it is said.
    pub(crate) const LIMIT: Duration = Duration::from_secs(1);

    /// The same for what others cause.
    pub(crate) fn say_limited(&mut self, event: &Event) {
        self.flush_limit();
        self.limit.said = self.limit.said.saturating_add(1);
        if self.limit.said <= Limit::LINES {
            self.say(event);
        }
    }

    /// Whether something was left out and not told of yet.
    pub(crate) fn leaves_out(&self) -> bool {
        self.limit.said > Limit::LINES
    }

    /// Says how much was left out of the second that is over.
    pub(crate) fn flush_limit(&mut self) {
        if self.limit.since.elapsed() < Self::LIMIT {
            return;
        }
        let lines = self.limit.said.saturating_sub(Limit::LINES);
        self.limit = Limit { since: Instant::now(), said: 0 };
        if lines > 0 {
            self.say(&Event::LeftOut { lines });
        }
    }

    /// A mistake or the end: on standard error, with JSON on standard output too.
    pub(crate) fn error(&self, reason: &str) {
        if self.json {
            self.say(&Event::Error { reason: reason.to_owned() });
        }
        let _ = writeln!(std::io::stderr(), "flannel-node: {reason}");
    }

    /// A line that is no event: what was asked for.
    pub(crate) fn print(&self, line: &str) {
        let stdout = std::io::stdout();
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, PollTimeout::ZERO) != Ok(0) {
            // In one piece, which a pipe that is writable has room for.
            let _ = stdout.lock().write_all(format!("{line}\n").as_bytes());
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }
}

/// What is no packet's fate.
pub(crate) fn anomalies(anomalies: &loden::forward::Anomalies) -> Value {
    Value::Object(anomalies.named().map(|(name, count)| (name.to_owned(), count.into())).collect())
}

/// One direction's packets by their fates.
pub(crate) fn flow(flow: &loden::forward::Flow) -> Value {
    let dropped: Map<_, _> = flow.drops().map(|(reason, count)| (reason.name().into(), count.into())).collect();
    json!({
        "in": flow.received(),
        "forwarded": flow.forwarded(),
        "answered": flow.answered(),
        "held": flow.held(),
        "dropped": dropped,
    })
}
