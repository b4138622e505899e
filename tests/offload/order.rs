//! Order within a flow, and open batches.

use loden::offload::{Coalesced, Coalescer};

use super::coalesce::{ALL, udp_packets};
use bodies::offload::model::complete;
use support::host::outbound;
use support::packet::{ICMP, Ipv4, icmp, pattern, udp};

/// Returns packet `number` of the flow with this source port.
fn datagram(port: u16, number: u8) -> Vec<u8> {
    let payload = udp(port, 53, &[number; 50]);
    complete(Ipv4 { id: number.into(), payload, ..outbound() }.bytes())
}

/// Records the source port and the number of packets of each delivery.
fn flows(deliveries: &mut Vec<(u16, usize)>) -> impl FnMut(Coalesced<'_>) {
    |coalesced| {
        let port = u16::from_be_bytes([coalesced.packet[20], coalesced.packet[21]]);
        deliveries.push((port, coalesced.packets));
    }
}

#[test]
fn sixteen_flows_by_turns_are_sixteen_writes_oldest_first() {
    let mut coalescer = Coalescer::new(ALL);
    let mut deliveries = Vec::new();
    for number in 0..5 {
        for port in 0..16 {
            coalescer.push(&datagram(port, number), &mut flows(&mut deliveries));
        }
    }
    assert_eq!(deliveries, []);
    coalescer.flush(&mut flows(&mut deliveries));
    assert_eq!(deliveries, (0..16).map(|port| (port, 5)).collect::<Vec<_>>());
}

#[test]
fn a_seventeenth_flow_takes_the_place_of_the_oldest() {
    let mut coalescer = Coalescer::new(ALL);
    let mut deliveries = Vec::new();
    for number in 0..2 {
        for port in 0..16 {
            coalescer.push(&datagram(port, number), &mut flows(&mut deliveries));
        }
    }
    coalescer.push(&datagram(16, 0), &mut flows(&mut deliveries));
    assert_eq!(deliveries, [(0, 2)]);
    // The first flow replaces the second.
    coalescer.push(&datagram(0, 2), &mut flows(&mut deliveries));
    assert_eq!(deliveries, [(0, 2), (1, 2)]);
    coalescer.flush(&mut flows(&mut deliveries));
    let expected: Vec<_> = (2..16).map(|port| (port, 2)).chain([(16, 1), (0, 1)]).collect();
    assert_eq!(deliveries[2..], expected);
}

/// A full GSO packet does not wait for a flush.
#[test]
fn a_full_gso_packet_is_delivered_at_once() {
    let mut coalescer = Coalescer::new(ALL);
    let mut deliveries = Vec::new();
    for packet in udp_packets(64, 50, 999, |_| ()) {
        coalescer.push(&packet, &mut flows(&mut deliveries));
    }
    assert_eq!(deliveries, [(4000, 64)]);
    let short = |ip: &mut Ipv4| ip.payload = udp(4000, 53, &pattern(49));
    for packet in udp_packets(3, 50, 2, short) {
        coalescer.push(&packet, &mut flows(&mut deliveries));
    }
    assert_eq!(deliveries, [(4000, 64), (4000, 3)]);
    coalescer.flush(&mut |_| panic!("nothing is left"));
}

/// Packets of other protocols have no order with others. A fragment has one with every flow between its hosts.
#[test]
fn other_protocols_overtake_and_fragments_do_not() {
    let mut coalescer = Coalescer::new(ALL);
    let mut lengths = Vec::new();
    let ping = Ipv4 { protocol: ICMP, payload: icmp(8, 0, b"ping"), ..outbound() }.bytes();
    let elsewhere = Ipv4 { fragment: 100, destination: [100, 96, 2, 99].into(), ..outbound() }.bytes();
    let fragment = Ipv4 { fragment: 100, payload: pattern(200), ..outbound() }.bytes();
    let packets = [datagram(1, 0), datagram(2, 0), ping.clone(), elsewhere.clone(), fragment.clone(), datagram(1, 1)];
    for packet in &packets {
        coalescer.push(packet, &mut |coalesced| lengths.push(coalesced.packet.len()));
    }
    let datagram = packets[0].len();
    assert_eq!(lengths, [ping.len(), elsewhere.len(), datagram, datagram, fragment.len()]);
    coalescer.flush(&mut |coalesced| lengths.push(coalesced.packet.len()));
    assert_eq!(lengths.len(), packets.len());
}

/// A packet that is not joined is delivered byte for byte, even an invalid one.
#[test]
fn invalid_packets_pass_unchanged() {
    let mut coalescer = Coalescer::new(ALL);
    let sound = datagram(1, 0);
    for len in 0..sound.len() {
        let mut delivered = Vec::new();
        let mut deliver = |coalesced: Coalesced<'_>| delivered.push(coalesced.packet.to_vec());
        coalescer.push(&sound[..len], &mut deliver);
        coalescer.push(&[&sound[..], &[0; 3]].concat(), &mut deliver);
        coalescer.flush(&mut deliver);
        assert_eq!(delivered, [sound[..len].to_vec(), [&sound[..], &[0; 3]].concat()]);
    }
}
