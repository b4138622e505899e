//! Output lines of a program. A thread writes them, so that a pipe without a reader blocks no other thread. Messages
//! are rate limited by cause, so that a repeated cause does not fill the log.
//!
//! The file needs only the standard library, so that another program can include it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The most queued lines. With more, the oldest are dropped.
const QUEUE: usize = 256;

/// The messages of one cause that are written in one window of time. After a window with more, the next one is twice as
/// long.
#[derive(Clone, Copy)]
pub(crate) struct RateLimit {
    pub(crate) messages: u32,
    pub(crate) shortest: Duration,
    pub(crate) longest: Duration,
}

impl RateLimit {
    pub(crate) const DEFAULT: Self =
        Self { messages: 20, shortest: Duration::from_secs(10), longest: Duration::from_secs(600) };
}

/// A file descriptor and its queued lines.
pub(crate) struct Output {
    state: Mutex<State>,
    changed: Condvar,
    rate: RateLimit,
    /// The texts for missing lines.
    missing: fn(Missing) -> String,
}

/// Counts of missing lines, by reason.
pub(crate) enum Missing {
    /// The rate limit of a cause.
    LeftOut { cause: &'static str, lines: u64 },
    /// The queue was full, because nobody read.
    Unread { lines: u64 },
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    unread: u64,
    causes: Vec<Cause>,
    is_writing: bool,
}

struct Cause {
    name: &'static str,
    written: u32,
    left_out: u64,
    window: Duration,
    until: Instant,
}

impl Output {
    /// Starts a thread that writes to a copy of a file descriptor. The thread ends with the process.
    pub(crate) fn start(to: BorrowedFd<'_>, rate: RateLimit, missing: fn(Missing) -> String) -> io::Result<Arc<Self>> {
        let file = File::from(to.try_clone_to_owned()?);
        let output = Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), rate, missing });
        let shared = Arc::clone(&output);
        thread::Builder::new().name("output".into()).spawn(move || shared.write_to(file))?;
        Ok(output)
    }

    /// Queues a requested line. It is dropped only if nobody reads.
    pub(crate) fn answer(&self, line: String) {
        self.lock().push(line);
        self.changed.notify_all();
    }

    /// Queues a message, or counts it if its cause had too many recently.
    pub(crate) fn say(&self, cause: &'static str, message: impl FnOnce() -> String) {
        let mut state = self.lock();
        let (now, rate) = (Instant::now(), self.rate);
        let at = state.causes.iter().position(|known| known.name == cause).unwrap_or_else(|| {
            state.causes.push(Cause {
                name: cause,
                written: 0,
                left_out: 0,
                window: rate.shortest,
                until: now + rate.shortest,
            });
            state.causes.len() - 1
        });
        if now >= state.causes[at].until {
            self.end_window(&mut state, at, now);
        }
        let cause = &mut state.causes[at];
        if cause.written < rate.messages {
            cause.written += 1;
            state.push(message());
        } else {
            cause.left_out += 1;
            if cause.left_out > 1 {
                return;
            }
        }
        // Also for the first suppressed message, because the thread reports it at the end of the window.
        self.changed.notify_all();
    }

    /// Waits until all lines are written, or until nobody reads for too long.
    pub(crate) fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        self.end_windows(&mut state, None);
        self.changed.notify_all();
        while state.is_writing || !state.lines.is_empty() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write_to(&self, mut file: File) {
        let mut state = self.lock();
        loop {
            state.is_writing = false;
            self.end_windows(&mut state, Some(Instant::now()));
            let unread = std::mem::take(&mut state.unread);
            let line = if unread > 0 {
                Some((self.missing)(Missing::Unread { lines: unread }))
            } else {
                state.lines.pop_front()
            };
            let Some(line) = line else {
                self.changed.notify_all();
                state = self.wait(state);
                continue;
            };
            state.is_writing = true;
            drop(state);
            write_line(&mut file, &line);
            state = self.lock();
        }
    }

    /// Waits for a line, or for the end of a window with suppressed messages.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let ends = state.causes.iter().filter(|cause| cause.left_out > 0).map(|cause| cause.until);
        match ends.min() {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Ends the windows that are over and have suppressed messages; without a time, all with suppressed messages.
    fn end_windows(&self, state: &mut State, now: Option<Instant>) {
        for at in 0..state.causes.len() {
            let Cause { left_out, until, .. } = state.causes[at];
            if left_out > 0 && now.is_none_or(|now| now >= until) {
                self.end_window(state, at, now.unwrap_or(until));
            }
        }
    }

    /// Begins the next window of a cause, and queues a line if the last one had suppressed messages.
    fn end_window(&self, state: &mut State, at: usize, now: Instant) {
        let Cause { name, left_out, window, .. } = state.causes[at];
        let window = if left_out > 0 { (window * 2).min(self.rate.longest) } else { self.rate.shortest };
        state.causes[at] = Cause { name, written: 0, left_out: 0, window, until: now + window };
        if left_out > 0 {
            state.push((self.missing)(Missing::LeftOut { cause: name, lines: left_out }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, line: String) {
        if self.lines.len() == QUEUE {
            self.lines.pop_front();
            self.unread += 1;
        }
        self.lines.push_back(line);
    }
}

/// Writes a whole line, unless the reader is gone.
fn write_line(file: &mut File, line: &str) {
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process that shares the file made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
            Err(_) => return,
        }
    }
}
