//! The ICMP errors about dropped packets, as they arrive in the pods. Their source address is not that of the misfits,
//! so that its rate limit is never exhausted and each of these packets gets an error.

use core::time::Duration;

use testbed::probe::{Ping, PingOutcome, ping};

use crate::lab::Lab;
use crate::misfits::{Expected, HOLE};
use crate::side::{SIDES, Side};

/// The timeout on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Provokes each kind of ICMP error in both pods, and adds it to the expected counters.
///
/// # Panics
/// If an ICMP error is missing or different.
pub(crate) fn are_given(lab: &Lab, expected: &mut [Expected; 2]) {
    for side in SIDES {
        let (there, far) = (side.other().place().pod, side.other() as usize);
        let told = |to, ttl| {
            let settings = Ping { ttl: Some(ttl), timeout: PATIENCE, ..Ping::default() };
            let outcome = side.pod(&lab.hosts).enter(|| ping(to, settings)).unwrap()[0];
            let PingOutcome::Error { from, kind, code, .. } = outcome else { panic!("{side:?}: {outcome:?}") };
            (from, kind, code)
        };
        assert_eq!(told(HOLE.into(), 64), (HOLE.into(), 3, 0), "{side:?}: no route");
        expected[side as usize].encap.reject("no_route");
        assert_eq!(told(there, 2), (there, 11, 0), "{side:?}: the near tunnel's TTL");
        expected[side as usize].encap.reject("time_exceeded");
        assert_eq!(told(there, 3), (device_of(side.other()), 11, 0), "{side:?}: the far tunnel's TTL");
        expected[far].decap.reject("time_exceeded");
    }
}

/// Returns the address of a tunnel's device.
fn device_of(side: Side) -> core::net::Ipv4Addr {
    side.place().subnet.parse::<ipnet::Ipv4Net>().unwrap().network()
}
