//! A thread that keeps the routes, so that packets wait neither for a long file nor for a large table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use loden::route::{RouteChange, RouteReader};

use crate::Error;
use crate::routes::Routes;

/// The thread. It ends with the process.
pub(crate) struct Routing {
    asks: Sender<Ask>,
    reader: RouteReader,
    shared: Arc<Shared>,
    first_reading: Receiver<Result<(), String>>,
}

#[derive(Default)]
struct Shared {
    routes: AtomicUsize,
    refused: AtomicUsize,
    /// Batches of changes that are not applied yet.
    batches: AtomicUsize,
    /// The file will be read again. Further requests are the same request.
    will_read: AtomicBool,
}

enum Ask {
    Change(Vec<RouteChange>),
    ReadFileAgain,
    Finish(Sender<()>),
}

impl Routing {
    /// The most queued batches of changes. With more, the clients of the control socket wait.
    const BATCHES: usize = 16;

    /// Starts with the routes of the command line. The thread reads the file first.
    pub(crate) fn start(mut routes: Routes) -> Result<Self, Error> {
        let ((asks, asked), (says, first_reading)) = (channel(), channel());
        let (reader, shared) = (routes.reader(), Arc::new(Shared::default()));
        let state = Arc::clone(&shared);
        thread::Builder::new().name("routes".into()).spawn(move || {
            let read = routes.read_file();
            state.routes.store(routes.len(), Ordering::Relaxed);
            let _ = says.send(read);
            for ask in asked {
                match ask {
                    Ask::Change(changes) => {
                        let refused = routes.set_from_control(&changes);
                        state.refused.fetch_add(refused, Ordering::Relaxed);
                        state.batches.fetch_sub(1, Ordering::Relaxed);
                    }
                    Ask::ReadFileAgain => {
                        // Before the reading, because a request during it asks for another one.
                        state.will_read.store(false, Ordering::Relaxed);
                        routes.read_file_again();
                    }
                    Ask::Finish(done) => drop(done),
                }
                state.routes.store(routes.len(), Ordering::Relaxed);
            }
        })?;
        Ok(Self { asks, reader, shared, first_reading })
    }

    /// Waits this long for the first reading of the file. Returns whether it is over.
    pub(crate) fn has_read(&self, within: Duration) -> Result<bool, Error> {
        match self.first_reading.recv_timeout(within) {
            Ok(outcome) => Ok(outcome.map(|()| true)?),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err("the thread that reads routes panicked: a bug".into()),
        }
    }

    pub(crate) fn reader(&self) -> RouteReader {
        self.reader.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.shared.routes.load(Ordering::Relaxed)
    }

    /// Returns the number of refused routes of the control socket.
    pub(crate) fn refused(&self) -> usize {
        self.shared.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn read_file_again(&self) {
        if !self.shared.will_read.swap(true, Ordering::Relaxed) {
            let _ = self.asks.send(Ask::ReadFileAgain);
        }
    }

    /// Returns whether more changes can be queued.
    pub(crate) fn has_room(&self) -> bool {
        self.shared.batches.load(Ordering::Relaxed) < Self::BATCHES
    }

    pub(crate) fn change(&self, changes: Vec<RouteChange>) {
        if !changes.is_empty() {
            self.shared.batches.fetch_add(1, Ordering::Relaxed);
            let _ = self.asks.send(Ask::Change(changes));
        }
    }

    /// Waits until all changes are applied, but not for a long file.
    pub(crate) fn finish(&self) {
        const WITHIN: Duration = Duration::from_millis(300);
        let (done, finished) = channel();
        let _ = self.asks.send(Ask::Finish(done));
        let _ = finished.recv_timeout(WITHIN);
    }
}
