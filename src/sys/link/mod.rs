//! Address, MTU, up and the one overlay route of a TUN device, through rtnetlink.
//!
//! ```text
//!   LinkMonitor::open("loden0") ──▶ Link::configure ──▶ … packets …            ──▶ Link::remove
//!            │                        MTU 1472            event Up   (down/up)        route, address
//!            │                        100.96.1.0/32       link.restore()
//!            └── poll its fd          up                  event Deleted: reopen
//!                                     100.96.0.0/16 dev loden0
//! ```
//!
//! - **Why one route.** The whole overlay network goes to the device and the process keeps host ↔ subnet itself, so the
//!   kernel's table does not change as hosts join and leave. The host's own subnet (its bridge) is more specific and
//!   wins.
//! - **Why `/32`.** With the network's prefix length on the address the kernel makes the connected route by itself
//!   (`fib_add_ifaddr` in `net/ipv4/fib_frontend.c`), with a preferred source, plus a broadcast entry. On older kernels
//!   the `.0` broadcast entry made the first subnet of the overlay unreachable. [`AddressForm::Network`] offers that
//!   form too.
//! - **Why a monitor.** `ip link set loden0 down` drops every route of the device and `up` brings back only those the
//!   kernel makes itself. Removing the device's last address drops them as well. The kernel announces the link and the
//!   address, never those routes (`fib_table_flush` sends no message).
//! - **Why two monitors.** The longest packet is the smaller of what the device takes and of what the underlay's interface
//!   ([`interface_of`]) leaves. Both may change at any time, and [`Worker::set_mtu`](crate::worker::Worker::set_mtu) is for
//!   that.
//! - **Who removes.** [`Link::remove`] takes back what this `Link` made, and nothing else. Dropping a `Link` changes
//!   nothing in the kernel, so that a persistent device survives a restart; [`Link::configure`] then finds everything
//!   in place and keeps it.
//! - **Which namespace.** A [`Link`] and a [`LinkMonitor`] belong to the network namespace of the thread that made
//!   them, also when that thread moves later: each keeps a socket open in it.
//!
//! Requests block the calling thread; the kernel answers inside the `send` itself, unless another process holds its
//! configuration lock. Sources: rtnetlink(7), RFC 3549, the kernel's `net/ipv4/{devinet,fib_frontend,fib_trie}.c` and
//! `net/core/rtnetlink.c`. What the kernel drops, keeps and announces is held by the tests, on kernel 6.18.

pub(crate) mod error;
mod filter;
pub(crate) mod message;
mod monitor;
pub(crate) mod netlink;
pub(crate) mod requests;
#[cfg(test)]
pub(crate) mod tests;
mod underlay;

use alloc::string::String;
use core::net::Ipv4Addr;

use ipnet::Ipv4Net;

pub use self::error::{LinkError, MalformedReply};
use self::message::LinkState;
pub use self::message::LinkStats;
pub use self::monitor::{LinkEvent, LinkMonitor};
use self::netlink::Netlink;
use self::requests::Added;
pub use self::underlay::{OVERHEAD_IPV4, OVERHEAD_IPV6, Underlay, interface_named, interface_of, interface_to};

/// Smallest MTU an IPv4 interface may have (RFC 791: every link carries 68 bytes); below it Linux switches IPv4 off on
/// the device.
pub const MTU_MIN: u32 = 68;
/// Largest MTU a TUN device may have (`MAX_MTU` in the kernel's `drivers/net/tun.c`).
pub const MTU_MAX: u32 = 65_535;

/// Which prefix length the TUN device's address carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressForm {
    /// `/32`, as flannel does: the kernel makes no route of its own.
    #[default]
    Host,
    /// The prefix length of the overlay network: the kernel makes the route, with the address as preferred source.
    Network,
}

/// What a TUN device shall look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// The device's own address: the network address of the host's lease, for example `100.96.1.0`. Must be in
    /// `network`.
    pub address: Ipv4Addr,
    /// The whole overlay network, for example `100.96.0.0/16`. Host bits are ignored.
    pub network: Ipv4Net,
    /// Largest inner packet in bytes, [`MTU_MIN`]`..=`[`MTU_MAX`]. [`Underlay::tun_mtu`] tells it.
    pub mtu: u32,
    /// How the address is written.
    pub form: AddressForm,
}

impl LinkConfig {
    fn prefix_len(&self) -> u8 {
        match self.form {
            AddressForm::Host => 32,
            AddressForm::Network => self.network.prefix_len(),
        }
    }
}

/// What [`Link::restore`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restored {
    /// The link is down, so that it can have no routes. [`LinkEvent::Up`] is when to try again.
    LinkDown,
    /// Address and route are there now; `true` for what had to be put back.
    Complete {
        /// The address was missing.
        address: bool,
        /// The route, or a local route that the address needs, was missing.
        route: bool,
    },
}

/// A configured TUN device. What was made is remembered, so that exactly that can be removed.
#[derive(Debug)]
pub struct Link {
    kernel: Netlink,
    interface: String,
    index: u32,
    config: LinkConfig,
    /// What was there before: if it has to be put back, it is still not ours.
    found: Made,
    made: Made,
}

/// What in the kernel is there because of us.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    address: bool,
    /// The route that keeps the address from being a broadcast address.
    local: bool,
    route: bool,
}

impl Link {
    /// Sets MTU, address, up and the overlay route (scope global, protocol boot, metric 0, no source) of the existing
    /// device `interface`. An address or route that exists already on this device is kept and not counted as made here. A
    /// device that is as it has to be needs no privilege.
    ///
    /// Before Linux 5.14 a bridge that has the subnet's first host address (100.96.1.1/24) makes the device's address
    /// 100.96.1.0 a broadcast address, and packets to it are lost. A local route in front mends that where it is so.
    ///
    /// # Errors
    /// [`LinkError::AddressOutside`], [`LinkError::MtuOutOfRange`], [`LinkError::NoPermission`] (needs
    /// `CAP_NET_ADMIN`), [`LinkError::NoSuchInterface`], [`LinkError::RouteTaken`] if another interface has the route,
    /// or what else the kernel says. On an error everything is as before, MTU and up included.
    pub fn configure(interface: &str, config: &LinkConfig) -> Result<Self, LinkError> {
        if !config.network.contains(&config.address) {
            return Err(LinkError::AddressOutside { address: config.address, network: config.network });
        }
        let mut kernel = Netlink::open()?;
        let before = requests::link_named(&mut kernel, interface)?;
        let (min, max) = before.mtu_range();
        if !(min..=max).contains(&config.mtu) {
            return Err(LinkError::MtuOutOfRange { interface: interface.into(), mtu: config.mtu, min, max });
        }
        let (interface, index, nothing) = (String::from(interface), before.index, Made::default());
        let mut link = Self { kernel, interface, index, config: *config, found: nothing, made: nothing };
        match link.set_up(&before) {
            Ok(()) => {
                link.found = Made { address: !link.made.address, local: false, route: !link.made.route };
                Ok(link)
            }
            Err(error) => {
                link.undo(&before);
                Err(error)
            }
        }
    }

    /// The device's interface index, which names it for as long as it lives, also when it is renamed.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The name the device had when it was configured.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// What the device was configured to be.
    #[must_use]
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Reads the device's counters of packets that it discarded. No counter of a worker has these.
    ///
    /// # Errors
    /// [`LinkError::NoSuchInterface`] when the device is gone.
    pub fn stats(&mut self) -> Result<LinkStats, LinkError> {
        requests::stats(&mut self.kernel, self.index, &self.interface)
    }

    /// Puts back what is missing of address and route; what was there before [`Link::configure`] does not become ours by
    /// that. Does not set the link up: whoever set it down meant it. Call it on [`LinkEvent::Up`], [`LinkEvent::AddressRemoved`] and, if wanted,
    /// [`LinkEvent::RouteRemoved`].
    ///
    /// # Errors
    /// As [`Link::configure`]; [`LinkError::NoSuchInterface`] when the device is gone.
    pub fn restore(&mut self) -> Result<Restored, LinkError> {
        let address = self.add_address()?;
        let local = self.add_local_route()?;
        let route = self.add_route()?;
        Ok(match route {
            Added::LinkDown => Restored::LinkDown,
            Added::Made => Restored::Complete { address, route: true },
            Added::Existed => Restored::Complete { address, route: local },
        })
    }

    /// Removes the route and the address if, and only if, this `Link` made them. What is gone already, or a device that
    /// is gone, is fine. MTU and up stay.
    ///
    /// # Errors
    /// What the kernel says; the address is removed also when the route could not be, and the first error is reported.
    pub fn remove(mut self) -> Result<(), LinkError> {
        self.take_back()
    }

    fn set_up(&mut self, before: &LinkState) -> Result<(), LinkError> {
        if before.mtu != self.config.mtu {
            requests::set_mtu(&mut self.kernel, self.index, &self.interface, self.config.mtu)?;
        }
        self.add_address()?;
        if !before.up {
            requests::set_up(&mut self.kernel, self.index, &self.interface, true)?;
        }
        self.add_local_route()?;
        match self.add_route()? {
            Added::Existed | Added::Made => Ok(()),
            Added::LinkDown => Err(LinkError::SetDown { interface: self.interface.clone() }),
        }
    }

    /// Brings a half configured device back to what it was. The error that led here is the one to report.
    fn undo(&mut self, before: &LinkState) {
        let _ = self.take_back();
        if !before.up {
            let _ = requests::set_up(&mut self.kernel, self.index, &self.interface, false);
        }
        if before.mtu != self.config.mtu {
            let _ = requests::set_mtu(&mut self.kernel, self.index, &self.interface, before.mtu);
        }
    }

    fn take_back(&mut self) -> Result<(), LinkError> {
        let Made { address, local, route } = core::mem::take(&mut self.made);
        let without_route = if route {
            requests::remove_route(&mut self.kernel, self.index, &self.interface, self.config.network)
        } else {
            Ok(())
        };
        let without_local = if local {
            requests::remove_local_route(&mut self.kernel, self.index, &self.interface, self.config.address)
        } else {
            Ok(())
        };
        let without_address = if address {
            let prefix_len = self.config.prefix_len();
            requests::remove_address(&mut self.kernel, self.index, &self.interface, self.config.address, prefix_len)
        } else {
            Ok(())
        };
        without_route.and(without_local).and(without_address)
    }

    /// Whether the address had to be added.
    fn add_address(&mut self) -> Result<bool, LinkError> {
        let prefix_len = self.config.prefix_len();
        let added =
            requests::add_address(&mut self.kernel, self.index, &self.interface, self.config.address, prefix_len)?;
        self.made.address |= added && !self.found.address;
        Ok(added)
    }

    /// Whether a local route had to be added.
    fn add_local_route(&mut self) -> Result<bool, LinkError> {
        let added = requests::add_local_route(&mut self.kernel, self.index, &self.interface, self.config.address)?;
        self.made.local |= added;
        Ok(added)
    }

    fn add_route(&mut self) -> Result<Added, LinkError> {
        let added = requests::add_route(&mut self.kernel, self.index, &self.interface, self.config.network)?;
        self.made.route |= matches!(added, Added::Made) && !self.found.route;
        Ok(added)
    }
}
