//! Segmentation against a naive model and against etherparse.

use loden::offload::OffloadAction;
use proptest::prelude::*;

use bodies::offload;
use bodies::offload::model::{Tcp, partial, timestamp, vnet};
use bodies::offload::opinion;
use support::host::outbound;
use support::packet::{DF, Ipv4, TCP, pattern, udp};

/// Returns the segments of a GSO packet.
pub(crate) fn segments(packet: &[u8], size: u16) -> Vec<Vec<u8>> {
    let Ok(OffloadAction::Segment(many)) = vnet(packet, size).inspect(packet) else {
        panic!("not many: {packet:02x?}")
    };
    let write = |index| {
        let mut out = vec![0xfb; many.len_of(index)];
        many.write_segment(packet, index, &mut out);
        opinion::assert_sound(packet, size, index, &out);
        out
    };
    (0..many.segments()).map(write).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn segments_are_those_of_the_model(
        shape in any::<[u8; 11]>(),
        size in prop_oneof![1u16..3000, any::<u16>()],
        len in prop_oneof![0u16..6000, any::<u16>()],
        seed in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let bytes = [&shape[..], &size.to_be_bytes(), &len.to_be_bytes(), &[0], &seed].concat();
        offload::segment::run(&bytes);
    }
}

/// Every option and flag, and an identification and a sequence number that wrap. [`segments`] checks them.
#[test]
fn etherparse_finds_every_segment_sound() {
    let payload = pattern(10_001);
    let tcp = Tcp { flags: 0xff, options: timestamp(1, 2), ..Tcp::new(0xffff_f000, payload.clone()) };
    let tcp = Ipv4 { protocol: TCP, payload: tcp.bytes(), options: vec![1; 40], fragment: DF, ..outbound() };
    let udp = Ipv4 { payload: udp(4000, 53, &payload), id: 0xfffe, ..outbound() };
    for packet in [tcp, udp] {
        assert_eq!(segments(&partial(packet.bytes()), 1420).len(), 8);
    }
}

#[test]
fn fault_22_identifications_count_up_and_wrap() {
    for fragment in [0, DF] {
        let packet = Ipv4 { payload: udp(1, 2, &pattern(500)), id: 0xfffd, fragment, ..outbound() };
        let ids = segments(&partial(packet.bytes()), 100)
            .iter()
            .map(|one| u16::from_be_bytes([one[4], one[5]]))
            .collect::<Vec<_>>();
        assert_eq!(ids, [0xfffd, 0xfffe, 0xffff, 0, 1]);
    }
}

#[test]
fn sequence_numbers_wrap() {
    let packet = Ipv4 { protocol: TCP, payload: Tcp::new(0xffff_ff00, pattern(600)).bytes(), ..outbound() };
    let all = segments(&partial(packet.bytes()), 200);
    let sequences = all.iter().map(|one| u32::from_be_bytes(one[24..28].try_into().unwrap())).collect::<Vec<_>>();
    assert_eq!(sequences, [0xffff_ff00, 0xffff_ffc8, 0x90]);
}
