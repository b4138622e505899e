//! An unreachable or compacted etcd, and a wall clock that jumps.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::etcd::tied_to_its_parent;
use crate::hosts::{Attachment, Pod, Site};
use crate::node::{Node, program};
use crate::operator::{Operator, subnets};
use crate::wait_until;

fn two_nodes(members: u16) -> (Site, Operator, [Node; 2], [Pod; 2]) {
    let site = Site::new(2, members, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let nodes = [0, 1].map(|number| Node::start(&site.hosts[number], &site.etcd));
    let pods = [0, 1].map(|number| site.hosts[number].add_pod(nodes[number].lease(), Attachment::Veth));
    pods[0].must_reach(&pods[1]);
    (site, operator, nodes, pods)
}

fn is_route(subnet: &str, host: Ipv4Addr) -> impl Fn(&serde_json::Value) -> bool {
    let wanted = format!("{subnet} via {host}:8285");
    move |said| said["set"].to_string().contains(&wanted)
}

#[test]
fn forwarding_continues_without_etcd_and_missed_events_are_applied() {
    let (mut site, mut operator, mut nodes, pods) = two_nodes(3);
    site.etcd.kill_all();
    for node in &mut nodes {
        let stale = node.says("stale");
        assert_eq!(stale["routes"], 1, "{stale}");
    }
    for _ in 0..5 {
        pods[0].must_reach(&pods[1]);
        pods[1].must_reach(&pods[0]);
    }
    site.etcd.start_all();
    operator.put_lease("100.96.177.0-24", [10, 168, 0, 77].into());
    for node in &mut nodes {
        node.says_that("routes", is_route("100.96.177.0/24", [10, 168, 0, 77].into()));
        assert_eq!(node.count("heard"), node.count("stale"), "{:?}", node.said);
    }
    pods[0].must_reach(&pods[1]);
}

/// Events during an outage are compacted. The node lists again, reports it once, and applies the differences.
#[test]
fn after_a_compaction_leases_are_listed_again_and_only_differences_are_applied() {
    let (mut site, mut operator, mut nodes, pods) = two_nodes(3);
    operator.put_lease("100.96.170.0-24", [10, 168, 0, 70].into());
    operator.put_lease("100.96.171.0-24", [10, 168, 0, 71].into());
    let [node, other] = &mut nodes;
    node.says_that("routes", |said| said["count"] == 3);
    other.says_that("routes", |said| said["count"] == 3);
    node.child.signal(Signal::SIGSTOP).unwrap();
    site.etcd.kill_all();
    site.etcd.start_all();
    // One lease moved, one deleted, one new, one unchanged.
    operator.put_lease("100.96.170.0-24", [10, 168, 0, 80].into());
    operator.delete(&subnets("100.96.171.0-24"));
    operator.put_lease("100.96.172.0-24", [10, 168, 0, 72].into());
    operator.compact();
    let (before, cpu) = (node.said.len(), node.child.cpu_time().unwrap());
    node.child.signal(Signal::SIGCONT).unwrap();
    let changed = node.says_that("routes", is_route("100.96.170.0/24", [10, 168, 0, 80].into()));
    assert_eq!(changed["set"].as_array().unwrap().len(), 2, "{changed}");
    assert_eq!(changed["deleted"].as_array().unwrap().len(), 1, "{changed}");
    assert_eq!(changed["count"], 3);
    node.listen(Duration::from_secs(2));
    let since = &node.said[before..];
    let lost = since.iter().filter(|said| said["event"] == "stale").count();
    assert_eq!(lost, 1, "it says so once: {since:#?}");
    assert!(since.len() < 10, "and not much else: {since:#?}");
    assert!(node.child.cpu_time().unwrap() - cpu < Duration::from_secs(1), "and does not ask without end");
    // The other node watched all the time.
    other.says_that("routes", is_route("100.96.172.0/24", [10, 168, 0, 72].into()));
    pods[0].must_reach(&pods[1]);
}

/// A restore removes a write after the backup, even a single one.
#[test]
fn after_a_restore_of_etcd_leases_are_listed_again() {
    let (mut site, mut operator, mut nodes, pods) = two_nodes(1);
    site.etcd.kill_all();
    let backup = site.etcd.back_up();
    site.etcd.start_all();
    let host = Ipv4Addr::new(10, 168, 0, 77);
    operator.put_lease("100.96.177.0-24", host);
    for node in &mut nodes {
        node.says_that("routes", is_route("100.96.177.0/24", host));
    }
    site.etcd.kill_all();
    site.etcd.restore(&backup);
    site.etcd.start_all();
    for node in &mut nodes {
        let routes = node.says("routes");
        assert_eq!(routes["deleted"], serde_json::json!(["100.96.177.0/24"]), "{routes}");
        // The revision reveals the restore here.
        let restored = |said: &serde_json::Value| said["reason"].to_string().contains("restored from a backup");
        assert_eq!(node.said.iter().filter(|said| restored(said)).count(), 1, "{:#?}", node.said);
    }
    pods[0].must_reach(&pods[1]);
    pods[1].must_reach(&pods[0]);
}

/// The wall clock is a day ahead, then a day behind. No lease ends and no action is early.
#[test]
fn a_wall_clock_that_jumps_ends_no_lease() {
    let site = Site::new(2, 1, true);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let clock = tempfile::NamedTempFile::new().unwrap();
    let set = |offset: &str| std::fs::write(clock.path(), offset).unwrap();
    set("+0");
    let mut command = tied_to_its_parent("env");
    command.arg(format!("LD_PRELOAD={}", faketime().display()));
    command.arg(format!("FAKETIME_TIMESTAMP_FILE={}", clock.path().display()));
    command.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]).arg(program());
    let mut node = Node::spawn_by(command, &site.hosts[0], &site.etcd, &[]);
    node.says("ready");
    let other = Node::start(&site.hosts[1], &site.etcd);
    node.says("routes");
    let pods =
        [site.hosts[0].add_pod(node.lease(), Attachment::Veth), site.hosts[1].add_pod(other.lease(), Attachment::Veth)];
    pods[0].must_reach(&pods[1]);
    let (held, said) = (operator.leases(), node.said.len());
    let host = Ipv4Addr::new(10, 168, 0, 77);
    for jump in ["+25h", "-25h", "+9000d"] {
        set(jump);
        // The node watches, and reads its clock with every event.
        operator.put_lease("100.96.177.0-24", host);
        node.says_that("routes", is_route("100.96.177.0/24", host));
        operator.delete(&subnets("100.96.177.0-24"));
        node.says_that("routes", |said| said["count"] == 1);
        node.listen(Duration::from_secs(1));
        pods[0].must_reach(&pods[1]);
    }
    assert!(node.said[said..].iter().all(|said| said["event"] == "routes"), "{:#?}", node.said);
    assert_eq!(operator.leases(), held);
}

/// Returns the library that fakes the time of one program.
fn faketime() -> PathBuf {
    let path = std::env::var_os("LODEN_FAKETIME").map(PathBuf::from);
    let path = path.expect("LODEN_FAKETIME has to name libfaketime.so.1; the repository's test command installs it");
    assert!(Path::new(&path).exists(), "{} is missing", path.display());
    path
}

/// A host that starts before etcd waits and reports the reason.
#[test]
fn missing_resources_are_awaited() {
    let mut site = Site::new(1, 1, false);
    site.etcd.kill_all();
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &[]);
    for _ in 0..2 {
        let waiting = node.says("waiting");
        assert!(waiting["reason"].as_str().unwrap().contains("nothing listens there"), "{waiting}");
        assert!(waiting["retry_seconds"].as_f64().unwrap() > 0.0, "{waiting}");
    }
    site.etcd.start_all();
    let waiting = node.says_that("waiting", |said| said["reason"].as_str().unwrap().contains("no network config"));
    assert!(waiting["reason"].as_str().unwrap().contains("/coreos.com/network/config"), "{waiting}");
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config("{");
    node.says_that("waiting", |said| said["reason"].as_str().unwrap().contains("cannot be used: invalid JSON"));
    // The host has changed since the start.
    site.hosts[0].namespace.set_mtu("eth0", 1400).unwrap();
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    assert_eq!(node.says("ready")["mtu"], 1372);
    let env = std::fs::read_to_string(site.hosts[0].subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_MTU=1372"), "{env}");
    let tun = "flannel0".to_owned();
    wait_until("the device", || site.hosts[0].namespace.links().unwrap().contains(&tun));
    node.stop();
}
