//! The end of the demo: its errors, its exit status and Ctrl-C.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io::{self, ErrorKind, Write};
use std::process::{self, ExitCode};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

/// The time that a step may take after Ctrl-C before the process exits.
const GRACE: Duration = Duration::from_millis(800);
/// A shell's exit status for a program that died of SIGINT, and of SIGPIPE.
const INTERRUPTED: u8 = 130;
const UNREAD: u8 = 141;

static INTERRUPT: AtomicBool = AtomicBool::new(false);

/// The reason of an early end.
#[derive(Debug)]
pub(crate) enum End {
    /// A step failed, or a result was wrong.
    Failed(String),
    /// Ctrl-C.
    Interrupted,
    /// This process lacks a right that the demo needs.
    NotPermitted(String),
    /// Standard output is closed: `demo | head`.
    Unread,
}

impl End {
    /// Prefixes an error with the attempted step.
    pub(crate) fn failed<E: fmt::Display>(doing: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed(format!("{doing}: {error}"))
    }
}

/// Prints one line. `println!` would panic if standard output is closed.
pub(crate) fn say(line: fmt::Arguments<'_>) -> Result<(), End> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(End::Unread),
        written => written.map_err(End::failed("cannot write to standard output")),
    }
}

/// Makes Ctrl-C a flag that is checked between two steps. A step that takes too long after it is aborted.
pub(crate) fn watch_for_interrupt() -> io::Result<()> {
    let interrupt = SigSet::from(Signal::SIGINT);
    // Later threads inherit the mask, so that only the waiting thread gets the signal.
    interrupt.thread_block()?;
    let watch = move || {
        if interrupt.wait().is_ok() {
            INTERRUPT.store(true, Ordering::Relaxed);
            thread::sleep(GRACE);
            process::exit(INTERRUPTED.into());
        }
    };
    thread::Builder::new().name("ctrl-c".into()).spawn(watch).map(drop)
}

pub(crate) fn check_interrupt() -> Result<(), End> {
    if INTERRUPT.load(Ordering::Relaxed) { Err(End::Interrupted) } else { Ok(()) }
}

/// Prints the reason of an early end, and returns the exit status.
pub(crate) fn exit_code(ended: Result<(), End>) -> ExitCode {
    let (why, status) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(End::Unread) => return ExitCode::from(UNREAD),
        Err(End::Failed(why)) => (why, 1),
        Err(End::NotPermitted(why)) => (why, 2),
        Err(End::Interrupted) => ("interrupted; everything was removed".to_owned(), INTERRUPTED),
    };
    // A closed standard error is not an error.
    let _ = writeln!(io::stderr(), "demo: {why}");
    ExitCode::from(status)
}
