//! GSO packets: many packets of one flow that travel through the system as one.
//!
//! ```text
//! TUN ──▶ vnet header, packet ── inspect ─┬─ Nothing ──────────────────────────────▶ one packet
//!                                         ├─ Checksum ── complete, in place ───────▶ one packet
//!                                         └─ Segment ─── write_segment, 0..n ──────▶ n packets
//!
//! TUN ◀── vnet header, packet ◀── Coalescer ◀── push ◀────────────────────────────── n packets
//! ```
//!
//! Pure functions over bytes; nothing here knows of a device or a socket. Every byte of payload is copied at most once, and
//! the copy is where its checksum is taken. Only [`Coalescer::new`] allocates.

mod candidate;
mod coalesce;
mod gro_batch;
mod inspect;
mod segment;
mod vnet;

pub use coalesce::{Coalesce, Coalescer};
pub use gro_batch::{Coalesced, PACKETS_MAX};
pub use inspect::{OffloadAction, OffloadError, PartialChecksum};
pub use segment::GsoPacket;
pub use vnet::{VNET_HEADER_LEN, VnetHeader, vnet_flag, vnet_gso};
