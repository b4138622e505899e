//! Slow readers of the node's output.

use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::Child;

use crate::etcd::tied_to_its_parent;
use crate::hosts::Site;
use crate::node::{Node, program};
use crate::operator::{Operator, subnets};
use crate::{SOON, wait_until};

/// More than the capacity of a pipe, written line by line or at once.
const LEASES: u32 = 3000;

fn site() -> Site {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.64.0.0/10"}"#);
    let lease = |number: u32| {
        let subnet = Ipv4Addr::from_bits(0x6450_0000 + (number << 8));
        (format!("{subnet}-24"), Ipv4Addr::from_bits(0xac10_0000 + number))
    };
    operator.put_leases(&(0..LEASES).map(lease).collect::<Vec<_>>());
    site
}

#[test]
fn a_list_waits_for_its_reader() {
    let site = site();
    let mut command = tied_to_its_parent("sh");
    command.args(["-c", r#""$0" "$@" | (sleep 1; cat)"#]).arg(program()).arg("list").args(site.etcd.args());
    let child = Child::spawn(&site.switch, command).unwrap();
    let lines = std::iter::from_fn(|| child.next_line(SOON).ok()).count();
    assert_eq!(lines, 1 + LEASES as usize, "the network, and every lease");

    let mut command = tied_to_its_parent("sh");
    command.args(["-c", r#""$0" "$@" | head -n 1"#]).arg(program()).arg("list").args(site.etcd.args());
    let mut child = Child::spawn(&site.switch, command).unwrap();
    assert!(child.next_line(SOON).unwrap().starts_with("the network is"));
    child.wait(SOON).unwrap().expect("an end");
    assert_eq!(child.stderr(), "", "who has seen enough is told nothing more");
}

/// The reader does not read and the pipe is full. The node leases, forwards and stops nevertheless.
#[test]
fn a_node_does_not_wait_for_a_reader() {
    let site = site();
    let host = &site.hosts[0];
    let (mut sleeper, writer) = std::io::pipe().unwrap();
    let room = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(2 * PIPE_BUF as i32)).unwrap();
    let mut command = tied_to_its_parent("sh");
    let path = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
    command.args(["-c", &format!("exec \"$0\" \"$@\" >{path}")]).arg(program());
    let mut node = Node::spawn_by(command, host, &site.etcd, &[]);
    // A lease appears and disappears until there is no room for one more line.
    let mut operator = Operator::of(&site.etcd, &site.switch);
    wait_until("the subnet file", || host.subnet_file().exists());
    wait_until("the pipe to be full", || {
        for last in [1, 2] {
            operator.put_lease("100.127.0.0-24", [10, 168, 1, last].into());
            operator.put(&subnets("100.127.1.0-24"), &"[".repeat(last.into()));
            operator.put(&subnets(&format!("{}-{last}", "long".repeat(30))), "");
        }
        poll(&mut [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(0)
    });
    node.child.signal(Signal::SIGTERM).unwrap();
    assert!(node.ends().success(), "{}", node.child.stderr());

    drop(writer);
    let mut said = String::new();
    sleeper.read_to_string(&mut said).unwrap();
    assert!(said.len() > room as usize / 2 && said.ends_with('\n'), "{said}");
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("no line is cut")).collect();
    // The lease that appears and disappears may be among them.
    let all = |event: &&Value| event["event"] == "routes" && event["changes"].as_u64() >= Some(LEASES.into());
    assert_eq!(events.iter().filter(all).count(), 1, "one line for all of them: {said}");
}

/// A flood of invalid entries is partly reported, and does not suppress other events.
#[test]
fn fault_63_a_cause_that_repeats_is_told_at_a_limited_rate() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    for number in 0..400 {
        operator.put(&subnets("100.96.9.0-24"), "rubbish");
        operator.put(&subnets("100.96.11.0-24"), &number.to_string());
        operator.put_lease("100.96.10.0-24", [10, 168, 1, (number % 2) as u8].into());
        operator.put_lease("9.9.9.0-24", [10, 168, 1, (number % 2) as u8].into());
    }
    let host = &site.hosts[0].namespace;
    for _ in 0..100 {
        host.delete_route("100.96.0.0/16".parse().unwrap()).unwrap();
        wait_until("the route to be back", || {
            host.routes().unwrap().iter().any(|route| route.link.as_deref() == Some("flannel0"))
        });
    }
    node.says_that("left_out", |said| said["of"] == "set_aside");
    node.listen(std::time::Duration::from_millis(500));
    for kind in ["set_aside", "routes", "conflict", "link"] {
        // Two or three spans of ten seconds, on a busy machine.
        assert!((5..100).contains(&node.count(kind)), "{kind}: {}", node.count(kind));
    }
    let of_one_key = node.said.iter().filter(|said| said["reason"].to_string().contains("100.96.9.0-24")).count();
    assert!((1..25).contains(&of_one_key), "{of_one_key}");
    assert_eq!(node.stop()["routes"], 1);
}

/// No server answers and no reader reads. The node stops when requested, both before and after it has a lease.
#[test]
fn fault_56_neither_etcd_nor_a_reader_keeps_a_node_from_its_end() {
    let mut site = site();
    let quick = std::time::Duration::from_secs(3);
    for leased in [false, true] {
        let (sleeper, writer) = std::io::pipe().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
        let mut command = tied_to_its_parent("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" >{path} 2>&1")]).arg(program());
        // The pipe is full from the start.
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BUF as i32)).unwrap();
        nix::unistd::write(&writer, &[b' '; PIPE_BUF]).unwrap();
        if !leased {
            site.etcd.signal_member(0, Signal::SIGSTOP);
        }
        let mut node = Node::spawn_by(command, &site.hosts[0], &site.etcd, &["--list-interval=1"]);
        if leased {
            wait_until("the subnet file", || site.hosts[0].subnet_file().exists());
            site.etcd.signal_member(0, Signal::SIGSTOP);
        }
        std::thread::sleep(std::time::Duration::from_secs(2));
        node.child.signal(Signal::SIGTERM).unwrap();
        let ended = node.child.wait(quick).unwrap();
        site.etcd.signal_member(0, Signal::SIGCONT);
        assert!(ended.is_some_and(|status| status.success()), "leased: {leased}, {ended:?}");
        drop(sleeper);
    }
}
