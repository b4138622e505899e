//! The TUN device and the interface to the other hosts, as others change them: routes are put back, MTUs are followed, the
//! device's end is told.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use loden::sys::link::{Link, LinkEvent, LinkMonitor, MTU_MIN, Restored, Underlay, interface_of};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::Error;
use crate::dataplane::deleted;
use crate::output::{Event, Output};

/// How often an interface that is gone is looked for.
const LOOK: Duration = Duration::from_secs(2);

pub(crate) struct Links {
    tun: Watched,
    link: Link,
    tun_mtu: u32,
    underlay: Underlay,
    /// `None` while no interface holds our address.
    underlay_watched: Option<Watched>,
    /// When it is looked for then. Waiting for it ends whenever anything else happens, and begins again.
    looks: Interval,
}

/// What happened, and where.
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
        // A duplicate, because asking for events needs the monitor itself.
        let readable = AsyncFd::with_interest(monitor.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { monitor, readable })
    }

    /// The interface that holds an address. It is asked what it is like when it is watched already, so that nothing is missed.
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
        // The monitor does not look at messages without end, and what it left is not announced again.
        if poll(&mut [PollFd::new(self.monitor.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(0) {
            ready.clear_ready();
        }
        Ok(events)
    }
}

impl Links {
    pub(crate) fn new(tun: LinkMonitor, link: Link, (underlay, watched): (Underlay, Watched)) -> Result<Self, Error> {
        let (tun, tun_mtu, underlay_watched) = (Watched::new(tun)?, link.config().mtu, Some(watched));
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { tun, tun_mtu, link, underlay, underlay_watched, looks })
    }

    /// Waits until something happened.
    pub(crate) async fn news(&mut self) -> Result<News, Error> {
        let underlay = async {
            match &mut self.underlay_watched {
                Some(watched) => watched.events().await.map(News::Underlay),
                None => Ok(News::UnderlayIsBack(Box::new(found_again(self.underlay.address, &mut self.looks).await))),
            }
        };
        tokio::select! {
            events = self.tun.events() => events.map(News::Tun),
            news = underlay => news,
        }
    }

    /// Sees to what happened; returns the longest packet there may be now, in bytes, if that was touched.
    pub(crate) fn handle(&mut self, news: News, output: &Output) -> Result<Option<u16>, Error> {
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

    /// Returns the number of packets that did not fit into the queue of the TUN device, `None` if the device is gone.
    pub(crate) fn queue_dropped(&mut self) -> Option<u64> {
        self.link.stats().ok().map(|stats| stats.tx_dropped)
    }

    /// Takes back what was made.
    pub(crate) fn remove(self) -> Result<(), Error> {
        Ok(self.link.remove()?)
    }

    fn handle_tun(&mut self, events: &[LinkEvent], output: &Output) -> Result<Option<u16>, Error> {
        // It goes down and loses its route first, and nothing is to be put back then.
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
                            self.report(output, format!("put back what {name} had lost: the overlay's route"));
                        }
                        Ok(_) => {}
                        Err(error) => self.report(output, format!("cannot put the overlay's route back: {error}")),
                    }
                }
                LinkEvent::MtuChanged(mtu) if *mtu != self.tun_mtu => {
                    self.tun_mtu = *mtu;
                    limit = self.limit(output);
                }
                LinkEvent::MtuChanged(_) | _ => {}
            }
        }
        Ok(limit)
    }

    fn handle_underlay(&mut self, events: &[LinkEvent], output: &Output) -> Option<u16> {
        let (name, mut limit) = (self.underlay.name.clone(), None);
        for event in events {
            match event {
                LinkEvent::AddressRemoved(address) if self.underlay.address != *address => {}
                LinkEvent::AddressRemoved(_) | LinkEvent::Deleted => {
                    let address = self.underlay.address;
                    self.report(
                        output,
                        format!("no interface holds {address} any more, which {name} did: no host is reached"),
                    );
                    self.underlay_watched = None;
                    return limit;
                }
                LinkEvent::Down => self.report(output, format!("{name} is down: no host is reached until it is up")),
                LinkEvent::Up => self.report(output, format!("{name} is up")),
                LinkEvent::MtuChanged(mtu) => {
                    self.underlay.mtu = *mtu;
                    limit = self.limit(output);
                }
                LinkEvent::RouteRemoved(_) | _ => {}
            }
        }
        limit
    }

    /// The longest packet that both carry, if that is enough for any.
    fn limit(&self, output: &Output) -> Option<u16> {
        let limit = self.tun_mtu.min(self.underlay.tun_mtu());
        let Self { link, underlay, tun_mtu, .. } = self;
        let (tun, name, outer) = (link.interface(), &underlay.name, underlay.mtu);
        self.report(
            output,
            format!("packets may have {limit} bytes: the MTU of {tun} is {tun_mtu}, that of {name} {outer}"),
        );
        u16::try_from(limit).ok().filter(|limit| u32::from(*limit) >= MTU_MIN)
    }

    fn report(&self, output: &Output, state: String) {
        output.print(&Event::Link { state });
    }
}

/// The interface that holds the address, once there is one again.
async fn found_again(address: IpAddr, looks: &mut Interval) -> (Underlay, Watched) {
    loop {
        looks.tick().await;
        if let Ok(found) = Watched::underlay(address) {
            return found;
        }
    }
}
