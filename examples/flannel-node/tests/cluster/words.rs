//! Errors of a real etcd in words for an operator. Each names the endpoint, the cause and what to do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use etcd_client::{AlarmAction, AlarmType};
use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use testbed::Namespace;

use crate::etcd::{ADDRESS, Etcd};
use crate::hosts::Site;
use crate::node::{Node, run};
use crate::operator::Operator;
use crate::tls::{Tls, shown};
use crate::wait_until;

/// Words of the libraries that no operator has to know.
const JARGON: [&str; 14] = [
    "h2 ",
    "http2",
    "transport",
    "alert",
    "handshake eof",
    "broken pipe",
    "os error",
    "etcdserver",
    "mvcc",
    "badsignature",
    "unknownissuer",
    "grpc",
    "unix)",
    "deadline",
];

/// Returns a namespace with etcd's address.
fn switch() -> Namespace {
    let switch = Namespace::new().unwrap();
    switch.add_bridge("br0").unwrap();
    switch.add_address("br0", Ipv4Net::new_assert(ADDRESS, 24)).unwrap();
    switch
}

/// Runs a command that asks etcd, and checks its error.
fn fails(switch: &Namespace, command: &[&str], args: &[String], endpoint: &str, words: [&str; 2]) {
    let command: Vec<_> = command.iter().map(|word| (*word).to_owned()).collect();
    let (status, _, errors) = run(switch, &[&command, args].concat(), None);
    assert_eq!(status.code(), Some(1), "{args:?}: {errors}");
    assert!(errors.contains(&format!("etcd at {endpoint}: ")), "{args:?}: {errors}");
    for word in words {
        assert!(errors.contains(word), "{args:?}: {word:?} is missing: {errors}");
    }
    let jargon = JARGON.iter().find(|jargon| errors.to_lowercase().contains(*jargon));
    assert_eq!(jargon, None, "{args:?}: {errors}");
}

fn list_fails(switch: &Namespace, args: &[String], endpoint: &str, words: [&str; 2]) {
    fails(switch, &["list"], args, endpoint, words);
}

fn at(url: &str) -> Vec<String> {
    vec![format!("--etcd-endpoints={url}")]
}

fn wait_for(switch: &Namespace) {
    wait_until("etcd to listen", || switch.enter(|| TcpStream::connect((ADDRESS, 2379)).is_ok()));
}

#[test]
fn addresses_without_etcd_are_named_with_the_cause() {
    let switch = switch();
    for (url, words) in [
        ("http://10.168.0.1:9", ["nothing listens there (connection refused)", "--etcd-endpoints"]),
        ("http://10.168.0.99:2379", ["no connection; the host may be down", "firewall"]),
        ("http://10.169.0.99:2379", ["no route there", "routes of this host"]),
        ("http://no-such-host.invalid:2379", ["its name has no address", "name service"]),
    ] {
        list_fails(&switch, &at(url), url, words);
    }
    // The answers of other programs, among them an etcd of version 2, and of one that says nothing.
    let not_etcd = ["no etcd with the version 3 interface", "version 2 is not supported"];
    for (answer, words) in [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", not_etcd),
        ("HTTP/1.1 400 Bad Request\r\n\r\n400 Bad Request", not_etcd),
        ("SSH-2.0-OpenSSH_9.2p1\r\n", not_etcd),
        ("", ["it closed the connection", "if it uses TLS, write https://"]),
    ] {
        let listener = switch.enter(|| TcpListener::bind((ADDRESS, 0))).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 100]);
            stream.write_all(answer.as_bytes()).unwrap();
            // Unread data would reset the connection before the answer is read.
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        list_fails(&switch, &at(&url), &url, words);
        server.join().unwrap();
    }
}

#[test]
fn users_a_full_database_and_a_suspended_etcd_are_named() {
    let switch = switch();
    let mut etcd = Etcd::start(&switch, 1, false);
    let mut operator = Operator::of(&etcd, &switch);
    let (endpoint, args) = (etcd.endpoints().remove(0), etcd.args());
    let user = |name: &str, password: &str| {
        [args.clone(), vec![format!("--etcd-username={name}"), format!("--etcd-password={password}")]].concat()
    };
    list_fails(&switch, &user("root", "secret"), &endpoint, ["it has no users", "omit --etcd-username"]);
    operator.act(async |client| client.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.ok());
    let write = ["set-config", "--network=100.96.0.0/16"];
    fails(&switch, &write, &args, &endpoint, ["its database is full", "alarm disarm"]);
    operator.act(async |client| client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, None).await.ok());
    operator.act(async |client| {
        let _ = client.user_add("root", "secret", None).await;
        let _ = client.user_add("guest", "secret", None).await;
        let _ = client.role_add("root").await;
        let _ = client.user_grant_role("root", "root").await;
        client.auth_enable().await.ok()
    });
    list_fails(&switch, &args, &endpoint, ["it requires a user", "FLANNELD_ETCD_PASSWORD"]);
    for (name, password) in [("root", "wrong"), ("nobody", "secret")] {
        list_fails(&switch, &user(name, password), &endpoint, ["user or password is wrong", "FLANNELD_ETCD_PASSWORD"]);
    }
    list_fails(&switch, &user("guest", "secret"), &endpoint, ["may not use the keys", "grant it a role"]);
    etcd.signal_member(0, Signal::SIGSTOP);
    list_fails(&switch, &args, &endpoint, ["no answer within 5 s", "suspended"]);
}

#[test]
fn certificates_are_named_with_what_is_wrong() {
    let switch = switch();
    let etcd = Etcd::start_with(&switch, 1, Some(Tls::with_expired("10.168.0.1", "client")));
    wait_for(&switch);
    let (own, other) = (etcd.tls.as_ref().unwrap(), Tls::new("10.168.0.1"));
    let url = "https://10.168.0.1:2379";
    let args = |ca: &Tls, client: Option<&Tls>| {
        let mut args = [at(url), vec![format!("--etcd-cafile={}", shown(&ca.path("ca.pem")))]].concat();
        for (name, file) in [("certfile", "client.pem"), ("keyfile", "client.key")] {
            args.extend(client.map(|tls| format!("--etcd-{name}={}", shown(&tls.path(file)))));
        }
        args
    };
    // etcd closes the connection right after it has said why, and the reason may be lost.
    let refused = ["it ", "--etcd-certfile"];
    list_fails(
        &switch,
        &args(&other, Some(&other)),
        url,
        ["not signed by an authority in --etcd-cafile", "use the authority"],
    );
    list_fails(&switch, &args(own, None), url, ["client certificate", "--etcd-certfile and --etcd-keyfile"]);
    list_fails(&switch, &args(own, Some(&other)), url, refused);
    list_fails(&switch, &args(own, Some(own)), url, refused);
    let plain = "http://10.168.0.1:2379";
    list_fails(&switch, &at(plain), plain, ["it closed the connection", "write https:// and use --etcd-cafile"]);
    for (tls, words) in [
        (Some(Tls::new("10.168.0.9")), ["its certificate is for another name (10.168.0.9)", "--etcd-endpoints"]),
        (Some(Tls::with_expired("10.168.0.1", "server")), ["its certificate has expired", "clock"]),
        // It may close the connection before its answer is read.
        (None, ["TLS", "write http://"]),
    ] {
        let switch = self::switch();
        let etcd = Etcd::start_with(&switch, 1, tls);
        wait_for(&switch);
        let args = if etcd.tls.is_some() { etcd.args() } else { args(&other, Some(&other)) };
        list_fails(&switch, &args, url, words);
    }
}

/// Two of three members fail, and then the last one while a node watches it.
#[test]
fn the_loss_of_members_is_named() {
    let mut site = Site::new(1, 3, false);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let mut node = Node::start(&site.hosts[0], &site.etcd);
    let (args, last) = (site.etcd.args(), site.etcd.endpoints().remove(2));
    site.etcd.kill_member(0);
    site.etcd.kill_member(1);
    let words = ["too few members of etcd run", "start more than half of them"];
    wait_until("the last member to have no leader", || {
        let (_, _, errors) = run(&site.switch, &[vec!["list".to_owned()], args.clone()].concat(), None);
        errors.contains(words[0])
    });
    list_fails(&site.switch, &args, &last, words);
    site.etcd.kill_member(2);
    list_fails(&site.switch, &args, &last, ["nothing listens there (connection refused)", "start etcd"]);
    let stale = node.says_that("stale", |said| said["reason"].to_string().contains("nothing listens there"));
    assert!(stale["reason"].to_string().contains("etcd at http://10.168.0.1:23"), "{stale}");
    let reasons: String = node.said.iter().map(|said| said["reason"].to_string().to_lowercase()).collect();
    assert_eq!(JARGON.iter().find(|jargon| reasons.contains(*jargon)), None, "{:#?}", node.said);
    node.stop();
}
