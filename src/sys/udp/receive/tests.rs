use super::*;
use alloc::vec::Vec;
use core::ffi::c_int;

fn scripted<T>(script: Vec<Result<T, i32>>) -> impl FnMut() -> io::Result<T> {
    let mut script = script.into_iter();
    move || script.next().unwrap_or(Err(libc::EBADF)).map_err(io::Error::from_raw_os_error)
}

fn from() -> SocketAddr {
    ([10, 168, 0, 3], 8285).into()
}

#[test]
fn pending_errors_are_skipped_but_not_for_ever() {
    let outcome =
        |errors: &[i32]| skip_pending(scripted(errors.iter().map(|errno| Err(*errno)).chain([Ok(7)]).collect()));
    assert_eq!(outcome(&[libc::EINTR; 100]), Ok(7));
    assert_eq!(outcome(&[libc::ECONNREFUSED; SKIPPED_ERRORS]), Ok(7));
    assert_eq!(outcome(&[libc::EMSGSIZE, libc::EHOSTUNREACH, libc::EINTR, libc::ENETUNREACH]), Ok(7));
    assert_eq!(outcome(&[libc::ECONNREFUSED; SKIPPED_ERRORS + 1]), Err(RecvError::Other(libc::ECONNREFUSED)));
    assert_eq!(outcome(&[libc::ECONNREFUSED, libc::EAGAIN]), Err(RecvError::WouldBlock));
    assert_eq!(outcome(&[libc::ENOMEM]), Err(RecvError::Other(libc::ENOMEM)));
    assert_eq!(outcome(&[libc::EBADF]), Err(RecvError::Closed));
}

#[test]
fn fault_24_a_stride_that_cannot_be_makes_one_datagram() {
    let stride = |length: usize, segment: Option<c_int>| {
        RecvMeta::new(&Slot::scripted(from(), length, segment, 0), BUFFER).map(|meta| (meta.len, meta.stride))
    };
    for segment in [None, Some(0), Some(-1), Some(c_int::MIN), Some(3001), Some(c_int::MAX), Some(0x0578_0000)] {
        assert_eq!(stride(3000, segment), Ok((3000, 3000)), "{segment:?}");
        assert_eq!(stride(0, segment), Ok((0, 0)), "{segment:?}");
    }
    for segment in [1, 1400, 1500, 2999, 3000] {
        assert_eq!(stride(3000, Some(segment)), Ok((3000, segment as usize)));
    }
}

#[test]
fn fault_25_what_was_cut_is_an_error_of_that_message_alone() {
    let mut batch = RecvBatch::with_buffers(5, 100);
    let script = [(100, 0), (101, libc::MSG_TRUNC), (99, libc::MSG_CTRUNC), (100, libc::MSG_TRUNC), (7, 0)];
    let filled = batch.fill(|slots, bytes, room| {
        for ((slot, (length, flags)), buffer) in slots.iter_mut().zip(script).zip(bytes.chunks_exact_mut(room)) {
            *slot = Slot::scripted(from(), length, Some(50), flags);
            buffer.fill(length as u8);
        }
        Ok(script.len())
    });
    assert_eq!((filled, batch.len(), batch.is_empty()), (Ok(5), 5, false));
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
    assert_eq!(batch.fill(|_, _, _| Err(RecvError::WouldBlock)), Err(RecvError::WouldBlock));
    assert!(batch.is_empty() && batch.get_mut(0).is_none() && batch.iter_mut().next().is_none());
}

#[test]
fn a_batch_has_room_for_1_to_32() {
    for (asked, granted) in [(0, 1), (1, 1), (8, 8), (32, 32), (33, 32), (usize::MAX, 32)] {
        let batch = RecvBatch::with_buffers(asked, 64);
        assert_eq!((batch.capacity(), batch.bytes.len()), (granted, 64 * granted));
    }
}
