//! The two ends, and the addresses in use at each.

use core::net::Ipv4Addr;

use testbed::{Namespace, TwoHosts};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    A,
    B,
}

pub(crate) const SIDES: [Side; 2] = [Side::A, Side::B];

/// One end's names for things. Each purpose has an address of its own, since what a kernel learns of a path, and how many ICMP
/// errors a tunnel grants, goes by addresses.
pub(crate) struct Place {
    pub(crate) host: Ipv4Addr,
    pub(crate) pod: Ipv4Addr,
    /// Takes packets without DF that are longer than the path.
    pub(crate) fragments: Ipv4Addr,
    /// Sends what goes nowhere.
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
