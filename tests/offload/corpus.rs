//! The fuzz targets' bodies over the committed seeds, and the seeds themselves.
//!
//! `LODEN_WRITE_SEEDS=1 cargo test --test offload seeds` writes them anew.

use super::inspect::{tcp_super, udp_super};
use super::v6;
use bodies::offload;
use bodies::offload::model::{PSH, vnet};
use bodies::offload::script::odd;
use bodies::offload::vnet::{REPAIR_CHECKSUM, REPAIR_LENGTH};
use support::corpus::{assert_committed, run_over};

type Seed = (&'static str, Vec<u8>);

#[test]
fn vnet_over_the_corpus() {
    run_over("vnet", offload::vnet::run);
}

#[test]
fn segment_over_the_corpus() {
    run_over("segment", offload::segment::run);
}

#[test]
fn coalesce_over_the_corpus() {
    run_over("coalesce", offload::coalesce::run);
}

#[test]
fn the_committed_seeds_are_these() {
    for (target, seeds) in [("vnet", vnet_seeds()), ("segment", segment_seeds()), ("coalesce", coalesce_seeds())] {
        assert_committed(target, seeds);
    }
}

fn vnet_seeds() -> Vec<Seed> {
    let seed = |mode, packet: &[u8], size, cut: usize| {
        let packet = &packet[..packet.len().min(cut)];
        [&[mode][..], &vnet(packet, size).to_bytes(), packet].concat()
    };
    let repair = REPAIR_LENGTH | REPAIR_CHECKSUM;
    vec![
        ("empty", vec![]),
        ("nine-bytes", vec![0; 10]),
        ("header-only", vec![0; 11]),
        ("tcp-segments", seed(repair, &tcp_super(), 50, 200)),
        ("tcp-one-segment", seed(repair, &tcp_super(), 500, 200)),
        ("tcp-checksum", seed(repair, &tcp_super(), 0, 200)),
        ("tcp-truncated", seed(0, &tcp_super(), 50, 200)),
        ("udp-segments", seed(0, &udp_super(), 1400, usize::MAX)),
        ("udp-checksum", seed(repair, &udp_super(), 0, 100)),
        ("udp-wrong-length", seed(repair, &udp_super(), 10, 100)),
        ("v6-tcp-segments", seed(repair, &v6::tcp_super(), 50, 200)),
        ("v6-tcp-checksum", seed(repair, &v6::tcp_super(), 0, 200)),
        ("v6-udp-segments", seed(0, &v6::udp_super(), 1400, usize::MAX)),
        ("v6-udp-wrong-length", seed(repair, &v6::udp_super(), 10, 100)),
        ("v6-extension-headers", seed(repair, &v6::behind_extension_headers(), 50, 200)),
    ]
}

fn segment_seeds() -> Vec<Seed> {
    let seed = |shape, flags, fragment, sequence: u32, size: u16, len: u16| {
        let (size, len) = (size.to_be_bytes(), len.to_be_bytes());
        [&[shape, flags, 0, 64, 0xff, 0xfe, fragment], &sequence.to_be_bytes()[..], &size, &len, b"\0payload"].concat()
    };
    vec![
        ("udp", seed(0, 0, 0, 0, 1400, 5000)),
        ("udp-ip-options-one-byte-each", seed(0x0e, 0, 0x40, 0, 1, 50)),
        ("udp-longest", seed(0, 0, 0, 0, 1472, 65_507)),
        ("tcp", seed(1, 0x10, 0x40, 1, 1400, 5000)),
        ("tcp-all-flags-all-options", seed(0xaf, 0xff, 0xc0, 1, 536, 2000)),
        ("tcp-wrap", seed(0x31, 0x99, 0, u32::MAX - 100, 60, 300)),
        ("tcp-one-segment", seed(1, 0x18, 0, 1, 1400, 1400)),
        ("tcp-empty", seed(1, 0x10, 0, 1, 1, 0)),
        ("v6-udp", seed(0, 0, 1, 0, 1400, 5000)),
        ("v6-udp-longest", seed(0, 0, 1, 0, 1472, 65_527)),
        ("v6-udp-one-byte-each", seed(0x04, 0, 1, 0, 1, 50)),
        ("v6-tcp-all-flags-all-options", seed(0xaf, 0xff, 1, 1, 536, 2000)),
        ("v6-tcp-routing-header", seed(0x31, 0x99, 3, u32::MAX - 100, 60, 300)),
    ]
}

fn coalesce_seeds() -> Vec<Seed> {
    let script = |steps: &[[u8; 4]]| [&[3], steps.concat().as_slice()].concat();
    let (tcp, udp) = ([4, 0, 0, 0], [0, 0, 0, 0]);
    let amid = |step: [u8; 4]| script(&[tcp, tcp, step, tcp, tcp]);
    let gap_to_wrap = [4, odd::GAP, 0, 0];
    // All flows are IPv6, or the first two of four.
    let v6 = |steps: &[[u8; 4]]| [&[0xff], steps.concat().as_slice()].concat();
    let both = |steps: &[[u8; 4]]| [&[0x3f], steps.concat().as_slice()].concat();
    let amid_v6 = |step: [u8; 4]| v6(&[tcp, tcp, step, tcp, tcp]);
    vec![
        ("nothing", vec![3]),
        ("neither", [&[0][..], &tcp, &tcp, &udp, &udp].concat()),
        ("tcp-65", script(&[tcp; 65])),
        ("udp-65", script(&[udp; 65])),
        ("udp-with-df", script(&[[0, odd::DONT_FRAGMENT, 0, 0]; 5])),
        ("by-turns", script(&[tcp, udp, [1, 0, 0, 0], [5, 0, 0, 0]].repeat(4))),
        ("nine-flows", script(&(0..9).map(|flow| [flow, 0, 0, 0]).collect::<Vec<_>>().repeat(3))),
        ("longest", script(&[[4, 0, 0, 255]; 65])),
        ("psh", amid([4, 0, PSH, 0])),
        ("cwr", amid([4, 0, 0x80, 0])),
        ("shorter", amid([0x34, 0, 0, 0])),
        ("options", script(&[[4, odd::OPTIONS, 0, 0]; 5])),
        ("broken", amid([4, odd::BROKEN, 200, 0])),
        ("gap", amid([4, odd::GAP, 0, 3])),
        ("wrap", script(&[gap_to_wrap, tcp, tcp, tcp, tcp, tcp])),
        ("ttl", amid([4, odd::TTL_OR_TOS, 0, 1])),
        ("fragment", amid([4, odd::FRAGMENT, 0, 1])),
        ("icmp", amid([4, odd::OTHER, 0, 0])),
        ("ip-options", amid([4, odd::OTHER, 0, 1])),
        ("flush", amid([4, odd::FLUSH, 0, 0])),
        ("no-udp-checksum", script(&[udp, udp, [0, odd::OTHER, 0, 3], udp, udp])),
        ("v6-tcp-65", v6(&[tcp; 65])),
        ("v6-udp-65", v6(&[udp; 65])),
        ("v6-not-wanted", [&[0xf3][..], &tcp, &tcp, &udp, &udp].concat()),
        ("v6-nine-flows", both(&(0..9).map(|flow| [flow, 0, 0, 0]).collect::<Vec<_>>().repeat(3))),
        ("v6-longest", v6(&[[4, 0, 0, 255]; 65])),
        ("v6-broken", amid_v6([4, odd::BROKEN, 200, 0])),
        ("v6-hop-limit", amid_v6([4, odd::TTL_OR_TOS, 0, 1])),
        ("v6-flow-label", amid_v6([4, odd::TTL_OR_TOS, 0, 0x10])),
        ("v6-fragment", amid_v6([4, odd::FRAGMENT, 0, 1])),
        ("v6-extension-header", amid_v6([4, odd::OTHER, 0, 1])),
        ("v6-icmp", amid_v6([4, odd::OTHER, 0, 0])),
    ]
}
