//! Faults 52 and 53: forged reports, and routes that apply to the tunnel's port alone.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testbed::probe::{Amount, path_mtu, tcp_send, tcp_sink};
use testbed::{Namespace, TwoHosts};

use crate::routers::checksum;
use crate::support::{SECOND, Tunnel, Tunnels, wait_until};

/// The quote of a datagram that host A may have sent.
struct Quote {
    len: u16,
    port: u16,
    /// Destination of the inner packet; `None` if nothing of it is quoted.
    inner: Option<Ipv4Addr>,
}

impl Quote {
    fn bytes(&self) -> Vec<u8> {
        let header = |len: u16, protocol: u8, source: Ipv4Addr, destination: Ipv4Addr| {
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            header[2..4].copy_from_slice(&len.to_be_bytes());
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        };
        let mut quote = header(self.len, 17, TwoHosts::HOST_A, TwoHosts::HOST_B);
        quote.extend(self.port.to_be_bytes());
        quote.extend(8285_u16.to_be_bytes());
        quote.extend((self.len - 20).to_be_bytes());
        quote.extend([0; 2]);
        if let Some(destination) = self.inner {
            quote.extend(header(self.len - 28, 6, TwoHosts::POD_A, destination));
        }
        quote
    }
}

/// Sends forged reports from host B to host A, 100 a second, while `act` runs.
fn under_forgeries<T>(host_b: &Namespace, mtu: u16, quotes: &[Quote], act: impl FnOnce() -> T) -> T {
    let messages: Vec<_> = quotes
        .iter()
        .map(|quote| {
            let mut message = vec![3, 4, 0, 0, 0, 0];
            message.extend(mtu.to_be_bytes());
            message.extend(quote.bytes());
            let sum = checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
            message
        })
        .collect();
    let socket = host_b.enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))).expect("a raw socket");
    let to = SockAddr::from(SocketAddr::from((TwoHosts::HOST_A, 0)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for message in &messages {
                    socket.send_to(message, &to).expect("sent");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        });
        let _stop = Stops(&stop);
        act()
    })
}

struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn stream(hosts: &TwoHosts, time: Duration) -> f64 {
    let target = SocketAddr::from((TwoHosts::POD_B, 5001));
    let listener = hosts.pod_b.enter(|| TcpListener::bind(target)).expect("a listener");
    let sink = tcp_sink(listener, 9);
    let sent = hosts.pod_a.enter(|| tcp_send(target, Amount::For(time), 9)).expect("sent");
    assert_eq!(sink.join().expect("no panic").expect("received").bytes, sent.bytes);
    sent.bits_per_second()
}

fn lowered(event: &Value) -> u64 {
    event["anomalies"]["path_mtu_lowered"].as_u64().expect("a number")
}

/// The kernel accepts every report. The tunnel accepts none, and its packets keep their length.
#[test]
fn fault_52_forged_reports_lower_nothing() {
    let pod = Some(TwoHosts::POD_B);
    let forgeries = [
        ("never sent", Quote { len: 28, port: 8285, inner: None }),
        ("shorter than its MTU", Quote { len: 552, port: 8285, inner: pod }),
        ("longer than ours are", Quote { len: 1501, port: 8285, inner: pod }),
        ("for no pod of that host", Quote { len: 1500, port: 8285, inner: Some(TwoHosts::POD_A) }),
    ];
    for more in [&[][..], &["--no-offload"]] {
        let mut tunnels = Tunnels::with(more, more);
        for (what, quote) in &forgeries {
            let hosts = &tunnels.hosts;
            under_forgeries(&hosts.host_b, 552, std::slice::from_ref(quote), || {
                wait_until("the kernel to believe it", || {
                    hosts.host_a.enter(|| path_mtu(TwoHosts::HOST_B)).expect("a path") == 552
                });
                stream(hosts, SECOND);
            });
            assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path"), 1472, "{what}");
            hosts.host_a.forget_path_mtus().expect("forgotten");
        }
        let last = tunnels.a.stop();
        assert_eq!(lowered(&last), 0, "{last}");
        assert_eq!(last["anomalies"]["gso_fallbacks"], 0, "{last}");
        tunnels.b.stop();
    }
}

/// A datagram from another port belongs to another socket. The kernel applies it to the whole path.
#[test]
fn fault_52_a_report_about_another_socket_lowers_nothing() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    let _other = hosts.host_a.enter(|| std::net::UdpSocket::bind((TwoHosts::HOST_A, 9000))).expect("a socket");
    let quote = Quote { len: 1500, port: 9000, inner: Some(TwoHosts::POD_B) };
    under_forgeries(&hosts.host_b, 552, &[quote], || {
        wait_until("the kernel to believe it", || {
            hosts.host_a.enter(|| path_mtu(TwoHosts::HOST_B)).expect("a path") == 552
        });
        stream(hosts, SECOND);
    });
    assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path"), 1472);
    assert_eq!(lowered(&tunnels.a.stop()), 0);
    tunnels.b.stop();
}

/// A sender that knows addresses, ports and lengths lowers a path to 1280 bytes at most, unless it quotes an inner
/// header.
#[test]
fn r54_plausible_reports_without_an_inner_header_stop_at_1280() {
    let mut tunnels = Tunnels::start();
    let hosts = &tunnels.hosts;
    let quotes = [1500, 1280].map(|len| Quote { len, port: 8285, inner: None });
    under_forgeries(&hosts.host_b, 552, &quotes, || stream(hosts, 2 * SECOND));
    assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path"), 1252);
    assert_eq!(lowered(&tunnels.a.stop()), 1);
    tunnels.b.stop();
}

/// Fault 53: a rule for the tunnel's port selects a narrower route than the one of a temporary socket.
#[test]
fn fault_53_a_route_by_source_port_is_found() {
    const TABLE: u8 = 100;
    for (more, ports) in [(&[][..], 8285..=8285), (&["--source-ports", "4"], 1024..=65_534)] {
        let hosts = TwoHosts::new().expect("two hosts");
        hosts.host_a.route_udp_from(ports, TABLE).expect("a rule");
        hosts.host_a.narrow_path_in_table(TABLE, TwoHosts::HOST_B, TwoHosts::UPLINK, 1300).expect("a route");
        let mut a = Tunnel::on_a(&hosts, more);
        let mut b = Tunnel::on_b(&hosts, &[]);
        stream(&hosts, SECOND / 2);
        assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path"), 1272);
        let last = a.stop();
        assert_eq!((lowered(&last), crate::support::dropped(&last, "encap", "send_failed")), (1, 0), "{last}");
        b.stop();
    }
}

/// The configured MTU of a route applies while the kernel has learned a lower one.
#[test]
fn fault_52_53_a_forged_report_hides_no_configured_mtu() {
    let hosts = TwoHosts::new().expect("two hosts");
    hosts.host_a.narrow_path(TwoHosts::HOST_B, TwoHosts::UPLINK, 1400).expect("a route");
    let mut a = Tunnel::on_a(&hosts, &[]);
    let mut b = Tunnel::on_b(&hosts, &[]);
    let quote = Quote { len: 28, port: 8285, inner: None };
    under_forgeries(&hosts.host_b, 552, &[quote], || {
        wait_until("the kernel to believe it", || {
            hosts.host_a.enter(|| path_mtu(TwoHosts::HOST_B)).expect("a path") == 552
        });
        stream(&hosts, SECOND);
    });
    assert_eq!(hosts.pod_a.enter(|| path_mtu(TwoHosts::POD_B)).expect("a path"), 1372);
    a.stop();
    b.stop();
}
