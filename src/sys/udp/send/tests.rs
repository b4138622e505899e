use super::*;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use std::collections::BTreeSet;

/// Stands in for the system call: gives the scripted answers, then accepts everything.
#[derive(Default)]
struct Script {
    answers: std::collections::VecDeque<Result<usize, c_int>>,
    /// Trains to these fail with that error number, whatever the script says.
    trains_fail: Option<(c_int, BTreeSet<SocketAddr>)>,
    /// Datagrams longer than this fail with EMSGSIZE, one by one, and with EINVAL in a train.
    path: Option<usize>,
    calls: Vec<Call>,
}

/// What was accepted by a call.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    socket: usize,
    /// For each message its destination's last byte and its datagrams.
    sent: Vec<(u8, Vec<Vec<u8>>)>,
}

fn last_byte(address: SocketAddr) -> u8 {
    match address {
        SocketAddr::V4(address) => address.ip().octets()[3],
        SocketAddr::V6(address) => address.ip().octets()[15],
    }
}

impl Wire for &mut Script {
    fn send(&mut self, socket: usize, messages: &mut Messages<'_, '_>) -> io::Result<usize> {
        let messages: Vec<_> = messages.take(MESSAGES).collect();
        assert!((1..=MESSAGES).contains(&messages.len()));
        for message in &messages {
            let segments = message.segment.map_or(1, |size| message.payload.len().div_ceil(usize::from(size)));
            assert_eq!(message.segment.is_some(), segments > 1, "no UDP_SEGMENT for a single datagram");
            assert!(segments <= 64 && (segments == 1 || message.payload.len() <= 65_507));
        }
        let mut sent = match self.answers.pop_front() {
            None => messages.len(),
            Some(Ok(sent)) => sent.min(messages.len()),
            Some(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
        };
        let fails = |message: &Message<'_>| match (message.segment, &self.trains_fail, self.path) {
            (Some(_), Some((errno, destinations)), _) if destinations.contains(&message.destination) => Some(*errno),
            (Some(size), _, Some(path)) if usize::from(size) > path => Some(libc::EINVAL),
            (None, _, Some(path)) if message.payload.len() > path => Some(libc::EMSGSIZE),
            _ => None,
        };
        if let Some((at, errno)) = messages.iter().enumerate().find_map(|(at, message)| Some((at, fails(message)?))) {
            if at == 0 {
                return Err(io::Error::from_raw_os_error(errno));
            }
            sent = sent.min(at);
        }
        let datagrams = |message: &Message<'_>| {
            let size = message.segment.map_or(message.payload.len().max(1), usize::from);
            let empty = message.payload.is_empty().then(Vec::new);
            message.payload.chunks(size).map(<[u8]>::to_vec).chain(empty).collect()
        };
        let sent: Vec<_> =
            messages.iter().take(sent).map(|message| (last_byte(message.destination), datagrams(message))).collect();
        let count = sent.len();
        self.calls.push(Call { socket, sent });
        Ok(count)
    }
}

impl Script {
    fn answering(answers: impl IntoIterator<Item = Result<usize, c_int>>) -> Self {
        Self { answers: answers.into_iter().collect(), ..Self::default() }
    }

    /// Everything accepted, in order.
    fn datagrams(&self) -> Vec<(u8, Vec<u8>)> {
        let messages = self.calls.iter().flat_map(|call| &call.sent);
        messages.flat_map(|(to, datagrams)| datagrams.iter().map(|datagram| (*to, datagram.clone()))).collect()
    }
}

fn peer(number: u8) -> SocketAddr {
    ([10, 168, 0, number], 8285).into()
}

fn train(number: u8, contents: &[u8], size: usize) -> Transmit<'_> {
    Transmit { segment_size: NonZeroUsize::new(size), ..Transmit::datagram(peer(number), contents) }
}

fn expected(transmits: &[Transmit<'_>]) -> Vec<(u8, Vec<u8>)> {
    let each = |transmit: &Transmit<'_>| {
        let to = last_byte(transmit.destination);
        transmit.segments().map(move |segment| (to, segment.to_vec())).collect::<Vec<_>>()
    };
    transmits.iter().flat_map(each).collect()
}

fn send(
    script: &mut Script,
    gso: bool,
    fallbacks: &Fallbacks,
    transmits: &[Transmit<'_>],
    first: usize,
) -> Result<(), (usize, usize, SendErrorKind)> {
    send_all(&mut { script }, Plan { gso, flows: 0, fallbacks }, transmits, first).map_err(|error| {
        let BatchError { transmit, segment, datagrams, kind } = error;
        let left = transmits[transmit].segments().count() - segment;
        assert!((1..=left).contains(&datagrams), "{error:?} concerns datagrams of that transmit");
        assert!(gso || datagrams == 1, "{error:?}: one by one, it concerns one");
        (transmit, segment, kind)
    })
}

fn error(transmit: usize, segment: usize, kind: SendErrorKind) -> Result<(), (usize, usize, SendErrorKind)> {
    Err((transmit, segment, kind))
}

/// What the system call says to one datagram.
fn attempt(answers: &[Result<usize, c_int>]) -> Result<(), SendErrorKind> {
    let transmit = Transmit::datagram(peer(1), b"x");
    let mut script = Script::answering(answers.iter().copied());
    send(&mut script, true, &Fallbacks::default(), &[transmit], 0).map_err(|(_, _, kind)| kind)
}

#[test]
fn every_errno_of_a_send_has_its_meaning() {
    use SendErrorKind as Kind;
    for (errno, kind) in [
        (libc::EACCES, Kind::Forbidden),
        (libc::EAGAIN, Kind::WouldBlock),
        (libc::ECONNREFUSED, Kind::Refused),
        (libc::EHOSTDOWN, Kind::Unreachable),
        (libc::EHOSTUNREACH, Kind::Unreachable),
        (libc::EINVAL, Kind::Other(libc::EINVAL)),
        (libc::EIO, Kind::Other(libc::EIO)),
        (libc::EMSGSIZE, Kind::TooLong),
        (libc::ENETDOWN, Kind::Unreachable),
        (libc::ENETUNREACH, Kind::Unreachable),
        (libc::ENOBUFS, Kind::NoBuffers),
        (libc::ENOMEM, Kind::NoBuffers),
        (libc::EPERM, Kind::Forbidden),
    ] {
        assert_eq!(attempt(&[Err(errno), Err(errno)]), Err(kind));
        assert!(!kind.is_fatal());
    }
    assert_eq!(attempt(&[Err(libc::EBADF)]), Err(Kind::Closed));
    assert!(Kind::Closed.is_fatal());
    assert_eq!(attempt(&[Ok(0)]), Err(Kind::Other(libc::EIO)), "no loop without end");
}

#[test]
fn fault_33_a_send_is_tried_twice_only_where_an_earlier_one_may_be_to_blame() {
    let outcome = |errnos: &[i32]| attempt(&errnos.iter().map(|errno| Err(*errno)).collect::<Vec<_>>());
    for errno in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EPROTO] {
        assert_eq!(outcome(&[errno]), Ok(()));
        assert_eq!(outcome(&[libc::EINTR, errno, libc::EINTR]), Ok(()));
        assert_eq!(outcome(&[errno, libc::EAGAIN]), Err(SendErrorKind::WouldBlock));
        assert_eq!(outcome(&[libc::ECONNREFUSED, errno]), Err(SendErrorKind::from_errno(errno)));
    }
    for errno in [libc::EAGAIN, libc::EMSGSIZE, libc::ENOBUFS, libc::EPERM, libc::EBADF, libc::EINVAL] {
        assert_eq!(outcome(&[errno]), Err(SendErrorKind::from_errno(errno)));
    }
    assert_eq!(outcome(&[libc::EINTR; 100]), Ok(()));

    // In a batch, each message has its second attempt.
    let transmits = [1, 2, 3].map(|number| Transmit::datagram(peer(number), b"x"));
    let refused = Err(libc::ECONNREFUSED);
    let mut script = Script::answering([refused, Ok(1), refused, Ok(1), refused, Ok(1)]);
    assert_eq!(send(&mut script, true, &Fallbacks::default(), &transmits, 0), Ok(()));
    assert_eq!(script.datagrams(), expected(&transmits));
}

#[test]
fn trains_are_cut_into_messages_the_kernel_takes() {
    let contents: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
    for (length, size, gso, messages) in [
        (0, 1400, true, 1),
        (1, 1400, true, 1),
        (1400, 1400, true, 1),
        (1401, 1400, true, 1),
        (1400 * 46, 1400, true, 1),
        (1400 * 47, 1400, true, 2),
        (1400 * 46 + 1, 1400, true, 2),
        (100 * 64, 100, true, 1),
        (100 * 64 + 1, 100, true, 2),
        (200, 1, true, 4),
        (150_000, 40_000, true, 4),
        (140_000, 65_507, true, 3),
        (140_000, 100_000, true, 2),
        (3000, 1400, false, 3),
        (150_000, 1000, true, 3),
        (150_000, 1000, false, 150),
    ] {
        let transmits = [train(1, &contents[..length], size)];
        let mut script = Script::default();
        assert_eq!(send(&mut script, gso, &Fallbacks::default(), &transmits, 0), Ok(()));
        assert_eq!(script.calls.iter().map(|call| call.sent.len()).sum::<usize>(), messages, "{length} {size} {gso}");
        assert_eq!(script.datagrams(), expected(&transmits));
        for first in 0..4 {
            let mut script = Script::default();
            assert_eq!(send(&mut script, gso, &Fallbacks::default(), &transmits, first), Ok(()));
            assert_eq!(script.datagrams(), expected(&transmits).split_off(first.min(length.div_ceil(size).max(1))));
        }
    }
    let mut script = Script::default();
    assert_eq!(send(&mut script, true, &Fallbacks::default(), &[], 0), Ok(()));
    assert!(script.calls.is_empty());
}

/// Whatever is accepted and wherever it fails: going on from where the error says, nothing is lost or sent twice.
#[test]
fn fault_32_the_error_belongs_to_one_datagram_and_the_rest_goes_on() {
    let contents: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let transmits = [
        train(1, &contents, 1000),
        Transmit::datagram(peer(2), b""),
        train(1, &contents[..100], 30),
        Transmit::datagram(peer(3), b"x"),
        train(2, &contents[..1500], 7),
    ];
    let mut seed = 1_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for _ in 0..500 {
        let errnos = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::EPERM, libc::EINTR];
        let answers =
            (0..30).map(|_| if random(2) == 0 { Ok(1 + random(3)) } else { Err(errnos[random(errnos.len())]) });
        let mut script = Script::answering(answers.collect::<Vec<_>>());
        let fallbacks = Fallbacks::default();
        let (mut at, mut first) = (0, random(3));
        let begin = first;
        let mut given_up = Vec::new();
        let mut before = 0;
        loop {
            match send(&mut script, true, &fallbacks, &transmits[at..], first) {
                Ok(()) => break,
                Err((transmit, segment, kind)) => {
                    at += transmit;
                    let sent: usize = transmits[..at].iter().map(|transmit| transmit.segments().count()).sum();
                    before = sent + segment;
                    assert_eq!(script.datagrams().len() + begin + given_up.len(), before, "all before it was sent");
                    first = segment;
                    if kind == SendErrorKind::Forbidden {
                        given_up.push(before);
                        first += 1;
                    }
                }
            }
        }
        let all = expected(&transmits);
        let kept = all.into_iter().enumerate().filter(|(number, _)| *number >= begin && !given_up.contains(number));
        assert_eq!(script.datagrams(), kept.map(|(_, datagram)| datagram).collect::<Vec<_>>());
        assert_eq!(fallbacks.count(), 0);
        assert!(before <= expected(&transmits).len());
    }
}

#[test]
fn fault_26_interruptions_lose_nothing_and_send_nothing_twice() {
    let contents = vec![7; 70_000];
    let transmits = [train(1, &contents, 1000), train(2, &contents, 500)];
    let interrupted = [Err(libc::EINTR), Err(libc::EINTR), Ok(1)];
    let mut script = Script::answering(interrupted.into_iter().cycle().take(100));
    assert_eq!(send(&mut script, true, &Fallbacks::default(), &transmits, 0), Ok(()));
    assert_eq!(script.datagrams(), expected(&transmits));
}

#[test]
fn fault_27_the_place_is_kept_when_the_buffer_is_full() {
    let contents = vec![7; 100_000];
    let transmits = [Transmit::datagram(peer(2), b"x"), train(1, &contents, 1000)];
    let mut script = Script::answering([Ok(1), Err(libc::EAGAIN), Ok(1), Err(libc::EAGAIN)]);
    let fallbacks = Fallbacks::default();
    assert_eq!(send(&mut script, true, &fallbacks, &transmits, 0), error(1, 0, SendErrorKind::WouldBlock));
    assert_eq!(send(&mut script, true, &fallbacks, &transmits[1..], 0), error(0, 64, SendErrorKind::WouldBlock));
    assert_eq!(send(&mut script, true, &fallbacks, &transmits[1..], 64), Ok(()));
    assert_eq!(script.datagrams(), expected(&transmits));
}

#[test]
fn fault_30_a_train_that_fails_is_sent_one_by_one_and_only_there() {
    for errno in [libc::EINVAL, libc::EIO] {
        let contents: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let transmits =
            [train(1, &contents, 1000), train(2, &contents, 1000), train(3, &contents, 1000), train(2, &contents, 900)];
        let trains_fail = Some((errno, BTreeSet::from([peer(2)])));
        let mut script = Script { trains_fail, ..Script::default() };
        let fallbacks = Fallbacks::default();
        assert_eq!(send(&mut script, true, &fallbacks, &transmits, 0), Ok(()));
        assert_eq!(script.datagrams(), expected(&transmits));
        for (to, datagrams) in script.calls.iter().flat_map(|call| &call.sent) {
            assert_eq!(datagrams.len() > 1, *to != 2, "to {to}");
        }
        assert_eq!(fallbacks.count(), 1, "once and for all");
        assert!(fallbacks.contains(peer(2).ip()) && !fallbacks.contains(peer(1).ip()));
    }
}

/// Linux before 6.12 or so says EINVAL to a train whose datagrams do not fit the path.
#[test]
fn fault_29_a_path_that_shrank_is_not_taken_for_missing_support() {
    let contents = vec![7; 2500];
    let transmits = [train(1, &contents, 1000)];
    let mut script = Script { path: Some(900), ..Script::default() };
    let fallbacks = Fallbacks::default();
    assert_eq!(send(&mut script, true, &fallbacks, &transmits, 0), error(0, 0, SendErrorKind::TooLong));
    assert_eq!(send(&mut script, true, &fallbacks, &transmits, 1), error(0, 1, SendErrorKind::TooLong));
    assert_eq!(send(&mut script, true, &fallbacks, &transmits, 2), Ok(()), "the last one is short");
    assert_eq!(fallbacks.count(), 0);

    // A newer one says EMSGSIZE at once.
    let mut script = Script::answering([Err(libc::EMSGSIZE)]);
    assert_eq!(send(&mut script, true, &fallbacks, &transmits, 0), error(0, 0, SendErrorKind::TooLong));
    assert_eq!((fallbacks.count(), script.calls.len()), (0, 0));
}

#[test]
fn fault_30_what_fails_one_by_one_too_switches_nothing_off() {
    let contents = vec![7; 2500];
    let transmits = [train(1, &contents, 1000)];
    let fallbacks = Fallbacks::default();
    for (errno, kind) in [
        (libc::EINVAL, SendErrorKind::Other(libc::EINVAL)),
        (libc::EIO, SendErrorKind::Other(libc::EIO)),
        (libc::EAGAIN, SendErrorKind::WouldBlock),
        (libc::EBADF, SendErrorKind::Closed),
    ] {
        let mut script = Script::answering([Err(libc::EINVAL), Err(libc::EINTR), Err(errno)]);
        assert_eq!(send(&mut script, true, &fallbacks, &transmits, 0), error(0, 0, kind));
        assert_eq!(fallbacks.count(), 0);
    }
}

#[test]
fn flows_choose_the_socket_and_order_is_kept() {
    let flows = [0, 3, 1, 1, 2, 5, 4, 4, 65_535];
    let contents = [7; 250];
    let transmits: Vec<_> = flows.iter().map(|flow| Transmit { flow: *flow, ..train(1, &contents, 100) }).collect();
    let fallbacks = Fallbacks::default();
    let sockets = |count| {
        let mut script = Script::default();
        assert_eq!(
            send_all(&mut &mut script, Plan { gso: true, flows: count, fallbacks: &fallbacks }, &transmits, 0),
            Ok(())
        );
        assert_eq!(script.datagrams(), expected(&transmits));
        script.calls.iter().map(|call| (call.socket, call.sent.len())).collect::<Vec<_>>()
    };
    assert_eq!(sockets(0), [(0, 9)]);
    assert_eq!(sockets(1), [(0, 9)]);
    assert_eq!(sockets(3), [(0, 2), (1, 2), (2, 2), (1, 2), (0, 1)]);
}
