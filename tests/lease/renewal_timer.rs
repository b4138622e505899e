//! Renewal of a lease by flannel's rules: a margin before the end, and a minute after an error.

use std::time::Duration;

use loden::lease::RenewalTimer;
use proptest::prelude::*;

use crate::at;

const DAY: Duration = RenewalTimer::TTL;

#[test]
fn it_is_renewed_a_margin_before_the_end_and_a_minute_after_an_error() {
    let mut timer = RenewalTimer::granted(DAY, RenewalTimer::MARGIN, at(100));
    assert_eq!((timer.poll_timeout(), timer.ends()), (at(100 + 23 * 3600), at(100) + DAY));
    let mut now = timer.poll_timeout();
    // An hour of failures, and more: the last ones come after the end.
    for _ in 0..90 {
        timer.failed(now);
        assert_eq!(timer.poll_timeout(), now + at(60));
        assert_eq!(timer.ends(), at(100) + DAY, "a failure makes nothing longer");
        now = timer.poll_timeout();
    }
    assert!(now > timer.ends());
    timer.renewed(DAY, now);
    assert_eq!((timer.poll_timeout(), timer.ends()), (now + at(23 * 3600), now + DAY));
}

#[test]
fn the_longest_margin_of_flannel_renews_every_minute() {
    let timer = RenewalTimer::granted(DAY, *RenewalTimer::MARGINS.end(), at(0));
    assert_eq!(timer.poll_timeout(), at(60));
}

#[test]
fn what_was_touched_is_renewed_at_once() {
    let mut timer = RenewalTimer::granted(DAY, RenewalTimer::MARGIN, at(0));
    timer.doubted(at(5));
    timer.doubted(at(7));
    assert_eq!(timer.poll_timeout(), at(5));
}

proptest! {
    #[test]
    fn it_is_renewed_before_its_end_and_never_at_once(ttl in 1..200_000_u64, margin in 0..100_000_u64, now in 0..u64::MAX / 4) {
        let timer = RenewalTimer::granted(at(ttl), at(margin), at(now));
        prop_assert_eq!(timer.ends(), at(now + ttl));
        prop_assert!(timer.poll_timeout() > at(now) && timer.poll_timeout() <= timer.ends());
    }

    #[test]
    fn no_time_is_too_late(ttl in any::<u64>(), margin in any::<u64>(), now in any::<u64>()) {
        let mut timer = RenewalTimer::granted(at(ttl), at(margin), at(now));
        timer.failed(Duration::MAX);
        prop_assert_eq!(timer.poll_timeout(), Duration::MAX);
        timer.renewed(at(ttl), Duration::MAX);
        prop_assert_eq!(timer.ends(), Duration::MAX);
    }
}
