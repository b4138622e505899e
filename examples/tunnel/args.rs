//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use loden::forward::{
    EcnEgress, EcnIngress, ForwarderConfig, IcmpSource, Icmpv6Source, PeerCheck, SourceCheck, SourcePort, Transit,
    TtlPolicy,
};
use loden::sys::{TunOffload, UdpOffload};
use loden::{Host, HostError, Mtu};

/// flannel's port.
const DEFAULT_PORT: u16 = 8285;

/// Carries packets for other hosts' subnets to those hosts, as flannel's UDP mode does.
#[derive(Parser)]
#[command(name = "tunnel", version, max_term_width = 100)]
pub(crate) struct Args {
    /// TUN device: a name, or a pattern in which %d stands for the first free number
    #[arg(long, value_name = "NAME", default_value = "loden%d")]
    pub(crate) tun: String,
    /// The subnet this host owns, 100.96.1.0/24 for example; may be repeated
    #[arg(long, value_name = "SUBNET", required = true, value_parser = parse_subnet)]
    pub(crate) subnet: Vec<IpNet>,
    /// The network all hosts share, 100.96.0.0/16 for example; once for each of IPv4 and IPv6
    #[arg(long, value_name = "NETWORK", required = true, value_parser = parse_subnet)]
    pub(crate) network: Vec<IpNet>,
    /// Address of this host, and port, that peers send to, IPv6 in brackets; once for each family [port: 8285]
    #[arg(long, value_name = "ADDR[:PORT]", required = true, value_parser = listen_address)]
    pub(crate) listen: Vec<SocketAddr>,
    /// A subnet and the host that owns it; may be repeated [port: that of --listen]
    #[arg(long, value_name = "SUBNET=ADDR[:PORT]")]
    pub(crate) route: Vec<RouteArg>,
    /// A file of routes, `SUBNET ADDR[:PORT]` in each line; SIGHUP reads it again
    #[arg(long, value_name = "FILE")]
    pub(crate) routes_file: Option<PathBuf>,
    /// MTU of the TUN device [default: that of the interface to the peers, less 28]
    #[arg(long, value_name = "BYTES", value_parser = mtu)]
    pub(crate) mtu: Option<Mtu>,
    /// Ends of the tunnel that decrement the TTL: both as flannel does, the sending one, or neither
    #[arg(long, value_name = "POLICY", default_value = "both")]
    pub(crate) ttl: Ttl,
    /// Source address of ICMP errors to the own pods; may be repeated with IPv6 [default: the address that could not be
    /// reached, over IPv6 that of the TUN device]
    #[arg(long, value_name = "ADDR")]
    pub(crate) icmp_source: Vec<IpAddr>,
    /// Check of a datagram's sender: the address of a peer, address and port, or (for peers behind NAT) none
    #[arg(long, value_name = "CHECK", default_value = "address")]
    pub(crate) peer_check: PeerCheckArg,
    /// Let a known peer send from any inner address; unknown senders stay refused
    #[arg(long)]
    pub(crate) no_source_check: bool,
    /// Deliver packets from peers that are not for the own subnet
    #[arg(long)]
    pub(crate) transit: bool,
    /// Queues of the TUN device, each with a socket and a thread
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) queues: u16,
    /// UDP source ports for the flows to one peer; 0: all use the listen port
    #[arg(long, value_name = "N", default_value = "0", value_parser = clap::value_parser!(u16).range(0..=256))]
    pub(crate) source_ports: u16,
    /// Offloads to use, of tun-tso, tun-uso, udp-gso and udp-gro; the kernel may have fewer [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', conflicts_with = "no_offload")]
    pub(crate) offload: Option<Vec<OffloadArg>>,
    /// Use no offloads, and move one packet with each system call
    #[arg(long)]
    pub(crate) no_offload: bool,
    /// Copy the ECN field of packets to the outer header; all peers must read it there, which flannel does not
    #[arg(long)]
    pub(crate) ecn_copy: bool,
    /// Ignore congestion marks on outer headers, as flannel does
    #[arg(long, conflicts_with = "ecn_copy")]
    pub(crate) ecn_ignore: bool,
    /// Only print findings that keep the tunnel from working on this host, and change nothing; status 1 if there is one
    #[arg(long)]
    pub(crate) check: bool,
    /// Bridge of the pods, which is checked too [default: those with addresses of the overlay]
    #[arg(long, value_name = "NAME")]
    pub(crate) bridge: Option<String>,
    /// Interval in seconds for printing the counters
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) stats: Option<Duration>,
    /// Unix socket for flannel's commands (set route, delete route, stop)
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
}

impl Args {
    /// Returns the next hops of the command line's routes.
    pub(crate) fn peers(&self) -> Vec<IpAddr> {
        self.route.iter().map(|route| route.next_hop.ip()).collect()
    }

    /// The settings of the forwarder, for packets of so many bytes or flannel's usual ones.
    pub(crate) fn config(&self, host: &Host, mtu: Option<Mtu>) -> ForwarderConfig {
        let mut config = ForwarderConfig::new(host).with_ttl(self.ttl.into()).with_peer_check(self.peer_check.into());
        for source in &self.icmp_source {
            config = match *source {
                IpAddr::V4(source) => config.with_icmp_source(IcmpSource::Fixed(source)),
                IpAddr::V6(source) => config.with_icmpv6_source(Icmpv6Source::Fixed(source)),
            };
        }
        if let Some(mtu) = mtu {
            config = config.with_mtu(mtu);
        }
        config.source_check = if self.no_source_check { SourceCheck::Off } else { SourceCheck::Strict };
        config.transit = if self.transit { Transit::Allowed } else { Transit::Refused };
        config.ecn_ingress = if self.ecn_copy { EcnIngress::Normal } else { EcnIngress::Compatibility };
        config.ecn_egress = if self.ecn_ignore { EcnEgress::Ignored } else { EcnEgress::Combined };
        config.source_port = if self.source_ports > 0 { SourcePort::ByFlow } else { SourcePort::Fixed };
        config
    }

    /// The identity of this host.
    pub(crate) fn host(&self) -> Result<Host, HostError> {
        Host::from_sets(&self.network, &self.subnet, &self.listen)
    }

    pub(crate) fn tun_offload(&self) -> TunOffload {
        TunOffload { tso: self.uses(OffloadArg::TunTso), uso: self.uses(OffloadArg::TunUso) }
    }

    pub(crate) fn udp_offload(&self) -> UdpOffload {
        UdpOffload { gso: self.uses(OffloadArg::UdpGso), gro: self.uses(OffloadArg::UdpGro) }
    }

    fn uses(&self, offload: OffloadArg) -> bool {
        !self.no_offload && self.offload.as_ref().is_none_or(|offloads| offloads.contains(&offload))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OffloadArg {
    TunTso,
    TunUso,
    UdpGso,
    UdpGro,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PeerCheckArg {
    Address,
    AddressPort,
    Off,
}

impl From<PeerCheckArg> for PeerCheck {
    fn from(check: PeerCheckArg) -> Self {
        match check {
            PeerCheckArg::Address => Self::Address,
            PeerCheckArg::AddressPort => Self::AddressPort,
            PeerCheckArg::Off => Self::Off,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Ttl {
    Both,
    Ingress,
    Preserve,
}

impl From<Ttl> for TtlPolicy {
    fn from(ttl: Ttl) -> Self {
        match ttl {
            Ttl::Both => Self::BothEnds,
            Ttl::Ingress => Self::Ingress,
            Ttl::Preserve => Self::Preserve,
        }
    }
}

/// A subnet and its owner, whose port may have the default.
#[derive(Clone, Copy)]
pub(crate) struct RouteArg {
    pub(crate) subnet: IpNet,
    pub(crate) next_hop: NextHopArg,
}

#[derive(Clone, Copy)]
pub(crate) struct NextHopArg {
    /// With port 0 if none was given.
    address: SocketAddr,
    has_port: bool,
}

impl NextHopArg {
    pub(crate) fn ip(self) -> IpAddr {
        self.address.ip()
    }

    pub(crate) fn or_port(self, port: u16) -> SocketAddr {
        let mut address = self.address;
        if !self.has_port {
            address.set_port(port);
        }
        address
    }

    /// Returns the address with the port that this host listens on for that family, unless it was given.
    ///
    /// # Errors
    /// This host does not listen on an address of that family.
    pub(crate) fn or_port_of(self, host: &Host) -> Result<SocketAddr, String> {
        let family = if self.ip().is_ipv4() { "IPv4" } else { "IPv6" };
        let own = host.underlay_to(self.ip()).ok_or_else(|| {
            format!("{} is reached from no --listen address; name an {family} address of this host too", self.ip())
        })?;
        Ok(self.or_port(own.port()))
    }
}

impl FromStr for RouteArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (subnet, next_hop) =
            text.split_once('=').ok_or("a route is SUBNET=ADDR[:PORT], like 100.96.2.0/24=10.168.0.3")?;
        Ok(Self { subnet: parse_subnet(subnet)?, next_hop: next_hop.parse()? })
    }
}

impl FromStr for NextHopArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let canonical = |address: SocketAddr| match address.ip().to_canonical() {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
            IpAddr::V6(_) => address,
        };
        if let Ok(address) = format!("{text}:0").parse()
            && (text.ends_with(']') || !text.contains(':'))
        {
            return Ok(Self { address: canonical(address), has_port: false });
        }
        match text.parse() {
            Ok(address) => Ok(Self { address: canonical(address), has_port: true }),
            Err(_) if text.parse::<std::net::Ipv6Addr>().is_ok() => {
                Err(format!("put the IPv6 address in brackets, [{text}], to tell it from a port"))
            }
            Err(_) => Err(format!("{text:?} is no ADDR[:PORT], like 10.168.0.3 or [fd00:168::3]:8285")),
        }
    }
}

pub(crate) fn parse_subnet(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| format!("{text:?} is no subnet, like 100.96.2.0/24 or fd00:96:2::/64"))
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let listen = text.parse::<NextHopArg>()?.or_port(DEFAULT_PORT);
    if listen.port() == 0 {
        return Err("port 0 would be a different one at every start; peers need a fixed one, flannel's is 8285".into());
    }
    if listen.ip().is_unspecified() {
        return Err("peers check the sender, so name the one address of this host that they know it by".into());
    }
    Ok(listen)
}

fn mtu(text: &str) -> Result<Mtu, String> {
    let mtu = text.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    Mtu::new(mtu).map_err(|error| error.to_string())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    match Duration::try_from_secs_f64(seconds) {
        Ok(interval) if (Duration::from_millis(1)..=YEAR).contains(&interval) => Ok(interval),
        _ => Err(format!("{text} seconds is not an interval between a millisecond and a year; 1 is a good one")),
    }
}
