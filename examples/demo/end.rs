//! How the demo ends, and what it says until then.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::io::{self, ErrorKind, Write};
use std::process::{self, ExitCode};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

/// How long a step may go on after Ctrl-C before the process ends without it.
const GRACE: Duration = Duration::from_millis(800);
/// What a shell reports for a program that died of SIGINT, and of SIGPIPE.
const INTERRUPTED: u8 = 130;
const UNREAD: u8 = 141;

static INTERRUPT: AtomicBool = AtomicBool::new(false);

/// Why the demo ended early.
#[derive(Debug)]
pub(crate) enum End {
    /// Something was not as it should be.
    Failed(String),
    /// Ctrl-C.
    Interrupted,
    /// This process may not do what the demo needs.
    NotPermitted(String),
    /// Nobody reads on: `demo | head`.
    Unread,
}

impl End {
    /// Puts in front of an error what was being done.
    pub(crate) fn failed<E: fmt::Display>(doing: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::Failed(format!("{doing}: {error}"))
    }
}

/// Prints one line. Not `println!`, which panics when nobody reads on.
pub(crate) fn say(line: fmt::Arguments<'_>) -> Result<(), End> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(End::Unread),
        written => written.map_err(End::failed("cannot write to standard output")),
    }
}

/// Makes Ctrl-C a thing to ask for between two steps; a step that takes too long after it is not waited for.
pub(crate) fn watch_for_interrupt() -> io::Result<()> {
    let interrupt = SigSet::from(Signal::SIGINT);
    // Threads that are made from here on inherit it, so that the signal is left for the one that waits for it.
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

/// Says why it ended early, and the process's status.
pub(crate) fn exit_code(ended: Result<(), End>) -> ExitCode {
    let (why, status) = match ended {
        Ok(()) => return ExitCode::SUCCESS,
        Err(End::Unread) => return ExitCode::from(UNREAD),
        Err(End::Failed(why)) => (why, 1),
        Err(End::NotPermitted(why)) => (why, 2),
        Err(End::Interrupted) => ("interrupted; everything was removed".to_owned(), INTERRUPTED),
    };
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "demo: {why}");
    ExitCode::from(status)
}
