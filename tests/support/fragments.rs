//! Reassembly of fragments, and checks of each with etherparse.

use core::ops::Range;

use etherparse::Ipv4HeaderSlice;
use etherparse::checksum::Sum16BitWords;

use super::model::option_kinds;
use super::packet::{MF, repair_checksum};

/// Reassembles fragments in an order drawn from `order`.
pub fn reassembled(offset: u16, pieces: &[Vec<u8>], order: usize) -> Vec<u8> {
    let mut waiting: Vec<_> = (0..pieces.len()).collect();
    let mut reassembly = Reassembly::new(offset);
    while !waiting.is_empty() {
        let piece = waiting.remove(order % waiting.len());
        reassembly.add(&pieces[piece], piece + 1 == pieces.len());
    }
    reassembly.packet()
}

/// Asserts the properties of every single fragment, as etherparse reads it.
pub fn assert_sound(packet: &[u8], pieces: &[Vec<u8>], mtu: usize) {
    let whole = Ipv4HeaderSlice::from_slice(packet).unwrap();
    for (index, piece) in pieces.iter().enumerate() {
        let is_last = index + 1 == pieces.len();
        let header = Ipv4HeaderSlice::from_slice(piece).unwrap().to_header();
        assert!(piece.len() <= mtu, "{} of {mtu} bytes", piece.len());
        assert_eq!(usize::from(header.total_len), piece.len());
        // Read from the bytes, because etherparse's header has no reserved flag.
        assert_eq!(Sum16BitWords::new().add_slice(&piece[..header.header_len()]).ones_complement(), 0);
        assert_eq!(header.identification, whole.identification());
        assert_eq!((header.dscp, header.ecn), (whole.dcp(), whole.ecn()));
        assert_eq!((header.time_to_live, header.protocol), (whole.ttl(), whole.protocol()));
        assert_eq!((header.source, header.destination), (whole.source(), whole.destination()));
        assert!(!header.dont_fragment, "R52");
        assert_eq!(piece[6] & 0x80, packet[6] & 0x80, "R10: the reserved flag");
        assert_eq!(header.more_fragments, !is_last || whole.more_fragments());
        if !is_last {
            assert_eq!((piece.len() - header.header_len()) % 8, 0);
            assert!(piece.len() + 8 > mtu, "fewest: piece {index} could have held more");
        }
        let kinds = |options: &[u8]| option_kinds(options).unwrap();
        let copied = kinds(whole.options()).into_iter().filter(|kind| *kind >= 128).collect();
        let expected = if index == 0 { kinds(whole.options()) } else { copied };
        assert_eq!(kinds(&header.options), expected);
    }
}

/// A reassembly by RFC 815 with a list of holes. The packet may itself be a fragment that begins at offset `first`.
struct Reassembly {
    first: usize,
    payload: Vec<u8>,
    holes: Vec<Range<usize>>,
    /// The header of the first fragment, with its options, and the fields of the last one.
    header: Option<Vec<u8>>,
    more: bool,
}

impl Reassembly {
    fn new(first: u16) -> Self {
        let everything = 0..usize::MAX;
        Self { first: usize::from(first) * 8, payload: vec![], holes: vec![everything], header: None, more: false }
    }

    fn add(&mut self, piece: &[u8], is_last: bool) {
        let (header, data) = piece.split_at(usize::from(piece[0] & 15) * 4);
        let word = u16::from_be_bytes([piece[6], piece[7]]);
        let start = usize::from(word & 0x1fff) * 8 - self.first;
        let end = start + data.len();
        let hole = self.holes.iter().position(|hole| hole.start <= start && end <= hole.end).expect("no overlap");
        let hole = self.holes.swap_remove(hole);
        self.holes.extend([hole.start..start, end..hole.end].into_iter().filter(|hole| !hole.is_empty()));
        self.payload.resize(self.payload.len().max(end), 0);
        self.payload[start..end].copy_from_slice(data);
        if start == 0 {
            self.header = Some(header.to_vec());
        }
        if is_last {
            self.holes.retain(|hole| hole.start != end);
            self.more = word & MF != 0;
        }
    }

    fn packet(self) -> Vec<u8> {
        assert!(self.holes.is_empty(), "{:?} are missing", self.holes);
        let mut packet = self.header.expect("a piece in front");
        packet.extend(self.payload);
        let total = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&total);
        packet[6] = packet[6] & !0x20 | if self.more { 0x20 } else { 0 };
        repair_checksum(&mut packet);
        packet
    }
}
