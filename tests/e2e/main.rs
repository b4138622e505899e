//! The tunnel end to end: the real program, real TUN devices, and hosts in network namespaces.
//!
//! Needs root, or a user namespace in which `/dev/net/tun` may be opened. Without them every test fails with this
//! message.

mod blame;
mod check;
mod control;
mod device;
mod fairness;
mod forged;
mod host;
mod icmp;
mod inject;
mod ipv6;
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
