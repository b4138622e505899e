//! Hosts whose datagrams are passed on by hand.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use boringtun::x25519::{PublicKey, StaticSecret};
use loden::forward::{DatagramMeta, DropReason};
use loden::framing::{Framing as _, Ready, Reply};
use loden::route::{RoutePublisher, RouteReader};

use super::{COOKIE_REPLY, COOKIE_REPLY_LEN, HANDSHAKES_PER_SECOND, HEAD, TAG, WireGuard};
use crate::config::Config;
use allocations::allocations;

#[expect(unreachable_pub, reason = "the library shares it with other packages")]
#[path = "../../../../tests/support/allocations.rs"]
mod allocations;

/// The messages that a framing sent.
#[derive(Default)]
struct Sent(VecDeque<(SocketAddr, Vec<u8>)>);

impl Reply for Sent {
    fn send(&mut self, to: SocketAddr, message: &[u8]) {
        self.0.push_back((to, message.to_vec()));
    }
}

/// A packet and its sender, or a control message, or the reason of a drop.
type Opened = Result<Option<(Vec<u8>, SocketAddr)>, DropReason>;

struct Host {
    framing: WireGuard,
    routes: RouteReader,
    address: SocketAddr,
    clock: Duration,
}

fn base64(key: &[u8; 32]) -> String {
    BASE64_STANDARD.encode(key)
}

fn public_key(byte: u8) -> String {
    base64(PublicKey::from(&StaticSecret::from([byte; 32])).as_bytes())
}

/// Returns the address of the host whose private key is this byte repeated.
fn address(byte: u8) -> SocketAddr {
    ([10, 168, 0, byte], 51820).into()
}

impl Host {
    /// The peers' inner addresses are 10.7.0.x. Only those of `known` have an endpoint.
    fn new(byte: u8, peers: &[u8], known: &[u8]) -> Self {
        let mut text = format!("[Interface]\nPrivateKey={}\nAddress=10.7.0.{byte}/24\n", base64(&[byte; 32]));
        for peer in peers {
            text += &format!("[Peer]\nPublicKey={}\nAllowedIPs=10.7.0.{peer}\n", public_key(*peer));
            if known.contains(peer) {
                text += &format!("Endpoint={}\n", address(*peer));
            }
        }
        let config = Config::parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let routes = RoutePublisher::new();
        let reader = routes.reader();
        let framing = WireGuard::new(&config, routes, None).unwrap_or_else(|error| panic!("{error}"));
        Self { framing, routes: reader, address: address(byte), clock: Duration::ZERO }
    }

    /// Begins another call of the worker.
    fn next_call(&mut self) -> Duration {
        self.clock += Duration::from_millis(1);
        self.clock
    }

    /// Returns the next hop of the packets to a host.
    fn route(&mut self, byte: u8) -> Option<SocketAddr> {
        self.routes.load().lookup([10, 7, 0, byte].into()).map(|hop| hop.address)
    }

    fn ready(&mut self, to: SocketAddr, sent: &mut Sent) -> Ready {
        let now = self.next_call();
        self.framing.ready(to, &[], now, sent)
    }

    fn seal(&mut self, to: SocketAddr, packet: &[u8], mtu: usize) -> Vec<u8> {
        let mut datagram = vec![0xee; self.framing.sealed_len(packet.len(), mtu)];
        datagram[HEAD..HEAD + packet.len()].copy_from_slice(packet);
        self.framing.seal(to, &mut datagram, packet.len());
        datagram
    }

    /// Opens a datagram, and returns its packet and the sender that the endpoint checks.
    fn open(&mut self, from: SocketAddr, datagram: &[u8], sent: &mut Sent) -> Opened {
        let opened = self.open_before_timeout(from, datagram, sent);
        let now = self.next_call();
        self.framing.handle_timeout(now, sent);
        opened
    }

    fn open_before_timeout(&mut self, from: SocketAddr, datagram: &[u8], sent: &mut Sent) -> Opened {
        let now = self.next_call();
        let mut meta = DatagramMeta::from(from);
        let mut datagram = datagram.to_vec();
        let opened = self.framing.open(&mut meta, &mut datagram, now, sent)?.map(|packet| packet.to_vec());
        Ok(opened.map(|packet| (packet, meta.from)))
    }
}

/// Passes messages between two hosts until there are none.
fn settle(one: &mut Host, other: &mut Host, of_one: &mut Sent) {
    let mut of_other = Sent::default();
    while !of_one.0.is_empty() || !of_other.0.is_empty() {
        while let Some((_, message)) = of_one.0.pop_front() {
            other.open(one.address, &message, &mut of_other).unwrap_or_else(|reason| panic!("{reason:?}"));
        }
        while let Some((_, message)) = of_other.0.pop_front() {
            one.open(other.address, &message, of_one).unwrap_or_else(|reason| panic!("{reason:?}"));
        }
    }
}

/// Returns host 1 and host 2 after a handshake that host 1 began.
fn two_hosts() -> (Host, Host) {
    let (mut a, mut b) = (Host::new(1, &[2], &[2]), Host::new(2, &[1], &[]));
    let mut sent = Sent::default();
    assert_eq!(a.ready(b.address, &mut sent), Ready::Hold);
    assert_eq!(sent.0.len(), 1);
    let nowhere = b.route(1).expect("a route");
    assert_eq!(b.ready(nowhere, &mut sent), Ready::Drop(DropReason::NoSession));
    assert_eq!(sent.0.len(), 1, "nothing is sent to it");
    assert_eq!(a.ready(b.address, &mut sent), Ready::Hold, "one message is on its way");
    assert_eq!(sent.0.len(), 1);
    settle(&mut a, &mut b, &mut sent);
    assert_eq!(a.ready(b.address, &mut sent), Ready::Go);
    assert_eq!(b.route(1), Some(a.address));
    assert_eq!(b.ready(a.address, &mut sent), Ready::Go);
    assert!(sent.0.is_empty());
    (a, b)
}

/// Returns a packet between two hosts.
fn packet(from: u8, to: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; len];
    packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 7, 0, from, 10, 7, 0, to]);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet
}

#[test]
fn packets_of_every_length_are_padded_up_to_the_mtu_and_opened() {
    const MTU: usize = 203;
    let (mut a, mut b) = two_hosts();
    let mut sent = Sent::default();
    // From long to short, so that the buffer holds an earlier packet.
    for len in (20..=MTU).rev() {
        let packet = packet(1, 2, len);
        let datagram = a.seal(b.address, &packet, MTU);
        assert_eq!(datagram.len(), HEAD + len.next_multiple_of(16).min(MTU) + TAG);
        assert!(!datagram.windows(8).any(|bytes| bytes == [0x5a; 8]), "it can be read");
        assert_eq!(b.open(a.address, &datagram, &mut sent), Ok(Some((packet, a.address))));
        let padding = &b.framing.scratch[len..datagram.len() - HEAD - TAG];
        assert!(padding.iter().all(|byte| *byte == 0), "{padding:?} comes from an earlier packet");
    }
    let longest = packet(1, 2, 65_535);
    let datagram = a.seal(b.address, &longest, 65_535);
    assert_eq!(b.open(a.address, &datagram, &mut sent), Ok(Some((longest, a.address))));
    assert!(sent.0.is_empty());
}

#[test]
fn changed_cut_and_repeated_datagrams_are_refused() {
    let (mut a, mut b) = two_hosts();
    let mut sent = Sent::default();
    let datagram = a.seal(b.address, &packet(1, 2, 60), 1420);
    for at in 0..datagram.len() {
        let mut changed = datagram.clone();
        changed[at] ^= 0x10;
        assert!(b.open(a.address, &changed, &mut sent).is_err(), "byte {at}");
        assert!(b.open(a.address, &datagram[..at], &mut sent).is_err(), "{at} bytes");
    }
    let stranger = address(99);
    assert_eq!(b.route(1), Some(a.address));
    assert!(matches!(b.open(a.address, &datagram, &mut sent), Ok(Some(_))));
    assert_eq!(b.open(stranger, &datagram, &mut sent), Err(DropReason::Replayed));
    assert_eq!(b.route(1), Some(a.address), "who repeats a datagram moves no peer");
    // Messages of every type and length that no session knows.
    for kind in 0..6 {
        for len in 0..256 {
            let mut message = vec![0xab; len];
            if let Some(start) = message.first_chunk_mut() {
                *start = [kind, 0, 0, 0];
            }
            assert!(b.open(stranger, &message, &mut sent).is_err(), "type {kind}, {len} bytes");
        }
    }
    assert!(sent.0.is_empty());
}

#[test]
fn a_peer_moves_with_an_authentic_datagram() {
    let (mut a, mut b) = two_hosts();
    let (old, new) = (a.address, address(77));
    let mut sent = Sent::default();
    let datagram = a.seal(b.address, &packet(1, 2, 60), 1420);
    // The worker still has the old table.
    let (_, from) = b.open(new, &datagram, &mut sent).expect("opened").expect("a packet");
    assert_eq!((from, b.route(1)), (old, Some(new)));
    let datagram = a.seal(b.address, &packet(1, 2, 60), 1420);
    let (_, from) = b.open(new, &datagram, &mut sent).expect("opened").expect("a packet");
    assert_eq!(from, new);
    assert_eq!(b.ready(new, &mut sent), Ready::Go);
}

/// Otherwise packets for one peer would be sealed for another.
#[test]
fn a_peer_does_not_get_the_address_of_another() {
    let mut hub = Host::new(1, &[2, 3], &[2, 3]);
    let (mut b, mut c) = (Host::new(2, &[1], &[1]), Host::new(3, &[1], &[1]));
    let mut sent = Sent::default();
    for spoke in [&mut b, &mut c] {
        assert_eq!(spoke.ready(hub.address, &mut sent), Ready::Hold);
        settle(spoke, &mut hub, &mut sent);
    }
    let datagram = c.seal(hub.address, &packet(3, 1, 60), 1420);
    let (_, from) = hub.open(b.address, &datagram, &mut sent).expect("opened").expect("a packet");
    assert_eq!((from, hub.route(2), hub.route(3)), (c.address, Some(b.address), Some(c.address)));
    let datagram = hub.seal(b.address, &packet(1, 2, 60), 1420);
    assert!(c.open(hub.address, &datagram, &mut sent).is_err());
    assert!(matches!(b.open(hub.address, &datagram, &mut sent), Ok(Some(_))));
    // It is free once its owner has moved.
    let moved = b.seal(hub.address, &packet(2, 1, 60), 1420);
    hub.open(address(77), &moved, &mut sent).expect("opened");
    let datagram = c.seal(hub.address, &packet(3, 1, 60), 1420);
    hub.open(b.address, &datagram, &mut sent).expect("opened");
    assert_eq!((hub.route(2), hub.route(3)), (Some(address(77)), Some(b.address)));
}

/// The library would accept it, because it may be the source of an ICMP error.
#[test]
fn the_outer_address_of_a_peer_is_no_allowed_source() {
    let (mut a, mut b) = two_hosts();
    let mut outer = packet(1, 2, 60);
    outer[12..16].copy_from_slice(&[10, 168, 0, 1]);
    let datagram = a.seal(b.address, &outer, 1420);
    assert_eq!(b.open(a.address, &datagram, &mut Sent::default()), Err(DropReason::SpoofedSource));
}

#[test]
fn under_load_a_handshake_is_answered_with_a_cookie_and_moves_nobody() {
    let (mut a, mut b, mut stranger) = (Host::new(1, &[2], &[2]), Host::new(2, &[1], &[1]), Host::new(9, &[2], &[2]));
    let mut sent = Sent::default();
    let [of_stranger, of_a] = [&mut stranger, &mut a].map(|host| {
        assert_eq!(host.ready(b.address, &mut sent), Ready::Hold);
        sent.0.pop_front().expect("a handshake").1
    });
    // The count begins anew with a timeout.
    for _ in 1..HANDSHAKES_PER_SECOND {
        let opened = b.open_before_timeout(stranger.address, &of_stranger, &mut sent);
        assert_eq!((opened, sent.0.len()), (Err(DropReason::NotAuthentic), 0));
    }
    // At first the state machine asks for it, whose count comes second.
    let elsewhere = address(77);
    for _ in 0..2 {
        assert_eq!(b.open_before_timeout(elsewhere, &of_a, &mut sent), Ok(None));
        let (to, cookie) = sent.0.pop_front().expect("an answer");
        assert_eq!((to, cookie[0], cookie.len()), (elsewhere, COOKIE_REPLY, COOKIE_REPLY_LEN));
        assert_eq!(b.route(1), Some(a.address));
    }
}

/// Its networks are its own before it is heard of: another peer with a wider network neither gets its packets nor sends as it.
#[test]
fn a_peer_without_endpoint_keeps_its_networks() {
    let mut hub = Host::new(1, &[2, 3], &[2]);
    let (old, other) = (hub.route(3), hub.route(2));
    assert!(old.is_some() && old != other);
    let mut spoke = Host::new(3, &[1], &[1]);
    let mut sent = Sent::default();
    assert_eq!(spoke.ready(hub.address, &mut sent), Ready::Hold);
    let (_, first) = sent.0.pop_front().expect("a handshake");
    // The answer and the first packet are within one call, in which the worker has the old routes.
    let now = hub.next_call();
    let mut of_hub = Sent::default();
    let mut meta = DatagramMeta::from(spoke.address);
    assert_eq!(hub.framing.open(&mut meta, &mut first.clone(), now, &mut of_hub), Ok(None));
    let (to, answer) = of_hub.0.pop_front().expect("an answer");
    assert_eq!((to, hub.route(3)), (spoke.address, Some(spoke.address)));
    spoke.open(hub.address, &answer, &mut sent).expect("a session");
    let packet = packet(3, 1, 60);
    let mut datagram = spoke.seal(hub.address, &packet, 1420);
    let mut meta = DatagramMeta::from(spoke.address);
    let opened = hub.framing.open(&mut meta, &mut datagram, now, &mut of_hub).expect("opened");
    assert_eq!((opened, Some(meta.from)), (Some(&mut packet.clone()[..]), old));
}

#[test]
fn an_address_that_no_route_may_have_is_not_followed() {
    let (mut a, mut b) = two_hosts();
    for nobody in ["0.0.0.0:9", "224.0.0.1:9", "10.168.0.1:0"] {
        let datagram = a.seal(b.address, &packet(1, 2, 60), 1420);
        let (_, from) =
            b.open(nobody.parse().unwrap(), &datagram, &mut Sent::default()).expect("opened").expect("a packet");
        assert_eq!((from, b.route(1)), (a.address, Some(a.address)), "{nobody}");
    }
    assert_eq!(b.ready(a.address, &mut Sent::default()), Ready::Go);
}

/// The state machine included.
#[test]
fn no_packet_of_a_session_allocates() {
    let (mut a, mut b) = two_hosts();
    let mut sent = Sent::default();
    let packet = packet(1, 2, 1400);
    let mut datagram = vec![0; a.framing.sealed_len(packet.len(), 1420)];
    let (to, from) = (b.address, a.address);
    let calls = allocations(|| {
        for _ in 0..1000 {
            let (of_a, of_b) = (a.next_call(), b.next_call());
            assert_eq!(a.framing.ready(to, &packet, of_a, &mut sent), Ready::Go);
            datagram[HEAD..HEAD + packet.len()].copy_from_slice(&packet);
            a.framing.seal(to, &mut datagram, packet.len());
            let opened = b.framing.open(&mut DatagramMeta::from(from), &mut datagram, of_b, &mut sent);
            assert!(matches!(opened, Ok(Some(opened)) if *opened == packet[..]));
        }
    });
    assert_eq!((calls, sent.0.len()), (0, 0));
}
