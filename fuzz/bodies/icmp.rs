//! ICMP errors: for any offender, an error is valid, never answers an error, and causes no other.

use loden::forward::Encap;

use support::host::{Host, Outcome};
use support::icmp::Message;
use support::packet::ICMP;
use support::scenario::Scenario;

pub fn run(bytes: &[u8]) {
    let Some(Scenario { host, from, packet }) = Scenario::decode(bytes) else { return };
    for outcome in [host.encapsulate(&packet), host.decapsulate(&packet, from), refused(&host, &packet)] {
        let Some(answer) = outcome.icmp() else { continue };
        let message = Message::parse(answer);
        message.assert_sound(&packet);
        assert!(may_be_answered(&packet), "R36 to R40: {packet:02x?}");
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
    if packet[10..12] == [0xff; 2] {
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
