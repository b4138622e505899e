//! Division of transmits into messages, and the consequences of each error of the system call.

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

/// The values that stay the same while transmits are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan<'f> {
    /// Set if the kernel segments GSO batches.
    pub(super) gso: bool,
    /// The number of flow ports. With none, the socket 0 sends everything.
    pub(super) flows: usize,
    /// The peers whose datagrams do not simply go by the shared sockets.
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

/// Sends `transmits`, of the first one from the datagram `first_segment` on. `send` gets at least one message. It
/// sends the first messages it gets by the socket of a number, and returns how many it sent.
pub(super) fn send_all(
    send: impl Fn(usize, &mut Messages<'_, '_>) -> io::Result<usize>,
    plan: Plan<'_>,
    transmits: &[Transmit<'_>],
    first_segment: usize,
) -> Result<(), BatchError> {
    let mut place = Place { transmit: 0, segment: first_segment };
    // The place of an ignored error that may concern a packet sent earlier.
    let mut passed_over = None;
    // The place of a GSO batch that failed and whose datagrams are tried one by one.
    let mut unbatched = None;
    // The place of a message with an ECN field that failed. It is tried once more, and then without the ECN field.
    let (mut once_more, mut unmarked) = (None, None);
    loop {
        let mut counts = [0; MESSAGES];
        let attempt = (place, unbatched == Some(place));
        let marked = unmarked != Some(attempt) && !plan.disabled.has(Feature::SendEcn);
        let most = if unmarked == Some(attempt) || plan.disabled.has(Feature::SendMany) { 1 } else { MESSAGES };
        let unbatched_peer = if attempt.1 { destination_at(transmits, place) } else { None };
        let room = counts.get_mut(..most).unwrap_or_default().iter_mut();
        let mut messages = Messages {
            plan,
            transmits,
            place,
            unbatched_peer,
            marked,
            socket: None,
            messages: 0,
            bytes: 0,
            counts: room,
        };
        let Some(first) = messages.peek() else { return Ok(()) };
        place = messages.place;
        let socket = plan.socket_of(first.transmit);
        let sent = send(socket, &mut messages);
        let is_alone = messages.counts.len() + 1 == most;
        let error = match sent {
            // The kernel does not do that with at least one message. It must not become an endless loop.
            Ok(0) => libc::EIO,
            Ok(sent) => {
                if unbatched == Some(place) {
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
            // A firewall returns EPERM too, but not on a call without messages.
            libc::ENOSYS | libc::EPERM if !is_alone && (error == libc::ENOSYS || is_barred(&send, plan, socket)) => {
                plan.disabled.add(Feature::SendMany);
            }
            // EINVAL and EIO have many reasons. Sending the same message once more, then without its ECN field, and
            // then its datagrams one by one shows whether the control messages were the reason or the error has
            // passed.
            libc::EINVAL if marked && first.transmit.ecn != Ecn::NotEct => match once_more {
                Some(failed) if failed == attempt => unmarked = Some(attempt),
                _ => once_more = Some(attempt),
            },
            libc::EINVAL | libc::EIO if first.segments > 1 => unbatched = Some(place),
            // The kernel reports it once, to the next sender, so it is tried once more at once.
            errno if may_concern_earlier_packet(errno) && passed_over != Some(place) => passed_over = Some(place),
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

/// Returns `true` if the system call for several messages fails even without any.
#[cold]
fn is_barred(send: &impl Fn(usize, &mut Messages<'_, '_>) -> io::Result<usize>, plan: Plan<'_>, socket: usize) -> bool {
    let place = Place { transmit: 0, segment: 0 };
    let counts = [].iter_mut();
    let (transmits, unbatched_peer, marked) = (&[], None, true);
    let mut none =
        Messages { plan, transmits, place, unbatched_peer, marked, socket: None, messages: 0, bytes: 0, counts };
    send(socket, &mut none).is_err_and(|error| is_missing(&error))
}

/// Returns `true` if an ICMP error for an earlier packet may be the reason (`icmp_err_convert` in the kernel's
/// net/ipv4/icmp.c, `icmpv6_err_convert` in net/ipv6/icmp.c). EMSGSIZE on sending concerns the packet at hand.
pub(super) fn may_concern_earlier_packet(errno: c_int) -> bool {
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
    /// Returns the number of the socket that sends a transmit. First come the shared sockets, then the sockets of
    /// each lane. Last come the shared sockets once more, for limited peers.
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

    /// Returns the number of the shared socket of a flow.
    #[inline]
    pub(super) fn port_of(&self, flow: u16) -> usize {
        usize::from(flow).checked_rem(self.flows).unwrap_or(0)
    }
}

impl Place {
    /// Returns the same place, or the beginning of the next transmit at the end of one.
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

/// Returns the number of datagrams of a size that the kernel accepts as a GSO batch. Linux 4.18, 4.19 and some 5.x
/// refuse a batch longer than `UDP_MAX_SEGMENTS` times its segment size. They count the headers in, IPv6 and UDP at
/// most (`udp_send_skb` in net/ipv4/udp.c).
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

/// The messages for one socket, as many as one system call takes.
///
/// It stores the number of datagrams of each message, because that number may change when it is computed again.
#[derive(Debug)]
pub(super) struct Messages<'m, 'c> {
    plan: Plan<'m>,
    transmits: &'m [Transmit<'m>],
    place: Place,
    /// A destination without batches, beside those that are remembered.
    unbatched_peer: Option<IpAddr>,
    /// Set if messages carry an ECN field.
    marked: bool,
    /// The socket of the first message. The messages end before one for another socket.
    socket: Option<usize>,
    messages: usize,
    /// Their bytes.
    bytes: usize,
    counts: core::slice::IterMut<'c, u8>,
}

/// The next message.
#[derive(Clone, Copy, Debug)]
struct Next<'m> {
    transmit: &'m Transmit<'m>,
    payload: &'m [u8],
    /// The number of datagrams.
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
        let Self { plan, transmits, unbatched_peer, marked, .. } = *self;
        let counts = [].iter_mut();
        Messages { plan, transmits, place, unbatched_peer, marked, socket: None, messages: 0, bytes: 0, counts }
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
        let most = if !self.plan.gso || self.unbatched_peer == Some(peer) || self.plan.fallbacks.contains(peer) {
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
        // A single datagram has no segment size: some drivers fail with EIO otherwise.
        let segment = if next.segments > 1 { u16::try_from(next.size).ok() } else { None };
        let ecn = if self.marked { next.transmit.ecn } else { Ecn::NotEct };
        Some(Message { destination: next.transmit.destination, payload: next.payload, segment, ecn })
    }
}

#[cfg(test)]
mod tests;
