//! Bridges, as container runtimes and switches use them.

use crate::Namespace;
use crate::error::Context;
use crate::link::{index_of, named, new_link, up};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute};
use std::io;

impl Namespace {
    /// Creates a bridge without ports and sets it up.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is in use; otherwise the kernel's error.
    pub fn add_bridge(&self, name: &str) -> io::Result<()> {
        let bridge = up(new_link(name, InfoKind::Bridge, None));
        self.netlink(|kernel| kernel.add(RouteNetlinkMessage::NewLink(bridge)))
            .context(|| format!("cannot make the bridge {name}"))
    }

    /// Creates a link a port of a bridge.
    ///
    /// # Errors
    /// The kernel's error, for example for an unknown link or bridge.
    pub fn add_port(&self, bridge: &str, link: &str) -> io::Result<()> {
        self.netlink(|kernel| {
            let mut port = named(link);
            port.attributes.push(LinkAttribute::Controller(index_of(kernel, bridge)?));
            kernel.change(RouteNetlinkMessage::NewLink(port))
        })
        .context(|| format!("cannot make {link} a port of {bridge}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Ping, PingOutcome, ping};
    use core::net::Ipv4Addr;
    use ipnet::Ipv4Net;

    #[test]
    fn ports_of_a_bridge_reach_each_other() {
        let switch = Namespace::new().expect("namespace");
        switch.add_bridge("br0").expect("bridge");
        assert_eq!(switch.add_bridge("br0").expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        let hosts = [1_u8, 2].map(|number| {
            let host = Namespace::new().expect("namespace");
            let port = format!("port{number}");
            switch.connect(&port, &host, "eth0").expect("veth");
            switch.add_port("br0", &port).expect("port");
            host.add_address("eth0", Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, number), 24)).expect("address");
            host
        });
        let settings = Ping { count: 3, ..Ping::default() };
        let outcomes = hosts[0].enter(|| ping(Ipv4Addr::new(10, 0, 0, 2), settings)).expect("ping");
        assert!(outcomes.iter().any(|outcome| matches!(outcome, PingOutcome::Reply { .. })), "{outcomes:?}");
        assert!(switch.add_port("br9", "port1").is_err());
    }
}
