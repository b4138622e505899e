//! The interface to the other hosts, in flannel's order: `--iface`, `--iface-regex`, `--iface-can-reach`, and without
//! any of them the interface of the public address or of the default route.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use loden::sys::link::{interface_named, interface_of};
use nix::ifaddrs::getifaddrs;
use regex::Regex;
use tokio::time::sleep;

use crate::Error;
use crate::args::NodeArgs;

/// The kernel's main table of IPv4 routes.
const ROUTES: &str = "/proc/net/route";
/// The kernel's IPv6 addresses.
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";
/// The longest wait for the end of duplicate address detection, which takes a second or two (RFC 4862).
const DETECTION: Duration = Duration::from_secs(5);

/// The underlay interface, and the addresses by which other hosts reach this one.
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    pub(crate) public_ip: Ipv4Addr,
    /// The IPv6 address that selected the interface.
    ipv6: Option<Ipv6Addr>,
    public_ipv6: Option<Ipv6Addr>,
}

/// The IPv6 addresses of a host in a dual-stack network.
#[derive(Clone, Copy)]
pub(crate) struct PlaceV6 {
    pub(crate) address: Ipv6Addr,
    pub(crate) public_ipv6: Ipv6Addr,
}

/// The addresses of the underlay interface.
struct Found {
    ipv4: Ipv4Addr,
    /// Set if the interface was selected by an IPv6 address.
    ipv6: Option<Ipv6Addr>,
}

/// An interface and its addresses in the order of the kernel.
struct Interface {
    name: String,
    addresses: Vec<IpAddr>,
}

impl Place {
    /// Finds the interface that the options describe.
    pub(crate) fn find(args: &NodeArgs) -> Result<Self, Error> {
        let Found { ipv4, ipv6 } = underlay(args)?;
        let public_ip = args.public_ip.unwrap_or(ipv4);
        Ok(Self { address: ipv4.into(), public_ip, ipv6, public_ipv6: args.public_ipv6 })
    }

    /// Returns the IPv6 addresses, or `None` if the interface has no usable one.
    pub(crate) async fn ipv6(&self) -> Result<Option<PlaceV6>, Error> {
        let interface = interface_of(self.address)?.name;
        let start = Instant::now();
        let address = loop {
            let table = std::fs::read_to_string(IPV6_ADDRESSES).unwrap_or_default();
            let (found, undecided) = match self.ipv6 {
                Some(address) => (Some(address), is_tentative(&table, address)),
                None => global_address(&table, &interface),
            };
            if !undecided || start.elapsed() >= DETECTION {
                break found;
            }
            sleep(Duration::from_millis(100)).await;
        };
        match (address, self.public_ipv6) {
            (Some(address), public) => Ok(Some(PlaceV6 { address, public_ipv6: public.unwrap_or(address) })),
            (None, None) => Ok(None),
            (None, Some(public)) => Err(format!(
                "--public-ipv6 {public} needs an IPv6 address of {interface}, which has none; add one or omit the option"
            )
            .into()),
        }
    }
}

/// The flags of an address in [`IPV6_ADDRESSES`] (linux/if_addr.h).
mod flag {
    pub(super) const TEMPORARY: u8 = 0x01;
    pub(super) const DETECTION_FAILED: u8 = 0x08;
    pub(super) const DEPRECATED: u8 = 0x20;
    pub(super) const TENTATIVE: u8 = 0x40;
}

/// Returns the addresses of global scope with their interfaces and flags.
fn global_addresses(table: &str) -> impl Iterator<Item = (Ipv6Addr, &str, u8)> {
    table.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let &[address, _, _, "00", flags, name] = columns.as_slice() else { return None };
        let address = u128::from_str_radix(address, 16).ok()?;
        Some((Ipv6Addr::from_bits(address), name, u8::from_str_radix(flags, 16).ok()?))
    })
}

/// Returns the first address of an interface that lasts. The flag is true if there may be one in a moment.
fn global_address(table: &str, interface: &str) -> (Option<Ipv6Addr>, bool) {
    let passing = flag::TEMPORARY | flag::DETECTION_FAILED | flag::DEPRECATED;
    let lasting = || global_addresses(table).filter(|(_, name, flags)| *name == interface && flags & passing == 0);
    let found = lasting().find(|(.., flags)| flags & flag::TENTATIVE == 0).map(|(address, ..)| address);
    (found, found.is_none() && lasting().next().is_some())
}

fn is_tentative(table: &str, address: Ipv6Addr) -> bool {
    global_addresses(table).any(|(other, _, flags)| other == address && flags & flag::TENTATIVE != 0)
}

fn underlay(args: &NodeArgs) -> Result<Found, Error> {
    if args.iface.is_empty() && args.iface_regex.is_empty() && args.iface_can_reach.is_none() {
        let public = args.public_ip.map(IpAddr::from).or(args.public_ipv6.map(IpAddr::from));
        return match public {
            Some(address) => of_address(address)
                .map_err(|error| format!("{error}; if a router translates it, set --iface too").into()),
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

fn named(iface: &str) -> Result<Found, Error> {
    match iface.parse::<IpAddr>() {
        Ok(address) => of_address(address),
        Err(_) => of_interface(iface, None),
    }
}

/// Returns the addresses of the interface that holds this address.
fn of_address(address: IpAddr) -> Result<Found, Error> {
    let interface = interface_of(address)?;
    match address {
        IpAddr::V4(ipv4) => Ok(Found { ipv4, ipv6: None }),
        IpAddr::V6(ipv6) if ipv6.is_loopback() || ipv6.is_unicast_link_local() => {
            Err(format!("{ipv6} is no address by which other hosts reach this one").into())
        }
        IpAddr::V6(ipv6) => of_interface(&interface.name, Some(ipv6)),
    }
}

fn of_interface(name: &str, ipv6: Option<Ipv6Addr>) -> Result<Found, Error> {
    match interface_named(name)?.address {
        IpAddr::V4(ipv4) => Ok(Found { ipv4, ipv6 }),
        IpAddr::V6(_) => Err(format!("{name} has no IPv4 address, which the udp backend needs; add one").into()),
    }
}

/// Returns the first address that matches, or else the address of the first interface whose name matches.
fn matching(pattern: &Regex) -> Result<Found, Error> {
    let interfaces = interfaces()?;
    let addresses = interfaces.iter().flat_map(|interface| &interface.addresses).copied();
    let mut usable = addresses.filter(|address| !address.is_loopback() && !address.is_unspecified());
    if let Some(address) = usable.find(|address| pattern.is_match(&address.to_string())) {
        return of_address(address);
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
        let address = entry.address.as_ref();
        let ipv4 = address.and_then(|address| address.as_sockaddr_in()).map(|address| IpAddr::from(address.ip()));
        let ipv6 = address.and_then(|address| address.as_sockaddr_in6()).map(|address| address.ip());
        // A link-local address does not lead beyond its link.
        let ipv6 = ipv6.filter(|address| !address.is_unicast_link_local()).map(IpAddr::from);
        if let Some(interface) = interfaces.get_mut(at) {
            interface.addresses.extend(ipv4.or(ipv6));
        }
    }
    Ok(interfaces)
}

/// Returns the source address of packets to a destination, as `ip route get` shows it.
fn source_to(destination: IpAddr) -> Result<Found, Error> {
    let any: IpAddr = if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse()? };
    // This sends nothing. The kernel only looks up the route.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((destination, 9))?;
        socket.local_addr()
    });
    of_address(source.map_err(|error| format!("--iface-can-reach {destination}: {error}"))?.ip())
}

fn of_default_route() -> Result<Found, Error> {
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

    /// Temporary, deprecated and link-local addresses do not count.
    #[test]
    fn the_first_lasting_address_of_global_scope_counts() {
        let table = "fe800000000000000000000000000002 02 40 20 80     eth0\n\
                     fd000168000000000000000000000009 02 40 00 01     eth0\n\
                     fd000168000000000000000000000008 02 40 00 20     eth0\n\
                     fd000168000000000000000000000007 02 40 00 40     eth0\n\
                     fd000168000000000000000000000002 02 40 00 80     eth0\n\
                     fd000168000000000000000000000003 02 40 00 80     eth0\n\
                     fd000169000000000000000000000002 03 40 00 40     eth1\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        assert_eq!(global_address(table, "eth0"), ("fd00:168::2".parse().ok(), false));
        assert_eq!(global_address(table, "eth1"), (None, true), "it is tentative");
        assert_eq!(global_address(table, "lo"), (None, false));
        assert_eq!(global_address("", "eth0"), (None, false));
    }
}
