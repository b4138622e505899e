//! The Linux adapters: thin, non-blocking, each the owner of its file descriptor.
//!
//! # Threads
//! Every call takes `&self`, so threads share an adapter by `Arc`. They may read and write at once. A packet goes to one of
//! the readers.
//!
//! ```
//! use std::sync::Arc;
//! use std::thread;
//! use loden::sys::{RecvError, UdpConfig, UdpTransport};
//! use loden::transmit::Transmit;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let [sender, receiver] = [(); 2].map(|()| UdpTransport::bind(([127, 0, 0, 1], 0).into(), &UdpConfig::default()));
//! let (sender, receiver) = (Arc::new(sender?), receiver?);
//! let to = receiver.local_addr();
//! let threads = [b"one", b"two"].map(|contents| {
//!     let sender = Arc::clone(&sender);
//!     thread::spawn(move || sender.send(&Transmit::datagram(to, contents)))
//! });
//! for thread in threads {
//!     thread.join().expect("no panic")?;
//! }
//! let mut buffer = [0; 2048];
//! for _ in 0..2 {
//!     // A host waits with poll(2).
//!     let meta = loop {
//!         match receiver.recv(&mut buffer) {
//!             Err(RecvError::WouldBlock) => thread::yield_now(),
//!             received => break received?,
//!         }
//!     };
//!     assert_eq!(meta.from, sender.local_addr());
//! }
//! # Ok(())
//! # }
//! ```
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
