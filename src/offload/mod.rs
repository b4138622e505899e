//! Super-packets: many packets of one flow that travel through the system as one.
//!
//! Pure functions over bytes; nothing here knows of a device or a socket.

mod vnet;

pub use vnet::{VNET_HEADER_LEN, VnetHeader};
