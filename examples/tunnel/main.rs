//! A minimal tunnel: flannel's UDP mode for one host, with its routes given by hand, by file or by flannel's own commands.
//!
//! ```text
//! tunnel --subnet 100.96.1.0/24 --network 100.96.0.0/16 --listen 10.168.0.2 --route 100.96.2.0/24=10.168.0.3
//! ```
//!
//! Standard output carries one JSON object per line, everything else goes to standard error. Status 0: stopped as asked;
//! 1: ended by a fault; 2: never began. With `--check`, 0: nothing keeps it from working; 1: something does.

mod args;
mod check;
mod control;
mod links;
mod output;
mod queues;
mod report;
mod routes;
mod routes_file;
mod routing;
mod underlay;

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use loden::control::Command;
use loden::forward::{Forwarder, IcmpLimiter, Rate};
use loden::sys::link::LinkConfig;
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Progress, Worker, WorkerError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use args::Args;
use control::Control;
use links::{Limit, Links};
use queues::{Queues, Tally};
use report::{Report, answer, say, say_notices};
use routes::Routes;
use routing::Routing;
use underlay::Underlay;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let args = Args::parse();
    let status = if args.check { check::run(&args) } else { run(&args) };
    let status = status.unwrap_or_else(|error| {
        answer(format_args!("tunnel: {error}"));
        ExitCode::from(2)
    });
    report::flush();
    status
}

/// Runs a tunnel to its end.
///
/// # Errors
/// If it never began.
fn run(args: &Args) -> Result<ExitCode, Error> {
    let Some(mut tunnel) = Tunnel::open(args)? else { return Ok(ExitCode::SUCCESS) };
    let outcome = tunnel.run();
    match outcome.and(tunnel.close()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            answer(format_args!("tunnel: {}", explained(error)));
            Ok(ExitCode::FAILURE)
        }
    }
}

struct Tunnel {
    signals: SignalFd,
    worker: Worker,
    queues: Queues,
    links: Links,
    routing: Routing,
    control: Option<Control>,
    report: Report,
}

/// Whether the loop goes on.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Stop,
}

impl Tunnel {
    /// Returns nothing if a signal asks for the end before the beginning.
    fn open(args: &Args) -> Result<Option<Self>, Error> {
        // First of all, so that no signal finds the process half set up.
        let mut caught = SigSet::empty();
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
            caught.add(signal);
        }
        caught.thread_block()?;
        let signals = SignalFd::with_flags(&caught, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

        // Each client of the control socket takes a file descriptor.
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
        }
        let listen = SocketAddr::V4(args.listen);
        let underlay = Underlay::watch(listen.ip(), args.peers())?;
        let mtu = args.mtu.unwrap_or(underlay.tun_mtu());
        let forwarder = Forwarder::new(args.overlay(Some(Limit::new(mtu, &underlay).packet)))?;
        let routing = Routing::start(Routes::of(args)?)?;
        // A long file takes its time, and a signal does not wait for that.
        while !routing.has_read(Duration::from_millis(20))? {
            if take_signals(&signals, &routing)? == Next::Stop {
                return Ok(None);
            }
        }
        check::warn(args);

        let control = args.control.as_deref().map(Control::open).transpose()?;
        let queues = NonZeroUsize::new(args.queues.into()).unwrap_or(NonZeroUsize::MIN);
        // Before the sockets: of several, each would take its share of the datagrams from a tunnel that runs already.
        let config = TunConfig { name: args.tun.clone(), offload: args.tun_offload() };
        let tuns = Tun::open_queues(&config, queues)?;
        let config = UdpConfig { offload: args.udp_offload(), flow_ports: args.source_ports, ..UdpConfig::default() };
        let sockets = UdpTransport::bind_queues(listen, &config, queues)?;
        let name = tuns[0].name().to_owned();
        let offloads = offloads(&tuns[0], &sockets[0]);
        let network = args.network.trunc();
        let config = LinkConfig { address: forwarder.tun_address(), network, mtu, form: Default::default() };
        let links = Links::configure(&name, &config, underlay)?;
        let report = Report::new(args.stats);
        let mut workers: Vec<_> = tuns
            .into_iter()
            .zip(sockets)
            .map(|(tun, udp)| {
                let worker = Worker::new(tun, udp, forwarder.clone(), routing.reader());
                let worker = worker.with_icmp_limiter(share_of_icmp(queues.get() as u32));
                if args.no_offload { worker.one_by_one() } else { worker }
            })
            .collect();
        let others = workers.split_off(1);
        let worker = workers.remove(0);
        let queues = Queues::start(others)?;
        report.ready(&name, listen, mtu, &offloads);
        Ok(Some(Self { signals, worker, queues, links, routing, control, report }))
    }

    fn run(&mut self) -> Result<(), Error> {
        let budget = Budget::default();
        let (mut tun_more, mut udp_more) = (false, false);
        loop {
            say_notices(&mut self.worker);
            let ready = self.wait(tun_more || udp_more)?;
            let now = Instant::now();
            if ready.signals && take_signals(&self.signals, &self.routing)? == Next::Stop {
                return Ok(());
            }
            if ready.control && self.take_commands(budget) == Next::Stop {
                return Ok(());
            }
            if ready.links && self.links.take_events()? {
                self.apply_limit();
            }
            if tun_more || ready.tun || ready.due {
                tun_more = self.worker.tun_ready(budget, now)? == Progress::More;
            }
            if udp_more || ready.udp {
                udp_more = self.worker.udp_ready(budget, now)? == Progress::More;
            }
            if ready.queue_ended {
                return Err(self.queues.stop().err().unwrap_or_else(|| "a queue ended".into()));
            }
            if self.report.is_due(now) {
                self.say_stats("stats");
            }
        }
    }

    /// Waits until there is something to do; with `more`, only looks.
    fn wait(&self, more: bool) -> Result<Ready, Error> {
        let interest = self.worker.interest();
        // While many changes wait to be applied, their senders wait too.
        let has_room = self.routing.has_room();
        let control = self.control.as_ref().filter(|_| has_room);
        let room_at = (!has_room).then(|| Instant::now() + Duration::from_millis(10));
        let accept_at = control.and_then(Control::wake_at);
        let links_at = self.links.wake_at();
        let wake_at = [interest.wake_at, self.report.due(), accept_at, links_at, room_at].into_iter().flatten().min();
        let timeout = match wake_at {
            _ if more => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(at) => milliseconds_until(at),
        };
        let readable = if interest.udp_readable { PollFlags::POLLIN } else { PollFlags::empty() };
        let udp = readable | if interest.udp_writable { PollFlags::POLLOUT } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.worker.udp().as_fd(), udp),
            PollFd::new(self.queues.ended(), PollFlags::POLLIN),
        ];
        let first = fds.len();
        fds.extend(self.links.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let links = first..fds.len();
        fds.extend(control.into_iter().flat_map(|control| control.poll_fds(Instant::now())));
        let clients = links.end..fds.len();
        // Left out while it is not waited for: poll tells of a deleted device whether asked or not.
        if interest.tun_readable {
            fds.push(PollFd::new(self.worker.tun().as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("waiting for packets failed: {errno}").into()),
        }
        let events: Vec<_> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::all())).collect();
        let passed = |at: Option<Instant>| at.is_some_and(|at| Instant::now() >= at);
        let any = |events: &[PollFlags]| events.iter().any(|events| !events.is_empty());
        Ok(Ready {
            signals: any(&events[..1]),
            links: any(&events[links]) || passed(links_at),
            udp: !(events[1] - PollFlags::POLLOUT).is_empty(),
            tun: any(&events[clients.end..]),
            queue_ended: any(&events[2..3]),
            due: events[1].contains(PollFlags::POLLOUT) || passed(interest.wake_at),
            control: any(&events[clients]) || passed(accept_at),
        })
    }

    /// Applies all waiting commands at once, up to the budget.
    fn take_commands(&mut self, budget: Budget) -> Next {
        let Some(control) = &mut self.control else { return Next::GoOn };
        let commands = control.take(budget);
        // What was asked for before the stop still counts.
        let stop = commands.iter().position(|command| *command == Command::Stop);
        let before = commands.iter().take(stop.unwrap_or(commands.len()));
        self.routing.change(before.filter_map(Command::route_change).collect());
        if stop.is_some() { Next::Stop } else { Next::GoOn }
    }

    /// Tells all workers how long a packet may be now, also if that is as before: the links may have been narrower meanwhile.
    fn apply_limit(&mut self) {
        let limit = self.links.limit();
        match self.worker.set_mtu(limit.packet) {
            Ok(()) => {
                self.queues.set_mtu(limit.packet);
                self.report.limit(limit);
            }
            Err(error) => say("the MTU", format_args!("the longest packet stays what it was: {error}")),
        }
    }

    /// Removes what was made, and says the last word.
    fn close(mut self) -> Result<(), Error> {
        self.worker.stop();
        let stopped = self.queues.stop();
        self.routing.finish();
        self.say_stats("stopped");
        self.links.remove()?;
        stopped
    }

    fn say_stats(&mut self, event: &str) {
        let mut tally = Tally::of(&self.worker);
        self.queues.add_to(&mut tally);
        let device = self.links.stats();
        self.report.stats(event, &tally, device, &self.routing, self.control.as_ref());
    }
}

fn take_signals(signals: &SignalFd, routing: &Routing) -> Result<Next, Error> {
    while let Some(signal) = signals.read_signal()? {
        match Signal::try_from(signal.ssi_signo as i32) {
            Ok(Signal::SIGHUP) => routing.read_file_again(),
            Ok(_) | Err(_) => return Ok(Next::Stop),
        }
    }
    Ok(Next::GoOn)
}

/// What [`Tunnel::wait`] found.
struct Ready {
    signals: bool,
    links: bool,
    tun: bool,
    udp: bool,
    queue_ended: bool,
    /// A packet that was held can be tried again.
    due: bool,
    control: bool,
}

/// What each of so many queues may send of ICMP errors, so that together they keep the limits of one.
fn share_of_icmp(queues: u32) -> IcmpLimiter {
    let share = |rate: Rate| Rate { per_second: rate.per_second.div_ceil(queues), burst: rate.burst.div_ceil(queues) };
    let limiter = IcmpLimiter::new(share(IcmpLimiter::PER_SOURCE), share(IcmpLimiter::TOTAL));
    // One that no sender knows.
    limiter.with_seed(RandomState::new().hash_one(()))
}

fn deleted(name: &str) -> Error {
    format!("the TUN device {name} was deleted; start the tunnel again").into()
}

/// A worker's end in the words of who started a tunnel: the worker's own are for who wrote one.
fn explained(error: Error) -> Error {
    match error.downcast_ref() {
        Some(WorkerError::LinkDeleted { name }) => deleted(name),
        _ => error,
    }
}

/// The offloads that the kernel granted, by their names on the command line.
fn offloads(tun: &Tun, udp: &UdpTransport) -> Vec<&'static str> {
    let (tun, udp) = (tun.offload(), udp.offload());
    let granted = [("tun-tso", tun.tso), ("tun-uso", tun.uso), ("udp-gso", udp.gso), ("udp-gro", udp.gro)];
    granted.into_iter().filter(|(_, granted)| *granted).map(|(name, _)| name).collect()
}

/// Rounded up, so that the loop does not wake just before the moment and find nothing to do.
fn milliseconds_until(at: Instant) -> PollTimeout {
    let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}
