//! From nothing to packets: config, lease, subnet file, device. What others have to do first is waited for, visibly.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use loden::forward::{Forwarder, Overlay};
use loden::lease::flannel::{LeaseReader, NetworkConfig, SubnetEnv, write_subnet_env};
use loden::lease::{Backoff, Host, Reconciler, Tenure};
use loden::preflight::{PreflightConfig, check};
use loden::route::RoutePublisher;
use loden::sys::link::{AddressForm, Link, LinkConfig, LinkMonitor, interface_named, interface_of};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::Worker;

use crate::acquire::{How, Renew, acquire, random};
use crate::args::{Arguments, NodeArgs};
use crate::clock::Clock;
use crate::feed::follow;
use crate::links::{Links, Watched};
use crate::node::Node;
use crate::plane::Plane;
use crate::registry::Registry;
use crate::say::{Event, Say};
use crate::{Error, Failure};

/// The longest pause between two attempts to begin: an operator who has just mended something is waiting.
const PAUSE: Duration = Duration::from_secs(10);

/// Where packets between hosts leave and arrive, and by which address others know this host.
pub(crate) struct Place {
    address: IpAddr,
    public_ip: Ipv4Addr,
}

impl Place {
    pub(crate) fn find(args: &NodeArgs) -> Result<Self, Error> {
        let underlay = match (&args.iface, args.public_ip) {
            (Some(iface), _) => match iface.parse::<IpAddr>() {
                Ok(address) => interface_of(address)?,
                Err(_) => interface_named(iface)?,
            },
            (None, Some(address)) => interface_of(address.into())
                .map_err(|error| format!("{error}; if a router translates it, name --iface too"))?,
            (None, None) => return Err("name the interface to the other hosts: --iface eth0, or --public-ip".into()),
        };
        let IpAddr::V4(own) = underlay.address else {
            return Err(format!("{} is IPv6; flannel's udp backend has IPv4 only", underlay.address).into());
        };
        let public_ip = args.public_ip.unwrap_or(own);
        Ok(Self { address: own.into(), public_ip })
    }
}

pub(crate) async fn start(mut registry: Registry, args: &Arguments, place: &Place, say: &Say) -> Result<Node, Failure> {
    let clock = Clock::start();
    let config = config(&mut registry, clock, say).await;
    let IpNet::V4(network) = config.range().network() else {
        return Err("the network is IPv6; flannel's udp backend has IPv4 only".into());
    };
    // Before the lease: a port that is taken, or a device that may not be made, is a reason not to lease anything.
    let listen = SocketAddr::new(place.address, config.port());
    let udp = UdpTransport::bind(listen, &UdpConfig::default())?;
    let tun = Tun::open(&TunConfig { name: args.node.tun.clone(), ..TunConfig::default() })?;
    let name = tun.name().to_owned();

    let reader = LeaseReader::new(&args.etcd.etcd_prefix, config.port());
    let previous = previous_subnet(&args.node.subnet_file, say);
    let ttl = Duration::from_secs(args.node.subnet_lease_ttl);
    let mut backoff = Backoff::new(Backoff::LEAST, PAUSE);
    let (holding, how) = loop {
        match acquire(&mut registry, &reader, config.range(), place.public_ip, previous, ttl).await {
            Ok(acquired) => break acquired,
            Err(error) => wait(&mut backoff, clock, say, error.to_string()).await,
        }
    };
    let subnet = holding.key.ipv4.trunc();
    let tenure = Tenure::granted(holding.lasts(), args.node.subnet_lease_renew_margin, clock.now());
    say.say(&Event::Lease {
        subnet: subnet.to_string(),
        public_ip: holding.host.to_string(),
        how: match how {
            How::TakenOver => "which had it already",
            How::AsBefore => "as in an earlier run",
            How::New => "which is new",
        },
        seconds: holding.grant.map(|grant| grant.ttl.as_secs()),
    });
    // Only now: for all that came before somebody may have been waited for.
    let underlay = Watched::underlay(place.address)?;
    let mtu = underlay.0.tun_mtu();
    look_around(network, subnet, listen, mtu, &name, say);
    let env = SubnetEnv::new(network, subnet, u16::try_from(mtu).unwrap_or(u16::MAX), false)?;
    write_subnet_env(&args.node.subnet_file, &env)?;

    let routes = RoutePublisher::bound_to(listen).owning(subnet);
    let overlay = Overlay {
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        peer_check: args.node.peer_check.into(),
        ..Overlay::new(network, subnet, listen)
    };
    let forwarder = Forwarder::new(overlay)?;
    // First the monitor: nothing that happens to the device may be missed.
    let monitor = LinkMonitor::open(&name)?;
    let link = LinkConfig { address: forwarder.tun_address(), network, mtu, form: AddressForm::Host };
    let links = Links::new(monitor, Link::configure(&name, &link)?, underlay)?;
    let plane = Plane::start(Worker::new(tun, udp, forwarder, routes.reader()))?;
    let news = follow(registry.clone(), clock, Duration::from_secs(args.node.list_interval));
    say.say(&Event::Ready {
        tun: name,
        listen: listen.to_string(),
        mtu,
        subnet_file: args.node.subnet_file.display().to_string(),
    });
    let own = SocketAddr::new(holding.host.into(), config.port());
    let reconciler = Reconciler::new(Host::new(network, subnet, own));
    Ok(Node {
        clock,
        registry,
        reader,
        reconciler,
        routes,
        holding,
        tenure,
        ttl,
        renewal: None,
        meanwhile: None,
        renew_how: Renew::Write,
        replied: None,
        gives_up: None,
        set_aside: BTreeSet::new(),
        links,
        plane,
        news,
    })
}

/// Says what on this host may keep packets from going where they should. That is the operator's to mend, now or later.
fn look_around(network: Ipv4Net, subnet: Ipv4Net, listen: SocketAddr, mtu: u32, tun: &str, say: &Say) {
    let config = PreflightConfig::new(network, subnet, listen.ip(), tun).with_mtu(mtu).with_port(listen.port());
    for finding in check(&config) {
        let (severity, says) = (finding.severity().name(), finding.to_string());
        say.say(&Event::Finding { finding: finding.name(), severity, says });
    }
}

/// The network's config, once there is one that can be worked with.
async fn config(registry: &mut Registry, clock: Clock, say: &Say) -> NetworkConfig {
    let mut backoff = Backoff::new(Backoff::LEAST, PAUSE);
    loop {
        let reason = match registry.config().await {
            Ok(Some(text)) => match NetworkConfig::from_json(&text) {
                Ok(config) => {
                    say_config(&config, say);
                    return config;
                }
                Err(error) => format!("the network config at {} cannot be used: {error}", registry.config_key()),
            },
            Ok(None) => format!(
                "there is no network config at {}; write one with `flannel-node set-config`",
                registry.config_key()
            ),
            Err(error) => error.to_string(),
        };
        wait(&mut backoff, clock, say, reason).await;
    }
}

pub(crate) fn say_config(config: &NetworkConfig, say: &Say) {
    let range = config.range();
    say.say(&Event::Config {
        network: range.network().to_string(),
        subnet_len: range.subnet_len(),
        subnet_min: range.first().to_string(),
        subnet_max: range.last().to_string(),
        port: config.port(),
    });
    if config.ipv6().is_some() {
        let reason = "the network has IPv6 too, which the udp backend does not carry: only IPv4 subnets are leased";
        say.say(&Event::Warning { reason: reason.into() });
    }
}

/// The subnet of an earlier run, if it left a file that can be read.
fn previous_subnet(path: &Path, say: &Say) -> Option<Ipv4Net> {
    let warn = |reason| say.say(&Event::Warning { reason });
    let unread = "the subnet of an earlier run is not known";
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn(format!("{}: {error}; {unread}", path.display()));
            return None;
        }
    };
    match text.parse::<SubnetEnv>() {
        Ok(env) => Some(env.subnet()),
        Err(error) => {
            warn(format!("{}: {error}; {unread}", path.display()));
            None
        }
    }
}

/// Says for what, and waits until it is to be tried again.
async fn wait(backoff: &mut Backoff, clock: Clock, say: &Say, reason: String) {
    let now = clock.now();
    let at = backoff.failed(now, random()()).at;
    say.say(&Event::Waiting { reason, retry_seconds: at.saturating_sub(now).as_secs_f64() });
    clock.sleep_until(at).await;
}
