//! The Linux adapters: thin, non-blocking, each the owner of its file descriptor.

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
pub use tun::{OpenError, PACKET_MAX, Tun, TunConfig, TunError, TunMeta, TunOffload};
pub use udp::{
    BatchError, BindError, PathReports, RecvBatch, RecvError, RecvMeta, SendError, SendErrorKind, TakeOverError,
    UdpConfig, UdpOffload, UdpTransport,
};
