//! The lease events of etcd, by listing and watching. After the end of a watch, and every few minutes, all leases are
//! listed again. An etcd that was restored from a backup may have another history under the same revisions, so a watch
//! is never resumed.

use std::time::Duration;

use etcd_client::{EventType, WatchResponse};
use loden::lease::Backoff;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::acquire::random;
use crate::clock::Clock;
use crate::etcd::EtcdError;
use crate::registry::{Entry, Listing, Moment, Registry};

/// The capacity of the event queue. A watch waits while it is full.
const QUEUE: usize = 256;
/// The timeout for the confirmation of a watch.
const CONFIRM: Duration = Duration::from_secs(5);

/// A lease event of etcd.
pub(crate) enum News {
    /// These keys were written or deleted, in this order.
    Changed(Vec<Change>),
    /// All leases. The text describes the difference if etcd's history is another one than before.
    Listed(Listing, Option<String>),
    /// The reason why etcd is currently unreachable.
    Silent(String),
}

/// A change of one key.
pub(crate) enum Change {
    Deleted { key: Vec<u8> },
    Put(Entry),
}

/// The reason why a watch ended.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error("etcd has compacted the events since; all leases are listed again")]
    Compacted,
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error("etcd at {endpoint} ended the watch: {reason}")]
    Ended { endpoint: String, reason: String },
    /// The member is behind the previous member, was restored from a backup, or belongs to another cluster.
    #[error("etcd at {endpoint} has another history than the listing; all leases are listed again")]
    OtherHistory { endpoint: String },
    /// The receiver was dropped.
    #[error("the node has ended")]
    ReceiverGone,
}

/// The end of the longest time for a watch.
struct Due;

/// Starts a task that lists and watches all leases until the receiver is dropped. `every` is the longest time between
/// two listings.
pub(crate) fn follow(registry: Registry, clock: Clock, every: Duration) -> Receiver<News> {
    let (sender, receiver) = channel(QUEUE);
    let feed = Feed { registry, clock, every, sender, seen: None };
    spawn_local(feed.run());
    receiver
}

struct Feed {
    registry: Registry,
    clock: Clock,
    every: Duration,
    sender: Sender<News>,
    /// The latest known point in etcd's history.
    seen: Option<Moment>,
}

impl Feed {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut random = random();
        loop {
            // A random reduction of up to a tenth spreads hosts that listed at the same moment.
            let due = self.clock.now() + self.every.mul_f64(1.0 - random() as f64 / u64::MAX as f64 / 10.0);
            let trouble = match self.listen(&mut backoff, due).await {
                Ok(Due) => continue,
                Err(WatchError::ReceiverGone) => return,
                Err(trouble) => trouble,
            };
            let retry = backoff.failed(self.clock.now(), random());
            if self.sender.send(News::Silent(trouble.to_string())).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.clock.sleep_until(retry.at) => {}
                () = self.sender.closed() => return,
            }
        }
    }

    /// Watches, lists, and continues to watch until the watch ends.
    ///
    /// The watch begins before the listing, so both have the same history: a restore in between ends the watch.
    async fn listen(&mut self, backoff: &mut Backoff, due: Duration) -> Result<Due, WatchError> {
        let mut watch = self.registry.watch().await?;
        let confirmed = timeout(CONFIRM, watch.message()).await.map_err(|_| self.ended("it does not confirm it"))?;
        let mut watched = Moment::of(self.intact(confirmed)?.header());
        let listing = self.registry.list().await?;
        let listed = listing.moment;
        if (listed.cluster, listed.member) != (watched.cluster, watched.member) || listed.revision < watched.revision {
            return Err(self.other_history());
        }
        let before = self.seen.replace(listed).filter(|before| !listed.follows(*before));
        let doubt = before.map(|before| self.doubt(before, listed));
        self.deliver(News::Listed(listing, doubt)).await?;
        backoff.succeeded(self.clock.now());
        loop {
            let response = tokio::select! {
                response = watch.message() => response,
                () = self.clock.sleep_until(due) => return Ok(Due),
                () = self.sender.closed() => return Err(WatchError::ReceiverGone),
            };
            let response = self.intact(response)?;
            let now = Moment::of(response.header());
            if (now.cluster, now.member) != (watched.cluster, watched.member) || now.revision < watched.revision {
                return Err(self.other_history());
            }
            watched = now;
            self.seen = Some(Moment { revision: now.revision.max(listed.revision), ..now });
            self.take_in(&response, listed.revision).await?;
        }
    }

    fn other_history(&self) -> WatchError {
        WatchError::OtherHistory { endpoint: self.registry.endpoint().to_owned() }
    }

    /// Describes the difference between two histories.
    fn doubt(&self, before: Moment, now: Moment) -> String {
        let shown = |Moment { cluster, term, revision, .. }: Moment| {
            format!("cluster {cluster:x}, term {term}, revision {revision}")
        };
        let (endpoint, before, now) = (self.registry.endpoint(), shown(before), shown(now));
        format!("etcd at {endpoint} was restored from a backup, or is another cluster: it is at {now} after {before}")
    }

    /// Returns a response, unless it or its absence ends the watch.
    fn intact(
        &mut self,
        response: Result<Option<WatchResponse>, etcd_client::Error>,
    ) -> Result<WatchResponse, WatchError> {
        match response {
            Ok(Some(response)) if response.compact_revision() > 0 => Err(WatchError::Compacted),
            Ok(Some(response)) if response.canceled() => Err(self.ended(response.cancel_reason())),
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(self.ended("it closed the connection")),
            Err(error) => Err(self.ended(&self.registry.plain(&error))),
        }
    }

    /// Returns an error of the member and changes to the next one.
    fn ended(&mut self, reason: &str) -> WatchError {
        let endpoint = self.registry.endpoint().to_owned();
        self.registry.use_next_member();
        let reason = if reason.is_empty() { "it gives no reason" } else { reason };
        WatchError::Ended { endpoint, reason: reason.to_owned() }
    }

    /// Passes on the events of a response that are newer than the listing.
    async fn take_in(&mut self, response: &WatchResponse, listed: i64) -> Result<(), WatchError> {
        let new = response.events().iter().filter_map(|event| Some((event.event_type(), event.kv()?)));
        let new = new.filter(|(_, kv)| kv.mod_revision() > listed);
        let changes: Vec<Change> = new
            .map(|(kind, kv)| match kind {
                EventType::Put => Change::Put(Entry::from(kv)),
                EventType::Delete => Change::Deleted { key: kv.key().to_vec() },
            })
            .collect();
        if changes.is_empty() { Ok(()) } else { self.deliver(News::Changed(changes)).await }
    }

    async fn deliver(&mut self, news: News) -> Result<(), WatchError> {
        self.sender.send(news).await.map_err(|_| WatchError::ReceiverGone)
    }
}
