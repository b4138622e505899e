//! The command line. Names, defaults and environment variables equal those of flanneld.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use ipnet::Ipv4Net;
use loden::forward::PeerCheck;
use loden::lease::RenewalTimer;
use loden::lease::flannel::DEFAULT_PREFIX;

/// Joins a flannel cluster of the udp backend: leases a subnet in etcd and carries packets to the other hosts' subnets.
#[derive(Parser)]
#[command(name = "flannel-node", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Output everything as JSON, one object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Address and credentials of etcd.
#[derive(Args, Clone)]
pub(crate) struct EtcdArgs {
    /// Members of the etcd cluster; one that answers is enough
    #[arg(long, value_name = "URL,…", value_delimiter = ',', global = true, env = "FLANNELD_ETCD_ENDPOINTS")]
    #[arg(default_value = "http://127.0.0.1:2379")]
    pub(crate) etcd_endpoints: Vec<String>,
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

/// The options of the node itself.
#[derive(Args, Clone)]
pub(crate) struct NodeArgs {
    /// Interface to the other hosts, or its address
    #[arg(long, value_name = "NAME|ADDR", env = "FLANNELD_IFACE")]
    pub(crate) iface: Option<String>,
    /// Address by which other hosts reach this one [default: the interface's first]
    #[arg(long, value_name = "ADDR", env = "FLANNELD_PUBLIC_IP")]
    pub(crate) public_ip: Option<Ipv4Addr>,
    /// File for the container runtime, which also stores the subnet for the next start
    #[arg(long, value_name = "FILE", env = "FLANNELD_SUBNET_FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,
    /// Minutes between a renewal of the lease and its end
    #[arg(long, value_name = "MIN", env = "FLANNELD_SUBNET_LEASE_RENEW_MARGIN", default_value = "60")]
    #[arg(value_parser = minutes)]
    pub(crate) subnet_lease_renew_margin: Duration,
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

impl Arguments {
    /// Parses the arguments of this process, and exits if they are invalid.
    pub(crate) fn of_process() -> Self {
        let matches = without_empty_variables(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
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
    #[arg(conflicts_with_all = ["network", "subnet_len", "subnet_min", "subnet_max", "port"])]
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
    /// UDP port of every host [default: 8285]
    #[arg(long, value_name = "PORT", requires = "network")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
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
        Arguments::command().debug_assert();
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
        let parsed = Arguments::try_parse_from(line).unwrap();
        assert_eq!(parsed.etcd.etcd_endpoints, ["http://a:1", "http://b:2"]);
        assert!(parsed.json && matches!(parsed.command, Some(Command::List)));
    }
}
