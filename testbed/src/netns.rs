//! A network namespace that exists as long as it is referenced.

use crate::error::Context;
use alloc::sync::Arc;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};

/// A network namespace. Clones refer to the same one.
///
/// It has no name. The kernel removes it with its links when the last clone, the last thread and process inside and the
/// last socket opened inside are gone.
#[derive(Clone, Debug)]
pub struct Namespace {
    // It is shared and not duplicated, so a clone needs no further descriptor.
    handle: Arc<OwnedFd>,
}

impl Namespace {
    /// Creates a namespace that has only `lo`, which is up.
    ///
    /// The kernel copies the IPv4 settings of the initial namespace, for example `rp_filter`, unless
    /// `net.core.devconf_inherit_init_net` is set otherwise.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_SYS_ADMIN`, with the needed rights; otherwise the kernel's error.
    pub fn new() -> io::Result<Self> {
        let namespace = on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(refused)?;
            Self::current()
        })??;
        namespace.set_up("lo")?;
        Ok(namespace)
    }

    /// Returns the namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted, or the process is out of descriptors.
    pub fn current() -> io::Result<Self> {
        let file = File::open("/proc/thread-self/ns/net").context(|| "cannot open the current namespace".into())?;
        Ok(Self { handle: Arc::new(file.into()) })
    }

    /// Runs `f` inside the namespace in a new thread, and returns its result.
    ///
    /// Sockets, TUN devices, threads and child processes that `f` creates belong to the namespace.
    ///
    /// # Panics
    /// With the panic of `f`, or if the thread cannot be created or cannot enter.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let outcome = on_a_thread(|| {
            self.join();
            f()
        });
        match outcome {
            Ok(value) => value,
            Err(error) => panic!("cannot make a thread for a network namespace: {error}"),
        }
    }

    /// Starts a thread inside the namespace that runs `f`.
    ///
    /// # Panics
    /// The thread cannot be created. The thread itself panics if it cannot enter.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.clone();
        let spawned = thread::Builder::new().name(name.into()).spawn(move || {
            namespace.join();
            // Otherwise the thread would keep a namespace alive that `f` has left.
            drop(namespace);
            f()
        });
        match spawned {
            Ok(handle) => handle,
            Err(error) => panic!("cannot make a thread for a network namespace: {error}"),
        }
    }

    /// Writes `value` to `/proc/sys/<path>` inside the namespace, for example `sysctl("net/ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// `NotFound` for an unknown setting; otherwise the kernel's error.
    pub fn sysctl(&self, path: &str, value: &str) -> io::Result<()> {
        self.enter(|| fs::write(format!("/proc/sys/{path}"), value))
            .context(|| format!("cannot set the sysctl {path} to {value:?}"))
    }

    /// Disables IPv6 on all links, including later ones, so that the kernel sends no unrequested packets. A kernel
    /// without IPv6 (`ipv6.disable=1`, or its module not loaded) has no such setting and sends nothing.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn disable_ipv6(&self) -> io::Result<()> {
        // This sets `default` and every link too (`addrconf_disable_ipv6` in net/ipv6/addrconf.c).
        match self.sysctl("net/ipv6/conf/all/disable_ipv6", "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Moves the calling thread into the namespace.
    fn join(&self) {
        if let Err(errno) = setns(self, CloneFlags::CLONE_NEWNET) {
            panic!("cannot enter a network namespace: {errno}");
        }
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// Runs `f` in a new thread, so that the caller's thread stays in its namespace.
fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let handle = thread::Builder::new().name("netns".into()).spawn_scoped(scope, f)?;
        Ok(handle.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

fn refused(errno: Errno) -> io::Error {
    if errno == Errno::EPERM {
        let needs = "network namespaces need root, or a user namespace: run as root or under \
                     `unshare --user --map-root-user --net`";
        return io::Error::new(io::ErrorKind::PermissionDenied, needs);
    }
    io::Error::from(errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Child;
    use core::time::Duration;
    use nix::mount::{MsFlags, mount};
    use std::env;
    use std::net::UdpSocket;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;
    use std::time::Instant;

    fn inode_of_current_thread() -> u64 {
        fs::metadata("/proc/thread-self/ns/net").expect("procfs").ino()
    }

    fn gone_within(limit: Duration, namespace: &Namespace, link: &str) -> bool {
        let start = Instant::now();
        while start.elapsed() < limit {
            if !namespace.links().expect("links").iter().any(|name| name == link) {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    #[test]
    fn entered_thread_is_inside_and_the_caller_stays_outside() {
        let outside = inode_of_current_thread();
        let namespace = Namespace::new().expect("namespace");
        let inside = namespace.enter(inode_of_current_thread);
        assert_ne!(inside, outside);
        assert_eq!(inode_of_current_thread(), outside);
        assert_eq!(namespace.clone().enter(inode_of_current_thread), inside);
        assert_eq!(namespace.spawn("inside", inode_of_current_thread).join().expect("no panic"), inside);
        assert_eq!(namespace.enter(|| Namespace::current().expect("current")).enter(inode_of_current_thread), inside);
    }

    #[test]
    fn loopback_carries_traffic() {
        let namespace = Namespace::new().expect("namespace");
        assert_eq!(namespace.links().expect("links"), ["lo"]);
        namespace.enter(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
            socket.send_to(b"hello", socket.local_addr().expect("address")).expect("send");
            assert_eq!(socket.recv(&mut [0; 16]).expect("receive"), 5);
        });
    }

    #[test]
    fn a_sysctl_is_private_to_the_namespace() {
        let path = "/proc/sys/net/ipv4/ip_default_ttl";
        let outside = fs::read_to_string(path).expect("outside");
        let namespace = Namespace::new().expect("namespace");
        namespace.sysctl("net/ipv4/ip_default_ttl", "77").expect("sysctl");
        assert_eq!(namespace.enter(|| fs::read_to_string(path)).expect("inside"), "77\n");
        assert_eq!(fs::read_to_string(path).expect("outside"), outside);
        let error = namespace.sysctl("net/ipv4/no_such_setting", "1").expect_err("unknown");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_kernel_without_ipv6_has_nothing_to_disable() {
        let namespace = Namespace::new().expect("namespace");
        namespace.disable_ipv6().expect("with IPv6, if the kernel has it");
        namespace.enter(|| {
            const NOTHING: Option<&str> = None;
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).expect("mounts of its own");
            mount(Some("tmpfs"), "/proc/sys/net", Some("tmpfs"), MsFlags::empty(), NOTHING).expect("no settings");
            namespace.disable_ipv6().expect("without");
        });
    }

    #[test]
    #[should_panic(expected = "from inside")]
    fn a_panic_inside_reaches_the_caller() {
        Namespace::new().expect("namespace").enter(|| panic!("from inside"));
    }

    // The kernel deletes both ends of a veth pair with the namespace of either end, so the remaining end shows the
    // deletion.
    #[test]
    fn a_dropped_namespace_is_removed_by_the_kernel() {
        let survivor = Namespace::new().expect("namespace");
        let dropped = Namespace::new().expect("namespace");
        survivor.connect("witness", &dropped, "eth0").expect("veth");
        let socket = dropped.enter(|| UdpSocket::bind("127.0.0.1:0").expect("bind"));
        drop(dropped);
        assert!(!gone_within(Duration::from_millis(200), &survivor, "witness"), "a socket must keep its namespace");
        drop(socket);
        assert!(gone_within(Duration::from_secs(10), &survivor, "witness"));
    }

    #[test]
    fn a_killed_process_leaves_nothing_behind() {
        const ROLE: &str = "LODEN_TESTBED_VICTIM";
        if env::var_os(ROLE).is_some() {
            let outer = Namespace::current().expect("current");
            let inner = Namespace::new().expect("namespace");
            outer.connect("witness", &inner, "eth0").expect("veth");
            println!("ready");
            thread::sleep(Duration::from_secs(60));
            return;
        }
        let outer = Namespace::new().expect("namespace");
        let mut command = Command::new(env::current_exe().expect("own path"));
        command.args(["--exact", "netns::tests::a_killed_process_leaves_nothing_behind", "--nocapture"]);
        command.env(ROLE, "1");
        let mut victim = Child::spawn(&outer, command).expect("spawn");
        while !victim.next_line(Duration::from_secs(10)).expect("a line").contains("ready") {}
        assert!(outer.links().expect("links").contains(&"witness".to_owned()));
        victim.signal(nix::sys::signal::Signal::SIGKILL).expect("kill");
        assert!(victim.wait(Duration::from_secs(10)).expect("wait").is_some());
        assert!(gone_within(Duration::from_secs(10), &outer, "witness"));
    }
}
