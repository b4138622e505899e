//! Hosts that are prepared otherwise than usual.

use ipnet::Ipv4Net;
use loden::sys::link::{AddressForm, Link, LinkConfig};
use loden::sys::{Tun, TunConfig};
use testbed::{Child, TwoHosts, tied_to_its_parent};

use crate::support::{SECOND, Tunnel, program};

/// An address that a routing protocol announces is on `lo`, whose MTU of 65,536 says nothing of the way to the peers.
#[test]
fn a_listen_address_on_lo_has_the_mtu_of_the_route_to_the_peers() {
    let hosts = TwoHosts::with_underlay_mtu(1400).unwrap();
    let host = &hosts.host_a;
    host.add_address("lo", "10.255.0.1/32".parse().unwrap()).unwrap();
    hosts.host_b.add_route_via("10.255.0.1/32".parse().unwrap(), TwoHosts::HOST_A).unwrap();
    let args = ["--subnet", "100.96.1.0/24", "--listen", "10.255.0.1", "--route", "100.96.2.0/24=10.168.0.3"];
    let mut tunnel = Tunnel::start(host, &args);
    assert_eq!(tunnel.ready["mtu"], 1372, "{}", tunnel.ready);
    tunnel.stop();
}

/// A user who may not configure the network, with a persistent device that an administrator has prepared: nothing is set
/// that is as it has to be. In a user namespace, where no node can be made, it is root without any capability.
#[test]
fn a_user_without_capabilities_starts_a_tunnel_on_a_prepared_device() {
    const AS_USER: &str = "\
        { mount -t tmpfs none /dev/net && mknod -m 0666 /dev/net/tun c 10 200; } 2>/dev/null && \
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --pdeathsig KILL \"$@\"; \
        exec setpriv --bounding-set=-all --inh-caps=-all --pdeathsig KILL \"$@\"";
    let hosts = TwoHosts::new().unwrap();
    let host = &hosts.host_a;
    let prepare = |mtu| {
        host.enter(|| {
            let tun = Tun::open(&TunConfig { name: "loden0".into(), ..TunConfig::default() }).unwrap();
            tun.set_persistent(true).unwrap();
            let (address, network) = (TwoHosts::SUBNET_A.network(), TwoHosts::OVERLAY);
            Link::configure("loden0", &LinkConfig { address, network, mtu, form: AddressForm::Host }).unwrap();
        });
    };
    let start = || {
        let mut command = tied_to_its_parent("unshare");
        command.args(["--mount", "sh", "-c", AS_USER, "sh"]).arg(program("tunnel"));
        command.args(["--subnet", "100.96.1.0/24", "--network", "100.96.0.0/16", "--listen", "10.168.0.2"]);
        command.args(["--route", "100.96.2.0/24=10.168.0.3", "--tun", "loden0"]);
        Child::spawn(host, command).unwrap()
    };
    prepare(1472);
    let mut child = start();
    let ready = child.next_line(10 * SECOND).unwrap_or_else(|error| panic!("{error}: {}", child.stderr()));
    assert!(ready.contains("\"ready\""), "{ready}");
    assert!(!child.stderr().contains("can neither make"), "the preflight judges what it needs: {}", child.stderr());
    child.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait(SECOND).unwrap().expect("an end within a second").success(), "{}", child.stderr());
    assert_eq!(host.addresses("loden0").unwrap(), [Ipv4Net::from(TwoHosts::SUBNET_A.network())], "nothing was removed");

    prepare(1400);
    let mut child = start();
    assert_eq!(child.wait(5 * SECOND).unwrap().expect("an end").code(), Some(2));
    assert!(child.stderr().contains("no permission to set the MTU on loden0"), "{}", child.stderr());
}
