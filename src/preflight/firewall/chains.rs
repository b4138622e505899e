//! Evaluation of the nftables chains of one table for one packet.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::net::IpAddr;

use ipnet::IpNet;

use super::expressions::{Element, Match, Verdict, evaluate_rule};

/// Deepest nesting of chains that is followed, as in the kernel (`NFT_JUMP_STACK_SIZE`).
const DEPTH_MAX: u32 = 16;
/// Largest number of rules that are evaluated for one packet. A rule counts again for each jump to its chain.
const RULES_MAX: u32 = 1 << 17;
/// States of connection tracking, `NF_CT_STATE_BIT` of linux/netfilter/nf_conntrack_common.h.
pub(super) const ESTABLISHED: u32 = 1 << 1;
pub(super) const NEW: u32 = 1 << 3;
pub(super) const UNTRACKED: u32 = 1 << 6;

/// A packet that enters a chain.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) is_ipv6: bool,
    pub(super) source: PacketAddress,
    pub(super) destination: PacketAddress,
    pub(super) transport: Transport,
    /// Index and name of the input interface.
    pub(super) input: Option<(u32, String)>,
    /// Index and name of the output interface.
    pub(super) output: Option<(u32, String)>,
    /// State of connection tracking.
    pub(super) ct_state: u32,
    /// The overlay networks, in which no other host has an underlay address.
    pub(super) overlay: Vec<IpNet>,
}

/// The upper layer of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// An ICMPv6 message of a type, with code 0.
    Icmpv6 {
        kind: u8,
    },
    Udp {
        source: u16,
        destination: u16,
    },
}

impl Transport {
    pub(super) const fn protocol(self) -> u8 {
        match self {
            Self::Icmpv6 { .. } => libc::IPPROTO_ICMPV6 as u8,
            Self::Udp { .. } => libc::IPPROTO_UDP as u8,
        }
    }

    /// Returns the known bytes at the beginning of the header.
    pub(super) fn bytes(self) -> Vec<u8> {
        match self {
            Self::Icmpv6 { kind } => [kind, 0].into(),
            Self::Udp { source, destination } => [source.to_be_bytes(), destination.to_be_bytes()].concat(),
        }
    }
}

/// An address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketAddress {
    Known(IpAddr),
    /// The unknown address of another host. A rule for some addresses is assumed to be made for the other hosts, unless
    /// it would defeat the outcome in question.
    Peer,
}

/// The outcome that an evaluation asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Accept,
    Drop,
    NoTrack,
    Translate,
}

/// The likelihood of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likelihood {
    Never,
    Maybe,
    Always,
}

/// The rules of one table.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// The expressions of each rule, by the name of the chain.
    pub(super) chains: BTreeMap<String, Vec<Vec<u8>>>,
    /// The elements of anonymous sets and maps, sorted by their keys.
    pub(super) sets: BTreeMap<String, Vec<Element>>,
}

/// Returns the likelihood that a base chain with this policy has the outcome for the packet.
///
/// A packet that may reach the end of a chain that accepts by policy is assumed to be accepted. Most rules that cannot
/// be evaluated concern other packets (marks, lists of hosts).
pub(super) fn evaluate(
    table: &Table,
    chain: &str,
    drops_by_policy: bool,
    packet: &Packet,
    outcome: Outcome,
) -> Likelihood {
    let mut results = Evaluation { table, packet, outcome, rules_left: Cell::new(RULES_MAX) }.chain(chain, DEPTH_MAX);
    let is_accepted_by_policy = results.falls_through && !drops_by_policy;
    results.drops |= results.falls_through && drops_by_policy;
    results.accepts |= is_accepted_by_policy;
    let (can, cannot) = match outcome {
        Outcome::Accept => (results.accepts, results.drops && !is_accepted_by_policy),
        Outcome::Drop => (results.drops, results.accepts),
        Outcome::NoTrack | Outcome::Translate => (results.alters, results.accepts || results.drops),
    };
    match (can, cannot) {
        (false, _) => Likelihood::Never,
        (true, true) => Likelihood::Maybe,
        (true, false) => Likelihood::Always,
    }
}

/// The possible results of a chain.
#[derive(Clone, Copy, Debug, Default)]
struct Results {
    accepts: bool,
    drops: bool,
    /// A rule disables connection tracking, or translates an address.
    alters: bool,
    /// The packet reaches the end of the chain.
    falls_through: bool,
}

impl Results {
    const ANY: Self = Self { accepts: true, drops: true, alters: true, falls_through: true };

    /// Adds the results of a called chain. Returns true if the packet may come back from it.
    fn join(&mut self, called: Self) -> bool {
        self.accepts |= called.accepts;
        self.drops |= called.drops;
        self.alters |= called.alters;
        called.falls_through
    }
}

/// One evaluation, and the number of rules it may still look at.
struct Evaluation<'a> {
    table: &'a Table,
    packet: &'a Packet,
    outcome: Outcome,
    rules_left: Cell<u32>,
}

impl Evaluation<'_> {
    fn chain(&self, chain: &str, depth: u32) -> Results {
        let Some(depth) = depth.checked_sub(1) else { return Results::ANY };
        let mut results = Results { falls_through: true, ..Results::default() };
        let mut returns = false;
        for rule in self.table.chains.get(chain).into_iter().flatten() {
            let Some(left) = self.rules_left.get().checked_sub(1) else { return Results::ANY };
            self.rules_left.set(left);
            // A rule that cannot be parsed may do anything.
            let (matches, verdict) =
                evaluate_rule(self.table, rule, self.packet, self.outcome).unwrap_or((Match::Maybe, Verdict::Unknown));
            if matches == Match::No {
                continue;
            }
            let mut is_end = true;
            match verdict {
                Verdict::Accept => results.accepts = true,
                Verdict::Continue => is_end = false,
                Verdict::Drop => results.drops = true,
                Verdict::Goto(to) => returns |= results.join(self.chain(&to, depth)),
                Verdict::Jump(to) => is_end = !results.join(self.chain(&to, depth)),
                Verdict::NoTrack | Verdict::Translate => results.alters = true,
                Verdict::Return => returns = true,
                Verdict::Unknown => {
                    results = Results::ANY;
                    is_end = false;
                }
            }
            if is_end && matches == Match::Yes {
                results.falls_through = false;
                break;
            }
        }
        results.falls_through |= returns;
        results
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test may fail by panicking")]
mod unit {
    use super::super::attributes::nfta;
    use super::*;
    use crate::sys::link::message::nla;

    fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        let name = nla(nfta::EXPRESSION_NAME, alloc::format!("{name}\0").as_bytes());
        nla(1, &[name, nla(nfta::EXPRESSION_DATA, &data.concat())].concat())
    }

    fn big(kind: u16, number: u32) -> Vec<u8> {
        nla(kind, &number.to_be_bytes())
    }

    /// `udp dport 8285 accept`, without the comparison of the protocol.
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
            is_ipv6: false,
            source: PacketAddress::Peer,
            destination: PacketAddress::Known([10, 168, 0, 2].into()),
            transport: Transport::Udp { source: 8285, destination: port },
            input: Some((2, "eth0".into())),
            output: None,
            ct_state: NEW,
            overlay: ["100.96.0.0/16".parse().expect("a network")].into(),
        }
    }

    fn table(rules: Vec<Vec<u8>>) -> Table {
        Table { chains: [("input".into(), rules)].into(), ..Table::default() }
    }

    fn evaluated(rule: Vec<u8>, port: u16) -> Likelihood {
        evaluate(&table([rule].into()), "input", true, &packet(port), Outcome::Accept)
    }

    #[test]
    fn a_rule_that_is_cut_or_changed_causes_no_panic_and_no_certain_match() {
        let rule = accepts_port();
        assert_eq!(
            (evaluated(rule.clone(), 8285), evaluated(rule.clone(), 8286)),
            (Likelihood::Always, Likelihood::Never)
        );
        for length in 0..rule.len() {
            let cut = rule.get(..length).expect("in range").to_vec();
            assert_ne!(evaluated(cut, 8285), Likelihood::Always, "{length} of {} bytes", rule.len());
        }
        for bit in 0..rule.len() * 8 {
            let mut flipped = rule.clone();
            *flipped.get_mut(bit / 8).expect("in range") ^= 1 << (bit % 8);
            evaluated(flipped, 8285);
        }
    }

    #[test]
    fn chains_that_call_each_other_without_end_give_maybe() {
        let verdict = nla(nfta::DATA_VERDICT, &[big(1, (-3_i32).cast_unsigned()), nla(2, b"input\0")].concat());
        let jump = expression("immediate", &[big(1, 0), nla(nfta::IMMEDIATE_DATA, &verdict)]);
        assert_eq!(evaluated(jump.clone(), 8285), Likelihood::Maybe);
        let many = table(alloc::vec![jump; 100]);
        assert_eq!(evaluate(&many, "input", true, &packet(8285), Outcome::Accept), Likelihood::Maybe);
    }
}
