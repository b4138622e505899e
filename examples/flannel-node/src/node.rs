//! A running node. It turns lease events into routes and renews its lease, until it is stopped or has to end.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::Ipv4Net;
use loden::Mtu;
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue, NetworkConfig, ParsedUpdate};
use loden::lease::{ConflictChange, Held, LeaseEvent, Reconciler, RenewalTimer, SourceId};
use loden::route::{RouteChange, RoutePublisher};
use loden::worker::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::acquire::{Holding, Renew, Renewal, renew};
use crate::args::Arguments;
use crate::clock::Clock;
use crate::dataplane::Dataplane;
use crate::etcd::EtcdError;
use crate::feed::{Change, News};
use crate::healthz::Health;
use crate::links::Links;
use crate::notify::Notifier;
use crate::output::{Event, Output, anomalies, flow};
use crate::place::Place;
use crate::registry::{Entry, Registry};
use crate::reload::Reload;
use crate::rules::Rules;
use crate::start::start;
use crate::subnets::Subnets;
use crate::{Error, Failure};

/// The leases of IPv4 subnets, and those of IPv6 subnets, which have the same keys.
const SOURCE: SourceId = SourceId(0);
const SOURCE_V6: SourceId = SourceId(1);
/// The number of changes that a report lists individually.
const LISTED_CHANGES: usize = 16;
/// The shortest time between two writes in reply to other writers of the own lease. Two hosts that reply to each other
/// would write endlessly.
const REPLIES: Duration = Duration::from_secs(60);
/// The longest interval of the checks for a stuck worker and for omitted lines. A watchdog may shorten it.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The longest time that the end of the node waits for etcd.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Node {
    pub(crate) clock: Clock,
    /// The network config at the start, which holds until the end.
    pub(crate) config: NetworkConfig,
    pub(crate) registry: Registry,
    pub(crate) reader: LeaseReader,
    pub(crate) reconciler: Reconciler<LeaseKey>,
    pub(crate) routes: RoutePublisher,
    pub(crate) holding: Holding,
    pub(crate) renewal_timer: RenewalTimer,
    pub(crate) ttl: Duration,
    /// The pending renewal. Events are handled meanwhile.
    pub(crate) renewal: Option<JoinHandle<(Holding, Result<Renewal, EtcdError>)>>,
    /// The last write to the own key while the renewal was pending. It may be the own write.
    pub(crate) meanwhile: Option<Entry>,
    /// The mode of the next renewal.
    pub(crate) renew_how: Renew,
    /// The time of the last write in reply to another writer of the own lease.
    pub(crate) replied: Option<Duration>,
    /// The revision of the own lease if it must be deleted at the end, because another host's is older.
    pub(crate) gives_up: Option<i64>,
    /// The printed messages about skipped keys, so that the next listing does not repeat them.
    pub(crate) reported_skips: BTreeSet<String>,
    pub(crate) subnets: Subnets,
    pub(crate) has_ipv6_underlay: bool,
    pub(crate) links: Links,
    pub(crate) rules: Rules,
    pub(crate) dataplane: Dataplane,
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

pub(crate) async fn run(registry: Registry, args: &Arguments, output: &Output) -> Result<(), Failure> {
    let mut stop = Stop([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]);
    let notifier = Notifier::of_process()?;
    let health = Health::default();
    if let Some(address) = args.node.healthz() {
        health.serve(address).await?;
    }
    let mut reload = Reload::new(&registry)?;
    let place = Place::find(&args.node)?;
    let started = tokio::select! {
        () = stop.asked() => {
            report_notify(notifier.stopping(), output);
            return Ok(());
        }
        started = start(registry, args, &place, output) => started,
        never = reload.before_start(output) => match never {},
    };
    let mut node = started?;
    let config = node.config;
    health.set_ready();
    report_notify(notifier.ready(), output);
    let outcome = tokio::select! {
        () = stop.asked() => Ok(()),
        Err(reason) = node.live(&notifier, &health, output) => Err(reason),
        never = reload.while_running(config, &notifier, output) => match never {},
    };
    report_notify(notifier.stopping(), output);
    if let Some(revision) = node.gives_up {
        let delete = timeout(STOP_TIMEOUT, node.registry.delete(&node.holding.key, revision));
        tokio::select! {
            () = stop.asked() => {}
            _ = delete => {}
        }
    }
    let leased = outcome.is_ok().then(|| node.holding.key.ipv4.trunc());
    let closed = node.close(leased, output);
    outcome.and(closed).map_err(|reason| Failure { status: 1, reason })
}

/// Reports that the service manager could not be reached.
pub(crate) fn report_notify(sent: std::io::Result<()>, output: &Output) {
    if let Err(error) = sent {
        output
            .print(&Event::Warning { reason: format!("NOTIFY_SOCKET: {error}; the service manager is not notified") });
    }
}

/// Reports what the worker has noticed.
fn report(worker: &Handle, output: &Output) {
    for notice in worker.take_notices() {
        output.print(&Event::Warning { reason: notice.to_string() });
    }
    for stranger in worker.take_strangers() {
        output.print(&Event::Stranger {
            from: stranger.from.to_string(),
            inner_source: stranger.inner_source.to_string(),
            next_hop: stranger.next_hop.to_string(),
        });
    }
}

impl Node {
    /// Runs the node until an error or a bug ends it.
    async fn live(&mut self, notifier: &Notifier, health: &Health, output: &Output) -> Result<(), Error> {
        let often = notifier.watchdog().unwrap_or(CHECK_INTERVAL);
        let mut check = interval(often.clamp(Dataplane::CHECK_INTERVAL, CHECK_INTERVAL));
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                news = self.news.recv() => {
                    let news = news.ok_or("the task that listens to etcd has ended: a bug in the node")?;
                    self.take_in(news, output)?;
                    // All waiting events become one table.
                    while let Ok(news) = self.news.try_recv() {
                        self.take_in(news, output)?;
                    }
                    self.publish(output)?;
                }
                () = self.clock.sleep_until(self.renewal_timer.poll_timeout()), if self.renewal.is_none() => {
                    self.begin_renewal();
                }
                renewed = ended(&mut self.renewal) => {
                    self.renewal = None;
                    let (holding, outcome) = renewed?;
                    self.holding = holding;
                    self.settle_renewal(outcome, output)?;
                    if let Some(entry) = self.meanwhile.take() {
                        self.check_own(Some(&entry), output)?;
                    }
                }
                news = self.links.news() => {
                    match news.and_then(|news| self.links.handle(news, output)) {
                        Ok(mtu) => mtu.into_iter().for_each(|mtu| self.set_mtu(mtu)),
                        // The worker knows best why the device is gone.
                        Err(error) => return Err(self.dataplane.reason().unwrap_or(error)),
                    }
                }
                event = self.rules.event() => output.print(&event),
                _ = check.tick() => {
                    self.check_progress(notifier, health, output);
                    output.flush_limits(Output::LIMIT);
                }
                () = self.dataplane.news.notified() => report(&self.dataplane.worker, output),
                ended = self.dataplane.ended() => {
                    ended?;
                    let unknown = || "forwarding has ended: a bug in the node".into();
                    return Err(self.dataplane.reason().unwrap_or_else(unknown));
                }
            }
        }
    }

    /// Serves the watchdog unless the worker is stuck. Then only a restart helps.
    fn check_progress(&mut self, notifier: &Notifier, health: &Health, output: &Output) {
        let is_stuck = self.dataplane.is_stuck();
        if health.set_stuck(is_stuck) {
            let state =
                if is_stuck { "forwarding is stuck: packets wait, and none is read" } else { "forwarding continues" };
            output.print(&Event::Warning { reason: state.into() });
        }
        if !is_stuck && notifier.watchdog().is_some() {
            report_notify(notifier.alive(), output);
        }
    }

    fn take_in(&mut self, news: News, output: &Output) -> Result<(), Error> {
        let now = self.clock.now();
        let silent = self.reconciler.stale_since(SOURCE);
        match news {
            News::Listed(listing, doubt) => {
                if let Some(reason) = doubt {
                    output.print(&Event::Warning { reason });
                }
                let own = listing.entries.iter().find(|entry| self.is_own(&entry.key));
                self.check_own(own, output)?;
                self.check_elder(own, &listing.entries)?;
                for entry in &listing.entries {
                    self.subnets.look(entry, true, &self.holding, &self.reader, output);
                }
                let reported = std::mem::take(&mut self.reported_skips);
                for entry in listing.entries.iter().filter(|entry| entry.oversized) {
                    self.report_skipped(entry.too_long(), &reported, output);
                }
                let entries = listing.entries.iter().filter(|entry| !entry.oversized);
                let entries = entries.map(|entry| (entry.key.as_slice(), entry.value.as_slice()));
                let update = self.reader.snapshot(entries);
                self.read(update, &reported, output);
            }
            News::Changed(changes) => {
                for change in changes {
                    let update = match &change {
                        Change::Put(entry) if entry.oversized => {
                            self.report_skipped(entry.too_long(), &BTreeSet::new(), output);
                            // The previous lease of the key is gone.
                            ParsedUpdate { skipped: Vec::new(), ..self.reader.deleted(&entry.key) }
                        }
                        Change::Put(entry) => self.reader.put(&entry.key, &entry.value),
                        Change::Deleted { key } => self.reader.deleted(key),
                    };
                    match &change {
                        Change::Put(entry) if self.is_own(&entry.key) => self.check_own(Some(entry), output)?,
                        Change::Deleted { key } if self.is_own(key) => self.check_own(None, output)?,
                        Change::Put(entry) => self.subnets.look(entry, false, &self.holding, &self.reader, output),
                        Change::Deleted { .. } => {}
                    }
                    self.read(update, &BTreeSet::new(), output);
                }
            }
            News::Silent(reason) => {
                for source in [SOURCE, SOURCE_V6] {
                    self.reconciler.handle_event(source, LeaseEvent::SourceLost, now);
                }
                if silent.is_none() {
                    let routes = self.reconciler.route_count();
                    output.print(&Event::Stale { reason, routes });
                }
            }
        }
        if let Some(since) = silent.filter(|_| self.reconciler.stale_since(SOURCE).is_none()) {
            // A failed renewal is repeated now. A restored etcd may also have an old state of the own lease.
            self.renew_soon(Renew::Keep);
            output.print(&Event::Heard { seconds: now.saturating_sub(since).as_secs_f64() });
        }
        Ok(())
    }

    /// Prints a reason unless it was printed before.
    fn report_skipped(&mut self, reason: String, reported: &BTreeSet<String>, output: &Output) {
        if !reported.contains(&reason) {
            output.print(&Event::SetAside { reason: reason.clone() });
        }
        self.reported_skips.insert(reason);
    }

    fn read(&mut self, update: ParsedUpdate, reported: &BTreeSet<String>, output: &Output) {
        for skipped in update.skipped {
            self.report_skipped(skipped.to_string(), reported, output);
        }
        if let Some(event) = update.event {
            self.reconciler.handle_event(SOURCE, event, self.clock.now());
        }
        if let Some(event) = update.event_v6 {
            self.reconciler.handle_event(SOURCE_V6, event, self.clock.now());
        }
    }

    fn set_mtu(&self, mtu: Mtu) {
        let worker = &self.dataplane.worker;
        worker.set_mtu(mtu);
        if let Some(mtu) = self.links.mtu_over_ipv6().filter(|_| self.has_ipv6_underlay) {
            worker.set_mtu_over_ipv6(mtu);
        }
    }

    fn publish(&mut self, output: &Output) -> Result<(), Error> {
        self.subnets.update(&self.reconciler, &self.dataplane.worker, output)?;
        for change in self.reconciler.take_conflict_changes() {
            let (conflict, ended) = match change {
                ConflictChange::Began(conflict) => (conflict, false),
                ConflictChange::Ended(conflict) => (conflict, true),
                _ => continue,
            };
            output.print(&Event::Conflict { ended, conflict: conflict.to_string() });
        }
        let changes = self.reconciler.take_changes();
        if changes.is_empty() {
            return Ok(());
        }
        let applied = self.routes.apply(changes.iter().copied());
        for refused in &applied.refused {
            output.print(&Event::SetAside { reason: refused.to_string() });
        }
        let (mut set, mut deleted) = (Vec::new(), Vec::new());
        for change in changes.iter().take(LISTED_CHANGES) {
            match change {
                RouteChange::Set(route) => set.push(route.to_string()),
                RouteChange::Delete(subnet) => deleted.push(subnet.to_string()),
                _ => {}
            }
        }
        let (count, changes) = (self.routes.table().len(), changes.len());
        output.print(&Event::Routes { count, changes, set, deleted });
        Ok(())
    }

    fn is_own(&self, key: &[u8]) -> bool {
        key == self.reader.full_key(&self.holding.key).as_bytes()
    }

    /// Checks the entry of the own key. Without an entry, another host may lease the subnet.
    fn check_own(&mut self, entry: Option<&Entry>, output: &Output) -> Result<(), Error> {
        let Some(entry) = entry else {
            return Err(self.lost("it was deleted from etcd, or ended without being renewed"));
        };
        if let Some(host) = LeaseValue::holder(&entry.value).filter(|host| *host != self.holding.value.public_ip) {
            return Err(self.lost(&format!("{host} holds it now")));
        }
        if self.renewal.is_some() {
            self.meanwhile = Some(entry.clone());
        } else if entry.revision != self.holding.revision {
            let (subnet, host, now) = (self.holding.key.ipv4.trunc(), self.holding.value.public_ip, self.clock.now());
            let who = format!("another node that has {host} too, which only one may have, or an operator");
            output.print(&Event::Warning { reason: format!("somebody else wrote the lease of {subnet}: {who}") });
            // A write informs the other node.
            let replies = self.replied.is_none_or(|at| now.saturating_sub(at) >= REPLIES);
            if replies {
                self.replied = Some(now);
            }
            self.renew_soon(if replies { Renew::Write } else { Renew::Keep });
        }
        Ok(())
    }

    /// Gives up the own lease if an older lease of another host overlaps it. A lease is acquired only if there is no
    /// older one, so an older one appears only by a restore of etcd.
    fn check_elder(&mut self, own: Option<&Entry>, entries: &[Entry]) -> Result<(), Error> {
        let Some((own, revision)) = own.and_then(|own| Some((own.held(&self.reader)?.1, own.revision))) else {
            return Ok(());
        };
        let own_v6 = self.holding.key.ipv6.map(|subnet| Held { subnet: subnet.into(), ..own });
        let held = entries.iter().filter_map(|entry| entry.held(&self.reader)).flat_map(|(key, held)| {
            [Some(held), key.ipv6.map(|subnet| Held { subnet: subnet.into(), ..held })].into_iter().flatten()
        });
        let gives_way = |held: &Held| own.gives_way_to(held) || own_v6.is_some_and(|own| own.gives_way_to(held));
        let Some(elder) = held.into_iter().find(gives_way) else { return Ok(()) };
        self.gives_up = Some(revision);
        Err(self.lost(&format!("{} was leased to {} before", elder.subnet, elder.host)))
    }

    fn renew_soon(&mut self, how: Renew) {
        if how == Renew::Write || self.renewal_timer.poll_timeout() > self.clock.now() {
            self.renew_how = how;
        }
        self.renewal_timer.doubted(self.clock.now());
    }

    fn lost(&self, reason: &str) -> Error {
        let subnet = self.holding.key.ipv4.trunc();
        format!("the lease of {subnet} is lost: {reason}. Start the node again to lease a subnet").into()
    }

    fn begin_renewal(&mut self) {
        let (mut registry, mut holding, ttl) = (self.registry.clone(), self.holding, self.ttl);
        let how = std::mem::replace(&mut self.renew_how, Renew::Write);
        self.renewal = Some(spawn_local(async move {
            let outcome = renew(&mut registry, &mut holding, how, ttl).await;
            (holding, outcome)
        }));
    }

    fn settle_renewal(&mut self, outcome: Result<Renewal, EtcdError>, output: &Output) -> Result<(), Error> {
        let now = self.clock.now();
        match outcome {
            Ok(Renewal::Renewed) => {
                self.renewal_timer.renewed(self.holding.lasts(), now);
                let subnet = self.holding.key.ipv4.trunc().to_string();
                let seconds = self.holding.grant.map(|grant| grant.ttl.as_secs());
                output.print(&Event::Renewed { subnet, seconds });
            }
            Ok(Renewal::Lost(reason)) => return Err(self.lost(&reason)),
            Err(error) => {
                self.renewal_timer.failed(now);
                output.print(&Event::NotRenewed {
                    reason: error.to_string(),
                    retry_seconds: self.renewal_timer.poll_timeout().saturating_sub(now).as_secs_f64(),
                    seconds_left: self
                        .holding
                        .grant
                        .map(|_| self.renewal_timer.ends().saturating_sub(now).as_secs_f64()),
                });
            }
        }
        Ok(())
    }

    /// Removes the settings of this host and prints the last event. The lease stays for the next start.
    fn close(mut self, leased: Option<Ipv4Net>, output: &Output) -> Result<(), Error> {
        // The device ends with the thread that has it open.
        let tun_queue_dropped = self.links.queue_dropped();
        let counters = self.dataplane.stop();
        self.rules.remove().iter().for_each(|event| output.print(event));
        output.flush_limits(Duration::ZERO);
        output.print(&Event::Stopped {
            leased: leased.map(|subnet| subnet.to_string()),
            encap: flow(&counters.encap),
            decap: flow(&counters.decap),
            anomalies: anomalies(&counters.stats),
            tun_queue_dropped,
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
