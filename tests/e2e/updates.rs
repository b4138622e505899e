//! Lease changes while packets flow lose no packet.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ipnet::Ipv4Net;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::lease::{Lease, LeaseEvent, Reconciler, SourceId};
use loden::route::{RoutePublisher, RouteReader};
use loden::sys::link::Link;
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Running, Worker};
use loden::{Host, Mtu};
use testbed::TwoHosts;
use testbed::probe::{UdpEcho, udp_exchange};

use crate::support::{SECOND, Tunnel, assert_conserved};

const OWN: (Ipv4Addr, u16) = (TwoHosts::HOST_A, 8285);
/// The number of other hosts' leases, a part of which changes each time.
const OTHERS: u32 = 2000;
/// The least number of datagrams in each direction, and of tables published meanwhile.
const DATAGRAMS: u64 = 5000;
const TABLES: usize = 500;

/// Faults 43 and 46, end to end. The route of every datagram and answer is replaced by its two halves and back, and
/// moves to a narrower path and back. Other routes change too. All datagrams arrive, and all are counted.
#[test]
fn fault_43_no_packet_is_lost_to_updates() {
    let hosts = TwoHosts::new().unwrap();
    // Without IPv6 the kernel sends no packets of its own.
    hosts.host_a.disable_ipv6().unwrap();
    hosts.host_b.disable_ipv6().unwrap();
    let mut b = Tunnel::on_b(&hosts, &[]);
    let mut leases = Leases::new();
    leases.change();
    let running = hosts.host_a.enter(|| Running::start([open(leases.publisher.reader())])).unwrap();
    let echo = hosts.pod_b.enter(|| UdpSocket::bind((TwoHosts::POD_B, 7))).unwrap();
    let echo = UdpEcho::start(echo).unwrap();

    let (stop, tables, mut exchanged) = (AtomicBool::new(false), AtomicUsize::new(0), 0);
    std::thread::scope(|scope| {
        let _ends = Ends(&stop);
        let publishing = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                leases.change();
                tables.fetch_add(1, Ordering::Relaxed);
            }
        });
        hosts.pod_a.enter(|| {
            while exchanged < DATAGRAMS || tables.load(Ordering::Relaxed) < TABLES {
                // Few are in flight at once, so that no socket's buffer is full.
                udp_exchange((TwoHosts::POD_B, 7).into(), &[100; 500], 10 * SECOND).unwrap();
                exchanged += 500;
            }
        });
        stop.store(true, Ordering::Relaxed);
        publishing.join().unwrap();
    });
    let counters = running.stop().unwrap();
    assert_eq!(echo.stop().unwrap(), exchanged);
    for flow in [&counters.encap, &counters.decap] {
        assert!(flow.is_conserved());
        assert_eq!(
            (flow.received(), flow.forwarded()),
            (exchanged, exchanged),
            "{:?}",
            flow.drops().collect::<Vec<_>>()
        );
    }
    let last = b.stop();
    assert_conserved(&last);
    assert_eq!(
        (&last["decap"]["forwarded"], &last["encap"]["forwarded"]),
        (&exchanged.into(), &exchanged.into()),
        "{last}"
    );
}

/// Sets a flag also after a panic, because the scope waits for its threads.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Leases {
    reconciler: Reconciler<Ipv4Net>,
    publisher: RoutePublisher,
    round: u32,
}

impl Leases {
    fn new() -> Self {
        let reconciler = Reconciler::new(&own_host());
        Self { reconciler, publisher: RoutePublisher::for_host(&own_host()), round: 0 }
    }

    /// Applies the next batch of events, and publishes it at once.
    fn change(&mut self) {
        let round = self.round;
        self.round += 1;
        let mtu = round.is_multiple_of(3).then(|| Mtu::new(1400).expect("an MTU"));
        let whole = TwoHosts::SUBNET_B;
        for subnet in whole.subnets(25).unwrap().chain([whole]) {
            let is_there = (subnet == whole) == round.is_multiple_of(2);
            let lease = Lease::new(subnet, (TwoHosts::HOST_B, 8285)).with_mtu(mtu);
            self.take(if is_there { added(lease) } else { LeaseEvent::Removed { key: subnet } });
        }
        for number in (0..OTHERS).filter(|number| (number + round).is_multiple_of(17)) {
            let subnet = Ipv4Net::new(Ipv4Addr::from_bits(0x6460_8000 + 16 * number), 28).unwrap();
            let lease = Lease::new(subnet, ([10, 168, 1, (number + round) as u8 | 1], 8285));
            self.take(if round.is_multiple_of(5) { LeaseEvent::Removed { key: subnet } } else { added(lease) });
        }
        let applied = self.publisher.apply(self.reconciler.take_changes());
        assert!(applied.changed > 0 && applied.refused.is_empty());
        drop(self.reconciler.take_conflict_changes());
    }

    fn take(&mut self, event: LeaseEvent<Ipv4Net>) {
        self.reconciler.handle_event(SourceId(0), event, Duration::ZERO);
    }
}

fn added(lease: Lease) -> LeaseEvent<Ipv4Net> {
    let ipnet::IpNet::V4(key) = lease.subnet else { panic!("{lease:?} is IPv6") };
    LeaseEvent::Added { key, lease }
}

fn own_host() -> Host {
    Host::new(TwoHosts::OVERLAY, TwoHosts::SUBNET_A, OWN).unwrap()
}

fn open(routes: RouteReader) -> Worker {
    let forwarder = Forwarder::new(ForwarderConfig::new(&own_host())).unwrap();
    let tun = Tun::open(&TunConfig::default()).unwrap();
    let udp = UdpTransport::bind(SocketAddr::from(OWN), &UdpConfig::default()).unwrap();
    Link::configure(&tun, &own_host()).unwrap();
    Worker::new(tun, udp, forwarder, routes)
}
