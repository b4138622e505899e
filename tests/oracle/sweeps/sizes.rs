//! Sizes on both sides of every limit: of forwarding, of fragments, and of an error's quote.

use super::{Check, Way, of_length};
use support::packet::{DF, Ipv4, MF, RECORD_ROUTE, ROUTER_ALERT};

pub(super) fn sweep(way: Way, check: Check<'_>) {
    for (destination, mtu) in way.destinations {
        for options in [vec![], ROUTER_ALERT.to_vec(), [&ROUTER_ALERT[..], &RECORD_ROUTE].concat()] {
            for fragment in [0, DF, MF, DF | MF, 0x8000, 5, MF | 0x1000] {
                for total in totals(*mtu) {
                    let packet = Ipv4 { fragment, options: options.clone(), destination: *destination, ..way.packet() };
                    check(of_length(packet, total).into());
                }
            }
        }
    }
    // An error quotes 548 bytes, from headers of every length.
    for options in (0..=40).step_by(4) {
        for total in 540..=580 {
            let packet = Ipv4 { ttl: 1, options: vec![1; options], ..way.packet() };
            check(of_length(packet, total).into());
        }
    }
    for total in [4000, 9000, 20_000, 65_535] {
        check(of_length(way.packet(), total).into());
    }
    wrapping(way, check);
}

/// Checks fragments that end near or past the longest packet (fault 5).
fn wrapping(way: Way, check: Check<'_>) {
    for offset in [0x1f00, 0x1fb0, 0x1fb8, 0x1fc0, 0x1fff] {
        for more in [0, MF, 0x8000, DF] {
            for total in [600, 1100, 3000] {
                let fragment = offset | more;
                check(of_length(Ipv4 { fragment, ..way.packet() }, total).into());
                let options = [&ROUTER_ALERT[..], &RECORD_ROUTE].concat();
                check(of_length(Ipv4 { fragment, options, ..way.packet() }, total).into());
            }
        }
    }
}

/// Returns totals around once, twice and three times the MTU.
fn totals(mtu: usize) -> impl Iterator<Item = usize> {
    [1, 2, 3].into_iter().flat_map(move |times| (times * mtu).saturating_sub(12)..=times * mtu + 2)
}
