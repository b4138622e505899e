//! A real etcd cluster in the namespace of the switch between the hosts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use etcd_client::Client;
use nix::sys::signal::Signal;
pub(crate) use testbed::tied_to_its_parent;
use testbed::{Child, Namespace};

use crate::tls::{Tls, shown};
use crate::{SOON, wait_until};

/// The address of all members, which have different ports.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 1);

/// The lifetime of an unused token; etcd's default is five minutes.
pub(crate) const TOKEN_TTL: Duration = Duration::from_secs(1);

/// A member, running or not.
pub(crate) struct Member {
    number: u16,
    process: Option<Child>,
}

/// The members, their data and their certificates.
pub(crate) struct Etcd {
    namespace: Namespace,
    pub(crate) tls: Option<Tls>,
    data: tempfile::TempDir,
    members: Vec<Member>,
}

impl Etcd {
    /// Starts this many members, which elect a leader in a second or two.
    pub(crate) fn start(namespace: &Namespace, members: u16, tls: bool) -> Self {
        Self::start_with(namespace, members, tls.then(|| Tls::new(&ADDRESS.to_string())))
    }

    /// Starts members with these certificates.
    pub(crate) fn start_with(namespace: &Namespace, members: u16, tls: Option<Tls>) -> Self {
        Command::new("etcd").arg("--version").output().expect(MISSING);
        let members = (0..members).map(|number| Member { number, process: None }).collect();
        let data = tempfile::tempdir().unwrap();
        let mut etcd = Self { namespace: namespace.clone(), tls, data, members };
        etcd.start_all();
        etcd
    }

    pub(crate) fn start_all(&mut self) {
        for number in 0..self.members.len() {
            self.start_member(number);
        }
    }

    pub(crate) fn start_member(&mut self, number: usize) {
        let member = &self.members[number];
        let scheme = self.scheme();
        let clients = format!("{scheme}://{ADDRESS}:{}", client_port(member.number));
        let peers = format!("http://{ADDRESS}:{}", peer_port(member.number));
        let url = |number: u16| format!("member{number}=http://{ADDRESS}:{}", peer_port(number));
        let all: Vec<_> = self.members.iter().map(|member| url(member.number)).collect();
        let mut command = tied_to_its_parent("etcd");
        command
            .arg(format!("--name=member{number}"))
            .arg(format!("--data-dir={}", shown(&self.data.path().join(number.to_string()))))
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster={}", all.join(",")))
            .arg(format!("--auth-token-ttl={}", TOKEN_TTL.as_secs()))
            .arg("--logger=zap")
            // The disk of a test machine may be slow, and its contents are not needed afterwards.
            .args(["--unsafe-no-fsync", "--heartbeat-interval=100", "--election-timeout=1000"])
            .args(self.tls.iter().flat_map(Tls::of_server));
        self.members[number].process = Some(Child::spawn(&self.namespace, command).unwrap());
    }

    /// Kills a member, like a power failure.
    pub(crate) fn kill_member(&mut self, number: usize) {
        let mut process = self.members[number].process.take().expect("it runs");
        process.signal(Signal::SIGKILL).unwrap();
        process.wait(SOON).unwrap().expect("an end");
    }

    /// Suspends or resumes a member by a signal.
    pub(crate) fn signal_member(&mut self, number: usize, signal: Signal) {
        self.members[number].process.as_mut().expect("it runs").signal(signal).unwrap();
    }

    /// Returns the private memory of a member in bytes, without the pages of its database file.
    pub(crate) fn memory(&self, number: usize) -> u64 {
        let id = self.members[number].process.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux has it since 4.5");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Returns the number of requests for keys that a member has answered.
    pub(crate) fn ranges(&self, number: usize) -> u64 {
        let port = client_port(self.members[number].number);
        let metrics = self.namespace.enter(|| {
            let mut stream = TcpStream::connect((ADDRESS, port)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        let counter = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Range""#;
        let line = metrics.lines().find(|line| line.starts_with(counter)).expect("etcd counts them");
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64
    }

    /// Waits until a member answers for the whole cluster.
    pub(crate) fn wait_for_member(&self, number: usize) {
        let endpoint = self.endpoints().remove(number);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = self.tls.as_ref().map(Tls::options).unwrap_or_default().with_timeout(SOON / 10);
        wait_until("a member to be back", || {
            self.namespace.enter(|| {
                runtime.block_on(async {
                    let client = Client::connect([endpoint.as_str()], Some(options.clone())).await;
                    match client {
                        Ok(mut client) => client.get("anything", None).await.is_ok(),
                        Err(_) => false,
                    }
                })
            })
        });
    }

    pub(crate) fn kill_all(&mut self) {
        for number in 0..self.members.len() {
            self.kill_member(number);
        }
    }

    /// Copies all data while no member runs.
    pub(crate) fn back_up(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_all(self.data.path(), copy.path());
        copy
    }

    /// Restores the data of a copy.
    pub(crate) fn restore(&mut self, copy: &tempfile::TempDir) {
        self.data = tempfile::tempdir().unwrap();
        copy_all(copy.path(), self.data.path());
    }

    /// Returns the client options.
    pub(crate) fn args(&self) -> Vec<String> {
        let endpoints = self.endpoints().join(",");
        let mut args = vec![format!("--etcd-endpoints={endpoints}")];
        args.extend(self.tls.iter().flat_map(Tls::of_client));
        args
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        let scheme = self.scheme();
        self.members.iter().map(|member| format!("{scheme}://{ADDRESS}:{}", client_port(member.number))).collect()
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

fn copy_all(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap().success());
}

const MISSING: &str = "etcd has to be on the path; the repository's test command installs it";

fn client_port(member: u16) -> u16 {
    2379 + 10 * member
}

fn peer_port(member: u16) -> u16 {
    client_port(member) + 1
}
