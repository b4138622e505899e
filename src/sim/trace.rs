//! The trace: the events of a simulation in their order.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;

use super::{Direction, Fate, Loss, NodeId};

/// One event with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The time.
    pub at: Duration,
    /// The event.
    pub event: Event,
}

/// An event of a simulation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A datagram arrived at a node.
    Arrived {
        /// The node.
        node: NodeId,
        /// The sender in the outer header.
        from: SocketAddr,
        /// Its payload.
        datagram: Bytes,
    },
    /// The datagram that was just sent got a copy.
    Duplicated {
        /// The sender.
        from: SocketAddr,
        /// The destination.
        to: SocketAddr,
    },
    /// A packet was read from a node's TUN device.
    FromTun {
        /// The node.
        node: NodeId,
        /// The packet.
        packet: Bytes,
    },
    /// A datagram was lost.
    Lost {
        /// The sender.
        from: SocketAddr,
        /// The destination.
        to: SocketAddr,
        /// The reason.
        loss: Loss,
    },
    /// A node learned from a router that the path MTU to a peer is smaller than known.
    PathNarrowed {
        /// The node.
        node: NodeId,
        /// The peer.
        peer: SocketAddr,
        /// The path MTU in bytes of outer packet.
        mtu: u16,
    },
    /// A packet from the TUN device of a stopped node was dropped.
    Refused {
        /// The node.
        node: NodeId,
        /// The packet.
        packet: Bytes,
    },
    /// A node sent a datagram.
    Sent {
        /// The node.
        node: NodeId,
        /// The destination.
        to: SocketAddr,
        /// Its payload.
        datagram: Bytes,
    },
    /// A node decided on the last packet.
    Settled {
        /// The node.
        node: NodeId,
        /// The direction of the packet.
        direction: Direction,
        /// The outcome.
        fate: Fate,
    },
    /// A node wrote a packet to its TUN device.
    ToTun {
        /// The node.
        node: NodeId,
        /// The packet.
        packet: Bytes,
    },
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outbound => "encap",
            Self::Inbound => "decap",
        })
    }
}

/// One line, without the packets' bytes.
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, event } = self;
        write!(f, "{}.{:09} ", at.as_secs(), at.subsec_nanos())?;
        match event {
            Event::Arrived { node, from, datagram } => {
                write!(f, "{node} received {} bytes from {from}", datagram.len())
            }
            Event::Duplicated { from, to } => write!(f, "{from} to {to}: a copy was made"),
            Event::FromTun { node, packet } => write!(f, "{node} read {} bytes from its TUN", packet.len()),
            Event::Lost { from, to, loss } => write!(f, "{from} to {to}: lost, {loss}"),
            Event::PathNarrowed { node, peer, mtu } => {
                write!(f, "{node} learned that the path to {peer} carries {mtu} bytes")
            }
            Event::Refused { node, packet } => write!(f, "{node} is stopped: {} bytes were dropped", packet.len()),
            Event::Sent { node, to, datagram } => write!(f, "{node} sent {} bytes to {to}", datagram.len()),
            Event::Settled { node, direction, fate } => match fate {
                Fate::Forwarded => write!(f, "{node} {direction}: forwarded"),
                Fate::Answered => write!(f, "{node} {direction}: answered"),
                Fate::Dropped(reason) => write!(f, "{node} {direction}: dropped, {reason}"),
            },
            Event::ToTun { node, packet } => write!(f, "{node} wrote {} bytes to its TUN", packet.len()),
        }
    }
}
