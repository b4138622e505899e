//! How transmits are cut into messages, and what each error of the system call means for the rest.

use core::ffi::c_int;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroUsize;
use std::io;

use super::error::{BatchError, SendErrorKind};
use super::fallback::Fallbacks;
use super::lanes::{Exit, LANES_MAX, Moved};
use crate::Transmit;
use crate::sys::feature::{Disabled, Feature, is_missing};
use crate::sys::syscall::{MESSAGES, Message};
use crate::transmit::{BATCH_BYTES_MAX, SEGMENTS_MAX};
use crate::wire::Ecn;

/// What does not change while transmits are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'f> {
    /// Whether the kernel can cut trains.
    pub(super) gso: bool,
    /// How many sockets there are for flows to choose from; with none all is sent by the socket 0.
    pub(super) flows: usize,
    /// The peers that send by others than these.
    pub(super) moved: &'f Moved,
    pub(super) fallbacks: &'f Fallbacks,
    pub(super) disabled: &'f Disabled,
}

/// A datagram in a list of transmits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    transmit: usize,
    segment: usize,
}

/// Sends what is in `transmits` from the datagram `first_segment` of the first one on. `send` sends the first of the messages
/// it is given, of which there is at least one, by the socket of that number, and returns how many it sent.
pub(super) fn send_all(
    send: impl Fn(usize, &mut Messages<'_, '_>) -> io::Result<usize>,
    plan: Plan<'_>,
    transmits: &[Transmit<'_>],
    first_segment: usize,
) -> Result<(), BatchError> {
    let mut place = Place { transmit: 0, segment: first_segment };
    // Where an error was passed over that may concern a packet sent earlier.
    let mut passed_over = None;
    // A place from which on a train failed, and its datagrams are tried one by one.
    let mut one_by_one = None;
    // A place where a message with an ECN field failed, as a train or as a single datagram, and is tried once more, then without.
    let (mut once_more, mut unmarked) = (None, None);
    loop {
        let mut counts = [0; MESSAGES];
        let attempt = (place, one_by_one == Some(place));
        let marked = unmarked != Some(attempt) && !plan.disabled.has(Feature::SendEcn);
        let most = if unmarked == Some(attempt) || plan.disabled.has(Feature::SendMany) { 1 } else { MESSAGES };
        let trainless = if attempt.1 { destination_at(transmits, place) } else { None };
        let room = counts.get_mut(..most).unwrap_or_default().iter_mut();
        let mut messages =
            Messages { plan, transmits, place, trainless, marked, socket: None, messages: 0, bytes: 0, counts: room };
        let Some(first) = messages.peek() else { return Ok(()) };
        place = messages.place;
        let socket = plan.socket_of(first.transmit);
        let sent = send(socket, &mut messages);
        let is_alone = messages.counts.len() + 1 == most;
        let error = match sent {
            // Not a thing the kernel does with at least one message; it must not become a loop without end.
            Ok(0) => libc::EIO,
            Ok(sent) => {
                if one_by_one == Some(place) {
                    plan.fallbacks.insert(first.transmit.destination.ip());
                }
                if unmarked == Some(attempt) {
                    plan.disabled.add(Feature::SendEcn);
                }
                for count in counts.iter().take(sent) {
                    place = place.normalized(transmits);
                    place.segment += usize::from(*count);
                }
                continue;
            }
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        match error {
            libc::EINTR => {}
            // EPERM is a firewall's word too, but not on a call without messages.
            libc::ENOSYS | libc::EPERM if !is_alone && (error == libc::ENOSYS || is_barred(&send, plan, socket)) => {
                plan.disabled.add(Feature::SendMany);
            }
            // EINVAL and EIO have many reasons. The same message once more, then without its ECN field, and then the datagrams one
            // by one, tell whether it was the control messages or passed by.
            libc::EINVAL if marked && first.transmit.ecn != Ecn::NotEct => match once_more {
                Some(failed) if failed == attempt => unmarked = Some(attempt),
                _ => once_more = Some(attempt),
            },
            libc::EINVAL | libc::EIO if first.segments > 1 => one_by_one = Some(place),
            // The kernel reports it a single time, to whoever sends next, so it is tried once more at once.
            errno if tells_of_an_earlier_packet(errno) && passed_over != Some(place) => passed_over = Some(place),
            errno => {
                let kind = SendErrorKind::from_errno(errno);
                let is_main = plan.flows == 0 && socket == 0;
                let is_path = kind == SendErrorKind::WouldBlock && !is_main;
                let kind = if is_path { SendErrorKind::PathFull } else { kind };
                let Place { transmit, segment } = place;
                return Err(BatchError { transmit, segment, datagrams: first.segments, kind });
            }
        }
    }
}

/// Whether the system call for several messages fails even without any.
#[cold]
fn is_barred(send: &impl Fn(usize, &mut Messages<'_, '_>) -> io::Result<usize>, plan: Plan<'_>, socket: usize) -> bool {
    let place = Place { transmit: 0, segment: 0 };
    let counts = [].iter_mut();
    let (transmits, trainless, marked) = (&[], None, true);
    let mut none = Messages { plan, transmits, place, trainless, marked, socket: None, messages: 0, bytes: 0, counts };
    send(socket, &mut none).is_err_and(|error| is_missing(&error))
}

/// Whether an ICMP error may be behind it (`icmp_err_convert` in the kernel's net/ipv4/icmp.c, `icmpv6_err_convert` in
/// net/ipv6/icmp.c), in contrast to EMSGSIZE, which on sending concerns the packet at hand.
pub(super) fn tells_of_an_earlier_packet(errno: c_int) -> bool {
    matches!(
        errno,
        libc::ECONNREFUSED
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EPROTO
    )
}

impl Plan<'_> {
    /// The number of the socket that sends: those that peers share, then those of each lane, then these of the first again, for
    /// peers that are limited.
    #[inline]
    pub(super) fn socket_of(&self, transmit: &Transmit<'_>) -> usize {
        let port = self.port_of(transmit.flow);
        if self.moved.is_empty() {
            return port;
        }
        let row = match self.moved.exit_of(transmit.destination) {
            None => 0,
            Some(Exit::Lane(lane)) => 1 + usize::from(lane),
            Some(Exit::Limited) => 1 + LANES_MAX,
        };
        row * self.flows.max(1) + port
    }

    /// The number of the socket that a flow's port belongs to.
    #[inline]
    pub(super) fn port_of(&self, flow: u16) -> usize {
        usize::from(flow).checked_rem(self.flows).unwrap_or(0)
    }
}

impl Place {
    /// The same, at the begin of the next transmit if it is at the end of one.
    #[inline]
    fn normalized(self, transmits: &[Transmit<'_>]) -> Self {
        let mut place = self;
        while let Some(transmit) = transmits.get(place.transmit) {
            let begin = place.segment.saturating_mul(segment_size(transmit));
            // An empty transmit is one datagram.
            if begin < transmit.contents.len() || place.segment == 0 {
                break;
            }
            place = Self { transmit: place.transmit + 1, segment: 0 };
        }
        place
    }
}

/// How many datagrams of a size the kernel takes as a train. Linux 4.18, 4.19 and some 5.x refuse a train that is longer than
/// `UDP_MAX_SEGMENTS` times its segment size together with the headers, IPv6 and UDP at most (`udp_send_skb` in net/ipv4/udp.c).
#[inline]
fn segments_max(size: usize) -> usize {
    const UDP_MAX_SEGMENTS: usize = 64;
    const HEADERS: usize = 48;
    if size >= HEADERS { SEGMENTS_MAX } else { UDP_MAX_SEGMENTS - HEADERS.div_ceil(size.max(1)) }
}

#[cold]
fn destination_at(transmits: &[Transmit<'_>], place: Place) -> Option<IpAddr> {
    transmits.get(place.transmit).map(|transmit| transmit.destination.ip())
}

#[inline]
fn segment_size(transmit: &Transmit<'_>) -> usize {
    transmit.segment_size.map_or(transmit.contents.len().max(1), NonZeroUsize::get)
}

/// The messages to be sent by one socket, as many as one system call takes.
///
/// It notes how many datagrams each one is made of: what it would be made of when asked again may have changed.
#[derive(Debug)]
pub(super) struct Messages<'m, 'c> {
    plan: Plan<'m>,
    transmits: &'m [Transmit<'m>],
    place: Place,
    /// Where nothing goes in trains, beside the places that are remembered.
    trainless: Option<IpAddr>,
    /// Whether messages carry an ECN field.
    marked: bool,
    /// The socket of the first message; the messages end before another one's.
    socket: Option<usize>,
    messages: usize,
    /// How many bytes they are.
    bytes: usize,
    counts: core::slice::IterMut<'c, u8>,
}

/// The next message.
#[derive(Clone, Copy, Debug)]
struct Next<'m> {
    transmit: &'m Transmit<'m>,
    payload: &'m [u8],
    /// How many datagrams.
    segments: usize,
    size: usize,
}

impl<'m> Messages<'m, '_> {
    /// The place of the next message.
    #[inline]
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// Returns how many bytes the first `count` of the messages from `start` on are. `count` is how many the kernel accepted.
    #[inline]
    pub(super) fn bytes_accepted(&self, start: Place, count: usize) -> usize {
        if self.messages == count {
            self.bytes
        } else {
            self.accepted(start, count).fold(0, |sum, (_, bytes)| sum + bytes)
        }
    }

    /// Returns the destination and bytes of each of the first `count` messages from `start` on.
    #[cold]
    pub(super) fn accepted(&self, start: Place, count: usize) -> impl Iterator<Item = (SocketAddr, usize)> {
        let mut messages = self.from(start);
        (0..count).map_while(move |_| {
            let next = messages.peek()?;
            messages.place.segment += next.segments;
            Some((next.transmit.destination, next.payload.len()))
        })
    }

    /// Returns the destination of the message at `start`.
    #[cold]
    pub(super) fn destination(&self, start: Place) -> Option<SocketAddr> {
        self.from(start).peek().map(|next| next.transmit.destination)
    }

    fn from(&self, place: Place) -> Messages<'m, 'static> {
        let Self { plan, transmits, trainless, marked, .. } = *self;
        let counts = [].iter_mut();
        Messages { plan, transmits, place, trainless, marked, socket: None, messages: 0, bytes: 0, counts }
    }

    #[inline]
    fn peek(&mut self) -> Option<Next<'m>> {
        self.place = self.place.normalized(self.transmits);
        let transmit = self.transmits.get(self.place.transmit)?;
        let size = segment_size(transmit);
        let rest = transmit.contents.get(self.place.segment * size..)?;
        if rest.len() <= size {
            return Some(Next { transmit, payload: rest, segments: 1, size });
        }
        let peer = transmit.destination.ip();
        let most = if !self.plan.gso || self.trainless == Some(peer) || self.plan.fallbacks.contains(peer) {
            1
        } else {
            (BATCH_BYTES_MAX / size).clamp(1, segments_max(size))
        };
        let payload = rest.get(..most * size).unwrap_or(rest);
        Some(Next { transmit, payload, segments: payload.len().div_ceil(size), size })
    }
}

impl<'m> Iterator for Messages<'m, '_> {
    type Item = Message<'m>;

    #[inline]
    fn next(&mut self) -> Option<Message<'m>> {
        let next = self.peek()?;
        let socket = self.plan.socket_of(next.transmit);
        if *self.socket.get_or_insert(socket) != socket {
            return None;
        }
        // At most `SEGMENTS_MAX`.
        *self.counts.next()? = next.segments as u8;
        self.place.segment += next.segments;
        self.messages += 1;
        self.bytes += next.payload.len();
        // A single datagram says nothing about segments: some drivers fail with EIO otherwise.
        let segment = if next.segments > 1 { u16::try_from(next.size).ok() } else { None };
        let ecn = if self.marked { next.transmit.ecn } else { Ecn::NotEct };
        Some(Message { destination: next.transmit.destination, payload: next.payload, segment, ecn })
    }
}

#[cfg(test)]
mod tests;
