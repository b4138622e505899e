//! Who is told why a packet went nowhere: the ICMP errors as they arrive in the pods. Their address is not that of the misfits, so
//! that its share of answers is never used up and each of these has one.

use core::time::Duration;

use testbed::probe::{Ping, PingOutcome, ping};

use crate::lab::Lab;
use crate::misfits::{Expected, HOLE};
use crate::side::{SIDES, Side};

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for each kind of answer in both pods, and adds to what the tunnels have to count.
///
/// # Panics
/// If an answer is missing or another one.
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

/// The address of a tunnel's device.
fn device_of(side: Side) -> core::net::Ipv4Addr {
    side.place().subnet.parse::<ipnet::Ipv4Net>().unwrap().network()
}
