//! Control messages: the metadata of a message (cmsg(3)).

use core::ffi::c_int;

/// Bytes for the control messages of one message. Sends and receives have two at most, of 24 bytes each.
const ROOM: usize = 64;
/// The size of struct `cmsghdr` in the kernel (include/linux/socket.h): a `size_t` and two `int`.
const HEADER: usize = size_of::<usize>() + 2 * size_of::<c_int>();
/// The alignment of control messages (`CMSG_ALIGN`, ibid.).
const ALIGN: usize = size_of::<usize>();

const _: () = assert!(HEADER == size_of::<libc::cmsghdr>());

/// The kind of a control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    level: c_int,
    number: c_int,
}

impl Kind {
    /// The type of service of an IPv4 packet. The kernel accepts an `int` or a byte and returns a byte
    /// (net/ipv4/ip_sockglue.c).
    pub(super) const IP_TOS: Self = Self { level: libc::IPPROTO_IP, number: libc::IP_TOS };
    /// The traffic class of an IPv6 packet, an `int`.
    pub(super) const IPV6_TCLASS: Self = Self { level: libc::IPPROTO_IPV6, number: libc::IPV6_TCLASS };
    /// The size of all datagrams of a received GRO batch but the last, an `int` (net/ipv4/udp.c, `udp_cmsg_recv`).
    pub(super) const UDP_GRO: Self = Self { level: libc::SOL_UDP, number: libc::UDP_GRO };
    /// The size of all datagrams of a GSO batch but the last, a `u16` (`__udp_cmsg_send`, ibid.).
    pub(super) const UDP_SEGMENT: Self = Self { level: libc::SOL_UDP, number: libc::UDP_SEGMENT };
}

/// The control messages of one message.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Control {
    bytes: [u8; ROOM],
}

/// Bytes of [`Control`].
pub(super) const CONTROL_LENGTH: usize = size_of::<Control>();

impl Control {
    pub(super) const EMPTY: Self = Self { bytes: [0; ROOM] };

    /// Writes a control message at `at` and returns the position of the next one. One that does not fit is omitted.
    #[inline]
    pub(super) fn put<const N: usize>(&mut self, at: usize, kind: Kind, value: [u8; N]) -> usize {
        let Some(room) = self.bytes.get_mut(at..).and_then(|room| room.get_mut(..(HEADER + N).next_multiple_of(ALIGN)))
        else {
            return at;
        };
        let used = room.len();
        let (length, rest) = room.split_at_mut(size_of::<usize>());
        length.copy_from_slice(&(HEADER + N).to_ne_bytes());
        let (level, rest) = rest.split_at_mut(size_of::<c_int>());
        level.copy_from_slice(&kind.level.to_ne_bytes());
        let (number, rest) = rest.split_at_mut(size_of::<c_int>());
        number.copy_from_slice(&kind.number.to_ne_bytes());
        rest.split_at_mut(N).0.copy_from_slice(&value);
        at + used
    }

    /// Returns the first `length` bytes.
    #[inline]
    pub(super) fn bytes(&self, length: usize) -> &[u8] {
        self.bytes.get(..length).unwrap_or(&self.bytes)
    }
}

/// Returns the control messages in these bytes, up to the first malformed one.
#[inline]
pub(super) fn entries(control: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    let mut rest = control;
    core::iter::from_fn(move || {
        let (length, fields) = rest.split_first_chunk()?;
        let (level, fields) = fields.split_first_chunk()?;
        let (number, _) = fields.split_first_chunk()?;
        let length = usize::from_ne_bytes(*length);
        let value = rest.get(HEADER..length)?;
        rest = rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((Kind { level: c_int::from_ne_bytes(*level), number: c_int::from_ne_bytes(*number) }, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn control_messages_are_decoded_as_they_were_encoded() {
        let mut control = Control::EMPTY;
        let one = control.put(0, Kind::UDP_SEGMENT, 1400_u16.to_ne_bytes());
        let two = control.put(one, Kind::IP_TOS, 3_i32.to_ne_bytes());
        let expected = [(Kind::UDP_SEGMENT, &1400_u16.to_ne_bytes()[..]), (Kind::IP_TOS, &3_i32.to_ne_bytes()[..])];
        assert_eq!(entries(control.bytes(two)).collect::<Vec<_>>(), expected);
        assert_eq!(entries(control.bytes(one)).collect::<Vec<_>>(), expected[..1]);
        assert_eq!(entries(control.bytes(0)).count(), 0);
        // The kernel does not count the padding after the last one.
        assert_eq!(entries(control.bytes(one + HEADER + 4)).count(), 2);
    }

    #[test]
    fn entries_of_any_length_are_safe() {
        for length in [0, 1, HEADER - 1, ROOM + 1, usize::MAX, usize::MAX - 7] {
            let mut control = Control::EMPTY;
            let end = control.put(0, Kind::IP_TOS, [1]);
            let end = control.put(end, Kind::IP_TOS, [1]);
            control.bytes[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(entries(control.bytes(end)).count(), 0, "{length}");
        }
        for length in 0..=ROOM {
            assert!(entries(Control { bytes: [0xff; ROOM] }.bytes(length)).next().is_none());
            assert!(entries(Control { bytes: [0; ROOM] }.bytes(length)).next().is_none());
        }
    }

    #[test]
    fn messages_that_do_not_fit_are_omitted() {
        let mut control = Control::EMPTY;
        assert_eq!(control.put(0, Kind::IP_TOS, [0; ROOM]), 0);
        assert_eq!(control.put(ROOM, Kind::IP_TOS, [0]), ROOM);
    }
}
