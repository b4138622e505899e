//! The time from etcd's event to the first packet on the new path: `cargo bench`, as root, with `etcd` on the path.
//!
//! A lease moves back and forth between two addresses. The bench has its own watch for the time of etcd's event, and
//! plain sockets at both addresses for the time of the first packet.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a bench may fail by panicking")]
#![expect(dead_code, reason = "the fixtures of the tests have more than is used here")]

// The tests and this benchmark are two programs of one package, which has no library.
#[path = "../tests/cluster/etcd.rs"]
mod etcd;
#[path = "../tests/cluster/hosts.rs"]
mod hosts;
#[path = "../tests/cluster/node.rs"]
mod node;
#[path = "../tests/cluster/operator.rs"]
mod operator;
#[path = "../tests/cluster/tls.rs"]
mod tls;

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::{Client, WatchOptions};
use ipnet::Ipv4Net;

use hosts::{Attachment, Site};
use node::Node;
use operator::{Operator, PREFIX};

const SOON: Duration = Duration::from_secs(30);
const MOVES: usize = 300;
/// The time without packets after which the old path counts as unused.
const QUIET: Duration = Duration::from_millis(15);
const SUBNET: &str = "100.96.207.0-24";

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn main() {
    let site = Site::new(2, 3, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let places = [Ipv4Addr::new(10, 168, 0, 3), Ipv4Addr::new(10, 168, 0, 103)];
    site.hosts[1].namespace.add_address("eth0", Ipv4Net::new_assert(places[1], 24)).unwrap();
    let node = Node::start(&site.hosts[0], &site.etcd);
    let pod = site.hosts[0].add_pod(node.lease(), Attachment::Veth);

    let stop = AtomicBool::new(false);
    let (arrives, arrived) = channel();
    let (tells, told) = channel();
    let sender = pod.namespace.enter(|| UdpSocket::bind((pod.address, 0))).unwrap();
    let receivers = places.map(|place| site.hosts[1].namespace.enter(|| UdpSocket::bind((place, 8285))).unwrap());
    let endpoint = site.etcd.endpoints().remove(0);
    let mut delays = thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _ = sender.send_to(b"where to?", "100.96.207.9:9");
                thread::sleep(Duration::from_micros(100));
            }
        });
        for (place, receiver) in receivers.iter().enumerate() {
            let arrives = arrives.clone();
            scope.spawn(move || tell_changes(receiver, place, stop, &arrives));
        }
        let watching = &site.switch;
        scope.spawn(move || watching.enter(|| watch(&endpoint, stop, &tells)));
        told.recv_timeout(SOON).expect("a watch");
        let delays: Vec<f64> =
            (0..MOVES).map(|number| one_move(&mut operator, places, number, &told, &arrived)).collect();
        stop.store(true, Ordering::Relaxed);
        // The watch ends with its next event.
        operator.put_lease(SUBNET, places[0]);
        delays
    });
    drop(node.stop());
    report(&mut delays);
}

/// Returns the time in milliseconds, which is negative if the packet came first.
fn one_move(
    operator: &mut Operator,
    places: [Ipv4Addr; 2],
    number: usize,
    told: &Receiver<Instant>,
    arrived: &Receiver<(usize, Instant)>,
) -> f64 {
    let to = number % 2;
    // Wait until the old path is unused.
    thread::sleep(4 * QUIET);
    operator.put_lease(SUBNET, places[to]);
    let event = told.recv_timeout(SOON).expect("an event");
    let packet = loop {
        match arrived.recv_timeout(SOON).expect("a packet") {
            (place, at) if place == to => break at,
            _ => {}
        }
    };
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    if packet > event { ms(packet - event) } else { -ms(event - packet) }
}

/// Reports the first packet after a pause, and no other.
fn tell_changes(receiver: &UdpSocket, place: usize, stop: &AtomicBool, arrives: &Sender<(usize, Instant)>) {
    receiver.set_read_timeout(Some(QUIET)).unwrap();
    let mut quiet = true;
    while !stop.load(Ordering::Relaxed) {
        match receiver.recv(&mut [0; 2048]) {
            Ok(_) if quiet => {
                let _ = arrives.send((place, Instant::now()));
                quiet = false;
            }
            Ok(_) => {}
            Err(_) => quiet = true,
        }
    }
}

/// Reports the start of the watch, and then every event.
fn watch(endpoint: &str, stop: &AtomicBool, tells: &Sender<Instant>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::connect([endpoint], None).await.unwrap();
        let options = WatchOptions::new().with_prefix();
        let mut stream = client.watch(format!("{PREFIX}/subnets/"), Some(options)).await.unwrap();
        while let Some(response) = stream.message().await.unwrap() {
            let _ = tells.send(Instant::now());
            if stop.load(Ordering::Relaxed) {
                return;
            }
            drop(response);
        }
    });
}

fn report(delays: &mut [f64]) {
    delays.sort_by(f64::total_cmp);
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    println!("from etcd's event to the first packet by the new route, {} moves, in ms:", delays.len());
    println!("median {:.2}, 90 % {:.2}, 99 % {:.2}, most {:.2}", at(0.5), at(0.9), at(0.99), at(1.0));
}
