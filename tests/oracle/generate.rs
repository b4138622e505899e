//! Packets by chance: mostly sound ones that something is odd about, and those that are damaged.

use core::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

use crate::shape::{Edit, FRESH, Shape};
use crate::sweeps::Way;
use crate::world::BROADCASTS;
use support::packet::{
    DF, ICMP, Ipv4, LOOSE_SOURCE_ROUTE, MF, RECORD_ROUTE, ROUTER_ALERT, STRICT_SOURCE_ROUTE, TCP, UDP, icmp, pattern,
    udp,
};

/// Packets that come in this way.
pub(crate) fn shapes(way: Way) -> impl Strategy<Value = Shape> {
    let flip = (0usize..64, 0u32..8).prop_map(|(at, bit)| (at, Edit::Flip(1 << bit)));
    let set = (0usize..64, any::<u8>()).prop_map(|(at, value)| (at, Edit::Set(value)));
    let edits = prop_oneof![3 => vec(flip, 1..=1), 2 => vec(set, 1..4)];
    let sound = packet(way).prop_map(Shape::from);
    let damaged = (packet(way), edits, any::<bool>());
    let damaged = damaged.prop_map(|(packet, edits, repair)| Shape { packet, edits, repair });
    let lying = (packet(way), lengths()).prop_map(|(packet, (ihl, total, cut))| {
        let cut = cut.or(packet.cut);
        Shape::from(Ipv4 { ihl, total, cut, ..packet })
    });
    prop_oneof![12 => sound, 6 => damaged, 2 => lying]
}

/// A header length, a total length and a number of bytes received that are not the packet's.
fn lengths() -> impl Strategy<Value = (Option<u8>, Option<u16>, Option<usize>)> {
    let ihl = prop_oneof![3 => Just(None), 1 => (0u8..16).prop_map(Some)];
    let total = prop_oneof![1 => Just(None), 2 => (0u16..100).prop_map(Some), 1 => any::<u16>().prop_map(Some)];
    let cut = prop_oneof![2 => Just(None), 1 => (0usize..100).prop_map(Some)];
    (ihl, total, cut)
}

fn packet(way: Way) -> impl Strategy<Value = Ipv4> {
    let ttl = prop_oneof![4 => Just(64u8), 3 => Just(1), 1 => Just(0), 1 => Just(2), 1 => any::<u8>()];
    let fragment = prop_oneof![
        6 => Just(0u16),
        5 => Just(DF),
        2 => Just(MF),
        2 => any::<u16>(),
        1 => (0x1f00u16..0x2000, select(vec![0, MF])).prop_map(|(offset, more)| offset | more),
    ];
    let trailer = prop_oneof![5 => Just(0usize), 1 => 1usize..50];
    let header = (source(way), destination(way), ttl, fragment, any::<u8>(), any::<u16>());
    (header, payload(), options(), trailer).prop_map(|(header, payload, options, trailer)| {
        let (source, (destination, mtu), ttl, fragment, tos, id) = header;
        let headers = 20 + options.len().next_multiple_of(4);
        let (protocol, payload) = payload.bytes(|size| size.len(mtu).saturating_sub(headers));
        let trailer = vec![0xee; trailer];
        Ipv4 { ttl, fragment, tos, id, protocol, payload, options, trailer, ..Ipv4::new(source, destination) }
    })
}

/// The classes that no packet may be of, or from, and others at their edges.
fn odd_address() -> impl Strategy<Value = Ipv4Addr> {
    let first = select(vec![0u8, 0, 1, 126, 127, 128, 223, 224, 239, 240, 240, 255]);
    let class = (first, any::<[u8; 3]>()).prop_map(|(first, [b, c, d])| Ipv4Addr::new(first, b, c, d));
    // Those of them that have a route.
    let routed = (select(vec![[0, 7, 7], [240, 1, 9], [169, 254, 7]]), any::<u8>());
    let routed = routed.prop_map(|([a, b, c], d)| Ipv4Addr::new(a, b, c, d));
    let link_local = any::<[u8; 2]>().prop_map(|[c, d]| Ipv4Addr::new(169, 254, c, d));
    let one = select(vec![Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST]);
    prop_oneof![4 => class, 3 => routed, 1 => link_local, 1 => one]
}

fn source(way: Way) -> impl Strategy<Value = Ipv4Addr> {
    let any_other = any::<[u8; 4]>().prop_map(Ipv4Addr::from);
    let underlay = (0u8..8).prop_map(|last| Ipv4Addr::new(10, 168, 0, last));
    let pods = (1u8..6, any::<u8>()).prop_map(|(subnet, last)| Ipv4Addr::new(100, 96, subnet, last));
    let broadcast = select(BROADCASTS.to_vec());
    prop_oneof![20 => Just(FRESH), 2 => odd_address(), 1 => any_other, way.other_sources() => prop_oneof![underlay, pods, broadcast]]
}

/// With how long a packet to it may be.
fn destination(way: Way) -> impl Strategy<Value = (Ipv4Addr, usize)> {
    let known = select(way.destinations.to_vec());
    let pods = (1u8..6, any::<u8>()).prop_map(|(subnet, last)| Ipv4Addr::new(100, 96, subnet, last));
    let any_other = any::<[u8; 4]>().prop_map(Ipv4Addr::from);
    let underlay = (0u8..8).prop_map(|last| Ipv4Addr::new(10, 168, 0, last));
    let others =
        prop_oneof![3 => pods, 2 => odd_address(), 1 => any_other, 1 => underlay, 1 => select(BROADCASTS.to_vec())];
    prop_oneof![3 => known, 1 => (others, select(vec![576, 1472]))]
}

/// The length of a packet.
#[derive(Clone, Copy, Debug)]
enum Size {
    Total(usize),
    /// So many times what fits, and a little more or less.
    Fitting(usize, isize),
}

impl Size {
    fn len(self, mtu: usize) -> usize {
        match self {
            Self::Total(len) => len,
            Self::Fitting(times, more) => (times * mtu).saturating_add_signed(more),
        }
    }
}

#[derive(Clone, Debug)]
enum Payload {
    Udp { port: u16 },
    Icmp { kind: u8, code: u8 },
    Other { protocol: u8 },
    Stub { protocol: u8 },
}

fn payload() -> impl Strategy<Value = Sized> {
    let size = prop_oneof![
        4 => (0usize..120).prop_map(Size::Total),
        5 => (1usize..5, -20isize..20).prop_map(|(times, more)| Size::Fitting(times, more)),
        2 => (540usize..600).prop_map(Size::Total),
        1 => (0usize..5000).prop_map(Size::Total),
    ];
    let port = select(vec![1u16, 53, 8285, 8286, 9000, 65_535]);
    let payload = prop_oneof![
        3 => port.prop_map(|port| Payload::Udp { port }),
        3 => (0u8..20, any::<u8>()).prop_map(|(kind, code)| Payload::Icmp { kind, code }),
        1 => any::<u8>().prop_map(|kind| Payload::Icmp { kind, code: 0 }),
        2 => prop_oneof![Just(TCP), any::<u8>()].prop_map(|protocol| Payload::Other { protocol }),
        1 => select(vec![ICMP, UDP, TCP]).prop_map(|protocol| Payload::Stub { protocol }),
    ];
    (payload, size).prop_map(|(payload, size)| Sized { payload, size })
}

/// A payload that is to be made once the length of the header is known.
#[derive(Clone, Debug)]
struct Sized {
    payload: Payload,
    size: Size,
}

impl Sized {
    fn bytes(&self, room: impl Fn(Size) -> usize) -> (u8, Vec<u8>) {
        let room = room(self.size);
        let data = pattern(room.saturating_sub(8));
        match self.payload {
            Payload::Udp { port } => (UDP, udp(4000, port, &data)),
            Payload::Icmp { kind, code } => (ICMP, icmp(kind, code, &data)),
            Payload::Other { protocol } => (protocol, pattern(room)),
            Payload::Stub { protocol } => (protocol, icmp(8, 0, b"")[..room % 8].to_vec()),
        }
    }
}

fn options() -> impl Strategy<Value = Vec<u8>> {
    let fixed: [&[u8]; 9] = [
        &RECORD_ROUTE,
        &ROUTER_ALERT,
        &LOOSE_SOURCE_ROUTE,
        &STRICT_SOURCE_ROUTE,
        &[1],
        &[0],
        &[130, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        &[0xde, 2],
        &[99, 1],
    ];
    let fixed = select(fixed.map(<[u8]>::to_vec).to_vec());
    let fixed_rarely_broken = prop_oneof![4 => fixed.clone().prop_filter("sound", |one| one[0] != 99), 1 => fixed];
    let route =
        (0u8..10, 0u8..45).prop_map(|(entries, pointer)| filled(&[7, 3 + 4 * entries, pointer], 3 + 4 * entries));
    let stamps = (4u8..=40, 0u8..45, select(vec![0u8, 1, 3, 2, 0xf0, 0xe1, 0x13]));
    let stamps = stamps.prop_map(|(len, pointer, flags)| filled(&[68, len, pointer, flags], len));
    let one: Union<BoxedStrategy<Vec<u8>>> = Union::new_weighted(vec![
        (6, fixed_rarely_broken.boxed()),
        (2, route.boxed()),
        (2, stamps.boxed()),
        (1, (any::<u8>(), 2u8..9).prop_map(|(kind, len)| filled(&[kind, len], len)).boxed()),
    ]);
    let list = vec(one, 1..5).prop_map(|list| list.concat());
    let list = list.prop_map(|mut list| {
        // The last one may be cut off by that.
        list.truncate(40);
        list
    });
    prop_oneof![5 => Just(Vec::new()), 4 => list, 1 => vec(any::<u8>(), 0..=40)]
}

/// An option that begins like this, as long as that.
fn filled(head: &[u8], len: u8) -> Vec<u8> {
    let mut option = pattern(len.into());
    option[..head.len()].copy_from_slice(head);
    option
}
