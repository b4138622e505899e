//! One blocking netlink conversation: a request goes out, its answers come in.

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
/// The answer is there when `send` returns; the bound is for a kernel that breaks that promise.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a dump is begun anew when the table changed meanwhile.
const DUMP_ATTEMPTS: u32 = 8;

/// Places in the body of `NLMSG_ERROR` (struct `nlmsgerr`).
mod field {
    use core::ops::Range;
    pub(crate) const CODE: usize = 0;
    pub(crate) const REQUEST_LENGTH: usize = 4;
    pub(crate) const REQUEST_HEADER: Range<usize> = 4..20;
}
/// `NLMSGERR_ATTR_MSG` in linux/netlink.h: the reason in words.
const REASON: u16 = 1;

/// Why a request was not fulfilled.
#[derive(Debug)]
pub(crate) enum Failure {
    Interrupted { attempts: u32 },
    Malformed(MalformedReply),
    Refused { errno: i32, reason: Option<String> },
    Socket(io::Error),
}

impl From<MalformedReply> for Failure {
    fn from(problem: MalformedReply) -> Self {
        Self::Malformed(problem)
    }
}

/// The entries of a table that were asked for.
#[derive(Debug)]
pub(crate) struct Listing<T> {
    pub(crate) seen: Vec<T>,
    /// The table did not change meanwhile. Otherwise an entry may be missing or listed twice.
    pub(crate) intact: bool,
}

impl<T> Listing<T> {
    /// The entries, if none can be missing.
    #[cfg(any(feature = "preflight", test))]
    pub(crate) fn whole(self) -> Result<Vec<T>, Failure> {
        if self.intact { Ok(self.seen) } else { Err(Failure::Interrupted { attempts: DUMP_ATTEMPTS }) }
    }
}

/// A socket to a part of the kernel that speaks netlink, mostly rtnetlink, in the network namespace the calling thread was in when
/// it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, LinkError> {
        Self::connect(NETLINK_ROUTE).map_err(|source| LinkError::Socket { doing: "open a netlink socket", source })
    }

    /// A socket for a protocol of netlink(7).
    pub(crate) fn connect(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        SockRef::from(&socket).set_read_timeout(Some(PATIENCE))?;
        // Reasons in words, short error messages, and filters that are honoured. Kernels before 4.20 lack some: all are
        // comfort.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for a change and waits for the kernel's yes or no.
    pub(crate) fn change(&mut self, request: impl NetlinkSerializable, flags: u16) -> Result<(), Failure> {
        self.exchange(request, flags, |_| Ok(())).map(|_intact| ())
    }

    /// Asks for one object.
    pub(crate) fn ask<T>(
        &mut self,
        request: impl NetlinkSerializable,
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Option<T>, Failure> {
        let mut found = None;
        self.exchange(request, 0, |message| {
            if let Some(object) = read(message)? {
                found = Some(object);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Asks for a whole table and keeps what `read` picks, in the kernel's order. Begins anew if the table changed
    /// meanwhile; on a host that changes all the time, the last attempt counts.
    #[cfg(any(feature = "preflight", test))]
    pub(crate) fn dump<T>(
        &mut self,
        request: &(impl NetlinkSerializable + Clone),
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Listing<T>, Failure> {
        retried(|| self.list(request.clone(), &read), |listing| listing.intact)
    }

    /// Asks for a table and returns the first entry that `read` picks. One that was seen counts, whatever changed meanwhile.
    pub(crate) fn first<T>(
        &mut self,
        request: &(impl NetlinkSerializable + Clone),
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Option<T>, Failure> {
        let enough = |listing: &Listing<T>| listing.intact || !listing.seen.is_empty();
        let listing = retried(|| self.list(request.clone(), &read), enough)?;
        match listing.seen.into_iter().next() {
            None if !listing.intact => Err(Failure::Interrupted { attempts: DUMP_ATTEMPTS }),
            first => Ok(first),
        }
    }

    fn list<T>(
        &mut self,
        request: impl NetlinkSerializable,
        read: impl Fn(&Message<'_>) -> Result<Option<T>, MalformedReply>,
    ) -> Result<Listing<T>, Failure> {
        let mut seen = Vec::new();
        let intact = self.exchange(request, NLM_F_DUMP, |message| {
            seen.extend(read(message)?);
            Ok(())
        })?;
        Ok(Listing { seen, intact })
    }

    /// Returns whether the answer is a consistent snapshot.
    fn exchange(
        &mut self,
        request: impl NetlinkSerializable,
        flags: u16,
        mut each: impl FnMut(&Message<'_>) -> Result<(), MalformedReply>,
    ) -> Result<bool, Failure> {
        self.send(request, flags).map_err(Failure::Socket)?;
        let mut buffer = Vec::with_capacity(RECEIVE_BUFFER);
        let mut intact = true;
        loop {
            let (length, sender) = receive(&self.socket, &mut buffer).map_err(Failure::Socket)?;
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
                intact &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => return verdict(&message).map(|()| intact),
                    NLMSG_NOOP => {}
                    NLMSG_OVERRUN => intact = false,
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

/// Lists again until a listing is `enough`, a few times.
fn retried<T>(
    mut list: impl FnMut() -> Result<Listing<T>, Failure>,
    enough: impl Fn(&Listing<T>) -> bool,
) -> Result<Listing<T>, Failure> {
    let mut listing = list()?;
    for _ in 1..DUMP_ATTEMPTS {
        if enough(&listing) {
            break;
        }
        listing = list()?;
    }
    Ok(listing)
}

/// Receives one datagram into the emptied `buffer`. The length is that of the datagram, which may be more than fitted.
pub(crate) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<(usize, SocketAddr)> {
    loop {
        buffer.clear();
        match socket.recv_from(buffer, libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Reads the message that ends an answer.
fn verdict(message: &Message<'_>) -> Result<(), Failure> {
    // A dump of nothing may end with an empty message.
    if message.kind == NLMSG_DONE && message.body.is_empty() {
        return Ok(());
    }
    let code = i32::from_ne_bytes(array(message.body, field::CODE)?);
    if code >= 0 {
        return Ok(());
    }
    Err(Failure::Refused { errno: code.saturating_neg(), reason: reason(message) })
}

/// The kernel's own words, if it has any; a reason that cannot be read is no reason to lose the error number.
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
        match verdict(&Message { kind: NLMSG_ERROR, flags, sequence: 1, body }) {
            Err(Failure::Refused { errno, reason }) => (errno, reason),
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
    fn the_kernels_words_are_found_whether_or_not_it_quotes_the_request() {
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
            let cut = verdict(&Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, body });
            assert!(matches!(cut, Err(Failure::Malformed(_))), "{length} bytes: {cut:?}");
        }
        let mut hostile = whole;
        hostile.splice(4..8, u32::MAX.to_ne_bytes());
        assert_eq!(refusal(NLM_F_ACK_TLVS, &hostile), (i32::MAX, None));
    }

    /// Lists what the script says, and then panics.
    fn script(listings: &[(&[u8], bool)]) -> impl FnMut() -> Result<Listing<u8>, Failure> {
        let mut listings = listings.iter();
        move || {
            let (seen, intact) = listings.next().expect("asked no more than that");
            Ok(Listing { seen: seen.to_vec(), intact: *intact })
        }
    }

    #[test]
    fn fault_61_an_interrupted_listing_is_repeated_and_its_last_attempt_counts() {
        let whole = |listing: &Listing<u8>| listing.intact;
        let some = |listing: &Listing<u8>| listing.intact || !listing.seen.is_empty();
        let result = |listings: &[_], enough: fn(&Listing<u8>) -> bool| {
            let listing = retried(script(listings), enough).expect("a listing");
            (listing.seen, listing.intact)
        };
        assert_eq!(result(&[(&[1], false), (&[1, 2], true)], whole), (vec![1, 2], true));
        assert_eq!(result(&[(&[], false), (&[2], false)], some), (vec![2], false), "seen once is enough");
        let mut busy = [(&[1][..], false); DUMP_ATTEMPTS as usize];
        busy[7] = (&[1, 3], false);
        assert_eq!(result(&busy, whole), (vec![1, 3], false));
        let refused = retried(|| Err::<Listing<u8>, _>(Failure::Interrupted { attempts: 1 }), whole);
        assert!(refused.is_err());
    }

    #[test]
    fn zero_and_an_empty_end_of_a_dump_are_success() {
        assert!(verdict(&Message { kind: NLMSG_ERROR, flags: 0, sequence: 1, body: &[0; 20] }).is_ok());
        assert!(verdict(&Message { kind: NLMSG_DONE, flags: 0, sequence: 1, body: &[] }).is_ok());
    }
}
