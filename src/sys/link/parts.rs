//! The parts of the configuration in the kernel: address and routes of one overlay network.

use core::net::IpAddr;

use ipnet::IpNet;

use super::config::{AddressForm, LinkNetwork};
use super::error::LinkError;
use super::netlink::Netlink;
use super::requests::{self, AddOutcome};

/// The parts of the configuration in the kernel that belong to one overlay network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub(super) own: LinkNetwork,
    prefix_len: u8,
    /// The parts that existed before. Restoring them does not make them ours.
    pub(super) existing: Marks,
    /// The parts that were added.
    pub(super) added: Marks,
}

/// A mark for each part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Marks {
    pub(super) address: bool,
    /// The route that keeps the address from being a broadcast address.
    pub(super) local: bool,
    pub(super) route: bool,
}

/// A device to be changed.
pub(super) struct Device<'a> {
    pub(super) kernel: &'a mut Netlink,
    pub(super) interface: &'a str,
    pub(super) index: u32,
}

impl Parts {
    pub(super) fn new(own: LinkNetwork, form: AddressForm) -> Self {
        let prefix_len = match (form, own.network) {
            (AddressForm::Host, IpNet::V4(_)) => 32,
            (AddressForm::Host, IpNet::V6(_)) => 128,
            (AddressForm::Network, network) => network.prefix_len(),
        };
        Self { own, prefix_len, existing: Marks::default(), added: Marks::default() }
    }

    /// Adds the address if it is missing. Returns true if it was added.
    pub(super) fn add_address(&mut self, device: &mut Device<'_>) -> Result<bool, LinkError> {
        let Device { kernel, interface, index } = device;
        let added = requests::add_address(kernel, *index, interface, self.own.address, self.prefix_len)?;
        self.added.address |= added && !self.existing.address;
        Ok(added)
    }

    /// Adds the local route if it is missing. Returns true if it was added. IPv6 has no broadcast addresses.
    pub(super) fn add_local_route(&mut self, device: &mut Device<'_>) -> Result<bool, LinkError> {
        let Device { kernel, interface, index } = device;
        let IpAddr::V4(address) = self.own.address else { return Ok(false) };
        let added = requests::add_local_route(kernel, *index, interface, address)?;
        self.added.local |= added;
        Ok(added)
    }

    pub(super) fn add_route(&mut self, device: &mut Device<'_>) -> Result<AddOutcome, LinkError> {
        let Device { kernel, interface, index } = device;
        let outcome = requests::add_route(kernel, *index, interface, self.own.network)?;
        self.added.route |= matches!(outcome, AddOutcome::Added) && !self.existing.route;
        Ok(outcome)
    }

    pub(super) fn remove_added(&mut self, device: &mut Device<'_>) -> Result<(), LinkError> {
        let Device { kernel, interface, index } = device;
        let Marks { address, local, route } = core::mem::take(&mut self.added);
        let without_route =
            if route { requests::remove_route(kernel, *index, interface, self.own.network) } else { Ok(()) };
        let without_local = match self.own.address {
            IpAddr::V4(address) if local => requests::remove_local_route(kernel, *index, interface, address),
            IpAddr::V4(_) | IpAddr::V6(_) => Ok(()),
        };
        let without_address = if address {
            requests::remove_address(kernel, *index, interface, self.own.address, self.prefix_len)
        } else {
            Ok(())
        };
        without_route.and(without_local).and(without_address)
    }
}
