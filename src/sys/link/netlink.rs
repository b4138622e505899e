//! A blocking netlink socket for requests and their replies.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NLMSG_OVERRUN, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use socket2::SockRef;

use super::error::{LinkError, MalformedReply};
use super::message::{Message, Messages, array, attribute_string};

/// The kernel packs at most 32 KiB into one datagram of a dump (`netlink_dump` in `net/netlink/af_netlink.c`).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Longest wait for a reply. The kernel has queued the reply when `send` returns, so a timeout is a defect of the
/// kernel.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest number of attempts at a dump. A dump is repeated if the table changed meanwhile.
const DUMP_ATTEMPTS: u32 = 8;

/// Offsets in the body of `NLMSG_ERROR` (struct `nlmsgerr`).
mod field {
    use core::ops::Range;
    pub(crate) const CODE: usize = 0;
    pub(crate) const REQUEST_LENGTH: usize = 4;
    pub(crate) const REQUEST_HEADER: Range<usize> = 4..20;
}
/// `NLMSGERR_ATTR_MSG` in linux/netlink.h, the error message.
const REASON: u16 = 1;

/// An error of a netlink request.
#[derive(Debug)]
pub(crate) enum NetlinkError {
    Interrupted { attempts: u32 },
    Malformed(MalformedReply),
    Refused { errno: i32, reason: Option<String> },
    Socket(io::Error),
}

impl From<MalformedReply> for NetlinkError {
    fn from(problem: MalformedReply) -> Self {
        Self::Malformed(problem)
    }
}

/// The entries of a table.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    pub(crate) entries: Vec<T>,
    /// True if the table did not change during the dump. Otherwise an entry may be missing or listed twice.
    pub(crate) consistent: bool,
}

impl<T> Listing<T> {
    /// Returns the entries if none can be missing.
    #[cfg(any(feature = "preflight", test))]
    pub(crate) fn complete(self) -> Result<Vec<T>, NetlinkError> {
        if self.consistent { Ok(self.entries) } else { Err(NetlinkError::Interrupted { attempts: DUMP_ATTEMPTS }) }
    }
}

/// A netlink socket in the network namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, LinkError> {
        Self::connect(NETLINK_ROUTE).map_err(|source| LinkError::Socket { operation: "open a netlink socket", source })
    }

    /// Opens a socket for a protocol of netlink(7).
    pub(crate) fn connect(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        SockRef::from(&socket).set_read_timeout(Some(REPLY_TIMEOUT))?;
        // Error messages as text, short acknowledgements, and filters of dumps. All are optional, and kernels before
        // 4.20 lack some.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Requests a change and waits for the acknowledgement.
    pub(crate) fn change(&mut self, request: impl NetlinkSerializable, flags: u16) -> Result<(), NetlinkError> {
        self.exchange(request, flags, |_| Ok(())).map(|_intact| ())
    }

    /// Requests one object.
    pub(crate) fn ask<T>(
        &mut self,
        request: impl NetlinkSerializable,
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Option<T>, NetlinkError> {
        let mut found = None;
        self.exchange(request, 0, |message| {
            if let Some(object) = read(message)? {
                found = Some(object);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Requests a whole table and returns the entries that `read` selects, in the order of the kernel. Repeats the dump
    /// if the table changed meanwhile, and returns the last attempt if it changed during each.
    #[cfg(any(feature = "preflight", test))]
    pub(crate) fn dump<T>(
        &mut self,
        request: &(impl NetlinkSerializable + Clone),
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Listing<T>, NetlinkError> {
        retry(|| self.list(request.clone(), &read), |listing| listing.consistent)
    }

    /// Requests a table and returns the first entry that `read` selects. An entry of an interrupted dump is valid too.
    pub(crate) fn first<T>(
        &mut self,
        request: &(impl NetlinkSerializable + Clone),
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Option<T>, NetlinkError> {
        let enough = |listing: &Listing<T>| listing.consistent || !listing.entries.is_empty();
        let listing = retry(|| self.list(request.clone(), &read), enough)?;
        match listing.entries.into_iter().next() {
            None if !listing.consistent => Err(NetlinkError::Interrupted { attempts: DUMP_ATTEMPTS }),
            first => Ok(first),
        }
    }

    fn list<T>(
        &mut self,
        request: impl NetlinkSerializable,
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Listing<T>, NetlinkError> {
        let mut entries = Vec::new();
        let consistent = self.exchange(request, NLM_F_DUMP, |message| {
            entries.extend(read(message)?);
            Ok(())
        })?;
        Ok(Listing { entries, consistent })
    }

    /// Sends a request and passes each message of the reply to `each`. Returns true if the reply is a consistent
    /// snapshot.
    fn exchange(
        &mut self,
        request: impl NetlinkSerializable,
        flags: u16,
        mut each: impl FnMut(&Message<'_>) -> Result<(), MalformedReply>,
    ) -> Result<bool, NetlinkError> {
        self.send(request, flags).map_err(NetlinkError::Socket)?;
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        let mut consistent = true;
        loop {
            let (length, sender) = receive(&self.socket, &mut buffer).map_err(NetlinkError::Socket)?;
            if sender.port_number() != 0 {
                continue;
            }
            if length > buffer.len() {
                return Err(MalformedReply::Oversized { length, room: buffer.len() }.into());
            }
            for message in Messages::new(&buffer) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => return parse_end(&message).map(|()| consistent),
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => consistent = false,
                    _ => each(&message)?,
                }
            }
        }
    }

    fn send(&mut self, request: impl NetlinkSerializable, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).map(|_sent| ())
    }
}

/// Repeats a dump until the listing is `enough`, at most [`DUMP_ATTEMPTS`] times.
fn retry<T>(
    mut list: impl FnMut() -> Result<Listing<T>, NetlinkError>,
    enough: impl Fn(&Listing<T>) -> bool,
) -> Result<Listing<T>, NetlinkError> {
    let mut listing = list()?;
    for _ in 1..DUMP_ATTEMPTS {
        if enough(&listing) {
            break;
        }
        listing = list()?;
    }
    Ok(listing)
}

/// Clears `buffer` and receives one datagram into it. Returns the length of the datagram, which may exceed the buffer.
pub(crate) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<(usize, SocketAddr)> {
    loop {
        buffer.clear();
        match socket.recv_from(buffer, libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Parses the message that ends a reply.
fn parse_end(message: &Message<'_>) -> Result<(), NetlinkError> {
    // A dump without entries may end with an empty message.
    if message.kind == NLMSG_DONE && message.body.is_empty() {
        return Ok(());
    }
    let code = i32::from_ne_bytes(array(message.body, field::CODE)?);
    if code >= 0 {
        return Ok(());
    }
    Err(NetlinkError::Refused { errno: code.saturating_neg(), reason: reason(message) })
}

/// Returns the error message of the kernel, if there is one. A malformed error message does not hide the error number.
fn reason(message: &Message<'_>) -> Option<String> {
    if message.kind != NLMSG_ERROR || message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let quoted = if message.flags & NLM_F_CAPPED == 0 {
        let length = u32::from_ne_bytes(array(message.body, field::REQUEST_LENGTH).ok()?);
        usize::try_from(length).ok()?.checked_next_multiple_of(4)?
    } else {
        field::REQUEST_HEADER.len()
    };
    let attributes = message.body.get(field::REQUEST_HEADER.start.checked_add(quoted)?..)?;
    attribute_string(attributes, REASON).ok()?
}

#[cfg(test)]
#[expect(clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]
mod unit {
    use super::*;

    fn refusal(flags: u16, body: &[u8]) -> (i32, Option<String>) {
        match parse_end(&Message { kind: NLMSG_ERROR, flags, sequence: 1, body }) {
            Err(NetlinkError::Refused { errno, reason }) => (errno, reason),
            other => panic!("{other:?}"),
        }
    }

    fn error_body(code: i32, quoted: usize) -> Vec<u8> {
        let mut body = code.to_ne_bytes().to_vec();
        body.extend(u32::try_from(quoted).expect("small").to_ne_bytes());
        body.resize(4 + quoted.next_multiple_of(4), 0);
        body.extend(10_u16.to_ne_bytes());
        body.extend(REASON.to_ne_bytes());
        body.extend(b"no way\0\0");
        body
    }

    #[test]
    fn the_error_message_is_found_with_and_without_the_quoted_request() {
        let capped = error_body(-22, 16);
        assert_eq!(refusal(NLM_F_ACK_TLVS | NLM_F_CAPPED, &capped), (22, Some("no way".into())));
        assert_eq!(refusal(NLM_F_ACK_TLVS, &error_body(-22, 33)), (22, Some("no way".into())));
        assert_eq!(refusal(0, &capped), (22, None));
    }

    #[test]
    fn a_cut_off_reason_keeps_the_error_number_and_a_cut_off_number_is_an_error() {
        let whole = error_body(i32::MIN, 33);
        for length in 4..whole.len() - 1 {
            assert_eq!(refusal(NLM_F_ACK_TLVS, whole.get(..length).expect("in range")).0, i32::MAX, "{length} bytes");
        }
        for length in 0..4 {
            let body = whole.get(..length).expect("in range");
            let cut = parse_end(&Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, body });
            assert!(matches!(cut, Err(NetlinkError::Malformed(_))), "{length} bytes: {cut:?}");
        }
        let mut hostile = whole;
        hostile.splice(4..8, u32::MAX.to_ne_bytes());
        assert_eq!(refusal(NLM_F_ACK_TLVS, &hostile), (i32::MAX, None));
    }

    /// Returns the listings of the script in turn, and then panics.
    fn script(listings: &[(&[u8], bool)]) -> impl FnMut() -> Result<Listing<u8>, NetlinkError> {
        let mut listings = listings.iter();
        move || {
            let (entries, consistent) = listings.next().expect("asked no more than that");
            Ok(Listing { entries: entries.to_vec(), consistent: *consistent })
        }
    }

    #[test]
    fn fault_61_an_interrupted_listing_is_repeated_and_its_last_attempt_is_used() {
        let whole = |listing: &Listing<u8>| listing.consistent;
        let some = |listing: &Listing<u8>| listing.consistent || !listing.entries.is_empty();
        let result = |listings: &[_], enough: fn(&Listing<u8>) -> bool| {
            let listing = retry(script(listings), enough).expect("a listing");
            (listing.entries, listing.consistent)
        };
        assert_eq!(result(&[(&[1], false), (&[1, 2], true)], whole), (vec![1, 2], true));
        assert_eq!(result(&[(&[], false), (&[2], false)], some), (vec![2], false), "one entry is enough");
        let mut busy = [(&[1][..], false); DUMP_ATTEMPTS as usize];
        busy[7] = (&[1, 3], false);
        assert_eq!(result(&busy, whole), (vec![1, 3], false));
        let refused = retry(|| Err::<Listing<u8>, _>(NetlinkError::Interrupted { attempts: 1 }), whole);
        assert!(refused.is_err());
    }

    #[test]
    fn zero_and_an_empty_end_of_a_dump_are_success() {
        assert!(parse_end(&Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, body: &[0; 20] }).is_ok());
        assert!(parse_end(&Message { kind: NLMSG_DONE, flags: 0, sequence: 1, body: &[] }).is_ok());
    }
}
