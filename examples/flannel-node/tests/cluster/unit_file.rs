//! The unit file: valid for systemd, and its restrictions against what the node does, as strace shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::etcd::tied_to_its_parent;
use crate::hosts::{Attachment, Site};
use crate::node::{Node, program};
use crate::operator::Operator;
use crate::tls::shown;
use crate::wait_until;

const UNIT: &str = include_str!("../../flannel-node.service");
/// The place of the program in the unit.
const INSTALLED: &str = "/usr/local/bin/flannel-node";

/// Returns the values of a setting, in order.
fn values<'a>(setting: &str) -> Vec<&'a str> {
    UNIT.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('=')).collect()
}

fn value(setting: &str) -> &'static str {
    let [value] = values(setting)[..] else { panic!("{setting} is set {} times", values(setting).len()) };
    value
}

/// Returns systemd-analyze(1), or `None` if the repository's test command could not get it.
fn systemd_analyze() -> Option<Command> {
    let path = std::env::var_os("LODEN_SYSTEMD_ANALYZE").map_or(PathBuf::from("systemd-analyze"), PathBuf::from);
    if path == Path::new("") {
        eprintln!("skipped: Debian's package systemd cannot be had here");
        return None;
    }
    let version = Command::new(&path).arg("--version").output();
    let is_there = version.is_ok_and(|version| version.status.success());
    assert!(is_there, "{} has to run; the repository's test command unpacks it", path.display());
    Some(Command::new(path))
}

fn output(mut command: Command, args: &[&str]) -> (bool, String) {
    let output = command.args(args).env("SYSTEMD_LOG_LEVEL", "warning").output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn the_unit_is_valid_and_confined() {
    let Some(command) = systemd_analyze() else { return };
    let directory = tempfile::tempdir().unwrap();
    let unit = shown(&directory.path().join("flannel-node.service"));
    // The program has to exist.
    let text = UNIT.replace(INSTALLED, &shown(&program()));
    std::fs::write(&unit, &text).unwrap();
    let (_, said) = output(command, &["verify", &unit]);
    assert!(!said.contains("flannel-node.service"), "{said}");
    // Exposure from 0 to 100. The rest is the network, which the node is about.
    let (confined, said) = output(systemd_analyze().unwrap(), &["security", "--offline=yes", "--threshold=25", &unit]);
    if said.contains("unrecognized option") {
        eprintln!("skipped: the exposure, which systemd computes since version 250");
    } else {
        assert!(confined, "{said}");
    }
    // A mistake is found.
    std::fs::write(&unit, text.replace("WatchdogSec=30", "WatchdogSec=often")).unwrap();
    let (_, said) = output(systemd_analyze().unwrap(), &["verify", &unit]);
    assert!(said.contains("flannel-node.service") && said.contains("often"), "{said}");
}

/// Returns the system calls of the sets in systemd's filter language.
fn allowed_calls(sets: &str) -> BTreeSet<String> {
    let mut members: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut set = "";
    for line in sets.lines() {
        match line.trim() {
            name if line.starts_with('@') => set = name,
            "" => {}
            comment if comment.starts_with('#') => {}
            member => members.entry(set).or_default().push(member),
        }
    }
    fn expand(name: &str, members: &BTreeMap<&str, Vec<&str>>, calls: &mut BTreeSet<String>) {
        match members.get(name) {
            Some(parts) => parts.iter().for_each(|part| expand(part, members, calls)),
            None => drop(calls.insert(name.to_owned())),
        }
    }
    let mut allowed = BTreeSet::new();
    for filter in values("SystemCallFilter") {
        let mut calls = BTreeSet::new();
        let names = filter.trim_start_matches('~').split_whitespace();
        names.for_each(|name| expand(name, &members, &mut calls));
        match filter.starts_with('~') {
            true => allowed.retain(|call| !calls.contains(call)),
            false => allowed.extend(calls),
        }
    }
    allowed
}

/// A system call in strace's output.
struct Call<'a> {
    name: &'a str,
    arguments: &'a str,
    failed: bool,
}

fn calls(trace: &str) -> Vec<Call<'_>> {
    let calls = trace.lines().filter_map(|line| {
        // The process id is in front.
        let (name, rest) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_name.then_some(Call { name, arguments: rest, failed: rest.contains(" = -1 ") })
    });
    calls.collect()
}

/// The unit's restrictions hold for a node that starts, forwards, reloads, learns routes, loses etcd and stops. Only
/// systemd itself can enforce them together, so each is compared with the trace of the node's system calls.
#[test]
fn the_node_does_nothing_that_the_unit_forbids() {
    let mut site = Site::new(2, 1, true);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let other = Node::start(&site.hosts[0], &site.etcd);
    let trace = tempfile::NamedTempFile::new().unwrap();
    // Detached, strace leaves the process id to the node.
    let mut command = tied_to_its_parent("strace");
    command.args(["-D", "-f", "-s", "200", "-o"]).arg(trace.path()).arg(program());
    let mut node =
        Node::spawn_by(command, &site.hosts[1], &site.etcd, &["--healthz-ip=127.0.0.1", "--healthz-port=2401"]);
    node.says("ready");
    node.says("routes");
    let pods =
        [(0, &other), (1, &node)].map(|(number, node)| site.hosts[number].add_pod(node.lease(), Attachment::Veth));
    pods[0].must_reach(&pods[1]);
    node.child.signal(Signal::SIGHUP).unwrap();
    node.says("reloaded");
    site.hosts[1].namespace.set_mtu("eth0", 1400).unwrap();
    node.says("link");
    site.etcd.kill_all();
    node.says("stale");
    site.etcd.start_all();
    operator.put_lease("100.96.177.0-24", [10, 168, 0, 77].into());
    node.says_that("routes", |said| said["set"].to_string().contains("100.96.177.0/24"));
    node.listen(Duration::from_millis(100));
    node.stop();
    let mut text = String::new();
    wait_until("the end of the trace", || {
        text = std::fs::read_to_string(trace.path()).unwrap();
        text.contains("+++ exited with 0 +++")
    });
    let calls = calls(&text);
    let forbidden = |what: &str, is: &dyn Fn(&Call<'_>) -> bool| {
        let found: Vec<_> = calls.iter().filter(|call| is(call)).map(|call| (call.name, call.arguments)).collect();
        assert!(found.is_empty(), "{what}: {found:#?}");
    };
    assert!(calls.len() > 500, "{text}");
    // Before the node itself: setpriv and the start by systemd.
    if let Some(command) = systemd_analyze() {
        let allowed = allowed_calls(&output(command, &["syscall-filter"]).1);
        assert!(allowed.len() > 200 && !allowed.contains("mount") && !allowed.contains("setuid"), "{allowed:?}");
        forbidden("SystemCallFilter", &|call| !allowed.contains(call.name));
    }
    let families: Vec<_> = value("RestrictAddressFamilies").split_whitespace().collect();
    let has_family = |call: &Call<'_>| call.arguments.split(',').next().is_some_and(|first| families.contains(&first));
    assert!(calls.iter().any(|call| call.name == "socket" && has_family(call)));
    forbidden("RestrictAddressFamilies", &|call| call.name == "socket" && !has_family(call));
    assert_eq!(value("MemoryDenyWriteExecute"), "yes");
    forbidden("MemoryDenyWriteExecute", &|call| {
        let executable = call.arguments.contains("PROT_EXEC");
        executable && (call.name == "mprotect" || call.name == "mmap" && call.arguments.contains("PROT_WRITE"))
    });
    assert_eq!(value("RestrictNamespaces"), "yes");
    forbidden("RestrictNamespaces", &|call| call.arguments.contains("CLONE_NEW"));
    // `closed` leaves the pseudo devices.
    assert_eq!((value("DevicePolicy"), value("DeviceAllow")), ("closed", "/dev/net/tun rw"));
    let devices = ["/dev/net/tun", "/dev/null", "/dev/urandom", "/dev/random"];
    let opens = |call: &Call<'_>| call.name.starts_with("open") && !call.failed;
    let path = |call: &Call<'_>| call.arguments.split('"').nth(1).unwrap_or_default().to_owned();
    assert!(calls.iter().any(|call| opens(call) && path(call) == "/dev/net/tun"));
    forbidden("DevicePolicy", &|call| {
        opens(call) && path(call).starts_with("/dev/") && !devices.contains(&path(call).as_str())
    });
    // Everything but the RuntimeDirectory, which is the directory of the subnet file here, is read-only.
    assert_eq!((value("ProtectSystem"), value("RuntimeDirectory")), ("strict", "flannel"));
    let runtime = shown(site.hosts[1].subnet_file().parent().unwrap());
    let writes = |call: &Call<'_>| match call.name {
        "open" | "openat" => ["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|flag| call.arguments.contains(flag)),
        name => ["mkdir", "rename", "unlink", "chmod", "link", "symlink"].iter().any(|write| name.starts_with(write)),
    };
    assert!(calls.iter().any(|call| writes(call) && path(call).starts_with(&runtime)));
    forbidden("ProtectSystem", &|call| {
        writes(call) && !path(call).starts_with(&runtime) && !devices.contains(&path(call).as_str())
    });
    forbidden("a program", &|call| call.name == "execve" && !call.failed && path(call) != shown(&program()));
    other.stop();
}
