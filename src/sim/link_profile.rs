//! The properties of the path from one host to another.

use core::time::Duration;

use super::Probability;

/// The properties of the path from one host to another.
///
/// ```
/// use core::time::Duration;
/// use loden::sim::{Probability, LinkProfile};
/// let bad = LinkProfile { loss: Probability::percent(5), jitter: Duration::from_millis(20), ..LinkProfile::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkProfile {
    /// The minimum latency. Default 1 ms.
    pub latency: Duration,
    /// The maximum additional latency, uniformly distributed for each datagram. Datagrams sent within this time may be
    /// reordered. Default zero, which keeps the order.
    pub jitter: Duration,
    /// The probability of the loss of a datagram.
    pub loss: Probability,
    /// The probability of a second copy, which has its own latency.
    pub duplication: Probability,
    /// The probability that a router sets the congestion mark, if the outer ECN field shows that the sender supports
    /// ECN (RFC 3168). Other datagrams are not dropped instead; use [`loss`](Self::loss) for that.
    pub congestion: Probability,
    /// The path MTU behind the sender's link, in bytes of outer packet. Default 65,535.
    ///
    /// Longer packets are lost. Over IPv4 the sender receives a router's "fragmentation needed" with this number after
    /// the latency, and [handles](crate::forward::PathMtus::handle_icmp) it. Routers do not fragment, so a path MTU
    /// below 552, the minimum of such a report, is a black hole.
    pub mtu: u16,
}

impl Default for LinkProfile {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss: Probability::NEVER,
            duplication: Probability::NEVER,
            congestion: Probability::NEVER,
            mtu: u16::MAX,
        }
    }
}
