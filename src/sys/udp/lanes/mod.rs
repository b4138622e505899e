//! Lanes: sockets that only send, each with a send buffer of its own, for peers whose paths are slow.
//!
//! Linux charges a packet to the send buffer of its socket until the device has freed it (`sock_wfree` in the
//! kernel's net/core/sock.c). A slow interface therefore fills the whole buffer of one socket, and EAGAIN then
//! affects every peer. Measured with one peer behind a 10 Mbit/s interface that was sent 20 Mbit/s: 231 of 600 pings
//! to a peer on another interface were lost. With a socket of its own for the slow peer none was.
//!
//! # Choice of a peer
//! A socket that all peers share shows how much is charged to it, but not for which peer. When it is a quarter full,
//! the peer that was sent most since it was an eighth full gets a lane. If that was the wrong peer, its lane stays
//! empty, which costs nothing. The shared socket then fills further, and the next peer follows. A lane is free again
//! when it is empty at two checks, a second apart, or when another peer needs it.
//!
//! When every lane is in use and not empty, such a peer is limited instead: its datagrams are refused while the
//! shared socket is a quarter full, so that it does not become full for the others. A peer whose datagram meets a
//! full socket gets a lane at once. A hash of the peer's address instead would put a slow and an idle peer together.
//!
//! # Sharing of the port
//! A lane is an IPv6 socket on the IPv4-mapped address of the socket that receives. The kernel delivers an IPv4
//! datagram to an IPv4 socket first (`compute_score` in net/ipv4/udp.c), and puts IPv6 sockets that were bound with
//! `SO_REUSEPORT` behind all others (`sk_add_node_rcu` in include/net/sock.h, Linux 4.7), also behind an IPv6 socket
//! that receives. `SO_REUSEPORT` is on for the moment of the bind alone. Afterwards another program that asks for the
//! port gets EADDRINUSE, as it does without lanes. Tested with eight lanes and 200 senders, one and three receivers,
//! and with a receiver that was closed.
//!
//! The lane of an IPv6 socket has its address. Several IPv6 sockets that receive on one port are a group, from which the
//! kernel chooses by a hash. A lane joins it at the bind and leaves it at once. A datagram that arrives between the two
//! may be lost.
//!
//! A classic BPF program that gives every datagram to the first socket of the group does the same. But the sockets of
//! a group keep `SO_REUSEPORT`, so that another program of the same user can join it and replace the program, and
//! with several receivers the program has to follow the kernel's numbers of the sockets.
//!
//! # Order
//! A peer's datagrams keep their order when it moves. The kernel appends a datagram to the queue of the interface at
//! once, whichever socket sends it. The queues put packets of one address and port pair into one flow: `fq` uses the
//! socket for the flow only if it is connected (`fq_classify` in net/sched/sch_fq.c), and the others do not look at
//! it.

mod meter;
mod socket;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use self::meter::SUSPECTS_MAX;
pub(super) use self::meter::{Meter, is_crowded, is_filling};
use self::socket::{is_final, make_lane};
use crate::sys::kernel::{Calls, SystemCalls};
use crate::sys::syscall::SendBacklog;

/// The most peers that have a lane. Each lane may fill a send buffer.
pub(super) const LANES_MAX: usize = 8;

/// The most peers that are limited.
const LIMITED_MAX: usize = 8;

/// The interval at which lanes in use are checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The interval at which lanes in use are queried for one that is not needed.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// The socket for the datagrams of a peer that has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// The lane of this number.
    Lane(u8),
    /// The shared socket, while it is less than a quarter full.
    Limited,
}

/// A peer that has to leave a shared socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaving {
    peer: u64,
    /// Set if it is limited when no lane is free.
    may_be_limited: bool,
}

/// The use of a lane to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LaneUse {
    /// The path of the peer carries everything that the peer is sent.
    Fast,
    /// The lane was empty at the last check and is empty now.
    Unused,
    Needed,
}

/// The result of moving a peer away from a shared socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MoveOutcome {
    /// It has a lane. Another peer whose path is fast may have lost it.
    Lane {
        evicted: Option<u64>,
    },
    NoLaneIsFree,
    /// Lanes cannot be made.
    NoLanes,
}

/// Peers that have moved at most, with suspects that are limited because there is no room for more.
const MOVED_MAX: usize = LANES_MAX + LIMITED_MAX + SUSPECTS_MAX;

/// The peers whose datagrams do not simply go by the shared sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    len: usize,
    peers: [u64; MOVED_MAX],
    exits: [Exit; MOVED_MAX],
}

impl Moved {
    pub(super) const NONE: Self = Self { len: 0, peers: [0; MOVED_MAX], exits: [Exit::Limited; MOVED_MAX] };

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(super) fn exit_of(&self, destination: SocketAddr) -> Option<Exit> {
        self.exit_of_key(key_of(destination))
    }

    #[inline]
    fn exit_of_key(&self, peer: u64) -> Option<Exit> {
        self.exits.get(self.index_of(peer)?).copied()
    }

    fn peer_of(&self, lane: u8) -> Option<u64> {
        let index = self.exits().position(|exit| exit == Exit::Lane(lane))?;
        self.peers.get(index).copied()
    }

    #[inline]
    fn index_of(&self, peer: u64) -> Option<usize> {
        self.peers.iter().take(self.len).position(|moved| *moved == peer)
    }

    fn limited(&self) -> Option<u64> {
        let index = self.exits().position(|exit| exit == Exit::Limited)?;
        self.peers.get(index).copied()
    }

    /// Returns `true` if no further peer can be limited.
    pub(super) fn is_full(&self) -> bool {
        self.len >= LIMITED_MAX && self.exits().filter(|exit| *exit == Exit::Limited).count() >= LIMITED_MAX
    }

    fn exits(&self) -> impl Iterator<Item = Exit> {
        self.exits.iter().take(self.len).copied()
    }

    fn set(&mut self, peer: u64, exit: Exit) {
        let index = self.index_of(peer).unwrap_or(self.len);
        if let (Some(slot), Some(place)) = (self.peers.get_mut(index), self.exits.get_mut(index)) {
            (*slot, *place) = (peer, exit);
            self.len = self.len.max(index + 1);
        }
    }

    fn remove_if(&mut self, is_over: impl Fn(Exit) -> bool) {
        self.remove_peers_if(|_, exit| is_over(exit));
    }

    fn remove_peers_if(&mut self, is_over: impl Fn(u64, Exit) -> bool) {
        let mut index = 0;
        while index < self.len {
            let moved = self.peers.get(index).zip(self.exits.get(index));
            if moved.is_some_and(|(peer, exit)| is_over(*peer, *exit)) {
                self.len -= 1;
                self.peers.swap(index, self.len);
                self.exits.swap(index, self.len);
            } else {
                index += 1;
            }
        }
    }
}

/// The lanes of one port. All transports of the port share them.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Set while a peer has moved. It usually saves the lock.
    is_used: AtomicBool,
    /// Set once a lane could not be created. The next attempt would most likely fail too.
    is_broken: AtomicBool,
    /// For each lane, a socket for each source port.
    sockets: Box<[OnceLock<UdpSocket>]>,
    ports: usize,
    /// The number of bytes that each lane sent since its peer got it.
    sent: [AtomicUsize; LANES_MAX],
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    moved: Moved,
    /// The shared socket that each limited peer had filled.
    limited_by: Vec<(u64, RawFd)>,
    /// The limited peers that were sent to, or refused, by a socket that fills since the last look.
    active: Vec<u64>,
    /// The number of consecutive checks at which each lane was empty.
    empty_looks: [u8; LANES_MAX],
    /// The sequence number with which each lane was given to its peer.
    given: [u64; LANES_MAX],
    count: u64,
    looked_at: Option<Instant>,
    /// When every lane was found needed.
    all_needed_at: Option<Instant>,
    /// When a lane could not be made last.
    failed_at: Option<Instant>,
}

impl Lanes {
    /// Creates the lanes of a socket, or of as many flow ports. It opens no socket: each is opened when it is first
    /// needed.
    pub(super) fn new(flows: usize) -> Self {
        let ports = flows.max(1);
        let (moved, empty_looks, given) = (Moved::NONE, [0; LANES_MAX], [0; LANES_MAX]);
        let table = Table {
            moved,
            limited_by: Vec::new(),
            active: Vec::new(),
            empty_looks,
            given,
            count: 0,
            looked_at: None,
            failed_at: None,
            all_needed_at: None,
        };
        Self {
            is_used: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            sockets: (0..LANES_MAX * ports).map(|_| OnceLock::new()).collect(),
            ports,
            sent: Default::default(),
            table: Mutex::new(table),
        }
    }

    /// Returns the peers that have moved, if any.
    #[inline]
    pub(super) fn moved(&self) -> Option<Moved> {
        self.is_used.load(Ordering::Relaxed).then(|| self.table().moved)
    }

    /// Returns the socket of a lane for the port of a shared socket, or `None` if it cannot be created.
    pub(super) fn socket(&self, lane: u8, port: usize, shared: &UdpSocket, calls: &Calls) -> Option<&UdpSocket> {
        let slot = self.sockets.get(usize::from(lane) * self.ports + port)?;
        if let Some(socket) = slot.get() {
            return Some(socket);
        }
        let mut table = self.table();
        if self.cannot_make(&table) {
            return None;
        }
        // Another thread may have created it.
        if slot.get().is_none() {
            match make_lane(shared, calls) {
                Ok(made) => drop(slot.set(made)),
                Err(error) => {
                    self.is_broken.store(is_final(&error), Ordering::Relaxed);
                    table.failed_at = Some(Instant::now());
                    table.moved.remove_if(|exit| exit == Exit::Lane(lane));
                }
            }
        }
        slot.get()
    }

    /// Moves a peer away from the shared socket of a port.
    pub(super) fn move_away(&self, peer: Leaving, port: usize, shared: &UdpSocket, calls: &Calls) -> MoveOutcome {
        let Leaving { peer, may_be_limited } = peer;
        let reserved = self.reserve(peer, calls);
        if let Some((lane, evicted)) = reserved
            && self.socket(lane, port, shared, calls).is_some()
        {
            return MoveOutcome::Lane { evicted };
        }
        let mut table = self.table();
        if may_be_limited && !table.moved.is_full() && table.moved.index_of(peer).is_none() {
            table.moved.set(peer, Exit::Limited);
            table.note_active(peer);
            let Table { moved, limited_by, .. } = &mut *table;
            limited_by.retain(|(known, _)| *known != peer && moved.exit_of_key(*known) == Some(Exit::Limited));
            limited_by.push((peer, shared.as_raw_fd()));
        }
        self.is_used.store(!table.moved.is_empty(), Ordering::Relaxed);
        if self.is_broken.load(Ordering::Relaxed) { MoveOutcome::NoLanes } else { MoveOutcome::NoLaneIsFree }
    }

    /// Adds to the number of bytes that a lane sent.
    pub(super) fn count(&self, lane: usize, bytes: usize) {
        if let Some(sent) = self.sent.get(lane) {
            sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Gives a peer a lane that is free, or one that its peer does not need. Returns that peer if its path is fast.
    fn reserve(&self, peer: u64, calls: &Calls) -> Option<(u8, Option<u64>)> {
        let mut table = self.table();
        if self.cannot_make(&table) {
            return None;
        }
        if let Some(Exit::Lane(lane)) = table.moved.exit_of_key(peer) {
            return Some((lane, None));
        }
        let lanes = || 0..LANES_MAX as u8;
        let is_free = |lane: &u8| table.moved.peer_of(*lane).is_none();
        let given = |lane: &u8| table.given.get(usize::from(*lane)).copied();
        let use_of = |lane: &u8| {
            let looks = table.empty_looks.get(usize::from(*lane)).copied();
            self.use_of(*lane, looks.is_some_and(|looks| looks > 0), calls)
        };
        let oldest_unneeded = || lanes().filter(|lane| use_of(lane) != LaneUse::Needed).min_by_key(given);
        let just_asked = table.all_needed_at.is_some_and(|at| at.elapsed() < ASK_EVERY);
        let Some(lane) = lanes().find(is_free).or_else(|| if just_asked { None } else { oldest_unneeded() }) else {
            if !just_asked {
                table.all_needed_at = Some(Instant::now());
            }
            return None;
        };
        let is_fast = use_of(&lane) == LaneUse::Fast;
        let evicted = table.moved.peer_of(lane).filter(|_| is_fast);
        self.give(lane, peer, &mut table);
        self.is_used.store(true, Ordering::Relaxed);
        Some((lane, evicted))
    }

    fn give(&self, lane: u8, peer: u64, table: &mut Table) {
        let Table { moved, empty_looks, given, count, .. } = table;
        moved.remove_if(|exit| exit == Exit::Lane(lane));
        moved.set(peer, Exit::Lane(lane));
        *count += 1;
        let lane = usize::from(lane);
        if let (Some(looks), Some(given)) = (empty_looks.get_mut(lane), given.get_mut(lane)) {
            (*looks, *given) = (0, *count);
        }
        if let Some(sent) = self.sent.get(lane) {
            sent.store(0, Ordering::Relaxed);
        }
    }

    /// Checks the lanes once a second: peers whose lane is empty return to the shared socket.
    #[inline]
    pub(super) fn release(&self, now: Instant, calls: &Calls) {
        if self.is_used.load(Ordering::Relaxed) {
            self.look(now, calls);
        }
    }

    #[cold]
    fn look(&self, now: Instant, calls: &Calls) {
        let mut table = self.table();
        if table.looked_at.is_some_and(|at| now.saturating_duration_since(at) < LOOK_EVERY) {
            return;
        }
        table.looked_at = Some(now);
        let Table { moved, empty_looks, .. } = &mut *table;
        for (lane, looks) in (0..).zip(empty_looks.iter_mut()) {
            *looks = if self.is_empty(lane, calls) { *looks + 1 } else { 0 };
            if *looks >= 2 {
                *looks = 0;
                moved.remove_if(|exit| exit == Exit::Lane(lane));
            }
        }
        let Table { moved, active, .. } = &mut *table;
        moved.remove_peers_if(|peer, exit| exit == Exit::Limited && !active.contains(&peer));
        active.clear();
        // A limited peer gets a lane that is free. Without one it stays limited: the shared socket may still be
        // crowded.
        while !self.cannot_make(&table)
            && let Some(peer) = table.moved.limited()
            && let Some(lane) = (0..LANES_MAX as u8).find(|lane| table.moved.peer_of(*lane).is_none())
        {
            self.give(lane, peer, &mut table);
        }
        self.is_used.store(!table.moved.is_empty(), Ordering::Relaxed);
    }

    /// Notes that a limited peer was sent something, or refused, while the shared socket fills.
    pub(super) fn note_active(&self, peer: SocketAddr) {
        self.table().note_active(key_of(peer));
    }

    /// Ends the limits of the peers that filled this shared socket, when it is nearly empty.
    pub(super) fn lift_limits(&self, shared: &UdpSocket) {
        let mut table = self.table();
        let Table { moved, limited_by, .. } = &mut *table;
        let by_this = |peer| limited_by.contains(&(peer, shared.as_raw_fd()));
        // A limited peer that a look has given a lane keeps it.
        moved.remove_peers_if(|peer, exit| exit == Exit::Limited && by_this(peer));
        self.is_used.store(!table.moved.is_empty(), Ordering::Relaxed);
    }

    /// Returns `true` if a lane could not be made, for good or a moment ago.
    fn cannot_make(&self, table: &Table) -> bool {
        self.is_broken.load(Ordering::Relaxed) || table.failed_at.is_some_and(|at| at.elapsed() < LOOK_EVERY)
    }

    fn is_empty(&self, lane: u8, calls: &Calls) -> bool {
        let backlog = self.backlog(lane, calls);
        backlog.charged < backlog.limit / 16
    }

    fn use_of(&self, lane: u8, was_empty: bool, calls: &Calls) -> LaneUse {
        let SendBacklog { charged, limit } = self.backlog(lane, calls);
        let sent = self.sent.get(usize::from(lane)).map_or(0, |sent| sent.load(Ordering::Relaxed));
        if charged < limit / 16 && charged <= sent / 8 && sent >= limit / 64 {
            LaneUse::Fast
        } else if charged == 0 && was_empty {
            LaneUse::Unused
        } else {
            LaneUse::Needed
        }
    }

    /// Returns the sum of what is charged to the sockets of a lane, and the limit of one.
    fn backlog(&self, lane: u8, calls: &Calls) -> SendBacklog {
        let sockets = self.sockets.chunks(self.ports).nth(lane.into()).unwrap_or_default();
        let backlogs = sockets.iter().filter_map(|socket| calls.send_backlog(socket.get()?.as_fd()).ok());
        let none = SendBacklog { charged: 0, limit: usize::MAX };
        backlogs.fold(none, |sum, one| SendBacklog { charged: sum.charged + one.charged, limit: one.limit })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn note_active(&mut self, peer: u64) {
        // Others are limited for lack of room.
        if self.moved.exit_of_key(peer) == Some(Exit::Limited) && !self.active.contains(&peer) {
            self.active.push(peer);
        }
    }
}

/// Returns a number for a destination. Each IPv4 address and port has a number of its own.
#[inline]
fn key_of(destination: SocketAddr) -> u64 {
    let address = match destination.ip() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            // Multiplied and rotated, so that addresses of one subnet do not cancel out.
            let (high, low) = ((address.to_bits() >> 64) as u64, address.to_bits() as u64);
            high.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ low.rotate_left(17)
        }
    };
    address << 16 ^ u64::from(destination.port()) ^ address >> 48
}

#[cfg(test)]
mod tests;
