//! R67 for a whole network: every packet and datagram is counted exactly once, and both sides of every border agree.

use core::fmt;

use super::Direction;
use super::{Node, NodeId, UnderlayCounters};
use crate::forward::{Counters, DirectionCounters};
use crate::framing::Framing;

/// A packet that was not counted, or counted twice: a bug in this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvariantViolation {
    /// A node and the simulator disagree about the number of packets that crossed a border of the node.
    #[error("{node}, {border}: the node counted {counted}, and {seen} crossed it")]
    Border {
        /// The node.
        node: NodeId,
        /// The border.
        border: Border,
        /// The number by the node's counters.
        counted: u64,
        /// The number by the simulator.
        seen: u64,
    },
    /// The packets of a direction of a node are not conserved.
    #[error(
        "{node}, {direction}: {} packets received, but {} forwarded, {} answered, {} held and {} dropped",
        .flow.received(), .flow.forwarded(), .flow.answered(), .flow.held(), .flow.drops().map(|(_, count)| count).sum::<u64>()
    )]
    Flow {
        /// The node.
        node: NodeId,
        /// The direction.
        direction: Direction,
        /// Its counters.
        flow: alloc::boxed::Box<DirectionCounters>,
    },
    /// The datagrams of the underlay are not conserved, or it disagrees with the nodes.
    #[error("the underlay does not add up: {underlay:?}; the nodes sent {sent} and received {received}")]
    Underlay {
        /// Its counters.
        underlay: alloc::boxed::Box<UnderlayCounters>,
        /// Datagrams that all nodes sent.
        sent: u64,
        /// Datagrams that all nodes received.
        received: u64,
    },
}

/// A border between a node and its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Border {
    /// From its TUN device.
    FromTun,
    /// From the underlay, control messages included.
    FromUnderlay,
    /// To its TUN device.
    ToTun,
    /// To the underlay, control messages included. A fragmented packet counts once itself, and once for each fragment.
    ToUnderlay,
}

impl fmt::Display for Border {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FromTun => "packets from the TUN",
            Self::FromUnderlay => "datagrams from the underlay",
            Self::ToTun => "packets to the TUN",
            Self::ToUnderlay => "datagrams to the underlay",
        })
    }
}

pub(super) fn check<'n, F: Framing + 'n>(
    nodes: impl Iterator<Item = (NodeId, &'n Node<F>)>,
    underlay: &UnderlayCounters,
) -> Result<(), InvariantViolation> {
    let (mut sent, mut received) = (0, 0);
    for (id, node) in nodes {
        check_node(id, node)?;
        sent += node.seen.to_underlay;
        received += node.seen.from_underlay;
    }
    if underlay.is_conserved() && sent == underlay.sent() && received == underlay.arrived() {
        return Ok(());
    }
    Err(InvariantViolation::Underlay { underlay: underlay.clone().into(), sent, received })
}

fn check_node<F: Framing>(id: NodeId, node: &Node<F>) -> Result<(), InvariantViolation> {
    let Counters { encap, decap, stats } = node.counters();
    for (direction, flow) in [(Direction::Outbound, &encap), (Direction::Inbound, &decap)] {
        if !flow.is_conserved() {
            return Err(InvariantViolation::Flow { node: id, direction, flow: flow.clone().into() });
        }
    }
    let borders = [
        (Border::FromTun, encap.received(), node.seen.from_tun),
        (Border::FromUnderlay, decap.received() + stats.control_received, node.seen.from_underlay),
        (Border::ToTun, decap.forwarded() + encap.answered(), node.seen.to_tun),
        (
            Border::ToUnderlay,
            encap.forwarded() + decap.answered() + stats.fragments_made + stats.control_sent,
            node.seen.to_underlay + node.seen.fragmented + node.seen.refused_fragments,
        ),
    ];
    match borders.into_iter().find(|(_, counted, seen)| counted != seen) {
        Some((border, counted, seen)) => Err(InvariantViolation::Border { node: id, border, counted, seen }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Host;
    use crate::forward::ForwarderConfig;
    use crate::sim::Sim;
    use ipnet::Ipv4Net;
    use std::string::ToString;

    /// Checks two nodes without packets after one number was changed.
    fn found(tamper: impl FnOnce(&mut Sim, NodeId)) -> std::string::String {
        let net = |octet, len| Ipv4Net::new_assert([100, 96, octet, 0].into(), len);
        let mut sim = Sim::new(net(0, 16), 1);
        let nodes = [1, 2]
            .map(|host| Host::new(net(0, 16), net(host, 24), ([10, 168, 0, host], 8285)).unwrap())
            .map(|host| sim.add_node(ForwarderConfig::new(&host)).unwrap());
        assert_eq!(sim.check(), Ok(()));
        tamper(&mut sim, nodes[1]);
        sim.check().unwrap_err().to_string()
    }

    #[test]
    fn each_violation_is_reported() {
        assert_eq!(
            found(|sim, node| sim.node_mut(node).seen.to_tun += 1),
            "node 1, packets to the TUN: the node counted 0, and 1 crossed it"
        );
        assert_eq!(
            found(|sim, node| sim.node_mut(node).counters_mut().encap.forward()),
            "node 1, encap: 0 packets received, but 1 forwarded, 0 answered, 0 held and 0 dropped"
        );
        let lost = found(|sim, _| sim.underlay.counters.sent += 1);
        assert!(lost.starts_with("the underlay does not add up") && lost.ends_with("sent 0 and received 0"), "{lost}");
        let twice = found(|sim, node| {
            sim.node_mut(node).seen.from_underlay += 1;
            sim.node_mut(node).counters_mut().decap.receive();
        });
        assert!(twice.ends_with("sent 0 and received 1"), "{twice}");
    }
}
