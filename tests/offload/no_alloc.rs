//! Segmentation and coalescing do not allocate.

use loden::offload::{Coalesced, Coalescer, OffloadAction};

use super::coalesce::{ALL, udp_packets};
use super::inspect::{tcp_super, udp_super};
use super::segment::segments;
use super::v6;
use bodies::offload::model::vnet;
use bodies::offload::script::steps;
use support::allocations::allocations;

#[test]
fn cutting_does_not_allocate() {
    let mut out = [0; 2048];
    for mut packet in [tcp_super(), udp_super(), v6::tcp_super(), v6::udp_super()] {
        for size in [0, 1, 1000, 3000] {
            let header = vnet(&packet, size);
            let calls = allocations(|| match header.inspect(&packet) {
                Ok(OffloadAction::Segment(many)) => {
                    for index in 0..many.segments() {
                        many.write_segment(&packet, index, &mut out[..many.len_of(index)]);
                    }
                }
                Ok(OffloadAction::Checksum(partial)) => partial.complete(&mut packet),
                other => panic!("{other:?}"),
            });
            assert_eq!(calls, 0);
        }
    }
}

/// The input has GSO packets, more flows than the coalescer holds, and odd packets.
#[test]
fn joining_does_not_allocate_after_the_constructor() {
    let mut packets =
        [segments(&tcp_super(), 100), segments(&udp_super(), 100), udp_packets(100, 64, 999, |_| ())].concat();
    packets.extend([segments(&v6::tcp_super(), 100), segments(&v6::udp_super(), 100)].concat());
    let script: Vec<_> = (0..4000u32).map(|i| (i * i / 8) as u8).collect();
    packets.extend(steps(&script, 0b0110).into_iter().map(|step| step.packet));
    let mut coalescer = Coalescer::new(ALL);
    let (mut joined, mut single) = (0, 0);
    let calls = allocations(|| {
        let mut deliver = |coalesced: Coalesced<'_>| {
            if coalesced.packets > 1 { joined += 1 } else { single += 1 }
        };
        for _ in 0..20 {
            for packet in &packets {
                coalescer.push(packet, &mut deliver);
            }
            coalescer.flush(&mut deliver);
        }
    });
    assert_eq!(calls, 0);
    assert!(joined > 20 && single > 20, "{joined} joined, {single} alone");
}
