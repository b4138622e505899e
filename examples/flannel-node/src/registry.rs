//! flannel's keys in etcd: the network's config and the leases, read and written.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, GetResponse, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
    WatchOptions, WatchStream,
};
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue};

use crate::etcd::{Etcd, EtcdError};

/// Keys in one answer of a listing, unless they are too long for that.
const PAGE: i64 = 4096;

/// The keys of one network.
#[derive(Clone)]
pub(crate) struct Registry {
    etcd: Etcd,
    prefix: String,
    config: String,
    subnets: String,
}

/// A key below `<prefix>/subnets/`.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// When it was last written, in etcd's count of writes.
    pub(crate) revision: i64,
    /// The etcd lease it ends with; 0 for none.
    pub(crate) grant: i64,
}

/// All keys as they were at one moment.
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    pub(crate) revision: i64,
}

/// A lease of etcd, which ends the keys that are bound to it.
#[derive(Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) id: i64,
    pub(crate) ttl: Duration,
}

/// Of the time of a grant.
pub(crate) struct Remaining {
    pub(crate) left: Duration,
    pub(crate) whole: Duration,
}

impl From<&KeyValue> for Entry {
    fn from(kv: &KeyValue) -> Self {
        let (key, value) = (kv.key().to_vec(), kv.value().to_vec());
        Self { key, value, revision: kv.mod_revision(), grant: kv.lease() }
    }
}

impl Registry {
    pub(crate) fn new(etcd: Etcd, prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('/');
        // The port matters to who reads leases, and here nobody does.
        let subnets = LeaseReader::new(prefix, 0).subnets().to_owned();
        Self { etcd, prefix: prefix.to_owned(), config: format!("{prefix}/config"), subnets }
    }

    /// What all keys begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where the network's config is.
    pub(crate) fn config_key(&self) -> &str {
        &self.config
    }

    /// The member of etcd that is asked next.
    pub(crate) fn endpoint(&self) -> &str {
        self.etcd.endpoint()
    }

    /// The network's config as it is written; `None` if there is none.
    pub(crate) async fn config(&mut self) -> Result<Option<Vec<u8>>, EtcdError> {
        let Self { etcd, config, .. } = self;
        let answer = etcd.call(async |client| client.get(config.as_str(), None).await).await?;
        Ok(answer.kvs().first().map(|kv| kv.value().to_vec()))
    }

    pub(crate) async fn set_config(&mut self, text: &str) -> Result<(), EtcdError> {
        let Self { etcd, config, .. } = self;
        etcd.call(async |client| client.put(config.as_str(), text, None).await).await.map(|_| ())
    }

    /// All leases, those of other backends and unreadable ones too: page by page, all as of the first page's moment.
    pub(crate) async fn list(&mut self) -> Result<Listing, EtcdError> {
        let mut listing = Listing { entries: Vec::new(), revision: 0 };
        let mut from = self.subnets.as_bytes().to_vec();
        let range = GetOptions::new().with_range(successor_of_prefix(&from));
        loop {
            let options = range.clone().with_revision(listing.revision);
            let page = self.etcd.call(async |client| page(client, &from, &options).await).await?;
            if listing.revision == 0 {
                listing.revision = page.header().map_or(0, |header| header.revision());
            }
            listing.entries.extend(page.kvs().iter().map(Entry::from));
            let Some(last) = listing.entries.last().filter(|_| page.more()) else { return Ok(listing) };
            // The next key there can be.
            from = [last.key.as_slice(), &[0]].concat();
        }
    }

    /// The entry of a lease; `None` if there is none.
    pub(crate) async fn entry(&mut self, key: &LeaseKey) -> Result<Option<Entry>, EtcdError> {
        let key = self.full_key(key);
        let answer = self.etcd.call(async |client| client.get(key.as_str(), None).await).await?;
        Ok(answer.kvs().first().map(Entry::from))
    }

    pub(crate) async fn grant(&mut self, ttl: Duration) -> Result<Grant, EtcdError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let answer = self.etcd.call(async |client| client.lease_grant(seconds, None).await).await?;
        Ok(Grant { id: answer.id(), ttl: seconds_of(answer.ttl()) })
    }

    /// Makes a grant last its whole time again; `None` if it has ended.
    pub(crate) async fn keep_alive(&mut self, grant: i64) -> Result<Option<Remaining>, EtcdError> {
        let keep = async |client: &mut Client| match client.lease_keep_alive(grant).await {
            Ok(_) => Ok(true),
            // So the client library calls a grant that has ended.
            Err(Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(error),
        };
        if self.etcd.call(keep).await? { self.remaining(grant).await } else { Ok(None) }
    }

    /// How long a grant has still to go; `None` if it has ended.
    pub(crate) async fn remaining(&mut self, grant: i64) -> Result<Option<Remaining>, EtcdError> {
        let answer = self.etcd.call(async |client| client.lease_time_to_live(grant, None).await).await?;
        let remaining = || Remaining { left: seconds_of(answer.ttl()), whole: seconds_of(answer.granted_ttl()) };
        Ok((answer.ttl() > 0).then(remaining))
    }

    /// Ends a grant that nothing is bound to. If that fails, it ends by itself.
    pub(crate) async fn revoke(&mut self, grant: Grant) {
        let _ = self.etcd.call(async |client| client.lease_revoke(grant.id).await).await;
    }

    /// Writes a lease unless there is one by this key; whether it is ours now.
    pub(crate) async fn create(&mut self, key: &LeaseKey, value: &LeaseValue, grant: Grant) -> Result<bool, EtcdError> {
        let unless = Compare::create_revision(self.full_key(key), CompareOp::Equal, 0);
        self.put_if(unless, key, value, Some(grant)).await
    }

    /// Writes a lease over the one that was read at `revision`; whether it is ours now. Without a grant it has no end.
    pub(crate) async fn replace(
        &mut self,
        key: &LeaseKey,
        value: &LeaseValue,
        grant: Option<Grant>,
        revision: i64,
    ) -> Result<bool, EtcdError> {
        let unchanged = Compare::mod_revision(self.full_key(key), CompareOp::Equal, revision);
        self.put_if(unchanged, key, value, grant).await
    }

    /// Deletes a lease, if it is still the one that was read at `revision`.
    pub(crate) async fn delete(&mut self, key: &LeaseKey, revision: i64) -> Result<(), EtcdError> {
        let key = self.full_key(key);
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
        let txn = Txn::new().when([unchanged]).and_then([TxnOp::delete(key, None)]);
        self.etcd.call(async |client| client.txn(txn.clone()).await).await.map(|_| ())
    }

    /// The changes of all leases from `revision` on.
    pub(crate) async fn watch(&mut self, revision: i64) -> Result<WatchStream, EtcdError> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision);
        let options = options.with_fragment().with_progress_notify();
        let Self { etcd, subnets, .. } = self;
        etcd.call(async |client| client.watch(subnets.as_str(), Some(options.clone())).await).await
    }

    /// A watch on the member that is asked ended: the next call asks another one.
    pub(crate) fn go_on(&mut self) {
        self.etcd.go_on();
    }

    fn full_key(&self, key: &LeaseKey) -> String {
        format!("{}{key}", self.subnets)
    }

    async fn put_if(
        &mut self,
        condition: Compare,
        key: &LeaseKey,
        value: &LeaseValue,
        grant: Option<Grant>,
    ) -> Result<bool, EtcdError> {
        let (key, value, grant) = (self.full_key(key), value.to_json(), grant.map_or(0, |grant| grant.id));
        let put = TxnOp::put(key.as_str(), value.as_str(), Some(PutOptions::new().with_lease(grant)));
        let txn = Txn::new().when([condition]).and_then([put]).or_else([TxnOp::get(key, None)]);
        let answer = self.etcd.call(async |client| client.txn(txn.clone()).await).await?;
        // Our own write whose answer was lost, so that it was asked for again: nobody else writes the same.
        let ours = |response: &TxnOpResponse| match response {
            TxnOpResponse::Get(found) => {
                found.kvs().iter().any(|kv| kv.lease() == grant && kv.value() == value.as_bytes())
            }
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => false,
        };
        Ok(answer.succeeded() || answer.op_responses().iter().any(ours))
    }
}

/// As many keys from `from` on as one answer can hold. Somebody may have written values that make it too long for gRPC's 4 MiB,
/// which must not hide the leases beside them.
async fn page(client: &mut Client, from: &[u8], range: &GetOptions) -> Result<GetResponse, Error> {
    let mut limit = PAGE;
    loop {
        let options = range.clone().with_limit(limit);
        match client.get(from, Some(options.clone())).await {
            Err(Error::GRpcStatus(status)) if status.message().contains("too large") => {}
            outcome => return outcome,
        }
        if limit == 1 {
            // No lease, whatever it is.
            return client.get(from, Some(options.with_keys_only())).await;
        }
        limit /= 2;
    }
}

/// The first key behind all that begin with a prefix. A prefix of ours ends with a slash.
fn successor_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

fn seconds_of(seconds: i64) -> Duration {
    Duration::from_secs(seconds.try_into().unwrap_or(0))
}
