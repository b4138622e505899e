//! What firewalls do to the tunnel's datagrams and to the packets of pods. Docker's iptables drops what is forwarded by policy,
//! and masquerades pods.

mod chains;
mod expressions;
mod iptables;
mod ruleset;

use alloc::string::String;
use alloc::vec::Vec;

use self::chains::{Aim, Judgement, Packet};
use self::ruleset::{Chain, Ruleset};
use super::host::{Host, Interface};
use super::{Finding, Firewall, Intended};

/// `NF_INET_*` of linux/netfilter.h.
mod hook {
    pub(super) const PREROUTING: u32 = libc::NF_INET_PRE_ROUTING.cast_unsigned();
    pub(super) const INPUT: u32 = libc::NF_INET_LOCAL_IN.cast_unsigned();
    pub(super) const FORWARD: u32 = libc::NF_INET_FORWARD.cast_unsigned();
    pub(super) const POSTROUTING: u32 = libc::NF_INET_POST_ROUTING.cast_unsigned();
}

/// Connection tracking looks at packets with this priority (`NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i32 = -200;

pub(super) fn check(intended: &Intended, host: Option<&Host>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let legacy = iptables::read();
    let translates = legacy.as_ref().is_ok_and(|legacy| legacy.translates);
    match Ruleset::read() {
        Ok(ruleset) => findings.extend(Nftables::new(ruleset, intended, host, translates).check()),
        Err(error) => findings.push(Finding::unchecked("the rules of nftables", &error)),
    }
    match legacy {
        Ok(legacy) => {
            let dropping = |chain| Firewall::IptablesLegacy { chain };
            findings.extend(legacy.forward.map(|rules| Finding::ForwardDropped {
                firewall: dropping("FORWARD"),
                rules,
                network: intended.network,
            }));
            findings.extend(legacy.input.map(|rules| Finding::InputDropped {
                firewall: dropping("INPUT"),
                port: intended.port,
                certain: rules == 0,
            }));
        }
        Err(error) => findings.push(Finding::unchecked("the chains of iptables-legacy", &error)),
    }
    findings
}

struct Nftables<'a> {
    ruleset: Ruleset,
    intended: &'a Intended,
    /// Rules of iptables-legacy may masquerade.
    legacy_translates: bool,
    underlay: Option<(u32, String)>,
    pods: Option<(u32, String)>,
    tun: Option<(u32, String)>,
}

impl<'a> Nftables<'a> {
    fn new(ruleset: Ruleset, intended: &'a Intended, host: Option<&Host>, legacy_translates: bool) -> Self {
        let underlay = host.and_then(|host| host.underlay.as_ref());
        let underlay = underlay.map(|underlay| (underlay.index, underlay.name.clone()));
        let pods = host.and_then(|host| host.pod_links(intended).next());
        let of = |link: &Interface| (link.state.index, link.state.name.clone());
        // One that does not exist yet is no interface that exists.
        let future = || (u32::MAX, intended.tun.replace("%d", "0"));
        let tun = host.map(|host| host.named(&intended.tun).map_or_else(future, of));
        Self { ruleset, intended, legacy_translates, underlay, pods: pods.map(of), tun }
    }

    fn check(&self) -> Vec<Finding> {
        let network = self.intended.network;
        let forward = self.chains(hook::FORWARD).filter(|chain| self.drops_forwarded(chain));
        let dropped =
            forward.map(|chain| Finding::ForwardDropped { firewall: chain.firewall(), rules: chain.rules, network });
        let mut findings: Vec<_> = dropped.collect();
        findings.extend(self.check_input());
        findings.extend(self.check_pods());
        findings
    }

    fn chains(&self, hook: u32) -> impl Iterator<Item = &Chain> {
        self.ruleset.bases.iter().filter(move |chain| chain.hook == hook && !chain.is_nat)
    }

    /// Whether a forward chain drops packets of pods, or may drop them, in either direction.
    fn drops_forwarded(&self, chain: &Chain) -> bool {
        let Intended { network, subnet, .. } = *self.intended;
        let Some(other) =
            [network.network(), network.broadcast()].into_iter().find(|address| !subnet.contains(address))
        else {
            return chain.drops;
        };
        let (pod, other) = (chains::Host::At(subnet.broadcast()), chains::Host::At(other));
        let (input, output) = (self.pods.clone(), self.tun.clone());
        let out = Packet { source: pod, destination: other, input, output, source_port: 0, ..self.received() };
        let out = Packet { destination_port: 0, ..out };
        let (input, output) = (out.output.clone(), out.input.clone());
        let back = Packet { source: other, destination: pod, input, output, ..out.clone() };
        [out, back].iter().any(|packet| self.ruleset.judge(chain, packet, Aim::Accept) < Judgement::Always)
    }

    /// Chains that drop the first datagram of another host. That later ones are accepted, because this host has answered, is
    /// luck.
    fn check_input(&self) -> impl Iterator<Item = Finding> {
        let datagram = self.received();
        let state = if self.is_untracked() == Judgement::Always { chains::UNTRACKED } else { chains::NEW };
        self.chains(hook::INPUT).filter_map(move |chain| {
            let judge = |state| self.ruleset.judge(chain, &Packet { state, ..datagram.clone() }, Aim::Accept);
            let first = judge(state);
            let is_lasting = state == chains::UNTRACKED || judge(chains::ESTABLISHED) == Judgement::Never;
            (first != Judgement::Always).then(|| Finding::InputDropped {
                firewall: chain.firewall(),
                port: self.intended.port,
                certain: first == Judgement::Never && is_lasting,
            })
        })
    }

    /// What pods can do with the tunnel's port, if they appear to other hosts under this host's address.
    fn check_pods(&self) -> Vec<Finding> {
        let Some((_, interface)) = &self.underlay else { return Vec::new() };
        let Intended { port, subnet, .. } = *self.intended;
        let of_pod = self.sent_by_pod();
        let nat = self.ruleset.bases.iter().filter(|chain| chain.is_nat && chain.hook == hook::POSTROUTING);
        let judged = nat.map(|chain| (self.ruleset.judge(chain, &of_pod, Aim::Translate), chain.firewall()));
        let legacy = self.legacy_translates.then_some(Firewall::IptablesLegacy { chain: "POSTROUTING" });
        let judged = judged.chain(legacy.map(|firewall| (Judgement::Maybe, firewall)));
        let Some((judgement, firewall)) = judged.max_by_key(|(judgement, _)| *judgement) else { return Vec::new() };
        if judgement == Judgement::Never {
            return Vec::new();
        }
        let mut findings = Vec::new();
        let interface = interface.clone();
        if self.is_untracked() != Judgement::Always {
            let certain = judgement == Judgement::Always;
            findings.push(Finding::PortTracked { interface: interface.clone(), firewall, port, certain });
        }
        let is_dropped = |chain| self.ruleset.judge(chain, &of_pod, Aim::Drop) == Judgement::Always;
        if !self.chains(hook::FORWARD).any(is_dropped) {
            findings.push(Finding::PodsReachPort { interface, subnet, port });
        }
        findings
    }

    /// Whether received datagrams pass connection tracking by, and those of pods.
    fn is_untracked(&self) -> Judgement {
        let before = |chain: &&Chain| chain.priority < CONNTRACK;
        let judge = |packet: &Packet| {
            let chains = self.chains(hook::PREROUTING).filter(before);
            chains.map(|chain| self.ruleset.judge(chain, packet, Aim::NoTrack)).max().unwrap_or(Judgement::Never)
        };
        judge(&self.received()).min(judge(&Packet { output: None, ..self.sent_by_pod() }))
    }

    /// The first datagram of another host.
    fn received(&self) -> Packet {
        let port = self.intended.port;
        let destination = match self.intended.listen {
            core::net::IpAddr::V4(listen) => chains::Host::At(listen),
            core::net::IpAddr::V6(_) => chains::Host::Peer,
        };
        Packet {
            source: chains::Host::Peer,
            destination,
            source_port: port,
            destination_port: port,
            input: self.underlay.clone(),
            output: None,
            state: chains::NEW,
            overlay: self.intended.network,
        }
    }

    /// A datagram that looks like the tunnel's own, of a pod.
    fn sent_by_pod(&self) -> Packet {
        // The first address is the TUN device's, the second usually the bridge's.
        let pod = self.intended.subnet.hosts().nth(1).unwrap_or(self.intended.subnet.network());
        Packet {
            source: chains::Host::At(pod),
            destination: chains::Host::Peer,
            input: self.pods.clone(),
            output: self.underlay.clone(),
            ..self.received()
        }
    }
}
