//! A peer: its state machine, and the addresses at which it is reached.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use loden::route::{Route, RouteChange};

use crate::config::PeerConfig;

/// A peer. Until its address is known, its routes lead nowhere, so that its networks are nobody else's.
pub(crate) struct Peer {
    pub(crate) tunnel: Tunn,
    pub(crate) allowed_ips: Vec<IpNet>,
    /// True if packets can be sealed.
    pub(crate) has_session: bool,
    is_known: bool,
    /// The next hop of its published routes.
    route: SocketAddr,
    /// The one before the worker's call in which it changed.
    route_before: SocketAddr,
    /// The time of that call.
    moved_at: Duration,
    has_keepalive: bool,
    is_started: bool,
}

impl Peer {
    /// Returns a peer without a session. The state machine's numbers of its sessions begin with `index`.
    pub(crate) fn new(config: &PeerConfig, key: &StaticSecret, index: u32, limiter: &Arc<RateLimiter>) -> Self {
        let tunnel = Tunn::new(
            key.clone(),
            PublicKey::from(config.public_key),
            config.preshared_key,
            config.persistent_keepalive,
            index,
            Some(Arc::clone(limiter)),
        );
        let route = config.endpoint.unwrap_or_else(|| nowhere(index));
        Self {
            tunnel,
            allowed_ips: config.allowed_ips.clone(),
            has_session: false,
            is_known: config.endpoint.is_some(),
            route,
            route_before: route,
            moved_at: Duration::ZERO,
            has_keepalive: config.persistent_keepalive.is_some(),
            is_started: false,
        }
    }

    /// Returns its address, if it is known.
    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        self.is_known.then_some(self.route)
    }

    /// Returns its routes to an address, or to its present next hop.
    pub(crate) fn routes(&self, address: Option<SocketAddr>) -> impl Iterator<Item = RouteChange> {
        let next_hop = address.unwrap_or(self.route);
        self.allowed_ips.iter().map(move |allowed| RouteChange::Set(Route::new(*allowed, next_hop)))
    }

    /// Returns the next hop of its routes in the table that the worker has at `now`. The worker takes over a published table
    /// at the beginning of its next call, which has a later time.
    pub(crate) fn next_hop(&self, now: Duration) -> SocketAddr {
        if now > self.moved_at { self.route } else { self.route_before }
    }

    /// Returns true if an address is in use for this peer.
    pub(crate) fn is_at(&self, address: SocketAddr, now: Duration) -> bool {
        [self.route, self.next_hop(now)].contains(&address)
    }

    /// Changes the next hop of its routes, which are to be published in the same call of the worker.
    pub(crate) fn move_to(&mut self, address: SocketAddr, now: Duration) {
        self.route_before = self.next_hop(now);
        (self.is_known, self.route, self.moved_at) = (true, address, now);
    }

    pub(crate) fn update_session(&mut self) {
        self.has_session = self.tunnel.time_since_last_handshake().is_some();
    }

    /// Writes the first message of a handshake, unless one is in progress. Returns its length.
    pub(crate) fn begin_handshake(&mut self, buffer: &mut [u8]) -> Option<usize> {
        message_len(&self.tunnel.format_handshake_initiation(buffer, false))
    }

    /// Writes the message that is due, and returns its length.
    pub(crate) fn handle_timeout(&mut self, rekey_after: Option<Duration>, buffer: &mut [u8]) -> Option<usize> {
        let outcome = self.tunnel.update_timers(buffer);
        let mut len = message_len(&outcome);
        let is_expired = matches!(outcome, TunnResult::Err(WireGuardError::ConnectionExpired));
        self.update_session();
        let age = self.tunnel.time_since_last_handshake();
        let is_old = rekey_after.zip(age).is_some_and(|(limit, age)| age >= limit);
        // A persistent keepalive wants a session, from the start and after attempts that had no answer.
        let wants_session = self.has_keepalive && (is_expired || !self.is_started);
        self.is_started = true;
        if len.is_none() && (is_old || wants_session) && self.is_known {
            len = self.begin_handshake(buffer);
        }
        len
    }
}

/// Returns a next hop for a peer whose address is not known. No host has it (RFC 1112 section 4), and nothing is sent to it.
fn nowhere(index: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0xf000_0000 | index).into(), 1)
}

/// Returns the length of a message for the peer.
pub(crate) fn message_len(result: &TunnResult<'_>) -> Option<usize> {
    match result {
        TunnResult::WriteToNetwork(message) => Some(message.len()),
        TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
            None
        }
    }
}
