//! The command line. Names, defaults and environment variables equal those of flanneld.

mod go;
mod unused;

use std::convert::Infallible;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};
use loden::forward::PeerCheck;
use loden::lease::RenewalTimer;
use loden::lease::flannel::DEFAULT_PREFIX;
use regex::Regex;

/// Joins a flannel cluster of the udp backend: leases a subnet in etcd and carries packets to the other hosts' subnets.
#[derive(Parser)]
#[command(name = "flannel-node", disable_version_flag = true, args_override_self = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Format of the output: sentences, or JSON with one object per line
    #[arg(long, value_name = "FORMAT", value_enum, global = true, default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// The same as --log-format=json
    #[arg(long, global = true)]
    #[arg(action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_parser = go::switch)]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    pub(crate) json: bool,
    /// Print the version on standard error, as flanneld does
    #[arg(long)]
    #[arg(action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_parser = go::switch)]
    #[arg(default_value = "false", default_missing_value = "true", hide_default_value = true)]
    pub(crate) version: bool,
    /// Sentences about options and variables without effect
    #[arg(skip)]
    pub(crate) notices: Vec<String>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Format of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    Json,
    Text,
}

/// Address and credentials of etcd.
#[derive(Args, Clone)]
pub(crate) struct EtcdArgs {
    /// Members of the etcd cluster; one that answers is enough
    #[arg(long, value_name = "URL,…", global = true, env = "FLANNELD_ETCD_ENDPOINTS", value_parser = endpoints)]
    #[arg(default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379")]
    pub(crate) etcd_endpoints: Endpoints,
    /// Prefix of the network's keys in etcd
    #[arg(long, value_name = "PREFIX", global = true, env = "FLANNELD_ETCD_PREFIX", default_value = DEFAULT_PREFIX)]
    pub(crate) etcd_prefix: String,
    /// Certificate authority that signed etcd's certificates, PEM
    #[arg(long, value_name = "FILE", global = true, env = "FLANNELD_ETCD_CAFILE")]
    pub(crate) etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd, PEM
    #[arg(long, value_name = "FILE", global = true, env = "FLANNELD_ETCD_CERTFILE")]
    pub(crate) etcd_certfile: Option<PathBuf>,
    /// Private key of the client certificate, PEM
    #[arg(long, value_name = "FILE", global = true, env = "FLANNELD_ETCD_KEYFILE")]
    pub(crate) etcd_keyfile: Option<PathBuf>,
    /// User of etcd
    #[arg(long, value_name = "NAME", global = true, env = "FLANNELD_ETCD_USERNAME")]
    pub(crate) etcd_username: Option<String>,
    /// Password of the user; other users of this host can read command lines, not the environment
    #[arg(long, value_name = "PASSWORD", global = true, env = "FLANNELD_ETCD_PASSWORD", hide_env_values = true)]
    pub(crate) etcd_password: Option<String>,
}

/// The URLs of etcd's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoints(pub(crate) Vec<String>);

/// The options of the node itself.
#[derive(Args, Clone)]
pub(crate) struct NodeArgs {
    /// Interface to the other hosts, or its address; of several, the first that exists [default: the default route's]
    #[arg(long, value_name = "NAME|ADDR", env = "FLANNELD_IFACE")]
    pub(crate) iface: Vec<String>,
    /// Pattern of the interface's address or name, if no --iface exists; of several, the first that matches
    #[arg(long, value_name = "REGEX", env = "FLANNELD_IFACE_REGEX")]
    pub(crate) iface_regex: Vec<Regex>,
    /// Address whose route determines the interface, if no --iface exists and no --iface-regex matches
    #[arg(long, value_name = "ADDR", env = "FLANNELD_IFACE_CAN_REACH")]
    pub(crate) iface_can_reach: Option<IpAddr>,
    /// Address by which other hosts reach this one [default: the interface's first]
    #[arg(long, value_name = "ADDR", env = "FLANNELD_PUBLIC_IP")]
    pub(crate) public_ip: Option<Ipv4Addr>,
    /// The same for IPv6 in a dual-stack network [default: the interface's first]
    #[arg(long, value_name = "ADDR", env = "FLANNELD_PUBLIC_IPV6")]
    pub(crate) public_ipv6: Option<Ipv6Addr>,
    /// File for the container runtime, which also stores the subnet for the next start
    #[arg(long, value_name = "FILE", env = "FLANNELD_SUBNET_FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,
    /// Minutes between a renewal of the lease and its end
    #[arg(long, value_name = "MIN", env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", default_value = "60")]
    #[arg(value_parser = minutes)]
    pub(crate) subnet_lease_renew_margin: Duration,
    /// Address of the server for /healthz and /readyz
    #[arg(long, value_name = "ADDR", env = "FLANNELD_HEALTHZ_IP", default_value = "0.0.0.0")]
    pub(crate) healthz_ip: IpAddr,
    /// Port of the server for /healthz and /readyz; 0 disables it
    #[arg(long, value_name = "PORT", env = "FLANNELD_HEALTHZ_PORT", default_value = "0")]
    pub(crate) healthz_port: u16,
    /// Set rules that masquerade packets of pods to other networks, and that exclude the port from connection tracking
    #[arg(long, env = "FLANNELD_IP_MASQ")]
    #[arg(action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_parser = go::switch)]
    #[arg(default_value = "false", default_missing_value = "true")]
    pub(crate) ip_masq: bool,
    /// Let the kernel choose the ports of masqueraded connections as usual, not at random
    #[arg(long, env = "FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE")]
    #[arg(action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_parser = go::switch)]
    #[arg(default_value = "false", default_missing_value = "true")]
    pub(crate) ip_masq_fully_random_disable: bool,
    /// Set rules that accept forwarded packets from and to the network
    #[arg(long, env = "FLANNELD_IPTABLES_FORWARD_RULES")]
    #[arg(action = ArgAction::Set, num_args = 0..=1, require_equals = true, value_parser = go::switch)]
    #[arg(default_value = "true", default_missing_value = "true")]
    pub(crate) iptables_forward_rules: bool,
    /// Seconds between two checks of these rules
    #[arg(long, value_name = "SECONDS", env = "FLANNELD_IPTABLES_RESYNC", default_value = "5")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub(crate) iptables_resync: u64,
    /// Length of the lease in seconds, for tests of its end
    #[arg(long, value_name = "SECONDS", hide = true, default_value_t = RenewalTimer::TTL.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=RenewalTimer::TTL.as_secs()))]
    pub(crate) subnet_lease_ttl: u64,
    /// Longest time in seconds between two listings of all leases, for tests
    #[arg(long, value_name = "SECONDS", hide = true, default_value = "600")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) list_interval: u64,
    /// Senders whose packets are accepted
    #[arg(long, value_name = "CHECK", value_enum, default_value = "address")]
    pub(crate) peer_check: Check,
    /// TUN device: a name, or a pattern in which %d stands for the first free number
    #[arg(long, value_name = "NAME", default_value = "flannel%d")]
    pub(crate) tun: String,
}

/// Check of a datagram's sender.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Check {
    /// Senders with the address of a lease
    Address,
    /// Senders with the address of a lease and the network's port: excludes other programs of those hosts
    AddressPort,
    /// All senders, if the inner source has a route, as flannel does: for hosts behind NAT
    Off,
}

impl From<Check> for PeerCheck {
    fn from(check: Check) -> Self {
        match check {
            Check::Address => Self::Address,
            Check::AddressPort => Self::AddressPort,
            Check::Off => Self::Off,
        }
    }
}

impl NodeArgs {
    /// Returns the address of the health server, unless it is disabled.
    pub(crate) fn healthz(&self) -> Option<SocketAddr> {
        (self.healthz_port != 0).then_some(SocketAddr::new(self.healthz_ip, self.healthz_port))
    }
}

impl Arguments {
    /// Parses the arguments of this process, and exits if they are invalid or request the version.
    pub(crate) fn of_process() -> Self {
        let parsed = Self::of(std::env::args_os()).unwrap_or_else(|error| error.exit());
        if parsed.version {
            eprintln!("flannel-node {} (loden)", env!("CARGO_PKG_VERSION"));
            std::process::exit(0);
        }
        parsed
    }

    /// Parses a command line in Go's or in the usual syntax.
    fn of(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = without_empty_variables(Self::command().args(unused::args()));
        let words = go::rewritten(words, &command);
        let matches = command.try_get_matches_from_mut(words)?;
        let mut parsed = Self::from_arg_matches(&matches)?;
        // The other commands need no more than etcd's options.
        if parsed.command.is_none() {
            let refused = |reason| command.error(ErrorKind::ValueValidation, reason);
            parsed.notices = unused::notices(&matches).map_err(refused)?;
            parsed.notices.extend(unknown_variables(&command, std::env::vars_os()));
        }
        Ok(parsed)
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json || self.log_format == LogFormat::Json
    }
}

/// Returns a sentence about each variable with flanneld's prefix that no option has. An empty variable is unset.
fn unknown_variables(command: &clap::Command, set: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let known: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_env()).collect();
    let mut unknown: Vec<_> = set
        .filter(|(name, value)| !value.is_empty() && !known.contains(&name.as_os_str()))
        .filter_map(|(name, _)| name.to_str().filter(|name| name.starts_with("FLANNELD_")).map(str::to_owned))
        .collect();
    unknown.sort_unstable();
    unknown.iter().map(|name| format!("the environment variable {name} is set, but no option has this name")).collect()
}

/// Treats empty environment variables as unset, like flanneld. Files of variables often contain them.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| {
        let is_empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if is_empty { arg.env(Resettable::Reset) } else { arg }
    })
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write the network's config, which all nodes read at their start
    SetConfig(SetConfig),
    /// Show the network's config and the owner of each subnet
    List,
    /// Check the settings of this host against the network's config; the options of the node precede the command
    Check,
}

/// A config as options or as flannel's JSON.
#[derive(Args)]
#[group(id = "config", required = true)]
pub(crate) struct SetConfig {
    /// Network of all hosts, for example 100.96.0.0/16
    #[arg(long, value_name = "NETWORK", group = "config")]
    pub(crate) network: Option<Ipv4Net>,
    /// Config as flannel's JSON, from this file or from standard input (-)
    #[arg(long, value_name = "FILE", group = "config")]
    #[arg(conflicts_with_all = ["network", "subnet_len", "subnet_min", "subnet_max", "port", "ipv6_network"])]
    pub(crate) file: Option<PathBuf>,
    /// Prefix length of every host's subnet in bits [default: 24, or two more than the network's]
    #[arg(long, value_name = "BITS", requires = "network")]
    pub(crate) subnet_len: Option<u8>,
    /// The first subnet to lease [default: the network's second]
    #[arg(long, value_name = "ADDR", requires = "network")]
    pub(crate) subnet_min: Option<Ipv4Addr>,
    /// The last subnet to lease [default: the network's last]
    #[arg(long, value_name = "ADDR", requires = "network")]
    pub(crate) subnet_max: Option<Ipv4Addr>,
    /// IPv6 network of all hosts, for example fd00:96::/48, which makes the network dual-stack
    #[arg(long, value_name = "NETWORK", requires = "network")]
    pub(crate) ipv6_network: Option<Ipv6Net>,
    /// Prefix length of every host's IPv6 subnet in bits [default: 64, or two more than the network's]
    #[arg(long, value_name = "BITS", requires = "ipv6_network")]
    pub(crate) ipv6_subnet_len: Option<u8>,
    /// The first IPv6 subnet to lease [default: the network's second]
    #[arg(long, value_name = "ADDR", requires = "ipv6_network")]
    pub(crate) ipv6_subnet_min: Option<Ipv6Addr>,
    /// The last IPv6 subnet to lease [default: the network's last]
    #[arg(long, value_name = "ADDR", requires = "ipv6_network")]
    pub(crate) ipv6_subnet_max: Option<Ipv6Addr>,
    /// UDP port of every host [default: 8285]
    #[arg(long, value_name = "PORT", requires = "network")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
}

/// Splits a list of URLs. A trailing comma is accepted, as in flannel.
fn endpoints(text: &str) -> Result<Endpoints, Infallible> {
    Ok(Endpoints(text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()))
}

fn minutes(text: &str) -> Result<Duration, String> {
    let margin = text.parse().ok().and_then(|minutes: u64| minutes.checked_mul(60)).map(Duration::from_secs);
    let (least, most) = (RenewalTimer::MARGINS.start().as_secs() / 60, RenewalTimer::MARGINS.end().as_secs() / 60);
    let wanted = || format!("{text:?} is not a number of minutes within {least} to {most}");
    margin.filter(|margin| RenewalTimer::MARGINS.contains(margin)).ok_or_else(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_valid() {
        Arguments::command().args(unused::args()).debug_assert();
    }

    #[test]
    fn margins_are_those_of_flannel() {
        assert_eq!(minutes("1"), Ok(Duration::from_secs(60)));
        assert_eq!(minutes("1439"), Ok(Duration::from_secs(1439 * 60)));
        for text in ["0", "1440", "-1", "", "1.5", "18446744073709551615"] {
            assert!(minutes(text).unwrap_err().contains("within 1 to 1439"), "{text}");
        }
    }

    #[test]
    fn options_of_etcd_may_follow_the_subcommand() {
        let line = ["flannel-node", "list", "--etcd-endpoints", "http://a:1,http://b:2", "--json"];
        let parsed = Arguments::of(line.map(Into::into)).unwrap();
        assert_eq!(parsed.etcd.etcd_endpoints.0, ["http://a:1", "http://b:2"]);
        assert!(parsed.is_json() && matches!(parsed.command, Some(Command::List)));
    }

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::of(
            std::iter::once("flannel-node").chain(line.split(' ').filter(|_| !line.is_empty())).map(Into::into),
        )
    }

    /// Every way in which Go accepts a flag.
    #[test]
    fn flags_are_accepted_as_go_does() {
        for line in ["-iface=eth7", "--iface=eth7", "-iface eth7", "--iface eth7", " --iface eth7"] {
            assert_eq!(parse(line).unwrap().node.iface, ["eth7"], "{line:?}");
        }
        assert_eq!(parse("-iface eth0 -iface=eth1 --iface eth2").unwrap().node.iface, ["eth0", "eth1", "eth2"]);
        // The next word is the value, even if it looks like a flag or a subcommand.
        assert_eq!(parse("-etcd-prefix -iface").unwrap().etcd.etcd_prefix, "-iface");
        let named_list = parse("-iface list").unwrap();
        assert!(named_list.command.is_none() && named_list.node.iface == ["list"]);
        // The last value counts.
        assert_eq!(parse("-etcd-prefix=/a -etcd-prefix=/b").unwrap().etcd.etcd_prefix, "/b");
        assert_eq!(
            parse("-etcd-endpoints=http://a:1 -etcd-endpoints=http://b:1").unwrap().etcd.etcd_endpoints.0,
            ["http://b:1"]
        );
        // A variable of a unit file may be empty.
        let empty = parse("-iface= -public-ip= -etcd-cafile= -healthz-port=").unwrap();
        assert!(empty.node.iface.is_empty() && empty.node.public_ip.is_none() && empty.etcd.etcd_cafile.is_none());
        assert!(parse("-json").unwrap().is_json() && !parse("-json -json=false").unwrap().is_json());
        assert!(parse("--log-format json").unwrap().is_json() && !parse("-log-format=text").unwrap().is_json());
        for (wrong, sentence) in [
            ("-json=maybe", "neither true nor false"),
            ("-iface", "a value is required"),
            ("---iface=eth0", "---iface"),
            ("-frobnicate=1", "--frobnicate"),
            ("-iface-regex=(", "regex"),
            ("-healthz-port=65536", "65536"),
            ("-ip-masq false", "false"),
        ] {
            let error = parse(wrong).map(drop).unwrap_err().to_string();
            assert!(error.contains(sentence), "{wrong}: {error}");
        }
    }

    #[test]
    fn endpoints_and_defaults_are_those_of_flannel() {
        let defaults = parse("").unwrap();
        assert_eq!(defaults.etcd.etcd_endpoints.0, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert_eq!(defaults.etcd.etcd_prefix, "/coreos.com/network");
        assert_eq!(defaults.node.subnet_file, PathBuf::from("/run/flannel/subnet.env"));
        assert_eq!(defaults.node.subnet_lease_renew_margin, Duration::from_secs(3600));
        assert_eq!(defaults.node.healthz(), None);
        let with_port = parse("-healthz-port=2401").unwrap();
        assert_eq!(with_port.node.healthz(), Some("0.0.0.0:2401".parse().unwrap()));
        let trailing = parse("-etcd-endpoints=http://a:1,http://b:2,").unwrap();
        assert_eq!(trailing.etcd.etcd_endpoints.0, ["http://a:1", "http://b:2"]);
    }
}
