//! Datagrams at an even pace, with numbers and contents that the receiver checks. In a fault-free phase none may be missing, ever may one be
//! wrong or come twice.

use core::net::SocketAddr;
use core::time::Duration;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use testbed::TwoHosts;

use crate::side::Side;
use crate::stage::Stage;

/// One kind of datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    name: &'static str,
    /// Bytes of content.
    len: usize,
    pause: Duration,
    /// Routers may fragment it.
    may_be_cut: bool,
}

pub(crate) const KINDS: [Kind; 3] = [
    Kind { name: "small", len: 64, pause: Duration::from_millis(4), may_be_cut: false },
    // With its headers exactly what the underlay carries.
    Kind { name: "full", len: 1472 - 28, pause: Duration::from_millis(8), may_be_cut: false },
    Kind { name: "fragmented", len: 4000, pause: Duration::from_millis(20), may_be_cut: true },
];

const PORT: u16 = 7000;
const HEADER: usize = 9;
const LOOK_UP: Duration = Duration::from_millis(50);

pub(crate) struct PacedFlow {
    name: String,
    fault_free: Count,
    faulty: Count,
}

#[derive(Default)]
struct Count {
    sent: AtomicU64,
    arrived: AtomicU64,
}

impl PacedFlow {
    /// Of what was sent in the fault-free phases.
    pub(crate) fn missing(&self) -> Option<String> {
        let [sent, arrived] =
            [&self.fault_free.sent, &self.fault_free.arrived].map(|count| count.load(Ordering::SeqCst));
        (sent != arrived).then(|| format!("{}: {arrived} of {sent} arrived", self.name))
    }

    /// In phases of both kinds.
    pub(crate) fn arrived(&self) -> (u64, u64) {
        (self.fault_free.arrived.load(Ordering::SeqCst), self.faulty.arrived.load(Ordering::SeqCst))
    }

    pub(crate) fn sent_in_faulty_phases(&self) -> u64 {
        self.faulty.sent.load(Ordering::SeqCst)
    }

    fn count(&self, fault_free: bool) -> &Count {
        if fault_free { &self.fault_free } else { &self.faulty }
    }
}

/// Starts a sender in one pod and a receiver in the other.
pub(crate) fn start(
    hosts: &Arc<TwoHosts>,
    stage: &Arc<Stage>,
    from: Side,
    kind: Kind,
) -> (Arc<PacedFlow>, [JoinHandle<()>; 2]) {
    let (pod, to) = (from.pod(hosts), from.other().place());
    // Read when a socket is made (ip(7)).
    pod.sysctl("net/ipv4/ip_no_pmtu_disc", if kind.may_be_cut { "1" } else { "0" }).unwrap();
    let sender = pod.enter(|| UdpSocket::bind((from.place().pod, 0))).unwrap();
    pod.sysctl("net/ipv4/ip_no_pmtu_disc", "0").unwrap();
    let address = if kind.may_be_cut { to.fragments } else { to.pod };
    let target = SocketAddr::from((address, PORT + kind.len as u16));
    let receiver = from.other().pod(hosts).enter(|| UdpSocket::bind(target)).unwrap();
    receiver.set_read_timeout(Some(LOOK_UP)).unwrap();
    // A wish: a reader that is kept waiting by a busy machine loses nothing then.
    let _ = setsockopt(&receiver, RcvBufForce, &(8 << 20));
    let name = format!("{} from {from:?}", kind.name);
    let flow = Arc::new(PacedFlow { name, fault_free: Count::default(), faulty: Count::default() });
    let sending = {
        let (flow, stage) = (Arc::clone(&flow), Arc::clone(stage));
        pod.spawn("flow-udp-out", move || send(&flow, &stage, &sender, target, kind))
    };
    let receiving = {
        let (flow, stage) = (Arc::clone(&flow), Arc::clone(stage));
        from.other().pod(hosts).spawn("flow-udp-in", move || receive(&flow, &stage, &receiver, kind))
    };
    (flow, [sending, receiving])
}

fn send(flow: &PacedFlow, stage: &Stage, socket: &UdpSocket, target: SocketAddr, kind: Kind) {
    let mut due = Instant::now();
    let mut number = 0;
    while !stage.is_over() {
        let sent = stage.during(|fault_free| {
            flow.count(fault_free).sent.fetch_add(1, Ordering::SeqCst);
            socket.send_to(&content(number, fault_free, kind.len), target)
        });
        if let Err(error) = sent {
            return stage.fail(format!("{}: cannot send: {error}", flow.name));
        }
        number += 1;
        // What a busy machine delayed is not caught up with in a burst.
        due = (due + kind.pause).max(Instant::now() - kind.pause);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn receive(flow: &PacedFlow, stage: &Stage, socket: &UdpSocket, kind: Kind) {
    let mut buffer = [0; 9000];
    let mut seen = Vec::<bool>::new();
    // Until well after the last one was sent: nothing is lost by ending later.
    while !stage.is_over() {
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(error) => return stage.fail(format!("{}: cannot receive: {error}", flow.name)),
        };
        let datagram = &buffer[..len];
        let Some((header, _)) = datagram.split_first_chunk::<HEADER>() else {
            return stage.fail(format!("{}: {len} bytes arrived, {} were sent", flow.name, kind.len));
        };
        let &[fault_free, ref number @ ..] = header;
        let number = u64::from_be_bytes(*number);
        if fault_free > 1 || datagram != content(number, fault_free == 1, kind.len) {
            return stage.fail(format!("{}: number {number} is not what was sent", flow.name));
        }
        let at = number as usize;
        if at >= seen.len() {
            seen.resize(at + 1, false);
        }
        if core::mem::replace(&mut seen[at], true) {
            return stage.fail(format!("{}: number {number} came twice", flow.name));
        }
        flow.count(fault_free == 1).arrived.fetch_add(1, Ordering::SeqCst);
    }
}

fn content(number: u64, fault_free: bool, len: usize) -> Vec<u8> {
    let mut content = vec![u8::from(fault_free)];
    content.extend(number.to_be_bytes());
    content.extend((HEADER..len).map(|at| (at as u64 * 31 + number * 7) as u8));
    content
}
