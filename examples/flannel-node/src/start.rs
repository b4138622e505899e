//! The start of a node: config, lease, subnet file, device. It waits for missing resources and reports the wait.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden::forward::{Forwarder, ForwarderConfig};
use loden::lease::flannel::{LeaseReader, LeaseValue, NetworkConfig, SubnetEnv, write_subnet_env};
use loden::lease::{Backoff, Reconciler, RenewalTimer, SubnetRange};
use loden::preflight::{Finding, PreflightConfig, check};
use loden::route::RoutePublisher;
use loden::sys::link::{Link, LinkConfig, LinkMonitor};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::Worker;
use loden::{Host, HostError, Mtu, Overhead};

use crate::acquire::{Acquired, How, Previous, Renew, Wanted, acquire, random};
use crate::args::Arguments;
use crate::clock::Clock;
use crate::dataplane::Dataplane;
use crate::feed::follow;
use crate::links::{Links, Watched};
use crate::node::Node;
use crate::output::{ConfigV6, Event, Output};
use crate::place::Place;
use crate::registry::Registry;
use crate::rules::{Rules, RulesConfig};
use crate::subnets::Subnets;
use crate::{Error, Failure};

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
    let port = config.port();
    let place_v6 = if config.ipv6().is_some() { place.ipv6().await? } else { None };
    if config.ipv6().is_none() && args.node.public_ipv6.is_some() {
        let reason = "--public-ipv6 has no effect: the network has no IPv6 (EnableIPv6, IPv6Network)".into();
        output.print(&Event::Warning { reason });
    }
    // Port and device are checked before the lease: without them no lease is needed.
    let listen = SocketAddr::new(place.address, port);
    let listen_v6 = place_v6.map(|place| SocketAddr::new(place.address.into(), port));
    let udp = UdpTransport::bind(listen, &UdpConfig::default())?;
    let udp_v6 = listen_v6.map(|listen| UdpTransport::bind(listen, &UdpConfig::default())).transpose()?;
    let tun = Tun::open(&TunConfig::new(args.node.tun.clone()))?;
    let name = tun.name().to_owned();

    let reader = reader(&args.etcd.etcd_prefix, &config, place_v6.is_some());
    let previous = previous_subnets(&args.node.subnet_file, output);
    let ttl = Duration::from_secs(args.node.subnet_lease_ttl);
    let public_ipv6 = place_v6.map(|place| place.public_ipv6);
    let value = LeaseValue { public_ipv6, ..LeaseValue::new(place.public_ip) };
    let wanted = Wanted { config: &config, value, previous, ttl };
    let mut backoff = Backoff::new(Backoff::LEAST, MAX_DELAY);
    let Acquired { holding, how, deleted, taken } = loop {
        match acquire(&mut registry, &reader, wanted).await {
            Ok(acquired) => break acquired,
            Err(error) => wait(&mut backoff, clock, output, error.to_string()).await,
        }
    };
    let (subnet, subnet_v6) = (holding.key.ipv4.trunc(), holding.key.ipv6.map(|subnet| subnet.trunc()));
    let renewal_timer = RenewalTimer::granted(holding.lasts(), args.node.subnet_lease_renew_margin, clock.now());
    for key in deleted {
        let reason = format!("deleted the lease {key} of this host, which does not fit the network's config");
        output.print(&Event::Warning { reason });
    }
    if let Some((key, host)) = taken.filter(|(_, host)| !host.is_unspecified()) {
        let (file, key) = (args.node.subnet_file.display(), reader.full_key(&key));
        let reason = format!(
            "the subnet in {file} is leased to {host}. If that was this host's address before, other hosts still send the \
             subnet's packets there: delete the key (etcdctl del '{key}')"
        );
        output.print(&Event::Warning { reason });
    }
    output.print(&Event::Lease {
        subnet: subnet.to_string(),
        subnet_v6: subnet_v6.map(|subnet| subnet.to_string()),
        public_ip: holding.value.public_ip.to_string(),
        how: match how {
            How::TakenOver => "which had it already",
            How::Previous => "as in an earlier run",
            How::New => "which is new",
        },
        seconds: holding.grant.map(|grant| grant.ttl.as_secs()),
    });
    // The state is read only now, because the steps before may have waited.
    let underlay = Watched::underlay(place.address)?;
    let host = host(&config, subnet, subnet_v6, listen, listen_v6)?;
    let mtu = underlay.0.tun_mtu()?;
    let mtu_over_ipv6 = listen_v6.map(|_| Mtu::of_inner(underlay.0.mtu, Overhead::IPV6)).transpose()?;
    // Before the findings, which they change. Until the node is complete, an error removes them.
    let (rules, events) = Rules::set(&RulesConfig {
        networks: host.subnets().iter().filter_map(|subnet| Some((network_of(&host, *subnet)?, *subnet))).collect(),
        listen: host.underlays().to_vec(),
        forward: args.node.iptables_forward_rules,
        masquerade: args.node.ip_masq,
        fully_random: !args.node.ip_masq_fully_random_disable,
        resync: Duration::from_secs(args.node.iptables_resync),
    });
    events.iter().for_each(|event| output.print(event));
    look_around(&host, mtu_over_ipv6.unwrap_or(mtu), &name, output);
    let env = subnet_env(&config, subnet, subnet_v6, mtu, rules.masquerades())?;
    write_subnet_env(&args.node.subnet_file, &env)?;

    let routes = RoutePublisher::for_host(&host);
    let mut forwarding = ForwarderConfig::new(&host).with_mtu(mtu).with_peer_check(args.node.peer_check.into());
    if let Some(mtu) = mtu_over_ipv6 {
        forwarding = forwarding.with_mtu_over_ipv6(mtu);
    }
    let forwarder = Forwarder::new(forwarding)?;
    // The monitor is opened first, so no event of the device is missed.
    let monitor = LinkMonitor::open(&name)?;
    let link = Link::configure_with(&name, &LinkConfig::new(&host).with_mtu(mtu))?;
    let links = Links::new(monitor, link, underlay, place_v6.map(|place| place.address))?;
    let worker = Worker::new(tun, udp, forwarder, routes.reader());
    let dataplane = Dataplane::start(match udp_v6 {
        Some(udp_v6) => worker.with_udp(udp_v6)?,
        None => worker,
    })?;
    let news = follow(registry.clone(), clock, Duration::from_secs(args.node.list_interval));
    output.print(&Event::Ready {
        tun: name,
        listen: listen.to_string(),
        mtu: mtu.into(),
        subnet_file: args.node.subnet_file.display().to_string(),
    });
    let own = SocketAddr::new(holding.value.public_ip.into(), port);
    let reconciler = Reconciler::new(&host).with_public_address(own);
    let own_v6 = public_ipv6.map(|address| SocketAddr::new(address.into(), port));
    let reconciler = own_v6.into_iter().fold(reconciler, Reconciler::with_public_address);
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
        subnets: Subnets::new(&host, holding.revision, how),
        has_ipv6_underlay: listen_v6.is_some(),
        links,
        rules,
        dataplane,
        news,
    })
}

/// Returns the reader of a network's leases.
pub(crate) fn reader(prefix: &str, config: &NetworkConfig, has_ipv6_underlay: bool) -> LeaseReader {
    let reader = LeaseReader::new(prefix, config.port());
    match config.ipv6() {
        None => reader,
        Some(_) if has_ipv6_underlay => reader.with_ipv6_underlay(),
        Some(_) => reader.with_ipv6_subnets(),
    }
}

/// Returns the identity of this host.
pub(crate) fn host(
    config: &NetworkConfig,
    subnet: Ipv4Net,
    subnet_v6: Option<Ipv6Net>,
    listen: SocketAddr,
    listen_v6: Option<SocketAddr>,
) -> Result<Host, HostError> {
    let networks = [Some(config.range().network()), config.ipv6().map(SubnetRange::network)];
    let subnets = [Some(IpNet::from(subnet)), subnet_v6.map(IpNet::from)];
    let underlays = [Some(listen), listen_v6];
    let networks: Vec<_> = networks.into_iter().flatten().collect();
    let subnets: Vec<_> = subnets.into_iter().flatten().collect();
    let underlays: Vec<_> = underlays.into_iter().flatten().collect();
    Host::from_sets(&networks, &subnets, &underlays)
}

fn network_of(host: &Host, subnet: IpNet) -> Option<IpNet> {
    host.networks().iter().copied().find(|network| network.contains(&subnet))
}

fn subnet_env(
    config: &NetworkConfig,
    subnet: Ipv4Net,
    subnet_v6: Option<Ipv6Net>,
    mtu: Mtu,
    masquerades: bool,
) -> Result<SubnetEnv, Error> {
    let IpNet::V4(network) = config.range().network() else {
        return Err("the network is IPv6 only; the udp backend needs IPv4 too".into());
    };
    let env = SubnetEnv::new(network, subnet, mtu.get(), masquerades)?;
    match (config.ipv6().map(SubnetRange::network), subnet_v6) {
        (Some(IpNet::V6(network)), Some(subnet)) => Ok(env.with_ipv6(network, subnet)?),
        _ => Ok(env),
    }
}

/// Reports the settings of this host that may keep packets from their destination. The operator may correct them now or
/// later. The MTU is the one that all peers' paths have: the device's is larger if there are IPv6 peers, and the
/// forwarder answers longer packets to those.
pub(crate) fn look_around(host: &Host, mtu: Mtu, tun: &str, output: &Output) -> Vec<Finding> {
    let findings = check(&PreflightConfig::new(host, tun).with_mtu(mtu));
    for finding in &findings {
        let (severity, says) = (finding.severity().name(), finding.to_string());
        output.print(&Event::Finding { finding: finding.name(), severity, says });
    }
    findings
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
        ipv6: config.ipv6().map(|range| ConfigV6 {
            ipv6_network: range.network().to_string(),
            ipv6_subnet_len: range.subnet_len(),
            ipv6_subnet_min: range.first().to_string(),
            ipv6_subnet_max: range.last().to_string(),
        }),
    });
}

/// Returns the subnets of an earlier run, as far as their file is readable.
pub(crate) fn previous_subnets(path: &Path, output: &Output) -> Previous {
    let warn = |reason| output.print(&Event::Warning { reason });
    let unread = "the subnet of an earlier run is unknown";
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Previous::default(),
        Err(error) => {
            warn(format!("{}: {error}; {unread}", path.display()));
            return Previous::default();
        }
    };
    let ipv4 = match SubnetEnv::subnet_in(&text) {
        Ok(Some(subnet)) => Some(subnet),
        Ok(None) => {
            warn(format!("{}: there is no FLANNEL_SUBNET; {unread}", path.display()));
            None
        }
        Err(error) => {
            warn(format!("{}: {error}; {unread}", path.display()));
            None
        }
    };
    let ipv6 = SubnetEnv::ipv6_subnet_in(&text).unwrap_or_else(|error| {
        warn(format!("{}: {error}; {unread}", path.display()));
        None
    });
    Previous { ipv4, ipv6 }
}

/// Reports the reason and waits until the next attempt.
async fn wait(backoff: &mut Backoff, clock: Clock, output: &Output, reason: String) {
    let now = clock.now();
    let at = backoff.failed(now, random()()).at;
    output.print(&Event::Waiting { reason, retry_seconds: at.saturating_sub(now).as_secs_f64() });
    clock.sleep_until(at).await;
}
