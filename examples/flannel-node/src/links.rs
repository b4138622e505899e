//! The TUN device as others change it: its route is put back, its end is told.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use loden::sys::link::{Link, LinkEvent, LinkMonitor, Restored};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;
use crate::plane::deleted;
use crate::say::{Event, Say};

pub(crate) struct Links {
    monitor: LinkMonitor,
    readable: AsyncFd<OwnedFd>,
    link: Link,
}

impl Links {
    #[expect(
        deprecated,
        reason = "the successor is unsafe, because not every `AsRawFd` keeps its word as `OwnedFd` does"
    )]
    pub(crate) fn new(monitor: LinkMonitor, link: Link) -> io::Result<Self> {
        // A duplicate, because asking for events needs the monitor itself.
        let readable = AsyncFd::with_interest(monitor.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { monitor, readable, link })
    }

    /// Waits until something happened to the device.
    pub(crate) async fn events(&mut self) -> Result<Vec<LinkEvent>, Error> {
        let mut ready = self.readable.readable().await?;
        let mut events = Vec::new();
        while let Some(event) = self.monitor.next_event()? {
            events.push(event);
        }
        ready.clear_ready();
        Ok(events)
    }

    /// Sees to what happened.
    pub(crate) fn handle(&mut self, events: &[LinkEvent], say: &Say) -> Result<(), Error> {
        // It goes down and loses its route first, and nothing is to be put back then.
        if events.contains(&LinkEvent::Deleted) {
            return Err(deleted(self.link.interface()));
        }
        let name = self.link.interface().to_owned();
        for event in events {
            let state = match event {
                LinkEvent::Down => format!("{name} is down: nothing is forwarded until it is up"),
                LinkEvent::AddressRemoved(_) | LinkEvent::RouteRemoved(_) | LinkEvent::Up => {
                    match self.link.restore() {
                        Ok(Restored::Complete { address, route }) if address || route => {
                            format!("put back what {name} had lost: the overlay's route")
                        }
                        Ok(_) => continue,
                        Err(error) => format!("cannot put the overlay's route back: {error}"),
                    }
                }
                LinkEvent::MtuChanged(mtu) if *mtu != self.link.config().mtu => {
                    format!("the MTU of {name} is now {mtu}")
                }
                LinkEvent::MtuChanged(_) | _ => continue,
            };
            say.say(&Event::Link { state });
        }
        Ok(())
    }

    /// Takes back what was made.
    pub(crate) fn remove(self) -> Result<(), Error> {
        Ok(self.link.remove()?)
    }
}
