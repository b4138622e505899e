//! Groups of workers, and the handle by which other threads reach them.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Debug, Formatter};
use core::hash::BuildHasher;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::hash::RandomState;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ipnet::IpNet;

use super::Notice;
use super::failing::{Failing, Failure};
use super::strangers::{Stranger, Strangers};
use crate::endpoint::Endpoint;
use crate::engine::Engine;
use crate::forward::{AllowIcmp, Counters, Forwarder, IcmpLimiter, PathMtus, Reject};
use crate::framing::Framing;
use crate::host::{HostError, Mtu};
use crate::sys::Feature;

/// The longest time for which a busy worker does not publish its counters.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// Peers with send errors up to which each publication copies them. A longer table is copied every [`PUBLISH_EVERY`] at most.
const SEND_ERRORS_AT_ONCE: usize = 64;

/// Failures that one worker keeps until a handle takes them.
const FAILURES_MAX: usize = 16;

/// A handle of running workers for other threads: of one worker, or of all in a [group](super::Worker::group).
///
/// Routes have a handle of their own, the [`RoutePublisher`](crate::route::RoutePublisher). A worker publishes its
/// counters after a call that leaves it idle, and ten times a second under load.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Group>);

/// State that the workers of a group share.
#[derive(Debug)]
struct Group {
    /// The beginning of the group's clock: the first call of a worker.
    started: OnceLock<Instant>,
    limiter: Mutex<IcmpLimiter>,
    /// Holds the MTUs and subnets that were set last.
    forwarder: Mutex<Forwarder>,
    settings_version: AtomicU64,
    paths: Mutex<SharedPaths>,
    paths_version: AtomicU64,
    reports: Mutex<Vec<Arc<Mutex<Report>>>>,
    /// Disabled features that a notice has named.
    noticed: Mutex<Vec<Feature>>,
    listener: Mutex<Listener>,
}

/// The path MTUs of a group.
#[derive(Debug, Default)]
struct SharedPaths {
    known: PathMtus,
    /// The number of times that all workers had to forget theirs.
    forgotten: u64,
}

/// The function to call when there is a new notice or stranger.
#[derive(Default)]
struct Listener(Option<Arc<dyn Fn() + Send + Sync>>);

impl Debug for Listener {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.0.is_some()).finish()
    }
}

/// The values that one worker published last.
#[derive(Debug, Default)]
struct Report {
    counters: Counters,
    send_errors: Vec<(IpAddr, u64)>,
    disabled: Vec<Feature>,
    failures: VecDeque<Failure>,
    strangers: VecDeque<Stranger>,
}

/// One worker's place in its group.
#[derive(Debug)]
pub(super) struct Membership {
    group: Handle,
    report: Arc<Mutex<Report>>,
    published_at: Option<Instant>,
    settings_version: u64,
    paths_version: u64,
    /// The changes of the worker's own path MTUs that the group knows.
    path_changes: u64,
    /// Packets that could not be sent, as published last, and when that was.
    send_errors: u64,
    copied_at: Option<Instant>,
    /// The group's count, as seen last.
    forgotten: u64,
}

/// The limiter of a group. It is locked only when an ICMP error is about to be sent.
#[derive(Debug)]
pub(super) struct GroupLimiter(Handle);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that may panic runs while one is locked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    pub(super) fn new(forwarder: Forwarder) -> Self {
        // A seed that no sender knows.
        let limiter = IcmpLimiter::default().with_seed(RandomState::new().hash_one(()));
        Self(Arc::new(Group {
            started: OnceLock::new(),
            limiter: Mutex::new(limiter),
            forwarder: Mutex::new(forwarder),
            settings_version: AtomicU64::new(0),
            paths: Mutex::default(),
            paths_version: AtomicU64::new(0),
            reports: Mutex::default(),
            noticed: Mutex::default(),
            listener: Mutex::default(),
        }))
    }

    pub(super) fn limiter(&self) -> GroupLimiter {
        GroupLimiter(self.clone())
    }

    pub(super) fn join(self) -> Membership {
        let report = Arc::default();
        lock(&self.0.reports).push(Arc::clone(&report));
        Membership {
            settings_version: self.0.settings_version.load(Ordering::Acquire),
            group: self,
            report,
            published_at: None,
            paths_version: 0,
            path_changes: 0,
            send_errors: 0,
            copied_at: None,
            forgotten: 0,
        }
    }

    /// Sets the length in bytes of the longest inner packet that the underlay carries. It is the smaller of what the
    /// underlay's interface carries (`link::Underlay::tun_mtu`) and the TUN device's MTU. `link::LinkMonitor` tells
    /// when either changes.
    ///
    /// - It applies from the next packet that is read. The senders of longer packets get the new number in an ICMP
    ///   error.
    /// - Queued packets are sent as they are, unless the interface refuses them.
    /// - Unless the limit becomes lower, learned path MTUs are forgotten, because the narrow link may have been this
    ///   host's interface. A path with another narrow link is learned again with one packet.
    /// - Packets from peers have no limit: every packet that the underlay carried is written to the TUN.
    pub fn set_mtu(&self, mtu: Mtu) {
        let mut forwarder = lock(&self.0.forwarder);
        let before = forwarder.config().mtu.min(forwarder.config().mtu_over_ipv6);
        forwarder.set_mtu(mtu);
        if mtu >= before {
            let mut paths = lock(&self.0.paths);
            paths.known.forget();
            paths.forgotten += 1;
        }
        self.0.settings_version.fetch_add(1, Ordering::Release);
    }

    /// Sets the length in bytes of the longest inner packet that the underlay carries to IPv6 peers, whose outer header
    /// is longer. Call it after [`set_mtu`](Self::set_mtu), which sets the limit for all.
    pub fn set_mtu_over_ipv6(&self, mtu: Mtu) {
        lock(&self.0.forwarder).set_mtu_over_ipv6(mtu);
        self.0.settings_version.fetch_add(1, Ordering::Release);
    }

    /// Replaces the subnets that the host owns: the networks and the underlay addresses stay. Packets from peers to
    /// these subnets are delivered from the next call of each worker on, see [`Forwarder::set_subnets`].
    ///
    /// With several subnets of one family, packets from peers take a path that is general and slower.
    ///
    /// # Errors
    /// The errors of [`Host::from_sets`](crate::Host::from_sets). Then nothing changes.
    pub fn set_subnets(&self, subnets: &[IpNet]) -> Result<(), HostError> {
        lock(&self.0.forwarder).set_subnets(subnets)?;
        self.0.settings_version.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Replaces the limits on ICMP errors, which hold for the group as a whole.
    pub fn set_icmp_limiter(&self, limiter: IcmpLimiter) {
        *lock(&self.0.limiter) = limiter;
    }

    /// Returns the counters of the group: those of each worker at the end of a recent call. A busy worker publishes
    /// them ten times a second. An idle worker publishes them after each call.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        lock(&self.0.reports).iter().for_each(|report| sum += &lock(report).counters);
        sum
    }

    /// Returns the number of packets that could not be sent to each peer, sorted by peer. Each worker counts them for
    /// the first 1,024 peers that had any.
    #[must_use]
    pub fn send_errors(&self) -> Vec<(IpAddr, u64)> {
        let mut sums: Vec<(IpAddr, u64)> = Vec::new();
        for report in lock(&self.0.reports).iter() {
            for (peer, count) in &lock(report).send_errors {
                match sums.binary_search_by_key(peer, |(peer, _)| *peer) {
                    Ok(at) => sums.get_mut(at).into_iter().for_each(|(_, sum)| *sum += count),
                    Err(at) => sums.insert(at, (*peer, *count)),
                }
            }
        }
        sums
    }

    /// Sets a function that the workers call when [`take_notices`](Self::take_notices) or
    /// [`take_strangers`](Self::take_strangers) has something new. It replaces the function that was set before. It
    /// runs on a worker's thread. It should only wake another thread, through an `eventfd` or a channel.
    pub fn set_listener(&self, listener: impl Fn() + Send + Sync + 'static) {
        *lock(&self.0.listener) = Listener(Some(Arc::new(listener)));
    }

    /// Returns the notices since the last call. A feature that the kernel lacks is named once. A system call that fails
    /// every time is named at most once a minute for each worker.
    #[must_use]
    pub fn take_notices(&self) -> Vec<Notice> {
        let (mut disabled, mut failures) = (Vec::new(), Vec::new());
        let mut noticed = lock(&self.0.noticed);
        for report in lock(&self.0.reports).iter() {
            let mut report = lock(report);
            for feature in &report.disabled {
                if !noticed.contains(feature) {
                    noticed.push(*feature);
                    disabled.push(*feature);
                }
            }
            failures.extend(report.failures.drain(..));
        }
        let disabled = (!disabled.is_empty()).then_some(Notice::Disabled(disabled));
        disabled.into_iter().chain(failures.into_iter().map(Notice::Failing)).collect()
    }

    /// Returns the strangers found since the last call: senders of datagrams that were dropped as
    /// [`DropReason::UnknownPeer`](crate::forward::DropReason::UnknownPeer) and whose inner source belongs to a peer's
    /// subnet. Most likely they are peers behind NAT.
    ///
    /// Each worker reports each pair of sender and peer once. It remembers the last 64 pairs. It examines at most 100
    /// such datagrams a second, so that a flood of them costs little.
    #[must_use]
    pub fn take_strangers(&self) -> Vec<Stranger> {
        let reports = lock(&self.0.reports);
        reports.iter().flat_map(|report| core::mem::take(&mut lock(report).strangers)).collect()
    }
}

impl Membership {
    pub(super) fn group(&self) -> Handle {
        self.group.clone()
    }

    /// Returns the time on the group's clock.
    pub(super) fn clock(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self.group.0.started.get_or_init(|| now))
    }

    /// Returns the moment at which the group's clock shows this time.
    pub(super) fn moment(&self, clock: Duration) -> Instant {
        self.group.0.started.get().map_or_else(Instant::now, |started| *started + clock)
    }

    /// Takes over path MTUs that others of the group learned, and publishes those that this worker learned.
    #[inline]
    pub(super) fn take_over(&mut self, endpoint: &mut Endpoint, clock: Duration) {
        let group = &self.group.0;
        if group.settings_version.load(Ordering::Acquire) != self.settings_version
            || group.paths_version.load(Ordering::Acquire) != self.paths_version
            || endpoint.paths().changes() != self.path_changes
        {
            self.synchronize(endpoint, clock);
        }
    }

    #[cold]
    fn synchronize(&mut self, endpoint: &mut Endpoint, clock: Duration) {
        let group = &self.group.0;
        let settings_version = group.settings_version.load(Ordering::Acquire);
        if settings_version != self.settings_version {
            self.settings_version = settings_version;
            let forwarder = lock(&group.forwarder);
            let config = forwarder.config();
            let known = endpoint.forwarder().config();
            if (known.mtu, known.mtu_over_ipv6) != (config.mtu, config.mtu_over_ipv6) {
                endpoint.set_mtu(config.mtu);
                endpoint.set_mtu_over_ipv6(config.mtu_over_ipv6);
            }
            // The group's forwarder accepted them for the same host.
            let _ = endpoint.set_subnets(config.host.subnets());
        }
        let mut paths = lock(&group.paths);
        if paths.forgotten != self.forgotten {
            self.forgotten = paths.forgotten;
            endpoint.forget_paths();
        }
        if endpoint.paths().changes() != self.path_changes && paths.known.merge(endpoint.paths(), clock) {
            group.paths_version.fetch_add(1, Ordering::Release);
        }
        self.paths_version = group.paths_version.load(Ordering::Acquire);
        endpoint.merge_paths(&paths.known, clock);
        self.path_changes = endpoint.paths().changes();
    }

    /// Returns whether the worker should publish now.
    #[inline]
    pub(super) fn is_due(&mut self, is_idle: bool, now: Instant) -> bool {
        let is_due = is_idle || self.published_at.is_none_or(|at| now.saturating_duration_since(at) >= PUBLISH_EVERY);
        if is_due {
            self.published_at = Some(now);
        }
        is_due
    }

    /// Makes the next publication complete.
    pub(super) fn end(&mut self) {
        self.copied_at = None;
    }

    pub(super) fn publish<F: Framing>(
        &mut self,
        engine: &Engine<F>,
        disabled: impl Iterator<Item = Feature>,
        failing: &mut Failing,
        strangers: &mut Strangers,
        now: Instant,
    ) {
        let mut report = lock(&self.report);
        let disabled_before = report.disabled.len();
        let failures: Vec<_> = failing.take().collect();
        let has_failures = !failures.is_empty();
        engine.counters_into(&mut report.counters);
        report.disabled.clear();
        report.disabled.extend(disabled);
        report.failures.extend(failures);
        // A program may never take them, so only the newest are kept.
        let surplus = report.failures.len().saturating_sub(FAILURES_MAX);
        report.failures.drain(..surplus);
        let strangers = strangers.take();
        let is_news = has_failures || report.disabled.len() != disabled_before || !strangers.is_empty();
        report.strangers.extend(strangers);
        let surplus = report.strangers.len().saturating_sub(Strangers::MAX);
        report.strangers.drain(..surplus);
        let endpoint = engine.endpoint();
        let send_errors = endpoint.send_error_count();
        let copied = endpoint.send_errors();
        // A long table is not copied for every packet.
        let is_due = copied.len() <= SEND_ERRORS_AT_ONCE
            || self.copied_at.is_none_or(|at| now.saturating_duration_since(at) >= PUBLISH_EVERY);
        if send_errors != self.send_errors && is_due {
            self.copied_at = Some(now);
            self.send_errors = send_errors;
            report.send_errors.clear();
            report.send_errors.extend(copied);
        }
        drop(report);
        let listener = if is_news { lock(&self.group.0.listener).0.clone() } else { None };
        if let Some(listener) = listener {
            listener();
        }
    }
}

impl AllowIcmp for GroupLimiter {
    fn allow(&mut self, reject: &Reject<'_>, now: Duration) -> bool {
        lock(&self.0.0.limiter).allow(reject, now)
    }
}
