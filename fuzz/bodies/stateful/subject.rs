//! The subject: an engine over a socket and a TUN that record their packets.

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::VecDeque;

use loden::endpoint::Endpoint;
use loden::engine::{Engine, Sink, Unsent, WriteFailure};
use loden::forward::{
    Counters, DropReason, Forwarder, ForwarderConfig, IcmpLimiter, IcmpOutcome, PathMode, SystemPath,
};
use loden::lease::Reconciler;
use loden::offload::{Coalesce, VnetHeader};
use loden::route::{Applied, RouteChange, RoutePublisher, RouteReader, RouteTable};
use loden::transmit::{QueueLimits, Transmit, Way};
use loden::wire::DatagramTooBig;

use super::Seen;
use super::account::{PER_PEER, PER_SOURCE, TOTAL};
use super::script::{Mishap, Step};
use support::host::routes;
use support::leases::Key;

/// Limits that a history does not reach for all peers together. The queue's own test covers those.
const LIMITS: QueueLimits = QueueLimits::new(PER_PEER, 64 << 20);

pub(crate) struct Subject {
    pub(crate) engine: Engine,
    publisher: RoutePublisher,
    pub(crate) reader: RouteReader,
    /// The route table of this batch.
    batch: RouteTable,
    pub(crate) reconciler: Reconciler<Key>,
    pub(crate) sink: Lists,
    pub(crate) changes: Vec<RouteChange>,
    pub(crate) applied: Option<Applied>,
    pub(crate) reported: Option<IcmpOutcome>,
}

/// A socket and a TUN, with the packets of this step.
#[derive(Default)]
pub(crate) struct Lists {
    mishaps: VecDeque<(usize, Mishap)>,
    /// The path MTU that the system reports after the last refusal.
    outer: Option<u16>,
    tun_fails: Option<WriteFailure>,
    pub(crate) sent: Vec<(SocketAddr, Vec<u8>)>,
    pub(crate) tun: Vec<Vec<u8>>,
    pub(crate) log: Vec<Seen>,
}

impl Subject {
    pub(crate) fn new(config: ForwarderConfig) -> Self {
        let mut publisher = RoutePublisher::for_host(&config.host);
        assert_eq!(publisher.apply(routes().into_iter().map(RouteChange::Set)).refused, []);
        let mut reader = publisher.reader();
        let reconciler = Reconciler::new(&config.host);
        let mut endpoint = Endpoint::new(Forwarder::new(config).unwrap());
        endpoint.set_icmp_limiter(IcmpLimiter::new(PER_SOURCE, TOTAL));
        Self {
            engine: Engine::new(endpoint, LIMITS, Coalesce::NONE),
            batch: reader.load().clone(),
            publisher,
            reader,
            reconciler,
            sink: Lists::default(),
            changes: Vec::new(),
            applied: None,
            reported: None,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.engine.counters()
    }

    pub(crate) fn take(&mut self, step: &Step, now: Duration) {
        let Self { engine, sink, reader, .. } = self;
        sink.log.clear();
        sink.sent.clear();
        sink.tun.clear();
        match step {
            Step::Out { packet, vnet, same_batch } => {
                if !same_batch {
                    self.batch = reader.load().clone();
                }
                engine.from_tun(&vnet.unwrap_or_default(), &mut packet.clone(), &self.batch, now, sink);
            }
            Step::In { datagram, from } => {
                engine.from_udp(*from, &mut datagram.clone(), reader.load(), now, sink);
                engine.flush_inbound(now, sink);
            }
            Step::Lease { source, event } => self.reconciler.handle_event(*source, event.clone(), now),
            Step::Publish => {
                self.reconciler.handle_timeout(now);
                self.changes = self.reconciler.take_changes();
                self.apply(self.changes.clone());
            }
            Step::Route(change) => self.apply(vec![*change]),
            Step::Pass { .. } => {}
            Step::Flush(mishaps) => {
                sink.mishaps = mishaps.iter().copied().collect();
                engine.flush(reader.load(), now, sink);
                sink.mishaps.clear();
            }
            Step::Report(report) => {
                self.reported = Some(engine.endpoint_mut().handle_icmp(report, reader.load(), now));
            }
            Step::TunFails(failure) => sink.tun_fails = Some(*failure),
            Step::Stop => engine.drop_peers(|_| true, DropReason::Stopped),
        }
    }

    fn apply(&mut self, changes: Vec<RouteChange>) {
        self.applied = Some(self.publisher.apply(changes));
        let table = self.reader.load();
        self.engine.drop_peers(|next_hop| !table.has_next_hop(next_hop), DropReason::StaleRoute);
    }
}

impl Sink for Lists {
    /// Accepts as many datagrams as the script says, then refuses the next one.
    fn send(&mut self, batches: &[Transmit<'_>], mode: PathMode) -> Result<(), Unsent> {
        let (mut go, mishap) = self.mishaps.pop_front().unwrap_or((0, Mishap::Nothing));
        for (batch, transmit) in batches.iter().enumerate() {
            let to = transmit.destination;
            let datagrams: Vec<_> = transmit.segments().map(<[u8]>::to_vec).collect();
            for (index, datagram) in datagrams.iter().enumerate() {
                let reason = mishap.failure().filter(|_| go == 0);
                let Some(reason) = reason else {
                    go = go.saturating_sub(1);
                    self.sent.push((to, datagram.clone()));
                    self.log.push(Seen::Took { to, datagram: datagram.clone(), mode });
                    continue;
                };
                let refused = datagrams[index..].to_vec();
                let count = if matches!(mishap, Mishap::Refused) { 1 } else { refused.len() };
                self.outer = mishap.outer();
                self.log.push(Seen::Refused { to, datagrams: refused, count, mishap });
                return Err(Unsent { batch, datagram: index, datagrams: count, reason });
            }
        }
        Ok(())
    }

    fn write(&mut self, header: &VnetHeader, packet: &[u8]) -> Result<(), WriteFailure> {
        assert_eq!(*header, VnetHeader::default(), "nothing is joined here");
        self.log.push(Seen::Wrote(packet.to_vec()));
        if let Some(failure) = self.tun_fails.take() {
            return Err(failure);
        }
        self.tun.push(packet.to_vec());
        Ok(())
    }

    fn system_path(&mut self, _: &Way, _: &mut dyn FnMut(&DatagramTooBig)) -> SystemPath {
        SystemPath { configured: self.outer.map(u32::from), ..SystemPath::default() }
    }
}
