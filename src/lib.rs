//! flannel's UDP overlay as an embeddable library.
//!
//! Hosts own subnets of one overlay network. A packet for another host's subnet comes out of a TUN device, is looked up, and
//! travels as the bare payload of one UDP datagram to the host that owns it, which writes it to its own TUN device. On the
//! wire that is flannel's UDP mode, byte for byte.
//!
//! ```text
//!  pod 100.96.1.2                                                                   pod 100.96.2.3
//!       │                                                                                 ▲
//!  ┌────▼────┐    ┌──────────────────────┐  UDP 8285: the IPv4   ┌──────────────────────┐ │
//!  │ kernel  ├───▶│ Tun      UdpTransport├──────────────────────▶│UdpTransport      Tun ├─┘
//!  └─────────┘    │  │  Forwarder   ▲    │  packet, nothing else │  │  Forwarder   ▲    │
//!                 │  └─▶encapsulate─┘    │                       │  └─▶decapsulate─┘    │
//!                 └──────────▲───────────┘                       └──────────▲───────────┘
//!                        RouteTable                                     RouteTable
//! ```
//!
//! # The parts
//! - The **core** is inert: no socket, clock, thread or log. Packets, routes and time are arguments, verdicts are return
//!   values. [`forward::Forwarder`] decides in place and without allocating; [`route::RouteTable`] finds the longest match;
//!   [`wire`] gives bytes names; [`offload`] cuts GSO packets and joins packets to them; [`transmit`] collects datagrams into
//!   trains; [`lease::Reconciler`] turns leases into route changes. It is `no_std` and runs wherever `alloc::sync::Arc` does.
//! - The **adapters** are thin and Linux only: [`sys::Tun`], [`sys::UdpTransport`], [`sys::link`].
//!   The feature `preflight` adds findings about this host that keep a tunnel from working.
//! - The [`worker`] binds them: one device, one socket, one forwarder. **Your loop** says when a file descriptor is ready.
//! - The **simulator** (feature `sim`) has any number of hosts made of the core, on a virtual clock and without sockets.
//!
//! # With the adapters
//! 1. Open a [`sys::Tun`] and a [`sys::UdpTransport`]; set address, MTU and route with [`sys::link::Link`].
//! 2. Put your routes into a [`route::RoutePublisher`]; go on changing them while packets flow.
//! 3. Make a [`forward::Forwarder`] and a [`worker::Worker`], and wait for what [`worker::Worker::interest`] names.
//! 4. Call [`worker::Worker::tun_ready`] and [`worker::Worker::udp_ready`]; where every packet went is in
//!    [`worker::Worker::counters`].
//!
//! `examples/poll_loop.rs` and `examples/tokio_loop.rs` are such loops, 80 lines each.
//!
//! # Without
//! ```
//! use loden::Host;
//! use loden::forward::{Encap, Forwarder, ForwarderConfig};
//! use loden::route::{Route, RouteTable};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let network: ipnet::Ipv4Net = "100.96.0.0/16".parse()?;
//! let (ours, theirs) = ("100.96.1.0/24".parse::<ipnet::Ipv4Net>()?, "100.96.2.0/24".parse::<ipnet::Ipv4Net>()?);
//! let host = Host::new(network, ours, ([10, 168, 0, 2], 8285))?;
//! let forwarder = Forwarder::new(ForwarderConfig::new(&host))?;
//! let (routes, refused) = RouteTable::try_from_routes([Route::new(theirs, ([10, 168, 0, 3], 8285))]);
//! assert!(refused.is_empty());
//!
//! // 100.96.1.2 → 100.96.2.3, TTL 64.
//! let mut packet = [
//!     0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0xaf, 0x14, 100, 96, 1, 2, 100, 96, 2, 3,
//! ];
//! match forwarder.encapsulate(&mut packet, &routes) {
//!     Encap::Send(transmit) => assert_eq!(transmit.destination, ([10, 168, 0, 3], 8285).into()),
//!     Encap::Fragment(fragments) => panic!("send what {fragments:?} gives"),
//!     Encap::Reject(reject) => panic!("answer with {:?}", reject.reason()),
//!     Encap::Drop(reason) => panic!("count it as {reason}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! | feature | brings | without it |
//! | --- | --- | --- |
//! | `std` (default) | [`route::RoutePublisher`] | `no_std` with `alloc` |
//! | `sys` (default, Linux) | [`sys::Tun`], [`sys::UdpTransport`], [`worker`] | no `libc`, `nix` |
//! | `link` (default, Linux) | [`sys::link`] | no netlink, `socket2` |
//! | `preflight` (Linux) | `preflight`: findings about firewalls, sysctls, routes and interfaces of this host | no nfnetlink |
//! | `flannel` | `lease::flannel`: lease keys and values, network config, `subnet.env` | no `serde_json` |
//! | `sim` | `sim`: any number of hosts on a virtual clock, to test your own tool with | no `bytes` |
//!
//! # Many packets at once
//! A system call and a walk through the kernel's stack cost the same for 64 bytes and for 64 KiB. So the kernel hands over a
//! burst of one TCP flow as a single packet (TSO on the TUN), which is cut here into datagrams that are sent as one train
//! (`UDP_SEGMENT`); the other end receives the train as one message (`UDP_GRO`) and writes it as one packet. Small packets that
//! wait in the TUN together leave in trains too, one for each peer. On the wire nothing differs but the time.
//!
//! ```text
//!  64 KiB in one read          one sendmmsg, trains of up to 63         one recvmmsg         64 KiB in one write
//!  ┌───────────────┐  cut   ┌──────┬──────┬──────┬ ─ ┐  underlay  ┌──────┬──────┬ ─ ┐  join  ┌───────────────┐
//!  │ GSO packet  ├───────▶│ 1472 │ 1472 │ 1472 │   ├───────────▶│ 1472 │ 1472 │   ├───────▶│ GSO packet  │
//!  └───────────────┘        └──────┴──────┴──────┴ ─ ┘            └──────┴──────┴ ─ ┘        └───────────────┘
//! ```
//!
//! What the kernel does not grant is done without ([`sys::TunOffload`], [`sys::UdpOffload`]); what it grants and then refuses is
//! done packet by packet, and counted. Nothing waits for more to come: what is collected leaves before the call returns.
//!
//! More than one core is used with a worker for each queue of the device: [`sys::Tun::open_queues`],
//! [`sys::UdpTransport::bind_queues`].
//!
//! # Longer than the path
//! A packet that is longer than the path to its peer carries is answered with "fragmentation needed" if it has DF set, and goes
//! in fragments if not, which its destination puts together; so do the segments of a GSO packet. How much a path carries
//! say [`forward::ForwarderConfig::mtu`] and [`route::Route::mtu`]; when it turns out to be less, the worker learns that from the kernel's
//! routes and from the reports of routers, which it verifies ([`forward::PathMtus`]).
//!
//! # What it is not
//! As in flannel, the wire is neither encrypted nor authenticated: whoever can send with a peer's address can send as that
//! peer. Known senders, their own inner sources and our own subnet as destination are checked; the underlay has to be trusted.
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]
#![cfg_attr(not(test), warn(clippy::std_instead_of_alloc, clippy::std_instead_of_core))]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

pub mod control;
pub mod endpoint;
pub mod engine;
pub mod forward;
mod host;
pub mod lease;
pub mod offload;
#[cfg(all(feature = "preflight", target_os = "linux"))]
pub mod preflight;
pub mod route;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(all(feature = "sys", target_os = "linux"))]
pub mod sys;
pub mod transmit;
pub mod wire;
#[cfg(all(feature = "sys", target_os = "linux"))]
pub mod worker;

#[cfg(feature = "sim")]
pub use bytes;
pub use host::{Host, HostError, Mtu, MtuError, Overhead};
pub use ipnet;
pub use transmit::Transmit;
