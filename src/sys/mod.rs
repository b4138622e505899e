//! The Linux adapters: thin, non-blocking, each the owner of its file descriptor.
//!
//! # Kernel versions
//! The oldest supported kernel is Linux 4.19. The adapters ask the kernel for each feature and go on without those it
//! refuses:
//!
//! | Linux | adds |
//! | --- | --- |
//! | 4.18 | [`UdpOffload::gso`]: one call sends a batch of datagrams (`UDP_SEGMENT`) |
//! | 5.0 | [`UdpOffload::gro`]: one call receives a batch of datagrams (`UDP_GRO`) |
//! | 5.14 | the first address of a subnet is an ordinary one, beside a bridge that has the subnet too |
//! | 6.2 | [`TunOffload::uso`]: UDP GSO packets on the TUN device (`TUN_F_USO4`, `TUN_F_USO6`) |

mod feature;
mod kernel;
#[cfg(feature = "link")]
pub mod link;
mod route_query;
#[cfg(test)]
pub(crate) mod script;
mod syscall;
mod tun;
mod udp;

pub use feature::Feature;
#[cfg(feature = "preflight")]
pub(crate) use syscall::owning_user_namespace;
#[cfg(feature = "preflight")]
pub(crate) use tun::{DEVICE_NODE, checked_name, other_than_node};
pub use tun::{OpenError, PACKET_MAX, Tun, TunConfig, TunError, TunMeta, TunOffload};
pub use udp::{
    BatchError, BindError, PathReports, RecvBatch, RecvError, RecvHeader, RecvMeta, SendError, SendErrorKind,
    SendHeader, TakeOverError, UdpConfig, UdpOffload, UdpTransport,
};
