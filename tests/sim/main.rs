//! The public interface of the simulator, and its guarantees.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod determinism;
mod framing;
mod invariants;
mod leases;
mod link_profile;
mod memory;
mod mesh;
mod mtu;
mod nodes;
mod partition;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytes::Bytes;
use ipnet::Ipv4Net;
use loden::Host;
use loden::forward::ForwarderConfig;
use loden::framing::Framing;
use loden::lease::{Lease, LeaseEvent, SourceId};
use loden::sim::{Delivered, NodeId, Sim, udp_packet};
use loden::wire::checksum;

const SOURCE: SourceId = SourceId(0);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn network() -> Ipv4Net {
    Ipv4Net::new_assert([100, 64, 0, 0].into(), 10)
}

/// Returns the /24 with this number. 100.64.0.0 is the first.
fn subnet(number: u32) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(u32::from(network().addr()) + (number << 8)), 24)
}

fn underlay(host: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 168, 0, 1)) + host), 8285))
}

/// Returns a pod in the subnet with this number.
fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(subnet(number).addr()) + 7)
}

/// Host 1 with subnet 1, and so on.
fn config(number: u32) -> ForwarderConfig {
    config_at(number, underlay(number))
}

/// The host of a subnet, at any underlay address.
fn config_at(number: u32, underlay: SocketAddr) -> ForwarderConfig {
    ForwarderConfig::new(&Host::new(network(), subnet(number), underlay).unwrap())
}

fn lease(number: u32) -> (u32, Lease) {
    (number, Lease::new(subnet(number), underlay(number)))
}

/// Returns hosts 0, 1, 2 …, with routes to each other.
fn mesh<const N: usize>(seed: u64) -> (Sim<u32>, [NodeId; N]) {
    mesh_of(seed)
}

/// Returns the same with a framing.
fn mesh_of<F: Framing + Default, const N: usize>(seed: u64) -> (Sim<u32, F>, [NodeId; N]) {
    let mut sim = Sim::new(network(), seed).with_framing();
    let nodes = core::array::from_fn(|number| sim.add_node(config(number as u32)).unwrap());
    sim.lease_event(SOURCE, LeaseEvent::Snapshot((0..N as u32).map(lease).collect()));
    (sim, nodes)
}

/// Returns a packet that contains a number, from a pod of one subnet to a pod of another.
fn packet(from: u32, to: u32, number: u32) -> Bytes {
    udp_packet(SocketAddrV4::new(pod(from), 4000), SocketAddrV4::new(pod(to), 53), &number.to_be_bytes())
}

/// Returns the number in a packet, or in the packet that an ICMP error quotes.
fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(*packet.last_chunk().unwrap())
}

/// Returns a packet of this many bytes in total.
fn packet_of(len: usize, from: u32, to: u32) -> Bytes {
    udp_packet(SocketAddrV4::new(pod(from), 4000), SocketAddrV4::new(pod(to), 53), &vec![0; len - 28])
}

/// Offsets in an IPv4 header.
mod at {
    pub(crate) const TOS: usize = 1;
    pub(crate) const FLAGS: usize = 6;
    pub(crate) const TTL: usize = 8;
}

/// Returns the packet with another byte in its header, and a right checksum.
fn with_byte(packet: &Bytes, at: usize, byte: u8) -> Bytes {
    let mut packet = packet.to_vec();
    packet[at] = byte;
    packet[10..12].fill(0);
    let sum = checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.into()
}

fn numbers(delivered: &[Delivered]) -> Vec<u32> {
    delivered.iter().map(|delivered| number(&delivered.packet)).collect()
}

/// Returns ICMP type, code, and the MTU of a "fragmentation needed".
fn icmp(packet: &[u8]) -> (u8, u8, u16) {
    assert_eq!(packet[9], 1, "an ICMP message");
    (packet[20], packet[21], u16::from_be_bytes([packet[26], packet[27]]))
}
