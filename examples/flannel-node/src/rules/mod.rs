//! Firewall rules of the same effect as flanneld's: forwarding, masquerading, and no tracking of the tunnel's datagrams.
//!
//! ```text
//!   plan ── wanted rules ──▶ nftables ⇄ kernel: ip filter FORWARD ─jump▶ FLANNEL-NODE-FWD ─▶ accept
//!    ▲                                          ip nat POSTROUTING ─jump▶ FLANNEL-NODE-POSTRTG ─▶ masquerade
//!    └─ every --iptables-resync seconds         ip raw PREROUTING, OUTPUT ─jump▶ … ─▶ notrack
//! ```
//!
//! The rules stand in the chains of iptables-nft, because only a rule in a chain that drops keeps it from that. They have
//! the form that iptables-nft itself writes, so that its tools show, save and restore them as they are. They are
//! written by messages of nfnetlink: no other program is needed. The forward chain of iptables-legacy is a chain of its
//! own, which only its own program can change.

mod attributes;
mod decode;
mod legacy;
mod nftables;
mod plan;
mod rule;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::IpNet;
use nix::libc;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use self::legacy::Legacy;
use self::nftables::{BaseChain, Nftables};
use self::plan::{Group, Purpose};
use crate::output::Event;

/// The number of attempts at a change while other programs change rules too.
const ATTEMPTS: u32 = 10;
/// The number of unread events that are kept. Further ones are omitted.
const EVENTS: usize = 32;

/// The rules to set.
#[derive(Clone, Debug)]
pub(crate) struct RulesConfig {
    /// The networks of all hosts, each with the subnet of this host.
    pub(crate) networks: Vec<(IpNet, IpNet)>,
    /// The tunnel's own addresses.
    pub(crate) listen: Vec<SocketAddr>,
    /// Accepts forwarded packets from and to the networks.
    pub(crate) forward: bool,
    /// Masquerades packets from the networks to others.
    pub(crate) masquerade: bool,
    /// Chooses the ports of masqueraded connections at random.
    pub(crate) fully_random: bool,
    /// The time between two checks.
    pub(crate) resync: Duration,
}

/// The rules of this node. A thread of its own keeps them, because the kernel may be busy with the rules of others for
/// long. They are removed when this value is dropped.
pub(crate) struct Rules {
    masquerades: bool,
    keeper: Option<(mpsc::Sender<()>, JoinHandle<Vec<Event>>)>,
    events: Receiver<Event>,
}

impl Rules {
    /// Sets the rules in the network namespace of the calling thread. Returns the events of the start too. Rules that
    /// cannot be set are reported, and tried again at each check.
    pub(crate) fn set(config: &RulesConfig) -> (Self, Vec<Event>) {
        let (sender, events) = channel(EVENTS);
        let (stop, stopped) = mpsc::channel();
        let (report, first) = mpsc::channel();
        let (keeper, resync) = (Keeper::new(config), config.resync);
        if keeper.is_idle() {
            return (Self { masquerades: false, keeper: None, events }, Vec::new());
        }
        // A new thread is in the network namespace of the thread that starts it.
        let thread = thread::Builder::new().spawn(move || keeper.run(&report, &stopped, resync, &sender));
        match thread {
            Ok(thread) => {
                let (masquerades, first) = first.recv().unwrap_or_default();
                (Self { masquerades, keeper: Some((stop, thread)), events }, first)
            }
            Err(error) => {
                let reason = format!("no firewall rules are set, because no thread can keep them: {error}");
                (Self { masquerades: false, keeper: None, events }, vec![warning(reason)])
            }
        }
    }

    /// Returns true if packets to other networks are masqueraded, so that no other program needs to.
    pub(crate) const fn masquerades(&self) -> bool {
        self.masquerades
    }

    /// Waits for the next event.
    pub(crate) async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Removes the rules. Returns the reasons why some could not be removed.
    pub(crate) fn remove(mut self) -> Vec<Event> {
        self.end()
    }

    fn end(&mut self) -> Vec<Event> {
        let Some((stop, thread)) = self.keeper.take() else { return Vec::new() };
        drop(stop);
        thread.join().unwrap_or_else(|_| vec![warning("the thread that keeps the rules has ended: a bug in the node")])
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        self.end();
    }
}

fn warning(reason: impl Into<String>) -> Event {
    Event::Warning { reason: reason.into() }
}

/// A group of rules and its state.
struct Kept {
    group: Group,
    is_set: bool,
    /// The chains of the kernel that this node has created.
    created: Vec<BaseChain>,
    /// The reason why the rules are not set, which is reported once.
    problem: Option<String>,
}

/// Keeps the rules of this node.
struct Keeper {
    kept: Vec<Kept>,
    legacy: Vec<Legacy>,
    /// The socket, or the reason why there is none.
    kernel: io::Result<Nftables>,
}

impl Keeper {
    fn new(config: &RulesConfig) -> Self {
        let mut groups = Vec::new();
        let mut legacy = Vec::new();
        for (network, subnet) in &config.networks {
            if config.forward {
                groups.push(Group::forward(*network));
                legacy.push(Legacy::new(*network));
            }
            if config.masquerade {
                groups.push(Group::masquerade(*network, *subnet, config.fully_random));
            }
        }
        if config.masquerade {
            groups.extend(config.listen.iter().map(|listen| Group::no_track(listen.is_ipv6(), listen.port())));
        }
        let keep = |group| Kept { group, is_set: false, created: Vec::new(), problem: None };
        Self { kept: groups.into_iter().map(keep).collect(), legacy, kernel: Nftables::open() }
    }

    const fn is_idle(&self) -> bool {
        self.kept.is_empty()
    }

    fn is_set(&self, purpose: Purpose) -> bool {
        let mut of_purpose = self.kept.iter().filter(|kept| kept.group.purpose == purpose).peekable();
        of_purpose.peek().is_some() && of_purpose.all(|kept| kept.is_set)
    }

    /// Sets the rules and reports whether packets are masqueraded. Then checks the rules again and again until the node
    /// ends, and removes them.
    fn run(
        mut self,
        first: &mpsc::Sender<(bool, Vec<Event>)>,
        stopped: &mpsc::Receiver<()>,
        resync: Duration,
        events: &Sender<Event>,
    ) -> Vec<Event> {
        let reports = self.check(true);
        let _ = first.send((self.is_set(Purpose::Masquerade), reports));
        while stopped.recv_timeout(resync) == Err(RecvTimeoutError::Timeout) {
            for event in self.check(false) {
                // Nobody may be reading.
                let _ = events.try_send(event);
            }
        }
        self.remove()
    }

    /// Sets the rules that are missing or changed.
    fn check(&mut self, is_first: bool) -> Vec<Event> {
        let mut events = Vec::new();
        for kept in &mut self.kept {
            events.extend(kept.check(&mut self.kernel, is_first));
        }
        events.extend(self.legacy.iter_mut().filter_map(Legacy::check));
        events
    }

    fn remove(mut self) -> Vec<Event> {
        let legacy = self.legacy.iter_mut().filter_map(Legacy::remove);
        let mut events: Vec<_> = legacy.collect();
        // The first chain that was created is deleted last.
        for kept in self.kept.iter_mut().rev() {
            events.extend(kept.remove(&mut self.kernel));
        }
        events
    }
}

impl Kept {
    fn check(&mut self, kernel: &mut io::Result<Nftables>, is_first: bool) -> Option<Event> {
        let chains = self.group.chains();
        match self.set(kernel, is_first) {
            Ok(None) => {
                let is_news = !self.is_set;
                (self.is_set, self.problem) = (true, None);
                is_news.then(|| self.report(&[]))
            }
            Ok(Some(replaced)) => {
                let was_set = std::mem::replace(&mut self.is_set, true);
                self.problem = None;
                if !was_set {
                    return Some(self.report(&replaced));
                }
                Some(Event::Rules { says: format!("the rules in {chains} were missing or changed; they are put back") })
            }
            Err(error) => {
                let problem = explain(&error);
                let is_news = self.problem.as_ref() != Some(&problem);
                self.problem = Some(problem.clone());
                is_news.then(|| warning(format!("the rules in {chains} cannot be set: {problem}")))
            }
        }
    }

    /// Sets the rules. Returns the replaced chains of flanneld, or `None` if there was nothing to do.
    fn set(&mut self, kernel: &mut io::Result<Nftables>, is_first: bool) -> io::Result<Option<Vec<&'static str>>> {
        let mut replaces_former = is_first;
        for attempt in 0..ATTEMPTS {
            let kernel = connected(kernel)?;
            let generation = kernel.generation()?;
            let setting = match self.group.set(kernel, replaces_former) {
                Err(error) if is_busy(&error) && attempt + 1 < ATTEMPTS => continue,
                setting => setting?,
            };
            if setting.changes.is_empty() {
                return Ok(None);
            }
            match kernel.commit(generation, setting.changes) {
                Ok(()) => {
                    self.created.extend(setting.created);
                    return Ok(Some(setting.replaced));
                }
                Err(error) if is_busy(&error) => {}
                // Somebody else may use flanneld's chains.
                Err(_) if !setting.replaced.is_empty() => replaces_former = false,
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::ERESTART))
    }

    fn remove(&mut self, kernel: &mut io::Result<Nftables>) -> Option<Event> {
        let (mut keeps_chains, mut last) = (false, None);
        for _ in 0..ATTEMPTS {
            let outcome = connected(kernel).and_then(|kernel| {
                let generation = kernel.generation()?;
                let changes = self.group.remove(kernel, &self.created, keeps_chains)?;
                if changes.is_empty() { Ok(()) } else { kernel.commit(generation, changes) }
            });
            match outcome {
                Ok(()) if keeps_chains => break,
                Ok(()) => return None,
                Err(error) if is_busy(&error) => last = last.or(Some(error)),
                // Rules of others jump to an own chain. At least it gets empty.
                Err(error) if !keeps_chains => (keeps_chains, last) = (true, Some(error)),
                Err(error) => {
                    last = Some(error);
                    break;
                }
            }
        }
        // Rules that could never be set are not missed.
        let error = last.filter(|_| self.is_set)?;
        Some(warning(format!("the chains for {} cannot be removed: {}", self.group.chains(), explain(&error))))
    }

    /// Returns the event of rules that are set.
    fn report(&self, replaced: &[&str]) -> Event {
        let says = match self.group.purpose {
            Purpose::Forward => "accepts forwarded packets from and to the network",
            Purpose::Masquerade => "masquerades packets from the network to others",
            Purpose::NoTrack => "excludes the tunnel's datagrams from connection tracking",
        };
        let mut says = format!("a rule in {} {says}", self.group.chains());
        if !replaced.is_empty() {
            says += &format!("; flanneld's rules in {} are removed", replaced.join(" and "));
        }
        Event::Rules { says }
    }
}

/// Returns the socket. One that could not be opened is tried again.
fn connected(kernel: &mut io::Result<Nftables>) -> io::Result<&mut Nftables> {
    if kernel.is_err() {
        *kernel = Nftables::open();
    }
    kernel.as_mut().map_err(|error| error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error))
}

/// Returns true if another program changed rules at the same time.
fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ERESTART | libc::EAGAIN | libc::EINTR))
}

/// Returns an error with the advice for it.
fn explain(error: &io::Error) -> String {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "the node needs CAP_NET_ADMIN for them",
        Some(libc::EPROTONOSUPPORT) => "the kernel lacks nftables; load the module nf_tables",
        Some(libc::ENOENT | libc::EOPNOTSUPP) => {
            "the kernel lacks a part of iptables-nft; load the modules nft_compat, xt_comment, xt_mark, xt_udp, xt_CT and \
             xt_MASQUERADE"
        }
        Some(libc::EBUSY) => "rules of others jump to this node's chains; delete those rules",
        Some(libc::ERESTART) => "other programs change rules all the time",
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}
