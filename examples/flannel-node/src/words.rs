//! Errors of etcd's client in words for an operator: the cause, and what to do about it.
//!
//! The client reports most causes as text only. A test produces each of them with a real etcd.

use std::error::Error as _;

use etcd_client::Error;

/// The use of TLS on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    None,
    /// Without a client certificate.
    ServerOnly,
    Mutual,
}

/// Returns the words for an error. Without words for it, the innermost cause.
pub(crate) fn plain(error: &Error, tls: Tls) -> String {
    let causes = causes(error);
    let text = causes.join(": ").to_lowercase();
    of_certificate(&causes, &text)
        .or_else(|| of_connection(&text, tls))
        .or_else(|| of_answer(&text))
        .unwrap_or_else(|| innermost(&causes))
}

/// Words for the absence of an answer.
pub(crate) fn no_answer(seconds: u64) -> String {
    format!("no answer within {seconds} s; etcd may be overloaded or suspended")
}

/// Returns the texts of an error and of its causes.
fn causes(error: &Error) -> Vec<String> {
    let (outer, mut cause) = if let Error::TransportError(error) = error {
        (error.to_string(), error.source())
    } else if let Error::GRpcStatus(status) = error {
        (status.message().to_owned(), status.source())
    } else {
        (error.to_string(), None)
    };
    let mut causes = vec![outer];
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    causes
}

fn innermost(causes: &[String]) -> String {
    match causes {
        [outer, .., inner] if !outer.contains(inner) => format!("{outer}: {inner}"),
        [outer, ..] => outer.clone(),
        [] => String::new(),
    }
}

/// Words for a certificate of etcd that this node does not accept.
fn of_certificate(causes: &[String], text: &str) -> Option<String> {
    const NOT_ACCEPTED: &str = "invalid peer certificate";
    if !text.contains(NOT_ACCEPTED) {
        return None;
    }
    let words = if text.contains("not valid for name") {
        let names = causes.last().and_then(|cause| cause.split_once("only valid for ")).map(|(_, names)| bare(names));
        format!(
            "its certificate is for another name ({}); use that in --etcd-endpoints, or add the name there to the certificate",
            names.as_deref().unwrap_or("unknown")
        )
    } else if text.contains("expired") {
        "its certificate has expired; renew it, or correct this host's clock".into()
    } else if text.contains("not valid yet") {
        "its certificate is not valid yet; correct this host's clock, or that of the authority".into()
    } else if text.contains("unknownissuer") || text.contains("badsignature") {
        "its certificate is not signed by an authority in --etcd-cafile; use the authority of this etcd".into()
    } else {
        let cause = causes.last().and_then(|cause| cause.split_once(": ")).map_or("", |(_, cause)| cause);
        format!("its certificate is not acceptable ({cause}); issue another one for etcd")
    };
    Some(words)
}

/// Returns names without the names of their types.
fn bare(names: &str) -> String {
    names.replace("IpAddress(", "").replace("DnsName(", "").replace([')', '"'], "")
}

/// Words for a connection that does not come about or that ends.
fn of_connection(text: &str, tls: Tls) -> Option<String> {
    let is = |part: &str| text.contains(part);
    let words = if is("connection refused") {
        "nothing listens there (connection refused); start etcd, or correct --etcd-endpoints"
    } else if is("tcp connect error") && (is("deadline has elapsed") || is("timed out")) {
        "no connection; the host may be down, or a firewall may drop the packets"
    } else if is("unreachable") || is("no route to host") {
        "this host has no route there; correct --etcd-endpoints, or the routes of this host"
    } else if is("failed to lookup address") || is("dns error") {
        "its name has no address; correct --etcd-endpoints, or the name service of this host"
    } else if is("handshake eof") || is("corrupt message") {
        "it does not answer with TLS; if it uses none, write http:// and omit the certificates"
    } else if is("fatal alert") && (is("certificate") || is("unknownca") || is("accessdenied")) {
        match tls {
            Tls::Mutual => {
                "it refuses the client certificate; use one in --etcd-certfile that its authority signed and that is valid"
            }
            Tls::None | Tls::ServerOnly => "it requires a client certificate; use --etcd-certfile and --etcd-keyfile",
        }
    } else if is("http2 error") || is("http status") || is("unimplemented") {
        "no etcd with the version 3 interface is there; correct --etcd-endpoints, or update etcd (version 2 is not supported)"
    } else if is("broken pipe") || is("stream closed") || is("connection closed") || is("connection reset") {
        match tls {
            Tls::None => "it closed the connection; if it uses TLS, write https:// and use --etcd-cafile",
            Tls::ServerOnly => {
                "it closed the connection; if it requires client certificates, use --etcd-certfile and --etcd-keyfile; if it does not use TLS, write http://"
            }
            Tls::Mutual => {
                "it closed the connection; it may have stopped, may not trust the authority of --etcd-certfile, or may not use TLS: then write http://"
            }
        }
    } else {
        return None;
    };
    Some(words.into())
}

/// Words for an error that etcd answers.
fn of_answer(text: &str) -> Option<String> {
    let words = [
        ("authentication is not enabled", "it has no users; omit --etcd-username and --etcd-password"),
        ("user name is empty", "it requires a user; use --etcd-username and FLANNELD_ETCD_PASSWORD"),
        (
            "authentication failed",
            "user or password is wrong (authentication failed); correct --etcd-username and FLANNELD_ETCD_PASSWORD",
        ),
        (
            "permission denied",
            "the user may not use the keys below --etcd-prefix; grant it a role that reads and writes them",
        ),
        ("no leader", "too few members of etcd run (no leader); start more than half of them"),
        ("request timed out", "its members do not reach each other in time; check that more than half of them run"),
        ("database space exceeded", "its database is full; compact and defragment it, then run `etcdctl alarm disarm`"),
    ];
    words.iter().find(|(part, _)| text.contains(part)).map(|(_, words)| (*words).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a real etcd the alert may get lost, because the connection ends right after it.
    #[test]
    fn alerts_about_a_client_certificate_name_it() {
        let words = |alert: &str, tls| {
            of_connection(&format!("transport error: connection error: received fatal alert: {alert}"), tls)
        };
        for alert in ["badcertificate", "certificaterequired", "certificateexpired", "unknownca"] {
            assert!(words(alert, Tls::Mutual).unwrap().contains("refuses the client certificate"), "{alert}");
            assert!(words(alert, Tls::ServerOnly).unwrap().contains("requires a client certificate"), "{alert}");
        }
        assert_eq!(words("protocolversion", Tls::Mutual), None);
    }

    #[test]
    fn unknown_errors_are_shown_by_their_innermost_cause() {
        let causes = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(innermost(&causes(&["transport error", "connect error", "too hot"])), "transport error: too hot");
        assert_eq!(innermost(&causes(&["it is too hot", "too hot"])), "it is too hot");
    }
}
