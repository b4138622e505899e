//! Link set-up through rtnetlink: MTU, addresses, state and the overlay routes of a TUN device.
//!
//! ```text
//!   LinkMonitor::open("loden0") ──▶ Link::configure ──▶ … packets …            ──▶ Link::remove
//!            │                        MTU 1472            event Up   (down/up)        route, address
//!            │                        100.96.1.0/32       link.restore()
//!            └── poll its fd          up                  event Deleted: reopen
//!                                     100.96.0.0/16 dev loden0
//! ```
//!
//! - **One route.** The route to the whole overlay network of each IP family leads to the device. The process maps subnets to hosts, so
//!   the kernel's table does not change as hosts join and leave. The route to the host's own subnet (its bridge) has a
//!   longer prefix and wins.
//! - **Prefix length `/32`.** For an address with the network's prefix length, the kernel adds the connected route with
//!   a preferred source, and a broadcast entry (`fib_add_ifaddr` in `net/ipv4/fib_frontend.c`). On older kernels the
//!   `.0` broadcast entry made the first subnet of the overlay unreachable. [`AddressForm::Network`] selects that form.
//! - **IPv6.** The address is the subnet's highest that is not reserved ([`Host::tun_address_v6`]), with prefix length
//!   `/128`. A forwarding bridge of the subnet would take the first one. The kernel does not look for duplicates of it,
//!   and chooses no link-local address, so that a new device is silent.
//! - **Link monitor.** `ip link set loden0 down` removes every route of the device. `up` restores only the routes that
//!   the kernel adds by itself. Removing the last address of the device removes its routes too. The kernel announces
//!   the link and the address, but not those routes (`fib_table_flush` sends no message). `down` removes IPv6 addresses
//!   too, and the kernel announces them.
//! - **Underlay monitor.** The MTU of the tunnel is the smaller of the device's MTU and of the MTU that the underlay's
//!   interface ([`interface_of`]) leaves. Both may change at any time.
//!   [`Handle::set_mtu`](crate::worker::Handle::set_mtu) takes the new value.
//! - **Removal.** [`Link::remove`] removes the addresses and routes that this `Link` added. Dropping a `Link` changes
//!   nothing in the kernel, so a persistent device survives a restart. [`Link::configure`] then keeps the existing
//!   configuration.
//! - **Network namespace.** A [`Link`] and a [`LinkMonitor`] belong to the network namespace of the thread that created
//!   them, because each keeps a socket open in it.
//!
//! Requests block the calling thread. The kernel answers within `send`, unless another process holds the lock of its
//! configuration. Sources: rtnetlink(7), RFC 3549, the kernel's `net/ipv4/{devinet,fib_frontend,fib_trie}.c` and
//! `net/core/rtnetlink.c`. Tests verify the kernel's behaviour on Linux 6.18.

mod config;
pub(crate) mod error;
mod filter;
pub(crate) mod message;
mod monitor;
pub(crate) mod netlink;
mod parts;
pub(crate) mod requests;
#[cfg(test)]
pub(crate) mod tests;
mod underlay;

use alloc::string::String;
use alloc::vec::Vec;

use netlink_packet_route::link::In6AddrGenMode;

use super::Tun;
use crate::host::{Host, Mtu};

pub use self::config::{AddressForm, LinkConfig, LinkNetwork};
pub use self::error::{LinkError, MalformedReply};
use self::message::LinkState;
pub use self::message::LinkStats;
pub use self::monitor::{LinkEvent, LinkMonitor};
use self::netlink::Netlink;
use self::parts::{Device, Marks, Parts};
use self::requests::AddOutcome;
#[cfg(feature = "preflight")]
pub(crate) use self::underlay::interface_holding;
pub use self::underlay::{Underlay, interface_named, interface_of, interface_to};

/// The result of [`Link::restore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restored {
    /// The link is down and can have no routes. Try again on [`LinkEvent::Up`].
    LinkDown,
    /// The addresses and the routes exist.
    Complete {
        /// True if an address was missing and was added again.
        address: bool,
        /// True if a route, or a local route that an address needs, was missing and was added again.
        route: bool,
    },
}

/// A configured TUN device, with a record of the addresses and routes that were added.
#[derive(Debug)]
pub struct Link {
    kernel: Netlink,
    interface: String,
    index: u32,
    config: LinkConfig,
    mtu: Mtu,
    parts: Vec<Parts>,
    /// True if the automatic IPv6 address was turned off.
    is_silent: bool,
}

impl Link {
    /// Configures the TUN device of `host` with [`LinkConfig::new`]. See [`Link::configure_with`].
    ///
    /// # Errors
    /// The errors of [`Link::configure_with`].
    pub fn configure(tun: &Tun, host: &Host) -> Result<Self, LinkError> {
        Self::configure_with(tun.name(), &LinkConfig::new(host))
    }

    /// Configures the existing device `interface`: MTU, addresses, state and the overlay routes (scope global, protocol
    /// boot, metric 0, or 1024 for IPv6, no source). An existing address or route of this device is kept, and
    /// [`Link::remove`] keeps it too. A device that needs no change needs no privilege.
    ///
    /// Before Linux 5.14, a bridge with the subnet's first host address (100.96.1.1/24) makes the device's address
    /// 100.96.1.0 a broadcast address, and packets to it are lost. A local route in front of the broadcast entry
    /// prevents that. It is added where it is needed.
    ///
    /// The kernel chooses no link-local IPv6 address for a device that is not up yet (`addr_gen_mode none`), so that it
    /// sends no router solicitations or MLD reports into the tunnel.
    ///
    /// # Errors
    /// The errors of [`interface_of`] and [`LinkError::Mtu`] if the configuration has no MTU.
    /// [`LinkError::AddressOutside`], [`LinkError::MtuOutOfRange`], [`LinkError::MtuBelowIpv6`],
    /// [`LinkError::Ipv6Disabled`], [`LinkError::NoIpv6`], [`LinkError::NoPermission`] (needs `CAP_NET_ADMIN`),
    /// [`LinkError::NoSuchInterface`], [`LinkError::RouteTaken`] if another interface has a route, or another error of
    /// the kernel. After an error the device has its previous configuration.
    pub fn configure_with(interface: &str, config: &LinkConfig) -> Result<Self, LinkError> {
        for LinkNetwork { address, network } in &config.networks {
            if !network.contains(address) {
                return Err(LinkError::AddressOutside { address: *address, network: *network });
            }
        }
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => config.underlay_mtu()?,
        };
        let mut kernel = Netlink::open()?;
        let before = requests::link_named(&mut kernel, interface)?;
        let (min, max) = before.mtu_range();
        if !(min..=max).contains(&u32::from(mtu)) {
            return Err(LinkError::MtuOutOfRange { interface: interface.into(), mtu: mtu.into(), min, max });
        }
        check_ipv6_mtu(config, interface, mtu.into())?;
        let parts = config.networks.iter().map(|own| Parts::new(*own, config.form)).collect();
        let (interface, index) = (String::from(interface), before.index);
        let mut link = Self { kernel, interface, index, config: config.clone(), mtu, parts, is_silent: false };
        match link.set_up(&before) {
            Ok(()) => {
                for Parts { existing, added, .. } in &mut link.parts {
                    *existing = Marks { address: !added.address, local: false, route: !added.route };
                }
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

    /// Adds the addresses and the routes again if they are missing. [`Link::remove`] keeps those that existed before
    /// [`Link::configure`]. The link is not set up, because somebody set it down on purpose. Call this on
    /// [`LinkEvent::Up`], [`LinkEvent::AddressRemoved`] and, if wanted, [`LinkEvent::RouteRemoved`].
    ///
    /// # Errors
    /// The errors of [`Link::configure`]. [`LinkError::NoSuchInterface`] when the device is gone.
    pub fn restore(&mut self) -> Result<Restored, LinkError> {
        let state = requests::link_at(&mut self.kernel, self.index).map_err(|error| self.named(error))?;
        if self.config.has_ipv6() && !state.up {
            // The kernel removes IPv6 addresses when a link goes down, so they are added when it is up.
            return Ok(Restored::LinkDown);
        }
        let mut ipv6 = check_ipv6_mtu(&self.config, &self.interface, state.mtu);
        if self.is_silent {
            // Below 1280 bytes the device has no IPv6. When it has IPv6 again, the mode is the default one.
            ipv6 = ipv6.and(requests::set_address_mode(&mut self.kernel, &state, In6AddrGenMode::None));
        }
        let Self { kernel, interface, index, parts, .. } = self;
        let mut device = Device { kernel, interface, index: *index };
        let (mut address, mut route) = (false, false);
        // IPv4 comes first, and does not depend on IPv6.
        for parts in parts.iter_mut().filter(|parts| parts.own.address.is_ipv4() || ipv6.is_ok()) {
            address |= parts.add_address(&mut device)?;
            route |= parts.add_local_route(&mut device)?;
            match parts.add_route(&mut device)? {
                AddOutcome::LinkDown => return Ok(Restored::LinkDown),
                AddOutcome::Added => route = true,
                AddOutcome::Existed => {}
            }
        }
        ipv6?;
        Ok(Restored::Complete { address, route })
    }

    /// Removes the routes and the addresses that this `Link` added. A missing route, address or device is no error. MTU
    /// and state stay as they are.
    ///
    /// # Errors
    /// Any error of the kernel. Everything else is removed even if one part cannot be. The first error is returned.
    pub fn remove(mut self) -> Result<(), LinkError> {
        self.remove_added()
    }

    fn set_up(&mut self, before: &LinkState) -> Result<(), LinkError> {
        let Self { kernel, interface, index, mtu, .. } = self;
        let mut state = before.clone();
        if before.mtu != u32::from(*mtu) {
            requests::set_mtu(kernel, *index, interface, (*mtu).into())?;
            // IPv6 begins or ends at 1280 bytes.
            state = requests::link_at(kernel, *index)?;
        }
        if !before.up {
            requests::set_address_mode(kernel, &state, In6AddrGenMode::None)?;
            self.is_silent = true;
        }
        let Self { kernel, interface, index, parts, .. } = self;
        let mut device = Device { kernel, interface, index: *index };
        for parts in parts.iter_mut().filter(|parts| parts.own.address.is_ipv4()) {
            parts.add_address(&mut device)?;
        }
        if !before.up {
            requests::set_up(device.kernel, device.index, device.interface, true)?;
        }
        for parts in parts {
            parts.add_address(&mut device)?;
            parts.add_local_route(&mut device)?;
            if parts.add_route(&mut device)? == AddOutcome::LinkDown {
                return Err(LinkError::SetDown { interface: device.interface.into() });
            }
        }
        Ok(())
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
        if let Some(mode) = before.address_mode
            && let Ok(now) = requests::link_at(&mut self.kernel, self.index)
        {
            let _ = requests::set_address_mode(&mut self.kernel, &now, mode.into());
        }
    }

    fn remove_added(&mut self) -> Result<(), LinkError> {
        let Self { kernel, interface, index, parts, .. } = self;
        let mut device = Device { kernel, interface, index: *index };
        let mut removed = Ok(());
        for parts in parts {
            removed = removed.and(parts.remove_added(&mut device));
        }
        removed
    }

    /// Returns an error about the device's index with the name that the device had.
    fn named(&self, error: LinkError) -> LinkError {
        if matches!(error, LinkError::NoSuchInterface { .. }) {
            return LinkError::NoSuchInterface { interface: self.interface.clone() };
        }
        error
    }
}

/// Checks that a device that carries IPv6 has an MTU for it.
fn check_ipv6_mtu(config: &LinkConfig, interface: &str, mtu: u32) -> Result<(), LinkError> {
    /// The smallest MTU of an IPv6 link (RFC 8200 section 5).
    const IPV6_MIN: u32 = 1280;
    if config.has_ipv6() && mtu < IPV6_MIN {
        return Err(LinkError::MtuBelowIpv6 { interface: interface.into(), mtu });
    }
    Ok(())
}
