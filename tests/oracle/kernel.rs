//! The kernel's result for a packet that both forward or answer, where the bytes differ intentionally.

use core::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::answer::Answer;
use crate::known_difference::KnownDifference;
use crate::options::{Walk, blanked};
use crate::reference::{Expected, Reference, is_nobodys};
use crate::router::Place;
use crate::world::World;
use support::fragments::reassembled;
use support::packet::{ICMP, MF, repair_checksum, with_ttl};

/// Bytes of the longest error, less the headers in front of the quote.
const QUOTE_MAX: usize = 576 - 28;

/// A packet on its way through the kernel, and its output.
pub(crate) struct Passage<'p> {
    pub(crate) world: &'p World,
    pub(crate) original: &'p [u8],
    pub(crate) seen: &'p [(Place, Vec<u8>)],
    /// The time of sending it.
    pub(crate) time: Range<u32>,
}

impl Passage<'_> {
    /// Returns the expected output and the applied known differences. Values that nobody can predict come from the
    /// observed output: the identification of an error, and the time, if it is plausible.
    pub(crate) fn expect(&self, reference: Reference) -> (Vec<(Place, Vec<u8>)>, Vec<KnownDifference>) {
        let Reference { expected, mut known_differences, walk, .. } = reference;
        let emissions = match expected {
            Expected::Silence => Vec::new(),
            Expected::Packet { to, bytes } => vec![(to, self.walked(bytes, to, walk.as_ref(), &mut known_differences))],
            Expected::Fragments { to, pieces } => {
                let pieces = self.fragments(to, pieces, walk.as_ref(), &mut known_differences);
                pieces.into_iter().map(|piece| (to, piece)).collect()
            }
            Expected::Answer { to, answer } => {
                let answer = self.answer(to, answer, walk.as_ref(), &mut known_differences);
                answer.into_iter().map(|answer| (to, answer)).collect()
            }
        };
        (emissions, known_differences)
    }

    /// Returns a forwarded packet, with the kernel's changes of its options.
    fn walked(
        &self,
        mut packet: Vec<u8>,
        to: Place,
        walk: Option<&Walk>,
        known_differences: &mut Vec<KnownDifference>,
    ) -> Vec<u8> {
        let Some(walk) = walk.filter(|walk| walk.filled || walk.cleared) else { return packet };
        let header = usize::from(packet[0] & 15) * 4;
        packet[20..header].copy_from_slice(&walk.forwarded(self.world.router.link(to).address_v4())[20..header]);
        self.copy_time(&mut packet, walk.time_at, 0);
        repair_checksum(&mut packet);
        known_differences.extend(walk.filled.then_some(KnownDifference::OptionsFilled));
        known_differences.extend(walk.cleared.then_some(KnownDifference::OptionsCleared));
        packet
    }

    /// Returns loden's fragments, unless a known difference applies. Asserts that the fragments give the packet.
    fn fragments(
        &self,
        to: Place,
        pieces: Vec<Vec<u8>>,
        walk: Option<&Walk>,
        known_differences: &mut Vec<KnownDifference>,
    ) -> Vec<Vec<u8>> {
        let total = usize::from(u16::from_be_bytes([self.original[2], self.original[3]]));
        let hop = with_ttl(&self.original[..total], self.original[8] - 1);
        let whole = self.walked(hop.clone(), to, walk, known_differences);
        let theirs = cut(&whole, self.world.router.link(to).mtu.into());
        if known_differences.contains(&KnownDifference::OffsetWraps) {
            return theirs;
        }
        let offset = u16::from_be_bytes([hop[6], hop[7]]) & 0x1fff;
        assert_eq!(reassembled(offset, &pieces, 0), hop, "our own fragments of {:02x?}", self.original);
        let options = |piece: &[u8]| piece[20..usize::from(piece[0] & 15) * 4].to_vec();
        let differ = options(&theirs[1]) != options(&pieces[1]);
        let reserved = hop[6] & 0x80 != 0;
        known_differences.extend(differ.then_some(KnownDifference::FragmentOptions));
        known_differences.extend(reserved.then_some(KnownDifference::ReservedFlag));
        if differ || reserved || whole != hop { theirs } else { pieces }
    }

    fn answer(
        &self,
        to: Place,
        mut answer: Answer,
        walk: Option<&Walk>,
        known_differences: &mut Vec<KnownDifference>,
    ) -> Option<Vec<u8>> {
        let header = usize::from(self.original[0] & 15) * 4;
        if self.original[9] == ICMP && matches!(self.original[header], 9 | 10) {
            known_differences.push(KnownDifference::RouterDiscovery);
            return None;
        }
        let own = self.world.router.link(to).address_v4();
        if answer.source != own {
            answer.source = own;
            known_differences.push(KnownDifference::IcmpSource);
        }
        let seen = self.seen.first().map_or(&[][..], |(_, packet)| packet.as_slice());
        answer.id = seen.get(4..6).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
        answer.fragment = 0;
        known_differences.push(KnownDifference::IcmpIdentification);
        if self.original[1] & 2 != 0 {
            answer.tos |= 2;
            known_differences.push(KnownDifference::IcmpEcn);
        }
        let Some(mut walk) = walk.cloned() else { return Some(answer.bytes()) };
        let echo = |walk: &Walk| walk.echoed(own, |address| is_nobodys(self.world, address));
        let room = echo(&walk).map_or(0, |(options, _)| options.len());
        self.copy_time(&mut walk.packet, walk.time_at, 20 + room + 8);
        if walk.filled || walk.cleared {
            answer.quote[20..header].copy_from_slice(&walk.packet[20..header]);
            known_differences.push(KnownDifference::IcmpQuote);
        }
        if walk.echoes() {
            known_differences.push(KnownDifference::IcmpOptions);
            let (mut options, time_at) = echo(&walk)?;
            self.copy_time(&mut options, time_at, 20);
            answer.quote.truncate(QUOTE_MAX - options.len());
            answer.options = options;
        }
        Some(answer.bytes())
    }

    /// Writes the time to where the kernel wrote it, which is `shift` bytes further on in the observed packet.
    fn copy_time(&self, bytes: &mut [u8], at: Option<usize>, shift: usize) {
        if let Some(at) = at
            && let Some(time) = self.seen_time(at + shift)
        {
            bytes[at..at + 4].copy_from_slice(&time);
        }
    }

    fn seen_time(&self, at: usize) -> Option<[u8; 4]> {
        let time: [u8; 4] = self.seen.first()?.1.get(at..at + 4)?.try_into().unwrap();
        let number = u32::from_be_bytes(time);
        let possible = if self.time.start < self.time.end {
            self.time.contains(&number)
        } else {
            // Midnight may be in between.
            number >= self.time.start || number < self.time.end
        };
        possible.then_some(time)
    }
}

/// Returns the milliseconds since midnight UTC, as the timestamp option has them (RFC 791 3.1).
pub(crate) fn time_of_day() -> u32 {
    const DAY: u128 = 86_400_000;
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() % DAY) as u32
}

/// Fragments a packet like `ip_do_fragment` of net/ipv4/ip_output.c.
fn cut(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let (header, payload) = packet.split_at(usize::from(packet[0] & 15) * 4);
    let mut header = header.to_vec();
    let word = u16::from_be_bytes([packet[6], packet[7]]);
    let (more, start) = (word & MF, usize::from(word & 0x1fff) * 8);
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let mut at = 0;
    while at < payload.len() {
        let left = payload.len() - at;
        let len = if left > mtu - header.len() { (mtu - header.len()) & !7 } else { left };
        let mut piece = [&header, &payload[at..at + len]].concat();
        let total = piece.len() as u16;
        piece[2..4].copy_from_slice(&total.to_be_bytes());
        let more = if len < left { MF } else { more };
        // The offset has 13 bits, and Linux does not check whether it fits.
        let word = ((start + at) / 8) as u16 | more;
        piece[6..8].copy_from_slice(&word.to_be_bytes());
        repair_checksum(&mut piece);
        pieces.push(piece);
        if start + at == 0 {
            blanked(&mut header);
        }
        at += len;
    }
    pieces
}
