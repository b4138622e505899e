//! What happened, in the order it did.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use bytes::Bytes;

use super::{Direction, Fate, Loss, NodeId};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub at: Duration,
    /// What.
    pub event: Event,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A datagram arrived at a node.
    Arrived {
        /// The node.
        node: NodeId,
        /// Who sent it, as its outer header says.
        from: SocketAddr,
        /// Its payload.
        datagram: Bytes,
    },
    /// There is a copy of the datagram that was sent just now.
    Duplicated {
        /// Who sent it.
        from: SocketAddr,
        /// Whom to.
        to: SocketAddr,
    },
    /// A packet came out of a node's TUN.
    FromTun {
        /// The node.
        node: NodeId,
        /// The packet.
        packet: Bytes,
    },
    /// A datagram was lost.
    Lost {
        /// Who sent it.
        from: SocketAddr,
        /// Whom to.
        to: SocketAddr,
        /// How.
        loss: Loss,
    },
    /// A node learned from a router that the path to a peer is narrower than it thought.
    PathNarrowed {
        /// The node.
        node: NodeId,
        /// The peer.
        peer: SocketAddr,
        /// The longest outer packet that the path carries, in bytes.
        mtu: u16,
    },
    /// A packet came out of the TUN of a node that did not run: nobody took it.
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
        /// Whom to.
        to: SocketAddr,
        /// Its payload.
        datagram: Bytes,
    },
    /// A node has decided on the packet that came last.
    Settled {
        /// The node.
        node: NodeId,
        /// Where the packet came from.
        direction: Direction,
        /// What became of it.
        fate: Fate,
    },
    /// A node wrote a packet to its TUN.
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
            Event::Refused { node, packet } => write!(f, "{node} is stopped: {} bytes went nowhere", packet.len()),
            Event::Sent { node, to, datagram } => write!(f, "{node} sent {} bytes to {to}", datagram.len()),
            Event::Settled { node, direction, fate } => match fate {
                Fate::Forwarded => write!(f, "{node} {direction}: forwarded"),
                Fate::Answered(reason) => write!(f, "{node} {direction}: answered with {reason:?}"),
                Fate::Dropped(reason) => write!(f, "{node} {direction}: dropped, {reason}"),
            },
            Event::ToTun { node, packet } => write!(f, "{node} wrote {} bytes to its TUN", packet.len()),
        }
    }
}
