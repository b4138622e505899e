//! The Internet checksum: RFC 1071 sum and RFC 1624 incremental update.

/// The ones' complement sum of `bytes` as big-endian 16-bit words, folded to 16 bits (RFC 1071 section 1).
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
    // Ones' complement addition does not care for the byte order (RFC 1071 section 2B), so whole words are added as the
    // machine reads them, 32 bits at a time into 64, and only the result is turned round.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
    let mut last = [0; 4];
    for (slot, byte) in last.iter_mut().zip(rest) {
        *slot = *byte;
    }
    total += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(total))
}

/// [`sum`] of a header without options, given as its words: five additions.
#[inline(always)]
pub(super) fn sum_of_words(words: [u32; 5]) -> u16 {
    fold(words.into_iter().map(u64::from).sum())
}

/// The checksum to write into a header or message whose checksum field is zero: the complement of [`sum`].
#[must_use]
#[inline]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The checksum after one 16-bit word it covers went from `old` to `new` (RFC 1624 equation 3).
///
/// Equation 3 rather than 4, because 4 can give `0xFFFF` where a full recompute gives `0x0000`.
///
/// ```
/// // A TTL decrement takes 0x0100 off the word that holds TTL and protocol.
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

    /// RFC 1071 as its text has it: big-endian words, one at a time.
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
    }

    #[test]
    fn a_longest_packet_of_ones_does_not_overflow() {
        assert_eq!(sum(&[0xff; 65_535]), naive(&[0xff; 65_535]));
    }

    /// R32, over every checksum and every TTL: the header is one word of TTL and protocol and one free word that
    /// makes the checksum come out as wanted.
    #[test]
    fn update_equals_a_full_recompute_for_every_checksum_and_ttl() {
        for ttl in 1..=255u16 {
            let old = ttl << 8 | 17;
            let new = (ttl - 1) << 8 | 17;
            for free in 0..=0xffffu16 {
                let before = !naive_of_words(&[old, free]);
                let after = !naive_of_words(&[new, free]);
                assert_eq!(update(before, old, new), after, "ttl {ttl}, checksum {before:#06x}");
            }
        }
    }

    /// R32's corner and R33: an incoming 0xFFFF, which only a sloppy sender writes, is repaired on the way.
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
