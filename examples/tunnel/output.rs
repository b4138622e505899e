//! Lines for whoever runs the program. A thread writes them, so that a pipe that nobody reads blocks no other thread; and messages
//! are rate limited by cause, so that a cause that repeats for ever does not fill the log.
//!
//! The file needs the standard library alone: another program can include it as it is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that wait for a reader. With more the oldest are dropped.
const QUEUE: usize = 256;
/// Messages of one cause in one window of time.
const PER_WINDOW: u32 = 20;
/// The first window. Each one that left messages out makes the next twice as long, up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);

/// A file descriptor and the lines on their way to it.
pub(crate) struct Output {
    state: Mutex<State>,
    changed: Condvar,
    /// The words for lines that are missing.
    missing: fn(Missing) -> String,
}

/// Lines that are not written, and why.
pub(crate) enum Missing {
    /// The rate limit of a cause.
    LeftOut { cause: &'static str, lines: u64 },
    /// Nobody read the lines before them.
    Unread { lines: u64 },
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    unread: u64,
    limits: Vec<Limit>,
    is_writing: bool,
}

struct Limit {
    cause: &'static str,
    said: u32,
    left_out: u64,
    window: Duration,
    until: Instant,
}

impl Output {
    /// Starts a thread that writes to a copy of a file descriptor. The thread ends with the process.
    pub(crate) fn start(to: BorrowedFd<'_>, missing: fn(Missing) -> String) -> io::Result<Arc<Self>> {
        let file = File::from(to.try_clone_to_owned()?);
        let output = Arc::new(Self { state: Mutex::default(), changed: Condvar::new(), missing });
        let shared = Arc::clone(&output);
        thread::Builder::new().name("output".into()).spawn(move || shared.write_to(file))?;
        Ok(output)
    }

    /// Queues a line that somebody asked for. It is dropped only if nobody reads.
    pub(crate) fn answer(&self, line: String) {
        self.lock().push(line);
        self.changed.notify_all();
    }

    /// Queues a message, or counts it when its cause has had too many of late.
    pub(crate) fn say(&self, cause: &'static str, message: impl FnOnce() -> String) {
        let mut state = self.lock();
        let now = Instant::now();
        let at = state.limits.iter().position(|limit| limit.cause == cause).unwrap_or_else(|| {
            state.limits.push(Limit::new(cause, now));
            state.limits.len() - 1
        });
        let left_out = state.limits[at].renew(now);
        self.push_left_out(&mut state, cause, left_out);
        if state.limits[at].admits() {
            state.push(message());
        }
        // Also when it is left out: the thread tells so later, if nothing else does.
        self.changed.notify_all();
    }

    /// Waits until all lines are written, or somebody should read who does not.
    pub(crate) fn flush(&self, within: Duration) {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        self.push_all_left_out(&mut state, None);
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
            self.push_all_left_out(&mut state, Some(Instant::now()));
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

    /// Waits for a line, or for the end of a window that left something out.
    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let ends = state.limits.iter().filter(|limit| limit.left_out > 0).map(|limit| limit.until);
        match ends.min() {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(end) => {
                let left = end.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Queues a line for each cause whose window is over; without a time, for all causes.
    fn push_all_left_out(&self, state: &mut State, now: Option<Instant>) {
        for at in 0..state.limits.len() {
            let limit = &mut state.limits[at];
            if limit.left_out > 0 {
                let (cause, left_out) = (limit.cause, limit.renew(now.unwrap_or(limit.until)));
                self.push_left_out(state, cause, left_out);
            }
        }
    }

    fn push_left_out(&self, state: &mut State, cause: &'static str, lines: u64) {
        if lines > 0 {
            state.push((self.missing)(Missing::LeftOut { cause, lines }));
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

impl Limit {
    fn new(cause: &'static str, now: Instant) -> Self {
        Self { cause, said: 0, left_out: 0, window: SHORTEST, until: now + SHORTEST }
    }

    /// Begins a new window if the last one is over. Returns how many messages that one left out.
    fn renew(&mut self, now: Instant) -> u64 {
        if now < self.until {
            return 0;
        }
        let left_out = std::mem::take(&mut self.left_out);
        self.window = if left_out > 0 { (self.window * 2).min(LONGEST) } else { SHORTEST };
        (self.until, self.said) = (now + self.window, 0);
        left_out
    }

    fn admits(&mut self) -> bool {
        let admits = self.said < PER_WINDOW;
        if admits {
            self.said += 1
        } else {
            self.left_out += 1
        }
        admits
    }
}

/// Writes all of a line, unless there is nobody to read it.
fn write_line(file: &mut File, line: &str) {
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody who shares it made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(10)),
            Err(_) => return,
        }
    }
}
