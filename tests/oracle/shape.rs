//! A packet to be, and the damage done to it.

use core::net::Ipv4Addr;

use support::packet::{Ipv4, repair_checksum};

/// Stands for a source that nothing was heard of yet.
pub(crate) const FRESH: Ipv4Addr = Ipv4Addr::new(100, 65, 43, 21);

#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) packet: Ipv4,
    /// The changes of bytes, by position.
    pub(crate) edits: Vec<(usize, Edit)>,
    /// The header checksum is corrected after the changes.
    pub(crate) repair: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Edit {
    Flip(u8),
    Set(u8),
}

impl From<Ipv4> for Shape {
    fn from(packet: Ipv4) -> Self {
        Self { packet, edits: Vec::new(), repair: false }
    }
}

impl Shape {
    /// `fresh` is the source, unless it has one.
    pub(crate) fn bytes(&self, fresh: Ipv4Addr) -> Vec<u8> {
        let source = if self.packet.source == FRESH { fresh } else { self.packet.source };
        let mut bytes = Ipv4 { source, ..self.packet.clone() }.bytes();
        for (at, edit) in &self.edits {
            if let Some(byte) = bytes.get_mut(*at) {
                match edit {
                    Edit::Flip(bits) => *byte ^= bits,
                    Edit::Set(value) => *byte = *value,
                }
            }
        }
        if self.repair {
            repair_checksum(&mut bytes);
        }
        bytes
    }
}
