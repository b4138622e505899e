//! The TUN device and the underlay interface. This module restores the route, follows MTU changes and reports a deleted
//! device.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use loden::sys::link::{Link, LinkEvent, LinkMonitor, Restored, Underlay, interface_of};
use loden::{Mtu, Overhead};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::Error;
use crate::dataplane::deleted;
use crate::output::{Event, Output};

/// The interval of the search for a missing interface.
const SEARCH_INTERVAL: Duration = Duration::from_secs(2);

pub(crate) struct Links {
    tun: Watched,
    link: Link,
    tun_mtu: u32,
    underlay: Underlay,
    underlay_v6: Option<Ipv6Addr>,
    /// `None` while no interface has the own address.
    underlay_watched: Option<Watched>,
    /// The timer of the search. Any other event interrupts it and restarts it.
    search_timer: Interval,
}

/// An event and its source.
pub(crate) enum News {
    Tun(Vec<LinkEvent>),
    Underlay(Vec<LinkEvent>),
    UnderlayIsBack(Box<(Underlay, Watched)>),
}

pub(crate) struct Watched {
    monitor: LinkMonitor,
    readable: AsyncFd<OwnedFd>,
}

impl Watched {
    #[expect(
        deprecated,
        reason = "the successor is unsafe, because not every `AsRawFd` keeps its word as `OwnedFd` does"
    )]
    pub(crate) fn new(monitor: LinkMonitor) -> io::Result<Self> {
        // A duplicate, because requesting events needs the monitor itself.
        let readable = AsyncFd::with_interest(monitor.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { monitor, readable })
    }

    /// Returns the interface with an address. Its state is read after the watch has begun, so no change is missed.
    pub(crate) fn underlay(address: IpAddr) -> Result<(Underlay, Self), Error> {
        let watched = Self::new(LinkMonitor::open(&interface_of(address)?.name)?)?;
        Ok((interface_of(address)?, watched))
    }

    async fn events(&mut self) -> Result<Vec<LinkEvent>, Error> {
        let mut ready = self.readable.readable().await?;
        let mut events = Vec::new();
        while let Some(event) = self.monitor.next_event()? {
            events.push(event);
        }
        // The monitor reads a limited number of messages, and the rest is not announced again.
        if poll(&mut [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0) {
            ready.clear_ready();
        }
        Ok(events)
    }
}

impl Links {
    pub(crate) fn new(
        tun: LinkMonitor,
        link: Link,
        (underlay, watched): (Underlay, Watched),
        underlay_v6: Option<Ipv6Addr>,
    ) -> Result<Self, Error> {
        let (tun, tun_mtu, underlay_watched) = (Watched::new(tun)?, link.mtu().into(), Some(watched));
        let mut search_timer = interval(SEARCH_INTERVAL);
        search_timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { tun, tun_mtu, link, underlay, underlay_v6, underlay_watched, search_timer })
    }

    /// Waits for an event.
    pub(crate) async fn news(&mut self) -> Result<News, Error> {
        let underlay = async {
            match &mut self.underlay_watched {
                Some(watched) => watched.events().await.map(News::Underlay),
                None => {
                    Ok(News::UnderlayIsBack(Box::new(found_again(self.underlay.address, &mut self.search_timer).await)))
                }
            }
        };
        tokio::select! {
            events = self.tun.events() => events.map(News::Tun),
            news = underlay => news,
        }
    }

    /// Handles an event. Returns the new MTU of inner packets in bytes if it may have changed.
    pub(crate) fn handle(&mut self, news: News, output: &Output) -> Result<Option<Mtu>, Error> {
        match news {
            News::Tun(events) => self.handle_tun(&events, output),
            News::Underlay(events) => Ok(self.handle_underlay(&events, output)),
            News::UnderlayIsBack(found) => {
                let (underlay, watched) = *found;
                self.report(output, format!("{} holds {} again", underlay.name, underlay.address));
                (self.underlay, self.underlay_watched) = (underlay, Some(watched));
                Ok(self.limit(output))
            }
        }
    }

    /// Returns the MTU of inner packets to IPv6 peers by both MTUs, if it is valid.
    pub(crate) fn mtu_over_ipv6(&self) -> Option<Mtu> {
        let of_underlay = Mtu::of_inner(self.underlay.mtu, Overhead::IPV6).ok()?;
        Some(Mtu::new(self.tun_mtu).ok()?.min(of_underlay))
    }

    /// Returns the number of packets that did not fit into the queue of the TUN device, `None` if the device is gone.
    pub(crate) fn queue_dropped(&mut self) -> Option<u64> {
        self.link.stats().ok().map(|stats| stats.tx_dropped)
    }

    /// Removes the device's settings.
    pub(crate) fn remove(self) -> Result<(), Error> {
        Ok(self.link.remove()?)
    }

    fn handle_tun(&mut self, events: &[LinkEvent], output: &Output) -> Result<Option<Mtu>, Error> {
        // A deleted device goes down and loses its route first. Nothing must be restored then.
        if events.contains(&LinkEvent::Deleted) {
            return Err(deleted(self.link.interface()));
        }
        let (name, mut limit) = (self.link.interface().to_owned(), None);
        for event in events {
            match event {
                LinkEvent::Down => self.report(output, format!("{name} is down: nothing is forwarded until it is up")),
                LinkEvent::AddressRemoved(_) | LinkEvent::RouteRemoved(_) | LinkEvent::Up => {
                    match self.link.restore() {
                        Ok(Restored::Complete { address, route }) if address || route => {
                            self.report(output, format!("restored the overlay's route of {name}"));
                        }
                        Ok(_) => {}
                        Err(error) => self.report(output, format!("cannot restore the overlay's route: {error}")),
                    }
                }
                LinkEvent::MtuChanged(mtu) if u32::from(*mtu) != self.tun_mtu => {
                    self.tun_mtu = (*mtu).into();
                    limit = self.limit(output);
                }
                LinkEvent::MtuChanged(_) | _ => {}
            }
        }
        Ok(limit)
    }

    fn handle_underlay(&mut self, events: &[LinkEvent], output: &Output) -> Option<Mtu> {
        let (name, mut limit) = (self.underlay.name.clone(), None);
        for event in events {
            match event {
                LinkEvent::AddressRemoved(IpAddr::V6(address)) if self.underlay_v6 == Some(*address) => self.report(
                    output,
                    format!(
                        "{name} has lost {address}: IPv6 subnets of hosts with IPv6 are unreachable until it is back"
                    ),
                ),
                LinkEvent::AddressRemoved(address) if self.underlay.address != *address => {}
                LinkEvent::AddressRemoved(_) | LinkEvent::Deleted => {
                    let address = self.underlay.address;
                    self.report(
                        output,
                        format!(
                            "no interface holds {address} any more, {name} has lost it: other hosts are unreachable"
                        ),
                    );
                    self.underlay_watched = None;
                    return limit;
                }
                LinkEvent::Down => {
                    self.report(output, format!("{name} is down: other hosts are unreachable until it is up"))
                }
                LinkEvent::Up => self.report(output, format!("{name} is up")),
                LinkEvent::MtuChanged(mtu) => {
                    self.underlay.mtu = (*mtu).into();
                    limit = self.limit(output);
                }
                LinkEvent::RouteRemoved(_) | _ => {}
            }
        }
        limit
    }

    /// Returns the MTU of inner packets by both MTUs, if it is valid.
    fn limit(&self, output: &Output) -> Option<Mtu> {
        let limit = Mtu::new(self.tun_mtu).and_then(|of_tun| Ok(of_tun.min(self.underlay.tun_mtu()?)));
        let Self { link, underlay, tun_mtu, .. } = self;
        let (tun, name, outer) = (link.interface(), &underlay.name, underlay.mtu);
        let report = match &limit {
            Ok(limit) => {
                format!(
                    "inner packets have at most {limit} bytes: the MTU of {tun} is {tun_mtu}, that of {name} is {outer}"
                )
            }
            Err(error) => format!("the MTU of inner packets stays as it is: {error}"),
        };
        self.report(output, report);
        limit.ok()
    }

    fn report(&self, output: &Output, state: String) {
        output.print(&Event::Link { state });
    }
}

/// Waits until an interface has the address again and returns it.
async fn found_again(address: IpAddr, search_timer: &mut Interval) -> (Underlay, Watched) {
    loop {
        search_timer.tick().await;
        if let Ok(found) = Watched::underlay(address) {
            return found;
        }
    }
}
