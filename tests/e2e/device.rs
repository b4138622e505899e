//! Error messages about a missing device, and a persistent device whose tunnel was killed.

use std::process::Command;

use loden::sys::{Tun, TunConfig, TunOffload};
use nix::sys::signal::Signal;
use testbed::{Child, Namespace, TwoHosts};

use crate::offload::tcp_both_ways;
use crate::support::{SECOND, Tunnel, program, wait_until};

const ARGS: [&str; 6] = ["--subnet", "100.96.1.0/24", "--network", "100.96.0.0/16", "--listen", "10.168.0.2"];

/// Returns the error of a tunnel that does not start, run by another program if needed.
fn refusal(host: &Namespace, starter: &[&str], tun: &str) -> String {
    let tunnel = program("tunnel");
    let words = [starter, &[tunnel.to_str().unwrap()], &ARGS, &["--tun", tun]].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    let mut child = Child::spawn(host, command).expect("started");
    let status = child.wait(5 * SECOND).unwrap().expect("an end");
    let mut last = None;
    wait_until("its last word", || {
        last = child.stderr().lines().find(|line| line.starts_with("tunnel: ")).map(ToOwned::to_owned);
        last.is_some()
    });
    assert_eq!(status.code(), Some(2), "{}", child.stderr());
    last.unwrap()
}

/// Each cause has its own message, with the error and a remedy. The adapters' tests cover the error types.
#[test]
fn fault_39_each_reason_for_no_device_says_what_to_do() {
    let hosts = TwoHosts::new().unwrap();
    let host = &hosts.host_a;
    let _holder = host.enter(|| Tun::open(&TunConfig::new("busy0").with_offload(TunOffload::ALL))).unwrap();
    let nowhere = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"];
    let all = [
        (&[][..], "busy0", ["in use by another process", "open one of another name"]),
        (&[], "pod0", ["is not a TUN device", "ip link delete pod0"]),
        (&["unshare", "--user"], "loden%d", ["no permission", "CAP_NET_ADMIN"]),
        (&nowhere, "loden%d", ["offers no TUN devices", "modprobe tun"]),
    ];
    let mut said = all.map(|(starter, tun, words)| {
        let said = refusal(host, starter, tun);
        assert!(words.iter().all(|words| said.contains(words)), "{said}");
        said
    });
    said.sort_unstable();
    assert!(said.windows(2).all(|pair| pair[0] != pair[1]));
}

/// The tunnel is killed and started with other offloads, repeatedly. The offloads belong to the device and outlive the
/// process. A former setting affects no packet. Its address and route are kept, or restored if they are gone.
#[test]
fn fault_40_a_killed_tunnel_is_started_again_on_its_device() {
    let hosts = TwoHosts::new().unwrap();
    let host = &hosts.host_a;
    let config = TunConfig::new("kept0").with_offload(TunOffload::ALL);
    host.enter(|| Tun::open(&config).unwrap().set_persistent(true)).unwrap();
    let _b = Tunnel::on_b(&hosts, &[]);
    let overlay = || host.routes().unwrap().into_iter().filter(|route| route.destination == TwoHosts::OVERLAY).count();
    let own = "100.96.1.0/32".parse().unwrap();
    let turns: [&[&str]; 5] = [
        &[],
        &["--offload", "tun-uso"],
        &["--no-offload"],
        &["--offload", "tun-tso,udp-gso"],
        &["--offload", "udp-gro"],
    ];
    for (turn, more) in turns.into_iter().enumerate() {
        let mut a = Tunnel::on_a(&hosts, &[&["--tun", "kept0"], more].concat());
        assert_eq!((overlay(), host.addresses("kept0").unwrap()), (1, vec![own]), "{more:?}");
        tcp_both_ways(&hosts, 1 << 20, 1);
        a.child.signal(Signal::SIGKILL).unwrap();
        a.child.wait(5 * SECOND).unwrap().expect("killed");
        assert_eq!((overlay(), host.addresses("kept0").unwrap()), (1, vec![own]), "nobody takes them away");
        match turn {
            0 => host.delete_route(TwoHosts::OVERLAY).unwrap(),
            1 => host.set_down("kept0").unwrap(),
            _ => {}
        }
        assert_eq!(overlay(), usize::from(turn > 1));
    }
    host.delete_link("kept0").unwrap();
}
