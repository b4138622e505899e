//! The Linux adapters against the kernel, each test in network namespaces of its own. They need root.
#![cfg(target_os = "linux")]

mod limits;
mod super_packets;
mod support;
mod trains;
mod tun;
mod udp;
mod worker;
