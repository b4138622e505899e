//! A host with all that it remembers, against one that remembers it in lists: packets both ways, leases, routes, refusals,
//! routers' reports and time, in any order.
//!
//! After every step both have sent and written the same bytes, and have counted every packet alike (R67).

mod account;
mod reference;
pub mod script;
mod subject;

use core::net::SocketAddr;
use core::time::Duration;

use loden::forward::{Counters, DropReason};

use self::reference::Reference;
use self::script::Step;
use self::subject::Subject;

/// Steps beyond these are not taken: a longer history finds nothing that several short ones do not.
const STEPS: usize = 200;

pub fn run(bytes: &[u8]) {
    let _ = history(bytes);
}

/// The counters in the end.
pub fn history(bytes: &[u8]) -> Option<Counters> {
    let (overlay, steps) = script::decode(bytes)?;
    let (mut subject, mut reference) = (Subject::new(overlay), Reference::new(overlay));
    let mut now = Duration::from_secs(3600);
    for step in steps.into_iter().take(STEPS).chain([Step::Stop]) {
        if let Step::Pass { time, back } = step {
            now = if back { now.saturating_sub(time) } else { now + time };
        }
        let step = step.at(now);
        subject.take(&step, now);
        reference.take(&step, &subject.log, now);
        reference.assert_is(&mut subject, &step, now);
    }
    assert_eq!(reference.held(), 0, "whatever was held has a fate");
    Some(subject.memory.counters)
}

/// What became of the datagrams that waited, in order: how far trains have got is theirs, and no list can know it.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The socket took the next one for this peer.
    Took(SocketAddr),
    /// So many for a peer were given up.
    GivenUp { to: SocketAddr, datagrams: usize, reason: DropReason },
    /// So many for a peer met a path that is narrower than the longest of them; what the system says to that, in bytes of
    /// outer packet.
    Narrow { to: SocketAddr, datagrams: usize, outer: Option<u16> },
}
