//! The operator's command that checks this host against the network's config.

use std::net::SocketAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden::lease::SubnetRange;
use loden::lease::flannel::NetworkConfig;
use loden::sys::link::interface_of;

use crate::args::Arguments;
use crate::commands::{failed, fits};
use crate::output::{Event, Output};
use crate::place::Place;
use crate::registry::Registry;
use crate::start::{host, look_around, previous_subnets, reader, report_config};
use crate::{Error, Failure};

/// Checks the settings of this host against the network's config. The subnet is this host's lease, that of an earlier
/// run, or the first one that may be leased.
pub(crate) async fn check(mut registry: Registry, args: &Arguments, output: &Output) -> Result<(), Failure> {
    let place = Place::find(&args.node)?;
    let text = registry.config().await.map_err(failed)?;
    let text = text.ok_or_else(|| failed(format!("there is no network config at {}", registry.config_key())))?;
    let config = NetworkConfig::from_json(&text)
        .map_err(|error| failed(format!("the network config at {} cannot be used: {error}", registry.config_key())))?;
    report_config(&config, output);
    let place_v6 = if config.ipv6().is_some() { place.ipv6().await? } else { None };
    let reader = reader(registry.prefix(), &config, place_v6.is_some());
    let previous = previous_subnets(&args.node.subnet_file, output);
    let known = registry.list().await.map_err(failed)?.entries;
    let own = known.iter().filter_map(|entry| entry.held(&reader)).filter(|(_, held)| held.host == place.public_ip);
    let own: Vec<_> = own.map(|(key, _)| key).filter(|key| fits(&config, key)).collect();
    let own = own.iter().find(|key| Some(key.ipv4) == previous.ipv4).or(own.first());
    let subnet = own.map(|key| key.ipv4).or_else(|| v4(likely(config.range(), previous.ipv4.map(Into::into))));
    let subnet = subnet.ok_or_else(|| failed("the network has no IPv4 subnet to lease"))?;
    let subnet_v6 = config.ipv6().and_then(|range| match own {
        Some(key) => key.ipv6,
        None => v6(likely(range, previous.ipv6.map(Into::into))),
    });
    let listen = SocketAddr::new(place.address, config.port());
    let listen_v6 = place_v6.map(|place| SocketAddr::new(place.address.into(), config.port()));
    let host = host(&config, subnet, subnet_v6, listen, listen_v6)?;
    let listens = [Some(place.address), place_v6.map(|place| place.address.into())];
    let mtus = listens.into_iter().flatten().map(|address| Ok::<_, Error>(interface_of(address)?.tun_mtu()?));
    let mtu = mtus.collect::<Result<Vec<_>, _>>()?.into_iter().min().ok_or("the host has no address")?;
    let findings = look_around(&host, mtu, &args.node.tun.replace("%d", "0"), output).len();
    output.print(&Event::Checked { subnet: subnet.to_string(), findings });
    if findings == 0 { Ok(()) } else { Err(failed("the host is not ready; correct the findings above")) }
}

/// Returns the subnet of an earlier run if it fits, else the first one that may be leased.
fn likely(range: &SubnetRange, previous: Option<IpNet>) -> Option<IpNet> {
    previous.filter(|subnet| range.contains(*subnet)).or_else(|| IpNet::new(range.first(), range.subnet_len()).ok())
}

fn v4(subnet: Option<IpNet>) -> Option<Ipv4Net> {
    subnet.and_then(|subnet| match subnet {
        IpNet::V4(subnet) => Some(subnet),
        IpNet::V6(_) => None,
    })
}

fn v6(subnet: Option<IpNet>) -> Option<Ipv6Net> {
    subnet.and_then(|subnet| match subnet {
        IpNet::V4(_) => None,
        IpNet::V6(subnet) => Some(subnet),
    })
}
