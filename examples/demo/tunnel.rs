//! One host's tunnel: a thread in the host's namespace with a worker.

use core::error::Error;
use core::net::{Ipv4Addr, Ipv6Addr};
use std::io::{self, PipeWriter};
use std::thread::JoinHandle;

use loden::forward::{Counters, Forwarder, ForwarderConfig};
use loden::ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::Link;
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Worker, run};
use testbed::{Namespace, TwoHosts};

use crate::end::End;

/// flannel's port.
const PORT: u16 = 8285;
const DEVICE: &str = "loden0";

/// The addresses of a tunnel's host.
pub(crate) struct Host {
    name: &'static str,
    underlay: Ipv4Addr,
    subnet: Ipv4Net,
    subnet_v6: Ipv6Net,
}

const OVERLAY_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0), 32);
const SUBNET_A_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, 0), 64);
const SUBNET_B_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, 0), 64);

pub(crate) const HOST_A: Host =
    Host { name: "host a", underlay: TwoHosts::HOST_A, subnet: TwoHosts::SUBNET_A, subnet_v6: SUBNET_A_V6 };
pub(crate) const HOST_B: Host =
    Host { name: "host b", underlay: TwoHosts::HOST_B, subnet: TwoHosts::SUBNET_B, subnet_v6: SUBNET_B_V6 };

/// A running tunnel. Dropping it stops the tunnel without waiting for it.
pub(crate) struct Tunnel {
    name: &'static str,
    /// The loop ends when this end of the pipe is closed.
    stop: PipeWriter,
    thread: JoinHandle<Result<Counters, AnyError>>,
}

type AnyError = Box<dyn Error + Send + Sync>;

impl Tunnel {
    pub(crate) fn start(namespace: &Namespace, own: &Host, peer: &Host, has_ipv6: bool) -> Result<Self, End> {
        let name = own.name;
        let (stopped, stop) = io::pipe().map_err(End::failed("cannot make a pipe"))?;
        let opened = namespace.enter(|| open(own, peer, has_ipv6));
        let worker = opened.map_err(End::failed(format!("the tunnel of {name} cannot start")))?;
        let thread = namespace.spawn(format!("tunnel {name}"), move || Ok(run([worker], stopped)?));
        Ok(Self { name, stop, thread })
    }

    /// Stops the loop, which closes the socket and the TUN device, and returns the counters.
    pub(crate) fn stop(self) -> Result<Counters, End> {
        let Self { name, stop, thread } = self;
        drop(stop);
        let ended = thread.join().unwrap_or_else(|_panic| Err("its thread panicked".into()));
        ended.map_err(End::failed(format!("the tunnel of {name} broke")))
    }
}

/// Checks that the TUN devices are gone: the kernel removes a device, with address and routes, with its last file
/// descriptor.
pub(crate) fn check_removed(hosts: &TwoHosts) -> Result<(), End> {
    for host in [&hosts.host_a, &hosts.host_b] {
        let links = host.links().map_err(End::failed("after the tunnels were stopped"))?;
        if links.iter().any(|link| link == DEVICE) {
            return Err(End::Failed(format!("{DEVICE} is still there after its tunnel was stopped")));
        }
    }
    Ok(())
}

fn open(own: &Host, peer: &Host, has_ipv6: bool) -> Result<Worker, AnyError> {
    // The sets of a host: IPv4, and IPv6 if there is any.
    let families = if has_ipv6 { 2 } else { 1 };
    let networks = [TwoHosts::OVERLAY.into(), OVERLAY_V6.into()];
    let subnets = [own.subnet.into(), own.subnet_v6.into()];
    let underlay = (own.underlay, PORT).into();
    let host = loden::Host::from_sets(&networks[..families], &subnets[..families], &[underlay])?;
    let tun = Tun::open(&TunConfig::new(DEVICE))?;
    let udp = UdpTransport::bind(host.underlay(), &UdpConfig::default())?;
    let link = Link::configure(&tun, &host)?;
    let forwarder = Forwarder::new(ForwarderConfig::new(&host).with_mtu(link.mtu()))?;
    // A caller that kept the publisher could change the routes of the running tunnel.
    let mut routes = RoutePublisher::for_host(&host);
    let subnets: [IpNet; 2] = [peer.subnet.into(), peer.subnet_v6.into()];
    let to_peer = |subnet: &IpNet| RouteChange::Set(Route::new(*subnet, (peer.underlay, PORT)));
    let applied = routes.apply(subnets[..families].iter().map(to_peer));
    match applied.refused.first() {
        Some(refused) => Err((*refused).into()),
        None => Ok(Worker::new(tun, udp, forwarder, routes.reader())),
    }
}
