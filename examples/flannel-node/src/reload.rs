//! SIGHUP: certificates and the network's config are read again. It does not end the node, as it ends flanneld.

use std::convert::Infallible;
use std::io;
use std::rc::Rc;

use loden::lease::flannel::NetworkConfig;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::etcd::Credentials;
use crate::node::report_notify;
use crate::notify::Notifier;
use crate::output::{Event, Output};
use crate::registry::Registry;

/// The signal and what it renews.
pub(crate) struct Reload {
    signal: Signal,
    credentials: Rc<Credentials>,
    registry: Registry,
}

impl Reload {
    /// Takes over the signal.
    pub(crate) fn new(registry: &Registry) -> io::Result<Self> {
        let (credentials, registry) = (registry.credentials(), registry.clone());
        Ok(Self { signal: signal(SignalKind::hangup())?, credentials, registry })
    }

    /// Renews the certificates of a node that has not started yet. It reads the config again anyway.
    pub(crate) async fn before_start(&mut self, output: &Output) -> Infallible {
        loop {
            self.requested().await;
            self.renew(output);
        }
    }

    /// Renews the certificates of a running node and compares the config with the one in use.
    pub(crate) async fn while_running(
        &mut self,
        used: NetworkConfig,
        notifier: &Notifier,
        output: &Output,
    ) -> Infallible {
        loop {
            self.requested().await;
            report_notify(notifier.reloading(), output);
            if self.renew(output) {
                self.compare(used, output).await;
            }
            report_notify(notifier.ready(), output);
        }
    }

    async fn requested(&mut self) {
        if self.signal.recv().await.is_none() {
            std::future::pending().await
        }
    }

    /// Reads the files. Returns false if they are unusable; then the node keeps the previous ones.
    fn renew(&self, output: &Output) -> bool {
        let renewed = self.credentials.renew();
        output.print(&match &renewed {
            Ok(()) => Event::Reloaded,
            Err(reason) => Event::Warning { reason: format!("{reason}; the previous files stay in use") },
        });
        renewed.is_ok()
    }

    /// Reads the config over a connection with the new files, and reports a difference.
    async fn compare(&mut self, used: NetworkConfig, output: &Output) {
        let key = self.registry.config_key().to_owned();
        let warning = match self.registry.config().await {
            Ok(Some(text)) => match NetworkConfig::from_json(&text) {
                Ok(config) if config == used => return,
                Ok(_) => format!("the network config at {key} has changed; restart the node to use it"),
                Err(error) => {
                    format!("the network config at {key} cannot be used: {error}; the present one stays in use")
                }
            },
            Ok(None) => format!("there is no network config at {key} any more; the present one stays in use"),
            Err(error) => format!("the network config was not read again: {error}"),
        };
        output.print(&Event::Warning { reason: warning });
    }
}
