//! A node whose leases come from a file.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use testbed::probe::{Ping, PingOutcome, ping};
use testbed::{Child, TwoHosts};

use crate::{SOON, check_idleness, check_traffic, hosts, start, stderr_of};

/// A file that the hosts share, in a directory of its own.
pub(crate) struct LeaseFile {
    directory: tempfile::TempDir,
    path: String,
}

impl LeaseFile {
    pub(crate) fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let watched = directory.path().join("watched");
        std::fs::create_dir(&watched).expect("created");
        let path = watched.join("leases").to_str().expect("a path of text").to_owned();
        std::fs::write(&path, text).expect("written");
        Self { directory, path }
    }

    /// As editors and configuration managers do it, but beside the directory that is watched: a node reads the old file again
    /// when another one is written there, and its line would be taken for the one about the new.
    fn replace(&self, text: &str) {
        let next = self.directory.path().join("next");
        std::fs::write(&next, text).expect("written");
        std::fs::rename(next, &self.path).expect("renamed");
    }

    pub(crate) fn on_a(&self) -> [&str; 4] {
        ["100.96.1.0/24", "100.96.0.0/16", "10.168.0.2:8285", &self.path]
    }

    fn on_b<'a>(&'a self, listen: &'a str) -> [&'a str; 4] {
        ["100.96.2.0/24", "100.96.0.0/16", listen, &self.path]
    }
}

#[test]
fn hosts_that_share_a_file_of_leases_follow_it() {
    let hosts = hosts();
    let file = LeaseFile::new("# all hosts\n100.96.1.0/24 10.168.0.2\n\n100.96.2.0/24\t10.168.0.3:8285 # b\n");
    let listen_b = ["10.168.0.3:8285", "10.168.0.4:8285"];
    let mut a = start(&hosts.host_a, "static_leases", &file.on_a());
    let mut b = start(&hosts.host_b, "static_leases", &file.on_b(listen_b[0]));
    [&a, &b].iter().for_each(|child| wait_for_line(child, "1 routes and our own lease"));
    check_traffic(&hosts);
    check_idleness(&[&a, &b]);
    assert_eq!((a.stderr(), b.stderr()), (String::new(), String::new()));

    // Host B gets another address: the old one is nobody's, and by the old file our lease is somebody else's.
    b.signal(Signal::SIGINT).expect("signalled");
    assert!(b.wait(SOON).expect("waited").is_some_and(|status| status.success()), "{:?}", b.stderr());
    hosts.host_b.add_address(TwoHosts::UPLINK, "10.168.0.4/24".parse().expect("an address")).expect("added");
    let mut b = start(&hosts.host_b, "static_leases", &file.on_b(listen_b[1]));
    wait_for_line(&b, "1 routes but no lease of our own");
    stderr_of(&b, "the lease of 100.96.2.0/24 to 10.168.0.3:8285 is refused: the subnet belongs to this host's own");
    assert!(!reaches(&hosts), "nobody serves 10.168.0.3");
    file.replace("100.96.2.0/24 10.168.0.4\n100.96.1.0/24 10.168.0.2\n");
    [&a, &b].iter().for_each(|child| wait_for_line(child, "1 routes and our own lease"));
    check_traffic(&hosts);

    // The file is gone: what it said stays in force.
    std::fs::remove_file(&file.path).expect("removed");
    let gone = format!("{}: No such file or directory (os error 2); its leases stay in force\n", file.path);
    assert_eq!(stderr_of(&a, "stay in force"), gone);
    wait_for_line(&a, "1 routes and our own lease");
    assert!(reaches(&hosts));

    // A broken line spoils no other, nor one that is not even text, nor a host that claims what is ours.
    let mut text = b"100.96.2.0/24 10.168.0.4\nnonsense\n\xff\xfe\n100.96.3.0/24 10.168.0.5:9\n".to_vec();
    text.extend_from_slice(b"100.96.1.0/24 10.168.0.6\n100.96.1.0/24 10.168.0.2\n100.96.4.0/24 10.168.0.7 more\n");
    std::fs::write(&file.path, text).expect("written");
    wait_for_line(&a, "2 routes and our own lease");
    let said = stderr_of(&a, "is refused");
    let named = |line: &str| said.contains(&format!("{}: {line} is not SUBNET ADDR[:PORT]\n", file.path));
    assert!(
        named("\"nonsense\"") && named("\"100.96.4.0/24 10.168.0.7 more\"") && named("\"\u{fffd}\u{fffd}\""),
        "{said}"
    );
    assert!(said.contains("the lease of 100.96.1.0/24 to 10.168.0.6:8285 is refused"), "{said}");
    assert_eq!(said.lines().count(), 5, "{said}");
    assert!(reaches(&hosts));

    for (child, signal) in [(&mut a, Signal::SIGINT), (&mut b, Signal::SIGTERM)] {
        child.signal(signal).expect("signalled");
        let status = child.wait(SOON).expect("waited");
        assert!(status.is_some_and(|status| status.success()), "{status:?}, {:?}", child.stderr());
    }
    assert_eq!(hosts.host_a.links().expect("links"), ["lo", TwoHosts::UPLINK, TwoHosts::POD_LINK]);
}

/// The kernel's table does not change as hosts come and go: the overlay is one route, before and after.
#[test]
fn a_thousand_leases_are_one_route_of_the_kernel() {
    let hosts = hosts();
    let before = hosts.host_a.routes().expect("routes");
    let all: Vec<_> = (0..1000u32)
        .map(|i| format!("100.{}.{}.0/24 10.168.{}.{}\n", 100 + i / 256, i % 256, 1 + i / 250, 1 + i % 250))
        .collect();
    let file = LeaseFile::new(&format!("{}100.96.1.0/24 10.168.0.2\n", all.concat()));
    let [subnet, _, listen, path] = file.on_a();
    let child = start(&hosts.host_a, "static_leases", &[subnet, "100.64.0.0/10", listen, path]);
    let overlay = || {
        let mut routes = hosts.host_a.routes().expect("routes");
        routes.retain(|route| !before.contains(route));
        let routes = routes.iter().map(|route| (route.destination.to_string(), route.link.clone(), route.gateway));
        assert_eq!(routes.collect::<Vec<_>>(), [("100.64.0.0/10".to_owned(), Some("loden0".to_owned()), None)]);
    };
    wait_for_line(&child, "1000 routes and our own lease");
    overlay();
    file.replace(&all[..500].concat());
    wait_for_line(&child, "500 routes but no lease of our own");
    overlay();
    file.replace("");
    wait_for_line(&child, "0 routes but no lease of our own");
    overlay();
    assert_eq!(child.stderr(), "");
}

/// Fault 37, in the loop of that example.
#[test]
fn the_node_of_static_leases_bears_that_its_device_goes_down() {
    let hosts = hosts();
    let file = LeaseFile::new("100.96.1.0/24 10.168.0.2\n100.96.2.0/24 10.168.0.3\n");
    let _a = start(&hosts.host_a, "static_leases", &file.on_a());
    let _b = start(&hosts.host_b, "static_leases", &file.on_b("10.168.0.3:8285"));
    assert!(reaches(&hosts));
    hosts.host_a.set_down("loden0").expect("set down");
    hosts.host_a.set_up("loden0").expect("set up");
    assert!((0..100).any(|_| reaches(&hosts)), "the overlay's route is back");
}

/// Fault 56: a million bad lines, a FIFO, and a million leases while it ends. No packet waits, and few lines are printed.
#[test]
fn fault_56_a_long_file_of_leases_delays_no_packet() {
    const BOTH: &str = "100.96.1.0/24 10.168.0.2\n100.96.2.0/24 10.168.0.3\n";
    const MILLION: u32 = 1_000_000;
    let hosts = hosts();
    let file = LeaseFile::new(BOTH);
    let mut a = start(&hosts.host_a, "static_leases", &file.on_a());
    // Of a file of its own, whose length does not matter.
    let other = LeaseFile::new(BOTH);
    let _b = start(&hosts.host_b, "static_leases", &other.on_b("10.168.0.3:8285"));
    wait_for_line(&a, "1 routes and our own lease");
    assert!(reaches(&hosts));

    file.replace(
        &(BOTH.to_owned() + &(0..MILLION).map(|number| format!("bad {number} {number}\n")).collect::<String>()),
    );
    let (start_of_reading, mut longest, mut pings) = (Instant::now(), Duration::ZERO, 0);
    while !a.stderr().contains("and 999990 more of these") {
        assert!(start_of_reading.elapsed() < 12 * SOON, "{} lines", a.stderr().lines().count());
        std::thread::sleep(Duration::from_millis(10));
        let outcome = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping { timeout: 10 * SOON, ..Ping::default() }));
        let [PingOutcome::Reply { rtt, .. }] = outcome.expect("ping")[..] else { panic!("a packet was lost") };
        (longest, pings) = (longest.max(rtt), pings + 1);
    }
    assert!(longest < SOON / 10 && pings > 0, "the slowest of {pings} pings took {longest:?}");
    assert_eq!(a.stderr().lines().count(), 11, "{}", a.stderr());

    let fifo = file.directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("a FIFO");
    std::fs::rename(&fifo, &file.path).expect("renamed");
    stderr_of(&a, "this is no regular file; its leases stay in force");
    assert!(reaches(&hosts));

    let lease = |number| format!("{}/32 10.168.0.3\n", Ipv4Addr::from_bits(0x6460_8000 + number));
    file.replace(&(0..MILLION).map(lease).collect::<String>());
    a.signal(Signal::SIGTERM).expect("signalled");
    let status = a.wait(Duration::from_secs(2)).expect("waited");
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

/// Fault 56: nobody reads its two outputs, which are full.
#[test]
fn fault_56_the_node_of_static_leases_waits_for_no_reader() {
    let hosts = hosts();
    let file = LeaseFile::new("100.96.1.0/24 10.168.0.2\n100.96.2.0/24 10.168.0.3\nnonsense\n");
    let (_unread, full) = full_pipe();
    let mut command = crate::example("static_leases");
    command.args(file.on_a()).stdin(Stdio::null()).stdout(full.try_clone().expect("a copy")).stderr(full);
    let mut a = hosts.host_a.enter(|| command.spawn()).expect("spawned");
    let _b = start(&hosts.host_b, "static_leases", &file.on_b("10.168.0.3:8285"));
    let reached = (0..20).any(|_| reaches(&hosts));
    // A lease that comes is taken, although its line is not.
    file.replace("100.96.1.0/24 10.168.0.2\n");
    let forgot = (0..20).any(|_| !reaches(&hosts));
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(a.id() as i32), Signal::SIGTERM);
    let start = Instant::now();
    while a.try_wait().expect("waited").is_none() && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = a.kill();
    assert!(a.wait().expect("waited").success(), "SIGTERM ends it");
    assert!(reached && forgot);
}

/// A pipe that takes no byte more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("non-blocking");
    while writer.write(&[b'.'; 1000]).is_ok() {}
    while writer.write(b".").is_ok() {}
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).expect("blocking");
    (reader, writer)
}

/// Reads on until a program has written this line.
fn wait_for_line(child: &Child, wanted: &str) {
    while child.next_line(SOON).expect(wanted) != wanted {}
}

/// Returns true if one of three pings is answered: on a busy machine one may be late.
fn reaches(hosts: &TwoHosts) -> bool {
    let answered = || {
        let outcomes = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping::default())).expect("ping");
        matches!(outcomes[..], [PingOutcome::Reply { from: TwoHosts::POD_B, .. }])
    };
    (0..3).any(|_| answered())
}
