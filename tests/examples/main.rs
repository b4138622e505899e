//! Runs of the examples' programs. They need root.
#![cfg(target_os = "linux")]

mod aead;
mod narrow;
mod static_leases;

use core::time::Duration;
use std::env;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use testbed::probe::{Amount, Ping, PingOutcome, ping, tcp_send, tcp_sink};
use testbed::{Child, Namespace, TwoHosts};

use static_leases::LeaseFile;

const SOON: Duration = Duration::from_secs(5);
/// The time limit of the demo on a busy machine.
const DEMO: Duration = Duration::from_secs(15);
/// The arguments of `poll_loop`, `tokio_loop`, `mio_loop` and `io_uring` on either host.
const ON_A: [&str; 5] = ["100.96.1.0/24", "100.96.0.0/16", "10.168.0.2:8285", "100.96.2.0/24", "10.168.0.3:8285"];
const ON_B: [&str; 5] = ["100.96.2.0/24", "100.96.0.0/16", "10.168.0.3:8285", "100.96.1.0/24", "10.168.0.2:8285"];

/// Returns an example that cargo built in the profile of this test, which is `target/<profile>/deps/examples-…`.
fn example(name: &str) -> Command {
    let own = env::current_exe().expect("a test knows its own path");
    let profile = own.parent().and_then(|deps| deps.parent()).expect("cargo puts tests into target/<profile>/deps");
    let path: PathBuf = [profile, "examples".as_ref(), name.as_ref()].iter().collect();
    assert!(path.exists(), "{} is missing; build it with `cargo build --examples` in this profile", path.display());
    Command::new(path)
}

/// Returns the namespace of the test.
fn here() -> Namespace {
    Namespace::current().expect("the namespace this test runs in")
}

fn hosts() -> TwoHosts {
    TwoHosts::new().expect("these tests make network namespaces and TUN devices, and need root")
}

/// Returns all standard output of a program, and its exit status.
fn run(program: Command, limit: Duration) -> (String, Child, ExitStatus) {
    let mut child = Child::spawn(&here(), program).expect("spawned");
    let mut output = String::new();
    while let Ok(line) = child.next_line(limit) {
        output += &line;
        output.push('\n');
    }
    let ended = child.wait(SOON).expect("waited");
    let status =
        ended.unwrap_or_else(|| panic!("it still runs after {output:?}; standard error: {:?}", child.stderr()));
    (output, child, status)
}

/// Returns a program's standard error, which a thread collects: it may arrive a little after the program's end.
fn stderr_of(child: &Child, wanted: &str) -> String {
    for _ in 0..1000 {
        if child.stderr().contains(wanted) {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    child.stderr()
}

#[test]
fn core_only_needs_no_system() {
    let (output, child, status) = run(example("core_only"), SOON);
    assert!(status.success(), "{status}: {}", child.stderr());
    let expected = "\
pod a sent        100.96.1.2 -> 100.96.2.3  TTL 64  ICMP type 8
pod a sent        100.96.1.2 -> 100.96.9.9  TTL 64  ICMP type 8
pod b received    100.96.1.2 -> 100.96.2.3  TTL 62  ICMP type 8
pod a received    100.96.9.9 -> 100.96.1.2  TTL 64  ICMP type 3
host a, outbound  1 forwarded, 1 answered
host b, inbound   1 forwarded, 0 answered
";
    assert_eq!(output, expected);
}

#[test]
fn the_demo_shows_all_it_promises() {
    let (output, child, status) = run(example("demo"), DEMO);
    assert!(status.success(), "{status}: {} after {output}", child.stderr());
    assert_eq!(child.stderr(), "");
    let line_with = |words: &[&str]| {
        let found = output.lines().find(|line| words.iter().all(|word| line.contains(word)));
        found.unwrap_or_else(|| panic!("no line with {words:?} in:\n{output}"))
    };
    assert_eq!(output.matches("reply from 100.96.2.3: TTL 60, ").count(), 4, "{output}");
    line_with(&["MiB in", "Gbit/s", "every byte"]);
    line_with(&["TTL 1", "time exceeded", "100.96.1.1", "kernel of host a"]);
    line_with(&["TTL 2", "time exceeded", "100.96.2.3", "tunnel of host a"]);
    line_with(&["TTL 3", "time exceeded", "100.96.2.0", "tunnel of host b"]);
    line_with(&["TTL 4", "time exceeded", "kernel of host b"]);
    line_with(&["TTL 5", "reply", "100.96.2.3", "pod b"]);
    line_with(&["net unreachable", "100.96.9.9", "tunnel of host a"]);
    let answered = line_with(&["answered by ICMP"]);
    let answered = answered.split_whitespace().skip(3).collect::<Vec<_>>();
    if testbed::has_ipv6() {
        line_with(&["reply", "fd00:96:2::3"]);
        line_with(&["hop limit 2", "time exceeded", "tunnel of host a", "fd00:96:1:0:ffff:ffff:ffff:ff7f"]);
        line_with(&["hop limit 3", "time exceeded", "tunnel of host b", "fd00:96:2:0:ffff:ffff:ffff:ff7f"]);
        line_with(&["no route", "tunnel of host a", "fd00:96:1:0:ffff:ffff:ffff:ff7f"]);
        assert_eq!(answered, ["4", "0", "0", "2"]);
    } else {
        assert_eq!(answered, ["2", "0", "0", "1"]);
    }
    line_with(&["came in"]);
    line_with(&["went on"]);
    let last = output.lines().last().unwrap_or_default();
    assert!(last.starts_with("Everything was removed"), "{output}");
}

#[test]
fn the_demo_ends_at_once_after_ctrl_c() {
    for reached in ["pod a", "1. Ping", "2. TCP"] {
        let mut child = Child::spawn(&here(), example("demo")).expect("spawned");
        while !child.next_line(SOON).expect("a line").contains(reached) {}
        child.signal(Signal::SIGINT).expect("signalled");
        let status = child.wait(Duration::from_secs(2)).expect("waited");
        let status = status.unwrap_or_else(|| panic!("it still runs two seconds after SIGINT at {reached:?}"));
        assert_eq!(status.code(), Some(130), "{reached}: {}", child.stderr());
    }
}

#[test]
fn the_demo_ends_quietly_when_its_output_is_closed() {
    let mut child = example("demo").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawned");
    let mut line = String::new();
    // The pipe is closed with the reader, behind the first line.
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let mut complaints = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut complaints).expect("its standard error");
    assert_eq!(child.wait().expect("waited").code(), Some(141), "{complaints}");
    assert_eq!(complaints, "");
}

/// Without a TUN device the demo ends, for root and for others. Another user may already lack the right to make
/// namespaces.
#[test]
fn the_demo_names_missing_requirements() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    // A copy that any user may run, because the build directory may be private.
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("demo");
    std::fs::copy(example("demo").get_program(), &program).expect("a copy");
    for path in [directory.path(), &program] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("permitted");
    }
    let (mut as_root, mut as_nobody) = (Command::new(&program), Command::new(&program));
    // A user namespace has no other user.
    if std::fs::read_to_string("/proc/self/uid_map").expect("a map").contains("4294967295") {
        as_nobody.uid(65_534).gid(65_534);
    }
    for (who, demo) in [("root", &mut as_root), ("nobody", &mut as_nobody)] {
        let output = thread::scope(|scope| scope.spawn(|| without_tun(demo)).join().expect("no panic"));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        let of_the_node = ["demo: needs the device node /dev/net/tun; ", "`modprobe tun`", "`mknod ", ": No such file"];
        let is_told = of_the_node.iter().all(|what| complaint.contains(what));
        let is_refused = complaint.starts_with("demo: needs root, or a user namespace");
        assert!(is_told || who == "nobody" && is_refused, "{who}: {complaint}");
        assert_eq!((complaint.lines().count(), output.stdout.len()), (1, 0), "{complaint}");
    }
}

/// Runs a program with an empty `/dev/net`. The calling thread must do nothing else afterwards.
fn without_tun(program: &mut Command) -> std::process::Output {
    const NOWHERE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace of one's own, for which this test needs root");
    mount(NOWHERE, "/", NOWHERE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOWHERE).expect("made private");
    mount(NOWHERE, "/dev/net", Some("tmpfs"), MsFlags::empty(), NOWHERE).expect("covered");
    program.output().expect("run")
}

/// A minimal tunnel is at most 25 lines with a loop of the library, and at most 45 with a loop of one's own. Blank lines and
/// comments do not count.
#[test]
fn a_minimal_tunnel_is_short() {
    let (tokio, poll) = (include_str!("../../examples/tokio_loop.rs"), include_str!("../../examples/poll_loop.rs"));
    for (name, source, most) in [("tokio_loop", tokio, 25), ("poll_loop", poll, 45)] {
        let (before, rest) =
            source.split_once("// The whole tunnel, from the arguments to forwarding.\n").expect("a begin");
        let (tunnel, after) = rest.split_once("// The end of the tunnel.\n").expect("an end");
        assert_eq!(after, "", "{name}");
        // The lines before import, and print the usage and errors.
        assert!(!before.contains("::new(") && !before.contains("::open("), "{name}");
        let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
        let lines = tunnel.lines().filter(is_code).count();
        assert!(lines <= most, "{name} has {lines} lines, at most {most} are allowed");
        for step in ["fn parse(", "Host::new(", "Link::configure(", "Forwarder::new(", "Worker::new("] {
            assert!(tunnel.contains(step), "{name} has no {step}");
        }
        assert!(!source.contains("try_into"), "{name} converts an MTU by itself");
    }
}

#[test]
fn a_loop_prints_its_usage() {
    let without_port = ["100.96.1.0/24", "100.96.0.0/16", "10.168.0.2", "100.96.2.0/24", "10.168.0.3:8285"];
    for (name, wrong) in [
        ("io_uring", [&ON_A[..4], &without_port]),
        ("mio_loop", [&ON_A[..4], &without_port]),
        ("poll_loop", [&ON_A[..4], &without_port]),
        ("tokio_loop", [&ON_A[..4], &without_port]),
        ("static_leases", [&ON_A[..3], &without_port[..4]]),
    ] {
        for args in wrong {
            let output = example(name).args(args).output().expect("run");
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{complaint}");
            assert!(complaint.starts_with("usage: ") && complaint.contains(name), "{complaint}");
            assert_eq!(complaint.lines().count(), 1, "{complaint}");
        }
    }
}

#[test]
fn loops_are_each_others_other_end() {
    let pairs = [["poll_loop", "tokio_loop"], ["tokio_loop", "poll_loop"], ["mio_loop", "mio_loop"]];
    let with_ring = [["io_uring", "io_uring"], ["io_uring", "poll_loop"]];
    for [on_a, on_b] in pairs.into_iter().chain(with_ring.into_iter().filter(|_| has_io_uring())) {
        let hosts = hosts();
        let [mut a, mut b] = [start(&hosts.host_a, on_a, &ON_A), start(&hosts.host_b, on_b, &ON_B)];
        for _ in 0..2 {
            check_traffic(&hosts);
            check_idleness(&[&a, &b]);
        }
        a.signal(Signal::SIGTERM).expect("signalled");
        b.signal(Signal::SIGINT).expect("signalled");
        for (name, child) in [(on_a, &mut a), (on_b, &mut b)] {
            let status = child.wait(Duration::from_secs(1)).expect("waited");
            assert!(status.is_some_and(|status| status.success()), "{name}: {status:?}, {:?}", child.stderr());
        }
        // The kernel ends a ring after its process.
        let links = || hosts.host_a.links().expect("links");
        (0..1000).take_while(|_| links().len() > 3).for_each(|_| thread::sleep(Duration::from_millis(1)));
        assert_eq!(links(), ["lo", TwoHosts::UPLINK, TwoHosts::POD_LINK], "{on_a}");
    }
}

/// The key is in front of each packet, TTLs are those of two routers, and no ICMP error is sent.
#[test]
fn two_cframes_are_each_others_other_end() {
    const KEY: &str = "0123456789abcdef";
    let hosts = hosts();
    let with_key = |key, rest: &[&'static str; 5]| [&[key], rest.as_slice()].concat();
    let mut a = start(&hosts.host_a, "cframe", &with_key(KEY, &ON_A));
    let mut b = start(&hosts.host_b, "cframe", &with_key(KEY, &ON_B));
    check_traffic_with(&hosts, 62);
    let outcomes = |options| hosts.pod_a.enter(|| ping(TwoHosts::POD_B, options)).expect("ping");
    // The tunnel is no router: the kernel of host B sees TTL 1.
    for outcome in outcomes(Ping { count: 1, ttl: Some(2), ..Ping::default() }) {
        assert!(matches!(outcome, PingOutcome::Error { kind: 11, .. }), "{outcome:?}");
    }
    b.signal(Signal::SIGTERM).expect("signalled");
    assert!(b.wait(SOON).expect("waited").is_some_and(|status| status.success()), "{:?}", b.stderr());
    // Another key is another tunnel.
    let mut b = start(&hosts.host_b, "cframe", &with_key("fedcba9876543210", &ON_B));
    for outcome in outcomes(Ping { count: 3, ..Ping::default() }) {
        assert!(matches!(outcome, PingOutcome::Timeout), "{outcome:?}");
    }
    b.signal(Signal::SIGTERM).expect("signalled");
    let counters = b.next_line(SOON).expect("its counters");
    assert!(counters.contains("not_authentic: 3"), "{counters}");
    a.signal(Signal::SIGINT).expect("signalled");
    for child in [&mut a, &mut b] {
        assert!(child.wait(SOON).expect("waited").is_some_and(|status| status.success()), "{:?}", child.stderr());
    }
}

#[test]
fn fault_36_a_loop_ends_with_its_device() {
    let leases = LeaseFile::new("");
    let loops =
        [("mio_loop", &ON_A[..]), ("poll_loop", &ON_A), ("tokio_loop", &ON_A), ("static_leases", &leases.on_a())];
    for (name, args) in loops.into_iter().chain(has_io_uring().then_some(("io_uring", &ON_A[..]))) {
        let hosts = hosts();
        let mut child = start(&hosts.host_a, name, args);
        hosts.host_a.delete_link("loden0").expect("deleted");
        let status = child.wait(Duration::from_secs(1)).expect("waited");
        let complaint = stderr_of(&child, "was deleted");
        assert_eq!(status.and_then(|status| status.code()), Some(1), "{name}: {status:?}, {complaint:?}");
        assert!(complaint.starts_with(&format!("{name}: the TUN device loden0 was deleted")), "{complaint:?}");
    }
}

/// Returns false, and prints the reason, if the kernel refuses `io_uring_setup`.
fn has_io_uring() -> bool {
    match io_uring::IoUring::new(2) {
        Ok(_ring) => true,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            eprintln!("skipped: the example io_uring, because io_uring_setup fails: {error}");
            false
        }
        Err(error) => panic!("io_uring_setup: {error}"),
    }
}

/// Starts one end on a host without IPv6, and returns when it is ready.
fn start(host: &Namespace, name: &str, args: &[&str]) -> Child {
    host.disable_ipv6().expect("sysctl");
    let mut command = example(name);
    command.args(args);
    let child = Child::spawn(host, command).expect("spawned");
    assert_eq!(child.next_line(SOON).expect("a line"), "ready loden0");
    child
}

fn check_traffic(hosts: &TwoHosts) {
    check_traffic_with(hosts, 60);
}

/// Pings and sends in both directions. Replies have this TTL.
fn check_traffic_with(hosts: &TwoHosts, expected: u8) {
    let outcomes = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping { count: 10, ..Ping::default() })).expect("ping");
    for outcome in outcomes {
        assert!(
            matches!(outcome, PingOutcome::Reply { from: TwoHosts::POD_B, ttl, .. } if ttl == expected),
            "{outcome:?}"
        );
    }
    for (from, to, address) in
        [(&hosts.pod_a, &hosts.pod_b, TwoHosts::POD_B), (&hosts.pod_b, &hosts.pod_a, TwoHosts::POD_A)]
    {
        let listener = to.enter(|| TcpListener::bind((address, 0))).expect("bound");
        let destination = listener.local_addr().expect("an address");
        let sink = tcp_sink(listener, 7);
        let sent = from.enter(|| tcp_send(destination, Amount::Bytes(32 << 20), 7)).expect("sent");
        assert_eq!(sink.join().expect("no panic").expect("received").bytes, sent.bytes);
    }
}

/// Asserts at most two context switches in a second, the cost of a signal or a stray packet. A polling loop has a
/// thousand.
fn check_idleness(children: &[&Child]) {
    // TCP's last packets come first.
    thread::sleep(Duration::from_millis(300));
    let all =
        || children.iter().map(|child| (child.context_switches().expect("switches"), child.cpu_time().expect("time")));
    let before: Vec<_> = all().collect();
    thread::sleep(Duration::from_secs(1));
    for ((switches, time), (switches_before, time_before)) in all().zip(before) {
        assert!(switches - switches_before <= 2, "{} context switches while idle", switches - switches_before);
        assert!(time - time_before <= Duration::from_millis(10), "{:?} of CPU time while idle", time - time_before);
    }
}
