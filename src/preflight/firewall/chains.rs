//! What the rules of nftables make of one packet, as far as that can be told without sending it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::expressions::{Action, Element, Truth, judge_rule};

/// Chains that jump to each other deeper than this are not followed. The kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH: u32 = 16;
/// Rules that are looked at for one packet, at most: chains that many others jump to count each time.
const RULES: u32 = 1 << 17;
/// `NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h.
pub(in crate::preflight) const ESTABLISHED: u32 = 1 << 1;
pub(in crate::preflight) const NEW: u32 = 1 << 3;
pub(in crate::preflight) const UNTRACKED: u32 = 1 << 6;

/// A UDP datagram over IPv4, in front of a chain.
#[derive(Clone, Debug)]
pub(in crate::preflight) struct Packet {
    pub(in crate::preflight) source: Host,
    pub(in crate::preflight) destination: Host,
    pub(in crate::preflight) source_port: u16,
    pub(in crate::preflight) destination_port: u16,
    /// Index and name of the interface that it came in by.
    pub(in crate::preflight) input: Option<(u32, String)>,
    /// The same of the one that it leaves by.
    pub(in crate::preflight) output: Option<(u32, String)>,
    /// Of connection tracking.
    pub(in crate::preflight) state: u32,
    /// No other host has an address in it.
    pub(in crate::preflight) overlay: Ipv4Net,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::preflight) enum Host {
    At(Ipv4Addr),
    /// One of the other hosts, whose addresses are not known here. A rule for some addresses is taken for one that was made
    /// for them, unless it does the contrary of what is looked for.
    Peer,
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::preflight) enum Aim {
    Accept,
    Drop,
    NoTrack,
    Translate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::preflight) enum Judgement {
    Never,
    Maybe,
    Always,
}

/// The rules of one table.
#[derive(Clone, Debug, Default)]
pub(in crate::preflight) struct Table {
    /// The expressions of each rule, by chains.
    pub(in crate::preflight) chains: BTreeMap<String, Vec<Vec<u8>>>,
    /// The elements of sets and maps that are part of a rule, sorted by their keys.
    pub(in crate::preflight) sets: BTreeMap<String, Vec<Element>>,
}

/// Whether a base chain with this policy does what is looked for to the packet. A packet that may come to the end of a chain that
/// accepts by policy is believed to be accepted: most rules in front that cannot be judged are for others (marks, lists of hosts).
pub(in crate::preflight) fn judge(
    rules: &Table,
    chain: &str,
    drops_by_policy: bool,
    packet: &Packet,
    aim: Aim,
) -> Judgement {
    let mut ends = walk(rules, chain, packet, aim, DEPTH, &Cell::new(RULES));
    let is_accepted_by_policy = ends.passes && !drops_by_policy;
    ends.drops |= ends.passes && drops_by_policy;
    ends.accepts |= ends.passes && !drops_by_policy;
    let (can, cannot) = match aim {
        Aim::Accept => (ends.accepts, ends.drops && !is_accepted_by_policy),
        Aim::Drop => (ends.drops, ends.accepts),
        Aim::NoTrack | Aim::Translate => (ends.acts, ends.accepts || ends.drops),
    };
    match (can, cannot) {
        (false, _) => Judgement::Never,
        (true, true) => Judgement::Maybe,
        (true, false) => Judgement::Always,
    }
}

/// Ends that the way through a chain may have.
#[derive(Clone, Copy, Debug, Default)]
struct Ends {
    accepts: bool,
    drops: bool,
    /// A rule tracks not, or translates.
    acts: bool,
    /// The rules leave it to whoever called the chain.
    passes: bool,
}

fn walk(rules: &Table, chain: &str, packet: &Packet, aim: Aim, depth: u32, left: &Cell<u32>) -> Ends {
    let anything = Ends { accepts: true, drops: true, acts: true, passes: true };
    let Some(depth) = depth.checked_sub(1) else { return anything };
    let mut ends = Ends { passes: true, ..Ends::default() };
    let mut returns = false;
    for rule in rules.chains.get(chain).into_iter().flatten() {
        let Some(fewer) = left.get().checked_sub(1) else { return anything };
        left.set(fewer);
        // What cannot be read may be anything.
        let (truth, action) = judge_rule(rules, rule, packet, aim).unwrap_or((Truth::Maybe, Action::Unknown));
        if truth == Truth::No {
            continue;
        }
        let mut is_end = true;
        match action {
            Action::Accept => ends.accepts = true,
            Action::Drop => ends.drops = true,
            Action::NoTrack | Action::Translate => ends.acts = true,
            Action::Return => returns = true,
            Action::Pass => is_end = false,
            Action::Jump(to) => is_end = !ends.join(walk(rules, &to, packet, aim, depth, left)),
            Action::Goto(to) => returns |= ends.join(walk(rules, &to, packet, aim, depth, left)),
            Action::Unknown => {
                ends = anything;
                is_end = false;
            }
        }
        if is_end && truth == Truth::Yes {
            ends.passes = false;
            break;
        }
    }
    ends.passes |= returns;
    ends
}

impl Ends {
    /// Takes over those of a chain that was called. Returns whether it may come back.
    fn join(&mut self, called: Self) -> bool {
        self.accepts |= called.accepts;
        self.drops |= called.drops;
        self.acts |= called.acts;
        called.passes
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::super::expressions::nfta;
    use super::*;
    use crate::sys::link::message::nla;

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        let name = nla(nfta::EXPRESSION_NAME, alloc::format!("{name}\0").as_bytes());
        nla(1, &[name, nla(nfta::EXPRESSION_DATA, &data.concat())].concat())
    }

    fn big(kind: u16, number: u32) -> Vec<u8> {
        nla(kind, &number.to_be_bytes())
    }

    /// `udp dport 8285 accept`, with the protocol left out.
    fn accepts_port() -> Vec<u8> {
        let verdict = nla(nfta::DATA_VERDICT, &big(nfta::VERDICT_CODE, 1));
        [
            expression("payload", &[big(1, 1), big(2, 2), big(3, 2), big(4, 2)]),
            expression("cmp", &[big(1, 1), big(2, 0), nla(3, &nla(nfta::DATA_VALUE, &8285_u16.to_be_bytes()))]),
            expression("immediate", &[big(1, 0), nla(nfta::IMMEDIATE_DATA, &verdict)]),
        ]
        .concat()
    }

    fn packet(port: u16) -> Packet {
        Packet {
            source: Host::Peer,
            destination: Host::At(Ipv4Addr::new(10, 168, 0, 2)),
            source_port: 8285,
            destination_port: port,
            input: Some((2, "eth0".into())),
            output: None,
            state: NEW,
            overlay: "100.96.0.0/16".parse().expect("a network"),
        }
    }

    fn table(rules: Vec<Vec<u8>>) -> Table {
        Table { chains: [("input".into(), rules)].into(), ..Table::default() }
    }

    fn judged(rule: Vec<u8>, port: u16) -> Judgement {
        judge(&table([rule].into()), "input", true, &packet(port), Aim::Accept)
    }

    #[test]
    fn a_rule_that_is_cut_or_changed_is_judged_without_a_panic_and_never_surely_for_another_port() {
        let rule = accepts_port();
        assert_eq!((judged(rule.clone(), 8285), judged(rule.clone(), 8286)), (Judgement::Always, Judgement::Never));
        for length in 0..rule.len() {
            let cut = rule.get(..length).expect("in range").to_vec();
            assert_ne!(judged(cut, 8285), Judgement::Always, "{length} of {} bytes", rule.len());
        }
        for bit in 0..rule.len() * 8 {
            let mut flipped = rule.clone();
            *flipped.get_mut(bit / 8).expect("in range") ^= 1 << (bit % 8);
            judged(flipped, 8285);
        }
    }

    #[test]
    fn chains_that_call_each_other_for_ever_cannot_be_judged() {
        let verdict = nla(nfta::DATA_VERDICT, &[big(1, (-3_i32).cast_unsigned()), nla(2, b"input\0")].concat());
        let jump = expression("immediate", &[big(1, 0), nla(nfta::IMMEDIATE_DATA, &verdict)]);
        assert_eq!(judged(jump.clone(), 8285), Judgement::Maybe);
        let many = table(alloc::vec![jump; 100]);
        assert_eq!(judge(&many, "input", true, &packet(8285), Aim::Accept), Judgement::Maybe);
    }
}
