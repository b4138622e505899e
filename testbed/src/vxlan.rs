//! VXLAN devices: the kernel's own overlay, for comparison.

use crate::Namespace;
use crate::error::Context;
use crate::link::{index_of, new_link, up};
use core::net::Ipv4Addr;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan};
use std::io;

/// IANA's port for VXLAN (RFC 7348 section 5).
const PORT: u16 = 4789;

/// One end of a VXLAN with two ends.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan<'a> {
    /// The number of the VXLAN, the same at both ends; 24 bits.
    pub vni: u32,
    /// The link to the other end.
    pub underlay: &'a str,
    /// The own address on that link.
    pub local: Ipv4Addr,
    /// The address of the other end.
    pub remote: Ipv4Addr,
}

impl Namespace {
    /// Creates a VXLAN device and sets it up. Its MTU is the underlay's, less 50 bytes of headers.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is in use; otherwise the kernel's error, for example for an unknown underlay.
    pub fn add_vxlan(&self, name: &str, vxlan: Vxlan<'_>) -> io::Result<()> {
        self.netlink(|kernel| {
            let data = vec![
                InfoVxlan::Id(vxlan.vni),
                InfoVxlan::Link(index_of(kernel, vxlan.underlay)?),
                InfoVxlan::Local(vxlan.local),
                InfoVxlan::Group(vxlan.remote),
                InfoVxlan::Port(PORT),
                // There is one remote end, so the device needs no learning.
                InfoVxlan::Learning(false),
            ];
            let device = new_link(name, InfoKind::Vxlan, Some(InfoData::Vxlan(data)));
            kernel.add(RouteNetlinkMessage::NewLink(up(device)))
        })
        .context(|| format!("cannot make the VXLAN device {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TwoHosts;
    use crate::probe::{Ping, PingOutcome, ping};
    use ipnet::Ipv4Net;

    #[test]
    fn two_ends_reach_each_other() {
        let hosts = TwoHosts::new().expect("topology");
        let ends = [
            (&hosts.host_a, TwoHosts::HOST_A, TwoHosts::HOST_B, Ipv4Addr::new(100, 97, 0, 1)),
            (&hosts.host_b, TwoHosts::HOST_B, TwoHosts::HOST_A, Ipv4Addr::new(100, 97, 0, 2)),
        ];
        for (host, local, remote, address) in ends {
            let vxlan = Vxlan { vni: 7, underlay: TwoHosts::UPLINK, local, remote };
            host.add_vxlan("vxlan7", vxlan).expect("a device");
            host.add_address("vxlan7", Ipv4Net::new_assert(address, 24)).expect("address");
            assert_eq!(host.link_mtu("vxlan7").expect("MTU"), Some(1450));
            let again = host.add_vxlan("vxlan7", vxlan).expect_err("taken");
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        }
        let outcomes = hosts.host_a.enter(|| ping(ends[1].3, Ping::default())).expect("ping");
        assert!(matches!(outcomes[0], PingOutcome::Reply { .. }), "{outcomes:?}");
        let lost = Vxlan { vni: 8, underlay: "eth7", local: TwoHosts::HOST_A, remote: TwoHosts::HOST_B };
        let error = hosts.host_a.add_vxlan("vxlan8", lost).expect_err("no underlay").to_string();
        assert!(error.starts_with("cannot make the VXLAN device vxlan8: "), "{error}");
    }
}
