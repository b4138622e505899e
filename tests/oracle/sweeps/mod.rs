//! Packets that are the same in every run: each value of each field, and each known difference.

mod fields;
mod odd;
mod options;
mod sizes;

use core::net::Ipv4Addr;

use crate::router::Place;
use crate::shape::{FRESH, Shape};
use crate::world::POD_C;
use support::host::{NOBODY, POD, POD_A, POD_B, host_a};
use support::packet::{DF, Ipv4, pattern, udp};

/// A function that checks a packet.
pub(crate) type Check<'c> = &'c mut dyn FnMut(Shape);

/// An entry of packets, with their destinations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) entry: Place,
    /// Destinations that each have another fate, and how long packets may be on the way to each, if that matters.
    pub(crate) destinations: &'static [(Ipv4Addr, usize)],
    /// One that packets get to.
    reached: Ipv4Addr,
    /// Who may send them.
    source: Ipv4Addr,
}

impl Way {
    pub(crate) fn of(entry: Place) -> Self {
        const OUT: &[(Ipv4Addr, usize)] = &[(POD_A, 1472), (POD_B, 576), (POD_C, 68), (NOBODY, 576)];
        const FROM_A: &[(Ipv4Addr, usize)] = &[(POD, 576), (NOBODY, 576)];
        const FROM_B: &[(Ipv4Addr, usize)] = &[(POD, 1472), (POD_A, 576)];
        match entry {
            Place::Tun => Self { entry, destinations: OUT, reached: POD_B, source: POD },
            Place::Peer(peer) if peer == host_a() => Self { entry, destinations: FROM_A, reached: POD, source: POD_A },
            Place::Peer(_) | Place::Nowhere => Self { entry, destinations: FROM_B, reached: POD, source: POD_B },
        }
    }

    pub(crate) fn sweep(self, check: Check<'_>) {
        odd::sweep(self, check);
        if self.source == POD_B {
            // The headers of A's packets are no others.
            return;
        }
        fields::sweep(self, check);
        options::sweep(self, check);
        sizes::sweep(self, check);
    }

    /// Returns the likelihood, in 23rds, of a source that may not send here, or that exceeds the kernel's limit by
    /// chance.
    pub(crate) fn other_sources(self) -> u32 {
        if self.entry == Place::Tun { 1 } else { 4 }
    }

    /// A packet that gets there.
    fn packet(self) -> Ipv4 {
        Ipv4::new(FRESH, self.reached)
    }

    /// One packet for every answer there is, and two that go on: long ones by the way that is too narrow.
    fn fates(self, edit: impl Fn(Ipv4) -> Ipv4) -> Vec<Ipv4> {
        let packet = edit(self.packet());
        let longer = |packet: Ipv4| Ipv4 { payload: [packet.payload, pattern(700)].concat(), ..packet };
        let too_long = longer(packet.clone());
        let mut all = vec![
            packet.clone(),
            Ipv4 { ttl: 1, ..packet.clone() },
            Ipv4 { destination: NOBODY, ..packet },
            Ipv4 { fragment: too_long.fragment | DF, ..too_long.clone() },
        ];
        all.push(too_long);
        all
    }
}

/// Datagrams whose length is what is asked for, or the shortest.
fn of_length(packet: Ipv4, total: usize) -> Ipv4 {
    let headers = 20 + packet.options.len().next_multiple_of(4) + 8;
    Ipv4 { payload: udp(4000, 53, &pattern(total.saturating_sub(headers))), ..packet }
}
