//! Link set-up through rtnetlink: MTU, address, state and the overlay route of a TUN device.
//!
//! ```text
//!   LinkMonitor::open("loden0") ──▶ Link::configure ──▶ … packets …            ──▶ Link::remove
//!            │                        MTU 1472            event Up   (down/up)        route, address
//!            │                        100.96.1.0/32       link.restore()
//!            └── poll its fd          up                  event Deleted: reopen
//!                                     100.96.0.0/16 dev loden0
//! ```
//!
//! - **One route.** The route to the whole overlay network leads to the device. The process maps subnets to hosts, so
//!   the kernel's table does not change as hosts join and leave. The route to the host's own subnet (its bridge) has a
//!   longer prefix and wins.
//! - **Prefix length `/32`.** For an address with the network's prefix length, the kernel adds the connected route with
//!   a preferred source, and a broadcast entry (`fib_add_ifaddr` in `net/ipv4/fib_frontend.c`). On older kernels the
//!   `.0` broadcast entry made the first subnet of the overlay unreachable. [`AddressForm::Network`] selects that form.
//! - **Link monitor.** `ip link set loden0 down` removes every route of the device. `up` restores only the routes that
//!   the kernel adds by itself. Removing the last address of the device removes its routes too. The kernel announces
//!   the link and the address, but not those routes (`fib_table_flush` sends no message).
//! - **Underlay monitor.** The MTU of the tunnel is the smaller of the device's MTU and of the MTU that the underlay's
//!   interface ([`interface_of`]) leaves. Both may change at any time.
//!   [`Handle::set_mtu`](crate::worker::Handle::set_mtu) takes the new value.
//! - **Removal.** [`Link::remove`] removes the address and route that this `Link` added. Dropping a `Link` changes
//!   nothing in the kernel, so a persistent device survives a restart. [`Link::configure`] then keeps the existing
//!   configuration.
//! - **Network namespace.** A [`Link`] and a [`LinkMonitor`] belong to the network namespace of the thread that created
//!   them, because each keeps a socket open in it.
//!
//! Requests block the calling thread. The kernel answers within `send`, unless another process holds the lock of its
//! configuration. Sources: rtnetlink(7), RFC 3549, the kernel's `net/ipv4/{devinet,fib_frontend,fib_trie}.c` and
//! `net/core/rtnetlink.c`. Tests verify the kernel's behaviour on Linux 6.18.

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
use core::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;

use super::Tun;
use crate::host::{Host, Mtu};

pub use self::error::{LinkError, MalformedReply};
use self::message::LinkState;
pub use self::message::LinkStats;
pub use self::monitor::{LinkEvent, LinkMonitor};
use self::netlink::Netlink;
use self::requests::AddOutcome;
pub use self::underlay::{Underlay, interface_named, interface_of, interface_to};

/// The prefix length of the TUN device's address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressForm {
    /// `/32`, as in flannel. The kernel adds no connected route.
    #[default]
    Host,
    /// The prefix length of the overlay network. The kernel adds the route, with the address as preferred source.
    Network,
}

/// The configuration of a TUN device.
///
/// [`LinkConfig::new`] is flannel's: the address and the route of a host, and the MTU that the underlay leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkConfig {
    /// The device's own address ([`Host::tun_address_v4`]), for example `100.96.1.0`.
    pub address: Ipv4Addr,
    /// The whole overlay network, for example `100.96.0.0/16`.
    pub network: Ipv4Net,
    /// The address of the underlay, whose interface determines the MTU.
    pub underlay: IpAddr,
    /// The MTU of the device. Default `None`: the MTU that the underlay's interface leaves ([`interface_of`],
    /// [`Underlay::tun_mtu`]) when the device is configured.
    pub mtu: Option<Mtu>,
    /// The prefix length of the address.
    pub form: AddressForm,
}

impl LinkConfig {
    /// Creates the configuration of a host's device.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let address = host.tun_address_v4().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let (network, underlay) = (host.network_v4().unwrap_or(address.into()), host.underlay().ip());
        Self { address, network, underlay, mtu: None, form: AddressForm::Host }
    }

    /// Sets the MTU of the device.
    #[must_use]
    pub fn with_mtu(self, mtu: Mtu) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// Sets the prefix length of the address.
    #[must_use]
    pub fn with_form(self, form: AddressForm) -> Self {
        Self { form, ..self }
    }

    fn prefix_len(&self) -> u8 {
        match self.form {
            AddressForm::Host => 32,
            AddressForm::Network => self.network.prefix_len(),
        }
    }
}

/// The result of [`Link::restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restored {
    /// The link is down and can have no routes. Try again on [`LinkEvent::Up`].
    LinkDown,
    /// Address and route exist.
    Complete {
        /// True if the address was missing and was added again.
        address: bool,
        /// True if the route, or a local route that the address needs, was missing and was added again.
        route: bool,
    },
}

/// A configured TUN device, with a record of the address and route that were added.
#[derive(Debug)]
pub struct Link {
    kernel: Netlink,
    interface: String,
    index: u32,
    config: LinkConfig,
    mtu: Mtu,
    /// The parts that existed before. Restoring them does not make them ours.
    existing: Parts,
    /// The parts that were added.
    added: Parts,
}

/// Parts of the configuration in the kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    address: bool,
    /// The route that keeps the address from being a broadcast address.
    local: bool,
    route: bool,
}

impl Link {
    /// Configures the TUN device of `host` with [`LinkConfig::new`]. See [`Link::configure_with`].
    ///
    /// # Errors
    /// The errors of [`Link::configure_with`].
    pub fn configure(tun: &Tun, host: &Host) -> Result<Self, LinkError> {
        Self::configure_with(tun.name(), &LinkConfig::new(host))
    }

    /// Configures the existing device `interface`: MTU, address, state and the overlay route (scope global, protocol
    /// boot, metric 0, no source). An existing address or route of this device is kept, and [`Link::remove`] keeps it
    /// too. A device that needs no change needs no privilege.
    ///
    /// Before Linux 5.14, a bridge with the subnet's first host address (100.96.1.1/24) makes the device's address
    /// 100.96.1.0 a broadcast address, and packets to it are lost. A local route in front of the broadcast entry
    /// prevents that. It is added where it is needed.
    ///
    /// # Errors
    /// The errors of [`interface_of`] and [`LinkError::Mtu`] if the configuration has no MTU.
    /// [`LinkError::AddressOutside`], [`LinkError::MtuOutOfRange`], [`LinkError::NoPermission`] (needs
    /// `CAP_NET_ADMIN`), [`LinkError::NoSuchInterface`], [`LinkError::RouteTaken`] if another interface has the route,
    /// or another error of the kernel. After an error the device has its previous configuration.
    pub fn configure_with(interface: &str, config: &LinkConfig) -> Result<Self, LinkError> {
        if !config.network.contains(&config.address) {
            return Err(LinkError::AddressOutside { address: config.address, network: config.network });
        }
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => interface_of(config.underlay)?.tun_mtu()?,
        };
        let mut kernel = Netlink::open()?;
        let before = requests::link_named(&mut kernel, interface)?;
        let (min, max) = before.mtu_range();
        if !(min..=max).contains(&u32::from(mtu)) {
            return Err(LinkError::MtuOutOfRange { interface: interface.into(), mtu: mtu.into(), min, max });
        }
        let (interface, index, none) = (String::from(interface), before.index, Parts::default());
        let mut link = Self { kernel, interface, index, config: *config, mtu, existing: none, added: none };
        match link.set_up(&before) {
            Ok(()) => {
                link.existing = Parts { address: !link.added.address, local: false, route: !link.added.route };
                Ok(link)
            }
            Err(error) => {
                link.undo(&before);
                Err(error)
            }
        }
    }

    /// Returns the index of the device, which stays the same when the device is renamed.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Returns the name that the device had when it was configured.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Returns the MTU that the device was given.
    #[must_use]
    pub fn mtu(&self) -> Mtu {
        self.mtu
    }

    /// Returns the configuration of the device.
    #[must_use]
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// Reads the device's counters of dropped packets. The counters of a worker do not include them.
    ///
    /// # Errors
    /// [`LinkError::NoSuchInterface`] when the device is gone.
    pub fn stats(&mut self) -> Result<LinkStats, LinkError> {
        requests::stats(&mut self.kernel, self.index, &self.interface)
    }

    /// Adds the address and the route again if they are missing. [`Link::remove`] keeps those that existed before
    /// [`Link::configure`]. The link is not set up, because somebody set it down on purpose. Call this on
    /// [`LinkEvent::Up`], [`LinkEvent::AddressRemoved`] and, if wanted, [`LinkEvent::RouteRemoved`].
    ///
    /// # Errors
    /// The errors of [`Link::configure`]. [`LinkError::NoSuchInterface`] when the device is gone.
    pub fn restore(&mut self) -> Result<Restored, LinkError> {
        let address = self.add_address()?;
        let local = self.add_local_route()?;
        let route = self.add_route()?;
        Ok(match route {
            AddOutcome::LinkDown => Restored::LinkDown,
            AddOutcome::Added => Restored::Complete { address, route: true },
            AddOutcome::Existed => Restored::Complete { address, route: local },
        })
    }

    /// Removes the route and the address that this `Link` added. A missing route, address or device is no error. MTU
    /// and state stay as they are.
    ///
    /// # Errors
    /// Any error of the kernel. The address is removed even if the route cannot be. The first error is returned.
    pub fn remove(mut self) -> Result<(), LinkError> {
        self.remove_added()
    }

    fn set_up(&mut self, before: &LinkState) -> Result<(), LinkError> {
        if before.mtu != u32::from(self.mtu) {
            requests::set_mtu(&mut self.kernel, self.index, &self.interface, self.mtu.into())?;
        }
        self.add_address()?;
        if !before.up {
            requests::set_up(&mut self.kernel, self.index, &self.interface, true)?;
        }
        self.add_local_route()?;
        match self.add_route()? {
            AddOutcome::Existed | AddOutcome::Added => Ok(()),
            AddOutcome::LinkDown => Err(LinkError::SetDown { interface: self.interface.clone() }),
        }
    }

    /// Restores the previous configuration. Errors are ignored, because the caller returns the error before.
    fn undo(&mut self, before: &LinkState) {
        let _ = self.remove_added();
        if !before.up {
            let _ = requests::set_up(&mut self.kernel, self.index, &self.interface, false);
        }
        if before.mtu != u32::from(self.mtu) {
            let _ = requests::set_mtu(&mut self.kernel, self.index, &self.interface, before.mtu);
        }
    }

    fn remove_added(&mut self) -> Result<(), LinkError> {
        let Parts { address, local, route } = core::mem::take(&mut self.added);
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

    /// Adds the address if it is missing. Returns true if it was added.
    fn add_address(&mut self) -> Result<bool, LinkError> {
        let prefix_len = self.config.prefix_len();
        let added =
            requests::add_address(&mut self.kernel, self.index, &self.interface, self.config.address, prefix_len)?;
        self.added.address |= added && !self.existing.address;
        Ok(added)
    }

    /// Adds the local route if it is missing. Returns true if it was added.
    fn add_local_route(&mut self) -> Result<bool, LinkError> {
        let added = requests::add_local_route(&mut self.kernel, self.index, &self.interface, self.config.address)?;
        self.added.local |= added;
        Ok(added)
    }

    fn add_route(&mut self) -> Result<AddOutcome, LinkError> {
        let added = requests::add_route(&mut self.kernel, self.index, &self.interface, self.config.network)?;
        self.added.route |= matches!(added, AddOutcome::Added) && !self.existing.route;
        Ok(added)
    }
}
