//! Hosts with unusual settings.

use std::net::UdpSocket;
use std::process::Command;

use etherparse::PacketBuilder;
use ipnet::Ipv4Net;
use loden::Host;
use loden::Mtu;
use loden::preflight::{Finding, PreflightConfig, check};
use loden::sys::link::{Link, LinkConfig};
use loden::sys::{Tun, TunConfig};
use testbed::probe::{Ping, PingOutcome, ping};
use testbed::{Child, Namespace, TwoHosts, tied_to_its_parent};

use crate::support::{SECOND, Tunnel, program};

/// An address that a routing protocol announces is on `lo`, whose MTU of 65,536 does not apply to the path to the
/// peers.
#[test]
fn a_listen_address_on_lo_has_the_mtu_of_the_route_to_the_peers() {
    let hosts = TwoHosts::with_underlay_mtu(1400).unwrap();
    let host = &hosts.host_a;
    host.add_address("lo", "10.255.0.1/32".parse().unwrap()).unwrap();
    hosts.host_b.add_route_via("10.255.0.1/32".parse().unwrap(), TwoHosts::HOST_A).unwrap();
    let args = ["--subnet", "100.96.1.0/24", "--listen", "10.255.0.1", "--route", "100.96.2.0/24=10.168.0.3"];
    let mut tunnel = Tunnel::start(host, &args);
    assert_eq!(tunnel.ready["mtu"], 1372, "{}", tunnel.ready);
    tunnel.stop();
}

/// Host a.
pub(crate) fn identity() -> Host {
    Host::new(TwoHosts::OVERLAY, TwoHosts::SUBNET_A, (TwoHosts::HOST_A, 8285)).unwrap()
}

/// A user who may not configure the network, with a persistent device that an administrator has prepared: nothing is set
/// that is as it has to be. In a user namespace, where no node can be made, it is root without any capability.
#[test]
fn a_user_without_capabilities_starts_a_tunnel_on_a_prepared_device() {
    const AS_USER: &str = "\
        { mount -t tmpfs none /dev/net && mknod -m 0666 /dev/net/tun c 10 200; } 2>/dev/null && \
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --pdeathsig KILL \"$@\"; \
        exec setpriv --bounding-set=-all --inh-caps=-all --pdeathsig KILL \"$@\"";
    let hosts = TwoHosts::new().unwrap();
    let host = &hosts.host_a;
    let prepare = |mtu| {
        host.enter(|| {
            let tun = Tun::open(&TunConfig::new("loden0")).unwrap();
            tun.set_persistent(true).unwrap();
            let config = LinkConfig::new(&identity()).with_mtu(Mtu::new(mtu).unwrap());
            Link::configure_with("loden0", &config).unwrap();
        });
    };
    let start = || {
        let mut command = tied_to_its_parent("unshare");
        command.args(["--mount", "sh", "-c", AS_USER, "sh"]).arg(program("tunnel"));
        command.args(["--subnet", "100.96.1.0/24", "--network", "100.96.0.0/16", "--listen", "10.168.0.2"]);
        command.args(["--route", "100.96.2.0/24=10.168.0.3", "--tun", "loden0"]);
        Child::spawn(host, command).unwrap()
    };
    prepare(1472);
    let mut child = start();
    let ready = child.next_line(10 * SECOND).unwrap_or_else(|error| panic!("{error}: {}", child.stderr()));
    assert!(ready.contains("\"ready\""), "{ready}");
    assert!(!child.stderr().contains("lacks CAP_NET_ADMIN"), "the preflight judges what it needs: {}", child.stderr());
    child.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait(SECOND).unwrap().expect("an end within a second").success(), "{}", child.stderr());
    assert_eq!(host.addresses("loden0").unwrap(), [Ipv4Net::from(TwoHosts::SUBNET_A.network())], "nothing was removed");

    prepare(1400);
    let mut child = start();
    assert_eq!(child.wait(5 * SECOND).unwrap().expect("an end").code(), Some(2));
    assert!(child.stderr().contains("no permission to set the MTU on loden0"), "{}", child.stderr());
}

/// Runs the commands that the preflight names in a shell.
fn mend(host: &Namespace, findings: &[Finding]) {
    for finding in findings {
        let words = finding.to_string();
        for command in words.split('`').skip(1).step_by(2) {
            shell(host, command);
        }
    }
}

fn shell(host: &Namespace, command: &str) {
    let output = host.enter(|| Command::new("sh").args(["-ec", command]).output()).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}; `tests/run` installs nft");
}

/// Returns two hosts without preflight findings on host A, independent of the machine's settings.
fn quiet_hosts() -> TwoHosts {
    let hosts = TwoHosts::new().unwrap();
    for interface in ["all", "default", TwoHosts::UPLINK, TwoHosts::POD_LINK] {
        hosts.host_a.sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
    }
    hosts
}

fn bound(namespace: &Namespace, port: u16) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind(("0.0.0.0", port))).unwrap();
    socket.set_read_timeout(Some(SECOND)).unwrap();
    socket
}

/// Returns a datagram that a socket receives within a second.
fn received(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec())
}

/// A masqueraded pod that sends from the tunnel's port before the tunnel does gets the entry of connection tracking. It
/// then receives the other host's datagrams to its host, and that host takes the pod's datagrams for its host's.
#[test]
fn fault_57_a_masqueraded_pod_cannot_take_over_the_port_after_what_the_preflight_says() {
    let hosts = quiet_hosts();
    shell(
        &hosts.host_a,
        "nft add table ip nat; nft 'add chain ip nat post { type nat hook postrouting priority 100; }'; \
        nft add rule ip nat post ip saddr 100.96.1.0/24 oifname != pod0 masquerade",
    );
    let (pod, victim) = (bound(&hosts.pod_a, 8285), bound(&hosts.pod_b, 7));
    let (tunnel_a, tunnel_b) = (Tunnel::on_a(&hosts, &["--tun", "loden0"]), Tunnel::on_b(&hosts, &[]));
    let forged = PacketBuilder::ipv4([100, 96, 1, 99], TwoHosts::POD_B.octets(), 64).udp(9, 7);
    let inner = {
        let mut packet = Vec::new();
        forged.write(&mut packet, b"forged").unwrap();
        packet
    };
    let send = || pod.send_to(&inner, (TwoHosts::HOST_B, 8285)).unwrap();
    let is_reached = || {
        let sent = Ping { count: 1, ..Ping::default() };
        let outcomes = hosts.pod_b.enter(|| ping(TwoHosts::POD_A, sent)).unwrap();
        matches!(outcomes[..], [PingOutcome::Reply { .. }])
    };

    send();
    assert_eq!(received(&victim).as_deref(), Some(&b"forged"[..]), "a pod speaks for its host");
    assert!(!is_reached());
    let diverted = received(&pod).expect("the tunnel's datagram arrives in the pod");
    assert_eq!(diverted[12..20], [TwoHosts::POD_B.octets(), TwoHosts::POD_A.octets()].concat());

    let config = PreflightConfig::new(&identity(), "loden0");
    let look = || hosts.host_a.enter(|| check(&config));
    let found = look();
    let names: Vec<_> = found.iter().map(Finding::name).collect();
    assert_eq!(names, ["port_tracked", "pods_reach_port"], "{found:#?}");
    mend(&hosts.host_a, &found[..1]);
    assert!(is_reached(), "at once, although the entry is still there");
    pod.set_nonblocking(true).unwrap();
    assert_eq!(received(&pod), None);
    send();
    assert_eq!(received(&victim), None, "it is a stranger now");
    mend(&hosts.host_a, &look());
    assert_eq!(look(), []);
    send();
    assert_eq!(received(&victim), None);
    assert!(is_reached());
    drop((tunnel_a, tunnel_b));
}

/// An INPUT chain that drops accepts answers, but not the first datagram of another host.
#[test]
fn an_input_chain_that_drops_is_mended_by_what_the_preflight_says() {
    let hosts = quiet_hosts();
    shell(
        &hosts.host_a,
        "nft add table inet filter; \
        nft 'add chain inet filter input { type filter hook input priority 0; policy drop; }'; \
        nft add rule inet filter input ct state established,related accept; nft add rule inet filter input iif lo accept",
    );
    let (_a, _b) = (Tunnel::on_a(&hosts, &["--tun", "loden0"]), Tunnel::on_b(&hosts, &[]));
    let is_reached = || {
        let sent = Ping { count: 1, ..Ping::default() };
        let outcomes = hosts.pod_b.enter(|| ping(TwoHosts::POD_A, sent)).unwrap();
        matches!(outcomes[..], [PingOutcome::Reply { .. }])
    };
    assert!(!is_reached());
    let config = PreflightConfig::new(&identity(), "loden0");
    let found = hosts.host_a.enter(|| check(&config));
    assert_eq!(found.iter().map(Finding::name).collect::<Vec<_>>(), ["input_dropped"], "{found:#?}");
    mend(&hosts.host_a, &found);
    assert_eq!(hosts.host_a.enter(|| check(&config)), []);
    assert!(is_reached());
}

/// The commands of `docs/operations.md` fit a host like this one.
#[test]
fn the_commands_for_operations_are_enough_for_the_preflight() {
    let hosts = quiet_hosts();
    let host = &hosts.host_a;
    shell(
        host,
        "iptables -P FORWARD DROP; iptables -P INPUT DROP; nft add table inet filter; \
        nft 'add chain inet filter input { type filter hook input priority 0; policy drop; }'; \
        iptables -t nat -A POSTROUTING -s 100.96.1.0/24 ! -o pod0 -j MASQUERADE",
    );
    let config = PreflightConfig::new(&identity(), "loden0");
    let look = || host.enter(|| check(&config));
    let names = |found: &[Finding]| found.iter().map(Finding::name).collect::<Vec<_>>();
    assert_eq!(names(&look()), ["forward_dropped", "input_dropped", "input_dropped", "port_tracked"]);
    let operations = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md")).unwrap();
    // Forwarding, firewall, masquerade.
    for block in operations.split("```sh").skip(1).take(3) {
        let commands = block.split("```").next().unwrap();
        let without_sysctl: Vec<_> = commands.lines().filter(|line| !line.starts_with("sysctl")).collect();
        shell(host, &without_sysctl.join("\n"));
    }
    assert_eq!(look(), []);
}
