//! Accepted and refused senders, and the reports about refused ones.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use testbed::Injection;

use crate::hosts::Site;
use crate::node::Node;
use crate::operator::Operator;

/// Returns an ICMP echo request of 28 bytes.
fn ping(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(from.octets().into_iter().chain(to.octets()));
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    packet
}

/// Checks a host whose packets come from another address than its lease's, usually because of NAT.
#[test]
fn r64_r68_senders_that_no_lease_names_are_told_or_trusted() {
    for (check, behind_nat, port, delivered) in [
        ("address", true, 8285, 0),
        ("off", true, 4321, 10),
        // The port matters only for `address-port`.
        ("address", false, 4321, 10),
        ("address-port", false, 4321, 0),
        ("address-port", false, 8285, 10),
    ] {
        let site = Site::new(2, 1, false);
        let mut operator = Operator::of(&site.etcd, &site.switch);
        operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
        let check_is = format!("--peer-check={check}");
        let mut node = Node::spawn(&site.hosts[0], &site.etcd, &[&check_is]);
        node.says("ready");
        let sender = site.hosts[1].address;
        let leased = if behind_nat { Ipv4Addr::new(10, 168, 0, 77) } else { sender };
        operator.put_lease("100.96.170.0-24", leased);
        node.says("routes");
        let source = Ipv4Addr::new(100, 96, 170, 2);
        let target = Ipv4Addr::from_bits(node.lease().network().to_bits() + 2);
        let socket = site.hosts[1].namespace.enter(|| UdpSocket::bind((sender, port))).unwrap();
        for _ in 0..10 {
            socket.send_to(&ping(source, target), (site.hosts[0].address, 8285)).unwrap();
        }
        if delivered == 0 {
            let stranger = node.says("stranger");
            let expected = (format!("{sender}:{port}"), source.to_string(), format!("{leased}:8285"));
            let shown = |field: &str| stranger[field].as_str().unwrap().to_owned();
            assert_eq!((shown("from"), shown("inner_source"), shown("next_hop")), expected);
        }
        node.listen(Duration::from_millis(500));
        assert_eq!(node.count("stranger"), usize::from(delivered == 0), "{check}");
        let last = node.stop();
        assert_eq!(last["decap"]["forwarded"], delivered, "{check} {port}: {last}");
        assert_eq!(
            last["decap"]["dropped"]["unknown_peer"].as_u64().unwrap_or(0),
            10 - delivered,
            "{check} {port}: {last}"
        );
    }
}

/// The stopped node does not read its device, so the queue overflows. The node's own counters cannot include these
/// packets.
#[test]
fn r72_packets_that_the_queue_of_the_device_dropped_are_shown() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    operator.put_lease("100.96.170.0-24", [10, 168, 0, 77].into());
    node.says("routes");
    node.child.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
    let socket = site.hosts[0].namespace.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    for _ in 0..1000 {
        socket.send_to(b"to a pod", "100.96.170.2:9").unwrap();
    }
    node.child.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let last = node.stop();
    let (dropped, read) = (last["tun_queue_dropped"].as_u64().unwrap(), last["encap"]["in"].as_u64().unwrap());
    assert!(dropped >= 400 && (1000..1020).contains(&(dropped + read)), "{last}");
    assert!(last["message"].as_str().unwrap().contains("by the TUN device's queue"), "{last}");
}

/// The datagrams leave by another interface, whose MTU applies.
#[test]
fn an_address_on_lo_has_the_mtu_of_the_way_out() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let host = &site.hosts[0];
    host.namespace.add_address("lo", "10.169.0.9/32".parse().unwrap()).unwrap();
    host.namespace.set_mtu("eth0", 1400).unwrap();
    for args in [vec!["--iface=10.169.0.9"], vec!["--iface=eth0", "--public-ip=10.169.0.9"]] {
        let mut node = Node::spawn(host, &site.etcd, &args);
        assert_eq!(node.says("ready")["mtu"], 1372, "{args:?}");
        assert_eq!(operator.leases()[0].1, r#"{"PublicIP":"10.169.0.9","PublicIPv6":null}"#);
        node.stop();
    }
}

/// A sandbox without some system calls. The node reports those that it can replace once, and ends after ten seconds
/// without the others.
#[test]
fn fault_54_calls_that_fail_every_time_are_reported_and_end_the_node() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let (host, process) = (&site.hosts[0].namespace, node.child.id());
    let socket = host.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let send = || socket.send_to(b"from nobody", (site.hosts[0].address, 8285)).unwrap();
    let missing = Injection::begin(host, process, &[("recvmmsg", "error=ENOSYS")]).unwrap();
    send();
    let warning = node.says("warning");
    assert!(warning["reason"].as_str().unwrap().contains("lacks recvmmsg"), "{warning}");
    drop(missing);
    let _forbidden = Injection::begin(host, process, &[("recvmmsg,recvmsg", "error=EPERM")]).unwrap();
    send();
    let error = node.says("error");
    assert!(error["reason"].as_str().unwrap().contains("Operation not permitted"), "{error}");
    assert_eq!(node.ends().code(), Some(1));
    // The check for packets that wait in vain may notice it too.
    let is_stuck = |said: &&serde_json::Value| said["reason"].to_string().contains("forwarding is stuck");
    let stuck = node.said.iter().filter(is_stuck).count();
    assert_eq!(node.count("warning") - stuck, 2, "{:#?}", node.said);
}
