//! An etcd with another history than the one that a node has seen.

use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::hosts::Site;
use crate::node::Node;
use crate::operator::{Operator, subnets};

/// Revisions alone do not show a restore: writes after the backup are gone, and other writes have their numbers.
#[test]
fn fault_58_etcd_restored_and_written_past_what_was_seen_is_listed_again() {
    let mut site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    operator.put_lease("100.96.170.0-24", [10, 168, 0, 70].into());
    node.says_that("routes", |said| said["count"] == 1);
    site.etcd.kill_all();
    let backup = site.etcd.back_up();
    site.etcd.start_all();
    for (number, subnet) in [(71, "100.96.171.0-24"), (72, "100.96.172.0-24")] {
        operator.put_lease(subnet, Ipv4Addr::new(10, 168, 0, number));
    }
    node.says_that("routes", |said| said["count"] == 3);
    node.child.signal(Signal::SIGSTOP).unwrap();
    site.etcd.kill_all();
    site.etcd.restore(&backup);
    site.etcd.start_all();
    // The first lease uses the number of a lost one, the others are far beyond.
    operator.put_lease("100.96.173.0-24", [10, 168, 0, 73].into());
    for _ in 0..20 {
        operator.put_lease("100.96.170.0-24", [10, 168, 0, 80].into());
    }
    node.child.signal(Signal::SIGCONT).unwrap();
    let routes = node.says("routes");
    assert_eq!(routes["deleted"], json!(["100.96.171.0/24", "100.96.172.0/24"]), "{routes}");
    let set = json!(["100.96.170.0/24 via 10.168.0.80:8285", "100.96.173.0/24 via 10.168.0.73:8285"]);
    assert_eq!(routes["set"], set, "{routes}");
    assert_eq!(node.count("heard"), node.count("stale"), "{:#?}", node.said);
    node.stop();
}

/// The connection shows nothing. The node lists again periodically, regardless of the watch, and does not report an
/// unchanged list.
#[test]
fn fault_58_a_watch_is_not_trusted_for_ever() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    operator.put(&subnets("nonsense"), "rubbish");
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &["--list-interval=1"]);
    node.says("ready");
    node.says("set_aside");
    let (said, ranges) = (node.said.len(), site.etcd.ranges(0));
    node.listen(Duration::from_secs(5));
    assert!(site.etcd.ranges(0) >= ranges + 3, "{} after {ranges}", site.etcd.ranges(0));
    assert!(node.said[said..].is_empty(), "the same again: {:#?}", node.said);
    // Between two lists the node watches.
    operator.put_lease("100.96.170.0-24", [10, 168, 0, 70].into());
    node.says_that("routes", |said| said["count"] == 1);
    node.stop();
}

/// Only a restored etcd can have an older lease beside the own one: it was deleted when this node leased the subnet.
#[test]
fn fault_60_a_running_node_with_the_younger_lease_gives_it_up() {
    let mut site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let (older, younger) = (subnets("100.96.7.0-24&fd00:1::-64"), subnets("100.96.7.0-24"));
    operator.put_lease("100.96.7.0-24&fd00:1::-64", [10, 168, 0, 77].into());
    site.etcd.kill_all();
    let backup = site.etcd.back_up();
    site.etcd.start_all();
    operator.delete(&older);
    operator.put_lease("100.96.7.0-24", site.hosts[0].address);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!(node.lease().to_string(), "100.96.7.0/24");
    node.child.signal(Signal::SIGSTOP).unwrap();
    site.etcd.kill_all();
    site.etcd.restore(&backup);
    site.etcd.start_all();
    operator.put_lease("100.96.7.0-24", site.hosts[0].address);
    node.child.signal(Signal::SIGCONT).unwrap();
    let error = node.says("error");
    assert!(error["reason"].to_string().contains("100.96.7.0/24 was leased to 10.168.0.77 before"), "{error}");
    assert_eq!(node.ends().code(), Some(1));
    assert_eq!(operator.get(&younger), None, "nobody is led to this host any more");
    assert!(operator.get(&older).is_some());
}
