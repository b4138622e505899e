use super::*;
use alloc::vec::Vec;

use crate::sys::script::{Answer, Arrival, Call, Script};
use crate::sys::{UdpOffload, UdpTransport};

fn from() -> SocketAddr {
    ([10, 168, 0, 3], 8285).into()
}

fn scripted() -> (Script, UdpTransport) {
    let script = Script::default();
    let transport = UdpTransport::scripted(&script, UdpOffload::ALL, 0);
    (script, transport)
}

/// Returns the result of receiving one datagram of 7 bytes after these errors, which is the same alone and in
/// batches.
fn outcome(errors: &[c_int]) -> Result<usize, RecvError> {
    let (script, transport) = scripted();
    let (mut outcomes, mut buffer) = (Vec::new(), [0; 64]);
    for messages in [0, 1, 2, 16, 17, 32] {
        script.then(Call::Receive, errors.iter().copied().map(Answer::Error));
        script.give_datagram(from(), b"7 bytes");
        let mut batch = RecvBatch::with_buffers(messages, 64);
        let received = match messages {
            0 => transport.recv(&mut buffer).map(|meta| meta.len),
            _ => transport.recv_batch(&mut batch).map(|_| batch.get_mut(0).unwrap().unwrap().0.len),
        };
        outcomes.push(received);
        if received.is_err() {
            assert_eq!(transport.recv(&mut buffer).map(|meta| meta.len), Ok(7), "it is there still");
        }
        assert!(script.is_over());
    }
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
    outcomes[0]
}

/// Errors of packets sent earlier cost no packet that arrives. Without an end of them the caller gets control.
#[test]
fn fault_33_pending_errors_are_skipped_but_not_for_ever() {
    assert_eq!(outcome(&[libc::ECONNREFUSED; SKIPPED_ERRORS]), Ok(7));
    assert_eq!(outcome(&[libc::EMSGSIZE, libc::EHOSTUNREACH, libc::EINTR, libc::ENETUNREACH]), Ok(7));
    assert_eq!(outcome(&[libc::ECONNREFUSED; SKIPPED_ERRORS + 1]), Err(RecvError::Other(libc::ECONNREFUSED)));
    assert_eq!(outcome(&[libc::ECONNREFUSED, libc::EAGAIN]), Err(RecvError::WouldBlock));
}

#[test]
fn fault_26_28_34_every_errno_of_a_receive_has_its_meaning() {
    assert_eq!(outcome(&[libc::EINTR; 100]), Ok(7));
    for (errno, error) in [
        (libc::EAGAIN, RecvError::WouldBlock),
        (libc::EBADF, RecvError::Closed),
        (libc::ENOBUFS, RecvError::Other(libc::ENOBUFS)),
        (libc::ENOMEM, RecvError::Other(libc::ENOMEM)),
    ] {
        assert_eq!(outcome(&[errno]), Err(error));
        assert_eq!(outcome(&[libc::EINTR, errno]), Err(error));
        assert_eq!(error.is_fatal(), errno == libc::EBADF);
    }
}

/// A call that was interrupted within a batch returns what it has, and the next one continues behind it.
#[test]
fn fault_26_a_batch_in_parts_is_whole_and_in_order() {
    let (script, transport) = scripted();
    (0..100).for_each(|number| script.give_datagram(from(), &[number]));
    let parts = [1, 7, 16, 2, 31, 32, 32].map(Answer::AtMost);
    script.then(Call::Receive, parts.into_iter().flat_map(|part| [Answer::Error(libc::EINTR), part]));
    let mut batch = RecvBatch::with_buffers(32, 64);
    let mut all = Vec::new();
    while let Ok(count) = transport.recv_batch(&mut batch) {
        assert!(count == batch.len() && count == batch.iter_mut().count());
        all.extend(batch.iter_mut().map(|message| message.unwrap().1[0]));
    }
    assert!(all.into_iter().eq(0..100) && script.is_over() && batch.is_empty());
}

#[test]
fn fault_24_a_stride_that_cannot_be_makes_one_datagram() {
    let (script, transport) = scripted();
    let mut buffer = Vec::from([0; 4000]);
    let mut stride = |length: usize, segment: Option<c_int>| {
        script.give_message(Arrival {
            from: from(),
            bytes: Vec::from([7; 3000])[..length].to_vec(),
            segment,
            flags: 0,
        });
        let meta = transport.recv(&mut buffer).unwrap();
        (meta.len, meta.stride)
    };
    for segment in [None, Some(0), Some(-1), Some(c_int::MIN), Some(3001), Some(c_int::MAX), Some(0x0578_0000)] {
        assert_eq!(stride(3000, segment), (3000, 3000), "{segment:?}");
        assert_eq!(stride(0, segment), (0, 0), "{segment:?}");
    }
    for segment in [1, 1400, 1500, 2999, 3000] {
        assert_eq!(stride(3000, Some(segment)), (3000, segment as usize));
    }
}

#[test]
fn fault_25_a_truncated_message_is_an_error_of_that_message_alone() {
    let (script, transport) = scripted();
    let mut batch = RecvBatch::with_buffers(5, 100);
    for (length, flags) in [(100, 0), (101, 0), (99, libc::MSG_CTRUNC), (100, libc::MSG_TRUNC), (7, 0)] {
        let bytes = Vec::from([length as u8; 101])[..length].to_vec();
        script.give_message(Arrival { from: from(), bytes, segment: Some(50), flags });
    }
    assert_eq!((transport.recv_batch(&mut batch), batch.len(), batch.is_empty()), (Ok(5), 5, false));
    let expected = [
        Ok((100, 50)),
        Err(RecvError::Truncated { len: 101, have: 100 }),
        Err(RecvError::ControlTruncated { len: 99 }),
        Err(RecvError::Truncated { len: 100, have: 100 }),
        Ok((7, 7)),
    ];
    let all: Vec<_> = batch.iter_mut().map(|message| message.map(|(meta, _)| (meta.len, meta.stride))).collect();
    assert_eq!(all, expected);
    for (number, expected) in expected.into_iter().enumerate() {
        let message = batch.get_mut(number).unwrap();
        assert!(!message.as_ref().is_err_and(|error| error.is_fatal()));
        let found = message.map(|(meta, bytes)| {
            assert!(bytes.len() == meta.len && bytes.iter().all(|byte| usize::from(*byte) == meta.len));
            (meta.len, meta.stride)
        });
        assert_eq!(found, expected);
    }
    assert!(batch.get_mut(5).is_none());
    assert_eq!(transport.recv_batch(&mut batch), Err(RecvError::WouldBlock));
    assert!(batch.is_empty() && batch.get_mut(0).is_none() && batch.iter_mut().next().is_none());
}

#[test]
fn a_batch_has_room_for_1_to_32() {
    for (asked, granted) in [(0, 1), (1, 1), (8, 8), (32, 32), (33, 32), (usize::MAX, 32)] {
        let batch = RecvBatch::with_buffers(asked, 64);
        assert_eq!((batch.capacity(), batch.bytes.len()), (granted, 64 * granted));
    }
}
