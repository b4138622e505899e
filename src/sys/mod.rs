//! The Linux adapters: thin, non-blocking, each the owner of its file descriptor.

mod feature;
mod kernel;
#[cfg(feature = "link")]
pub mod link;
#[cfg(test)]
pub(crate) mod script;
mod syscall;
mod tun;
mod udp;

pub use feature::Feature;
pub use tun::{OpenError, PACKET_MAX, Tun, TunConfig, TunError, TunMeta, TunOffload};
pub use udp::{
    BatchError, BindError, RecvBatch, RecvError, RecvMeta, SendError, SendErrorKind, UdpConfig, UdpOffload,
    UdpTransport,
};
