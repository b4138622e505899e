use super::*;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use crate::sys::script::{Answer, Call, Script, Sent};
use crate::sys::{Feature, UdpOffload, UdpTransport};

fn peer(number: u8) -> SocketAddr {
    ([10, 168, 0, number], 8285).into()
}

fn gso_batch(number: u8, contents: &[u8], size: usize) -> Transmit<'_> {
    Transmit { segment_size: NonZeroUsize::new(size), ..Transmit::datagram(peer(number), contents) }
}

fn expected(transmits: &[Transmit<'_>]) -> Vec<(SocketAddr, Vec<u8>)> {
    let each = |transmit: &Transmit<'_>| {
        let to = transmit.destination;
        transmit.segments().map(move |segment| (to, segment.to_vec())).collect::<Vec<_>>()
    };
    transmits.iter().flat_map(each).collect()
}

/// Returns a transport with or without GSO. Its calls get these answers first, and then succeed.
fn scripted(gso: bool, answers: impl IntoIterator<Item = Answer>) -> (Script, UdpTransport) {
    let script = Script::default();
    script.then(Call::Send, answers);
    let transport = UdpTransport::scripted(&script, UdpOffload { gso, gro: true }, 0);
    (script, transport)
}

fn send(
    transport: &UdpTransport,
    transmits: &[Transmit<'_>],
    first: usize,
) -> Result<(), (usize, usize, SendErrorKind)> {
    transport.send_batch(transmits, first).map_err(|error| {
        let BatchError { transmit, segment, datagrams, kind } = error;
        let left = transmits[transmit].segments().count() - segment;
        assert!((1..=left).contains(&datagrams), "{error:?} concerns datagrams of that transmit");
        assert!(transport.offload().gso || datagrams == 1, "{error:?}: without GSO, it concerns one");
        (transmit, segment, kind)
    })
}

fn error(transmit: usize, segment: usize, kind: SendErrorKind) -> Result<(), (usize, usize, SendErrorKind)> {
    Err((transmit, segment, kind))
}

/// Returns the result of sending one datagram.
fn attempt(answers: &[Answer]) -> Result<(), SendErrorKind> {
    let (_script, transport) = scripted(true, answers.iter().copied());
    send(&transport, &[Transmit::datagram(peer(1), b"x")], 0).map_err(|(_, _, kind)| kind)
}

#[test]
fn fault_28_31_34_every_errno_of_a_send_has_its_meaning() {
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
        assert_eq!(attempt(&[Answer::Error(errno); 2]), Err(kind));
        assert!(!kind.is_fatal());
    }
    assert_eq!(attempt(&[Answer::Error(libc::EBADF)]), Err(Kind::Closed));
    assert!(Kind::Closed.is_fatal());
    assert_eq!(attempt(&[Answer::AtMost(0)]), Err(Kind::Other(libc::EIO)), "no loop without end");
}

#[test]
fn fault_33_a_send_is_tried_twice_only_where_an_earlier_one_may_be_to_blame() {
    let outcome = |errnos: &[i32]| attempt(&errnos.iter().copied().map(Answer::Error).collect::<Vec<_>>());
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
    let each = [Answer::Error(libc::ECONNREFUSED), Answer::AtMost(1)];
    let (script, transport) = scripted(true, [each; 3].concat());
    assert_eq!(send(&transport, &transmits, 0), Ok(()));
    assert_eq!(script.take_datagrams(), expected(&transmits));
}

#[test]
fn batches_are_divided_into_messages_the_kernel_accepts() {
    let contents: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
    for (length, size, gso, messages) in [
        (0, 1400, true, 1),
        (1, 1400, true, 1),
        (1400, 1400, true, 1),
        (1401, 1400, true, 1),
        (1400 * 46, 1400, true, 1),
        (1400 * 47, 1400, true, 2),
        (1400 * 46 + 1, 1400, true, 2),
        (100 * 63, 100, true, 1),
        (100 * 63 + 1, 100, true, 2),
        (20 * 61, 20, true, 1),
        (20 * 61 + 1, 20, true, 2),
        (200, 1, true, 13),
        (150_000, 40_000, true, 4),
        (140_000, 65_507, true, 3),
        (140_000, 100_000, true, 2),
        (3000, 1400, false, 3),
        (150_000, 1000, true, 3),
        (150_000, 1000, false, 150),
    ] {
        let transmits = [gso_batch(1, &contents[..length], size)];
        let (script, transport) = scripted(gso, []);
        assert_eq!(send(&transport, &transmits, 0), Ok(()));
        let sent = script.take_sends().concat();
        assert_eq!(sent.len(), messages, "{length} {size} {gso}");
        assert!(sent.iter().flat_map(|sent| &sent.datagrams).eq(transmits[0].segments()));
        for first in 0..4 {
            assert_eq!(send(&transport, &transmits, first), Ok(()));
            let rest = expected(&transmits).split_off(first.min(length.div_ceil(size).max(1)));
            assert_eq!(script.take_datagrams(), rest);
        }
    }
    let (script, transport) = scripted(true, []);
    assert_eq!(send(&transport, &[], 0), Ok(()));
    assert_eq!(script.count(Call::Send), 0);
}

/// Whatever is accepted and wherever it fails, a caller that continues where the error says loses nothing and sends
/// nothing twice.
#[test]
fn fault_32_the_error_belongs_to_one_datagram_and_the_rest_goes_on() {
    let contents: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let transmits = [
        gso_batch(1, &contents, 1000),
        Transmit::datagram(peer(2), b""),
        gso_batch(1, &contents[..100], 30),
        Transmit::datagram(peer(3), b"x"),
        gso_batch(2, &contents[..1500], 7),
    ];
    let mut seed = 1_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for _ in 0..500 {
        let errnos = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::EPERM, libc::EINTR];
        let answer = |_| match random(2) {
            0 => Answer::AtMost(1 + random(3)),
            _ => Answer::Error(errnos[random(errnos.len())]),
        };
        let (script, transport) = scripted(true, (0..30).map(answer).collect::<Vec<_>>());
        let mut went = Vec::new();
        let (mut at, mut first) = (0, random(3));
        let begin = first;
        let mut given_up = Vec::new();
        let mut before = 0;
        loop {
            let outcome = send(&transport, &transmits[at..], first);
            went.extend(script.take_datagrams());
            match outcome {
                Ok(()) => break,
                Err((transmit, segment, kind)) => {
                    at += transmit;
                    let sent: usize = transmits[..at].iter().map(|transmit| transmit.segments().count()).sum();
                    before = sent + segment;
                    assert_eq!(went.len() + begin + given_up.len(), before, "all before it was sent");
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
        assert_eq!(went, kept.map(|(_, datagram)| datagram).collect::<Vec<_>>());
        assert_eq!(transport.gso_fallbacks(), 0);
        assert!(before <= expected(&transmits).len());
    }
}

#[test]
fn fault_26_interruptions_lose_nothing_and_send_nothing_twice() {
    let contents = vec![7; 70_000];
    let transmits = [gso_batch(1, &contents, 1000), gso_batch(2, &contents, 500)];
    let interrupted = [Answer::Error(libc::EINTR), Answer::Error(libc::EINTR), Answer::AtMost(1)];
    let (script, transport) = scripted(true, [interrupted; 100].concat());
    assert_eq!(send(&transport, &transmits, 0), Ok(()));
    assert_eq!(script.take_datagrams(), expected(&transmits));
}

#[test]
fn fault_27_the_place_is_kept_when_the_buffer_is_full() {
    let contents = vec![7; 100_000];
    let transmits = [Transmit::datagram(peer(2), b"x"), gso_batch(1, &contents, 1000)];
    let (script, transport) = scripted(true, [[Answer::AtMost(1), Answer::Error(libc::EAGAIN)]; 2].concat());
    assert_eq!(send(&transport, &transmits, 0), error(1, 0, SendErrorKind::WouldBlock));
    assert_eq!(send(&transport, &transmits[1..], 0), error(0, 63, SendErrorKind::WouldBlock));
    assert_eq!(send(&transport, &transmits[1..], 63), Ok(()));
    assert_eq!(script.take_datagrams(), expected(&transmits));
}

#[test]
fn fault_30_a_batch_that_fails_is_sent_unbatched_and_only_there() {
    for errno in [libc::EINVAL, libc::EIO] {
        let contents: Vec<u8> = (0..=255).cycle().take(70_000).collect();
        let transmits = [
            gso_batch(1, &contents, 1000),
            gso_batch(2, &contents, 1000),
            gso_batch(3, &contents, 1000),
            gso_batch(2, &contents, 900),
        ];
        let (script, transport) = scripted(true, []);
        script.refuse_gso_batches(peer(2).ip(), errno);
        assert_eq!(send(&transport, &transmits, 0), Ok(()));
        let sent = script.take_sends().concat();
        assert!(sent.iter().all(|sent| (sent.datagrams.len() > 1) == (sent.to != peer(2))), "{sent:?}");
        let datagrams = sent.into_iter().flat_map(|sent| sent.datagrams);
        assert!(datagrams.eq(transmits.iter().flat_map(Transmit::segments)), "all, and in order");
        assert_eq!(transport.gso_fallbacks(), 1, "once");

        // Also in the call that finds it out.
        let short = [1, 2, 3].map(|number| gso_batch(number, &contents[..3000], 1000));
        let (script, transport) = scripted(true, []);
        script.refuse_gso_batches(peer(2).ip(), errno);
        assert_eq!(send(&transport, &short[1..], 0), Ok(()));
        let sent = script.take_sends();
        assert_eq!(sent.iter().map(Vec::len).collect::<Vec<_>>(), [4], "three datagrams and a GSO batch");
    }
}

/// Linux before 6.12 or so returns EINVAL for a GSO batch whose datagrams do not fit the path.
#[test]
fn fault_29_a_path_that_shrank_is_not_taken_for_missing_support() {
    let contents = vec![7; 2500];
    let transmits = [gso_batch(1, &contents, 1000)];
    let narrow = |batch_errno| {
        let (script, transport) = scripted(true, []);
        script.narrow(peer(1).ip(), 928, batch_errno);
        (script, transport)
    };
    let (script, transport) = narrow(libc::EINVAL);
    assert_eq!(send(&transport, &transmits, 0), error(0, 0, SendErrorKind::TooLong));
    assert_eq!(send(&transport, &transmits, 1), error(0, 1, SendErrorKind::TooLong));
    assert_eq!(send(&transport, &transmits, 2), Ok(()), "the last one is short");
    assert_eq!((transport.gso_fallbacks(), script.take_datagrams().len()), (0, 1));

    // A newer one returns EMSGSIZE at once.
    let (script, transport) = narrow(libc::EMSGSIZE);
    assert_eq!(send(&transport, &transmits, 0), error(0, 0, SendErrorKind::TooLong));
    assert_eq!((transport.gso_fallbacks(), script.count(Call::Send)), (0, 1));
}

#[test]
fn fault_30_what_fails_unbatched_too_disables_nothing() {
    let contents = vec![7; 2500];
    let transmits = [gso_batch(1, &contents, 1000)];
    for (errno, kind) in [
        (libc::EINVAL, SendErrorKind::Other(libc::EINVAL)),
        (libc::EIO, SendErrorKind::Other(libc::EIO)),
        (libc::EAGAIN, SendErrorKind::WouldBlock),
        (libc::EBADF, SendErrorKind::Closed),
    ] {
        let (script, transport) = scripted(true, [libc::EINVAL, libc::EINTR, errno].map(Answer::Error));
        assert_eq!(send(&transport, &transmits, 0), error(0, 0, kind));
        assert_eq!((transport.gso_fallbacks(), script.count(Call::Send)), (0, 3), "at once, and no more than that");
    }
}

/// A caller cannot wait for the socket of a flow port, so a full one is a full path.
#[test]
fn fault_27_51_a_full_socket_of_a_flow_is_a_full_path() {
    for (flows, kind) in [(0, SendErrorKind::WouldBlock), (2, SendErrorKind::PathFull)] {
        let script = Script::default();
        script.then(Call::Send, [Answer::AtMost(1), Answer::Error(libc::EAGAIN)]);
        let transport = UdpTransport::scripted(&script, UdpOffload::ALL, flows);
        let transmits = [peer(1), peer(2)].map(|to| Transmit::datagram(to, b"x"));
        assert_eq!(send(&transport, &transmits, 0), error(1, 0, kind));
        assert_eq!(send(&transport, &transmits[1..], 0), Ok(()));
        assert_eq!(script.take_datagrams(), expected(&transmits));
    }
}

#[test]
fn flows_choose_the_socket_and_order_is_kept() {
    let flows = [0, 3, 1, 1, 2, 5, 4, 4, 65_535];
    let contents = [7; 250];
    let transmits: Vec<_> = flows.iter().map(|flow| Transmit { flow: *flow, ..gso_batch(1, &contents, 100) }).collect();
    let sockets = |count| {
        let script = Script::default();
        let transport = UdpTransport::scripted(&script, UdpOffload::ALL, count);
        assert_eq!(send(&transport, &transmits, 0), Ok(()));
        let sends = script.take_sends();
        let datagrams = sends.iter().flatten().flat_map(|sent| &sent.datagrams);
        assert!(datagrams.eq(transmits.iter().flat_map(Transmit::segments)));
        let number = |fd| transport.flows.iter().position(|flow| flow.as_raw_fd() == fd);
        let by_main = |fd| transport.as_fd().as_raw_fd() == fd;
        let call = |sent: &Vec<Sent>| {
            let socket = sent[0].socket;
            assert!(sent.iter().all(|sent| sent.socket == socket) && number(socket).is_some() != by_main(socket));
            (number(socket), sent.len())
        };
        sends.iter().map(call).collect::<Vec<_>>()
    };
    assert_eq!(sockets(0), [(None, 9)]);
    assert_eq!(sockets(1), [(Some(0), 9)]);
    assert_eq!(sockets(3), [(Some(0), 2), (Some(1), 2), (Some(2), 2), (Some(1), 2), (Some(0), 1)]);
}

/// EPERM of a firewall does not mean that `sendmmsg` is forbidden: the call without messages works.
#[test]
fn fault_31_54_a_firewall_disables_nothing() {
    let transmits = [1, 2, 3].map(|number| Transmit::datagram(peer(number), b"x"));
    let (script, transport) = scripted(true, [Answer::Error(libc::EPERM)]);
    assert_eq!(send(&transport, &transmits, 0), error(0, 0, SendErrorKind::Forbidden));
    assert_eq!(send(&transport, &transmits[1..], 0), Ok(()));
    assert_eq!((script.take_sends().len(), transport.disabled().count()), (1, 0));

    let (script, transport) = scripted(true, []);
    script.refuse_batches(libc::EPERM);
    assert_eq!(send(&transport, &transmits, 0), Ok(()));
    assert_eq!(script.take_datagrams(), expected(&transmits));
    assert_eq!(transport.disabled().collect::<Vec<_>>(), [Feature::SendMany]);
}

/// Datagrams go without an ECN field where its control messages are refused, in GSO batches as before. They go one by
/// one where batches are refused too.
#[test]
fn fault_54_refused_control_messages_are_left_out() {
    let contents: Vec<u8> = (0..=255).cycle().take(3500).collect();
    let marked = |number| Transmit { ecn: Ecn::Ect0, ..gso_batch(number, &contents, 1000) };
    let transmits = [gso_batch(1, &contents, 1000), marked(1), marked(2)];
    for no_batches in [false, true] {
        let (script, transport) = scripted(true, []);
        script.refuse_marks(libc::EINVAL);
        if no_batches {
            script.refuse_gso_batches(peer(1).ip(), libc::EINVAL);
        }
        for _ in 0..2 {
            assert_eq!(send(&transport, &transmits, 0), Ok(()));
            let sent = script.take_sends().concat();
            assert!(sent.iter().all(|sent| sent.ecn == Ecn::NotEct));
            let datagrams = sent.iter().flat_map(|sent| sent.datagrams.iter().cloned());
            assert!(datagrams.eq(expected(&transmits).into_iter().map(|(_, datagram)| datagram)));
            let messages = |number| sent.iter().filter(|sent| sent.to == peer(number)).count();
            assert_eq!((messages(1), messages(2)), (if no_batches { 8 } else { 2 }, 1));
        }
        assert_eq!(transport.disabled().collect::<Vec<_>>(), [Feature::SendEcn]);
        assert_eq!(transport.gso_fallbacks(), u64::from(no_batches));
    }
    // The datagrams of a GSO batch that is refused for another reason keep their mark.
    let (script, transport) = scripted(true, []);
    script.refuse_gso_batches(peer(2).ip(), libc::EINVAL);
    assert_eq!(send(&transport, &transmits, 0), Ok(()));
    let sent = script.take_sends().concat();
    assert!(sent.iter().all(|sent| sent.to == peer(1) || (sent.ecn, sent.datagrams.len()) == (Ecn::Ect0, 1)));
    assert_eq!((transport.disabled().count(), transport.gso_fallbacks()), (0, 1));
}

/// Fault 55: a passing error disables nothing.
#[test]
fn fault_54_55_one_error_does_not_disable_the_ecn_field() {
    let contents = [7; 2000];
    for marked in [
        Transmit { ecn: Ecn::Ect0, ..gso_batch(1, &contents, 1000) },
        Transmit { ecn: Ecn::Ect0, ..Transmit::datagram(peer(1), b"x") },
    ] {
        let (script, transport) = scripted(true, [Answer::Error(libc::EINVAL)]);
        assert_eq!(send(&transport, &[marked], 0), Ok(()));
        let sent = script.take_sends().concat();
        assert!(sent.len() == 1 && sent[0].ecn == Ecn::Ect0, "{sent:?}");
        assert_eq!((transport.disabled().count(), transport.gso_fallbacks()), (0, 0));
    }
}

/// Linux 4.18, 4.19 and some 5.x count all headers in when they compare a batch to 64 segments.
#[test]
fn fault_30_a_full_batch_of_any_size_fits_what_linux_4_18_accepts() {
    let contents = vec![7; 65_507];
    for size in 20..=1500 {
        let (script, transport) = scripted(true, []);
        assert_eq!(send(&transport, &[gso_batch(1, &contents, size)], 0), Ok(()));
        for sent in script.take_sends().concat() {
            let length: usize = sent.datagrams.iter().map(Vec::len).sum();
            assert!(sent.datagrams.len() == 1 || length + 48 <= 64 * size, "{} of {size}", sent.datagrams.len());
        }
        let most = (65_507 / size).min(if size < 24 { 61 } else { 62 + usize::from(size >= 48) });
        assert_eq!(segments_max(size).min(65_507 / size), most, "and no fewer than that");
    }
}
