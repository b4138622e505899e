//! flannel's UDP overlay as an embeddable library.
//!
//! Hosts own subnets of one overlay network. A packet for another host's subnet comes out of a TUN device, is looked up, and
//! travels as the bare payload of one UDP datagram to the host that owns the subnet. That host writes it to its own TUN device.
//! The bytes on the wire are those of flannel's UDP mode. IPv4 and IPv6 packets are carried alike, over an IPv4 or an IPv6 underlay.
//!
//! ```text
//! TUN ─recv─▶ Endpoint ─▶ Forwarder ─▶ segments | fragments | whole ─▶ SendQueue ─▶ UDP
//!              │  ▲           ▲ RouteTable, path MTU
//!              │  └ ICMP limits, counters
//!              └──▶ ICMP error to the sender
//! UDP ─recv─▶ Endpoint ─▶ Forwarder ─▶ Coalescer ─▶ TUN
//! ```
//!
//! # Layers
//! Each layer is usable without those above it.
//!
//! | layer | what it adds |
//! | --- | --- |
//! | [`forward::Forwarder`] | The decision about one packet: a pure function of packet, routes and path MTU. |
//! | [`endpoint::Endpoint`] | What one host remembers: ICMP limits, path MTUs, counters. |
//! | [`engine::Engine`] | A send queue for each peer and the joining of packets, over two functions of yours. |
//! | [`worker::Worker`] (Linux) | A TUN device and a UDP socket, or one of each IP family: [`sys::Tun`], [`sys::UdpTransport`]. |
//! | [`worker::run`] (Linux) | The loop. |
//!
//! The first three are the core. It has no socket, clock, thread or log, and allocates nothing per packet. It is `no_std` with
//! `alloc`. Beside them, [`route::RouteTable`] finds the longest match, [`lease::Reconciler`] turns leases into changes of
//! routes, and the simulator (feature `sim`) runs any number of hosts on a virtual clock.
//!
//! The [`guide`] has a page for each of these layers, for framings and for the counters.
//!
//! # A tunnel
//! 1. Open a [`sys::Tun`] and a [`sys::UdpTransport`]. Set address, MTU and route of the device with [`sys::link::Link`].
//! 2. Put routes into a [`route::RoutePublisher`]. They may change while packets flow.
//! 3. Make a [`worker::Worker`] from device, socket, [`forward::Forwarder`] and a [`route::RouteReader`].
//! 4. Call [`worker::run`], or call [`worker::Worker::handle`] in a loop of yours.
//!
//! `examples/tokio_loop.rs` and `examples/poll_loop.rs` are such programs, one with the library's loop and one with its own.
//!
//! # Without the adapters
//! ```
//! use core::time::Duration;
//! use loden::Host;
//! use loden::endpoint::{Endpoint, Outbound};
//! use loden::forward::{Forwarder, ForwarderConfig};
//! use loden::offload::VnetHeader;
//! use loden::route::{Route, RouteTable};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // 1. Who we are.
//! let network: ipnet::Ipv4Net = "100.96.0.0/16".parse()?;
//! let (ours, theirs) = ("100.96.1.0/24".parse::<ipnet::Ipv4Net>()?, "100.96.2.0/24".parse::<ipnet::Ipv4Net>()?);
//! let host = Host::new(network, ours, ([10, 168, 0, 2], 8285))?;
//! let mut endpoint = Endpoint::new(Forwarder::new(ForwarderConfig::new(&host))?);
//! // 2. Where others are.
//! let (routes, refused) = RouteTable::try_from_routes([Route::new(theirs, ([10, 168, 0, 3], 8285))]);
//! assert!(refused.is_empty());
//! // 3. A packet from 100.96.1.2 to 100.96.2.3, TTL 64, and the time.
//! let mut packet = [
//!     0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0xaf, 0x14, 100, 96, 1, 2, 100, 96, 2, 3,
//! ];
//! let now = Duration::ZERO;
//! // 4. The action to carry out.
//! match endpoint.handle_outbound(&mut packet, &VnetHeader::default(), &routes, now) {
//!     Outbound::Send(transmit) => assert_eq!(transmit.destination, ([10, 168, 0, 3], 8285).into()),
//!     Outbound::SendAll(datagrams) => panic!("send each of {datagrams:?}"),
//!     Outbound::Reply(reply) => panic!("write {:?} to the TUN", reply.message),
//!     Outbound::Drop(reason) => panic!("nothing to do: {reason}"),
//! }
//! assert_eq!(endpoint.counters().encap.forwarded(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Features
//! | feature | adds | needs |
//! | --- | --- | --- |
//! | `std` (default) | [`route::RoutePublisher`] | `std` |
//! | `sys` (default, Linux) | [`sys::Tun`], [`sys::UdpTransport`], [`worker`] | `libc`, `nix` |
//! | `link` (default, Linux) | [`sys::link`] | netlink crates, `socket2` |
//! | `preflight` (Linux) | `preflight`: findings about firewalls, sysctls, routes and interfaces of this host | nothing more |
//! | `tokio` (Linux) | `worker::run_tokio`: the loop as a future | `tokio` |
//! | `flannel` | `lease::flannel`: lease keys and values, network config, `subnet.env` | `serde_json` |
//! | `sim` | `sim`: the simulator | `bytes` |
//!
//! # Batches
//! A system call and the way through the kernel's network stack cost the same for 64 bytes and for 64 KiB. The kernel therefore
//! hands over a burst of one TCP flow as a single GSO packet (TSO on the TUN). It is cut here into datagrams that are sent as one
//! GSO batch (`UDP_SEGMENT`). The other end receives the batch as one message (`UDP_GRO`) and writes it as one packet. Small
//! packets that wait in the TUN together leave in batches too, one for each peer. The bytes on the wire are the same.
//!
//! ```text
//!  64 KiB in one read        one sendmmsg, batches of up to 63        one recvmmsg          64 KiB in one write
//!  ┌───────────────┐  cut   ┌──────┬──────┬──────┬ ─ ┐  underlay  ┌──────┬──────┬ ─ ┐  join  ┌───────────────┐
//!  │ GSO packet    ├───────▶│ 1472 │ 1472 │ 1472 │   ├───────────▶│ 1472 │ 1472 │   ├───────▶│ GSO packet    │
//!  └───────────────┘        └──────┴──────┴──────┴ ─ ┘            └──────┴──────┴ ─ ┘        └───────────────┘
//! ```
//!
//! Offloads that the kernel lacks are disabled ([`sys::TunOffload`], [`sys::UdpOffload`]). Batches that the kernel refuses are sent
//! datagram by datagram, and counted. No packet waits for later ones: a call sends what it has collected before it returns.
//!
//! Several cores are used with a worker for each queue of the device: [`sys::Tun::open_queues`], [`sys::UdpTransport::bind_queues`],
//! [`worker::Worker::group`].
//!
//! # Slow peers
//! Each peer has a send queue of its own, which is bounded. Peers are served in turn. A path that takes no more delays only its
//! own packets; what is over its bound is dropped and counted for that peer. The TUN device is always read, so a pod's socket does
//! not feel that the tunnel is full: TCP slows down because of the loss, as on a router.
//!
//! # Long packets
//! A packet that is longer than the path to its peer carries is answered with "fragmentation needed" if it has DF set. Otherwise it
//! is sent in fragments, which its destination reassembles. The same holds for the segments of a GSO packet. An IPv6 packet is always
//! answered ("packet too big"), and never fragmented.
//! [`forward::ForwarderConfig::mtu`] and [`route::Route::mtu`] set the path MTU. The endpoint learns lower values from the kernel's routes and
//! from the reports of routers, which it verifies ([`forward::PathMtus`]). Packets that were queued when the path turned out to
//! be narrower are answered if they have DF set, and dropped otherwise.
//!
//! # Framing
//! A [`framing::Framing`] puts other bytes around each packet: a tag, a key or encryption. It works in place, in the slots of the send
//! queue, so that batches and offloads stay in use. `examples/cframe.rs` and `examples/aead.rs` are tunnels with one.
//!
//! # Security model
//! Without a framing, the wire is neither encrypted nor authenticated: whoever can send with a peer's address can send as that peer. Known senders,
//! their own inner sources and our own subnet as destination are checked. The underlay has to be trusted.
#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used))]
#![cfg_attr(not(test), warn(clippy::std_instead_of_alloc, clippy::std_instead_of_core))]

extern crate alloc;
#[cfg(any(feature = "std", test))]
extern crate std;

/// Compiles the example of the README.
#[cfg(all(doctest, feature = "link"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod control;
pub mod endpoint;
pub mod engine;
pub mod forward;
pub mod framing;
pub mod guide;
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
