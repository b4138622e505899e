//! Two hosts with a tunnel in each.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{Child, Namespace, TwoHosts, tied_to_its_parent};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// One running tunnel.
pub(crate) struct Tunnel {
    pub(crate) child: Child,
    pub(crate) ready: Value,
}

/// Two hosts, their pods, and the tunnels between them.
pub(crate) struct Tunnels {
    pub(crate) hosts: TwoHosts,
    pub(crate) a: Tunnel,
    pub(crate) b: Tunnel,
}

/// Creates two hosts without IPv6, so that their kernels send no packets of their own into a new device.
pub(crate) fn quiet_hosts() -> TwoHosts {
    let hosts = TwoHosts::new().expect("two hosts");
    for host in [&hosts.host_a, &hosts.host_b] {
        host.disable_ipv6().expect("sysctl");
    }
    hosts
}

impl Tunnels {
    pub(crate) fn start() -> Self {
        Self::with(&[], &[])
    }

    /// Starts the tunnels with more arguments for host A, and for host B.
    pub(crate) fn with(more_a: &[&str], more_b: &[&str]) -> Self {
        let hosts = TwoHosts::new().expect("two hosts");
        let a = Tunnel::on_a(&hosts, more_a);
        let b = Tunnel::on_b(&hosts, more_b);
        Self { hosts, a, b }
    }
}

impl Tunnel {
    pub(crate) fn on_a(hosts: &TwoHosts, more: &[&str]) -> Self {
        let args = ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2", "--route", "100.96.2.0/24=10.168.0.3"];
        Self::start(&hosts.host_a, &[&args, more].concat())
    }

    pub(crate) fn on_b(hosts: &TwoHosts, more: &[&str]) -> Self {
        let args = ["--subnet", "100.96.2.0/24", "--listen", "10.168.0.3", "--route", "100.96.1.0/24=10.168.0.2"];
        Self::start(&hosts.host_b, &[&args, more].concat())
    }

    pub(crate) fn start(namespace: &Namespace, args: &[&str]) -> Self {
        Self::start_as(namespace, &[], args)
    }

    /// Starts a tunnel by setpriv(1) with these arguments.
    pub(crate) fn start_as(namespace: &Namespace, privileges: &[&str], args: &[&str]) -> Self {
        let mut command = tied_to_its_parent("setpriv");
        command.args(privileges).arg("--").arg(program("tunnel")).args(["--network", "100.96.0.0/16"]).args(args);
        Self::wait_for(Child::spawn(namespace, command).expect("the tunnel starts"))
    }

    /// Starts a tunnel with these arguments and no others.
    pub(crate) fn start_exactly(namespace: &Namespace, args: &[&str]) -> Self {
        Self::wait_for(spawn(namespace, args))
    }

    fn wait_for(child: Child) -> Self {
        let line = child.next_line(10 * SECOND).expect("a first line");
        let ready: Value = serde_json::from_str(&line).expect("a line of JSON");
        assert_eq!(ready["event"], "ready", "the first line: {line}");
        Self { child, ready }
    }

    pub(crate) fn tun(&self) -> &str {
        self.ready["tun"].as_str().expect("a name")
    }

    /// Returns the next line, which must be JSON.
    pub(crate) fn next_event(&self) -> Value {
        let line = self.child.next_line(5 * SECOND).expect("another line");
        serde_json::from_str(&line).expect("nothing but JSON on standard output")
    }

    /// Stops it with SIGTERM, which must take less than a second, and returns its last line.
    pub(crate) fn stop(&mut self) -> Value {
        self.child.signal(Signal::SIGTERM).expect("a running tunnel");
        let status = self.child.wait(SECOND).expect("a child").expect("an end within a second");
        assert!(status.success(), "{status}: {}", self.child.stderr());
        self.last_event()
    }

    pub(crate) fn last_event(&self) -> Value {
        loop {
            let event = self.next_event();
            if event["event"] == "stopped" {
                assert_conserved(&event);
                return event;
            }
        }
    }

    /// Waits until standard error holds a text.
    pub(crate) fn says(&self, text: &str) {
        wait_until(&format!("{text:?} in what it says: {}", self.child.stderr()), || {
            self.child.stderr().contains(text)
        });
    }
}

/// Asserts R67 in the printed counters.
pub(crate) fn assert_conserved(event: &Value) {
    for direction in ["encap", "decap"] {
        let flow = &event[direction];
        let count = |name: &str| flow[name].as_u64().expect("a number");
        let dropped: u64 = flow["dropped"].as_object().expect("an object").values().filter_map(Value::as_u64).sum();
        let fates = count("forwarded") + count("answered") + count("held") + dropped;
        assert_eq!(count("in"), fates, "{direction} of {event}");
    }
}

/// Returns the count of a reason in an event.
pub(crate) fn dropped(event: &Value, direction: &str, reason: &str) -> u64 {
    event[direction]["dropped"][reason].as_u64().unwrap_or(0)
}

pub(crate) fn spawn(namespace: &Namespace, args: &[&str]) -> Child {
    let mut command = tied_to_its_parent(program("tunnel"));
    command.args(args);
    Child::spawn(namespace, command).expect("the tunnel starts")
}

/// Runs it to its end, which must be soon. Returns status and standard error.
pub(crate) fn run(namespace: &Namespace, args: &[&str]) -> (ExitStatus, String) {
    let mut child = spawn(namespace, args);
    let status = child.wait(5 * SECOND).expect("a child").expect("an end");
    // The reader of standard error may be late. The last line is the tunnel's, or that of the argument parser.
    let is_last = |line: &str| line.starts_with("tunnel: ") || line.starts_with("error: ");
    wait_until("its last word on standard error", || child.stderr().lines().any(is_last));
    (status, child.stderr())
}

/// Returns the example's binary, beside this test's own.
pub(crate) fn program(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("the path of this test");
    path.pop();
    path.pop();
    path.extend(["examples", name]);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --examples` first, as `cargo test` does when it runs all tests",
        path.display()
    );
    path
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < 5 * SECOND, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
