//! ICMP errors: for any offender, an error is valid, never answers an error, and causes no other.

use loden::forward::Encap;

use support::host::{Host, Outcome};
use support::icmp::{Message, assert_sound_v6};
use support::packet::ICMP;
use support::packet_v6::{ICMPV6, is_v6, upper};
use support::scenario::Scenario;

pub fn run(bytes: &[u8]) {
    let Some(Scenario { host, from, packet }) = Scenario::decode(bytes) else { return };
    for outcome in [host.encapsulate(&packet), host.decapsulate(&packet, from), refused(&host, &packet)] {
        let Some(answer) = outcome.icmp() else { continue };
        if is_v6(&packet) {
            assert_sound_v6(answer, &packet);
            assert!(may_be_answered_v6(&packet), "V16: {packet:02x?}");
        } else {
            Message::parse(answer).assert_sound(&packet);
            assert!(may_be_answered(&packet), "R36 to R40: {packet:02x?}");
        }
        // An ICMP error that arrives where nothing is routed is not answered.
        let nowhere = Host::new(host.config().clone(), Vec::new());
        assert_eq!(nowhere.encapsulate(answer).icmp(), None, "R36");
    }
}

/// Returns the outcome of a sent packet that the path refuses. A checksum of 0xFFFF is left out: after the TTL is
/// restored it is 0, which is the same number.
fn refused(host: &Host, packet: &[u8]) -> Outcome {
    let mut buffer = packet.to_vec();
    let Encap::Send(transmit) = host.forwarder.encapsulate(&mut buffer, &host.table) else {
        return host.encapsulate(packet);
    };
    if !is_v6(packet) && packet[10..12] == [0xff; 2] {
        return host.encapsulate(packet);
    }
    let mut sent = transmit.contents.to_vec();
    host.refused_as_too_long(&mut sent, 1000)
}

fn may_be_answered(packet: &[u8]) -> bool {
    let header = usize::from(packet[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let kind = packet[..total].get(header);
    let is_error = packet[9] == ICMP && !matches!(kind, Some(0 | 8..=10 | 13..=18));
    let later_fragment = packet[6] & 0x1f != 0 || packet[7] != 0;
    !is_error && !later_fragment && packet[12] < 224 && packet[16] < 224
}

fn may_be_answered_v6(packet: &[u8]) -> bool {
    let packet = &packet[..40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))];
    let Some(upper) = upper(packet) else { return false };
    let is_later = upper.fragment.is_some_and(|(offset, _)| offset != 0);
    let kind = packet.get(upper.at).copied();
    let is_error = upper.protocol == ICMPV6 && !is_later && !kind.is_some_and(|kind| kind >= 128 && kind != 137);
    !is_error && packet[8] != 0xff && packet[24] != 0xff
}
