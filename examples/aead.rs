//! A tunnel whose packets are encrypted with keys that all hosts share. Run it as root on both hosts.
//!
//! Each line of KEYFILE is `ID KEY`: an id from 0 to 255 and 32 random bytes in hexadecimal, for example
//! `1 $(openssl rand -hex 32)`. Packets are sealed with the first key and opened with any. To change the key, add the new one
//! as second line on all hosts, then make it the first, then remove the old one; restart the tunnel after each step.
//!
//! A datagram is `sender (16 bytes) ‖ counter (8) ‖ ciphertext ‖ tag (16)`. A sender is one worker of one run: the key's id, the
//! worker's number and 14 random bytes. HKDF-SHA256 derives its ChaCha20-Poly1305 key from the shared key, so no two senders have
//! the same, and the counter is the nonce. A change of either ends in another key or nonce and makes the tag invalid.
//!
//! It does not protect against:
//! - hosts that have the key: they can open every packet and send as any other host;
//! - a key that becomes known later: it opens all recorded packets (no forward secrecy; WireGuard has it);
//! - replays of recorded datagrams, once each, to a host that was started later or has heard [`SENDERS_MAX`] other senders since;
//! - who counts packets, their lengths and times, and who drops, delays or reorders them.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::{env, error::Error, fs, io, process::ExitCode, time::Duration};

use loden::forward::{DatagramMeta, DropReason, Forwarder, ForwarderConfig};
use loden::framing::{Framing, Reply};
use loden::route::{Route, RouteChange, RoutePublisher};
use loden::sys::link::{Link, LinkConfig};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{self, Worker};
use loden::{Host, ipnet::Ipv4Net};
use nix::sys::signalfd::{SigSet, SignalFd, signal::Signal};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};

const USAGE: &str = "usage: aead KEYFILE SUBNET NETWORK LISTEN PEER_SUBNET PEER [WORKERS], for example \
    aead keys 100.96.1.0/24 100.96.0.0/16 10.168.0.2:8285 100.96.2.0/24 10.168.0.3:8285";

/// Senders whose counters are remembered. Beyond it the one that was silent for longest is forgotten.
const SENDERS_MAX: usize = 4096;
/// Words of a window. Of the last `64 * (WORDS - 1)` counters each is accepted once, in any order.
const WORDS: u64 = 128;

type SenderId = [u8; 16];

/// The counters that one sender has used, as in RFC 6479: a ring of bits that moves by whole words.
struct Window {
    highest: u64,
    bits: [u64; WORDS as usize],
}

impl Window {
    /// Returns true if this counter is new, and only once.
    fn accept(&mut self, counter: u64) -> bool {
        let (word, highest) = (counter / 64, self.highest / 64);
        if word + WORDS <= highest {
            return false;
        }
        // Words that come into the window are empty.
        for fresh in (highest + 1..=word).rev().take(self.bits.len()) {
            self.bits[(fresh % WORDS) as usize] = 0;
        }
        self.highest = self.highest.max(counter);
        let (bits, bit) = (&mut self.bits[(word % WORDS) as usize], 1 << (counter % 64));
        let is_new = *bits & bit == 0;
        *bits |= bit;
        is_new
    }
}

struct Sender {
    key: Arc<LessSafeKey>,
    window: Window,
    heard_at: Duration,
}

/// The state that all workers share.
struct Shared {
    keys: HashMap<u8, Prk>,
    senders: Mutex<HashMap<SenderId, Sender>>,
}

impl Shared {
    /// Returns the key of a sender, derived if the sender is new.
    fn key(&self, id: &SenderId) -> Option<Arc<LessSafeKey>> {
        if let Some(sender) = self.senders.lock().ok()?.get(id) {
            return Some(Arc::clone(&sender.key));
        }
        let key = self.keys.get(&id[0])?.expand(&[id], &CHACHA20_POLY1305).map(UnboundKey::from).ok()?;
        Some(Arc::new(LessSafeKey::new(key)))
    }

    /// Returns whether the counter of an authentic datagram is new.
    fn accept(&self, id: SenderId, key: Arc<LessSafeKey>, counter: u64, now: Duration) -> Option<bool> {
        let mut senders = self.senders.lock().ok()?;
        if senders.len() >= SENDERS_MAX && !senders.contains_key(&id) {
            let silent = *senders.iter().min_by_key(|(_, sender)| sender.heard_at)?.0;
            senders.remove(&silent);
        }
        let window = Window { highest: 0, bits: [0; WORDS as usize] };
        let sender = senders.entry(id).or_insert(Sender { key, window, heard_at: now });
        sender.heard_at = now;
        Some(sender.window.accept(counter))
    }
}

/// One worker's framing.
struct Aead {
    shared: Arc<Shared>,
    id: SenderId,
    key: Arc<LessSafeKey>,
    counter: u64,
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Framing for Aead {
    const HEAD: usize = 24;
    const OVERHEAD_MAX: usize = Self::HEAD + MAX_TAG_LEN;

    fn seal(&mut self, _: SocketAddr, datagram: &mut [u8], len: usize) {
        let (head, rest) = datagram.split_at_mut(Self::HEAD);
        let (packet, tag) = rest.split_at_mut(len);
        head[..16].copy_from_slice(&self.id);
        head[16..].copy_from_slice(&self.counter.to_be_bytes());
        match self.key.seal_in_place_separate_tag(nonce(self.counter), Aad::empty(), packet) {
            Ok(made) => tag.copy_from_slice(made.as_ref()),
            Err(_) => datagram.fill(0), // Longer than 256 GiB.
        }
        self.counter += 1;
    }

    fn open<'d>(
        &mut self,
        _: &mut DatagramMeta,
        datagram: &'d mut [u8],
        now: Duration,
        _: &mut impl Reply,
    ) -> Result<Option<&'d mut [u8]>, DropReason> {
        let (id, rest) = datagram.split_first_chunk_mut::<16>().ok_or(DropReason::NotAuthentic)?;
        let (counter, sealed) = rest.split_first_chunk_mut::<8>().ok_or(DropReason::NotAuthentic)?;
        let counter = u64::from_be_bytes(*counter);
        // What this host sent comes back only from an attacker.
        if id[2..] == self.id[2..] {
            return Err(DropReason::Replayed);
        }
        let key = self.shared.key(id).ok_or(DropReason::NoSession)?;
        let packet = key.open_in_place(nonce(counter), Aad::empty(), sealed).map_err(|_| DropReason::NotAuthentic)?;
        let is_new = self.shared.accept(*id, key, counter, now) == Some(true);
        if is_new { Ok(Some(packet)) } else { Err(DropReason::Replayed) }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((subnet, network, own, peer, workers)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let opened = framings(&args[0], workers).and_then(|framings| open(framings, subnet, network, own, peer));
    let Err(error) = opened.and_then(run) else { return ExitCode::SUCCESS };
    eprintln!("aead: {error}");
    ExitCode::FAILURE
}

fn parse(args: &[String]) -> Option<(Ipv4Net, Ipv4Net, SocketAddrV4, Route, NonZeroUsize)> {
    let [_, subnet, network, own, peer_subnet, peer, more @ ..] = args else { return None };
    let workers = match more {
        [] => NonZeroUsize::MIN,
        [workers] => workers.parse().ok().filter(|workers: &NonZeroUsize| workers.get() <= 256)?,
        _ => return None,
    };
    let peer = Route::new(peer_subnet.parse::<Ipv4Net>().ok()?, peer.parse::<SocketAddrV4>().ok()?);
    Some((subnet.parse().ok()?, network.parse().ok()?, own.parse().ok()?, peer, workers))
}

/// Reads the keys, and returns a framing for each worker.
fn framings(path: &str, workers: NonZeroUsize) -> Result<Vec<Aead>, Box<dyn Error>> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read the keys in {path}: {error}"))?;
    let (mut keys, mut id, mut key) = (HashMap::new(), [0; 16], [0; 32]);
    for (number, line) in text.lines().enumerate() {
        let parsed = line.split_once(' ').and_then(|(id, digits)| {
            hex::decode_to_slice(digits, &mut key).ok()?;
            id.parse::<u8>().ok().filter(|id| !keys.contains_key(id))
        });
        let parsed = parsed.ok_or_else(|| {
            format!("line {} of {path} is not a new id from 0 to 255, a space and 64 hexadecimal digits", number + 1)
        })?;
        id[0] = if number == 0 { parsed } else { id[0] };
        keys.insert(parsed, Salt::new(HKDF_SHA256, b"loden aead example").extract(&key));
    }
    SystemRandom::new().fill(&mut id[2..]).map_err(|_| "the system has no random numbers")?;
    let shared = Arc::new(Shared { keys, senders: Mutex::default() });
    let framings = (0..workers.get()).map(|worker| {
        id[1] = worker as u8;
        let key = shared.key(&id).ok_or_else(|| format!("{path} has no keys"))?;
        Ok(Aead { shared: Arc::clone(&shared), id, key, counter: 0 })
    });
    framings.collect()
}

fn open(
    framings: Vec<Aead>,
    subnet: Ipv4Net,
    network: Ipv4Net,
    own: SocketAddrV4,
    peer: Route,
) -> Result<Vec<Worker<Aead>>, Box<dyn Error>> {
    let host = Host::new(network, subnet, own)?;
    let mut routes = RoutePublisher::for_host(&host);
    routes.apply([RouteChange::Set(peer)]).into_result()?;
    let queues = NonZeroUsize::new(framings.len()).ok_or("no workers")?;
    let tuns = Tun::open_queues(&TunConfig::default(), queues)?;
    let sockets = UdpTransport::bind_queues(host.underlay(), &UdpConfig::default(), queues)?;
    let link = Link::configure_with(tuns[0].name(), &LinkConfig::new(&host).with_framing::<Aead>())?;
    let forwarder = Forwarder::new(ForwarderConfig::new(&host).with_mtu(link.mtu()))?;
    let workers = Worker::group(tuns.into_iter().zip(sockets), &forwarder, &routes.reader());
    Ok(workers.into_iter().zip(framings).map(|(worker, framing)| worker.with_framing(framing)).collect())
}

fn run(workers: Vec<Worker<Aead>>) -> Result<(), Box<dyn Error>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let stop = SignalFd::new(&signals)?;
    writeln!(io::stdout(), "ready {}", workers[0].tun_name())?;
    let counters = worker::run(workers, stop)?;
    writeln!(io::stdout(), "{counters:?}")?;
    Ok(())
}
