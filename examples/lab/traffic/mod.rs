//! Traffic from pod a to pod b, measured at both ends.

pub(crate) mod rtt;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::io;
use std::thread::ScopedJoinHandle;

fn join<T>(thread: ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_panic| Err(io::Error::other("a thread of the traffic generator panicked")))
}
