//! `tunnel --check`: findings on a host as text, as JSON and as exit status, without any change.

use std::process::{Command, ExitStatus, Stdio};

use loden::preflight::{PreflightConfig, check};
use serde_json::{Value, json};
use testbed::{Namespace, RouteEntry, TwoHosts, Vxlan};

use crate::support::{Tunnel, program};

const HOST: [&str; 6] = ["--subnet", "100.96.1.0/24", "--network", "100.96.0.0/16", "--listen", "10.168.0.2"];

/// Returns two hosts with all required settings, independent of the machine's.
fn hosts() -> TwoHosts {
    let hosts = TwoHosts::new().unwrap();
    for host in [&hosts.host_a, &hosts.host_b] {
        for interface in ["all", "default", TwoHosts::UPLINK, TwoHosts::POD_LINK] {
            host.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
        }
    }
    hosts
}

/// The result of a run: its status, its lines, and its errors.
struct Checked {
    status: ExitStatus,
    lines: Vec<Value>,
    said: String,
}

impl Checked {
    fn with(namespace: &Namespace, mut command: Command, more: &[&str]) -> Self {
        command.args(HOST).arg("--check").args(more).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = namespace.enter(|| command.spawn()).unwrap();
        let output = child.wait_with_output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str(line).expect("nothing but JSON")).collect();
        Self { status: output.status, lines, said: String::from_utf8(output.stderr).unwrap() }
    }

    fn on(namespace: &Namespace, more: &[&str]) -> Self {
        Self::with(namespace, Command::new(program("tunnel")), more)
    }

    /// Returns severity and name of each finding.
    fn found(&self) -> Vec<(String, String)> {
        let (last, findings) = self.lines.split_last().expect("a last line");
        assert_eq!(last["event"], "checked");
        let read = |finding: &'_ Value| {
            let [event, severity, name, says] =
                ["event", "severity", "finding", "says"].map(|key| finding[key].as_str().map(str::to_owned));
            assert_eq!(event.as_deref(), Some("finding"));
            assert!(self.said.contains(&says.expect("a sentence")), "it says the same to people: {finding}");
            severity.zip(name).expect("both")
        };
        findings.iter().map(read).collect()
    }

    fn assert(&self, code: i32, found: &[(&str, &str)]) {
        let expected: Vec<_> = found.iter().map(|(severity, name)| (severity.to_string(), name.to_string())).collect();
        assert_eq!((self.status.code(), self.found()), (Some(code), expected), "{}", self.said);
        let of = |severity| found.iter().filter(|(found, _)| *found == severity).count();
        let counts = json!({
            "event": "checked", "will_fail": of("will_fail"), "may_fail": of("may_fail"), "hint": of("hint"),
        });
        assert_eq!(self.lines.last(), Some(&counts));
        assert_eq!(self.said.lines().count(), found.len(), "a sentence for each: {}", self.said);
    }
}

/// Returns links, addresses and routes of a host.
fn state(host: &Namespace) -> (Vec<String>, Vec<ipnet::Ipv4Net>, Vec<RouteEntry>) {
    let links = host.links().unwrap();
    let addresses = links.iter().flat_map(|link| host.addresses(link).unwrap()).collect();
    (links, addresses, host.routes().unwrap())
}

#[test]
fn a_good_host_has_nothing_to_say() {
    let hosts = hosts();
    let before = state(&hosts.host_a);
    for more in [&[][..], &["--tun", "flannel0"], &["--mtu", "1400"], &["--route", "100.96.2.0/24=10.168.0.3"]] {
        Checked::on(&hosts.host_a, more).assert(0, &[]);
    }
    assert_eq!(state(&hosts.host_a), before, "it makes nothing");
    let config = PreflightConfig::new(&crate::host::identity(), "loden0");
    assert_eq!(hosts.host_a.enter(|| check(&config)), []);
}

/// A problem that prevents operation gives status 1, a possible one status 0.
#[test]
fn the_status_is_the_answer() {
    let hosts = hosts();
    let host = &hosts.host_a;
    host.sysctl("net/ipv4/conf/eth0/rp_filter", "1").unwrap();
    Checked::on(host, &["--mtu", "9000"])
        .assert(0, &[("may_fail", "mtu_too_large"), ("may_fail", "strict_reverse_path")]);
    // The leftovers of host-gw and of VXLAN.
    host.add_route_via(TwoHosts::SUBNET_B, TwoHosts::HOST_B).unwrap();
    let vxlan = Vxlan { vni: 1, underlay: TwoHosts::UPLINK, local: TwoHosts::HOST_A, remote: TwoHosts::HOST_B };
    host.add_vxlan("flannel.1", vxlan).unwrap();
    host.add_route("100.96.3.0/24".parse().unwrap(), None, "flannel.1").unwrap();
    let before = state(host);
    let checked = Checked::on(host, &[]);
    checked
        .assert(1, &[("will_fail", "stale_route"), ("will_fail", "stale_route"), ("may_fail", "strict_reverse_path")]);
    for sentence in [
        "will not work: packets to 100.96.2.0/24 never reach the tunnel",
        "`ip route delete 100.96.2.0/24 via 10.168.0.3 dev eth0`",
        "`ip link delete dev flannel.1`",
        "may not work: reverse path filtering is strict on eth0",
    ] {
        assert!(checked.said.contains(sentence), "{sentence:?} in {}", checked.said);
    }
    assert_eq!(state(host), before, "it changes nothing");
}

/// Without rights it checks what it can, and reports the rest.
#[test]
fn it_needs_no_rights() {
    let hosts = hosts();
    let mut command = Command::new("unshare");
    command.args(["--user", "--"]).arg(program("tunnel"));
    let checked = Checked::with(&hosts.host_a, command, &[]);
    let found = checked.found();
    assert_eq!(checked.status.code(), Some(1));
    assert!(found.contains(&("will_fail".into(), "no_net_admin".into())), "{found:?}");
    assert!(found.contains(&("may_fail".into(), "unchecked".into())), "{found:?}");
    assert!(checked.said.contains("nftables could not be checked: no permission"), "{}", checked.said);
}

/// An error of the command line is also one with `--check`.
#[test]
fn wrong_arguments_are_no_finding() {
    let hosts = hosts();
    for (more, sentence) in [
        (["--route", "100.96.1.0/24=10.168.0.3"], "this host's own"),
        (["--icmp-source", "0.0.0.0"], "cannot be the source"),
        (["--mtu", "67"], "68"),
    ] {
        let checked = Checked::on(&hosts.host_a, &more);
        assert_eq!((checked.status.code(), checked.lines.len()), (Some(2), 0), "{more:?}");
        assert!(checked.said.contains(sentence), "{more:?} says {}", checked.said);
    }
}

/// A starting tunnel prints the same findings once, and starts. A check of a running tunnel finds nothing new.
#[test]
fn a_tunnel_warns_as_it_starts() {
    let hosts = hosts();
    hosts.host_a.add_route_via(TwoHosts::SUBNET_B, TwoHosts::HOST_B).unwrap();
    let mut tunnel = Tunnel::on_a(&hosts, &["--tun", "loden7"]);
    let said = tunnel.child.stderr();
    assert_eq!(said.matches("will not work: packets to 100.96.2.0/24 never reach").count(), 1, "{said}");
    Checked::on(&hosts.host_a, &["--tun", "loden7"]).assert(1, &[("will_fail", "stale_route")]);
    hosts.host_a.delete_route(TwoHosts::SUBNET_B).unwrap();
    Checked::on(&hosts.host_a, &["--tun", "loden7"]).assert(0, &[]);
    // A second tunnel would not get the overlay's route.
    Checked::on(&hosts.host_a, &["--tun", "loden8"]).assert(1, &[("will_fail", "route_taken")]);
    tunnel.stop();
    assert_eq!(tunnel.child.stderr().lines().count(), 1, "said once: {}", tunnel.child.stderr());
}
