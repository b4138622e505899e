//! The bodies of the fuzz targets. The tests run them over the committed seeds.

pub mod control;
pub mod forward;
pub mod header;
pub mod icmp;
#[cfg(feature = "flannel")]
pub mod lease;
pub mod offload;
pub mod path_mtu;
pub mod stateful;
