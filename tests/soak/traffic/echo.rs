//! Pings. In a fault-free phase each is answered.

use core::time::Duration;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use testbed::TwoHosts;
use testbed::probe::{Ping, PingOutcome, ping};

use super::Done;
use crate::side::Side;
use crate::stage::Stage;

const PAUSE: Duration = Duration::from_millis(30);
/// The timeout on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn start(hosts: &Arc<TwoHosts>, stage: &Arc<Stage>, done: &Arc<Done>, from: Side) -> JoinHandle<()> {
    let (stage, done) = (Arc::clone(stage), Arc::clone(done));
    from.pod(hosts).spawn("flow-ping", move || {
        for count in 0_usize.. {
            if stage.is_over() {
                break;
            }
            let began = stage.phase();
            let timeout = if began.fault_free { PATIENCE } else { PATIENCE / 10 };
            let settings = Ping { payload_len: count % 1400, timeout, ..Ping::default() };
            let outcome = ping(from.other().place().pod, settings);
            if matches!(outcome.as_deref(), Ok([PingOutcome::Reply { .. }])) {
                done.pings.fetch_add(1, Ordering::Relaxed);
            } else if outcome.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::InvalidData)
                || stage.was_fault_free_since(began)
            {
                return stage.fail(format!("ping {count} from {from:?}: {outcome:?}"));
            }
            thread::sleep(PAUSE);
        }
    })
}
