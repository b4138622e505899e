//! Changes of the MTUs of the TUN device and of the underlay while packets flow: no packet is truncated, and ICMP
//! errors have the new MTU at once.

use std::collections::BTreeSet;
use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::cmsg_space;
use nix::libc::{self, sock_extended_err};
use nix::sys::socket::sockopt::Ipv4RecvErr;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt};
use testbed::TwoHosts;
use testbed::probe::{Fragmentation, Ping, PingOutcome, ping};

use crate::support::{SECOND, Tunnel, Tunnels, wait_until};

/// The IPv4 and ICMP headers of a ping, or the IPv4 and UDP headers of a datagram.
const HEADERS: usize = 28;

/// A sequence of MTUs of the underlay and of the TUN: each is lowered and raised, and each is the lower one at times.
const STEPS: [(u32, u32); 8] =
    [(1500, 1472), (1400, 1472), (1400, 1300), (1500, 1300), (9000, 1300), (9000, 8972), (2000, 8972), (2000, 600)];

/// Returns two tunnels with pods of a larger MTU.
fn wide(more: &[&str]) -> Tunnels {
    let tunnels = Tunnels::with(more, more);
    let hosts = &tunnels.hosts;
    for (namespace, link) in [
        (&hosts.host_a, TwoHosts::POD_LINK),
        (&hosts.pod_a, TwoHosts::UPLINK),
        (&hosts.host_b, TwoHosts::POD_LINK),
        (&hosts.pod_b, TwoHosts::UPLINK),
    ] {
        namespace.set_mtu(link, 9000).unwrap();
    }
    tunnels
}

fn limit(underlay: u32, tun: u32) -> u32 {
    tun.min(underlay - 28)
}

/// Sets both ends' MTUs, and waits until both tunnels have applied them.
fn set(tunnels: &Tunnels, underlay: u32, tun: u32) {
    let ends = [(&tunnels.hosts.host_a, &tunnels.a), (&tunnels.hosts.host_b, &tunnels.b)];
    for (host, tunnel) in ends {
        host.set_mtu(TwoHosts::UPLINK, underlay).unwrap();
        host.set_mtu(tunnel.tun(), tun).unwrap();
    }
    for (_, tunnel) in ends {
        let expected = serde_json::json!({
            "event": "mtu", "limit": limit(underlay, tun), "tun": tun, "underlay": underlay,
        });
        wait_until("the tunnel to notice", || tunnel.next_event() == expected);
    }
}

/// Sends a ping of this many bytes with DF, regardless of the path MTU that the pods' kernels have learned.
fn ping_of(hosts: &TwoHosts, len: u32, timeout: Duration) -> PingOutcome {
    for pod in [&hosts.pod_a, &hosts.pod_b] {
        pod.forget_path_mtus().unwrap();
    }
    let payload_len = len as usize - HEADERS;
    let settings = Ping { payload_len, timeout, fragmentation: Fragmentation::Forbidden, ..Ping::default() };
    hosts.pod_a.enter(|| ping(TwoHosts::POD_B, settings)).expect("what comes back is whole")[0]
}

/// Returns the outcome of one of ten pings. On a busy machine an answer may be late, hosts limit ICMP errors, and the
/// pod's kernel may have learned from another ping. A wrong answer is an error at once.
fn answer(hosts: &TwoHosts, len: u32) -> PingOutcome {
    let mut answers = (0..10).map(|_| ping_of(hosts, len, SECOND / 2));
    let is_one = |outcome: &PingOutcome| !matches!(outcome, PingOutcome::Timeout | PingOutcome::TooLong);
    answers.find(is_one).unwrap_or(PingOutcome::Timeout)
}

/// Fault 38: the longest packet passes, and one byte more gets the MTU. Meanwhile a second sender pings with every
/// length around the limits. Its packets return unchanged, or get an MTU that was valid.
#[test]
fn fault_38_mtus_are_raised_and_lowered_and_nothing_is_cut() {
    let mut tunnels = wide(&[]);
    let hosts = &tunnels.hosts;
    let in_force: BTreeSet<u32> =
        STEPS.iter().flat_map(|(underlay, _)| STEPS.map(|(_, tun)| limit(*underlay, tun))).collect();
    let stop = AtomicBool::new(false);
    let (whole, told) = std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let (mut whole, mut told) = (0, 0);
            for len in in_force.iter().flat_map(|limit| [*limit, limit + 1]).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                match ping_of(hosts, len, SECOND / 20) {
                    PingOutcome::Reply { .. } => whole += 1,
                    PingOutcome::Error { kind: 3, code: 4, mtu, .. } => {
                        assert!(u32::from(mtu) < len && in_force.contains(&mtu.into()), "{len} bytes are told {mtu}");
                        told += 1;
                    }
                    PingOutcome::Timeout | PingOutcome::TooLong => {}
                    other @ PingOutcome::Error { .. } => panic!("{other:?}"),
                }
            }
            (whole, told)
        });
        let _stop = Stops(&stop);
        // Request and reply.
        for (underlay, tun) in STEPS.into_iter().skip(1).chain(STEPS.into_iter().rev().skip(1)) {
            set(&tunnels, underlay, tun);
            let most = limit(underlay, tun);
            let fits = answer(hosts, most);
            assert!(matches!(fits, PingOutcome::Reply { .. }), "{most} bytes over {underlay} and {tun}: {fits:?}");
            let longer = answer(hosts, most + 1);
            let PingOutcome::Error { kind: 3, code: 4, mtu, .. } = longer else { panic!("{longer:?}") };
            assert_eq!(u32::from(mtu), most, "over {underlay} and {tun}");
        }
        stop.store(true, Ordering::Relaxed);
        stream.join().expect("no panic")
    });
    assert!(whole > 0 && told > 0, "{whole} came back and {told} were told");
    tunnels.a.stop();
    tunnels.b.stop();
}

/// A guard that ends the stream also if the test panics, because the scope waits for it.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A change of the underlay removes the learned path MTU, which is learned again if it is the same.
#[test]
fn fault_38_a_change_of_the_underlay_forgets_what_was_learned() {
    let mut tunnels = wide(&[]);
    let hosts = &tunnels.hosts;
    hosts.host_a.narrow_path(TwoHosts::HOST_B, TwoHosts::UPLINK, 1300).unwrap();
    let told = |outcome: PingOutcome| {
        let PingOutcome::Error { kind: 3, code: 4, mtu, .. } = outcome else { panic!("{outcome:?}") };
        mtu
    };
    assert_eq!(told(answer(hosts, 1472)), 1272);
    set(&tunnels, 2000, 1472);
    assert_eq!(told(answer(hosts, 1472)), 1272, "it is still so");
    hosts.host_a.delete_route(format!("{}/32", TwoHosts::HOST_B).parse().unwrap()).unwrap();
    assert_eq!(told(answer(hosts, 1472)), 1272, "and believed until something changes");
    set(&tunnels, 2100, 1472);
    assert!(matches!(answer(hosts, 1472), PingOutcome::Reply { .. }));
    assert_eq!(tunnels.a.stop()["anomalies"]["path_mtu_lowered"], 2);
}

/// All queues apply it: each of many flows gets the new MTU, in any queue. The TUN's MTU is large, so that the tunnel
/// sends the error and not the host's kernel. The MTU mostly rises, because the socket would teach a lower one too.
#[test]
fn fault_38_every_queue_has_the_new_limit() {
    let mut tunnels = wide(&["--queues", "2", "--mtu", "8972"]);
    for (underlay, tun) in [(2000, 8972), (1400, 8972), (3000, 8972)] {
        set(&tunnels, underlay, tun);
        let most = limit(underlay, tun) as usize;
        for flow in 0..12 {
            // A queue's thread may apply it a moment later.
            wait_until(&format!("flow {flow} to be told {most} over {underlay} and {tun}"), || {
                tunnels.hosts.pod_a.forget_path_mtus().unwrap();
                tunnels.hosts.pod_a.enter(|| told_mtu(flow, most + 1 - HEADERS)) == Some(most as u32)
            });
        }
    }
    tunnels.a.stop();
    tunnels.b.stop();
}

/// Returns the path MTU that the sender of one UDP datagram learns within half a second. Linux sets DF on datagrams
/// that fit the path MTU that it knows.
fn told_mtu(flow: u16, len: usize) -> Option<u32> {
    let socket = UdpSocket::bind((TwoHosts::POD_A, 40_000 + flow)).unwrap();
    setsockopt(&socket, Ipv4RecvErr, &true).unwrap();
    socket.set_read_timeout(Some(SECOND / 2)).unwrap();
    socket.send_to(&vec![0; len], (TwoHosts::POD_B, 9)).unwrap();
    let start = std::time::Instant::now();
    while start.elapsed() < SECOND / 2 {
        let mut buffer = [0; 64];
        let mut control = cmsg_space!(sock_extended_err, libc::sockaddr_in);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let mut slices = [IoSliceMut::new(&mut buffer)];
        match recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Ok(message) => {
                let mut messages = message.cmsgs().unwrap();
                return messages.find_map(|message| {
                    let ControlMessageOwned::Ipv4RecvErr(error, _) = message else { return None };
                    ((error.ee_type, error.ee_code) == (3, 4)).then_some(error.ee_info)
                });
            }
            Err(nix::errno::Errno::EAGAIN) => std::thread::sleep(SECOND / 200),
            Err(error) => panic!("{error}"),
        }
    }
    None
}

/// An underlay that goes down, loses the address, or is deleted is reported. The tunnel continues when it is back, with
/// its new MTU.
#[test]
fn the_underlay_may_go_and_come_back() {
    let mut tunnels = wide(&[]);
    let reaches = |tunnels: &Tunnels, len| {
        wait_until("packets to pass", || matches!(ping_of(&tunnels.hosts, len, SECOND / 2), PingOutcome::Reply { .. }));
    };
    reaches(&tunnels, 1472);
    let hosts = &tunnels.hosts;
    hosts.host_a.set_down(TwoHosts::UPLINK).unwrap();
    tunnels.a.says("eth0 is down");
    hosts.host_a.set_up(TwoHosts::UPLINK).unwrap();
    tunnels.a.says("eth0 is up");
    reaches(&tunnels, 1472);

    // Both ends of the pair are deleted.
    hosts.host_a.delete_link(TwoHosts::UPLINK).unwrap();
    for (tunnel, address) in [(&tunnels.a, TwoHosts::HOST_A), (&tunnels.b, TwoHosts::HOST_B)] {
        tunnel.says(&format!("no interface has the address {address} any more: it was eth0's"));
    }
    hosts.host_a.connect("wan0", &hosts.host_b, "wan0").unwrap();
    for (host, address) in [(&hosts.host_a, TwoHosts::HOST_A), (&hosts.host_b, TwoHosts::HOST_B)] {
        host.set_mtu("wan0", 1400).unwrap();
        host.add_address("wan0", ipnet::Ipv4Net::new(address, 24).unwrap()).unwrap();
    }
    for tunnel in [&tunnels.a, &tunnels.b] {
        wait_until("the new limit", || tunnel.next_event()["limit"] == 1372);
    }
    reaches(&tunnels, 1372);
    let longer = answer(hosts, 1373);
    assert!(matches!(longer, PingOutcome::Error { kind: 3, code: 4, mtu: 1372, .. }), "{longer:?}");
    tunnels.a.says("wan0 has the address 10.168.0.2 now");
    tunnels.a.stop();
    tunnels.b.stop();
}

/// An invalid limit is refused with a message, and the old one stays.
#[test]
fn an_invalid_mtu_changes_nothing() {
    let hosts = TwoHosts::new().unwrap();
    let mut tunnel = Tunnel::on_a(&hosts, &[]);
    hosts.host_a.set_mtu(TwoHosts::UPLINK, 90).unwrap();
    tunnel.says("the longest packet stays what it was: the underlay's MTU 90 leaves 62 bytes");
    tunnel.stop();
}
