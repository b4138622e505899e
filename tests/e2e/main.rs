//! The tunnel as its users have it: the real program, real TUN devices, real hosts in network namespaces.
//!
//! Needs root, or a user namespace in which `/dev/net/tun` may be opened; every test says so and fails without.

mod blame;
mod check;
mod control;
mod device;
mod fairness;
mod forged;
mod host;
mod icmp;
mod inject;
mod lifecycle;
mod mtu;
mod narrow;
mod offload;
mod rate_limit;
mod routers;
mod sandbox;
mod stalls;
mod strangers;
mod support;
mod traffic;
mod updates;
mod usage;
mod wire;
