//! Random numbers that depend on the seed alone and are the same on every platform.

use core::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): one word of state, with sufficient quality for a simulation.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

/// A probability, stored as an integer so that rounding does not differ between platforms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Probability(
    /// In units of 2^-32.
    u64,
);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Returns true with this probability.
    pub(super) fn happens(&mut self, probability: Probability) -> bool {
        self.next() >> 32 < probability.0
    }

    /// Returns a duration from zero to `most`, in nanoseconds.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let nanoseconds = (u128::from(self.next()) * (u128::from(most) + 1)) >> 64;
        Duration::from_nanos(nanoseconds as u64)
    }
}

impl Probability {
    /// The certain event.
    pub const ALWAYS: Self = Self(1 << 32);
    /// The impossible event, which is the default.
    pub const NEVER: Self = Self(0);

    /// Returns a probability in percent; more than 100 is certain.
    #[must_use]
    pub const fn percent(times: u32) -> Self {
        Self::of(times, 100)
    }

    /// Returns `times` / `among`, rounded to one in four billion. More than 1 is certain, and so is any fraction with
    /// `among` 0.
    ///
    /// ```
    /// use loden::sim::Probability;
    /// assert_eq!(Probability::of(1, 4), Probability::percent(25));
    /// assert_eq!(Probability::of(7, 7), Probability::ALWAYS);
    /// ```
    #[must_use]
    pub const fn of(times: u32, among: u32) -> Self {
        if times >= among { Self::ALWAYS } else { Self(((times as u64) << 32) / among as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first words of the reference implementation (Vigna, splitmix64.c) for the seed 1234567.
    #[test]
    fn the_words_equal_those_of_the_reference() {
        let mut random = Random::new(1_234_567);
        let words = [(); 3].map(|()| random.next());
        assert_eq!(words, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn probabilities_of_zero_one_and_between() {
        let mut random = Random::new(1);
        let mut count = |probability| (0..10_000).filter(|_| random.happens(probability)).count();
        assert_eq!((count(Probability::NEVER), count(Probability::ALWAYS)), (0, 10_000));
        assert!((2800..3200).contains(&count(Probability::percent(30))));
    }

    #[test]
    fn a_time_is_within_its_bounds_and_reaches_both() {
        let mut random = Random::new(1);
        let most = Duration::from_nanos(3);
        let mut seen = [0; 4];
        for _ in 0..1000 {
            seen[random.up_to(most).as_nanos() as usize] += 1;
        }
        assert!(seen.iter().all(|count| *count > 150), "{seen:?}");
        assert_eq!(random.up_to(Duration::ZERO), Duration::ZERO);
        assert!(random.up_to(Duration::MAX) > Duration::from_secs(1));
    }
}
