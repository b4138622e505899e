//! One connection to an etcd cluster, which goes to the next member when one does not answer.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::timeout;

use crate::args::EtcdArgs;

/// How long a connection may take: a host that is gone does not refuse it.
const CONNECT: Duration = Duration::from_secs(2);
/// How long an answer may take. An election of etcd's takes one to two seconds.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a connection that says nothing is tried, and for how long then. Watches are silent for hours.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// A cluster.
#[derive(Clone)]
pub(crate) struct Etcd {
    endpoints: Vec<String>,
    options: ConnectOptions,
    /// Whether etcd is shown a certificate.
    certified: bool,
    /// Which member is asked.
    at: usize,
    client: Option<Client>,
}

/// Why no member did what was asked.
#[derive(Debug, thiserror::Error)]
#[error("etcd at {endpoint}: {reason}")]
pub(crate) struct EtcdError {
    /// The member that was asked last.
    pub(crate) endpoint: String,
    pub(crate) reason: String,
}

impl Etcd {
    /// Reads the certificates; connects when it is first asked.
    pub(crate) fn new(args: &EtcdArgs) -> Result<Self, String> {
        let secured = args.etcd_cafile.is_some() || args.etcd_certfile.is_some() || args.etcd_keyfile.is_some();
        let endpoints: Vec<String> =
            args.etcd_endpoints.iter().map(|url| url.trim().trim_end_matches('/').to_owned()).collect();
        for endpoint in &endpoints {
            match endpoint.split_once("://") {
                Some(("https", _)) if args.etcd_cafile.is_some() => {}
                Some(("http", _)) if !secured => {}
                Some(("https", _)) => return Err(format!("{endpoint} needs --etcd-cafile to know etcd by")),
                Some(("http", _)) => return Err(format!("{endpoint} has no use for certificates; write https://")),
                Some(_) | None => return Err(format!("{endpoint:?} is no URL of etcd, like http://127.0.0.1:2379")),
            }
        }
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            // A member that lost the others answers watches with silence unless it is asked to say so.
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

    /// The member that is asked next.
    pub(crate) fn endpoint(&self) -> &str {
        self.endpoints.get(self.at).map_or("", String::as_str)
    }

    /// Asks the members in turn, beginning with the one that answered last, until one does what is asked.
    ///
    /// What is asked may be done twice if its answer is lost.
    pub(crate) async fn call<T>(
        &mut self,
        mut act: impl AsyncFnMut(&mut Client) -> Result<T, Error>,
    ) -> Result<T, EtcdError> {
        let mut left = self.endpoints.len();
        loop {
            let was_connected = self.client.is_some();
            let outcome = timeout(ANSWER, self.attempt(&mut act)).await;
            if was_connected && matches!(outcome, Ok(Err(_))) {
                // Maybe not the member's fault but the connection's: its token has expired, or is older than etcd's users.
                self.client = None;
                continue;
            }
            let reason = match outcome {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => self.hinted(&error),
                Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
            };
            let error = EtcdError { endpoint: self.endpoint().to_owned(), reason };
            self.go_on();
            left = left.saturating_sub(1);
            if left == 0 {
                return Err(error);
            }
        }
    }

    /// Turns to the next member.
    pub(crate) fn go_on(&mut self) {
        self.client = None;
        self.at = (self.at + 1) % self.endpoints.len().max(1);
    }

    /// A connection that breaks early is most often one that etcd ends because nobody showed a certificate, or spoke TLS at all.
    fn hinted(&self, error: &Error) -> String {
        let reason = explained(error);
        let hint = match self.endpoint().split_once("://") {
            Some(("https", _)) if self.certified => "maybe etcd does not trust who signed --etcd-certfile",
            Some(("https", _)) => "if etcd asks for certificates, name yours with --etcd-certfile and --etcd-keyfile",
            _ => "if etcd speaks TLS, write https:// and name --etcd-cafile",
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

/// What the first line of a part in PEM form ends with.
const CERTIFICATE: &str = "CERTIFICATE";
const KEY: &str = "PRIVATE KEY";

/// Reads a file in PEM form. One without what it is for would be found out only when etcd is asked, and blamed on etcd.
fn read(option: &str, path: &Path, part: &str) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{option} {}: {error}", path.display()))?;
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{part}-----"));
    if text.lines().any(begins) {
        Ok(text)
    } else {
        Err(format!("{option} {}: there is no {part} in PEM form", path.display()))
    }
}

/// The innermost reason, which is the one that helps: the outer ones say "transport error".
pub(crate) fn explained(error: &Error) -> String {
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
    fn what_cannot_work_is_refused_before_anything_is_tried() {
        assert!(refused(&["--etcd-endpoints", "127.0.0.1:2379"]).contains("is no URL"));
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
