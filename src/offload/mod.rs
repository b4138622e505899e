//! GSO packets of IPv4 and IPv6: packets that the kernel processes as one and that represent many packets of one flow.
//!
//! ```text
//! TUN ──▶ vnet header, packet ── inspect ─┬─ Nothing ──────────────────────────────▶ one packet
//!                                         ├─ Checksum ── complete, in place ───────▶ one packet
//!                                         └─ Segment ─── write_segment, 0..n ──────▶ n packets
//!
//! TUN ◀── vnet header, packet ◀── Coalescer ◀── push ◀────────────────────────────── n packets
//! ```
//!
//! All functions are pure and work on bytes, without a device or a socket. Every payload byte is copied at most once,
//! and its checksum is computed during the copy. Only [`Coalescer::new`] allocates.

mod candidate;
mod coalesce;
mod family;
mod gro_batch;
mod inspect;
mod segment;
mod vnet;

pub use coalesce::{Coalesce, Coalescer};
pub use gro_batch::{Coalesced, PACKETS_MAX};
pub use inspect::{OffloadAction, OffloadError, PartialChecksum};
pub use segment::GsoPacket;
pub use vnet::{VNET_HEADER_LEN, VnetHeader, vnet_flag, vnet_gso};
