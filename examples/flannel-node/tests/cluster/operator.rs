//! Changes in etcd by an operator, another node or flannel itself.

use std::net::Ipv4Addr;

use etcd_client::{Client, EventType, GetOptions, PutOptions, Txn, TxnOp};
use testbed::Namespace;
use tokio::runtime::Runtime;

use crate::etcd::Etcd;
use crate::tls::Tls;
use crate::{SOON, wait_until};

pub(crate) const PREFIX: &str = "/coreos.com/network";

/// An etcd client in the namespace of etcd.
pub(crate) struct Operator {
    namespace: Namespace,
    runtime: Runtime,
    client: Client,
}

impl Operator {
    /// Waits until etcd answers.
    pub(crate) fn of(etcd: &Etcd, namespace: &Namespace) -> Self {
        Self::with_user(etcd, namespace, None)
    }

    pub(crate) fn with_user(etcd: &Etcd, namespace: &Namespace, user: Option<(&str, &str)>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut options = etcd.tls.as_ref().map(Tls::options).unwrap_or_default().with_timeout(SOON / 10);
        if let Some((name, password)) = user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        let mut client = None;
        let endpoints = etcd.endpoints();
        wait_until("etcd to answer", || {
            client = namespace.enter(|| {
                runtime.block_on(async {
                    let mut client = Client::connect(&endpoints, Some(options.clone())).await.ok()?;
                    client.get("anything", None).await.ok()?;
                    Some(client)
                })
            });
            client.is_some()
        });
        Self { namespace: namespace.clone(), runtime, client: client.unwrap() }
    }

    /// Runs a request with the client. It may ask a dead member first.
    pub(crate) fn act<T: Send>(&mut self, mut act: impl AsyncFnMut(&mut Client) -> Option<T> + Send) -> T {
        let mut outcome = None;
        let Self { namespace, runtime, client } = self;
        wait_until("etcd to do what it is asked", || {
            outcome = namespace.enter(|| runtime.block_on(act(client)));
            outcome.is_some()
        });
        outcome.unwrap()
    }

    pub(crate) fn set_config(&mut self, json: &str) {
        self.put(&format!("{PREFIX}/config"), json);
    }

    /// Writes a lease in flannel's form.
    pub(crate) fn put_lease(&mut self, key: &str, host: Ipv4Addr) {
        self.put(&subnets(key), &format!(r#"{{"PublicIP":"{host}","PublicIPv6":null}}"#));
    }

    /// Writes a lease that ends in this many seconds, like another node with the same address. Returns the etcd lease.
    pub(crate) fn put_lease_for(&mut self, key: &str, host: Ipv4Addr, seconds: i64) -> i64 {
        let value = format!(r#"{{"PublicIP":"{host}","PublicIPv6":null}}"#);
        self.act(async |client| {
            let grant = client.lease_grant(seconds, None).await.ok()?.id();
            client.put(subnets(key), value.as_str(), Some(PutOptions::new().with_lease(grant))).await.ok()?;
            Some(grant)
        })
    }

    pub(crate) fn put(&mut self, key: &str, value: &str) {
        self.act(async |client| client.put(key, value, None).await.ok());
    }

    /// Writes a value and keeps the end of the key.
    pub(crate) fn overwrite(&mut self, key: &str, value: &str) {
        let options = PutOptions::new().with_ignore_lease();
        self.act(async |client| client.put(key, value, Some(options.clone())).await.ok());
    }

    /// Writes many keys at once.
    pub(crate) fn put_leases(&mut self, leases: &[(String, Ipv4Addr)]) {
        for some in leases.chunks(100) {
            let puts =
                some.iter().map(|(key, host)| TxnOp::put(subnets(key), format!(r#"{{"PublicIP":"{host}"}}"#), None));
            let txn = Txn::new().and_then(puts.collect::<Vec<_>>());
            self.act(async |client| client.txn(txn.clone()).await.ok());
        }
    }

    pub(crate) fn delete(&mut self, key: &str) {
        self.act(async |client| client.delete(key, None).await.ok());
    }

    pub(crate) fn get(&mut self, key: &str) -> Option<String> {
        let answer = self.act(async |client| client.get(key, None).await.ok());
        answer.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
    }

    /// Returns the revision of the last write of a key.
    pub(crate) fn revision(&mut self, key: &str) -> i64 {
        let answer = self.act(async |client| client.get(key, None).await.ok());
        answer.kvs().first().map_or(0, |kv| kv.mod_revision())
    }

    /// Returns the number of etcd leases. A node creates one before it leases a subnet.
    pub(crate) fn grants(&mut self) -> usize {
        self.act(async |client| client.leases().await.ok()).leases().len()
    }

    /// Returns all leases: key without the common prefix, value, etcd lease.
    pub(crate) fn leases(&mut self) -> Vec<(String, String, i64)> {
        let options = GetOptions::new().with_prefix();
        let answer = self.act(async |client| client.get(subnets(""), Some(options.clone())).await.ok());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let key = |key: &[u8]| text(key)[subnets("").len()..].to_owned();
        answer.kvs().iter().map(|kv| (key(kv.key()), text(kv.value()), kv.lease())).collect()
    }

    /// Watches a key until it was written this often. Returns value and etcd lease of each write.
    pub(crate) fn watch_puts(&mut self, key: &str, count: usize) -> Vec<(String, i64)> {
        self.act(async |client| {
            let mut stream = client.watch(key, None).await.ok()?;
            let mut puts = Vec::new();
            while puts.len() < count {
                let response = stream.message().await.ok()??;
                let written = response.events().iter().filter(|event| event.event_type() == EventType::Put);
                puts.extend(written.filter_map(|event| {
                    let kv = event.kv()?;
                    Some((kv.value_str().ok()?.to_owned(), kv.lease()))
                }));
            }
            Some(puts)
        })
    }

    /// Compacts the history in every member.
    pub(crate) fn compact(&mut self) {
        self.act(async |client| {
            let revision = client.get("anything", None).await.ok()?.header()?.revision();
            client.compact(revision, None).await.ok()
        });
    }
}

pub(crate) fn subnets(key: &str) -> String {
    format!("{PREFIX}/subnets/{key}")
}
