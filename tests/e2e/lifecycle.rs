//! Start and end of a tunnel, and changes of its device.

use std::net::UdpSocket;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use loden::sys::{Tun, TunConfig, TunOffload};
use nix::sys::signal::Signal;
use testbed::TwoHosts;
use testbed::probe::{Ping, PingOutcome, ping};

use crate::support::{SECOND, Tunnel, Tunnels, quiet_hosts, wait_until};

/// Returns true if one of three pings is answered: on a busy machine one may be late.
fn reaches(hosts: &TwoHosts) -> bool {
    let answered = || {
        let outcome = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping::default())).unwrap();
        matches!(outcome[..], [PingOutcome::Reply { .. }])
    };
    (0..3).any(|_| answered())
}

/// The flooded directions of the tunnel on host A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flood {
    Both,
    FromPeer,
    FromPod,
}

/// Floods the tunnel on host A from its pod, from its peer or from both during an action.
fn under_flood<T>(hosts: &TwoHosts, flood: Flood, act: impl FnOnce() -> T) -> T {
    /// A guard that ends the floods also if the action panics, because the scope waits for them.
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let outgoing = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).unwrap();
    let incoming = hosts.host_b.enter(|| UdpSocket::bind((TwoHosts::HOST_B, 0))).unwrap();
    std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        scope.spawn(|| {
            while flood != Flood::FromPeer && !stop.load(Ordering::Relaxed) {
                let _ = outgoing.send_to(&[0; 100], (TwoHosts::POD_B, 9));
            }
        });
        scope.spawn(|| {
            while flood != Flood::FromPod && !stop.load(Ordering::Relaxed) {
                let _ = incoming.send_to(&[0x45; 100], (TwoHosts::HOST_A, 8285));
            }
        });
        std::thread::sleep(SECOND / 4);
        act()
    })
}

/// Fault 48: under a flood from both sides it stops within a second, and every packet is counted.
#[test]
fn fault_48_signals_end_it_within_a_second_under_flood() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
        let status = under_flood(&hosts, Flood::Both, || {
            a.child.signal(signal).unwrap();
            a.child.wait(SECOND).unwrap().expect("an end within a second")
        });
        assert!(status.success(), "{signal}: {status}");
        let last = a.last_event();
        assert!(last["encap"]["in"].as_u64() > Some(100) && last["decap"]["in"].as_u64() > Some(100), "{last}");
        wait_until("the device to go", || !hosts.host_a.links().unwrap().contains(&"loden0".into()));
    }
}

/// Fault 49: a flood in one direction does not starve the other.
#[test]
fn fault_49_the_other_direction_is_served_under_flood() {
    const SENT: usize = 50;
    let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
    let ends = [
        (Flood::FromPod, (&hosts.pod_b, TwoHosts::POD_B), (&hosts.pod_a, TwoHosts::POD_A)),
        (Flood::FromPeer, (&hosts.pod_a, TwoHosts::POD_A), (&hosts.pod_b, TwoHosts::POD_B)),
    ];
    for (flood, (from, from_address), (to, to_address)) in ends {
        let sender = from.enter(|| UdpSocket::bind((from_address, 0))).unwrap();
        let receiver = to.enter(|| UdpSocket::bind((to_address, 7))).unwrap();
        receiver.set_read_timeout(Some(SECOND)).unwrap();
        let arrived = under_flood(&hosts, flood, || {
            for _ in 0..SENT {
                sender.send_to(b"served", (to_address, 7)).unwrap();
                std::thread::sleep(SECOND / 100);
            }
            (0..SENT).take_while(|_| receiver.recv(&mut [0; 8]).is_ok()).count()
        });
        assert!(arrived >= SENT * 4 / 5, "{flood:?}: {arrived} of {SENT} arrived");
    }
    let last = a.stop();
    assert!(last["encap"]["in"].as_u64() > Some(1000) && last["decap"]["in"].as_u64() > Some(1000), "{last}");
}

/// Fault 36: the device is deleted, while idle and while forwarding. The tunnel reports it and ends with status 1.
#[test]
fn fault_36_a_deleted_link_ends_it_with_a_sentence() {
    let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
    hosts.host_a.delete_link("loden0").unwrap();
    ends_for_lack_of_a_device(&mut a);

    let mut a = Tunnel::on_a(&hosts, &[]);
    under_flood(&hosts, Flood::Both, || {
        hosts.host_a.delete_link("loden0").unwrap();
        ends_for_lack_of_a_device(&mut a);
    });
}

fn ends_for_lack_of_a_device(tunnel: &mut Tunnel) {
    let status = tunnel.child.wait(SECOND).unwrap().expect("an end within a second");
    assert_eq!(status.code(), Some(1));
    tunnel.says("the TUN device loden0 was deleted");
    tunnel.last_event();
}

/// Fault 37: after the device was down the tunnel continues without a restart, and the overlay's route is restored.
#[test]
fn fault_37_down_and_up_again_goes_on() {
    let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
    assert!(reaches(&hosts));
    for _ in 0..3 {
        hosts.host_a.set_down("loden0").unwrap();
        let overlay = || hosts.host_a.routes().unwrap().iter().any(|route| route.destination == TwoHosts::OVERLAY);
        assert!(!overlay(), "the kernel drops the route");
        hosts.host_a.set_up("loden0").unwrap();
        wait_until("the overlay's route to be back", overlay);
        assert!(reaches(&hosts));
    }
    a.says("the overlay's route");
    a.stop();
}

/// Packets that arrive while the device is down are counted as such, and later packets pass.
#[test]
fn fault_37_packets_for_a_downed_device_are_counted() {
    let Tunnels { hosts, a: _a, mut b } = Tunnels::start();
    hosts.host_b.set_down("loden0").unwrap();
    let quick = Ping { timeout: SECOND / 10, ..Ping::default() };
    hosts.pod_a.enter(|| ping(TwoHosts::POD_B, quick)).unwrap();
    hosts.host_b.set_up("loden0").unwrap();
    wait_until("packets to pass again", || reaches(&hosts));
    let last = b.stop();
    assert!(last["decap"]["dropped"]["tun_down"].as_u64() >= Some(1), "{last}");
}

/// R61: only a dead peer loses packets. Linux reports nothing about one to an unconnected socket, so that no peer has
/// send errors and nothing counts as lost (fault 31; `blame` has the errors that Linux reports).
#[test]
fn r61_fault_31_a_dead_peer_affects_no_other_peer() {
    let hosts = quiet_hosts();
    let mut a = Tunnel::on_a(&hosts, &["--route", "100.96.3.0/24=10.168.0.99"]);
    let mut b = Tunnel::on_b(&hosts, &[]);
    let start = Instant::now();
    let socket = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).unwrap();
    let mut sent = 0;
    // 10.168.0.99 is unused: neighbour resolution fails repeatedly.
    while start.elapsed() < 2 * SECOND {
        sent += u64::from(socket.send_to(b"anybody?", ("100.96.3.3", 9)).is_ok());
        assert!(reaches(&hosts));
    }
    assert!(sent > 100, "{sent} packets to nobody");
    // Host B's tunnel ends, so that its port is closed and its host reports that.
    b.stop();
    for _ in 0..10 {
        socket.send_to(b"still there?", (TwoHosts::POD_B, 9)).unwrap();
        std::thread::sleep(SECOND / 100);
    }
    let b = Tunnel::on_b(&hosts, &[]);
    wait_until("packets to pass again", || reaches(&hosts));
    let last = a.stop();
    assert_eq!(last["send_errors"], serde_json::json!({}), "{last}");
    let mut lost = last["encap"]["dropped"].as_object().unwrap().values();
    assert!(lost.all(|count| *count == 0), "{last}");
    assert!(last["encap"]["forwarded"].as_u64() >= Some(2 * sent + 10), "{last}");
    drop(b);
}

/// SIGHUP without a file is logged and ignored.
#[test]
fn sighup_without_a_file_changes_nothing() {
    let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
    a.child.signal(Signal::SIGHUP).unwrap();
    a.says("no --routes-file");
    assert!(reaches(&hosts));
    a.stop();
}

/// SIGHUP replaces the file's routes, and no others. A bad line is named and the others apply.
#[test]
fn sighup_reads_the_file_again() {
    let hosts = TwoHosts::new().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let write = |text: &str| std::fs::write(file.path(), text).unwrap();
    write("# hosts\n100.96.2.0/24 10.168.0.3\n\n100.96.3.0/24 10.168.0.4:9000 # another\nnonsense\n");
    let path = file.path().to_str().unwrap();
    let args = ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2", "--stats", "0.05", "--routes-file", path];
    let mut a = Tunnel::start(&hosts.host_a, &[&args[..], &["--route", "100.96.7.0/24=10.168.0.7"]].concat());
    let _b = Tunnel::on_b(&hosts, &[]);
    a.says("line 5: \"nonsense\"");
    let routes = |a: &Tunnel, count: u64| wait_until("routes", || a.next_event()["routes"] == count);
    routes(&a, 3);
    assert!(reaches(&hosts));

    write("100.96.3.0/24 10.168.0.4\n100.96.4.0/24 10.168.0.4\n100.96.7.0/24 10.168.0.3\n100.96.5.0/24 0.0.0.0\n");
    a.child.signal(Signal::SIGHUP).unwrap();
    a.says("line 3: the route of 100.96.7.0/24 was given on the command line");
    a.says("line 4: route 100.96.5.0/24 via 0.0.0.0:8285 is refused");
    routes(&a, 3);
    assert!(!reaches(&hosts), "its route was in the old file alone");

    // The file is removed, and its routes stay.
    let moved = file.path().with_extension("away");
    std::fs::rename(file.path(), &moved).unwrap();
    a.child.signal(Signal::SIGHUP).unwrap();
    a.says("its routes stay as they are");
    std::fs::rename(&moved, file.path()).unwrap();
    write("100.96.2.0/24 10.168.0.3\n");
    a.child.signal(Signal::SIGHUP).unwrap();
    wait_until("packets to pass again", || reaches(&hosts));
    routes(&a, 2);
    a.stop();
}

/// The first bad lines are named and the others counted. A line that is not text affects no other.
#[test]
fn bad_lines_are_named_and_counted() {
    let hosts = TwoHosts::new().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut text = b"100.96.2.0/24 10.168.0.3\n\xff\xfe\n".to_vec();
    (3..=40).for_each(|number| text.extend_from_slice(format!("bad{number}\n").as_bytes()));
    text.extend_from_slice(b"100.96.3.0/24 10.168.0.4\n100.96.3.0/24 10.168.0.3\n100.96.4.0/24 0.0.0.0\n");
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_str().unwrap();
    let args = ["--subnet", "100.96.1.0/24", "--listen", "10.168.0.2", "--routes-file", path];
    let mut a = Tunnel::start(&hosts.host_a, &args);
    for number in 2..=11 {
        a.says(&format!("line {number}: "));
    }
    a.says("and 31 more bad lines");
    a.child.signal(Signal::SIGHUP).unwrap();
    a.says("2 routes in all, 41 bad lines");
    assert_eq!(a.stop()["routes"], 2);
    assert!(!a.child.stderr().contains("line 12: "));
}

/// Nobody reads its output: packets and signals do not wait for a reader.
#[test]
fn an_unread_pipe_holds_nothing_up() {
    let hosts = TwoHosts::new().unwrap();
    let mut command = std::process::Command::new(crate::support::program("tunnel"));
    command.args(["--network", "100.96.0.0/16", "--subnet", "100.96.1.0/24", "--listen", "10.168.0.2"]);
    command.args(["--route", "100.96.2.0/24=10.168.0.3", "--stats", "0.001"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Killed(hosts.host_a.enter(|| command.spawn()).unwrap());
    let _b = Tunnel::on_b(&hosts, &[]);
    // Long enough for its lines to fill a pipe's 64 KiB several times over.
    std::thread::sleep(2 * SECOND);
    assert!(reaches(&hosts));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0.id() as i32), Signal::SIGTERM).unwrap();
    let mut status = None;
    wait_until("its end", || {
        status = child.0.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}

/// A process whose output nobody reads, and which ends with the test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fault 40: a persistent device with an address and a route of its own is taken over, and left unchanged.
#[test]
fn fault_40_a_persistent_device_keeps_what_it_had() {
    let Tunnels { hosts, mut a, b: _b } = Tunnels::start();
    a.stop();
    let host = &hosts.host_a;
    host.enter(|| Tun::open(&TunConfig::new("kept0").with_offload(TunOffload::NONE)).unwrap().set_persistent(true))
        .unwrap();
    host.set_up("kept0").unwrap();
    host.add_address("kept0", "100.96.1.0/32".parse().unwrap()).unwrap();
    host.add_route(TwoHosts::OVERLAY, None, "kept0").unwrap();
    let overlay = || host.routes().unwrap().iter().any(|route| route.destination == TwoHosts::OVERLAY);
    for attempt in 0..3 {
        let mut a = Tunnel::on_a(&hosts, &["--tun", "kept0"]);
        assert!(reaches(&hosts), "attempt {attempt}");
        if attempt == 1 {
            host.set_down("kept0").unwrap();
            host.set_up("kept0").unwrap();
            wait_until("the overlay's route to be back", overlay);
            assert!(reaches(&hosts));
        }
        if attempt == 2 {
            a.child.signal(Signal::SIGKILL).unwrap();
            a.child.wait(SECOND).unwrap();
        } else {
            a.stop();
        }
        assert!(host.links().unwrap().contains(&"kept0".into()));
        assert_eq!(host.addresses("kept0").unwrap(), ["100.96.1.0/32".parse().unwrap()]);
        assert!(overlay(), "attempt {attempt}");
    }
    host.delete_link("kept0").unwrap();
}
