//! WireGuard's messages around each packet.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use loden::forward::{DatagramMeta, DropReason};
use loden::framing::{Framing, Ready, Reply};
use loden::route::RoutePublisher;

use crate::config::{Config, Key};
use crate::peer::{Peer, message_len};

/// Bytes in front of a packet: type, receiver and counter.
const HEAD: usize = 16;
/// Bytes of the tag behind it.
const TAG: usize = 16;
/// Packets are padded to a multiple of this.
const PADDING: usize = 16;
const COOKIE_REPLY: u8 = 3;
const COOKIE_REPLY_LEN: usize = 64;
/// The longest packet with its message around it.
const MESSAGE_MAX: usize = 65_535 + HEAD + PADDING + TAG;

/// Messages of handshakes in a second, beyond which their senders must prove their addresses with a cookie. Those of peers
/// count twice, because the state machine counts them again.
const HANDSHAKES_PER_SECOND: u64 = 100;
/// The interval of the state machine's timers. It learns the time from them.
const TICK: Duration = Duration::from_millis(250);

/// A framing whose peers are WireGuard's. For one worker.
pub(crate) struct WireGuard {
    key: StaticSecret,
    public_key: PublicKey,
    limiter: Arc<RateLimiter>,
    peers: Vec<Peer>,
    by_key: HashMap<Key, usize>,
    by_address: HashMap<SocketAddr, usize>,
    /// The last address that was looked up.
    last: Option<(SocketAddr, usize)>,
    routes: RoutePublisher,
    /// The state machine writes into another buffer than it reads.
    scratch: Box<[u8]>,
    rekey_after: Option<Duration>,
    tick_at: Duration,
}

/// The meaning of a message.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Cookie,
    Data,
    Handshake,
}

impl WireGuard {
    /// Returns a framing that publishes the routes to its peers.
    ///
    /// # Errors
    /// A route of the configuration is refused.
    pub(crate) fn new(
        config: &Config,
        mut routes: RoutePublisher,
        rekey_after: Option<Duration>,
    ) -> Result<Self, Box<dyn Error>> {
        let key = config.private_key.clone();
        let public_key = PublicKey::from(&key);
        let limiter = Arc::new(RateLimiter::new(&public_key, HANDSHAKES_PER_SECOND));
        let (mut by_key, mut by_address) = (HashMap::new(), HashMap::new());
        let mut peers = Vec::new();
        for (index, peer) in config.peers.iter().enumerate() {
            by_key.insert(peer.public_key, index);
            let peer = Peer::new(peer, &key, u32::try_from(index)?, &limiter);
            if let Some(endpoint) = peer.endpoint()
                && by_address.insert(endpoint, index).is_some()
            {
                return Err(format!("two peers have the endpoint {endpoint}; correct one").into());
            }
            routes.apply(peer.routes(None)).into_result()?;
            peers.push(peer);
        }
        let scratch = vec![0; MESSAGE_MAX].into_boxed_slice();
        let (last, tick_at) = (None, Duration::ZERO);
        Ok(Self { key, public_key, limiter, peers, by_key, by_address, last, routes, scratch, rekey_after, tick_at })
    }

    /// Returns the peer that is reached at an address.
    #[inline]
    fn peer_at(&mut self, address: SocketAddr) -> Option<usize> {
        if let Some((last, index)) = self.last
            && last == address
        {
            return Some(index);
        }
        let index = *self.by_address.get(&address)?;
        self.last = Some((address, index));
        Some(index)
    }

    /// Routes a peer's networks to the address from which it was heard. The address of another peer is not taken from it,
    /// because packets would be sealed for the wrong one.
    fn hear(&mut self, index: usize, from: SocketAddr, now: Duration) {
        let Self { peers, by_address, routes, last, .. } = self;
        let is_taken = |other: &usize| *other != index && peers.get(*other).is_some_and(|other| other.is_at(from, now));
        if by_address.get(&from).is_some_and(is_taken) {
            return;
        }
        let Some(peer) = peers.get_mut(index).filter(|peer| peer.endpoint() != Some(from)) else { return };
        // Such as this host's own address, which only another program on it can use.
        if routes.apply(peer.routes(Some(from))).into_result().is_err() {
            let _changed = routes.apply(peer.routes(None));
            return;
        }
        peer.move_to(from, now);
        by_address.retain(|address, other| *other != index || peer.is_at(*address, now));
        by_address.insert(from, index);
        *last = None;
    }
}

impl Framing for WireGuard {
    const HEAD: usize = HEAD;
    const OVERHEAD_MAX: usize = HEAD + PADDING - 1 + TAG;
    const HAS_SESSIONS: bool = true;
    const CHECKS_SENDER_FIRST: bool = false;

    /// Packets are padded, but not beyond the path's MTU.
    #[inline]
    fn sealed_len(&self, len: usize, mtu: usize) -> usize {
        HEAD + len.next_multiple_of(PADDING).min(mtu.max(len)) + TAG
    }

    #[inline]
    fn ready(&mut self, peer: SocketAddr, _packet: &[u8], _now: Duration, reply: &mut impl Reply) -> Ready {
        let Some(index) = self.peer_at(peer) else { return Ready::Drop(DropReason::NoSession) };
        let Self { peers, scratch, .. } = self;
        match peers.get_mut(index) {
            Some(Peer { has_session: true, .. }) => Ready::Go,
            Some(waiting) => {
                let len = waiting.begin_handshake(scratch);
                send(peer, len, scratch, reply);
                Ready::Hold
            }
            None => Ready::Drop(DropReason::NoSession),
        }
    }

    fn seal(&mut self, peer: SocketAddr, datagram: &mut [u8], len: usize) {
        let index = self.peer_at(peer);
        let Self { peers, scratch, .. } = self;
        let padded = datagram.len().saturating_sub(HEAD + TAG);
        let mut seal = || {
            let peer = peers.get_mut(index?).filter(|peer| peer.has_session)?;
            let (packet, padding) = scratch.get_mut(..padded)?.split_at_mut_checked(len)?;
            packet.copy_from_slice(datagram.get(HEAD..HEAD + len)?);
            padding.fill(0);
            message_len(&peer.tunnel.encapsulate(scratch.get(..padded)?, datagram))
        };
        // `ready` was asked before, so the session exists.
        if seal().is_none() {
            datagram.fill(0);
        }
    }

    fn open<'d>(
        &mut self,
        meta: &mut DatagramMeta,
        datagram: &'d mut [u8],
        now: Duration,
        reply: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        let from = meta.from;
        let Self { key, public_key, limiter, peers, by_key, scratch, .. } = self;
        let mut cookie = [0; COOKIE_REPLY_LEN];
        let (index, kind) = match limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(message)) => {
                let sender = parse_handshake_anon(key, public_key, &message);
                let sender = sender.map_err(|_| DropReason::NotAuthentic)?.peer_static_public;
                (*by_key.get(&sender).ok_or(DropReason::NotAuthentic)?, Kind::Handshake)
            }
            Ok(Packet::HandshakeResponse(message)) => (peer_of(message.receiver_idx), Kind::Handshake),
            Ok(Packet::PacketCookieReply(message)) => (peer_of(message.receiver_idx), Kind::Cookie),
            Ok(Packet::PacketData(message)) => (peer_of(message.receiver_idx), Kind::Data),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                reply.send(from, cookie);
                return Ok(None);
            }
            Err(_) => return Err(DropReason::NotAuthentic),
        };
        let peer = peers.get_mut(index).ok_or(DropReason::NoSession)?;
        let (delivered, is_authentic) = match peer.tunnel.decapsulate(Some(from.ip()), datagram, scratch) {
            TunnResult::WriteToTunnelV4(packet, source) => (Some((packet, IpAddr::from(source))), true),
            TunnResult::WriteToTunnelV6(packet, source) => (Some((packet, IpAddr::from(source))), true),
            TunnResult::WriteToNetwork(message) => {
                let is_authentic = message.first() != Some(&COOKIE_REPLY);
                reply.send(from, message);
                (None, is_authentic)
            }
            TunnResult::Done => (None, kind != Kind::Cookie),
            TunnResult::Err(error) => return Err(reason(&error)),
        };
        let delivered = delivered.and_then(|(packet, source)| {
            let room = datagram.get_mut(..packet.len())?;
            room.copy_from_slice(packet);
            Some((room, source))
        });
        if kind != Kind::Data || !peer.has_session {
            peer.update_session();
            // Keepalives that waited for the session.
            while peer.has_session
                && let Some(len) = message_len(&peer.tunnel.decapsulate(None, &[], scratch))
            {
                send(from, Some(len), scratch, reply);
            }
        }
        if is_authentic {
            self.hear(index, from, now);
        }
        let Some((packet, source)) = delivered else { return Ok(None) };
        let peer = self.peers.get(index).ok_or(DropReason::NoSession)?;
        let next_hop = peer.next_hop(now);
        // The library accepts the underlay address of a peer as inner source. WireGuard does only if it is allowed.
        let is_routed = || self.routes.table().lookup(source).map(|hop| hop.address) == peer.endpoint();
        if source == next_hop.ip() && !is_routed() {
            return Err(DropReason::SpoofedSource);
        }
        meta.from = next_hop;
        Ok(Some(packet))
    }

    fn handle_timeout(&mut self, now: Duration, reply: &mut impl Reply) {
        let Self { limiter, peers, scratch, rekey_after, tick_at, .. } = self;
        *tick_at = now + TICK;
        limiter.reset_count();
        for peer in peers {
            let len = peer.handle_timeout(*rekey_after, scratch);
            if let Some(endpoint) = peer.endpoint() {
                send(endpoint, len, scratch, reply);
            }
        }
    }

    fn poll_timeout(&self) -> Option<Duration> {
        Some(self.tick_at)
    }
}

fn send(to: SocketAddr, len: Option<usize>, buffer: &[u8], reply: &mut impl Reply) {
    if let Some(message) = len.and_then(|len| buffer.get(..len)) {
        reply.send(to, message);
    }
}

/// Returns the peer in a session's number, see [`Peer::new`].
fn peer_of(receiver: u32) -> usize {
    (receiver >> 8) as usize
}

fn reason(error: &WireGuardError) -> DropReason {
    use WireGuardError::{DuplicateCounter, InvalidCounter, NoCurrentSession, WrongIndex};
    if matches!(error, InvalidCounter | DuplicateCounter) {
        DropReason::Replayed
    } else if matches!(error, NoCurrentSession | WrongIndex) {
        DropReason::NoSession
    } else {
        DropReason::NotAuthentic
    }
}
