//! The interface that carries the tunnel's datagrams. It may be removed and added again while the tunnel runs.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use loden::sys::link::{self, LinkEvent, LinkMonitor, interface_to};
use loden::{Host, Mtu, MtuError};

use crate::Error;
use crate::report::say;

/// The interval of looking for an interface with the listen address while there is none.
const RETRY: Duration = Duration::from_secs(1);
/// The cause of its messages.
const CAUSE: &str = "the underlay's interface";

pub(crate) struct Underlay {
    /// Its last known state.
    interface: link::Underlay,
    /// Next hops of the command line: their routes tell the interface if the address is on `lo`.
    peers: Vec<IpAddr>,
    watch: Watch,
}

enum Watch {
    On(LinkMonitor),
    /// No interface has the address.
    Missing {
        retry_at: Instant,
    },
}

impl Underlay {
    /// Begins to watch the interface of each listen address.
    pub(crate) fn watch_all(host: &Host, peers: &[IpAddr]) -> Result<Vec<Self>, Error> {
        let listens = host.underlays().iter().map(SocketAddr::ip);
        let watch = |listen: IpAddr| {
            let peers = peers.iter().copied().filter(|peer| peer.is_ipv4() == listen.is_ipv4());
            Self::watch(listen, peers.collect())
        };
        listens.map(watch).collect()
    }

    /// Returns the longest inner packet that all of them carry.
    pub(crate) fn narrowest(underlays: &[Self]) -> Result<Mtu, MtuError> {
        underlays.iter().try_fold(Mtu::MAX, |least, underlay| Ok(least.min(underlay.tun_mtu()?)))
    }

    /// Begins to watch the interface that carries datagrams from `listen` to the peers.
    pub(crate) fn watch(listen: IpAddr, peers: Vec<IpAddr>) -> Result<Self, Error> {
        let ask = || interface_to(listen, peers.iter().copied());
        let monitor = LinkMonitor::open(&ask()?.name)?;
        // Asked again after the monitor was opened, so that no change is missed.
        Ok(Self { interface: ask()?, peers, watch: Watch::On(monitor) })
    }

    pub(crate) fn mtu(&self) -> u32 {
        self.interface.mtu
    }

    /// Returns the longest inner packet that it carries.
    pub(crate) fn tun_mtu(&self) -> Result<Mtu, MtuError> {
        self.interface.tun_mtu()
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.watch {
            Watch::On(monitor) => Some(monitor.as_fd()),
            Watch::Missing { .. } => None,
        }
    }

    pub(crate) fn retry_at(&self) -> Option<Instant> {
        match self.watch {
            Watch::On(_) => None,
            Watch::Missing { retry_at } => Some(retry_at),
        }
    }

    /// Handles and reports events. Returns whether its MTU may have changed.
    pub(crate) fn take_events(&mut self) -> Result<bool, Error> {
        let link::Underlay { name, address, mtu, .. } = &mut self.interface;
        let monitor = match &mut self.watch {
            Watch::On(monitor) => monitor,
            Watch::Missing { retry_at } if Instant::now() < *retry_at => return Ok(false),
            Watch::Missing { retry_at } => {
                *retry_at = Instant::now() + RETRY;
                let Ok(found) = Self::watch(*address, self.peers.clone()) else { return Ok(false) };
                *self = found;
                say(CAUSE, format_args!("{} has the address {} now", self.interface.name, self.interface.address));
                return Ok(true);
            }
        };
        let mut changed = false;
        while let Some(event) = monitor.next_event()? {
            match event {
                LinkEvent::MtuChanged(now) => {
                    changed = true;
                    // The route to the peers may have a smaller MTU of its own.
                    *mtu = interface_to(*address, self.peers.iter().copied()).map_or(now.into(), |found| found.mtu);
                }
                LinkEvent::Down => say(CAUSE, format_args!("{name} is down: nothing leaves or arrives until it is up")),
                // Also reported after missed events, which may have changed the MTU.
                LinkEvent::Up => {
                    changed = true;
                    say(CAUSE, format_args!("{name} is up"));
                }
                LinkEvent::AddressRemoved(removed) if *address != removed => {}
                LinkEvent::AddressRemoved(_) | LinkEvent::Deleted => {
                    say(CAUSE, format_args!("no interface has the address {address} any more: it was {name}'s"));
                    self.watch = Watch::Missing { retry_at: Instant::now() + RETRY };
                    break;
                }
                LinkEvent::RouteRemoved(_) | _ => {}
            }
        }
        Ok(changed)
    }
}
