//! Several leases with one host's address, and hosts whose address is another one's or has changed.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::Value;

use crate::SOON;
use crate::hosts::{Attachment, Site};
use crate::node::Node;
use crate::operator::{Operator, subnets};

const RESERVED: &str = "100.96.200.0-24";

/// Returns a bare UDP packet between two addresses, without checksums of UDP.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + payload.len()).unwrap();
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header.extend(source.octets().into_iter().chain(destination.octets()));
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend([0x13, 0x88, 0x17, 0x70]);
    header.extend((length - 20).to_be_bytes());
    header.extend([0, 0]);
    header.extend(payload);
    header
}

fn is_further(said: &Value, ended: bool) -> bool {
    said["subnet"] == "100.96.200.0/24" && said["ended"] == ended
}

/// R66: an operator reserves a second subnet for a host while its node runs. It is the host's until the key is gone.
#[test]
fn r66_packets_for_both_leases_of_a_host_are_delivered() {
    let site = Site::new(3, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let [first, second, plain] = &site.hosts[..] else { panic!("three hosts") };
    let mut node = Node::start(first, &site.etcd);
    let other = Node::start(second, &site.etcd);
    operator.put_lease(RESERVED, first.address);
    node.says_that("further_subnet", |said| is_further(said, false));
    let reserved: Ipv4Net = "100.96.200.0/24".parse().unwrap();
    let pods = [node.lease(), reserved].map(|lease| first.add_pod(lease, Attachment::Veth));
    let far = second.add_pod(other.lease(), Attachment::Veth);
    for pod in &pods {
        far.must_reach(pod);
        pod.must_reach(&far);
    }
    // The kernel delivers between the two by itself.
    pods[0].must_reach(&pods[1]);
    assert!(
        std::fs::read_to_string(first.subnet_file())
            .unwrap()
            .contains(&format!("{}", node.lease().hosts().next().unwrap()))
    );

    // A sender that still knows the lease after it is gone.
    operator.put_lease("100.96.207.0-24", plain.address);
    node.says_that("routes", |said| said["set"].to_string().contains("100.96.207.0/24"));
    let socket = plain.namespace.enter(|| UdpSocket::bind((plain.address, 8285))).unwrap();
    let inner = pods[1].namespace.enter(|| UdpSocket::bind((pods[1].address, 6000))).unwrap();
    inner.set_read_timeout(Some(SOON)).unwrap();
    let datagram = packet([100, 96, 207, 9].into(), pods[1].address, b"hello");
    socket.send_to(&datagram, (first.address, 8285)).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(inner.recv_from(&mut buffer).unwrap(), (5, ([100, 96, 207, 9], 5000).into()));

    operator.delete(&subnets(RESERVED));
    node.says_that("further_subnet", |said| is_further(said, true));
    inner.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.send_to(&datagram, (first.address, 8285)).unwrap();
    assert!(inner.recv_from(&mut buffer).is_err(), "it is no longer delivered");
    far.must_reach(&pods[0]);

    // It is known from the first listing too.
    operator.put_lease(RESERVED, first.address);
    node.says_that("further_subnet", |said| is_further(said, false));
    let last = node.stop();
    assert_eq!(last["decap"]["dropped"]["foreign_destination"], 1, "{last}");
    let mut node = Node::start(first, &site.etcd);
    node.says_that("further_subnet", |said| is_further(said, false));
    far.must_reach(&pods[1]);
    node.listen(Duration::from_millis(100));
    assert_eq!(node.count("warning"), 0, "{:#?}", node.said);
}

/// Two nodes that started at once and have one address, but a subnet each. Both say so at once, and keep theirs.
#[test]
fn a_second_node_with_this_address_is_reported_at_once() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let own = operator.leases();
    operator.put_lease_for(RESERVED, site.hosts[0].address, 3600);
    let is_about_it = |said: &Value| said["reason"].to_string().contains("another node leases 100.96.200.0/24");
    let warning = node.says_that("warning", is_about_it);
    assert!(warning["reason"].to_string().contains("10.168.0.2"), "{warning}");
    // Its renewals change no route, and are reported again.
    operator.put_lease_for(RESERVED, site.hosts[0].address, 3600);
    node.says_that("warning", is_about_it);
    assert_eq!((node.count("routes"), node.count("renewed")), (0, 0), "{:#?}", node.said);
    assert!(operator.leases().contains(&own[0]), "it keeps its own");
}

/// The subnet of an earlier run is leased to another address, which may be the former one of this host.
#[test]
fn a_host_with_a_new_address_names_its_old_lease() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let host = &site.hosts[0];
    let node = Node::start(host, &site.etcd);
    let old = node.lease();
    node.stop();
    host.namespace.add_address("eth0", Ipv4Net::new_assert([10, 168, 0, 77].into(), 24)).unwrap();
    let mut node = Node::spawn(host, &site.etcd, &["--iface=10.168.0.77"]);
    let warning = node.says("warning");
    let reason = warning["reason"].as_str().unwrap();
    assert!(reason.contains("is leased to 10.168.0.2"), "{reason}");
    let key = subnets(&format!("{}-24", old.network()));
    assert!(reason.contains(&format!("etcdctl del '{key}'")), "{reason}");
    node.says("ready");
    assert!(node.lease() != old && node.how() == "which is new");
    assert_eq!(operator.leases().len(), 2);
}
