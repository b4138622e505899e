//! All that flows at once, in both directions, each kind checked by its own means.

mod echo;
mod tcp;
mod udp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use testbed::TwoHosts;

use crate::side::SIDES;
use crate::stage::Stage;
use udp::{KINDS, PacedFlow};

/// The threads; they end when this is dropped.
pub(crate) struct Traffic {
    stage: Arc<Stage>,
    threads: Vec<JoinHandle<()>>,
    flows: Vec<Arc<PacedFlow>>,
    done: Arc<Done>,
}

/// The completed operations.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) transfers: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) pings: AtomicU64,
}

impl Traffic {
    pub(crate) fn start(hosts: &Arc<TwoHosts>, stage: &Arc<Stage>) -> Self {
        let (mut threads, mut flows, done) = (Vec::new(), Vec::new(), Arc::<Done>::default());
        for from in SIDES {
            for kind in KINDS {
                let (flow, both) = udp::start(hosts, stage, from, kind);
                flows.push(flow);
                threads.extend(both);
            }
            threads.push(tcp::start(hosts, stage, &done, from));
            threads.push(echo::start(hosts, stage, &done, from));
        }
        Self { stage: Arc::clone(stage), threads, flows, done }
    }

    /// Describes the packets that were sent in fault-free phases and are missing, if any.
    pub(crate) fn missing(&self) -> Option<String> {
        let missing: Vec<_> = self.flows.iter().filter_map(|flow| flow.missing()).collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }

    pub(crate) fn report(&self, since: Instant) -> String {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (fault_free, faulty) =
            self.flows.iter().map(|flow| flow.arrived()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        let sent: u64 = self.flows.iter().map(|flow| flow.sent_in_faulty_phases()).sum();
        format!(
            "{} s: {} TCP transfers of {} MiB in all, every byte right; of UDP {fault_free} sent in fault-free phases, all there, and {faulty} of {sent} \
             sent in faulty phases; {} pings answered",
            since.elapsed().as_secs(),
            count(&self.done.transfers),
            count(&self.done.bytes) >> 20,
            count(&self.done.pings)
        )
    }

    /// Ends all of it and waits for it.
    pub(crate) fn stop(&mut self) {
        self.stage.finish();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.stage.fail("a thread of the traffic panicked".into());
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop();
    }
}
