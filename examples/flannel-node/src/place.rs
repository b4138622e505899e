//! The interface to the other hosts, in flannel's order: `--iface`, `--iface-regex`, `--iface-can-reach`, and without
//! any of them the interface of the public address or of the default route.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use loden::sys::link::{interface_named, interface_of};
use nix::ifaddrs::getifaddrs;
use regex::Regex;

use crate::Error;
use crate::args::NodeArgs;

/// The kernel's main table of IPv4 routes.
const ROUTES: &str = "/proc/net/route";

/// The underlay interface, and the address by which other hosts reach this one.
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    pub(crate) public_ip: Ipv4Addr,
}

/// An interface and its IPv4 addresses in the order of the kernel.
struct Interface {
    name: String,
    addresses: Vec<Ipv4Addr>,
}

impl Place {
    /// Finds the interface that the options describe.
    pub(crate) fn find(args: &NodeArgs) -> Result<Self, Error> {
        let own = underlay(args)?;
        Ok(Self { address: own.into(), public_ip: args.public_ip.unwrap_or(own) })
    }
}

fn underlay(args: &NodeArgs) -> Result<Ipv4Addr, Error> {
    if args.iface.is_empty() && args.iface_regex.is_empty() && args.iface_can_reach.is_none() {
        return match args.public_ip {
            Some(address) => match interface_of(address.into()) {
                Ok(_) => Ok(address),
                Err(error) => Err(format!("{error}; if a router translates it, set --iface too").into()),
            },
            None => of_default_route(),
        };
    }
    let mut reasons = Vec::new();
    for iface in &args.iface {
        match named(iface) {
            Ok(found) => return Ok(found),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    for pattern in &args.iface_regex {
        match matching(pattern) {
            Ok(found) => return Ok(found),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    if let Some(destination) = args.iface_can_reach {
        match source_to(destination) {
            Ok(found) => return Ok(found),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(reasons.join("; ").into())
}

fn named(iface: &str) -> Result<Ipv4Addr, Error> {
    let found = match iface.parse::<IpAddr>() {
        Ok(address) => interface_of(address)?,
        Err(_) => interface_named(iface)?,
    };
    of_ipv4(found.address)
}

fn of_ipv4(address: IpAddr) -> Result<Ipv4Addr, Error> {
    match address {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(address) => Err(format!("{address} is IPv6; flannel's udp backend has IPv4 only").into()),
    }
}

/// Returns the first address that matches, or else the address of the first interface whose name matches.
fn matching(pattern: &Regex) -> Result<Ipv4Addr, Error> {
    let interfaces = interfaces()?;
    let addresses = interfaces.iter().flat_map(|interface| &interface.addresses).copied();
    let mut usable = addresses.filter(|address| !address.is_loopback() && !address.is_unspecified());
    if let Some(address) = usable.find(|address| pattern.is_match(&address.to_string())) {
        return Ok(address);
    }
    if let Some(found) = interfaces.iter().find(|interface| pattern.is_match(&interface.name)) {
        return named(&found.name);
    }
    let present: Vec<_> =
        interfaces.iter().map(|Interface { name, addresses }| format!("{name} {addresses:?}")).collect();
    Err(format!("--iface-regex {pattern} matches no interface of this host: {}", present.join(", ")).into())
}

fn interfaces() -> Result<Vec<Interface>, Error> {
    let mut interfaces: Vec<Interface> = Vec::new();
    for entry in getifaddrs()? {
        // An IPv4 address has a label, which may have a suffix: eth0:1.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        let at = interfaces.iter().position(|interface| interface.name == name).unwrap_or_else(|| {
            interfaces.push(Interface { name: name.to_owned(), addresses: Vec::new() });
            interfaces.len() - 1
        });
        let address = entry.address.as_ref().and_then(|address| address.as_sockaddr_in()).map(|address| address.ip());
        if let Some(interface) = interfaces.get_mut(at) {
            interface.addresses.extend(address);
        }
    }
    Ok(interfaces)
}

/// Returns the source address of packets to a destination, as `ip route get` shows it.
fn source_to(destination: IpAddr) -> Result<Ipv4Addr, Error> {
    let any: IpAddr = if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse()? };
    // This sends nothing. The kernel only looks up the route.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((destination, 9))?;
        socket.local_addr()
    });
    of_ipv4(source.map_err(|error| format!("--iface-can-reach {destination}: {error}"))?.ip())
}

fn of_default_route() -> Result<Ipv4Addr, Error> {
    let table = std::fs::read_to_string(ROUTES).map_err(|error| format!("{ROUTES}: {error}"))?;
    match default_interface(&table) {
        Some(name) => named(name),
        None => Err("there is no default route, so set the interface to the other hosts (--iface eth0) \
                     or the public address (--public-ip)"
            .into()),
    }
}

/// Returns the interface of the default route with the lowest metric. A route that is down or that rejects packets
/// does not count.
fn default_interface(table: &str) -> Option<&str> {
    const UP: u32 = 0x1;
    const REJECT: u32 = 0x200;
    let routes = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let &[name, destination, _, flags, _, _, metric, mask, ..] = columns.as_slice() else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_default = destination == "00000000" && mask == "00000000";
        (is_default && flags & (UP | REJECT) == UP).then_some((metric.parse::<u32>().ok()?, name))
    });
    routes.min_by_key(|&(metric, _)| metric).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_lowest_metric_counts() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                     eth0\t0000A80A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                     *\t00000000\t00000000\t0200\t0\t0\t1\t00000000\t0\t0\t0\n\
                     wlan0\t00000000\t0100A80A\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
                     eth1\t00000000\t0100A80A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     tun0\t00000000\t0100A80A\t0003\t0\t0\t0\t00000080\t0\t0\t0\n";
        assert_eq!(default_interface(table), Some("eth1"));
        assert_eq!(default_interface("Iface\tDestination\n"), None);
        assert_eq!(default_interface(""), None);
    }
}
