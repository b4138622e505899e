//! A scripted kernel in place of the system calls, for tests of the adapters and of the worker.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test may fail by panicking")]

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::c_int;
use core::net::{IpAddr, SocketAddr};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use super::kernel::{Kernel, SystemCalls};
use super::route_query::{FlowKey, RouteMtu, RouteSocket};
use super::syscall::{MESSAGES, Message, SendBacklog, Slot};
use crate::offload::VNET_HEADER_LEN;
use crate::wire::Ecn;

/// The system calls of an adapter under test: those of the kernel, or of a script.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls(Option<Script>);

/// A kind of system call, with all its variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Open,
    PathMtu,
    Read,
    Receive,
    Route,
    Send,
    SendBacklog,
    Socket,
    Write,
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The call does all that it is asked for, within the script's other rules.
    All,
    /// The same for at most this many messages.
    AtMost(usize),
    /// The call fails with this error number.
    Error(c_int),
}

/// A message that arrives at the socket.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) from: SocketAddr,
    pub(crate) bytes: Vec<u8>,
    /// The segment size that the kernel reports.
    pub(crate) segment: Option<c_int>,
    /// `MSG_*`. The script adds `MSG_TRUNC` when the bytes do not fit.
    pub(crate) flags: c_int,
}

/// A message that the socket took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The descriptor of the sending socket.
    pub(crate) socket: RawFd,
    pub(crate) to: SocketAddr,
    pub(crate) datagrams: Vec<Vec<u8>>,
    pub(crate) ecn: Ecn,
}

/// A script, and a record of the calls. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    answers: BTreeMap<Call, VecDeque<Answer>>,
    calls: BTreeMap<Call, usize>,
    /// The packets that reads of the device return, with its header if there is one.
    packets: VecDeque<Vec<u8>>,
    arrivals: VecDeque<Arrival>,
    /// True if the last packet and the last message repeat for ever.
    endless: bool,
    /// GSO batches to these addresses fail with this error number.
    no_gso_batches: BTreeMap<IpAddr, c_int>,
    /// The path MTUs to these addresses, in bytes of outer packet, and the error number of a GSO batch of longer
    /// datagrams.
    paths: BTreeMap<IpAddr, (u32, c_int)>,
    /// The errors of calls for several messages, and of messages with an ECN field.
    no_batches: Option<c_int>,
    no_marks: Option<c_int>,
    /// The error of writes of GSO packets.
    no_gso_packets: Option<c_int>,
    /// The peers behind devices that free nothing that is sent, and the bytes charged to each descriptor for each peer.
    slow: BTreeSet<SocketAddr>,
    charged: BTreeMap<(RawFd, SocketAddr), usize>,
    /// The send buffer of each socket. 0: there is no limit.
    send_buffer: usize,
    /// The messages that each call accepted.
    sent: Vec<Vec<Sent>>,
    written: Vec<Vec<u8>>,
}

impl Script {
    /// Adds the answers of the next calls of this kind. A call without an answer does all that it is asked for.
    pub(crate) fn then(&self, call: Call, answers: impl IntoIterator<Item = Answer>) {
        self.state().answers.entry(call).or_default().extend(answers);
    }

    /// Removes the answers of the next calls of this kind.
    pub(crate) fn forget(&self, call: Call) {
        self.state().answers.remove(&call);
    }

    /// Adds a packet for reads of the device, with its header if there is one.
    pub(crate) fn give_packet(&self, bytes: &[u8]) {
        self.state().packets.push_back(bytes.to_vec());
    }

    pub(crate) fn give_message(&self, arrival: Arrival) {
        self.state().arrivals.push_back(arrival);
    }

    /// Adds a message of a single datagram.
    pub(crate) fn give_datagram(&self, from: SocketAddr, bytes: &[u8]) {
        self.give_message(Arrival { from, bytes: bytes.to_vec(), segment: None, flags: 0 });
    }

    /// Repeats the last packet and the last message for ever.
    pub(crate) fn never_end(&self) {
        self.state().endless = true;
    }

    pub(crate) fn refuse_gso_batches(&self, to: IpAddr, errno: c_int) {
        self.state().no_gso_batches.insert(to, errno);
    }

    /// Sets the path MTU to an address, in bytes of outer packet. A longer datagram fails with EMSGSIZE. A GSO batch of
    /// such datagrams fails with `batch_errno`.
    pub(crate) fn narrow(&self, to: IpAddr, mtu: u32, batch_errno: c_int) {
        self.state().paths.insert(to, (mtu, batch_errno));
    }

    /// Sets the size of each socket's send buffer.
    pub(crate) fn limit_send_buffers(&self, bytes: usize) {
        self.state().send_buffer = bytes;
    }

    /// Keeps the bytes that are sent to that peer charged to the socket that sent them.
    pub(crate) fn slow_down(&self, to: SocketAddr) {
        self.state().slow.insert(to);
    }

    /// Frees up to `bytes` that were sent to that peer.
    pub(crate) fn free(&self, to: SocketAddr, bytes: usize) {
        let mut left = bytes;
        for ((_, peer), charged) in &mut self.state().charged {
            if *peer == to {
                let freed = left.min(*charged);
                *charged -= freed;
                left -= freed;
            }
        }
    }

    /// Returns the bytes that are charged to a descriptor.
    pub(crate) fn charged(&self, socket: RawFd) -> usize {
        self.state().charged(socket)
    }

    /// Makes `sendmmsg` and `recvmmsg` fail.
    pub(crate) fn refuse_batches(&self, errno: c_int) {
        self.state().no_batches = Some(errno);
    }

    /// Makes messages with an `IP_TOS` control message fail.
    pub(crate) fn refuse_marks(&self, errno: c_int) {
        self.state().no_marks = Some(errno);
    }

    pub(crate) fn refuse_gso_packets(&self, errno: c_int) {
        self.state().no_gso_packets = Some(errno);
    }

    pub(crate) fn accept_gso_packets(&self) {
        self.state().no_gso_packets = None;
    }

    /// Returns the number of calls of this kind, failed ones included.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.state().calls.get(&call).copied().unwrap_or_default()
    }

    /// Returns whether all packets and messages were taken.
    pub(crate) fn is_given(&self) -> bool {
        let state = self.state();
        state.packets.is_empty() && state.arrivals.is_empty()
    }

    /// Returns whether all packets, messages and answers were taken.
    pub(crate) fn is_over(&self) -> bool {
        self.is_given() && self.state().answers.values().all(VecDeque::is_empty)
    }

    /// Returns the messages that each call accepted since the last call of this function.
    pub(crate) fn take_sends(&self) -> Vec<Vec<Sent>> {
        core::mem::take(&mut self.state().sent)
    }

    /// Returns all datagrams that were accepted since the last call of this function, in order.
    pub(crate) fn take_datagrams(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        let messages = self.take_sends().into_iter().flatten();
        messages.flat_map(|sent| sent.datagrams.into_iter().map(move |datagram| (sent.to, datagram))).collect()
    }

    /// Returns all writes since the last call of this function, with the header if the device has one.
    pub(crate) fn take_written(&self) -> Vec<Vec<u8>> {
        core::mem::take(&mut self.state().written)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl From<&Script> for Calls {
    fn from(script: &Script) -> Self {
        Self(Some(script.clone()))
    }
}

impl State {
    /// Returns the next answer of this kind. An answer that is an error is returned as `Err`.
    fn answer(&mut self, call: Call) -> io::Result<Answer> {
        *self.calls.entry(call).or_default() += 1;
        match self.answers.get_mut(&call).and_then(VecDeque::pop_front).unwrap_or(Answer::All) {
            Answer::Error(errno) => Err(io::Error::from_raw_os_error(errno)),
            answer @ (Answer::All | Answer::AtMost(_)) => Ok(answer),
        }
    }

    fn send(&mut self, socket: RawFd, messages: &[Message<'_>]) -> io::Result<usize> {
        assert!(messages.len() <= MESSAGES);
        if messages.len() != 1
            && let Some(errno) = self.no_batches
        {
            return Err(io::Error::from_raw_os_error(errno));
        }
        if messages.is_empty() {
            return Ok(0);
        }
        messages.iter().for_each(assert_sound);
        let mut most = match self.answer(Call::Send)? {
            Answer::AtMost(most) => most.min(messages.len()),
            Answer::All | Answer::Error(_) => messages.len(),
        };
        let failure = |(at, message)| self.refuses(message).map(|errno| (at, errno));
        match messages.iter().enumerate().find_map(failure) {
            Some((0, errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some((at, _)) => most = most.min(at),
            None => {}
        }
        for (at, message) in messages.iter().enumerate().take(most) {
            if self.is_full(socket) {
                if at == 0 {
                    return Err(io::Error::from_raw_os_error(libc::EAGAIN));
                }
                most = at;
                break;
            }
            if self.slow.contains(&message.destination) {
                *self.charged.entry((socket, message.destination)).or_default() += message.payload.len();
            }
        }
        self.sent.push(messages.iter().take(most).map(|message| Sent::new(socket, message)).collect());
        Ok(most)
    }

    fn charged(&self, socket: RawFd) -> usize {
        self.charged.iter().filter(|((charged, _), _)| *charged == socket).map(|(_, bytes)| bytes).sum()
    }

    fn is_full(&self, socket: RawFd) -> bool {
        self.send_buffer > 0 && self.charged(socket) >= self.send_buffer
    }

    fn path_mtu(&self, destination: SocketAddr) -> u32 {
        self.paths.get(&destination.ip()).map_or(1500, |(mtu, _)| *mtu)
    }

    fn refuses(&self, message: &Message<'_>) -> Option<c_int> {
        let peer = message.destination.ip();
        if let Some(errno) = self.no_marks.filter(|_| message.ecn != Ecn::NotEct) {
            return Some(errno);
        }
        if let (Some(_), Some(errno)) = (message.segment, self.no_gso_batches.get(&peer)) {
            return Some(*errno);
        }
        let (mtu, of_batch) = *self.paths.get(&peer)?;
        let longest = message.segment.map_or(message.payload.len(), usize::from);
        let errno = if message.segment.is_some() { of_batch } else { libc::EMSGSIZE };
        (longest + OUTER_HEADERS > mtu as usize).then_some(errno)
    }

    fn receive<'b>(&mut self, slots: &mut [Slot], buffers: impl Iterator<Item = &'b mut [u8]>) -> io::Result<usize> {
        if let Some(errno) = self.no_batches.filter(|_| slots.len() > 1) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let most = match self.answer(Call::Receive)? {
            Answer::AtMost(most) => most.min(slots.len()),
            Answer::All | Answer::Error(_) => slots.len(),
        };
        let mut count = 0;
        for (slot, buffer) in slots.iter_mut().take(most).zip(buffers) {
            let Some(arrival) = next(&mut self.arrivals, self.endless) else { break };
            let (len, fits) = (arrival.bytes.len(), arrival.bytes.len().min(buffer.len()));
            buffer[..fits].copy_from_slice(&arrival.bytes[..fits]);
            let cut = if fits < len { libc::MSG_TRUNC } else { 0 };
            *slot = Slot::scripted(arrival.from, len, arrival.segment, arrival.flags | cut);
            count += 1;
        }
        if count == 0 { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(count) }
    }

    fn read<'b>(&mut self, parts: impl Iterator<Item = &'b mut [u8]>) -> io::Result<usize> {
        self.answer(Call::Read)?;
        let packet = next(&mut self.packets, self.endless).ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))?;
        let mut left = &packet[..];
        for part in parts {
            let (now, later) = left.split_at(left.len().min(part.len()));
            part[..now.len()].copy_from_slice(now);
            left = later;
        }
        // A packet that does not fit is cut without an error.
        Ok(packet.len() - left.len())
    }

    fn write(&mut self, bytes: Vec<u8>, gso_type: u8) -> io::Result<usize> {
        self.answer(Call::Write)?;
        if let Some(errno) = self.no_gso_packets.filter(|_| gso_type != 0) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.written.push(bytes);
        Ok(self.written.last().map_or(0, Vec::len))
    }
}

/// The headers of IPv4 and UDP.
const OUTER_HEADERS: usize = 28;

/// Takes the next item. The last one stays if the script never ends.
fn next<T: Clone>(line: &mut VecDeque<T>, endless: bool) -> Option<T> {
    if endless && line.len() == 1 { line.front().cloned() } else { line.pop_front() }
}

/// Asserts the rules that every message must follow, whatever the kernel accepts.
fn assert_sound(message: &Message<'_>) {
    let segments = message.segment.map_or(1, |size| message.payload.len().div_ceil(usize::from(size)));
    assert_eq!(message.segment.is_some(), segments > 1, "no UDP_SEGMENT for a single datagram");
    assert!(segments == 1 || message.payload.len() <= 65_507);
    // Linux 4.18 includes the headers in its limit.
    let room = message.segment.map_or(usize::MAX, |size| usize::from(size) * 64);
    assert!(message.payload.len() + OUTER_HEADERS <= room, "an old kernel refuses this GSO batch");
}

impl Sent {
    fn new(socket: RawFd, message: &Message<'_>) -> Self {
        let size = message.segment.map_or(message.payload.len().max(1), usize::from);
        let empty = message.payload.is_empty().then(Vec::new);
        let datagrams = message.payload.chunks(size).map(<[u8]>::to_vec).chain(empty).collect();
        Self { socket, to: message.destination, datagrams, ecn: message.ecn }
    }
}

impl SystemCalls for Calls {
    fn open(&self, node: &Path) -> io::Result<File> {
        if let Some(script) = &self.0 {
            script.state().answer(Call::Open)?;
        }
        Kernel.open(node)
    }

    fn socket(&self, family_of: SocketAddr) -> io::Result<OwnedFd> {
        if let Some(script) = &self.0 {
            script.state().answer(Call::Socket)?;
        }
        Kernel.socket(family_of)
    }

    fn send<'m>(&self, socket: BorrowedFd<'_>, messages: impl Iterator<Item = Message<'m>>) -> io::Result<usize> {
        match &self.0 {
            None => Kernel.send(socket, messages),
            Some(script) => script.state().send(socket.as_raw_fd(), &messages.take(MESSAGES).collect::<Vec<_>>()),
        }
    }

    fn send_backlog(&self, socket: BorrowedFd<'_>) -> io::Result<SendBacklog> {
        let Some(script) = &self.0 else { return Kernel.send_backlog(socket) };
        let mut state = script.state();
        state.answer(Call::SendBacklog)?;
        let limit = if state.send_buffer > 0 { state.send_buffer } else { usize::MAX };
        Ok(SendBacklog { charged: state.charged(socket.as_raw_fd()), limit })
    }

    fn receive<'b, const N: usize>(
        &self,
        socket: BorrowedFd<'_>,
        slots: &mut [Slot],
        buffers: impl Iterator<Item = &'b mut [u8]>,
    ) -> io::Result<usize> {
        match &self.0 {
            None => Kernel.receive::<N>(socket, slots, buffers),
            Some(script) => {
                assert!(slots.len() <= N, "one call has at most {N} messages");
                script.state().receive(slots, buffers)
            }
        }
    }

    fn read(&self, device: &File, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            None => Kernel.read(device, buffer),
            Some(script) => script.state().read(core::iter::once(buffer)),
        }
    }

    fn read_parts(&self, device: &File, parts: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match &self.0 {
            None => Kernel.read_parts(device, parts),
            Some(script) => script.state().read(parts.iter_mut().map(|part| &mut **part)),
        }
    }

    fn write(&self, device: &File, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            None => Kernel.write(device, bytes),
            Some(script) => script.state().write(bytes.to_vec(), 0),
        }
    }

    fn write_parts(&self, device: &File, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.0 {
            None => Kernel.write_parts(device, parts),
            Some(script) => {
                let [header, _] = parts else { panic!("a header and a packet") };
                assert_eq!(header.len(), VNET_HEADER_LEN);
                script.state().write(parts.iter().flat_map(|part| part.iter().copied()).collect(), header[1])
            }
        }
    }

    fn path_mtu(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<u32> {
        let Some(script) = &self.0 else { return Kernel.path_mtu(source, destination) };
        let mut state = script.state();
        state.answer(Call::PathMtu)?;
        Ok(state.path_mtu(destination))
    }

    fn route_mtu(&self, socket: Option<&RouteSocket>, flow: &FlowKey) -> io::Result<RouteMtu> {
        let Some(script) = &self.0 else { return Kernel.route_mtu(socket, flow) };
        let mut state = script.state();
        state.answer(Call::Route)?;
        Ok(RouteMtu { configured: state.path_mtu(flow.destination), learned: None })
    }
}
