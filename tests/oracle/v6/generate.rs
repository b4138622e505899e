//! Random packets: mostly valid ones with one oddity, and damaged ones.

use core::net::Ipv6Addr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::sweeps::Way;
use crate::shape::Edit;
use support::host::{POD_A_V6, POD_C_V6, POD_V6};
use support::packet::{TCP, UDP, pattern, udp};
use support::packet_v6::{
    DESTINATION_OPTIONS, HOP_BY_HOP, ICMPV6, Ipv6, ROUTING, destination_options, fragment, segment_routing,
};

/// The fields of a packet, and its damage.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) packet: Ipv6,
    /// The changes of bytes, by position.
    pub(super) edits: Vec<(usize, Edit)>,
    /// The number of received bytes, if fewer than all.
    pub(super) cut: Option<usize>,
}

impl From<Ipv6> for Shape {
    fn from(packet: Ipv6) -> Self {
        Self { packet, edits: Vec::new(), cut: None }
    }
}

impl Shape {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.packet.bytes();
        for (at, edit) in &self.edits {
            if let Some(byte) = bytes.get_mut(*at) {
                match edit {
                    Edit::Flip(bits) => *byte ^= bits,
                    Edit::Set(value) => *byte = *value,
                }
            }
        }
        bytes.truncate(self.cut.unwrap_or(usize::MAX));
        bytes
    }
}

/// Returns packets of this direction.
pub(super) fn shapes(way: Way) -> impl Strategy<Value = Shape> {
    let flip = (0usize..100, 0u32..8).prop_map(|(at, bit)| (at, Edit::Flip(1 << bit)));
    let set = (0usize..100, any::<u8>()).prop_map(|(at, value)| (at, Edit::Set(value)));
    let edits = prop_oneof![3 => vec(flip, 1..=1), 2 => vec(set, 1..4)];
    let damaged = (packet(way), edits).prop_map(|(packet, edits)| Shape { edits, ..packet.into() });
    let len = prop_oneof![
        1 => Just(None),
        1 => Just(Some(0)),
        2 => (0u16..120).prop_map(Some),
        1 => any::<u16>().prop_map(Some),
    ];
    let cut = prop_oneof![2 => Just(None), 1 => (0usize..120).prop_map(Some)];
    let lying = (packet(way), len, cut)
        .prop_map(|(packet, payload_len, cut)| Shape { cut, ..Ipv6 { payload_len, ..packet }.into() });
    prop_oneof![12 => packet(way).prop_map(Shape::from), 6 => damaged, 2 => lying]
}

fn packet(way: Way) -> impl Strategy<Value = Ipv6> {
    let hop_limit = prop_oneof![4 => Just(64u8), 3 => Just(1), 1 => Just(0), 1 => Just(2), 1 => any::<u8>()];
    let trailer = prop_oneof![5 => Just(0usize), 1 => 1usize..50];
    let header = (source(way), destination(way), hop_limit, any::<u8>(), 0u32..1 << 20);
    (header, upper_layer(), extensions(), trailer).prop_map(|(header, upper, extensions, trailer)| {
        let (source, (destination, mtu), hop_limit, traffic_class, flow_label) = header;
        let headers = 40 + extensions.iter().map(|(_, header)| header.len()).sum::<usize>();
        let (protocol, payload) = upper.bytes(upper.size.len(mtu).saturating_sub(headers));
        let trailer = vec![0xee; trailer];
        let packet = Ipv6::new(source, destination);
        Ipv6 { traffic_class, flow_label, hop_limit, extensions, protocol, payload, trailer, ..packet }
    })
}

/// Returns addresses of every class, and those at the edges of classes.
fn odd_address() -> impl Strategy<Value = Ipv6Addr> {
    let special = select(vec![
        "::",
        "::1",
        "::2",
        "::10.1.2.3",
        "::ffff:10.168.0.3",
        "::fffe:10.168.0.3",
        "64:ff9b::808:808",
        "2001:db8::1",
        "fc00::1",
        "fe7f::1",
        "fe80::1",
        "febf:ffff::1",
        "fec0::1",
        "feff::1",
        "ff00::1",
        "ff01::5",
        "ff02::5",
        "ff0e::5",
        "ff32::5",
        "fd00:168::2",
        "fd00:168::4",
    ]);
    let special = special.prop_map(|text| text.parse::<Ipv6Addr>().unwrap());
    let class = (select(vec![0u8, 0xfd, 0xfe, 0xfe, 0xff]), any::<[u8; 15]>()).prop_map(|(first, rest)| {
        let mut octets = [first; 16];
        octets[1..].copy_from_slice(&rest);
        octets.into()
    });
    prop_oneof![4 => special, 1 => class]
}

fn pod() -> impl Strategy<Value = Ipv6Addr> {
    let high = select(vec![0u16, 0x7fff, 0x8000, 0xefff, 0xf000]);
    (0u16..9, high, 0u16..16).prop_map(|(subnet, high, last)| Ipv6Addr::new(0xfd00, 0x96, subnet, 0, high, 0, 0, last))
}

fn source(way: Way) -> impl Strategy<Value = Ipv6Addr> {
    let any_other = any::<[u8; 16]>().prop_map(Ipv6Addr::from);
    let pods = select(vec![POD_V6, POD_A_V6, POD_C_V6]);
    prop_oneof![20 => Just(way.source), 2 => odd_address(), 1 => any_other, 1 => pods, 1 => pod()]
}

/// Returns a destination, and the longest packet to it.
fn destination(way: Way) -> impl Strategy<Value = (Ipv6Addr, usize)> {
    let any_other = any::<[u8; 16]>().prop_map(Ipv6Addr::from);
    let others = prop_oneof![3 => pod(), 2 => odd_address(), 1 => any_other];
    prop_oneof![3 => select(way.destinations.to_vec()), 1 => (others, select(vec![1280, 1472]))]
}

/// The length of a packet.
#[derive(Clone, Copy, Debug)]
enum Size {
    Total(usize),
    /// The MTU, and a little more or less.
    Fitting(isize),
}

impl Size {
    fn len(self, mtu: usize) -> usize {
        match self {
            Self::Total(len) => len,
            Self::Fitting(more) => mtu.saturating_add_signed(more),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// With a checksum of 0, which is wrong in IPv6.
    Udp {
        port: u16,
    },
    Icmp {
        kind: u8,
    },
    Other {
        protocol: u8,
    },
    Stub {
        protocol: u8,
    },
}

/// An upper layer whose length depends on the headers before it.
#[derive(Clone, Copy, Debug)]
struct UpperLayer {
    kind: Kind,
    size: Size,
}

impl UpperLayer {
    fn bytes(self, room: usize) -> (u8, Vec<u8>) {
        match self.kind {
            Kind::Udp { port } => (UDP, udp(4000, port, &pattern(room.saturating_sub(8)))),
            Kind::Icmp { kind } => (ICMPV6, [&[kind][..], &pattern(room.saturating_sub(1))].concat()),
            Kind::Other { protocol } => (protocol, pattern(room)),
            Kind::Stub { protocol } => (protocol, pattern(room % 8)),
        }
    }
}

fn upper_layer() -> impl Strategy<Value = UpperLayer> {
    let size = prop_oneof![
        5 => (0usize..160).prop_map(Size::Total),
        5 => (-20isize..20).prop_map(Size::Fitting),
        2 => (1220usize..1300).prop_map(Size::Total),
        1 => (0usize..5000).prop_map(Size::Total),
    ];
    let kind = prop_oneof![
        3 => select(vec![1u16, 53, 8285, 9000, 65_535]).prop_map(|port| Kind::Udp { port }),
        3 => prop_oneof![0u8..6, 126u8..140, any::<u8>()].prop_map(|kind| Kind::Icmp { kind }),
        2 => prop_oneof![select(vec![TCP, 4, 41, 50, 59]), any::<u8>()].prop_map(|protocol| Kind::Other { protocol }),
        1 => select(vec![ICMPV6, UDP, TCP]).prop_map(|protocol| Kind::Stub { protocol }),
    ];
    (kind, size).prop_map(|(kind, size)| UpperLayer { kind, size })
}

/// Returns extension headers, sound ones and such as do not fit.
fn extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let offset = || prop_oneof![2 => Just(0u16), 1 => 1u16..0x2000];
    let one = prop_oneof![
        3 => (1usize..4).prop_map(destination_options),
        1 => hop_by_hop(),
        3 => (offset(), any::<bool>()).prop_map(|(offset, more)| fragment(offset, more)),
        1 => Just(segment_routing(Ipv6Addr::LOCALHOST)),
        1 => (select(vec![0u8, 1, 2, 3, 4, 6, 255]), any::<u8>())
            .prop_map(|(kind, left)| (ROUTING, vec![0, 0, kind, left, 0, 0, 0, 0])),
        1 => Just((51, [&[0, 4][..], &[7; 22]].concat())),
        1 => select(vec![135u8, 139, 140]).prop_map(|kind| (kind, vec![0, 0, 1, 2, 3, 4, 5, 6])),
        1 => any::<u8>().prop_map(|words| (DESTINATION_OPTIONS, vec![0, words, 1, 4, 0, 0, 0, 0])),
    ];
    let first = (hop_by_hop(), vec(one.clone(), 0..3)).prop_map(|(first, others)| [vec![first], others].concat());
    let many = (7usize..11).prop_map(|count| vec![destination_options(1); count]);
    prop_oneof![6 => Just(Vec::new()), 5 => vec(one, 1..4), 3 => first, 1 => many]
}

/// Returns hop-by-hop options: known ones, unknown ones and padding, and any bytes.
fn hop_by_hop() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let option = prop_oneof![
        2 => Just(vec![0]),
        3 => (0u8..7).prop_map(|len| [&[1, len][..], &vec![0; len.into()]].concat()),
        2 => Just(vec![5, 2, 0, 0]),
        1 => Just(vec![0xc2, 4, 0, 1, 0, 0]),
        1 => any::<u32>().prop_map(|len| [&[0xc2, 4][..], &len.to_be_bytes()].concat()),
        2 => (any::<u8>(), 0u8..6).prop_map(|(kind, len)| [&[kind, len][..], &pattern(len.into())].concat()),
    ];
    let list = prop_oneof![4 => vec(option, 0..5).prop_map(|list| list.concat()), 1 => vec(any::<u8>(), 0..30)];
    (list, proptest::bool::weighted(0.8)).prop_map(|(mut list, is_padded)| {
        let rest = (list.len() + 2).next_multiple_of(8) - list.len() - 2;
        match (is_padded, rest) {
            (true, 2..) => {
                list.extend([1, rest as u8 - 2]);
                list.resize(list.len() + rest - 2, 0);
            }
            _ => list.resize(list.len() + rest, 0),
        }
        (HOP_BY_HOP, [&[0, (list.len() / 8) as u8][..], &list].concat())
    })
}
