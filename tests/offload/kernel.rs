//! The kernel as the oracle. GSO packets enter by a device with offloads, are forwarded, and leave by one without.
//! There the kernel cuts them, and fragments packets that are longer than its MTU. Needs root.

use core::time::Duration;
use std::os::fd::AsFd;

use loden::offload::{Coalesced, Coalescer, OffloadAction, VnetHeader};
use loden::sys::{PACKET_MAX, Tun, TunConfig, TunError, TunOffload};
use loden::wire::fragment::Fragmenter;
use loden::wire::ipv4::Ipv4Packet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use testbed::Namespace;

use super::coalesce::{ALL, tcp_packets, udp_packets};
use bodies::offload::model::{self, ACK, CWR, FIN, PSH, Tcp, complete, partial, timestamp};
use bodies::offload::opinion;
use support::fragments;
use support::packet::{DF, Ipv4, MF, ROUTER_ALERT, TCP, UDP, pattern, udp};
use support::packet_v6::{hop_limit, is_v6, with_hop_limit};

/// `VIRTIO_NET_HDR_GSO_UDP_L4` of linux/virtio_net.h.
const GSO_UDP_L4: u8 = 5;
const SOON: Duration = Duration::from_secs(5);

/// An MTU above any segment here, so that no packet is too long to be forwarded.
const MTU: u16 = 9000;

/// A router between two devices.
pub(crate) struct Router {
    /// A device with offloads. Its packets are forwarded to `plain`.
    with_offload: Tun,
    plain: Tun,
    /// The MTU of the plain device.
    mtu: u16,
}

fn on_a_router(test: impl FnOnce(&Router) + Send) {
    on_a_narrow_router(MTU, test);
}

fn on_a_narrow_router(mtu: u16, test: impl FnOnce(&Router) + Send) {
    let namespace = namespace();
    namespace.disable_ipv6().unwrap();
    for (path, value) in
        [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0"), ("net/ipv4/conf/default/rp_filter", "0")]
    {
        namespace.sysctl(path, value).unwrap();
    }
    between_devices(&namespace, mtu, test, |device, number| {
        namespace.add_address(device, format!("100.96.{number}.1/24").parse().unwrap()).unwrap();
    });
}

/// Runs a test on a router of IPv6, if the kernel has it.
pub(crate) fn on_an_ipv6_router(test: impl FnOnce(&Router) + Send) {
    if !testbed::has_ipv6() {
        return;
    }
    let namespace = namespace();
    namespace.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    between_devices(&namespace, MTU, test, |device, number| {
        namespace.add_ipv6_address(device, format!("fd00:96:{number}::1/64").parse().unwrap()).unwrap();
    });
}

fn namespace() -> Namespace {
    Namespace::new().expect("these tests make network namespaces and TUN devices, and need root")
}

fn between_devices(
    namespace: &Namespace,
    mtu: u16,
    test: impl FnOnce(&Router) + Send,
    add_address: impl Fn(&str, u8) + Send + Sync,
) {
    namespace.enter(|| {
        let open = |name: &str, offload, number, mtu: u16| {
            let tun = Tun::open(&named(name).with_offload(offload)).unwrap();
            namespace.set_mtu(name, mtu.into()).unwrap();
            add_address(name, number);
            namespace.set_up(name).unwrap();
            tun
        };
        let with_offload = open("super0", TunOffload::ALL, 1, MTU);
        let plain = open("plain0", TunOffload::NONE, 2, mtu);
        test(&Router { with_offload, plain, mtu });
    });
}

fn named(name: &str) -> TunConfig {
    TunConfig::new(name)
}

/// Returns a packet from behind one device to behind the other.
fn packet() -> Ipv4 {
    Ipv4::new([100, 96, 1, 2], [100, 96, 2, 3])
}

impl Router {
    /// Returns the packets that leave by the plain device: at least `count`, and all that are available then. Multicasts,
    /// with which the kernel looks for IPv6 routers and listeners, are none of them.
    fn forwarded(&self, count: usize) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; PACKET_MAX + 1];
        let mut packets = Vec::new();
        loop {
            match self.plain.recv(&mut buffer) {
                Ok(meta) => {
                    assert_eq!(meta.header, VnetHeader::default());
                    let packet = &buffer[..meta.len];
                    if !is_v6(packet) || packet[24] != 0xff {
                        packets.push(packet.to_vec());
                    }
                }
                Err(TunError::WouldBlock) if packets.len() >= count => return packets,
                Err(TunError::WouldBlock) => {
                    let mut watched = [PollFd::new(self.plain.as_fd(), PollFlags::POLLIN)];
                    let ready = poll(&mut watched, PollTimeout::try_from(SOON).unwrap()).unwrap();
                    assert_eq!(ready, 1, "{} of {count} packets came", packets.len());
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn takes_udp(&self) -> bool {
        let takes = self.with_offload.offload().uso;
        if !takes {
            println!("skipped: this kernel's TUN devices take no UDP GSO packets (Linux 6.2 does)");
        }
        takes
    }

    /// Asserts that the kernel's output equals loden's, with the TTL or hop limit one less.
    pub(crate) fn check(&self, header: &VnetHeader, packet: &[u8]) {
        if header.gso_type == GSO_UDP_L4 && !self.takes_udp() {
            return;
        }
        let hop = with_hop_limit(packet, hop_limit(packet) - 1);
        let ours: Vec<_> = match header.inspect(packet).unwrap() {
            OffloadAction::Segment(many) => {
                let write = |index| {
                    let mut out = vec![0; many.len_of(index)];
                    many.write_segment(&hop, index, &mut out);
                    opinion::assert_sound(&hop, header.gso_size, index, &out);
                    out
                };
                (0..many.segments()).map(write).collect()
            }
            OffloadAction::Checksum(partial) => {
                let mut out = hop.clone();
                partial.complete(&mut out);
                opinion::assert_sound(&hop, u16::MAX, 0, &out);
                vec![out]
            }
            OffloadAction::Nothing => vec![hop],
        };
        let ours: Vec<_> = ours.into_iter().flat_map(|packet| cut(packet, self.mtu)).collect();
        self.with_offload.send_with(header, packet).unwrap();
        let theirs = self.forwarded(ours.len());
        assert_eq!(theirs.len(), ours.len(), "{header:?}");
        for (index, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
            assert_eq!(theirs, ours, "segment {index} of {header:?}, {:02x?}", &packet[..packet.len().min(120)]);
        }
    }

    /// Asserts that packets become one GSO packet, and leave the kernel as they were.
    pub(crate) fn check_coalesced(&self, packets: &[Vec<u8>]) {
        if model::protocol(&packets[0]) == UDP && !self.takes_udp() {
            return;
        }
        let mut coalescer = Coalescer::new(ALL);
        let mut writes = 0;
        let mut deliver = |coalesced: Coalesced<'_>| {
            assert_eq!(coalesced.packets, packets.len());
            self.with_offload.send_with(&coalesced.header, coalesced.packet).unwrap();
            writes += 1;
        };
        for packet in packets {
            coalescer.push(packet, &mut deliver);
        }
        coalescer.flush(&mut deliver);
        assert_eq!(writes, 1);
        let expected: Vec<_> = packets.iter().map(|packet| with_hop_limit(packet, hop_limit(packet) - 1)).collect();
        assert_eq!(self.forwarded(packets.len()), expected);
    }
}

/// Returns the packet if it fits, or its fragments.
fn cut(mut packet: Vec<u8>, mtu: u16) -> Vec<Vec<u8>> {
    if packet.len() <= mtu.into() {
        return vec![packet];
    }
    let whole = packet.clone();
    let mut fragmenter = Fragmenter::new(Ipv4Packet::parse(&packet).unwrap().header(), mtu).unwrap();
    let mut pieces = Vec::new();
    while fragmenter.advance(&mut packet) {
        pieces.push(fragmenter.fragment(&packet).to_vec());
    }
    fragments::assert_sound(&whole, &pieces, mtu.into());
    pieces
}

/// R51. The kernel fills options that it does not copy with NOPs, where RFC 791 3.1 has no bytes. Without such options
/// its fragments equal loden's.
#[test]
fn fragments_are_the_kernels() {
    let copied = [0x88, 4, 0, 9, 0x9e, 4, 1, 2];
    for mtu in [68, 100, 576, 1272, 1279, 1500] {
        on_a_narrow_router(mtu, |router| {
            let most = usize::from(mtu);
            for len in [most - 19, most - 12, most, 2 * most - 40, 2 * most - 39, 2 * most, 8000.min(300 * (most - 60))]
            {
                for options in [&copied[..0], &copied[..4], &copied] {
                    for (fragment, tos, id) in [(0, 0, 0), (MF, 0xb9, 0xffff), (100, 3, 1), (MF | 0x1000, 0, 7)] {
                        let options = options.to_vec();
                        let ip = Ipv4 { payload: pattern(len), options, fragment, tos, id, protocol: 47, ..packet() };
                        router.check(&VnetHeader::default(), &ip.bytes());
                    }
                }
            }
        });
    }
}

/// The kernel also makes segments first, and then fragments of each.
#[test]
fn fragments_of_segments_are_the_kernels() {
    for mtu in [576, 1272] {
        on_a_narrow_router(mtu, |router| {
            for (len, size) in [(20_000, 1400), (2801, 1400), (5000, 1300), (4000, 1245), (3000, 1232)] {
                let payload = udp(4000, 53, &pattern(len));
                let bytes = partial(Ipv4 { payload, id: 0xfffe, ..packet() }.bytes());
                router.check(&model::vnet(&bytes, size), &bytes);
                let tcp = Tcp { flags: ACK | PSH, options: timestamp(1, 2), ..Tcp::new(1, pattern(len)) };
                let bytes = partial(Ipv4 { protocol: TCP, payload: tcp.bytes(), ..packet() }.bytes());
                router.check(&model::vnet(&bytes, size), &bytes);
            }
        });
    }
}

/// A single segment includes the options in its size: the kernel assumes TCP headers of 20 bytes when it decides
/// whether there is more than one segment (`virtio_net_hdr_to_skb`), and loses a payload of just one segment behind
/// options. Segments have at least 8 bytes (`TCP_MIN_GSO_SIZE`).
#[test]
fn tcp_is_cut_as_the_kernel_cuts_it() {
    on_a_router(|router| {
        for flags in [ACK, ACK | PSH, ACK | FIN | PSH, ACK | CWR | 0x40, 0xff, 0] {
            for (ip_options, tcp_options) in
                [(vec![], vec![]), (ROUTER_ALERT.to_vec(), timestamp(1, 2)), (vec![1; 40], pattern(40))]
            {
                for (len, size) in [
                    (3000, 1400),
                    (2800, 1400),
                    (1401, 1400),
                    (1400, 1440),
                    (65_000, 1333),
                    (300, 8),
                    (999, 9),
                    (1, 60),
                ] {
                    for (id, fragment, sequence) in [(0, DF, 1), (0xfffd, 0, 0xffff_f000)] {
                        let tcp = Tcp { flags, options: tcp_options.clone(), ..Tcp::new(sequence, pattern(len)) };
                        let ip = Ipv4 { protocol: TCP, id, fragment, options: ip_options.clone(), ..packet() };
                        let bytes = partial(Ipv4 { payload: tcp.bytes(), ..ip }.bytes());
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
fn udp_is_cut_as_the_kernel_cuts_it() {
    on_a_router(|router| {
        for options in [vec![], ROUTER_ALERT.to_vec(), vec![1; 40]] {
            for (len, size) in
                [(3000, 1400), (2800, 1400), (1401, 1400), (1400, 1400), (64, 1), (640, 10), (65_000, 1333), (99, 7)]
            {
                for (id, fragment, tos) in [(0, DF, 0), (0xfffd, 0, 0xb9)] {
                    let payload = udp(4000, 53, &pattern(len));
                    let bytes =
                        partial(Ipv4 { payload, options: options.clone(), id, fragment, tos, ..packet() }.bytes());
                    router.check(&model::vnet(&bytes, size), &bytes);
                }
            }
        }
    });
}

/// R35, a checksum of 0 among them.
#[test]
fn a_checksum_is_completed_as_the_kernel_completes_it() {
    on_a_router(|router| {
        for len in [0, 1, 2, 1000, 1001] {
            let tcp = Ipv4 { protocol: TCP, payload: Tcp::new(1, pattern(len)).bytes(), ..packet() };
            for ip in [tcp, Ipv4 { payload: udp(4000, 53, &pattern(len)), ..packet() }] {
                let bytes = partial(ip.bytes());
                router.check(&model::vnet(&bytes, 0), &bytes);
            }
        }
        let make = |data: &[u8]| Ipv4 { payload: udp(4000, 53, data), ..packet() }.bytes();
        let rest = complete(make(&[0, 0]))[26..28].to_vec();
        let bytes = partial(make(&rest));
        assert_eq!(complete(bytes.clone())[26..28], [0xff; 2]);
        router.check(&model::vnet(&bytes, 0), &bytes);
        let bytes = partial(make(&[rest.as_slice(), &[0; 2]].concat()));
        router.check(&model::vnet(&bytes, 2), &bytes);
    });
}

/// The kernel accepts coalesced GSO packets, and cuts them into the original packets.
#[test]
fn the_kernel_cuts_gso_packets_into_the_original_packets() {
    on_a_router(|router| {
        let shorter_udp = |ip: &mut Ipv4| ip.payload = udp(4000, 53, &pattern(7));
        router.check_coalesced(&tcp_packets(45, 1420, 44, |(_, tcp)| {
            (tcp.flags, tcp.payload) = (ACK | PSH, pattern(33))
        }));
        router.check_coalesced(&tcp_packets(5, 100, 0, |(_, tcp)| tcp.flags |= CWR));
        router.check_coalesced(&tcp_packets(2, 8, 1, |(_, tcp)| tcp.flags |= FIN));
        router.check_coalesced(&udp_packets(64, 64, 99, |_| ()));
        router.check_coalesced(&udp_packets(20, 1400, 19, shorter_udp));
    });
}
