//! A simulator for any number of hosts in one thread, on a virtual clock. It tests tools, lease sources and routes
//! without a network.
//!
//! ```text
//!     send(a, packet)                                                  take_delivered()
//!          │                                                                  ▲
//!  ┌───────▼──────────┐        ┌─────────────────────────┐        ┌───────────┴──────┐
//!  │ node a  TUN      │        │ underlay                │        │ node b  TUN      │
//!  │  Forwarder       ├───────▶│ latency, jitter, loss,  ├───────▶│  Forwarder       │
//!  │  IcmpLimiter     │        │ copies, marks, MTU,     │        │  IcmpLimiter     │
//!  │  PathMtus        │◀───────┤ partitions              │◀───────┤  PathMtus        │
//!  │  Counters        │        └─────────────────────────┘        │  Counters        │
//!  └───────▲──────────┘                                           └───────▲──────────┘
//!          └── its RouteTable ──┬── one Reconciler, one table ──┬── its RouteTable ──┘
//!                               └───────────▲───────────────────┘
//!                                  lease_event(source, event)
//! ```
//!
//! Nodes run the code of the worker: the [`Engine`](crate::engine::Engine) with its forwarder, limiter, path MTUs,
//! counters and [framing](Sim::with_framing) is the same. Only the socket and the device are simulated. Randomness comes
//! from a seed. The same calls produce the same events on every platform, to the byte and the nanosecond.
//!
//! # Usage
//! 1. Create a [`Sim`], and a node for each host ([`Sim::add_node`]).
//! 2. Assign subnets: [`Sim::lease_event`] for all nodes, or [`Sim::change_routes`] for one.
//! 3. Describe the underlay ([`LinkProfile`]). Partition it, stop nodes, or let them miss leases as needed.
//! 4. Send packets from a node's TUN device ([`Sim::send`]) and advance the time: [`Sim::run_until_idle`],
//!    [`Sim::run_for`], [`Sim::step`].
//! 5. Inspect the packets written to TUN devices ([`Sim::take_delivered`]) and the fate of the others
//!    ([`Node::counters`], [`Sim::underlay`], [`Sim::keep_trace`]). [`Sim::check`] holds after every step.
//!
//! ```
//! use core::time::Duration;
//! use loden::Host;
//! use loden::forward::ForwarderConfig;
//! use loden::lease::{Lease, LeaseEvent, SourceId};
//! use loden::sim::{Loss, Sim, udp_packet};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network: ipnet::Ipv4Net = "100.96.0.0/16".parse()?;
//! let (subnet_a, subnet_b): (ipnet::Ipv4Net, ipnet::Ipv4Net) = ("100.96.1.0/24".parse()?, "100.96.2.0/24".parse()?);
//! let mut sim = Sim::new(network, 42);
//! let a = sim.add_node(ForwarderConfig::new(&Host::new(network, subnet_a, ([10, 168, 0, 2], 8285))?))?;
//! let b = sim.add_node(ForwarderConfig::new(&Host::new(network, subnet_b, ([10, 168, 0, 3], 8285))?))?;
//! // The leases of your own source, here with names as keys.
//! let found = [("a", Lease::new(subnet_a, ([10, 168, 0, 2], 8285))), ("b", Lease::new(subnet_b, ([10, 168, 0, 3], 8285)))];
//! sim.lease_event(SourceId::default(), LeaseEvent::Snapshot(found.to_vec()));
//!
//! let packet = udp_packet("100.96.1.2:4000".parse()?, "100.96.2.3:53".parse()?, b"question");
//! sim.send(a, packet.clone());
//! sim.run_until_idle();
//! let [delivered] = &sim.take_delivered()[..] else { panic!("one packet arrives") };
//! assert_eq!((delivered.node, delivered.at), (b, Duration::from_millis(1)));
//!
//! sim.partition([[a], [b]]);
//! sim.send(a, packet.clone());
//! sim.run_until_idle();
//! assert_eq!((sim.take_delivered().len(), sim.underlay().lost(Loss::Partition)), (0, 1));
//!
//! // Without the lease, the sender gets an ICMP error instead.
//! sim.lease_event(SourceId::default(), LeaseEvent::Removed { key: "b" });
//! sim.send(a, packet);
//! assert_eq!((sim.take_delivered()[0].node, sim[a].counters().encap.answered()), (a, 1));
//! sim.check()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//! There is no congestion and no rate limit: a datagram's latency does not depend on others. The kernel is simulated as
//! far as the core can see it: a link refuses packets above its MTU, and a router's "fragmentation needed" is verified.
//! Full sockets, GSO packets and GSO batches are handled by the worker and not simulated.
//!
//! # Memory
//! All nodes share the leases. A node has 25 KiB of its own for its ICMP limiter. From its first packet on, it also has
//! 100 KiB of its route table, which shares all parts but those around its own routes. A thousand nodes with routes to
//! each other fit into 150 MB.

mod events;
mod invariants;
mod leases;
mod link_profile;
mod network;
mod node;
mod packet;
mod queue;
mod random;
mod trace;
mod underlay;

pub use invariants::{Border, InvariantViolation};
pub use link_profile::LinkProfile;
pub use network::{Delivered, NodeError, Sim};
pub use node::{Fate, Node, NodeId};
pub use packet::udp_packet;
pub use random::Probability;
pub use trace::{Event, Record};

pub use crate::endpoint::Direction;
pub use underlay::{Loss, UnderlayCounters};
