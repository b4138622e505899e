//! A running node: news of leases become routes, the own lease is renewed, until it is told to stop or has to.

use std::time::Duration;

use ipnet::Ipv4Net;
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue, Reading};
use loden::lease::{ConflictChange, LeaseEvent, Reconciler, SourceId, Tenure};
use loden::route::{RouteChange, RoutePublisher};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;

use crate::acquire::{Holding, Renewal, renew};
use crate::args::Arguments;
use crate::clock::Clock;
use crate::etcd::EtcdError;
use crate::feed::{Change, News};
use crate::links::Links;
use crate::plane::Plane;
use crate::registry::{Entry, Registry};
use crate::say::{Event, Say, anomalies, flow};
use crate::start::{Place, start};
use crate::{Error, Failure};

const SOURCE: SourceId = SourceId(0);
/// Changes that are named of those which are made at once.
const MOST_ROUTES: usize = 16;

pub(crate) struct Node {
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) reader: LeaseReader,
    pub(crate) reconciler: Reconciler<LeaseKey>,
    pub(crate) routes: RoutePublisher,
    pub(crate) holding: Holding,
    pub(crate) tenure: Tenure,
    pub(crate) ttl: Duration,
    /// One that is under way: etcd may take its time, and news go on meanwhile.
    pub(crate) renewal: Option<JoinHandle<(Holding, Result<Renewal, EtcdError>)>>,
    /// What somebody, maybe we ourselves, wrote by our key while it was under way.
    pub(crate) meanwhile: Option<Entry>,
    pub(crate) links: Links,
    pub(crate) plane: Plane,
    pub(crate) news: Receiver<News>,
}

/// The signals that end a node.
struct Stop([Signal; 2]);

impl Stop {
    async fn asked(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

pub(crate) async fn run(registry: Registry, args: &Arguments, say: &mut Say) -> Result<(), Failure> {
    let mut stop = Stop([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]);
    let place = Place::find(&args.node)?;
    let started = tokio::select! {
        () = stop.asked() => return Ok(()),
        started = start(registry, args, &place, say) => started,
    };
    let mut node = started?;
    let outcome = tokio::select! {
        () = stop.asked() => Ok(()),
        Err(reason) = node.live(say) => Err(reason),
    };
    let leased = outcome.is_ok().then(|| node.holding.key.ipv4.trunc());
    let closed = node.close(leased, say);
    outcome.and(closed).map_err(|reason| Failure { status: 1, reason })
}

impl Node {
    /// Never returns but for a reason to end.
    async fn live(&mut self, say: &mut Say) -> Result<(), Error> {
        loop {
            tokio::select! {
                news = self.news.recv() => {
                    let news = news.ok_or("the task that listens to etcd has ended: a bug in the node")?;
                    self.take_in(news, say)?;
                    // All that waits makes one table.
                    while let Ok(news) = self.news.try_recv() {
                        self.take_in(news, say)?;
                    }
                    self.publish(say);
                }
                () = self.clock.sleep_until(self.tenure.poll_timeout()), if self.renewal.is_none() => {
                    self.begin_renewal();
                }
                renewed = ended(&mut self.renewal) => {
                    self.renewal = None;
                    let (holding, outcome) = renewed?;
                    self.holding = holding;
                    self.settle_renewal(outcome, say)?;
                    if let Some(entry) = self.meanwhile.take() {
                        self.check_own(Some(&entry), say)?;
                    }
                }
                news = self.links.news() => {
                    if let Some(mtu) = self.links.handle(news?, say)? {
                        self.plane.set_mtu(mtu);
                    }
                }
                ended = &mut self.plane.ended => {
                    return Err(ended.unwrap_or_else(|_| "forwarding has ended: a bug in the node".into()));
                }
                () = sleep(Say::LIMIT), if say.leaves_out() => say.flush_limit(),
            }
        }
    }

    fn take_in(&mut self, news: News, say: &mut Say) -> Result<(), Error> {
        let now = self.clock.now();
        let silent = self.reconciler.stale_since(SOURCE);
        match news {
            News::Listed(listing) => {
                let own = listing.entries.iter().find(|entry| self.is_own(&entry.key));
                self.check_own(own, say)?;
                let entries = listing.entries.iter().map(|entry| (entry.key.as_slice(), entry.value.as_slice()));
                let reading = self.reader.snapshot(entries);
                self.read(reading, say);
            }
            News::Changed(changes) => {
                for change in changes {
                    let reading = match &change {
                        Change::Put(entry) => self.reader.put(&entry.key, &entry.value),
                        Change::Deleted { key } => self.reader.deleted(key),
                    };
                    match &change {
                        Change::Put(entry) if self.is_own(&entry.key) => self.check_own(Some(entry), say)?,
                        Change::Deleted { key } if self.is_own(key) => self.check_own(None, say)?,
                        Change::Put(_) | Change::Deleted { .. } => {}
                    }
                    self.read(reading, say);
                }
            }
            News::Heard => self.reconciler.handle_event(SOURCE, LeaseEvent::SourceHeard, now),
            News::Silent(silence) => {
                self.reconciler.handle_event(SOURCE, LeaseEvent::SourceLost, now);
                if silence.is_news {
                    let routes = self.reconciler.route_count();
                    say.say_limited(&Event::Stale { reason: silence.reason, routes });
                }
            }
        }
        if let Some(since) = silent.filter(|_| self.reconciler.stale_since(SOURCE).is_none()) {
            // A renewal that failed meanwhile need not wait; and an etcd that was restored may know less of our lease than we do.
            self.tenure.doubted(now);
            say.say_limited(&Event::Heard { seconds: now.saturating_sub(since).as_secs_f64() });
        }
        Ok(())
    }

    fn read(&mut self, reading: Reading, say: &mut Say) {
        for aside in reading.set_aside {
            say.say_limited(&Event::SetAside { reason: aside.to_string() });
        }
        if let Some(event) = reading.event {
            self.reconciler.handle_event(SOURCE, event, self.clock.now());
        }
    }

    fn publish(&mut self, say: &mut Say) {
        for change in self.reconciler.take_conflict_changes() {
            let (conflict, ended) = match change {
                ConflictChange::Began(conflict) => (conflict, false),
                ConflictChange::Ended(conflict) => (conflict, true),
                _ => continue,
            };
            say.say_limited(&Event::Conflict { ended, conflict: conflict.to_string() });
        }
        let changes = self.reconciler.take_changes();
        if changes.is_empty() {
            return;
        }
        let applied = self.routes.apply(changes.iter().copied());
        for refused in &applied.refused {
            say.say_limited(&Event::SetAside { reason: refused.to_string() });
        }
        let (mut set, mut deleted) = (Vec::new(), Vec::new());
        for change in changes.iter().take(MOST_ROUTES) {
            match change {
                RouteChange::Set(route) => set.push(route.to_string()),
                RouteChange::Delete(subnet) => deleted.push(subnet.to_string()),
                _ => {}
            }
        }
        let (count, changes) = (self.routes.table().len(), changes.len());
        say.say_limited(&Event::Routes { count, changes, set, deleted });
    }

    fn is_own(&self, key: &[u8]) -> bool {
        key == self.reader.full_key(&self.holding.key).as_bytes()
    }

    /// What etcd has by our key. Without it the subnet is somebody else's, now or soon.
    fn check_own(&mut self, entry: Option<&Entry>, say: &mut Say) -> Result<(), Error> {
        let Some(entry) = entry else {
            return Err(self.lost("it was deleted from etcd, or ended without being renewed"));
        };
        if let Some(host) = LeaseValue::holder(&entry.value).filter(|host| *host != self.holding.host) {
            return Err(self.lost(&format!("{host} holds it now")));
        }
        // Of another backend, or nothing that anybody could read.
        let readable = LeaseValue::from_json(&entry.value).is_ok();
        let ours = readable && entry.grant == self.holding.grant.map_or(0, |grant| grant.id);
        if self.renewal.is_some() {
            self.meanwhile = Some(entry.clone());
        } else if !ours {
            let subnet = self.holding.key.ipv4.trunc();
            let who = "an operator maybe, or another node that has this one's address by mistake";
            say.say_limited(&Event::Warning { reason: format!("somebody else wrote the lease of {subnet}: {who}") });
            // Written anew at once, or kept by what ends it now.
            self.tenure.doubted(self.clock.now());
        }
        Ok(())
    }

    fn lost(&self, reason: &str) -> Error {
        let subnet = self.holding.key.ipv4.trunc();
        format!("the lease of {subnet} is lost: {reason}. Start the node again to lease a subnet").into()
    }

    fn begin_renewal(&mut self) {
        let (mut registry, mut holding, ttl) = (self.registry.clone(), self.holding, self.ttl);
        self.renewal = Some(spawn_local(async move {
            let outcome = renew(&mut registry, &mut holding, ttl).await;
            (holding, outcome)
        }));
    }

    fn settle_renewal(&mut self, outcome: Result<Renewal, EtcdError>, say: &mut Say) -> Result<(), Error> {
        let now = self.clock.now();
        match outcome {
            Ok(Renewal::Renewed) => {
                self.tenure.renewed(self.holding.lasts(), now);
                let subnet = self.holding.key.ipv4.trunc().to_string();
                let seconds = self.holding.grant.map(|grant| grant.ttl.as_secs());
                say.say_limited(&Event::Renewed { subnet, seconds });
            }
            Ok(Renewal::Lost(reason)) => return Err(self.lost(&reason)),
            Err(error) => {
                self.tenure.failed(now);
                say.say(&Event::NotRenewed {
                    reason: error.to_string(),
                    retry_seconds: self.tenure.poll_timeout().saturating_sub(now).as_secs_f64(),
                    seconds_left: self.holding.grant.map(|_| self.tenure.ends().saturating_sub(now).as_secs_f64()),
                });
            }
        }
        Ok(())
    }

    /// Removes what was made on this host and says the last word. What is leased stays so: the next run wants it again.
    fn close(mut self, leased: Option<Ipv4Net>, say: &mut Say) -> Result<(), Error> {
        let counters = self.plane.stop();
        say.flush_limit();
        say.say(&Event::Stopped {
            leased: leased.map(|subnet| subnet.to_string()),
            encap: flow(&counters.encap),
            decap: flow(&counters.decap),
            anomalies: anomalies(&counters.anomalies),
            routes: self.routes.table().len(),
        });
        self.links.remove()
    }
}

/// Waits for a task that there may not be.
async fn ended<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, Error> {
    match task {
        Some(task) => task.await.map_err(|_| "the task that renews the lease has ended: a bug in the node".into()),
        None => std::future::pending().await,
    }
}
