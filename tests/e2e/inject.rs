//! Errors that a kernel returns only by chance, injected into the real program's system calls by strace(1). Packets
//! flow before, during and after, and the counters have their losses.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use serde_json::Value;
use testbed::probe::{Amount, Ping, PingOutcome, ping, tcp_send, tcp_sink};
use testbed::{Child, Injection, Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel, Tunnels, program, quiet_hosts, wait_until};

/// Makes the named system calls of a tunnel fail. `when` counts from now on.
fn inject(host: &Namespace, tunnel: &Tunnel, calls: &str, how: &str) -> Injection {
    Injection::begin(host, tunnel.child.id(), &[(calls, how)]).expect("strace is there: tests/run installs it")
}

/// Sends three pings from pod A to pod B, each after the outcome of the previous one. Returns which of them were
/// answered. On a busy machine an answer may be too late.
fn pings(hosts: &TwoHosts) -> Vec<bool> {
    let settings = Ping { count: 3, timeout: SECOND / 3, ..Ping::default() };
    let outcomes = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, settings)).unwrap();
    outcomes.iter().map(|outcome| matches!(outcome, PingOutcome::Reply { .. })).collect()
}

fn packets_pass(hosts: &TwoHosts) -> bool {
    pings(hosts).contains(&true)
}

/// Returns all counters except forwarded packets.
fn counted(event: &Value) -> BTreeMap<(&str, &str), u64> {
    let all = [
        ("encap", &event["encap"]["dropped"]),
        ("decap", &event["decap"]["dropped"]),
        ("anomalies", &event["anomalies"]),
    ];
    let mut counted = BTreeMap::new();
    for (kind, numbers) in all {
        for (name, count) in numbers.as_object().unwrap() {
            counted.insert((kind, name.as_str()), count.as_u64().unwrap());
        }
    }
    counted.retain(|_, count| *count > 0);
    counted
}

/// A fault of host A's tunnel, while pod A sends three pings, one after the other.
struct Fault {
    calls: &'static str,
    how: &'static str,
    /// The number of failed calls.
    failures: usize,
    cost: Cost,
}

/// The cost of the fault, by the name of its counter.
#[derive(Clone, Copy)]
enum Cost {
    Nothing,
    /// A count, without a loss.
    Anomaly(&'static str),
    /// The first packet to the peer.
    Sent(&'static str),
    /// The first packet from the peer.
    Received(&'static str),
}

const SEND: &str = "sendmsg,sendmmsg";

const fn fault(calls: &'static str, how: &'static str, failures: usize, cost: Cost) -> Fault {
    Fault { calls, how, failures, cost }
}

/// The two calls that a C library may use for poll(2).
const POLL: &str = "?poll,?ppoll";

const FAULTS: [Fault; 13] = [
    fault(SEND, "error=EINTR:when=1..20", 20, Cost::Nothing),
    fault("recvmmsg", "error=EINTR:when=1..20", 20, Cost::Nothing),
    fault("readv,writev", "error=EINTR:when=1..20", 40, Cost::Nothing),
    // Each of the two threads has this number of calls.
    fault(POLL, "error=EINTR:when=1..20", 40, Cost::Nothing),
    fault(SEND, "error=EAGAIN:when=1..3", 3, Cost::Nothing),
    fault(SEND, "error=ENOBUFS:when=1..4", 4, Cost::Nothing),
    fault(SEND, "error=EMSGSIZE:when=1", 1, Cost::Sent("send_failed")),
    fault(SEND, "error=ECONNREFUSED:when=1", 1, Cost::Nothing),
    fault(SEND, "error=ECONNREFUSED:when=1..2", 2, Cost::Sent("send_refused")),
    fault(SEND, "error=EPERM:when=1", 1, Cost::Sent("send_forbidden")),
    fault("recvmmsg", "error=ENOMEM:when=1", 1, Cost::Anomaly("read_errors")),
    fault("writev", "error=EIO:when=1", 1, Cost::Received("tun_down")),
    fault("writev", "error=ENOBUFS:when=1", 1, Cost::Received("tun_full")),
];

/// One tunnel and a sequence of faults: each has the expected cost, and the next packet passes.
#[test]
fn fault_26_27_28_29_31_33_37_a_fault_costs_its_own_packet_and_the_tunnel_goes_on() {
    let hosts = quiet_hosts();
    let mut a = Tunnel::on_a(&hosts, &["--stats", "0.02"]);
    let _b = Tunnel::on_b(&hosts, &[]);
    let (mut expected, mut send_errors) = (BTreeMap::new(), 0);
    for Fault { calls, how, failures, cost } in FAULTS {
        assert!(packets_pass(&hosts), "before {calls} {how}");
        let injection = inject(&hosts.host_a, &a, calls, how);
        let answered = pings(&hosts);
        if matches!(cost, Cost::Sent(_) | Cost::Received(_)) {
            assert!(!answered[0], "{calls} {how}: {}", injection.trace().unwrap());
        }
        assert!(answered.contains(&true), "{calls} {how}: {}", injection.trace().unwrap());
        if calls == POLL {
            // The main thread waits for the next line of counters.
            std::thread::sleep(SECOND / 10);
        }
        assert_eq!(injection.end().unwrap(), failures, "{calls} {how}");
        assert!(packets_pass(&hosts), "after {calls} {how}");
        match cost {
            Cost::Nothing => {}
            Cost::Anomaly(name) => *expected.entry(("anomalies", name)).or_default() += 1,
            Cost::Sent(reason) => {
                *expected.entry(("encap", reason)).or_default() += 1;
                send_errors += 1;
            }
            Cost::Received(reason) => *expected.entry(("decap", reason)).or_default() += 1,
        }
    }
    let last = a.stop();
    assert_eq!(counted(&last), expected, "{last}");
    assert_eq!(last["send_errors"]["10.168.0.3"], send_errors, "{last}");
}

/// Repeated faults under a stream in both directions with GSO packets and GSO batches: it arrives completely, and every
/// packet is counted.
#[test]
fn fault_26_27_28_30_31_a_stream_survives_faults_of_every_kind() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    for (calls, how) in [
        ("sendmsg,sendmmsg,recvmmsg,readv,writev", "error=EINTR:when=2+2"),
        (SEND, "error=EAGAIN:when=3+5"),
        (SEND, "error=ENOBUFS:when=3+3"),
        (SEND, "error=EIO:when=3+7"),
        (SEND, "error=ENETUNREACH:when=3+7"),
        ("writev", "error=EINVAL:when=3+7"),
    ] {
        let injection = inject(&hosts.host_a, &tunnels.a, calls, how);
        let target = SocketAddr::from((TwoHosts::POD_B, 5001));
        let listener = hosts.pod_b.enter(|| TcpListener::bind(target)).unwrap();
        let sink = tcp_sink(listener, 3);
        let sent = hosts.pod_a.enter(|| tcp_send(target, Amount::Bytes(4 << 20), 3)).unwrap();
        assert_eq!(sink.join().unwrap().unwrap().bytes, sent.bytes);
        let failures = injection.end().unwrap();
        assert!(failures >= 2, "{failures} of {calls} {how}");
    }
    assert!(packets_pass(hosts));
    tunnels.a.stop();
    tunnels.b.stop();
}

/// A descriptor is closed in the process: the tunnel ends with one sentence, whichever call meets it.
#[test]
fn fault_34_a_closed_descriptor_ends_it_with_a_sentence() {
    let hosts = quiet_hosts();
    let _b = Tunnel::on_b(&hosts, &[]);
    for (calls, sentence) in [
        ("readv", "the TUN device loden0 is closed: something in this process closed"),
        ("writev", "the TUN device loden0 is closed: something in this process closed"),
        (SEND, "the UDP socket 10.168.0.2:8285 is closed: something in this process closed"),
        ("recvmmsg", "the UDP socket 10.168.0.2:8285 is closed: something in this process closed"),
    ] {
        let mut a = Tunnel::on_a(&hosts, &[]);
        let injection = inject(&hosts.host_a, &a, calls, "error=EBADF:when=2");
        pings(&hosts);
        let status = a.child.wait(5 * SECOND).unwrap().expect("an end");
        assert_eq!(status.code(), Some(1), "{calls}");
        a.says(sentence);
        a.last_event();
        assert_eq!(injection.trace().unwrap().matches("(INJECTED)").count(), 1, "{calls}");
        wait_until("the device to go", || !hosts.host_a.links().unwrap().contains(&"loden0".into()));
    }
}

/// Without a free descriptor at any step of the start, the tunnel does not start, prints an error and leaves nothing
/// behind. A lack during the preflight alone does not prevent the start.
#[test]
fn fault_35_without_descriptors_it_does_not_start() {
    let hosts = quiet_hosts();
    let host = &hosts.host_a;
    let (mut refused, mut begun) = (0, 0);
    for (traced, call) in [(["-P", "/dev/net/tun"], "openat"), (["-e", "trace=socket"], "socket")] {
        for when in 1.. {
            let trace = tempfile::NamedTempFile::new().unwrap();
            let mut command = Command::new("strace");
            // The tracer is a child of its own, so that the tunnel is this test's child.
            command.args(["-D", "-o", trace.path().to_str().unwrap()]).args(traced);
            command.args(["-e", &format!("inject={call}:error=EMFILE:when={when}")]).arg(program("tunnel"));
            command.args(["--network", "100.96.0.0/16", "--subnet", "100.96.1.0/24", "--listen", "10.168.0.2"]);
            command.args(["--queues", "3"]);
            let mut child = Child::spawn(host, command).expect("strace is there: tests/run installs it");
            let begins = child.next_line(5 * SECOND).is_ok();
            if begins {
                begun += 1;
            } else {
                refused += 1;
                let status = child.wait(5 * SECOND).unwrap().expect("an end");
                assert_eq!(status.code(), Some(2), "{call} {when}: {}", child.stderr());
                wait_until("a sentence", || {
                    child.stderr().lines().any(|line| line.starts_with("tunnel: ") && line.contains("os error 24"))
                });
            }
            drop(child);
            wait_until("the device to go", || !host.links().unwrap().iter().any(|link| link.starts_with("loden")));
            let last = !std::fs::read_to_string(trace.path()).unwrap().contains("(INJECTED)");
            assert!(begins || !last, "{call} {when}");
            if last {
                break;
            }
        }
    }
    assert!(refused >= 3 + 3 && begun >= 2, "{refused} refused and {begun} begun");
}
