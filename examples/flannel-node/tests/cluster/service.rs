//! A node under a service manager: the watchdog of a node that is stuck, and the request to reload.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use testbed::Injection;

use crate::drop_in::{Listener, SECURED, Unit, start};
use crate::hosts::{Host, Site};
use crate::operator::{Operator, PREFIX};

fn health(host: &Host, path: &str) -> String {
    host.namespace.enter(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 2401)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response.split(' ').nth(1).unwrap().to_owned()
    })
}

/// The thread that forwards does not return from a system call. The thread that serves the watchdog is well.
#[test]
fn the_watchdog_is_not_served_while_packets_wait_in_vain() {
    let site = Site::new(1, 1, false);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let host = &site.hosts[0];
    let listener = Listener::new();
    let unit = Unit {
        variables: &["FLANNELD_ETCD_ENDPOINTS={etcd}", "FLANNELD_IFACE=eth0", "FLANNELD_SUBNET_FILE={file}"],
        line: "-healthz-ip=127.0.0.1 -healthz-port=2401",
        warnings: &[],
    };
    let mut node = start(&site, &unit, &listener, &["WATCHDOG_USEC=600000"]);
    assert_eq!(listener.next(), "READY=1");
    node.says("ready");
    let socket = host.namespace.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let send = || socket.send_to(b"from nobody", (host.address, 8285)).unwrap();
    // Neither an idle node nor a busy one is stuck.
    for _ in 0..4 {
        assert_eq!(listener.next(), "WATCHDOG=1");
        send();
    }
    assert_eq!([health(host, "/healthz"), health(host, "/readyz")], ["200", "200"]);
    let stuck = Injection::begin(&host.namespace, node.child.id(), &[("recvmmsg", "delay_enter=60000000")]).unwrap();
    // The first is read before the call that takes long, or by it.
    for _ in 0..3 {
        send();
    }
    let warning = node.says("warning");
    assert!(warning["reason"].as_str().unwrap().contains("packets wait, and none is read"), "{warning}");
    assert_eq!([health(host, "/healthz"), health(host, "/readyz")], ["503", "503"]);
    while listener.within(Duration::from_millis(50)).is_some() {}
    assert_eq!(listener.within(Duration::from_millis(1500)), None, "systemd restarts it");
    drop(stuck);
    let warning = node.says("warning");
    assert!(warning["reason"].as_str().unwrap().contains("forwarding continues"), "{warning}");
    assert_eq!(listener.next(), "WATCHDOG=1");
    assert_eq!([health(host, "/healthz"), health(host, "/readyz")], ["200", "200"]);
    node.stop();
}

/// flanneld ends by this signal.
#[test]
fn a_request_to_reload_reads_files_and_config_again() {
    let site = Site::new(1, 1, true);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    let tls = site.etcd.tls.as_ref().unwrap();
    let listener = Listener::new();
    let mut node = start(&site, &SECURED[1], &listener, &[]);
    node.says_that("waiting", |said| said["reason"].as_str().unwrap().contains("no network config"));
    node.child.signal(Signal::SIGHUP).unwrap();
    node.says("reloaded");
    assert_eq!(listener.within(Duration::from_millis(100)), None, "READY=1 would end the start");
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    assert_eq!(listener.next(), "READY=1");
    node.says("ready");
    let reloads = |listener: &Listener| {
        let message = listener.next();
        let micros = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("as systemd wants it");
        assert!(micros.parse::<u64>().unwrap() > 0);
        assert_eq!(listener.next(), "READY=1");
    };
    // Nothing has changed.
    node.child.signal(Signal::SIGHUP).unwrap();
    reloads(&listener);
    node.says("reloaded");
    node.listen(Duration::from_millis(100));
    assert_eq!(node.count("warning"), 0, "{:#?}", node.said);
    for (config, words) in [
        (r#"{"Network":"100.96.0.0/16","Backend":{"Port":7890}}"#, "has changed; restart the node"),
        ("{", "cannot be used"),
    ] {
        operator.set_config(config);
        node.child.signal(Signal::SIGHUP).unwrap();
        reloads(&listener);
        let warning = node.says("warning");
        assert!(warning["reason"].as_str().unwrap().contains(words), "{warning}");
    }
    operator.delete(&format!("{PREFIX}/config"));
    node.child.signal(Signal::SIGHUP).unwrap();
    reloads(&listener);
    let warning = node.says("warning");
    assert!(warning["reason"].as_str().unwrap().contains("no network config at /coreos.com"), "{warning}");
    // A file that is being replaced.
    let (file, key) = (tls.path("client.key"), std::fs::read(tls.path("client.key")).unwrap());
    std::fs::write(&file, "").unwrap();
    node.child.signal(Signal::SIGHUP).unwrap();
    reloads(&listener);
    let warning = node.says("warning");
    let reason = warning["reason"].as_str().unwrap();
    assert!(reason.contains("no PRIVATE KEY in PEM form; the previous files stay in use"), "{warning}");
    std::fs::write(&file, key).unwrap();
    // The connection with the new files is refused, which an operator has to learn now and not at the next outage.
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    tls.renew("10.168.0.1");
    node.child.signal(Signal::SIGHUP).unwrap();
    reloads(&listener);
    let warning = node.says("warning");
    assert!(warning["reason"].as_str().unwrap().contains("the network config was not read again"), "{warning}");
    node.stop();
}

/// As with flanneld, a certificate that is renewed while the node runs needs no signal.
#[test]
fn renewed_certificates_are_used_by_the_next_connection() {
    let mut site = Site::new(1, 1, true);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let listener = Listener::new();
    let mut node = start(&site, &SECURED[1], &listener, &[]);
    node.says("ready");
    site.etcd.tls.as_ref().unwrap().renew("10.168.0.1");
    site.etcd.kill_all();
    node.says("stale");
    site.etcd.start_all();
    node.says("heard");
    node.stop();
}
