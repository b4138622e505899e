//! The two ends, and the addresses of each.

use core::net::Ipv4Addr;

use testbed::{Namespace, TwoHosts};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    A,
    B,
}

pub(crate) const SIDES: [Side; 2] = [Side::A, Side::B];

/// The addresses of one end. Each purpose has its own address, because kernels store path MTUs by address and tunnels
/// limit ICMP errors by address.
pub(crate) struct Place {
    pub(crate) host: Ipv4Addr,
    pub(crate) pod: Ipv4Addr,
    /// The receiver of packets without DF that are longer than the path MTU.
    pub(crate) fragments: Ipv4Addr,
    /// The sender of packets that are dropped.
    pub(crate) misfits: Ipv4Addr,
    pub(crate) subnet: &'static str,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(crate) fn place(self) -> Place {
        let (third, host, pod, subnet) = match self {
            Self::A => (1, TwoHosts::HOST_A, TwoHosts::POD_A, "100.96.1.0/24"),
            Self::B => (2, TwoHosts::HOST_B, TwoHosts::POD_B, "100.96.2.0/24"),
        };
        let [fragments, misfits] = [40, 50].map(|last| Ipv4Addr::new(100, 96, third, last));
        Place { host, pod, fragments, misfits, subnet }
    }

    pub(crate) fn host(self, hosts: &TwoHosts) -> &Namespace {
        match self {
            Self::A => &hosts.host_a,
            Self::B => &hosts.host_b,
        }
    }

    pub(crate) fn pod(self, hosts: &TwoHosts) -> &Namespace {
        match self {
            Self::A => &hosts.pod_a,
            Self::B => &hosts.pod_b,
        }
    }
}
