//! One TCP stream through three tunnels in turn: `wireguard`, the same without batches, and Debian's wireguard-go. Each is on
//! both ends. Prints the rate and the processor time of both ends, and the medians of the ratios within each round.
//!
//! `cargo bench --bench stream -- [ROUNDS]`, as root, with wireguard-go and wireguard-tools in `PATH`.

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/interop/net.rs"]
mod net;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use net::{A, B, Net, SOON, peer, run, section, until};
use testbed::probe::{Amount, tcp_send, tcp_sink};
use testbed::{Child, Namespace, tied_to_its_parent};

const STREAM: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Tunnel {
    Batched,
    Unbatched,
    WireguardGo,
}

/// The rate in Gbit/s, and the processor time of both ends in seconds for each gigabyte.
#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    time: f64,
}

/// One end of the tunnel.
struct End<'n> {
    host: &'n Namespace,
    own: (u8, Ipv4Addr),
    other: (u8, Ipv4Addr, &'n str),
}

impl End<'_> {
    fn start(&self, tunnel: Tunnel, net: &Net) -> Child {
        let (byte, address) = self.own;
        let (other, allowed, endpoint) = self.other;
        let name = format!("wg{byte}");
        let file = net.path(&format!("{name}.conf"));
        let peer = peer(other, &format!("{allowed}/32"), &format!("Endpoint = {endpoint}"));
        if tunnel == Tunnel::WireguardGo {
            fs::write(&file, section(byte, 51820, "") + &peer).expect("written");
            let mut command = tied_to_its_parent("wireguard-go");
            command.args(["-f", &name]);
            let child = Child::spawn(self.host, command).expect("wireguard-go");
            let socket = format!("/var/run/wireguard/{name}.sock");
            assert!(until(SOON, || fs::exists(&socket).is_ok_and(|exists| exists)), "{}", child.stderr());
            run(self.host, "wg", &["setconf", &name, &file]);
            run(self.host, "ip", &["address", "add", &format!("{address}/24"), "dev", &name]);
            run(self.host, "ip", &["link", "set", &name, "mtu", "1420", "up"]);
            return child;
        }
        fs::write(&file, section(byte, 51820, &format!("Address = {address}/24\n")) + &peer).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_wireguard"));
        command.arg(&file).args((tunnel == Tunnel::Unbatched).then_some("--unbatched"));
        let child = Child::spawn(self.host, command).expect("spawned");
        child.next_line(SOON).expect("ready");
        child
    }
}

fn measure(tunnel: Tunnel) -> Figures {
    let net = Net::new();
    let (a, b) = (&net.hosts.host_a, &net.hosts.host_b);
    let ends = [
        End { host: a, own: (1, A), other: (2, B[0], "10.168.0.3:51820") }.start(tunnel, &net),
        End { host: b, own: (2, B[0]), other: (1, A, "10.168.0.2:51820") }.start(tunnel, &net),
    ];
    assert!(until(SOON, || net.a_reaches(B[0])), "{tunnel:?}");
    let time = || ends.iter().map(|end| end.cpu_time().expect("its time").as_secs_f64()).sum::<f64>();
    let before = time();
    let listener = b.enter(|| TcpListener::bind((B[0], 0))).expect("bound");
    let destination = listener.local_addr().expect("an address");
    let sink = tcp_sink(listener, 7);
    let sent = a.enter(|| tcp_send(destination, Amount::For(STREAM), 7)).expect("sent");
    sink.join().expect("no panic").expect("received");
    Figures { rate: sent.bits_per_second() / 1e9, time: (time() - before) / (sent.bytes as f64 / 1e9) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(7);
    let version = Command::new("wireguard-go").arg("--version").output().expect("wireguard-go in PATH");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    println!("{}", version.lines().next().unwrap_or_default());
    let tunnels = [Tunnel::Batched, Tunnel::Unbatched, Tunnel::WireguardGo];
    let mut all = Vec::new();
    for _ in 0..rounds {
        let round = tunnels.map(|tunnel| std::thread::spawn(move || measure(tunnel)).join().expect("measured"));
        println!("{}", round.map(|Figures { rate, time }| format!("{rate:.2} Gbit/s {time:.2} s/GB")).join("   "));
        all.push(round);
    }
    for (at, tunnel) in tunnels.into_iter().enumerate() {
        let of = |figure: fn(&Figures) -> f64| median(all.iter().map(|round| figure(&round[at])).collect());
        let ratio = |figure: fn(&Figures) -> f64| {
            median(all.iter().map(|round| figure(&round[0]) / figure(&round[at])).collect())
        };
        let (rate, time) = (of(|figures| figures.rate), of(|figures| figures.time));
        let (faster, less) = (ratio(|figures| figures.rate), ratio(|figures| figures.time));
        println!(
            "{tunnel:?}: {rate:.2} Gbit/s, {time:.2} s/GB; batched is {faster:.2} x as fast, for {less:.2} x the time"
        );
    }
}
