//! The exchange of nodes one by one under TCP load.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::hosts::{Attachment, Pod, Site};
use crate::node::Node;
use crate::operator::Operator;
use crate::{SOON, wait_until};

/// The bytes of one write, and the time between two: 4 MB/s, so that neither processor is busy.
const WRITE: (usize, Duration) = (8192, Duration::from_millis(2));

/// A connection from one pod to another that carries data without a pause.
struct Stream {
    name: String,
    state: Arc<State>,
    sender: JoinHandle<io::Result<u64>>,
    receiver: JoinHandle<io::Result<u64>>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    received: AtomicU64,
    /// The longest time between two arrivals since the last look.
    longest: Mutex<Duration>,
}

impl Stream {
    fn start(from: &Pod, to: &Pod, port: u16) -> Self {
        let name = format!("{} to {}", from.address, to.address);
        let (state, address) = (Arc::new(State::default()), (to.address, port));
        let listener = to.namespace.enter(|| TcpListener::bind(address)).unwrap();
        let seen = Arc::clone(&state);
        let receiver = to.namespace.spawn(format!("from {}", from.address), move || receive(listener, &seen));
        let stop = Arc::clone(&state);
        let sender = from.namespace.spawn(format!("to {}", to.address), move || {
            send(TcpStream::connect_timeout(&address.into(), SOON)?, &stop)
        });
        Self { name, state, sender, receiver }
    }

    fn received(&self) -> u64 {
        self.state.received.load(Ordering::Relaxed)
    }

    /// Ends the stream and checks that every byte has arrived.
    fn finish(self) {
        self.state.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap().unwrap_or_else(|error| panic!("{} is lost: {error}", self.name));
        let received = self.receiver.join().unwrap().unwrap_or_else(|error| panic!("{} is lost: {error}", self.name));
        assert_eq!(sent, received, "{}", self.name);
    }
}

/// Returns the byte at a position of every stream.
fn byte_at(position: u64) -> u8 {
    (position % 251) as u8
}

fn send(mut stream: TcpStream, state: &State) -> io::Result<u64> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SOON))?;
    let mut sent = 0;
    while !state.stop.load(Ordering::Relaxed) {
        let data: Vec<u8> = (sent..sent + WRITE.0 as u64).map(byte_at).collect();
        stream.write_all(&data)?;
        sent += WRITE.0 as u64;
        sleep(WRITE.1);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive(listener: TcpListener, state: &State) -> io::Result<u64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(SOON))?;
    let (mut buffer, mut received, mut last) = (vec![0; 1 << 16], 0_u64, Instant::now());
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(received);
        }
        let now = Instant::now();
        let mut longest = state.longest.lock().unwrap();
        *longest = (*longest).max(now - last);
        drop(longest);
        last = now;
        assert!(buffer[..length].iter().zip(received..).all(|(byte, at)| *byte == byte_at(at)), "at {received}");
        received += length as u64;
        state.received.store(received, Ordering::Relaxed);
    }
}

/// Waits until every stream carries data, and returns the longest gap since the last call.
fn longest_gap(streams: &[Stream]) -> Duration {
    for stream in streams {
        let before = stream.received();
        wait_until(&format!("data from {}", stream.name), || stream.received() > before);
    }
    streams.iter().map(|stream| std::mem::take(&mut *stream.state.longest.lock().unwrap())).max().unwrap()
}

/// Three hosts with a pod each, and a connection between each two pods in both directions. Every node is exchanged as
/// an operator does it, and after a crash.
#[test]
fn no_connection_is_lost_while_nodes_are_exchanged_one_by_one() {
    let site = Site::new(3, 3, true);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut nodes: Vec<_> = site.hosts.iter().map(|host| Node::start(host, &site.etcd)).collect();
    let kinds = [Attachment::Bridge, Attachment::ProxyArp, Attachment::Veth];
    let pods: Vec<_> = (0..3).map(|number| site.hosts[number].add_pod(nodes[number].lease(), kinds[number])).collect();
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        pods[from].must_reach(&pods[to]);
    }
    let mut streams = Vec::new();
    for (number, from) in pods.iter().enumerate() {
        let others = pods.iter().filter(|to| to.address != from.address);
        streams.extend(others.map(|to| Stream::start(from, to, 5000 + number as u16)));
    }
    sleep(Duration::from_millis(500));
    let idle = longest_gap(&streams);
    let mut gaps = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for number in 0..3 {
            let mut leaves = nodes.remove(number);
            let (lease, start) = (leaves.lease(), Instant::now());
            leaves.child.signal(signal).unwrap();
            leaves.ends();
            let ended = start.elapsed();
            let node = Node::start(&site.hosts[number], &site.etcd);
            let ready = start.elapsed();
            assert_eq!(node.lease(), lease);
            nodes.insert(number, node);
            let gap = longest_gap(&streams);
            gaps.push(gap);
            eprintln!(
                "{signal} at host {number}: ended after {ended:.0?}, forwarding after {ready:.0?}, a gap of {gap:.0?}"
            );
            sleep(Duration::from_millis(300));
            longest_gap(&streams);
        }
    }
    eprintln!("the longest gap is {:.0?}, without an exchange {idle:.0?}", gaps.iter().max().unwrap());
    let received: u64 = streams.iter().map(Stream::received).sum();
    assert!(received > 1 << 20, "{received} bytes are no load");
    assert!(gaps.iter().all(|gap| *gap > Duration::from_millis(10)), "an exchange interrupts: {gaps:?}");
    // The figure is a second. The machine of the tests may be slow.
    assert!(gaps.iter().all(|gap| *gap < Duration::from_secs(5)), "{gaps:?}");
    streams.into_iter().for_each(Stream::finish);
    nodes.into_iter().for_each(|node| drop(node.stop()));
}
