//! Tests of the link monitor.

use core::time::Duration;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::*;

fn events(monitor: &mut LinkMonitor) -> Vec<LinkEvent> {
    core::iter::from_fn(|| monitor.next_event().expect("the monitor works")).collect()
}

fn mtu(mtu: u32) -> Mtu {
    Mtu::new(mtu).expect("an MTU")
}

fn is_readable(monitor: &LinkMonitor, wait: Duration) -> bool {
    let timeout = PollTimeout::try_from(wait).expect("short");
    poll(&mut [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)], timeout).expect("poll") > 0
}

#[test]
fn a_link_stays_in_its_namespace_when_the_thread_leaves() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let mut monitor = LinkMonitor::open("loden0").expect("watched");
        let mut link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        let mut elsewhere = World::new();
        assert_eq!(elsewhere.add_link("victim"), index, "the same index, another device");
        world.remove_route("loden0");
        assert_eq!(link.restore().expect("restored"), Restored::Complete { address: false, route: true });
        link.remove().expect("removed");
        assert!(world.is_bare("loden0") && elsewhere.is_bare("victim"));
        events(&mut monitor);
        elsewhere.delete_link("victim");
        assert_eq!(events(&mut monitor), []);
    });
}

#[test]
fn the_monitor_reports_changes_in_order() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let mut monitor = LinkMonitor::open("loden0").expect("watched");
        assert_eq!((monitor.index(), events(&mut monitor)), (index, vec![]));
        let mut link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        assert_eq!(events(&mut monitor), [LinkEvent::MtuChanged(Mtu::DEFAULT), LinkEvent::Up]);
        world.set_up("loden0", false);
        world.set_up("loden0", true);
        assert_eq!(events(&mut monitor), [LinkEvent::Down, LinkEvent::Up]);
        link.restore().expect("restored");
        assert_eq!(events(&mut monitor), [], "restore causes no events");
        world.remove_route("loden0");
        assert_eq!(events(&mut monitor), [LinkEvent::RouteRemoved(network().into())]);
        world.remove_address("loden0", "100.96.1.0/32");
        assert_eq!(events(&mut monitor), [LinkEvent::AddressRemoved(ADDRESS.into())]);
        world.set_mtu("loden0", 1400);
        assert_eq!(events(&mut monitor), [LinkEvent::MtuChanged(mtu(1400))]);
        world.add_address("loden0", "100.96.1.0/32");
        world.delete_link("loden0");
        let last = events(&mut monitor);
        assert_eq!(last.last(), Some(&LinkEvent::Deleted), "{last:?}");
        assert!(!is_readable(&monitor, Duration::ZERO) && events(&mut monitor).is_empty());
    });
}

#[test]
fn a_link_that_leaves_the_namespace_is_reported_as_deleted() {
    in_namespace(|| {
        let mut world = World::new();
        let index = world.add_link("loden0");
        let mut monitor = LinkMonitor::open("loden0").expect("watched");
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        let elsewhere = File::open("/proc/thread-self/ns/net").expect("a namespace");
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::NetNsFd(elsewhere.as_raw_fd())];
        world.0.change(RouteNetlinkMessage::SetLink(message), 0).expect("moved");
        assert_eq!(events(&mut monitor), [LinkEvent::Deleted]);
    });
}

#[test]
fn other_links_and_routes_cause_no_wake_up() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        let mut monitor = LinkMonitor::open("loden0").expect("watched");
        let _link = Link::configure_with("loden0", &config(AddressForm::Host)).expect("configured");
        // The resulting events may come late on a slow machine.
        while is_readable(&monitor, Duration::from_millis(500)) {
            events(&mut monitor);
        }
        let other = world.add_link("eth0");
        world.set_up("eth0", true);
        world.set_mtu("eth0", 1400);
        world.add_address("eth0", "10.0.0.1/24");
        world.change_route(RouteType::Unicast, "10.9.0.0/16", Some(other));
        world.remove_address("eth0", "10.0.0.1/24");
        world.delete_link("eth0");
        assert!(!is_readable(&monitor, Duration::from_millis(200)));
    });
}

#[test]
fn a_wake_up_comes_when_the_link_goes_down() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        world.set_up("loden0", true);
        let monitor = LinkMonitor::open("loden0").expect("watched");
        assert!(!is_readable(&monitor, Duration::ZERO));
        world.set_up("loden0", false);
        let start = Instant::now();
        assert!(is_readable(&monitor, Duration::from_secs(5)) && start.elapsed() < Duration::from_secs(1));
    });
}

/// Changes the link until the monitor's queue, of the smallest size, has lost messages.
fn overrun(world: &mut World, monitor: &LinkMonitor) {
    SockRef::from(monitor).set_recv_buffer_size(1).expect("a small buffer");
    for round in 0..200 {
        world.set_up("loden0", round % 2 == 0);
        world.set_mtu("loden0", 1300 + round);
    }
}

#[test]
fn events_after_a_loss_match_the_state_of_the_link() {
    for up in [true, false] {
        in_namespace(move || {
            let mut world = World::new();
            world.add_link("loden0");
            world.set_up("loden0", true);
            let mut monitor = LinkMonitor::open("loden0").expect("watched");
            overrun(&mut world, &monitor);
            world.set_up("loden0", up);
            let seen = events(&mut monitor);
            assert!(seen.len() < 100, "messages were lost: {}", seen.len());
            let mtu = seen.iter().rev().find_map(|event| match event {
                LinkEvent::MtuChanged(mtu) => Some(*mtu),
                LinkEvent::AddressRemoved(_)
                | LinkEvent::Deleted
                | LinkEvent::Down
                | LinkEvent::RouteRemoved(_)
                | LinkEvent::Up => None,
            });
            let last = seen.iter().rev().find(|event| matches!(event, LinkEvent::Up | LinkEvent::Down));
            assert_eq!(
                (mtu, last),
                (Some(self::mtu(1499)), Some(if up { &LinkEvent::Up } else { &LinkEvent::Down })),
                "{seen:?}"
            );
            world.set_up("loden0", !up);
            assert_eq!(events(&mut monitor), [if up { LinkEvent::Down } else { LinkEvent::Up }], "and it goes on");
        });
    }
}

#[test]
fn a_lost_deletion_is_reported() {
    in_namespace(|| {
        let mut world = World::new();
        world.add_link("loden0");
        let mut monitor = LinkMonitor::open("loden0").expect("watched");
        overrun(&mut world, &monitor);
        world.delete_link("loden0");
        assert_eq!(events(&mut monitor).last(), Some(&LinkEvent::Deleted));
        assert!(!is_readable(&monitor, Duration::ZERO));
    });
}
