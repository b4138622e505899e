//! Findings about firewalls: chains that drop the tunnel's datagrams or the packets of pods, and masquerading of pods.
//!
//! The rules of nftables are read, which include those of iptables-nft. The rules of iptables-legacy are not read; its
//! tables are reported as unchecked.

mod attributes;
mod chains;
mod expressions;
mod ruleset;
mod xtables;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Display, Formatter};
use core::net::IpAddr;
use std::{fs, io};

use ipnet::Ipv4Net;

use self::chains::{Likelihood, Outcome, Packet, PacketAddress};
use self::ruleset::{BaseChain, Ruleset};
use super::host::{Host, Interface};
use super::{Finding, PreflightConfig};

/// `NF_INET_*` of linux/netfilter.h.
mod hook {
    pub(super) const PREROUTING: u32 = libc::NF_INET_PRE_ROUTING.cast_unsigned();
    pub(super) const INPUT: u32 = libc::NF_INET_LOCAL_IN.cast_unsigned();
    pub(super) const FORWARD: u32 = libc::NF_INET_FORWARD.cast_unsigned();
    pub(super) const POSTROUTING: u32 = libc::NF_INET_POST_ROUTING.cast_unsigned();
}

/// Priority of connection tracking (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;
/// Names of the iptables-legacy tables that exist in the calling thread's network namespace. `/proc/net` shows those of
/// the process.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// The name of an nftables chain. iptables-nft keeps its chains in nftables too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NftablesChain {
    /// `ip` or `inet`.
    pub family: &'static str,
    /// The table of the chain.
    pub table: String,
    /// The chain within the table.
    pub name: String,
}

impl NftablesChain {
    /// Returns the command that makes the chain accept datagrams to the port.
    pub(super) fn accept_port(&self, port: u16) -> String {
        if self.is_iptables("INPUT") {
            return format!("`iptables -I INPUT -p udp --dport {port} -j ACCEPT`");
        }
        format!("`nft insert rule {} {} {} udp dport {port} accept`", self.family, self.table, self.name)
    }

    /// Returns the commands that make the chain accept packets from and to the network.
    pub(super) fn accept_network(&self, network: Ipv4Net) -> String {
        if self.is_iptables("FORWARD") {
            return format!(
                "`iptables -I FORWARD -s {network} -j ACCEPT` and `iptables -I FORWARD -d {network} -j ACCEPT`"
            );
        }
        let rule = format!("nft insert rule {} {} {}", self.family, self.table, self.name);
        format!("`{rule} ip saddr {network} accept` and `{rule} ip daddr {network} accept`")
    }

    /// Returns true for a chain of iptables-nft, which may refuse to list a chain that `nft` changed.
    fn is_iptables(&self, name: &str) -> bool {
        self.family == "ip" && self.table == "filter" && self.name == name
    }
}

impl Display for NftablesChain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "the nftables chain {} {} {}", self.family, self.table, self.name)
    }
}

pub(super) fn check(config: &PreflightConfig, host: Option<&Host>) -> Vec<Finding> {
    let mut findings = match Ruleset::read() {
        Ok(ruleset) => Firewall::new(ruleset, config, host).check(),
        Err(error) => [Finding::unchecked("the rules of nftables", &error)].into(),
    };
    findings.extend(check_legacy(fs::read_to_string(LEGACY_TABLES)));
    findings
}

/// Reports the tables of iptables-legacy. The kernel creates a table when a program first asks for it.
fn check_legacy(tables: io::Result<String>) -> Option<Finding> {
    let subject = "the rules of iptables-legacy";
    match tables {
        Ok(tables) => {
            let commands: Vec<_> = tables.lines().map(|table| format!("`iptables-legacy -t {table} -S`")).collect();
            let reason = format!("only those of nftables are read; list them with {}", commands.join(" and "));
            (!commands.is_empty()).then(|| Finding::unchecked(subject, &reason))
        }
        // A kernel without iptables-legacy lacks the file. Without /proc the directory is missing too.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::exists("/proc/thread-self/net").is_ok_and(|is| is) =>
        {
            None
        }
        Err(error) => Some(Finding::unchecked(subject, &format!("{LEGACY_TABLES}: {error}"))),
    }
}

/// The nftables rules, with the interfaces that packets of the tunnel pass.
struct Firewall<'a> {
    ruleset: Ruleset,
    config: &'a PreflightConfig,
    underlay: Option<(u32, String)>,
    pods: Option<(u32, String)>,
    tun: Option<(u32, String)>,
}

impl<'a> Firewall<'a> {
    fn new(ruleset: Ruleset, config: &'a PreflightConfig, host: Option<&Host>) -> Self {
        let underlay = host.and_then(|host| host.underlay.as_ref());
        let underlay = underlay.map(|underlay| (underlay.index, underlay.name.clone()));
        let pods = host.and_then(|host| host.pod_links(config).next());
        let index_and_name = |link: &Interface| (link.state.index, link.state.name.clone());
        // A device that does not exist yet gets an index that no interface has.
        let future = || (u32::MAX, config.tun.replace("%d", "0"));
        let tun = host.map(|host| host.named(&config.tun).map_or_else(future, index_and_name));
        Self { ruleset, config, underlay, pods: pods.map(index_and_name), tun }
    }

    fn check(&self) -> Vec<Finding> {
        let network = self.config.network;
        let forward = self.chains(hook::FORWARD).filter(|chain| self.drops_forwarded(chain));
        let dropped =
            forward.map(|chain| Finding::ForwardDropped { chain: chain.name.clone(), rules: chain.rules, network });
        let mut findings: Vec<_> = dropped.collect();
        findings.extend(self.check_input());
        findings.extend(self.check_pods());
        findings
    }

    fn chains(&self, hook: u32) -> impl Iterator<Item = &BaseChain> {
        self.ruleset.bases.iter().filter(move |chain| chain.hook == hook && !chain.is_nat)
    }

    /// Returns true if a forward chain drops packets of pods, or may drop them, in either direction.
    fn drops_forwarded(&self, chain: &BaseChain) -> bool {
        let PreflightConfig { network, subnet, .. } = *self.config;
        let Some(other) =
            [network.network(), network.broadcast()].into_iter().find(|address| !subnet.contains(address))
        else {
            return chain.drops;
        };
        let (pod, other) = (PacketAddress::Known(subnet.broadcast()), PacketAddress::Known(other));
        let (input, output) = (self.pods.clone(), self.tun.clone());
        let out = Packet { source: pod, destination: other, input, output, source_port: 0, ..self.received() };
        let out = Packet { destination_port: 0, ..out };
        let (input, output) = (out.output.clone(), out.input.clone());
        let back = Packet { source: other, destination: pod, input, output, ..out.clone() };
        [out, back].iter().any(|packet| self.ruleset.evaluate(chain, packet, Outcome::Accept) < Likelihood::Always)
    }

    /// Reports chains that drop the first datagram of another host. Later datagrams pass a rule for established
    /// connections only if this host has sent first.
    fn check_input(&self) -> impl Iterator<Item = Finding> {
        let datagram = self.received();
        let ct_state = if self.untracked() == Likelihood::Always { chains::UNTRACKED } else { chains::NEW };
        self.chains(hook::INPUT).filter_map(move |chain| {
            let accepts =
                |ct_state| self.ruleset.evaluate(chain, &Packet { ct_state, ..datagram.clone() }, Outcome::Accept);
            let first = accepts(ct_state);
            let drops_later = ct_state == chains::UNTRACKED || accepts(chains::ESTABLISHED) == Likelihood::Never;
            (first != Likelihood::Always).then(|| Finding::InputDropped {
                chain: chain.name.clone(),
                port: self.config.port,
                certain: first == Likelihood::Never && drops_later,
            })
        })
    }

    /// Reports the use that masqueraded pods can make of the tunnel's port: other hosts see this host's address as the
    /// source of their datagrams.
    fn check_pods(&self) -> Vec<Finding> {
        let Some((_, interface)) = &self.underlay else { return Vec::new() };
        let PreflightConfig { port, subnet, .. } = *self.config;
        let of_pod = self.sent_by_pod();
        let nat = self.ruleset.bases.iter().filter(|chain| chain.is_nat && chain.hook == hook::POSTROUTING);
        let evaluated = nat.map(|chain| (self.ruleset.evaluate(chain, &of_pod, Outcome::Translate), chain));
        let Some((translates, chain)) = evaluated.max_by_key(|(translates, _)| *translates) else {
            return Vec::new();
        };
        if translates == Likelihood::Never {
            return Vec::new();
        }
        let mut findings = Vec::new();
        let interface = interface.clone();
        if self.untracked() != Likelihood::Always {
            let (chain, certain) = (chain.name.clone(), translates == Likelihood::Always);
            findings.push(Finding::PortTracked { interface: interface.clone(), chain, port, certain });
        }
        let is_dropped = |chain| self.ruleset.evaluate(chain, &of_pod, Outcome::Drop) == Likelihood::Always;
        if !self.chains(hook::FORWARD).any(is_dropped) {
            findings.push(Finding::PodsReachPort { interface, subnet, port });
        }
        findings
    }

    /// Returns the likelihood that connection tracking ignores received datagrams and those of pods.
    fn untracked(&self) -> Likelihood {
        let before = |chain: &&BaseChain| chain.priority < CONNTRACK;
        let evaluate = |packet: &Packet| {
            let chains = self.chains(hook::PREROUTING).filter(before);
            chains
                .map(|chain| self.ruleset.evaluate(chain, packet, Outcome::NoTrack))
                .max()
                .unwrap_or(Likelihood::Never)
        };
        evaluate(&self.received()).min(evaluate(&Packet { output: None, ..self.sent_by_pod() }))
    }

    /// Returns the first datagram of another host.
    fn received(&self) -> Packet {
        let port = self.config.port;
        let destination = match self.config.listen {
            IpAddr::V4(listen) => PacketAddress::Known(listen),
            IpAddr::V6(_) => PacketAddress::Peer,
        };
        Packet {
            source: PacketAddress::Peer,
            destination,
            source_port: port,
            destination_port: port,
            input: self.underlay.clone(),
            output: None,
            ct_state: chains::NEW,
            overlay: self.config.network,
        }
    }

    /// Returns a datagram of a pod that has the ports of the tunnel's own datagrams.
    fn sent_by_pod(&self) -> Packet {
        // The TUN device has the first address, and usually the bridge the second.
        let pod = self.config.subnet.hosts().nth(1).unwrap_or(self.config.subnet.network());
        Packet {
            source: PacketAddress::Known(pod),
            destination: PacketAddress::Peer,
            input: self.pods.clone(),
            output: self.underlay.clone(),
            ..self.received()
        }
    }
}

#[cfg(test)]
mod unit {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn tables_of_iptables_legacy_are_unchecked_and_listed_by_the_named_commands() {
        let found = |tables: &str| check_legacy(Ok(tables.into())).map(|finding| finding.to_string());
        assert_eq!(found(""), None);
        let expected = "the rules of iptables-legacy could not be checked: only those of nftables are read; list them \
             with `iptables-legacy -t nat -S` and `iptables-legacy -t filter -S`";
        assert_eq!(found("nat\nfilter\n").as_deref(), Some(expected));
    }

    #[test]
    fn a_kernel_without_iptables_legacy_gives_no_finding_and_other_errors_do() {
        assert_eq!(check_legacy(Err(io::ErrorKind::NotFound.into())), None);
        let refused = check_legacy(Err(io::ErrorKind::PermissionDenied.into()));
        assert!(matches!(refused, Some(Finding::Unchecked { .. })), "{refused:?}");
    }
}
