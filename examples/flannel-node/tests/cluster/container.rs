//! The static program as the container file starts it: a root directory that holds nothing else but `/dev/net/tun`,
//! read-only, with a user that is not root.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testbed::Child;

use crate::etcd::tied_to_its_parent;
use crate::hosts::{Attachment, Host, Site};
use crate::node::Node;
use crate::operator::Operator;
use crate::tls::Tls;
use crate::wait_until;

const CONTAINER_FILE: &str = include_str!("../../Containerfile");

/// Makes the root directory `$1` with the program `$2` and the certificates of `$3`, and runs the rest in it. The owner of
/// `/run/flannel` is `$USER`.
const ROOT: &str = r#"
set -e
root=$1 program=$2 certificates=$3
shift 3
mount -t tmpfs -o mode=755,size=256m root "$root"
cd "$root"
mkdir -p dev/net etc/flannel run/flannel
cp "$program" flannel-node
cp "$certificates"/* etc/flannel/
chmod 644 etc/flannel/*
if [ "$grant" = file ]; then setcap cap_net_admin+ep flannel-node; fi
mknod -m 666 dev/net/tun c 10 200 2>/dev/null || { touch dev/net/tun; mount --bind /dev/net/tun dev/net/tun; }
mount -t tmpfs -o mode=755,size=1m run run/flannel
if [ "$user" != 0 ]; then chown "$user:$user" run/flannel; fi
mount -o remount,ro root .
if [ "$user" = 0 ]; then
    exec setpriv --no-new-privs --bounding-set=-all,+net_admin,+sys_chroot chroot . "$@"
elif [ "$grant" = file ]; then
    exec chroot --userspec="$user:$user" --groups= . "$@"
else
    exec setpriv --no-new-privs --securebits=+no_setuid_fixup --inh-caps=+net_admin --ambient-caps=+net_admin \
        chroot --userspec="$user:$user" --groups= . "$@"
fi
"#;

/// Returns the program without shared libraries.
fn program() -> PathBuf {
    let path = std::env::var_os("LODEN_STATIC_NODE").map(PathBuf::from);
    let path =
        path.expect("LODEN_STATIC_NODE has to name a static flannel-node; the repository's test command builds it");
    let elf = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // The name of the loader is at the beginning of a program that needs one.
    let is_dynamic = elf[..4096].windows(4).any(|part| part == b"/ld-");
    assert!(!is_dynamic, "{} needs shared libraries", path.display());
    path
}

/// Returns true if this process may become another user: its user namespace may have root only.
fn has_other_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().last().unwrap().parse::<u64>().unwrap() > 65_532
}

/// A node in a root directory of its own. It is process 1 of a process namespace.
struct Container {
    /// The output is that of `unshare`, whose end is the end of the node.
    node: Node,
    process: Pid,
    _root: tempfile::TempDir,
}

impl Container {
    fn start(host: &Host, tls: &Tls, user: &str, grant: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut command: Command = tied_to_its_parent("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ROOT, "sh"]);
        command.arg(root.path()).arg(program()).arg(tls.path("")).env("user", user).env("grant", grant);
        command.args(["/flannel-node", "-iface=eth0", "-etcd-endpoints=https://10.168.0.1:2379", "-json"]);
        for (flag, file) in [("cafile", "ca.pem"), ("certfile", "client.pem"), ("keyfile", "client.key")] {
            command.arg(format!("-etcd-{flag}=/etc/flannel/{file}"));
        }
        let child = Child::spawn(&host.namespace, command).unwrap();
        let id = child.id();
        let mut node = Node { child, said: Vec::new() };
        node.says("ready");
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        Self { node, process: Pid::from_raw(children.trim().parse().unwrap()), _root: root }
    }

    fn status(&self, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process)).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
        value.expect("the kernel shows it").to_owned()
    }

    fn subnet_file(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/root/run/flannel/subnet.env", self.process)).unwrap()
    }
}

#[test]
fn the_static_program_runs_in_a_root_directory_with_nothing_else() {
    let site = Site::new(2, 1, true);
    Operator::of(&site.etcd, &site.switch).set_config(r#"{"Network":"100.96.0.0/16"}"#);
    let other = Node::start(&site.hosts[0], &site.etcd);
    let pod = site.hosts[0].add_pod(other.lease(), Attachment::Veth);
    assert!(CONTAINER_FILE.contains("USER 65532:65532") && CONTAINER_FILE.contains("setcap cap_net_admin+ep"));
    let has_setcap = Command::new("setcap").arg("-h").output().is_ok();
    let mut container_pod = None;
    // Podman raises an ambient capability. With docker the file has it.
    for (user, grant) in [("65532", "ambient"), ("65532", "file"), ("0", "bounded")] {
        if user != "0" && !has_other_users() {
            eprintln!("skipped: user {user}, who is not in this user namespace");
            continue;
        }
        if grant == "file" && !has_setcap {
            eprintln!("skipped: a capability of the file, because setcap (libcap2-bin) is not installed");
            continue;
        }
        let mut container = Container::start(&site.hosts[1], site.etcd.tls.as_ref().unwrap(), user, grant);
        assert_eq!(container.status("Uid"), [user; 4].join("\t"));
        let effective = u64::from_str_radix(&container.status("CapEff"), 16).unwrap();
        // CAP_NET_ADMIN alone, and what `chroot` itself needs if its user is the same.
        let chroot = if user == "0" { 1 << 18 } else { 0 };
        assert_eq!(effective, 1 << 12 | chroot, "{grant}: {effective:x}");
        let subnet = container.node.lease();
        let first = Ipv4Addr::from_bits(subnet.network().to_bits() + 1);
        assert!(
            container.subnet_file().contains(&format!("FLANNEL_SUBNET={first}/24\n")),
            "{}",
            container.subnet_file()
        );
        let there = container_pod.get_or_insert_with(|| site.hosts[1].add_pod(subnet, Attachment::Veth));
        pod.must_reach(there);
        there.must_reach(&pod);
        // The process 1 of a namespace ignores signals that it does not handle.
        kill(container.process, Signal::SIGHUP).unwrap();
        container.node.says("reloaded");
        kill(container.process, Signal::SIGTERM).unwrap();
        let last = container.node.says("stopped");
        assert!(container.node.ends().success(), "{}", container.node.child.stderr());
        assert_eq!(last["leased"], subnet.to_string());
        let no_device = || !site.hosts[1].namespace.links().unwrap().iter().any(|link| link.starts_with("flannel"));
        wait_until("the device to be gone", no_device);
    }
    other.stop();
}
