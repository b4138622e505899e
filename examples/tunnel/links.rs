//! The tunnel's links: its TUN device with its settings, and the limit of packets through TUN and underlay.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use loden::sys::link::{Link, LinkConfig, LinkEvent, LinkMonitor, LinkStats, Restored};
use loden::{Mtu, MtuError};

use crate::report::say;
use crate::underlay::Underlay;
use crate::{Error, deleted};

/// The TUN device and the interface below the tunnel, both watched.
pub(crate) struct Links {
    monitor: LinkMonitor,
    link: Link,
    tun_mtu: u32,
    /// One for each listen address.
    underlays: Vec<Underlay>,
    /// The counters of a persistent device before the start.
    stats_before: LinkStats,
    /// The next attempt to restore the device's settings, after a failure.
    restore_at: Option<Instant>,
}

/// The longest packet, and the MTUs that limit it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) tun_mtu: u32,
    /// The smaller one of two underlays.
    pub(crate) underlay_mtu: u32,
    /// The longest packet in bytes: the smaller of the TUN's MTU and an underlay's MTU less headers.
    pub(crate) packet: Mtu,
}

impl Limit {
    /// # Errors
    /// One of them is too small for any packet.
    pub(crate) fn new(tun_mtu: u32, underlays: &[Underlay]) -> Result<Self, MtuError> {
        let packet = Mtu::new(tun_mtu)?.min(Underlay::narrowest(underlays)?);
        let underlay_mtu = underlays.iter().map(Underlay::mtu).min().unwrap_or_default();
        Ok(Self { tun_mtu, underlay_mtu, packet })
    }
}

impl Links {
    /// Configures the TUN device, and begins to watch it.
    pub(crate) fn configure(name: &str, config: &LinkConfig, underlays: Vec<Underlay>) -> Result<Self, Error> {
        let monitor = LinkMonitor::open(name)?;
        let mut link = Link::configure_with(name, config)?;
        let stats_before = link.stats()?;
        let tun_mtu = link.mtu().into();
        Ok(Self { monitor, link, tun_mtu, underlays, stats_before, restore_at: None })
    }

    pub(crate) fn limit(&self) -> Result<Limit, MtuError> {
        Limit::new(self.tun_mtu, &self.underlays)
    }

    /// Returns the file descriptors that are readable after an event of a link.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        core::iter::once(self.monitor.as_fd()).chain(self.underlays.iter().filter_map(Underlay::fd))
    }

    /// Returns the latest time for the next `take_events`.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.underlays.iter().filter_map(Underlay::retry_at).chain(self.restore_at).min()
    }

    /// Handles events of the links. Returns whether the longest packet may have changed.
    pub(crate) fn take_events(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        for underlay in &mut self.underlays {
            changed |= underlay.take_events()?;
        }
        Ok(self.take_events_of_tun()? || changed)
    }

    /// Returns the packets that the device dropped before the tunnel could count them; none once it is gone.
    pub(crate) fn stats(&mut self) -> LinkStats {
        let mut stats = self.link.stats().unwrap_or(self.stats_before);
        stats.tx_dropped = stats.tx_dropped.saturating_sub(self.stats_before.tx_dropped);
        stats.rx_dropped = stats.rx_dropped.saturating_sub(self.stats_before.rx_dropped);
        stats
    }

    /// Removes the settings.
    pub(crate) fn remove(self) -> Result<(), Error> {
        Ok(self.link.remove()?)
    }

    fn take_events_of_tun(&mut self) -> Result<bool, Error> {
        let mut events = Vec::new();
        while let Some(event) = self.monitor.next_event()? {
            // A device that is deleted goes down and loses its route first. Nothing is restored then.
            if matches!(event, LinkEvent::Deleted) {
                return Err(deleted(self.link.interface()));
            }
            events.push(event);
        }
        let mut restore = self.restore_at.is_some_and(|at| at <= Instant::now());
        let mut changed = false;
        for event in events {
            match event {
                LinkEvent::Down => {
                    say("the TUN device", format_args!("the TUN device is down: nothing is delivered until it is up"))
                }
                LinkEvent::AddressRemoved(_) | LinkEvent::RouteRemoved(_) | LinkEvent::Up => restore = true,
                LinkEvent::MtuChanged(mtu) => {
                    let mtu = mtu.into();
                    changed |= mtu != self.tun_mtu;
                    self.tun_mtu = mtu;
                    // The kernel removes IPv6 below 1280 bytes.
                    restore = true;
                }
                LinkEvent::Deleted | _ => {}
            }
        }
        // Once for any number of events.
        if restore {
            self.restore();
        }
        Ok(changed)
    }

    fn restore(&mut self) {
        const CAUSE: &str = "the overlay's route";
        const RETRY: Duration = Duration::from_secs(1);
        let restored = self.link.restore();
        // IPv6 may be disabled now and enabled later, which no event tells.
        self.restore_at = restored.is_err().then(|| Instant::now() + RETRY);
        match restored {
            Ok(Restored::Complete { address, route }) if address || route => {
                say(CAUSE, format_args!("put back what the TUN device had lost: the overlay's route"));
            }
            Ok(_) => {}
            Err(error) => say(CAUSE, format_args!("cannot put the overlay's route back: {error}")),
        }
    }
}
