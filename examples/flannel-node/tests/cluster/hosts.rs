//! Hosts around a switch, and pods on the hosts in the three ways of container runtimes.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use testbed::Namespace;
use testbed::probe::{Ping, PingOutcome, ping};

use crate::etcd::{ADDRESS, Etcd};
use crate::wait_until;

/// ```text
///    switch: br0 10.168.0.1/24, where etcd is
///      │           │           │
///    host 0      host 1      host 2        eth0 10.168.0.2, .3, .4
///      │           │           │
///     pod         pod         pod          of the host's lease
/// ```
pub(crate) struct Site {
    pub(crate) switch: Namespace,
    pub(crate) hosts: Vec<Host>,
    pub(crate) etcd: Etcd,
}

pub(crate) struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) address: Ipv4Addr,
    /// The subnet file of the node, which outlives the node.
    pub(crate) run: tempfile::TempDir,
}

pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) address: Ipv4Addr,
}

/// The connection of a pod to its host.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Attachment {
    /// A bridge with the lease's address, as `dockerd --bip` creates it.
    Bridge,
    /// A veth without addresses. The host answers for a gateway that does not exist.
    ProxyArp,
    /// A veth whose host end has the lease's first address.
    Veth,
}

impl Site {
    /// Creates this many hosts and members of etcd.
    pub(crate) fn new(hosts: u8, members: u16, tls: bool) -> Self {
        let switch = Namespace::new().expect("these tests make network namespaces and need root");
        switch.add_bridge("br0").unwrap();
        switch.add_address("br0", Ipv4Net::new_assert(ADDRESS, 24)).unwrap();
        let hosts = (0..hosts).map(|number| Host::new(&switch, number)).collect();
        let etcd = Etcd::start(&switch, members, tls);
        Self { switch, hosts, etcd }
    }
}

impl Host {
    fn new(switch: &Namespace, number: u8) -> Self {
        let (namespace, port) = (Namespace::new().unwrap(), format!("port{number}"));
        let address = Ipv4Addr::new(10, 168, 0, 2 + number);
        switch.connect(&port, &namespace, "eth0").unwrap();
        switch.add_port("br0", &port).unwrap();
        namespace.add_address("eth0", Ipv4Net::new_assert(address, 24)).unwrap();
        namespace.add_route_via(Ipv4Net::default(), ADDRESS).unwrap();
        namespace.sysctl("net/ipv4/ip_forward", "1").unwrap();
        Self { namespace, address, run: tempfile::tempdir().unwrap() }
    }

    /// Creates a pod with the third address of the host's lease.
    pub(crate) fn add_pod(&self, lease: Ipv4Net, attachment: Attachment) -> Pod {
        let namespace = Namespace::new().unwrap();
        let at = |last| Ipv4Addr::from_bits(lease.network().to_bits() + last);
        let (gateway, address) = (at(1), at(2));
        let links = self.namespace.links().unwrap();
        let link = &(0..).map(|number| format!("pod{number}")).find(|link| !links.contains(link)).unwrap();
        self.namespace.connect(link, &namespace, "eth0").unwrap();
        let on_the_lease = |address| Ipv4Net::new(address, lease.prefix_len()).unwrap();
        match attachment {
            Attachment::Bridge => {
                self.namespace.add_bridge("docker0").unwrap();
                self.namespace.add_address("docker0", on_the_lease(gateway)).unwrap();
                self.namespace.add_port("docker0", link).unwrap();
                namespace.add_address("eth0", on_the_lease(address)).unwrap();
                namespace.add_route_via(Ipv4Net::default(), gateway).unwrap();
            }
            Attachment::ProxyArp => {
                let nowhere = Ipv4Addr::new(169, 254, 2, 2);
                self.namespace.sysctl(&format!("net/ipv4/conf/{link}/proxy_arp"), "1").unwrap();
                // The kernel delays proxy replies by up to this many ticks.
                self.namespace.sysctl(&format!("net/ipv4/neigh/{link}/proxy_delay"), "0").unwrap();
                self.namespace.add_route(Ipv4Net::from(address), None, link).unwrap();
                namespace.add_address("eth0", Ipv4Net::from(address)).unwrap();
                namespace.add_route(Ipv4Net::from(nowhere), None, "eth0").unwrap();
                namespace.add_route_via(Ipv4Net::default(), nowhere).unwrap();
            }
            Attachment::Veth => {
                self.namespace.add_address(link, on_the_lease(gateway)).unwrap();
                namespace.add_address("eth0", on_the_lease(address)).unwrap();
                namespace.add_route_via(Ipv4Net::default(), gateway).unwrap();
            }
        }
        Pod { namespace, address }
    }

    pub(crate) fn subnet_file(&self) -> std::path::PathBuf {
        // The directory does not exist yet.
        self.run.path().join("flannel").join("subnet.env")
    }
}

impl Pod {
    /// Returns true if one of three pings is answered.
    pub(crate) fn reaches(&self, other: &Self) -> bool {
        (0..3).any(|_| {
            let outcomes = self.namespace.enter(|| ping(other.address, Ping::default())).unwrap();
            matches!(outcomes[..], [PingOutcome::Reply { from, .. }] if from == other.address)
        })
    }

    pub(crate) fn must_reach(&self, other: &Self) {
        wait_until(&format!("{} to reach {}", self.address, other.address), || self.reaches(other));
    }
}
