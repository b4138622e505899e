//! Any number of hosts in one thread, on a virtual clock: to see what your tool, your source of leases or your routes do before
//! there is a network.
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
//! Nodes decide with the code that the worker runs on: the forwarder, the limiter, the path MTUs and the counters are the same,
//! and only the socket and the device are played. Randomness comes from a seed. The same calls give the same events, to the
//! byte and the nanosecond, on every platform.
//!
//! # How to use it
//! 1. Make a [`Sim`], and a node for each host ([`Sim::add_node`]).
//! 2. Say who owns what: [`Sim::lease_event`] for all nodes, or [`Sim::change_routes`] for one.
//! 3. Say what the underlay is like ([`LinkProfile`]), and part it, stop nodes, let them miss news of leases as you like.
//! 4. Let packets come out of a node's TUN ([`Sim::send`]), and the time pass: [`Sim::run_until_idle`], [`Sim::run_for`],
//!    [`Sim::step`].
//! 5. See what was written to which TUN ([`Sim::take_delivered`]) and what became of the rest ([`Node::counters`],
//!    [`Sim::underlay`], [`Sim::keep_trace`]). [`Sim::check`] holds after every step.
//!
//! ```
//! use core::time::Duration;
//! use loden::forward::Overlay;
//! use loden::lease::{Lease, LeaseEvent, SourceId};
//! use loden::sim::{Loss, Sim, udp_packet};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network: ipnet::Ipv4Net = "100.96.0.0/16".parse()?;
//! let (subnet_a, subnet_b): (ipnet::Ipv4Net, ipnet::Ipv4Net) = ("100.96.1.0/24".parse()?, "100.96.2.0/24".parse()?);
//! let mut sim = Sim::new(network, 42);
//! let a = sim.add_node(Overlay::new(network, subnet_a, ([10, 168, 0, 2], 8285)))?;
//! let b = sim.add_node(Overlay::new(network, subnet_b, ([10, 168, 0, 3], 8285)))?;
//! // What your own source of leases says, here with names for keys.
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
//! // When the lease is gone, the sender gets an ICMP error instead.
//! sim.lease_event(SourceId::default(), LeaseEvent::Removed { key: "b" });
//! sim.send(a, packet);
//! assert_eq!((sim.take_delivered()[0].node, sim[a].counters().encap.answered()), (a, 1));
//! sim.check()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What it is not
//! There is no congestion and no limited rate: a datagram's time does not depend on others. The kernel is played as far as the
//! core can see it: a link refuses what is too long for it, and a router's "fragmentation needed" is believed. Sockets that are
//! full, GSO packets and trains are the worker's, and not here.
//!
//! # Memory
//! Leases are held once for all nodes. A node has 25 KiB for itself, which are its ICMP limiter's, and from its first packet on a
//! route table that shares all but the surroundings of its own routes with the others': 100 KiB. A thousand nodes that all know
//! one another fit into 150 MB.

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
pub use trace::{Direction, Event, Record};
pub use underlay::{Loss, UnderlayCounters};
