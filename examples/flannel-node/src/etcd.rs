//! One connection to an etcd cluster, which changes to the next member if one does not answer.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::timeout;

use crate::args::EtcdArgs;
use crate::words::{Tls, no_answer, plain};

/// The timeout of a connection attempt. A host that is down does not refuse it.
const CONNECT: Duration = Duration::from_secs(2);
/// The timeout of a request. An election of etcd takes one to two seconds.
const ANSWER: Duration = Duration::from_secs(5);
/// The interval and the timeout of keep-alive messages on an idle connection. Watches may be idle for hours.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// The client of a cluster. Clones share the credentials and have connections of their own.
#[derive(Clone)]
pub(crate) struct Etcd {
    endpoints: Vec<String>,
    credentials: Rc<Credentials>,
    /// The index of the current member.
    at: usize,
    client: Option<Client>,
    /// The generation of the credentials that the client uses.
    generation: u64,
}

/// The files and the user of a connection. Each new connection reads the files again, as flannel's do, because
/// certificates are renewed while the node runs.
pub(crate) struct Credentials {
    args: EtcdArgs,
    /// The options by the files at the last time when they were usable.
    usable: RefCell<ConnectOptions>,
    /// The number of requests for new connections.
    generation: Cell<u64>,
}

/// The reason why no member fulfilled a request.
#[derive(Debug, thiserror::Error)]
#[error("etcd at {endpoint}: {reason}")]
pub(crate) struct EtcdError {
    /// The last member that was asked.
    pub(crate) endpoint: String,
    pub(crate) reason: String,
}

impl Etcd {
    /// Reads the certificates. It connects with the first request.
    pub(crate) fn new(args: &EtcdArgs) -> Result<Self, String> {
        let secured = args.etcd_cafile.is_some() || args.etcd_certfile.is_some() || args.etcd_keyfile.is_some();
        let endpoints: Vec<String> =
            args.etcd_endpoints.0.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        if endpoints.is_empty() {
            return Err("--etcd-endpoints has no URL".into());
        }
        for endpoint in &endpoints {
            match endpoint.split_once("://") {
                Some(("https", _)) if args.etcd_cafile.is_some() => {}
                Some(("http", _)) if !secured => {}
                Some(("https", _)) => return Err(format!("{endpoint} needs --etcd-cafile to verify etcd")),
                Some(("http", _)) => return Err(format!("{endpoint} does not use certificates; write https://")),
                Some(_) | None => {
                    return Err(format!("{endpoint:?} is not a URL of etcd such as http://127.0.0.1:2379"));
                }
            }
        }
        Ok(Self {
            endpoints,
            credentials: Rc::new(Credentials {
                usable: RefCell::new(options(args)?),
                args: args.clone(),
                generation: Cell::new(0),
            }),
            at: 0,
            client: None,
            generation: 0,
        })
    }

    pub(crate) fn credentials(&self) -> Rc<Credentials> {
        Rc::clone(&self.credentials)
    }

    /// Returns the member for the next request.
    pub(crate) fn endpoint(&self) -> &str {
        self.endpoints.get(self.at).map_or("", String::as_str)
    }

    /// Sends a request to the members in turn, beginning with the last one that answered, until one fulfils it.
    ///
    /// A request may be executed twice if its answer is lost.
    pub(crate) async fn call<T>(
        &mut self,
        mut act: impl AsyncFnMut(&mut Client) -> Result<T, Error>,
    ) -> Result<T, EtcdError> {
        if self.generation != self.credentials.generation.get() {
            self.generation = self.credentials.generation.get();
            self.client = None;
        }
        let mut left = self.endpoints.len();
        loop {
            let was_connected = self.client.is_some();
            let outcome = timeout(ANSWER, self.attempt(&mut act)).await;
            if was_connected && matches!(outcome, Ok(Err(_))) {
                // The connection may be the cause: its token has expired, or is older than etcd's users.
                self.client = None;
                continue;
            }
            let reason = match outcome {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => self.plain(&error),
                Err(_) => no_answer(ANSWER.as_secs()),
            };
            let error = EtcdError { endpoint: self.endpoint().to_owned(), reason };
            self.use_next_member();
            left = left.saturating_sub(1);
            if left == 0 {
                return Err(error);
            }
        }
    }

    /// Changes to the next member.
    pub(crate) fn use_next_member(&mut self) {
        self.client = None;
        self.at = (self.at + 1) % self.endpoints.len().max(1);
    }

    /// Returns an error of the current member in words for an operator.
    pub(crate) fn plain(&self, error: &Error) -> String {
        plain(error, self.tls())
    }

    /// Returns the use of TLS.
    fn tls(&self) -> Tls {
        match (self.endpoint().starts_with("https:"), self.credentials.args.etcd_certfile.is_some()) {
            (false, _) => Tls::None,
            (true, false) => Tls::ServerOnly,
            (true, true) => Tls::Mutual,
        }
    }

    async fn attempt<T>(&mut self, act: &mut impl AsyncFnMut(&mut Client) -> Result<T, Error>) -> Result<T, Error> {
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                let options = self.credentials.options();
                none.insert(Client::connect([self.endpoints[self.at].as_str()], Some(options)).await?)
            }
        };
        act(client).await
    }
}

impl Credentials {
    /// Reads the files and requests new connections. If the files are unusable, nothing changes.
    ///
    /// # Errors
    /// The option, the file and the reason.
    pub(crate) fn renew(&self) -> Result<(), String> {
        *self.usable.borrow_mut() = options(&self.args)?;
        self.generation.set(self.generation.get() + 1);
        Ok(())
    }

    /// Returns the options by the present files, or by the last usable ones.
    fn options(&self) -> ConnectOptions {
        if let Ok(options) = options(&self.args) {
            *self.usable.borrow_mut() = options;
        }
        self.usable.borrow().clone()
    }
}

/// Reads the files and returns the options of a connection.
fn options(args: &EtcdArgs) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
        .with_keep_alive_while_idle(true)
        // Without this, a member that has lost the others keeps watches open without events.
        .with_require_leader(true);
    if let Some(cafile) = &args.etcd_cafile {
        let authority = read("--etcd-cafile", cafile, CERTIFICATE)?;
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(authority));
        match (&args.etcd_certfile, &args.etcd_keyfile) {
            (Some(cert), Some(key)) => {
                let cert = read("--etcd-certfile", cert, CERTIFICATE)?;
                tls = tls.identity(Identity::from_pem(cert, read("--etcd-keyfile", key, KEY)?));
            }
            (None, None) => {}
            _ => return Err("--etcd-certfile and --etcd-keyfile go together".into()),
        }
        options = options.with_tls(tls);
    }
    match (&args.etcd_username, &args.etcd_password) {
        (Some(name), Some(password)) => options = options.with_user(name, password),
        (None, None) => {}
        _ => return Err("--etcd-username and --etcd-password go together".into()),
    }
    Ok(options)
}

/// The end of the first line of a PEM part.
const CERTIFICATE: &str = "CERTIFICATE";
const KEY: &str = "PRIVATE KEY";

/// Reads a PEM file. It checks the type, because a wrong file would only fail later and look like an error of etcd.
fn read(option: &str, path: &Path, part: &str) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{option} {}: {error}", path.display()))?;
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{part}-----"));
    if text.lines().any(begins) {
        Ok(text)
    } else {
        Err(format!("{option} {}: there is no {part} in PEM form", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Arguments;
    use clap::Parser;

    fn refused(args: &[&str]) -> String {
        let line = [&["flannel-node", "list"], args].concat();
        let Err(reason) = Etcd::new(&Arguments::parse_from(line).etcd) else { panic!("{args:?} is taken") };
        reason
    }

    #[test]
    fn invalid_options_are_refused_before_the_first_request() {
        assert!(refused(&["--etcd-endpoints", "127.0.0.1:2379"]).contains("is not a URL"));
        assert!(refused(&["--etcd-endpoints", "https://127.0.0.1:2379"]).contains("--etcd-cafile"));
        assert!(refused(&["--etcd-cafile", "/dev/null"]).contains("write https://"));
        assert!(refused(&["--etcd-username", "somebody"]).contains("go together"));
        let refused = |more: &[&str]| refused(&[&["--etcd-endpoints", "https://a:1", "--etcd-cafile"], more].concat());
        assert!(
            refused(&["/nowhere"]).starts_with("--etcd-cafile /nowhere: No such file"),
            "{}",
            refused(&["/nowhere"])
        );
        assert_eq!(refused(&["/dev/null"]), "--etcd-cafile /dev/null: there is no CERTIFICATE in PEM form");
        let mut ca = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut ca, b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n").unwrap();
        let ca = ca.path().to_str().unwrap();
        assert!(refused(&[ca, "--etcd-keyfile", ca]).contains("go together"));
        let swapped = [ca, "--etcd-certfile", ca, "--etcd-keyfile", ca];
        assert_eq!(refused(&swapped), format!("--etcd-keyfile {ca}: there is no PRIVATE KEY in PEM form"));
    }
}
