//! One connection to an etcd cluster, which changes to the next member if one does not answer.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::timeout;

use crate::args::EtcdArgs;

/// The timeout of a connection attempt. A host that is down does not refuse it.
const CONNECT: Duration = Duration::from_secs(2);
/// The timeout of a request. An election of etcd takes one to two seconds.
const ANSWER: Duration = Duration::from_secs(5);
/// The interval and the timeout of keep-alive messages on an idle connection. Watches may be idle for hours.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// The client of a cluster.
#[derive(Clone)]
pub(crate) struct Etcd {
    endpoints: Vec<String>,
    options: ConnectOptions,
    /// A client certificate is in use.
    certified: bool,
    /// The index of the current member.
    at: usize,
    client: Option<Client>,
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
        Ok(Self { endpoints, options, certified: args.etcd_certfile.is_some(), at: 0, client: None })
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
                Ok(Err(error)) => self.with_hint(&error),
                Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
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

    /// Adds a hint to an error. etcd closes connections early that lack a client certificate or use TLS wrongly.
    fn with_hint(&self, error: &Error) -> String {
        let reason = root_cause(error);
        let hint = match self.endpoint().split_once("://") {
            Some(("https", _)) if self.certified => "etcd may not trust the certificate authority of --etcd-certfile",
            Some(("https", _)) => "if etcd requires client certificates, use --etcd-certfile and --etcd-keyfile",
            _ => "if etcd uses TLS, write https:// and use --etcd-cafile",
        };
        let broke =
            reason.contains("stream closed") || reason.contains("connection closed") || reason.contains("alert");
        if broke { format!("{reason}; {hint}") } else { reason }
    }

    async fn attempt<T>(&mut self, act: &mut impl AsyncFnMut(&mut Client) -> Result<T, Error>) -> Result<T, Error> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(Client::connect([self.endpoints[self.at].as_str()], Some(self.options.clone())).await?),
        };
        act(client).await
    }
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

/// Returns the innermost reason. The outer ones say only "transport error".
pub(crate) fn root_cause(error: &Error) -> String {
    let (outer, mut cause) = if let Error::TransportError(error) = error {
        (error.to_string(), error.source())
    } else if let Error::GRpcStatus(status) = error {
        (status.message().to_owned(), status.source())
    } else {
        return error.to_string();
    };
    let mut innermost = None;
    while let Some(inner) = cause {
        innermost = Some(inner.to_string());
        cause = inner.source();
    }
    match innermost {
        Some(inner) if !outer.contains(&inner) => format!("{outer}: {inner}"),
        _ => outer,
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
