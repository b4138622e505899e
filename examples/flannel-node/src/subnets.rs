//! The subnets of this host: those of its own lease, and further ones by other leases with its address.

use std::collections::BTreeSet;

use ipnet::IpNet;
use loden::Host;
use loden::lease::Reconciler;
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue};
use loden::worker::Handle;

use crate::Error;
use crate::acquire::{Holding, How};
use crate::output::{Event, Output};
use crate::registry::Entry;

pub(crate) struct Subnets {
    /// The subnets of the own lease.
    own: Vec<IpNet>,
    further: BTreeSet<IpNet>,
    /// The revision at which the own lease was acquired. Leases of this address that end and that are younger belong to
    /// another node.
    acquired: i64,
    /// Set if this address had no other lease then.
    had_none: bool,
    /// The reported leases of other nodes, so that the next listing does not repeat them.
    reported: BTreeSet<LeaseKey>,
}

impl Subnets {
    pub(crate) fn new(host: &Host, acquired: i64, how: How) -> Self {
        let (further, reported) = (BTreeSet::new(), BTreeSet::new());
        Self { own: host.subnets().into(), further, acquired, had_none: how != How::TakenOver, reported }
    }

    /// Delivers packets to the current subnets of this host.
    pub(crate) fn update(
        &mut self,
        reconciler: &Reconciler<LeaseKey>,
        worker: &Handle,
        output: &Output,
    ) -> Result<(), Error> {
        let further: BTreeSet<IpNet> = reconciler.further_subnets().collect();
        if further == self.further {
            return Ok(());
        }
        let all: Vec<IpNet> = self.own.iter().chain(&further).copied().collect();
        worker.set_subnets(&all)?;
        let report = |subnet: &IpNet, ended| output.print(&Event::FurtherSubnet { subnet: subnet.to_string(), ended });
        further.difference(&self.further).for_each(|subnet| report(subnet, false));
        self.further.difference(&further).for_each(|subnet| report(subnet, true));
        self.further = further;
        Ok(())
    }

    /// Reports a lease that another node must have written with this host's address. `is_listed` is true for an entry
    /// of a listing, false for one that was written just now.
    pub(crate) fn look(
        &mut self,
        entry: &Entry,
        is_listed: bool,
        holding: &Holding,
        reader: &LeaseReader,
        output: &Output,
    ) {
        let address = holding.value.public_ip;
        let Some((key, _)) = entry.held(reader).filter(|(key, _)| *key != holding.key) else { return };
        // A reservation has no end, and an operator writes it.
        if entry.grant == 0 || LeaseValue::from_json(&entry.value).map(|value| value.public_ip) != Ok(address) {
            return;
        }
        // Leases of an earlier run are older.
        let may_be_old = is_listed && !self.had_none && entry.created <= self.acquired;
        if may_be_old || !self.reported.insert(key) && is_listed {
            return;
        }
        let (subnet, own) = (key.ipv4.trunc(), holding.key.ipv4.trunc());
        let reason = format!(
            "another node leases {subnet} for {address}, which this node has too and only one may have. This node keeps \
             {own}; other hosts send the packets of both subnets to whichever host answers at {address}. Start the \
             other node with its own address (--iface, --public-ip)"
        );
        output.print(&Event::Warning { reason });
    }
}
