#![expect(clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

use super::open::{checked_name, name_of};
use super::*;
use crate::sys::script::{Answer, Call, Script};
use crate::sys::syscall::{INTERFACE_NAME, InterfaceRequest};
use crate::wire::checksum;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::ToString;
use std::fs::OpenOptions;
use std::io::Read;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use testbed::Namespace;

impl Tun {
    /// Returns a device whose packets come from a script, with a header in front of each if it has any offload.
    pub(crate) fn scripted(script: &Script, offload: TunOffload) -> Self {
        // A descriptor that epoll accepts.
        let (reader, _) = std::io::pipe().expect("a pipe");
        let (file, name) = (File::from(OwnedFd::from(reader)), "script0".to_owned());
        let vnet = offload != TunOffload::NONE;
        Self { file, name, created: true, vnet, offload, disabled: Disabled::default(), calls: script.into() }
    }
}

const NEEDS: &str = "these tests make network namespaces and TUN devices, and need root";
/// `TUN_F_CSUM` and `TUN_F_TSO4` of linux/if_tun.h.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4;

fn named(name: &str) -> TunConfig {
    TunConfig::new(name).with_offload(TunOffload::NONE)
}

fn node() -> File {
    OpenOptions::new().read(true).write(true).open(DEVICE_NODE).expect(NEEDS)
}

/// Creates a device without this crate's configuration.
fn raw(name: &str, flags: u16) -> OwnedFd {
    let node = node();
    let request = InterfaceRequest::new(checked_name(name).expect("legal"), flags);
    syscall::set_interface(node.as_fd(), request).expect("made");
    node.into()
}

#[test]
fn an_invalid_name_is_refused_with_the_reason() {
    for (name, reason) in [
        ("", "empty"),
        ("sixteen-letters-", "15 bytes"),
        ("a/b", "slash"),
        ("eth0:1", "colon"),
        ("two words", "white space"),
        ("a\0b", "NUL"),
        ("..", "directory"),
        ("tun%d%d", "one %d"),
        ("tun%s", "one %d"),
        ("100%", "one %d"),
    ] {
        let message = checked_name(name).expect_err(name).to_string();
        assert!(message.contains(reason) && message.contains(&format!("{name:?}")), "{message}");
    }
    for name in ["a", "fifteen-letters", "loden%d", "%d", "größe"] {
        assert_eq!(name_of(&InterfaceRequest::new(checked_name(name).expect(name), 0)), name);
    }
}

#[test]
fn the_kernel_takes_the_same_names() {
    Namespace::new().expect(NEEDS).enter(|| {
        let candidates = (1..=0xff_u8).map(char::from).filter(|letter| !letter.is_alphanumeric() || *letter == 'à');
        let names = candidates.map(|letter| format!("x{letter}")).chain([".", "..", "x%d"].map(ToOwned::to_owned));
        for name in names {
            let mut field = [0; INTERFACE_NAME];
            field[..name.len()].copy_from_slice(name.as_bytes());
            let request = InterfaceRequest::new(field, flags::TUN | flags::NO_PI);
            let kernel = syscall::set_interface(node().as_fd(), request);
            assert_eq!(kernel.is_ok(), checked_name(&name).is_ok(), "{name:?}: {kernel:?}");
        }
    });
}

#[test]
fn fault_26_28_34_36_every_errno_of_a_packet_has_its_meaning() {
    for (errno, error, fatal) in [
        (libc::EAGAIN, TunError::WouldBlock, false),
        (libc::EBADF, TunError::Closed, true),
        (libc::EBADFD, TunError::Deleted, true),
        (libc::EINVAL, TunError::Rejected(libc::EINVAL), false),
        (libc::EIO, TunError::Down, false),
        (libc::ENOBUFS, TunError::Full, false),
        (libc::ENOMEM, TunError::Full, false),
    ] {
        for offload in [TunOffload::ALL, TunOffload::NONE] {
            let script = Script::default();
            let tun = Tun::scripted(&script, offload);
            let answers = [libc::EINTR, libc::EINTR, errno].map(Answer::Error);
            for call in [Call::Read, Call::Write] {
                script.then(call, answers);
            }
            assert_eq!((tun.recv(&mut [0; 64]), tun.send(&[0x45; 20])), (Err(error), Err(error)));
            let calls = [Call::Read, Call::Write].map(|call| script.count(call));
            assert_eq!((calls, script.is_over()), ([3, 3], true), "one call answers for one packet");
        }
        assert_eq!(error.is_fatal(), fatal);
    }
}

/// If any queue fails, the error has its number, and neither the other queues nor the device are left.
#[test]
fn fault_35_no_device_is_left_of_queues_that_could_not_be_had() {
    let namespace = Namespace::new().expect(NEEDS);
    namespace.enter(|| {
        let queues = NonZeroUsize::new(4).expect("not zero");
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            for before in 0..4 {
                let (script, config) = (Script::default(), TunConfig::default());
                script.then(Call::Open, core::iter::repeat_n(Answer::All, before).chain([Answer::Error(errno)]));
                let opening = Opening::new(Path::new(DEVICE_NODE), &config, queues);
                match (Opening { calls: (&script).into(), ..opening }).all() {
                    Err(OpenError::Other { source, .. }) => assert_eq!(source.raw_os_error(), Some(errno)),
                    other => panic!("{other:?}"),
                }
                assert_eq!(script.count(Call::Open), before + 1);
                assert_eq!(namespace.links().expect("links"), ["lo"]);
            }
        }
    });
}

#[test]
fn fault_39_a_missing_node_and_a_node_of_something_else_are_told() {
    for (node, errno) in [("/dev/net/no-such-node", libc::ENOENT), ("/dev/null/tun", libc::ENOTDIR)] {
        match Opening::new(Path::new(node), &TunConfig::default(), NonZeroUsize::MIN).first() {
            Err(OpenError::MissingDevice { node: named, source }) => {
                assert_eq!((named.as_str(), source.raw_os_error()), (node, Some(errno)));
            }
            other => panic!("{node}: {other:?}"),
        }
    }
    let regular = std::env::current_exe().expect("this program");
    for (node, told) in [
        ("/dev/null", "the character device 1:3"),
        ("/dev", "a directory"),
        (regular.to_str().expect("UTF-8"), "a file"),
    ] {
        match Opening::new(Path::new(node), &TunConfig::default(), NonZeroUsize::MIN).first() {
            Err(error @ OpenError::NotTunNode { .. }) => {
                let message = error.to_string();
                assert!(
                    message.starts_with(&format!("{node} is {told} and not")) && message.contains("mknod"),
                    "{message}"
                );
            }
            other => panic!("{node}: {other:?}"),
        }
    }
    let absent = OpenError::of_node(Path::new(DEVICE_NODE), "x", io::Error::from_raw_os_error(libc::ENODEV));
    assert!(absent.to_string().contains("modprobe tun"), "{absent}");
}

#[test]
fn fault_39_without_rights_the_error_says_which_are_needed() {
    Namespace::new().expect(NEEDS).enter(|| {
        // A child in its own user namespace has no rights in this network namespace.
        let output = Command::new("unshare")
            .arg("--user")
            .arg(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "sys::tun::tests::child_without_rights", "--nocapture"])
            .stdin(Stdio::from(node()))
            .output()
            .expect("the child runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    });
}

#[test]
#[ignore = "run by fault_39_without_rights_the_error_says_which_are_needed"]
fn child_without_rights() {
    let node = io::stdin().as_fd().try_clone_to_owned().expect("a descriptor");
    let config = TunConfig::default();
    let by_device = Opening::new(Path::new(DEVICE_NODE), &config, NonZeroUsize::MIN).attach(node.into());
    for error in [by_device.expect_err("by TUNSETIFF"), Tun::open(&TunConfig::default()).expect_err("by opening")] {
        assert!(matches!(error, OpenError::NoPermission { .. }), "{error:?}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }
}

#[test]
fn fault_39_a_descriptor_must_carry_bare_ip() {
    let namespace = Namespace::new().expect(NEEDS);
    namespace.enter(|| {
        for (number, (flags, reason)) in [
            (flags::TAP | flags::NO_PI, "Ethernet"),
            (flags::TUN, "IFF_NO_PI"),
            (flags::TUN | flags::VNET_HDR, "IFF_NO_PI"),
        ]
        .into_iter()
        .enumerate()
        {
            let device = format!("wrong{number}");
            for up in [false, true] {
                let fd = raw(&device, flags);
                if up {
                    namespace.set_up(&device).expect("up");
                }
                let error = Tun::from_fd(fd, TunOffload::ALL).expect_err("refused");
                assert!(
                    matches!(&error, OpenError::WrongFlags { name, have } if *name == device && *have == flags),
                    "{error:?}"
                );
                assert!(error.to_string().contains(reason), "{error}");
            }
        }
        let multi_queue = libc::IFF_MULTI_QUEUE as u16;
        let tun = Tun::from_fd(raw("many%d", flags::TUN | flags::NO_PI | multi_queue), TunOffload::ALL)
            .expect("several queues are fine");
        assert_eq!((tun.name(), tun.created()), ("many0", false));
        assert_eq!(tun.recv(&mut [0; 64]), Err(TunError::WouldBlock), "was blocking before");
    });
}

#[test]
fn fault_39_a_name_that_is_taken_by_another_kind_is_told() {
    // The peer's namespace must outlive the pair.
    let (namespace, peer) = (Namespace::new().expect(NEEDS), Namespace::new().expect(NEEDS));
    namespace.connect("veth7", &peer, "far").expect("veth");
    namespace.enter(|| {
        let _tap = raw("tap7", flags::TAP | flags::NO_PI);
        let _many = raw("many7", flags::TUN | flags::NO_PI | libc::IFF_MULTI_QUEUE as u16);
        for taken in ["tap7", "many7", "veth7", "lo"] {
            let error = Tun::open(&named(taken)).expect_err(taken);
            assert!(matches!(&error, OpenError::WrongKind { name, queues: 1 } if name == taken), "{error:?}");
        }
    });
}

/// A UDP checksum for hardware completion covers the pseudo header alone.
#[test]
fn fault_40_offloads_that_were_left_behind_are_switched_off() {
    let namespace = Namespace::new().expect(NEEDS);
    namespace.disable_ipv6().expect("sysctl");
    namespace.enter(|| {
        let former = raw("loden0", flags::TUN | flags::NO_PI | flags::VNET_HDR);
        syscall::set_offload(former.as_fd(), OFFLOADS).expect("offloads");
        syscall::set_persist(former.as_fd(), true).expect("persistent");
        namespace.add_address("loden0", "100.96.1.1/16".parse().expect("a network")).expect("address");
        namespace.set_up("loden0").expect("up");
        drop(former);
        let inherited = || {
            let fd = raw("loden0", flags::TUN | flags::NO_PI);
            set_non_blocking(&fd).expect("set");
            fd
        };
        let mut untouched = File::from(inherited());
        let socket = UdpSocket::bind("100.96.1.1:0").expect("bound");
        let mut buffer = [0; 2048];
        let length = first_of_many(&socket, || match untouched.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            length => Some(length.expect("received")),
        });
        assert!(!udp_checksum_holds(&buffer[..length]), "otherwise this test tests nothing");
        drop(untouched);

        let taken_over = Tun::from_fd(inherited(), TunOffload::ALL).expect("taken over");
        syscall::set_offload(taken_over.as_fd(), OFFLOADS).expect("offloads again");
        drop(taken_over);
        let tun = Tun::open(&named("loden0")).expect("attached");
        assert!(!tun.created());
        let length = first_of_many(&socket, || unless_empty(tun.recv(&mut buffer))).len;
        assert!(udp_checksum_holds(&buffer[..length]));
    });
}

#[test]
fn fault_15_a_read_shorter_than_the_header_is_an_error_of_that_packet() {
    let header = VnetHeader { gso_type: 1, gso_size: 1400, ..VnetHeader::default() };
    for len in 0..VNET_HEADER_LEN {
        let error = received(len, header.to_bytes()).expect_err("short");
        assert_eq!(error, TunError::Headless { len });
        assert!(!error.is_fatal());
    }
    for len in [0, 1, 65_535] {
        assert_eq!(received(VNET_HEADER_LEN + len, header.to_bytes()), Ok(TunMeta { len, header }));
    }
    let script = Script::default();
    let tun = Tun::scripted(&script, TunOffload::ALL);
    for len in 0..=VNET_HEADER_LEN {
        script.give_packet(&header.to_bytes()[..len]);
    }
    for len in 0..VNET_HEADER_LEN {
        assert_eq!(tun.recv(&mut [0; 64]), Err(TunError::Headless { len }));
    }
    assert_eq!(tun.recv(&mut [0; 64]), Ok(TunMeta { len: 0, header }));
}

/// A device with a header of 12 bytes, as with virtio's `num_buffers`, in native or undefined byte order.
#[test]
fn fault_40_the_header_of_a_former_process_becomes_ours() {
    let namespace = Namespace::new().expect(NEEDS);
    namespace.disable_ipv6().expect("sysctl");
    namespace.enter(|| {
        let foreign = || {
            let fd = raw("loden0", flags::TUN | flags::NO_PI | flags::VNET_HDR);
            syscall::set_vnet_header_len(fd.as_fd(), 12).expect("a length");
            syscall::set_vnet_little_endian(fd.as_fd(), false).expect("an order");
            syscall::set_offload(fd.as_fd(), 0).expect("none");
            syscall::set_persist(fd.as_fd(), true).expect("persistent");
            fd
        };
        drop(foreign());
        namespace.add_address("loden0", "100.96.1.1/16".parse().expect("a network")).expect("address");
        namespace.set_up("loden0").expect("up");
        let socket = UdpSocket::bind("100.96.1.1:0").expect("bound");
        for taken_over in [false, true] {
            let fd = foreign();
            let tun = if taken_over {
                Tun::from_fd(fd, TunOffload::ALL)
            } else {
                drop(fd);
                Tun::open(&TunConfig::new("loden0").with_offload(TunOffload::ALL))
            };
            let tun = tun.expect("ours");
            assert_eq!((tun.created(), tun.offload().tso), (false, true));
            let mut buffer = [0; 64];
            let meta = first_of_many(&socket, || unless_empty(tun.recv(&mut buffer)));
            assert_eq!((meta.len, &buffer[28..31]), (31, &b"out"[..]));
            assert_eq!((meta.header.flags, meta.header.csum_start, meta.header.csum_offset), (1, 20, 6));
            tun.send(&buffer[..31]).expect("sent");
        }
    });
}

#[test]
fn a_descriptor_without_a_header_grants_no_offloads() {
    Namespace::new().expect(NEEDS).enter(|| {
        let bare = Tun::from_fd(raw("bare0", flags::TUN | flags::NO_PI), TunOffload::ALL).expect("taken over");
        assert_eq!(bare.offload(), TunOffload::NONE);
        let header = flags::TUN | flags::NO_PI | flags::VNET_HDR | flags::MULTI_QUEUE;
        let queues = [(), ()].map(|()| Tun::from_fd(raw("many0", header), TunOffload::ALL).expect("taken over"));
        assert!(queues.iter().all(|queue| queue.offload().tso && queue.name() == "many0"));
        let without = Tun::from_fd(raw("head0", flags::TUN | flags::NO_PI | flags::VNET_HDR), TunOffload::NONE);
        let without = without.expect("taken over");
        assert_eq!(without.offload(), TunOffload::NONE);
        assert_eq!(without.send(&[]), Err(TunError::Rejected(libc::EINVAL)));
    });
}

/// Returns the first received packet to 100.96.2.3. The kernel drops sent packets until its own worker has noticed that
/// the device is in use (net/core/link_watch.c).
fn first_of_many<T>(socket: &UdpSocket, mut receive: impl FnMut() -> Option<T>) -> T {
    for _ in 0..5000 {
        socket.send_to(b"out", "100.96.2.3:5000").expect("sent");
        match receive() {
            None => std::thread::sleep(core::time::Duration::from_millis(1)),
            Some(received) => return received,
        }
    }
    panic!("nothing comes out of the device");
}

fn unless_empty(received: Result<TunMeta, TunError>) -> Option<TunMeta> {
    match received {
        Err(TunError::WouldBlock) => None,
        received => Some(received.expect("received")),
    }
}

fn udp_checksum_holds(packet: &[u8]) -> bool {
    let (addresses, datagram) = (&packet[12..20], &packet[20..]);
    let length = u16::try_from(datagram.len()).expect("short").to_be_bytes();
    checksum::sum(&[addresses, &[0, 17], &length, datagram].concat()) == 0xffff
}
