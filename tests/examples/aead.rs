//! The example `aead`: the traffic that passes, and an attacker on the underlay who records and changes datagrams.

use core::net::SocketAddr;
use core::time::Duration;
use std::fs;
use std::net::UdpSocket;

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use testbed::probe::{Ping, PingOutcome, ping};
use testbed::{Child, Namespace, TwoHosts};

use crate::{ON_A, ON_B, SOON, check_traffic, example, hosts, run, start, stderr_of};

const KEYS: [&str; 2] = [
    "1 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    "2 ffeeddccbbaa99887766554433221100FFEEDDCCBBAA99887766554433221100",
];
/// Bytes of a datagram besides its packet.
const OVERHEAD: usize = 40;
/// Of the last 8,128 counters each is accepted.
const WINDOW: usize = 8128;

/// A file of keys, removed at the end.
struct KeyFile(tempfile::NamedTempFile);

impl KeyFile {
    fn new(lines: &[&str]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), lines.join("\n")).expect("written");
        Self(file)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().expect("a path of text")
    }

    fn start(&self, host: &Namespace, args: &[&'static str]) -> Child {
        start(host, "aead", &[&[self.path()], args].concat())
    }
}

/// The counters of received packets that a tunnel printed at its end.
struct End(String);

impl End {
    fn of(mut child: Child) -> Self {
        child.signal(Signal::SIGTERM).expect("signalled");
        let line = child.next_line(SOON).expect("its counters");
        assert!(child.wait(SOON).expect("waited").is_some_and(|status| status.success()), "{}", child.stderr());
        Self(line.split_once("decap").expect("counters of decapsulation").1.to_owned())
    }

    /// Returns a counter. Those of drops are printed unless they are zero.
    fn count(&self, name: &str) -> usize {
        let Some((_, rest)) = self.0.split_once(&format!(" {name}: ")) else { return 0 };
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).expect("a number")
    }
}

/// A plain socket in the place of a host's tunnel.
fn in_place_of(host: &Namespace, listen: &str) -> UdpSocket {
    let socket = host.enter(|| UdpSocket::bind(listen)).expect("bound");
    setsockopt(&socket, RcvBufForce, &(16 << 20)).expect("a large buffer");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time limit");
    socket
}

fn received(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2048];
    core::iter::from_fn(|| socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec())).collect()
}

fn send(socket: &UdpSocket, datagrams: &[Vec<u8>]) {
    let to: SocketAddr = ON_B[2].parse().expect("an address");
    for (at, datagram) in datagrams.iter().enumerate() {
        assert_eq!(socket.send_to(datagram, to).expect("sent"), datagram.len());
        // The receiver's buffer holds some hundreds.
        if at % 64 == 63 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    std::thread::sleep(Duration::from_millis(100));
}

/// Returns this many datagrams that host A sends to host B, one for each packet.
fn record(hosts: &TwoHosts, keys: &KeyFile, packets: usize) -> Vec<Vec<u8>> {
    let b = in_place_of(&hosts.host_b, ON_B[2]);
    let a = keys.start(&hosts.host_a, &ON_A);
    let pod = hosts.pod_a.enter(|| UdpSocket::bind((TwoHosts::POD_A, 0))).expect("bound");
    let mut recorded = Vec::new();
    while recorded.len() < packets {
        for _ in 0..(packets - recorded.len()).min(256) {
            pod.send_to(b"a word in clear text", (TwoHosts::POD_B, 9)).expect("sent");
        }
        recorded.extend(received(&b));
    }
    End::of(a);
    recorded
}

/// Traffic passes between workers whose first key differs, and each host may be restarted.
#[test]
fn aead_hosts_with_two_keys_and_several_workers_carry_traffic() {
    let hosts = hosts();
    let (new_first, old_first) = (KeyFile::new(&[KEYS[1], KEYS[0]]), KeyFile::new(&KEYS));
    let a = new_first.start(&hosts.host_a, &[&ON_A[..], &["2"]].concat());
    let mut b = old_first.start(&hosts.host_b, &ON_B);
    check_traffic(&hosts);
    for _ in 0..2 {
        let end = End::of(b);
        assert_eq!(["no_session", "not_authentic", "replayed"].map(|name| end.count(name)), [0; 3]);
        b = old_first.start(&hosts.host_b, &ON_B);
        let replies = hosts.pod_a.enter(|| ping(TwoHosts::POD_B, Ping { count: 3, ..Ping::default() })).expect("ping");
        assert!(replies.iter().all(|reply| matches!(reply, PingOutcome::Reply { .. })), "{replies:?}");
    }
    let (a, b) = (End::of(a), End::of(b));
    for name in ["no_session", "not_authentic", "replayed"] {
        assert_eq!((a.count(name), b.count(name)), (0, 0), "{name}");
    }
}

/// A changed byte anywhere, another length, another key and a second time: nothing is delivered.
#[test]
fn aead_delivers_no_datagram_that_was_changed_or_sent_before() {
    let hosts = hosts();
    let keys = KeyFile::new(&KEYS);
    let recorded = record(&hosts, &keys, 40);
    let packet = 28 + "a word in clear text".len();
    for datagram in &recorded {
        assert_eq!(datagram.len(), packet + OVERHEAD);
        assert!(!datagram.windows(5).any(|bytes| bytes == b"clear"), "a packet can be read");
    }
    let b = keys.start(&hosts.host_b, &ON_B);
    let attacker = in_place_of(&hosts.host_a, ON_A[2]);
    let mut forged = Vec::new();
    for at in 0..recorded[0].len() {
        let mut changed = recorded[0].clone();
        changed[at] ^= 0x80;
        forged.push(changed);
        forged.push(recorded[0][..at].to_vec());
    }
    forged.push([&recorded[0][..], &[0]].concat());
    send(&attacker, &forged);
    for _ in 0..3 {
        send(&attacker, &recorded);
    }
    // B's own datagrams come back to it.
    hosts.pod_b.enter(|| ping(TwoHosts::POD_A, Ping { count: 2, ..Ping::default() })).expect("ping");
    let of_b = received(&attacker);
    assert!(of_b.len() >= 2);
    send(&attacker, &of_b);
    let end = End::of(b);
    assert_eq!(end.count("forwarded"), recorded.len());
    assert_eq!(end.count("replayed"), 2 * recorded.len() + of_b.len());
    assert_eq!(end.count("no_session") + end.count("not_authentic"), forged.len());
    assert_eq!(end.count("no_session"), 1, "the changed id of the key");
}

/// In any order each datagram of the window is delivered once, and none that is older.
#[test]
fn aead_delivers_each_datagram_of_the_window_once_in_any_order() {
    let hosts = hosts();
    let keys = KeyFile::new(&KEYS);
    let mut recorded = record(&hosts, &keys, WINDOW + 300);
    recorded.truncate(WINDOW + 300);
    let b = keys.start(&hosts.host_b, &ON_B);
    let attacker = in_place_of(&hosts.host_a, ON_A[2]);
    let (old, rest) = recorded.split_at(200);
    let newest = rest.last().expect("datagrams").clone();
    send(&attacker, &[newest]);
    send(&attacker, old);
    // A stride that is prime to their number visits all.
    let mixed: Vec<_> = (0..rest.len()).map(|at| rest[at * 1237 % rest.len()].clone()).collect();
    send(&attacker, &mixed);
    let end = End::of(b);
    // Up to a word of counters more than the window is accepted, depending on where the newest is in its word.
    let delivered = end.count("forwarded");
    assert!((WINDOW..WINDOW + 64).contains(&delivered), "{delivered}");
    assert_eq!(end.count("replayed"), old.len() + rest.len() + 1 - delivered);
}

#[test]
fn aead_says_what_is_wrong_with_its_keys() {
    const SPOILT: &str = "line 2 of FILE is not a new id from 0 to 255, a space and 64 hexadecimal digits";
    let (one, two) = (KEYS[0], KEYS[1]);
    let cases = [
        (vec![], "FILE has no keys"),
        (vec![one, &two[..65]], SPOILT),
        (vec![one, one], SPOILT),
        (vec![one, "256 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"], SPOILT),
        (vec![one, "", two], SPOILT),
    ];
    for (lines, expected) in cases {
        let keys = KeyFile::new(&lines);
        let mut command = example("aead");
        command.arg(keys.path()).args(ON_A);
        let (_, child, status) = run(command, SOON);
        let expected = expected.replace("FILE", keys.path());
        assert_eq!(status.code(), Some(1));
        assert_eq!(stderr_of(&child, &expected), format!("aead: {expected}\n"));
    }
}
