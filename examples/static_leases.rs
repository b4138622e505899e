//! A node without etcd. Its leases are the lines of a file, which a thread follows while packets flow. `read` is the
//! whole source; another source makes events of its own changes. Run it as root on every host, with the same file. The
//! file has a line for each host, `SUBNET ADDR[:PORT]`, and comments after `#`. A host recognises its own line.

use std::io::{self, Write};
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::{env, error::Error, fs, os::fd::AsFd, process::ExitCode, thread, time::Duration};

use loden::Host;
use loden::forward::{Forwarder, ForwarderConfig};
use loden::ipnet::{IpNet, Ipv4Net};
use loden::lease::{ConflictChange, Lease, LeaseEvent, Reconciler, SourceId};
use loden::route::RoutePublisher;
use loden::sys::link::{Link, LinkError, LinkMonitor};
use loden::sys::{Tun, TunConfig, UdpConfig, UdpTransport};
use loden::worker::{Running, Worker};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signalfd::{SigSet, SignalFd, signal::Signal};

const USAGE: &str = "usage: static_leases SUBNET NETWORK LISTEN FILE, for example \
    static_leases 100.96.1.0/24 100.96.0.0/16 10.168.0.2:8285 /etc/loden/leases";

type AnyError = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let Some((subnet, network, own, file)) = parse(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let Err(error) = run(subnet, network, own, file) else { return ExitCode::SUCCESS };
    print(io::stderr(), &format!("static_leases: {error}"));
    ExitCode::FAILURE
}

/// Prints a line, unless standard output is full or closed: neither leases nor the end wait for a reader.
fn print(mut to: impl Write + AsFd, line: &str) {
    if poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) != Ok(0) {
        let _ = to.write_all(format!("{line}\n").as_bytes());
    }
}

fn parse(args: &[String]) -> Option<(Ipv4Net, Ipv4Net, SocketAddrV4, &Path)> {
    let [subnet, network, own, file] = args else { return None };
    Some((subnet.parse().ok()?, network.parse().ok()?, own.parse().ok()?, file.as_ref()))
}

/// The content of a line is also the key of its lease, so that its place in the file does not matter.
type Line = (IpNet, SocketAddr);

/// Reads the file, and adds its errors to the complaints.
fn read(file: &Path, port: u16, complaints: &mut Complaints) -> LeaseEvent<Line> {
    let text = match fs::metadata(file) {
        Ok(found) if !found.is_file() => Err(io::Error::other("this is no regular file")),
        found => found.and_then(|_| fs::read(file)),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            complaints.add(&format!("{error}; its leases stay in force"));
            return LeaseEvent::SourceLost;
        }
    };
    let lease = |line: &str| {
        let words: Vec<&str> = line.split('#').next()?.split_whitespace().collect();
        let line = parse_line(&words, port);
        if line.is_none() && !words.is_empty() {
            let words: String = words.join(" ").chars().take(100).collect();
            complaints.add(&format!("{words:?} is not SUBNET ADDR[:PORT]"));
        }
        line.map(|line| (line, Lease::new(line.0, line.1)))
    };
    LeaseEvent::Snapshot(String::from_utf8_lossy(&text).lines().filter_map(lease).collect())
}

/// Complaints about one reading: the first few are printed, the others counted.
struct Complaints<'a> {
    file: &'a Path,
    count: usize,
}

impl Complaints<'_> {
    const PRINTED: usize = 10;

    fn add(&mut self, complaint: &str) {
        self.count += 1;
        if self.count <= Self::PRINTED {
            print(io::stderr(), &format!("{}: {complaint}", self.file.display()));
        }
    }
}

fn parse_line(words: &[&str], port: u16) -> Option<Line> {
    let [subnet, host] = words else { return None };
    let host = host.parse().or_else(|_| host.parse().map(|host| SocketAddr::new(host, port)));
    Some((subnet.parse().ok()?, host.ok()?))
}

/// Follows the file. It becomes an event, the event becomes route changes, and those become the next table.
///
/// It has a thread of its own, so that packets wait neither for a long file nor for a new table.
fn follow(file: &Path, watch: &Inotify, host: &Host, mut routes: RoutePublisher) -> Result<(), AnyError> {
    let mut reconciler = Reconciler::new(host);
    loop {
        let mut complaints = Complaints { file, count: 0 };
        let event = read(file, host.underlay().port(), &mut complaints);
        reconciler.handle_event(SourceId(0), event, Duration::ZERO); // Here no lease ends with time.
        for change in reconciler.take_conflict_changes() {
            if let ConflictChange::Began(conflict) = change {
                complaints.add(&conflict.to_string());
            }
        }
        if complaints.count > Complaints::PRINTED {
            let more = complaints.count - Complaints::PRINTED;
            print(io::stderr(), &format!("{}: and {more} more of these", file.display()));
        }
        routes.apply(reconciler.take_changes()).into_result()?;
        let own = if reconciler.holds_own_lease() { "and our own lease" } else { "but no lease of our own" };
        print(io::stdout(), &format!("{} routes {own}", reconciler.route_count()));
        let _news = watch.read_events()?;
    }
}

fn run(subnet: Ipv4Net, network: Ipv4Net, own: SocketAddrV4, file: &Path) -> Result<(), AnyError> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let signals = SignalFd::new(&signals)?;
    // The directory is watched, because a replaced file is another file. A file that is still being written is not
    // read.
    let watch = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let directory = file.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let news = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
    watch.add_watch(directory, news).map_err(|error| format!("cannot watch {}: {error}", directory.display()))?;

    let host = Host::new(network, subnet, own)?;
    let routes = RoutePublisher::for_host(&host);
    let (tun, udp) = (Tun::open(&TunConfig::default())?, UdpTransport::bind(host.underlay(), &UdpConfig::default())?);
    let mut monitor = LinkMonitor::open(tun.name())?;
    let mut link = Link::configure(&tun, &host)?;
    let forwarder = Forwarder::new(ForwarderConfig::new(&host).with_mtu(link.mtu()))?;
    let worker = Worker::new(tun, udp, forwarder, routes.reader());
    print(io::stdout(), &format!("ready {}", worker.tun_name()));
    let running = Running::start([worker])?;
    // The thread holds one end of a pipe, which ends with it.
    let (file, (ended, alive)) = (PathBuf::from(file), io::pipe()?);
    let following = thread::spawn(move || {
        let _alive = alive;
        follow(&file, &watch, &host, routes)
    });
    loop {
        let waited_for = [signals.as_fd(), ended.as_fd(), monitor.as_fd(), running.as_fd()];
        let mut fds = waited_for.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::NONE).or_else(|error| if error == Errno::EINTR { Ok(0) } else { Err(error) })?;
        let [stop, ended, device, forwarding] = fds.map(|fd| fd.any().unwrap_or(true));
        if forwarding || stop {
            running.stop()?;
            return Ok(());
        }
        if device {
            while monitor.next_event()?.is_some() {}
            // After any change the overlay's route is restored. The worker reports a deleted device.
            match link.restore() {
                Err(LinkError::NoSuchInterface { .. }) | Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if ended {
            return following.join().unwrap_or_else(|_panic| Err("the thread that follows the file panicked".into()));
        }
    }
}
