//! Namespaces, devices and sockets of the tests.

use core::net::SocketAddr;
use core::time::Duration;
use loden::Host;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::ipnet::Ipv4Net;
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::{Tun, TunConfig, TunOffload, UdpConfig, UdpTransport};
use loden::worker::Worker;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::Instant;
use testbed::Namespace;

pub(crate) const SOON: Duration = Duration::from_secs(5);

pub(crate) fn namespace() -> Namespace {
    Namespace::new().expect("these tests make network namespaces and TUN devices, and need root")
}

pub(crate) fn named(name: &str) -> TunConfig {
    TunConfig::new(name).with_offload(TunOffload::NONE)
}

/// Returns the offloads that a kernel grants of the requested ones: UDP GSO packets since Linux 6.2.
pub(crate) fn granted(wish: TunOffload) -> TunOffload {
    TunOffload { uso: wish.uso && testbed::kernel_version() >= (6, 2), ..wish }
}

/// Returns true if a case can run: its address is IPv4, or the kernel has IPv6.
pub(crate) fn can_have(address: &str) -> bool {
    !address.starts_with('[') || testbed::has_ipv6()
}

/// Returns true if a condition becomes true within `limit`.
pub(crate) fn within(limit: Duration, mut comes_about: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if comes_about() {
            return true;
        }
        if start.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a test in a namespace with a TUN device that is up, has 100.96.1.1/16 and no IPv6, so that its kernel sends no
/// packets of its own.
pub(crate) fn with_tun(offload: TunOffload, test: impl FnOnce(&Namespace, Tun) + Send) {
    let namespace = namespace();
    namespace.disable_ipv6().expect("sysctl");
    namespace.enter(|| {
        let tun = Tun::open(&TunConfig::default().with_offload(offload)).expect("opened");
        namespace.add_address(tun.name(), "100.96.1.1/16".parse().expect("a network")).expect("address");
        namespace.set_up(tun.name()).expect("up");
        test(&namespace, tun);
    });
}

pub(crate) fn transport(address: &str) -> UdpTransport {
    bind(address, UdpConfig::default())
}

/// Binds a transport. A socket on `[::]` is one of another program, which is for IPv4 too.
pub(crate) fn bind(address: &str, config: UdpConfig) -> UdpTransport {
    if address.starts_with("[::]:") {
        let socket = UdpSocket::bind(address).expect("bound");
        return UdpTransport::from_socket(socket, config.offload).expect("taken over");
    }
    UdpTransport::bind(address.parse().expect("an address"), &config).expect("bound")
}

pub(crate) fn peer(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).expect("bound");
    socket.set_read_timeout(Some(SOON)).expect("timeout");
    let address = socket.local_addr().expect("address");
    (socket, address)
}

/// Returns a worker for 100.96.1.0/24 whose route to 100.96.2.0/24 leads to `peer`.
pub(crate) fn worker(tun: Tun, udp: UdpTransport, peer: SocketAddr) -> Worker {
    let net = |text: &str| text.parse::<Ipv4Net>().expect("a network");
    let host = Host::new(net("100.96.0.0/16"), net("100.96.1.0/24"), udp.local_addr()).expect("an identity");
    let mut routes = RoutePublisher::for_host(&host);
    assert!(routes.apply([RouteChange::Set(Route::new(net("100.96.2.0/24"), peer))]).refused.is_empty());
    let forwarder = Forwarder::new(ForwarderConfig::new(&host)).expect("valid settings");
    Worker::new(tun, udp, forwarder, routes.reader())
}

/// Runs an ignored test of this program in a process of its own.
pub(crate) fn in_a_child(test: &str) {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", test, "--nocapture"])
        .output()
        .expect("the child runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
