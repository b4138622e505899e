//! A program that runs in a namespace and ends with its guard.

use crate::Namespace;
use crate::error::Context;
use alloc::sync::Arc;
use core::convert::Infallible;
use core::str::FromStr;
use core::time::Duration;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, SysconfVar, sysconf};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{self, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// The interval of the checks in [`Child::wait`].
const WAIT_INTERVAL: Duration = Duration::from_millis(2);

/// A running program, killed and reaped on drop. Programs that it has started are not killed.
///
/// `SIGKILL` of this process runs no drop. The program's standard input is a pipe that ends then. So a program that
/// calls [`exit_with_parent`] or reads its input ends too. Another program ends if [`exec_with_parent`] started it.
#[derive(Debug)]
pub struct Child {
    program: String,
    process: process::Child,
    parent: Parent,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Disconnected at the end of standard error.
    errors_end: Receiver<()>,
}

impl Child {
    /// Starts a program inside a namespace. This guard holds pipes to its three standard streams.
    ///
    /// # Errors
    /// The program cannot be started, for example `NotFound`.
    pub fn spawn(namespace: &Namespace, mut command: Command) -> io::Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut process, parent) = Parent::spawn(namespace, command).context(|| format!("cannot start {program}"))?;
        let (stdin, stdout, errors) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (sender, lines) = mpsc::channel();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (open, errors_end) = mpsc::channel();
        // From here on an early return kills the program.
        let child = Self { program, process, parent, stdin, lines, stderr: Arc::clone(&stderr), errors_end };
        if let Some(stdout) = stdout {
            thread::Builder::new().name("child-stdout".into()).spawn(move || {
                let mut reader = BufReader::new(stdout);
                let mut line = Vec::new();
                while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                    let text = String::from_utf8_lossy(&line);
                    // The guard may be gone. Continued reading keeps the program from a SIGPIPE before it is killed.
                    let _ = sender.send(text.strip_suffix('\n').unwrap_or(&text).to_owned());
                    line.clear();
                }
            })?;
        }
        if let Some(mut errors) = errors {
            thread::Builder::new().name("child-stderr".into()).spawn(move || {
                let _open: Sender<()> = open;
                let mut chunk = [0; 4096];
                while let Ok(length @ 1..) = errors.read(&mut chunk) {
                    if let Ok(mut buffer) = stderr.lock() {
                        buffer.extend_from_slice(&chunk[..length]);
                    }
                }
            })?;
        }
        Ok(child)
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns the next line of the program's standard output, without its end.
    ///
    /// # Errors
    /// `TimedOut` without a line in time, and `UnexpectedEof` after the last line. Both contain the standard error.
    pub fn next_line(&self, timeout: Duration) -> io::Result<String> {
        self.lines.recv_timeout(timeout).map_err(|error| {
            let (kind, what) = match error {
                RecvTimeoutError::Timeout => (io::ErrorKind::TimedOut, format!("wrote no line within {timeout:?}")),
                RecvTimeoutError::Disconnected => (io::ErrorKind::UnexpectedEof, "wrote no more lines".to_owned()),
            };
            io::Error::new(kind, format!("{} {what}; its standard error: {:?}", self.program, self.stderr()))
        })
    }

    /// Writes a line to the program's standard input.
    ///
    /// # Errors
    /// `BrokenPipe` if the program closed it.
    pub fn send_line(&mut self, line: &str) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
        stdin.write_all(format!("{line}\n").as_bytes())
    }

    /// Closes the program's standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Returns the program's standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Sends a signal to this process only.
    ///
    /// # Errors
    /// `NotFound` if it was already reaped, because its process id may be reused.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.process.try_wait()?.is_some() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} has ended", self.program)));
        }
        let pid = i32::try_from(self.process.id()).map_err(io::Error::other)?;
        Ok(signal::kill(Pid::from_raw(pid), signal)?)
    }

    /// Returns the exit status of the program, or `None` if it still runs after `timeout`. With a status,
    /// [`stderr`](Self::stderr) is complete, unless another process has it open for a second longer.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let start = Instant::now();
        loop {
            let status = self.process.try_wait()?;
            if status.is_some() {
                // Nothing is ever sent.
                let _ = self.errors_end.recv_timeout(Duration::from_secs(1));
            }
            if status.is_some() || start.elapsed() >= timeout {
                return Ok(status);
            }
            thread::sleep(WAIT_INTERVAL);
        }
    }

    /// Returns the processor time of all its threads, user and system, in units of the kernel's clock tick (10 ms).
    ///
    /// # Errors
    /// `NotFound` if it was already reaped.
    pub fn cpu_time(&self) -> io::Result<Duration> {
        let stat = self.proc_file("stat")?;
        // proc_pid_stat(5): the second field may contain anything; utime and stime are the 14th and 15th.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = after_name.split_ascii_whitespace().skip(11);
        let ticks = number::<u64>(fields.next())? + number::<u64>(fields.next())?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
        Ok(Duration::from_millis(ticks * 1000 / per_second.max(1)))
    }

    /// Returns the context switches of all its living threads, voluntary and involuntary.
    ///
    /// # Errors
    /// `NotFound` if it was already reaped.
    pub fn context_switches(&self) -> io::Result<u64> {
        let mut switches = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            // A thread may end during the read.
            let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
            switches += field(&status, "voluntary_ctxt_switches:")? + field(&status, "nonvoluntary_ctxt_switches:")?;
        }
        Ok(switches)
    }

    /// Returns the resident memory in KiB.
    ///
    /// # Errors
    /// `InvalidData` if the program has ended, `NotFound` if it was also reaped.
    pub fn rss_kib(&self) -> io::Result<u64> {
        field(&self.proc_file("status")?, "VmRSS:")
    }

    /// Returns the peak resident memory in KiB.
    ///
    /// # Errors
    /// `InvalidData` if the program has ended, `NotFound` if it was also reaped.
    pub fn peak_rss_kib(&self) -> io::Result<u64> {
        field(&self.proc_file("status")?, "VmHWM:")
    }

    fn proc_file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.id())).context(|| format!("{} has ended", self.program))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only if the process was already reaped.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.parent.end();
    }
}

/// The thread that started a program. It lives until the program has ended, because it is the parent for the kernel
/// (prctl(2), `PR_SET_PDEATHSIG`).
#[derive(Debug)]
struct Parent {
    /// Dropping this ends the thread.
    hold: Option<Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Parent {
    fn spawn(namespace: &Namespace, mut command: Command) -> io::Result<(process::Child, Self)> {
        let (hold, held) = mpsc::channel();
        let (report, spawned) = mpsc::channel();
        let thread = namespace.spawn("child-parent", move || {
            if report.send(command.spawn()).is_ok() {
                // Nothing is ever sent: it returns when the other end is dropped.
                let _ = held.recv();
            }
        });
        let process = spawned.recv().map_err(io::Error::other)??;
        Ok((process, Self { hold: Some(hold), thread: Some(thread) }))
    }

    fn end(&mut self) {
        drop(self.hold.take());
        // Its panic was already reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Exits this process with status 1 as soon as its standard input ends.
///
/// For programs started by [`Child::spawn`]: they end with the process that started them, even if it was killed. The
/// standard input must not be used otherwise.
///
/// # Panics
/// The thread cannot be created.
pub fn exit_with_parent() {
    let watch = || {
        // An unreadable input ends it too, because the parent is gone then.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        process::exit(1);
    };
    if let Err(error) = thread::Builder::new().name("parent-watch".into()).spawn(watch) {
        panic!("cannot make a thread that watches the parent: {error}");
    }
}

/// Returns a program for [`Child::spawn`] that the kernel kills when its parent ends (prctl(2), `PR_SET_PDEATHSIG`). It
/// keeps its process id, because setpriv(1) of util-linux executes the program in place.
#[must_use]
pub fn tied_to_its_parent(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Replaces this process by another program, which the kernel kills when this process's parent ends.
///
/// For programs that do not watch their parent: the program of [`Child::spawn`] calls this before it reads its standard
/// input. It returns only on failure.
pub fn exec_with_parent(mut command: Command) -> io::Error {
    if let Err(errno) = set_pdeathsig(Signal::SIGKILL) {
        return errno.into();
    }
    // The kernel does not signal a parent that has already ended. But then its end of our standard input is closed.
    match poll(&mut [PollFd::new(io::stdin().as_fd(), PollFlags::empty())], PollTimeout::ZERO) {
        Ok(0) => command.exec(),
        Ok(_) => io::Error::new(io::ErrorKind::BrokenPipe, "the process that started this one has ended"),
        Err(errno) => errno.into(),
    }
}

fn field(status: &str, name: &str) -> io::Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    number(line.and_then(|line| line.split_ascii_whitespace().next()))
}

fn number<T: FromStr>(text: Option<&str>) -> io::Result<T> {
    let missing = || io::Error::new(io::ErrorKind::InvalidData, "a number is missing in procfs");
    text.and_then(|text| text.parse().ok()).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::env;
    use std::os::unix::process::ExitStatusExt;
    use std::path::Path;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Child::spawn(&Namespace::new().expect("namespace"), command).expect("a shell")
    }

    #[test]
    fn a_program_runs_inside() {
        let namespace = Namespace::new().expect("namespace");
        let inside = namespace.enter(|| fs::read_link("/proc/thread-self/ns/net")).expect("procfs");
        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        let child = Child::spawn(&namespace, command).expect("readlink");
        assert_eq!(Path::new(&child.next_line(SOON).expect("a line")), inside);
    }

    #[test]
    fn lines_errors_and_status_are_collected() {
        let mut child = shell("read word; echo got $word; echo oops >&2; printf last; exit 3");
        assert_eq!(child.wait(Duration::from_millis(20)).expect("wait"), None);
        child.send_line("this").expect("input");
        assert_eq!(child.next_line(SOON).expect("a line"), "got this");
        assert_eq!(child.next_line(SOON).expect("a line"), "last");
        assert_eq!(child.wait(SOON).expect("wait").and_then(|status| status.code()), Some(3));
        let end = child.next_line(SOON).expect_err("no more lines");
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        assert!(child.cpu_time().is_err());
        assert_eq!(child.signal(Signal::SIGTERM).expect_err("ended").kind(), io::ErrorKind::NotFound);
        let start = Instant::now();
        while child.stderr() != "oops\n" {
            assert!(start.elapsed() < SOON, "{:?}", child.stderr());
        }
    }

    #[test]
    fn a_signal_arrives() {
        let mut child = shell("echo ready; exec sleep 60");
        child.next_line(SOON).expect("a line");
        assert_eq!(child.next_line(Duration::from_millis(10)).expect_err("silent").kind(), io::ErrorKind::TimedOut);
        child.signal(Signal::SIGTERM).expect("signal");
        assert_eq!(child.wait(SOON).expect("wait").and_then(|status| status.signal()), Some(Signal::SIGTERM as i32));
    }

    #[test]
    fn a_dropped_program_is_gone() {
        let child = shell("exec sleep 60");
        let directory = format!("/proc/{}", child.id());
        assert!(Path::new(&directory).exists());
        drop(child);
        assert!(!Path::new(&directory).exists());
    }

    #[test]
    fn a_program_that_watches_ends_with_its_input() {
        const ROLE: &str = "LODEN_TESTBED_WATCHER";
        if env::var_os(ROLE).is_some() {
            exit_with_parent();
            println!("ready");
            thread::sleep(Duration::from_secs(60));
            return;
        }
        let mut command = Command::new(env::current_exe().expect("own path"));
        command.args(["--exact", "process::tests::a_program_that_watches_ends_with_its_input", "--nocapture"]);
        command.env(ROLE, "1");
        let mut child = Child::spawn(&Namespace::new().expect("namespace"), command).expect("spawn");
        while !child.next_line(SOON).expect("a line").contains("ready") {}
        assert_eq!(child.wait(Duration::from_millis(50)).expect("wait"), None);
        // The kernel closes the pipes of a killed process.
        drop(child.stdin.take());
        assert_eq!(child.wait(SOON).expect("wait").and_then(|status| status.code()), Some(1));
    }

    #[test]
    fn a_program_that_does_not_watch_ends_with_its_parent() {
        const ROLE: &str = "LODEN_TESTBED_STARTER";
        let again = |role| {
            let mut command = Command::new(env::current_exe().expect("own path"));
            let own = "process::tests::a_program_that_does_not_watch_ends_with_its_parent";
            command.args(["--exact", own, "--nocapture"]).env(ROLE, role);
            command
        };
        match env::var(ROLE).as_deref() {
            Ok(way @ ("by itself" | "tied")) => {
                let mut tied = tied_to_its_parent("sh");
                tied.args(["-c", "echo ready; exec sleep 60"]);
                let command = if way == "tied" { tied } else { again("sleeper") };
                let sleeper = Child::spawn(&Namespace::current().expect("current"), command).expect("spawn");
                while !sleeper.next_line(SOON).expect("a line").contains("ready") {}
                println!("sleeper {}", sleeper.id());
                thread::sleep(Duration::from_secs(60));
            }
            Ok(_) => {
                let mut sleep = Command::new("sh");
                sleep.args(["-c", "echo ready; exec sleep 60"]);
                panic!("{}", exec_with_parent(sleep));
            }
            Err(_) => ["by itself", "tied"].into_iter().for_each(|way| outlives_nobody(again(way))),
        }
    }

    /// Starts a program that starts another one, and kills it.
    fn outlives_nobody(starter: Command) {
        let mut starter = Child::spawn(&Namespace::new().expect("namespace"), starter).expect("spawn");
        let line = loop {
            let line = starter.next_line(SOON).expect("a line");
            if let Some((_, id)) = line.split_once("sleeper ") {
                break id.to_owned();
            }
        };
        let directory = format!("/proc/{line}");
        // Longer than the lifetime of the starting thread if nothing kept it alive.
        thread::sleep(Duration::from_millis(50));
        assert!(Path::new(&directory).exists());
        starter.signal(Signal::SIGKILL).expect("kill");
        assert!(starter.wait(SOON).expect("wait").is_some());
        let start = Instant::now();
        // The process is a zombie until it is reaped.
        while fs::read_to_string(format!("{directory}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(start.elapsed() < SOON, "the sleeper outlived the process that started it");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn processor_time_and_memory_are_measured() {
        let child = shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; sleep 0.01; exec sleep 60");
        child.next_line(Duration::from_secs(60)).expect("a line");
        assert!(child.cpu_time().expect("CPU time") >= Duration::from_millis(20));
        assert!(child.context_switches().expect("switches") > 0);
        assert!((100..100_000).contains(&child.rss_kib().expect("RSS")));
        assert!(child.peak_rss_kib().expect("peak") >= child.rss_kib().expect("RSS"));
    }
}
