//! The output of the node: one sentence per line, or the same as JSON.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::mem::{Discriminant, discriminant};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::stamp::Stamp;

/// An event for the operator.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// A required resource is not available yet.
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
        /// The same of IPv6 in a dual-stack network.
        #[serde(flatten)]
        ipv6: Option<ConfigV6>,
    },
    Lease {
        subnet: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        subnet_v6: Option<String>,
        public_ip: String,
        how: &'static str,
        seconds: Option<u64>,
    },
    /// A lease of any host.
    Held {
        subnet: String,
        next_hop: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        subnet_v6: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        next_hop_v6: Option<String>,
        seconds_left: Option<u64>,
    },
    /// A setting of this host that may prevent operation.
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
    /// Route changes; of many changes, only some are listed.
    Routes {
        count: usize,
        changes: usize,
        set: Vec<String>,
        deleted: Vec<String>,
    },
    /// A further subnet of this host, by another lease with its address.
    FurtherSubnet {
        subnet: String,
        ended: bool,
    },
    /// The result of a check of this host.
    Checked {
        subnet: String,
        findings: usize,
    },
    /// Firewall rules were set, or put back.
    Rules {
        says: String,
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
        seconds: Option<u64>,
    },
    NotRenewed {
        reason: String,
        retry_seconds: f64,
        seconds_left: Option<f64>,
    },
    Link {
        state: String,
    },
    /// The files of etcd's connection were read again.
    Reloaded,
    /// Omitted lines of one kind of event.
    LeftOut {
        of: String,
        lines: u32,
    },
    Warning {
        reason: String,
    },
    Stopped {
        leased: Option<String>,
        encap: Value,
        decap: Value,
        anomalies: Value,
        /// Packets that did not fit into the queue of the TUN device.
        tun_queue_dropped: Option<u64>,
        routes: usize,
    },
    /// A sender of packets from a peer's pods whose address is not the peer's.
    Stranger {
        from: String,
        inner_source: String,
        next_hop: String,
    },
    Error {
        reason: String,
    },
}

/// The range of IPv6 subnets.
#[derive(Serialize)]
pub(crate) struct ConfigV6 {
    pub(crate) ipv6_network: String,
    pub(crate) ipv6_subnet_len: u8,
    pub(crate) ipv6_subnet_min: String,
    pub(crate) ipv6_subnet_max: String,
}

/// Formats the event as a sentence for a log.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { reason, retry_seconds } => write!(f, "{reason}; trying again in {retry_seconds:.1} s"),
            Self::Config { network, subnet_len, subnet_min, subnet_max, port, ipv6 } => {
                write!(f, "the network is {network}, leased as /{subnet_len} from {subnet_min} to {subnet_max}")?;
                if let Some(ConfigV6 { ipv6_network, ipv6_subnet_len, ipv6_subnet_min, ipv6_subnet_max }) = ipv6 {
                    write!(f, ", and {ipv6_network}, leased as /{ipv6_subnet_len}")?;
                    write!(f, " from {ipv6_subnet_min} to {ipv6_subnet_max}")?;
                }
                write!(f, ", UDP port {port}")
            }
            Self::Lease { subnet, subnet_v6, public_ip, how, seconds } => {
                write!(f, "leased {subnet}")?;
                if let Some(subnet) = subnet_v6 {
                    write!(f, " and {subnet}")?;
                }
                write!(f, " for {public_ip}, {how}, {}", Term(*seconds))
            }
            Self::Held { subnet, next_hop, subnet_v6, next_hop_v6, seconds_left } => {
                write!(f, "{subnet:<18} {next_hop:<21} {}", Term(*seconds_left))?;
                match (subnet_v6, next_hop_v6) {
                    (Some(subnet), Some(next_hop)) => write!(f, ", with {subnet} via {next_hop}"),
                    _ => Ok(()),
                }
            }
            Self::FurtherSubnet { subnet, ended: false } => {
                write!(f, "{subnet} is leased to this host's address too: its packets are delivered here")
            }
            Self::FurtherSubnet { subnet, ended: true } => {
                write!(f, "{subnet} is no longer leased to this host: its packets are not delivered any more")
            }
            Self::Checked { subnet, findings: 0 } => write!(f, "this host is ready to carry {subnet}"),
            Self::Checked { subnet, findings } => write!(f, "{findings} findings for a host that carries {subnet}"),
            Self::Rules { says } => f.write_str(says),
            Self::Finding { severity, says, .. } => write!(f, "{}: {says}", severity.replace('_', " ")),
            Self::Ready { tun, listen, mtu, subnet_file } => {
                write!(f, "forwarding: {tun}, MTU {mtu}, listening on {listen}; {subnet_file} is written")
            }
            Self::Routes { count, changes, set, deleted } => {
                let deleted = deleted.iter().map(|subnet| format!("no more {subnet}"));
                let named: Vec<_> = set.iter().cloned().chain(deleted).collect();
                let what = if named.len() < *changes { format!("{changes} changes") } else { named.join(", ") };
                write!(f, "routes: {what}; {count} in all")
            }
            Self::Conflict { ended: false, conflict } => write!(f, "conflict: {conflict}"),
            Self::Conflict { ended: true, conflict } => write!(f, "conflict ended: {conflict}"),
            Self::SetAside { reason } | Self::Link { state: reason } => f.write_str(reason),
            Self::Stale { reason, routes } => {
                write!(f, "leases are stale: {reason}; forwarding continues with {routes} routes")
            }
            Self::Heard { seconds } => write!(f, "leases are up to date again after {seconds:.1} s"),
            Self::Renewed { subnet, seconds } => write!(f, "renewed the lease of {subnet} {}", Term(*seconds)),
            Self::NotRenewed { reason, retry_seconds, seconds_left } => {
                write!(f, "the lease cannot be renewed: {reason}; trying again in {retry_seconds:.0} s")?;
                match seconds_left.map(|seconds| seconds as u64) {
                    Some(0) => f.write_str(", it has expired"),
                    Some(left) => write!(f, ", {} are left", Span(left)),
                    None => Ok(()),
                }
            }
            Self::Reloaded => f.write_str("reloaded: new connections to etcd use the files as they are now"),
            Self::LeftOut { of, lines } => write!(f, "({lines} lines of {of:?} were omitted)"),
            Self::Warning { reason } => write!(f, "warning: {reason}"),
            Self::Stranger { from, inner_source, next_hop } => write!(
                f,
                "packets of {inner_source} come from {from} and are dropped: the subnet is leased to {next_hop}. If that host is \
                 behind NAT, lease its subnet to that address (--public-ip), or accept every sender (--peer-check off)"
            ),
            Self::Stopped { leased, encap, decap, tun_queue_dropped, .. } => {
                let count = |flow: &Value, what: &str| flow[what].as_u64().unwrap_or(0);
                let (sent, delivered) = (count(encap, "forwarded"), count(decap, "forwarded"));
                let lost = count(encap, "in") - sent - count(encap, "answered") + count(decap, "in")
                    - delivered
                    - count(decap, "answered");
                let leased = leased.as_ref().map(|subnet| format!(", {subnet} stays leased")).unwrap_or_default();
                write!(f, "stopped{leased}; packets: {sent} sent, {delivered} delivered, {lost} dropped")?;
                match tun_queue_dropped {
                    Some(1..) => write!(f, ", {} more by the TUN device's queue", tun_queue_dropped.unwrap_or(0)),
                    Some(0) | None => Ok(()),
                }
            }
            Self::Error { reason } => f.write_str(reason),
        }
    }
}

/// A duration in the largest suitable unit.
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

/// A duration in seconds; `None` has no end.
struct Term(Option<u64>);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(seconds) => write!(f, "for {}", Span(seconds)),
            None => f.write_str("without end"),
        }
    }
}

/// The destination and the form of the output.
pub(crate) struct Output {
    json: bool,
    pace: Pace,
    /// A rate limit per kind of event, so that no kind suppresses another.
    limits: RefCell<HashMap<Discriminant<Event>, Limit>>,
}

/// The behaviour for slow readers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Lines for a slow reader are lost, and each kind of event has a rate limit. Packets and leases never wait for a
    /// reader.
    Own,
    /// Every line answers a request, so the output waits for the reader.
    OfReader,
}

/// The rate limit of one kind of event in a span of [`Output::LIMIT`].
struct Limit {
    since: Instant,
    kind: String,
    /// The number of times each line was printed.
    printed: HashMap<String, u32>,
    left_out: u32,
}

impl Limit {
    const LINES: u32 = 20;
    /// The limit of equal lines, which leaves room for other lines of the kind.
    const EQUAL: u32 = 5;

    fn of(event: &Event) -> Self {
        let kind = json!(event)["event"].as_str().unwrap_or_default().to_owned();
        Self { since: Instant::now(), kind, printed: HashMap::new(), left_out: 0 }
    }

    /// Returns true if there is room for the event.
    fn admits(&mut self, event: &Event) -> bool {
        // A line is formatted only if there is room for it.
        let admitted = self.printed.values().sum::<u32>() < Self::LINES && {
            let times = self.printed.entry(event.to_string()).or_default();
            let has_room = *times < Self::EQUAL;
            *times += u32::from(has_room);
            has_room
        };
        self.left_out = self.left_out.saturating_add(u32::from(!admitted));
        admitted
    }
}

impl Output {
    /// The span of the rate limit.
    pub(crate) const LIMIT: Duration = Duration::from_secs(10);

    pub(crate) fn new(json: bool, pace: Pace) -> Self {
        Self { json, pace, limits: RefCell::default() }
    }

    /// Prints an event on standard output within its rate limit, if the reader keeps up.
    pub(crate) fn print(&self, event: &Event) {
        if self.pace == Pace::Own {
            self.flush_limits(Self::LIMIT);
            let mut limits = self.limits.borrow_mut();
            if !limits.entry(discriminant(event)).or_insert_with(|| Limit::of(event)).admits(event) {
                return;
            }
        }
        let _ = self.answer(event);
    }

    /// Prints an event that was requested.
    pub(crate) fn answer(&self, event: &Event) -> io::Result<()> {
        self.put(std::io::stdout().lock(), &self.line(event))
    }

    /// Reports the omitted lines of all spans of at least this age.
    pub(crate) fn flush_limits(&self, age: Duration) {
        let mut limits = self.limits.borrow_mut();
        for (_, limit) in limits.extract_if(|_, limit| limit.since.elapsed() >= age) {
            if limit.left_out > 0 {
                let _ = self.answer(&Event::LeftOut { lines: limit.left_out, of: limit.kind });
            }
        }
    }

    /// Prints an error on standard error, and as JSON on standard output too.
    pub(crate) fn error(&self, reason: &str) {
        if self.json {
            let _ = self.answer(&Event::Error { reason: reason.to_owned() });
        }
        let line = format!("{}flannel-node: {reason}", self.stamp());
        let _ = self.put(std::io::stderr().lock(), &line);
    }

    fn line(&self, event: &Event) -> String {
        if !self.json {
            return format!("{}{event}", self.stamp());
        }
        let mut object = json!(event);
        object["time"] = Stamp::now().to_string().into();
        object["message"] = event.to_string().into();
        object.to_string()
    }

    /// Returns the time and a space. The answer to a request has no time.
    fn stamp(&self) -> String {
        match self.pace {
            Pace::Own => format!("{} ", Stamp::now()),
            Pace::OfReader => String::new(),
        }
    }

    fn put(&self, mut out: impl Write + AsFd, line: &str) -> io::Result<()> {
        let mut line = format!("{line}\n");
        if self.pace == Pace::Own {
            // A writable pipe has room for this many bytes. Longer lines, which other hosts can cause, are omitted.
            if line.len() > PIPE_BUF {
                line = format!("{}\n", self.line(&Event::LeftOut { lines: 1, of: "long".into() }));
            }
            if poll(&mut [PollFd::new(out.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(0) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        // One write, so that no line is cut.
        out.write_all(line.as_bytes())
    }
}

/// Formats the counters other than packet outcomes.
pub(crate) fn anomalies(anomalies: &loden::forward::Stats) -> Value {
    Value::Object(anomalies.named().map(|(name, count)| (name.to_owned(), count.into())).collect())
}

/// Formats the packets of one direction by their outcome.
pub(crate) fn flow(flow: &loden::forward::DirectionCounters) -> Value {
    let dropped: Map<_, _> = flow.drops().map(|(reason, count)| (reason.name().into(), count.into())).collect();
    json!({
        "in": flow.received(),
        "forwarded": flow.forwarded(),
        "answered": flow.answered(),
        "held": flow.held(),
        "dropped": dropped,
    })
}
