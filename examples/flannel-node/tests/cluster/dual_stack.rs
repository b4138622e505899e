//! A dual-stack network: leases of both families, and packets of both.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::Ipv6Net;
use testbed::probe::{EchoV6, PingV6, ping_v6};

use crate::hosts::{Attachment, Host, Pod, Site};
use crate::node::{Node, run};
use crate::operator::{Operator, subnets};
use crate::wait_until;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd97::/48"}"#;

/// The IPv6 address of a host in the underlay, if it is given one.
fn underlay(number: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x168, 0, 0, 0, 0, 0, 2 + number)
}

fn add_underlay(host: &Host, number: u16) {
    host.namespace.add_ipv6_address("eth0", Ipv6Net::new_assert(underlay(number), 64)).unwrap();
}

fn lease_v6(node: &Node) -> Ipv6Net {
    let lease = node.said.iter().rfind(|said| said["event"] == "lease").expect("a lease");
    lease["subnet_v6"].as_str().expect("a text").parse().expect("a subnet")
}

fn at(subnet: Ipv6Net, last: u128) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet.network().to_bits() + last)
}

/// Creates a pod with the third address of each subnet.
fn add_pod(host: &Host, node: &Node) -> (Pod, Ipv6Addr) {
    let pod = host.add_pod(node.lease(), Attachment::Veth);
    let lease = lease_v6(node);
    host.namespace.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    host.namespace.add_ipv6_address("pod0", Ipv6Net::new_assert(at(lease, 1), 64)).unwrap();
    pod.namespace.add_ipv6_address("eth0", Ipv6Net::new_assert(at(lease, 2), 64)).unwrap();
    pod.namespace.add_ipv6_route(Ipv6Net::default(), Some(at(lease, 1)), "eth0").unwrap();
    (pod, at(lease, 2))
}

fn all_reach_all(pods: &[(Pod, Ipv6Addr)]) {
    for (from, own) in pods {
        for (to, address) in pods.iter().filter(|(_, address)| address != own) {
            from.must_reach(to);
            wait_until(&format!("{own} to reach {address}"), || {
                let outcome = from.namespace.enter(|| ping_v6(*address, PingV6::default()));
                matches!(outcome, Ok(EchoV6::Reply { from }) if from == *address)
            });
        }
    }
}

/// The texts are those that flanneld writes in such a network (pkg/subnet), except that flanneld's udp mode has no
/// PublicIPv6. Two hosts have IPv6 in the underlay. Datagrams to the third go over IPv4.
#[test]
fn pods_of_a_dual_stack_cluster_reach_each_other_by_both_families() {
    let site = Site::new(3, 3, true);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(CONFIG);
    site.hosts[..2].iter().zip(0..).for_each(|(host, number)| add_underlay(host, number));
    let mut nodes: Vec<_> = site.hosts.iter().map(|host| Node::start(host, &site.etcd)).collect();
    let pods: Vec<_> = site.hosts.iter().zip(&nodes).map(|(host, node)| add_pod(host, node)).collect();
    all_reach_all(&pods);

    let keys: Vec<_> =
        nodes.iter().map(|node| format!("{}-24&{}-64", node.lease().network(), lease_v6(node).network())).collect();
    let values = [r#""fd00:168::2""#, r#""fd00:168::3""#, "null"];
    let mut expected: Vec<_> = keys
        .iter()
        .zip(&site.hosts)
        .zip(values)
        .map(|((key, host), ipv6)| (key.clone(), format!(r#"{{"PublicIP":"{}","PublicIPv6":{ipv6}}}"#, host.address)))
        .collect();
    expected.sort();
    let held: Vec<_> = operator.leases().into_iter().map(|(key, value, _)| (key, value)).collect();
    assert_eq!(held, expected);
    for (node, host) in nodes.iter().zip(&site.hosts) {
        let bridge = Ipv4Addr::from_bits(node.lease().network().to_bits() + 1);
        let bridge_v6 = at(lease_v6(node), 1);
        let env = std::fs::read_to_string(host.subnet_file()).unwrap();
        let ipv4 = format!("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET={bridge}/24\n");
        let ipv6 = format!("FLANNEL_IPV6_NETWORK=fd97::/48\nFLANNEL_IPV6_SUBNET={bridge_v6}/64\n");
        assert_eq!(env, format!("{ipv4}{ipv6}FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"));
    }
    // Each pair of hosts uses IPv6 for IPv6 subnets if both have it.
    let [six, four] = [1, 2].map(|other: usize| lease_v6(&nodes[other]));
    nodes[0].says_that("routes", |_| true);
    wait_until("both routes", || {
        nodes[0].listen(Duration::from_millis(50));
        let set: String = nodes[0].said.iter().map(|said| said["set"].to_string()).collect();
        set.contains(&format!("{six} via [fd00:168::3]:8285")) && set.contains(&format!("{four} via 10.168.0.4:8285"))
    });
    assert_eq!(nodes.iter().map(|node| node.count("conflict")).sum::<usize>(), 0, "{:#?}", nodes[0].said);

    // The file alone gives both subnets again, and without the file the lease does.
    for how in ["as in an earlier run", "which had it already"] {
        let node = nodes.remove(0);
        let both = (node.lease(), lease_v6(&node));
        node.stop();
        if how == "as in an earlier run" {
            operator.delete(&subnets(&keys[0]));
        } else {
            std::fs::remove_file(site.hosts[0].subnet_file()).unwrap();
        }
        let again = Node::start(&site.hosts[0], &site.etcd);
        assert_eq!((again.lease(), lease_v6(&again), again.how()), (both.0, both.1, how));
        assert_eq!(again.count("finding"), 0, "{:#?}", again.said);
        nodes.insert(0, again);
        all_reach_all(&pods);
    }
}

/// A packet that an IPv6 peer's path does not carry is answered with the path's MTU: the outer header is longer.
#[test]
fn the_mtu_over_ipv6_is_less_and_follows_the_interface() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(CONFIG);
    site.hosts.iter().zip(0..).for_each(|(host, number)| add_underlay(host, number));
    let mut nodes: Vec<_> = site.hosts.iter().map(|host| Node::start(host, &site.etcd)).collect();
    let pods: Vec<_> = site.hosts.iter().zip(&nodes).map(|(host, node)| add_pod(host, node)).collect();
    all_reach_all(&pods);
    for (outer, inner) in [(1500, 1452), (1400, 1352)] {
        site.hosts[0].namespace.set_mtu("eth0", outer).unwrap();
        if outer == 1400 {
            nodes[0].says_that("link", |said| said["state"].to_string().contains("at most 1372 bytes"));
        }
        let echo = |len: usize| {
            pods[0].0.namespace.forget_ipv6_path_mtus().unwrap();
            let settings = PingV6 { payload_len: len - 48, ..PingV6::default() };
            pods[0].0.namespace.enter(|| ping_v6(pods[1].1, settings)).unwrap()
        };
        wait_until("a packet that fits to be answered", || matches!(echo(inner), EchoV6::Reply { .. }));
        let answer = echo(inner + 1);
        let EchoV6::Error { kind: 2, mtu, .. } = answer else { panic!("no packet too big: {answer:?}") };
        assert_eq!(mtu as usize, inner);
    }
}

/// The kernel removes the IPv6 addresses of an interface that goes down.
#[test]
fn an_ipv6_address_that_is_lost_is_reported_and_serves_again_when_it_is_back() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(CONFIG);
    site.hosts.iter().zip(0..).for_each(|(host, number)| add_underlay(host, number));
    let mut nodes: Vec<_> = site.hosts.iter().map(|host| Node::start(host, &site.etcd)).collect();
    let pods: Vec<_> = site.hosts.iter().zip(&nodes).map(|(host, node)| add_pod(host, node)).collect();
    all_reach_all(&pods);
    site.hosts[0].namespace.set_down("eth0").unwrap();
    site.hosts[0].namespace.set_up("eth0").unwrap();
    nodes[0].says_that("link", |said| said["state"].to_string().contains("eth0 has lost fd00:168::2"));
    add_underlay(&site.hosts[0], 0);
    all_reach_all(&pods);
}

/// Two hosts with one IPv4 address that differ in IPv6 would replace each other's value. Each writes once in reply.
#[test]
fn two_hosts_that_differ_in_ipv6_alone_do_not_write_endlessly() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(CONFIG);
    site.hosts.iter().zip(0..).for_each(|(host, number)| add_underlay(host, number));
    let mut first = Node::start(&site.hosts[0], &site.etcd);
    let address = format!("--public-ip={}", site.hosts[0].address);
    let mut second = Node::spawn(&site.hosts[1], &site.etcd, &["--iface=eth0", &address]);
    second.says("ready");
    assert_eq!((second.lease(), lease_v6(&second)), (first.lease(), lease_v6(&first)));
    for node in [&mut first, &mut second] {
        node.says_that("warning", |said| said["reason"].to_string().contains("somebody else wrote"));
    }
    std::thread::sleep(Duration::from_secs(1));
    let key = subnets(&operator.leases()[0].0);
    let written = operator.revision(&key);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(operator.revision(&key), written, "neither writes any more");
}

/// A lease without IPv6 would end every flanneld that allocates later. The host keeps its IPv4 subnet.
#[test]
fn a_network_that_becomes_dual_stack_replaces_leases_without_ipv6() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"10.5.0.0/16"}"#);
    let node = Node::start(&site.hosts[0], &site.etcd);
    let subnet = node.lease();
    node.stop();
    operator.set_config(CONFIG);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!(node.lease(), subnet);
    let deleted = format!("deleted the lease {}-24 of this host", subnet.network());
    assert!(node.said.iter().any(|said| said["reason"].to_string().contains(&deleted)), "{:#?}", node.said);
    let key = format!("{}-24&{}-64", subnet.network(), lease_v6(&node).network());
    assert_eq!(operator.leases().into_iter().map(|(key, ..)| key).collect::<Vec<_>>(), [key]);
    // A lease of flanneld, which has no IPv6 address.
    operator.put_lease("10.5.34.0-24&fd97:0:0:59::-64", [10, 168, 0, 9].into());
    node.says_that("routes", |said| said["set"].to_string().contains("fd97:0:0:59::/64 via 10.168.0.9:8285"));
    operator.delete(&subnets("10.5.34.0-24&fd97:0:0:59::-64"));
    node.says_that("routes", |said| said["deleted"].to_string().contains("fd97:0:0:59::/64"));
    node.stop();

    // And back.
    operator.set_config(r#"{"Network":"10.5.0.0/16"}"#);
    let node = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!(node.lease(), subnet);
    assert_eq!(operator.leases()[0].0, format!("{}-24", subnet.network()));
}

/// Of the IPv6 subnets only one is free, and the other host leases it beside another IPv4 subnet.
#[test]
fn an_ipv6_subnet_is_leased_once() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(
        r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd97::/48","IPv6SubnetMin":"fd97:0:0:7::",
            "IPv6SubnetMax":"fd97:0:0:8::"}"#,
    );
    operator.put_lease("10.5.200.0-24&fd97:0:0:7::-64", [10, 168, 0, 9].into());
    let node = Node::start(&site.hosts[0], &site.etcd);
    assert_eq!(lease_v6(&node), "fd97:0:0:8::/64".parse().unwrap());
    let mut late = Node::spawn(&site.hosts[1], &site.etcd, &[]);
    let waiting = late.says("waiting");
    assert!(waiting["reason"].to_string().contains("no /64 is free from fd97:0:0:7:: to fd97:0:0:8::"), "{waiting}");
    assert_eq!(operator.leases().len(), 2);
}

#[test]
fn an_ipv6_address_selects_the_interface_and_is_published() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(CONFIG);
    let host = &site.hosts[0];
    let mut node = Node::spawn(host, &site.etcd, &["--iface=eth0", "--public-ipv6=fd00:168::99"]);
    let error = node.says("error");
    assert!(error["reason"].to_string().contains("needs an IPv6 address of eth0, which has none"), "{error}");
    assert_eq!(node.ends().code(), Some(2));
    add_underlay(host, 0);
    add_underlay(host, 7);
    for (args, public) in [
        (&["--iface=fd00:168::9"][..], "fd00:168::9"),
        (&["--iface-regex=fd00:168::9"], "fd00:168::9"),
        (&["--iface=eth0", "--public-ipv6=fd00:168::99"], "fd00:168::99"),
    ] {
        let mut node = Node::spawn(host, &site.etcd, args);
        node.says("ready");
        let leases = operator.leases();
        let value = format!(r#"{{"PublicIP":"10.168.0.2","PublicIPv6":"{public}"}}"#);
        assert_eq!(leases.iter().map(|lease| &lease.1).collect::<Vec<_>>(), [&value], "{args:?}");
        node.stop();
    }
    operator.set_config(r#"{"Network":"10.5.0.0/16"}"#);
    let mut node = Node::spawn(host, &site.etcd, &["--iface=eth0", "--public-ipv6=fd00:168::99"]);
    node.says_that("warning", |said| said["reason"].to_string().contains("--public-ipv6 has no effect"));
    node.says("ready");
}

#[test]
fn commands_handle_a_dual_stack_network() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    let host = &site.hosts[0];
    let command = |line: &str| {
        let words = line.split(' ').map(str::to_owned).chain(site.etcd.args());
        run(&host.namespace, &words.collect::<Vec<_>>(), None)
    };
    let (status, _, errors) =
        command("set-config --network 10.5.0.0/16 --ipv6-network fd97::/124 --ipv6-subnet-len 125");
    assert_eq!(status.code(), Some(2), "{errors}");
    assert!(errors.contains("IPv6 fields"), "{errors}");
    let line = "set-config --network 10.5.0.0/16 --ipv6-network fd97::/48 --ipv6-subnet-min fd97:0:0:50::";
    let (status, lines, errors) = command(line);
    assert!(status.success(), "{errors}");
    assert!(lines[0].contains("and fd97::/48, leased as /64 from fd97:0:0:50:: to fd97:0:0:ffff::"), "{lines:?}");

    operator.put_lease("10.5.33.0-24", [10, 168, 0, 8].into());
    let value = r#"{"PublicIP":"10.168.0.9","PublicIPv6":"fd00:168::9"}"#;
    operator.put(&subnets("10.5.34.0-24&fd97:0:0:59::-64"), value);
    let (_, lines, _) = command(line);
    assert!(lines[1].contains("1 lease does not fit"), "{lines:?}");
    let (status, lines, _) = command("list --json");
    assert!(status.success());
    let held: serde_json::Value = serde_json::from_str(&lines[2]).unwrap();
    let fields = ["subnet", "next_hop", "subnet_v6", "next_hop_v6"].map(|field| held[field].as_str().unwrap());
    assert_eq!(fields, ["10.5.34.0/24", "10.168.0.9:8285", "fd97:0:0:59::/64", "[fd00:168::9]:8285"]);
    let alone: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert!(alone["subnet_v6"].is_null() && alone["next_hop"] == "10.168.0.8:8285", "{alone}");

    // The check knows the families of the network.
    let check = |command: &dyn Fn(&str) -> _| -> (std::process::ExitStatus, Vec<String>, String) {
        command("--iface eth0 --subnet-file /nowhere/subnet.env check")
    };
    let (status, lines, _) = check(&command);
    assert_eq!(status.code(), Some(1), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("net.ipv6.conf.all.forwarding")), "{lines:?}");
    host.namespace.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    let (status, lines, errors) = check(&command);
    assert!(status.success(), "{lines:?} {errors}");
    assert!(lines.last().unwrap().contains("ready to carry 10.5.1.0/24"), "{lines:?}");
    host.namespace.sysctl("net/ipv4/ip_forward", "0").unwrap();
    let (status, lines, _) = check(&command);
    assert_eq!(status.code(), Some(1), "{lines:?}");
}
