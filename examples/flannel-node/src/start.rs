//! The start of a node: config, lease, subnet file, device. It waits for missing resources and reports the wait.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use loden::forward::{Forwarder, ForwarderConfig};
use loden::lease::flannel::{LeaseReader, NetworkConfig, SubnetEnv, write_subnet_env};
use loden::lease::{Backoff, Reconciler, RenewalTimer};
use loden::preflight::{PreflightConfig, check};
use loden::route::RoutePublisher;
use loden::sys::link::{Link, LinkConfig, LinkMonitor};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::Worker;
use loden::{Host, Mtu};

use crate::Failure;
use crate::acquire::{How, Renew, acquire, random};
use crate::args::Arguments;
use crate::clock::Clock;
use crate::dataplane::Dataplane;
use crate::feed::follow;
use crate::links::{Links, Watched};
use crate::node::Node;
use crate::output::{Event, Output};
use crate::place::Place;
use crate::registry::Registry;

/// The longest delay between two attempts. An operator who has just corrected an error is waiting.
const MAX_DELAY: Duration = Duration::from_secs(10);

pub(crate) async fn start(
    mut registry: Registry,
    args: &Arguments,
    place: &Place,
    output: &Output,
) -> Result<Node, Failure> {
    let clock = Clock::start();
    let config = config(&mut registry, clock, output).await;
    let IpNet::V4(network) = config.range().network() else {
        return Err("the network is IPv6; flannel's udp backend has IPv4 only".into());
    };
    // Port and device are checked before the lease: without them no lease is needed.
    let listen = SocketAddr::new(place.address, config.port());
    let udp = UdpTransport::bind(listen, &UdpConfig::default())?;
    let tun = Tun::open(&TunConfig::new(args.node.tun.clone()))?;
    let name = tun.name().to_owned();

    let reader = LeaseReader::new(&args.etcd.etcd_prefix, config.port());
    let previous = previous_subnet(&args.node.subnet_file, output);
    let ttl = Duration::from_secs(args.node.subnet_lease_ttl);
    let mut backoff = Backoff::new(Backoff::LEAST, MAX_DELAY);
    let (holding, how) = loop {
        match acquire(&mut registry, &reader, config.range(), place.public_ip, previous, ttl).await {
            Ok(acquired) => break acquired,
            Err(error) => wait(&mut backoff, clock, output, error.to_string()).await,
        }
    };
    let subnet = holding.key.ipv4.trunc();
    let renewal_timer = RenewalTimer::granted(holding.lasts(), args.node.subnet_lease_renew_margin, clock.now());
    output.print(&Event::Lease {
        subnet: subnet.to_string(),
        public_ip: holding.host.to_string(),
        how: match how {
            How::TakenOver => "which had it already",
            How::Previous => "as in an earlier run",
            How::New => "which is new",
        },
        seconds: holding.grant.map(|grant| grant.ttl.as_secs()),
    });
    // The state is read only now, because the steps before may have waited.
    let underlay = Watched::underlay(place.address)?;
    let (host, mtu) = (Host::new(network, subnet, listen)?, underlay.0.tun_mtu()?);
    look_around(&host, mtu, &name, output);
    let env = SubnetEnv::new(network, subnet, mtu.get(), false)?;
    write_subnet_env(&args.node.subnet_file, &env)?;

    let routes = RoutePublisher::for_host(&host);
    let rules = ForwarderConfig::new(&host).with_mtu(mtu).with_peer_check(args.node.peer_check.into());
    let forwarder = Forwarder::new(rules)?;
    // The monitor is opened first, so no event of the device is missed.
    let monitor = LinkMonitor::open(&name)?;
    let link = Link::configure_with(&name, &LinkConfig::new(&host).with_mtu(mtu))?;
    let links = Links::new(monitor, link, underlay)?;
    let dataplane = Dataplane::start(Worker::new(tun, udp, forwarder, routes.reader()))?;
    let news = follow(registry.clone(), clock, Duration::from_secs(args.node.list_interval));
    output.print(&Event::Ready {
        tun: name,
        listen: listen.to_string(),
        mtu: mtu.into(),
        subnet_file: args.node.subnet_file.display().to_string(),
    });
    let own = SocketAddr::new(holding.host.into(), config.port());
    let reconciler = Reconciler::new(&host).with_public_address(own);
    Ok(Node {
        clock,
        config,
        registry,
        reader,
        reconciler,
        routes,
        holding,
        renewal_timer,
        ttl,
        renewal: None,
        meanwhile: None,
        renew_how: Renew::Write,
        replied: None,
        gives_up: None,
        reported_skips: BTreeSet::new(),
        links,
        dataplane,
        news,
    })
}

/// Reports the settings of this host that may keep packets from their destination. The operator may correct them now or
/// later.
fn look_around(host: &Host, mtu: Mtu, tun: &str, output: &Output) {
    for finding in check(&PreflightConfig::new(host, tun).with_mtu(mtu)) {
        let (severity, says) = (finding.severity().name(), finding.to_string());
        output.print(&Event::Finding { finding: finding.name(), severity, says });
    }
}

/// Waits for a valid network config and returns it.
async fn config(registry: &mut Registry, clock: Clock, output: &Output) -> NetworkConfig {
    let mut backoff = Backoff::new(Backoff::LEAST, MAX_DELAY);
    loop {
        let reason = match registry.config().await {
            Ok(Some(text)) => match NetworkConfig::from_json(&text) {
                Ok(config) => {
                    report_config(&config, output);
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
        wait(&mut backoff, clock, output, reason).await;
    }
}

pub(crate) fn report_config(config: &NetworkConfig, output: &Output) {
    let range = config.range();
    output.print(&Event::Config {
        network: range.network().to_string(),
        subnet_len: range.subnet_len(),
        subnet_min: range.first().to_string(),
        subnet_max: range.last().to_string(),
        port: config.port(),
    });
    if config.ipv6().is_some() {
        let reason = "the network has IPv6 too, which the udp backend does not carry: only IPv4 subnets are leased";
        output.print(&Event::Warning { reason: reason.into() });
    }
}

/// Returns the subnet of an earlier run, if its file is readable.
fn previous_subnet(path: &Path, output: &Output) -> Option<Ipv4Net> {
    let warn = |reason| output.print(&Event::Warning { reason });
    let unread = "the subnet of an earlier run is unknown";
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn(format!("{}: {error}; {unread}", path.display()));
            return None;
        }
    };
    match SubnetEnv::subnet_in(&text) {
        Ok(Some(subnet)) => Some(subnet),
        Ok(None) => {
            warn(format!("{}: there is no FLANNEL_SUBNET; {unread}", path.display()));
            None
        }
        Err(error) => {
            warn(format!("{}: {error}; {unread}", path.display()));
            None
        }
    }
}

/// Reports the reason and waits until the next attempt.
async fn wait(backoff: &mut Backoff, clock: Clock, output: &Output, reason: String) {
    let now = clock.now();
    let at = backoff.failed(now, random()()).at;
    output.print(&Event::Waiting { reason, retry_seconds: at.saturating_sub(now).as_secs_f64() });
    clock.sleep_until(at).await;
}
