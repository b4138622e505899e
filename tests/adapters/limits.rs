//! Tests that need their own process, because they count or limit its file descriptors.

use core::num::NonZeroUsize;
use core::time::Duration;
use loden::sys::{BindError, OpenError, Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Ready};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::iter;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Instant;

use super::support::{in_a_child, namespace, within, worker};

/// Returns the number of open file descriptors of this process, without the one that reads it.
fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("procfs").count() - 1
}

#[test]
fn fault_35_nothing_is_left_half_open_without_descriptors() {
    in_a_child("limits::child_with_few_descriptors");
}

/// Opens a device and sockets with one more free descriptor each time, so that each of them fails once as the first.
#[test]
#[ignore = "run by fault_35_nothing_is_left_half_open_without_descriptors"]
fn child_with_few_descriptors() {
    let namespace = namespace();
    let address = ([127, 0, 0, 1], 8285).into();
    let config = UdpConfig::default().with_flow_ports(2);
    let queues = NonZeroUsize::new(3).expect("not zero");
    namespace.enter(|| {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
        let limit = |descriptors| setrlimit(Resource::RLIMIT_NOFILE, descriptors, most).expect("a limit");
        // The limit is on the numbers, and the lowest free ones are used first.
        let file = || fs::File::open("/dev/null").expect("opened");
        let is_within = |file: &fs::File| file.as_raw_fd() as usize + 1 < open_descriptors();
        let _taken: Vec<_> = iter::repeat_with(file).take_while(is_within).collect();
        let before = open_descriptors();
        let [mut no_device, mut no_sockets] = [0; 2];
        for room in 0..12 {
            limit((before + room) as u64);
            let tuns = Tun::open_queues(&TunConfig::default(), queues);
            limit(most);
            if let Err(error) = &tuns {
                no_device += 1;
                let message = error.to_string();
                assert!(matches!(error, OpenError::Other { .. }) && message.contains("os error 24"), "{message}");
                assert!(namespace.link_mtu("loden0").expect("asked").is_none(), "with room for {room}");
            }
            drop(tuns);
            assert_eq!(open_descriptors(), before, "with room for {room}");

            limit((before + room) as u64);
            let sockets = UdpTransport::bind_queues(address, &config, queues);
            limit(most);
            if let Err(error) = &sockets {
                no_sockets += 1;
                let message = error.to_string();
                assert!(matches!(error, BindError::Other { .. }) && message.contains("os error 24"), "{message}");
                UdpTransport::bind(address, &UdpConfig::default()).expect("nobody has the port");
            }
            drop(sockets);
            assert_eq!(open_descriptors(), before, "with room for {room}");
        }
        // Three UDP sockets, two of flows, and four attempts before the last UDP socket.
        assert_eq!((no_device, no_sockets), (3, 9), "each of them was the first that could not be opened");
    });
}

#[test]
fn fault_42_dropping_closes_and_removes_all_that_was_made() {
    in_a_child("limits::child_that_drops");
}

#[test]
#[ignore = "run by fault_42_dropping_closes_and_removes_all_that_was_made"]
fn child_that_drops() {
    let namespace = namespace();
    let own = ([127, 0, 0, 1], 8285).into();
    let config = UdpConfig::default().with_flow_ports(2);
    namespace.enter(|| {
        let before = open_descriptors();
        for queues in [1, 3] {
            let queues = NonZeroUsize::new(queues).expect("not zero");
            let tuns = Tun::open_queues(&TunConfig::default(), queues).expect("a device");
            let sockets = UdpTransport::bind_queues(own, &config, queues).expect("sockets");
            // Each queue has a device, a UDP socket, one for ICMP and one for routes.
            assert_eq!(open_descriptors(), before + 4 * queues.get() + 2);
            namespace.add_address("loden0", "100.96.1.1/16".parse().expect("a network")).expect("address");
            namespace.set_up("loden0").expect("up");
            let mut workers: Vec<_> = tuns
                .into_iter()
                .zip(sockets)
                .map(|(tun, udp)| worker(tun, udp, ([127, 0, 0, 2], 8285).into()))
                .collect();
            let socket = UdpSocket::bind("100.96.1.1:0").expect("bound");
            socket.send_to(b"out", "100.96.2.3:5000").expect("sent");
            for worker in &mut workers {
                worker.handle(Ready::ALL, Budget::default(), Instant::now()).map(drop).expect("alive");
            }
            drop(socket);
            drop(workers);
            assert_eq!(open_descriptors(), before, "{queues} queues");
            assert!(within(Duration::from_millis(100), || namespace.link_mtu("loden0").expect("asked").is_none()));
            UdpTransport::bind(own, &UdpConfig::default()).expect("nobody has the port");
        }
        // A device that existed before stays. A deleted one is closed nevertheless.
        Tun::open(&TunConfig::default()).expect("a device").set_persistent(true).expect("persistent");
        drop(Tun::open(&TunConfig::new("loden0")).expect("the same"));
        assert!(namespace.link_mtu("loden0").expect("asked").is_some());
        let tun = Tun::open(&TunConfig::new("loden0")).expect("the same");
        namespace.delete_link("loden0").expect("deleted");
        drop(tun);
        assert_eq!(open_descriptors(), before);
    });
}
