use super::*;
use core::net::Ipv4Addr;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 168, 0, 3));

#[test]
fn an_mtu_is_lowered_never_raised_and_expires_after_ten_minutes() {
    let (mut paths, start) = (PathMtus::default(), Duration::from_secs(5));
    assert_eq!(paths.lookup(PEER, start), None);
    assert!(paths.lower(PEER, 1300, start));
    assert!(!paths.lower(PEER, 1400, start) && !paths.lower(PEER, 1300, start));
    assert_eq!(paths.lookup(PEER, start), Some(1300));
    paths.lower(PEER, 1200, start);
    assert_eq!(paths.lookup(PEER, start + Duration::from_secs(599)), Some(1200));
    assert_eq!(paths.lookup(PEER, start + PathMtus::LIFETIME), None);
    paths.lower(PEER, 1400, start + PathMtus::LIFETIME);
    assert_eq!(paths.lookup(PEER, start + PathMtus::LIFETIME), Some(1400));
}

/// RFC 1191 section 3: a value that was just confirmed is not raised soon.
#[test]
fn a_confirmed_value_is_renewed() {
    let (mut paths, start) = (PathMtus::default(), Duration::ZERO);
    let late = Duration::from_secs(599);
    assert!(paths.lower(PEER, 1300, start));
    assert!(!paths.lower(PEER, 1400, late) && !paths.lower(PEER, 1300, late), "no news");
    assert_eq!(paths.lookup(PEER, late + late), Some(1300));
    assert_eq!(paths.lookup(PEER, late + PathMtus::LIFETIME), None);
}

#[test]
fn a_removed_value_is_learned_again() {
    let (mut paths, now) = (PathMtus::default(), Duration::from_secs(5));
    assert!(paths.is_empty());
    paths.lower(PEER, 1200, now);
    assert!(!paths.is_empty());
    paths.forget();
    assert!(paths.is_empty());
    assert_eq!(paths.lookup(PEER, now), None);
    assert!(paths.lower(PEER, 1300, now), "news again, although it is wider");
    assert_eq!(paths.lookup(PEER, now), Some(1300));
}

fn refused(paths: &mut PathMtus, len: usize, system: SystemPath, stats: &mut Stats) -> EmsgsizeOutcome {
    paths.handle_emsgsize(SocketAddr::new(PEER, 8285), len, system, Duration::ZERO, stats)
}

fn configured(outer: u32) -> SystemPath {
    SystemPath { configured: Some(outer), ..SystemPath::default() }
}

#[test]
fn a_known_or_configured_mtu_explains_a_refusal() {
    let (mut paths, mut stats) = (PathMtus::default(), Stats::default());
    let mut after = |len, system| refused(&mut paths, len, system, &mut stats);
    assert_eq!(after(1400, configured(1328)), EmsgsizeOutcome::Limit(1300));
    assert_eq!(after(1301, SystemPath::default()), EmsgsizeOutcome::Limit(1300), "known by now");
    assert_eq!(after(1300, configured(1228)), EmsgsizeOutcome::Limit(1200));
    assert_eq!(after(1200, configured(200)), EmsgsizeOutcome::Limit(172), "who configures a route may");
    assert_eq!(stats.path_mtu_lowered, 3);
}

/// RFC 1191 section 7.1, and not below the minimum of Linux.
#[test]
fn fault_53_a_refusal_that_nothing_explains_goes_down_the_plateaus() {
    let (mut paths, mut stats) = (PathMtus::default(), Stats::default());
    let mut len = 9000;
    for outer in [8166, 4352, 2002, 1492, 1006, 552] {
        let limit = EmsgsizeOutcome::Limit(outer - 28);
        assert_eq!(refused(&mut paths, len, configured(9100), &mut stats), limit);
        len = usize::from(outer) - 28;
    }
    for len in [524, 100, 0] {
        assert_eq!(refused(&mut paths, len, configured(9100), &mut stats), EmsgsizeOutcome::Unexplained);
    }
    assert_eq!((paths.lookup(PEER, Duration::ZERO), stats.path_mtu_lowered), (Some(524), 6));
}

/// Fault 52: with reports of its own, the cache ignores MTUs that the kernel learned. It uses configured ones in both
/// modes.
#[test]
fn r54_what_the_kernel_learned_is_overruled() {
    let (mut paths, mut stats) = (PathMtus::default(), Stats::default());
    let system = SystemPath { configured: Some(1400), learned: Some(552), has_reports: true };
    let mut after = |len, system| refused(&mut paths, len, system, &mut stats);
    assert_eq!(after(1000, system), EmsgsizeOutcome::Retry);
    assert_eq!(after(1373, system), EmsgsizeOutcome::Limit(1372), "known since then");
    assert_eq!(after(1372, system), EmsgsizeOutcome::Limit(978), "refused in the new mode: by something else");
    assert_eq!(paths.mode(PEER, Duration::ZERO), PathMode::Probe);
    assert_eq!(paths.mode(PEER, PathMtus::LIFETIME), PathMode::System, "asked again then");
    assert_eq!(stats.path_mtu_lowered, 1);
}

#[test]
fn r54_a_learned_mtu_that_nobody_verifies_lowers_to_1280() {
    let at = Duration::ZERO;
    for (learned, limit, mode) in [(1400, 1372, PathMode::System), (1279, 1252, PathMode::Fragment)] {
        let (mut paths, mut stats) = (PathMtus::default(), Stats::default());
        let system = SystemPath { configured: Some(1500), learned: Some(learned), has_reports: false };
        assert_eq!(refused(&mut paths, 1472, system, &mut stats), EmsgsizeOutcome::Limit(limit));
        assert_eq!((paths.lookup(PEER, at), paths.mode(PEER, at)), (Some(limit), mode));
        assert_eq!(stats.path_mtu_lowered, 1);
    }
    let (mut paths, mut stats) = (PathMtus::default(), Stats::default());
    let system = SystemPath { configured: Some(1500), learned: Some(552), has_reports: false };
    assert_eq!(refused(&mut paths, 1252, system, &mut stats), EmsgsizeOutcome::Retry, "fits, without DF");
    assert_eq!((paths.lookup(PEER, at), paths.mode(PEER, at)), (Some(1252), PathMode::Fragment));
}

/// Every IPv6 path carries 1280 bytes, and Linux learns no smaller MTU.
#[test]
fn v29_what_the_kernel_learned_of_an_ipv6_path_is_an_unverified_report() {
    let to = SocketAddr::new(IpAddr::from([0xfd; 16]), 8285);
    let system = |has_reports| SystemPath { configured: Some(1500), learned: Some(1280), has_reports };
    for (has_reports, expected, mode) in
        [(false, EmsgsizeOutcome::Limit(1232), PathMode::System), (true, EmsgsizeOutcome::Retry, PathMode::Probe)]
    {
        let (mut paths, mut stats) = (PathMtus::default(), Stats::default());
        let outcome = paths.handle_emsgsize(to, 1452, system(has_reports), Duration::ZERO, &mut stats);
        assert_eq!((outcome, paths.mode(to.ip(), Duration::ZERO)), (expected, mode));
        paths.lower(to.ip(), 1232, Duration::ZERO);
        let outcome = paths.handle_emsgsize(to, 1232, configured(1500), Duration::ZERO, &mut stats);
        assert_eq!(outcome, EmsgsizeOutcome::Unexplained, "nothing less");
    }
}

/// A change of the mode keeps the MTU of a path and its expiry.
#[test]
fn another_mode_keeps_the_value() {
    let (mut paths, mut stats) = (PathMtus::default(), Stats::default());
    paths.lower(PEER, 1300, Duration::ZERO);
    let system = SystemPath { configured: Some(1500), learned: Some(552), has_reports: true };
    let late = PathMtus::LIFETIME - Duration::from_secs(1);
    let to = SocketAddr::new(PEER, 8285);
    assert_eq!(paths.handle_emsgsize(to, 1300, system, late, &mut stats), EmsgsizeOutcome::Retry);
    assert_eq!((paths.lookup(PEER, late), paths.mode(PEER, late)), (Some(1300), PathMode::Probe));
    assert_eq!(paths.lookup(PEER, PathMtus::LIFETIME), None);
    paths.lower(PEER, 1200, late);
    assert_eq!(paths.mode(PEER, late), PathMode::Probe);
}

#[test]
fn a_full_table_removes_the_oldest() {
    let mut paths = PathMtus::default();
    let peer = |i: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0aa8_0000 + i));
    for i in 0..=PathMtus::PEERS as u32 {
        paths.lower(peer(i), 1000, Duration::from_millis(u64::from(i)));
    }
    let now = Duration::from_secs(2);
    let known = (0..=PathMtus::PEERS as u32).filter(|i| paths.lookup(peer(*i), now).is_some()).count();
    assert_eq!((known, paths.lookup(peer(0), now)), (PathMtus::PEERS, None));
}

#[test]
fn r54_a_merge_keeps_the_lower_value_and_the_stronger_mode() {
    let peer = IpAddr::from([10, 168, 0, 3]);
    let at = Duration::from_secs;
    let (mut one, mut other) = (PathMtus::default(), PathMtus::default());
    one.lower(peer, 1272, at(1));
    one.set_mode(peer, u16::MAX, PathMode::Fragment, at(1));
    other.lower(peer, 1372, at(2));
    assert!(other.merge(&one, at(3)));
    assert_eq!((other.lookup(peer, at(3)), other.mode(peer, at(3))), (Some(1272), PathMode::Fragment));
    assert!(one.merge(&other, at(3)) && !one.merge(&other, at(3)), "it holds as long as the later of both");
    let end = at(2) + PathMtus::LIFETIME;
    assert_eq!((one.lookup(peer, end - at(1)), one.lookup(peer, end)), (Some(1272), None));
    let mut late = PathMtus::default();
    assert!(!late.merge(&one, end), "nothing that is forgotten comes back");
}
