//! All that etcd says of leases: listed once, then watched, and listed again only where something was missed.

use std::time::Duration;

use etcd_client::{EventType, WatchResponse, WatchStream};
use loden::lease::Backoff;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::acquire::random;
use crate::clock::Clock;
use crate::etcd::{EtcdError, explained};
use crate::registry::{Entry, Listing, Registry};

/// News that wait to be taken in; a watch that brings more has to wait.
const QUEUE: usize = 256;
/// How long a member may take to confirm a watch.
const CONFIRM: Duration = Duration::from_secs(5);

/// What is new.
pub(crate) enum News {
    /// These keys were written and deleted, in this order.
    Changed(Vec<Change>),
    /// The watch goes on where it broke off: nothing was missed.
    Heard,
    /// All leases there are.
    Listed(Listing),
    /// Nothing can be heard for now.
    Silent(Silence),
}

/// What happened to one key.
pub(crate) enum Change {
    Deleted { key: Vec<u8> },
    Put(Entry),
}

/// Why nothing can be heard.
pub(crate) struct Silence {
    pub(crate) reason: String,
    /// Whether it is the first failure after all went well.
    pub(crate) is_news: bool,
}

/// What ends a watch.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("etcd has compacted what happened since; all leases are listed again")]
    Compacted,
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// It was restored from a backup, or is another cluster.
    #[error(
        "etcd at {endpoint} is at revision {revision}, behind what it had said before; all leases are listed again"
    )]
    GoneBack { endpoint: String, revision: i64 },
    #[error("etcd at {endpoint} ended the watch: {reason}")]
    Ended { endpoint: String, reason: String },
    /// Nobody takes the news any more.
    #[error("the node has ended")]
    Unheard,
}

/// Begins to list and watch, in a task of its own, which ends when the receiver is dropped.
pub(crate) fn follow(registry: Registry, clock: Clock) -> Receiver<News> {
    let (sender, receiver) = channel(QUEUE);
    let feed = Feed { registry, clock, sender, next: None, seen: 0 };
    spawn_local(feed.run());
    receiver
}

struct Feed {
    registry: Registry,
    clock: Clock,
    sender: Sender<News>,
    /// The first revision that may bring something new; `None` if all has to be listed.
    next: Option<i64>,
    /// The last one there was, as far as is known.
    seen: i64,
}

impl Feed {
    async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut random = random();
        loop {
            let trouble = match self.listen(&mut backoff).await {
                Err(Trouble::Unheard) => return,
                Err(trouble) => trouble,
                Ok(never) => match never {},
            };
            if matches!(trouble, Trouble::Compacted | Trouble::GoneBack { .. }) {
                self.next = None;
            }
            let retry = backoff.failed(self.clock.now(), random());
            let silence = Silence { reason: trouble.to_string(), is_news: retry.is_news };
            if self.sender.send(News::Silent(silence)).await.is_err() {
                return;
            }
            tokio::select! {
                () = self.clock.sleep_until(retry.at) => {}
                () = self.sender.closed() => return,
            }
        }
    }

    /// Lists if that is needed, then watches until something ends it.
    async fn listen(&mut self, backoff: &mut Backoff) -> Result<core::convert::Infallible, Trouble> {
        let resumes = self.next.is_some();
        let from = match self.next {
            Some(next) => next,
            None => {
                let listing = self.registry.list().await?;
                self.seen = listing.revision;
                self.say(News::Listed(listing)).await?;
                *self.next.insert(self.seen + 1)
            }
        };
        let mut watch = self.registry.watch(from).await?;
        let confirmed = timeout(CONFIRM, watch.message()).await.map_err(|_| self.ended("it does not confirm it"))?;
        let confirmed = self.intact(confirmed)?;
        let revision = confirmed.header().map_or(0, |header| header.revision());
        if revision < self.seen {
            let endpoint = self.registry.endpoint().to_owned();
            return Err(Trouble::GoneBack { endpoint, revision });
        }
        if resumes {
            self.say(News::Heard).await?;
        }
        backoff.succeeded(self.clock.now());
        self.take_in(confirmed).await?;
        loop {
            let response = self.next_response(&mut watch).await?;
            self.take_in(response).await?;
        }
    }

    async fn next_response(&mut self, watch: &mut WatchStream) -> Result<WatchResponse, Trouble> {
        let response = tokio::select! {
            response = watch.message() => response,
            () = self.sender.closed() => return Err(Trouble::Unheard),
        };
        self.intact(response)
    }

    /// A response, unless it or its absence ends the watch.
    fn intact(
        &mut self,
        response: Result<Option<WatchResponse>, etcd_client::Error>,
    ) -> Result<WatchResponse, Trouble> {
        match response {
            Ok(Some(response)) if response.compact_revision() > 0 => Err(Trouble::Compacted),
            Ok(Some(response)) if response.canceled() => Err(self.ended(response.cancel_reason())),
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(self.ended("it closed the connection")),
            Err(error) => Err(self.ended(&explained(&error))),
        }
    }

    /// The member's fault, so that another one is asked next.
    fn ended(&mut self, reason: &str) -> Trouble {
        let endpoint = self.registry.endpoint().to_owned();
        self.registry.go_on();
        let reason = if reason.is_empty() { "it gives no reason" } else { reason };
        Trouble::Ended { endpoint, reason: reason.to_owned() }
    }

    async fn take_in(&mut self, response: WatchResponse) -> Result<(), Trouble> {
        let revisions = response.events().iter().filter_map(|event| event.kv()).map(|kv| kv.mod_revision());
        match revisions.max() {
            // From this one on again, should the watch break off: one write can be of several keys, and come in parts.
            Some(last) => (self.next, self.seen) = (Some(last), last),
            // The first answer says where etcd is, not how far we are.
            None if response.created() => {}
            // Nothing, up to here.
            None => {
                self.seen = response.header().map_or(0, |header| header.revision()).max(self.seen);
                self.next = Some(self.seen + 1);
            }
        }
        let changes: Vec<Change> = response
            .events()
            .iter()
            .filter_map(|event| {
                let kv = event.kv()?;
                Some(match event.event_type() {
                    EventType::Put => Change::Put(Entry::from(kv)),
                    EventType::Delete => Change::Deleted { key: kv.key().to_vec() },
                })
            })
            .collect();
        if changes.is_empty() { Ok(()) } else { self.say(News::Changed(changes)).await }
    }

    async fn say(&mut self, news: News) -> Result<(), Trouble> {
        self.sender.send(news).await.map_err(|_| Trouble::Unheard)
    }
}
