//! Packets between the pods of hosts that start, stop and move.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::probe::{Amount, Fragmentation, Ping, PingOutcome, ping, tcp_send, tcp_sink};

use crate::hosts::{Attachment, Pod, Site};
use crate::node::Node;
use crate::operator::{Operator, subnets};
use crate::{SOON, wait_until};

const CONFIG: &str = r#"{"Network": "100.96.0.0/16", "Backend": {"Type": "udp", "Port": 7890}}"#;
const KINDS: [Attachment; 3] = [Attachment::Bridge, Attachment::ProxyArp, Attachment::Veth];

/// Three members of etcd with TLS, three hosts, and a different kind of pod on each.
fn cluster() -> (Site, Operator, Vec<Node>, Vec<Pod>) {
    let site = Site::new(3, 3, true);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(CONFIG);
    let nodes: Vec<_> = site.hosts.iter().map(|host| Node::start(host, &site.etcd)).collect();
    let pods: Vec<_> = KINDS
        .iter()
        .zip(&site.hosts)
        .zip(&nodes)
        .map(|((kind, host), node)| host.add_pod(node.lease(), *kind))
        .collect();
    (site, operator, nodes, pods)
}

fn all_reach_all(pods: &[Pod]) {
    for from in pods {
        for to in pods.iter().filter(|to| to.address != from.address) {
            from.must_reach(to);
        }
    }
}

#[test]
fn all_pods_reach_all_pods_and_a_member_of_etcd_may_die() {
    let (mut site, mut operator, mut nodes, pods) = cluster();
    all_reach_all(&pods);

    // The leases equal flannel's byte for byte, and each ends with an etcd lease.
    let mut expected: Vec<_> = nodes
        .iter()
        .zip(&site.hosts)
        .map(|(node, host)| {
            let lease = node.lease();
            let key = format!("{}-{}", lease.network(), lease.prefix_len());
            (key, format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, host.address))
        })
        .collect();
    expected.sort();
    let held = operator.leases();
    assert!(held.iter().all(|(.., grant)| *grant != 0), "{held:?}");
    assert_eq!(held.into_iter().map(|(key, value, _)| (key, value)).collect::<Vec<_>>(), expected);
    for (node, host) in nodes.iter().zip(&site.hosts) {
        let bridge = Ipv4Addr::from_bits(node.lease().network().to_bits() + 1);
        let env = std::fs::read_to_string(host.subnet_file()).unwrap();
        let subnet = format!("FLANNEL_SUBNET={bridge}/24");
        assert_eq!(env, format!("FLANNEL_NETWORK=100.96.0.0/16\n{subnet}\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"));
    }

    // Streams between different pods, with every byte verified.
    let listener = pods[1].namespace.enter(|| TcpListener::bind((pods[1].address, 7))).unwrap();
    let sink = tcp_sink(listener, 11);
    let sent = pods[0].namespace.enter(|| tcp_send((pods[1].address, 7).into(), Amount::Bytes(8 << 20), 11)).unwrap();
    assert_eq!(sink.join().unwrap().unwrap().bytes, sent.bytes);

    // Each member fails in turn, so every node loses the member it watches.
    for member in 0..3 {
        site.etcd.kill_member(member);
        all_reach_all(&pods);
        let fourth = Ipv4Addr::new(10, 168, 0, 100 + member as u8);
        let key = format!("100.96.{}.0-24", 240 + member);
        operator.put_lease(&key, fourth);
        for node in &mut nodes {
            let wanted = format!("via {fourth}:7890");
            node.says_that("routes", |said| said["set"].to_string().contains(&wanted));
        }
        site.etcd.start_member(member);
        // Two of three members are needed, so this one must return before the next one fails.
        operator.delete(&subnets(&key));
        for node in &mut nodes {
            node.says_that("routes", |said| said["deleted"].to_string().contains("100.96.24"));
        }
        site.etcd.wait_for_member(member);
    }
    nodes.into_iter().for_each(|node| drop(node.stop()));
    assert_eq!(operator.leases().len(), 3, "leases outlive a normal stop");
}

#[test]
fn a_node_joins_and_leaves() {
    let (site, mut operator, mut nodes, pods) = cluster();
    all_reach_all(&pods[1..]);
    let leaves = nodes.remove(0);
    let lease = leaves.lease();
    drop(leaves.stop());
    let links = site.hosts[0].namespace.links().unwrap();
    assert!(!links.iter().any(|link| link.starts_with("flannel")), "{links:?}");
    operator.delete(&subnets(&format!("{}-24", lease.network())));
    for node in &mut nodes {
        let subnet = lease.to_string();
        node.says_that("routes", |said| said["deleted"].to_string().contains(&subnet));
        // Long before that, a lease of the first three nodes that this node did not know yet.
        assert_eq!(node.count("stale"), 0);
    }
    let again = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!((again.lease(), again.how()), (lease, "as in an earlier run"));
    all_reach_all(&pods);
}

/// The node keeps its subnet by its subnet file, and by an operator's key.
#[test]
fn a_node_moves_to_another_address_and_traffic_follows() {
    let (site, mut operator, mut nodes, pods) = cluster();
    all_reach_all(&pods[..2]);
    let host = &site.hosts[1];
    let lease = nodes[1].lease();
    let key = format!("{}-24", lease.network());
    for (last, deleted) in [(77, true), (78, false)] {
        let moved = Ipv4Addr::new(10, 168, 0, last);
        host.namespace.add_address("eth0", Ipv4Net::new_assert(moved, 24)).unwrap();
        drop(nodes.remove(1).stop());
        if deleted {
            operator.delete(&subnets(&key));
        } else {
            operator.put_lease(&key, moved);
        }
        let public_ip = format!("--public-ip={moved}");
        let mut node = Node::spawn(host, &site.etcd, &[&format!("--iface={moved}"), &public_ip]);
        node.says("ready");
        assert_eq!(node.lease(), lease);
        assert_eq!(node.how(), if deleted { "as in an earlier run" } else { "which had it already" });
        nodes.insert(1, node);
        let wanted = format!("{lease} via {moved}:7890");
        nodes[0].says_that("routes", |said| said["set"].to_string().contains(&wanted));
        all_reach_all(&pods[..2]);
    }
}

#[test]
fn a_node_that_was_killed_gets_its_subnet_again() {
    let (site, mut operator, mut nodes, pods) = cluster();
    let before = operator.leases();
    for keeps_its_file in [true, false] {
        all_reach_all(&pods);
        let node = nodes.remove(0);
        let lease = node.lease();
        node.kill();
        if !keeps_its_file {
            std::fs::remove_file(site.hosts[0].subnet_file()).unwrap();
        }
        let again = Node::start(&site.hosts[0], &site.etcd);
        assert_eq!((again.lease(), again.how()), (lease, "which had it already"));
        nodes.insert(0, again);
    }
    all_reach_all(&pods);
    let subnets = |leases: Vec<(String, String, i64)>| leases.into_iter().map(|lease| lease.0).collect::<Vec<_>>();
    assert_eq!(subnets(operator.leases()), subnets(before));
}

/// A host that uses only flannel's formats: a plain socket, and a lease in flannel's older form.
#[test]
fn packets_to_flannel_have_no_extra_header() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"network":"100.96.0.0/16","backend":{"type":"UDP"}}"#);
    let flannel = &site.hosts[1];
    let socket = flannel.namespace.enter(|| UdpSocket::bind((flannel.address, 8285))).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    operator.put(&subnets("100.96.207.0-24"), &format!(r#"{{"PublicIP":"{}"}}"#, flannel.address));
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    node.says_that("routes", |said| said["set"].to_string().contains("100.96.207.0/24"));
    let pod = site.hosts[0].add_pod(node.lease(), Attachment::Veth);

    let inner = pod.namespace.enter(|| UdpSocket::bind((pod.address, 5000))).unwrap();
    inner.set_read_timeout(Some(SOON)).unwrap();
    inner.send_to(b"bare", ("100.96.207.9", 6000)).unwrap();
    let mut datagram = [0; 2048];
    let (length, from) = socket.recv_from(&mut datagram).unwrap();
    assert_eq!(from, (site.hosts[0].address, 8285).into());
    let packet = &datagram[..length];
    assert_eq!((packet[0], packet[8], packet[9], length), (0x45, 62, 17, 20 + 8 + 4), "TTL 64, less two routers");
    assert_eq!((&packet[12..16], &packet[16..20]), (&pod.address.octets()[..], &[100, 96, 207, 9][..]));
    assert_eq!(&packet[28..], b"bare");

    // The reply has addresses and ports swapped, which keeps the checksum valid.
    let mut reply = packet.to_vec();
    reply[12..20].rotate_left(4);
    reply[20..24].rotate_left(2);
    socket.send_to(&reply, (site.hosts[0].address, 8285)).unwrap();
    let (length, from) = inner.recv_from(&mut datagram).unwrap();
    assert_eq!((&datagram[..length], from), (&b"bare"[..], ([100, 96, 207, 9], 6000).into()));
}

/// The MTU of the underlay interface decreases and increases: packets adapt without a restart.
#[test]
fn packets_use_the_mtu_of_the_underlay_interface() {
    let (site, _operator, mut nodes, pods) = cluster();
    pods[2].must_reach(&pods[0]);
    let longest = |fits: u16, too_long: bool| {
        let len = usize::from(fits) - 28 + usize::from(too_long);
        let settings = Ping { payload_len: len, fragmentation: Fragmentation::Forbidden, ..Ping::default() };
        pods[2].namespace.forget_path_mtus().unwrap();
        pods[2].namespace.enter(|| ping(pods[0].address, settings)).unwrap().remove(0)
    };
    for outer in [1400, 1500] {
        site.hosts[2].namespace.set_mtu("eth0", outer).unwrap();
        let inner = u16::try_from(outer).unwrap() - 28;
        nodes[2].says_that("link", |said| {
            said["state"].to_string().contains(&format!("inner packets have at most {inner} bytes"))
        });
        wait_until("a packet that just fits to be answered", || {
            matches!(longest(inner, false), PingOutcome::Reply { .. })
        });
        let PingOutcome::Error { kind: 3, code: 4, mtu, .. } = longest(inner, true) else {
            panic!("no 3/4 at {inner}")
        };
        assert_eq!(mtu, inner);
    }
}

/// The underlay interface is deleted and created again while leases change continuously.
#[test]
fn an_interface_that_returns_is_found_during_other_events() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let (host, neighbour) = (&site.hosts[0].namespace, testbed::Namespace::new().unwrap());
    // Not the interface to etcd.
    let make = || {
        host.connect("eth1", &neighbour, "eth0").unwrap();
        host.add_address("eth1", Ipv4Net::new_assert([10, 169, 0, 2].into(), 24)).unwrap();
    };
    make();
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &["--iface=eth1"]);
    node.says("ready");
    host.delete_link("eth1").unwrap();
    node.says_that("link", |said| said["state"].to_string().contains("no interface holds 10.169.0.2"));
    make();
    let found = |said: &Value| said["state"].to_string().contains("eth1 holds 10.169.0.2 again");
    wait_until("the interface to be found", || {
        operator.put_lease("100.96.177.0-24", [10, 168, 0, 77].into());
        operator.delete(&subnets("100.96.177.0-24"));
        node.listen(Duration::from_millis(100));
        node.said.iter().any(found)
    });
}

/// The kernel has one route for any number of hosts.
#[test]
fn a_thousand_leases_need_one_kernel_route() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"10.0.0.0/8","SubnetLen":24}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let before = site.hosts[0].namespace.routes().unwrap();
    let own = node.lease();
    let leases: Vec<_> = (0..1000_u32)
        .map(|number| Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0a80_0000 + (number << 8)), 24))
        .filter(|subnet| *subnet != own)
        .map(|subnet| {
            (format!("{}-24", subnet.network()), Ipv4Addr::from_bits(0xc0a8_0000 + subnet.network().to_bits() % 0xffff))
        })
        .collect();
    operator.put_leases(&leases);
    node.says_that("routes", |said| said["count"] == leases.len());
    assert_eq!(site.hosts[0].namespace.routes().unwrap(), before);
    assert_eq!(before.iter().filter(|route| route.link.as_deref() == Some("flannel0")).count(), 1);
    // All leases again, by a list.
    node.child.signal(Signal::SIGTERM).unwrap();
    node.says("stopped");
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    node.says_that("routes", |said| said["count"] == leases.len());
    wait_until("the routes", || site.hosts[0].namespace.routes().unwrap() == before);
}
