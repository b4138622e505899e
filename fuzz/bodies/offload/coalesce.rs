//! Coalescing and segmentation: the output has the packets of the input, and each flow keeps its order.
//!
//! Byte 0: the protocols to coalesce (bit 0 TCP, bit 1 UDP). Then the packets, see [`script`](super::script).

use loden::offload::{Coalesce, Coalesced, Coalescer, OffloadAction, PACKETS_MAX, VnetHeader};
use loden::wire::ipv4::Ipv4Packet;

use super::model;
use super::script::{Step, steps};
use support::packet::{TCP, UDP};

pub fn run(bytes: &[u8]) {
    let Some((what, script)) = bytes.split_first() else { return };
    let what = Coalesce { tcp: what & 1 != 0, udp: what & 2 != 0 };
    round_trip(what, &steps(script));
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
    assert!(Ipv4Packet::parse(packet).is_ok_and(|whole| whole.as_bytes().len() == packet.len()));
    let size = header.gso_size;
    let ecn = packet[9] == TCP && packet[33] & model::CWR != 0;
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
    let wanted = |packet: &[u8]| if packet[9] == TCP { what.tcp } else { packet[9] == UDP && what.udp };
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
            let atomic = before[6] & 0x40 != 0;
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

/// A flow, which keeps its order: addresses and protocol, and ports where present.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    hosts: Vec<u8>,
    ports: Option<[u8; 4]>,
}

impl Flow {
    fn of(packet: &[u8]) -> Option<Self> {
        if packet.len() < 20 || packet[0] >> 4 != 4 {
            return None;
        }
        let hosts = [&packet[12..20], &packet[9..10]].concat();
        let whole = packet[0] == 0x45 && packet[6] & 0xbf == 0 && packet[7] == 0;
        let ports = packet.get(20..24).filter(|_| whole).and_then(|ports| ports.try_into().ok());
        Some(Self { hosts, ports })
    }

    /// Returns whether a packet is of this flow, or of an unknown one between the same hosts.
    fn has(&self, packet: &[u8]) -> bool {
        let other = Self::of(packet);
        other.is_some_and(|other| other.hosts == self.hosts && (other.ports == self.ports || other.ports.is_none()))
    }
}
