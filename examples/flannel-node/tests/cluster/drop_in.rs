//! Starts in place of flanneld: command lines in the shape of public unit files, with the notify socket of systemd.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use ipnet::Ipv4Net;
use nix::sys::signal::Signal;
use testbed::Child;

use crate::etcd::tied_to_its_parent;
use crate::hosts::Site;
use crate::node::{Node, program, run};
use crate::operator::Operator;
use crate::tls::shown;
use crate::{SOON, wait_until};

/// A unit: its variables, and its command line without the program.
pub(crate) struct Unit {
    pub(crate) variables: &'static [&'static str],
    pub(crate) line: &'static str,
    /// Parts of the expected warnings.
    pub(crate) warnings: &'static [&'static str],
}

/// Units without TLS. `{etcd}` stands for an endpoint and `{file}` for the subnet file.
const PLAIN: &[Unit] = &[
    Unit {
        variables: &[],
        line: "-etcd-endpoints={etcd} -etcd-prefix=/coreos.com/network -subnet-file={file}",
        warnings: &[],
    },
    Unit {
        variables: &["FLANNELD_ETCD_ENDPOINTS={etcd}", "FLANNELD_IFACE=eth0", "FLANNELD_SUBNET_FILE={file}"],
        line: "",
        warnings: &[],
    },
    Unit {
        variables: &[
            "FLANNELD_IP_MASQ=true",
            "FLANNELD_SUBNET_FILE={file}",
            "FLANNEL_ENV_FILE=/run/flannel/options.env",
        ],
        line: "--etcd-endpoints {etcd}, --iface ::1 --iface eth1 --iface 10.168.0.2",
        warnings: &[],
    },
    Unit {
        variables: &["FLANNELD_OPTIONS=-v"],
        line: "-ip-masq -iface-regex=^10[.]168[.] -etcd-endpoints={etcd} -subnet-file {file} -v 2 -logtostderr=true",
        warnings: &["--logtostderr", "--v=2", "FLANNELD_OPTIONS"],
    },
    Unit {
        variables: &[],
        line: "-iface-can-reach=10.168.0.1 --public-ip= -etcd-endpoints={etcd} -subnet-file={file} \
               --iptables-forward-rules=false --healthz-ip=10.168.0.2 -healthz-port=2401",
        warnings: &[],
    },
];

/// Units with TLS. `{ca}`, `{cert}` and `{key}` stand for files.
pub(crate) const SECURED: &[Unit] = &[
    Unit {
        variables: &[],
        line: "--ip-masq --etcd-endpoints={etcd} -etcd-cafile={ca} -etcd-certfile={cert} -etcd-keyfile={key} \
               --subnet-file={file}",
        warnings: &[],
    },
    Unit {
        variables: &["FLANNELD_PUBLIC_IP=10.168.0.2", "FLANNELD_ETCD_USERNAME=", "FLANNELD_ETCD_PASSWORD="],
        line: "-etcd-cafile={ca} -etcd-certfile={cert} -etcd-keyfile={key} -etcd-endpoints={etcd} \
               -etcd-prefix=/coreos.com/network -iface=eth0 -subnet-file={file}",
        warnings: &[],
    },
    Unit {
        variables: &[
            "FLANNELD_ETCD_ENDPOINTS={etcd}",
            "FLANNELD_ETCD_CAFILE={ca}",
            "FLANNELD_ETCD_CERTFILE={cert}",
            "FLANNELD_ETCD_KEYFILE={key}",
            "FLANNELD_SUBNET_FILE={file}",
            "FLANNELD_V=4",
        ],
        line: "-iface=10.168.0.2",
        warnings: &["FLANNELD_V=4"],
    },
    Unit {
        variables: &[],
        line: "-public-ip=10.168.0.2 -etcd-endpoints={etcd} -etcd-keyfile={key} -etcd-certfile={cert} \
               -etcd-cafile={ca} -iface=eth0 -subnet-file={file} -healthz-port=2401 -alsologtostderr=true",
        warnings: &["--alsologtostderr"],
    },
    Unit {
        variables: &[],
        line: "--kube-subnet-mgr=false --iface-regex=eth[1-9] --iface-regex=eth. --etcd-endpoints={etcd},{etcd}, \
               --etcd-cafile={ca} --etcd-certfile={cert} --etcd-keyfile={key} --subnet-file={file} \
               --subnet-lease-renew-margin=120 --ip-masq=false",
        warnings: &[],
    },
];

/// A notify socket like systemd's.
pub(crate) struct Listener {
    socket: UnixDatagram,
    name: String,
    _directory: tempfile::TempDir,
}

impl Listener {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        Self { socket: UnixDatagram::bind(&path).unwrap(), name: shown(&path), _directory: directory }
    }

    pub(crate) fn next(&self) -> String {
        self.within(SOON).expect("a message")
    }

    pub(crate) fn within(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut message = [0; 256];
        let len = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..len].to_vec()).unwrap())
    }
}

/// Starts the node as a unit does.
pub(crate) fn start(site: &Site, unit: &Unit, listener: &Listener, more: &[&str]) -> Node {
    let host = &site.hosts[0];
    let args = site.etcd.args();
    let arg = |name: &str| {
        args.iter().find_map(|arg| arg.strip_prefix(&format!("--etcd-{name}="))).unwrap_or_default().to_owned()
    };
    let filled = |text: &str| {
        text.replace("{etcd}", &arg("endpoints"))
            .replace("{ca}", &arg("cafile"))
            .replace("{cert}", &arg("certfile"))
            .replace("{key}", &arg("keyfile"))
            .replace("{file}", &shown(&host.subnet_file()))
    };
    let mut command = tied_to_its_parent("env");
    command.arg(format!("NOTIFY_SOCKET={}", listener.name)).args(more);
    command.args(unit.variables.iter().map(|variable| filled(variable))).arg(program());
    command.args(unit.line.split_whitespace().map(filled)).arg("-log-format=json");
    Node { child: Child::spawn(&host.namespace, command).unwrap(), said: Vec::new() }
}

fn start_all(units: &[Unit], secured: bool) {
    let site = Site::new(1, 1, secured);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let host = &site.hosts[0];
    let mut subnet = None;
    for unit in units {
        let listener = Listener::new();
        let mut node = start(&site, unit, &listener, &[]);
        assert_eq!(listener.next(), "READY=1", "{}", unit.line);
        assert!(host.subnet_file().exists(), "it is written before: {}", unit.line);
        assert!(host.namespace.links().unwrap().contains(&"flannel0".to_owned()), "{}", unit.line);
        let ready = node.says("ready");
        assert_eq!(ready["listen"], "10.168.0.2:8285", "{}", unit.line);
        let lease = node.lease();
        assert_eq!(*subnet.get_or_insert(lease), lease, "the lease is kept");
        let warnings: Vec<_> = node.said.iter().filter(|said| said["event"] == "warning").collect();
        assert_eq!(warnings.len(), unit.warnings.len(), "{}: {warnings:#?}", unit.line);
        for (warning, part) in warnings.iter().zip(unit.warnings) {
            assert!(warning["reason"].as_str().unwrap().contains(part), "{}: {warning}", unit.line);
        }
        assert_eq!(listener.within(Duration::from_millis(50)), None, "no watchdog without WATCHDOG_USEC");
        node.stop();
        assert_eq!(listener.next(), "STOPPING=1", "{}", unit.line);
        std::fs::remove_dir_all(host.subnet_file().parent().unwrap()).unwrap();
    }
}

#[test]
fn the_node_starts_by_the_unit_files_of_flanneld() {
    start_all(PLAIN, false);
}

#[test]
fn the_node_starts_by_the_unit_files_of_flanneld_with_tls() {
    start_all(SECURED, true);
}

/// Ready is not sent while the node waits, and the watchdog is served twice per timeout. An abstract socket works too.
#[test]
fn systemd_learns_when_the_node_forwards_lives_and_stops() {
    let site = Site::new(1, 1, false);
    let name = format!("loden/{}", std::process::id());
    let socket = site.hosts[0]
        .namespace
        .enter(|| UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap());
    let listener = Listener { socket, name: format!("@{name}"), _directory: tempfile::tempdir().unwrap() };
    let mut node = start(&site, &PLAIN[0], &listener, &["WATCHDOG_USEC=400000"]);
    node.says("waiting");
    assert_eq!(listener.within(Duration::from_millis(500)), None);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    assert_eq!(listener.next(), "READY=1");
    let begin = std::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(listener.next(), "WATCHDOG=1");
    }
    let elapsed = begin.elapsed();
    assert!(elapsed > Duration::from_millis(1500) && elapsed < SOON, "{elapsed:?}");
    node.says("ready");
    node.child.signal(Signal::SIGTERM).unwrap();
    while listener.next() != "STOPPING=1" {}
    assert!(node.ends().success());
    // A socket that nobody reads does not stop the node.
    let gone = Listener::new();
    drop(std::fs::remove_file(&gone.name));
    let mut node = start(&site, &PLAIN[0], &gone, &[]);
    node.says_that("warning", |said| said["reason"].as_str().unwrap().contains("NOTIFY_SOCKET"));
    node.stop();
}

#[test]
fn the_health_server_answers_before_and_after_the_node_is_ready() {
    let site = Site::new(1, 1, false);
    let mut node = Node::spawn(&site.hosts[0], &site.etcd, &["--healthz-ip=127.0.0.1", "--healthz-port=2401"]);
    node.says("waiting");
    let get = |path: &str| {
        site.hosts[0].namespace.enter(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 2401)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).unwrap();
            response.split(' ').nth(1).unwrap().to_owned()
        })
    };
    assert_eq!([get("/healthz"), get("/readyz"), get("/")], ["200", "503", "404"]);
    // Clients that send nothing do not keep others from an answer.
    let _idle: Vec<_> = site.hosts[0]
        .namespace
        .enter(|| (0..4).map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, 2401)).unwrap()).collect());
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    node.says("ready");
    wait_until("the node to be ready", || get("/readyz") == "200");
    assert_eq!(get("/healthz"), "200");
    let (status, _, errors) = run(
        &site.hosts[0].namespace,
        &[site.etcd.args(), vec!["--iface=eth0".into(), "--healthz-ip=127.0.0.1".into(), "--healthz-port=2401".into()]]
            .concat(),
        None,
    );
    assert_eq!(status.code(), Some(2), "{errors}");
    assert!(errors.contains("health server cannot listen on 127.0.0.1:2401"), "{errors}");
    node.stop();
}

/// Without a named interface, the default route determines it. Without that route, the node ends.
#[test]
fn the_default_route_names_the_interface() {
    let site = Site::new(1, 1, false);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let host = &site.hosts[0].namespace;
    host.add_address("lo", "10.168.9.9/32".parse().unwrap()).unwrap();
    let listener = Listener::new();
    let mut node = start(&site, &PLAIN[0], &listener, &[]);
    assert_eq!(node.says("ready")["listen"], "10.168.0.2:8285");
    node.stop();
    host.delete_route(Ipv4Net::default()).unwrap();
    let (status, _, errors) = run(host, &site.etcd.args(), None);
    assert_eq!(status.code(), Some(2), "{errors}");
    assert!(errors.contains("(--iface eth0) or the public address (--public-ip)"), "{errors}");
}

/// The subnet file of flanneld, or of an operator who wrote only the subnet, determines the subnet.
#[test]
fn a_subnet_file_with_comments_or_with_the_subnet_alone_is_reused() {
    let site = Site::new(1, 1, false);
    let mut operator = Operator::of(&site.etcd, &site.switch);
    operator.set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let file = site.hosts[0].subnet_file();
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    for (number, text) in
        ["# ours\nFLANNEL_SUBNET=100.96.{}.1/24 # kept\n", "export FLANNEL_SUBNET='100.96.{}.1/24'"].iter().enumerate()
    {
        std::fs::write(&file, text.replace("{}", &format!("{}", 77 + number))).unwrap();
        let node = Node::start(&site.hosts[0], &site.etcd);
        assert_eq!(node.lease(), format!("100.96.{}.0/24", 77 + number).parse().unwrap());
        assert_eq!(node.how(), "as in an earlier run");
        assert_eq!(node.count("warning"), 0, "{:#?}", node.said);
        node.stop();
        let (key, ..) = operator.leases().pop().unwrap();
        operator.delete(&crate::operator::subnets(&key));
    }
}

/// The path may be relative, as in a script beside the program. Without the file, no container gets an address.
#[test]
fn a_subnet_file_is_written_or_the_node_ends() {
    let site = Site::new(1, 1, false);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let (host, directory) = (&site.hosts[0].namespace, tempfile::tempdir().unwrap());
    let args = [site.etcd.args(), vec!["-iface=eth0".into(), "-json".into()]].concat();
    for file in ["subnet.env", "./subnet.env"] {
        let mut command = tied_to_its_parent("env");
        command.arg(format!("--chdir={}", shown(directory.path()))).arg(program());
        command.args(&args).arg(format!("-subnet-file={file}"));
        let mut node = Node { child: Child::spawn(host, command).unwrap(), said: Vec::new() };
        node.says("ready");
        let text = std::fs::read_to_string(directory.path().join("subnet.env")).unwrap();
        assert!(text.contains("FLANNEL_SUBNET="), "{text}");
        node.stop();
        std::fs::remove_file(directory.path().join("subnet.env")).unwrap();
    }
    let (status, _, errors) = run(host, &[args, vec!["-subnet-file=/dev/null/subnet.env".into()]].concat(), None);
    assert_eq!(status.code(), Some(2), "{errors}");
    assert!(errors.contains("/dev/null"), "{errors}");
    assert!(!host.links().unwrap().iter().any(|link| link.starts_with("flannel")));
}
