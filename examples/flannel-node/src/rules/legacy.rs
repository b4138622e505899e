//! The forward chain of iptables-legacy, which the kernel has beside nftables and which only that program can change.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs, io};

use ipnet::IpNet;

use super::plan::Purpose;
use super::warning;
use crate::output::Event;

/// The chain of this node's rules.
const OWN: &str = "FLANNEL-NODE-FWD";
/// Seconds that the program waits for others of its kind.
const LOCK_TIMEOUT: &str = "5";

/// The rules of one network.
pub(super) struct Legacy {
    network: IpNet,
    /// The rules of this node have been set.
    is_set: bool,
    /// The reason why the rules are not set, which is reported once.
    problem: Option<String>,
}

impl Legacy {
    pub(super) const fn new(network: IpNet) -> Self {
        Self { network, is_set: false, problem: None }
    }

    /// Sets the rules if the kernel has the table `filter` of iptables-legacy.
    pub(super) fn check(&mut self) -> Option<Event> {
        if !self.has_table() {
            return None;
        }
        match self.set() {
            Ok(false) => {
                (self.is_set, self.problem) = (true, None);
                None
            }
            Ok(true) => {
                let was_set = std::mem::replace(&mut self.is_set, true);
                self.problem = None;
                let says = if was_set {
                    format!(
                        "the rules in {}'s filter FORWARD were missing or changed; they are put back",
                        self.program()
                    )
                } else {
                    let program = self.program();
                    format!("a rule in {program}'s filter FORWARD accepts forwarded packets from and to the network")
                };
                Some(Event::Rules { says })
            }
            Err(error) => {
                let problem = error.to_string();
                let is_news = self.problem.as_ref() != Some(&problem);
                self.problem = Some(problem.clone());
                is_news.then(|| {
                    warning(format!(
                        "this host has the table filter of {0}, whose chain FORWARD may drop forwarded packets, and no \
                         rule can be set there: {problem}. Set its policy by `{0} -P FORWARD ACCEPT`, or delete the table \
                         by `rmmod {1}`",
                        self.program(),
                        if self.is_ipv6() { "ip6table_filter" } else { "iptable_filter" }
                    ))
                })
            }
        }
    }

    /// Removes the rules that were set.
    pub(super) fn remove(&mut self) -> Option<Event> {
        if !self.is_set || !self.has_table() {
            return None;
        }
        let outcome = self.list().and_then(|listed| {
            for _ in listed.iter().filter(|line| **line == self.jump()) {
                self.run(&self.jump().replacen("-A", "-D", 1))?;
            }
            if listed.iter().any(|line| *line == format!("-N {OWN}")) {
                self.run(&format!("-F {OWN}"))?;
                self.run(&format!("-X {OWN}"))?;
            }
            Ok(())
        });
        let error = outcome.err()?;
        Some(warning(format!("the rules in {}'s filter FORWARD cannot be removed: {error}", self.program())))
    }

    const fn is_ipv6(&self) -> bool {
        matches!(self.network, IpNet::V6(_))
    }

    const fn program(&self) -> &'static str {
        if self.is_ipv6() { "ip6tables-legacy" } else { "iptables-legacy" }
    }

    /// Returns true if the kernel has the table. It creates one when a program first asks for it.
    fn has_table(&self) -> bool {
        // `/proc/net` shows the tables of the process, not of the thread.
        let path = format!("/proc/thread-self/net/{}_tables_names", if self.is_ipv6() { "ip6" } else { "ip" });
        fs::read_to_string(path).is_ok_and(|tables| tables.lines().any(|table| table == "filter"))
    }

    fn jump(&self) -> String {
        format!("-A FORWARD -m comment --comment \"{}\" -j {OWN}", Purpose::Forward.comment())
    }

    fn rules(&self) -> [String; 2] {
        ["-s", "-d"].map(|side| {
            let (network, comment) = (self.network.trunc(), Purpose::Forward.comment());
            format!("-A {OWN} {side} {network} -m comment --comment \"{comment}\" -j ACCEPT")
        })
    }

    /// Sets the rules. Returns false if there was nothing to do.
    fn set(&self) -> io::Result<bool> {
        let listed = self.list()?;
        let of = |prefix: &str| listed.iter().filter(|line| line.starts_with(prefix)).cloned().collect::<Vec<_>>();
        let has_rules = of(&format!("-A {OWN} ")) == self.rules();
        let jumps = listed.iter().filter(|line| **line == self.jump()).count();
        if has_rules && jumps == 1 {
            return Ok(false);
        }
        if of(&format!("-N {OWN}")).is_empty() {
            self.run(&format!("-N {OWN}"))?;
        }
        if !has_rules {
            self.run(&format!("-F {OWN}"))?;
            self.rules().iter().try_for_each(|rule| self.run(rule))?;
        }
        for _ in 1..jumps {
            self.run(&self.jump().replacen("-A", "-D", 1))?;
        }
        if jumps == 0 {
            self.run(&self.jump())?;
        }
        Ok(true)
    }

    /// Returns the chains and rules of the table, one per line.
    fn list(&self) -> io::Result<Vec<String>> {
        let listed = self.output(&["-S"])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Runs the program with the words of a rule.
    fn run(&self, rule: &str) -> io::Result<()> {
        // Only the comment has spaces, and it stands between quotation marks.
        let mut words: Vec<&str> = Vec::new();
        for (index, part) in rule.split('"').enumerate() {
            if index % 2 == 0 { words.extend(part.split_whitespace()) } else { words.push(part) }
        }
        self.output(&words).map(drop)
    }

    fn output(&self, words: &[&str]) -> io::Result<String> {
        let program = self.program();
        let path = find(program).ok_or_else(|| io::Error::other(format!("there is no program {program}")))?;
        let mut command = Command::new(path);
        command.args(["-w", LOCK_TIMEOUT, "-t", "filter"]).args(words).stdin(Stdio::null());
        let output = command.output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let reason = String::from_utf8_lossy(&output.stderr);
        let reason = reason.lines().next().unwrap_or("it gives no reason");
        Err(io::Error::other(format!("`{program} {}` failed ({}): {reason}", words.join(" "), output.status)))
    }
}

/// Returns the path of a program. Services often have a PATH without the directories of the administrator.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let mut candidates = env::split_paths(&path).chain(more).map(|directory| directory.join(program));
    candidates.find(|candidate| candidate.is_file())
}
