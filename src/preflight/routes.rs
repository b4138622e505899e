//! Routes of the main table that take packets of the overlay away from the TUN device: it has one route, for the whole
//! network, and every longer one is preferred to it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_route::route::RouteType;

use super::host::Host;
use super::{Finding, Intended, KernelRoute};
use crate::sys::link::message::RouteEntry;

impl Host {
    pub(super) fn check_routes(&self, intended: &Intended) -> Vec<Finding> {
        let (exact, inside): (Vec<_>, Vec<_>) =
            self.routes.iter().partition(|(destination, _)| *destination == intended.network);
        // With another metric or type of service ours can be added, and is preferred. Of equal ones the first is used.
        let holder = exact.iter().find(|(_, route)| (route.tos, route.priority) == (0, 0));
        let taken =
            holder.filter(|(_, route)| !self.is_ours(route, intended) && !self.is_underlay(route, intended.network));
        let taken = taken.map(|(_, route)| Finding::RouteTaken {
            network: intended.network,
            interface: route.interface.map(|index| self.name_of(index)),
        });
        let stale = inside.into_iter().filter(|(destination, route)| self.is_stale(*destination, route, intended));
        let stale = stale.map(|(destination, route)| {
            let link = route.interface.and_then(|index| self.at(index));
            Finding::StaleRoute {
                route: self.described(*destination, route),
                vxlan: link.is_some_and(|link| link.kind.as_deref() == Some("vxlan")),
            }
        });
        taken.into_iter().chain(stale).collect()
    }

    fn is_stale(&self, destination: Ipv4Net, route: &RouteEntry, intended: &Intended) -> bool {
        // Our own pods are on this host, wherever on it: only into the tunnel and out to other hosts is the wrong way.
        if intended.subnet.contains(&destination) {
            let underlay = self.underlay.as_ref().map(|underlay| underlay.index);
            let leads_out = route.interface.is_some() && route.interface == underlay && !route.connected;
            return self.is_ours(route, intended) || leads_out;
        }
        !self.is_ours(route, intended)
            && !self.is_underlay(route, destination)
            && !self.is_of_reported_bridge(route, intended)
            && matters(route.kind)
    }

    /// Through the tunnel's own device.
    pub(super) fn is_ours(&self, route: &RouteEntry, intended: &Intended) -> bool {
        let device = self.named(&intended.tun).map(|device| device.state.index);
        route.kind == RouteType::Unicast && device.is_some() && route.interface == device
    }

    /// The network of the listen address, whose overlap is a finding already.
    fn is_underlay(&self, route: &RouteEntry, destination: Ipv4Net) -> bool {
        route.connected && self.underlay_network() == Some(IpNet::V4(destination))
    }

    /// The network of a bridge that is a finding already.
    fn is_of_reported_bridge(&self, route: &RouteEntry, intended: &Intended) -> bool {
        let link = route.interface.and_then(|index| self.at(index));
        route.connected && link.is_some_and(|link| self.bridge_elsewhere(link, intended).is_some())
    }

    fn described(&self, destination: Ipv4Net, route: &RouteEntry) -> KernelRoute {
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

/// Whether packets meet such a route at all. Broadcasts and the like are no pod's.
fn matters(kind: RouteType) -> bool {
    !matches!(kind, RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast)
}

/// What `ip route` writes in front of a route of this kind.
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
