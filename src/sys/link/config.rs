//! The configuration of a TUN device.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::error::LinkError;
use super::underlay;
use crate::framing::Framing;
use crate::host::{Host, Mtu, Overhead};

/// The prefix length of the TUN device's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AddressForm {
    /// `/32`, as in flannel, and `/128`. The kernel adds no connected route.
    #[default]
    Host,
    /// The prefix length of the overlay network. The kernel adds the route, with the address as preferred source.
    Network,
}

/// The configuration of a TUN device.
///
/// [`LinkConfig::new`] is flannel's: the addresses and the routes of a host, and the MTU that the underlay leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkConfig {
    /// The overlay networks, one for each family that is carried, with the address of the device in each.
    pub networks: Vec<LinkNetwork>,
    /// The addresses of the underlay, whose interfaces determine the MTU. The ports do not matter.
    pub underlays: Vec<SocketAddr>,
    /// The MTU of the device. Default `None`: the smallest MTU that the interfaces of the underlay leave
    /// ([`interface_of`](super::interface_of), [`Underlay::tun_mtu`](super::Underlay::tun_mtu)) when the device is configured. IPv6 needs 1280 bytes.
    pub mtu: Option<Mtu>,
    /// The prefix length of the addresses.
    pub form: AddressForm,
    /// Bytes that a framing adds to each packet, by which a default MTU is less. Default 0.
    pub framing: u16,
}

/// An overlay network, and the address of the device in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkNetwork {
    /// The device's own address ([`Host::tun_addresses`]), for example `100.96.1.0`.
    pub address: IpAddr,
    /// The whole network, for example `100.96.0.0/16`. Host bits are ignored.
    pub network: IpNet,
}

impl LinkConfig {
    /// Creates the configuration of a host's device.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        let address_in = |network: IpNet| {
            let address = host.tun_addresses().find(|address| address.is_ipv4() == network.addr().is_ipv4());
            address.map(|address| LinkNetwork { address, network })
        };
        let networks = host.networks().iter().copied().filter_map(address_in).collect();
        Self { networks, underlays: host.underlays().into(), mtu: None, form: AddressForm::Host, framing: 0 }
    }

    /// Sets the MTU of the device.
    #[must_use]
    pub fn with_mtu(self, mtu: Mtu) -> Self {
        Self { mtu: Some(mtu), ..self }
    }

    /// Leaves room for a framing in each datagram: the default MTU is less by its overhead.
    #[must_use]
    pub fn with_framing<F: Framing>(self) -> Self {
        Self { framing: F::OVERHEAD_MAX as u16, ..self }
    }

    /// Sets the prefix length of the addresses.
    #[must_use]
    pub fn with_form(self, form: AddressForm) -> Self {
        Self { form, ..self }
    }

    /// Sets the device's address in the network of its family, in place of the one that [`LinkConfig::new`] chose.
    #[must_use]
    pub fn with_address(mut self, address: IpAddr) -> Self {
        for own in &mut self.networks {
            if own.address.is_ipv4() == address.is_ipv4() {
                own.address = address;
            }
        }
        self
    }

    pub(super) fn has_ipv6(&self) -> bool {
        self.networks.iter().any(|own| own.address.is_ipv6())
    }

    /// Returns the MTU that the interfaces of the underlay leave.
    pub(super) fn underlay_mtu(&self) -> Result<Mtu, LinkError> {
        let mut least = Mtu::MAX;
        for underlay in &self.underlays {
            let interface = underlay::interface_holding(*underlay)?;
            least = least.min(Mtu::of_inner(interface.mtu, Overhead::of(interface.address).and(self.framing))?);
        }
        Ok(least)
    }
}
