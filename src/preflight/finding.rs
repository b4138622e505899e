//! What can be found, in words and by name.

use alloc::string::{String, ToString};
use core::fmt::{self, Display, Formatter};
use core::net::{IpAddr, Ipv4Addr};
use std::io;

use ipnet::Ipv4Net;

/// How bad a finding is. Later ones are worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// It works, and could work better.
    Hint,
    /// It may not work, or not for everybody.
    MayFail,
    /// It will not work.
    WillFail,
}

impl Severity {
    /// The name in logs: lower case with underscores, and it never changes.
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

/// Which firewall a chain belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Firewall {
    /// A chain of iptables-legacy.
    IptablesLegacy {
        /// `FORWARD` or `INPUT` of the table `filter`, or `POSTROUTING` of the table `nat`.
        chain: &'static str,
    },
    /// A chain of nftables, which is also where iptables-nft keeps its own.
    Nftables {
        /// `ip` or `inet`.
        family: &'static str,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
}

impl Firewall {
    /// The command that makes it accept datagrams to the port.
    fn accept_port(&self, port: u16) -> String {
        let iptables = |program| alloc::format!("`{program} -I INPUT -p udp --dport {port} -j ACCEPT`");
        match self {
            Self::IptablesLegacy { .. } => iptables("iptables-legacy"),
            Self::Nftables { family: "ip", table, chain } if table == "filter" && chain == "INPUT" => {
                iptables("iptables")
            }
            Self::Nftables { family, table, chain } => {
                alloc::format!("`nft insert rule {family} {table} {chain} udp dport {port} accept`")
            }
        }
    }

    /// The commands that make it accept packets from and to the network.
    fn accept(&self, network: Ipv4Net) -> String {
        let iptables = |program| {
            alloc::format!(
                "`{program} -I FORWARD -s {network} -j ACCEPT` and `{program} -I FORWARD -d {network} -j ACCEPT`"
            )
        };
        match self {
            Self::IptablesLegacy { .. } => iptables("iptables-legacy"),
            // The names are those of iptables-nft, which may refuse to show a chain that was changed past it.
            Self::Nftables { family: "ip", table, chain } if table == "filter" && chain == "FORWARD" => {
                iptables("iptables")
            }
            Self::Nftables { family, table, chain } => {
                let rule = alloc::format!("nft insert rule {family} {table} {chain}");
                alloc::format!("`{rule} ip saddr {network} accept` and `{rule} ip daddr {network} accept`")
            }
        }
    }
}

impl Display for Firewall {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::IptablesLegacy { chain } => write!(f, "the chain {chain} of iptables-legacy"),
            Self::Nftables { family, table, chain } => write!(f, "the nftables chain {family} {table} {chain}"),
        }
    }
}

/// A route of the kernel's main table. In words it is what `ip route` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelRoute {
    /// What becomes of the packets: `blackhole`, `unreachable`, and empty for usual routes.
    pub kind: &'static str,
    /// The addresses it is for.
    pub destination: Ipv4Net,
    /// The type of service it is for; 0 for all.
    pub tos: u8,
    /// The host it leads to, if it does to a single one.
    pub gateway: Option<IpAddr>,
    /// The interface it leads to, if it does to a single one.
    pub interface: Option<String>,
    /// The metric, 0 for none.
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

/// Something that keeps the tunnel from working, or may. In words it says what is wrong, with the numbers, and what mends it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// The process may not make or configure a TUN device.
    #[error(
        "this process lacks CAP_NET_ADMIN in the user namespace that owns this network namespace, so that it can neither \
         make nor configure a TUN device; run it as root, or grant the capability, and the one that verifies path MTUs \
         (`setcap cap_net_admin,cap_net_raw+ep PROGRAM`)"
    )]
    NoNetAdmin,
    /// The node that TUN devices come from is missing or closed to us.
    #[error(
        "{node} cannot be opened: {}; load the kernel's module (`modprobe tun`), in a container pass the device in \
         (`--device {node}`), and run as a user who may read and write it",
        io::Error::from_raw_os_error(*.errno)
    )]
    TunNode {
        /// Its path.
        node: &'static str,
        /// The error number of the attempt.
        errno: i32,
    },
    /// The node that TUN devices come from is another device, or a file.
    #[error(
        "{node} is {found} and not the node that TUN devices come from; make it anew with `rm {node}` and \
         `mknod {node} c 10 200`"
    )]
    NotTunNode {
        /// Its path.
        node: &'static str,
        /// A description of it, with the numbers of a device.
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
    /// Addresses of the underlay are in the overlay network, or the other way about.
    #[error(
        "the overlay network {network} overlaps {underlay}, the network of {interface} that the datagrams travel on: {}; \
         choose an overlay network apart from it",
        if *.loops {
            "datagrams to other hosts are routed into the tunnel, round and round, or the overlay's packets past it"
        } else {
            "a host and a pod may have the same address, and only one of them is reached"
        }
    )]
    Overlap {
        /// The overlay network.
        network: Ipv4Net,
        /// The network of the interface.
        underlay: Ipv4Net,
        /// The interface that holds the listen address.
        interface: String,
        /// Whether the route to the overlay is the better one for other hosts' underlay addresses.
        loops: bool,
    },
    /// No interface can have the name of the TUN device.
    #[error(
        "{name:?} cannot name the TUN device: {problem}; use a name such as \"loden0\" or a pattern such as \"loden%d\""
    )]
    BadName {
        /// What is intended.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The name of the TUN device is another interface's.
    #[error(
        "the interface {interface} exists and is {}, not a TUN device; choose another name, or remove it with \
         `ip link delete dev {interface}`",
        .kind.as_deref().unwrap_or("hardware")
    )]
    NotTun {
        /// The interface.
        interface: String,
        /// Its kind, as `ip -d link` tells it; `None` for hardware.
        kind: Option<String>,
    },
    /// The TUN device takes longer packets than the underlay carries.
    #[error(
        "the MTU of the TUN device {tun} is {mtu}, but {interface} with its MTU of {interface_mtu} carries packets of {most} \
         bytes; longer ones are refused, or go in fragments without DF: give the device {most}, \
         `ip link set dev {tun} mtu {most}` if it exists"
    )]
    MtuTooLarge {
        /// The TUN device.
        tun: String,
        /// The MTU it has, or is going to have, in bytes.
        mtu: u32,
        /// The interface that holds the listen address.
        interface: String,
        /// Its MTU in bytes.
        interface_mtu: u32,
        /// The longest inner packet in bytes that fits into that.
        most: u32,
    },
    /// The bridge that was named does not exist.
    #[error(
        "there is no bridge {bridge} yet; when it is made, it needs an address of {subnet}, for example by \
         `dockerd --bip` or the CNI plugin's `subnet`"
    )]
    NoBridge {
        /// The bridge that was named.
        bridge: String,
        /// The subnet of this host.
        subnet: Ipv4Net,
    },
    /// A bridge has addresses of the overlay that are not this host's, or the named one has none that are.
    #[error(
        "the bridge {bridge} has {}, which is not in {subnet}, this host's subnet: its pods cannot be reached; give it that \
         range, for example with `dockerd --bip`, or remove an old one with `ip link delete dev {bridge}`",
        .address.map_or_else(|| "no IPv4 address".to_string(), |address| address.to_string())
    )]
    BridgeElsewhere {
        /// The bridge.
        bridge: String,
        /// The address with the prefix length; `None`: it has none.
        address: Option<Ipv4Net>,
        /// The subnet of this host.
        subnet: Ipv4Net,
    },
    /// Pods begin with longer packets than pass.
    #[error(
        "the bridge {bridge} has an MTU of {mtu}, but packets of {most} bytes pass the tunnel: every pod has to learn that \
         for every destination; give the bridge and its pods {most} (`dockerd --mtu {most}`, or the CNI plugin's `mtu`)"
    )]
    BridgeMtu {
        /// The bridge.
        bridge: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// The longest packet in bytes that passes the tunnel.
        most: u32,
    },
    /// The overlay network is routed elsewhere, so that no packet would reach the TUN device.
    #[error(
        "the route to the overlay network {network} is held by {}, so that the TUN device cannot have it; remove what holds \
         it (`ip route show exact {network}` lists it), or choose another overlay network",
        .interface.as_deref().unwrap_or("a route without a single interface")
    )]
    RouteTaken {
        /// The overlay network.
        network: Ipv4Net,
        /// Where the route points to; `None` for a blackhole, a multipath route and the like.
        interface: Option<String>,
    },
    /// A route inside of the overlay network leads past the TUN device.
    #[error(
        "packets to {} never reach the tunnel: a former backend, or somebody else, left the route `{route}`; remove it with \
         `ip route delete {route}`{}",
        .route.destination,
        match &.route.interface {
            Some(device) if *.vxlan => alloc::format!(", or with its VXLAN device: `ip link delete dev {device}`"),
            _ => String::new(),
        }
    )]
    StaleRoute {
        /// The route.
        route: KernelRoute,
        /// Whether it leads to a VXLAN device, which a former backend left too.
        vxlan: bool,
    },
    /// The kernel does not forward.
    #[error("this host does not forward packets of the tunnel: {setting} is 0; `sysctl -w {setting}=1`")]
    ForwardingOff {
        /// The setting as sysctl(8) names it.
        setting: String,
    },
    /// The kernel drops packets that come from where it would not send the answer.
    #[error(
        "reverse path filtering is strict on {} ({because} is 1): what goes one way through the tunnel and the other past \
         it, as between pods and other hosts' own addresses, is dropped without a word; `sysctl -w {setting}=2`",
        if *.interface == "default" { "devices that are made from now on" } else { interface.as_str() }
    )]
    StrictReversePath {
        /// The interface; `default` stands for devices that are made from now on.
        interface: String,
        /// The setting that makes it strict.
        because: String,
        /// The setting that makes it loose.
        setting: String,
    },
    /// A firewall drops what is forwarded unless a rule accepts it.
    #[error(
        "{firewall} drops forwarded packets {}; accept the overlay's with {}",
        match .rules {
            0 => "by policy and has no rule that accepts any".to_string(),
            rules => alloc::format!("unless one of its {rules} rules accepts them"),
        },
        .firewall.accept(*.network)
    )]
    ForwardDropped {
        /// The chain.
        firewall: Firewall,
        /// How many rules it has.
        rules: u32,
        /// The overlay network.
        network: Ipv4Net,
    },
    /// A firewall drops the datagrams of other hosts.
    #[error(
        "{firewall} {}; accept the tunnel's datagrams with {}",
        if *.certain {
            alloc::format!("drops the tunnel's datagrams: it has no rule that accepts UDP port {port}")
        } else {
            alloc::format!(
                "may drop the tunnel's datagrams: no rule of it surely accepts the first datagram of another host to UDP port {port}: some accept only \
                 answers, or cannot be judged"
            )
        },
        .firewall.accept_port(*.port)
    )]
    InputDropped {
        /// The chain.
        firewall: Firewall,
        /// The UDP port that the tunnel listens on.
        port: u16,
        /// No datagram is accepted; else some may be.
        certain: bool,
    },
    /// Pods are masqueraded, and the tunnel's datagrams take part in connection tracking.
    #[error(
        "{firewall} {} packets of pods that leave by {interface}, and UDP port {port} is tracked: one datagram of a pod from \
         source port {port} diverts to the pod what another host sends to this one, and is taken by that host for one of this \
         host; exempt the port with `nft add table ip loden`, \
         `nft 'add chain ip loden prerouting {{ type filter hook prerouting priority -300; }}'`, \
         `nft add rule ip loden prerouting udp dport {port} notrack`, \
         `nft 'add chain ip loden output {{ type filter hook output priority -300; }}'` and \
         `nft add rule ip loden output udp sport {port} notrack`",
        if *.certain { "masquerades" } else { "has rules that may masquerade" },
    )]
    PortTracked {
        /// The interface that carries the tunnel's datagrams.
        interface: String,
        /// The chain that masquerades.
        firewall: Firewall,
        /// The UDP port that the tunnel listens on.
        port: u16,
        /// Whether its rules surely do; else some cannot be judged.
        certain: bool,
    },
    /// Pods are masqueraded, and may send to the tunnels of other hosts.
    #[error(
        "pods may send datagrams by {interface} to UDP port {port} of other hosts, which may take them for this host's; \
         forbid it with `nft add table ip loden`, `nft 'add chain ip loden forward {{ type filter hook forward priority 0; }}'` and \
         `nft add rule ip loden forward ip saddr {subnet} oifname {interface} udp dport {port} drop`"
    )]
    PodsReachPort {
        /// The interface that carries the tunnel's datagrams.
        interface: String,
        /// The subnet of this host.
        subnet: Ipv4Net,
        /// The UDP port that the tunnel listens on.
        port: u16,
    },
    /// The address of the TUN device is a broadcast address, as it is before Linux 5.14 if a bridge has the subnet's first address.
    #[error(
        "{address}, the address of the TUN device, is a broadcast address of {interface}, so that packets to it are lost; \
         `Link::configure` puts a local route in front, as does `ip route prepend local {address} dev {tun} table local`"
    )]
    TunAddressBroadcast {
        /// The address.
        address: Ipv4Addr,
        /// The interface with an address of the same network.
        interface: String,
        /// The TUN device.
        tun: String,
    },
    /// The kernel could not be asked.
    #[error("{what} could not be checked: {why}")]
    Unchecked {
        /// What was to be read.
        what: String,
        /// Why it could not.
        why: String,
    },
}

impl Finding {
    pub(super) fn unchecked(what: impl Into<String>, why: &impl ToString) -> Self {
        Self::Unchecked { what: what.into(), why: why.to_string() }
    }

    /// How bad it is.
    #[must_use]
    pub const fn severity(&self) -> Severity {
        match self {
            Self::BridgeMtu { .. } | Self::PodsReachPort { .. } | Self::TunAddressBroadcast { .. } => Severity::Hint,
            Self::BridgeElsewhere { address: None, .. }
            | Self::ForwardDropped { rules: 1.., .. }
            | Self::InputDropped { certain: false, .. }
            | Self::MtuTooLarge { .. }
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
            | Self::ListenNotHeld { .. }
            | Self::NoNetAdmin
            | Self::NotTun { .. }
            | Self::NotTunNode { .. }
            | Self::Overlap { loops: true, .. }
            | Self::RouteTaken { .. }
            | Self::StaleRoute { .. }
            | Self::TunNode { .. }
            | Self::UnderlayDown { .. } => Severity::WillFail,
        }
    }

    /// The name in logs: lower case with underscores, and it never changes.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BadName { .. } => "bad_name",
            Self::BridgeElsewhere { .. } => "bridge_elsewhere",
            Self::BridgeMtu { .. } => "bridge_mtu",
            Self::ForwardDropped { .. } => "forward_dropped",
            Self::ForwardingOff { .. } => "forwarding_off",
            Self::InputDropped { .. } => "input_dropped",
            Self::ListenNotHeld { .. } => "listen_not_held",
            Self::MtuTooLarge { .. } => "mtu_too_large",
            Self::NoBridge { .. } => "no_bridge",
            Self::NoNetAdmin => "no_net_admin",
            Self::NotTun { .. } => "not_tun",
            Self::NotTunNode { .. } => "not_tun_node",
            Self::Overlap { .. } => "overlap",
            Self::PodsReachPort { .. } => "pods_reach_port",
            Self::PortTracked { .. } => "port_tracked",
            Self::RouteTaken { .. } => "route_taken",
            Self::StaleRoute { .. } => "stale_route",
            Self::StrictReversePath { .. } => "strict_reverse_path",
            Self::TunAddressBroadcast { .. } => "tun_address_broadcast",
            Self::TunNode { .. } => "tun_node",
            Self::Unchecked { .. } => "unchecked",
            Self::UnderlayDown { .. } => "underlay_down",
        }
    }
}
