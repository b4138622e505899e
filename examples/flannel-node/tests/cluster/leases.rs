//! Acquisition, renewal and loss of the lease.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::hosts::Site;
use crate::node::Node;
use crate::operator::{Operator, subnets};
use crate::wait_until;

#[test]
fn of_two_nodes_one_gets_the_last_free_subnet() {
    let site = Site::new(2, 3, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16","SubnetMin":"100.96.7.0","SubnetMax":"100.96.7.0"}"#);
    let mut nodes = [0, 1].map(|number| Node::spawn(&site.hosts[number], &site.etcd, &[]));
    let won = |node: &Node| node.count("ready") > 0;
    let waits = |node: &Node| node.said.iter().any(|said| said["reason"].to_string().contains("no /24 is free"));
    wait_until("one of them to have it and the other one to wait", || {
        nodes.iter_mut().for_each(|node| node.listen(std::time::Duration::from_millis(50)));
        nodes.iter().any(won) && nodes.iter().any(waits)
    });
    assert_eq!(nodes.iter().filter(|node| won(node)).count(), 1);
    assert_eq!(operator.leases().len(), 1);
    let [mut first, mut second] = nodes;
    if won(&second) {
        std::mem::swap(&mut first, &mut second);
    }
    // The lease is deleted: the node ends with the reason, and the other node leases the subnet.
    operator.delete(&subnets("100.96.7.0-24"));
    assert_eq!(first.says("stopped")["leased"], serde_json::Value::Null);
    let error = first.says("error");
    assert!(error["reason"].as_str().unwrap().contains("lease of 100.96.7.0/24 is lost: it was deleted"), "{error}");
    assert_eq!(first.ends().code(), Some(1));
    second.says("ready");
    assert_eq!(second.lease().to_string(), "100.96.7.0/24");
    assert_eq!(operator.leases().len(), 1);
}

/// A margin of a minute with a lease that is barely longer.
#[test]
fn a_lease_is_renewed_before_its_end() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let short = ["--subnet-lease-ttl=62", "--subnet-lease-renew-margin=1"];
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &short);
    node.says("ready");
    let key = subnets(&operator.leases()[0].0);
    let value = operator.leases()[0].1.clone();
    let mut grants = BTreeSet::from([operator.leases()[0].2]);
    // A reader that watches learns the lease again with each renewal, as from flannel.
    for put in operator.watch_puts(&key, 2) {
        assert_eq!(put.0, value, "the same value");
        assert!(grants.insert(put.1), "each with a new etcd lease: {grants:?}");
        let renewed = node.says("renewed");
        assert!(matches!(renewed["seconds"].as_u64(), Some(61 | 62)), "{renewed}");
    }
    assert_eq!(node.count("warning"), 0, "it knows its own writes: {:#?}", node.said);

    // The etcd lease is revoked while the node runs, and the key with it.
    let grant = operator.leases()[0].2;
    operator.act(async |client| client.lease_revoke(grant).await.ok());
    let error = node.says("error");
    assert!(error["reason"].as_str().unwrap().contains("is lost"), "{error}");
    assert_eq!(node.ends().code(), Some(1));
    assert!(!site.hosts[0].namespace.links().unwrap().iter().any(|link| link.starts_with("flannel")));
}

/// Another host leased the subnet while the node could not reach etcd.
#[test]
fn a_lease_that_another_host_holds_is_lost() {
    let mut site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let key = format!("{}-24", node.lease().network());
    node.child.signal(Signal::SIGSTOP).unwrap();
    site.etcd.kill_all();
    site.etcd.start_all();
    operator.put_lease(&key, [10, 168, 0, 99].into());
    operator.compact();
    node.child.signal(Signal::SIGCONT).unwrap();
    let error = node.says("error");
    assert!(error["reason"].as_str().unwrap().contains("10.168.0.99 holds it now"), "{error}");
    assert_eq!(node.ends().code(), Some(1));
    assert!(operator.get(&subnets(&key)).unwrap().contains("10.168.0.99"), "it is left alone");
    // The service manager starts it again. flanneld would take the subnet back from the other host.
    let again = Node::start(&site.hosts[0], &site.etcd);
    assert!(again.how() == "which is new" && !key.starts_with(&again.lease().network().to_string()));
    assert!(operator.get(&subnets(&key)).unwrap().contains("10.168.0.99"), "it is left alone");
    again.stop();
}

/// The key has an etcd lease that ends earlier or later than the node's own. The node keeps it alive, and nobody writes
/// endlessly.
#[test]
fn a_lease_that_another_program_rewrote_is_renewed_at_once() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let key = format!("{}-24", node.lease().network());
    let own = operator.leases()[0].2;
    let short = operator.put_lease_for(&key, site.hosts[0].address, 5);
    let warning = node.says("warning");
    assert!(warning["reason"].as_str().unwrap().contains("somebody else wrote the lease"), "{warning}");
    node.says("renewed");
    wait_until("its end", || {
        let answer = operator.act(async |client| client.lease_time_to_live(short, None).await.ok());
        answer.ttl() <= 0
    });
    let held = operator.leases()[0].2;
    assert!(held != short && held != own && held != 0, "{held}");

    let long = operator.put_lease_for(&key, site.hosts[0].address, 2 * 24 * 3600);
    node.says("renewed");
    node.listen(std::time::Duration::from_secs(1));
    assert_eq!((operator.leases()[0].2, node.count("renewed"), node.count("warning")), (long, 2, 2));
    node.stop();
}

/// A key without an end is flannel's reservation.
#[test]
fn a_reserved_subnet_stays_reserved() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let host = site.hosts[0].address;
    operator.put_lease("100.96.9.0-24", host);
    let node = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!((node.lease().to_string().as_str(), node.how()), ("100.96.9.0/24", "which had it already"));
    assert_eq!(operator.leases()[0].2, 0);
    node.stop();
    operator.delete(&subnets("100.96.9.0-24"));

    // A lease becomes a reservation, and a lease again, while the node holds it.
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let held = operator.leases().remove(0);
    assert_ne!(held.2, 0);
    operator.put_lease(&held.0, host);
    assert_eq!(node.says("renewed")["seconds"], serde_json::Value::Null);
    assert_eq!(operator.leases(), [(held.0.clone(), held.1, 0)]);
    operator.put_lease_for(&held.0, host, 3600);
    assert!(node.says("renewed")["seconds"].as_u64() > Some(3600));
    assert_ne!(operator.leases()[0].2, 0);
    node.stop();
}

/// A lease that does not fit a new config is replaced by one that does.
#[test]
fn a_lease_of_an_older_network_is_replaced() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let node = Node::start(&site.hosts[0], &site.etcd);
    node.stop();
    operator.set_config(r#"{"Network":"100.97.0.0/16","SubnetLen":26}"#);
    let node = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!((node.lease().prefix_len(), node.how()), (26, "which is new"));
    let leases = operator.leases();
    assert_eq!(leases.len(), 1, "{leases:?}");
    assert!(leases[0].0.starts_with("100.97.") && leases[0].0.ends_with("-26"), "{leases:?}");
}

/// Both nodes with one address report it, in any order of start, and neither writes endlessly.
#[test]
fn two_hosts_with_one_address_both_report_it() {
    for reserved in [false, true] {
        let site = Site::new(2, 1, false);
        let mut operator = Operator::of(&site.etcd, &site.switch);
        operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
        if reserved {
            operator.put_lease("100.96.9.0-24", site.hosts[0].address);
        }
        let mut first = Node::start(&site.hosts[0], &site.etcd);
        let key = subnets(&format!("{}-24", first.lease().network()));
        let address = format!("--public-ip={}", site.hosts[0].address);
        let mut second = Node::spawn(&site.hosts[1], &site.etcd, &["--iface=eth0", &address]);
        second.says("ready");
        assert_eq!(second.lease(), first.lease());
        for node in [&mut first, &mut second] {
            let warning = node.says_that("warning", |said| said["reason"].to_string().contains("somebody else wrote"));
            assert!(warning["reason"].to_string().contains("10.168.0.2 too"), "{warning}");
        }
        std::thread::sleep(Duration::from_secs(1));
        let written = operator.revision(&key);
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(operator.revision(&key), written, "neither writes any more");
        assert_eq!(operator.leases()[0].2 == 0, reserved);

        // The report repeats each time one of them writes again.
        operator.overwrite(&key, &format!(r#"{{"PublicIP":"{}"}}"#, site.hosts[0].address));
        for node in [&mut first, &mut second] {
            node.says_that("warning", |said| said["reason"].to_string().contains("somebody else wrote"));
        }
    }
}
