//! The wanted rules, and the changes that lead to them.

use std::collections::BTreeMap;
use std::io;

use ipnet::IpNet;

use super::nftables::{BaseChain, ChainState, Changes, Family, ListedRule, Nftables};
use super::rule::{Action, Addresses, Rule, UdpPort};

/// `NF_INET_*` of linux/netfilter.h.
mod hook {
    pub(super) const PREROUTING: u32 = 0;
    pub(super) const FORWARD: u32 = 2;
    pub(super) const OUTPUT: u32 = 3;
    pub(super) const POSTROUTING: u32 = 4;
}

/// The mark of packets that kube-proxy translates.
const KUBE_PROXY: u32 = 0x4000;

/// The reason for rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Packets from and to the network are forwarded, as flanneld's --iptables-forward-rules does.
    Forward,
    /// Packets from the network to others are masqueraded, as flanneld's --ip-masq does.
    Masquerade,
    /// Connection tracking ignores the tunnel's datagrams, so that no rule translates their ports.
    NoTrack,
}

impl Purpose {
    /// Returns the comment of the rules.
    pub(super) const fn comment(self) -> &'static str {
        match self {
            Self::Forward => "flannel-node forward",
            Self::Masquerade => "flannel-node masq",
            Self::NoTrack => "flannel-node notrack",
        }
    }
}

/// A chain of this node's rules, and the chain of the kernel that calls it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) base: BaseChain,
    pub(super) own: &'static str,
    pub(super) jump: Rule,
    pub(super) rules: Vec<Rule>,
    former: Option<Former>,
}

/// flanneld's chains for the same purpose.
#[derive(Clone, Copy, Debug)]
struct Former {
    /// The chain of flanneld's iptables mode.
    iptables: &'static str,
    /// The chain of flanneld's nftables mode, in a table of its own.
    nftables: &'static str,
}

/// The rules of one family for one purpose. They are set together or not at all.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) family: Family,
    pub(super) purpose: Purpose,
    network: Option<IpNet>,
    pub(super) wanted: Vec<Wanted>,
}

const FORWARD: BaseChain =
    BaseChain { table: "filter", name: "FORWARD", kind: "filter", hook: hook::FORWARD, priority: 0 };
const POSTROUTING: BaseChain =
    BaseChain { table: "nat", name: "POSTROUTING", kind: "nat", hook: hook::POSTROUTING, priority: 100 };
const PREROUTING: BaseChain =
    BaseChain { table: "raw", name: "PREROUTING", kind: "filter", hook: hook::PREROUTING, priority: -300 };
const OUTPUT: BaseChain =
    BaseChain { table: "raw", name: "OUTPUT", kind: "filter", hook: hook::OUTPUT, priority: -300 };

fn wanted(purpose: Purpose, base: BaseChain, own: &'static str, rules: Vec<Rule>) -> Wanted {
    let jump = Rule::new(purpose.comment(), Action::Jump(own.to_owned()));
    let former = match purpose {
        Purpose::Forward => Some(Former { iptables: "FLANNEL-FWD", nftables: "forward" }),
        Purpose::Masquerade => Some(Former { iptables: "FLANNEL-POSTRTG", nftables: "postrtg" }),
        Purpose::NoTrack => None,
    };
    Wanted { base, own, jump, rules, former }
}

const fn family(is_ipv6: bool) -> Family {
    if is_ipv6 { Family::Ip6 } else { Family::Ip }
}

impl Group {
    /// Returns the rules that accept forwarded packets from and to a network.
    pub(super) fn forward(network: IpNet) -> Self {
        let (network, purpose) = (network.trunc(), Purpose::Forward);
        let accept = || Rule::new(purpose.comment(), Action::Accept);
        let rules = vec![accept().from(Addresses::In(network)), accept().to(Addresses::In(network))];
        let wanted = vec![wanted(purpose, FORWARD, "FLANNEL-NODE-FWD", rules)];
        Self { family: family(network.addr().is_ipv6()), purpose, network: Some(network), wanted }
    }

    /// Returns the rules that masquerade packets from a network to others, except those to multicast groups. Packets of
    /// other sources to pods of other hosts are masqueraded too, so that the replies come back through this host.
    /// `subnet` is this host's part of the network.
    pub(super) fn masquerade(network: IpNet, subnet: IpNet, fully_random: bool) -> Self {
        let (network, subnet, purpose) = (network.trunc(), subnet.trunc(), Purpose::Masquerade);
        let is_ipv6 = network.addr().is_ipv6();
        let groups = if is_ipv6 {
            IpNet::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)
        } else {
            IpNet::new_assert([224, 0, 0, 0].into(), 4)
        };
        let (inside, outside) = (Addresses::In(network), Addresses::NotIn(network));
        let rule = |action| Rule::new(purpose.comment(), action);
        let (masquerade, skip) = (|| rule(Action::Masquerade { fully_random }), || rule(Action::Return));
        let rules = vec![
            // kube-proxy masquerades these itself.
            skip().with_mark(KUBE_PROXY, KUBE_PROXY),
            skip().from(inside).to(inside),
            skip().from(outside).to(Addresses::In(subnet)),
            masquerade().from(inside).to(Addresses::NotIn(groups)),
            masquerade().from(outside).to(inside),
        ];
        let wanted = vec![wanted(purpose, POSTROUTING, "FLANNEL-NODE-POSTRTG", rules)];
        Self { family: family(is_ipv6), purpose, network: Some(network), wanted }
    }

    /// Returns the rules by which connection tracking ignores datagrams from and to the tunnel's port.
    pub(super) fn no_track(is_ipv6: bool, port: u16) -> Self {
        let purpose = Purpose::NoTrack;
        let rule = |port| vec![Rule::new(purpose.comment(), Action::NoTrack).with_udp(port)];
        let wanted = vec![
            wanted(purpose, PREROUTING, "FLANNEL-NODE-PRE", rule(UdpPort::Destination(port))),
            wanted(purpose, OUTPUT, "FLANNEL-NODE-OUT", rule(UdpPort::Source(port))),
        ];
        Self { family: family(is_ipv6), purpose, network: None, wanted }
    }

    /// Returns the chains of the kernel, for an operator.
    pub(super) fn chains(&self) -> String {
        let chains = self.wanted.iter().map(|wanted| wanted.base.name);
        let table = self.wanted.first().map_or("", |wanted| wanted.base.table);
        format!("{} {table} {}", self.family.name(), chains.collect::<Vec<_>>().join(" and "))
    }

    /// Returns the changes after which the kernel has the wanted rules, once each, and the former chains that they
    /// replace if `replaces_former`. Without changes, everything is as it should be.
    pub(super) fn set(&self, kernel: &mut Nftables, replaces_former: bool) -> io::Result<Setting> {
        let mut setting = Setting { changes: Changes::new(self.family), created: Vec::new(), replaced: Vec::new() };
        for wanted in &self.wanted {
            let (table, base) = (wanted.base.table, wanted.base.name);
            let found = Found::read(kernel, self.family, wanted)?;
            let changes = &mut setting.changes;
            if found.base.is_none() {
                changes.add_table(table);
                changes.add_base_chain(&wanted.base);
                setting.created.push(wanted.base);
            } else if !found.base.is_some_and(|base| base.is_base) {
                let reason = format!("{} {table} {base} is a chain without a hook", self.family.name());
                return Err(io::Error::other(reason));
            }
            let is = |listed: &[ListedRule], rules: &[Rule]| {
                listed.iter().map(|listed| listed.rule.as_ref()).eq(rules.iter().map(Some))
            };
            if found.own.is_none() {
                changes.add_chain(table, wanted.own);
            }
            if !is(&found.rules, &wanted.rules) {
                if !found.rules.is_empty() {
                    changes.flush(table, wanted.own);
                }
                wanted.rules.iter().for_each(|rule| changes.add_rule(table, wanted.own, rule));
            }
            let jumps = found.jumps_to(wanted.own);
            if !matches!(jumps[..], [jump] if jump.rule.as_ref() == Some(&wanted.jump)) {
                jumps.iter().for_each(|jump| changes.delete_rule(table, base, jump));
                changes.add_rule(table, base, &wanted.jump);
            }
            if let Some(former) = wanted.former.filter(|_| replaces_former) {
                self.replace(kernel, former, &found, &wanted.base, &mut setting)?;
            }
        }
        Ok(setting)
    }

    /// Adds the removal of flanneld's rules for this network.
    fn replace(
        &self,
        kernel: &mut Nftables,
        former: Former,
        found: &Found,
        base: &BaseChain,
        setting: &mut Setting,
    ) -> io::Result<()> {
        let changes = &mut setting.changes;
        let is_flanneld =
            |rules: &[ListedRule]| self.is_of_network(rules) && rules.iter().all(ListedRule::has_comment_of_flanneld);
        // Before flannel 0.20, the rules stood in the chain of the kernel.
        for listed in &found.calls {
            if listed.target.is_none() && is_flanneld(std::slice::from_ref(listed)) {
                changes.delete_rule(base.table, base.name, listed);
                setting.replaced.push(base.name);
            }
        }
        let jumps = found.jumps_to(former.iptables);
        if !jumps.is_empty() && is_flanneld(&kernel.rules(self.family, base.table, former.iptables)?) {
            jumps.iter().for_each(|jump| changes.delete_rule(base.table, base.name, jump));
            changes.flush(base.table, former.iptables);
            changes.delete_chain(base.table, former.iptables);
            setting.replaced.push(former.iptables);
        }
        let table = if self.family.is_ipv6() { "flannel-ipv6" } else { "flannel-ipv4" };
        if self.is_of_network(&kernel.rules(self.family, table, former.nftables)?) {
            changes.flush(table, former.nftables);
            changes.delete_chain(table, former.nftables);
            if kernel.table_use(self.family, table)? == Some(1) {
                changes.delete_table(table);
            }
            setting.replaced.push(table);
        }
        Ok(())
    }

    /// Returns the changes that remove the rules. Unless `keeps_chains`, they remove the own chains too, and those in
    /// `created` if nobody else uses them.
    pub(super) fn remove(
        &self,
        kernel: &mut Nftables,
        created: &[BaseChain],
        keeps_chains: bool,
    ) -> io::Result<Changes> {
        let mut changes = Changes::new(self.family);
        let mut deleted: BTreeMap<&str, u32> = BTreeMap::new();
        for wanted in &self.wanted {
            let (table, base) = (wanted.base.table, wanted.base.name);
            let found = Found::read(kernel, self.family, wanted)?;
            let jumps = found.jumps_to(wanted.own);
            jumps.iter().for_each(|jump| changes.delete_rule(table, base, jump));
            if !found.rules.is_empty() {
                changes.flush(table, wanted.own);
            }
            if keeps_chains {
                continue;
            }
            if found.own.is_some() {
                changes.delete_chain(table, wanted.own);
                *deleted.entry(table).or_default() += 1;
            }
            let is_unused = found.base.is_some_and(|base| !base.drops) && jumps.len() == found.calls.len();
            if created.contains(&wanted.base) && is_unused {
                changes.delete_chain(table, base);
                *deleted.entry(table).or_default() += 1;
            }
        }
        for (table, chains) in deleted {
            let is_created = created.iter().any(|base| base.table == table);
            if is_created && kernel.table_use(self.family, table)? == Some(chains) {
                changes.delete_table(table);
            }
        }
        Ok(changes)
    }

    /// Returns true if a rule names this group's network. Another flanneld may serve another network.
    fn is_of_network(&self, rules: &[ListedRule]) -> bool {
        rules.iter().filter_map(|listed| listed.rule.as_ref()).any(|rule| {
            let addresses = [rule.source, rule.destination].into_iter().flatten();
            addresses.into_iter().any(|addresses| Some(addresses.network().trunc()) == self.network)
        })
    }
}

/// Changes that set rules.
pub(super) struct Setting {
    pub(super) changes: Changes,
    /// The chains of the kernel that the changes create.
    pub(super) created: Vec<BaseChain>,
    /// The chains with rules of flanneld that the changes remove.
    pub(super) replaced: Vec<&'static str>,
}

/// The state of the kernel.
struct Found {
    base: Option<ChainState>,
    /// The rules of the kernel's chain.
    calls: Vec<ListedRule>,
    own: Option<ChainState>,
    /// The rules of the own chain.
    rules: Vec<ListedRule>,
}

impl Found {
    fn read(kernel: &mut Nftables, family: Family, wanted: &Wanted) -> io::Result<Self> {
        let table = wanted.base.table;
        Ok(Self {
            base: kernel.chain(family, table, wanted.base.name)?,
            calls: kernel.rules(family, table, wanted.base.name)?,
            own: kernel.chain(family, table, wanted.own)?,
            rules: kernel.rules(family, table, wanted.own)?,
        })
    }

    fn jumps_to(&self, chain: &str) -> Vec<&ListedRule> {
        self.calls.iter().filter(|listed| listed.target.as_deref() == Some(chain)).collect()
    }
}
