//! Packets that are the same in every run: each value of each field, and each known difference.

mod addresses;
mod chains;
mod fields;

use core::net::Ipv6Addr;

use super::generate::Shape;
use super::world::{POD_B_V6, POD_D_V6};
use crate::router::Place;
use support::host::{NOBODY_V6, POD_A_V6, POD_C_V6, POD_V6, host_a};
use support::packet::pattern;
use support::packet_v6::Ipv6;

/// A function that checks a packet.
pub(super) type Check<'c> = &'c mut dyn FnMut(Shape);

/// An entry of packets, with their destinations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) entry: Place,
    /// Destinations with different fates, and the longest packet to each, if that matters.
    pub(super) destinations: &'static [(Ipv6Addr, usize)],
    /// A destination that packets reach.
    reached: Ipv6Addr,
    /// A permitted source.
    pub(super) source: Ipv6Addr,
}

impl Way {
    pub(super) fn of(entry: Place) -> Self {
        const OUT: &[(Ipv6Addr, usize)] =
            &[(POD_A_V6, 1472), (POD_B_V6, 1280), (POD_C_V6, 1452), (POD_D_V6, 1000), (NOBODY_V6, 1280)];
        const FROM_A: &[(Ipv6Addr, usize)] = &[(POD_V6, 1280), (NOBODY_V6, 1280)];
        const FROM_C: &[(Ipv6Addr, usize)] = &[(POD_V6, 1452), (POD_A_V6, 1280)];
        match entry {
            Place::Tun => Self { entry, destinations: OUT, reached: POD_B_V6, source: POD_V6 },
            Place::Peer(peer) if peer == host_a() => {
                Self { entry, destinations: FROM_A, reached: POD_V6, source: POD_A_V6 }
            }
            Place::Peer(_) | Place::Nowhere => Self { entry, destinations: FROM_C, reached: POD_V6, source: POD_C_V6 },
        }
    }

    pub(super) fn sweep(self, check: Check<'_>) {
        if self.source != POD_C_V6 {
            // The headers of C's packets are the same.
            fields::sweep(self, check);
            chains::sweep(self, check);
        }
        addresses::sweep(self, check);
    }

    /// Returns a packet that is forwarded.
    fn packet(self) -> Ipv6 {
        Ipv6::new(self.source, self.reached)
    }

    /// Returns one packet for every ICMPv6 error, and one that is forwarded.
    fn fates(self, edit: impl Fn(Ipv6) -> Ipv6) -> [Ipv6; 4] {
        let packet = edit(self.packet());
        [
            packet.clone(),
            Ipv6 { hop_limit: 1, ..packet.clone() },
            Ipv6 { destination: NOBODY_V6, ..packet.clone() },
            Ipv6 { payload: [packet.payload, pattern(1300)].concat(), ..packet },
        ]
    }
}
