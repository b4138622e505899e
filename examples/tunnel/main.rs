//! A minimal tunnel: flannel's UDP mode for one host, with its routes given by hand, by file or by flannel's own commands.
//!
//! ```text
//! tunnel --subnet 100.96.1.0/24 --network 100.96.0.0/16 --listen 10.168.0.2 --route 100.96.2.0/24=10.168.0.3
//! ```
//!
//! Standard output has one JSON object per line, standard error everything else. Status 0: stopped on request; 1: ended
//! by an error; 2: did not start. With `--check`, 0: nothing keeps it from working; 1: a finding does.

mod args;
mod check;
mod control;
mod links;
mod output;
mod report;
mod routes;
mod routes_file;
mod routing;
mod underlay;

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use loden::control::Command;
use loden::forward::Forwarder;
use loden::sys::link::LinkConfig;
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Budget, Handle, Running, Worker, WorkerError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use args::Args;
use control::Control;
use links::{Limit, Links};
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
/// If it did not start.
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
    workers: Handle,
    running: Option<Running>,
    /// Readable when a worker has a notice.
    news: Arc<EventFd>,
    links: Links,
    routing: Routing,
    control: Option<Control>,
    report: Report,
}

/// The loop's decision after an event.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Stop,
}

impl Tunnel {
    /// Returns `None` if a signal asks for the end during the start.
    fn open(args: &Args) -> Result<Option<Self>, Error> {
        // The first step, so that no signal ends a half-configured process.
        let mut caught = SigSet::empty();
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
            caught.add(signal);
        }
        caught.thread_block()?;
        let signals = SignalFd::with_flags(&caught, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

        // Each client of the control socket needs a file descriptor.
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
        }
        let host = args.host()?;
        let underlays = Underlay::watch_all(&host, &args.peers())?;
        let mtu = args.mtu.map_or_else(|| Underlay::narrowest(&underlays), Ok)?;
        let forwarder = Forwarder::new(args.config(&host, Some(Limit::new(mtu.into(), &underlays)?.packet)))?;
        let routing = Routing::start(Routes::of(args)?)?;
        // A signal must not wait for a long file.
        while !routing.has_read(Duration::from_millis(20))? {
            if take_signals(&signals, &routing)? == Next::Stop {
                return Ok(None);
            }
        }
        check::warn(args, &host);

        let control = args.control.as_deref().map(Control::open).transpose()?;
        let queues = NonZeroUsize::new(args.queues.into()).unwrap_or(NonZeroUsize::MIN);
        // Before the sockets: with several, each would take a share of the datagrams of a tunnel that runs already.
        let config = TunConfig::new(args.tun.clone()).with_offload(args.tun_offload());
        let tuns = Tun::open_queues(&config, queues)?;
        let config = UdpConfig::default().with_offload(args.udp_offload()).with_flow_ports(args.source_ports);
        let mut sockets = host.underlays().iter().map(|listen| UdpTransport::bind_queues(*listen, &config, queues));
        let first = sockets.next().ok_or("there is no socket")??;
        let second = sockets.next().transpose()?;
        let name = tuns[0].name().to_owned();
        let offloads = offloads(&tuns[0], &first[0]);
        let links = Links::configure(&name, &LinkConfig::new(&host).with_mtu(mtu), underlays)?;
        let report = Report::new(args.stats);
        let mut workers = Worker::group(tuns.into_iter().zip(first), &forwarder, &routing.reader());
        if let Some(second) = second {
            workers =
                workers.into_iter().zip(second).map(|(worker, udp)| worker.with_udp(udp)).collect::<Result<_, _>>()?;
        }
        if args.no_offload {
            workers = workers.into_iter().map(Worker::unbatched).collect();
        }
        let handle = workers.first().ok_or("there is no queue")?.remote();
        let news = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let writer = Arc::clone(&news);
        handle.set_listener(move || {
            let _ = writer.write(1);
        });
        say_notices(&handle);
        let running = Some(Running::start(workers)?);
        report.ready(&name, host.underlays(), mtu.into(), &offloads);
        Ok(Some(Self { signals, workers: handle, running, news, links, routing, control, report }))
    }

    fn run(&mut self) -> Result<(), Error> {
        loop {
            let ready = self.wait()?;
            if ready.signals && take_signals(&self.signals, &self.routing)? == Next::Stop {
                return Ok(());
            }
            if ready.control && self.take_commands(Budget::default()) == Next::Stop {
                return Ok(());
            }
            if ready.links {
                match self.links.take_events() {
                    Ok(true) => self.apply_limit(),
                    Ok(false) => {}
                    // The workers' error is more precise than the monitor's.
                    Err(error) => return self.stop().and(Err(error)),
                }
            }
            if ready.news {
                let _ = self.news.read();
                say_notices(&self.workers);
            }
            if ready.ended {
                return self.stop();
            }
            if self.report.is_due(Instant::now()) {
                let device = self.links.stats();
                self.report.stats("stats", &self.workers, device, &self.routing, self.control.as_ref());
            }
        }
    }

    /// Waits for the next event.
    fn wait(&self) -> Result<Ready, Error> {
        // While many changes are queued, the clients wait.
        let has_room = self.routing.has_room();
        let control = self.control.as_ref().filter(|_| has_room);
        let room_at = (!has_room).then(|| Instant::now() + Duration::from_millis(10));
        let accept_at = control.and_then(Control::wake_at);
        let links_at = self.links.wake_at();
        let wake_at = [self.report.due(), accept_at, links_at, room_at].into_iter().flatten().min();
        let timeout = wake_at.map_or(PollTimeout::NONE, milliseconds_until);
        let mut fds = vec![self.signals.as_fd(), self.news.as_fd()];
        fds.extend(self.running.as_ref().map(Running::as_fd));
        let first = fds.len();
        fds.extend(self.links.fds());
        let links = first..fds.len();
        let mut fds: Vec<_> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        fds.extend(control.into_iter().flat_map(|control| control.poll_fds(Instant::now())));
        let clients = links.end..fds.len();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("waiting for events failed: {errno}").into()),
        }
        let events: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let passed = |at: Option<Instant>| at.is_some_and(|at| Instant::now() >= at);
        let any = |events: &[bool]| events.contains(&true);
        Ok(Ready {
            signals: events[0],
            news: events[1],
            ended: any(&events[2..first]),
            links: any(&events[links]) || passed(links_at),
            control: any(&events[clients]) || passed(accept_at),
        })
    }

    /// Applies all waiting commands at once, up to the budget.
    fn take_commands(&mut self, budget: Budget) -> Next {
        let Some(control) = &mut self.control else { return Next::GoOn };
        let commands = control.take(budget);
        // Commands before the stop still apply.
        let stop = commands.iter().position(|command| *command == Command::Stop);
        let before = commands.iter().take(stop.unwrap_or(commands.len()));
        self.routing.change(before.filter_map(Command::route_change).collect());
        if stop.is_some() { Next::Stop } else { Next::GoOn }
    }

    /// Sets the longest packet of all workers, even if it is unchanged: the links may have been narrower meanwhile.
    fn apply_limit(&mut self) {
        match self.links.limit() {
            Ok(limit) => {
                self.workers.set_mtu(limit.packet);
                self.report.limit(limit);
            }
            Err(error) => say("the MTU", format_args!("the longest packet stays what it was: {error}")),
        }
    }

    /// Removes the settings, and prints the last line.
    fn close(mut self) -> Result<(), Error> {
        // The device ends with the workers.
        let device = self.links.stats();
        let stopped = self.stop();
        self.routing.finish();
        self.report.stats("stopped", &self.workers, device, &self.routing, self.control.as_ref());
        self.links.remove()?;
        stopped
    }

    /// Stops the workers. An error is the one that ended them.
    fn stop(&mut self) -> Result<(), Error> {
        let stopped = self.running.take().map_or(Ok(()), |running| running.stop().map(drop));
        say_notices(&self.workers);
        Ok(stopped?)
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

/// The events that [`Tunnel::wait`] found.
struct Ready {
    signals: bool,
    news: bool,
    /// The workers have ended.
    ended: bool,
    links: bool,
    control: bool,
}

fn deleted(name: &str) -> Error {
    format!("the TUN device {name} was deleted; start the tunnel again").into()
}

/// Returns a worker's error in the terms of the command line. The worker's own text is for programmers.
fn explained(error: Error) -> Error {
    match error.downcast_ref() {
        Some(WorkerError::LinkDeleted { name }) => deleted(name),
        _ => error,
    }
}

/// Returns the offloads that the kernel granted, by their names on the command line.
fn offloads(tun: &Tun, udp: &UdpTransport) -> Vec<&'static str> {
    let (tun, udp) = (tun.offload(), udp.offload());
    let granted = [("tun-tso", tun.tso), ("tun-uso", tun.uso), ("udp-gso", udp.gso), ("udp-gro", udp.gro)];
    granted.into_iter().filter(|(_, granted)| *granted).map(|(name, _)| name).collect()
}

/// Returns the time until a moment, rounded up so that the loop does not wake before it.
fn milliseconds_until(at: Instant) -> PollTimeout {
    let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}
