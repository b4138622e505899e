//! flannel's keys in etcd: reads and writes of the network's config and the leases.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, GetResponse, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp,
    TxnOpResponse, WatchOptions, WatchStream,
};
use loden::lease::Held;
use loden::lease::flannel::{LeaseKey, LeaseReader, LeaseValue};

use crate::etcd::{Credentials, Etcd, EtcdError};

/// The number of keys in the first and in the largest page of a listing. Each short page doubles the next one.
///
/// etcd loads all values of a page into memory, including those that it does not send. Small pages limit that.
const PAGE: (i64, i64) = (16, 256);
/// The largest page in bytes. Pages of leases are far smaller.
const PAGE_BYTES: usize = 1 << 20;
/// The largest value of a lease in bytes. flannel's have a few hundred at most.
const VALUE_BYTES: usize = 64 << 10;
/// The largest list of keys without values in bytes: gRPC's default limit, which exceeds etcd's default limit for one
/// key.
const NAMES_BYTES: usize = 4 << 20;

/// The keys of one network.
#[derive(Clone)]
pub(crate) struct Registry {
    etcd: Etcd,
    prefix: String,
    config: String,
    subnets: String,
    /// The revisions of keys with oversized values. Such a value is not read again.
    oversized: BTreeMap<Vec<u8>, i64>,
}

/// A key below `<prefix>/subnets/`.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    /// The value; empty if it is oversized.
    pub(crate) value: Vec<u8>,
    /// The value exceeds [`VALUE_BYTES`].
    pub(crate) oversized: bool,
    /// The revision of the key's creation. Renewals do not change it.
    pub(crate) created: i64,
    /// The revision of the last write.
    pub(crate) revision: i64,
    /// The id of its etcd lease; 0 for none.
    pub(crate) grant: i64,
}

/// All keys at one revision.
pub(crate) struct Listing {
    pub(crate) entries: Vec<Entry>,
    pub(crate) moment: Moment,
}

/// A point in a cluster's history according to a member.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    pub(crate) term: u64,
    pub(crate) revision: i64,
}

/// A lease of etcd. The keys bound to it are deleted when it ends.
#[derive(Clone, Copy)]
pub(crate) struct Grant {
    pub(crate) id: i64,
    pub(crate) ttl: Duration,
}

/// The remaining time of a grant.
pub(crate) struct Remaining {
    pub(crate) left: Duration,
    pub(crate) whole: Duration,
}

impl From<&KeyValue> for Entry {
    fn from(kv: &KeyValue) -> Self {
        let oversized = kv.value().len() > VALUE_BYTES;
        let value = if oversized { Vec::new() } else { kv.value().to_vec() };
        let (created, revision) = (kv.create_revision(), kv.mod_revision());
        Self { key: kv.key().to_vec(), value, oversized, created, revision, grant: kv.lease() }
    }
}

impl Entry {
    /// Describes an oversized entry.
    pub(crate) fn too_long(&self) -> String {
        let key: String = String::from_utf8_lossy(&self.key).chars().take(128).collect();
        format!("key {key:?} is skipped: its value exceeds {VALUE_BYTES} bytes")
    }

    /// Returns the subnet that the key holds, if it is a lease's.
    pub(crate) fn held(&self, reader: &LeaseReader) -> Option<(LeaseKey, Held)> {
        reader.held(&self.key, &self.value, self.created.try_into().unwrap_or(0))
    }
}

impl Moment {
    pub(crate) fn of(header: Option<&ResponseHeader>) -> Self {
        Self {
            cluster: header.map_or(0, ResponseHeader::cluster_id),
            member: header.map_or(0, ResponseHeader::member_id),
            term: header.map_or(0, ResponseHeader::raft_term),
            revision: header.map_or(0, ResponseHeader::revision),
        }
    }

    /// Returns true if one history can lead from `before` to this point.
    pub(crate) fn follows(self, before: Self) -> bool {
        self.cluster == before.cluster && self.term >= before.term && self.revision >= before.revision
    }
}

impl Registry {
    pub(crate) fn new(etcd: Etcd, prefix: &str) -> Self {
        let prefix = prefix.trim_end_matches('/');
        // The reader is used for keys only, so its port has no effect.
        let subnets = LeaseReader::new(prefix, 0).subnets().to_owned();
        let (prefix, config) = (prefix.to_owned(), format!("{prefix}/config"));
        Self { etcd, prefix, config, subnets, oversized: BTreeMap::new() }
    }

    /// Returns the prefix of all keys.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns an error of the current member in words for an operator.
    pub(crate) fn plain(&self, error: &Error) -> String {
        self.etcd.plain(error)
    }

    /// Returns the credentials, which all clones share.
    pub(crate) fn credentials(&self) -> Rc<Credentials> {
        self.etcd.credentials()
    }

    /// Returns the key of the network's config.
    pub(crate) fn config_key(&self) -> &str {
        &self.config
    }

    /// Returns the etcd member for the next request.
    pub(crate) fn endpoint(&self) -> &str {
        self.etcd.endpoint()
    }

    /// Returns the text of the network's config; `None` if there is none.
    pub(crate) async fn config(&mut self) -> Result<Option<Vec<u8>>, EtcdError> {
        let Self { etcd, config, .. } = self;
        let answer = etcd.call(async |client| client.get(config.as_str(), None).await).await?;
        Ok(answer.kvs().first().map(|kv| kv.value().to_vec()))
    }

    pub(crate) async fn set_config(&mut self, text: &str) -> Result<(), EtcdError> {
        let Self { etcd, config, .. } = self;
        etcd.call(async |client| client.put(config.as_str(), text, None).await).await.map(|_| ())
    }

    /// Lists all leases at the revision of the first page, including those of other backends and unreadable ones.
    ///
    /// Values of megabytes must not prevent the reading of other leases. A page that is too large is read key by key.
    /// So are the pages after it, until one has no oversized value.
    pub(crate) async fn list(&mut self) -> Result<Listing, EtcdError> {
        let mut from = self.subnets.as_bytes().to_vec();
        let range = GetOptions::new().with_range(successor_of_prefix(&from));
        let (mut entries, mut oversized) = (Vec::new(), BTreeMap::new());
        let mut moment = None;
        let (mut limit, mut key_by_key) = (PAGE.0, false);
        loop {
            let options = range.clone().with_limit(limit).with_revision(moment.map_or(0, |at: Moment| at.revision));
            let answer = if key_by_key {
                self.get(&from, &options.with_keys_only(), NAMES_BYTES).await?
            } else {
                self.get(&from, &options, PAGE_BYTES).await?
            };
            let Some(page) = answer else {
                match limit {
                    _ if !key_by_key => (key_by_key, limit) = (true, limit.min(PAGE.0)),
                    2.. => limit /= 2,
                    _ => {
                        let reason =
                            format!("a key below {} has more than {NAMES_BYTES} bytes; delete it", self.subnets);
                        return Err(EtcdError { endpoint: self.endpoint().to_owned(), reason });
                    }
                }
                continue;
            };
            let at = *moment.get_or_insert_with(|| Moment::of(page.header()));
            limit = if key_by_key { PAGE.0 } else { (2 * limit).min(PAGE.1) };
            let names_only = std::mem::take(&mut key_by_key);
            for kv in page.kvs() {
                let entry = if names_only { self.value_of(kv, at.revision).await? } else { Entry::from(kv) };
                if entry.oversized {
                    key_by_key = true;
                    oversized.insert(entry.key.clone(), entry.revision);
                }
                entries.push(entry);
            }
            // The smallest possible next key.
            match page.kvs().last().filter(|_| page.more()) {
                Some(last) => from = [last.key(), &[0]].concat(),
                None => break,
            }
        }
        self.oversized = oversized;
        Ok(Listing { entries, moment: moment.unwrap_or_else(|| Moment::of(None)) })
    }

    /// Returns the entry of a lease; `None` if there is none.
    pub(crate) async fn entry(&mut self, key: &LeaseKey) -> Result<Option<Entry>, EtcdError> {
        let key = self.full_key(key);
        let name = self.get(key.as_bytes(), &GetOptions::new().with_keys_only(), NAMES_BYTES).await?;
        match name.as_ref().and_then(|name| Some((name.kvs().first()?, Moment::of(name.header())))) {
            Some((kv, at)) => self.value_of(kv, at.revision).await.map(Some),
            None => Ok(None),
        }
    }

    /// Reads the value of a key at a revision.
    async fn value_of(&mut self, name: &KeyValue, revision: i64) -> Result<Entry, EtcdError> {
        let oversized = Entry { oversized: true, ..Entry::from(name) };
        if self.oversized.get(name.key()) == Some(&oversized.revision) {
            return Ok(oversized);
        }
        // The answer contains the key too.
        let most = VALUE_BYTES + name.key().len() + 1024;
        let answer = self.get(name.key(), &GetOptions::new().with_revision(revision), most).await?;
        Ok(answer.and_then(|answer| answer.kvs().first().map(Entry::from)).unwrap_or(oversized))
    }

    /// Sends one request with a deadline; returns `None` if the answer has more than `most` bytes.
    async fn get(&mut self, key: &[u8], options: &GetOptions, most: usize) -> Result<Option<GetResponse>, EtcdError> {
        let get = async |client: &mut Client| {
            let mut client = client.kv_client().max_decoding_message_size(most);
            match client.get(key, Some(options.clone())).await {
                Err(Error::GRpcStatus(status)) if status.message().contains("too large") => Ok(None),
                outcome => outcome.map(Some),
            }
        };
        self.etcd.call(get).await
    }

    pub(crate) async fn grant(&mut self, ttl: Duration) -> Result<Grant, EtcdError> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let answer = self.etcd.call(async |client| client.lease_grant(seconds, None).await).await?;
        Ok(Grant { id: answer.id(), ttl: seconds_of(answer.ttl()) })
    }

    /// Renews a grant for its full duration; returns `None` if it has ended.
    pub(crate) async fn keep_alive(&mut self, grant: i64) -> Result<Option<Remaining>, EtcdError> {
        let keep = async |client: &mut Client| match client.lease_keep_alive(grant).await {
            Ok(_) => Ok(true),
            // The client library returns this error for a grant that has ended.
            Err(Error::LeaseKeepAliveError(_)) => Ok(false),
            Err(error) => Err(error),
        };
        if self.etcd.call(keep).await? { self.remaining(grant).await } else { Ok(None) }
    }

    /// Returns the remaining time of a grant; `None` if it has ended.
    pub(crate) async fn remaining(&mut self, grant: i64) -> Result<Option<Remaining>, EtcdError> {
        let answer = self.etcd.call(async |client| client.lease_time_to_live(grant, None).await).await?;
        let remaining = || Remaining { left: seconds_of(answer.ttl()), whole: seconds_of(answer.granted_ttl()) };
        Ok((answer.ttl() > 0).then(remaining))
    }

    /// Ends a grant without keys. If that fails, it expires.
    pub(crate) async fn revoke(&mut self, grant: Grant) {
        let _ = self.etcd.call(async |client| client.lease_revoke(grant.id).await).await;
    }

    /// Writes a lease unless any spelling of the subnet is leased, for example `100.96.7.0-24&fd00::-64`. Returns the
    /// revision of the write if it succeeded.
    pub(crate) async fn create(
        &mut self,
        key: &LeaseKey,
        value: &LeaseValue,
        grant: Grant,
    ) -> Result<Option<i64>, EtcdError> {
        let first = self.full_key(&LeaseKey { ipv6: None, ..*key });
        // The character after `&`.
        let end = format!("{first}'");
        let unless = Compare::create_revision(first, CompareOp::Equal, 0).with_range(end);
        self.put_if(unless, key, value, Some(grant)).await
    }

    /// Replaces a lease if it still has this `revision`. Returns the revision of the write if it succeeded. Without a
    /// grant the key has no end.
    pub(crate) async fn replace(
        &mut self,
        key: &LeaseKey,
        value: &LeaseValue,
        grant: Option<Grant>,
        revision: i64,
    ) -> Result<Option<i64>, EtcdError> {
        let unchanged = Compare::mod_revision(self.full_key(key), CompareOp::Equal, revision);
        self.put_if(unchanged, key, value, grant).await
    }

    /// Deletes a lease if it still has this `revision`.
    pub(crate) async fn delete(&mut self, key: &LeaseKey, revision: i64) -> Result<(), EtcdError> {
        let key = self.full_key(key);
        let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
        let txn = Txn::new().when([unchanged]).and_then([TxnOp::delete(key, None)]);
        self.etcd.call(async |client| client.txn(txn.clone()).await).await.map(|_| ())
    }

    /// Watches all leases from now on.
    pub(crate) async fn watch(&mut self) -> Result<WatchStream, EtcdError> {
        let options = WatchOptions::new().with_prefix().with_fragment().with_progress_notify();
        let Self { etcd, subnets, .. } = self;
        etcd.call(async |client| client.watch(subnets.as_str(), Some(options.clone())).await).await
    }

    /// Changes to another member after a watch of the current one ended.
    pub(crate) fn use_next_member(&mut self) {
        self.etcd.use_next_member();
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
    ) -> Result<Option<i64>, EtcdError> {
        let (key, value, grant) = (self.full_key(key), value.to_json(), grant.map_or(0, |grant| grant.id));
        let put = TxnOp::put(key.as_str(), value.as_str(), Some(PutOptions::new().with_lease(grant)));
        let txn = Txn::new().when([condition]).and_then([put]).or_else([TxnOp::get(key, None)]);
        let answer = self.etcd.call(async |client| client.txn(txn.clone()).await).await?;
        if answer.succeeded() {
            return Ok(Some(Moment::of(answer.header()).revision));
        }
        // The first answer was lost and the request repeated. No other host writes this grant and value.
        let ours = |kv: &KeyValue| kv.lease() == grant && kv.value() == value.as_bytes();
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(found) => found.kvs().first().filter(|kv| ours(kv)).map(KeyValue::mod_revision),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        Ok(found)
    }
}

/// Returns the first key after all keys with a prefix. The prefix ends with a slash.
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
