//! Packets that must not pass, each with the reason it has to be counted under: strangers', spoofed, broken, martian, without a
//! route, and such whose TTL runs out.

use core::net::{Ipv4Addr, SocketAddr};
use std::collections::BTreeMap;
use std::net::UdpSocket;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use testbed::TwoHosts;

use crate::chance::Chance;
use crate::lab::{Lab, STRANGERS};
use crate::side::{SIDES, Side};
use crate::tunnel::{Flow, Tally};
use support::packet::{Ipv4, LOOSE_SOURCE_ROUTE, UDP, udp};

/// An address of the overlay that no host owns.
pub(crate) const HOLE: [u8; 4] = [100, 96, 200, 7];

/// A host that is not there, and yet is said to own something.
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 168, 0, 99);

/// The expected counters of one tunnel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) encap: Counts,
    pub(crate) decap: Counts,
    /// So many went to a host that is not there.
    pub(crate) to_nobody: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    /// By reason.
    dropped: BTreeMap<&'static str, u64>,
    /// By the reason under which they are counted if they are not answered.
    rejected: BTreeMap<&'static str, u64>,
}

/// The sockets of one side: those in its host and its pod that misfits are sent from.
struct Sockets {
    /// In the host: known to the other tunnel.
    known: UdpSocket,
    /// Likewise, with every outer packet marked as having met congestion.
    congested: UdpSocket,
    /// In the host, with an address that is nobody's.
    stranger: UdpSocket,
    /// In the pod.
    pod: UdpSocket,
}

pub(crate) struct Misfits {
    sockets: [Sockets; 2],
}

impl Misfits {
    pub(crate) fn new(hosts: &TwoHosts) -> Self {
        let sockets = SIDES.map(|side| {
            let (host, place) = (side.host(hosts), side.place());
            let bind = |address: Ipv4Addr| host.enter(|| UdpSocket::bind((address, 0))).unwrap();
            let congested = bind(place.host);
            SockRef::from(&congested).set_tos_v4(3).unwrap();
            let pod = side.pod(hosts).enter(|| UdpSocket::bind((place.misfits, 0))).unwrap();
            Sockets { known: bind(place.host), congested, stranger: bind(STRANGERS[side as usize]), pod }
        });
        Self { sockets }
    }

    /// Sends some of every kind to a tunnel, from both of its sides, and adds to what it has to count.
    pub(crate) fn send(&self, lab: &mut Lab, to: Side, chance: &mut Chance, expected: &mut Expected) {
        let from = &self.sockets[to.other() as usize];
        let target = SocketAddr::from((to.place().host, 8285));
        for (sender, datagram, reason) in from_underlay(to) {
            let socket = match sender {
                Sender::Known => &from.known,
                Sender::Congested => &from.congested,
                Sender::Stranger => &from.stranger,
            };
            for _ in 0..=chance.below(2) {
                socket.send_to(&datagram, target).unwrap();
                let counts = &mut expected.decap;
                if reason == TIME_EXCEEDED {
                    counts.reject(reason);
                } else {
                    *counts.dropped.entry(reason).or_default() += 1;
                }
            }
        }
        self.send_from_pod(to, chance, expected);
        let device = lab.tunnel(to).device.clone();
        let raw =
            to.host(&lab.hosts).enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))).unwrap();
        // Past the kernel's routes and straight into the device.
        raw.bind_device(Some(device.as_bytes())).unwrap();
        raw.set_broadcast(true).unwrap();
        for (packet, reason) in into_tun(to) {
            let destination = SocketAddr::from((packet.destination, 0));
            for _ in 0..=chance.below(2) {
                raw.send_to(&packet.bytes(), &SockAddr::from(destination)).unwrap();
                *expected.encap.dropped.entry(reason).or_default() += 1;
            }
        }
    }

    /// Sends datagrams to an address whose owner is a host that is not there.
    pub(crate) fn send_to_nobody(&self, side: Side, address: Ipv4Addr, expected: &mut Expected) {
        let pod = &self.sockets[side as usize].pod;
        pod.set_ttl(64).unwrap();
        pod.send_to(b"anybody?", (address, 9)).unwrap();
        expected.to_nobody += 1;
    }

    /// Sends packets without a route, and packets whose TTL expires in the near tunnel.
    fn send_from_pod(&self, side: Side, chance: &mut Chance, expected: &mut Expected) {
        let pod = &self.sockets[side as usize].pod;
        let counts = &mut expected.encap;
        pod.set_ttl(64).unwrap();
        for _ in 0..=chance.below(4) {
            pod.send_to(b"into nowhere", (Ipv4Addr::from(HOLE), 9)).unwrap();
            counts.reject(NO_ROUTE);
        }
        // Of which the host's kernel takes one.
        pod.set_ttl(2).unwrap();
        for _ in 0..=chance.below(2) {
            pod.send_to(b"a short life", (side.other().place().misfits, 9)).unwrap();
            counts.reject(TIME_EXCEEDED);
        }
    }
}

const NO_ROUTE: &str = "no_route";
const TIME_EXCEEDED: &str = "time_exceeded";

#[derive(Clone, Copy)]
enum Sender {
    Known,
    Congested,
    Stranger,
}

/// Datagrams for the tunnel's port.
fn from_underlay(to: Side) -> Vec<(Sender, Vec<u8>, &'static str)> {
    use Sender::{Congested, Known, Stranger};
    let (here, there) = (to.place(), to.other().place());
    let good = Ipv4::new(there.misfits, here.misfits);
    let source = |address: [u8; 4]| Ipv4 { source: address.into(), ..good.clone() };
    let destination = |address: [u8; 4]| Ipv4 { destination: address.into(), ..good.clone() };
    let known = |packet: Ipv4, reason| (Known, packet.bytes(), reason);
    let own_port = Ipv4 { protocol: UDP, payload: udp(9, 8285, b"round and round"), ..destination(here.host.octets()) };
    vec![
        (Stranger, good.bytes(), "unknown_peer"),
        (Stranger, vec![0xff; 900], "unknown_peer"),
        (Known, Vec::new(), "too_short"),
        (Known, good.bytes()[..19].to_vec(), "too_short"),
        known(Ipv4 { version: 0, ..good.clone() }, "bad_version"),
        known(Ipv4 { version: 6, ..good.clone() }, "ipv6_not_carried"),
        known(Ipv4 { ihl: Some(4), ..good.clone() }, "bad_header_length"),
        known(Ipv4 { ihl: Some(15), payload: Vec::new(), ..good.clone() }, "header_truncated"),
        known(Ipv4 { total: Some(19), ..good.clone() }, "bad_total_length"),
        known(Ipv4 { total: Some(1400), ..good.clone() }, "truncated"),
        known(Ipv4 { checksum: Some(0xdead), ..good.clone() }, "bad_checksum"),
        known(Ipv4 { options: vec![7, 41, 0, 0], ..good.clone() }, "bad_option"),
        known(Ipv4 { options: LOOSE_SOURCE_ROUTE.into(), ..good.clone() }, "source_route"),
        known(source([127, 0, 0, 1]), "martian_source"),
        known(source([169, 254, 1, 1]), "link_local"),
        known(destination([255; 4]), "broadcast_destination"),
        known(destination([240, 0, 0, 1]), "martian_destination"),
        known(destination([224, 0, 0, 5]), "multicast_destination"),
        known(source(HOLE), "spoofed_source"),
        known(source(here.misfits.octets()), "spoofed_source"),
        known(own_port, "loop"),
        known(destination(there.misfits.octets()), "foreign_destination"),
        known(Ipv4 { ttl: 0, ..good.clone() }, "ttl_zero"),
        known(Ipv4 { ttl: 1, ..good.clone() }, TIME_EXCEEDED),
        (Congested, good.bytes(), "ecn_not_capable"),
    ]
}

/// Packets that no pod could send, because its kernel or its host's would stop them.
fn into_tun(from: Side) -> [(Ipv4, &'static str); 7] {
    let good = Ipv4::new(from.place().misfits, from.other().place().misfits);
    let source = |address: [u8; 4]| Ipv4 { source: address.into(), ..good.clone() };
    let destination = |address: [u8; 4]| Ipv4 { destination: address.into(), ..good.clone() };
    [
        (source([127, 0, 0, 5]), "martian_source"),
        (source([240, 0, 0, 5]), "martian_source"),
        (destination([169, 254, 1, 1]), "link_local"),
        (destination([255; 4]), "broadcast_destination"),
        (destination([224, 1, 2, 3]), "multicast_destination"),
        (Ipv4 { options: LOOSE_SOURCE_ROUTE.into(), ..good.clone() }, "source_route"),
        (Ipv4 { ttl: 0, ..good.clone() }, "ttl_zero"),
    ]
}

impl Expected {
    /// Returns an error unless a tunnel counted exactly this.
    pub(crate) fn compare(&self, counted: &Tally) -> Result<(), String> {
        let unanswered = self.encap.compare(&counted.encap, self.to_nobody).map_err(|what| format!("encap: {what}"))?
            + self.decap.compare(&counted.decap, 0).map_err(|what| format!("decap: {what}"))?;
        let failed = counted.encap.dropped.get("send_unreachable").copied().unwrap_or(0);
        let blamed: BTreeMap<_, _> = (failed > 0).then(|| (NOBODY.to_string(), failed)).into_iter().collect();
        if counted.send_errors != blamed {
            return Err(format!("blamed for sends that failed: {:?}, and it was {blamed:?}", counted.send_errors));
        }
        let limited = counted.anomaly("icmp_limited");
        if limited != unanswered {
            return Err(format!("{unanswered} were not answered, and {limited} answers were held back"));
        }
        for never in [
            "trimmed",
            "read_errors",
            "path_mtu_lowered",
            "gso_fallbacks",
            "tun_fallbacks",
            "control_malformed",
            "control_refused",
        ] {
            if counted.anomaly(never) > 0 {
                return Err(format!("{never}: {}", counted.anomaly(never)));
            }
        }
        Ok(())
    }
}

impl Counts {
    /// One more that is answered, or counted under this reason.
    pub(crate) fn reject(&mut self, reason: &'static str) {
        *self.rejected.entry(reason).or_default() += 1;
    }

    /// Returns how many were rejected and not answered.
    fn compare(&self, flow: &Flow, to_nobody: u64) -> Result<u64, String> {
        let mut dropped = flow.dropped.clone();
        // The kernel takes some of these and loses them itself.
        let unreachable = dropped.remove("send_unreachable").unwrap_or(0);
        if unreachable > to_nobody {
            return Err(format!("{to_nobody} were for nobody, and {unreachable} could not be sent"));
        }
        let mut unanswered = 0;
        for reason in [NO_ROUTE, TIME_EXCEEDED] {
            let (count, most) = (dropped.remove(reason).unwrap_or(0), self.rejected.get(reason).copied().unwrap_or(0));
            if count > most {
                return Err(format!("{count} dropped as {reason}, {most} were sent"));
            }
            unanswered += count;
        }
        let rejected: u64 = self.rejected.values().sum();
        if flow.answered + unanswered != rejected {
            return Err(format!("{} answered and {unanswered} not, {rejected} were sent", flow.answered));
        }
        let expected = self.dropped.iter().map(|(reason, count)| (String::from(*reason), *count)).collect();
        if dropped != expected {
            return Err(format!("dropped {dropped:?}, sent {expected:?}"));
        }
        Ok(unanswered)
    }
}
