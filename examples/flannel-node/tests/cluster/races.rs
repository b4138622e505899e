//! Writes between a node's listing and its transaction, and causes of delay.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use testbed::Namespace;

use crate::etcd::ADDRESS;
use crate::hosts::Site;
use crate::node::Node;
use crate::operator::{Operator, subnets};
use crate::wait_until;

/// The delay of each piece of data on the slow connection.
const SLOW: Duration = Duration::from_millis(150);

/// Starts a proxy to etcd that delays every message. It ends with the test's process.
fn slow_line(namespace: &Namespace) -> String {
    let listener = namespace.enter(|| TcpListener::bind((ADDRESS, 0))).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(namespace.spawn("slow-line", move || {
        for near in listener.incoming().map_while(Result::ok) {
            let Ok(far) = TcpStream::connect((ADDRESS, 2379)) else { return };
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                std::thread::spawn(move || {
                    let mut chunk = [0; 1 << 16];
                    while let Ok(length @ 1..) = from.read(&mut chunk) {
                        std::thread::sleep(SLOW);
                        if to.write_all(&chunk[..length]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    }));
    format!("--etcd-endpoints=http://{ADDRESS}:{port}")
}

/// Another host leases 100.96.7.0/24 by another key after the node has listed it as free. That host is a dual-stack
/// flannel, has subnets of another length, or is an operator who wrote host bits.
#[test]
fn fault_60_a_subnet_that_appears_in_another_spelling_is_not_leased_twice() {
    for other in ["100.96.7.0-24&fd00:1::-64", "100.96.7.128-25", "100.96.6.0-23", "100.96.7.9-24"] {
        let site = Site::new(1, 1, false);
        let mut operator = Operator::of(&site.etcd, &site.switch);
        operator.set_config(r#"{"Network":"100.96.0.0/16","SubnetMin":"100.96.7.0","SubnetMax":"100.96.8.0"}"#);
        let env = site.hosts[0].subnet_file();
        std::fs::create_dir_all(env.parent().unwrap()).unwrap();
        let before =
            "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.7.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
        std::fs::write(&env, before).unwrap();
        let line = slow_line(&site.switch);
        let mut node = Node::spawn(&site.hosts[0], &site.etcd, &[&line]);
        // The node requests the list as soon as it has this answer.
        wait_until("an etcd lease", || operator.grants() > 0);
        std::thread::sleep(3 * SLOW);
        operator.put_lease(other, [10, 168, 0, 77].into());
        node.says("ready");
        let held: Vec<String> = operator.leases().into_iter().map(|(key, ..)| key).collect();
        assert_eq!(node.lease().to_string(), "100.96.8.0/24", "{other}: {held:?}");
        assert_eq!(held, [other, "100.96.8.0-24"]);
        node.stop();
    }
}

/// Another host leases the same IPv6 subnet beside another IPv4 subnet after the node has listed it as free. The node
/// sees that when it has its lease, and gives it up for another one.
#[test]
fn fault_60_an_ipv6_subnet_that_appears_beside_another_ipv4_subnet_is_not_leased_twice() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(
        r#"{"Network":"100.96.0.0/16","EnableIPv6":true,"IPv6Network":"fd97::/48","IPv6SubnetMin":"fd97:0:0:7::",
            "IPv6SubnetMax":"fd97:0:0:8::"}"#,
    );
    let file = site.hosts[0].subnet_file();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "FLANNEL_SUBNET=100.96.7.1/24\nFLANNEL_IPV6_SUBNET=fd97:0:0:7::1/64\n").unwrap();
    let slow = slow_line(&site.switch);
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &["--iface=eth0", &slow]);
    wait_until("an etcd lease", || operator.grants() > 0);
    std::thread::sleep(3 * SLOW);
    let other = "100.96.99.0-24&fd97:0:0:7::-64";
    operator.put_lease(other, [10, 168, 0, 77].into());
    node.says("ready");
    let held: Vec<String> = operator.leases().into_iter().map(|(key, ..)| key).collect();
    assert_eq!(held, ["100.96.7.0-24&fd97:0:0:8::-64", other]);
}

/// An unreadable key in the range of the subnet's spellings: the listing does not detect it, the transaction does.
#[test]
fn fault_60_the_transaction_compares_every_spelling() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16","SubnetMin":"100.96.7.0","SubnetMax":"100.96.8.0"}"#);
    operator.put(&subnets("100.96.7.0-24&a spelling of later"), r#"{"PublicIP":"10.168.0.77"}"#);
    for _ in 0..4 {
        let node = Node::start(&site.hosts[0], &site.etcd);
        assert_eq!(node.lease().to_string(), "100.96.8.0/24");
        node.stop();
        std::fs::remove_file(site.hosts[0].subnet_file()).unwrap();
        operator.delete(&subnets("100.96.8.0-24"));
    }
}

/// Both leases exist already. The restarted node has the younger one and leases another subnet.
#[test]
fn fault_60_the_younger_of_two_overlapping_leases_gives_way() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let own = site.hosts[0].address;
    operator.put_lease("100.96.7.0-24&fd00:1::-64", [10, 168, 0, 77].into());
    operator.put_lease("100.96.7.0-24", own);
    let node = Node::start(&site.hosts[0], &site.etcd);
    assert_ne!(node.lease().to_string(), "100.96.7.0/24");
    assert_eq!(operator.get(&subnets("100.96.7.0-24")), None, "it is given up");
    let lease = node.lease();
    node.stop();
    // A later lease gives way, or is a conflict that an operator has to resolve.
    operator.put_lease(&format!("{}-24&fd00:2::-64", lease.network()), [10, 168, 0, 78].into());
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!((node.lease(), node.how()), (lease, "which had it already"));
    node.says_that("conflict", |said| said["conflict"].to_string().contains("belongs to this host's own"));
    node.stop();
}

/// The longest values and keys that etcd accepts.
#[test]
fn fault_59_hundreds_of_long_values_neither_delay_the_start_nor_exhaust_etcd() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let long = "x".repeat(1_400_000);
    for number in 0..300 {
        operator.put(&subnets(&format!("100.96.{}.{}-26", 100 + number / 4, number % 4 * 64)), &long);
    }
    for number in 0..5 {
        operator.put(&subnets(&format!("100.96.98.0-24{}{number}", "k".repeat(1_400_000))), "");
    }
    operator.put_lease("100.96.99.0-24", [10, 168, 0, 99].into());
    operator.put_lease("100.96.150.7-32", [10, 168, 0, 150].into());
    operator.put_lease("100.96.250.0-24", [10, 168, 0, 250].into());
    let (before, start) = (site.etcd.memory(0), Instant::now());
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let routes = node.says("routes");
    let (took, memory) = (start.elapsed(), site.etcd.memory(0));
    eprintln!("started in {took:?}; etcd had {} MiB before, {} MiB then", before >> 20, memory >> 20);
    let set = routes["set"].to_string();
    let hosts = [(Ipv4Addr::new(10, 168, 0, 99)), Ipv4Addr::new(10, 168, 0, 150), Ipv4Addr::new(10, 168, 0, 250)];
    assert!(hosts.iter().all(|host| set.contains(&format!("via {host}:8285"))), "{routes}");
    assert!(took < Duration::from_secs(20), "started after {took:?}");
    assert!(memory < before.max(512 << 20) + (1 << 30), "etcd has {memory} bytes, {before} before");
    // Some are reported individually, the others by their number.
    assert_eq!(node.count("set_aside"), 20, "{:#?}", node.said);
    let aside = node.said.iter().find(|said| said["event"] == "set_aside").unwrap();
    assert!(aside["reason"].to_string().contains("its value exceeds"), "{aside}");
    let left_out = node.says("left_out");
    assert_eq!((&left_out["of"], &left_out["lines"]), (&"set_aside".into(), &285.into()));
    node.stop();
}
