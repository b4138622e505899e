//! The Linux adapters against the kernel, each test in network namespaces of its own. They need root.
#![cfg(target_os = "linux")]

mod dead_peer;
mod gso_batches;
mod gso_packets;
mod limits;
mod loops;
mod signals;
mod support;
mod tun;
mod two_sockets;
mod udp;
mod udp_v6;
mod worker;
