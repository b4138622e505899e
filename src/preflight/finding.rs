//! The findings, their severities and names, and their texts.

use alloc::string::{String, ToString};
use core::fmt::{self, Display, Formatter};
use core::net::IpAddr;
use std::io;

use ipnet::IpNet;

use super::{KernelRoute, NftablesChain};

/// The severity of a finding, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// The tunnel works, and could work better.
    Hint,
    /// The tunnel may fail, or may fail for some hosts or pods.
    MayFail,
    /// The tunnel will fail.
    WillFail,
}

impl Severity {
    /// Returns the name for logs, in lower case with underscores. The name never changes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hint => "hint",
            Self::MayFail => "may_fail",
            Self::WillFail => "will_fail",
        }
    }
}

impl Display for Severity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hint => "a hint",
            Self::MayFail => "may not work",
            Self::WillFail => "will not work",
        })
    }
}

/// A finding about this host that keeps a tunnel from working, or may do so. Its text names the values and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// The process lacks the right to create or configure a TUN device.
    #[error(
        "this process lacks CAP_NET_ADMIN in the user namespace that owns this network namespace, so it can neither \
         create nor configure a TUN device; run it as root, or grant the capability and CAP_NET_RAW, which verifies \
         path MTUs (`setcap cap_net_admin,cap_net_raw+ep PROGRAM`)"
    )]
    NoNetAdmin,
    /// The device node of TUN devices is missing, or this process may not open it.
    #[error(
        "{node} cannot be opened: {}; load the kernel module (`modprobe tun`), pass the device to the container \
         (`--device {node}`), and run as a user who may read and write it",
        io::Error::from_raw_os_error(*.errno)
    )]
    TunNode {
        /// The path of the node.
        node: &'static str,
        /// The error number of the attempt.
        errno: i32,
    },
    /// The device node of TUN devices is another device, or a file.
    #[error(
        "{node} is {found} and not the device node of TUN devices; recreate it with `rm {node}` and \
         `mknod {node} c 10 200`"
    )]
    NotTunNode {
        /// The path of the node.
        node: &'static str,
        /// A description of the node, with the numbers of a device.
        found: String,
    },
    /// No interface holds the listen address.
    #[error(
        "no interface of this host holds the listen address {listen}; listen on one that `ip address` lists, or add it \
         with `ip address add {listen}/LENGTH dev INTERFACE`"
    )]
    ListenNotHeld {
        /// The listen address.
        listen: IpAddr,
    },
    /// The interface that holds the listen address is down.
    #[error("{interface}, which holds the listen address {listen}, is down; `ip link set dev {interface} up`")]
    UnderlayDown {
        /// The interface.
        interface: String,
        /// The listen address.
        listen: IpAddr,
    },
    /// The overlay network and the network of the underlay overlap.
    #[error(
        "the overlay network {network} overlaps {underlay}, the network of {interface}, which carries the datagrams: \
         {}; choose an overlay network that does not overlap",
        if *.loops {
            "the route to the overlay also matches other hosts, so their datagrams loop into the tunnel, or packets \
             bypass it"
        } else {
            "a host and a pod may have the same address, and only one of them is reachable"
        }
    )]
    Overlap {
        /// The overlay network.
        network: IpNet,
        /// The network of the interface.
        underlay: IpNet,
        /// The interface that holds the listen address.
        interface: String,
        /// True if the route to the overlay is preferred for the underlay addresses of other hosts.
        loops: bool,
    },
    /// The name of the TUN device is not valid for an interface.
    #[error(
        "{name:?} cannot name the TUN device: {problem}; use a name such as \"loden0\" or a pattern such as \"loden%d\""
    )]
    BadName {
        /// The configured name.
        name: String,
        /// The rule that the name breaks.
        problem: &'static str,
    },
    /// Another interface has the name of the TUN device.
    #[error(
        "the interface {interface} exists and is {}, not a TUN device; choose another name, or remove it with \
         `ip link delete dev {interface}`",
        .kind.as_deref().unwrap_or("hardware")
    )]
    NotTun {
        /// The interface.
        interface: String,
        /// The kind, as `ip -d link` prints it, or `None` for hardware.
        kind: Option<String>,
    },
    /// The MTU of the TUN device exceeds the MTU that the underlay leaves for inner packets.
    #[error(
        "the MTU of the TUN device {tun} is {mtu}, but {interface} with its MTU of {interface_mtu} carries packets of \
         {max_mtu} bytes; longer packets are rejected, or fragmented if they lack DF; set the device to {max_mtu}, \
         with `ip link set dev {tun} mtu {max_mtu}` if it exists"
    )]
    MtuTooLarge {
        /// The TUN device.
        tun: String,
        /// The current or configured MTU in bytes.
        mtu: u32,
        /// The interface that holds the listen address.
        interface: String,
        /// The MTU of that interface in bytes.
        interface_mtu: u32,
        /// The largest inner packet in bytes that fits into that MTU.
        max_mtu: u32,
    },
    /// The configured bridge does not exist.
    #[error(
        "there is no bridge {bridge} yet; create it with an address of {subnet}, for example with \
         `dockerd --bip` or the CNI plugin's `subnet`"
    )]
    NoBridge {
        /// The configured bridge.
        bridge: String,
        /// The subnet of this host.
        subnet: IpNet,
    },
    /// A bridge has an address of the overlay outside this host's subnet, or the configured bridge has none in the
    /// subnet.
    #[error(
        "the bridge {bridge} has {} {subnet}, this host's subnet, so its pods are unreachable; give \
         it that range, for example with `dockerd --bip`, or remove an obsolete bridge with `ip link delete dev \
         {bridge}`",
        match .address {
            Some(address) => alloc::format!("{address}, which is not in"),
            None if .subnet.addr().is_ipv6() => "no IPv6 address in".to_string(),
            None => "no IPv4 address in".to_string(),
        }
    )]
    BridgeElsewhere {
        /// The bridge.
        bridge: String,
        /// The address with its prefix length, or `None` if the bridge has no address.
        address: Option<IpNet>,
        /// The subnet of this host.
        subnet: IpNet,
    },
    /// The MTU of a bridge exceeds the MTU of the tunnel.
    #[error(
        "the bridge {bridge} has an MTU of {mtu}, but the tunnel carries packets of {max_mtu} bytes, so every pod has \
         to discover the path MTU to every destination; set the bridge and its pods to {max_mtu} (`dockerd --mtu \
         {max_mtu}`, or the CNI plugin's `mtu`)"
    )]
    BridgeMtu {
        /// The bridge.
        bridge: String,
        /// The MTU of the bridge in bytes.
        mtu: u32,
        /// The largest packet in bytes that the tunnel carries.
        max_mtu: u32,
    },
    /// Another interface has the route to the overlay network, so the TUN device would get no packet.
    #[error(
        "the route to the overlay network {network} is held by {}, so the TUN device cannot have it; remove that route \
         (`{} route show exact {network}` lists it), or choose another overlay network",
        .interface.as_deref().unwrap_or("a route without a single interface"), ip_command(*.network)
    )]
    RouteTaken {
        /// The overlay network.
        network: IpNet,
        /// The interface of the route, or `None` for a blackhole or a multipath route.
        interface: Option<String>,
    },
    /// A route to a part of the overlay network bypasses the TUN device.
    #[error(
        "packets to {} never reach the tunnel, because of the route `{route}` of a former backend or another program; \
         remove it with `{} route delete {route}`{}",
        .route.destination,
        ip_command(.route.destination),
        match &.route.interface {
            Some(device) if *.vxlan => alloc::format!(", or with its VXLAN device: `ip link delete dev {device}`"),
            _ => String::new(),
        }
    )]
    StaleRoute {
        /// The route.
        route: KernelRoute,
        /// True if the route leads to a VXLAN device.
        vxlan: bool,
    },
    /// The kernel does not forward packets.
    #[error(
        "this host does not forward packets of the tunnel: {setting} is 0; `sysctl -w {setting}=1`{}",
        if setting.contains("ipv6") {
            ", and set net.ipv6.conf.INTERFACE.accept_ra to 2 first where routes come from router advertisements"
        } else {
            ""
        }
    )]
    ForwardingOff {
        /// The setting as sysctl(8) names it.
        setting: String,
    },
    /// The kernel has no IPv6, but the tunnel needs it.
    #[error(
        "the kernel has no IPv6, which an overlay network or listen address needs; load its module (`modprobe ipv6`), or \
         boot without `ipv6.disable=1`"
    )]
    NoIpv6,
    /// IPv6 is disabled on an interface that has to carry it.
    #[error(
        "IPv6 is disabled on {}: {setting} is 1; `sysctl -w {setting}=0`",
        if *.interface == "default" { "devices created later" } else { interface.as_str() }
    )]
    Ipv6Disabled {
        /// The interface, or `default` for devices created later.
        interface: String,
        /// The setting as sysctl(8) names it.
        setting: String,
    },
    /// The MTU of the underlay leaves less than the 1280 bytes that IPv6 needs inside the tunnel.
    #[error(
        "{interface} with its MTU of {mtu} leaves {} bytes inside the tunnel, but IPv6 needs 1280; set the interface to \
         {needed} or more with `ip link set dev {interface} mtu {needed}`, on all hosts and switches of the underlay",
        mtu.saturating_sub(needed - 1280)
    )]
    UnderlayBelowIpv6 {
        /// The interface that holds the listen address.
        interface: String,
        /// The MTU of that interface in bytes.
        mtu: u32,
        /// The smallest MTU that leaves 1280 bytes: 1308 over IPv4, and 1328 over IPv6.
        needed: u32,
    },
    /// The MTU of the TUN device is below the 1280 bytes that IPv6 needs.
    #[error(
        "the MTU of the TUN device {tun} is {mtu}, but IPv6 needs 1280; set the device to 1280 or more, with `ip link \
         set dev {tun} mtu 1280` if it exists"
    )]
    TunBelowIpv6 {
        /// The TUN device.
        tun: String,
        /// The current or configured MTU in bytes.
        mtu: u32,
    },
    /// Reverse path filtering drops packets whose source the kernel would reach through another interface.
    #[error(
        "reverse path filtering is strict on {} ({cause} is 1), so the kernel drops packets that use the tunnel in one \
         direction only, as between pods and the underlay addresses of other hosts; `sysctl -w {setting}=2`",
        if *.interface == "default" { "devices created later" } else { interface.as_str() }
    )]
    StrictReversePath {
        /// The interface, or `default` for devices created later.
        interface: String,
        /// The setting that makes it strict.
        cause: String,
        /// The setting that makes it loose.
        setting: String,
    },
    /// A firewall drops forwarded packets unless a rule accepts them.
    #[error(
        "{chain} drops forwarded packets {}; accept those of the overlay with {}",
        match .rules {
            0 => "by policy and has no rules".to_string(),
            rules => alloc::format!("unless one of its {rules} rules accepts them"),
        },
        .chain.accept_network(*.network)
    )]
    ForwardDropped {
        /// The chain.
        chain: NftablesChain,
        /// The number of its rules.
        rules: u32,
        /// The overlay network.
        network: IpNet,
    },
    /// A firewall drops the datagrams of other hosts.
    #[error(
        "{chain} {}; accept the tunnel's datagrams with {}",
        if *.certain {
            alloc::format!("drops the tunnel's datagrams, because no rule accepts UDP port {port}")
        } else {
            alloc::format!(
                "may drop the tunnel's datagrams: rules for UDP port {port} accept only established connections, or \
                 cannot be evaluated"
            )
        },
        .chain.accept_port(*.port)
    )]
    InputDropped {
        /// The chain.
        chain: NftablesChain,
        /// The UDP port that the tunnel listens on.
        port: u16,
        /// True if every datagram is dropped. Otherwise some may be accepted.
        certain: bool,
    },
    /// A firewall drops the ICMPv6 messages by which hosts on a link find each other (RFC 4861).
    #[error(
        "{chain} drops neighbour discovery on {interface}, so that no host or pod there reaches this one over IPv6; \
         accept ICMPv6 with {}",
        .chain.accept_icmpv6()
    )]
    NeighboursDropped {
        /// The chain.
        chain: NftablesChain,
        /// The interface of the pods, or the interface that carries the tunnel's datagrams.
        interface: String,
    },
    /// Pods are masqueraded, and connection tracking includes the tunnel's datagrams.
    #[error(
        "{chain} {} packets of pods that leave by {interface}, and UDP port {port} is tracked: after one datagram of \
         a pod from source port {port} to another host, that host accepts it as this host's, and the pod receives the \
         datagrams that the host sends to this one; exempt the port with `nft add table {family} loden`, `nft 'add chain \
         {family} loden prerouting {{ type filter hook prerouting priority -300; }}'`, `nft add rule {family} loden \
         prerouting udp dport {port} notrack`, `nft 'add chain {family} loden output {{ type filter hook output \
         priority -300; }}'` and `nft add rule {family} loden output udp sport {port} notrack`",
        if *.certain { "masquerades" } else { "has rules that may masquerade" },
    )]
    PortTracked {
        /// The interface that carries the tunnel's datagrams.
        interface: String,
        /// The chain that masquerades.
        chain: NftablesChain,
        /// The family of the datagrams: `ip` or `ip6`.
        family: &'static str,
        /// The UDP port that the tunnel listens on.
        port: u16,
        /// True if its rules masquerade. Otherwise some rules cannot be evaluated.
        certain: bool,
    },
    /// Pods are masqueraded, and no rule keeps them from sending to the tunnels of other hosts.
    #[error(
        "pods can send datagrams by {interface} to UDP port {port} of other hosts, which may accept them as this \
         host's; drop them with `nft add table {family} loden`, `nft 'add chain {family} loden forward {{ type filter \
         hook forward priority 0; }}'` and `nft add rule {family} loden forward {family} saddr {subnet} oifname \
         {interface} udp dport {port} drop`",
        family = super::firewall::family_of(*.subnet)
    )]
    PodsReachPort {
        /// The interface that carries the tunnel's datagrams.
        interface: String,
        /// The subnet of this host.
        subnet: IpNet,
        /// The UDP port that the tunnel listens on.
        port: u16,
    },
    /// A reading failed, or is not supported.
    #[error("{subject} could not be checked: {reason}")]
    Unchecked {
        /// The subject of the reading.
        subject: String,
        /// The error, or the reason why the subject is not read.
        reason: String,
    },
}

impl Finding {
    pub(super) fn unchecked(subject: impl Into<String>, reason: &impl ToString) -> Self {
        Self::Unchecked { subject: subject.into(), reason: reason.to_string() }
    }

    /// Returns the severity.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::BridgeMtu { .. } | Self::PodsReachPort { .. } => Severity::Hint,
            Self::BridgeElsewhere { address: None, .. }
            | Self::ForwardDropped { rules: 1.., .. }
            | Self::InputDropped { certain: false, .. }
            | Self::MtuTooLarge { .. }
            | Self::NeighboursDropped { .. }
            | Self::NoBridge { .. }
            | Self::Overlap { loops: false, .. }
            | Self::PortTracked { .. }
            | Self::StrictReversePath { .. }
            | Self::Unchecked { .. } => Severity::MayFail,
            Self::BadName { .. }
            | Self::BridgeElsewhere { address: Some(_), .. }
            | Self::ForwardDropped { rules: 0, .. }
            | Self::ForwardingOff { .. }
            | Self::InputDropped { certain: true, .. }
            | Self::Ipv6Disabled { .. }
            | Self::ListenNotHeld { .. }
            | Self::NoIpv6
            | Self::NoNetAdmin
            | Self::NotTun { .. }
            | Self::NotTunNode { .. }
            | Self::Overlap { loops: true, .. }
            | Self::RouteTaken { .. }
            | Self::StaleRoute { .. }
            | Self::TunBelowIpv6 { .. }
            | Self::TunNode { .. }
            | Self::UnderlayBelowIpv6 { .. }
            | Self::UnderlayDown { .. } => Severity::WillFail,
        }
    }

    /// Returns the name for logs, in lower case with underscores. The name never changes.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BadName { .. } => "bad_name",
            Self::BridgeElsewhere { .. } => "bridge_elsewhere",
            Self::BridgeMtu { .. } => "bridge_mtu",
            Self::ForwardDropped { .. } => "forward_dropped",
            Self::ForwardingOff { .. } => "forwarding_off",
            Self::InputDropped { .. } => "input_dropped",
            Self::Ipv6Disabled { .. } => "ipv6_disabled",
            Self::ListenNotHeld { .. } => "listen_not_held",
            Self::MtuTooLarge { .. } => "mtu_too_large",
            Self::NeighboursDropped { .. } => "neighbours_dropped",
            Self::NoBridge { .. } => "no_bridge",
            Self::NoIpv6 => "no_ipv6",
            Self::NoNetAdmin => "no_net_admin",
            Self::NotTun { .. } => "not_tun",
            Self::NotTunNode { .. } => "not_tun_node",
            Self::Overlap { .. } => "overlap",
            Self::PodsReachPort { .. } => "pods_reach_port",
            Self::PortTracked { .. } => "port_tracked",
            Self::RouteTaken { .. } => "route_taken",
            Self::StaleRoute { .. } => "stale_route",
            Self::StrictReversePath { .. } => "strict_reverse_path",
            Self::TunBelowIpv6 { .. } => "tun_below_ipv6",
            Self::TunNode { .. } => "tun_node",
            Self::Unchecked { .. } => "unchecked",
            Self::UnderlayBelowIpv6 { .. } => "underlay_below_ipv6",
            Self::UnderlayDown { .. } => "underlay_down",
        }
    }
}

/// Returns the command of iproute2 for routes of a family.
fn ip_command(network: IpNet) -> &'static str {
    match network {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip -6",
    }
}
