//! Failing system calls of a running process, by strace(1).

use core::time::Duration;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use std::{env, fs, io};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkstemp};

use crate::{Child, Namespace};

const SOON: Duration = Duration::from_secs(5);

/// A strace(1) that is attached to a process until this is dropped.
pub struct Injection {
    process: Pid,
    strace: Child,
    trace: TraceFile,
}

/// A temporary file that is removed on drop.
struct TraceFile(PathBuf);

impl TraceFile {
    fn new() -> io::Result<Self> {
        let (_descriptor, path) = mkstemp(&env::temp_dir().join("loden-strace-XXXXXX"))?;
        Ok(Self(path))
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        // Nobody misses a file that is gone already.
        let _ = fs::remove_file(&self.0);
    }
}

impl Injection {
    /// Makes system calls of a process and all its threads fail from now on. Each fault names calls and their failure
    /// in the syntax of strace's `--inject`. One call may be in one fault only.
    ///
    /// # Errors
    /// strace is missing, may not trace the process, or does not accept the syntax.
    pub fn begin(namespace: &Namespace, process: u32, faults: &[(&str, &str)]) -> io::Result<Self> {
        let trace = TraceFile::new()?;
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &process.to_string(), "-o"]).arg(&trace.0);
        let calls: Vec<&str> = faults.iter().map(|(calls, _)| *calls).collect();
        command.args(["-e", &format!("trace={}", calls.join(","))]);
        for (calls, how) in faults {
            command.args(["-e", &format!("inject={calls}:{how}")]);
        }
        let strace = Child::spawn(namespace, command)?;
        let start = Instant::now();
        loop {
            let said = strace.stderr();
            if said.contains("strace: attach") || said.contains("invalid") || start.elapsed() > SOON {
                return Err(io::Error::other(format!("strace does not attach to process {process}: {said}")));
            }
            if said.contains("attached") {
                return Ok(Self { process: Pid::from_raw(process.cast_signed()), strace, trace });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the calls so far.
    ///
    /// # Errors
    /// The output of strace is unreadable.
    pub fn trace(&self) -> io::Result<String> {
        fs::read_to_string(&self.trace.0)
    }

    /// Detaches from the process. Returns the number of failed calls.
    ///
    /// # Errors
    /// The process does not stop, or strace does not end.
    pub fn end(mut self) -> io::Result<usize> {
        // A call that strace has prevented returns ENOSYS if strace ends before it has set the error. A stopped process
        // is in no call.
        kill(self.process, Signal::SIGSTOP)?;
        let ended = self.end_at_rest();
        kill(self.process, Signal::SIGCONT)?;
        ended?;
        Ok(self.trace()?.matches("(INJECTED)").count())
    }

    fn end_at_rest(&mut self) -> io::Result<()> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.process))?.count();
        let start = Instant::now();
        while self.trace()?.matches("--- stopped by SIGSTOP ---").count() < threads {
            if start.elapsed() > SOON {
                return Err(io::Error::other(format!("process {} does not stop", self.process)));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.strace.signal(Signal::SIGTERM)?;
        self.strace.wait(SOON)?.ok_or_else(|| io::Error::other("strace does not end"))?;
        Ok(())
    }
}
