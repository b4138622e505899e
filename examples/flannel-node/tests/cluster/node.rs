//! A running node and its output.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{Child, Namespace};

use crate::etcd::{Etcd, tied_to_its_parent};
use crate::hosts::Host;
use crate::tls::shown;
use crate::{SOON, wait_until};

pub(crate) struct Node {
    pub(crate) child: Child,
    /// All events so far.
    pub(crate) said: Vec<Value>,
}

impl Node {
    /// Starts the node without waiting.
    pub(crate) fn spawn(host: &Host, etcd: &Etcd, more: &[&str]) -> Self {
        Self::spawn_by(tied_to_its_parent(program()), host, etcd, more)
    }

    /// Starts the node through another program, as the last argument of that program.
    pub(crate) fn spawn_by(mut command: Command, host: &Host, etcd: &Etcd, more: &[&str]) -> Self {
        let file = format!("--subnet-file={}", shown(&host.subnet_file()));
        let elsewhere = more.iter().any(|arg| arg.starts_with("--iface"));
        let through = more.iter().any(|arg| arg.starts_with("--etcd-endpoints"));
        let etcd = if through { Vec::new() } else { etcd.args() };
        command.args(etcd).args(["--json", &file]).args((!elsewhere).then_some("--iface=eth0")).args(more);
        Self { child: Child::spawn(&host.namespace, command).unwrap(), said: Vec::new() }
    }

    /// Starts the node and waits until it forwards.
    pub(crate) fn start(host: &Host, etcd: &Etcd) -> Self {
        let mut node = Self::spawn(host, etcd, &[]);
        node.says("ready");
        node
    }

    /// Waits for the next event of this name. Other events are kept too.
    pub(crate) fn says(&mut self, event: &str) -> Value {
        self.says_that(event, |_| true)
    }

    /// Waits for the next event of this name that satisfies a condition.
    pub(crate) fn says_that(&mut self, event: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let left = SOON.saturating_sub(start.elapsed());
            let line = self.child.next_line(left);
            let line = line.unwrap_or_else(|error| panic!("no {event} like that: {error}; it said {:#?}", self.said));
            let said: Value = serde_json::from_str(&line).expect("nothing but JSON on standard output");
            assert!(said["message"].is_string(), "a sentence for who reads it: {said}");
            self.said.push(said.clone());
            if said["event"] == event && holds(&said) {
                return said;
            }
        }
    }

    /// Reads the output for some time.
    pub(crate) fn listen(&mut self, time: Duration) {
        let start = Instant::now();
        while let Ok(line) = self.child.next_line(time.saturating_sub(start.elapsed())) {
            self.said.push(serde_json::from_str(&line).expect("nothing but JSON on standard output"));
        }
    }

    /// Returns the number of events of this name.
    pub(crate) fn count(&self, event: &str) -> usize {
        self.said.iter().filter(|said| said["event"] == event).count()
    }

    /// Returns the leased subnet.
    pub(crate) fn lease(&self) -> Ipv4Net {
        let lease = self.said.iter().rfind(|said| said["event"] == "lease").expect("a lease");
        lease["subnet"].as_str().expect("a text").parse().expect("a subnet")
    }

    /// Returns the origin of the lease.
    pub(crate) fn how(&self) -> &str {
        let lease = self.said.iter().rfind(|said| said["event"] == "lease").expect("a lease");
        lease["how"].as_str().expect("a text")
    }

    /// Stops the node as an operator does, and checks that every packet is accounted for.
    pub(crate) fn stop(mut self) -> Value {
        self.child.signal(Signal::SIGTERM).unwrap();
        let last = self.says("stopped");
        assert!(self.ends().success(), "{}", self.child.stderr());
        assert_eq!(last["leased"], self.lease().to_string(), "{last}");
        for direction in ["encap", "decap"] {
            let flow = &last[direction];
            let count = |name: &str| flow[name].as_u64().expect("a number");
            let dropped: u64 = flow["dropped"].as_object().expect("an object").values().filter_map(Value::as_u64).sum();
            assert_eq!(count("in"), count("forwarded") + count("answered") + count("held") + dropped, "{last}");
        }
        last
    }

    pub(crate) fn ends(&mut self) -> ExitStatus {
        self.child.wait(SOON).unwrap().expect("an end")
    }

    pub(crate) fn kill(mut self) {
        self.child.signal(Signal::SIGKILL).unwrap();
        self.ends();
    }
}

pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_flannel-node").into()
}

/// Runs the node to its end and returns status, standard output and standard error.
pub(crate) fn run(namespace: &Namespace, args: &[String], input: Option<&str>) -> (ExitStatus, Vec<String>, String) {
    let mut command = tied_to_its_parent(program());
    command.args(args);
    let mut child = Child::spawn(namespace, command).unwrap();
    if let Some(input) = input {
        child.send_line(input).unwrap();
    }
    child.close_stdin();
    let mut lines = Vec::new();
    while let Ok(line) = child.next_line(SOON) {
        lines.push(line);
    }
    let status = child.wait(SOON).unwrap().expect("an end");
    // The reader thread may be slightly behind.
    wait_until("a word on standard error", || status.success() || !child.stderr().is_empty());
    (status, lines, child.stderr())
}
