//! The ICMP messages of ping (RFC 792), as an IPv4 raw socket passes them.

use core::net::Ipv4Addr;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
const FRAGMENTATION_NEEDED: u8 = 4;

/// The IP protocol number of ICMP.
pub(crate) const PROTOCOL: u8 = 1;

/// A message that may answer an echo request.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Answer<'a> {
    /// The destination returned the payload.
    Reply { from: Ipv4Addr, ttl: u8, request: Request, payload: &'a [u8] },
    /// A router or host could not deliver the request.
    Error { from: Ipv4Addr, kind: u8, code: u8, mtu: u16, destination: Ipv4Addr, request: Request },
}

/// The identity of an echo request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Request {
    pub(crate) identifier: u16,
    pub(crate) sequence: u16,
}

/// Returns an echo request without an IP header.
pub(crate) fn echo_request(request: Request, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![ECHO_REQUEST, 0, 0, 0];
    message.extend(request.identifier.to_be_bytes());
    message.extend(request.sequence.to_be_bytes());
    message.extend(payload);
    let sum = checksum(&message);
    message.splice(2..4, sum.to_be_bytes());
    message
}

/// Parses a valid echo reply, or a valid error about an echo request. Returns `None` for other messages.
pub(crate) fn parse(packet: &[u8]) -> Option<Answer<'_>> {
    let (outer, message) = Header::split(packet)?;
    if outer.protocol != PROTOCOL || checksum(message) != 0 {
        return None;
    }
    let (&[kind, code, _, _, a, b, c, d], rest) = message.split_first_chunk()?;
    let from = outer.source;
    if kind == ECHO_REPLY {
        let request = Request { identifier: u16::from_be_bytes([a, b]), sequence: u16::from_be_bytes([c, d]) };
        return Some(Answer::Reply { from, ttl: outer.ttl, request, payload: rest });
    }
    if !matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM) {
        return None;
    }
    let (inner, quoted) = Header::split(rest)?;
    let (&[ECHO_REQUEST, 0, _, _, e, f, g, h], _) = quoted.split_first_chunk()? else { return None };
    if inner.protocol != PROTOCOL {
        return None;
    }
    let request = Request { identifier: u16::from_be_bytes([e, f]), sequence: u16::from_be_bytes([g, h]) };
    // RFC 1191 section 4: the MTU is in the low half of a field that other messages leave unused.
    let mtu = if (kind, code) == (UNREACHABLE, FRAGMENTATION_NEEDED) { u16::from_be_bytes([c, d]) } else { 0 };
    Some(Answer::Error { from, kind, code, mtu, destination: inner.destination, request })
}

/// Returns the internet checksum (RFC 1071). It is 0 for bytes that include a correct one.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let mut sum: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    if let [odd] = last {
        sum += u64::from(u16::from_be_bytes([*odd, 0]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

struct Header {
    ttl: u8,
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

impl Header {
    /// Splits an IPv4 packet, or the beginning of one, into header and payload.
    fn split(packet: &[u8]) -> Option<(Self, &[u8])> {
        let fixed: &[u8; 20] = packet.first_chunk()?;
        let &[version_ihl, _, _, _, _, _, _, _, ttl, protocol, _, _, a, b, c, d, e, f, g, h] = fixed;
        let length = usize::from(version_ihl & 0x0f) * 4;
        if version_ihl >> 4 != 4 || length < fixed.len() {
            return None;
        }
        let rest = packet.get(length..)?;
        let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
        Some((Self { ttl, protocol, source, destination }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: Request = Request { identifier: 0x1234, sequence: 7 };
    const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn packet(options: usize, from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45 + options as u8, 0, 0, 0, 0, 0, 0, 0, 61, PROTOCOL, 0, 0];
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(vec![1; options * 4]);
        packet.extend(message);
        packet
    }

    fn with_checksum(mut message: Vec<u8>) -> Vec<u8> {
        message.splice(2..4, [0, 0]);
        let sum = checksum(&message);
        message.splice(2..4, sum.to_be_bytes());
        message
    }

    fn reply() -> Vec<u8> {
        let mut message = echo_request(REQUEST, b"payload");
        message[0] = ECHO_REPLY;
        packet(0, FROM, TO, &with_checksum(message))
    }

    fn fragmentation_needed(quoted_len: usize) -> Vec<u8> {
        let quote = packet(1, TO, FROM, &echo_request(REQUEST, &[1; 100]));
        let mut message = vec![UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, 0x05, 0xc0];
        message.extend(&quote[..quoted_len]);
        packet(0, FROM, TO, &with_checksum(message))
    }

    // The example of RFC 1071 section 3.
    #[test]
    fn checksum_of_the_rfc() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&echo_request(REQUEST, b"odd")), 0);
    }

    #[test]
    fn reply_names_the_request() {
        let wanted = Answer::Reply { from: FROM, ttl: 61, request: REQUEST, payload: b"payload" };
        assert_eq!(parse(&reply()), Some(wanted));
    }

    #[test]
    fn error_names_the_request_from_eight_quoted_bytes_behind_options() {
        let wanted = Answer::Error { from: FROM, kind: 3, code: 4, mtu: 1472, destination: FROM, request: REQUEST };
        assert_eq!(parse(&fragmentation_needed(24 + 8)), Some(wanted));
        assert_eq!(parse(&fragmentation_needed(24 + 7)), None);
    }

    #[test]
    fn cut_or_changed_messages_are_not_answers() {
        for whole in [reply(), fragmentation_needed(40)] {
            assert!(parse(&whole).is_some());
            for length in 0..whole.len() {
                assert_eq!(parse(&whole[..length]), None, "cut to {length}");
            }
            for bit in 20 * 8..whole.len() * 8 {
                let mut changed = whole.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(parse(&changed), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn our_own_request_is_not_an_answer() {
        assert_eq!(parse(&packet(0, FROM, TO, &echo_request(REQUEST, b""))), None);
    }
}
