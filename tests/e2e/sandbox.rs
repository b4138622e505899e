//! System calls and requests that a sandbox lacks, by strace(1): the tunnel does without, or ends soon and says why.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testbed::probe::{Ping, PingOutcome, ping};
use testbed::{Child, Injection, Namespace, TwoHosts};

use crate::support::{SECOND, Tunnel, program, wait_until};

/// Returns the number of answered pings of five from pod A to pod B.
fn answered(hosts: &TwoHosts) -> usize {
    let settings = Ping { count: 5, timeout: SECOND / 3, ..Ping::default() };
    let outcomes = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, settings)).unwrap();
    outcomes.iter().filter(|outcome| matches!(outcome, PingOutcome::Reply { .. })).count()
}

/// CPU time that a process has used, in ticks of 10 ms (proc(5)).
fn cpu_ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// The calls for several messages fail from some moment on: each message then has a call of its own, and nothing is lost but what
/// waits for strace.
#[test]
fn fault_54_without_recvmmsg_and_sendmmsg_packets_pass() {
    let hosts = TwoHosts::new().unwrap();
    let mut a = Tunnel::on_a(&hosts, &[]);
    let _b = Tunnel::on_b(&hosts, &[]);
    for error in ["ENOSYS", "EPERM"] {
        let injection =
            Injection::begin(&hosts.host_a, a.child.id(), &[("recvmmsg,sendmmsg", &format!("error={error}"))]).unwrap();
        assert!(answered(&hosts) >= 4);
        let trace = injection.trace().unwrap();
        let failed = injection.end().unwrap();
        assert!(failed <= 3, "the call is not made again: {trace}");
        assert!(answered(&hosts) >= 4);
    }
    let last = a.stop();
    assert_eq!(last["anomalies"]["read_errors"], 0, "{last}");
}

/// Nothing can be received at all, or nothing read: a hundred calls a second at most and no busy loop, the end with a sentence
/// after ten seconds, and meanwhile the other direction flows.
#[test]
fn fault_54_a_call_that_is_forbidden_ends_it_after_ten_seconds() {
    let hosts = [TwoHosts::new().unwrap(), TwoHosts::new().unwrap()];
    let cases = [
        (
            "recvmmsg,recvmsg",
            "receiving from the UDP socket fails every time: receiving failed: Function not implemented",
        ),
        (
            "readv",
            "reading from the TUN device fails every time: the kernel refused a packet: Function not implemented",
        ),
    ];
    std::thread::scope(|scope| {
        for (hosts, (calls, sentence)) in hosts.iter().zip(cases) {
            scope.spawn(move || {
                let mut a = Tunnel::on_a(hosts, &[]);
                let _b = Tunnel::on_b(hosts, &[]);
                assert!(answered(hosts) >= 4);
                let injection = Injection::begin(&hosts.host_a, a.child.id(), &[(calls, "error=ENOSYS")]).unwrap();
                let begin = Instant::now();
                // Each direction has something to read, so that a level-triggered loop would spin.
                assert_eq!(answered(hosts), 0);
                std::thread::sleep(Duration::from_secs(2));
                let (count, cpu) =
                    (|| injection.trace().unwrap().matches("(INJECTED)").count(), cpu_ticks(a.child.id()));
                let (before, since) = (count(), Instant::now());
                std::thread::sleep(Duration::from_secs(3));
                let (more, lasted) = (count() - before, since.elapsed().as_secs_f64());
                assert!((10.0..=100.0).contains(&(more as f64 / lasted)), "{calls}: {more} calls in {lasted} s");
                let cpu = cpu_ticks(a.child.id()) - cpu;
                assert!(cpu < 60, "{calls}: {cpu} ticks of CPU time in three seconds");
                let status = a.child.wait(20 * SECOND).unwrap().expect("an end");
                assert_eq!(status.code(), Some(1), "{calls}");
                let lasted = begin.elapsed();
                assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&lasted), "{calls}: {lasted:?}");
                a.says(sentence);
                a.last_event();
            });
        }
    });
}

/// Starts host A's tunnel where requests to the TUN device fail as told, and returns what it says once it is ready.
fn under(host: &Namespace, faults: &[&str]) -> (Child, Value) {
    let mut command = Command::new("strace");
    // The tracer is a child of its own, so that the tunnel is ours.
    command.args(["-D", "-o", "/dev/null", "-P", "/dev/net/tun", "-e", "trace=ioctl"]);
    for fault in faults {
        command.args(["-e", &format!("inject=ioctl:{fault}")]);
    }
    command.arg(program("tunnel")).args(["--network", "100.96.0.0/16", "--subnet", "100.96.1.0/24"]);
    command.args(["--listen", "10.168.0.2", "--route", "100.96.2.0/24=10.168.0.3"]);
    let child = Child::spawn(host, command).expect("strace is there: tests/run installs it");
    let line = child.next_line(5 * SECOND).unwrap_or_else(|error| panic!("{faults:?}: {error}: {}", child.stderr()));
    (child, serde_json::from_str(&line).unwrap())
}

/// `TUNSETIFF`, `TUNGETIFF`, `TUNSETVNETHDRSZ`, `TUNSETVNETLE`, `TUNSETVNETBE` and `TUNSETOFFLOAD`, in this order.
#[test]
fn fault_41_54_a_sandbox_without_requests_to_the_tun_device() {
    let hosts = TwoHosts::new().unwrap();
    let _b = Tunnel::on_b(&hosts, &[]);
    for (fault, offloads) in [
        // IFF_TUN_EXCL; and IFF_VNET_HDR too, so that the third attempt is made without either.
        ("error=EINVAL:when=1", true),
        ("error=EINVAL:when=1..2", false),
        ("error=ENOTTY:when=3", true),
        ("error=ENOTTY:when=4", true),
        ("error=EPERM:when=3..5", true),
        ("error=ENOTTY:when=6..8", false),
        ("error=ENOSYS:when=3..8", false),
    ] {
        let (mut child, ready) = under(&hosts.host_a, &[fault]);
        assert_eq!(ready["event"], "ready", "{ready}");
        let granted = ready["offload"].as_array().unwrap().iter().any(|offload| offload == "tun-tso");
        assert_eq!(granted, offloads, "{fault}: {ready}");
        assert!(answered(&hosts) >= 4, "{fault}");
        child.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(child.wait(5 * SECOND).unwrap().expect("an end").success());
        wait_until("the device to go", || !hosts.host_a.links().unwrap().contains(&"loden0".into()));
    }
}
