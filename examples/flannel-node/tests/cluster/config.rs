//! Commands, options, and their errors.

use crate::etcd::{TOKEN_TTL, tied_to_its_parent};
use crate::hosts::{Attachment, Site};
use crate::node::{Node, program, run};
use crate::operator::{Operator, PREFIX};
use crate::wait_until;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn an_operator_sets_and_lists() {
    let site = Site::new(1, 1, true);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    let with = |more: &str, input: Option<&str>| {
        let args = [words(more), site.etcd.args()].concat();
        run(&site.switch, &args, input)
    };
    let (status, lines, _) = with("list", None);
    assert!(status.success());
    assert_eq!(lines, ["warning: there is no network config at /coreos.com/network/config"]);

    let (status, lines, errors) = with("set-config --network 100.96.0.0/16 --subnet-len 25 --port 7890", None);
    assert!(status.success(), "{errors}");
    let sentence = "the network is 100.96.0.0/16, leased as /25 from 100.96.0.128 to 100.96.255.128, UDP port 7890";
    assert_eq!(lines, [sentence]);
    let stored: serde_json::Value = serde_json::from_str(&operator.get(&format!("{PREFIX}/config")).unwrap()).unwrap();
    assert_eq!((&stored["Network"], &stored["SubnetLen"]), (&"100.96.0.0/16".into(), &25.into()));
    assert_eq!(stored["Backend"], serde_json::json!({"Type": "udp", "Port": 7890}));

    let before = operator.get(&format!("{PREFIX}/config"));
    for (wrong, words) in [
        ("set-config --network 100.96.0.0/29", "too small for four subnets"),
        ("set-config --network 100.96.0.0/16 --subnet-len 31", "at most 30"),
        ("set-config --network 100.96.0.0/16 --subnet-min 10.0.0.0", "outside of the network"),
        ("set-config --network 127.0.0.0/8", "are not carried"),
        ("set-config --network 224.1.0.0/16", "are not carried"),
        ("set-config --network 100.96.0.0/16 --port 0", "0 is not in 1..=65535"),
        ("set-config", "required"),
        ("set-config --file /nowhere", "/nowhere: No such file"),
        ("set-config --file -", "EOF while parsing"),
    ] {
        let (status, _, errors) = with(wrong, None);
        assert_eq!(status.code(), Some(2), "{wrong}: {errors}");
        assert!(errors.contains(words), "{wrong}: {errors}");
    }
    assert_eq!(operator.get(&format!("{PREFIX}/config")), before, "nothing wrong was written");

    // flannel's own JSON is accepted unchanged.
    let json = r#"{"Network":"100.96.0.0/16","Comment":"ours"}"#;
    let (status, ..) = with("set-config --file -", Some(json));
    assert!(status.success());
    assert_eq!(operator.get(&format!("{PREFIX}/config")).as_deref(), Some(json));

    operator.put_lease("100.96.7.0-24", [10, 168, 0, 7].into());
    operator.put_lease("100.97.7.0-24", [10, 168, 0, 8].into());
    operator.put_lease("nonsense", [10, 168, 0, 9].into());
    let (_, lines, _) = with("set-config --network 100.96.0.0/16", None);
    assert!(lines[1].starts_with("warning: 1 lease does not fit"), "{lines:?}");
    let (status, lines, _) = with("list --json", None);
    assert!(status.success());
    let lines: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines.iter().map(|line| line["event"].as_str().unwrap()).collect::<Vec<_>>(),
        ["config", "held", "held", "set_aside"]
    );
    let held = ["subnet", "next_hop", "seconds_left"].map(|field| lines[1][field].clone());
    assert_eq!(held, ["100.96.7.0/24".into(), "10.168.0.7:8285".into(), serde_json::Value::Null]);
}

/// An empty variable counts as unset, as in flannel, because files of variables list all of them.
#[test]
fn variables_that_are_empty_are_not_set() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut command = tied_to_its_parent("env");
    for name in ["PUBLIC_IP", "ETCD_CAFILE", "ETCD_USERNAME", "ETCD_PASSWORD", "SUBNET_LEASE_RENEW_MARGIN"] {
        command.arg(format!("FLANNELD_{name}="));
    }
    command.arg("FLANNELD_ETCD_PREFIX=/coreos.com/network/").arg(program());
    let mut node = Node::spawn_by(command, &site.hosts[0], &site.etcd, &[]);
    node.says("ready");
    assert_eq!(operator.leases().len(), 1);
}

/// Without a certificate or the right password, access is refused with an error.
#[test]
fn missing_credentials_are_reported() {
    let site = Site::new(1, 1, true);
    Operator::of(&site.etcd, &site.switch);
    let stranger: Vec<_> =
        site.etcd.args().into_iter().filter(|arg| !arg.contains("certfile") && !arg.contains("keyfile")).collect();
    let (status, _, errors) = run(&site.switch, &[words("list"), stranger].concat(), None);
    assert_eq!(status.code(), Some(1));
    assert!(errors.contains("--etcd-certfile"), "{errors}");

    let site = site_with_users();
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &["--etcd-username=root", "--etcd-password=wrong"]);
    let waiting = node.says("waiting");
    assert!(waiting["reason"].as_str().unwrap().contains("authentication failed"), "{waiting}");
    node.kill();
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &["--etcd-username=root", "--etcd-password=secret"]);
    node.says("ready");
    let mut operator = Operator::with_user(&site.etcd, &site.switch, Some(("root", "secret")));
    assert_eq!(operator.leases().len(), 1);
    operator.put_lease("100.96.177.0-24", [10, 168, 0, 77].into());
    node.says("routes");
}

fn site_with_users() -> Site {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    operator.act(async |client| {
        let _ = client.user_add("root", "secret", None).await;
        let _ = client.role_add("root").await;
        let _ = client.user_grant_role("root", "root").await;
        client.auth_enable().await.ok()
    });
    site
}

/// etcd tokens expire, and renewals are rare: with a margin of a minute, the first failed renewal would be the last
/// one.
#[test]
fn an_expired_token_is_requested_again() {
    let site = site_with_users();
    let rarely = format!("--subnet-lease-ttl={}", 60 + 5 * TOKEN_TTL.as_secs());
    let args = [&rarely, "--subnet-lease-renew-margin=1", "--etcd-username=root", "--etcd-password=secret"];
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &args);
    node.says("renewed");
    assert_eq!(node.count("not_renewed"), 0, "{:#?}", node.said);
}

#[test]
fn invalid_options_end_the_node_with_status_2_and_a_message() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let host = &site.hosts[0].namespace;
    let etcd = site.etcd.args();
    for (wrong, sentence) in [
        ("--iface-regex ^eth7$", "matches no interface of this host: lo"),
        ("--iface eth7", "there is no interface eth7"),
        ("--iface 10.168.0.99", "no interface of this host holds 10.168.0.99"),
        ("--public-ip 10.168.0.99", "no interface of this host holds 10.168.0.99"),
        ("--iface lo --public-ip nonsense", "invalid value 'nonsense'"),
        ("--iface eth0 --subnet-lease-renew-margin 0", "within 1 to 1439"),
        ("--iface eth0 --subnet-lease-renew-margin 1440", "within 1 to 1439"),
        ("--iface eth0 --etcd-endpoints localhost:2379", "is not a URL"),
        ("--iface eth0 --etcd-cafile /nowhere", "write https://"),
        ("--iface eth0 --frobnicate", "--frobnicate"),
    ] {
        let own = if wrong.contains("--etcd-endpoints") { Vec::new() } else { etcd.clone() };
        let (status, _, errors) = run(host, &[own, words(wrong)].concat(), None);
        assert_eq!(status.code(), Some(2), "{wrong}: {errors}");
        assert!(errors.contains(sentence), "{wrong}: {errors}");
    }
    let mut command = tied_to_its_parent("setpriv");
    command.arg("--bounding-set=-net_admin").arg(program());
    let mut powerless = Node::spawn_by(command, &site.hosts[0], &site.etcd, &[]);
    let error = powerless.says("error");
    assert!(error["reason"].as_str().unwrap().contains("CAP_NET_ADMIN"), "{error}");
    assert_eq!(powerless.ends().code(), Some(2));
    assert_eq!(operator.leases(), [], "nothing was leased for it");

    // A second node on the same host finds the port in use, and leases and changes nothing.
    let mut first = Node::start(&site.hosts[0], &site.etcd);
    let held = operator.leases();
    let (status, _, errors) = run(host, &[etcd, words("--iface eth0 --subnet-file /dev/null/no")].concat(), None);
    assert_eq!(status.code(), Some(2), "{errors}");
    assert!(errors.contains("8285"), "{errors}");
    assert_eq!(operator.leases(), held);
    // The node reports unsuitable settings of the host.
    let mut another = Node::spawn(&site.hosts[1], &site.etcd, &[]);
    another.says("ready");
    assert_eq!(another.count("finding"), 0, "{:#?}", another.said);
    site.hosts[1].namespace.sysctl("net/ipv4/ip_forward", "0").unwrap();
    another.stop();
    let mut another = Node::spawn(&site.hosts[1], &site.etcd, &[]);
    let finding = another.says("finding");
    assert!(finding["says"].as_str().unwrap().contains("sysctl"), "{finding}");
    another.says("ready");
    another.stop();

    // The device is deleted.
    host.delete_link("flannel0").unwrap();
    let error = first.says("error");
    assert!(error["reason"].as_str().unwrap().contains("flannel0 was deleted"), "{error}");
    assert_eq!(first.ends().code(), Some(1));
    let again = Node::start(&site.hosts[0], &site.etcd);
    // The device is set down and up, and its route is restored.
    host.set_down("flannel0").unwrap();
    host.set_up("flannel0").unwrap();
    let overlay = "100.96.0.0/16".parse().unwrap();
    wait_until("the overlay's route", || host.routes().unwrap().iter().any(|route| route.destination == overlay));
    again.stop();
}

/// R71: a node refuses such a network too, since another program may have written it. A network inside 240/4 or
/// 169.254/16 is valid.
#[test]
fn r71_a_network_that_cannot_carry_anything_is_refused() {
    let site = Site::new(2, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"127.0.0.0/8"}"#);
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &[]);
    node.says_that("waiting", |said| said["reason"].as_str().unwrap().contains("are not carried"));
    operator.set_config(r#"{"Network":"240.9.0.0/16"}"#);
    node.says("ready");
    let other = Node::start(&site.hosts[1], &site.etcd);
    let pods =
        [site.hosts[0].add_pod(node.lease(), Attachment::Veth), site.hosts[1].add_pod(other.lease(), Attachment::Veth)];
    pods[0].must_reach(&pods[1]);
    pods[1].must_reach(&pods[0]);
}
