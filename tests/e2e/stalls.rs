//! Output without a reader, files of a million lines and clients that stall: packets flow, and SIGTERM works (fault
//! 56).

use std::io::{BufRead, BufReader, PipeReader, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use loden::control::Command;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use testbed::TwoHosts;
use testbed::probe::{Ping, PingOutcome, ping};

use crate::support::{SECOND, Tunnel, Tunnels, program, run, spawn, wait_until};

/// The limit also on a busy machine: far below the time in which a debug build reads a million lines.
const LONGEST_RTT: Duration = Duration::from_secs(3);
const MILLION: u32 = 1_000_000;
const HOST_A: [&str; 6] = ["--network", "100.96.0.0/16", "--subnet", "100.96.1.0/24", "--listen", "10.168.0.2"];
const ROUTE: [&str; 2] = ["--route", "100.96.2.0/24=10.168.0.3"];

/// Pings from pod to pod every 10 ms during an action: no packet waits longer than [`LONGEST_RTT`].
fn while_packets_flow<T>(hosts: &TwoHosts, act: impl FnOnce() -> T) -> T {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (stop, mut longest, mut pings) = (AtomicBool::new(false), Duration::ZERO, 0);
    let done = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let one = Ping { timeout: 10 * SECOND, ..Ping::default() };
                let outcome = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, one)).unwrap();
                let [PingOutcome::Reply { rtt, .. }] = outcome[..] else { panic!("lost: {outcome:?}") };
                (longest, pings) = (longest.max(rtt), pings + 1);
                std::thread::sleep(SECOND / 100);
            }
        });
        let ends = Ends(&stop);
        let done = act();
        drop(ends);
        pinging.join().unwrap();
        done
    });
    println!("the slowest of {pings} pings took {longest:?}");
    assert!(longest < LONGEST_RTT && pings > 0, "the slowest of {pings} pings took {longest:?}");
    done
}

/// A tunnel on host A whose standard error is a full pipe, and its lines once somebody reads them.
struct Unheard {
    process: std::process::Child,
    stderr: PipeReader,
    _stdout: Option<PipeReader>,
    lines: Option<Receiver<Value>>,
}

#[derive(PartialEq, Eq)]
enum Stdout {
    Read,
    Full,
}

impl Unheard {
    fn start(hosts: &TwoHosts, stdout: Stdout, more: &[&str]) -> Self {
        let (stderr, full) = full_pipe();
        let mut command = std::process::Command::new(program("tunnel"));
        command.args(HOST_A).args(ROUTE).args(more).stdin(Stdio::null()).stderr(full);
        let _stdout = match stdout {
            Stdout::Read => {
                command.stdout(Stdio::piped());
                None
            }
            Stdout::Full => {
                let (unread, full) = full_pipe();
                command.stdout(full);
                Some(unread)
            }
        };
        let mut process = hosts.host_a.enter(|| command.spawn()).unwrap();
        let lines = process.stdout.take().map(|stdout| {
            let (says, lines) = channel();
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let _ = says.send(serde_json::from_str(&line).expect("JSON"));
                }
            });
            lines
        });
        Self { process, stderr, _stdout, lines }
    }

    fn wait_for(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        let lines = self.lines.as_ref().expect("somebody who reads");
        wait_until(what, || holds(&lines.recv_timeout(5 * SECOND).expect("a line")));
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Asserts that SIGTERM ends it, with status 0, within two seconds.
    fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            assert!(start.elapsed() < 2 * SECOND, "it still runs {:?} after SIGTERM", start.elapsed());
            std::thread::sleep(SECOND / 100);
        }
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns a full pipe, which blocks its writers.
fn full_pipe() -> (PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'.'; 1000]).is_ok() {}
    while writer.write(b".").is_ok() {}
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

fn connect(path: &Path) -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    wait_until("the control socket", || socket.connect(&SockAddr::unix(path).unwrap()).is_ok());
    // A stalled tunnel fails the test.
    socket.set_write_timeout(Some(5 * SECOND)).unwrap();
    socket
}

fn write_lines(path: &Path, line: impl Fn(u32) -> String) {
    std::fs::write(path, (0..MILLION).map(line).collect::<String>()).unwrap();
}

/// Returns routes of a million addresses from 100.112.0.0 on, over 16 next hops.
fn good_line(number: u32) -> String {
    format!("{}/32 10.168.0.3:{}\n", Ipv4Addr::from_bits(0x6470_0000 + number), 9000 + number % 16)
}

/// Standard error is full, and a line longer than a pipe is due: packets, counters and SIGTERM do not wait for a
/// reader. A later reader gets the number of lost lines.
#[test]
fn fault_56_50_standard_error_that_nobody_reads() {
    let hosts = TwoHosts::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (file, control) = (directory.path().join("routes"), directory.path().join("control"));
    std::fs::write(&file, "").unwrap();
    let args = ["--stats", "0.05", "--routes-file", file.to_str().unwrap(), "--control", control.to_str().unwrap()];
    let mut a = Unheard::start(&hosts, Stdout::Read, &args);
    let _b = Tunnel::on_b(&hosts, &[]);
    let (client, start) = (connect(&control), Instant::now());
    std::fs::write(&file, format!("{}\n", "x".repeat(200_000)).repeat(5)).unwrap();
    while_packets_flow(&hosts, || {
        for number in 0..1000 {
            client.send(&[9; 20]).unwrap();
            if number % 3 == 0 {
                a.signal(Signal::SIGHUP);
            }
            std::thread::sleep(SECOND / 1000);
        }
        a.wait_for("all of them counted", |event| event["anomalies"]["control_malformed"] == 1000);
    });
    // Somebody reads again, and gets a bounded number of lines.
    let mut said = Vec::new();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| std::io::Read::read_to_end(&mut a.stderr.try_clone().unwrap(), &mut said));
        a.signal(Signal::SIGTERM);
        a.wait_for("its last line", |event| event["event"] == "stopped");
        let _ = a.process.wait();
        reading.join().unwrap().unwrap();
    });
    let said = String::from_utf8(said).unwrap();
    let lines: Vec<_> = said.trim_start_matches('.').lines().collect();
    let about = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert!(lines.iter().all(|line| line.len() < 1000), "no line is as long as the file's");
    let left_out = |cause: &str| -> usize {
        let counts =
            lines.iter().filter_map(|line| line.strip_suffix(&format!(" more messages about {cause} were left out)")));
        counts.map(|count| count.trim_start_matches('(').parse::<usize>().unwrap()).sum()
    };
    let most = 20 * (start.elapsed().as_secs() as usize / 10 + 1);
    assert_eq!(about("control: ") + left_out("malformed commands"), 1000, "{said}");
    assert!((1..=most).contains(&about("control: ")), "at most {most}: {said}");
    assert!(about("line 1: ") >= 1 && about(" line ") <= most && about("SIGHUP: ") >= 1, "{said}");
}

/// The same with neither output read.
#[test]
fn fault_56_neither_output_is_read() {
    let hosts = TwoHosts::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let control = directory.path().join("control");
    let mut a = Unheard::start(&hosts, Stdout::Full, &["--stats", "0.001", "--control", control.to_str().unwrap()]);
    let _b = Tunnel::on_b(&hosts, &[]);
    let client = connect(&control);
    while_packets_flow(&hosts, || {
        for _ in 0..500 {
            client.send(&[9; 20]).unwrap();
            std::thread::sleep(SECOND / 1000);
        }
    });
    a.stop();
}

/// A million lines, all valid and then all invalid, are read while packets flow. Invalid ones are summed up, and
/// SIGTERM works meanwhile.
#[test]
fn fault_56_a_file_of_a_million_lines() {
    let hosts = TwoHosts::new().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let mut a = Tunnel::on_a(&hosts, &["--routes-file", path]);
    let _b = Tunnel::on_b(&hosts, &[]);
    let slow = 120 * SECOND;
    let says = |a: &Tunnel, text: &str| {
        let start = Instant::now();
        while !a.child.stderr().contains(text) {
            assert!(start.elapsed() < slow, "{text:?} not in {}", a.child.stderr());
            std::thread::sleep(SECOND / 50);
        }
    };
    write_lines(file.path(), good_line);
    while_packets_flow(&hosts, || {
        a.child.signal(Signal::SIGHUP).unwrap();
        says(&a, "1000001 routes in all");
    });
    write_lines(file.path(), |number| format!("bad {number}\n"));
    while_packets_flow(&hosts, || {
        a.child.signal(Signal::SIGHUP).unwrap();
        says(&a, "1 routes in all, 1000000 bad lines");
    });
    let said = a.child.stderr();
    let named = said.lines().filter(|line| line.contains(" line ")).count();
    assert_eq!((named, said.matches("and 999990 more bad lines").count()), (10, 1), "{said}");
    write_lines(file.path(), good_line);
    a.child.signal(Signal::SIGHUP).unwrap();
    // All requests during the reading are one request.
    for _ in 0..100 {
        a.child.signal(Signal::SIGHUP).unwrap();
        std::thread::sleep(SECOND / 1000);
    }
    a.child.signal(Signal::SIGTERM).unwrap();
    let status = a.child.wait(2 * SECOND).unwrap().expect("an end within two seconds");
    assert!(status.success());
    a.last_event();
}

/// SIGTERM does not wait for the first reading either.
#[test]
fn fault_56_sigterm_while_a_long_file_is_read_at_the_start() {
    let hosts = TwoHosts::new().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    write_lines(file.path(), good_line);
    let mut a = spawn(&hosts.host_a, &[&HOST_A[..], &["--routes-file", file.path().to_str().unwrap()]].concat());
    std::thread::sleep(SECOND / 4);
    assert!(a.wait(Duration::ZERO).unwrap().is_none(), "{}", a.stderr());
    a.signal(Signal::SIGTERM).unwrap();
    assert!(a.wait(SECOND).unwrap().expect("an end within a second").success());
    assert_eq!(hosts.host_a.links().unwrap(), ["lo", "eth0", "pod0"]);
}

/// A directory, a FIFO without a writer, a device and a missing file are named, and nothing hangs.
#[test]
fn fault_56_files_that_are_no_files_of_lines() {
    let hosts = TwoHosts::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let at = |path: &Path| [&HOST_A[..], &["--routes-file", path.to_str().unwrap()]].concat().join("\n");
    for (path, sentence) in [
        (directory.path(), "this is a directory"),
        (&fifo, "this is a FIFO or a device"),
        (Path::new("/dev/zero"), "this is a FIFO or a device"),
    ] {
        for more in [&[][..], &["--check"]] {
            let args = at(path);
            let (status, said) = run(&hosts.host_a, &[&args.split('\n').collect::<Vec<_>>()[..], more].concat());
            assert_eq!(status.code(), Some(2), "{said}");
            assert!(said.contains(sentence), "{said}");
        }
    }
    // The same while it runs. The routes stay.
    let file = directory.path().join("routes");
    std::fs::write(&file, "100.96.2.0/24 10.168.0.3\n").unwrap();
    let mut a = Tunnel::start(&hosts.host_a, &[&HOST_A[2..], &["--routes-file", file.to_str().unwrap()]].concat());
    let _b = Tunnel::on_b(&hosts, &[]);
    while_packets_flow(&hosts, || {
        std::fs::rename(&fifo, &file).unwrap();
        a.child.signal(Signal::SIGHUP).unwrap();
        a.says("this is a FIFO or a device; give a regular file; its routes stay as they are");
        std::fs::remove_file(&file).unwrap();
        a.child.signal(Signal::SIGHUP).unwrap();
        a.says("No such file or directory (os error 2); its routes stay as they are");
    });
    assert_eq!(a.stop()["routes"], 1);
}

/// Clients that send nothing, half a message, or more than can be applied, also while a long file is read.
#[test]
fn fault_56_clients_that_stall_or_flood() {
    let hosts = TwoHosts::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (file, control) = (directory.path().join("routes"), directory.path().join("control"));
    std::fs::write(&file, "").unwrap();
    let args = ["--stats", "0.05", "--routes-file", file.to_str().unwrap(), "--control", control.to_str().unwrap()];
    let mut a = Tunnel::start(&hosts.host_a, &[&HOST_A[2..], &ROUTE, &args].concat());
    let _b = Tunnel::on_b(&hosts, &[]);
    let _silent: Vec<_> = (0..200).map(|_| connect(&control)).collect();
    let half = connect(&control);
    half.send(&[1; 10]).unwrap();
    write_lines(&file, good_line);
    a.child.signal(Signal::SIGHUP).unwrap();
    let flooding = connect(&control);
    flooding.set_nonblocking(true).unwrap();
    let mut sent = 0;
    while_packets_flow(&hosts, || {
        let start = Instant::now();
        while start.elapsed() < 3 * SECOND {
            let subnet = format!("100.97.{}.0/24", sent % 256).parse().unwrap();
            let next_hop = format!("10.168.0.{}:8285", 3 + sent % 7).parse().unwrap();
            match flooding.send(&Command::SetRoute { subnet, next_hop }.encode()) {
                Ok(_) => sent += 1,
                Err(_) => std::thread::sleep(SECOND / 10_000),
            }
        }
    });
    assert!(sent > 1000, "{sent} sent");
    a.child.signal(Signal::SIGTERM).unwrap();
    assert!(a.child.wait(2 * SECOND).unwrap().expect("an end within two seconds").success());
    a.last_event();
}

/// Fault 63: a route that is deleted repeatedly is restored each time, with a few messages.
#[test]
fn fault_63_a_route_that_flaps_is_a_few_sentences() {
    let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
    let said_before = a.child.stderr().lines().count();
    let start = Instant::now();
    for _ in 0..1000 {
        wait_until("the overlay's route", || hosts.host_a.delete_route(TwoHosts::OVERLAY).is_ok());
    }
    for number in 0..200 {
        if number % 2 == 0 { hosts.host_a.set_down("eth0") } else { hosts.host_a.set_up("eth0") }.unwrap();
        std::thread::sleep(SECOND / 1000);
    }
    // Twenty of each cause in each ten seconds, and the number of suppressed ones.
    let most = 2 * 21 * (start.elapsed().as_secs() as usize / 10 + 1) + 1;
    a.stop();
    let said = a.child.stderr();
    let lines: Vec<_> = said.lines().skip(said_before).collect();
    let about = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert!((1..=most).contains(&lines.len()), "{} lines, at most {most}: {said}", lines.len());
    assert!(about("put back what the TUN device had lost") >= 10 && about("eth0 is down") >= 5, "{said}");
    assert!(about("more messages about the overlay's route were left out") >= 1, "{said}");
    assert!(about("more messages about the underlay's interface were left out") >= 1, "{said}");
}

/// R72: packets that the TUN's own queue dropped are shown beside the counters.
#[test]
fn r72_packets_that_the_queue_of_the_device_dropped_are_shown() {
    let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
    a.child.signal(Signal::SIGSTOP).unwrap();
    let socket = hosts.pod_a.enter(|| std::net::UdpSocket::bind((TwoHosts::POD_A, 0))).unwrap();
    for _ in 0..2000 {
        socket.send_to(b"unread", (TwoHosts::POD_B, 9)).unwrap();
    }
    a.child.signal(Signal::SIGCONT).unwrap();
    // The packets in the queue leave it first.
    wait_until("an answer", || {
        let quick = Ping { timeout: SECOND / 4, ..Ping::default() };
        matches!(hosts.pod_a.enter(|| ping(TwoHosts::POD_B, quick)).unwrap()[..], [PingOutcome::Reply { .. }])
    });
    let last = a.stop();
    let (read, dropped) = (last["encap"]["in"].as_u64().unwrap(), last["device"]["queue_dropped"].as_u64().unwrap());
    assert!(dropped >= 1000 && read + dropped >= 2000 && read + dropped < 2100, "{last}");
}
