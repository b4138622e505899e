//! The TUN device without offloads.

use super::support::{SOON, named, namespace, with_tun, within};
use core::time::Duration;
use loden::sys::{OpenError, PACKET_MAX, Tun, TunError, TunOffload};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::UdpSocket;
use std::os::fd::AsFd;

#[test]
fn a_pattern_finds_a_free_name_and_a_name_is_kept() {
    let namespace = namespace();
    namespace.enter(|| {
        let by_pattern = [Tun::open(&named("loden%d")).expect("first"), Tun::open(&named("loden%d")).expect("second")];
        assert_eq!(by_pattern.each_ref().map(Tun::name), ["loden0", "loden1"]);
        let by_name = Tun::open(&named("fifteen-letters")).expect("by name");
        assert_eq!(by_name.name(), "fifteen-letters");
        assert!(by_pattern.iter().all(Tun::created) && by_name.created());
    });
}

#[test]
fn fault_39_41_the_second_opener_of_a_device_gets_busy() {
    namespace().enter(|| {
        let first = Tun::open(&named("loden7")).expect("first");
        let error = Tun::open(&named("loden7")).expect_err("busy");
        assert!(matches!(&error, OpenError::Busy { name } if name == "loden7"), "{error:?}");
        assert!(error.to_string().contains("loden7"), "{error}");
        first.set_persistent(true).expect("persistent");
        assert!(matches!(Tun::open(&named("loden7")), Err(OpenError::Busy { .. })), "persistent or not");
    });
}

#[test]
fn fault_42_a_device_goes_with_its_owner_unless_it_is_persistent() {
    let namespace = namespace();
    namespace.enter(|| {
        let exists = || namespace.link_mtu("loden0").expect("asked").is_some();
        let tun = Tun::open(&named("loden0")).expect("made");
        assert!(exists());
        drop(tun);
        assert!(within(Duration::from_millis(100), || !exists()));

        let tun = Tun::open(&named("loden0")).expect("made again");
        tun.set_persistent(true).expect("persistent");
        drop(tun);
        assert!(exists());
        let tun = Tun::open(&named("loden0")).expect("attached");
        assert!(!tun.created());
        tun.set_persistent(false).expect("no longer");
        drop(tun);
        assert!(within(Duration::from_millis(100), || !exists()));
    });
}

#[test]
fn a_descriptor_is_taken_over_with_its_device() {
    with_tun(TunOffload::NONE, |_, tun| {
        let duplicate = tun.as_fd().try_clone_to_owned().expect("duplicate");
        let other = Tun::from_fd(duplicate, TunOffload::NONE).expect("taken over");
        assert_eq!((other.name(), other.created()), ("loden0", false));
        drop(tun);
        assert_eq!(other.recv(&mut [0; 64]), Err(TunError::WouldBlock));
    });
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let error = Tun::from_fd(socket.into(), TunOffload::ALL).expect_err("no TUN");
    assert!(matches!(error, OpenError::NotAttached { .. }), "{error:?}");
    let node = std::fs::File::open("/dev/net/tun").expect("node");
    let error = Tun::from_fd(node.into(), TunOffload::ALL).expect_err("not attached");
    assert!(matches!(error, OpenError::NotAttached { .. }), "{error:?}");
}

#[test]
fn packets_pass_in_both_directions() {
    with_tun(TunOffload::NONE, |_, tun| {
        let socket = UdpSocket::bind("100.96.1.1:4000").expect("bound");
        socket.set_read_timeout(Some(SOON)).expect("timeout");
        let mut buffer = vec![0; PACKET_MAX + 1];
        assert_eq!(tun.recv(&mut buffer), Err(TunError::WouldBlock));
        socket.send_to(b"out", "100.96.2.3:5000").expect("sent");
        let length = tun.recv(&mut buffer).expect("received").len;
        let packet = &mut buffer[..length];
        assert_eq!((length, &packet[28..]), (31, &b"out"[..]));
        // Swapped addresses and ports leave both checksums as they are.
        let (source, destination) = packet[12..20].split_at_mut(4);
        source.swap_with_slice(destination);
        let (source, destination) = packet[20..24].split_at_mut(2);
        source.swap_with_slice(destination);
        tun.send(packet).expect("sent");
        assert_eq!(socket.recv_from(&mut [0; 16]).expect("received"), (3, "100.96.2.3:5000".parse().expect("address")));
    });
}

#[test]
fn garbage_is_the_kernels_to_drop() {
    with_tun(TunOffload::NONE, |_, tun| {
        assert_eq!(tun.send(&[]), Err(TunError::Rejected(nix::errno::Errno::EINVAL as i32)));
        assert_eq!(tun.send(&[0x15; 60]), Err(TunError::Rejected(nix::errno::Errno::EINVAL as i32)));
        for garbage in [&[0x45][..], &[0x4f; 3], &[0x45; 19], &[0x60; 39], &[0x45; PACKET_MAX]] {
            assert_eq!(tun.send(garbage), Ok(()), "{} bytes", garbage.len());
        }
        assert_eq!(tun.recv(&mut [0; 64]), Err(TunError::WouldBlock), "it still works");
    });
}

#[test]
fn fault_36_37_down_is_an_error_of_the_packet_and_deleted_is_final() {
    with_tun(TunOffload::NONE, |namespace, tun| {
        let mut buffer = [0; 64];
        namespace.set_down("loden0").expect("down");
        assert_eq!(tun.send(&[0x45; 20]), Err(TunError::Down));
        assert_eq!(tun.recv(&mut buffer), Err(TunError::WouldBlock));
        namespace.set_up("loden0").expect("up");
        assert_eq!(tun.send(&[0x45; 20]), Ok(()));

        tun.set_persistent(true).expect("persistent");
        namespace.delete_link("loden0").expect("deleted");
        for _ in 0..2 {
            assert_eq!(tun.recv(&mut buffer), Err(TunError::Deleted));
            assert_eq!(tun.send(&[0x45; 20]), Err(TunError::Deleted));
        }
        assert!(TunError::Deleted.is_fatal() && !TunError::Down.is_fatal());
        let mut watched = [PollFd::new(tun.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut watched, PollTimeout::ZERO), Ok(1), "a loop wakes up for it");
    });
}
