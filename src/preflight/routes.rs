//! Findings about routes of the main table that keep packets of the overlay from the TUN device.
//!
//! The TUN device has one route, to the whole overlay network. The kernel prefers every longer prefix to it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Display, Formatter};
use core::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::RouteType;

use super::host::Host;
use super::{Finding, PreflightConfig};
use crate::sys::link::message::RouteEntry;

/// A route of the kernel's main table, displayed in the syntax of `ip route`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelRoute {
    /// The type of the route, such as `blackhole` or `unreachable`. Empty for a unicast route.
    pub kind: &'static str,
    /// The destination.
    pub destination: IpNet,
    /// The type of service, or 0 for any.
    pub tos: u8,
    /// The gateway, if the route has exactly one.
    pub gateway: Option<IpAddr>,
    /// The interface, if the route has exactly one.
    pub interface: Option<String>,
    /// The metric, or 0 for none.
    pub metric: u32,
}

impl Display for KernelRoute {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if !self.kind.is_empty() {
            write!(f, "{} ", self.kind)?;
        }
        write!(f, "{}", self.destination)?;
        if self.tos != 0 {
            write!(f, " tos {:#04x}", self.tos)?;
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(interface) = &self.interface {
            write!(f, " dev {interface}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

impl Host {
    pub(super) fn check_routes(&self, config: &PreflightConfig) -> Vec<Finding> {
        /// The metric of the tunnel's IPv6 route (`IP6_RT_PRIO_USER` in linux/ipv6_route.h).
        const IPV6_METRIC: u32 = 1024;
        let (exact, inside): (Vec<_>, Vec<_>) =
            self.routes.iter().partition(|(destination, _)| config.networks.contains(destination));
        let taken = config.networks.iter().filter_map(|network| {
            // The tunnel's route can be added beside routes with a type of service, or with a larger metric. The kernel
            // uses the first of equal routes.
            let most = if network.addr().is_ipv6() { IPV6_METRIC } else { 0 };
            let precedes = |route: &RouteEntry| route.tos == 0 && route.priority <= most;
            let (_, holder) = exact.iter().find(|(to, route)| to == network && precedes(route))?;
            let is_taken = !self.is_ours(holder, config) && !self.is_underlay(holder, *network);
            let interface = holder.interface.filter(|_| holder.kind == RouteType::Unicast);
            let interface = interface.map(|index| self.name_of(index));
            is_taken.then_some(Finding::RouteTaken { network: *network, interface })
        });
        let stale = inside.into_iter().filter(|(destination, route)| self.is_stale(*destination, route, config));
        let stale = stale.map(|(destination, route)| {
            let link = route.interface.and_then(|index| self.at(index));
            Finding::StaleRoute {
                route: self.describe(*destination, route),
                vxlan: link.is_some_and(|link| link.kind.as_deref() == Some("vxlan")),
            }
        });
        taken.into_iter().chain(stale).collect()
    }

    fn is_stale(&self, destination: IpNet, route: &RouteEntry, config: &PreflightConfig) -> bool {
        // The pods of the own subnet are on this host. A route into the tunnel or to another host is wrong.
        if config.subnets.iter().any(|subnet| subnet.contains(&destination)) {
            let leads_out = |index| self.underlays().any(|underlay| underlay.index == index) && !route.connected;
            return self.is_route_into_subnet(destination, route, config) || route.interface.is_some_and(leads_out);
        }
        !self.is_ours(route, config)
            && !self.is_underlay(route, destination)
            && !self.is_of_reported_bridge(route, config)
            && affects_pods(route.kind)
    }

    /// Returns true for a route of the own subnet that leads into the tunnel. The kernel adds one to the device's own
    /// address.
    fn is_route_into_subnet(&self, destination: IpNet, route: &RouteEntry, config: &PreflightConfig) -> bool {
        let is_own_address = config.addresses.iter().any(|address| destination == IpNet::from(*address));
        self.is_ours(route, config) && !(route.is_ipv6 && route.connected && is_own_address)
    }

    /// Returns true for a route through the tunnel's own device.
    pub(super) fn is_ours(&self, route: &RouteEntry, config: &PreflightConfig) -> bool {
        let device = self.named(&config.tun).map(|device| device.state.index);
        route.kind == RouteType::Unicast && device.is_some() && route.interface == device
    }

    /// Returns true for the connected route of the listen address. Its overlap is a finding of its own.
    fn is_underlay(&self, route: &RouteEntry, destination: IpNet) -> bool {
        route.connected && self.underlays().any(|underlay| self.underlay_network(underlay) == Some(destination))
    }

    /// Returns true for the connected route of a bridge that is a finding of its own.
    fn is_of_reported_bridge(&self, route: &RouteEntry, config: &PreflightConfig) -> bool {
        let link = route.interface.and_then(|index| self.at(index));
        route.connected && link.is_some_and(|link| !self.bridge_elsewhere(link, config).is_empty())
    }

    fn describe(&self, destination: IpNet, route: &RouteEntry) -> KernelRoute {
        KernelRoute {
            kind: kind_name(route.kind),
            destination,
            tos: route.tos,
            gateway: route.gateway,
            interface: route.interface.map(|index| self.name_of(index)),
            metric: route.priority,
        }
    }

    fn name_of(&self, index: u32) -> String {
        self.at(index).map_or_else(|| index.to_string(), |link| link.state.name.clone())
    }
}

/// Returns true if packets to pods can match a route of this type.
fn affects_pods(kind: RouteType) -> bool {
    !matches!(kind, RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast)
}

/// Returns the type of the route as `ip route` prints it.
fn kind_name(kind: RouteType) -> &'static str {
    const NAMED: [(RouteType, &str); 5] = [
        (RouteType::Local, "local"),
        (RouteType::BlackHole, "blackhole"),
        (RouteType::Unreachable, "unreachable"),
        (RouteType::Prohibit, "prohibit"),
        (RouteType::Throw, "throw"),
    ];
    NAMED.iter().find(|(named, _)| *named == kind).map_or("", |(_, name)| name)
}
