//! Firewall rules: hosts that drop forwarded packets, masquerading, and the end of the rules.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testbed::Namespace;

use crate::etcd::tied_to_its_parent;
use crate::hosts::{Attachment, Host, Pod, Site};
use crate::node::{Node, program, run};
use crate::operator::Operator;
use crate::tls::shown;
use crate::wait_until;

/// The rules are checked each second.
const RESYNC: [&str; 1] = ["--iptables-resync=1"];

fn site(hosts: u8) -> Site {
    let site = Site::new(hosts, 1, false);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    site
}

/// Runs commands of a shell and returns their output. iptables-legacy locks a file of its own, which only root can write.
fn shell(host: &Host, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-ec", script]).env("XTABLES_LOCKFILE", lock_file(host)).stdin(Stdio::null());
    let output = host.namespace.enter(|| command.output()).unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn lock_file(host: &Host) -> std::path::PathBuf {
    host.run.path().join("xtables.lock")
}

fn ruleset(host: &Host) -> String {
    shell(host, "nft -s list ruleset 2>/dev/null")
}

fn start(host: &Host, site: &Site, more: &[&str]) -> Node {
    let mut command = tied_to_its_parent(program());
    command.env("XTABLES_LOCKFILE", lock_file(host));
    start_by(command, host, site, more)
}

fn start_by(command: Command, host: &Host, site: &Site, more: &[&str]) -> Node {
    let mut node = Node::spawn_by(command, host, &site.etcd, &[&RESYNC[..], more].concat());
    node.says("ready");
    node
}

fn pods(site: &Site, nodes: &[Node]) -> Vec<Pod> {
    site.hosts.iter().zip(nodes).map(|(host, node)| host.add_pod(node.lease(), Attachment::Veth)).collect()
}

/// Sends a datagram and returns the sender that the receiver sees. The receiver answers, and the answer must come back.
fn seen_by(receiver: &Namespace, at: SocketAddr, sender: &Namespace, to: SocketAddr) -> SocketAddr {
    let receiver = receiver.enter(|| UdpSocket::bind(at)).unwrap();
    let sender = sender.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    for socket in [&receiver, &sender] {
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    }
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < crate::SOON, "no datagram and answer between {at} and {to}");
        sender.send_to(b"?", to).unwrap();
        let mut byte = [0];
        let Ok((_, seen)) = receiver.recv_from(&mut byte) else { continue };
        receiver.send_to(b"!", seen).unwrap();
        if let Ok((_, from)) = sender.recv_from(&mut byte) {
            assert_eq!((from, byte), (to, *b"!"), "the translation is undone for the answer");
            return seen;
        }
    }
}

/// The proof of the forward rules: Docker's policy on every host.
#[test]
fn pods_reach_pods_on_hosts_that_drop_forwarded_packets() {
    let site = site(2);
    for host in &site.hosts {
        shell(host, "iptables-nft -P FORWARD DROP");
    }
    let before = ruleset(&site.hosts[0]);
    let mut nodes: Vec<_> = site.hosts.iter().map(|host| start(host, &site, &[])).collect();
    let pods = pods(&site, &nodes);
    pods[0].must_reach(&pods[1]);
    pods[1].must_reach(&pods[0]);
    for node in &nodes {
        assert!(!node.said.iter().any(|said| said["finding"] == "forward_dropped"), "{:#?}", node.said);
        assert_eq!((node.count("warning"), node.count("rules")), (0, 1), "{:#?}", node.said);
    }
    // Somebody flushes all rules.
    shell(&site.hosts[0], "iptables-nft -F");
    let removed = Instant::now();
    let put_back = nodes[0].says("rules");
    assert!(put_back["says"].as_str().unwrap().contains("put back"), "{put_back}");
    assert!(removed.elapsed() < Duration::from_secs(10), "{:?}", removed.elapsed());
    pods[0].must_reach(&pods[1]);
    // A killed node leaves its rules to the next one.
    let set = ruleset(&site.hosts[0]);
    nodes.remove(0).kill();
    assert_eq!(ruleset(&site.hosts[0]), set);
    let again = start(&site.hosts[0], &site, &[]);
    assert_eq!(ruleset(&site.hosts[0]), set);
    pods[0].must_reach(&pods[1]);
    again.stop();
    assert_eq!(ruleset(&site.hosts[0]), before);
    // Without the rules, the chain drops.
    let mut without = start(&site.hosts[0], &site, &["--iptables-forward-rules=false"]);
    assert_eq!(without.count("rules"), 0);
    assert!(without.said.iter().any(|said| said["finding"] == "forward_dropped"), "{:#?}", without.said);
    assert!(!pods[0].reaches(&pods[1]));
    without.listen(Duration::from_millis(1200));
    assert_eq!(ruleset(&site.hosts[0]), before, "nothing is set later either");
    without.stop();
}

#[test]
fn packets_to_other_networks_are_masqueraded_and_those_between_pods_are_not() {
    let site = site(2);
    let with_one_capability = |host| {
        let mut command = tied_to_its_parent("setpriv");
        command.arg("--bounding-set=-all,+net_admin").arg(program());
        start_by(command, host, &site, &["--ip-masq"])
    };
    let mut nodes: Vec<_> = site.hosts.iter().map(with_one_capability).collect();
    let pods = pods(&site, &nodes);
    let [one, two] = [&site.hosts[0], &site.hosts[1]];
    let at = |address: Ipv4Addr, port| SocketAddr::from((address, port));
    let etcd = Ipv4Addr::new(10, 168, 0, 1);
    shell(
        two,
        "nft 'table inet probe {
           counter tracked {}; counter untracked {}
           chain in { type filter hook input priority 0; udp dport 8285 jump count; }
           chain out { type filter hook output priority 0; udp sport 8285 jump count; }
           chain count { ct state untracked counter name untracked return; counter name tracked; }
         }'",
    );
    for node in &nodes {
        assert_eq!((node.count("warning"), node.count("rules")), (0, 3), "{:#?}", node.said);
        assert!(!node.said.iter().any(|said| said["finding"] == "port_tracked"), "{:#?}", node.said);
    }
    let env = std::fs::read_to_string(one.subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=true\n"), "{env}");
    // A pod and a host outside of the network.
    let outside = &site.switch;
    let seen = seen_by(outside, at(etcd, 7), &pods[0].namespace, at(etcd, 7));
    assert_eq!(seen.ip(), one.address);
    // A pod and a pod.
    let seen = seen_by(&pods[1].namespace, at(pods[1].address, 7), &pods[0].namespace, at(pods[1].address, 7));
    assert_eq!(seen.ip(), pods[0].address);
    // Connection tracking ignores the tunnel's datagrams, so a pod of a masquerading host cannot take their place.
    let counted = shell(two, "nft list counters | tr -s '[:space:]' ' '");
    assert!(counted.contains("tracked { packets 0 ") && !counted.contains("untracked { packets 0 "), "{counted}");
    // An address outside, which a host translates to a pod of its own, and to one of another host.
    for host in [one, two] {
        let to =
            format!("iptables-nft -t nat -A PREROUTING -i eth0 -p udp --dport 9000 -j DNAT --to {}:7", pods[0].address);
        shell(host, &to);
    }
    let pod = at(pods[0].address, 7);
    assert_eq!(seen_by(&pods[0].namespace, pod, outside, at(one.address, 9000)).ip(), etcd);
    let seen = seen_by(&pods[0].namespace, pod, outside, at(two.address, 9000)).ip();
    assert_eq!(seen.to_string(), nodes[1].lease().network().to_string(), "the address of the other host's flannel0");
    // All is put back.
    shell(one, "nft flush ruleset");
    for chains in ["ip filter FORWARD", "ip nat POSTROUTING", "ip raw PREROUTING and OUTPUT"] {
        nodes[0].says_that("rules", |said| said["says"].as_str().unwrap().contains(chains));
    }
    assert_eq!(seen_by(outside, at(etcd, 7), &pods[0].namespace, at(etcd, 7)).ip(), one.address);
    nodes.into_iter().for_each(|node| drop(node.stop()));
    assert_eq!(ruleset(one), "");
}

/// The chains of iptables-legacy are apart from those of nftables.
#[test]
fn the_forward_chain_of_iptables_legacy_accepts_too() {
    let site = site(2);
    if shell(&site.hosts[0], "iptables-legacy -S 2>&1 || true").contains("Table does not exist") {
        eprintln!("skipped: this kernel lacks the tables of iptables-legacy");
        return;
    }
    for host in &site.hosts {
        shell(host, "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -i lo -j ACCEPT");
    }
    let list = |host: &Host| shell(host, "iptables-legacy -S");
    let before = list(&site.hosts[0]);
    let mut nodes: Vec<_> = site.hosts.iter().map(|host| start(host, &site, &[])).collect();
    assert_eq!((nodes[0].count("warning"), nodes[0].count("rules")), (0, 2), "{:#?}", nodes[0].said);
    let pods = pods(&site, &nodes);
    pods[0].must_reach(&pods[1]);
    let set = list(&site.hosts[0]);
    assert!(set.contains("-j FLANNEL-NODE-FWD\n"), "{set}");
    for change in [
        "iptables-legacy -F FLANNEL-NODE-FWD",
        "iptables-legacy -F FORWARD; iptables-legacy -X FLANNEL-NODE-FWD || true",
    ] {
        shell(&site.hosts[0], change);
        nodes[0].says_that("rules", |said| said["says"].as_str().unwrap().contains("put back"));
        wait_until("the rules", || list(&site.hosts[0]).contains("-d 100.96.0.0/16"));
        pods[0].must_reach(&pods[1]);
    }
    shell(&site.hosts[0], "iptables-legacy -I FORWARD -i lo -j ACCEPT");
    nodes.into_iter().for_each(|node| drop(node.stop()));
    assert_eq!(list(&site.hosts[0]), before);
    // Without the program, the chain is named.
    let hidden = r#"p=$(readlink -f "$(command -v iptables-legacy)"); mount --bind /dev/null "$p"; exec "$0" "$@""#;
    let mut command = tied_to_its_parent("unshare");
    command.args(["--mount", "sh", "-ec", hidden, &shown(&program())]);
    let node = start_by(command, &site.hosts[0], &site, &[]);
    let warning = node.said.iter().find(|said| said["event"] == "warning").expect("a warning");
    let reason = warning["reason"].as_str().unwrap();
    assert!(reason.contains("there is no program iptables-legacy") && reason.contains("-P FORWARD ACCEPT"), "{reason}");
    assert_eq!(node.count("warning"), 1, "it is said once");
    node.stop();
}

/// The rules end with the node, whatever ends it. Those that flanneld left are taken over.
#[test]
fn no_end_of_the_node_leaves_rules() {
    let site = site(1);
    let host = &site.hosts[0];
    let unwritable = ["--json", "--iface=eth0", "--ip-masq", "--subnet-file=/dev/null/subnet.env"];
    let args = [site.etcd.args(), unwritable.map(str::to_owned).to_vec()].concat();
    let (status, lines, errors) = run(&host.namespace, &args, None);
    assert_eq!(status.code(), Some(2), "{errors}");
    assert!(lines.iter().any(|line| line.contains("ip nat POSTROUTING")), "they were set: {lines:?}");
    assert_eq!(ruleset(host), "", "the start failed");
    let comment = "-m comment --comment 'flanneld forward'";
    shell(
        host,
        &format!(
            "iptables-nft -N FLANNEL-FWD; iptables-nft -A FORWARD {comment} -j FLANNEL-FWD; iptables-nft -A FLANNEL-FWD \
             -s 100.96.0.0/16 {comment} -j ACCEPT; iptables-nft -A FLANNEL-FWD -d 100.96.0.0/16 {comment} -j ACCEPT"
        ),
    );
    let mut node = start(host, &site, &[]);
    let rules = node.said.iter().find(|said| said["event"] == "rules").expect("an event");
    assert!(rules["says"].as_str().unwrap().contains("flanneld's rules in FLANNEL-FWD are removed"), "{rules}");
    host.namespace.delete_link("flannel0").unwrap();
    assert_eq!(node.ends().code(), Some(1));
    assert_eq!(shell(host, "iptables-nft -S"), "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n");
}

/// An accept in one chain undoes no drop in another chain, or before it in the same.
#[test]
fn chains_that_no_rule_of_the_node_can_open_are_reported() {
    let site = site(1);
    let host = &site.hosts[0];
    for (chain, drops) in [
        ("ip filter FORWARD", "iptables-nft -A FORWARD -j REJECT"),
        (
            "inet other forward",
            "nft 'table inet other { chain forward { type filter hook forward priority 10; policy drop; }; }'",
        ),
    ] {
        shell(host, "nft flush ruleset");
        shell(host, drops);
        let before = ruleset(host);
        let node = start(host, &site, &[]);
        let finding = node.said.iter().find(|said| said["finding"] == "forward_dropped").expect("a finding");
        assert!(finding["says"].as_str().unwrap().contains(chain), "{finding}");
        assert_eq!(node.count("rules"), 1);
        node.stop();
        assert_eq!(ruleset(host), before);
    }
}
