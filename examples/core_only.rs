//! The core without a system: two hosts forward between queues. `cargo run -p loden --example core_only
//! --no-default-features`. A TLS stream could implement [`Packets`] as well.

use std::io::{Write as _, stdout};
use std::{collections::VecDeque, error::Error, net::SocketAddr, time::Duration};

use etherparse::PacketBuilder;
use loden::endpoint::{Endpoint, Inbound, Outbound, Reply};
use loden::forward::{Forwarder, ForwarderConfig};
use loden::offload::VnetHeader;
use loden::route::{Route, RouteTable};
use loden::{ipnet::Ipv4Net, wire::ipv4::Ipv4Packet};

/// A carrier of whole packets in both directions.
trait Packets {
    fn recv(&mut self) -> Option<Vec<u8>>;
    fn send(&mut self, packet: &[u8]);
}

/// Received packets, and packets to send.
type Queues = (VecDeque<Vec<u8>>, VecDeque<Vec<u8>>);

impl Packets for Queues {
    fn recv(&mut self) -> Option<Vec<u8>> {
        self.0.pop_front()
    }
    fn send(&mut self, packet: &[u8]) {
        self.1.push_back(packet.to_vec());
    }
}

/// One host. With more than one peer, `Transmit::destination` names the peer of a datagram.
struct Host<P> {
    endpoint: Endpoint,
    routes: RouteTable,
    pods: P,
    peer: P,
}

impl<P: Packets> Host<P> {
    /// Moves its pods' packets to the peer. `now` is the time since any fixed moment.
    fn outbound(&mut self, now: Duration) {
        let Self { endpoint, routes, pods, peer } = self;
        let mut room = [0; 65_535];
        while let Some(mut packet) = pods.recv() {
            match endpoint.handle_outbound(&mut packet, &VnetHeader::default(), routes, now) {
                Outbound::Send(transmit) => peer.send(transmit.contents),
                Outbound::SendAll(mut fragments) => {
                    while let Some(transmit) = fragments.next_into(&mut room) {
                        peer.send(transmit.contents);
                    }
                }
                Outbound::Reply(Reply { message, .. }) => pods.send(message),
                Outbound::Drop(_) => {}
            }
        }
    }

    /// Moves the packets of its peer, whose underlay address is `from`, to the pods.
    fn inbound(&mut self, from: SocketAddr, now: Duration) {
        let Self { endpoint, routes, pods, peer } = self;
        while let Some(mut datagram) = peer.recv() {
            match endpoint.handle_inbound(&mut datagram, from, routes, now) {
                Inbound::Deliver(packet) => pods.send(packet),
                Inbound::Reply(Reply { message, .. }) => peer.send(message),
                Inbound::Drop(_) => {}
            }
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let [host_a, host_b] = [([10, 168, 0, 2], 8285), ([10, 168, 0, 3], 8285)].map(SocketAddr::from);
    let [pods_a, pods_b] = [[100, 96, 1, 0], [100, 96, 2, 0]].map(|net| Ipv4Net::new_assert(net.into(), 24));
    let mut a = host(pods_a, host_a, Route::new(pods_b, host_b))?;
    let mut b = host(pods_b, host_b, Route::new(pods_a, host_a))?;

    let sent = [ping([100, 96, 2, 3])?, ping([100, 96, 9, 9])?];
    a.pods.0.extend(sent.clone());
    a.outbound(Duration::ZERO);
    b.peer.0.append(&mut a.peer.1);
    b.inbound(host_a, Duration::ZERO);

    for (what, packets) in [("pod a sent", sent.into()), ("pod b received", b.pods.1), ("pod a received", a.pods.1)] {
        for packet in &packets {
            let packet = Ipv4Packet::parse(packet)?;
            let (from, to, ttl) = (packet.header().source(), packet.header().destination(), packet.header().ttl());
            writeln!(stdout(), "{what:<16}  {from} -> {to}  TTL {ttl}  ICMP type {}", packet.payload()[0])?;
        }
    }
    let [of_a, of_b] = [a.endpoint.counters(), b.endpoint.counters()];
    for (what, flow) in [("host a, outbound", &of_a.encap), ("host b, inbound", &of_b.decap)] {
        writeln!(stdout(), "{what:<16}  {} forwarded, {} answered", flow.forwarded(), flow.answered())?;
    }
    Ok(())
}

fn host(subnet: Ipv4Net, own: SocketAddr, peer: Route) -> Result<Host<Queues>, Box<dyn Error>> {
    let host = loden::Host::new(Ipv4Net::new(subnet.addr(), 16)?, subnet, own)?;
    let forwarder = Forwarder::new(ForwarderConfig::new(&host))?;
    let (routes, refused) = RouteTable::try_from_routes([peer]);
    assert_eq!(refused, []);
    Ok(Host { endpoint: Endpoint::new(forwarder), routes, pods: Queues::default(), peer: Queues::default() })
}

fn ping(destination: [u8; 4]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut packet = Vec::new();
    PacketBuilder::ipv4([100, 96, 1, 2], destination, 64).icmpv4_echo_request(1, 1).write(&mut packet, b"hello")?;
    Ok(packet)
}
