//! Errors of the command line: status 2, and a sentence with the remedy.

use std::net::UdpSocket;
use std::process::Command;

use testbed::{Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel, run, wait_until};

const HOST: [&str; 6] = ["--subnet", "100.96.1.0/24", "--network", "100.96.0.0/16", "--listen", "10.168.0.2"];

fn refused(namespace: &Namespace, args: &[&str], sentence: &str) {
    let (status, said) = run(namespace, args);
    assert_eq!(status.code(), Some(2), "{args:?}: {said}");
    assert!(said.contains(sentence), "{args:?} says {said:?}, not {sentence:?}");
}

#[test]
fn mistakes_are_named() {
    let hosts = TwoHosts::new().unwrap();
    let more = |more: &[&'static str]| [&HOST[..], more].concat();
    let cases = [
        (vec![], "--subnet"),
        (more(&["--nonsense"]), "--nonsense"),
        (more(&["--route", "100.96.2.0/24"]), "SUBNET=ADDR[:PORT]"),
        (more(&["--route", "100.96.2.0/33=10.168.0.3"]), "100.96.2.0/33"),
        (more(&["--route", "100.96.2.0/24=10.168.0.3:0"]), "port is 0"),
        (more(&["--route", "100.96.2.0/24=224.0.0.1"]), "multicast"),
        (more(&["--route", "100.96.2.0/24=0.0.0.0"]), "unspecified"),
        (more(&["--route", "100.96.2.0/24=255.255.255.255"]), "broadcast"),
        (more(&["--route", "100.96.2.0/24=10.168.0.2"]), "this host is bound to"),
        (more(&["--route", "100.96.1.0/24=10.168.0.3"]), "this host's own"),
        (more(&["--route", "100.96.2.0/24=fd00:168::3"]), "put the IPv6 address in brackets, [fd00:168::3]"),
        (more(&["--route", "100.96.2.0/24=[fd00:168::3]"]), "name an IPv6 address of this host too"),
        (more(&["--network", "100.97.0.0/16"]), "the host has 2 IPv4 and 0 IPv6 networks"),
        (more(&["--network", "fd00:96::/32"]), "no subnet in the overlay network fd00:96::/32"),
        (more(&["--subnet", "fd00:96:1::/64"]), "no network of its IP family"),
        (more(&["--routes-file", "/nowhere/routes"]), "/nowhere/routes"),
        (more(&["--mtu", "67"]), "68"),
        (more(&["--mtu", "65536"]), "65535"),
        (more(&["--ttl", "sometimes"]), "both"),
        (more(&["--peer-check", "never"]), "address-port"),
        (more(&["--icmp-source", "0.0.0.0"]), "cannot be the source"),
        (more(&["--stats", "0"]), "interval"),
        (more(&["--tun", "a-name-that-is-much-too-long"]), "15"),
        (more(&["--tun", "eth0"]), "eth0"),
    ];
    for (args, sentence) in cases {
        refused(&hosts.host_a, &args, sentence);
    }
    let listen = |address| ["--subnet", "100.96.1.0/24", "--network", "100.96.0.0/16", "--listen", address];
    refused(&hosts.host_a, &listen("10.168.0.2:0"), "port 0");
    refused(&hosts.host_a, &listen("10.168.0.9"), "10.168.0.9");
    refused(&hosts.host_a, &listen("0.0.0.0"), "one address of this host");
    refused(
        &hosts.host_a,
        &["--subnet", "10.9.1.0/24", "--network", "100.96.0.0/16", "--listen", "10.168.0.2"],
        "not inside",
    );
    assert_eq!(hosts.host_a.links().unwrap(), ["lo", "eth0", "pod0"], "nothing is left of what never began");
}

/// R71: a network that no router carries is refused before the start, also by `--check`. A network inside 240/4 is
/// accepted.
#[test]
fn r71_a_network_that_is_not_carried_is_refused_at_the_start() {
    let hosts = TwoHosts::new().unwrap();
    let args = |subnet, network| ["--subnet", subnet, "--network", network, "--listen", "10.168.0.2"];
    for (subnet, network) in [
        ("0.1.0.0/24", "0.0.0.0/8"),
        ("127.1.0.0/24", "127.0.0.0/8"),
        ("127.1.0.0/24", "127.1.0.0/16"),
        ("224.1.0.0/24", "224.0.0.0/4"),
        ("239.1.0.0/24", "239.0.0.0/8"),
    ] {
        for more in [&[][..], &["--check"]] {
            refused(&hosts.host_a, &[&args(subnet, network), more].concat(), "whose addresses are not carried");
        }
    }
    assert_eq!(hosts.host_a.links().unwrap(), ["lo", "eth0", "pod0"], "nothing was made");
    for (subnet, network) in [("240.1.1.0/24", "240.1.0.0/16"), ("169.254.1.0/24", "169.254.0.0/16")] {
        let mut child = crate::support::spawn(&hosts.host_a, &args(subnet, network));
        child.next_line(10 * SECOND).expect("it is ready");
        child.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(child.wait(SECOND).unwrap().expect("an end").success());
    }
}

/// Fault 39: a device or an address that is in use.
#[test]
fn fault_39_a_busy_device_or_port_is_named() {
    let hosts = TwoHosts::new().unwrap();
    let mut first = Tunnel::on_a(&hosts, &["--tun", "loden7"]);
    let second =
        ["--subnet", "100.96.1.0/24", "--network", "100.96.0.0/16", "--listen", "10.168.0.2:9999", "--tun", "loden7"];
    refused(&hosts.host_a, &second, "loden7");
    refused(&hosts.host_a, &HOST, "in use");
    first.stop();
    let _socket = hosts.host_a.enter(|| UdpSocket::bind("10.168.0.2:8285")).unwrap();
    refused(&hosts.host_a, &HOST, "in use");
}

/// Missing rights are reported in a sentence.
#[test]
fn fault_39_missing_rights_are_named() {
    let hosts = TwoHosts::new().unwrap();
    // A child in its own user namespace has no rights in the network namespace of the host.
    let mut command = Command::new("unshare");
    command.arg("--user").arg(crate::support::program("tunnel")).args(HOST);
    let mut child = testbed::Child::spawn(&hosts.host_a, command).unwrap();
    let status = child.wait(5 * SECOND).unwrap().expect("an end");
    wait_until("a sentence", || child.stderr().contains("tunnel: "));
    assert_eq!(status.code(), Some(2));
    let said = child.stderr();
    assert!(said.contains("permission") && said.contains("root"), "{said}");
}

/// An offload that the command line names and the kernel lacks: a sentence names it, and packets are sent without.
#[test]
fn a_requested_offload_that_is_not_granted_is_reported() {
    let hosts = TwoHosts::new().unwrap();
    let start = |host: &Namespace, how: &str| {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("strace");
        command.args(["-f", "-o"]).arg(trace.path()).args(["-e", "trace=setsockopt", "-e", how]);
        command.arg(crate::support::program("tunnel")).args(HOST).args([
            "--offload",
            "udp-gro,udp-gso",
            "--queues",
            "2",
        ]);
        let mut child = testbed::Child::spawn(host, command).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&child.next_line(10 * SECOND).unwrap()).unwrap();
        let trace = std::fs::read_to_string(trace.path()).unwrap();
        let tunnel = trace.split_whitespace().next().expect("its process id").parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(tunnel), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(child.wait(5 * SECOND).unwrap().expect("an end").success());
        (ready["offload"].clone(), child.stderr(), trace)
    };
    let (offload, said, trace) = start(&hosts.host_a, "signal=none");
    assert!(offload == serde_json::json!(["udp-gso", "udp-gro"]) && !said.contains("lacks"), "{said}");
    let nth = trace.lines().position(|line| line.contains("UDP_SEGMENT")).expect("it is asked for") + 1;
    let (offload, said, _) = start(&hosts.host_a, &format!("inject=setsockopt:error=ENOPROTOOPT:when={nth}"));
    assert_eq!(offload, serde_json::json!(["udp-gro"]));
    assert_eq!(said.matches("lacks UDP_SEGMENT (datagrams are sent one by one); disabled").count(), 1, "{said}");
}

/// The first line of output, which scripts read.
#[test]
fn the_first_line_has_the_actual_settings() {
    let hosts = TwoHosts::new().unwrap();
    let mut tunnel = Tunnel::on_a(&hosts, &[]);
    let mut offload = vec!["tun-tso", "tun-uso", "udp-gso", "udp-gro"];
    offload.retain(|name| *name != "tun-uso" || testbed::kernel_version() >= (6, 2));
    let listen = "10.168.0.2:8285";
    let expected =
        serde_json::json!({ "event": "ready", "tun": "loden0", "listen": listen, "mtu": 1472, "offload": offload });
    assert_eq!(tunnel.ready, expected);
    assert_eq!(hosts.host_a.link_mtu("loden0").unwrap(), Some(1472));
    assert_eq!(hosts.host_a.addresses("loden0").unwrap(), ["100.96.1.0/32".parse().unwrap()]);
    let routes = hosts.host_a.routes().unwrap();
    let overlay: Vec<_> = routes.iter().filter(|route| route.link.as_deref() == Some("loden0")).collect();
    assert_eq!(overlay.len(), 1, "one route: {overlay:?}");
    assert_eq!(overlay[0].destination, TwoHosts::OVERLAY);
    // Scope global, proto boot and no source, like flannel's.
    assert_eq!((overlay[0].scope, overlay[0].protocol, overlay[0].source), (0, 3, None));
    tunnel.stop();
    assert_eq!(hosts.host_a.links().unwrap(), ["lo", "eth0", "pod0"], "what was made is removed");
}

#[test]
fn other_mtus_and_ports_are_taken() {
    let hosts = TwoHosts::new().unwrap();
    let args = ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2:65535", "--mtu", "1400", "--tun", "overlay%d"];
    let mut tunnel = Tunnel::start(&hosts.host_a, &[&args[..], &["--offload", "udp-gro,tun-tso"]].concat());
    let (listen, offload) = ("10.168.0.2:65535", ["tun-tso", "udp-gro"]);
    let expected =
        serde_json::json!({ "event": "ready", "tun": "overlay0", "listen": listen, "mtu": 1400, "offload": offload });
    assert_eq!(tunnel.ready, expected);
    assert_eq!(hosts.host_a.link_mtu("overlay0").unwrap(), Some(1400));
    tunnel.stop();
}
