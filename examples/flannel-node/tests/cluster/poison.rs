//! Invalid keys and values beside valid ones.

use ipnet::Ipv4Net;

use crate::hosts::{Attachment, Site};
use crate::node::Node;
use crate::operator::{Operator, PREFIX, subnets};

#[test]
fn invalid_keys_are_skipped_one_by_one() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    operator.put_lease("100.96.170.0-24", [10, 168, 0, 70].into());
    // Some exist before the node starts, some appear later.
    operator.put(&subnets("100.96.171.0-24"), "\u{0}not JSON");
    operator.put(&subnets("not-a-subnet"), r#"{"PublicIP":"10.168.0.71"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    node.says_that("routes", |said| said["count"] == 1);
    let asides: Vec<String> =
        node.said.iter().filter(|said| said["event"] == "set_aside").map(|said| said["reason"].to_string()).collect();
    assert_eq!(asides.len(), 2, "{asides:?}");
    assert!(
        asides.iter().any(|aside| aside.contains("100.96.171.0-24") && aside.contains("invalid JSON")),
        "{asides:?}"
    );
    assert!(asides.iter().any(|aside| aside.contains("not-a-subnet")), "{asides:?}");

    let vxlan = r#"{"PublicIP":"10.168.0.72","BackendType":"vxlan","BackendData":{"VtepMAC":"aa:bb:cc:dd:ee:ff"}}"#;
    operator.put(&subnets("100.96.172.0-24"), vxlan);
    let aside = node.says("set_aside");
    assert!(aside["reason"].as_str().unwrap().contains("vxlan"), "{aside}");

    // Each contradiction is reported with its reason.
    let own = node.lease();
    let inside_own = format!("{}-25", own.network());
    let around_own = format!("{}-23", Ipv4Net::new(own.network(), 23).unwrap().network());
    for (key, host, words) in [
        (inside_own.as_str(), "10.168.0.73", "belongs to this host's own"),
        ("100.96.174.0-24", "100.96.170.9", "inside the overlay network"),
        ("9.9.9.0-24", "10.168.0.75", "no part of the overlay network"),
        (&around_own, "10.168.0.2", "owns a part of it"),
        ("100.96.177.0-24", "0.0.0.0", "unspecified address"),
    ] {
        operator.put_lease(key, host.parse().unwrap());
        let conflict = node.says_that("conflict", |said| said["ended"] == false);
        assert!(conflict["conflict"].as_str().unwrap().contains(words), "{conflict}");
        operator.delete(&subnets(key));
        node.says_that("conflict", |said| said["ended"] == true);
    }

    // All valid leases have routes. A lease that becomes invalid loses only its own route.
    operator.put_lease("100.96.178.0-24", [10, 168, 0, 78].into());
    node.says_that("routes", |said| said["count"] == 2);
    operator.put(&subnets("100.96.170.0-24"), "{}");
    node.says_that("routes", |said| said["count"] == 1 && said["deleted"].to_string().contains("100.96.170.0/24"));
    operator.put_lease("100.96.170.0-24", [10, 168, 0, 79].into());
    node.says_that("routes", |said| said["count"] == 2 && said["set"].to_string().contains("10.168.0.79"));
}

/// The own key has an invalid value. The node writes its lease again.
#[test]
fn a_node_restores_its_own_lease() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut nodes = [0, 1].map(|number| Node::start(&site.hosts[number], &site.etcd));
    let pods = [0, 1].map(|number| site.hosts[number].add_pod(nodes[number].lease(), Attachment::Veth));
    pods[0].must_reach(&pods[1]);
    let key = subnets(&format!("{}-24", nodes[0].lease().network()));
    let good = operator.get(&key).unwrap();
    // With an end, and without one.
    operator.overwrite(&key, "rubbish");
    nodes[0].says("renewed");
    assert_eq!(operator.get(&key).as_ref(), Some(&good));
    operator.put(&key, "rubbish");
    nodes[0].says("renewed");
    assert_eq!(operator.get(&key), Some(good));
    assert!(operator.leases().iter().all(|(.., grant)| *grant != 0));
    nodes[1].says_that("routes", |said| said["deleted"] == serde_json::json!([]));
    pods[0].must_reach(&pods[1]);
}

/// A listing of four such values exceeds gRPC's limit for one message.
#[test]
fn values_of_any_length_do_not_hide_a_lease() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let long = "x".repeat(1_500_000);
    for number in 201..205 {
        operator.put(&subnets(&format!("100.96.{number}.0-24")), &long);
    }
    operator.put_lease("100.96.207.0-24", [10, 168, 0, 7].into());
    operator.put_lease("100.96.250.0-24", [10, 168, 0, 25].into());
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let routes = node.says("routes");
    assert_eq!(
        routes["set"],
        serde_json::json!(["100.96.207.0/24 via 10.168.0.7:8285", "100.96.250.0/24 via 10.168.0.25:8285"])
    );
    assert_eq!(node.count("set_aside"), 4, "{:#?}", node.said);
    // One more appears during the watch.
    operator.put(&subnets("100.96.205.0-24"), &long);
    node.says_that("set_aside", |said| said["reason"].as_str().unwrap().contains("100.96.205.0-24"));
}

/// The cluster used another backend before: hosts keep their subnets when they change.
#[test]
fn a_host_that_changes_its_backend_keeps_its_subnet() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.put(&format!("{PREFIX}/config"), r#"{"Network":"100.96.0.0/16","Backend":{"Type":"vxlan"}}"#);
    let value = r#"{"PublicIP":"10.168.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1}}"#;
    operator.put(&subnets("100.96.9.0-24"), value);
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &[]);
    node.says_that("waiting", |said| said["reason"].as_str().unwrap().contains("\"vxlan\"; only udp is supported"));
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    node.says("ready");
    assert_eq!((node.lease().to_string().as_str(), node.how()), ("100.96.9.0/24", "which had it already"));
    let value = operator.get(&subnets("100.96.9.0-24")).unwrap();
    assert_eq!(value, r#"{"PublicIP":"10.168.0.2","PublicIPv6":null}"#);
}
