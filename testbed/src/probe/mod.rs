//! What a person would do with ping and iperf.
//!
//! Everything runs in the network namespace of the calling thread: wrap it in [`Namespace::enter`](crate::Namespace::enter).
//! Nothing here waits for ever; a peer that stays silent ends in an outcome or a `TimedOut`.

mod icmp;
mod pattern;
mod ping;
mod tcp;
mod udp;

pub use ping::{Fragmentation, Ping, PingOutcome, path_mtu, ping};
pub use tcp::{Amount, Transfer, tcp_send, tcp_sink};
pub use udp::{UdpEcho, udp_exchange};
