//! The Internet checksum: the sum of RFC 1071 and the incremental update of RFC 1624.

/// Returns the ones' complement sum of `bytes` as big-endian 16-bit words, folded to 16 bits (RFC 1071 section 1).
///
/// An odd last byte counts as the high half of a word. Data that carries its own valid checksum sums to `0xFFFF`.
///
/// ```
/// use loden::wire::checksum;
/// // The example of RFC 1071 section 3.
/// assert_eq!(checksum::sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
/// ```
#[must_use]
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    // The ones' complement sum does not depend on the byte order (RFC 1071 section 2B). So words are added in native
    // order, 32 bits at a time into 64, and only the result is swapped.
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut lanes = Lanes::default();
    for block in blocks {
        lanes.add(block);
    }
    lanes.fold_with(rest)
}

/// Copies `from` to `to` and returns the [`sum`] of the copied bytes.
///
/// The shorter of the two slices limits the length. Every byte is loaded once: a copy and a separate sum take about
/// twice as long on packets that are no longer in the L1 cache.
///
/// ```
/// let mut to = [0; 4];
/// assert_eq!(loden::wire::checksum::copy_and_sum(&[0x12, 0x34, 0x00, 0x01], &mut to), 0x1235);
/// assert_eq!(to, [0x12, 0x34, 0x00, 0x01]);
/// ```
#[inline]
pub fn copy_and_sum(from: &[u8], to: &mut [u8]) -> u16 {
    let len = from.len().min(to.len());
    let (from, to) = (from.get(..len).unwrap_or_default(), to.get_mut(..len).unwrap_or_default());
    let (blocks, rest) = from.as_chunks::<BLOCK>();
    let (slots, rest_slot) = to.as_chunks_mut::<BLOCK>();
    let mut lanes = Lanes::default();
    for (block, slot) in blocks.iter().zip(slots) {
        *slot = *block;
        lanes.add(block);
    }
    rest_slot.copy_from_slice(rest);
    lanes.fold_with(rest)
}

/// Returns the sum of two sums. The bytes of the second must begin at an even offset from those of the first.
#[must_use]
#[inline]
pub const fn add(one: u16, other: u16) -> u16 {
    let (total, carry) = one.overflowing_add(other);
    total + carry as u16
}

/// Bytes that one iteration sums.
const BLOCK: usize = 4 * LANES;

/// Independent sums. With eight of them, compilers keep up with the L1 cache on plain SSE2. A single sum is bound by
/// the latency of its additions.
const LANES: usize = 8;

/// The sum of the blocks so far. No lane overflows below 2^32 blocks.
#[derive(Default)]
struct Lanes([u64; LANES]);

impl Lanes {
    #[inline(always)]
    fn add(&mut self, block: &[u8; BLOCK]) {
        for (lane, word) in self.0.iter_mut().zip(block.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }

    /// Returns the sum of all blocks and of the remaining bytes, in network byte order.
    #[inline(always)]
    fn fold_with(self, rest: &[u8]) -> u16 {
        let (words, rest) = rest.as_chunks::<4>();
        let last = match *rest {
            [a] => [a, 0, 0, 0],
            [a, b] => [a, b, 0, 0],
            [a, b, c] => [a, b, c, 0],
            _ => [0; 4],
        };
        let word = |word: [u8; 4]| u64::from(u32::from_ne_bytes(word));
        let whole: u64 = words.iter().map(|bytes| word(*bytes)).sum();
        u16::from_be(fold(self.0.into_iter().sum::<u64>() + whole + word(last)))
    }
}

/// Returns the [`sum`] of a few big-endian words.
#[inline(always)]
pub(crate) fn sum_of_words<const N: usize>(words: [u32; N]) -> u16 {
    fold(words.into_iter().map(u64::from).sum())
}

/// Returns the checksum for a header or message whose checksum field is zero: the complement of [`sum`].
#[must_use]
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// Returns the checksum after one 16-bit word that it covers changed from `old` to `new` (RFC 1624 equation 3).
///
/// Equation 4 can give `0xFFFF` where a full recompute gives `0x0000`; equation 3 cannot.
///
/// ```
/// // A TTL decrement subtracts 0x0100 from the word that holds TTL and protocol.
/// assert_eq!(loden::wire::checksum::update(0xfeff, 0x4011, 0x3f11), 0x0000);
/// ```
#[must_use]
#[inline]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let total = !checksum as u32 + !old as u32 + new as u32;
    let total = (total & 0xffff) + (total >> 16);
    !((total & 0xffff) + (total >> 16)) as u16
}

#[inline]
fn fold(total: u64) -> u16 {
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    ((total & 0xffff) + (total >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sums as RFC 1071 describes it: big-endian words, one at a time.
    fn naive(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    proptest! {
        #[test]
        fn sum_equals_the_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(sum(&bytes), naive(&bytes));
        }

        #[test]
        fn a_copy_equals_its_source_and_its_sum_the_naive_sum(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            room in 0usize..300,
        ) {
            let mut to = std::vec![0x5a; room];
            let len = bytes.len().min(room);
            prop_assert_eq!(copy_and_sum(&bytes, &mut to), naive(&bytes[..len]));
            prop_assert_eq!(&to[..len], &bytes[..len]);
            prop_assert!(to[len..].iter().all(|byte| *byte == 0x5a));
        }

        #[test]
        fn sums_of_parts_add_up(bytes in proptest::collection::vec(any::<u8>(), 0..300), words in 0usize..150) {
            let (front, back) = bytes.split_at((words * 2).min(bytes.len()) & !1);
            prop_assert_eq!(add(sum(front), sum(back)), naive(&bytes));
        }
    }

    #[test]
    fn the_longest_packet_of_ones_does_not_overflow() {
        assert_eq!(sum(&[0xff; 65_535]), naive(&[0xff; 65_535]));
    }

    /// Sums that carry at every width to which they are folded.
    #[test]
    fn carries_propagate_through_every_fold() {
        for len in (0..400).step_by(4) {
            for last in [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0xff, 0xff, 0, 1], [1, 0, 0xff, 0xff], [0, 0, 1, 0]]
            {
                let bytes = [&std::vec![0xff; len][..], &last].concat();
                assert_eq!(sum(&bytes), naive(&bytes), "{len} ones and {last:?}");
            }
        }
    }

    /// R32 for every checksum and every TTL. The header is one word of TTL and protocol, and one free word that selects
    /// the checksum.
    #[test]
    fn update_equals_a_full_recompute_for_every_checksum_and_ttl() {
        // Miri would take hours for all of them.
        let (ttls, frees) = if cfg!(miri) { (51, 4099) } else { (1, 1) };
        for ttl in (1..=255u16).step_by(ttls) {
            let old = ttl << 8 | 17;
            let new = (ttl - 1) << 8 | 17;
            for free in (0..=0xffffu16).step_by(frees) {
                let before = !naive_of_words(&[old, free]);
                let after = !naive_of_words(&[new, free]);
                assert_eq!(update(before, old, new), after, "ttl {ttl}, checksum {before:#06x}");
            }
        }
    }

    /// RFC 1624 for any change of any word in a header that is not all zeros.
    #[test]
    fn update_equals_a_full_recompute_for_any_words() {
        let edges = [0, 1, 2, 0x00ff, 0x0100, 0x7fff, 0x8000, 0xff00, 0xfffe, 0xffff];
        for old in edges {
            for new in edges {
                for free in edges.into_iter().skip(1) {
                    let [before, after] = [old, new].map(|word| !naive_of_words(&[word, free]));
                    assert_eq!(update(before, old, new), after, "{old:#06x} to {new:#06x} beside {free:#06x}");
                }
            }
        }
    }

    /// The corner case of R32, and R33: an incoming checksum of 0xFFFF is normalised on the way.
    #[test]
    fn update_never_writes_the_other_zero() {
        assert_eq!(update(0xfeff, 0x4011, 0x3f11), 0x0000);
        assert_eq!(update(0xffff, 0x4011, 0x3f11), update(0x0000, 0x4011, 0x3f11));
    }

    fn naive_of_words(words: &[u16]) -> u16 {
        words.iter().fold(0u32, |total, word| {
            let total = total + u32::from(*word);
            (total & 0xffff) + (total >> 16)
        }) as u16
    }
}
