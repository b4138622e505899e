//! Coalescing and segmentation: the output has the packets of the input, and each flow keeps its order.
//!
//! Byte 0: the protocols to coalesce (bit 0 TCP over IPv4, bit 1 UDP over IPv4, bits 2 and 3 the same over IPv6), and the
//! flows that are IPv6 (bits 4 to 7). Then the packets, see [`script`](super::script).

use loden::offload::{Coalesce, Coalesced, Coalescer, OffloadAction, PACKETS_MAX, VnetHeader};
use loden::wire::IpPacket;

use super::model;
use super::script::{Step, steps};
use support::packet::{TCP, UDP};
use support::packet_v6::{is_v6, upper};

pub fn run(bytes: &[u8]) {
    let Some((what, script)) = bytes.split_first() else { return };
    let is = |bit: u8| what & bit != 0;
    let v6 = what >> 4;
    let what = Coalesce { tcp4: is(1), udp4: is(2), tcp6: is(4), udp6: is(8) };
    round_trip(what, &steps(script, v6));
}

/// A packet of the output, and whether it was part of a GSO packet.
#[derive(Clone, Debug)]
pub struct Out {
    pub packet: Vec<u8>,
    pub joined: bool,
}

/// Returns the output, flushed at the end, with GSO packets cut into segments.
pub fn through(coalescer: &mut Coalescer, steps: &[Step]) -> Vec<Out> {
    let mut out = Vec::new();
    let mut deliver = |coalesced: Coalesced<'_>| cut(coalesced, &mut out);
    for step in steps {
        if step.flush {
            coalescer.flush(&mut deliver);
        }
        coalescer.push(&step.packet, &mut deliver);
    }
    coalescer.flush(&mut deliver);
    out
}

fn cut(coalesced: Coalesced<'_>, out: &mut Vec<Out>) {
    let Coalesced { header, packet, packets } = coalesced;
    if packets == 1 {
        assert_eq!(header, VnetHeader::default());
        out.push(Out { packet: packet.to_vec(), joined: false });
        return;
    }
    assert!((2..=PACKETS_MAX).contains(&packets) && packet.len() <= 65_535);
    assert!(IpPacket::parse(packet).is_ok_and(|whole| whole.as_bytes().len() == packet.len()));
    let size = header.gso_size;
    let ecn = model::protocol(packet) == TCP && packet[model::ip_len(packet) + 13] & model::CWR != 0;
    let expected = model::vnet(packet, size);
    assert_eq!(header, VnetHeader { gso_type: expected.gso_type | if ecn { 0x80 } else { 0 }, ..expected });
    assert_eq!(packet, model::partial(packet.to_vec()), "the checksum is partial");
    let Ok(OffloadAction::Segment(many)) = header.inspect(packet) else { panic!("{header:?} for {packet:02x?}") };
    assert_eq!(many.segments(), packets);
    for index in 0..packets {
        let mut one = vec![0; many.len_of(index)];
        many.write_segment(packet, index, &mut one);
        out.push(Out { packet: one, joined: true });
    }
}

pub fn round_trip(what: Coalesce, steps: &[Step]) {
    let mut coalescer = Coalescer::new(what);
    let out = through(&mut coalescer, steps);
    assert_eq!(out.len(), steps.len(), "as many come out as went in");
    let wanted = |packet: &[u8]| match (model::protocol(packet), is_v6(packet)) {
        (TCP, false) => what.tcp4,
        (TCP, true) => what.tcp6,
        (UDP, false) => what.udp4,
        (UDP, true) => what.udp6,
        _ => false,
    };
    assert!(out.iter().all(|out| !out.joined || wanted(&out.packet)));
    coalescer.flush(&mut |_| panic!("nothing is left"));

    let mut flows: Vec<_> = steps.iter().filter_map(|step| Flow::of(&step.packet)).collect();
    flows.sort_unstable();
    flows.dedup();
    for flow in flows {
        let mut before = steps.iter().map(|step| &step.packet).filter(|packet| flow.has(packet));
        let mut after = out.iter().filter(|out| flow.has(&out.packet));
        loop {
            let (before, after) = (before.next(), after.next());
            let (Some(before), Some(Out { packet, joined })) = (before, after) else {
                assert!(before.is_none() && after.is_none(), "{flow:?}: as many come out as went in");
                break;
            };
            let atomic = !is_v6(before) && before[6] & 0x40 != 0;
            assert_eq!(mask(packet, *joined && atomic), mask(before, *joined && atomic), "{flow:?}");
        }
    }
}

/// Clears the fields that coalescing may change if DF is set: identification and header checksum.
fn mask(packet: &[u8], atomic: bool) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if atomic {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// A flow, which keeps its order: addresses, and protocol and ports where known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    hosts: Vec<u8>,
    protocol: Option<u8>,
    ports: Option<[u8; 4]>,
}

impl Flow {
    fn of(packet: &[u8]) -> Option<Self> {
        let at = match packet.first()? >> 4 {
            4 if packet.len() >= 20 => 20,
            6 if packet.len() >= 40 => 40,
            _ => return None,
        };
        let (hosts, protocol, whole) = if at == 20 {
            let whole = packet[0] == 0x45 && packet[6] & 0xbf == 0 && packet[7] == 0;
            (packet[12..20].to_vec(), Some(packet[9]), whole)
        } else {
            let len = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            let has_extensions =
                packet.get(..len).is_some_and(|packet| upper(packet).is_none_or(|upper| upper.at != 40));
            (packet[8..40].to_vec(), (!has_extensions).then_some(packet[6]), !has_extensions)
        };
        let ports = packet.get(at..at + 4).filter(|_| whole).and_then(|ports| ports.try_into().ok());
        Some(Self { hosts, protocol, ports })
    }

    /// Returns whether a packet is of this flow, or of an unknown one between the same hosts.
    fn has(&self, packet: &[u8]) -> bool {
        Self::of(packet).is_some_and(|other| {
            other.hosts == self.hosts
                && (other.protocol == self.protocol || other.protocol.is_none())
                && (other.ports == self.ports || other.ports.is_none())
        })
    }
}
