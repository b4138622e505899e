//! The kernel as the oracle for IPv6, as in [`kernel`](super::kernel). Needs root.

use core::net::Ipv6Addr;

use loden::offload::VnetHeader;

use super::kernel::on_an_ipv6_router;
use super::v6::{tcp_stream, udp_stream};
use bodies::offload::model::{self, ACK, CWR, FIN, PSH, Tcp, complete, partial, timestamp};
use support::packet::{TCP, pattern, udp};
use support::packet_v6::{Extensions, HOP_BY_HOP, ICMPV6, Ipv6, destination_options, icmpv6, segment_routing};

const FROM: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 1, 0, 0, 0, 0, 2);
const TO: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 2, 0, 0, 0, 0, 3);
/// The final destination of packets with a routing header.
const END: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 9, 0, 0, 0, 0, 9);

/// Returns a packet from behind one device to behind the other.
fn packet() -> Ipv6 {
    Ipv6::new(FROM, TO)
}

/// Extension headers that the kernel segments, and the destination that the transport checksum covers.
fn extensions() -> [(Extensions, Ipv6Addr); 3] {
    let hop_by_hop = (HOP_BY_HOP, destination_options(1).1);
    [
        (vec![], TO),
        (vec![hop_by_hop.clone(), destination_options(2)], TO),
        (vec![hop_by_hop, segment_routing(END), destination_options(1)], END),
    ]
}

/// V26. Segments of TCP have at least 8 bytes (`TCP_MIN_GSO_SIZE`).
#[test]
fn v26_tcp_is_cut_as_the_kernel_cuts_it() {
    on_an_ipv6_router(|router| {
        for flags in [ACK, ACK | PSH, ACK | FIN | PSH, ACK | CWR | 0x40, 0xff, 0] {
            for (extensions, destination) in extensions() {
                for options in [vec![], timestamp(1, 2), pattern(40)] {
                    for (len, size) in [(3000, 1400), (2800, 1400), (1401, 1400), (65_000, 1333), (300, 8), (999, 9)] {
                        let tcp = Tcp { flags, options: options.clone(), ..Tcp::new(0xffff_f000, pattern(len)) };
                        let extensions = extensions.clone();
                        let ip = Ipv6 { protocol: TCP, extensions, traffic_class: 0xb9, ..packet() };
                        let bytes = model::partial_to(Ipv6 { payload: tcp.bytes(), ..ip }.bytes(), destination);
                        let header = model::vnet(&bytes, size);
                        router.check(&header, &bytes);
                        if flags & CWR != 0 {
                            router.check(&VnetHeader { gso_type: header.gso_type | 0x80, ..header }, &bytes);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn v26_udp_is_cut_as_the_kernel_cuts_it() {
    on_an_ipv6_router(|router| {
        for (extensions, destination) in extensions() {
            for (len, size) in [(3000, 1400), (2800, 1400), (1401, 1400), (64, 1), (640, 10), (65_000, 1333), (99, 7)] {
                let ip = Ipv6 { extensions: extensions.clone(), flow_label: 0xf_ffff, ..packet() };
                let bytes =
                    model::partial_to(Ipv6 { payload: udp(4000, 53, &pattern(len)), ..ip }.bytes(), destination);
                router.check(&model::vnet(&bytes, size), &bytes);
            }
        }
    });
}

/// V26, V28. A checksum of 0 is among them.
#[test]
fn v26_v28_a_checksum_is_completed_as_the_kernel_completes_it() {
    on_an_ipv6_router(|router| {
        for (extensions, destination) in extensions() {
            for len in [0, 1, 2, 1000, 1001] {
                let tcp = Ipv6 { protocol: TCP, payload: Tcp::new(1, pattern(len)).bytes(), ..packet() };
                for ip in [tcp, Ipv6 { payload: udp(4000, 53, &pattern(len)), ..packet() }] {
                    let bytes = Ipv6 { extensions: extensions.clone(), ..ip }.bytes();
                    let bytes = model::partial_to(bytes, destination);
                    router.check(&model::vnet(&bytes, 0), &bytes);
                }
            }
        }
        let make = |data: &[u8]| Ipv6 { payload: udp(4000, 53, data), ..packet() }.bytes();
        let rest = complete(make(&[0, 0]))[46..48].to_vec();
        let bytes = partial(make(&rest));
        assert_eq!(complete(bytes.clone())[46..48], [0xff; 2]);
        router.check(&model::vnet(&bytes, 0), &bytes);
        let bytes = partial(make(&[rest.as_slice(), &[0; 2]].concat()));
        router.check(&model::vnet(&bytes, 2), &bytes);
    });
}

/// V27. The kernel accepts coalesced GSO packets, and cuts them into the original packets.
#[test]
fn v27_the_kernel_cuts_gso_packets_into_the_original_packets() {
    on_an_ipv6_router(|router| {
        let last = |(_, tcp): &mut (Ipv6, Tcp)| (tcp.flags, tcp.payload) = (ACK | PSH, pattern(33));
        router.check_coalesced(&tcp_stream(45, 1420, 44, last));
        router.check_coalesced(&tcp_stream(5, 100, 0, |(_, tcp)| tcp.flags |= CWR));
        router.check_coalesced(&tcp_stream(2, 8, 1, |(_, tcp)| tcp.flags |= FIN));
        router.check_coalesced(&udp_stream(64, 64, 99, |_| ()));
        router.check_coalesced(&udp_stream(20, 1400, 19, |ip| ip.payload = udp(4000, 53, &pattern(7))));
        let ping = Ipv6 { protocol: ICMPV6, payload: icmpv6(FROM, TO, 128, b"ping"), ..packet() }.bytes();
        router.check_coalesced(&[ping]);
    });
}
