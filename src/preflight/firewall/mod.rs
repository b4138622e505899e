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
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::{fs, io};

use ipnet::IpNet;

use self::chains::{Likelihood, Outcome, Packet, PacketAddress, Transport};
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
/// Names of the iptables-legacy and ip6tables-legacy tables that exist in the calling thread's network namespace.
/// `/proc/net` shows those of the process.
const LEGACY_TABLES: [(&str, &str); 2] = [
    ("iptables-legacy", "/proc/thread-self/net/ip_tables_names"),
    ("ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names"),
];

/// The multicast address of all nodes on a link. That of a solicitation is another one, which no rule names.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// The name of an nftables chain. iptables-nft keeps its chains in nftables too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NftablesChain {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// The table of the chain.
    pub table: String,
    /// The chain within the table.
    pub name: String,
}

impl NftablesChain {
    /// Returns the command that makes the chain accept datagrams to the port.
    pub(super) fn accept_port(&self, port: u16) -> String {
        if let Some(iptables) = self.iptables("INPUT") {
            return format!("`{iptables} -I INPUT -p udp --dport {port} -j ACCEPT`");
        }
        format!("`nft insert rule {} {} {} udp dport {port} accept`", self.family, self.table, self.name)
    }

    /// Returns the command that makes the chain accept the ICMPv6 messages without which there is no IPv6 (RFC 4890
    /// section 4.4.1).
    pub(super) fn accept_icmpv6(&self) -> String {
        if let Some(iptables) = self.iptables("INPUT") {
            return format!("`{iptables} -I INPUT -p ipv6-icmp -j ACCEPT`");
        }
        format!("`nft insert rule {} {} {} meta l4proto ipv6-icmp accept`", self.family, self.table, self.name)
    }

    /// Returns the commands that make the chain accept packets from and to the network.
    pub(super) fn accept_network(&self, network: IpNet) -> String {
        if let Some(iptables) = self.iptables("FORWARD") {
            return format!(
                "`{iptables} -I FORWARD -s {network} -j ACCEPT` and `{iptables} -I FORWARD -d {network} -j ACCEPT`"
            );
        }
        let (rule, family) =
            (format!("nft insert rule {} {} {}", self.family, self.table, self.name), family_of(network));
        format!("`{rule} {family} saddr {network} accept` and `{rule} {family} daddr {network} accept`")
    }

    /// Returns the command for a chain of iptables-nft, which may refuse to list a chain that `nft` changed.
    fn iptables(&self, name: &str) -> Option<&'static str> {
        let command = match self.family {
            "ip" => "iptables",
            "ip6" => "ip6tables",
            _ => return None,
        };
        (self.table == "filter" && self.name == name).then_some(command)
    }

    /// Returns true if the chain sees packets of a family.
    fn sees(&self, is_ipv6: bool) -> bool {
        self.family == "inet" || self.family == if is_ipv6 { "ip6" } else { "ip" }
    }
}

/// Returns the family of a network as nft names it.
pub(super) fn family_of(network: IpNet) -> &'static str {
    match network {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
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
    for ((command, path), is_ipv6) in LEGACY_TABLES.into_iter().zip([false, true]) {
        if config.needs(is_ipv6) {
            findings.extend(check_legacy(command, path, fs::read_to_string(path)));
        }
    }
    findings
}

/// Reports the tables of iptables-legacy or ip6tables-legacy. The kernel creates a table when a program first asks for
/// it.
fn check_legacy(command: &str, path: &str, tables: io::Result<String>) -> Option<Finding> {
    let subject = format!("the rules of {command}");
    match tables {
        Ok(tables) => {
            let commands: Vec<_> = tables.lines().map(|table| format!("`{command} -t {table} -S`")).collect();
            let reason = format!("only those of nftables are read; list them with {}", commands.join(" and "));
            (!commands.is_empty()).then(|| Finding::unchecked(subject, &reason))
        }
        // A kernel without iptables-legacy lacks the file. Without /proc the directory is missing too.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound && fs::exists("/proc/thread-self/net").is_ok_and(|is| is) =>
        {
            None
        }
        Err(error) => Some(Finding::unchecked(subject, &format!("{path}: {error}"))),
    }
}

/// An interface: index and name.
type Passed = (u32, String);

/// The nftables rules, with the interfaces that packets of the tunnel pass.
struct Firewall<'a> {
    ruleset: Ruleset,
    config: &'a PreflightConfig,
    /// The listen addresses, with the interfaces that carry their datagrams.
    underlays: Vec<(SocketAddr, Option<Passed>)>,
    pods: Option<Passed>,
    tun: Option<Passed>,
}

impl<'a> Firewall<'a> {
    fn new(ruleset: Ruleset, config: &'a PreflightConfig, host: Option<&Host>) -> Self {
        let carrier = |listen: &SocketAddr| {
            let (_, underlay) = host?.underlays.iter().find(|(of, _)| of == listen)?;
            underlay.as_ref().map(|underlay| (underlay.index, underlay.name.clone()))
        };
        let underlays = config.listen.iter().map(|listen| (*listen, carrier(listen))).collect();
        let pods = host.and_then(|host| host.pod_links(config).next());
        let index_and_name = |link: &Interface| (link.state.index, link.state.name.clone());
        // A device that does not exist yet gets an index that no interface has.
        let future = || (u32::MAX, config.tun.replace("%d", "0"));
        let tun = host.map(|host| host.named(&config.tun).map_or_else(future, index_and_name));
        Self { ruleset, config, underlays, pods: pods.map(index_and_name), tun }
    }

    fn check(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for network in &self.config.networks {
            let chains = self.chains(hook::FORWARD, network.addr().is_ipv6());
            let forward = chains.filter(|chain| self.drops_forwarded(chain, *network));
            findings.extend(forward.map(|chain| Finding::ForwardDropped {
                chain: chain.name.clone(),
                rules: chain.rules,
                network: *network,
            }));
        }
        findings.extend(self.check_neighbours());
        for (listen, underlay) in &self.underlays {
            let of_listen = self.check_input(*listen, underlay.as_ref()).chain(self.check_pods(*listen, underlay));
            // A chain may drop the datagrams of both families.
            for finding in of_listen {
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
        }
        findings
    }

    fn chains(&self, hook: u32, is_ipv6: bool) -> impl Iterator<Item = &BaseChain> {
        let sees = move |chain: &&BaseChain| chain.hook == hook && !chain.is_nat && chain.name.sees(is_ipv6);
        self.ruleset.bases.iter().filter(sees)
    }

    /// Returns true if a forward chain drops packets of pods, or may drop them, in either direction.
    fn drops_forwarded(&self, chain: &BaseChain, network: IpNet) -> bool {
        let Some(subnet) = self.config.subnets_like(network.addr()).next() else { return chain.drops };
        let Some(other) =
            [network.network(), network.broadcast()].into_iter().find(|address| !subnet.contains(address))
        else {
            return chain.drops;
        };
        let (pod, other) = (PacketAddress::Known(subnet.broadcast()), PacketAddress::Known(other));
        let out = Packet {
            is_ipv6: network.addr().is_ipv6(),
            source: pod,
            destination: other,
            transport: Transport::Udp { source: 0, destination: 0 },
            input: self.pods.clone(),
            output: self.tun.clone(),
            ct_state: chains::NEW,
            overlay: self.config.networks.clone(),
        };
        let (input, output) = (out.output.clone(), out.input.clone());
        let back = Packet { source: other, destination: pod, input, output, ..out.clone() };
        [out, back].iter().any(|packet| self.ruleset.evaluate(chain, packet, Outcome::Accept) < Likelihood::Always)
    }

    /// Reports chains that drop the first datagram of another host. Later datagrams pass a rule for established
    /// connections only if this host has sent first.
    fn check_input(&self, listen: SocketAddr, underlay: Option<&Passed>) -> impl Iterator<Item = Finding> {
        let datagram = self.received(listen, underlay);
        let untracked = self.untracked(&datagram, self.sent_by_pod(listen, underlay).as_ref());
        let ct_state = if untracked == Likelihood::Always { chains::UNTRACKED } else { chains::NEW };
        self.chains(hook::INPUT, listen.is_ipv6()).filter_map(move |chain| {
            let accepts =
                |ct_state| self.ruleset.evaluate(chain, &Packet { ct_state, ..datagram.clone() }, Outcome::Accept);
            let first = accepts(ct_state);
            let drops_later = ct_state == chains::UNTRACKED || accepts(chains::ESTABLISHED) == Likelihood::Never;
            (first != Likelihood::Always).then(|| Finding::InputDropped {
                chain: chain.name.clone(),
                port: listen.port(),
                certain: first == Likelihood::Never && drops_later,
            })
        })
    }

    /// Reports chains that drop the neighbour solicitations (RFC 4861) of pods, or of other hosts over IPv6. They take
    /// the place of ARP, which these chains do not see.
    fn check_neighbours(&self) -> Vec<Finding> {
        const SOLICITATION: u8 = 135;
        let underlays = self.underlays.iter().filter(|(listen, _)| listen.is_ipv6());
        // Other hosts have no addresses of the overlay, but pods do.
        let underlays = underlays.filter_map(|(_, link)| Some((link.as_ref()?, self.config.networks.clone())));
        let pods = self.pods.iter().filter(|_| self.config.carries(true)).map(|link| (link, Vec::new()));
        let mut findings = Vec::new();
        for (link, overlay) in underlays.chain(pods) {
            let solicitation = Packet {
                is_ipv6: true,
                source: PacketAddress::Peer,
                destination: PacketAddress::Known(ALL_NODES.into()),
                transport: Transport::Icmpv6 { kind: SOLICITATION },
                input: Some(link.clone()),
                output: None,
                // The kernel does not track them (`nf_conntrack_icmpv6_error`).
                ct_state: chains::UNTRACKED,
                overlay,
            };
            let is_dropped =
                |chain: &&BaseChain| self.ruleset.evaluate(chain, &solicitation, Outcome::Accept) == Likelihood::Never;
            let dropping = self.chains(hook::INPUT, true).filter(is_dropped);
            findings.extend(
                dropping
                    .map(|chain| Finding::NeighboursDropped { chain: chain.name.clone(), interface: link.1.clone() }),
            );
        }
        findings
    }

    /// Reports the use that masqueraded pods can make of the tunnel's port: other hosts see this host's address as the
    /// source of their datagrams.
    fn check_pods(&self, listen: SocketAddr, underlay: &Option<Passed>) -> Vec<Finding> {
        let (Some((_, interface)), Some(subnet)) = (underlay, self.config.subnets_like(listen.ip()).next()) else {
            return Vec::new();
        };
        let Some(of_pod) = self.sent_by_pod(listen, underlay.as_ref()) else { return Vec::new() };
        let is_nat =
            |chain: &&BaseChain| chain.is_nat && chain.hook == hook::POSTROUTING && chain.name.sees(listen.is_ipv6());
        let nat = self.ruleset.bases.iter().filter(is_nat);
        let evaluated = nat.map(|chain| (self.ruleset.evaluate(chain, &of_pod, Outcome::Translate), chain));
        let Some((translates, chain)) = evaluated.max_by_key(|(translates, _)| *translates) else {
            return Vec::new();
        };
        if translates == Likelihood::Never {
            return Vec::new();
        }
        let mut findings = Vec::new();
        let (interface, port) = (interface.clone(), listen.port());
        if self.untracked(&self.received(listen, underlay.as_ref()), Some(&of_pod)) != Likelihood::Always {
            let (chain, certain) = (chain.name.clone(), translates == Likelihood::Always);
            let family = family_of(subnet);
            findings.push(Finding::PortTracked { interface: interface.clone(), chain, family, port, certain });
        }
        let is_dropped = |chain| self.ruleset.evaluate(chain, &of_pod, Outcome::Drop) == Likelihood::Always;
        if !self.chains(hook::FORWARD, listen.is_ipv6()).any(is_dropped) {
            findings.push(Finding::PodsReachPort { interface, subnet, port });
        }
        findings
    }

    /// Returns the likelihood that connection tracking ignores received datagrams and those of pods.
    fn untracked(&self, received: &Packet, sent_by_pod: Option<&Packet>) -> Likelihood {
        let before = |chain: &&BaseChain| chain.priority < CONNTRACK;
        let evaluate = |packet: &Packet| {
            let chains = self.chains(hook::PREROUTING, packet.is_ipv6).filter(before);
            chains
                .map(|chain| self.ruleset.evaluate(chain, packet, Outcome::NoTrack))
                .max()
                .unwrap_or(Likelihood::Never)
        };
        let of_pod = sent_by_pod.map(|packet| evaluate(&Packet { output: None, ..packet.clone() }));
        evaluate(received).min(of_pod.unwrap_or(Likelihood::Always))
    }

    /// Returns the first datagram of another host.
    fn received(&self, listen: SocketAddr, underlay: Option<&Passed>) -> Packet {
        Packet {
            is_ipv6: listen.is_ipv6(),
            source: PacketAddress::Peer,
            destination: PacketAddress::Known(listen.ip()),
            transport: Transport::Udp { source: listen.port(), destination: listen.port() },
            input: underlay.cloned(),
            output: None,
            ct_state: chains::NEW,
            overlay: self.config.networks.clone(),
        }
    }

    /// Returns a datagram of a pod that has the ports of the tunnel's own datagrams, if pods have addresses of that
    /// family.
    fn sent_by_pod(&self, listen: SocketAddr, underlay: Option<&Passed>) -> Option<Packet> {
        let subnet = self.config.subnets_like(listen.ip()).next()?;
        // An IPv4 TUN device has the first address, and usually the bridge the second.
        let pod: IpAddr = subnet.hosts().nth(1).unwrap_or(subnet.network());
        Some(Packet {
            source: PacketAddress::Known(pod),
            destination: PacketAddress::Peer,
            input: self.pods.clone(),
            output: underlay.cloned(),
            ..self.received(listen, underlay)
        })
    }
}

#[cfg(test)]
mod unit {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn tables_of_iptables_legacy_are_unchecked_and_listed_by_the_named_commands() {
        let found =
            |tables: &str| check_legacy("iptables-legacy", "", Ok(tables.into())).map(|found| found.to_string());
        assert_eq!(found(""), None);
        let expected = "the rules of iptables-legacy could not be checked: only those of nftables are read; list them \
             with `iptables-legacy -t nat -S` and `iptables-legacy -t filter -S`";
        assert_eq!(found("nat\nfilter\n").as_deref(), Some(expected));
    }

    #[test]
    fn a_kernel_without_iptables_legacy_gives_no_finding_and_other_errors_do() {
        let check = |kind: io::ErrorKind| check_legacy("iptables-legacy", "", Err(kind.into()));
        assert_eq!(check(io::ErrorKind::NotFound), None);
        let refused = check(io::ErrorKind::PermissionDenied);
        assert!(matches!(refused, Some(Finding::Unchecked { .. })), "{refused:?}");
    }
}
