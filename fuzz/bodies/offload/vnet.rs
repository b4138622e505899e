//! Any vnet header with any packet: the verdict is the model's, and its action has the right result.
//!
//! Byte 0 selects the repairs of the packet (bit 0 its length field, bit 1 the header checksum). Then come the vnet
//! header and the packet.

use loden::offload::{OffloadAction, OffloadError, VNET_HEADER_LEN, VnetHeader};
use loden::wire::IpPacket;

use super::model::{self, Verdict};
use super::segment::check_segments;
use support::packet::{UDP, ones_sum, repair_checksum};
use support::packet_v6::is_v6;

pub const REPAIR_LENGTH: u8 = 1;
pub const REPAIR_CHECKSUM: u8 = 2;

pub fn run(bytes: &[u8]) {
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let (vnet, packet) = match VnetHeader::split(bytes) {
        Ok((vnet, packet)) => (vnet, packet),
        Err(error) => {
            assert_eq!((error, bytes.len() < VNET_HEADER_LEN), (OffloadError::TooShort { have: bytes.len() }, true));
            return;
        }
    };
    assert_eq!(vnet.to_bytes(), bytes[..VNET_HEADER_LEN]);
    let mut packet = packet.to_vec();
    if mode & REPAIR_LENGTH != 0 && packet.len() >= 20 {
        let v6 = is_v6(&packet);
        let len = packet.len().saturating_sub(if v6 { 40 } else { 0 });
        let field = if v6 { 4..6 } else { 2..4 };
        packet[field].copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
    }
    if mode & REPAIR_CHECKSUM != 0 && !is_v6(&packet) {
        repair_checksum(&mut packet);
    }
    check(&vnet, &packet);
}

/// Asserts all properties of one header and packet.
pub fn check(vnet: &VnetHeader, packet: &[u8]) {
    let work = vnet.inspect(packet);
    let Ok(sound) = IpPacket::parse(packet) else {
        assert_eq!(work, Ok(OffloadAction::Nothing), "the forwarder says what else is wrong with {packet:02x?}");
        return;
    };
    let sound = sound.as_bytes();
    let verdict = match work {
        Ok(OffloadAction::Nothing) => Verdict::Nothing,
        Ok(OffloadAction::Checksum(_)) => Verdict::Checksum,
        Ok(OffloadAction::Segment(many)) => Verdict::Segments(many.segments()),
        Err(error) => Verdict::Error(error),
    };
    assert_eq!(verdict, model::inspect(vnet, sound), "{vnet:?} and {sound:02x?}");
    match work {
        Ok(OffloadAction::Checksum(partial)) => {
            let mut completed = packet.to_vec();
            partial.complete(&mut completed);
            assert_eq!(completed, completed_slowly(vnet, packet, sound.len()), "{vnet:?} and {packet:02x?}");
            // Completing a packet that became shorter does not panic.
            for len in [0, 19, 20, sound.len() - 1] {
                partial.complete(&mut completed[..len]);
            }
        }
        Ok(OffloadAction::Segment(many)) => check_segments(&many, packet, sound.len(), vnet),
        Ok(OffloadAction::Nothing) | Err(_) => {}
    }
}

fn completed_slowly(vnet: &VnetHeader, packet: &[u8], total: usize) -> Vec<u8> {
    let start = usize::from(vnet.csum_start);
    let at = start + usize::from(vnet.csum_offset);
    let sum = match !ones_sum(&packet[start..total]) {
        0 if vnet.csum_offset == 6 => 0xffff,
        sum => sum,
    };
    let mut packet = packet.to_vec();
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let is_udp = support::packet_v6::upper(&packet[..total])
        .is_some_and(|upper| upper.protocol == UDP && at == upper.at + 6 && start == upper.at);
    assert!(!is_udp || sum != 0, "R35, V28");
    packet
}
