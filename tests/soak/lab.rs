//! Two hosts, a tunnel in each, and the control sockets.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use ipnet::Ipv4Net;
use loden::control::Command;
use nix::sys::signal::Signal;
use socket2::{Domain, SockAddr, Socket, Type};
use testbed::TwoHosts;

use crate::side::{SIDES, Side};
use crate::tunnel::{Tally, Tunnel};

/// MTU of the pods' links and of the TUN devices, so that the tunnel and no kernel has to fragment.
const WIDE: u32 = 9000;

/// An address of each host that no tunnel knows.
pub(crate) const STRANGERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 168, 0, 77), Ipv4Addr::new(10, 168, 0, 78)];
const SOON: Duration = Duration::from_secs(10);

pub(crate) struct Lab {
    /// In the order of the sides.
    tunnels: [Tunnel; 2],
    /// The counters of tunnels that have ended.
    departed: [Tally; 2],
    pub(crate) hosts: Arc<TwoHosts>,
    directory: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let hosts = TwoHosts::new().unwrap();
        for side in SIDES {
            let (host, pod, place) = (side.host(&hosts), side.pod(&hosts), side.place());
            // So that no kernel sends anything unasked.
            for namespace in [host, pod] {
                namespace.disable_ipv6().unwrap();
            }
            let stranger = Ipv4Net::new(STRANGERS[side as usize], 24).unwrap();
            host.add_address(TwoHosts::UPLINK, stranger).unwrap();
            host.set_mtu(TwoHosts::POD_LINK, WIDE).unwrap();
            pod.set_mtu(TwoHosts::UPLINK, WIDE).unwrap();
            for address in [place.fragments, place.misfits] {
                pod.add_address(TwoHosts::UPLINK, Ipv4Net::new(address, 24).unwrap()).unwrap();
            }
            // A pod that forgot after the usual ten minutes what its path carries would be told again in the middle of a fault-free phase. Before
            // Linux 5.16 this is no namespace's own; shorter runs do without.
            let _ = pod.sysctl("net/ipv4/route/mtu_expires", "86400");
        }
        let directory = tempfile::tempdir().unwrap();
        let tunnels = SIDES.map(|side| Tunnel::start(&hosts, side, &control_path(&directory, side)));
        Self { tunnels, departed: Default::default(), hosts: Arc::new(hosts), directory }
    }

    pub(crate) fn tunnel(&mut self, side: Side) -> &mut Tunnel {
        &mut self.tunnels[side as usize]
    }

    /// Its own counters and those of its predecessors.
    pub(crate) fn totals(&mut self) -> [Tally; 2] {
        let mut totals = self.departed.clone();
        for (total, tally) in totals.iter_mut().zip(self.tallies()) {
            total.add(&tally);
        }
        totals
    }

    pub(crate) fn tallies(&mut self) -> [Tally; 2] {
        SIDES.map(|side| self.tunnel(side).tally())
    }

    /// Ends a tunnel, waits a moment, and starts it anew.
    pub(crate) fn restart(&mut self, side: Side, signal: Signal, pause: Duration) {
        let (hosts, path) = (Arc::clone(&self.hosts), self.control(side));
        // A tunnel cannot be taken out of its place without another one in it, and two cannot have one address.
        self.tunnel(side).child.signal(signal).unwrap();
        self.tunnel(side).child.wait(SOON).unwrap().expect("an end");
        thread::sleep(pause);
        let next = Tunnel::start(&hosts, side, &path);
        let ended = core::mem::replace(self.tunnel(side), next);
        let last = ended.last_words(signal);
        self.departed[side as usize].add(&last);
    }

    pub(crate) fn control(&self, side: Side) -> PathBuf {
        control_path(&self.directory, side)
    }

    /// Sends a tunnel one command.
    pub(crate) fn command(&self, side: Side, command: Command) {
        connect(&self.control(side)).and_then(|socket| socket.send(&command.encode())).unwrap();
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.path().into()
    }

    /// Stops both, which tell what they counted to the end.
    pub(crate) fn end(self) -> [Tally; 2] {
        let Self { tunnels, mut departed, .. } = self;
        for mut tunnel in tunnels {
            let side = tunnel.side;
            tunnel.child.signal(Signal::SIGTERM).unwrap();
            tunnel.child.wait(SOON).unwrap().expect("an end");
            departed[side as usize].add(&tunnel.last_words(Signal::SIGTERM));
        }
        departed
    }
}

pub(crate) fn connect(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

fn control_path(directory: &tempfile::TempDir, side: Side) -> PathBuf {
    directory.path().join(format!("{side:?}"))
}
