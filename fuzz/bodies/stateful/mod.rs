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

use loden::forward::{Counters, PathMode};

use self::reference::Reference;
use self::script::{Mishap, Step};
use self::subject::Subject;

/// Steps beyond these are not taken: a longer history finds nothing that several short ones do not.
const STEPS: usize = 200;

pub fn run(bytes: &[u8]) {
    let _ = history(bytes);
}

/// The counters in the end.
pub fn history(bytes: &[u8]) -> Option<Counters> {
    let (config, steps) = script::decode(bytes)?;
    let (mut subject, mut reference) = (Subject::new(config.clone()), Reference::new(config));
    let mut now = Duration::from_secs(3600);
    for step in steps.into_iter().take(STEPS).chain([Step::Stop]) {
        if let Step::Pass { time, back } = step {
            now = if back { now.saturating_sub(time) } else { now + time };
        }
        let step = step.at(now);
        subject.take(&step, now);
        reference.take(&step, &subject.sink.log, now);
        reference.assert_is(&mut subject, &step, now);
    }
    assert_eq!(reference.held(), 0, "whatever was held has a fate");
    Some(subject.counters())
}

/// What the socket and the TUN were given, in order: how batches are made and whose turn it is, no list can know.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The socket took a datagram, which was sent in this mode.
    Took { to: SocketAddr, datagram: Vec<u8>, mode: PathMode },
    /// The socket refused so many datagrams, of these that were left of a batch.
    Refused { to: SocketAddr, datagrams: Vec<Vec<u8>>, count: usize, mishap: Mishap },
    /// The TUN was given a packet.
    Wrote(Vec<u8>),
}
