//! Content that can be generated, sent and verified at many gigabits per second.

/// A pseudo-random stream of bytes that depends on a seed: one block, repeated.
///
/// Blocks are verified by comparing memory, which costs less than the copy out of the kernel.
pub(crate) struct Pattern {
    block: Vec<u8>,
}

impl Pattern {
    /// A prime, so that bytes shifted by a round number (a segment, a page, 64 KiB) do not match.
    pub(crate) const STREAM_BLOCK: usize = 262_139;

    /// Creates a pattern that repeats after `length` bytes.
    pub(crate) fn new(seed: u64, length: usize) -> Self {
        let mut state = seed;
        let mut block = Vec::with_capacity(length + 8);
        while block.len() < length {
            block.extend(split_mix(&mut state).to_le_bytes());
        }
        block.truncate(length);
        Self { block }
    }

    /// Returns the bytes from `position` in the stream to the end of the block.
    pub(crate) fn at(&self, position: u64) -> &[u8] {
        let offset = position.checked_rem(self.block.len() as u64).unwrap_or(0);
        self.block.get(offset as usize..).unwrap_or_default()
    }

    /// Returns the position in the stream of the first difference in `bytes`, which were read at `position`.
    pub(crate) fn mismatch(&self, mut position: u64, mut bytes: &[u8]) -> Option<u64> {
        while !bytes.is_empty() {
            let expected = self.at(position);
            let length = expected.len().min(bytes.len());
            let (head, tail) = bytes.split_at(length);
            if length == 0 || head != &expected[..length] {
                let agree = head.iter().zip(expected).take_while(|(a, b)| a == b).count();
                return Some(position + agree as u64);
            }
            position += length as u64;
            bytes = tail;
        }
        None
    }
}

/// Returns the next number of SplitMix64 (Steele, Lea and Flood 2014), which has a full period from any seed.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(pattern: &Pattern, length: usize) -> Vec<u8> {
        pattern.block.iter().copied().cycle().take(length).collect()
    }

    #[test]
    fn a_stream_matches_itself_in_any_pieces() {
        let pattern = Pattern::new(1, 11);
        let bytes = stream(&pattern, 100);
        for start in 0..100 {
            for end in start..100 {
                assert_eq!(pattern.mismatch(start as u64, &bytes[start..end]), None);
            }
        }
    }

    #[test]
    fn the_first_changed_byte_is_found() {
        let pattern = Pattern::new(2, 11);
        for changed in 0..50 {
            let mut bytes = stream(&pattern, 50);
            bytes[changed] ^= 0x80;
            assert_eq!(pattern.mismatch(0, &bytes), Some(changed as u64));
        }
    }

    #[test]
    fn another_seed_or_place_does_not_match() {
        let pattern = Pattern::new(3, Pattern::STREAM_BLOCK);
        let bytes = stream(&pattern, 1448);
        assert!(Pattern::new(4, Pattern::STREAM_BLOCK).mismatch(0, &bytes).is_some());
        for moved in [1, 1448, 4096, 65_536, 262_144] {
            assert!(pattern.mismatch(moved, &bytes).is_some(), "{moved}");
        }
    }

    #[test]
    fn an_empty_pattern_matches_only_nothing() {
        let pattern = Pattern::new(5, 0);
        assert_eq!(pattern.at(9), []);
        assert_eq!(pattern.mismatch(0, &[]), None);
        assert_eq!(pattern.mismatch(0, &[1]), Some(0));
    }
}
