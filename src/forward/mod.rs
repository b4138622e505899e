//! The forwarder, and the types with state that complement it.
//!
//! [`Forwarder`] is stateless: its verdict is a function of the packet, the routes and its settings. The types with
//! state are separate and optional: [`IcmpLimiter`], [`PathMtus`] and [`Counters`]. They take the clock as an argument.

mod addresses;
mod counters;
mod family;
mod forwarder;
mod fragments;
mod limiter;
mod path_mtu;
mod policy;
mod verdict;

pub use counters::{Counters, DirectionCounters, Stats};
pub use forwarder::{DatagramMeta, Forwarder};
pub use fragments::Fragments;
pub use limiter::{AllowIcmp, IcmpLimiter, Rate};
pub use path_mtu::{EmsgsizeOutcome, IcmpOutcome, PathMode, PathMtus, SystemPath};
pub use policy::{
    ConfigError, EcnEgress, EcnIngress, ForwarderConfig, IcmpSource, Icmpv6Source, PeerCheck, SourceCheck, SourcePort,
    SourceRoutes, Transit, TtlPolicy,
};
pub use verdict::{Decap, DropReason, Encap, Reject, RejectReason, ReplyTo};
