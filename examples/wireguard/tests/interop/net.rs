//! Two hosts, `wireguard` on host A, and Debian's wireguard-go on host B.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boringtun::x25519::{PublicKey, StaticSecret};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use testbed::probe::{Amount, Ping, PingOutcome, ping, tcp_send, tcp_sink};
use testbed::{Child, Namespace, TwoHosts, tied_to_its_parent};

pub(crate) const SOON: Duration = Duration::from_secs(5);
/// The inner address of host A.
pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
/// The inner addresses of host B's devices.
pub(crate) const B: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 7, 0, 2), Ipv4Addr::new(10, 7, 0, 3)];
pub(crate) const PORT_A: u16 = 51820;
pub(crate) const PORTS_B: [u16; 2] = [51821, 51822];
pub(crate) const ENDPOINT_A: &str = "10.168.0.2:51820";
pub(crate) const ENDPOINT_B: &str = "10.168.0.3:51821";
const MISSING: &str = "is missing; run `tests/run --prepare`, and put target/unpacked/usr/bin into PATH";

/// The private key of host A, or of host B's devices.
pub(crate) fn private_key(byte: u8) -> StaticSecret {
    StaticSecret::from([byte; 32])
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// A section of a peer, with the key of the device whose private key is this byte repeated.
pub(crate) fn peer(byte: u8, allowed: &str, more: &str) -> String {
    let key = base64(PublicKey::from(&private_key(byte)).as_bytes());
    format!("[Peer]\nPublicKey = {key}\nAllowedIPs = {allowed}\n{more}\n")
}

/// The section of the interface whose private key is this byte repeated.
pub(crate) fn section(byte: u8, port: u16, more: &str) -> String {
    let key = base64(private_key(byte).to_bytes());
    format!("[Interface]\nPrivateKey = {key}\nListenPort = {port}\n{more}")
}

pub(crate) fn preshared(byte: u8) -> String {
    format!("PresharedKey = {}\n", base64([byte; 32]))
}

pub(crate) struct Net {
    pub(crate) hosts: TwoHosts,
    files: TempDir,
}

impl Net {
    pub(crate) fn new() -> Self {
        Self::on(TwoHosts::new())
    }

    /// Hides the directory of wireguard-go's sockets from other tests and from the system.
    pub(crate) fn on(hosts: io::Result<TwoHosts>) -> Self {
        const NOTHING: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace, for which these tests need root");
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).expect("mounts of its own");
        mount(NOTHING, "/var/run", Some("tmpfs"), MsFlags::empty(), NOTHING).expect("an empty /var/run");
        let hosts = hosts.expect("these tests make network namespaces and TUN devices, and need root");
        Self { hosts, files: TempDir::new().expect("a directory") }
    }

    /// Returns the path of a file that is removed at the end.
    pub(crate) fn path(&self, name: &str) -> String {
        self.files.path().join(name).to_str().expect("a path of text").to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("written");
        path
    }

    /// Starts `wireguard` on host A with these peers and options.
    pub(crate) fn start_a(&self, addresses: &str, peers: &str, options: &[&str]) -> Ours {
        let head = section(1, PORT_A, &format!("Address = {addresses}\n"));
        let file = self.write("wga.conf", &(head + peers));
        let mut command = Command::new(env!("CARGO_BIN_EXE_wireguard"));
        command.arg(file).args(options);
        let child = Child::spawn(&self.hosts.host_a, command).expect("spawned");
        assert_eq!(child.next_line(SOON).expect("a line"), "ready wga port 51820");
        Ours(child)
    }

    /// Starts wireguard-go as the first or second device of host B.
    pub(crate) fn start_b(&self, at: usize, peers: &str) -> Theirs<'_> {
        let host = &self.hosts.host_b;
        let name = format!("wgb{at}");
        let mut command = tied_to_its_parent("wireguard-go");
        command.args(["-f", &name]).env("LOG_LEVEL", "verbose");
        Command::new("wireguard-go").arg("--version").output().unwrap_or_else(|_| panic!("wireguard-go {MISSING}"));
        let child = Child::spawn(host, command).expect("spawned");
        let socket = Path::new("/var/run/wireguard").join(&name).with_extension("sock");
        let is_there = || socket.exists();
        assert!(until(SOON, is_there), "wireguard-go has no socket: {}", child.stderr());
        let theirs = Theirs { net: self, child, name, at };
        theirs.set(peers);
        run(host, "ip", &["address", "add", &format!("{}/24", B[at]), "dev", &theirs.name]);
        run(host, "ip", &["link", "set", &theirs.name, "mtu", "1420", "up"]);
        theirs
    }

    /// Drops this percentage of the tunnel's datagrams at their arrival on both hosts.
    pub(crate) fn lose(&self, percent: u8) {
        let rule = format!("iifname eth0 meta l4proto udp numgen random mod 100 < {percent} counter drop");
        let rules = format!("table ip loss {{ chain input {{ type filter hook input priority 0; {rule}; }}; }}");
        for host in [&self.hosts.host_a, &self.hosts.host_b] {
            host.enter(|| {
                let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
                nft.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("written");
                assert!(nft.wait().expect("waited").success());
            });
        }
    }

    /// Sends a stream from host A, or to it, and checks every byte.
    pub(crate) fn check_stream(&self, is_from_a: bool, amount: Amount) {
        let (from, to, address) = match is_from_a {
            true => (&self.hosts.host_a, &self.hosts.host_b, B[0]),
            false => (&self.hosts.host_b, &self.hosts.host_a, A),
        };
        let listener = to.enter(|| TcpListener::bind((address, 0))).expect("bound");
        let destination = listener.local_addr().expect("an address");
        let sink = tcp_sink(listener, 7);
        let sent = from.enter(|| tcp_send(destination, amount, 7)).expect("sent");
        assert_eq!(sink.join().expect("no panic").expect("received").bytes, sent.bytes);
    }

    /// Returns true if a ping from host A is answered.
    pub(crate) fn a_reaches(&self, to: Ipv4Addr) -> bool {
        is_answered(&self.hosts.host_a, to)
    }

    pub(crate) fn b_reaches_a(&self) -> bool {
        is_answered(&self.hosts.host_b, A)
    }
}

pub(crate) fn is_answered(from: &Namespace, to: Ipv4Addr) -> bool {
    let outcomes = from.enter(|| ping(to, Ping::default())).expect("ping");
    matches!(outcomes[..], [PingOutcome::Reply { from, ttl: 64, .. }] if from == to)
}

/// `wireguard`.
pub(crate) struct Ours(pub(crate) Child);

impl Ours {
    /// Ends it, and returns its counters.
    pub(crate) fn end(mut self, signal: Signal) -> String {
        self.0.signal(signal).expect("signalled");
        let counters = self.0.next_line(SOON).expect("its counters");
        let status = self.0.wait(SOON).expect("waited");
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {}", self.0.stderr());
        counters
    }
}

/// Returns a counter, of the first direction that has it. Those of drops are printed unless they are zero.
pub(crate) fn count(counters: &str, name: &str) -> usize {
    let Some((_, rest)) = counters.split_once(&format!(" {name}: ")) else { return 0 };
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
}

/// wireguard-go.
pub(crate) struct Theirs<'n> {
    net: &'n Net,
    pub(crate) child: Child,
    pub(crate) name: String,
    at: usize,
}

impl Theirs<'_> {
    /// Sets its peers. It forgets sessions with former ones.
    pub(crate) fn set(&self, peers: &str) {
        let text = section(2 + self.at as u8, PORTS_B[self.at], peers);
        let file = self.net.write(&format!("{}.conf", self.name), &text);
        self.wg(&["setconf", &self.name, &file]);
    }

    pub(crate) fn wg(&self, args: &[&str]) -> String {
        run(&self.net.hosts.host_b, "wg", args)
    }

    /// Returns the last word of `wg show`, about its only peer.
    pub(crate) fn show(&self, what: &str) -> String {
        self.wg(&["show", &self.name, what]).split_whitespace().last().unwrap_or_default().to_owned()
    }

    /// Returns the time of the last handshake in seconds, 0 if there was none.
    pub(crate) fn last_handshake(&self) -> u64 {
        self.show("latest-handshakes").parse().expect("a number")
    }

    /// Returns all that it logged.
    pub(crate) fn log(&self) -> String {
        let mut log = self.child.stderr();
        while let Ok(line) = self.child.next_line(Duration::ZERO) {
            log += &line;
            log.push('\n');
        }
        log
    }
}

/// Runs a program on a host, and returns its output.
pub(crate) fn run(host: &Namespace, program: &str, args: &[&str]) -> String {
    let output = host.enter(|| Command::new(program).args(args).output());
    let output = output.unwrap_or_else(|_| panic!("{program} {MISSING}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns true as soon as a condition holds, and false if it does not within the time.
pub(crate) fn until(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if holds() {
            return true;
        }
        if start.elapsed() >= limit {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
