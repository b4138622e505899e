//! What the underlay does to datagrams on their way.

use core::time::Duration;

use super::Probability;

/// The way from one host to another.
///
/// ```
/// use core::time::Duration;
/// use loden::sim::{Probability, LinkProfile};
/// let bad = LinkProfile { loss: Probability::percent(5), jitter: Duration::from_millis(20), ..LinkProfile::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkProfile {
    /// How long a datagram takes at least. Default 1 ms.
    pub latency: Duration,
    /// How much longer it may take, each one anew and any time up to this alike: of datagrams that are sent within this of one
    /// another, the later may arrive first. Default zero, which keeps their order.
    pub jitter: Duration,
    /// How likely a datagram is lost, each one by itself.
    pub loss: Probability,
    /// How likely a second copy arrives, which takes its own time.
    pub duplication: Probability,
    /// How likely a router marks a datagram as having met congestion, if its outer ECN field says that its sender takes part
    /// (RFC 3168). What does not take part is never dropped in its place; that is [`loss`](Self::loss).
    pub congestion: Probability,
    /// The longest outer packet that the routers on the way carry, in bytes, headers included. Default 65,535: whatever the
    /// sender's own link does.
    ///
    /// What is longer is lost. Over IPv4 the sender has, after the latency, a router's "fragmentation needed" with this number,
    /// and [handles](crate::forward::PathMtus::handle_icmp) it. No router fragments, so that a path of less than the 552 bytes
    /// that a report lowers it to is a black hole.
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
