//! An engine against a reference that keeps its state in lists: packets in both directions, leases, routes, refusals,
//! routers' reports and time, in any order.
//!
//! After every step both have sent and written the same bytes, and have the same counters (R67).

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

/// The most steps. A longer history finds nothing that several short ones do not.
const STEPS: usize = 200;

pub fn run(bytes: &[u8]) {
    let _ = history(bytes);
}

/// Runs a history and returns the counters at its end.
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

/// The calls of the socket and the TUN, in order. The reference does not model batches and turns, so it reads them from
/// here.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The socket accepted a datagram, which was sent in this mode.
    Took { to: SocketAddr, datagram: Vec<u8>, mode: PathMode },
    /// The socket refused this many datagrams, of those left of a batch.
    Refused { to: SocketAddr, datagrams: Vec<Vec<u8>>, count: usize, mishap: Mishap },
    /// A packet was written to the TUN.
    Wrote(Vec<u8>),
}
