mod fragments;
mod known;

use super::*;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use proptest::prelude::*;

use crate::wire::Ecn;
use crate::wire::checksum;
use crate::wire::ipv4::Ipv4Packet;

/// A socket that does as it is told, and remembers what went.
#[derive(Default)]
struct Script {
    /// For each call: how many datagrams go, and then what happens. When it is over, everything goes.
    steps: RefCell<VecDeque<(usize, SendErrorKind)>>,
    /// Whether an error concerns the whole train.
    as_trains: bool,
    /// What the path carries, in bytes of inner packet.
    mtu: Cell<u16>,
    /// MTU of every path that the kernel learned from an ICMP error, in bytes of inner packet.
    told: Cell<Option<u16>>,
    has_reports: bool,
    sent: RefCell<Vec<Sent>>,
    refused: RefCell<Vec<u32>>,
}

/// A datagram that went, or a piece of one.
#[derive(Clone, Debug)]
struct Sent {
    to: SocketAddr,
    mark: u32,
    /// Which bytes of the whole payload.
    payload: Range<usize>,
    mode: PathMode,
}

/// The identification of a packet: its number, and which of its datagrams it is.
fn mark(datagram: &[u8]) -> u32 {
    Ipv4Packet::parse(datagram).unwrap().header().identification().into()
}

impl Sent {
    fn new(to: SocketAddr, datagram: &[u8]) -> Self {
        let packet = Ipv4Packet::parse(datagram).unwrap();
        assert_eq!(packet.as_bytes().len(), datagram.len());
        let start = usize::from(packet.header().fragment_offset()) * 8;
        let payload = start..start + packet.payload().len();
        assert!(payload.clone().zip(packet.payload()).all(|(at, byte)| *byte == at as u8), "the bytes are its own");
        Self { to, mark: mark(datagram), payload, mode: PathMode::System }
    }
}

impl Outlet for Script {
    fn send(&self, trains: &[Transmit<'_>], first_datagram: usize, mode: PathMode) -> Result<(), BatchError> {
        let step = self.steps.borrow_mut().pop_front();
        let (mut go, kind) = step.unwrap_or((usize::MAX, SendErrorKind::WouldBlock));
        for (transmit, train) in trains.iter().enumerate() {
            let first = if transmit == 0 { first_datagram } else { 0 };
            let datagrams = train.segments().count();
            for (segment, datagram) in train.segments().enumerate().skip(first) {
                let fails = |kind, datagrams| Err(BatchError { transmit, segment, datagrams, kind });
                let told = self.told.get().filter(|_| mode == PathMode::System).unwrap_or(u16::MAX);
                if datagram.len() > usize::from(self.mtu.get().min(told)) {
                    return fails(SendErrorKind::TooLong, datagrams - segment);
                }
                if go == 0 {
                    return fails(kind, if self.as_trains { datagrams - segment } else { 1 });
                }
                go -= 1;
                self.sent.borrow_mut().push(Sent { mode, ..Sent::new(train.destination, datagram) });
            }
        }
        Ok(())
    }

    fn system_path(&self, _destination: SocketAddr, _flow: u16, _state: &mut State, _now: Instant) -> SystemPath {
        let outer = |mtu: u16| u32::from(mtu) + 28;
        SystemPath {
            configured: Some(outer(self.mtu.get())),
            learned: self.told.get().map(outer),
            has_reports: self.has_reports,
        }
    }

    fn refuse(
        &self,
        packet: &mut [u8],
        _way: Way,
        mtu: u16,
        state: &mut State,
        _now: Instant,
    ) -> Result<Option<Fragmenter>, WorkerError> {
        let parsed = Ipv4Packet::parse(packet).unwrap();
        if parsed.header().dont_fragment() {
            self.refused.borrow_mut().push(mark(packet));
            state.counters.encap.answer();
            return Ok(None);
        }
        let fragmenter = Fragmenter::new(parsed.header(), mtu);
        if fragmenter.is_none() {
            state.counters.encap.discard(DropReason::NotFragmented);
        }
        Ok(fragmenter)
    }

    fn gone(&self) -> WorkerError {
        WorkerError::SocketClosed { local: ([127, 0, 0, 1], 0).into() }
    }
}

fn way(peer: u8) -> Way {
    Way { destination: ([10, 168, 0, peer], 8285).into(), ecn: Ecn::NotEct, flow: 0 }
}

const DF: u16 = 0x4000;

/// Writes a packet over all of a datagram, its payload counting up.
fn write(datagram: &mut [u8], mark: u32, fragment: u16) {
    let len = datagram.len() as u16;
    let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 100, 96, 1, 2, 100, 96, 2, 3];
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[4..6].copy_from_slice(&(mark as u16).to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    let sum = checksum::checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    datagram[..20].copy_from_slice(&header);
    let start = usize::from(fragment & 0x1fff) * 8;
    for (at, byte) in (start..).zip(&mut datagram[20..]) {
        *byte = at as u8;
    }
}

/// Puts a packet of so many datagrams in, as far as there is room. Returns how many went in.
fn put(sender: &mut Sender, state: &mut State, peer: u8, number: u32, datagrams: u32, len: usize) -> u32 {
    put_with(DF, sender, state, peer, number, datagrams, len)
}

fn put_with(
    fragment: u16,
    sender: &mut Sender,
    state: &mut State,
    peer: u8,
    number: u32,
    datagrams: u32,
    len: usize,
) -> u32 {
    state.counters.encap.receive();
    for index in 0..datagrams {
        let Some(room) = sender.trains.push(&way(peer), len, index + 1 == datagrams) else { return index };
        write(room, number << 8 | index, fragment);
    }
    datagrams
}

fn script(steps: &[(usize, SendErrorKind)]) -> Script {
    let script = Script { steps: RefCell::new(steps.iter().copied().collect()), ..Script::default() };
    script.mtu.set(1472);
    script
}

fn marks(script: &Script) -> Vec<u32> {
    script.sent.borrow().iter().map(|sent| sent.mark).collect()
}

/// Fault 27: the position is kept, nothing goes twice, and after a second all is given up and counted.
#[test]
fn fault_27_a_full_socket_is_waited_for() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put(&mut sender, &mut state, 3, 1, 5, 100);
    put(&mut sender, &mut state, 4, 2, 1, 100);
    let socket = script(&[(3, SendErrorKind::WouldBlock), (1, SendErrorKind::WouldBlock)]);
    sender.flush(&socket, &mut state, now).unwrap();
    let held = *sender.held().unwrap();
    assert_eq!((held.retry_at, held.until), (None, now + HELD_FOR));
    assert_eq!(held.wake_at(), now + TRY_AFTER, "there may be room long before the kernel says so");
    assert_eq!((state.counters.encap.held(), state.counters.encap.forwarded()), (2, 0));
    assert!(!sender.has_to_wait(now), "whoever waits for the socket to be writable may come at any time");
    let later = now + HELD_FOR / 2;
    sender.flush(&socket, &mut state, later).unwrap();
    assert_eq!(sender.held().unwrap().until, later + HELD_FOR, "something went, so it is a new wait");
    sender.flush(&socket, &mut state, later).unwrap();
    assert!(sender.held().is_none() && sender.trains.is_empty());
    assert_eq!(marks(&socket), [0x100, 0x101, 0x102, 0x103, 0x104, 0x200]);
    assert_eq!(state.counters.encap.forwarded(), 2);
}

#[test]
fn fault_27_what_waited_for_too_long_is_counted() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put(&mut sender, &mut state, 3, 1, 5, 100);
    put(&mut sender, &mut state, 4, 2, 1, 100);
    let socket = script(&[(0, SendErrorKind::WouldBlock); 3]);
    sender.flush(&socket, &mut state, now).unwrap();
    sender.flush(&socket, &mut state, now + HELD_FOR - Duration::from_millis(1)).unwrap();
    assert_eq!(state.counters.encap.held(), 2);
    sender.flush(&socket, &mut state, now + HELD_FOR).unwrap();
    assert_eq!(state.counters.encap.dropped(DropReason::SendBufferFull), 2);
    assert!(sender.held().is_none() && sender.trains.is_empty() && state.counters.encap.is_conserved());
}

/// Fault 28: ENOBUFS is tried again after a wait that doubles, and a few times only; the other trains then go.
#[test]
fn fault_28_no_buffers_is_backed_off_from() {
    let (mut sender, mut state, mut now) = (Sender::new(), State::new(), Instant::now());
    put(&mut sender, &mut state, 3, 1, 2, 100);
    put(&mut sender, &mut state, 4, 2, 1, 100);
    let mut socket = script(&[(0, SendErrorKind::NoBuffers); 1 + NO_BUFFERS_RETRIES as usize]);
    socket.as_trains = true;
    for retry in 0..NO_BUFFERS_RETRIES {
        sender.flush(&socket, &mut state, now).unwrap();
        let at = sender.held().unwrap().retry_at.unwrap();
        assert_eq!(at, now + NO_BUFFERS_WAIT * 2u32.pow(retry));
        assert!(sender.has_to_wait(at - Duration::from_micros(1)) && !sender.has_to_wait(at));
        now = at;
    }
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!(state.counters.encap.dropped(DropReason::SendNoBuffers), 1);
    assert_eq!((marks(&socket), state.counters.encap.forwarded()), (Vec::from([0x200]), 1));
}

/// Faults 31 and 32: an error costs the datagrams it is about, and no others.
#[test]
fn fault_32_an_error_belongs_to_one_message() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    for (number, peer) in [(1, 3), (2, 3), (3, 3), (4, 4)] {
        put(&mut sender, &mut state, peer, number, 1, 100);
    }
    let socket = script(&[(1, SendErrorKind::Forbidden)]);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!(marks(&socket), [0x100, 0x300, 0x400]);
    assert_eq!(state.counters.encap.dropped(DropReason::SendForbidden), 1);
    assert_eq!(state.send_errors, BTreeMap::from([(way(3).destination.ip(), 1)]));
}

/// Fault 34.
#[test]
fn fault_34_a_closed_socket_is_the_end() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put(&mut sender, &mut state, 3, 1, 1, 100);
    assert!(sender.flush(&script(&[(0, SendErrorKind::Closed)]), &mut state, now).is_err());
    assert!(state.counters.encap.is_conserved());
}

/// Fault 29: of a train on a path that became narrower, the packets that are too long are answered once each, and the others
/// go; and the next ones do not even try.
#[test]
fn fault_29_too_long_concerns_the_packets_that_are() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put(&mut sender, &mut state, 3, 1, 3, 1400);
    put(&mut sender, &mut state, 3, 2, 1, 1400);
    put(&mut sender, &mut state, 3, 3, 1, 900);
    put(&mut sender, &mut state, 4, 4, 1, 1400);
    let socket = script(&[]);
    socket.mtu.set(1000);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!((marks(&socket), socket.refused.take()), (Vec::from([0x300]), Vec::from([0x100, 0x200, 0x400])));
    assert_eq!(state.counters.stats.path_mtu_lowered, 2);
    assert_eq!((state.counters.encap.answered(), state.counters.encap.forwarded()), (3, 1));
    // Narrower again, where a packet was thought to fit.
    put(&mut sender, &mut state, 3, 5, 1, 1200);
    put(&mut sender, &mut state, 3, 6, 1, 900);
    put(&mut sender, &mut state, 3, 7, 1, 100);
    socket.mtu.set(800);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!((marks(&socket), socket.refused.take()), (Vec::from([0x300, 0x700]), Vec::from([0x500, 0x600])));
    assert!(state.counters.encap.is_conserved() && sender.trains.is_empty());
}

/// Fault 52: the kernel was told of a narrow path, and nobody verified it. The datagrams go at once, in another mode; those of a
/// peer that it was told nothing of go as ever.
#[test]
fn fault_52_what_only_the_kernel_believes_is_overruled() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    let socket = Script { has_reports: true, told: Cell::new(Some(524)), ..script(&[]) };
    socket.mtu.set(1472);
    put(&mut sender, &mut state, 4, 1, 1, 500);
    put(&mut sender, &mut state, 3, 2, 3, 1400);
    put(&mut sender, &mut state, 4, 3, 1, 500);
    put(&mut sender, &mut state, 3, 4, 1, 1472);
    sender.flush(&socket, &mut state, now).unwrap();
    let modes: Vec<_> = socket.sent.take().iter().map(|sent| (sent.mark, sent.mode)).collect();
    let (system, probe) = (PathMode::System, PathMode::Probe);
    let three = [(0x200, probe), (0x201, probe), (0x202, probe)];
    assert_eq!(modes, [&[(0x100, system), (0x300, system)][..], &three, &[(0x400, probe)]].concat());
    assert_eq!((state.counters.stats.path_mtu_lowered, state.counters.encap.forwarded()), (0, 4));
}

/// R54: without reports the kernel's word is one that nobody verified: 1280 bytes, and no DF where that is still too long.
#[test]
fn r54_without_reports_the_kernels_word_lowers_to_1280() {
    for (told, limit, mode) in [(1300, 1300_u16, PathMode::System), (524, 1252, PathMode::Fragment)] {
        let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
        let socket = Script { told: Cell::new(Some(told)), ..script(&[]) };
        socket.mtu.set(1472);
        put(&mut sender, &mut state, 3, 1, 1, usize::from(limit) + 1);
        put(&mut sender, &mut state, 3, 2, 1, usize::from(limit));
        sender.flush(&socket, &mut state, now).unwrap();
        assert_eq!(socket.refused.take(), [0x100], "{told}");
        assert_eq!(socket.sent.take().iter().map(|sent| (sent.mark, sent.mode)).collect::<Vec<_>>(), [(0x200, mode)]);
        assert_eq!(state.counters.stats.path_mtu_lowered, 1);
    }
}

/// Fault 38: of what is held when the path becomes narrower, nothing is lost without a word and nothing is cut.
#[test]
fn fault_38_what_waits_while_the_path_shrinks_is_answered_or_sent_whole() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    put(&mut sender, &mut state, 3, 1, 1, 1400);
    put(&mut sender, &mut state, 3, 2, 3, 900);
    put(&mut sender, &mut state, 4, 3, 1, 1400);
    let socket = script(&[(0, SendErrorKind::WouldBlock)]);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!(state.counters.encap.held(), 3);
    socket.mtu.set(1000);
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!((marks(&socket), socket.refused.take()), (Vec::from([0x200, 0x201, 0x202]), Vec::from([0x100, 0x300])));
    assert_eq!((state.counters.encap.answered(), state.counters.encap.forwarded()), (2, 1));
    assert!(state.counters.encap.is_conserved() && sender.trains.is_empty());
}

/// A full socket in the middle of that is waited for as ever.
#[test]
fn fault_27_also_on_a_narrow_path() {
    let (mut sender, mut state, now) = (Sender::new(), State::new(), Instant::now());
    let socket = script(&[(9, SendErrorKind::Refused), (0, SendErrorKind::WouldBlock)]);
    socket.mtu.set(1000);
    put(&mut sender, &mut state, 3, 1, 1, 1400);
    put(&mut sender, &mut state, 3, 2, 1, 900);
    sender.flush(&socket, &mut state, now).unwrap();
    assert!(sender.held().is_some());
    assert_eq!((state.counters.encap.held(), state.counters.encap.answered()), (1, 1));
    sender.flush(&socket, &mut state, now).unwrap();
    assert_eq!((marks(&socket), state.counters.encap.forwarded()), (Vec::from([0x200]), 1));
}

fn kind() -> impl Strategy<Value = SendErrorKind> {
    use SendErrorKind::{Forbidden, NoBuffers, Other, Refused, TooLong, Unreachable, WouldBlock};
    proptest::sample::select(alloc::vec![WouldBlock, NoBuffers, TooLong, Refused, Unreachable, Forbidden, Other(5)])
}

/// A packet: its peer, how many datagrams of which length, and its fragment field.
fn packet() -> impl Strategy<Value = (u8, u32, usize, u16)> {
    let len = proptest::sample::select(alloc::vec![64usize, 900, 1400]);
    let fragment = proptest::sample::select(alloc::vec![DF, 0, 0, 0x2000 | 7]);
    (1..4u8, 1..70u32, len, fragment)
}

proptest! {
    /// Whatever happens: every packet is in exactly one counter at every moment (R67), has been forwarded only if every byte
    /// of its datagrams went, once, and the datagrams of a peer, and their fragments, went in order.
    #[test]
    fn no_error_loses_count(
        packets in proptest::collection::vec(packet(), 1..12),
        steps in proptest::collection::vec((0..90usize, kind()), 0..40),
        as_trains: bool,
        mtus in proptest::collection::vec(proptest::sample::select(alloc::vec![1472u16, 1472, 1000, 600]), 1..12),
    ) {
        let (mut sender, mut state, mut now) = (Sender::new(), State::new(), Instant::now());
        let mut socket = script(&steps);
        socket.as_trains = as_trains;
        // It only ever becomes narrower, as far as anybody is told.
        let narrow = |to: usize| socket.mtu.set(socket.mtu.get().min(mtus[to % mtus.len()]));
        for (number, (peer, datagrams, len, fragment)) in (1..).zip(&packets) {
            narrow(number as usize);
            state.counters.encap.receive();
            let mut index = 0;
            while index < *datagrams {
                match sender.trains.push(&way(*peer), *len, index + 1 == *datagrams) {
                    Some(room) => {
                        write(room, number << 8 | index, *fragment);
                        index += 1;
                    }
                    None => {
                        now += Duration::from_millis(300);
                        sender.flush(&socket, &mut state, now).unwrap();
                        prop_assert!(state.counters.encap.is_conserved());
                        if sender.take_lost_unfinished() {
                            break;
                        }
                    }
                }
            }
            if number % 3 == 0 {
                sender.flush(&socket, &mut state, now).unwrap();
                prop_assert!(state.counters.encap.is_conserved());
                prop_assert!(!sender.take_lost_unfinished(), "nothing is unfinished");
            }
        }
        for turn in 0..100 {
            narrow(turn);
            now += Duration::from_millis(300);
            sender.flush(&socket, &mut state, now).unwrap();
        }
        prop_assert!(sender.trains.is_empty() && sender.held().is_none());
        let flow = &state.counters.encap;
        prop_assert!(flow.is_conserved() && flow.held() == 0 && flow.received() == packets.len() as u64);
        // How far each datagram has gone; its pieces join without a gap, and nothing is in two of them.
        let mut gone = BTreeMap::new();
        for peer in 1..4 {
            let mut last = 0;
            for sent in socket.sent.borrow().iter().filter(|sent| sent.to == way(peer).destination) {
                prop_assert!(sent.mark >= last, "in order");
                last = sent.mark;
                let (_, _, _, fragment) = packets[(sent.mark >> 8) as usize - 1];
                let so_far = gone.entry(sent.mark).or_insert(usize::from(fragment & 0x1fff) * 8);
                prop_assert_eq!(sent.payload.start, *so_far, "{:?}", sent);
                *so_far = sent.payload.end;
            }
        }
        let is_whole = |(number, (_, datagrams, len, fragment)): &(u32, &(u8, u32, usize, u16))| {
            let end = usize::from(fragment & 0x1fff) * 8 + len - 20;
            (0..*datagrams).all(|index| gone.get(&(number << 8 | index)) == Some(&end))
        };
        prop_assert_eq!((1..).zip(&packets).filter(is_whole).count() as u64, flow.forwarded());
    }
}
