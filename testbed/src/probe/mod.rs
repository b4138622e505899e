//! Probes like ping and iperf.
//!
//! They run in the network namespace of the calling thread; wrap them in [`Namespace::enter`](crate::Namespace::enter).
//! All waits are limited: without an answer they end in an outcome or in `TimedOut`.

mod icmp;
mod pattern;
mod ping;
mod ping_v6;
mod tcp;
mod udp;

pub use ping::{Fragmentation, Ping, PingOutcome, path_mtu, ping};
pub use ping_v6::{EchoV6, PingV6, ping_v6};
pub use tcp::{Amount, Transfer, tcp_send, tcp_sink};
pub use udp::{UdpEcho, udp_exchange};
